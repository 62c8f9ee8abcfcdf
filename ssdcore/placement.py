"""Which times of a process a sampler visits: uniform in time, or in the log signal-to-noise ratio."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

from ssdcore.process import LinearDiffusion
from ssdcore.schedules import NoiseSchedule

Placement = Literal["time", "log_snr"]


def _even_in_time(noise: NoiseSchedule, steps: int) -> np.ndarray:
    return np.linspace(1, noise.steps, steps) if steps > 1 else np.array([float(noise.steps)])


def _even_in_log_snr(noise: NoiseSchedule, steps: int) -> np.ndarray:
    log_snr = noise.log_snr()
    finite = np.isfinite(log_snr)
    goals = np.linspace(log_snr[0], log_snr[finite][-1], steps) if steps > 1 else log_snr[finite][-1:]
    return np.interp(-goals, -log_snr[finite], np.arange(1, noise.steps + 1)[finite])


_RULES: Mapping[Placement, Callable[[NoiseSchedule, int], np.ndarray]] = {
    "time": _even_in_time,
    "log_snr": _even_in_log_snr,
}
PLACEMENTS: tuple[Placement, ...] = tuple(_RULES)


def spread_times(
    noise: NoiseSchedule, steps: int, placement: Placement = "time", required: Sequence[int] = ()
) -> tuple[int, ...]:
    """`steps` increasing times of 1 … T with T among them, uniform in time or in the log-SNR of `noise`.

    Times are whole numbers: where rounding makes two equal, the nearest free one is taken. Raises ValueError for more
    steps than T, or fewer than T and the required times need.

    Args:
        required: times that must be among them (the starts of the levels, where the size changes); the nearest of
            the others make room
    """
    total = noise.steps
    _check_placement(placement)
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
    free = np.ones(total + 1, dtype=bool)
    free[0] = False
    chosen: set[int] = set()
    for goal in _RULES[placement](noise, steps)[::-1]:
        candidates = np.flatnonzero(free)
        t = int(candidates[np.argmin(np.abs(candidates - round(goal)))])
        free[t] = False
        chosen.add(t)
    for t in needed:
        if t not in chosen:
            chosen.remove(min(chosen.difference(needed), key=lambda other: (abs(other - t), other)))
            chosen.add(t)
    return tuple(sorted(chosen))


def sampling_times(proc: LinearDiffusion, steps: int, placement: Placement = "time", first: int = 1) -> tuple[int, ...]:
    """`steps` increasing times from `first` to T, with every time at which the state's size changes.

    A network learns to raise the size only at the first time of a level, so the chain must pass there.

    Args:
        placement: "time": uniform in t; "log_snr": uniform in the log signal-to-noise ratio 2 log(‖M_{0→t}‖/σ_t) of
            the mode that the degradation keeps best, which never rises with t (condition of theorem 1) and, with
            scale-matched noise, continues smoothly through the changes of size: as even as the times where the size
            changes allow, but for the first step after each of these, which is half as long: it is of first order. A
            size between two others has two steps at least, where there are enough
        first: the least time, where the last step of sampling starts. Steps that are even in log-SNR spend many at
            little noise; a network that is not accurate to σ there gains from starting where σ is about its error.

    Raises:
        ValueError: For fewer steps than such times, more than there are, an unknown placement, or a `first` outside
            1 … T or after the first change of size.
    """
    _check_placement(placement)
    changes = proc.size_changes
    needed = sorted({proc.steps, *changes})
    if not 1 <= first <= needed[0]:
        raise ValueError(f"first: expected a time of 1 … {needed[0]}, up to the first change of size, got {first}")
    if steps < len(needed):
        raise ValueError(
            f"steps = {steps}: the chain must start at t = {proc.steps} and pass the {len(changes)} times where "
            f"the size changes, {list(changes)}; take at least {len(needed)} steps"
        )
    if steps > (most := proc.steps - first + 1):
        raise ValueError(f"steps = {steps}: the process has only {most} from t = {first} on; take at most that many")
    if placement == "time":
        noise = proc.respace(range(first, proc.steps + 1)).noise
        times = spread_times(noise, steps, placement, [t - first + 1 for t in changes])
        return tuple(t + first - 1 for t in times)
    fallen = falling(proc.kept(_log_snr_of_the_best_kept)[first - 1 :])
    fixed = needed if steps == len(needed) else sorted({first, *needed})
    return tuple(t + first for t in _even_between([t - first for t in fixed], steps, fallen, fixed.index(needed[0])))


def falling(log_snr: np.ndarray) -> np.ndarray:
    """−log-SNR, made never to fall; times without signal are as the last that has some."""
    fallen = -log_snr
    return np.asarray(np.maximum.accumulate(np.minimum(fallen, fallen[np.isfinite(fallen)][-1])))


def _log_snr_of_the_best_kept(proc: LinearDiffusion) -> np.ndarray:
    """2 log(‖M_{0→t}‖/σ_t) at t = 1 … T."""
    with np.errstate(divide="ignore"):
        kept = np.log([proc.degradation(0, t).norm() for t in range(1, proc.steps + 1)])
    return np.asarray(2 * (kept - np.log(proc.noise.sigma[1:])))


_AFTER_CHANGE = 0.5
"""The first step after a change of size, as a share of the others: it alone is of first order, as the prediction before
it is of another size, so an even step there would err by more than all the others."""


def _even_between(fixed: Sequence[int], steps: int, fallen: np.ndarray, first_change: int) -> list[int]:
    """`steps` indices of `fallen`, the fixed ones among them, whose values are as even as these allow.

    Each further index goes where the gaps are largest; before that, every size between two others gets one, where there
    are enough.

    Args:
        first_change: which of the fixed indices is the first change of size, or the last index
    """
    spans = [fallen[b] - fallen[a] for a, b in pairwise(fixed)]
    room = [b - a - 1 for a, b in pairwise(fixed)]
    # steps that a span has, in full ones, beside one for each index inside: its upper end is a change, or T
    ends = [*[_AFTER_CHANGE] * (len(spans) - 1), 1.0]
    inside = [0] * len(spans)
    left = steps - len(fixed)
    between = range(first_change, len(spans) - 1)
    if left >= len(between):
        for k in between:
            inside[k] = min(1, room[k])
    for _ in range(left - sum(inside)):
        open_spans = [k for k in range(len(spans)) if inside[k] < room[k]]
        inside[max(open_spans, key=lambda k: spans[k] / (inside[k] + ends[k]))] += 1
    chosen = list(fixed)
    for (start, end), count, share in zip(pairwise(fixed), inside, ends):
        free = np.arange(start + 1, end)
        step = (fallen[end] - fallen[start]) / (count + share)
        goals = fallen[start] + step * np.arange(count, 0, -1)
        for goal in np.interp(goals, fallen[start : end + 1], np.arange(start, end + 1)):
            nearest = int(np.argmin(np.abs(free - round(goal))))
            chosen.append(int(free[nearest]))
            free = np.delete(free, nearest)
    return sorted(chosen)


def _check_placement(placement: str) -> None:
    if placement not in PLACEMENTS:
        raise ValueError(f"placement: expected one of {', '.join(PLACEMENTS)}, got {placement!r}")
