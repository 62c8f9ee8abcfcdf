"""Tar shards in WebDataset's layout: files KEY.EXTENSION, of which a picture and perhaps a KEY.cls with its label.

An index holds the place of every picture in its shard, so that any one is a single read: it comes with the manifest of
`python -m ssdcore_torch.prepare`, or is made by reading through shards of another origin once. With it, the order can
be a pure function of (seed, step), and a resumed run starts in the middle of an epoch without reading what it has
passed. A reader of whole shards in sequence would have to replay them, and its order would hang on its workers.
Sequential reading is still what disks and object stores are good at. So `Order` permutes the shards and mixes only
`WINDOW` of them at a time, and a shard that is not on this machine is fetched whole, once an epoch, into a cache that
keeps two windows, the next one by a thread while the present one is trained on: data may be larger than the disk.
"""

from __future__ import annotations

import collections
import functools
import getpass
import glob
import hashlib
import io
import logging
import os
import queue
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import fsspec
import numpy as np
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from ssdcore_torch.data._manifest import INDEX, MANIFEST, Index, Manifest
from ssdcore_torch.data._order import WINDOW
from ssdcore_torch.data._sources import FatalSourceError, Source, check_labels, need

log = logging.getLogger("ssdcore_torch")

WAITS = (1.0, 4.0, 16.0, 64.0)
"""Seconds between attempts to fetch a shard."""


@dataclass(frozen=True)
class Place:
    """Where a shard is, and what is known of it.

    path    or URL
    bytes   its length, or None
    sha256  of its contents, or ""
    """

    path: str
    bytes: int | None
    sha256: str = ""


class ShardSource(Source):
    """The pictures of some tar files, here or on another machine.

    counts  pictures in each
    index   where they lie in it
    """

    def __init__(
        self,
        source: str,
        shards: Sequence[Place],
        counts: Sequence[int],
        index: Index,
        class_names: tuple[str, ...],
    ) -> None:
        check_labels(index.labels, class_names, source)
        self.source, self.shards, self.index = source, tuple(shards), index
        self.labels, self.class_names = index.labels, class_names
        self.blocks = tuple(counts)
        self.remote = any(is_remote(shard.path) for shard in self.shards)
        self.ends = np.cumsum(counts)

    def __len__(self) -> int:
        return len(self.index.offsets)

    def open(self, index: int) -> Image.Image:
        file = self._file(index)
        file.seek(int(self.index.offsets[index]))
        return Image.open(io.BytesIO(file.read(int(self.index.lengths[index]))))

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

    def _file(self, index: int) -> IO[bytes]:
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


def is_remote(path: str) -> bool:
    """Whether this is a URL."""
    return "://" in path


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
    pictures = any(
        entry.is_dir() or Path(entry.name).suffix.lower() in Image.registered_extensions() for entry in inside
    )
    return not pictures and any(name.endswith(".tar") for name in names)


def open_shards(path: str) -> ShardSource:
    """A folder with a manifest.json or with .tar files, a manifest.json, a .tar, or a pattern of them ({000..123}, *).

    Any of them may be a URL that fsspec reads (https://, s3://, gs://, …). Raises ValueError for shards that are not
    what they should be, naming the first; FileNotFoundError where there are none.
    """
    if path.startswith("pipe:"):
        raise ValueError(f"{path}: commands are not run; give the shards' URLs (s3://, gs://, https://, …) instead")
    if Path(path, MANIFEST).is_file():
        return _open_manifest(str(Path(path, MANIFEST)))
    if path.endswith(MANIFEST):
        return _open_manifest(path)
    shards = _expand(path)
    counts: list[int] = []
    parts: list[Index] = []
    bar = tqdm(shards, desc="reading shards", unit="shard", disable=None, delay=1, leave=False, dynamic_ncols=True)
    for shard in bar:
        parts.append(scan(shard))
        counts.append(len(parts[-1].offsets))
    empty = [shard for shard, count in zip(shards, counts) if not count]
    if empty:
        raise ValueError(f"{empty[0]} holds no pictures: expected files named KEY.jpg, KEY.png, … in it")
    unlabelled = [shard for shard, part in zip(shards, parts) if part.labels is None]
    if 0 < len(unlabelled) < len(shards):
        raise ValueError(f"{unlabelled[0]} holds no labels (KEY.cls) where other shards do: add or remove them")
    index = Index.join(parts)
    names = () if index.labels is None else tuple(str(k) for k in range(int(index.labels.max()) + 1))
    places = [Place(shard, None if is_remote(shard) else os.path.getsize(shard)) for shard in shards]
    return ShardSource(path, places, counts, index, names)


def scan(shard: str) -> Index:
    """The index of one shard, made by reading through it.

    Raises ValueError if it is no uncompressed tar, is cut short, or holds labels for some of its pictures only.
    """
    base_plus_ext = need("webdataset.tariterators").base_plus_ext
    suffixes = {suffix[1:] for suffix in Image.registered_extensions()}
    places: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        # A stream, read in sequence, where it is remote; else only the headers are read.
        with _open_stream(shard) as file, tarfile.open(fileobj=file, mode="r|" if is_remote(shard) else "r:") as tar:
            for member in tar:
                key, suffix = base_plus_ext(member.name)
                if key is None or not member.isreg():
                    continue
                if suffix.lower() in suffixes:
                    if key in places:
                        raise ValueError(f"{key} has several pictures")
                    places[key] = (member.offset_data, member.size)
                elif suffix.lower() == "cls":
                    content = tar.extractfile(member)
                    assert content is not None
                    labels[key] = _label(content.read(), member.name)
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise ValueError(f"{shard} is no sound uncompressed tar file of pictures: {error}") from error
    if labels and (without := [key for key in places if key not in labels]):
        raise ValueError(f"{shard}: {without[0]} has no label (.cls) where others have one: add or remove them")
    array = np.array(list(places.values()), dtype=np.int64).reshape(-1, 2)
    return Index(array[:, 0], array[:, 1], np.array([labels[key] for key in places], np.int64) if labels else None)


