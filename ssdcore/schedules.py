"""Noise levels and resolution levels over time t = 0 (clean) … T."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


def _positive_int(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{what} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{what} must be at least 1, got {value}")
    return int(value)


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Signal and noise levels of ``x_t = alpha[t] · (degraded x_0) + sigma[t] · noise``, t = 0 … T.

    alpha   float64 (T + 1,), alpha[0] = 1, not negative
    sigma   float64 (T + 1,), sigma[0] = 0, positive afterwards

    Build one with `linear`, `cosine`, `from_betas` or `from_log_snr` (all variance preserving, alpha² + sigma² = 1), or
    from two arrays of your own. Raises ValueError for arrays that break the above, naming the time.

    >>> noise = ssd.NoiseSchedule.linear(1000)
    >>> noise.steps, noise.sigma[[0, 1, 500, 1000]].round(3).tolist()
    (1000, [0.0, 0.01, 0.96, 1.0])
    >>> ssd.NoiseSchedule.from_log_snr([8, 0, -8]).alpha.round(3).tolist()
    [1.0, 1.0, 0.707, 0.018]
    """

    alpha: np.ndarray
    sigma: np.ndarray

    def __post_init__(self) -> None:
        alpha, sigma = (np.array(a, dtype=np.float64) for a in (self.alpha, self.sigma))
        if alpha.ndim != 1 or alpha.shape != sigma.shape or len(alpha) < 2:
            raise ValueError(
                f"NoiseSchedule: alpha and sigma must be two arrays of T + 1 >= 2 levels, "
                f"got the shapes {alpha.shape} and {sigma.shape}"
            )
        if alpha[0] != 1 or sigma[0] != 0:
            raise ValueError(f"NoiseSchedule: time 0 is clean, alpha 1 and sigma 0; got {alpha[0]} and {sigma[0]}")
        bad = ~(np.isfinite(alpha) & np.isfinite(sigma) & (alpha >= 0) & (sigma > 0))
        bad[0] = False
        if bad.any():
            t = int(np.argmax(bad))
            raise ValueError(
                f"NoiseSchedule: at t = {t} alpha = {alpha[t]:.6g}, sigma = {sigma[t]:.6g}: "
                "expected finite alpha >= 0 and sigma > 0"
            )
        alpha.flags.writeable = sigma.flags.writeable = False
        object.__setattr__(self, "alpha", alpha)
        object.__setattr__(self, "sigma", sigma)

    @property
    def steps(self) -> int:
        """T, the last time."""
        return len(self.alpha) - 1

    def log_snr(self) -> np.ndarray:
        """log(alpha²/sigma²) for t = 1 … T, (T,)."""
        with np.errstate(divide="ignore"):
            return 2 * (np.log(self.alpha[1:]) - np.log(self.sigma[1:]))

    @classmethod
    def from_betas(cls, betas: Sequence[float] | np.ndarray) -> NoiseSchedule:
        """DDPM's form: alpha_t² = Π (1 − betas[i − 1]) over i = 1 … t, alpha² + sigma² = 1; every β in [0, 1]."""
        betas = np.asarray(betas, dtype=np.float64)
        if betas.ndim != 1 or len(betas) == 0 or not ((betas >= 0) & (betas <= 1)).all():
            raise ValueError("NoiseSchedule.from_betas: expected T >= 1 numbers in [0, 1]")
        alpha_bar = np.concatenate([[1.0], np.cumprod(1 - betas)])
        return cls(np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar))

    @classmethod
    def linear(cls, steps: int = 1000) -> NoiseSchedule:
        """DDPM's schedule, β from 0.1/T to 20/T in equal increments; at T = 1000 these are 1e-4 and 0.02.

        Raises ValueError below T = 21, where the last β would reach one.
        """
        steps = _positive_int(steps, "NoiseSchedule.linear: steps")
        if steps <= 20:
            raise ValueError(
                f"NoiseSchedule.linear: {steps} steps would need β = 20/{steps} >= 1; take at least 21 "
                "(and LinearDiffusion.respace to sample in fewer)"
            )
        return cls.from_betas(np.linspace(0.1 / steps, 20 / steps, steps))

    @classmethod
    def cosine(cls, steps: int = 1000) -> NoiseSchedule:
        """Improved DDPM's schedule: ᾱ(τ) ∝ cos²(π/2 · (τ + 0.008)/1.008), with every β at most 0.999."""
        steps = _positive_int(steps, "NoiseSchedule.cosine: steps")
        alpha_bar = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        return cls.from_betas(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999))

    @classmethod
    def from_log_snr(cls, values: Sequence[float] | np.ndarray) -> NoiseSchedule:
        """Variance-preserving levels with log(alpha²/sigma²) = values[t − 1] for t = 1 … T = len(values).

        The values must not rise; −inf (no signal left) is allowed at the end.
        """
        log_snr = np.asarray(values, dtype=np.float64)
        if log_snr.ndim != 1 or len(log_snr) == 0:
            raise ValueError(f"NoiseSchedule.from_log_snr: expected T >= 1 values, got the shape {log_snr.shape}")
        if np.isnan(log_snr).any() or np.isposinf(log_snr).any() or (np.diff(log_snr) > 0).any():
            raise ValueError("NoiseSchedule.from_log_snr: the values must not rise with t, nor be NaN or +inf")
        # alpha² = sigmoid(log SNR), each side by the form that keeps its small values exact
        alpha = np.exp(-0.5 * np.logaddexp(0, -log_snr))
        sigma = np.exp(-0.5 * np.logaddexp(0, log_snr))
        return cls(np.concatenate([[1.0], alpha]), np.concatenate([[0.0], sigma]))

    def scaled(self, factors: np.ndarray) -> NoiseSchedule:
        """sigma/alpha multiplied by factors[t], alpha² + sigma² kept at each t (factors[0] is of no consequence)."""
        factors = np.asarray(factors, dtype=np.float64)
        total = np.hypot(self.alpha, self.sigma)
        length = np.hypot(self.alpha, factors * self.sigma)
        return NoiseSchedule(self.alpha * total / length, factors * self.sigma * total / length)


