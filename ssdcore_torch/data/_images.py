"""Images by number: all decoded in memory, or decoded as they are asked for."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from ssdcore_torch.data._hub import HUB, HubSource, is_saved_dataset
from ssdcore_torch.data._order import Order
from ssdcore_torch.data._reading import Failure, Pictures, Reader, Task, answers, check_workers
from ssdcore_torch.data._shards import holds_shards, is_remote, open_shards
from ssdcore_torch.data._sources import ArraySource, FolderSource, Source, classes_of

if TYPE_CHECKING:
    from ssdcore_torch.distributed import World

log = logging.getLogger("ssdcore_torch")

EMBEDDED = "embedded:drawings64"
"""The `data.path` that names the 4,096 CC0 drawings (64 px, 16 classes) inside the package."""

LEAST_READ = 100
"""Pictures that must have been read before the share of broken ones is judged."""

CHUNK = 64
"""Pictures a worker decodes at a time for the cache."""

FEW = 200
"""Up to this many pictures, starting workers takes longer than decoding."""

Crop = Literal["center", "random"]


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, held as bytes.

    images       (n, size, size, 3) uint8, sRGB
    labels       (n,) int64 indices into `class_names`, or None where the source has no labels
    class_names  names of the labels; empty without labels
    source       what was read, for messages
    skipped      (path, reason) of every file that could not be used
    missing      (k,) int64, ascending: of the `count` pictures in the source, the numbers of those that are not here,
                 as they are broken or too small
    blocks       sizes of consecutive groups of the `count` pictures that are read together (tar shards); () for none
    fingerprint  the same for a copy of the data in another place
    """

    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    source: str
    skipped: tuple[tuple[str, str], ...] = ()
    missing: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    blocks: tuple[int, ...] = ()
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def count(self) -> int:
        """Pictures in the source, which `order` numbers: those here and the missing ones."""
        return len(self.images) + len(self.missing)

    def order(self, batch_size: int, seed: int) -> Order:
        """The order to train on them in: an `ImageStream`'s of the same data."""
        return Order(self.count, batch_size, seed, self.blocks)

    def take(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For (b,) numbers of an order: images (b, size, size, 3) uint8, and the (b,) numbers they really have. In the
        place of a missing one stands the next that is not, as in an `ImageStream`.
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
        return f"{len(self)} images of {self.source}, decoded and kept in memory: {_memory(self.images.nbytes)}"


@dataclass(frozen=True)
class ImageStream:
    """Images of one size, decoded when they are read; in the place of one that cannot be read comes its neighbour.

    labels       (n,) int64 indices into `class_names`, or None where the source has no labels
    class_names  names of the labels; empty without labels
    source       what is read, for messages
    size         height and width
    crop         "center", or "random": another square each time
    fingerprint  the same for a copy of the data in another place
    """

    reader: Reader
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    source: str
    size: int
    crop: Crop
    broken_share: float
    blocks: tuple[int, ...] = ()
    fingerprint: str = ""
    _failed: dict[str, str] = field(default_factory=dict)
    _read: list[int] = field(default_factory=lambda: [0])  # one number: pictures asked for since the start

    def __len__(self) -> int:
        return len(self.reader)

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
        kept = _memory(len(self) * self.size**2 * 3)
        return f"{len(self)} images of {self.source}, decoded whenever they are read: to keep them would take {kept}"

    def read(self, tasks: Iterable[Task], workers: int, pin: bool = False) -> Iterator[tuple[Tensor, np.ndarray]]:
        """For each task (indices (b,), numbers of random crops (b, 3) or None): images (b, size, size, 3) uint8
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
            yield images, used


def open_images(
    path: str | os.PathLike[str],
    size: int,
    *,
    classes: Sequence[str] = (),
    crop: Crop = "center",
    workers: int | None = None,
    memory_gib: float = 4.0,
    broken_share: float = 0.01,
    world: World | None = None,
) -> ImageSet | ImageStream:
    """The images of `path`, cropped to a square and resized (antialiased) to `size` × `size` RGB.

    path          one of
                  `EMBEDDED`
                  a folder, searched through, of any format that Pillow reads; with several sub-folders and every
                  picture in one, those directly inside it are the classes
                  an .npz or .npy file of images shaped (n, h, w), (n, h, w, 1), (n, h, w, 3) or (n, h, w, 4), uint8 or
                  uint16; in an .npz also `labels` (n,) and `class_names`
                  tar shards in WebDataset's layout: what `python -m ssdcore_torch.prepare` wrote, a folder of .tar
                  files, a .tar, a pattern (train-{000..123}.tar, train-*.tar); any of them may be a URL
                  a Hugging Face dataset: a folder that `save_to_disk` wrote, or "hf:NAME", "hf:NAME:SPLIT"
    classes       keep only these classes, for a source with class names; empty keeps all
    crop          "center": the largest centred square; "random": a square of at least 0.8 of the shorter side anywhere,
                  another one each time, which is why such images are never cached
    workers       processes that decode; None: one for each core but one, at most 8; 0: none
    memory_gib    decode all images now and keep them, if they take no more than this (an `ImageSet`); else decode each
                  when it is wanted (an `ImageStream`)
    broken_share  of the files read, this share may be unreadable or smaller than `size`; past it reading fails
    world         with several ranks on a machine, one decodes and the others share its memory

    A picture that is broken or smaller than `size` is named in the log and in `skipped`, and another takes its place in
    batches. Whether images are kept in memory changes nothing else: the same images come in the same order.

    Raises ValueError if nothing is readable, too much is broken, or labels are not the numbers of classes;
    FileNotFoundError for no such path; OSError for a folder that cannot be read; ImportError where shards or Hugging
    Face datasets need the extra `ssdcore[data]`.
    """
    if size < 1:
        raise ValueError(f"size: expected at least 1, got {size}")
    if crop not in ("center", "random"):
        raise ValueError(f"data.crop: expected 'center' or 'random', got {crop!r}")
    if not 0 <= broken_share <= 1:
        raise ValueError(f"data.broken_share: expected a share from 0 to 1, got {broken_share}")
    if not memory_gib >= 0:
        raise ValueError(f"data.memory_gib: expected at least 0, got {memory_gib}")
    workers = check_workers(workers)
    source = open_source(path)
    reader = Reader(source, classes_of(source, classes), size)
    _check_size(source, size)
    if not len(reader):
        raise _nothing_usable(source, source.passed_over)
    if crop == "center" and len(reader) * size * size * 3 <= memory_gib * 2**30:
        return _shared(lambda room: _decode_all(reader, workers, broken_share, room), world)
    labels = None if source.labels is None else source.labels[reader.rows]
    blocks, fingerprint = _blocks(reader), source.fingerprint()
    return ImageStream(reader, labels, source.class_names, source.source, size, crop, broken_share, blocks, fingerprint)


def load_images(path: str | os.PathLike[str], size: int, classes: Sequence[str] = ()) -> ImageSet:
    """All images of `path` in memory, whatever they take, however many are broken; else as `open_images`.

    Files that are no readable image, or a smaller one, are listed in `skipped`.
    """
    images = open_images(path, size, classes=classes, memory_gib=math.inf, broken_share=1.0)
    assert isinstance(images, ImageSet)
    return images


def open_source(path: str | os.PathLike[str]) -> Source:
    """The pictures of whatever `open_images` takes, as they are. Raises as it does."""
    text = os.fspath(path)
    if text == EMBEDDED:
        with resources.as_file(resources.files("ssdcore_torch") / "assets" / "drawings64.npz") as packed:
            return ArraySource(packed, "the embedded drawings")
    file = Path(text)
    if text.startswith(HUB) or is_saved_dataset(file):
        return HubSource(text)
    if holds_shards(text):
        return open_shards(text)
    if not file.exists():
        raise FileNotFoundError(
            f"no such data: {file}; give an image folder, an .npz or .npy file, tar shards, or {HUB}NAME; if it has "
            "moved, its new place"
        )
    return FolderSource(file) if file.is_dir() else ArraySource(file, str(file))


def absolute(path: str) -> str:
    """The same data by a name that holds in any working folder: local paths and patterns made absolute."""
    named = path == EMBEDDED or is_remote(path) or path.startswith("pipe:")
    if named or (path.startswith(HUB) and not is_saved_dataset(Path(path.removeprefix(HUB)))):
        return path
    prefix = HUB if path.startswith(HUB) else ""
    return prefix + os.path.abspath(path.removeprefix(HUB))


def _check_size(source: Source, size: int) -> None:
    if source.size is not None and min(source.size) < size:
        height, width = source.size
        raise ValueError(
            f"{source.source}: its images are {width}×{height} pixels, smaller than size {size}: choose a smaller size"
        )


def _blocks(reader: Reader) -> tuple[int, ...]:
    """Sizes of the groups of chosen pictures that are read together."""
    ends = np.cumsum((0, *reader.source.blocks))
    counts = np.diff(np.searchsorted(reader.rows, ends))
    return tuple(int(count) for count in counts if count)


def _memory(count: int) -> str:
    """A number of bytes, to be read."""
    return f"{count / 2**20:.1f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"


Room = Callable[[tuple[int, ...]], np.ndarray]
"""Memory for uint8 values of a shape."""


def _decode_all(reader: Reader, workers: int, broken_share: float, room: Room) -> ImageSet:
    source, size, count = reader.source, reader.size, len(reader)
    images = room((count, size, size, 3))
    kept = np.arange(count)
    failures: list[Failure] = []
    if (
        isinstance(source, ArraySource)
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
                images[done : done + len(part)] = part.numpy()
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
    name, reason = skipped[0]
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
            f"broken share of {share:g} allows; the first, {name}: {reason}; mend or remove them, choose a smaller "
            "size, or allow a larger share"
        )


def _shared(decode: Callable[[Room], ImageSet], world: World | None) -> ImageSet:
    """`decode` on one rank of each machine; the others map the same memory, a file that has lost its name."""
    if world is None or world.size == 1:
        return decode(lambda shape: np.empty(shape, np.uint8))
    path = ""
    found: ImageSet | Exception | None = None
    try:
        if world.local_rank == 0:
            handle, path = tempfile.mkstemp(prefix="ssdcore-images-")
            os.close(handle)
            found = _decode_into(Path(path), decode)
        told: list[tuple[str, int, ImageSet | Exception | None]] = [("", 0, None)] * world.size
        shown = replace(found, images=found.images[:0].copy()) if isinstance(found, ImageSet) else found
        count = len(found) if isinstance(found, ImageSet) else 0
        dist.all_gather_object(told, (path, count, shown))
        for _, _, other in told:
            if isinstance(other, Exception):  # of any machine: no rank may wait for one that has stopped
                raise other
        if len(counts := sorted({count for path, count, _ in told if path})) > 1:
            raise ValueError(f"the machines hold different data: {counts[0]} and {counts[-1]} images at the same path")
        path_here, count, shown = told[world.rank - world.local_rank]  # torchrun numbers a machine's ranks in a row
        assert isinstance(shown, ImageSet)
        if not isinstance(found, ImageSet):
            found = replace(shown, images=np.memmap(path_here, np.uint8, "r", shape=(count, *shown.images.shape[1:])))
        world.wait()
        return found
    finally:
        if path:
            os.unlink(path)


def _decode_into(path: Path, decode: Callable[[Room], ImageSet]) -> ImageSet | Exception:
    """The images in a file of that name, mapped; or why there are none."""

    def room(shape: tuple[int, ...]) -> np.ndarray:
        try:
            mapped = np.memmap(path, np.uint8, "w+", shape=shape)
            if hasattr(os, "posix_fallocate"):  # else a full disk would be a bus error when it is written to
                with open(path, "rb+") as file:
                    os.posix_fallocate(file.fileno(), 0, math.prod(shape))
        except OSError as error:
            raise ValueError(
                f"the ranks cannot share {math.prod(shape) / 2**30:.2g} GiB of decoded images in {path.parent} "
                f"({error.strerror}): set TMPDIR to a folder with room, or lower data.memory_gib"
            ) from error
        return mapped

    try:
        return decode(room)
    except Exception as error:  # sent to every rank
        return error
