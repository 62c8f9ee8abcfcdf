"""The process at the times that a sampler visits."""

from __future__ import annotations

from collections.abc import Sequence

import ssdcore as ssd
from ssdcore.placement import PLACEMENTS, Placement, sampling_times

__all__ = ["PLACEMENTS", "Placement", "chain_of", "sampling_times"]


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
