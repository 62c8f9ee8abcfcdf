"""What every source of pictures is: numbered pictures of any size, opened one at a time, perhaps with labels."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ssdcore import _extras
from ssdcore.files import MOST_PIXELS
from ssdcore_torch.data._pixels import DEEPEST
from ssdcore_torch.text import printable

MOST_CLASSES = 100_000
"""Classes that labels may number: a damaged label is refused before it asks for memory."""

MOST_FILE = 2**29
"""Bytes of one picture's file that are read into memory where it lies in another: a tar, a zip, a table."""

LEAST_UNPACKED = 2**30
"""Bytes that a compressed array may take however little memory is given to decoded images."""


@dataclass(frozen=True)
class Choices:
    """What is read of a source that holds several things, and how.

    Attributes:
        labels: False: the pictures alone, whatever folders or labels there are
        column: of a table (a Hugging Face dataset), which column of images; of tar shards, which of a key's
            pictures ("input.jpg"); None: the only one, or the first
        label_column: of a table, the column of labels; None: the first that says so itself
        subset: of a Hugging Face dataset that has several ("configurations")
        bits: that values of 16-bit pictures and arrays use: 12 scales 4095 to white
        most_pixels: of a picture; one with more is taken for broken
        unpacked: bytes that a compressed array may take in memory
    """

    labels: bool = True
    column: str | None = None
    label_column: str | None = None
    subset: str | None = None
    bits: int = DEEPEST
    most_pixels: int = MOST_PIXELS
    unpacked: float = 4 * 2**30

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= DEEPEST:
            raise ValueError(f"data.bits: expected 1 to {DEEPEST}, got {self.bits}")
        if self.most_pixels < 1:
            raise ValueError(f"data.most_pixels: expected at least 1, got {self.most_pixels}")


class Source(ABC):
    """Pictures of any size, numbered from 0. It is pickled to worker processes, so it holds no open files.

    Attributes:
        source: what is read, for messages
        labels: (n,) int64 indices into `class_names`, or None
        class_names: names of the labels; empty without labels
        labelled_by: what says the labels, for people
        doubts: guesses about the data that look wrong, and how to choose otherwise, a sentence each
        passed_over: (path, reason) of what was found but is not even numbered
        blocks: sizes of consecutive groups that are read together; () for none
        size: (height, width) of every picture, where they are known to be equal
        slow: whether looking at a picture may have to fetch it from another machine
    """

    source: str
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    labelled_by: str = ""
    doubts: tuple[str, ...] = ()
    passed_over: tuple[tuple[str, str], ...] = ()
    blocks: tuple[int, ...] = ()
    size: tuple[int, int] | None = None
    slow: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def open(self, index: int) -> Image.Image:
        """The picture, closed by the caller. Raises whatever Pillow raises for a broken one."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call the picture in messages."""

    @property
    def files(self) -> list[Path]:
        """The files that are read; empty where these are not the user's own."""
        return []

    def traits(self) -> Iterator[bytes]:
        """What tells this data from other besides number and labels, wherever it lies; quick for a million pictures."""
        return iter(())

    def fingerprint(self) -> str:
        """SHA-256 of number, labels and traits: the same for a copy of the data in another place."""
        return fingerprint_of(len(self), self.class_names, self.labels, self.traits())

    def forget_labels(self) -> None:
        """The pictures alone."""
        self.labels, self.class_names, self.labelled_by = None, (), ""


def fingerprint_of(count: int, class_names: tuple[str, ...], labels: np.ndarray | None, traits: Iterable[bytes]) -> str:
    """SHA-256 of number, labels and traits."""
    digest = hashlib.sha256(repr((count, class_names)).encode())
    if labels is not None:
        digest.update(labels.tobytes())
    for trait in traits:
        digest.update(hashlib.sha256(trait).digest())
    return digest.hexdigest()


def some(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 to `count` − 1, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64)).tolist()


def check_labels(labels: np.ndarray | None, class_names: Sequence[str], source: str) -> tuple[str, ...]:
    """The class names, or the numbers as names where there are labels without. Raises ValueError unless every label is
    the number of a class, there are at most `MOST_CLASSES`, and no two have one name."""
    if len(set(class_names)) < len(class_names):
        double = next(name for name in class_names if list(class_names).count(name) > 1)
        raise ValueError(f"{source}: two classes are called {printable(double)}: give each a name of its own")
    if labels is None or not len(labels):
        return tuple(class_names)
    least, most, count = int(labels.min()), int(labels.max()), len(class_names)
    if least < 0 or (count and most >= count) or most >= MOST_CLASSES:
        names = f", as there are {count} class names" if count else ""
        highest = count - 1 if count else MOST_CLASSES - 1
        raise ValueError(
            f"{source}: expected labels from 0 to {highest}{names}, got some from {least} to {most}: number the "
            "classes from 0"
        )
    return tuple(class_names) or tuple(str(k) for k in range(most + 1))


def as_labels(values: Any, count: int, source: str) -> np.ndarray:
    """(count,) int64. Raises ValueError for other shapes, and for what is not a whole number."""
    labels = np.asarray(values)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise ValueError(f"{source}: expected integer labels shaped ({count},), got {labels.dtype} {labels.shape}")
    if labels.dtype == np.uint64 and count and labels.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{source}: a label is {labels.max()}: number the classes from 0")
    return labels.astype(np.int64)


def need(module: str) -> Any:
    """A module of the extra "data". Raises ImportError that says so."""
    return _extras.need(module, "reading this data", "data")


class FatalSourceError(ValueError):
    """The source as a whole cannot be read any more: not the fault of one picture."""


def classes_of(source: Source, classes: Sequence[str]) -> np.ndarray:
    """(n,) int64: which of the source's images belong to these classes; all for ().

    Raises:
        ValueError: For a class that the source has not.
    """
    return chosen_classes(source.labels, source.class_names, classes, len(source), source.source)


def chosen_classes(
    labels: np.ndarray | None, names: Sequence[str], classes: Sequence[str], count: int, source: str
) -> np.ndarray:
    """`classes_of`, of `count` things with these labels."""
    if not classes:
        return np.arange(count)
    if labels is None or not names:
        raise ValueError(f"data.classes = {tuple(classes)} needs class names, and {source} has none")
    if unknown := [name for name in classes if name not in names]:
        shown = list(names[:50]) + ["…"] * (len(names) > 50)
        raise ValueError(f"data.classes: {source} has no class {unknown}; it has {shown}")
    kept = np.flatnonzero(np.isin(labels, [list(names).index(name) for name in classes]))
    if not len(kept):
        raise ValueError(f"data.classes: {source} has no image of {list(classes)}")
    return kept
