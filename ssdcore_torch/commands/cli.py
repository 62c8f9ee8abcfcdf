"""What the commands share: one-line errors, option types."""

from __future__ import annotations

import argparse
import io
import math
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from PIL import Image

from ssdcore.files import temporary_beside
from ssdcore_torch.distributed import World, code_version
from ssdcore_torch.errors import UserError, out_of_memory
from ssdcore_torch.images import picture_format
from ssdcore_torch.streams import steady_output
from ssdcore_torch.suggest import did_you_mean
from ssdcore_torch.text import printable

BAD_INPUT = 2
INTERRUPTED = 130
LARGEST_SEED = 2**63 - 1  # torch's generators take 64 bits
LONGEST = 4000  # characters of an error's line
ARRAYS = (".npz", ".npy")
LARGEST_NUMBER = 10**9  # of whatever else an option counts


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=f"python -m {prog}", description=description)

    def error(self, message: str) -> NoReturn:
        start, _, rest = message.partition("unrecognized arguments: ")
        if not start and rest.startswith("--"):
            word = rest.split()[0].partition("=")[0]
            message += did_you_mean(word, (name for name in self._option_string_actions if name.startswith("--")))
        self.exit(BAD_INPUT, f"error: {printable(message)} (--help lists the options)\n")


def integer(least: int, most: int = LARGEST_NUMBER) -> Callable[[str], int]:
    """An argparse type: an integer from `least` to `most`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text:.60}")
        if value > most:
            raise argparse.ArgumentTypeError(f"expected a whole number of at most {most}, got {text:.60}")
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
    kind = picture_format(Path(text))
    if kind not in Image.SAVE:
        raise argparse.ArgumentTypeError(f"{text} names no picture format; end it in .png")
    try:
        Image.new("RGB", (2, 2)).save(io.BytesIO(), format=kind)
    except Exception as error:  # each of Pillow's writers raises its own for colours, sizes or a missing library
        raise argparse.ArgumentTypeError(
            f"{text}: {kind} files cannot hold such pictures ({error}); end it in .png"
        ) from error
    return new_file(text)


def picture_or_array(text: str) -> Path:
    """An argparse type: the same, or an .npz or .npy file."""
    return new_file(text) if Path(text).suffix in ARRAYS else picture(text)


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


def add_force(options: argparse.ArgumentParser) -> None:
    options.add_argument("--force", action="store_true", help="overwrite results that are there already")


def check_outputs(force: bool, **paths: Path | None) -> None:
    """Find out before the work whether its results can be written: paths by the name of their option.

    Raises:
        ValueError: For a file that is there already, unless `force`, for what is not a file, for two results of one
            name, and where the system does not let the file be made; nothing is left behind.
    """
    named: dict[Path, str] = {}
    for name, path in paths.items():
        if path is None:
            continue
        option = f"--{name} {path}"
        other = named.setdefault(path.absolute(), option)
        if other != option:
            raise ValueError(f"{option} is the name of another result ({other}), too: choose different names")
        try:
            if not stat.S_ISREG(mode := path.lstat().st_mode) and not stat.S_ISLNK(mode):
                raise ValueError(f"{option} is there already, and is not a file: choose another name")
            if not force:
                raise ValueError(f"{option} is there already: choose another name, or add --force to overwrite it")
        except FileNotFoundError:
            pass
        except OSError as error:  # a name that is too long, say
            raise ValueError(f"{option} cannot be written ({error.strerror})") from error
        trial = temporary_beside(path)  # and not the name itself: killed now, it would leave what refuses the next
        try:
            os.close(os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        except OSError as error:
            raise ValueError(f"{option} cannot be written ({error.strerror})") from error
        trial.unlink()


def agree(world: World, args: argparse.Namespace) -> None:
    """Raises ValueError, on every rank, unless all were given the same options, and are of the same code."""
    if world.size > 1:
        options = {f"--{name.replace('_', '-')}": str(value) for name, value in vars(args).items()}
        world.agree(options | {"the code": code_version()})


def run(command: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command; a `UserError` becomes one line on stderr and exit status 2, a request to stop status 130.

    Under torchrun what stopped a process stands in torchrun's own report, too.
    """
    steady_output()
    launched = os.environ.get("TORCHELASTIC_ERROR_FILE")
    try:
        with _tidying_up():
            status = _recorded(command, argv) if launched else command(argv)
    except UserError as error:
        status = _say(error)
    except KeyboardInterrupt as stopped:
        print(printable(str(stopped)) or "interrupted", file=sys.stderr)
        status = INTERRUPTED
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        status = _say(f"not enough memory ({str(error).splitlines()[0] if str(error) else 'asked for too much'})")
    if status == INTERRUPTED and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # asked again while it leaves, it would end with a traceback
    sys.exit(status)


def _say(error: object) -> int:
    told = printable(" ".join(str(error).split()))
    if len(told) > LONGEST:  # what a file holds, say
        told = f"{told[: LONGEST // 2]} … {told[-LONGEST // 2 :]}"
    print(f"error: {told}", file=sys.stderr)
    return BAD_INPUT


@contextmanager
def _tidying_up() -> Iterator[None]:
    """SIGTERM and SIGHUP as KeyboardInterrupt, too: temporary files are removed then."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a process that was forked to decode
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    previous = {number: signal.getsignal(number) for number in numbers}
    for number, handler in previous.items():
        if handler == signal.SIG_DFL:  # not what nohup ignores
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            if handler == signal.SIG_DFL:
                signal.signal(number, handler)


def _recorded(command: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None) -> int:
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(command)(argv) or 0
