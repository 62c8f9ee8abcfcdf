"""What the statistical checks find, how often, and how seldom they cry wolf."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import ssdcore as ssd
from ssdcore import _verify
from ssdcore.testing import PROCESS_CHECKS
from ssdcore.testing._gaussian_checks import SAMPLES
from ssdcore.testing._report import FALSE_ALARM
from ssdcore.testing._run import run_process_checks

SAMPLING = tuple(check for check in PROCESS_CHECKS if check.name == "sampling")
RUNS = 24
# Bounds of one run of the check: mean, variance and spectral norm, for each of two pairs of times.
BOUNDS = 6


class Deviating(ssd.LinearDiffusion):
    """Posteriors with one mode's variance multiplied, or its mean shifted by some of its standard deviations."""

    variance = 1.0
    shift = 0.0

    def posterior(self, x_t: Any, clean_s: Any, s: int, t: int, eta: float = 1.0, **options: Any) -> ssd.Gaussian:
        law = super().posterior(x_t, clean_s, s, t, eta=eta, **options)
        values, modes = np.linalg.eigh(law.covariance.as_matrix())
        shape = law.covariance.shape
        mean = law.mean + self.shift * math.sqrt(values[-1]) * modes[:, -1].reshape(shape)
        values[-1] *= self.variance
        return ssd.Gaussian(mean, ssd.Covariance.dense((modes * values) @ modes.T, shape))


def found(monkeypatch: pytest.MonkeyPatch, **deviation: float) -> int:
    """In how many of the runs, each with another seed, the check fails."""
    for name, value in deviation.items():
        monkeypatch.setattr(Deviating, name, value)
    levels = ssd.ResolutionSchedule.convex(30, 2)
    proc = Deviating.resize((6, 4), ssd.NoiseSchedule.linear(30), levels)
    reports = (run_process_checks(proc, np, "float64", None, 3, seed, {}, checks=SAMPLING) for seed in range(RUNS))
    return sum(not report.passed for report in reports)


def test_power_is_what_the_bounds_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The docstring's figures, from the bounds themselves, for n = 24 values."""
    n = 24
    x, x_power = math.log(2 * n / FALSE_ALARM), math.log(100)
    allowed = 2 * math.sqrt(x / SAMPLES) + 2 * x / SAMPLES
    least_factor = (1 + allowed) / (1 - 2 * math.sqrt(x_power / SAMPLES))
    least_shift = (math.sqrt(2 * x) + math.sqrt(2 * x_power)) / math.sqrt(SAMPLES)
    assert least_factor < 1.26
    assert least_shift < 0.16
    # 99 in 100 and more are found: of 24, two misses have a probability of 2 per cent at most
    assert found(monkeypatch, variance=least_factor) >= RUNS - 2
    assert found(monkeypatch, variance=1.0, shift=least_shift) >= RUNS - 2


def test_what_is_right_raises_no_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(monkeypatch, variance=1.0, shift=0.0) == 0


def test_false_alarms_of_a_whole_verify_are_below_one_in_a_million() -> None:
    """Every process, library and dtype that there may be: each bound is broken by chance with FALSE_ALARM at most."""
    dtypes = 4
    runs = len(_verify.shipped_processes()) * len(_verify.BACKENDS) * dtypes
    assert runs * BOUNDS * FALSE_ALARM < 1e-6
    proc = _verify.shipped_processes()["resize, matched"]
    (row,) = run_process_checks(proc, np, "float64", None, 3, 0, {}, checks=SAMPLING).rows
    assert row.count == BOUNDS
