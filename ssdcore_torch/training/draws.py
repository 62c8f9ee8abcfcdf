"""What a training step draws, and the numbers that change from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ssdcore_torch.diffusion import Batch


@dataclass(frozen=True)
class Draw:
    """What a step draws for its whole batch, over all processes: a function of (config, seed, step) alone.

    Attributes:
        noise: standard normal, shaped `batch.noise_shape(channels)`
        rows: `Objective.rows` of the batch's times
        dropped: (batch,) bool: images that are trained without their label
    """

    batch: Batch
    noise: Tensor
    rows: Tensor
    dropped: Tensor


@dataclass(frozen=True)
class StepNumbers:
    """What else changes from step to step: plain numbers, or tensors of one on the device, for a CUDA graph to read.

    Attributes:
        step: the step's number
        rate: learning rate
        shares: of the new weights in each average
    """

    step: int | Tensor
    rate: float | Tensor
    shares: Sequence[float | Tensor]
