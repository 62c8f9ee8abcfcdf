"""python -m ssdcore_torch.prepare: pack images, once, into tar shards that training reads.

Each recipe is one command::

    python -m ssdcore_torch.prepare celeba   --from img_align_celeba --size 64  --out celeba64
    python -m ssdcore_torch.prepare celeba   --from img_align_celeba --size 128 --out celeba128
    python -m ssdcore_torch.prepare celebahq --from CelebA-HQ-img    --size 256 --out celebahq256
    python -m ssdcore_torch.prepare imagenet --from Imagenet64_train --size 64  --out imagenet64
    python -m ssdcore_torch.prepare folder   --from my_pictures      --size 64  --out my_shards
    python -m ssdcore_torch.train --preset celeba64 --data celeba64

A shard is written under another name and renamed when it is whole, the manifest after all shards: what has its name is
complete, and the same command continues after a crash with the shard that is missing. The shards are in WebDataset's
layout: KEY.png, lossless, and KEY.cls with the class where there are classes; the images in an order drawn from --seed.

CelebA's training split, without validation and test: make a list of its files first,

::

    awk '$2 == 0 {print $1}' list_eval_partition.txt > train.txt

and add --list train.txt. The paper reports the Fréchet distance of 50,000 samples in Inception's features:
`python -m ssdcore_torch.evaluate RUN --data SHARDS --n 50000 --features INCEPTION_WEIGHTS`, the weights named by path.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import logging
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ssdcore.files import open_regular, read_bytes, unlimited_pixels, write_atomically
from ssdcore_torch.checkpoint import digest
from ssdcore_torch.data._folders import FolderSource
from ssdcore_torch.data._images import FEW, LEAST_READ, check_share
from ssdcore_torch.data._manifest import INDEX, MANIFEST, MOST_MANIFEST, Index, Manifest, Shard
from ssdcore_torch.data._pixels import reason, to_channels
from ssdcore_torch.data._reading import Failure
from ssdcore_torch.data._shards import open_shards, scan
from ssdcore_torch.data._sources import FatalSourceError, Source, need
from ssdcore_torch.locks import lock_folder, unlock_folder
from ssdcore_torch.recipes import RECIPES, DownsampledImageNet, Recipe
from ssdcore_torch.text import printable
from ssdcore_torch.workers import check_workers, in_workers

log = logging.getLogger("ssdcore_torch")

PREPARING = "preparing.json"
"""What is being made here, until the manifest takes its place."""

CHUNK = 32

CHANNELS_OF_OLD = 3  # of shards whose manifest does not say

EVALUATION = (
    "Evaluation as in the paper takes 50,000 samples and the features of the Inception network, whose weights you name "
    "by path: python -m ssdcore_torch.evaluate RUN --data SHARDS --n 50000 --features INCEPTION_WEIGHTS."
)


class _Packer:
    """Row numbers to PNG files."""

    def __init__(self, source: Source, recipe: Recipe, size: int, channels: int) -> None:
        self.source, self.recipe, self.size, self.channels = source, recipe, size, channels

    def __call__(self, rows: np.ndarray) -> list[tuple[int, bytes | Failure]]:
        return [(int(row), self._pack(int(row))) for row in rows]

    def _pack(self, row: int) -> bytes | Failure:
        try:
            with self.source.open(row) as opened, unlimited_pixels():
                width, height = opened.size
                if why := self.recipe.check((width, height)):
                    return Failure(printable(self.source.name(row)), why, small=False)
                if min(width, height) < self.size:
                    why = f"is {width}×{height} pixels, smaller than size {self.size}"
                    return Failure(printable(self.source.name(row)), why, small=True)
                pixels = self.recipe.crop(to_channels(opened, self.channels), self.size)
        except FatalSourceError:
            raise
        except Exception as error:  # Pillow's readers raise many kinds on a broken file; the reason is kept
            return Failure(printable(self.source.name(row)), reason(error), small=False)
        file = io.BytesIO()
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[2:] == (1,) else pixels).save(file, format="PNG")
        return file.getvalue()


def fingerprint(source: Source) -> str:
    """SHA-256 of the names and sizes of the files that are read; of a source without files, of its name and length."""
    files = source.files
    digest = hashlib.sha256(f"{len(source)} {'' if files else source.source}".encode())
    for file in files:
        name = Path(os.path.relpath(file, source.source)).as_posix()
        digest.update(os.fsencode(f"\n{name} {file.stat().st_size if file.exists() else 'missing'}"))
    return digest.hexdigest()


def shard_rows(source: Source, per_shard: int, seed: int) -> list[np.ndarray]:
    """The row numbers in each shard: a permutation drawn from the seed, within each block where there are blocks."""
    random = np.random.default_rng(seed)
    ends = np.cumsum(source.blocks or (len(source),))
    blocks = [
        random.permutation(np.arange(end - count, end)) for end, count in zip(ends, source.blocks or (len(source),))
    ]
    rows = np.concatenate(blocks)
    return [rows[first : first + per_shard] for first in range(0, len(rows), per_shard)]


def prepare(
    recipe: str,
    folder: str | Path,
    size: int,
    out: Path,
    *,
    per_shard: int = 8192,
    seed: int = 0,
    workers: int | None = None,
    broken_share: float = 0.01,
    names: Sequence[str] | None = None,
    channels: int = 3,
) -> Manifest:
    """Write the shards of `folder` into `out`, or those still missing there, and last the manifest.

    What fails before a shard holds a picture leaves nothing behind.

    Args:
        recipe: a name in `RECIPES`
        folder: what it reads; "folder" reads whatever `ssdcore_torch.data.open_images` does
        size: height and width of the images
        per_shard: pictures of the input that go into a shard
        seed: of the order
        broken_share: share of the pictures that may be broken or too small; they are left out
        names: of the files to take, from `folder` on; None takes all
        channels: of the images: 1 (grey), 3 (RGB), 4 (RGBA)

    Raises:
        ValueError: If the input is not what the recipe reads, too much of it is broken, or `out` holds anything
            else.
        OSError: If `out` cannot be written.
    """
    need("webdataset")
    kind = RECIPES[recipe]
    source = kind.open(folder)
    if names is not None:
        if not isinstance(source, FolderSource):
            raise ValueError(f"--list chooses files of a folder, which --from {folder} is not: leave it out")
        source.keep(names)
    if not len(source):
        raise ValueError(f"--from {folder} holds no pictures")
    if source.size is not None and min(source.size) < size:
        raise ValueError(f"--from {folder}: its images are {source.size[0]} pixels high, smaller than --size {size}")
    made: dict[str, Any] = {"name": recipe, "inputs": len(source), "listing": fingerprint(source)}
    made |= {"per_shard": per_shard, "seed": seed}
    if channels != CHANNELS_OF_OLD:
        made["channels"] = channels
    plan = {"recipe": made, "size": size, "class_names": list(source.class_names)}
    new = not out.exists()
    with _held(out):
        done = _begin(out, plan)
        if done is not None:
            return done
        try:
            return _make(out, source, kind, size, channels, made, seed, per_shard, workers, broken_share)
        except ValueError:  # of the input: it takes another command, which must find nothing in its way
            if not _holds_pictures(out):
                _undo(out, new)
            raise


def _make(
    out: Path,
    source: Source,
    kind: Recipe,
    size: int,
    channels: int,
    made: dict[str, Any],
    seed: int,
    per_shard: int,
    workers: int | None,
    broken_share: float,
) -> Manifest:
    """The shards that are missing, and the manifest."""
    packer = _Packer(source, kind, size, channels)
    # The batches of ImageNet are unpacked pixels: processes would each hold a file, and have nothing to decode.
    in_one = len(source) <= FEW or isinstance(source, DownsampledImageNet)
    parts = shard_rows(source, per_shard, seed)
    paths = [out / f"shard-{k:06d}.tar" for k in range(len(parts))]
    missing = [(path, rows) for path, rows in zip(paths, parts) if not path.exists()]
    before = sum(len(rows) for path, rows in zip(paths, parts) if path.exists())
    chunks = [rows[first : first + CHUNK] for _, rows in missing for first in range(0, len(rows), CHUNK)]
    packed = itertools.chain.from_iterable(in_workers(packer, chunks, 0 if in_one else check_workers(workers)))
    bar = tqdm(total=len(source), initial=before, unit="image", disable=None, delay=1, dynamic_ncols=True)
    with bar:
        sound = _Sound(packed, broken_share, source.source, bar)
        for path, rows in missing:
            pictures = sound.take(len(rows))
            write_atomically(path, functools.partial(_write_shard, pictures=pictures, labels=source.labels))
    return _finish(out, paths, made, size, source, broken_share)


class _Sound:
    """The pictures that were packed; the others are named in the log and counted."""

    def __init__(self, packed: Iterator[tuple[int, bytes | Failure]], share: float, source: str, bar: Any) -> None:
        self.packed, self.share, self.source, self.bar = packed, share, source, bar
        self.read, self.broken = 0, dict[str, str]()

    def take(self, count: int) -> Iterator[tuple[int, bytes]]:
        """Those of the next `count`. Raises ValueError once too many are broken."""
        for row, found in itertools.islice(self.packed, count):
            self.read += 1
            self.bar.update()
            if isinstance(found, Failure):
                log.warning("skipped %s: %s", found.name, found.reason)
                self.broken[found.name] = found.reason
                check_share(len(self.broken), self.read, self.broken, self.share, self.source)
            else:
                yield row, found


def _write_shard(path: Path, pictures: Iterable[tuple[int, bytes]], labels: np.ndarray | None) -> None:
    with (
        open(path, "wb") as file,
        need("webdataset").TarWriter(file, encoder=False, mtime=0, user="", group="", mode=0o644) as tar,
    ):
        for row, png in pictures:
            label = {} if labels is None else {"cls": str(int(labels[row])).encode()}
            tar.write({"__key__": f"{row:09d}", "png": png, **label})


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """Make `out`, and keep other processes from preparing there. Raises ValueError if another does, or for a file."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: choose a new folder")
    out.mkdir(parents=True, exist_ok=True)
    try:
        lock = lock_folder(out.resolve())
    except BlockingIOError as error:
        raise ValueError(
            f"--out {out} is being prepared by another process: wait for it, or choose another folder"
        ) from error
    if lock is None:
        log.warning("%s is on a file system without locks: let no other process prepare there", out)
    try:
        yield
    finally:
        unlock_folder(lock)


