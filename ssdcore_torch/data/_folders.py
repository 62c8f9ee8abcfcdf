"""Pictures that lie as files in a folder or in a zip file, with EDM's dataset.json or not."""

from __future__ import annotations

import collections
import functools
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image

from ssdcore.files import open_picture, open_regular, read_bytes, size_of, suffixes
from ssdcore_torch.data._sources import MOST_FILE, Choices, Source, check_labels, some
from ssdcore_torch.text import printable

LISTING = "dataset.json"
"""EDM's list of labels, beside the pictures."""

MOST_LISTING = 2**28  # bytes of it: some 5 million pictures

MOST_LINKED = 64  # times that links may lead to one folder

_SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "eval", "dev"}


def image_files(folder: Path) -> list[Path]:
    """Every file below `folder` but hidden ones, in one order on every machine; links back up are not followed.

    Raises:
        OSError: For a folder that cannot be read.
    """
    return [folder / name for name in _names_below(folder)]


def _names_below(folder: Path) -> list[str]:
    """The files' names from `folder` on, with slashes."""
    found: list[str] = []
    visits = collections.Counter[str]()
    top = os.fspath(folder)
    above: dict[str, tuple[str, ...]] = {top: (os.path.realpath(top),)}  # real names of it and what it lies in
    for parent, folders, files in os.walk(top, onerror=_refuse, followlinks=True):
        chain = above.pop(parent)
        visits[chain[-1]] += 1
        if visits[chain[-1]] > MOST_LINKED:
            raise ValueError(f"{top}: links lead to {chain[-1]} more than {MOST_LINKED} times: remove some")
        inner = []
        for name in sorted(folders):
            if name.startswith(".") or name == _ROOTS_OWN:
                continue
            path = os.path.join(parent, name)
            real = os.path.realpath(path) if os.path.islink(path) else os.path.join(chain[-1], name)
            if real in chain:  # a link back up would never end
                continue
            above[path] = (*chain, real)
            inner.append(name)
        folders[:] = inner
        inside = "" if (relative := os.path.relpath(parent, top)) == "." else relative.replace(os.sep, "/") + "/"
        found += [inside + name for name in files if not name.startswith(".")]
    return sorted(found)


_ROOTS_OWN = "lost+found"  # at the top of most disks, readable by root alone, and never the user's


def _refuse(error: OSError) -> NoReturn:
    """What os.walk would keep to itself: a class or a half of the pictures could be missing."""
    raise OSError(
        f"the folder {error.filename} cannot be read ({error.strerror}): make it readable, or move it elsewhere"
    ) from error


