"""Which times a chain visits: uniform in time, uniform in log-SNR, or chosen by the exact error at full size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from ssdcore._arrays import Shape
from ssdcore._gains import innovation_gain
from ssdcore.oracle._law import as_covariance
from ssdcore.schedules import NoiseSchedule

Spacing = Literal["time", "log_snr"]
SPACINGS: tuple[Spacing, ...] = ("time", "log_snr")

_MAX_SWEEPS = 200
_LEAST_GAIN = 1e-4  # relative gain of a sweep below which the search stops
_MAX_VARIANCES = 256  # the search weighs this many groups of equal or neighbouring variances


def sampling_times(
    noise: NoiseSchedule, steps: int, spacing: Spacing = "time", required: Sequence[int] = ()
) -> tuple[int, ...]:
    """`steps` increasing times of 1 … T with T among them, uniform in time or in the log-SNR of `noise`.

    Times are whole numbers: where rounding makes two equal, the nearest free one is taken. Raises ValueError for more
    steps than T, or fewer than T and the required times need.

    Args:
        required: times that must be among them (the starts of the levels, where the size changes); the nearest of
            the others make room
    """
    total = noise.steps
    if spacing not in SPACINGS:
        raise ValueError(f"spacing: expected one of {', '.join(SPACINGS)}, got {spacing!r}")
    needed = sorted({total, *(int(t) for t in required)})
    if needed[0] < 1 or needed[-1] > total:
        raise ValueError(f"required times must be within 1 … {total}, got {list(required)}")
    if steps > total:
        raise ValueError(f"steps = {steps}: the process has only {total}; take at most that many")
    if steps < len(needed):
        raise ValueError(
            f"steps = {steps}: the chain must pass {len(needed)} times, {needed} (the last and those where the size "
            f"changes); take at least {len(needed)} steps"
        )
    if spacing == "time":
        wanted = np.linspace(1, total, steps) if steps > 1 else np.array([float(total)])
    else:
        log_snr = noise.log_snr()
        finite = np.isfinite(log_snr)
        goals = np.linspace(log_snr[0], log_snr[finite][-1], steps) if steps > 1 else log_snr[finite][-1:]
        wanted = np.interp(-goals, -log_snr[finite], np.arange(1, total + 1)[finite])
    free = np.ones(total + 1, dtype=bool)
    free[0] = False
    chosen: set[int] = set()
    for goal in wanted[::-1]:
        candidates = np.flatnonzero(free)
        t = int(candidates[np.argmin(np.abs(candidates - round(goal)))])
        free[t] = False
        chosen.add(t)
    for t in needed:
        if t not in chosen:
            chosen.remove(min(chosen.difference(needed), key=lambda other: (abs(other - t), other)))
            chosen.add(t)
    return tuple(sorted(chosen))


def optimal_times(shape: Shape, noise: NoiseSchedule, covariance: Any, steps: int, eta: float = 1.0) -> tuple[int, ...]:
    """`steps` times, T among them, that make the exact error of the full-size chain on N(·, C) small.

    Coordinate descent from the better of the two uniform spacings: each time in turn takes the best whole number
    between its neighbours, until a sweep over all gains less than 1e-4 of the error. A local optimum: no single time
    can be moved with more than that gain. Where the spectrum has more than 256 distinct variances, neighbouring ones
    are averaged in the search (not in any error that is reported). Raises ValueError for more steps than T.
    """
    matrix = as_covariance(covariance, shape)
    variances, weights = _spectrum(matrix)
    alpha, sigma = noise.alpha, noise.sigma
    search = _TimeSearch(alpha, sigma, variances, weights, eta)
    starts = [sampling_times(noise, steps, spacing) for spacing in SPACINGS]
    times = min((list(start) for start in starts), key=search.error)
    error = search.error(times)
    for _ in range(_MAX_SWEEPS):
        times = search.sweep(times)
        before, error = error, search.error(times)
        if error >= (1 - _LEAST_GAIN) * before:
            break
    return tuple(times)


def _spectrum(covariance: Any) -> tuple[np.ndarray, np.ndarray]:
    """Variances in rising order and how many modes have each, neighbours averaged down to a few hundred groups."""
    values, multiplicity, rest, others = covariance.eigenvalues
    spectrum = np.sort(np.concatenate([np.repeat(values.reshape(-1), multiplicity), np.full(others, rest)]))
    groups = np.array_split(spectrum, min(_MAX_VARIANCES, len(spectrum)))
    return np.array([g.mean() for g in groups]), np.array([float(len(g)) for g in groups])


class _TimeSearch:
    """Error of a full-size chain as a function of its times: each mode's variance p goes through p_s = g² p_t + v."""

    def __init__(
        self, alpha: np.ndarray, sigma: np.ndarray, variances: np.ndarray, weights: np.ndarray, eta: float
    ) -> None:
        self.alpha, self.sigma, self.variances, self.weights, self.eta = alpha, sigma, variances, weights, eta

    def step(self, s: Any, t: Any) -> tuple[np.ndarray, np.ndarray]:
        """(g², v) of the step t → s, arrays (..., modes) for times s, t that broadcast."""
        s, t = np.asarray(s)[..., None], np.asarray(t)[..., None]
        alpha_s, sigma_s, alpha_t, sigma_t = self.alpha[s], self.sigma[s], self.alpha[t], self.sigma[t]
        response = alpha_t * self.variances / (alpha_t**2 * self.variances + sigma_t**2)
        carried = innovation_gain(np, self.eta, alpha_s, sigma_s, alpha_t, sigma_t)
        gain = alpha_s * response + carried * (1 - alpha_t * response)
        return gain**2, sigma_s**2 - (sigma_t * carried) ** 2 + np.zeros_like(gain)

    def _distance(self, p: np.ndarray) -> np.ndarray:
        return ((np.sqrt(self.variances) - np.sqrt(p)) ** 2) @ self.weights

    def _start(self, t: int) -> np.ndarray:
        return self.alpha[t] ** 2 * self.variances + self.sigma[t] ** 2

    def error(self, times: Sequence[int]) -> float:
        p = self._start(times[-1])
        for s, t in reversed(list(pairwise([0, *times]))):
            gain, noise = self.step(s, t)
            p = gain * p + noise
        return float(self._distance(p))

    def sweep(self, times: Sequence[int]) -> list[int]:
        """Every time but the last moved, from the noisy end down, to its best place between its neighbours."""
        grid = [0, *times]
        # below[k]: the map p_0 = gain · p + noise from time grid[k] on, as the chain stands.
        below = [(np.ones_like(self.variances), np.zeros_like(self.variances))]
        for s, t in pairwise(grid):
            gain, noise = self.step(s, t)
            rest_gain, rest_noise = below[-1]
            below.append((rest_gain * gain, rest_gain * noise + rest_noise))
        p = self._start(grid[-1])
        for k in range(len(grid) - 2, 0, -1):
            low, high = grid[k - 1], grid[k + 1]
            candidates = np.arange(low + 1, high)
            gain, noise = self.step(candidates, high)
            at = gain * p + noise
            gain, noise = self.step(low, candidates)
            rest_gain, rest_noise = below[k - 1]
            best = int(np.argmin(self._distance(rest_gain * (gain * at + noise) + rest_noise)))
            grid[k], p = int(candidates[best]), at[best]
        return grid[1:]
