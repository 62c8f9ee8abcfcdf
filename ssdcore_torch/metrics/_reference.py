"""Measuring images: features and spectra of a set, shared by ranks; reference sets kept in a cache."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ssdcore_torch.checkpoint import load_tensors, save_tensors
from ssdcore_torch.data import ImageSet, ImageStream
from ssdcore_torch.distributed import World
from ssdcore_torch.metrics._distances import Baseline, nearest_others, require_torchmetrics
from ssdcore_torch.metrics._features import Extractor
from ssdcore_torch.metrics._spectrum import radial_power
from ssdcore_torch.workers import default_workers

log = logging.getLogger("ssdcore_torch")

MANY = 1000  # images of a stream that are worth starting workers for

MOST = 50_000
"""Reference images measured at most, unless more are compared with: published FIDs take this many."""


@dataclass(frozen=True)
class Measured:
    """What is kept of n images.

    Attributes:
        features: (n, d) float32, on every rank, on its device
        power: `radial_power` of all of them
    """

    features: Tensor
    power: Tensor


def measure(batches: Iterable[Tensor], extractor: Extractor, world: World) -> Measured:
    """Measure the images (b, c, *size), uint8 or floats in [−1, 1], of this rank's batches together with the other
    ranks' batches.

    The features are in the order of the ranks. Raises ValueError, on all of them, if one has no images.
    """
    features, powers, count = [], [], 0
    for images in batches:
        images = images.to(world.device)
        features.append(extractor(images))
        powers.append(radial_power(images) * len(images))
        count += len(images)
    if world.any(not count):
        raise ValueError(f"expected at least one image per rank, got too few for {world.size}")
    total = world.gather(torch.stack(powers).sum(0, keepdim=True)).sum(0)
    joined = world.gather(torch.cat(features))
    return Measured(joined, total / len(joined))


@dataclass(frozen=True)
class Reference:
    """Real images to compare with, in a fixed random order, so that the first n are a sample of the data for any n.

    Attributes:
        features: (m, d) float32, on the device that the samples are compared on
        power: `radial_power` of all m
        data: the images, of which `indices` (m,) int64 are the measured ones
        about: what they are, as plain values for a report: number, size, SHA-256 of the pixels (on rank 0),
            extractor
    """

    features: Tensor
    power: Tensor
    data: ImageSet | ImageStream
    indices: np.ndarray
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.features)

    @functools.cached_property
    def baseline(self) -> Baseline:
        """How near each image comes to another: what `memorisation` judges by."""
        return nearest_others(self.features)

    @property
    def labels(self) -> Tensor | None:
        """(m,) int64, or None."""
        labels = self.data.labels
        return None if labels is None else torch.from_numpy(labels[self.indices])

    def images(self, rows: Tensor) -> Tensor:
        """(k, c, *size): the images whose features stand in these rows."""
        return torch.cat(list(image_batches(self.data, self.indices[rows.numpy()], len(rows))))


def image_batches(data: ImageSet | ImageStream, indices: np.ndarray, batch_size: int) -> Iterator[Tensor]:
    """The images of these numbers, in their order: (b, c, *size) on the CPU."""
    tasks = [(indices[first : first + batch_size], None) for first in range(0, len(indices), batch_size)]
    if isinstance(data, ImageSet):
        for chosen, _ in tasks:
            yield torch.from_numpy(data.images[chosen]).movedim(-1, 1)
    else:
        workers = default_workers() if len(indices) > MANY else 0
        for images, _ in data.read(tasks, workers):
            yield torch.as_tensor(images).permute(0, 3, 1, 2)


def open_reference(
    data: ImageSet | ImageStream,
    extractor: Extractor,
    *,
    world: World,
    most: int = MOST,
    cache: Path | None = None,
    batch_size: int = 64,
) -> Reference:
    """Measure up to `most` images of the data, or take their measures from the folder `cache`.

    What was kept is taken only if its description agrees in everything: the pixels' SHA-256, the number and order of
    the images, the extractor's fingerprint, the kind of device and torch's version. The ranks share the work; rank 0
    reads and writes the cache. A cache that cannot be written is named in the log, and costs only time.

    Raises:
        ImportError: If what compares features is not installed, before the work of measuring them.
    """
    require_torchmetrics()
    count = min(most, len(data))
    if count < 2:
        raise ValueError(f"{data.source} has {len(data)} images: expected 2 at least")
    indices = np.random.default_rng(0).permutation(len(data))[:count]
    about = _describe(data, indices, extractor, world, batch_size)
    file = None if cache is None else cache / f"{extractor.name}-{_digest(about)[:16]}.safetensors"
    kept = None
    if world.leader and file is not None:
        kept = _load(file, about)
    if world.any(kept is not None):
        empty = Measured(torch.empty(0, extractor.num_features), torch.empty(0, min(about["size"]) // 2).double())
        measured = _from_leader(kept, empty, world)
    else:
        share = indices[world.share(count).start : world.share(count).stop]
        batches = progress(image_batches(data, share, batch_size), len(share), "reference", world)
        measured = measure(batches, extractor, world)
        if world.leader and file is not None:
            _save(file, about, measured)
    return Reference(measured.features, measured.power, data, indices, about)


def cache_folder() -> Path:
    """Where commands keep reference measures: ssdcore in the user's cache folder ($XDG_CACHE_HOME, ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssdcore"


