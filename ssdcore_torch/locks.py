"""Folders that one process at a time works in."""

from __future__ import annotations

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # a system without POSIX locks
    fcntl = None  # type: ignore[assignment]


def lock_folder(folder: Path) -> int | None:
    """Keep other processes from locking this folder until the descriptor returned is closed, or this process ends,
    however it ends. The folder itself is locked: no file is left behind, and none can be deleted or planted.

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
    return descriptor
