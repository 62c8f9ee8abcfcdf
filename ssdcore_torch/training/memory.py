"""Whether a run can fit the memory at all, found out before anything is made."""

from __future__ import annotations

import torch

from ssdcore_torch.config import Config
from ssdcore_torch.denoisers.unet import FlexiUNet, FlexiUNetConfig
from ssdcore_torch.devices import memory_of


def check_memory(config: Config, device: torch.device, processes: int = 1) -> None:
    """Raises ValueError for a network or a batch that takes more than all the memory of the device: by a lower bound,
    so that what passes may still not fit. A network of the user's own is there already, and is not looked at."""
    if not isinstance(config.network, FlexiUNetConfig):
        return
    with torch.device("meta"):
        parameters = sum(p.numel() for p in FlexiUNet(config.network).parameters())
    train, room = config.train, memory_of(device)
    state = 4 * parameters * (4 + len(train.ema) + len(train.ema_widths))
    if state > room:
        raise ValueError(
            f"network: {parameters:.3g} parameters take {_gib(state)} with their gradients, moments and averages, and "
            f"{device} has {_gib(room)}: take fewer channels (network.base_channels) or blocks"
        )
    part = max(1, train.batch_size // (processes * train.accumulate))
    height, width = config.network.level_sizes[0]
    batch = 2 * part * config.network.base_channels * height * width  # one layer's values in bfloat16
    if batch > room:
        raise ValueError(
            f"train.batch_size: {part} images of {height}×{width} at once take {_gib(batch)} in every layer, and "
            f"{device} has {_gib(room)}: lower --batch-size or --size, or raise train.accumulate"
        )


def _gib(count: float) -> str:
    return f"{count / 2**30:.3g} GiB"
