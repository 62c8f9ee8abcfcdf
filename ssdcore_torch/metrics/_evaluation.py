"""Evaluating samples, from a network or from elsewhere, against a reference."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import ssdcore as ssd
from ssdcore_torch.denoisers import Predictor
from ssdcore_torch.distributed import World
from ssdcore_torch.metrics._distances import (
    ClassBalance,
    Memorisation,
    class_balance,
    figures,
    memorisation,
    nearest,
)
from ssdcore_torch.metrics._features import Extractor
from ssdcore_torch.metrics._reference import Measured, Reference, measure, progress
from ssdcore_torch.sampling import generate, to_bytes
from ssdcore_torch.text import printable

log = logging.getLogger("ssdcore_torch")


@dataclass(frozen=True)
class Evaluation:
    """n samples against the first n images of a reference, and against all of it for memorisation.

    Attributes:
        figures: by name: those of `metrics.figures`, "nearest_ratio" and "close_share" of `Memorisation`, and
            "detail_ratio", the samples' power over the data's in the upper half of the spatial frequencies
        spectrum_ratio: the samples' `radial_power` over the data's, by frequency
        memorisation: neighbours are rows of the reference
        classes: None where the reference has no labels
    """

    n: int
    figures: dict[str, float]
    spectrum_ratio: Tensor
    memorisation: Memorisation
    classes: ClassBalance | None


def evaluate(samples: Measured, reference: Reference, *, held_out: Tensor | None = None) -> Evaluation:
    """Compare measured samples with a reference on the same device.

    Args:
        held_out: features of images that were not trained on, the baseline of `memorisation`

    Raises:
        ValueError: If the reference has fewer images than there are samples.
    """
    n = len(samples.features)
    check_count(n, reference)
    compared = reference.features[:n]
    judged_by = reference.baseline if held_out is None else nearest(held_out, reference.features)[0]
    near = memorisation(samples.features, reference.features, judged_by)
    _warn(near, "held-out" if held_out is not None else "real", reference)
    upper = slice(len(reference.power) // 2, None)
    found = figures(samples.features, compared) | {
        "nearest_ratio": near.median_ratio,
        "close_share": near.close_share,
        "detail_ratio": (samples.power[upper].sum() / reference.power[upper].sum()).item(),
    }
    labels = reference.labels
    classes = None if labels is None else class_balance(samples.features, compared, labels[:n])
    return Evaluation(n, found, samples.power / reference.power, near, classes)


def _warn(near: Memorisation, what: str, reference: Reference) -> None:
    """Say where the figures on copies rest on fewer images than they seem to."""
    if not len(near.baseline.distances):
        log.warning(
            "no %s image differs from all the others: how near samples may come cannot be told, so close_share is 1",
            what,
        )
    elif near.baseline.duplicates:
        log.warning(
            "%d %s images are training images of %s again: nearest_ratio and close_share are judged without them",
            near.baseline.duplicates,
            what,
            printable(reference.data.source),
        )


def check_count(n: int, reference: Reference) -> None:
    """Raises ValueError unless n samples can be compared with the reference."""
    if n < 4:
        raise ValueError(f"expected at least 4 samples, got {n}")
    if n > len(reference):
        raise ValueError(
            f"{n} samples against {len(reference)} reference images: the figures depend on n, so they take as many of "
            f"one as of the other; draw at most {len(reference)}, or give more data"
        )


class Samples:
    """This rank's share of samples, batch after batch as uint8 (b, c, *size), or floats in [−1, 1], kept in `images` as
    they pass.

    - share: their numbers
    - seconds: the time that making them took so far
    """

    def __init__(self, share: range, batches: Iterator[Tensor]) -> None:
        self.share, self.seconds = share, 0.0
        self._batches, self._parts = batches, list[Tensor]()

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            since = time.perf_counter()
            batch = next(self._batches, None)
            if batch is None:
                return
            self._parts.append(batch.cpu())  # which waits for the device
            self.seconds += time.perf_counter() - since
            yield batch

    @property
    def images(self) -> Tensor:
        return torch.cat(self._parts)


def draw(
    net: Predictor,
    process: ssd.LinearDiffusion,
    n: int,
    *,
    world: World,
    prior: ssd.Gaussian | None = None,
    seed: int = 0,
    batch_size: int = 64,
    labels: Tensor | None = None,
    floats: bool = False,
    **options: Any,
) -> Samples:
    """This rank's share of n samples, drawn as they are asked for.

    Sample i is a function of the seed and i, and up to rounding the same on any number of ranks.

    Args:
        labels: (n,) the class of each
        floats: as floats in [−1, 1], and not as bytes: as the data they are compared with
        options: of `generate`: steps, sampler, eta, placement, times, guidance, residuals, channels
    """
    share = world.share(n)

    def batches() -> Iterator[Tensor]:
        for first in range(share.start, share.stop, batch_size):
            count = min(batch_size, share.stop - first)
            chosen = None if labels is None else labels[first : first + count]
            drawn = generate(
                net,
                process,
                count,
                first=first,
                seed=seed,
                prior=prior,
                batch_size=batch_size,
                labels=chosen,
                **options,
            )
            yield drawn.clamp(-1, 1) if floats else to_bytes(drawn)

    return Samples(share, batches())


def evaluate_network(
    net: Predictor,
    process: ssd.LinearDiffusion,
    reference: Reference,
    n: int,
    *,
    extractor: Extractor,
    world: World,
    prior: ssd.Gaussian | None = None,
    seed: int = 0,
    steps: int = 100,
    batch_size: int = 64,
    labels: Tensor | None = None,
    **options: Any,
) -> dict[str, float]:
    """The figures of `Evaluation` for n samples of a network: what training watches. The same on every rank.

    The ranks share the drawing; each computes the figures. The other arguments are those of `draw`.
    """
    check_count(n, reference)
    samples = draw(
        net,
        process,
        n,
        world=world,
        prior=prior,
        seed=seed,
        steps=steps,
        batch_size=batch_size,
        labels=labels,
        floats=reference.data.floats,
        **options,
    )
    measured = measure(progress(samples, len(samples.share), "evaluating", world), extractor, world)
    return evaluate(measured, reference).figures


def collect(samples: Samples, rows: Tensor, world: World) -> Tensor:
    """The samples of these numbers, in their order, on every rank: (k, c, *size)."""
    here = sorted(row - samples.share.start for row in rows.tolist() if row in samples.share)
    gathered = world.gather(samples.images[here])
    return gathered[rows.argsort().argsort()]