def _begin(out: Path, plan: dict[str, Any]) -> Manifest | None:
    """Make `out` ready for this plan; its manifest if all is done. Raises ValueError if something else is there."""
    found = there = None
    if (out / MANIFEST).exists():
        found = Manifest.from_json(read_bytes(out / MANIFEST, MOST_MANIFEST), str(out / MANIFEST))
        there = {"recipe": dict(found.recipe), "size": found.size, "class_names": list(found.class_names)}
    elif (out / PREPARING).exists():
        try:
            there = json.loads(read_bytes(out / PREPARING))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{out / PREPARING} is not readable ({printable(error)}): choose another --out") from error
        if there != plan and _is_plan(there) and not _holds_pictures(out):  # what was begun has come to nothing
            _undo(out, whole=False)
            there = None
    elif set(out.iterdir()) - set(_own_files(out, _PART)):
        raise ValueError(f"--out {out} is not empty: choose a new folder")
    for part in _own_files(out, _PART):  # of a process that was killed
        part.unlink()
    if there is None:
        write_atomically(out / PREPARING, lambda file: file.write_text(json.dumps(plan), encoding="utf-8"))
        return None
    if there != plan:
        changed = _differences(there, plan)
        raise ValueError(f"--out {out} was begun otherwise ({changed}): choose another folder, or remove that one")
    if found is not None:  # all is done, whenever the process that did it was killed
        (out / PREPARING).unlink(missing_ok=True)
    return found


