"""Golden rows of schedules: β, α and σ, log-SNR, and the times at which levels change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from ssdcore.schedules import NoiseSchedule, ResolutionSchedule
from ssdcore.testing._report import Measurement
from ssdcore.testing.golden._exact import REAL, agree, holds, real, reals, refuses, square_root


def linear_betas(steps: int) -> list[Fraction]:
    """β from 0.1/T to 20/T."""
    first, last = Fraction(1, 10 * steps), Fraction(20, steps)
    return [first + (last - first) * Fraction(i, steps - 1) for i in range(steps)]


def levels_of(betas: list[Any]) -> tuple[list[Any], list[Any]]:
    """(α, σ) for t = 0 … T of betas: α² = Π (1 − β), σ² = 1 − α²."""
    kept = [REAL.mpf(1)]
    for beta in betas:
        kept.append(kept[-1] * (1 - real(beta)))
    return [REAL.sqrt(k) for k in kept], [REAL.sqrt(1 - k) for k in kept]


def cosine_betas(steps: int) -> list[Any]:
    """β of ᾱ(τ) ∝ cos²(π/2 (τ + 0.008)/1.008), none above 0.999."""
    offset = Fraction(8, 1000)
    angles = [real((Fraction(i, steps) + offset) / (1 + offset)) * REAL.pi / 2 for i in range(steps + 1)]
    squares = [REAL.cos(angle) ** 2 for angle in angles]
    return [min(1 - high / low, REAL.mpf("0.999")) for low, high in pairwise(squares)]


def _compare(what: str, noise: NoiseSchedule, alpha: Any, sigma: Any, operations: int) -> Iterator[Measurement]:
    yield from agree(f"{what}: α", noise.alpha, alpha, operations, relative=True)
    yield from agree(f"{what}: σ²", noise.sigma**2, [s * s for s in sigma], operations)
    yield from agree(
        f"{what}: σ²/α²",
        noise.sigma[1:] ** 2 / noise.alpha[1:] ** 2,
        [(s / a) ** 2 for a, s in zip(alpha[1:], sigma[1:])],
        operations * 64,
        relative=True,
    )


def noise_levels(_: Any) -> Iterator[Measurement]:
    for steps in (1000, 30):
        alpha, sigma = levels_of(linear_betas(steps))
        yield from _compare(f"linear, {steps} steps", NoiseSchedule.linear(steps), alpha, sigma, steps)
        alpha, sigma = levels_of(cosine_betas(steps))
        yield from _compare(f"cosine, {steps} steps", NoiseSchedule.cosine(steps), alpha, sigma, steps)
    beta = linear_betas(1000)
    yield from agree("linear betas end at 1e-4 and 0.02", [0.0001, 0.02], [beta[0], beta[-1]])
    alpha, sigma = levels_of([Fraction(1, 4), Fraction(1, 3), Fraction(1, 2)])
    yield from _compare("from β 1/4, 1/3, 1/2", NoiseSchedule.from_betas([0.25, 1 / 3, 0.5]), alpha, sigma, 3)
    values = [18.5, 3.0, 0.0, -2.25, -30.0]
    squares = [1 / (1 + REAL.exp(-real(v))) for v in values]
    noise = NoiseSchedule.from_log_snr(values)
    yield from agree("from log-SNR: α", noise.alpha, [1, *map(REAL.sqrt, squares)], 8, relative=True)
    noise_squares = [1 / (1 + REAL.exp(real(v))) for v in values]
    yield from agree("from log-SNR: σ", noise.sigma, [0, *map(REAL.sqrt, noise_squares)], 8, relative=True)
    yield from agree("log-SNR again", noise.log_snr(), values, 8)
    yield from agree("number of steps", noise.steps, 5)
    end = NoiseSchedule.from_log_snr([0.0, -math.inf])
    yield from agree("no signal left: α", end.alpha, [1, square_root(Fraction(1, 2)), 0], 4)
    yield from agree("no signal left: σ", end.sigma, [0, square_root(Fraction(1, 2)), 1], 4)


def other_noise(_: Any) -> Iterator[Measurement]:
    """Rectified flow and EDM's noise, and levels at real times."""
    flow = NoiseSchedule.rectified_flow(5)
    yield from agree("flow: α = 1 − t/T", flow.alpha, reals(["1", "4/5", "3/5", "2/5", "1/5", "0"]))
    yield from agree("flow: σ = t/T", flow.sigma, reals(["0", "1/5", "2/5", "3/5", "4/5", "1"]))
    seventh = REAL.mpf(1) / 7
    low, high = real("1/500") ** seventh, real(80) ** seventh
    sigma = [0, *((low + i * (high - low) / 3) ** 7 for i in range(4))]
    edm = NoiseSchedule.edm(4)
    yield from agree("EDM: σ from 0.002 to 80 at ρ = 7", edm.sigma, sigma, 16, relative=True)
    yield from agree("EDM: α = 1", edm.alpha, [1] * 5)
    sigma = [0, *((2 + i * REAL.mpf(4) / 3) ** 2 for i in range(4))]
    yield from agree("EDM: σ from 4 to 36 at ρ = 2", NoiseSchedule.edm(4, 4.0, 36.0, 2.0).sigma, sigma, 16)
    yield from agree("flow at the time 2.5", flow.at(2.5), reals(["1/2", "1/2"]), 4)
    alpha, sigma_at = NoiseSchedule.from_betas([0.25, 0.75]).at(1.5)
    kept = real("3/4") * REAL.sqrt(real("1/4"))  # half a step of β = 3/4
    yield from agree("β acting evenly over its step", [alpha, sigma_at], [REAL.sqrt(kept), REAL.sqrt(1 - kept)], 8)
    angle = [(real(t) / 4 + real("1/125")) / real("126/125") * REAL.pi / 2 for t in ("0", "3/2")]
    alpha, _sigma = NoiseSchedule.cosine(4).at(1.5)
    yield from agree("cosine at the time 1.5", alpha, REAL.cos(angle[1]) / REAL.cos(angle[0]), 16)
    yield from agree("EDM at the time 2.5", edm.at(2.5)[1], (low + (high - low) / 2) ** 7, 16, relative=True)


