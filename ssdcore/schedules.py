"""Noise levels and resolution levels over time t = 0 (clean) … T."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ssdcore._arrays import (
    Array,
    Constant,
    Memo,
    Namespace,
    full_precision,
    is_tracing,
    known_array,
    number,
    once_per_trace,
    positive_int,
)
from ssdcore._keyed import Keyed, Static
from ssdcore._times import look_up, real_times_of, times_of

Normalisation = Literal["length", "sum", "signal"]
Continuous = Callable[[Namespace, Array], tuple[Array, Array]]


@dataclass(frozen=True, eq=False, repr=False)
class NoiseSchedule(Static):
    """Signal and noise levels of ``x_t = alpha[t] · (degraded x_0) + sigma[t] · noise``, t = 0 … T.

    Build one with `linear`, `cosine`, `from_betas` or `from_log_snr` (variance preserving, alpha² + sigma² = 1), with
    `rectified_flow` (alpha + sigma = 1) or `edm` (alpha = 1), or from two arrays of your own. Raises ValueError for
    arrays that break the above, naming the time. Two schedules are equal if their levels are, at whole times and
    between them.

    Attributes:
        alpha: float64 (T + 1,), alpha[0] = 1, not negative
        sigma: float64 (T + 1,), sigma[0] = 0, positive afterwards
        continuous: (namespace, real times) -> (alpha, sigma) between the integers; None: interpolated, see `at`
        normalisation: what `scaled` and interpolation keep: "sum" (alpha + sigma = 1, flows), "signal" (alpha = 1,
            variance exploding), or "length" (alpha² + sigma², which is 1 for variance-preserving noise). None: the
            first two where the levels keep them to rounding in single precision, and alpha² + sigma² is not 1 too;
            else "length"

    >>> noise = ssd.NoiseSchedule.linear(1000)
    >>> noise.steps, noise.sigma[[0, 1, 500, 1000]].round(3).tolist()
    (1000, [0.0, 0.01, 0.96, 1.0])
    >>> ssd.NoiseSchedule.from_log_snr([8, 0, -8]).alpha.round(3).tolist()
    [1.0, 1.0, 0.707, 0.018]
    """

    alpha: np.ndarray
    sigma: np.ndarray
    continuous: Continuous | None = None
    normalisation: Normalisation | None = None
    tables: tuple[Constant, Constant] = field(init=False)  # alpha and sigma, ready for every library
    _pairs: tuple[tuple[float, float], ...] = field(init=False)
    _interpolation: tuple[Constant, ...] = field(init=False)
    _memo: Memo = field(init=False)

    def __post_init__(self) -> None:
        alpha, sigma = (known_array(a, "NoiseSchedule").astype(np.float64) for a in (self.alpha, self.sigma))
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
        # Tables that torch.compile can read while it traces: cached properties hold a lock.
        for name, value in (
            ("alpha", alpha),
            ("sigma", sigma),
            ("tables", (Constant(alpha), Constant(sigma))),
            ("normalisation", _checked_normalisation(self.normalisation, alpha, sigma)),
            ("_pairs", tuple(zip(alpha.tolist(), sigma.tolist()))),
            ("_interpolation", _interpolation(alpha, sigma) if self.continuous is None else ()),
            ("_memo", Memo()),
        ):
            object.__setattr__(self, name, value)

    def key(self) -> Hashable:
        return self.alpha.tobytes(), self.sigma.tobytes(), self.normalisation, self.continuous

    def __repr__(self) -> str:
        kept = {"length": "alpha² + sigma²", "sum": "alpha + sigma", "signal": "alpha"}[str(self.normalisation)]
        if self.normalisation != "length" or np.allclose(np.hypot(self.alpha, self.sigma), 1, rtol=0, atol=1e-9):
            kept += " = 1"
        else:
            kept = "of its own normalisation"
        first, last = (_ratio(self.alpha[t], self.sigma[t]) for t in (1, -1))
        return f"NoiseSchedule(T = {self.steps}, {kept}, sigma/alpha from {first} to {last})"

    @property
    def steps(self) -> int:
        """T, the last time."""
        return len(self.alpha) - 1

    def log_snr(self) -> np.ndarray:
        """log(alpha²/sigma²) for t = 1 … T, (T,)."""
        with np.errstate(divide="ignore"):
            return 2 * (np.log(self.alpha[1:]) - np.log(self.sigma[1:]))

    def at(self, t: Any) -> tuple[Any, Any]:
        """(alpha, sigma) at times 0 <= t <= T, whole or real: two numbers for a number, two arrays for an array.

        Between whole times `linear` and `from_betas` let each β act evenly over its step (log alpha is linear there),
        `cosine`, `rectified_flow` and `edm` follow their formula, and `scaled` keeps the factor of the whole time
        before. Every other schedule interpolates log(sigma/alpha) linearly, in its own normalisation; in the first step
        sigma/alpha itself, and alpha/sigma itself in a step that ends without signal.

        A traced time cannot be checked: outside it is NaN in jax.

        Args:
            t: an integer or a real number, or an array of either (numpy, torch, jax, …; traced by jax or
                torch.compile too), of any shape. The results are arrays of that shape in its library, in the dtype of
                real times, else in the library's default floating dtype.

        Raises:
            TypeError: For anything else than numbers.
            ValueError: For a time outside 0 … T.

        >>> alpha, sigma = ssd.NoiseSchedule.rectified_flow(10).at(2.5)
        >>> alpha, sigma
        (0.75, 0.25)
        >>> ssd.NoiseSchedule.edm(10).at(np.array([1, 10]))[1].round(3).tolist()
        [0.002, 80.0]
        """
        time = real_times_of(t, self.steps)
        if isinstance(time, int):
            return self._pairs[time]
        if isinstance(time, float):
            return self._memo.kept(self._made(time)) if is_tracing() else self._real(time)
        xp = time.xp
        if time.whole:
            return tuple(look_up(xp, table, time.array, time.dtype) for table in self.tables)
        return self._between(xp, time.array)

    @once_per_trace
    def _made(self, time: float) -> Any:
        return self._memo.shelve(Memo.entry(self._real, time), self._real(time))

    def _real(self, time: float) -> tuple[float, float]:
        alpha, sigma = self._between(np, np.asarray(time))
        return float(alpha), float(sigma)

    def _between(self, xp: Namespace, t: Array) -> tuple[Array, Array]:
        """Levels at real times, those of the tables at whole ones."""
        function = self._interpolated if self.continuous is None else self.continuous
        whole = xp.floor(t)
        index = xp.astype(whole, xp.int32)
        with full_precision(t):
            alpha, sigma = (
                xp.where(t == whole, look_up(xp, table, index, t.dtype), level)
                for table, level in zip(self.tables, function(xp, t))
            )
        return alpha, sigma

    def _interpolated(self, xp: Namespace, t: Array) -> tuple[Array, Array]:
        index, part = _step_of(xp, t, self.steps)
        start, rise, from_clean, to_noise, length, growth = (
            look_up(xp, table, index, t.dtype) for table in self._interpolation
        )
        inside = xp.where((part > 0) & (part < 1), part, xp.full_like(part, 0.5))  # the ends are the tables' own
        v = start + rise * part + from_clean * xp.log(inside) - to_noise * xp.log1p(-inside)
        if self.normalisation == "signal":
            return xp.ones_like(v), xp.exp(v)
        zero = xp.zeros_like(v)
        if self.normalisation == "sum":
            return xp.exp(-xp.logaddexp(zero, v)), xp.exp(-xp.logaddexp(zero, -v))
        total = length + growth * part
        return xp.exp(total - 0.5 * xp.logaddexp(zero, 2 * v)), xp.exp(total - 0.5 * xp.logaddexp(zero, -2 * v))

    @classmethod
    def named(cls, name: str, steps: int) -> NoiseSchedule:
        """The schedule that commands call `name`: one of `names()`, of `steps` steps."""
        return _chosen(NOISE_SCHEDULES, name, "NoiseSchedule.named")(steps)

    @staticmethod
    def names() -> tuple[str, ...]:
        """What `named` takes.

        >>> ssd.NoiseSchedule.names()
        ('linear', 'cosine', 'rectified_flow', 'edm')
        """
        return tuple(NOISE_SCHEDULES)

    @classmethod
    def from_betas(cls, betas: Sequence[float] | np.ndarray) -> NoiseSchedule:
        """DDPM's form: alpha_t² = Π (1 − betas[i − 1]) over i = 1 … t, alpha² + sigma² = 1; every β in [0, 1]."""
        betas = known_array(betas, "NoiseSchedule.from_betas").astype(np.float64)
        if betas.ndim != 1 or len(betas) == 0 or not ((betas >= 0) & (betas <= 1)).all():
            raise ValueError("NoiseSchedule.from_betas: expected T >= 1 numbers in [0, 1]")
        alpha_bar = np.concatenate([[1.0], np.cumprod(1 - betas)])
        continuous = None if (betas == 1).any() else _EvenBetas(betas)
        return cls(np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar), continuous, "length")

    @classmethod
    def linear(cls, steps: int = 1000) -> NoiseSchedule:
        """DDPM's schedule, β from 0.1/T to 20/T in equal increments; at T = 1000 these are 1e-4 and 0.02.

        Raises:
            ValueError: Below T = 21, where the last β would reach one.
        """
        steps = positive_int(steps, "NoiseSchedule.linear: steps")
        if steps <= 20:
            raise ValueError(
                f"NoiseSchedule.linear: {steps} steps would need β = 20/{steps} >= 1; take at least 21 "
                "(and LinearDiffusion.respace to sample in fewer)"
            )
        return cls.from_betas(np.linspace(0.1 / steps, 20 / steps, steps))

    @classmethod
    def cosine(cls, steps: int = 1000) -> NoiseSchedule:
        """Improved DDPM's schedule: ᾱ(τ) ∝ cos²(π/2 · (τ + 0.008)/1.008), with every β at most 0.999."""
        steps = positive_int(steps, "NoiseSchedule.cosine: steps")
        alpha_bar = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
        made = cls.from_betas(betas)
        capped = int(np.argmax(np.append(betas, 1.0) >= 0.999))  # the time from which β is at its bound, or T
        return cls(made.alpha, made.sigma, _Cosine(steps, _EvenBetas(betas), capped), "length")

    @classmethod
    def rectified_flow(cls, steps: int = 1000) -> NoiseSchedule:
        """The straight path of rectified flow and flow matching: alpha = 1 − t/T, sigma = t/T.

        No signal is left at T. Liu, Gong and Liu (2022), Lipman et al. (2022).
        """
        steps = positive_int(steps, "NoiseSchedule.rectified_flow: steps")
        t = np.arange(steps + 1)
        return cls((steps - t) / steps, t / steps, _Flow(steps), "sum")

    @classmethod
    def edm(
        cls, steps: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
    ) -> NoiseSchedule:
        """EDM's variance-exploding noise: alpha = 1, sigma_0 = 0 and, from sigma_1 = sigma_min to sigma_T = sigma_max,

        ::

            sigma_t = (sigma_min^(1/rho) + (t − 1)/(T − 1) · (sigma_max^(1/rho) − sigma_min^(1/rho)))^rho.

        At real times below one sigma grows linearly from zero. With one step, sigma_1 = sigma_max. Karras et al.
        (2022), equation 5. Raises ValueError unless 0 < sigma_min < sigma_max and rho > 0, all finite.
        """
        steps = positive_int(steps, "NoiseSchedule.edm: steps")
        sigma_min, sigma_max, rho = (number(v, "NoiseSchedule.edm") for v in (sigma_min, sigma_max, rho))
        if not (0 < sigma_min < sigma_max < math.inf and 0 < rho < math.inf):
            raise ValueError(
                "NoiseSchedule.edm: expected 0 < sigma_min < sigma_max and rho > 0, all finite, got "
                f"sigma_min = {sigma_min}, sigma_max = {sigma_max}, rho = {rho}"
            )
        continuous = _Edm(steps, float(sigma_min), float(sigma_max), float(rho))
        alpha, sigma = continuous(np, np.arange(steps + 1.0))
        sigma[[1, steps]] = sigma_min, sigma_max  # exactly
        return cls(alpha, sigma, continuous, "signal")

    @classmethod
    def from_log_snr(cls, values: Sequence[float] | np.ndarray) -> NoiseSchedule:
        """Variance-preserving levels with log(alpha²/sigma²) = values[t − 1] for t = 1 … T = len(values).

        The values must not rise; −inf (no signal left) is allowed at the end.
        """
        log_snr = known_array(values, "NoiseSchedule.from_log_snr").astype(np.float64)
        if log_snr.ndim != 1 or len(log_snr) == 0:
            raise ValueError(f"NoiseSchedule.from_log_snr: expected T >= 1 values, got the shape {log_snr.shape}")
        if np.isnan(log_snr).any() or np.isposinf(log_snr).any() or (log_snr[1:] > log_snr[:-1]).any():
            raise ValueError("NoiseSchedule.from_log_snr: the values must not rise with t, nor be NaN or +inf")
        # alpha² = sigmoid(log SNR), each side by the form that keeps its small values exact
        with np.errstate(under="ignore"):
            alpha = np.exp(-0.5 * np.logaddexp(0, -log_snr))
            sigma = np.exp(-0.5 * np.logaddexp(0, log_snr))
        return cls(np.concatenate([[1.0], alpha]), np.concatenate([[0.0], sigma]), None, "length")

    def scaled(self, factors: np.ndarray) -> NoiseSchedule:
        """sigma/alpha multiplied by factors[t], in the schedule's own `normalisation`.

        Variance-preserving noise stays so (alpha² + sigma² is kept at each t), a flow keeps alpha + sigma = 1, and
        variance-exploding noise alpha = 1. factors[0] is of no consequence; every factor is finite and positive.

        >>> flow = ssd.NoiseSchedule.rectified_flow(4).scaled(np.array([1, 1, 0.5, 0.5, 0.5]))
        >>> flow.alpha.round(3).tolist(), (flow.alpha + flow.sigma).round(12).tolist()
        ([1.0, 0.75, 0.667, 0.4, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0])
        """
        factors = known_array(factors, "NoiseSchedule.scaled").astype(np.float64)
        if factors.shape != self.alpha.shape or not (np.isfinite(factors) & (factors > 0)).all():
            raise ValueError(
                f"NoiseSchedule.scaled: expected {len(self.alpha)} finite positive factors, one per time, "
                f"got {factors if factors.size < 8 else factors.shape}"
            )
        scaling = _Scaled(self, Constant(factors))
        return NoiseSchedule(*scaling.renormalised(np, self.alpha, self.sigma, factors), scaling, self.normalisation)


