"""What `python -m ssdcore_torch.prepare` says about the tar shards it wrote.

- manifest.json: format, recipe, size, counts, class names; of each shard its name, images, bytes and SHA-256
- index.npz: offsets, lengths: where in its shard each image's file lies, in bytes; labels, where there are any
- shard-000000.tar: …
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ssdcore_torch.text import printable

MANIFEST, INDEX = "manifest.json", "index.npz"
FORMAT = "ssdcore shards 1"

MOST_MANIFEST, MOST_INDEX = 2**28, 2**32
"""Bytes of either file that are read: for some million shards and some hundred million pictures."""

MOST_HEADER = 4096
"""Bytes that an array of the index takes besides its numbers."""


@dataclass(frozen=True)
class Shard:
    """A tar file of `images` pictures, `bytes` long."""

    name: str
    images: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of a folder of shards.

    Attributes:
        recipe: what made them: its name, and whatever else decides the pixels and their order
        size: height and width of the images; 0 where they differ
        class_names: names of the labels; empty without labels
        skipped: inputs that were broken or too small
        shards: in order
        index_sha256: of index.npz
    """

    recipe: Mapping[str, Any]
    size: int
    class_names: tuple[str, ...]
    skipped: int
    shards: tuple[Shard, ...]
    index_sha256: str

    @property
    def images(self) -> int:
        """Images in all shards."""
        return sum(shard.images for shard in self.shards)

    def to_json(self) -> str:
        """The text of manifest.json."""
        return json.dumps({"format": FORMAT, "images": self.images, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: bytes | str, where: str) -> Manifest:
        """Raises ValueError, naming `where`, for anything that `to_json` does not write."""
        try:
            values = json.loads(text)
            if values["format"] != FORMAT:
                raise ValueError(f"its format is {values['format']!r}, not {FORMAT!r}")
            shards = tuple(Shard(**shard) for shard in values["shards"])
            for shard in shards:
                # A name is joined to the manifest's own folder: nothing else may be read through it.
                if not isinstance(shard.name, str) or shard.name in ("", ".", "..") or set(shard.name) & set("/\\:"):
                    raise ValueError(f"{shard.name!r} is not a file name")
                if not (_is_count(shard.images) and _is_count(shard.bytes) and isinstance(shard.sha256, str)):
                    raise ValueError(f"{shard} has no such counts")
            if not isinstance(values["recipe"], dict) or not isinstance(values["class_names"], list):
                raise ValueError("its recipe or class_names is of another kind")
            manifest = cls(
                values["recipe"],
                values["size"],
                tuple(values["class_names"]),
                values["skipped"],
                shards,
                values["index_sha256"],
            )
            if not (
                _is_count(manifest.size) and _is_count(manifest.skipped) and isinstance(manifest.index_sha256, str)
            ):
                raise ValueError("its size, skipped or index_sha256 is of another kind")
            if not all(isinstance(name, str) for name in manifest.class_names):
                raise ValueError("its class_names are not names")
            if len({shard.name for shard in shards}) < len(shards):
                raise ValueError("it names a shard twice")
            if manifest.images != values["images"] or not manifest.images:
                raise ValueError(f"it says {values['images']} images, and its shards {manifest.images}")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{where} is not a manifest of shards ({type(error).__name__}: {printable(error)}): give the folder "
                "that `python -m ssdcore_torch.prepare` wrote"
            ) from error
        return manifest


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


@dataclass(frozen=True)
class Index:
    """Where images lie in their shards, in the order of the shards.

    Attributes:
        offsets, lengths: (n,) int64, in bytes, of the pictures' files
        labels: (n,) int64, or None
    """

    offsets: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray | None

    @classmethod
    def join(cls, parts: list[Index]) -> Index:
        """One index of the parts, one after the other; labels if all have them."""
        labels = [part.labels for part in parts if part.labels is not None]
        return cls(
            np.concatenate([part.offsets for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            np.concatenate(labels) if len(labels) == len(parts) else None,
        )

    def to_bytes(self) -> bytes:
        """The contents of index.npz."""
        file = io.BytesIO()
        if self.labels is None:
            np.savez(file, offsets=self.offsets, lengths=self.lengths)
        else:
            np.savez(file, offsets=self.offsets, lengths=self.lengths, labels=self.labels)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, manifest: Manifest, where: str) -> Index:
        """Raises ValueError, naming `where`, unless these are the bytes that the manifest speaks of."""
        if hashlib.sha256(data).hexdigest() != manifest.index_sha256:
            raise ValueError(f"{where} is not the index that its manifest speaks of: prepare the shards again")
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as packed:
                if any(info.file_size > 8 * manifest.images + MOST_HEADER for info in packed.infolist()):
                    raise ValueError(f"it unpacks to more than {manifest.images} pictures take")
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in ("offsets", "lengths", "labels") if name in arrays}
        except Exception as error:  # zip, header and memory errors alike
            raise ValueError(
                f"{where} is not an index of shards ({printable(error)}): prepare the shards again"
            ) from error
        wanted = (manifest.images,)
        if not {"offsets", "lengths"} <= found.keys() or any(
            x.shape != wanted or x.dtype != np.int64 for x in found.values()
        ):
            shown = ", ".join(f"{name} {x.dtype} {x.shape}" for name, x in found.items()) or "nothing"
            raise ValueError(f"{where}: expected offsets, lengths (and labels) int64 {wanted}, got {shown}")
        index = cls(found["offsets"], found["lengths"], found.get("labels"))
        ends = np.repeat([shard.bytes for shard in manifest.shards], [shard.images for shard in manifest.shards])
        if (
            (index.offsets < tarfile.BLOCKSIZE).any()
            or (index.lengths < 1).any()
            or (index.lengths > ends - index.offsets).any()
        ):
            raise ValueError(f"{where}: some pictures would lie outside their shards: prepare the shards again")
        return index
