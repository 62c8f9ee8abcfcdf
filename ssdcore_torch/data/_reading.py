"""Decoding pictures by number, in this process or in others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssdcore.files import unlimited_pixels
from ssdcore_torch.data._pixels import DEEPEST, fit, fit_random, reason, to_channels
from ssdcore_torch.data._sources import FatalSourceError, Source
from ssdcore_torch.text import printable
from ssdcore_torch.workers import in_workers

NEIGHBOURS = 16


class TooSmall(ValueError):
    """A picture with fewer pixels than the size asked for."""


@dataclass(frozen=True)
class Failure:
    """A picture that could not be used: its name and why."""

    name: str
    reason: str
    small: bool


@dataclass(frozen=True)
class Reader:
    """The chosen pictures of a source, at one size.

    Attributes:
        rows: (n,) the numbers in the source of pictures 0, 1, …
        size: (height, width) that they are cropped and resized to
        channels: 1 (grey), 3 (RGB) or 4 (RGBA)
        bits: that values of more than 8 bits use
    """

    source: Source
    rows: np.ndarray
    size: tuple[int, int]
    channels: int = 3
    bits: int = DEEPEST

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of an image."""
        return (*self.size, self.channels)

    def read(self, index: int, crop: np.ndarray | None = None) -> np.ndarray | Failure:
        """`shape` uint8: the centred part, or the random one of these three numbers (`fit_random`)."""
        row = int(self.rows[index])
        try:
            with self.source.open(row) as opened, unlimited_pixels():
                self._check(opened.size, sideways=True)  # before any work
                image = to_channels(opened, self.channels, self.bits)
                self._check(image.size)
                return fit(image, self.size) if crop is None else fit_random(image, self.size, crop)
        except FatalSourceError:
            raise
        except Exception as error:  # Pillow's readers raise many kinds on a broken file; the reason is kept
            return Failure(printable(self.source.name(row)), reason(error), isinstance(error, TooSmall))

    def _check(self, size: tuple[int, int], sideways: bool = False) -> None:
        """Raises TooSmall for a picture of this (width, height); `sideways`: only if turning it would not help."""
        height, width = self.size
        fits = size[0] >= width and size[1] >= height
        if not fits and not (sideways and size[1] >= width and size[0] >= height):
            wanted = f"size {height}" if height == width else f"{width}×{height}"
            raise TooSmall(f"is {size[0]}×{size[1]} pixels, smaller than {wanted}")


Task = tuple[np.ndarray, np.ndarray | None]
"""(b,) indices, and the (b, 3) numbers of their random crops or None for centred ones."""

Answer = tuple[np.ndarray | Tensor, np.ndarray, tuple[Failure, ...], str]
"""(b, height, width, c) uint8, a tensor where it is pinned; (b,) indices of the pictures they are; failures on the way;
and why no more can be read."""


class Pictures:
    """Answers to tasks.

    replace  True: in the place of a picture that fails stands the next readable one; False: it is left out
    """

    def __init__(self, reader: Reader, replace: bool) -> None:
        self.reader, self.replace = reader, replace

    def __call__(self, task: Task) -> Answer:
        indices, crops = task
        images = np.empty((len(indices), *self.reader.shape), np.uint8)
        used: list[int] = []
        failures: list[Failure] = []
        try:
            for k, index in enumerate(indices):
                for step in range(NEIGHBOURS if self.replace else 1):
                    candidate = int(index + step) % len(self.reader)
                    found = self.reader.read(candidate, None if crops is None else crops[k])
                    if not isinstance(found, Failure):
                        images[len(used)] = found
                        used.append(candidate)
                        break
                    failures.append(found)
                else:
                    if self.replace:
                        first = failures[-NEIGHBOURS]
                        raise FatalSourceError(
                            f"{NEIGHBOURS} pictures in a row of {self.reader.source.source} cannot be used; the first, "
                            f"{first.name}: {first.reason}"
                        )
        except FatalSourceError as error:
            return images, indices, tuple(failures), str(error)
        return images[: len(used)], np.array(used, np.int64), tuple(failures), ""


def answers(pictures: Pictures, tasks: Iterable[Task], workers: int, pin: bool = False) -> Iterator[Answer]:
    """The answers to the tasks. Raises ValueError if the source cannot be read any more."""
    for answer in in_workers(pictures, tasks, workers, _pinned if pin else None):
        if answer[3]:
            raise ValueError(answer[3])
        yield answer


def _pinned(answer: Answer) -> Answer:
    return torch.as_tensor(answer[0]).pin_memory(), *answer[1:]
