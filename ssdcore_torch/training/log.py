"""The figures of a run: log.jsonl, and TensorBoard where asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ssdcore_torch.checkpoint import write_atomically

Figures = Mapping[str, Any]


class Log:
    """log.jsonl: one JSON object a line, each with its "step"; `evaluated` is the last with an "evaluation", or −1."""

    def __init__(self, path: Path, step: int) -> None:
        """Go on with a log; lines past `step` belong to work that was not saved and is done again."""
        kept: list[str] = []
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
        write_atomically(path, lambda file: file.write_text("".join(f"{line}\n" for line in kept)))
        self.path = path
        self.evaluated = max((_step_of(line) for line in kept if "evaluation" in json.loads(line)), default=-1)

    def write(self, figures: Figures) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut short by a crash


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
    """TensorBoard's event files of a run: scalars and grids of samples."""

    def __init__(self, folder: Path, step: int) -> None:
        """`step`: what comes after it is written anew. Raises ImportError where TensorBoard is not installed."""
        self._writer = summary_writer()(str(folder), purge_step=step + 1)

    def scalars(self, figures: Figures, group: str = "") -> None:
        """Every number of the figures, nested ones under their names."""
        step = figures["step"]
        for name, value in figures.items():
            if name == "step":
                continue
            if isinstance(value, Mapping):
                self.scalars({**value, "step": step}, f"{group}{name}/")
            elif isinstance(value, (int, float)):
                self._writer.add_scalar(f"{group}{name}", value, step)

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        self._writer.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()