def progress(batches: Iterable[Tensor], total: int, what: str, world: World) -> Iterator[Tensor]:
    """The batches, with rank 0's share of `total` images as a bar on a terminal, if it takes more than 3 seconds."""
    with tqdm(
        total=total, desc=what, unit="image", delay=3, disable=None if world.leader else True, dynamic_ncols=True
    ) as bar:
        for images in batches:
            yield images
            bar.update(len(images))


def _describe(
    data: ImageSet | ImageStream, indices: np.ndarray, extractor: Extractor, world: World, batch_size: int
) -> dict[str, Any]:
    """What the measures depend on; the pixels are read by rank 0 alone, which keeps the cache."""
    digest = hashlib.sha256()
    if world.leader:
        for images in progress(image_batches(data, indices, batch_size), len(indices), "reading", world):
            digest.update(images.contiguous().numpy().data)
    return {
        "format": "ssdcore reference 2",
        "images": len(data),
        "measured": len(indices),
        "size": list(next(image_batches(data, indices[:1], 1)).shape[2:]),
        "pixels_sha256": digest.hexdigest(),
        "features": extractor.name,
        "fingerprint": extractor.fingerprint,
        "device": world.device.type,
        "torch": torch.__version__,
    }


def _digest(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _load(file: Path, about: dict[str, Any]) -> Measured | None:
    if not file.exists():
        return None
    try:
        tensors, metadata = load_tensors(file)
    except ValueError as error:
        log.warning("%s; measuring the reference images again", error)
        return None
    said = metadata.get("about") == json.dumps(about, sort_keys=True)
    if not said or set(tensors) != {"features", "power"} or len(tensors["features"]) != about["measured"]:
        log.warning("%s does not hold what its name says; measuring the reference images again", file)
        return None
    return Measured(**tensors)


def _save(file: Path, about: dict[str, Any], measured: Measured) -> None:
    tensors = {"features": measured.features, "power": measured.power}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(file, tensors, {"about": json.dumps(about, sort_keys=True)})
    except OSError as error:
        log.warning("the reference's features cannot be kept for the next time: %s", error)


def _from_leader(kept: Measured | None, empty: Measured, world: World) -> Measured:
    """What rank 0 has kept, on every rank; `empty` has its kind and no rows."""
    features = world.gather((empty.features if kept is None else kept.features).to(world.device))
    power = world.gather(empty.power if kept is None else kept.power[None])
    return Measured(features, power[0])
