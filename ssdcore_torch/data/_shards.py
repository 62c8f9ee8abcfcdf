"""Tar shards in WebDataset's layout: files KEY.EXTENSION, of which a picture and perhaps a KEY.cls with its label.

An index holds the place of every picture in its shard, so that any one is a single read: it comes with the manifest of
`python -m ssdcore_torch.prepare`, or is made by reading through shards of another origin once. With it, the order can
be a pure function of (seed, step), and a resumed run starts in the middle of an epoch without reading what it has
passed. A reader of whole shards in sequence would have to replay them, and its order would hang on its workers.
Sequential reading is still what disks and object stores are good at. So `Order` permutes the shards and mixes only
`WINDOW` of them at a time, and a shard that is not on this machine is fetched whole, once per epoch, into a cache that
keeps two windows, the next one by a thread while the present one is trained on: data may be larger than the disk.
"""

from __future__ import annotations

import collections
import functools
import glob
import hashlib
import io
import itertools
import logging
import math
import os
import queue
import re
import tarfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
from PIL import Image
from tqdm import tqdm

from ssdcore.files import open_picture, open_regular, suffixes
from ssdcore_torch.data._cache import Place, check_length, open_cached
from ssdcore_torch.data._manifest import INDEX, MANIFEST, MOST_INDEX, MOST_MANIFEST, Index, Manifest
from ssdcore_torch.data._order import WINDOW
from ssdcore_torch.data._remote import find_remote, is_remote, open_remote
from ssdcore_torch.data._sources import MOST_FILE, Choices, FatalSourceError, Source, check_labels, need
from ssdcore_torch.text import printable

log = logging.getLogger("ssdcore_torch")

MOST_SHARDS = 1_000_000
"""Files that a pattern may mean."""


class ShardSource(Source):
    """The pictures of some tar files, here or on another machine.

    Args:
        counts: pictures in each
        index: where they lie in it
    """

    def __init__(
        self,
        source: str,
        shards: Sequence[Place],
        counts: Sequence[int],
        index: Index,
        class_names: tuple[str, ...],
        choices: Choices | None = None,
    ) -> None:
        self.choices = choices or Choices()
        self.source, self.shards, self.index = source, tuple(shards), index
        if self.choices.labels:
            self.labels, self.class_names = index.labels, check_labels(index.labels, class_names, source)
            self.labelled_by = "" if index.labels is None else "KEY.cls"
        self.blocks = tuple(counts)
        self.slow = any(is_remote(shard.path) for shard in self.shards)
        self.ends = np.cumsum(counts)

    def __len__(self) -> int:
        return len(self.index.offsets)

    def open(self, index: int) -> Image.Image:
        file = self._file(index)
        length = int(self.index.lengths[index])
        if length > MOST_FILE:
            raise ValueError(f"takes {length} bytes, more than a picture can")
        file.seek(int(self.index.offsets[index]))
        picture: Image.Image = open_picture(io.BytesIO(file.read(length)), self.choices.most_pixels)
        return picture

    def name(self, index: int) -> str:
        file = self._file(index)
        file.seek(int(self.index.offsets[index]) - tarfile.BLOCKSIZE)  # the header before it
        member = file.read(100).split(b"\0")[0].decode(errors="replace")
        return f"{member} in {self._shard(index).path}"

    def traits(self) -> Iterator[bytes]:
        yield repr(self.blocks).encode()
        yield self.index.offsets.tobytes()
        yield self.index.lengths.tobytes()

    def _shard(self, index: int) -> Place:
        return self.shards[int(np.searchsorted(self.ends, index, side="right"))]

    def _file(self, index: int) -> BinaryIO:
        return _opened(os.getpid(), self._shard(index))


class Prefetcher:
    """A thread that fetches shards before the workers want them."""

    def __init__(self, source: ShardSource) -> None:
        self._source: ShardSource | None = source
        self._ends = source.ends
        self._wanted: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._recent: collections.deque[int] = collections.deque(maxlen=2 * WINDOW)  # as many as the cache keeps
        threading.Thread(target=self._run, daemon=True).start()

    def want(self, indices: np.ndarray) -> None:
        """Fetch the shards of these pictures, soon."""
        for shard in np.unique(np.searchsorted(self._ends, indices, side="right")).tolist():
            if shard not in self._recent:
                self._recent.append(shard)
                self._wanted.put(shard)

    def close(self) -> None:
        """Fetch no more after the present one."""
        self._source = None
        self._wanted.put(None)

    def _run(self) -> None:
        while (shard := self._wanted.get()) is not None and (source := self._source) is not None:
            try:
                _open_here(source.shards[shard]).close()
            except FatalSourceError as error:
                log.warning("%s", error)  # the worker that needs it will stop the run


