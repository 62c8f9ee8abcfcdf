"""Folders that one process at a time works in."""

from __future__ import annotations

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # a system without POSIX locks
    fcntl = None  # type: ignore[assignment]


_held: set[int] = set()


def lock_folder(folder: Path) -> int | None:
    """Keep other processes from locking this folder until `unlock_folder` of what is returned, or until this process
    ends, however it ends. The folder itself is locked: no file is left behind, and none can be deleted or planted.

    None where there are no locks, as on some network file systems. Raises BlockingIOError if another process has it.
    """
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    _held.add(descriptor)
    return descriptor


def unlock_folder(lock: int | None) -> None:
    """Let others lock what `lock_folder` has locked; None: it has not."""
    if lock is not None:
        _held.discard(lock)
        os.close(lock)


def _leave_to_the_parent() -> None:
    """A forked process, as those that decode, would else keep the lock when this one is killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)