def scaled_noise(_: Any) -> Iterator[Measurement]:
    """σ/α multiplied; α² + σ² = 1, α + σ = 1 or α = 1 kept."""
    values, factors = [2.0, 0.0, -1.0], [1.0, 1.0, 0.5, 0.25]
    noise = NoiseSchedule.from_log_snr(values).scaled(np.array(factors))
    ratio = [0, *(real(f) * REAL.exp(-real(v) / 2) for v, f in zip(values, factors[1:]))]
    yield from agree("α of scaled noise", noise.alpha, [1 / REAL.sqrt(1 + r * r) for r in ratio], 8)
    yield from agree("σ of scaled noise", noise.sigma, [r / REAL.sqrt(1 + r * r) for r in ratio], 8)

    factor = real("1/4")
    flow = NoiseSchedule.rectified_flow(4).scaled(np.array([1.0, 1.0, 1.0, 0.25, 0.25]))
    share = factor * 3 / (1 + factor * 3)
    yield from agree("α of scaled flow", flow.alpha, [1, real("3/4"), real("1/2"), 1 - share, 0], 8)
    yield from agree("σ of scaled flow", flow.sigma, [0, real("1/4"), real("1/2"), share, 1], 8)
    edm = NoiseSchedule.edm(2, 1.0, 9.0).scaled(np.array([1.0, 1.0, 0.25]))
    yield from agree("α of scaled variance-exploding noise", edm.alpha, [1, 1, 1], 8)
    yield from agree("σ of scaled variance-exploding noise", edm.sigma, [0, 1, factor * 9], 8)


def _smooth(z: Fraction, gamma: int) -> Fraction:
    d = abs(z) ** gamma * (1 if z > 0 else -1)
    x = d + Fraction(1, 2)
    return 3 * x**2 - 2 * x**3 - Fraction(1, 2)


def _starts(steps: int, levels: int, u: Callable[[Fraction], Fraction]) -> tuple[int, ...]:
    """First t = i + 1 whose level min(⌊levels · u(i/(T − 1))⌋, levels − 1) is k or lower in resolution."""
    at = [min(math.floor(levels * u(Fraction(i, steps - 1))), levels - 1) for i in range(steps)]
    return tuple(next(i + 1 for i, level in enumerate(at) if level >= k) for k in range(1, levels))


def _root(x: Fraction) -> Any:
    """√x, a fraction where it is one, so that ties are exact."""
    a, b = math.isqrt(x.numerator), math.isqrt(x.denominator)
    return Fraction(a, b) if a * a == x.numerator and b * b == x.denominator else square_root(x)


def _sigmoid_starts(steps: int, levels: int, gamma: int) -> tuple[int, ...]:
    """As `_starts` for u = ½ + z, z the inverse of the growing ½h at τ − ½: u >= k/levels where τ − ½ is at or above
    ½h(k/levels − ½), so no inverse is needed."""
    half = Fraction(1, 2)
    reached = [half + _smooth(Fraction(k, levels) - half, gamma) / (2 * _smooth(half, gamma)) for k in range(1, levels)]
    return tuple(math.ceil(tau * (steps - 1)) + 1 for tau in reached)


