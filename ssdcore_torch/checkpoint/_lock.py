"""One trainer at a time in a run folder."""

from __future__ import annotations

import logging
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger("ssdcore_torch")
LOCK = ".lock"

_held: dict[Path, FileLock] = {}


def hold(run: Path) -> None:
    """Keep other processes from training in this folder until `release`, or the end of this process, however it ends.

    Raises ValueError if another holds it. Where the file system knows no locks the log says so.
    """
    place = run.resolve()
    if place in _held:
        return
    lock = FileLock(run / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"{run} is being trained by another process: wait for it, or choose another --out") from error
    except NotImplementedError:
        log.warning("%s lies on a file system without locks: see to it that no other process trains there", run)
        return
    _held[place] = lock


def release(run: Path) -> None:
    """Let others train in this folder."""
    lock = _held.pop(run.resolve(), None)
    if lock is not None:
        lock.release()
