"""Which times a chain visits, chosen by the exact error at full size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ssdcore._arrays import Shape, flushing
from ssdcore._gains import innovation_gain
from ssdcore.oracle._law import as_covariance
from ssdcore.placement import PLACEMENTS, spread_times
from ssdcore.schedules import NoiseSchedule

_MAX_SWEEPS = 200
_LEAST_GAIN = 1e-4  # relative gain of a sweep below which the search stops
_MAX_VARIANCES = 256  # the search weighs this many groups of equal or neighbouring variances


@flushing
def optimal_times(shape: Shape, noise: NoiseSchedule, covariance: Any, steps: int, eta: float = 1.0) -> tuple[int, ...]:
    """`steps` times, T among them, that make the exact error of the full-size chain on N(·, C) small.

    Coordinate descent from the better of the two uniform placements: each time in turn takes the best whole number
    between its neighbours, until a sweep over all gains less than 1e-4 of the error. A local optimum: no single time
    can be moved with more than that gain. Where the spectrum has more than 256 distinct variances, neighbouring ones
    are averaged in the search (not in any error that is reported). Raises ValueError for more steps than T.
    """
    matrix = as_covariance(covariance, shape)
    variances, weights = _spectrum(matrix)
    alpha, sigma = noise.alpha, noise.sigma
    search = _TimeSearch(alpha, sigma, variances, weights, eta)
    starts = [spread_times(noise, steps, placement) for placement in PLACEMENTS]
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
