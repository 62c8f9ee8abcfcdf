"""Distances between two sets of features: Fréchet, kernel, precision and recall, nearest neighbours.

All take features (n, d) of any floating dtype, compute in float64 on the features' device, and are symmetric under
permutations of either set.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ssdcore_torch.metrics._features import EXTRA

CHUNK = 1 << 23  # distances held at once: 64 MiB of float64
ALONE: dict[str, Any] = {"sync_on_compute": False}  # or torchmetrics would add up what several ranks already share
NEIGHBOURS = 3  # k of precision and recall, as in the paper


class _Given(nn.Module):
    """The feature extractor of metrics that are fed with features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def require_torchmetrics() -> None:
    """Raises ImportError, naming what to install, without torchmetrics."""
    _torchmetrics("fid")


def _torchmetrics(module: str) -> ModuleType:
    try:
        return importlib.import_module(f"torchmetrics.image.{module}")
    except ImportError as error:
        raise ImportError(f"the Fréchet and kernel distances need torchmetrics: {EXTRA}") from error


def frechet_distance(samples: Tensor, reference: Tensor) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) of the sets' means and covariances: FID, in whatever features.

    It has a bias that falls as 1/n, so only figures of the same n compare: `figures` refuses others. (torchmetrics'
    FrechetInceptionDistance; Heusel et al., 2017.) Raises ValueError for fewer than two of either.
    """
    samples, reference = _check(samples, reference, least=2)
    metric = _torchmetrics("fid").FrechetInceptionDistance(_Given(samples.shape[1]), **ALONE).to(samples.device)
    metric.update(reference, real=True)
    metric.update(samples, real=False)
    return max(0.0, metric.compute().item())  # below zero by rounding alone


def kernel_distance(
    samples: Tensor, reference: Tensor, *, subsets: int = 100, subset_size: int | None = None, seed: int = 0
) -> tuple[float, float]:
    """(mean, standard deviation) over random subsets of the squared MMD with the kernel (⟨x, y⟩/d + 1)³: KID.

    Unbiased at any n, and below zero as often as above it between sets of one law. (torchmetrics'
    KernelInceptionDistance; Bińkowski et al., 2018.)

    Args:
        subset_size: 1000, as in the paper, or half of the smaller set if that is less

    Raises:
        ValueError: For fewer than four of either.
    """
    samples, reference = _check(samples, reference, least=4)
    size = min(1000, len(samples) // 2, len(reference) // 2) if subset_size is None else subset_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it keeps the features, which is what it is given
        metric = _torchmetrics("kid").KernelInceptionDistance(_Given(samples.shape[1]), subsets, size, **ALONE)
    metric = metric.to(samples.device)
    metric.update(reference, real=True)
    metric.update(samples, real=False)
    with torch.random.fork_rng(devices=[]):  # it draws the subsets from the CPU's global generator
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return mean.item(), deviation.item()


def precision_recall(samples: Tensor, reference: Tensor, k: int = NEIGHBOURS) -> tuple[float, float]:
    """(precision, recall): shares of the samples within the reference's manifold, and of the reference within theirs.

    A set's manifold is the union of balls around its points, each reaching to the point's k-th nearest neighbour in the
    set. (Kynkäänniemi et al., "Improved precision and recall metric", 2019, equations 1–3.) Both depend on n and k.

    Raises:
        ValueError: Unless both sets have more than k points.
    """
    if k < 1:
        raise ValueError(f"precision and recall: expected k >= 1, got {k}")
    samples, reference = _check(samples, reference, least=k + 1)
    return _covered(samples, reference, k), _covered(reference, samples, k)


def _covered(points: Tensor, manifold: Tensor, k: int) -> float:
    radii = torch.cat([d.kthvalue(k).values for d in _distances(manifold, manifold, leave_out=True)])
    return torch.cat([(d <= radii).any(1) for d in _distances(points, manifold)]).double().mean().item()


@dataclass(frozen=True)
class Baseline:
    """How near real images come to training images that are not the same image.

    Attributes:
        distances: (m,) float64, finite, of those that have such a neighbour
        duplicates: how many of the real images are some other training image again: they say nothing of how near
            others come, and with them the baseline would fall to zero
    """

    distances: Tensor
    duplicates: int = 0


@dataclass(frozen=True)
class Memorisation:
    """How near samples come to training images, measured by how near other real images come.

    Attributes:
        neighbours: (n,) int64, the nearest training image of each sample
        distances: (n,) float64 to it
        baseline: the same of real images; where none is left, all samples count as copies: the alarm is raised
    """

    neighbours: Tensor
    distances: Tensor
    baseline: Baseline

    @property
    def ratios(self) -> Tensor:
        """(n,) distances over the baseline's median: near 0 for a copy."""
        known = self.baseline.distances
        return self.distances / known.median() if len(known) else torch.zeros_like(self.distances)

    @property
    def median_ratio(self) -> float:
        """1 where samples are as far from training images as real images are."""
        return self.ratios.median().item()

    @property
    def close_share(self) -> float:
        """Share of the samples that are nearer to a training image than 95 % of the baseline: 0.05 for real images."""
        known = self.baseline.distances
        return (self.distances <= _quantile(known, 0.05)).double().mean().item() if len(known) else 1.0


def memorisation(samples: Tensor, training: Tensor, baseline: Tensor | Baseline | None = None) -> Memorisation:
    """The nearest training image of every sample, with the distances to judge it by; see `Memorisation`.

    Args:
        baseline: how far real images are from the training images: (m,) of held-out ones, as `nearest` gives them,
            if there are any; None: `nearest_others` of the training images themselves
    """
    distances, neighbours = nearest(samples, training)
    if baseline is None:
        baseline = nearest_others(training)
    elif isinstance(baseline, Tensor):
        same = baseline <= same_within(training)
        baseline = Baseline(baseline[~same], int(same.sum()))
    return Memorisation(neighbours.cpu(), distances.cpu(), Baseline(baseline.distances.cpu(), baseline.duplicates))


