"""Distances between sets of features and spectra of images: their laws, and what is refused."""

from __future__ import annotations

import builtins
import math
import sys
from typing import Any

import numpy as np
import perfect
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssdcore_torch import metrics
from ssdcore_torch.distributed import World

EPS = torch.finfo(torch.float64).eps
ALONE = World(0, 1, 0, torch.device("cpu"))
seeds = st.integers(0, 2**32 - 1)


def normal(seed: int, n: int, d: int = 6, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * scale + shift


def rotation(seed: int, d: int = 6) -> Tensor:
    return torch.linalg.qr(normal(seed, d, d))[0]


def with_moments(x: Tensor, mean: np.ndarray, covariance: np.ndarray) -> Tensor:
    """x, mapped to a set that has exactly this sample mean and unbiased covariance."""
    whitener = torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T)))
    colour = torch.linalg.cholesky(torch.from_numpy(covariance))
    return (x - x.mean(0)) @ whitener.T @ colour.T + torch.from_numpy(mean)


def rounding(*sets: Tensor) -> float:
    """What the roots of d eigenvalues near zero add to a Fréchet distance."""
    d = sets[0].shape[1]
    return d * math.sqrt(d * EPS) * sum(torch.cov(x.T).trace().item() for x in sets)


# ---- Fréchet distance


def test_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    moments = []
    for _ in range(2):
        root = rng.standard_normal((6, 6))
        moments.append((rng.standard_normal(6), root @ root.T + 0.1 * np.eye(6)))
    sets = [with_moments(normal(i, 50 + 30 * i), *m) for i, m in enumerate(moments)]
    expected = perfect.frechet(*moments[0], *moments[1])
    assert metrics.frechet_distance(*sets) == pytest.approx(expected, abs=rounding(*sets))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=seeds)
def test_laws_of_the_frechet_distance(seed: int) -> None:
    a, b = normal(seed, 40), normal(seed + 1, 30, scale=2.0, shift=0.5)
    distance, tolerance = metrics.frechet_distance(a, b), rounding(a, b)
    assert distance > 10 * tolerance
    assert metrics.frechet_distance(a, a.flip(0)) <= tolerance
    assert metrics.frechet_distance(b, a) == pytest.approx(distance, abs=tolerance)
    turn = rotation(seed)
    assert metrics.frechet_distance(a @ turn, b @ turn) == pytest.approx(distance, abs=tolerance)
    assert metrics.frechet_distance(3 * a, 3 * b) == pytest.approx(9 * distance, abs=9 * tolerance)
    assert metrics.frechet_distance(a, a + 2.0) == pytest.approx(6 * 2.0**2, abs=tolerance)


def test_the_frechet_floor_falls_as_one_over_n() -> None:
    floors = [
        np.mean([metrics.frechet_distance(normal(2 * i, n), normal(2 * i + 1, n)) for i in range(40)])
        for n in (50, 200)
    ]
    assert floors[0] / floors[1] == pytest.approx(4, rel=0.25)


# ---- kernel distance


def test_kernel_distance_is_the_unbiased_statistic() -> None:
    a, b = normal(0, 7), normal(1, 7, shift=0.3)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / 6 + 1) ** 3

    def within(x: Tensor) -> float:
        k = kernel(x, x)
        return float((k.sum() - k.trace()) / (7 * 6))

    expected = within(a) + within(b) - 2 * kernel(a, b).mean().item()
    mean, deviation = metrics.kernel_distance(a, b, subsets=2, subset_size=7)
    tolerance = 7**2 * EPS * kernel(a, b).abs().max().item()
    assert mean == pytest.approx(expected, abs=tolerance)
    assert deviation <= tolerance  # each subset is the whole set
    assert metrics.kernel_distance(a, b, subset_size=4, seed=1) == metrics.kernel_distance(a, b, subset_size=4, seed=1)
    assert metrics.kernel_distance(a, b, subset_size=4, seed=1) != metrics.kernel_distance(a, b, subset_size=4, seed=2)


def test_kernel_distance_is_unbiased_and_sees_a_difference() -> None:
    state = torch.random.get_rng_state()
    values = np.array(
        [metrics.kernel_distance(normal(2 * i, 40), normal(2 * i + 1, 40), subsets=5)[0] for i in range(60)]
    )
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean()) < 4 * error
    shifted = metrics.kernel_distance(normal(0, 40), normal(1, 40, shift=0.5), subsets=5)[0]
    assert shifted > 10 * error
    assert torch.equal(state, torch.random.get_rng_state())


# ---- precision and recall


