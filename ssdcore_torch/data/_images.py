"""Images by number: all decoded in memory, or decoded as they are asked for."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ssdcore.files import MOST_PIXELS
from ssdcore_torch.data._arrays import MemorySource
from ssdcore_torch.data._order import Order
from ssdcore_torch.data._pixels import CHANNELS, DEEPEST, Size, called, extent
from ssdcore_torch.data._reading import (
    Failure,
    Pictures,
    Reader,
    Task,
    answers,
)
from ssdcore_torch.data._sharing import Room, shared
from ssdcore_torch.data._sources import Choices, Source, classes_of
from ssdcore_torch.data._understood import understood
from ssdcore_torch.data._where import open_source
from ssdcore_torch.text import printable
from ssdcore_torch.workers import check_workers

if TYPE_CHECKING:
    from ssdcore_torch.distributed import World

log = logging.getLogger("ssdcore_torch")

LEAST_READ = 100
"""Pictures that must have been read before the share of broken ones is judged."""

CHUNK = 64
"""Pictures a worker decodes at a time for the cache."""

FEW = 200
"""Up to this many pictures, starting workers takes longer than decoding."""

Crop = Literal["center", "random"]


@dataclass(frozen=True)
class ImageSet:
    """Images, or signals or volumes, of one size, held in memory.

    Attributes:
        images: (n, *size, c): uint8, of pictures sRGB or grey; or float32 in [−1, 1], of signals and volumes
        labels: (n,) int64 indices into `class_names`, or None where the source has no labels
        class_names: names of the labels; empty without labels
        source: what was read, for messages
        skipped: (path, reason) of every file that could not be used
        missing: (k,) int64, ascending: of the `count` pictures in the source, the numbers of those that are not
            here, as they are broken or too small
        blocks: sizes of consecutive groups of the `count` pictures that are read together (tar shards); () for none
        fingerprint: the same for a copy of the data in another place
        understood: what the pictures and the labels were taken for, in two lines to be read before training
    """

    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    source: str
    skipped: tuple[tuple[str, str], ...] = ()
    missing: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    blocks: tuple[int, ...] = ()
    fingerprint: str = ""
    understood: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        return int(self.images.shape[-1])

    @property
    def floats(self) -> bool:
        """Whether the values are floats in [−1, 1], not bytes."""
        return self.images.dtype != np.uint8

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Images of each class; empty without labels."""
        return _counts(self.labels, self.class_names)

    @property
    def count(self) -> int:
        """Pictures in the source, which `order` numbers: those here and the missing ones."""
        return len(self.images) + len(self.missing)

    def order(self, batch_size: int, seed: int) -> Order:
        """The order to train on them in: an `ImageStream`'s of the same data."""
        return Order(self.count, batch_size, seed, self.blocks)

    def take(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For (b,) numbers of an order: images (b, *size, c), and the (b,) numbers they really have. In
        the place of a missing one stands the next that is not, as in an `ImageStream`.
        """
        rows = self._rows(numbers)
        # Row r is the picture that has r others before it, besides missing ones.
        return self.images[rows], rows + np.searchsorted(self.missing - np.arange(len(self.missing)), rows, "right")

    def labels_of(self, numbers: np.ndarray) -> np.ndarray | None:
        """(b,) int64 for (b,) numbers of an order, or None where there are no labels."""
        return None if self.labels is None else self.labels[self._rows(numbers)]

    def _rows(self, numbers: np.ndarray) -> np.ndarray:
        return (numbers - np.searchsorted(self.missing, numbers)) % len(self)

    def describe(self) -> str:
        """How many images of what, and the memory that they take."""
        what = called(self.images.ndim - 2)
        return f"{len(self)} {what} of {self.source}, kept in memory: {_memory(self.images.nbytes)}"


@dataclass(frozen=True)
class ImageStream:
    """Images of one size, decoded when they are read; in the place of one that cannot be read comes its neighbour.

    Attributes:
        labels: (n,) int64 indices into `class_names`, or None where the source has no labels
        class_names: names of the labels; empty without labels
        source: what is read, for messages
        size: height and width
        crop: "center", or "random": another square each time
        fingerprint: the same for a copy of the data in another place
        understood: what the pictures and the labels were taken for, in two lines to be read before training
    """

    reader: Reader
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    source: str
    size: tuple[int, int]
    crop: Crop
    broken_share: float
    blocks: tuple[int, ...] = ()
    fingerprint: str = ""
    understood: tuple[str, ...] = ()
    _failed: dict[str, str] = field(default_factory=dict)
    _read: list[int] = field(default_factory=lambda: [0])  # one number: pictures asked for since the start

    def __len__(self) -> int:
        return len(self.reader)

    @property
    def channels(self) -> int:
        return self.reader.channels

    @property
    def floats(self) -> bool:
        """Pictures are bytes."""
        return False

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Images of each class, broken ones included; empty without labels."""
        return _counts(self.labels, self.class_names)

    @property
    def count(self) -> int:
        """Pictures in the source, which `order` numbers."""
        return len(self)

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """(path, reason) of every file that could not be used, so far."""
        return self.reader.source.passed_over + tuple(self._failed.items())

    def order(self, batch_size: int, seed: int) -> Order:
        """The order to train on them in: of tar shards, few at a time are read."""
        return Order(self.count, batch_size, seed, self.blocks)

    def labels_of(self, numbers: np.ndarray) -> np.ndarray | None:
        """(b,) int64 for (b,) numbers of an order, or None where there are no labels."""
        return None if self.labels is None else self.labels[numbers]

    def describe(self) -> str:
        """How many images of what, and why they are not kept in memory."""
        if self.crop == "random":
            return f"{len(self)} images of {self.source}, decoded whenever they are read, as each time is another crop"
        kept = _memory(len(self) * math.prod(self.reader.shape))
        return f"{len(self)} images of {self.source}, decoded whenever they are read: to keep them would take {kept}"

    def read(self, tasks: Iterable[Task], workers: int, pin: bool = False) -> Iterator[tuple[Tensor, np.ndarray]]:
        """For each task (indices (b,), numbers of random crops (b, 3) or None): images (b, height, width, c) uint8
        tensors, and the (b,) indices of the images they really are. Raises ValueError past the share of broken ones.
        """
        for images, used, failures, _ in answers(Pictures(self.reader, replace=True), tasks, workers, pin):
            self._read[0] += len(used)
            for failure in failures:
                if failure.name not in self._failed:
                    self._failed[failure.name] = failure.reason
                    log.warning("skipped %s: %s", failure.name, failure.reason)
            # Of different pictures, as where all are decoded at once: in every epoch the same are read again.
            different = min(self._read[0], len(self))
            check_share(len(self._failed), different, self._failed, self.broken_share, self.source)
            yield torch.as_tensor(images), used


def _counts(labels: np.ndarray | None, names: Sequence[str]) -> tuple[int, ...]:
    return () if labels is None else tuple(np.bincount(labels, minlength=len(names)).tolist())


def open_images(
    path: Any,
    size: Size,
    *,
    channels: int = 3,
    classes: Sequence[str] = (),
    crop: Crop = "center",
    labels: bool = True,
    column: str | None = None,
    label_column: str | None = None,
    subset: str | None = None,
    bits: int = DEEPEST,
    most_pixels: int = MOST_PIXELS,
    workers: int | None = None,
    memory_gib: float = 4.0,
    broken_share: float = 0.01,
    world: World | None = None,
) -> ImageSet | ImageStream:
    """The images of `path`, cropped to the shape of `size` and resized (antialiased) to it.

    labels, column, label_column, subset, bits, most_pixels
                  which of what the source holds, as `Choices` says

    A picture that is broken or smaller than `size` is named in the log and in `skipped`, and another takes its place in
    batches. Whether images are kept in memory changes nothing else: the same images come in the same order. Pictures
    are decoded if they are of a known format (AVIF, BMP, GIF, JPEG, JPEG 2000, PCX, PNG, PPM, QOI, SGI, TGA, TIFF,
    WebP), whatever they are called.

    Args:
        path: one of `EMBEDDED` a folder, searched through; labels are those of EDM's dataset.json in it, or else,
            with several sub-folders and every picture in one, the sub-folders directly inside it a zip file of
            pictures, with a dataset.json or not, as EDM's dataset_tool.py makes it an .npz or .npy file of images
            shaped (n, h, w), (n, h, w, 1), (n, h, w, 3) or (n, h, w, 4), uint8 or uint16; in an .npz also `labels` (n,)
            and `class_names`, or guided-diffusion's arr_0 and arr_1 an IDX file of images (the MNIST family; .gz too),
            or a folder with one, labels in the file beside it tar shards in WebDataset's layout: what `python -m
            ssdcore_torch.prepare` wrote, a folder of .tar files, a .tar, a pattern (train-{000..123}.tar, train-*.tar);
            any of them may be a URL of https, s3, … a Hugging Face dataset: a folder that `save_to_disk` wrote, or
            "hf:NAME", "hf:NAME:SPLIT" from Python also an array (n, h, w) or (n, h, w, c) of uint8, a tuple (array,
            labels) or (array, labels, class names), or a map-style torch `Dataset` of pictures or (picture, class
            number)
        size: height and width, or (height, width)
        channels: 1: grey; 3: RGB, transparency as white; 4: RGBA
        classes: keep only these classes, for a source with class names; empty keeps all
        crop: "center": the largest centred part; "random": a part of at least 0.8 of its sides anywhere, another
            one each time, which is why such images are never cached
        workers: processes that decode; None: one for each core but one, at most 8; 0: none
        memory_gib: decode all images now and keep them, if they take no more than this (an `ImageSet`); else decode
            each when it is wanted (an `ImageStream`). What arrays may take when they are unpacked, too
        broken_share: of the files read, this share may be unreadable or smaller than `size`; past it reading fails
        world: with several ranks on a machine, one decodes and the others share its memory

    Raises:
        ValueError: If nothing is readable, too much is broken, or labels are not the numbers of classes.
        TypeError: For objects of other kinds.
        FileNotFoundError: For no such path.
        OSError: For a folder that cannot be read.
        ImportError: Where shards or Hugging Face datasets need the extra `ssdcore[data]`.
    """
    shape = extent(size)
    if channels not in CHANNELS:
        raise ValueError(f"channels: expected 1 (grey), 3 (RGB) or 4 (RGBA), got {channels}")
    if crop not in ("center", "random"):
        raise ValueError(f"data.crop: expected 'center' or 'random', got {crop!r}")
    if not 0 <= broken_share <= 1:
        raise ValueError(f"data.broken_share: expected a share from 0 to 1, got {broken_share}")
    if not memory_gib >= 0:
        raise ValueError(f"data.memory_gib: expected at least 0, got {memory_gib}")
    workers = check_workers(workers)
    choices = Choices(labels, column, label_column, subset, bits, most_pixels, memory_gib * 2**30)
    source = open_source(path, choices)
    reader = Reader(source, classes_of(source, classes), shape, channels, bits)
    _check_size(source, shape)
    if not len(reader):
        raise _nothing_usable(source, source.passed_over)
    for doubt in source.doubts if world is None or world.leader else ():
        log.warning("%s", doubt)
    if crop == "center" and len(reader) * math.prod(reader.shape) <= memory_gib * 2**30:
        found: ImageSet | ImageStream = shared(lambda room: _decode_all(reader, workers, broken_share, room), world)
    else:
        known = None if source.labels is None else source.labels[reader.rows]
        blocks, fingerprint = _blocks(reader), source.fingerprint()
        names = source.class_names
        found = ImageStream(reader, known, names, source.source, shape, crop, broken_share, blocks, fingerprint)
    lines, doubt = understood(source, reader, found.labels, found.images if isinstance(found, ImageSet) else None)
    if doubt and (world is None or world.leader):
        log.warning("%s", doubt)
    return replace(found, understood=lines)


def load_images(path: Any, size: Size, classes: Sequence[str] = (), channels: int = 3) -> ImageSet:
    """All images of `path` in memory, whatever they take, however many are broken; else as `open_images`.

    Files that are not readable images, or too small, are listed in `skipped`.
    """
    images = open_images(path, size, channels=channels, classes=classes, memory_gib=math.inf, broken_share=1.0)
    assert isinstance(images, ImageSet)
    return images


def _check_size(source: Source, size: tuple[int, int]) -> None:
    if source.size is not None and (source.size[0] < size[0] or source.size[1] < size[1]):
        height, width = source.size
        wanted = f"size {size[0]}" if size[0] == size[1] else f"{size[1]}×{size[0]}"
        raise ValueError(
            f"{source.source}: its images are {width}×{height} pixels, smaller than {wanted}: choose a smaller size"
        )


def _blocks(reader: Reader) -> tuple[int, ...]:
    """Sizes of the groups of chosen pictures that are read together."""
    ends = np.cumsum((0, *reader.source.blocks))
    counts = np.diff(np.searchsorted(reader.rows, ends))
    return tuple(int(count) for count in counts if count)


def _memory(count: int) -> str:
    """A number of bytes, to be read."""
    return f"{count / 2**20:.1f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"


def _decode_all(reader: Reader, workers: int, broken_share: float, room: Room) -> ImageSet:
    source, count = reader.source, len(reader)
    images = room((count, *reader.shape))
    kept = np.arange(count)
    failures: list[Failure] = []
    if (
        isinstance(source, MemorySource)
        and source.images.shape[1:] == images.shape[1:]
        and source.images.dtype == np.uint8
    ):
        np.take(source.images, reader.rows, axis=0, out=images, mode="clip")  # "raise" would copy twice
    else:
        tasks = [(kept[first : first + CHUNK], None) for first in range(0, count, CHUNK)]
        used: list[np.ndarray] = []
        done = 0
        bar = tqdm(total=count, desc="decoding", unit="image", disable=None, delay=1, leave=False, dynamic_ncols=True)
        with bar:
            for part, indices, failed, _ in answers(Pictures(reader, False), tasks, workers if count > FEW else 0):
                images[done : done + len(part)] = part
                done += len(part)
                used.append(indices)
                failures += failed
                bar.update(len(part) + len(failed))
        images, kept = images[:done], np.concatenate(used)
    skipped = tuple(sorted([*source.passed_over, *((failure.name, failure.reason) for failure in failures)]))
    if not len(images):
        raise _nothing_usable(source, skipped, small=all(failure.small for failure in failures))
    check_share(len(failures), count, {f.name: f.reason for f in failures}, broken_share, source.source)
    for failure in failures:
        log.warning("skipped %s: %s", failure.name, failure.reason)
    labels = None if source.labels is None else source.labels[reader.rows[kept]]
    missing = np.delete(np.arange(count), kept)
    blocks, fingerprint = _blocks(reader), source.fingerprint()
    return ImageSet(images, labels, source.class_names, source.source, skipped, missing, blocks, fingerprint)


def _nothing_usable(source: Source, skipped: Sequence[tuple[str, str]], small: bool = False) -> ValueError:
    name, reason = (printable(told) for told in skipped[0])
    advice = ": choose a smaller size" if small else ""
    return ValueError(
        f"none of the {len(skipped)} files in {source.source} can be used; the first, {name}: {reason}{advice}"
    )


def check_share(broken: int, read: int, failed: dict[str, str], share: float, source: str) -> None:
    """Raises ValueError if, of enough pictures read, more than this share were broken; `failed`: names and reasons."""
    if read >= LEAST_READ and broken > share * read:
        name, reason = next(iter(failed.items()))
        raise ValueError(
            f"{broken} of {read} pictures read from {source} are broken or too small, more than the "
            f"broken share of {share:g} allows; the first, {name}: {reason}; repair or remove them, choose a smaller "
            "size, or allow a larger share"
        )