def holds_shards(path: str) -> bool:
    """Whether `open_shards` is what reads this."""
    if is_remote(path) or path.startswith("pipe:") or path.endswith((".tar", MANIFEST)):
        return True
    if not os.path.isdir(path):
        return False
    inside = [entry for entry in os.scandir(path) if not entry.name.startswith(".")]
    names = [entry.name for entry in inside]
    if MANIFEST in names:
        return True
    pictures = any(entry.is_dir() or Path(entry.name).suffix.lower() in suffixes() for entry in inside)
    return not pictures and any(name.endswith(".tar") for name in names)


def open_shards(path: str, choices: Choices | None = None) -> ShardSource:
    """A folder with a manifest.json or with .tar files, a manifest.json, a .tar, or a pattern of them ({000..123}, *).

    Any of them may be a URL of one of the `PROTOCOLS`. Raises ValueError for shards that are not
    what they should be, naming the first; FileNotFoundError where there are none.
    """
    if path.startswith("pipe:"):
        raise ValueError(f"{path}: commands are not run; give the shards' URLs (s3://, gs://, https://, …) instead")
    choices = choices or Choices()
    if not is_remote(path) and Path(path, MANIFEST).exists():
        return _open_manifest(str(Path(path, MANIFEST)), choices)
    if path.endswith(MANIFEST):
        return _open_manifest(path, choices)
    shards = _expand(path)
    places: list[Place] = []
    parts: list[Index] = []
    bar = tqdm(shards, desc="reading shards", unit="shard", disable=None, delay=1, leave=False, dynamic_ncols=True)
    for shard in bar:
        place, part = scan(shard, choices.column)
        places.append(place)
        parts.append(part)
    counts = [len(part.offsets) for part in parts]
    empty = [shard for shard, count in zip(shards, counts) if not count]
    if empty:
        column = f".{choices.column}" if choices.column else ".jpg, KEY.png, …"
        raise ValueError(f"{empty[0]} holds no pictures: expected files named KEY{column} in it")
    unlabelled = [shard for shard, part in zip(shards, parts) if part.labels is None]
    if 0 < len(unlabelled) < len(shards):
        raise ValueError(f"{unlabelled[0]} holds no labels (KEY.cls) where other shards do: add or remove them")
    return ShardSource(path, places, counts, Index.join(parts), (), choices)


def scan(shard: str, column: str | None = None) -> tuple[Place, Index]:
    """What is known of one shard after reading through it, and its index.

    Args:
        column: of the pictures of a key (KEY.input.jpg, KEY.target.jpg) those with this ending; None: its only one

    Raises:
        ValueError: If it is not an uncompressed tar, is cut short, or holds labels for some of its pictures only.
    """
    base_plus_ext = need("webdataset.tariterators").base_plus_ext
    places: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        # A stream, read in sequence, where it is remote; else only the headers are read.
        with _Counting(shard) as file, tarfile.open(fileobj=file, mode="r|" if file.remote else "r:") as tar:
            for member in tar:
                key, suffix = base_plus_ext(member.name)
                if key is None or not member.isreg() or member.issparse():
                    continue
                if suffix.lower() == "cls":
                    content = tar.extractfile(member)
                    assert content is not None
                    labels[key] = _label(content.read(MOST_LABEL), member.name)
                elif suffix == column or (column is None and f".{suffix.lower().rpartition('.')[2]}" in suffixes()):
                    if key in places:
                        raise ValueError(f"{key} has several pictures: say which with --set data.column={suffix}")
                    places[key] = (member.offset_data, member.size)
            length, digest = file.finish()
        if ends := [start + size for start, size in places.values() if start + size > length]:
            raise ValueError(f"it ends after {length} bytes, and a picture after {ends[0]}")
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        raise ValueError(
            f"{printable(shard)} is not an intact, uncompressed tar file of pictures: {printable(error)}"
        ) from error
    if labels and (without := [key for key in places if key not in labels]):
        raise ValueError(
            f"{shard}: {printable(without[0])} has no label (.cls) where others have one: add or remove them"
        )
    array = np.array(list(places.values()), dtype=np.int64).reshape(-1, 2)
    known = np.array([labels[key] for key in places], np.int64) if labels else None
    return Place(shard, length, digest), Index(array[:, 0], array[:, 1], known)