def _checked_normalisation(stated: Normalisation | None, alpha: np.ndarray, sigma: np.ndarray) -> Normalisation:
    """What the levels keep."""
    rounding = 8 * float(np.finfo(np.float32).eps)  # they may have been made in single precision
    kept: dict[Normalisation, np.ndarray] = {"signal": alpha, "sum": alpha + sigma}
    if stated is not None:
        if stated != "length" and stated not in kept:
            raise ValueError(
                f'NoiseSchedule: normalisation: expected "length", "sum", "signal" or None, got {stated!r}'
            )
        off = np.abs(kept.get(stated, np.ones(1)) - 1)
        if off.max() > rounding:
            t = int(np.argmax(off > rounding))
            name = {"signal": "alpha", "sum": "alpha + sigma"}[stated]
            raise ValueError(
                f"NoiseSchedule: normalisation {stated!r} asks for {name} = 1; at t = {t} it is {kept[stated][t]:.6g}"
            )
        return stated
    # Where nothing but one of the two is left, alpha + sigma and alpha² + sigma² are both 1 and tell nothing.
    if np.abs(alpha**2 + sigma**2 - 1).max() <= rounding:
        return "length"
    return next((name for name, one in kept.items() if np.abs(one - 1).max() <= rounding), "length")


def _interpolation(alpha: np.ndarray, sigma: np.ndarray) -> tuple[Constant, ...]:
    """For each step i → i + 1: log(σ/α) where it starts, its increase, and what its ends at ±∞ ask for."""
    with np.errstate(divide="ignore"):
        v = np.log(sigma) - np.log(alpha)
    low, high = v[:-1], v[1:]
    start = np.where(np.isfinite(low), low, np.where(np.isfinite(high), high, 0.0))
    rise = np.where(np.isfinite(low) & np.isfinite(high), high, start) - start
    from_clean, to_noise = np.isneginf(low).astype(np.float64), np.isposinf(high).astype(np.float64)
    length = np.log(np.hypot(alpha, sigma))
    return tuple(map(Constant, (start, rise, from_clean, to_noise, length[:-1], np.diff(length))))