class _Files(Source):
    """Pictures that have names with slashes. Labels are those of `LISTING` if it is there; else the folders directly
    inside, sorted by name, if there are several and every picture lies in one.

    A file whose suffix is not a picture's (notes.txt) is passed over; so is one without a suffix, unless none has one.
    """

    def __init__(self, source: str, found: list[str], choices: Choices) -> None:
        self.source, self.choices = source, choices
        if not found:
            raise ValueError(f"{source} holds no files: give a folder with images in it (subfolders are searched)")
        known = suffixes()
        endings = [os.path.splitext(name)[1].lower() for name in found]
        names = [name for name, ending in zip(found, endings) if ending in known]
        names = names or [name for name, ending in zip(found, endings) if not ending]
        kept = {*names, LISTING}
        self.passed_over = tuple((os.path.join(source, name), "not an image") for name in found if name not in kept)
        # One array, not a million objects: workers share its memory, as nothing counts references in it.
        self._names = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)
        if not choices.labels:
            return
        if LISTING in found:
            self._take_listing(names)
        else:
            self._take_folders(names)

    def _take_folders(self, names: list[str]) -> None:
        first = [name.split("/", 1)[0] for name in names]
        classes = sorted(set(first))
        if len(classes) < 2 or not all("/" in name for name in names):
            return
        numbers = {name: number for number, name in enumerate(classes)}
        self.class_names = tuple(classes)
        self.labels = np.array([numbers[name] for name in first], dtype=np.int64)
        check_labels(self.labels, self.class_names, self.source)
        self.labelled_by = "its sub-folders"
        numbered = all(re.fullmatch(r"\d{5,}", name) for name in classes)
        if numbered or {name.lower() for name in classes} <= _SPLITS:
            kind = "numbered parts" if numbered else "parts of a data set"
            shown = ", ".join(printable(name) for name in classes[:4])
            self.doubts = (
                f"the sub-folders {shown} look like {kind} and are taken for classes: give one of them as --data, or "
                "--set data.labels=false",
            )

    def _take_listing(self, names: list[str]) -> None:
        where = os.path.join(self.source, LISTING)
        try:
            told = json.loads(self.read(LISTING, MOST_LISTING))
            listed = told["labels"]
            pairs = None if listed is None else dict(listed)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if isinstance(error, ValueError) and str(error).startswith(self.source):
                raise
            raise ValueError(
                f'{where}: expected {{"labels": [["NAME", NUMBER], …]}} or null ({type(error).__name__}); fix it, or '
                "--set data.labels=false"
            ) from error
        if pairs is None:
            return
        if missing := [name for name in names if name not in pairs]:
            raise ValueError(f"{where}: {printable(missing[0])} has no label there: add it, or --set data.labels=false")
        labels = [pairs[name] for name in names]
        if odd := [label for label in labels if type(label) is not int or not -1 < label < 2**31]:
            raise ValueError(
                f"{where}: expected class numbers from 0 on, got {printable(odd[0])!s:.40}: --set data.labels=false "
                "leaves them out"
            )
        self.labels = np.array(labels, dtype=np.int64)
        self.class_names = check_labels(self.labels, (), where)
        self.labelled_by = LISTING

    def read(self, name: str, most: int) -> bytes:
        """The contents of one file. Raises ValueError for more bytes."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return os.path.join(self.source, os.fsdecode(self._names[index]))


class FolderSource(_Files):
    """The pictures below a folder."""

    def __init__(self, folder: Path, choices: Choices | None = None) -> None:
        self.folder = folder
        super().__init__(str(folder), _names_below(folder), choices or Choices())

    def read(self, name: str, most: int) -> bytes:
        return read_bytes(self.folder / name, most)

    def keep(self, names: Sequence[str]) -> None:
        """Only these files, named from the folder on. Raises ValueError for a name that is not there."""
        rows = {os.fsdecode(name): row for row, name in enumerate(self._names)}
        if missing := [name for name in names if name not in rows]:
            raise ValueError(
                f"{len(missing)} names of the list are not pictures in {self.source}, such as {printable(missing[0])}"
            )
        kept = np.unique([rows[name] for name in names]).astype(np.int64)
        self._names = self._names[kept]
        self.labels = None if self.labels is None else self.labels[kept]

    def open(self, index: int) -> Image.Image:
        picture: Image.Image = open_picture(self.name(index), self.choices.most_pixels)
        return picture

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


class ZipSource(_Files):
    """The pictures in a zip file, as EDM's dataset_tool.py packs them."""

    def __init__(self, file: Path, choices: Choices | None = None) -> None:
        self.file = file
        try:
            names = [info.filename for info in _opened_zip(os.getpid(), str(file)).infolist() if not info.is_dir()]
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise ValueError(f"{file} is not an intact zip file of pictures: {printable(error)}") from error
        shown = sorted(name for name in names if not any(part.startswith((".", "__")) for part in name.split("/")))
        super().__init__(str(file), shown, choices or Choices())
        if not len(self):
            raise ValueError(f"{file} holds neither arrays nor pictures: expected NAME.png, … or images.npy in it")

    def read(self, name: str, most: int) -> bytes:
        archive = _opened_zip(os.getpid(), str(self.file))
        info = archive.getinfo(name)
        if info.file_size > most:
            raise ValueError(
                f"{self.file}: {printable(name)} takes {size_of(info.file_size)}, more than such a file can"
            )
        return archive.read(info)

    def open(self, index: int) -> Image.Image:
        content = self.read(os.fsdecode(self._names[index]), MOST_FILE)
        picture: Image.Image = open_picture(io.BytesIO(content), self.choices.most_pixels)
        return picture

    @property
    def files(self) -> list[Path]:
        return [self.file]

    def traits(self) -> Iterator[bytes]:
        yield self._names.tobytes()
        archive = _opened_zip(os.getpid(), str(self.file))
        for index in some(len(self), 256):
            yield str(archive.getinfo(os.fsdecode(self._names[index])).CRC).encode()


@functools.lru_cache(maxsize=4)
def _opened_zip(process: int, path: str) -> zipfile.ZipFile:
    """Open for this process alone: after a fork, two would share its position."""
    return zipfile.ZipFile(open_regular(path))