def manifold_share(points: Tensor, manifold: Tensor, k: int) -> float:
    """Equations 1 and 2 of the paper, point by point."""
    inside = 0
    for p in points:
        for i, centre in enumerate(manifold):
            others = torch.cat([manifold[:i], manifold[i + 1 :]])
            radius = (others - centre).norm(dim=1).sort().values[k - 1]
            if (p - centre).norm() <= radius:
                inside += 1
                break
    return inside / len(points)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=seeds, k=st.integers(1, 4))
def test_precision_and_recall_are_those_of_the_paper(seed: int, k: int) -> None:
    a, b = normal(seed, 12, d=3), normal(seed + 1, 15, d=3, scale=2.0)
    expected = (manifold_share(a, b, k), manifold_share(b, a, k))
    assert metrics.precision_recall(a, b, k) == expected
    assert metrics.precision_recall(b, a, k) == expected[::-1]
    assert metrics.precision_recall(a.flip(0), b.roll(3, 0), k) == expected


def test_precision_and_recall_at_their_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    a = normal(0, 60)
    assert metrics.precision_recall(a, a.flip(0)) == (1.0, 1.0)
    assert metrics.precision_recall(a, a + 100) == (0.0, 0.0)
    two = torch.cat([normal(1, 30), normal(2, 30, shift=50.0)])
    precision, recall = metrics.precision_recall(normal(3, 60, scale=0.5), two)  # one of two modes
    assert precision > 0.9
    assert recall <= 0.5
    whole = metrics.precision_recall(a, two)
    monkeypatch.setattr("ssdcore_torch.metrics._distances.CHUNK", 60 * 7)  # 7 rows at a time, the last one shorter
    assert metrics.precision_recall(a, two) == whole


# ---- memorisation and classes


def test_memorisation_tells_copies_from_new_images() -> None:
    training, fresh = normal(0, 400), normal(1, 400)
    copies = metrics.memorisation(training[:50], training)
    assert torch.equal(copies.neighbours, torch.arange(50))
    assert copies.median_ratio < 1e-6
    assert copies.close_share == 1.0
    new = metrics.memorisation(fresh, training)
    assert new.median_ratio == pytest.approx(1, abs=0.1)
    assert new.close_share == pytest.approx(0.05, abs=0.03)
    assert new.distances[7].item() == pytest.approx((training - fresh[7]).norm(dim=1).min().item())
    half = metrics.memorisation(torch.cat([training[:200], fresh[:200]]), training)
    assert half.close_share == pytest.approx(0.525, abs=0.03)
    held_out, _ = metrics.nearest(normal(2, 300), training)
    assert metrics.memorisation(fresh, training, held_out).close_share == pytest.approx(0.05, abs=0.03)
    with pytest.raises(ValueError, match="at least 2"):
        metrics.nearest_others(training[:1])


@pytest.mark.parametrize(("count", "doubled"), [(20, 1), (40, 4), (400, 80), (40, 40), (40, 39)])
def test_the_alarm_for_copies_holds_where_training_images_are_double(count: int, doubled: int) -> None:
    training = normal(0, count)
    training = torch.cat([training, training[:doubled] + 1e-7 * normal(3, doubled)])  # measured twice: rounding differs
    copies = metrics.memorisation(training, training)
    assert copies.close_share == 1.0
    assert copies.median_ratio < 1e-4
    assert copies.baseline.duplicates == 2 * doubled
    new = metrics.memorisation(normal(1, 400), training)
    assert new.close_share < 0.3
    assert new.median_ratio == pytest.approx(1, abs=0.35)


def test_the_alarm_is_raised_where_nothing_is_left_to_judge_by() -> None:
    training = normal(0, 1).expand(8, -1)
    assert metrics.memorisation(training, training).close_share == 1.0
    found = metrics.memorisation(normal(1, 5), normal(0, 50), metrics.nearest(normal(0, 50), normal(0, 50))[0])
    assert found.baseline.duplicates == 50
    assert found.close_share == 1.0
    assert found.median_ratio == 0.0


def test_class_balance() -> None:
    centres = 20 * torch.eye(6, dtype=torch.float64)[:3]
    labels = torch.arange(300) % 3
    reference = centres[labels] + normal(0, 300)
    even = metrics.class_balance(centres[labels.flip(0)] + normal(1, 300), reference, labels)
    assert even.counts.tolist() == even.expected.tolist() == [100, 100, 100]
    assert (even.chi2, even.degrees, even.p_value) == (0.0, 2, 1.0)
    drawn = torch.tensor([0] * 150 + [1] * 150)
    lost = metrics.class_balance(centres[drawn] + normal(2, 300), reference, labels)
    assert lost.counts.tolist() == [150, 150, 0]
    assert lost.chi2 == pytest.approx(2 * 50**2 / 250 + 100)
    assert lost.p_value == pytest.approx(math.exp(-lost.chi2 / 2))  # χ² with two degrees is exponential
    line = torch.tensor([0.0, 1.0, 2.2, 1.1], dtype=torch.float64)[:, None]  # the last, of class 1, among class 0
    assert metrics.class_balance(line, line, torch.tensor([0, 0, 0, 1])).expected.tolist() == [2, 2]
    with pytest.raises(ValueError, match="300 samples against 200"):
        metrics.class_balance(reference, reference[:200], labels[:200])
    with pytest.raises(ValueError, match="expected 300 labels"):
        metrics.class_balance(reference, reference, labels[:200])


