"""Data other than pictures: signals of one axis, volumes of three, as arrays of the shape of the process."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ssdcore.files import ArrayFile, only_images, size_of
from ssdcore_torch.data._datasets import item_label
from ssdcore_torch.data._images import ImageSet, ImageStream, open_images
from ssdcore_torch.data._pixels import called
from ssdcore_torch.data._sources import LEAST_UNPACKED, as_labels, check_labels, chosen_classes, fingerprint_of, some
from ssdcore_torch.data._understood import labels_line
from ssdcore_torch.data._where import EMBEDDED, check_given, is_address
from ssdcore_torch.text import printable, sides

log = logging.getLogger("ssdcore_torch")

SLACK = 1e-6
"""By how much rounding may take a value beyond [−1, 1]."""
QUIET = 1 / 16
"""Data whose largest magnitude is below was probably not scaled."""


def open_data(
    path: Any, size: tuple[int, ...], *, channels: int | None = None, **reading: Any
) -> ImageSet | ImageStream:
    """The data of a process whose full size is `size`: pictures where it has two axes (`open_images`), else arrays.

    Arrays are taken as they are, neither cropped nor resized: ``(n, *size)`` or ``(n, *size, channels)``, channels
    last, either uint8, 0 … 255 standing for −1 … 1, or floating point within [−1, 1]. They come from an .npy file, an
    .npz file (`images` or the only array, `labels`, `class_names`), or, from Python, an array, (array, labels), (array,
    labels, class names), or a map-style torch `Dataset` of arrays ``(*size[, channels])``, tensors ``([channels,]
    *size)`` or (array, class number).

    Args:
        channels: None: as many as the arrays have, and 3 for pictures
        reading: the other arguments of `open_images`. Those that are about pictures are refused for arrays

    Raises:
        TypeError, ValueError, OSError: As `open_images` does; for arrays of another shape, kind or range.
    """
    if len(size) == 2:
        return open_images(path, size, channels=3 if channels is None else channels, **reading)
    defaults = {"crop": "center", "column": None, "label_column": None, "subset": None, "bits": 16}
    for name, usual in defaults.items():
        if reading.get(name, usual) != usual:
            raise ValueError(f"data.{name}: {called(len(size))} are taken as they are; leave the setting out")
    found = _Arrays(path, size, reading.get("memory_gib", 4.0) * 2**30)
    if channels not in (None, found.images.shape[-1]):
        raise ValueError(
            f"{found.source}: its {called(len(size))} have {found.images.shape[-1]} channels, and the network takes "
            f"{channels}"
        )
    images = found.chosen(reading.get("classes", ()), reading.get("labels", True))
    world = reading.get("world")
    if images.floats and (doubt := _doubt(images.images, found.source)) and (world is None or world.leader):
        log.warning("%s", doubt)
    return images


class _Arrays:
    """Arrays, checked: `images` (n, *size, channels) uint8 or float32."""

    def __init__(self, path: Any, size: tuple[int, ...], most: float) -> None:
        self.size, self.kind = size, called(len(size))
        self.labels: Any = None
        self.names: Sequence[Any] = ()
        if isinstance(path, (np.ndarray, Tensor, tuple)):
            parts = path if isinstance(path, tuple) else (path,)
            if not 1 <= len(parts) <= 3 or not isinstance(parts[0], (np.ndarray, Tensor)):
                raise TypeError(f"data: expected {self.kind}, ({self.kind}, labels) or ({self.kind}, labels, names)")
            images, self.labels, names = (*(_numpy(part) for part in parts), None, None)[:3]
            self.names = () if names is None else names
            self.source, self.labelled_by = f"an array of shape {images.shape}", "the labels given"
        elif isinstance(path, (str, os.PathLike)):
            images = self._read(os.fspath(path), most)
        else:
            images = self._stack(path, most)
        self.images = self._checked(images)

    def _read(self, text: str, most: float) -> np.ndarray:
        wanted = f"states of {self.size} take an array, an .npy or an .npz file"
        if text == EMBEDDED or is_address(text):
            raise ValueError(f"{printable(text)} holds pictures, and {wanted}: give one as data")
        check_given(text)
        file = Path(text)
        if not file.exists():
            raise FileNotFoundError(f"no such data: {printable(file)}; {wanted}")
        if file.is_dir():
            raise ValueError(f"{printable(file)} is a folder, and {wanted}")
        arrays = ArrayFile(file, max(LEAST_UNPACKED, most))
        name, labels = only_images(arrays, file)
        self.source, self.labelled_by = str(file), f"its array {labels!r}"
        self.labels = None if labels is None else arrays[labels]
        self.names = arrays["class_names"].ravel().tolist() if "class_names" in arrays else ()
        return arrays[name]

    def _stack(self, dataset: Any, most: float) -> np.ndarray:
        kind = type(dataset).__name__
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise TypeError(f"data: expected a map-style Dataset, with __len__ and __getitem__, got {kind}")
        if isinstance(dataset, (bytes, list, dict)) or not len(dataset):
            raise TypeError(f"data: expected a path, an array, (array, labels) or a Dataset of some items, got {kind}")
        self.source, self.labelled_by = f"the {kind} of {len(dataset)} items", "its items"
        made, labels = list[np.ndarray](), list[int | None]()
        for index in range(len(dataset)):
            item = dataset[index]
            value = item[0] if isinstance(item, (tuple, list)) and item else item
            if not isinstance(value, (np.ndarray, Tensor)):
                raise TypeError(f"{self.source}: expected arrays, or (array, class number), got {type(value).__name__}")
            array = _numpy(value)
            if isinstance(value, Tensor) and array.ndim == len(self.size) + 1:
                array = np.moveaxis(array, 0, -1)  # a tensor has its channels first
            if made and (array.shape != made[0].shape or array.dtype != made[0].dtype):
                raise ValueError(
                    f"{self.source}: item {index} is {array.dtype} {array.shape}, the first {made[0].dtype} "
                    f"{made[0].shape}: give all one shape"
                )
            if (needed := array.nbytes * len(dataset)) > max(LEAST_UNPACKED, most):
                raise ValueError(f"{self.source} takes {size_of(needed)}, more than data.memory_gib allows: raise it")
            made.append(array)
            labels.append(item_label(item))
        if None not in labels:
            self.labels = np.array(labels)
            self.names = tuple(getattr(dataset, "classes", ()))
        elif any(label is not None for label in labels):
            raise TypeError(f"{self.source}: some items have a class number and some have none: give all one, or none")
        return np.stack(made)

    def _checked(self, images: np.ndarray) -> np.ndarray:
        size, axes = self.size, len(self.size)
        if images.shape[1:] == size:
            images = images[..., None]
        if images.shape[1:-1] != size or images.size == 0:
            expected = f"(n, {', '.join(map(str, size))}) or (n, {', '.join(map(str, size))}, channels)"
            first = images.ndim == axes + 2 and images.shape[2:] == size
            advice = "; put the channels last: np.moveaxis(x, 1, -1)" if first else ""
            raise ValueError(
                f"{self.source}: this process has states of {size}, so expected {expected}, got {images.shape}{advice}"
            )
        if images.dtype == np.uint8:
            return images
        if images.dtype.kind != "f":
            advice = "divide int16 by 32768" if images.dtype == np.int16 else "scale them to [−1, 1] as float32"
            raise ValueError(
                f"{self.source}: expected {self.kind} of bytes, or of floats within [−1, 1], got {images.dtype}: "
                f"{advice}"
            )
        low, high = float(images.min()), float(images.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError(f"{self.source}: expected finite values, and some are not: leave these {self.kind} out")
        if low < -1 - SLACK or high > 1 + SLACK:
            raise ValueError(
                f"{self.source}: floats are taken as they are and must lie within [−1, 1]; these are from {low:.6g} to "
                f"{high:.6g}: divide them by their largest magnitude"
            )
        return images.astype(np.float32, copy=False)

    def chosen(self, classes: Sequence[str], labelled: bool) -> ImageSet:
        images, labels, names = self.images, None, tuple[str, ...]()
        if self.labels is not None and labelled:
            labels = as_labels(self.labels, len(images), self.source)
            names = check_labels(labels, tuple(str(name) for name in self.names), self.source)
        rows = chosen_classes(labels, names, classes, len(images), self.source)
        images, labels = (images, labels) if len(rows) == len(images) else (images[rows], _of(labels, rows))
        shape = sides(self.size)
        low, high = images.min(), images.max()
        full = "0 to 255" if images.dtype == np.uint8 else "−1 to 1"
        said = f"{self.kind}: {len(images)} of {shape}, channels: {images.shape[-1]}, {images.dtype}, values from "
        lines = (f"{said}{low:.4g} to {high:.4g} of {full}", labels_line(labels, names, self.labelled_by))
        traits = (images[index].tobytes() for index in some(len(images), 16))
        about = repr((self.images.shape, self.images.dtype.str)).encode()
        fingerprint = fingerprint_of(len(images), names, labels, [about, *traits])
        return ImageSet(images, labels, names, self.source, fingerprint=fingerprint, understood=lines)


def _doubt(images: np.ndarray, source: str) -> str:
    """What looks wrong about the range of floats, or nothing."""
    low, high = float(images.min()), float(images.max())
    if low >= 0 and high > 0:
        return f"no value of {source} is below 0: if they are scaled from 0 to 1, give 2 * x - 1"
    if max(-low, high) < QUIET:
        return f"the largest magnitude in {source} is {max(-low, high):.2g} of 1: scale the data to fill the range"
    return ""


def _of(labels: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if labels is None else labels[rows]


def _numpy(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value
