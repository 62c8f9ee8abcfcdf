"""Addresses on other machines: a short list of protocols, and nothing that is put together of several."""

from __future__ import annotations

from typing import IO

import fsspec

from ssdcore.files import open_regular
from ssdcore_torch.text import printable

PROTOCOLS = ("file", "http", "https", "s3", "gs", "gcs", "az", "abfs")
"""fsspec reads many more, among them some that unpack, render templates or run commands."""


def is_remote(path: str) -> bool:
    """Whether this is a URL, of whatever protocol."""
    return "://" in path


def check_address(path: str) -> None:
    """Raises ValueError unless this is a single URL of one of the `PROTOCOLS`."""
    protocol = path.partition("://")[0].lower()
    if "::" in path:
        raise ValueError(f"{printable(path)}: addresses within addresses (::) are not opened; give the address itself")
    if protocol not in PROTOCOLS:
        raise ValueError(
            f"{printable(path)}: addresses of {printable(protocol)}:// are not opened, those of "
            f"{', '.join(f'{name}://' for name in PROTOCOLS)} are"
        )


def open_remote(path: str) -> IO[bytes]:
    """The file at this address. Raises ValueError for one that is not opened, OSError naming it for any failure."""
    check_address(path)
    try:
        system, inside = fsspec.core.url_to_fs(path)
        if path.lower().startswith("file://"):
            return open_regular(inside)
        opened: IO[bytes] = system.open(inside, "rb")
        return opened
    except Exception as error:  # every protocol has errors of its own, and some need a package of their own
        raise OSError(f"{printable(path)} cannot be read: {printable(error) or type(error).__name__}") from error


def find_remote(pattern: str) -> list[str]:
    """The addresses that a pattern with * means, in order. Raises as `open_remote`."""
    check_address(pattern)
    try:
        system, inside = fsspec.core.url_to_fs(pattern)
        return sorted(str(system.unstrip_protocol(found)) for found in system.glob(inside))
    except Exception as error:
        raise OSError(f"{printable(pattern)} cannot be listed: {printable(error) or type(error).__name__}") from error