def same_within(points: Tensor) -> float:
    """The distance up to which two feature vectors are of one image: a ten-thousandth of the points' spread, which is
    more than rounding makes of an image that is measured twice."""
    points, _ = _check(points, points, least=1)
    return 1e-4 * (points - points.mean(0)).square().sum(1).mean().sqrt().item()


def _quantile(values: Tensor, share: float) -> Tensor:
    """As `torch.quantile`, which takes 16 million values at most."""
    ordered = values.sort().values
    place = share * (len(ordered) - 1)
    low, high = ordered[int(place)], ordered[min(int(place) + 1, len(ordered) - 1)]
    return low.lerp(high, place - int(place))


def nearest(points: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """(distances (n,) float64, indices (n,) int64) of the nearest of `others` to each of the points."""
    return _least(_distances(*_check(points, others, least=1)))


def nearest_others(points: Tensor) -> Baseline:
    """The distance of each point to the nearest other one that is not the same (`same_within`)."""
    points, _ = _check(points, points, least=2)
    least = same_within(points)
    duplicates, found = 0, []
    for chunk in _distances(points, points, leave_out=True):
        same = chunk <= least
        duplicates += int(same.any(1).sum())
        found.append(chunk.masked_fill_(same, torch.inf).min(1).values)
    distances = torch.cat(found)
    return Baseline(distances[distances.isfinite()], duplicates)


def _least(distances: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    found = [chunk.min(1) for chunk in distances]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def _distances(points: Tensor, others: Tensor, leave_out: bool = False) -> Iterator[Tensor]:
    """Euclidean distances (chunk, m), chunk after chunk of `points`; `leave_out`: infinite from a point to itself."""
    rows = max(1, CHUNK // len(others))
    centre = others.mean(0)  # less rounding in |x|² + |y|² − 2⟨x, y⟩
    others = others - centre
    for first in range(0, len(points), rows):
        chunk = torch.cdist(points[first : first + rows] - centre, others)
        if leave_out:
            chunk.diagonal(first).fill_(torch.inf)
        yield chunk


@dataclass(frozen=True)
class ClassBalance:
    """How often each class is drawn.

    Attributes:
        counts: (classes,) int64: samples whose nearest reference image has this class
        expected: (classes,) int64: the same of the reference images, each without itself
        chi2: χ² = Σ (counts − expected)²/(counts + expected), `degrees` degrees of freedom if both are of one law
        p_value: the probability of a χ² as large or larger, then
    """

    counts: Tensor
    expected: Tensor
    chi2: float
    degrees: int
    p_value: float


def class_balance(samples: Tensor, reference: Tensor, labels: Tensor) -> ClassBalance:
    """Compare the classes of as many samples as reference images, classified by the nearest reference image.

    The reference is classified in the same way, so that the classifier's own errors cancel in χ².

    Args:
        labels: (m,) int64 of the reference

    Raises:
        ValueError: For different numbers.
    """
    samples, reference = _check(samples, reference, least=2)
    _check_counts(len(samples), len(reference))
    if labels.shape != (len(reference),):
        raise ValueError(f"class balance: expected {len(reference)} labels, got the shape {tuple(labels.shape)}")
    classes = int(labels.max()) + 1
    counts, expected = (
        torch.bincount(labels[_least(_distances(points, reference, leave_out))[1].cpu()], minlength=classes)
        for points, leave_out in ((samples, False), (reference, True))
    )
    total = counts + expected
    met = total > 0
    chi2 = ((counts - expected)[met].double() ** 2 / total[met]).sum()
    degrees = int(met.sum()) - 1
    half = torch.tensor(degrees / 2, dtype=torch.float64)
    p_value = torch.special.gammaincc(half, chi2 / 2).item() if degrees else 1.0
    return ClassBalance(counts, expected, chi2.item(), degrees, p_value)


def figures(samples: Tensor, reference: Tensor) -> dict[str, float]:
    """Fréchet and kernel distance, precision and recall of n samples and n reference images, by name.

    Raises:
        ValueError: For different numbers of them: the figures depend on n.
    """
    _check_counts(len(samples), len(reference))
    kernel, deviation = kernel_distance(samples, reference)
    precision, recall = precision_recall(samples, reference)
    return {
        "frechet": frechet_distance(samples, reference),
        "kernel": kernel,
        "kernel_std": deviation,
        "precision": precision,
        "recall": recall,
    }


def _check_counts(samples: int, reference: int) -> None:
    if samples != reference:
        raise ValueError(
            f"{samples} samples against {reference} reference images: these figures depend on the number of images; "
            "compare as many of one as of the other"
        )


def _check(samples: Tensor, reference: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Both as float64."""
    for name, x in (("samples", samples), ("reference", reference)):
        if x.ndim != 2 or not x.is_floating_point():
            kind = str(x.dtype).removeprefix("torch.")
            raise ValueError(f"{name}: expected floating-point features (n, d), got {kind} {tuple(x.shape)}")
        if len(x) < least:
            raise ValueError(f"{name}: expected at least {least} feature vectors, got {len(x)}")
        if not x.isfinite().all():
            raise ValueError(f"{name}: some features are not finite; look at the images they come from")
    if samples.shape[1] != reference.shape[1]:
        raise ValueError(f"samples have {samples.shape[1]} features, the reference {reference.shape[1]}")
    return samples.double(), reference.double()
