"""Where images come from: folders and array files, opened one at a time by number."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from ssdcore import _extras
from ssdcore_torch.data._pixels import reason, to_bytes


class Source(ABC):
    """Pictures of any size, numbered from 0. It is pickled to worker processes, so it holds no open files.

    source       what is read, for messages
    labels       (n,) int64 indices into `class_names`, or None
    class_names  names of the labels; empty without labels
    passed_over  (path, reason) of what was found but is not even numbered
    blocks       sizes of consecutive groups that are read together; () for none
    size         (height, width) of every picture, where they are known to be equal
    """

    source: str
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    passed_over: tuple[tuple[str, str], ...] = ()
    blocks: tuple[int, ...] = ()
    size: tuple[int, int] | None = None

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
        digest = hashlib.sha256(repr((len(self), self.class_names)).encode())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        for trait in self.traits():
            digest.update(hashlib.sha256(trait).digest())
        return digest.hexdigest()


def some(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 to `count` − 1, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64)).tolist()


def check_labels(labels: np.ndarray | None, class_names: Sequence[str], source: str) -> None:
    """Raises ValueError unless every label is the number of a class; of any class, where there are no names."""
    if labels is None or not len(labels):
        return
    least, most, count = int(labels.min()), int(labels.max()), len(class_names)
    if least < 0 or (count and most >= count):
        names = f", as there are {count} class names" if count else ""
        raise ValueError(
            f"{source}: expected labels {f'from 0 to {count - 1}' if count else 'of 0 or more'}{names}, got some from "
            f"{least} to {most}: number the classes from 0"
        )


def need(module: str) -> Any:
    """A module of the extra "data". Raises ImportError that says so."""
    return _extras.need(module, "reading this data", "data")


class FatalSourceError(ValueError):
    """The source as a whole cannot be read any more: not the fault of one picture."""


def image_files(folder: Path) -> list[Path]:
    """Every file below `folder` but hidden ones, in one order on every machine; linked folders are searched once.

    Raises OSError for a folder that cannot be read.
    """
    return [folder / name for name in _names_below(folder)]


def _names_below(folder: Path) -> list[str]:
    """The files' names from `folder` on, with slashes."""
    found: list[str] = []
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != _ROOTS_OWN)
        if (real := os.path.realpath(parent)) in seen:  # a link back up would never end
            folders.clear()
            continue
        seen.add(real)
        inside = "" if (relative := os.path.relpath(parent, folder)) == "." else relative.replace(os.sep, "/") + "/"
        found += [inside + name for name in files if not name.startswith(".")]
    return sorted(found)


_ROOTS_OWN = "lost+found"  # at the top of most disks, readable by root alone, and never the user's


def _refuse(error: OSError) -> NoReturn:
    """What os.walk would keep to itself: a class or a half of the pictures could be missing."""
    raise OSError(
        f"the folder {error.filename} cannot be read ({error.strerror}): make it readable, or move it elsewhere"
    ) from error


class FolderSource(Source):
    """The pictures below a folder, of every format that Pillow reads.

    Labels are the sub-folders directly inside it, sorted by name, if there are several and every picture lies in one.
    A file whose suffix is not a picture's (notes.txt) is passed over; so is one without a suffix, unless none has one.
    """

    def __init__(self, folder: Path) -> None:
        self.source, self.folder = str(folder), folder
        found = _names_below(folder)
        if not found:
            raise ValueError(f"{folder} holds no files: give a folder with images in it (subfolders are searched)")
        suffixes = Image.registered_extensions()
        endings = [os.path.splitext(name)[1].lower() for name in found]
        names = [name for name, ending in zip(found, endings) if ending in suffixes]
        names = names or [name for name, ending in zip(found, endings) if not ending]
        kept = set(names)
        self.passed_over = tuple((str(folder / name), "not an image") for name in found if name not in kept)
        # One array, not a million objects: workers share its memory, as nothing counts references in it.
        self._names = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)
        first = [name.split("/", 1)[0] for name in names]
        classes = sorted(set(first))
        if len(classes) > 1 and all("/" in name for name in names):
            numbers = {name: number for number, name in enumerate(classes)}
            self.class_names = tuple(classes)
            self.labels = np.array([numbers[name] for name in first], dtype=np.int64)

    def keep(self, names: Sequence[str]) -> None:
        """Only these files, named from the folder on. Raises ValueError for a name that is not there."""
        rows = {os.fsdecode(name): row for row, name in enumerate(self._names)}
        if missing := [name for name in names if name not in rows]:
            raise ValueError(f"{len(missing)} names of the list are no pictures in {self.source}, such as {missing[0]}")
        kept = np.unique([rows[name] for name in names]).astype(np.int64)
        self._names = self._names[kept]
        self.labels = None if self.labels is None else self.labels[kept]

    def __len__(self) -> int:
        return len(self._names)

    def open(self, index: int) -> Image.Image:
        return Image.open(self.name(index))

    def name(self, index: int) -> str:
        return os.path.join(self.source, os.fsdecode(self._names[index]))

    @property
    def files(self) -> list[Path]:
        return [Path(self.name(index)) for index in range(len(self))]

    def traits(self) -> Iterator[bytes]:
        """All names from the folder on, and the sizes of some files: to ask for a million would take minutes."""
        yield self._names.tobytes()
        for index in some(len(self), 256):
            try:
                yield str(os.path.getsize(self.name(index))).encode()
            except OSError:  # a link to nowhere is one more broken file
                yield b"unreadable"


