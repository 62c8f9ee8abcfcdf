"""Shards of other machines, kept on this one: in a folder of our own that nobody else can write to, and compared with
what they should be whenever they are opened."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import logging
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from filelock import FileLock

from ssdcore_torch.data._order import WINDOW
from ssdcore_torch.text import printable

log = logging.getLogger("ssdcore_torch")

WAITS = (1.0, 4.0, 16.0, 64.0)
"""Seconds between attempts to fetch a shard."""

SUFFIX = ".shard"
_OURS = re.compile(rf"[0-9a-f]{{32}}\{SUFFIX}")

BLOCK = 2**20


@dataclass(frozen=True)
class Place:
    """Where a shard is, and what is known of it.

    Attributes:
        path: or URL
        bytes: its length, or None
        sha256: of its contents, or ""
    """

    path: str
    bytes: int | None
    sha256: str = ""


def cache_folder() -> Path:
    """Where fetched shards are kept: ssdcore-shards in $SSDCORE_CACHE, or a folder of the user's in the temporary one.

    Raises:
        OSError: Unless it is a folder, no link, of this user, that no other may write to.
    """
    chosen = os.environ.get("SSDCORE_CACHE")
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    folder = Path(chosen, "ssdcore-shards") if chosen else Path(tempfile.gettempdir(), f"ssdcore-shards-{user}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    fault = ""
    if not stat.S_ISDIR(found.st_mode):
        fault = "is a link or a file"
    elif hasattr(os, "getuid") and found.st_uid != os.getuid():
        fault = "belongs to another user"
    elif hasattr(os, "getuid") and found.st_mode & 0o022:
        fault = "can be written by other users"
    if fault:
        raise OSError(f"the cache of shards {folder} {fault}: set SSDCORE_CACHE to a folder of your own")
    return folder


def open_cached(shard: Place, open_stream: Callable[[str], IO[bytes]]) -> BinaryIO:
    """The shard from the cache, fetched if it is not there or not what it should be. Raises OSError, ValueError."""
    folder = cache_folder()
    name = hashlib.sha256(f"{shard.path} {shard.sha256}".encode()).hexdigest()[:32]
    cached = folder / f"{name}{SUFFIX}"
    with FileLock(f"{cached}.lock"):  # other workers and ranks want it, too
        file = _open_sound(cached, shard)
        if file is None:
            _fetch(shard, cached, open_stream)
            file = _open_sound(cached, shard)
        if file is None:
            raise OSError(f"{cached} is not what was written there a moment ago: does the disk work?")
    _forget(folder)
    return file


_sound: set[tuple[str, int, int, int]] = set()  # (SHA-256, inode, length, time of change) of files that were compared


def _open_sound(cached: Path, shard: Place) -> BinaryIO | None:
    """The file, if it is a regular one with the contents that the shard should have."""
    try:
        descriptor = os.open(cached, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    file = os.fdopen(descriptor, "rb")
    about = os.fstat(descriptor)
    known = (shard.sha256, about.st_ino, about.st_size, about.st_mtime_ns)
    if not stat.S_ISREG(about.st_mode) or (shard.bytes is not None and about.st_size != shard.bytes):
        file.close()
        return None
    if shard.sha256 and known not in _sound:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            file.close()
            log.warning("the cache's copy of %s has changed: fetching it again", printable(shard.path))
            return None
        _sound.add(known)
        file.seek(0)
    with contextlib.suppress(FileNotFoundError):  # another process made room for its own
        os.utime(cached, ns=(time.time_ns(), about.st_mtime_ns))  # used last; the contents are as old as they were
    return file


def _fetch(shard: Place, cached: Path, open_stream: Callable[[str], IO[bytes]]) -> None:
    for left in cached.parent.glob(f"{cached.stem}.*.part"):  # by a process that was killed
        left.unlink(missing_ok=True)
    for wait in (*WAITS, None):
        handle, name = tempfile.mkstemp(prefix=f"{cached.stem}.", suffix=".part", dir=cached.parent)
        try:
            digest, length = hashlib.sha256(), 0
            with os.fdopen(handle, "wb") as target, open_stream(shard.path) as source:
                while block := source.read(BLOCK):
                    digest.update(block)
                    length += len(block)
                    if shard.bytes is not None and length > shard.bytes:
                        break  # it might never end
                    target.write(block)
            check_length(length, shard)
            if shard.sha256 and digest.hexdigest() != shard.sha256:
                raise ValueError(f"{printable(shard.path)} is not what its manifest says it was")
            os.replace(name, cached)
            return
        except Exception as error:  # every protocol has errors of its own
            told = printable(error) or type(error).__name__
            if wait is None:
                raise OSError(f"{printable(shard.path)} cannot be fetched: {told}") from error
            log.warning("%s cannot be fetched (%s): trying again in %.0f s", printable(shard.path), told, wait)
            time.sleep(wait)
        finally:
            Path(name).unlink(missing_ok=True)


def _forget(folder: Path) -> None:
    """Remove all but the shards used last. One that is still open somewhere stays readable there."""
    used: list[tuple[int, Path]] = []
    for entry in os.scandir(folder):
        if not _OURS.fullmatch(entry.name):
            continue
        try:
            used.append((entry.stat(follow_symlinks=False).st_atime_ns, Path(entry.path)))
        except FileNotFoundError:
            continue  # another process was quicker
    for _, file in sorted(used)[: -2 * WINDOW]:
        file.unlink(missing_ok=True)


def check_length(found: int, shard: Place) -> None:
    """Raises ValueError unless a shard's file has the length that is known of it."""
    if shard.bytes is not None and found != shard.bytes:
        raise ValueError(
            f"{printable(shard.path)} is {found} bytes long, not {shard.bytes} as expected: cut short, or of another "
            "preparation"
        )