class _Counting(io.RawIOBase):
    """A shard's file; of a remote one, which is read through once, the length and SHA-256 of what has passed."""

    def __init__(self, shard: str) -> None:
        self.remote = is_remote(shard)
        self._file: IO[bytes] = open_remote(shard) if self.remote else open_regular(shard)
        self._digest, self._length = hashlib.sha256(), 0

    def read(self, size: int = -1, /) -> bytes:
        content = self._file.read(size)
        if self.remote:
            self._digest.update(content)
            self._length += len(content)
        return content

    def seek(self, place: int, whence: int = os.SEEK_SET, /) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()

    def finish(self) -> tuple[int, str]:
        """(length, SHA-256 or "" of a local file), after reading to the end."""
        if not self.remote:
            return self._file.seek(0, os.SEEK_END), ""
        while self.read(2**20):
            pass
        return self._length, self._digest.hexdigest()


MOST_LABEL = 32  # bytes of a KEY.cls


def _label(content: bytes, name: str) -> int:
    text = content.strip()
    if not text.isdigit() or len(text) > 9:
        raise ValueError(f"{printable(name)}: expected a class number, got {content[:20]!r}")
    return int(text)


def _open_manifest(path: str, choices: Choices) -> ShardSource:
    folder = path.rsplit("/", 1)[0] if is_remote(path) else str(Path(path).parent)
    manifest = Manifest.from_json(_read(path, MOST_MANIFEST), path)
    index = Index.from_bytes(_read(f"{folder}/{INDEX}", MOST_INDEX), manifest, f"{folder}/{INDEX}")
    shards = [Place(f"{folder}/{shard.name}", shard.bytes, shard.sha256) for shard in manifest.shards]
    if not is_remote(folder):
        for shard in shards:
            check_length(os.path.getsize(shard.path), shard)
    counts = [shard.images for shard in manifest.shards]
    source = ShardSource(folder, shards, counts, index, manifest.class_names, choices)
    source.size = (manifest.size, manifest.size) if manifest.size else None
    return source


def _read(path: str, most: int) -> bytes:
    with open_stream(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{printable(path)} is larger than any such file can be")
    return content


def open_stream(path: str) -> IO[bytes]:
    """A file here or at an address. Raises OSError, ValueError."""
    return open_remote(path) if is_remote(path) else open_regular(path)


def _expand(path: str) -> list[str]:
    """The shards that a folder or a pattern means, in order."""
    if os.path.isfile(path):  # also one that looks like a pattern
        return [path]
    if os.path.isdir(path):
        found = sorted(str(file) for file in Path(path).glob("*.tar"))
        if not found:
            raise FileNotFoundError(f"no such data: {path} holds no .tar files")
        return found
    shards: list[str] = []
    for pattern in _unbraced(path):
        if not glob.has_magic(pattern):
            shards.append(pattern)
        elif is_remote(pattern):
            shards += find_remote(pattern)
        else:
            shards += sorted(glob.glob(pattern))
    missing = [shard for shard in shards if not is_remote(shard) and not os.path.isfile(shard)]
    if missing or not shards:
        raise FileNotFoundError(f"no such data: {(missing or [path])[0]}; give tar shards that exist")
    return shards


def _unbraced(path: str) -> list[str]:
    """What {000..123} and {a,b} stand for. Raises ValueError where they stand for more than `MOST_SHARDS`."""
    ranges = re.findall(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?\d+)?\}", path)
    count = math.prod(abs(int(last[:40]) - int(first[:40])) + 1 for first, last in ranges)
    count *= math.prod(inside.count(",") + 1 for inside in re.findall(r"\{[^{]*", path))
    if count > MOST_SHARDS:
        raise ValueError(f"{printable(path)} stands for more than {MOST_SHARDS} files: name fewer at once")
    return list(itertools.islice(need("braceexpand").braceexpand(path), MOST_SHARDS))


@functools.lru_cache(maxsize=2 * WINDOW)  # a file is closed when it falls out and nobody reads it
def _opened(process: int, shard: Place) -> BinaryIO:
    """The shard, open for this process alone: after a fork, two would share its position."""
    return _open_here(shard)


def _open_here(shard: Place) -> BinaryIO:
    """The shard, on this machine, fetched if need be. Raises FatalSourceError if that fails."""
    try:
        if is_remote(shard.path):
            return open_cached(shard, open_remote)
        file = open_regular(shard.path)
        check_length(os.fstat(file.fileno()).st_size, shard)
        return file
    except (OSError, ValueError) as error:
        raise FatalSourceError(str(error)) from error