def _ratio(alpha: float, sigma: float) -> str:
    return f"{sigma / alpha:.4g}" if alpha > 0 else "infinity"


def _step_of(xp: Namespace, t: Array, steps: int) -> tuple[Array, Array]:
    """(i, part) with t = i + part, i = 0 … T − 1 the whole time before, as an integer array."""
    index = xp.clip(xp.floor(t), 0, steps - 1)
    return xp.astype(index, xp.int32), t - index


class _EvenBetas(Keyed):
    """ᾱ(i + f) = ᾱ_i (1 − β_{i+1})^f."""

    def __init__(self, betas: np.ndarray) -> None:
        steps = np.log1p(-betas)
        self._steps = len(betas)
        self._logs = Constant(np.concatenate([[0.0], np.cumsum(steps)[:-1]])), Constant(steps)

    def key(self) -> Hashable:
        return self._logs

    def __call__(self, xp: Namespace, t: Array) -> tuple[Array, Array]:
        index, part = _step_of(xp, t, self._steps)
        start, step = (look_up(xp, table, index, t.dtype) for table in self._logs)
        return _preserving(xp, start + part * step)


def _preserving(xp: Namespace, log_alpha_bar: Array) -> tuple[Array, Array]:
    log_alpha_bar = xp.clip(log_alpha_bar, None, 0.0)
    return xp.exp(0.5 * log_alpha_bar), xp.sqrt(-xp.expm1(log_alpha_bar))


