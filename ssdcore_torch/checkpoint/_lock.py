"""One trainer at a time in a run folder."""

from __future__ import annotations

import errno
import logging
import os
import stat
from pathlib import Path

try:
    import fcntl
except ImportError:  # a system without POSIX locks
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("ssdcore_torch")
LOCK = ".lock"

_held: dict[Path, list[int]] = {}
# What a file system without locks says, and NFS of a lock on a folder.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EINVAL)


def hold(run: Path) -> None:
    """Keep other processes from training in this folder until `release`, or the end of this process, however it ends.

    The folder itself is locked, which stays so if somebody deletes RUN/.lock, and RUN/.lock, for network file systems
    that lock files alone. A .lock that is a link is refused: what it points to is not part of the run.

    Where the file system knows no locks the log says so.

    Raises:
        ValueError: If another holds it, or for such a link.
    """
    place = run.resolve()
    if place in _held:
        return
    descriptors: list[int] = []
    try:
        if fcntl is not None:
            descriptors.append(os.open(place, os.O_RDONLY))
        descriptors.append(_open_file(run / LOCK))
        locked = [_lock(descriptor, run) for descriptor in descriptors]
    except BaseException:
        _close(descriptors)
        raise
    if not any(locked):
        log.warning("%s is on a file system without locks: make sure that no other process trains there", run)
    _held[place] = descriptors


def _open_file(path: Path) -> int:
    """RUN/.lock, made for whom the user's mask lets. Raises ValueError for what is not a file."""
    options = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        try:
            descriptor = os.open(path, options | os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:  # a colleague's: to lock it takes no more than to read it
            descriptor = os.open(path, options | os.O_RDONLY)
    except OSError as error:
        if path.is_symlink():
            raise ValueError(f"{path} is a link, which this program does not make: remove it") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is not a file, which this program makes it: remove it")
    return descriptor


def _lock(descriptor: int, run: Path) -> bool:
    """Whether it is locked now; False where there are no locks. Raises ValueError if another process has it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise ValueError(f"{run} is being trained by another process: wait for it, or choose another --out") from error
    return True


def release(run: Path) -> None:
    """Let others train in this folder."""
    _close(_held.pop(run.resolve(), []))


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _leave_to_the_parent() -> None:
    """A forked process, as those that decode, would else keep the lock when the trainer is killed."""
    for descriptors in _held.values():
        _close(descriptors)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)
