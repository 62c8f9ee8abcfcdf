"""The device that a process computes on."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssdcore_torch.errors import UserError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def open_device(name: str | None) -> torch.device:
    """The device called `name`, set up for this process; None: the first CUDA device, or else the CPU.

    Raises:
        UserError: If it is not there.
    """
    device = _find_device(name)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # few sizes, each many times
    elif device.type == "cpu":
        _keep_freed_memory()
    return device


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """A copy on the device that the host does not wait for."""
    here = torch.from_numpy(values)
    return here.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else here.to(device)


def memory_of(device: torch.device) -> int:
    """Bytes of a CUDA device's memory, or of what this process may use of the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # a system that does not tell
        return 1 << 62
    try:
        return min(room, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError):  # no control groups here, or no limit ("max")
        return room


def _find_device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "cpu" and device.index:
            raise ValueError("there is one CPU to torch, number 0")
        if device.type == "meta":
            raise ValueError("it computes nothing")
        torch.zeros(1, device=device)
    except Exception as error:  # torch raises many kinds: no such name, not compiled in, no driver, no such index
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise UserError(f"--device {name} cannot be used ({reason}); leave it out, or take --device cpu") from error
    return device


def _keep_freed_memory() -> None:
    """Have glibc keep what tensors free, for the next ones, where the user has not said how it should allocate.

    By itself it returns tensors of megabytes to the system, which clears their pages again at the next step: a fifth of
    a training step's time. The most memory in use stays the same.
    """
    told = any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ
    if sys.platform != "linux" or told:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have none
        mallopt(_M_MMAP_THRESHOLD, 2**25)  # the most that it takes
        mallopt(_M_TRIM_THRESHOLD, 2**30)


@contextmanager
def within_available_cores(device: torch.device) -> Iterator[None]:
    """Inside, torch's operators on a CPU take no more threads than there are `available_cores`."""
    before = torch.get_num_threads()
    if device.type != "cpu" or before <= (cores := available_cores()):
        yield
        return
    torch.set_num_threads(cores)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def available_cores() -> int:
    """The cores that this process may use (affinity, container quota); without limit where OMP_NUM_THREADS says how
    many threads to use."""
    if "OMP_NUM_THREADS" in os.environ:
        return sys.maxsize
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no control groups here, or no quota ("max")
    return cores