@dataclass(frozen=True)
class ResolutionSchedule:
    """Which resolution level, 0 the highest, the state has at each time.

    starts   starts[k − 1] is the first time t at which level k (or a lower resolution) holds, for k = 1, 2, …
    steps    T, or None if the schedule serves any process whose T is not before the last start

    Build one with `equal`, `convex`, `sigmoid`, `tanh` or `thresholds`. The named shapes put level
    min(⌊levels · u(τ)⌋, levels − 1) at time t, with τ = (t − 1)/(T − 1).

    >>> levels = ssd.ResolutionSchedule.convex(1000, levels=4)
    >>> levels.starts
    (439, 751, 938)
    >>> [levels.level(t) for t in (0, 438, 439, 1000)]
    [0, 0, 1, 3]
    """

    starts: tuple[int, ...]
    steps: int | None = None

    def __post_init__(self) -> None:
        starts = tuple(_positive_int(t, "ResolutionSchedule: a start") for t in self.starts)
        if sorted(starts) != list(starts):
            raise ValueError(f"ResolutionSchedule: levels must start one after the other, got the times {starts}")
        if self.steps is not None and starts and starts[-1] > self.steps:
            raise ValueError(
                f"ResolutionSchedule: level {len(starts)} starts at t = {starts[-1]}, after T = {self.steps}"
            )
        object.__setattr__(self, "starts", starts)

    @property
    def levels(self) -> int:
        return len(self.starts) + 1

    def level(self, t: int) -> int:
        """The level at time t; 0 (full resolution) at t = 0. Raises ValueError for a time outside 0 … T."""
        if t < 0 or (self.steps is not None and t > self.steps):
            raise ValueError(f"ResolutionSchedule: time {t} is outside 0 … {self.steps}")
        return sum(start <= t for start in self.starts) if t > 0 else 0

    @classmethod
    def thresholds(cls, times: Sequence[int], steps: int | None = None) -> ResolutionSchedule:
        """Level k starts at times[k − 1]."""
        return cls(tuple(times), steps)

    @classmethod
    def equal(cls, steps: int, levels: int) -> ResolutionSchedule:
        """u = τ: the same share of time at every level."""
        return cls._from_function(steps, levels, lambda tau: tau)

    @classmethod
    def convex(cls, steps: int, levels: int, gamma: float = 0.5) -> ResolutionSchedule:
        """The paper's ConvexDecay: u = 1 − (1 − τ)^gamma.

        gamma < 1 stays longest at full resolution, gamma > 1 leaves it early; the paper takes ½.
        """
        _check_gamma("convex", gamma, 0.0)
        return cls._from_function(steps, levels, lambda tau: 1 - (1 - tau) ** gamma)

    @classmethod
    def tanh(cls, steps: int, levels: int, gamma: float = 2.0) -> ResolutionSchedule:
        """The paper's TanhLikeDecay: u = ½ − ½ h(τ − ½), slow changes at both ends or in the middle as gamma grows.

        h(z) = S(z)/S(½) with S = 3d/2 − 2d³ and d = sgn(z)|z|^gamma; gamma >= 1 (below, h is not monotone).
        """
        _check_gamma("tanh", gamma, 1.0)
        return cls._from_function(steps, levels, lambda tau: 0.5 + 0.5 * _smooth_step(tau - 0.5, gamma))

    @classmethod
    def sigmoid(cls, steps: int, levels: int, gamma: float = 2.0) -> ResolutionSchedule:
        """The paper's SigmoidLikeDecay: the inverse function of `tanh`'s ½h in place of ½h; gamma >= 1."""
        _check_gamma("sigmoid", gamma, 1.0)
        return cls._from_function(steps, levels, lambda tau: 0.5 + _inverse_smooth_step(tau - 0.5, gamma))

    @classmethod
    def _from_function(cls, steps: int, levels: int, u: Callable[[float], float]) -> ResolutionSchedule:
        steps = _positive_int(steps, "ResolutionSchedule: steps")
        levels = _positive_int(levels, "ResolutionSchedule: levels")
        if levels > steps:
            raise ValueError(f"ResolutionSchedule: {levels} levels need at least {levels} steps, got {steps}")
        at = [min(math.floor(levels * u(i / max(steps - 1, 1))), levels - 1) for i in range(steps)]
        starts = [next(i + 1 for i, level in enumerate(at) if level >= k) for k in range(1, levels)]
        return cls(tuple(starts), steps)


def _check_gamma(name: str, gamma: float, least: float) -> None:
    if not (math.isfinite(gamma) and gamma > 0 and gamma >= least):
        bound = f"at least {least:g}" if least else "positive"
        raise ValueError(f"ResolutionSchedule.{name}: gamma must be finite and {bound}, got {gamma}")


def _odd_cubic(z: float, gamma: float) -> float:
    x = math.copysign(abs(z) ** gamma, z) + 0.5
    return 3 * x**2 - 2 * x**3 - 0.5


@functools.lru_cache(maxsize=64)
def _cubic_end(gamma: float) -> float:
    return _odd_cubic(0.5, gamma)


def _smooth_step(z: float, gamma: float) -> float:
    return _odd_cubic(z, gamma) / _cubic_end(gamma)


def _inverse_smooth_step(w: float, gamma: float) -> float:
    """z with ½ S(z)/S(½) = w. With d = sin θ the cubic 3d/2 − 2d³ is ½ sin 3θ, so its inverse is in closed form."""
    d = math.sin(math.asin(max(-1.0, min(1.0, 4 * w * _cubic_end(gamma)))) / 3)
    return math.copysign(abs(d) ** (1 / gamma), d)
