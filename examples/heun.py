"""A second-order sampler of one's own, from public names alone: Heun's method of EDM, across changes of size.

Within a size the probability flow of x̄ = x/α against the noise-to-signal ratio r = σ/α is dx̄/dr = (x̄ − x̂)/r, and a
step of Heun's method (Karras et al., 2022, algorithm 1) takes the mean of the slopes at both of its ends. Where the
size changes, the state is drawn from the exact posterior at eta = 0.

On Gaussian data the best denoiser is known, so the law of what is drawn is computed exactly and compared with the data.

    python examples/heun.py
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

import ssdcore as ssd

Denoise = Callable[[np.ndarray, int, int], np.ndarray]
Normal = Callable[[tuple[int, ...]], np.ndarray]


def heun(
    denoise: Denoise, proc: ssd.LinearDiffusion, x: np.ndarray, normal: Normal, times: Sequence[int]
) -> np.ndarray:
    """x_0 from x_T = `x`: denoise(x_t, t, s) predicts the clean image at the size of s."""
    path = [0, *times]
    for s, t in zip(path[-2::-1], path[:0:-1]):
        clean = denoise(x, t, s)
        if s == 0:
            return clean
        if proc.stage(s) != proc.stage(t):
            x = proc.posterior(x, clean, s, t, eta=0.0).sample(normal(clean.shape))
            continue
        r_s, r_t = proc.sigma(s) / proc.alpha(s), proc.sigma(t) / proc.alpha(t)
        start = x / proc.alpha(t)
        slope = (start - clean) / r_t
        trial = start + (r_s - r_t) * slope
        slope_there = (trial - denoise(proc.alpha(s) * trial, s, s)) / r_s
        x = proc.alpha(s) * (start + (r_s - r_t) * (slope + slope_there) / 2)
    return x


def best_denoiser(proc: ssd.LinearDiffusion, covariance: np.ndarray) -> Denoise:
    """E[R_{0→s} x_0 | x_t] of data N(0, covariance): what a network would have to learn."""

    def denoise(x: np.ndarray, t: int, s: int) -> np.ndarray:
        r_s, r_t = proc.operator(0, s).as_matrix(), proc.operator(0, t).as_matrix()
        seen = proc.alpha(t) ** 2 * r_t @ covariance @ r_t.T + proc.sigma(t) ** 2 * np.eye(len(r_t))
        return x @ np.linalg.solve(seen, proc.alpha(t) * r_t @ covariance @ r_s.T)

    return denoise


def law(
    sampler: Callable[[np.ndarray, Normal], np.ndarray], proc: ssd.LinearDiffusion, covariance: np.ndarray
) -> np.ndarray:
    """Exact covariance of what a linear sampler draws: the response to each of the normal numbers that it takes."""
    last = proc.shape(proc.steps)[0]
    count = last + sum(proc.shape(t - 1)[0] for t in proc.size_changes)
    units, taken = np.eye(count), last

    def normal(shape: tuple[int, ...]) -> np.ndarray:
        nonlocal taken
        low, taken = taken, taken + shape[-1]
        return units[:, low:taken]

    r = proc.operator(0, proc.steps).as_matrix()
    x = sampler(proc.prior(covariance=r @ covariance @ r.T).sample(units[:, :last]), normal)
    return np.asarray(x.T @ x)


def main() -> list[dict[str, float]]:
    """Squared Fréchet error against the number of evaluations, first order and Heun."""
    noise = ssd.NoiseSchedule.from_log_snr(np.linspace(14, -9, 400))
    proc = ssd.LinearDiffusion.resize((16,), noise, ssd.ResolutionSchedule.thresholds([340, 380]))
    modes = ssd.Covariance.cosine((1 + np.arange(16)) ** -2.5)
    covariance = modes.as_matrix()
    denoise = best_denoiser(proc, covariance)
    root = modes.root(np.eye(16))

    def error(drawn: np.ndarray) -> float:
        middle = np.linalg.eigvalsh(root @ drawn @ root)
        return float(np.trace(covariance) + np.trace(drawn) - 2 * np.sqrt(np.maximum(middle, 0)).sum())

    rows = []
    print(f"{'evaluations':>12}{'first order':>14}{'Heun':>14}")
    for steps in (20, 40, 80):
        times = ssd.oracle.spread_times(proc.noise, steps, "log_snr", proc.size_changes)
        half = ssd.oracle.spread_times(proc.noise, steps // 2, "log_snr", proc.size_changes)
        first = ssd.oracle.sampler_error(proc, modes, times, eta=0.0)
        second = error(law(functools.partial(heun, denoise, proc, times=half), proc, covariance))
        rows.append({"evaluations": steps, "first": first, "heun": second})
        print(f"{steps:>12}{first:>14.6f}{second:>14.6f}")
    return rows


if __name__ == "__main__":
    main()