def _label(content: bytes, name: str) -> int:
    if not content.strip().isdigit():
        raise ValueError(f"{name}: expected a class number, got {content[:20]!r}")
    return int(content)


def _open_manifest(path: str) -> ShardSource:
    folder = path.rsplit("/", 1)[0] if is_remote(path) else str(Path(path).parent)
    manifest = Manifest.from_json(_read(path), path)
    index = Index.from_bytes(_read(f"{folder}/{INDEX}"), manifest, f"{folder}/{INDEX}")
    shards = [Place(f"{folder}/{shard.name}", shard.bytes, shard.sha256) for shard in manifest.shards]
    if not is_remote(folder):
        for shard in shards:
            _check_length(shard.path, shard)
    counts = [shard.images for shard in manifest.shards]
    source = ShardSource(folder, shards, counts, index, manifest.class_names)
    source.size = (manifest.size, manifest.size) if manifest.size else None
    return source


def _read(path: str) -> bytes:
    with _open_stream(path) as file:
        return file.read()


def _open_stream(path: str) -> IO[bytes]:
    try:
        return fsspec.open(path, "rb").open()
    except OSError:
        raise
    except Exception as error:  # every protocol has errors of its own, and some need a package of their own
        raise OSError(f"{path} cannot be read: {error}") from error


def _expand(path: str) -> list[str]:
    """The shards that a folder or a pattern means, in order."""
    if os.path.isdir(path):
        return sorted(str(file) for file in Path(path).glob("*.tar"))
    patterns = list(need("braceexpand").braceexpand(path))
    shards: list[str] = []
    for pattern in patterns:
        if not glob.has_magic(pattern):
            shards.append(pattern)
        elif is_remote(pattern):
            system, _ = fsspec.core.url_to_fs(pattern)
            shards += sorted(system.unstrip_protocol(found) for found in system.glob(pattern))
        else:
            shards += sorted(glob.glob(pattern))
    missing = [shard for shard in shards if not is_remote(shard) and not os.path.isfile(shard)]
    if missing or not shards:
        raise FileNotFoundError(f"no such data: {(missing or [path])[0]}; give tar shards that exist")
    return shards


@functools.lru_cache(maxsize=2 * WINDOW)  # a file is closed when it falls out and nobody reads it
def _opened(process: int, shard: Place) -> IO[bytes]:
    """The shard, open for this process alone: after a fork, two would share its position."""
    return _open_here(shard)


def _open_here(shard: Place) -> IO[bytes]:
    """The shard, on this machine, fetched if need be. Raises FatalSourceError if that fails."""
    try:
        if not is_remote(shard.path):
            _check_length(shard.path, shard)
            return open(shard.path, "rb")
        folder = _cache_folder()
        name = hashlib.sha256(f"{shard.path} {shard.sha256}".encode()).hexdigest()[:32]
        cached = folder / f"{name}.tar"
        with FileLock(f"{cached}.lock"):  # other workers and ranks want it, too
            if not cached.exists():
                _fetch(shard, cached)
            os.utime(cached)
            file = open(cached, "rb")  # noqa: SIM115
        _forget(folder)
        return file
    except (OSError, ValueError) as error:
        raise FatalSourceError(str(error)) from error


def _cache_folder() -> Path:
    """Where fetched shards are kept: $SSDCORE_CACHE, or a folder in that for temporary files."""
    chosen = os.environ.get("SSDCORE_CACHE")
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    folder = Path(chosen) if chosen else Path(tempfile.gettempdir(), f"ssdcore-shards-{user}")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _fetch(shard: Place, cached: Path) -> None:
    for left in cached.parent.glob(f"{cached.stem}.*.part"):  # by a process that was killed
        left.unlink(missing_ok=True)
    part = cached.with_suffix(f".{os.getpid()}.part")
    for wait in (*WAITS, None):
        try:
            digest = hashlib.sha256()
            with _open_stream(shard.path) as source, open(part, "wb") as target:
                while block := source.read(2**20):
                    digest.update(block)
                    target.write(block)
            _check_length(str(part), shard)
            if shard.sha256 and digest.hexdigest() != shard.sha256:
                raise ValueError(f"{shard.path} is not what its manifest says it was")
            part.replace(cached)
            return
        except Exception as error:  # every protocol has errors of its own
            if wait is None:
                raise OSError(f"{shard.path} cannot be fetched: {error}") from error
            log.warning("%s cannot be fetched (%s): trying again in %.0f s", shard.path, error, wait)
            time.sleep(wait)
        finally:
            part.unlink(missing_ok=True)


def _forget(folder: Path) -> None:
    """Remove all but the shards used last. One that is still open somewhere stays readable there."""
    used: list[tuple[float, Path]] = []
    for file in folder.glob("*.tar"):
        try:
            used.append((file.stat().st_mtime, file))
        except FileNotFoundError:
            continue  # another process was quicker
    for _, file in sorted(used)[: -2 * WINDOW]:
        file.unlink(missing_ok=True)


def _check_length(file: str, shard: Place) -> None:
    found = os.path.getsize(file)
    if shard.bytes is not None and found != shard.bytes:
        raise ValueError(
            f"{shard.path} is {found} bytes long, not {shard.bytes} as expected: cut short, or of another preparation"
        )
