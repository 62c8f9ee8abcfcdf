"""A network as it draws fastest on its device."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ssdcore_torch.denoisers import device_of


def drawing_network(net: Any, in_bfloat16: bool) -> Any:
    """`net` to draw with: a copy in evaluation mode with weights in bfloat16, if asked for, and, on CUDA, in the layout
    of its convolutions and, where it can, with its paths as graphs. `net` itself where nothing is to change."""
    on_cuda = device_of(net).type == "cuda"
    if not (in_bfloat16 or on_cuda) or not isinstance(net, nn.Module):
        return net
    twin: Any = copy.deepcopy(net).eval().requires_grad_(False)
    if in_bfloat16 and hasattr(twin, "lower_precision"):
        twin.lower_precision(torch.bfloat16)
    if on_cuda:
        if len(twin.sizes[0]) == 2:
            twin.to(memory_format=torch.channels_last)
        if hasattr(twin, "capture_paths"):
            twin.capture_paths()
    return twin
