"""Resolution schedules designed by information: the cheapest whose changes of size lose no more than some nats."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ssdcore._arrays import Shape, flushing, known_array, positive_int, real_number
from ssdcore.operators.linear_map import positive_shape
from ssdcore.oracle._design import Design, level_costs, pixels
from ssdcore.oracle._information import level_information
from ssdcore.oracle._law import as_covariance, sampler_error
from ssdcore.placement import falling, sampling_times
from ssdcore.process import LinearDiffusion
from ssdcore.process.diffusion import level_shapes
from ssdcore.schedules import NoiseSchedule, ResolutionSchedule

_LEAST_STEPS = 2  # on a level below the first: one alone, right after a change, is of first order
_HALVINGS = 60
_ROUNDING = 1e-9  # of the most that a table holds, by which its rows may rise


def natural_spectrum(shape: Shape | int, exponent: float = 2.5, deviation: float = 0.5) -> np.ndarray:
    """Variances of the cosine modes of images whose power falls with the frequency as photographs' does.

    ::

        λ(f) ∝ (1 + |f|²)^(−exponent/2),  f in half waves over the longer side

    The power of photographs falls with the frequency to the −2 or −3 (Field, 1987). For `Covariance.cosine`
    and `band_information`, where there are no data to fit.

    Args:
        shape: of the images, with any number of axes
        exponent: at least 0, which is white
        deviation: standard deviation of a pixel, in its units; the mean variance of the modes is its square

    Returns:
        np.ndarray: float64, shaped as `shape`, the lowest frequency first on every axis

    >>> spectrum = ssd.oracle.natural_spectrum((16, 16))
    >>> round(float(spectrum.mean()), 3), bool(spectrum[0, 1] > 100 * spectrum[0, 15])
    (0.25, True)
    """
    base = positive_shape(shape, "natural_spectrum")
    exponent = real_number(exponent, "natural_spectrum: exponent")
    deviation = real_number(deviation, "natural_spectrum: deviation")
    if not (math.isfinite(exponent) and exponent >= 0 and math.isfinite(deviation) and deviation > 0):
        raise ValueError(
            "natural_spectrum: expected an exponent of at least 0 and a positive deviation, got "
            f"{exponent} and {deviation}"
        )
    longer = max(base)
    axes = np.meshgrid(*(np.arange(n) * (longer / n) for n in base), indexing="ij")
    power = (1 + sum(f**2 for f in axes)) ** (-exponent / 2)
    return np.asarray(power * (deviation**2 / power.mean()))


def band_information(
    sizes: Sequence[Shape | int], noise: NoiseSchedule, spectrum: Any, matched: bool = True
) -> np.ndarray:
    """`level_information` for ideal resizes, which keep the cosine modes that a size has and drop the others.

    A closed form for images of any size, where the exact operators of `level_information` take minutes.

    Args:
        sizes: of the levels, the full one first; each within the one before
        noise: of the full size
        spectrum: variances of the full size's cosine modes, shaped as it: what `Covariance.cosine` takes
        matched: scale-matched noise or the paper's, as `LinearDiffusion.resize` takes it

    Returns:
        np.ndarray: (levels, T) nats of one channel

    Raises:
        ValueError: For a spectrum of another shape than the full size, with negative variances or ones that are not
            finite, and for sizes that grow or have other axes.
    """
    if not isinstance(sizes, Iterable):
        raise TypeError(f"band_information: sizes: expected a list of shapes, got {sizes!r}")
    shapes = [positive_shape(size, "band_information: sizes") for size in sizes]
    if not shapes:
        raise ValueError("band_information: expected a size for each level, got none")
    variances = known_array(spectrum, "band_information").astype(np.float64)
    if variances.shape != shapes[0]:
        raise ValueError(
            f"band_information: expected a spectrum of the full size {shapes[0]}, got the shape {variances.shape}"
        )
    if not (np.isfinite(variances).all() and (variances >= 0).all()):
        raise ValueError("band_information: expected variances that are finite and not negative")
    for high, low in pairwise(shapes):
        if len(high) != len(low) or any(b > a for a, b in zip(high, low)):
            raise ValueError(
                f"band_information: expected sizes that fall, each within the one before, got {low} after {high}"
            )
    ratio = np.square(noise.alpha[1:] / noise.sigma[1:])
    rows = []
    for size in shapes:
        kept, counts = np.unique(variances[tuple(slice(n) for n in size)], return_counts=True)
        # unmatched noise is as large on every pixel, and a small image has fewer to tell of each mode
        share = 1.0 if matched else math.prod(size) / math.prod(shapes[0])
        rows.append([0.5 * float(np.log1p(r * share * kept) @ counts) for r in ratio])
    return np.array(rows)


def information_starts(
    information: Any, noise: NoiseSchedule, nats: float = 1.0, steps: int = 20, cost: Sequence[float] | None = None
) -> tuple[int, ...]:
    """Starts of the levels k = 1, 2, … that cost least while the changes of size lose at most `nats` in all.

    What a change to level k at time t loses is what the larger state would have told of the image, row k − 1 of
    `information` minus row k at t: a sampler must invent it again after the change. Steps count as even in log-SNR, as
    all of "multistep" are but the one after each change, and each costs what its level does; so a change may lose the
    more, the more it saves. Where every octave of the data carries as much as any other (photographs, at much noise),
    each change comes later than the one before by the same factor of the signal-to-noise ratio. A level that would have
    fewer than two steps is skipped: its start is the next one's, and the size changes by more than one level at once.
    So steps may be fewer than levels. If every schedule loses more than `nats`, the one that loses least is taken.

    Args:
        information: (levels, T) nats of one channel, from `level_information` or `band_information`; only the
            differences of its rows count, and none may be negative
        noise: of the full size
        nats: that all changes together may lose, per channel
        steps: of sampling, at least 3
        cost: of one step on each level, highest resolution first, in any unit; it must not rise. None: a quarter of
            the level before

    Returns:
        tuple[int, ...]: a time of 2 … T for each level but the first, for `ResolutionSchedule.thresholds`; no level
        starts before the one above it

    Raises:
        ValueError: For fewer steps than one at full size and two on the last level, and for arguments out of range.

    >>> noise, sizes = ssd.NoiseSchedule.linear(1000), [(64, 64), (32, 32), (16, 16), (8, 8)]
    >>> known = ssd.oracle.band_information(sizes, noise, ssd.oracle.natural_spectrum((64, 64)))
    >>> [ssd.oracle.information_starts(known, noise, nats) for nats in (5, 1, 0.2)]
    [(415, 598, 747), (562, 717, 846), (689, 822, 937)]
    """
    table = known_array(information, "information_starts").astype(np.float64)
    if table.ndim != 2 or len(table) == 0 or table.shape[1] != noise.steps:
        raise ValueError(
            f"information_starts: expected information of the shape (levels, {noise.steps}), got {table.shape}"
        )
    if not np.isfinite(table).all():
        raise ValueError("information_starts: expected finite nats in the information, got some that are not")
    rise = np.diff(table, axis=0).max(initial=0.0)
    if rise > _ROUNDING * np.abs(table).max():
        raise ValueError(
            f"information_starts: a smaller level tells no more than a larger one, but a row of the information rises "
            f"by {rise:.3g} nats over the one before: give the full size first"
        )
    nats, steps = _checked(nats, steps, len(table))
    each = level_costs(cost, [4.0**-k for k in range(len(table))], "information_starts")
    if len(table) == 1:
        return ()
    return _Problem(_positions(noise, steps), table, np.array(each)).cheapest(nats)


def _checked(nats: float, steps: int, levels: int) -> tuple[float, int]:
    nats, steps = real_number(nats, "information_starts: nats"), positive_int(steps, "information_starts: steps")
    if not (math.isfinite(nats) and nats > 0):
        raise ValueError(f"information_starts: nats must be finite and positive, got {nats}")
    if levels > 1 and steps <= _LEAST_STEPS:
        raise ValueError(
            f"information_starts: one step at full size and {_LEAST_STEPS} below it need at least {_LEAST_STEPS + 1} "
            f"steps, got {steps}"
        )
    return nats, steps


@flushing
def design_by_information(
    shape: Shape | int,
    noise: NoiseSchedule,
    covariance: Any,
    levels: int = 4,
    steps: int = 20,
    nats: float = 1.0,
    cost: Sequence[float] | None = None,
    *,
    matched: bool = True,
    factor: float = 2,
    kernel: str = "bilinear",
    sizes: Sequence[Shape | int] | None = None,
) -> Design:
    """The schedule of `information_starts` for data N(m, C), with its times, cost and exact error.

    `sampler_error` with second moments does not see what a change loses, since Gaussian data are invented exactly; a
    network's samples show it.

    Args:
        shape, noise, matched, factor, kernel, sizes: of the process, as `LinearDiffusion.resize` takes them
        covariance: C of one channel: (n, n) over the pixels in C order, or a `Covariance` (cosine is by far the
            fastest)
        levels: how many there are to choose from; some may be skipped
        steps, nats, cost: as `information_starts` takes them, steps at most T; cost None: the level's pixels

    Returns:
        Design: its errors are those of second-order multistep sampling with second moments, at the times of
        `sampling_times`. Its `information` tells what each change loses.

    Raises:
        ValueError: As `information_starts`, and for more steps than T, more levels than there are sizes, and a
            covariance of another shape.

    >>> covariance = ssd.Covariance.cosine(ssd.oracle.natural_spectrum((16, 16)))
    >>> design = ssd.oracle.design_by_information((16, 16), ssd.NoiseSchedule.linear(1000), covariance, levels=3)
    >>> design.levels.starts, round(design.cost / design.full_cost, 2)
    ((468, 641), 0.56)
    """
    base = positive_shape(shape, "design_by_information")
    data, full = as_covariance(covariance, base), LinearDiffusion.identity(base, noise)
    levels = positive_int(levels, "design_by_information: levels")
    nats, steps = _checked(nats, steps, levels)
    if steps > noise.steps:
        raise ValueError(
            f"design_by_information: steps = {steps}: the process has only {noise.steps}; take at most that many"
        )
    shapes = level_shapes(base, levels, factor, sizes)
    each = level_costs(cost, pixels(shapes), "design_by_information")
    information = level_information(base, noise, data, levels, matched, kernel=kernel, sizes=shapes)
    schedule = ResolutionSchedule.thresholds(information_starts(information, noise, nats, steps, each), noise.steps)
    proc = LinearDiffusion.resize(base, noise, schedule, matched, kernel=kernel, sizes=shapes)
    times = sampling_times(proc, steps, "log_snr")

    def error(of: LinearDiffusion, visited: Sequence[int] | None) -> float:
        return sampler_error(of, data, visited, 0.0, order=2, second_moments=True)

    return Design(
        levels=schedule,
        times=times,
        error=error(proc, times),
        cost=float(sum(each[schedule.level(t)] for t in times)),
        full_error=error(full, times),
        full_cost=steps * each[0],
        floor=error(proc, None),
        process=proc,
        evaluations=1,
        information=information,
    )


def _positions(noise: NoiseSchedule, steps: int) -> np.ndarray:
    """Where each time 1 … T lies among `steps` steps that are even in log-SNR: 0 at t = 1, steps − 1 at T."""
    fallen = falling(noise.log_snr())
    fallen = fallen - fallen[0]
    return np.asarray((steps - 1) * fallen / fallen[-1] if fallen[-1] > 0 else np.zeros(len(fallen)))


@dataclass(frozen=True)
class _Problem:
    """Starts that make Σ steps · cost least while the changes lose at most some nats.

    Attributes:
        positions: (T,) of the times 1 … T among the sampling steps
        information: (levels, T) nats
        cost: (levels,) of a step
    """

    positions: np.ndarray
    information: np.ndarray
    cost: np.ndarray

    def cheapest(self, nats: float) -> tuple[int, ...]:
        """Of the starts that are cheapest at some price of a nat, the cheapest that lose at most `nats`."""
        low, high = 0.0, 1.0
        if self.loss(latest := self.starts(math.inf)) > nats:
            return latest
        while self.loss(self.starts(high)) > nats:
            low, high = high, 2 * high
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if self.loss(self.starts(middle)) <= nats else (middle, high)
        return self.starts(high)

    def loss(self, starts: Sequence[int]) -> float:
        """Nats that the changes lose together; one over several levels loses what theirs would."""
        lost = self.information[:-1] - self.information[1:]
        return float(sum(row[start - 1] for row, start in zip(lost, starts)))

    def starts(self, price: float) -> tuple[int, ...]:
        """The starts of least cost + price · nats, by dynamic programming over the level and time of each change."""
        cost, price = (np.zeros_like(self.cost), 1.0) if math.isinf(price) else (self.cost, price)
        times = np.arange(len(self.positions))
        # the last time at which a level below the first can have started that ends at each time; negative: none
        early = np.searchsorted(self.positions, self.positions - _LEAST_STEPS, side="right") - 1
        least = np.full((len(cost), len(times)), np.inf)  # of the levels so far, by the time at which one starts
        least[0, 0] = 0.0
        came = np.zeros((len(cost), len(times), 2), dtype=int)  # from which level, and when that started
        for low in range(1, len(cost)):
            for high in range(low):
                since = least[high] - cost[high] * self.positions
                cheapest = np.minimum.accumulate(since)
                started = np.maximum.accumulate(np.where(since == cheapest, times, 0))
                known = times - 1 if high == 0 else early
                lost = self.information[high] - self.information[low]
                total = np.where(known >= 0, cheapest[known], np.inf) + cost[high] * self.positions + price * lost
                better = total < least[low]
                least[low] = np.where(better, total, least[low])
                came[low][better] = np.stack([np.full(len(times), high), started[known]], axis=1)[better]
        ends = least[-1] - cost[-1] * self.positions
        ends[self.positions > self.positions[-1] - (_LEAST_STEPS - 1)] = np.inf  # T is one of its steps
        level, time = len(cost) - 1, int(np.argmin(ends))
        if not np.isfinite(ends[time]):
            raise ValueError(
                f"information_starts: {len(times)} times have no room for {_LEAST_STEPS} steps below full size: take "
                "one level, or a process of more steps"
            )
        starts = [0] * level
        while level:
            higher, since_when = (int(n) for n in came[level, time])
            starts[higher:level] = [time + 1] * (level - higher)
            level, time = higher, since_when
        return tuple(starts)
