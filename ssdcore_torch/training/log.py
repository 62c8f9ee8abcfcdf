"""The figures of a run: log.jsonl, and TensorBoard where asked for. Neither can end the training that it tells of."""

from __future__ import annotations

import json
import logging
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ssdcore_torch.checkpoint import write_atomically

Figures = Mapping[str, Any]
LONGEST = 1 << 20  # bytes of a line that is read; a longer one is not a line of figures

_log = logging.getLogger("ssdcore_torch")


class Log:
    """log.jsonl: one JSON object a line, each with its "step"; `evaluated` is the last with an "evaluation", or −1.

    Lines that cannot be written now are kept, and written with the next.
    """

    def __init__(self, path: Path, step: int) -> None:
        """Go on with a log; lines past `step` belong to work that was not saved and is done again, and those that are
        damaged are left out and named."""
        self.path = path
        self.evaluated = -1
        self._waiting: list[bytes] = []
        self._warned = False
        try:
            kept, damaged = self._read(step)
            write_atomically(path, lambda file: file.write_bytes(b"".join(kept)))
        except OSError as error:
            self._warn(error)
            return
        if damaged:
            some = ", ".join(map(str, damaged[:5])) + (", …" if len(damaged) > 5 else "")
            _log.warning("%s: left out %d damaged line(s): number %s", path, len(damaged), some)

    def _read(self, step: int) -> tuple[list[bytes], list[int]]:
        """(lines up to this step, numbers of those that are not figures)."""
        kept, damaged = [], list[int]()
        for number, line in enumerate(log_lines(self.path), 1):
            figures = _figures(line)
            if figures is None:
                damaged.append(number)
            elif figures["step"] <= step:
                kept.append(_line(figures))
                if "evaluation" in figures:
                    self.evaluated = max(self.evaluated, figures["step"])
        return kept, damaged

    def write(self, figures: Figures) -> None:
        self._waiting.append(_line(figures))
        try:
            self._append(b"".join(self._waiting))
        except OSError as error:
            self._warn(error)
        else:
            self._waiting.clear()

    def _append(self, lines: bytes) -> None:
        """All of them or none: a line of which the disk took a part is taken back."""
        options = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(self.path, options, 0o666)
        try:
            before = os.fstat(descriptor).st_size
            try:
                written = 0
                while written < len(lines):
                    written += os.write(descriptor, lines[written:])
            except OSError:
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(
                "%s cannot be written (%s): training continues, its figures are kept for later", self.path, error
            )


def log_lines(path: Path) -> Iterator[bytes]:
    """Raises OSError for what is there but no file; one that is not there has no lines."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe would never be opened
    except FileNotFoundError:
        return
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is not a file")
        while line := file.readline(LONGEST):
            end = line
            while not end.endswith(b"\n") and (end := file.readline(LONGEST)):
                line = b""  # too long: passed over, a part at a time
            yield line


def _figures(line: bytes) -> dict[str, Any] | None:
    """The figures in a line, with a whole "step"; None for a line that was cut short or changed."""
    try:
        figures = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = figures.get("step") if isinstance(figures, dict) else None
    return figures if type(step) is int and step >= 0 else None


def _line(figures: Figures) -> bytes:
    return json.dumps(_plain(figures), allow_nan=False).encode() + b"\n"


def _plain(value: Any) -> Any:
    """The value as JSON can hold it: a number that is not finite becomes null."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summary_writer() -> Any:
    """torch's writer of TensorBoard's files. Raises ImportError where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            'TensorBoard is not installed: pip install "ssdcore[tensorboard]", or leave --tensorboard out'
        ) from error
    return SummaryWriter


class Board:
    """TensorBoard's event files of a run: scalars and grids of samples, until one cannot be written."""

    def __init__(self, folder: Path, step: int) -> None:
        """`step`: what comes after it is written anew. Raises ImportError where TensorBoard is not installed."""
        make = summary_writer()
        self._writer: Any = None
        self._try(lambda: setattr(self, "_writer", make(str(folder), purge_step=step + 1)))

    def scalars(self, figures: Figures, group: str = "") -> None:
        """Every number of the figures, nested ones under their names."""
        step = figures["step"]
        for name, value in figures.items():
            if name == "step":
                continue
            if isinstance(value, Mapping):
                self.scalars({**value, "step": step}, f"{group}{name}/")
            elif isinstance(value, (int, float)):
                self._call("add_scalar", f"{group}{name}", value, step)

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        self._call("add_image", name, np.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        self._call("close")

    def _call(self, name: str, *arguments: Any, **options: Any) -> None:
        if self._writer is not None:
            self._try(lambda: getattr(self._writer, name)(*arguments, **options))

    def _try(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # of the disk, or of whatever TensorBoard's thread met
            self._writer = None
            _log.warning("TensorBoard's files cannot be written (%s): training continues without them", error)