@dataclass(frozen=True)
class _Cosine:
    """cos² up to the time `capped`, where β would first exceed its bound; from there each β acts evenly."""

    steps: int
    even: _EvenBetas
    capped: int

    def __call__(self, xp: Namespace, t: Array) -> tuple[Array, Array]:
        angle = (xp.clip(t, 0, self.capped) / self.steps + 0.008) / 1.008 * (math.pi / 2)
        log_alpha_bar = 2 * (xp.log(xp.cos(angle)) - math.log(math.cos(0.008 / 1.008 * math.pi / 2)))
        smooth, rest = _preserving(xp, log_alpha_bar), self.even(xp, t)
        alpha, sigma = (xp.where(t <= self.capped, a, b) for a, b in zip(smooth, rest))
        return alpha, sigma


@dataclass(frozen=True)
class _Flow:
    steps: int

    def __call__(self, xp: Namespace, t: Array) -> tuple[Array, Array]:
        return (self.steps - t) / self.steps, t / self.steps


@dataclass(frozen=True)
class _Edm:
    steps: int
    sigma_min: float
    sigma_max: float
    rho: float

    def __call__(self, xp: Namespace, t: Array) -> tuple[Array, Array]:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        part = xp.clip((t - 1) / max(self.steps - 1, 1), 0, 1)
        sigma = (low + part * (high - low)) ** self.rho
        first = self.sigma_max if self.steps == 1 else self.sigma_min
        return xp.ones_like(t), xp.where(t < 1, t * first, sigma)


