"""A network as it draws fastest on its device."""

from __future__ import annotations

import copy

import torch

from ssdcore_torch.denoisers.unet import FlexiUNet


def drawing_network(net: FlexiUNet, in_bfloat16: bool) -> FlexiUNet:
    """`net` to draw with: a copy in evaluation mode with weights in bfloat16, if asked for, and, on CUDA, in the layout
    of its convolutions and with its paths as graphs. `net` itself where nothing is to change."""
    on_cuda = next(net.parameters()).is_cuda
    if not (in_bfloat16 or on_cuda):
        return net
    twin = copy.deepcopy(net).eval().requires_grad_(False)
    if in_bfloat16:
        twin.lower_precision(torch.bfloat16)
    if on_cuda:
        twin.to(memory_format=torch.channels_last).capture_paths()  # type: ignore[call-overload]
    return twin
