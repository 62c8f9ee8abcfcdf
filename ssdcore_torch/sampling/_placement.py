"""Which times of the process a sampler visits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

import ssdcore as ssd

Placement = Literal["time", "log_snr"]
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)


def sampling_times(
    proc: ssd.LinearDiffusion, steps: int, placement: Placement = "time", first: int = 1
) -> tuple[int, ...]:
    """`steps` increasing times from `first` to T, with every time at which the state's size changes.

    The network learns to raise the size only at the first time of a level, so the chain must pass there.

    Args:
        placement: "time": uniform in t; "log_snr": uniform in the log signal-to-noise ratio 2 log(‖M_{0→t}‖/σ_t) of
            the mode that the degradation keeps best, which never rises with t (condition of theorem 1) and, with
            scale-matched noise, goes on smoothly through the changes of size
        first: the least time, where the last step of sampling starts. Steps that are even in log-SNR spend many at
            little noise; a network that is not accurate to σ there gains from starting where σ is about its error.

    Raises:
        ValueError: For fewer steps than such times, more than there are, an unknown placement, or a `first` outside
            1 … T or after the first change of size.
    """
    if placement not in PLACEMENTS:
        raise ValueError(f"placement: expected one of {', '.join(PLACEMENTS)}, got {placement!r}")
    changes = proc.size_changes
    needed = sorted({proc.steps, *changes})
    if not 1 <= first <= needed[0]:
        raise ValueError(f"first: expected a time of 1 … {needed[0]}, up to the first change of size, got {first}")
    if steps < len(needed):
        raise ValueError(
            f"steps = {steps}: the chain must start at t = {proc.steps} and pass the {len(changes)} times where "
            f"the size changes, {list(changes)}; take at least {len(needed)} steps"
        )
    if placement == "log_snr":
        with np.errstate(divide="ignore"):
            kept = np.log([proc.degradation(0, t).norm() for t in range(first, proc.steps + 1)])
        noise = ssd.NoiseSchedule.from_log_snr(np.minimum.accumulate(2 * (kept - np.log(proc.noise.sigma[first:]))))
    else:
        noise = proc.respace(range(first, proc.steps + 1)).noise
    skipped = first - 1
    times = ssd.oracle.sampling_times(noise, steps, placement, [t - skipped for t in changes])
    return tuple(t + skipped for t in times)


def chain_of(
    proc: ssd.LinearDiffusion, steps: int, placement: Placement, times: Sequence[int] | None = None
) -> ssd.LinearDiffusion:
    """The process at `times`, or at those of `sampling_times`; ValueError unless it passes every change of size."""
    if times is None:
        return proc.respace(sampling_times(proc, steps, placement))
    chain = proc.respace(times)
    if missing := sorted({proc.steps, *proc.size_changes}.difference(times)):
        raise ValueError(
            f"times: expected T and every time where the size changes among them, missing {missing}; add these"
        )
    return chain