@dataclass(frozen=True)
class _Scaled:
    """σ/α of `base` times a factor that holds from its whole time to the next."""

    base: NoiseSchedule
    factors: Constant

    def __call__(self, xp: Namespace, t: Array) -> tuple[Array, Array]:
        alpha, sigma = self.base.at(t)
        index, _ = _step_of(xp, t, self.base.steps)
        return self.renormalised(xp, alpha, sigma, look_up(xp, self.factors, index, t.dtype))

    def renormalised(self, xp: Namespace, alpha: Array, sigma: Array, factor: Array) -> tuple[Array, Array]:
        noisier = factor * sigma
        if self.base.normalisation == "signal":
            return alpha, noisier
        if self.base.normalisation == "sum":
            return alpha / (alpha + noisier), noisier / (alpha + noisier)
        share = xp.hypot(alpha, sigma) / xp.hypot(alpha, noisier)
        return alpha * share, noisier * share


# name, for commands and configurations -> schedule of T steps
NOISE_SCHEDULES: Mapping[str, Callable[[int], NoiseSchedule]] = {
    "linear": NoiseSchedule.linear,
    "cosine": NoiseSchedule.cosine,
    "rectified_flow": NoiseSchedule.rectified_flow,
    "edm": NoiseSchedule.edm,
}