class ArraySource(Source):
    """The images of an .npz or .npy file, the latter mapped into memory, not read.

    images  (n, h, w), (n, h, w, 1), (n, h, w, 3) or (n, h, w, 4), uint8 or uint16
    """

    def __init__(self, file: Path, source: str) -> None:
        self.source, self.file = source, file
        arrays = self._load()
        self.images = _check_images(_only_images(arrays, file), file)
        self.size = self.images.shape[1:3]
        labels = arrays.get("labels")
        self.class_names = tuple(str(name) for name in arrays["class_names"]) if "class_names" in arrays else ()
        if labels is not None:
            if labels.shape != (len(self.images),) or labels.dtype.kind not in "iu":
                raise ValueError(
                    f"{file}: expected integer labels shaped ({len(self.images)},), got {labels.dtype} {labels.shape}"
                )
            self.labels = labels.astype(np.int64)
            check_labels(self.labels, self.class_names, str(file))

    def _load(self) -> dict[str, np.ndarray]:
        try:
            loaded = np.load(self.file, mmap_mode="r", allow_pickle=False)
            return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else {"images": loaded}
        except Exception as error:  # zip, header and pickle errors alike mean: not an array file
            raise ValueError(
                f"{self.file} is not a readable .npz or .npy file of images ({reason(error)}); "
                "save one with numpy.savez(file, images=array)"
            ) from error

    def __len__(self) -> int:
        return len(self.images)

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(to_bytes(np.asarray(self.images[index])))

    def name(self, index: int) -> str:
        return f"image {index} of {self.file}"

    @property
    def files(self) -> list[Path]:
        return [self.file]

    def traits(self) -> Iterator[bytes]:
        yield repr((self.images.shape, self.images.dtype.str)).encode()
        for index in some(len(self), 16):
            yield self.images[index].tobytes()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "images": None}  # a mapped array would travel whole

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.images = _check_images(_only_images(self._load(), self.file), self.file)


def _only_images(arrays: dict[str, np.ndarray], file: Path) -> np.ndarray:
    if "images" in arrays:
        return arrays["images"]
    if len(arrays) != 1:
        raise ValueError(f"{file} holds {sorted(arrays)}: expected an array named 'images', or only one array")
    return next(iter(arrays.values()))


def _check_images(images: np.ndarray, file: Path) -> np.ndarray:
    """The images as (n, h, w) or (n, h, w, 3 or 4)."""
    if images.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"{file}: expected images of dtype uint8 or uint16, got {images.dtype}; "
            "for values in [0, 1] save (255 * images).round().astype('uint8')"
        )
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)) or images.size == 0:
        raise ValueError(f"{file}: expected images shaped (n, h, w) or (n, h, w, 1, 3 or 4), got {images.shape}")
    return images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images


def classes_of(source: Source, classes: Sequence[str]) -> np.ndarray:
    """(n,) int64: which of the source's images belong to these classes; all for ().

    Raises ValueError for a class that the source has not.
    """
    if not classes:
        return np.arange(len(source))
    if source.labels is None or not source.class_names:
        raise ValueError(f"data.classes = {tuple(classes)} needs class names, which {source.source} has not")
    if unknown := [name for name in classes if name not in source.class_names]:
        shown = list(source.class_names[:50]) + ["…"] * (len(source.class_names) > 50)
        raise ValueError(f"data.classes: {source.source} has no class {unknown}; it has {shown}")
    kept = np.flatnonzero(np.isin(source.labels, [source.class_names.index(name) for name in classes]))
    if not len(kept):
        raise ValueError(f"data.classes: {source.source} has no image of {list(classes)}")
    return kept
