"""Resolution schedules designed by the exact error: the cheapest within a tolerance of full size."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from ssdcore._arrays import Shape, flushing, known_array, positive_int, real_number
from ssdcore.files import read_text, write_atomically
from ssdcore.operators.linear_map import positive_shape
from ssdcore.oracle._law import as_covariance, sampler_error
from ssdcore.oracle._times import optimal_times
from ssdcore.placement import PLACEMENTS, spread_times
from ssdcore.process import LinearDiffusion
from ssdcore.process.diffusion import level_shapes
from ssdcore.schedules import NoiseSchedule, ResolutionSchedule

_FORMAT = "ssdcore.schedule"
_VERSION = 1
_SEED_GAMMAS = (0.25, 0.5, 1.0, 2.0)  # ConvexDecay shapes that the search starts from, 1 being the equal schedule


@dataclass(frozen=True, eq=False)
class Design:
    """Result of `design_levels` and of `design_by_information`.

    Attributes:
        levels: the resolution schedule
        times: the sampling times, every level's start among them
        error: exact squared Fréchet error, summed over pixels, of this schedule at these times
        cost: Σ over the sampling times of the cost of their level
        full_error: error of the full-size chain at the same times
        full_cost: its cost
        floor: error of the schedule when every time of the process is visited: what changes of size leave, however
            many the steps (and what T steps leave)
        process: the `LinearDiffusion` that was measured
        evaluations: how many schedules were measured
        information: (levels, T) nats, the `level_information` that it was designed by; None from `design_levels`
    """

    levels: ResolutionSchedule
    times: tuple[int, ...]
    error: float
    cost: float
    full_error: float
    full_cost: float
    floor: float
    process: LinearDiffusion
    evaluations: int
    information: np.ndarray | None = None


@flushing
def design_levels(
    shape: Shape | int,
    noise: NoiseSchedule,
    covariance: Any,
    levels: int = 4,
    steps: int = 100,
    tolerance: float = 0.02,
    cost: Sequence[float] | None = None,
    *,
    times: Literal["best", "time", "log_snr"] | Sequence[int] = "best",
    eta: float = 1.0,
    order: Literal[1, 2] = 1,
    matched: bool = True,
    factor: float = 2,
    kernel: str = "bilinear",
    sizes: Sequence[Shape | int] | None = None,
) -> Design:
    """The cheapest schedule with `levels` levels whose exact error is at most (1 + tolerance) times that of the
    full-size chain with the same sampling times, for data N(m, C).

    Every level lasts at least one step and starts at a sampling time. The search starts from ConvexDecay shapes and
    from the schedule that stays at full size longest, and moves the starts by shrinking numbers of steps while the
    schedule gets cheaper and stays within the tolerance. The result is measured, not estimated. It is a local optimum:
    no cheaper schedule within the tolerance is reached by starting one level a step earlier, alone or with another
    level a step later. A global one is not guaranteed.

    Args:
        shape, noise, matched, factor, kernel, sizes: of the process, as `LinearDiffusion.resize` takes them
        covariance: C of one channel: (n, n) over the pixels in C order, or a `Covariance` (cosine is by far the
            fastest)
        steps: sampling steps
        eta, order: the sampler, as `sampler_error` takes them
        cost: of one step on each level, highest resolution first; it must not rise. None: the level's pixels
        times: "time" or "log_snr": uniform in it. "best": those, or times found by coordinate descent on the
            full-size error (`optimal_times`), whichever gives the full-size chain the least error. Or the times.

    Raises:
        ValueError: If nothing found is within the tolerance (saying the best found), if there are fewer steps than
            levels, and for arguments out of range.

    >>> covariance = ssd.Covariance.cosine((1 + np.hypot(*np.indices((16, 16)))) ** -2.5)
    >>> noise = ssd.NoiseSchedule.linear(1000)
    >>> design = ssd.oracle.design_levels((16, 16), noise, covariance, levels=2, steps=20, times="log_snr")
    >>> design.error <= 1.02 * design.full_error, design.cost < design.full_cost
    (True, True)
    """
    base = positive_shape(shape, "design_levels")
    data = as_covariance(covariance, base)
    levels, steps = positive_int(levels, "design_levels: levels"), positive_int(steps, "design_levels: steps")
    tolerance = real_number(tolerance, "design_levels: tolerance")
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"design_levels: the tolerance must be finite and not negative, got {tolerance}")
    if steps < levels:
        raise ValueError(
            f"design_levels: {levels} levels change size {levels - 1} times and need at least {levels} steps, "
            f"got {steps}"
        )
    shapes = level_shapes(base, levels, factor, sizes)
    each = level_costs(cost, pixels(shapes), "design_levels")

    def full_error(chosen: Sequence[int]) -> float:
        return sampler_error(LinearDiffusion.identity(base, noise), data, chosen, eta, order=order)

    if isinstance(times, str):
        candidates = [spread_times(noise, steps, s) for s in PLACEMENTS if times in (s, "best")]
        if times == "best":
            candidates.append(optimal_times(base, noise, data, steps, eta))
        if not candidates:
            raise ValueError(f"design_levels: times must be best, {', '.join(PLACEMENTS)}, or a list, got {times!r}")
        grid = min(candidates, key=full_error)
    else:
        grid = LinearDiffusion.identity(base, noise).respace(times).times
        if len(grid) != steps:
            raise ValueError(f"design_levels: {len(grid)} times were given for {steps} steps")

    def process(positions: tuple[int, ...]) -> LinearDiffusion:
        schedule = ResolutionSchedule.thresholds([grid[p] for p in positions], noise.steps)
        return LinearDiffusion.resize(base, noise, schedule, matched, kernel=kernel, sizes=shapes)

    search = _Search(steps, levels)
    errors: dict[tuple[int, ...], float] = {}

    def error(positions: tuple[int, ...]) -> float:
        if positions not in errors:
            errors[positions] = sampler_error(process(positions), data, grid, eta, order=order)
        return errors[positions]

    def price(positions: tuple[int, ...]) -> float:
        return float(sum(c * (high - low) for c, (low, high) in zip(each, pairwise((0, *positions, steps)))))

    reference = full_error(grid)
    limit = (1 + tolerance) * reference
    seeds = {search.conservative, *(search.convex(grid, noise.steps, gamma) for gamma in _SEED_GAMMAS)}
    best = next((seed for seed in sorted(seeds, key=price) if error(seed) <= limit), None)
    if best is None:
        nearest = min(errors, key=errors.__getitem__)
        raise ValueError(
            f"design_levels: no {levels}-level schedule found within a tolerance of {tolerance:g} of the full-size "
            f"error {reference:.4g} at {steps} steps; the best found, starts {tuple(grid[p] for p in nearest)}, has "
            f"{errors[nearest] / reference:.4g} times it: raise the tolerance, take more steps, or fewer levels"
        )
    stride = 2 ** int(math.log2(max(steps // 4, 1)))
    while stride >= 1:
        cheaper = (m for m in sorted(search.moves(best, stride), key=price) if price(m) < price(best))
        better = next((move for move in cheaper if error(move) <= limit), None)
        if better is None:
            stride //= 2
        else:
            best = better
    proc = process(best)
    schedule = ResolutionSchedule.thresholds([grid[p] for p in best], noise.steps)
    floor = sampler_error(proc, data, None, eta, order=order)
    return Design(schedule, grid, error(best), price(best), reference, steps * each[0], floor, proc, len(errors))


@dataclass(frozen=True)
class _Search:
    """Schedules as positions among the sampling times: level k starts at times[positions[k − 1]]."""

    steps: int
    levels: int

    @property
    def conservative(self) -> tuple[int, ...]:
        """Every low level for one step only, at the noisy end."""
        return tuple(range(self.steps - self.levels + 1, self.steps))

    def valid(self, positions: tuple[int, ...]) -> bool:
        return all(a < b for a, b in pairwise((0, *positions, self.steps)))

    def convex(self, grid: Sequence[int], last: int, gamma: float) -> tuple[int, ...]:
        """The sampling times at or after the starts of ConvexDecay, pushed apart where they coincide."""
        starts = ResolutionSchedule.convex(last, self.levels, gamma).starts
        positions = [int(np.searchsorted(grid, start)) for start in starts]
        for k in range(len(positions)):
            positions[k] = max(positions[k], positions[k - 1] + 1 if k else 1)
        for k in reversed(range(len(positions))):
            positions[k] = min(positions[k], self.steps - len(positions) + k)
        return tuple(positions)

    def moves(self, positions: tuple[int, ...], stride: int) -> Iterator[tuple[int, ...]]:
        """One level `stride` steps earlier, alone or with another as much later."""
        for k in range(len(positions)):
            for j in range(len(positions)):
                moved = list(positions)
                moved[k] -= stride
                if j != k:
                    moved[j] += stride
                if self.valid(tuple(moved)):
                    yield tuple(moved)


def pixels(shapes: Sequence[Shape]) -> list[float]:
    """What a step on each level costs unless a caller knows better."""
    return [float(math.prod(shape)) for shape in shapes]


def level_costs(cost: Sequence[float] | None, default: Sequence[float], what: str) -> list[float]:
    """Of one step on each level, highest resolution first: `cost`, or where that is None `default`.

    Raises:
        ValueError: For another number of levels, and for costs that are not finite and positive or that rise.
    """
    if cost is None:
        return list(default)
    each = known_array(cost, f"{what}: cost").astype(np.float64)
    if each.shape != (len(default),) or not ((each > 0) & (each < math.inf)).all() or (np.diff(each) > 0).any():
        raise ValueError(
            f"{what}: expected {len(default)} costs, one for each level, that are finite, positive and do not rise "
            f"from level to level, got {each.tolist()}"
        )
    return [float(c) for c in each]


@dataclass(frozen=True)
class Schedule:
    """A process and the times to sample it at, as a small JSON file that design writes and training reads.

    The file is one JSON object with these names and "format": "ssdcore.schedule", "version": 1.

    Attributes:
        sizes: shape of every level, the full one first
        starts: time at which level k = 1, 2, … starts
        noise: a name that `NoiseSchedule.named` takes
        steps: its T
        matched: scale-matched noise or the paper's
        kernel: of the resizes
        times: sampling times, increasing, within 1 … T
        eta, order: the sampler they were designed for
        error, full_error: exact squared Fréchet errors of the design and of the full-size chain, for the record
    """

    sizes: tuple[Shape, ...]
    starts: tuple[int, ...]
    noise: str
    steps: int
    matched: bool
    kernel: str
    times: tuple[int, ...]
    eta: float = 1.0
    order: int = 1
    error: float | None = None
    full_error: float | None = None

    def __post_init__(self) -> None:
        if self.noise not in NoiseSchedule.names():
            raise ValueError(
                f"schedule: unknown noise {self.noise!r}; choose one of {', '.join(NoiseSchedule.names())}"
            )
        self.process().respace(self.times)  # refuses sizes, starts and times that do not fit together

    def process(self) -> LinearDiffusion:
        """The process over the full steps 1 … T; `times` are for its `respace`."""
        levels = ResolutionSchedule.thresholds(self.starts, self.steps)
        noise = NoiseSchedule.named(self.noise, self.steps)
        return LinearDiffusion.resize(
            self.sizes[0], noise, levels, matched=self.matched, kernel=self.kernel, sizes=self.sizes
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, replacing it in one step."""
        content = {"format": _FORMAT, "version": _VERSION, **asdict(self)}
        text = json.dumps(content, indent=1) + "\n"
        write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, path: str | os.PathLike[str], shape: Shape | None = None) -> Schedule:
        """Read a file.

        Args:
            shape: the full size that is wanted, or None for any

        Raises:
            ValueError: In one line with the file's name, for a file that is none, is broken, or is for another
                size.
        """
        try:
            content = json.loads(read_text(path))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a schedule file: {error}") from error
        if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
            raise ValueError(f"{path} is not a schedule file: expected a JSON object with the format {_FORMAT!r}")
        version = content.pop("version", None)
        if version != _VERSION:
            raise ValueError(f"{path}: schedule file of version {version!r}, this code reads version {_VERSION}")
        try:
            content["sizes"] = tuple(tuple(size) for size in content["sizes"])
            content["starts"], content["times"] = tuple(content["starts"]), tuple(content["times"])
            schedule = cls(**content)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: broken schedule file: {type(error).__name__}: {error}") from error
        if shape is not None and schedule.sizes[0] != tuple(shape):
            raise ValueError(
                f"{path} is a schedule for the size {schedule.sizes[0]}, expected {tuple(shape)}; "
                "design one for that size"
            )
        return schedule
