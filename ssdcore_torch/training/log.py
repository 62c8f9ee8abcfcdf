"""The figures of a run: log.jsonl, and TensorBoard or others where asked for. None can end the training it tells of."""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ssdcore.files import write_atomically

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


class Logger(Protocol):
    """Where figures and pictures of a run go besides its log.jsonl: `TensorBoard`, `WeightsAndBiases`, or your own.

    What it raises is told in a warning, and training continues without it.
    """

    def open(self, run: Path, step: int, settings: Mapping[str, Any]) -> None:
        """Begin, or continue with a run folder; what comes after `step` is written anew.

        Args:
            settings: those of config.json by their names, such as "train.steps"
        """

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        """The numbers of a step, nested ones as in "evaluation/frechet"."""

    def picture(self, step: int, name: str, picture: Image.Image) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in RUN/tensorboard. Raises ImportError where TensorBoard is not installed."""

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                'TensorBoard is not installed: pip install "ssdcore[tensorboard]", or leave --tensorboard out'
            ) from error
        self._make: Callable[..., Any] = SummaryWriter
        self._writer: Any = None

    def open(self, run: Path, step: int, settings: Mapping[str, Any]) -> None:
        self._writer = self._make(str(run / "tensorboard"), purge_step=step + 1)

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        self._writer.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the same name in a project of Weights & Biases, which a resumed run continues: its identity is kept in
    RUN/wandb/id. Steps that were not saved, and are done again, are there twice. Raises ImportError where wandb is not
    installed.

    Args:
        project: of Weights & Biases
        options: others of ``wandb.init``, such as mode="offline"
    """

    def __init__(self, project: str = "ssdcore", **options: Any) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                'Weights & Biases is not installed: pip install "ssdcore[wandb]", or leave --wandb out'
            ) from error
        self._wandb: Any = wandb
        self._project, self._options = project, options
        self._run: Any = None

    def open(self, run: Path, step: int, settings: Mapping[str, Any]) -> None:
        place = run / "wandb" / "id"
        if not place.is_file():
            place.parent.mkdir(exist_ok=True)
            place.write_text(secrets.token_hex(8), encoding="ascii")
        self._run = self._wandb.init(
            project=self._project,
            name=run.resolve().name,
            id=place.read_text(encoding="ascii").strip()[:64],
            resume="allow",
            dir=str(run),
            config=dict(settings),
            **self._options,
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")  # its own count of steps only grows

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log({**figures, "step": step})

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        self._run.log({name: self._wandb.Image(picture), "step": step})

    def close(self) -> None:
        self._run.finish()


class Loggers:
    """Several loggers as one, each until it raises."""

    def __init__(self, loggers: Iterable[Logger], run: Path, step: int, settings: Mapping[str, Any]) -> None:
        self._open = list(loggers)
        self._each(lambda logger: logger.open(run, step, settings))

    def figures(self, figures: Figures) -> None:
        """A line of the log: every number of it, nested ones under their names."""
        flat = dict(_numbers(figures))
        del flat["step"]
        self._each(lambda logger: logger.figures(figures["step"], flat))

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        self._each(lambda logger: logger.picture(step, name, picture))

    def close(self) -> None:
        self._each(lambda logger: logger.close())

    def _each(self, work: Callable[[Logger], object]) -> None:
        for logger in list(self._open):
            try:
                work(logger)
            except Exception as error:  # of the disk, the network, or of whatever the logger's thread met
                self._open.remove(logger)
                _log.warning("%s failed (%s): training continues without it", type(logger).__name__, error)


def _numbers(figures: Figures, group: str = "") -> Iterator[tuple[str, float]]:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{group}{name}/")
        elif isinstance(value, (int, float)):
            yield f"{group}{name}", value