def _is_plan(there: object) -> bool:
    """Whether this is what an unfinished preparation keeps, and not a file of somebody else's."""
    recipe = there.get("recipe") if isinstance(there, dict) else None
    return isinstance(recipe, dict) and {"name", "inputs", "listing"} <= recipe.keys()


_SHARD = r"shard-\d{6,}\.tar"
_PART = rf"\.({_SHARD}|{re.escape(PREPARING)}|{re.escape(INDEX)}|{re.escape(MANIFEST)})\.[0-9a-f]{{16}}\.tmp"


def _own_files(out: Path, pattern: str = rf"{_SHARD}|{_PART}") -> list[Path]:
    """Files with names that only this program gives; `_PART`: of files that a killed process was writing."""
    return [path for path in out.iterdir() if re.fullmatch(pattern, path.name) and path.is_file()]


def _holds_pictures(out: Path) -> bool:
    """Whether any shard here holds one: an empty tar is nothing but zeros."""
    for path in _own_files(out, _SHARD):
        with open_regular(path) as file:
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                return True
    return False


def _undo(out: Path, whole: bool) -> None:
    """Remove what was begun here; the folder, too, if `whole` and nothing else lies in it."""
    for path in [*_own_files(out), out / PREPARING]:
        path.unlink(missing_ok=True)
    if whole:
        with suppress(OSError):
            out.rmdir()


