"""Images drawn by several processes together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import ssdcore as ssd
from ssdcore_torch.denoisers import Predictor, channels_of
from ssdcore_torch.distributed import World
from ssdcore_torch.sampling._generate import generate


def generate_shared(
    world: World,
    net: Predictor,
    process: ssd.LinearDiffusion,
    n: int,
    *,
    labels: list[int] | None = None,
    **options: Any,
) -> Tensor:
    """`ssdcore_torch.generate` with its n samples drawn by all ranks together; every rank gets all, and the same ones
    as a world of one. `on_step` sees this rank's only."""
    mine = world.share(n)
    shape = (len(mine), channels_of(net, options.get("channels")), *process.shape(0))
    drawn = torch.empty(shape, device=world.device)
    if mine:
        chosen = None if labels is None else [labels[i] for i in mine]
        drawn = generate(net, process, len(mine), first=mine.start, labels=chosen, **options)
    return world.gather(drawn)
