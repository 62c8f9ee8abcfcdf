"""What the commands share: one-line errors, option types."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from PIL import Image

from ssdcore_torch.errors import UserError
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


def page(text: str) -> Path:
    """An argparse type: an .html file in a folder that exists."""
    if Path(text).suffix.lower() != ".html":
        raise argparse.ArgumentTypeError(f"{text}: a report is an HTML page; end the name in .html")
    return new_file(text)


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