def _differences(there: object, plan: dict[str, Any]) -> str:
    """The settings that differ, in one line."""
    if not isinstance(there, dict):
        return "unreadable"
    recipe = there.get("recipe")
    old, new = {**there, **(recipe if isinstance(recipe, dict) else {})}, {**plan, **plan["recipe"]}
    names = [name for name in new if name not in ("recipe", "listing", "class_names") and old.get(name) != new[name]]
    return ", ".join(f"{name} {old.get(name)} instead of {new[name]}" for name in names) or "from other files"


def _finish(out: Path, paths: list[Path], made: dict[str, Any], size: int, source: Source, share: float) -> Manifest:
    """Read every shard back, and write what is in them."""
    shards, index = _read_back(paths)
    images = sum(shard.images for shard in shards)
    if not images:
        raise ValueError(f"none of the {len(source)} pictures of {source.source} is readable and large enough")
    skipped = len(source) - images
    if skipped > share * len(source) and len(source) >= LEAST_READ:
        raise ValueError(
            f"{skipped} of {len(source)} pictures of {source.source} are broken or too small, more than --broken-share "
            f"{share:g} allows"
        )
    return _write_manifest(out, made, size, source.class_names, skipped, shards, index)


def _read_back(paths: list[Path]) -> tuple[tuple[Shard, ...], Index]:
    shards, parts = [], []
    for path in tqdm(paths, desc="reading back", unit="shard", disable=None, delay=1, leave=False, dynamic_ncols=True):
        parts.append(scan(str(path))[1])
        shards.append(Shard(path.name, len(parts[-1].offsets), path.stat().st_size, digest(path)))
    return tuple(shards), Index.join([part for part in parts if len(part.offsets)] or parts)


def _write_manifest(
    out: Path,
    recipe: dict[str, Any],
    size: int,
    class_names: tuple[str, ...],
    skipped: int,
    shards: tuple[Shard, ...],
    index: Index,
) -> Manifest:
    packed = index.to_bytes()
    manifest = Manifest(recipe, size, class_names, skipped, shards, hashlib.sha256(packed).hexdigest())
    write_atomically(out / INDEX, lambda file: file.write_bytes(packed))
    write_atomically(out / MANIFEST, lambda file: file.write_text(manifest.to_json(), encoding="utf-8"))
    (out / PREPARING).unlink(missing_ok=True)
    return manifest


def index_shards(out: Path) -> Manifest:
    """Write the manifest of tar shards of another origin that lie in `out`, so that opening them reads nothing else.

    Raises:
        ValueError: If there are none, one is unsound, or there is a manifest.
    """
    if (out / MANIFEST).exists() or (out / PREPARING).exists():
        raise ValueError(
            f"--out {out} has been prepared: it has a manifest, or gets one from the command that began it"
        )
    if not out.is_dir() or not any(out.glob("*.tar")):
        raise FileNotFoundError(f"no such data: --out {out} holds no .tar files to index")
    source = open_shards(str(out))
    shards, index = _read_back([Path(shard.path) for shard in source.shards])
    return _write_manifest(out, {"name": "index"}, 0, source.class_names, 0, shards, index)


def check_shards(out: Path) -> Manifest:
    """Compare all shards in `out` with the manifest. Raises ValueError that names the first that differs."""
    if not (out / MANIFEST).is_file():
        raise FileNotFoundError(
            f"--out {out}: there is no {MANIFEST} in it; run the command that makes these shards again"
        )
    manifest = Manifest.from_json(read_bytes(out / MANIFEST, MOST_MANIFEST), str(out / MANIFEST))
    open_shards(str(out))  # the index, and every length
    for shard in tqdm(manifest.shards, desc="checking", unit="shard", disable=None, delay=1, dynamic_ncols=True):
        if digest(out / shard.name) != shard.sha256:
            raise ValueError(f"{out / shard.name} is not what was written: remove {MANIFEST} and it, and prepare again")
    return manifest