def _chosen(table: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in table:
        raise ValueError(f"{what}: expected one of {', '.join(table)}, got {name!r}")
    return table[name]


@dataclass(frozen=True, eq=False)
class ResolutionSchedule(Static):
    """Which resolution level, 0 the highest, the state has at each time.

    Build one with `equal`, `convex`, `sigmoid`, `tanh` or `thresholds`. The named shapes put level
    min(⌊levels · u(τ)⌋, levels − 1) at time t, with τ = (t − 1)/(T − 1).

    Attributes:
        starts: starts[k − 1] is the first time t at which level k (or a lower resolution) holds, for k = 1, 2, …
        steps: T, or None if the schedule serves any process whose T is not before the last start

    >>> levels = ssd.ResolutionSchedule.convex(1000, levels=4)
    >>> levels.starts
    (439, 751, 938)
    >>> [levels.level(t) for t in (0, 438, 439, 1000)]
    [0, 0, 1, 3]
    """

    starts: tuple[int, ...]
    steps: int | None = None

    def __post_init__(self) -> None:
        starts = tuple(positive_int(t, "ResolutionSchedule: a start") for t in self.starts)
        if sorted(starts) != list(starts):
            raise ValueError(f"ResolutionSchedule: levels must start one after the other, got the times {starts}")
        if self.steps is not None and starts and starts[-1] > self.steps:
            raise ValueError(
                f"ResolutionSchedule: level {len(starts)} starts at t = {starts[-1]}, after T = {self.steps}"
            )
        object.__setattr__(self, "starts", starts)

    def key(self) -> Hashable:
        return self.starts, self.steps

    @property
    def levels(self) -> int:
        return len(self.starts) + 1

    def level(self, t: Any) -> Any:
        """The level at time t, or at each of an array of times; 0 (full resolution) at t = 0.

        Raises ValueError for a time outside 0 … T, as far as times are known, and TypeError for what is no integer.
        """
        time = times_of(t, math.inf if self.steps is None else self.steps)
        if isinstance(time, int):
            return sum(start <= time for start in self.starts)
        level = time.xp.zeros_like(time.array)
        for start in self.starts:
            level = level + time.xp.astype(time.array >= start, level.dtype)
        return level

    @classmethod
    def named(cls, name: str, steps: int, levels: int, gamma: float | None = None) -> ResolutionSchedule:
        """The shape that commands call `name`, one of `names()`; gamma None: the shape's own.

        Raises:
            ValueError: For another name, and for a gamma where the shape ("equal") has none.
        """
        make = _chosen(RESOLUTION_SCHEDULES, name, "ResolutionSchedule.named")
        if gamma is None:
            return make(steps, levels)
        if name == "equal":
            raise ValueError(f'ResolutionSchedule.named: "equal" has no gamma, got {gamma}; leave it out')
        return make(steps, levels, gamma)

    @staticmethod
    def names() -> tuple[str, ...]:
        """What `named` takes.

        >>> ssd.ResolutionSchedule.names()
        ('equal', 'convex', 'sigmoid', 'tanh')
        """
        return tuple(RESOLUTION_SCHEDULES)

    @classmethod
    def thresholds(cls, times: Sequence[int], steps: int | None = None) -> ResolutionSchedule:
        """Level k starts at times[k − 1]."""
        if not isinstance(times, Iterable):
            raise TypeError(f"ResolutionSchedule.thresholds: expected a list of times, got {times!r}")
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
        gamma = _checked_gamma("convex", gamma, 0.0)
        return cls._from_function(steps, levels, lambda tau: 1 - (1 - tau) ** gamma)

    @classmethod
    def tanh(cls, steps: int, levels: int, gamma: float = 2.0) -> ResolutionSchedule:
        """The paper's TanhLikeDecay: u = ½ − ½ h(τ − ½), slow changes at both ends or in the middle as gamma grows.

        h(z) = S(z)/S(½) with S = 3d/2 − 2d³ and d = sgn(z)|z|^gamma; gamma >= 1 (below, h is not monotone).
        """
        gamma = _checked_gamma("tanh", gamma, 1.0)
        return cls._from_function(steps, levels, lambda tau: 0.5 + 0.5 * _smooth_step(tau - 0.5, gamma))

    @classmethod
    def sigmoid(cls, steps: int, levels: int, gamma: float = 2.0) -> ResolutionSchedule:
        """The paper's SigmoidLikeDecay: the inverse function of `tanh`'s ½h in place of ½h; gamma >= 1."""
        gamma = _checked_gamma("sigmoid", gamma, 1.0)
        return cls._from_function(steps, levels, lambda tau: 0.5 + _inverse_smooth_step(tau - 0.5, gamma))

    @classmethod
    def _from_function(cls, steps: int, levels: int, u: Callable[[float], float]) -> ResolutionSchedule:
        steps = positive_int(steps, "ResolutionSchedule: steps")
        levels = positive_int(levels, "ResolutionSchedule: levels")
        if levels > steps:
            raise ValueError(f"ResolutionSchedule: {levels} levels need at least {levels} steps, got {steps}")
        at = [min(math.floor(levels * u(i / max(steps - 1, 1))), levels - 1) for i in range(steps)]
        starts = [next(i + 1 for i, level in enumerate(at) if level >= k) for k in range(1, levels)]
        return cls(tuple(starts), steps)


RESOLUTION_SCHEDULES: Mapping[str, Callable[..., ResolutionSchedule]] = {
    "equal": ResolutionSchedule.equal,
    "convex": ResolutionSchedule.convex,
    "sigmoid": ResolutionSchedule.sigmoid,
    "tanh": ResolutionSchedule.tanh,
}


def _checked_gamma(name: str, gamma: float, least: float) -> float:
    gamma = number(gamma, f"ResolutionSchedule.{name}: gamma")
    if not (math.isfinite(gamma) and gamma > 0 and gamma >= least):
        bound = f"at least {least:g}" if least else "positive"
        raise ValueError(f"ResolutionSchedule.{name}: gamma must be finite and {bound}, got {gamma}")
    return gamma


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
