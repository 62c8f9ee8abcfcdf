"""Pictures in arrays: .npz and .npy files, IDX files (the MNIST family), and what a Python program holds in memory."""

from __future__ import annotations

import gzip
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from torch import Tensor

from ssdcore.files import ArrayFile, only_images, open_regular, size_of
from ssdcore_torch.data._pixels import to_bytes
from ssdcore_torch.data._sources import LEAST_UNPACKED, Choices, Source, as_labels, check_labels, some
from ssdcore_torch.text import printable

BEGINNING = 8  # bytes that tell what a file is


class MemorySource(Source):
    """Images of one size in an array.

    Args:
        images: (n, h, w), (n, h, w, 1), (n, h, w, 3) or (n, h, w, 4), uint8 or uint16
        labels: (n,) whole numbers, or None
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: Any,
        class_names: Sequence[str],
        source: str,
        labelled_by: str,
        choices: Choices | None = None,
    ) -> None:
        self.source, self.choices = source, choices or Choices()
        self.images = _check_images(images, source)
        self.size = self.images.shape[1:3]
        if labels is not None and self.choices.labels:
            self.labels = as_labels(labels, len(self.images), source)
            self.class_names = check_labels(self.labels, class_names, source)
            self.labelled_by = labelled_by

    def __len__(self) -> int:
        return len(self.images)

    def open(self, index: int) -> Image.Image:
        pixels = to_bytes(np.asarray(self.images[index]), self.choices.bits)
        return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))

    def name(self, index: int) -> str:
        return f"image {index} of {self.source}"

    def traits(self) -> Iterator[bytes]:
        shape = self.images.shape[:3] if self.images.shape[3] == 1 else self.images.shape
        yield repr((shape, self.images.dtype.str)).encode()
        for index in some(len(self), 16):
            yield self.images[index].tobytes()


def _check_images(images: np.ndarray, source: str) -> np.ndarray:
    """The images as (n, h, w, 1, 3 or 4)."""
    if images.dtype not in (np.uint8, np.uint16):
        advice = "for values in [0, 1] save (255 * images).round().astype('uint8')"
        if images.dtype.kind == "f" and images.size and images.min() < 0:
            advice = (
                "for values in [−1, 1] save (127.5 * (images + 1)).round().astype('uint8'), or keep the floats, of "
                "latents or fields, by a process over (1, h, w) and data shaped (n, 1, h, w, channels)"
            )
        raise ValueError(f"{source}: expected images of dtype uint8 or uint16, got {images.dtype}; {advice}")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)) or images.size == 0:
        last = images.ndim == 4 and images.shape[1] in (1, 3, 4)
        advice = "; put the channels last: images.transpose(0, 2, 3, 1)" if last else ""
        raise ValueError(
            f"{source}: expected images shaped (n, h, w) or (n, h, w, 1, 3 or 4), got {images.shape}{advice}"
        )
    return images[..., None] if images.ndim == 3 else images


def from_memory(data: Any, choices: Choices) -> MemorySource:
    """An array (n, h, w) or (n, h, w, c), or a tuple of it and (n,) labels, and perhaps the names of their classes.

    Raises:
        TypeError: For a tuple of other things.
        ValueError: For arrays of other kinds.
    """
    parts = data if isinstance(data, tuple) else (data,)
    images, labels, names = (*parts, None, None)[:3]
    if not isinstance(images, (np.ndarray, Tensor)) or len(parts) > 3:
        raise TypeError(
            "data: expected images, (images, labels) or (images, labels, class names), images being an array"
        )
    images, labels = (x.detach().cpu().numpy() if isinstance(x, Tensor) else x for x in (images, labels))
    source = f"an array of {len(images) if images.ndim else 0} images"
    return MemorySource(images, labels, tuple(str(name) for name in names or ()), source, "the labels given", choices)


class ArraySource(MemorySource):
    """The images of an .npz or .npy file, the latter mapped into memory, not read."""

    def __init__(self, file: Path, source: str, choices: Choices | None = None) -> None:
        self.file = file
        self.arrays = ArrayFile(file, max(LEAST_UNPACKED, (choices or Choices()).unpacked))
        self.images_name, labels = only_images(self.arrays, file)
        names = tuple(str(name) for name in self.arrays["class_names"].ravel()) if "class_names" in self.arrays else ()
        super().__init__(
            self.arrays[self.images_name],
            None if labels is None else self.arrays[labels],
            names,
            source,
            f"its array {labels!r}",
            choices,
        )

    @property
    def files(self) -> list[Path]:
        return [self.file]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "images": None}  # a mapped array would travel whole

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.images = _check_images(self.arrays[self.images_name], self.source)


# ---- IDX: 0, 0, type, number of axes, their lengths as big-endian uint32, then the values

_IMAGES = re.compile(r"images?[.-]idx3-ubyte(\.gz)?$", re.IGNORECASE)
UBYTE = 8
DEFLATE = 1032  # bytes that one of a gzip file can make at most


def idx_files(folder: Path) -> list[Path]:
    """The IDX files of images that lie in a folder, by their usual names (train-images-idx3-ubyte.gz)."""
    return sorted(Path(entry.path) for entry in os.scandir(folder) if _IMAGES.search(entry.name))


def idx_source(path: Path, choices: Choices) -> MemorySource:
    """The images of an IDX file, or of the one in a folder, of several the training set's; labels from the file of the
    same name with "labels" for "images", if it lies beside.

    Raises:
        ValueError: For files that are cut short or hold other things, or if none of several is for training.
    """
    doubts: tuple[str, ...] = ()
    if path.is_dir():
        found = idx_files(path)
        training = [file for file in found if "train" in file.name.lower()] if len(found) > 1 else found
        if len(training) != 1:
            shown = ", ".join(printable(file.name) for file in found)
            raise ValueError(f"{path} holds {shown}: give the one to read as --data")
        if len(found) > 1:
            others = ", ".join(printable(file.name) for file in found if file != training[0])
            doubts = (f"of {path}, {printable(training[0].name)} is read and {others} left out",)
        path = training[0]
    images = read_idx(path, choices.unpacked)
    if images.ndim != 3:
        raise ValueError(
            f"{path}: expected images, an IDX file of 3 axes, got one of {images.ndim} shaped {images.shape}"
        )
    beside = path.name.replace("images", "labels").replace("idx3", "idx1")
    stem = beside.removesuffix(".gz")
    labels = next(
        (path.with_name(name) for name in (beside, stem, f"{stem}.gz") if path.with_name(name).is_file()), None
    )
    known = None if labels is None or beside == path.name or not choices.labels else read_idx(labels, choices.unpacked)
    source = MemorySource(images, known, (), str(path), "" if labels is None else labels.name, choices)
    source.doubts = doubts
    return source


def read_idx(path: Path, most: float) -> np.ndarray:
    """The uint8 array in an IDX file, or in a gzip file of one; mapped where it is not compressed.

    Args:
        most: bytes that may be unpacked

    Raises:
        ValueError: For other files, and for more or fewer values than the header says.
    """
    with open_regular(path) as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        length = os.fstat(file.fileno()).st_size
        try:
            stream: Any = gzip.GzipFile(fileobj=file) if packed else file
            shape = _idx_header(stream, path)
            count = math.prod(shape)
            start = 4 + 4 * len(shape)
            if packed:
                if count > max(LEAST_UNPACKED, most):
                    raise ValueError(
                        f"{path} takes {size_of(count)} unpacked, more than the {size_of(max(LEAST_UNPACKED, most))} "
                        "that data.memory_gib allows: unpack it with gunzip, or raise data.memory_gib"
                    )
                if count > DEFLATE * length:
                    raise ValueError(_short(path, shape))
                content = stream.read(count + 1)
                if len(content) != count:
                    raise ValueError(_short(path, shape))
                return np.frombuffer(content, np.uint8).reshape(shape)
        except (EOFError, OSError, gzip.zlib.error) as error:  # type: ignore[attr-defined]
            raise ValueError(f"{path} is cut short or damaged: {printable(error)}") from error
        if length - start != count or not count:
            raise ValueError(_short(path, shape))
        return np.memmap(file, np.uint8, "r", start, shape)


def _idx_header(stream: BinaryIO, path: Path) -> tuple[int, ...]:
    first = stream.read(4)
    if len(first) < 4 or first[:2] != b"\0\0" or first[2] != UBYTE or not 1 <= first[3] <= 4:
        raise ValueError(f"{path} is not an IDX file of bytes: it begins with {first!r}")
    lengths = stream.read(4 * first[3])
    if len(lengths) < 4 * first[3]:
        raise ValueError(f"{path} is cut short: its header ends early")
    return tuple(np.frombuffer(lengths, ">u4").tolist())


def _short(path: Path, shape: tuple[int, ...]) -> str:
    return f"{path} is cut short or damaged: its header says {shape}, and the file holds fewer bytes"
