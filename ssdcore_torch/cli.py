"""What the commands share: one-line errors, option types, the device."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from PIL import Image

from ssdcore_torch.images import picture_format
from ssdcore_torch.text import printable

BAD_INPUT = 2
INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=f"python -m {prog}", description=description)

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"error: {printable(message)} (--help lists the options)\n")


def whole_number(least: int) -> Callable[[str], int]:
    """An argparse type: an integer of at least `least`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text}")
        return value

    return read


def number(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return value


def positive(text: str) -> float:
    """An argparse type: a finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text}")
    return value


def new_file(text: str) -> Path:
    """An argparse type: a file in a folder that exists."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent} to write {path.name} in; make it first")
    return path


def picture(text: str) -> Path:
    """An argparse type: a file whose name says a picture format that can be written, in a folder that exists."""
    if picture_format(Path(text)) not in Image.SAVE:
        raise argparse.ArgumentTypeError(f"{text} names no picture format; end it in .png")
    return new_file(text)


def picture_or_array(text: str) -> Path:
    """An argparse type: the same, or an .npz file."""
    return new_file(text) if Path(text).suffix == ".npz" else picture(text)


def animation(text: str) -> Path:
    """An argparse type: a .gif file in a folder that exists."""
    if Path(text).suffix.lower() != ".gif":
        raise argparse.ArgumentTypeError(f"{text}: an animation is written as GIF; end it in .gif")
    return new_file(text)


class UserError(Exception):
    """Bad input, in one line that says how to mend it."""


def run(command: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command; a `UserError` becomes one line on stderr and exit status 2, Ctrl-C status 130.

    Under torchrun what stopped a process stands in torchrun's own report, too.
    """
    launched = os.environ.get("TORCHELASTIC_ERROR_FILE")
    try:
        status = _recorded(command, argv) if launched else command(argv)
    except UserError as error:
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        status = BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = INTERRUPTED
    sys.exit(status)


def _recorded(command: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None) -> int:
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(command)(argv) or 0


def open_device(name: str | None) -> torch.device:
    """The device called `name`, set up for this process; None: the first CUDA device, or else the CPU.

    Raises UserError if it is not there.
    """
    device = _find_device(name)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # few sizes, each many times
    elif device.type == "cpu":
        _use_available_cores()
    return device


def _find_device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except Exception as error:  # torch raises many kinds: no such name, not compiled in, no driver, no such index
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used ({reason}); leave it out, or take --device cpu") from error
    return device


def _use_available_cores() -> None:
    """Let torch use the cores that this process may use (affinity, container quota), not all of the machine's."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no control groups here, or no quota ("max")
    torch.set_num_threads(min(cores, torch.get_num_threads()))
