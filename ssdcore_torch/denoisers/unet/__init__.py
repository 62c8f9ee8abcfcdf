"""Flexi-UNet: one U-Net whose inner stages also serve as networks for the smaller image sizes.

An image of level k enters at the encoder stage made for its size, through a stem that all levels share and
a 1×1 adapter, and leaves at the end of the decoder stage of the level asked for, through another 1×1 adapter
and a shared head. When the output is larger than the input, the decoder stages that the encoder never
reached get no skip ("zero skip").
"""

from ssdcore_torch.denoisers.predictions import DATA_STD
from ssdcore_torch.denoisers.unet.config import FlexiUNetConfig, level_sizes
from ssdcore_torch.denoisers.unet.network import FlexiUNet, forward_flops

__all__ = ["DATA_STD", "FlexiUNet", "FlexiUNetConfig", "forward_flops", "level_sizes"]