def level_changes(_: Any) -> Iterator[Measurement]:
    half = Fraction(1, 2)
    cases: list[tuple[str, ResolutionSchedule, tuple[int, ...]]] = []
    # dyadic τ, so that every tie is exact in float64 as well
    for steps, levels in ((1000, 4), (9, 4), (17, 4), (33, 3), (250, 6), (5, 1)):
        cases += [
            (f"equal, {steps} steps", ResolutionSchedule.equal(steps, levels), _starts(steps, levels, lambda u: u)),
            (
                f"convex ½, {steps} steps",
                ResolutionSchedule.convex(steps, levels),
                _starts(steps, levels, lambda u: 1 - _root(1 - u)),
            ),
            (
                f"convex 2, {steps} steps",
                ResolutionSchedule.convex(steps, levels, 2.0),
                _starts(steps, levels, lambda u: 1 - (1 - u) ** 2),
            ),
        ]
    for steps, levels, gamma in ((1000, 4, 2), (1000, 3, 1), (200, 5, 3)):
        end = _smooth(half, gamma)
        cases += [
            (
                f"tanh {gamma}, {steps} steps",
                ResolutionSchedule.tanh(steps, levels, float(gamma)),
                _starts(steps, levels, lambda u, g=gamma, e=end: half + half * _smooth(u - half, g) / e),  # type: ignore[misc]
            ),
            (
                f"sigmoid {gamma}, {steps} steps",
                ResolutionSchedule.sigmoid(steps, levels, float(gamma)),
                _sigmoid_starts(steps, levels, gamma),
            ),
        ]
    for what, schedule, starts in cases:
        yield from holds(f"{what}: levels start at {starts}, got {schedule.starts}", schedule.starts == starts)
    yield from holds("convex ½ over 1000 steps", ResolutionSchedule.convex(1000, 4).starts == (439, 751, 938))
    schedule = ResolutionSchedule.thresholds([3, 3, 7])
    found = [schedule.level(t) for t in range(10)]
    yield from holds(
        f"thresholds 3, 3, 7: a level holds from its start on, got {found}", found == [0, 0, 0, 2, 2, 2, 2, 3, 3, 3]
    )
    yield from holds("a start at t = 1 leaves t = 0 at full size", ResolutionSchedule.thresholds([1]).level(0) == 0)
    yield from holds("four levels", schedule.levels == 4)
    defaults = (ResolutionSchedule.tanh(100, 3).starts, ResolutionSchedule.sigmoid(100, 3).starts)
    twos = (ResolutionSchedule.tanh(100, 3, 2.0).starts, ResolutionSchedule.sigmoid(100, 3, 2.0).starts)
    yield from holds("γ is 2 where it is not given", defaults == twos)


def refusals(_: Any) -> Iterator[Measurement]:
    schedule = ResolutionSchedule.thresholds([3], 10)
    for what, call in (
        ("a signal that is not 1 at t = 0", lambda: NoiseSchedule(np.array([0.9, 0.5]), np.array([0.0, 0.5]))),
        ("noise at t = 0", lambda: NoiseSchedule(np.array([1.0, 0.5]), np.array([0.1, 0.5]))),
        ("no noise at t = 1", lambda: NoiseSchedule(np.array([1.0, 0.5]), np.array([0.0, 0.0]))),
        ("a negative signal", lambda: NoiseSchedule(np.array([1.0, -0.5]), np.array([0.0, 0.5]))),
        ("a β above 1", lambda: NoiseSchedule.from_betas([0.5, 1.001])),
        ("a negative β", lambda: NoiseSchedule.from_betas([-0.001])),
        ("linear noise in 20 steps", lambda: NoiseSchedule.linear(20)),
        ("a log-SNR that rises", lambda: NoiseSchedule.from_log_snr([1.0, 1.0001])),
        ("a time after T", lambda: schedule.level(11)),
        ("a negative time", lambda: schedule.level(-1)),
        ("a level that starts after T", lambda: ResolutionSchedule.thresholds([11], 10)),
        ("starts in the wrong order", lambda: ResolutionSchedule.thresholds([4, 3])),
        ("more levels than steps", lambda: ResolutionSchedule.equal(3, 4)),
        ("tanh below γ = 1", lambda: ResolutionSchedule.tanh(100, 3, 0.9)),
    ):
        yield from refuses(what, ValueError, call)
    yield from holds("linear noise in 21 steps is accepted", NoiseSchedule.linear(21).steps == 21)
    yield from holds("a level may start at T", ResolutionSchedule.thresholds([10], 10).level(10) == 1)
    yield from agree("β = 1 leaves no signal", NoiseSchedule.from_betas([1.0]).alpha, reals([1, 0]))
