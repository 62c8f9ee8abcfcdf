"""Decoded images that several ranks of a machine share."""

from __future__ import annotations

import contextlib
import math
import os
import stat
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch.distributed as dist

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from ssdcore_torch.distributed import World

Room = Callable[[tuple[int, ...]], np.ndarray]
"""Memory for uint8 values of a shape."""

PREFIX = "ssdcore-images-"

T = TypeVar("T")


def shared(decode: Callable[[Room], T], world: World | None) -> T:
    """`decode` on one rank of each machine; the others map the same memory, a file that has lost its name.

    T is a dataclass with `images`, an array that `decode` has filled.
    """
    sweep()
    if world is None or world.size == 1:
        return decode(lambda shape: np.empty(shape, np.uint8))
    path, handle = "", -1
    found: Any = None
    try:
        if world.local_rank == 0:
            handle, path = _locked_file()
            found = _decode_into(Path(path), decode)
        told: list[tuple[str, int, Any]] = [("", 0, None)] * world.size
        failed = found is None or isinstance(found, Exception)
        shown = found if failed else replace(found, images=found.images[:0].copy())
        dist.all_gather_object(told, (path, 0 if failed else len(found.images), shown))
        for _, _, other in told:
            if isinstance(other, Exception):  # of any machine: no rank may wait for one that has stopped
                raise other
        if len(counts := sorted({count for path, count, _ in told if path})) > 1:
            raise ValueError(f"the machines hold different data: {counts[0]} and {counts[-1]} images at the same path")
        path_here, count, shown = told[world.rank - world.local_rank]  # torchrun numbers a machine's ranks in a row
        if found is None:
            found = replace(shown, images=np.memmap(path_here, np.uint8, "r", shape=(count, *shown.images.shape[1:])))
        world.wait()
        result: T = found
        return result
    finally:
        if path:
            os.unlink(path)
            os.close(handle)


def _locked_file() -> tuple[int, str]:
    """A new temporary file, open and locked, so that it is known to be in use: (descriptor, path)."""
    while True:
        handle, path = tempfile.mkstemp(prefix=PREFIX)
        if fcntl is not None:
            with contextlib.suppress(OSError):  # no locks there
                fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:  # else another process has swept it before it was locked
            return handle, path
        os.close(handle)


def sweep() -> None:
    """Remove what processes that were killed while they decoded have left: files of this user that none has locked."""
    if fcntl is None:
        return
    for entry in os.scandir(tempfile.gettempdir()):
        if not entry.name.startswith(PREFIX):
            continue
        with contextlib.suppress(OSError):
            handle = os.open(entry.path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                found = os.fstat(handle)
                if stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid():
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(entry.path)
            finally:
                os.close(handle)


def _decode_into(path: Path, decode: Callable[[Room], T]) -> T | Exception:
    """The images in a file of that name, mapped; or why there are none."""

    def room(shape: tuple[int, ...]) -> np.ndarray:
        try:
            mapped = np.memmap(path, np.uint8, "w+", shape=shape)
            if hasattr(os, "posix_fallocate"):  # else a full disk would be a bus error when it is written to
                with open(path, "rb+") as file:
                    os.posix_fallocate(file.fileno(), 0, math.prod(shape))
        except OSError as error:
            raise ValueError(
                f"the ranks cannot share {math.prod(shape) / 2**30:.2g} GiB of decoded images in {path.parent} "
                f"({error.strerror}): set TMPDIR to a folder with room, or lower data.memory_gib"
            ) from error
        return mapped

    try:
        return decode(room)
    except Exception as error:  # sent to every rank
        return error