# ---- what is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.figures(normal(0, 20), normal(1, 21)), "20 samples against 21 reference images: .* as many"),
        (
            lambda: metrics.frechet_distance(normal(0, 20, d=5), normal(1, 20)),
            "samples have 5 features, the reference 6",
        ),
        (
            lambda: metrics.frechet_distance(normal(0, 1), normal(1, 20)),
            "samples: expected at least 2 feature vectors, got 1",
        ),
        (lambda: metrics.kernel_distance(normal(0, 20), normal(1, 3)), "reference: expected at least 4 .* got 3"),
        (lambda: metrics.precision_recall(normal(0, 3), normal(1, 20)), "samples: expected at least 4 .* got 3"),
        (lambda: metrics.precision_recall(normal(0, 9), normal(1, 9), k=0), "expected k >= 1, got 0"),
        (lambda: metrics.nearest(normal(0, 3), normal(1, 3) / 0), "reference: some features are not finite"),
        (
            lambda: metrics.nearest(normal(0, 3)[0], normal(1, 3)),
            r"floating-point features \(n, d\), got float64 \(6,\)",
        ),
        (lambda: metrics.nearest(torch.ones(2, 2).long(), normal(1, 3)), r"got int64 \(2, 2\)"),
    ],
)
def test_bad_features_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith(("torchmetrics", "efficientnet_lite0")):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    for name in [n for n in sys.modules if n.startswith(("torchmetrics", "efficientnet_lite0"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr("importlib.import_module", without)
    for call in (lambda: metrics.frechet_distance(normal(0, 9), normal(1, 9)), lambda: metrics.open_extractor("lite0")):
        with pytest.raises(ImportError, match=r'pip install "ssdcore\[evaluate\]"'):
            call()


# ---- spectra


def waves(frequency: int, amplitude: float, axis: int, size: int = 32) -> Tensor:
    """Images of one cosine, of random phases."""
    x = 2 * math.pi * frequency * torch.arange(size) / size
    phases = torch.linspace(0, 6, 24)[:, None]
    lines = 127.5 + amplitude * torch.cos(x + phases)
    shape = (24, 3, 1, size) if axis else (24, 3, size, 1)
    spread = lines[:, None, None] if axis else lines[:, None, :, None]
    return spread.expand(shape).expand(24, 3, size, size).round().to(torch.uint8)


@pytest.mark.parametrize("frequency", [3, 8, 13])
@pytest.mark.parametrize("axis", [0, 1])
def test_power_stands_at_its_frequency(frequency: int, axis: int) -> None:
    power = metrics.radial_power(waves(frequency, 100, axis))
    assert len(power) == 16
    assert power.argmax().item() == frequency - 1
    far = [f for f in range(1, 17) if abs(f - frequency) > 2]
    assert power[[f - 1 for f in far]].max() < 1e-3 * power.max()
    ratio = metrics.radial_spectrum_ratio(waves(frequency, 50, axis), waves(frequency, 100, axis))
    assert ratio[frequency - 1].item() == pytest.approx(0.25, rel=1 / 50)  # the images are rounded to bytes


def test_white_noise_is_flat_and_blur_lowers_detail() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (600, 3, 16, 24), generator=generator, dtype=torch.uint8)
    power = metrics.radial_power(noise)
    assert len(power) == 8
    # The variance of a pixel in [−1, 1]; the mean that each image loses is in no bin but the lowest two.
    expected = (256**2 - 1) / 12 / 127.5**2
    assert torch.allclose(power[2:], torch.full_like(power[2:], expected), rtol=0.05)
    blurred = torch.nn.functional.avg_pool2d(noise.float(), 3, 1, 1).round().to(torch.uint8)
    ratio = metrics.radial_spectrum_ratio(blurred, noise)
    assert ratio[0] > 0.7
    assert ratio[-3:].max() < 0.1
    assert torch.equal(metrics.radial_spectrum_ratio(noise, noise.flip(0)).round(decimals=9), torch.ones(8).double())
    with pytest.raises(ValueError, match="images of one size"):
        metrics.radial_spectrum_ratio(noise, noise[..., :16])
    with pytest.raises(ValueError, match=r"expected uint8 images .* got float32 \(600, 3, 16, 24\)"):
        metrics.radial_power(noise.float())
