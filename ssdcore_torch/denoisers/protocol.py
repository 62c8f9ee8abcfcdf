"""What a network is to the trainer, the samplers and the run folder, and what they ask of any other callable."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

import ssdcore as ssd

Size = tuple[int, ...]
"""Trailing shape of a state: (h, w) of an image, (n,) of a signal, (d, h, w) of a volume."""

Predictor = Callable[..., Tensor]
"""net(x, t, out_level=…[, label=…]) -> clean images: a `Denoiser`, or any other callable."""


@runtime_checkable
class Denoiser(Protocol):
    """A network that predicts clean images: a module with four attributes.

    ::

        net(x, t, out_level=None, label=None)

    - x: ``(batch, channels, *size)``, size one of `sizes`: so its level is found
    - t: (batch,) process times 1 … T

    out_level  index into `sizes` of the prediction, at most that of x (0: full size); None: the level of x

    - label: (batch,) int64 class labels, `null_label` among them; None: no class. Given to class-conditional networks
      only

    Returns ``(batch, channels, *sizes[out_level])``: the clean image at that size, as the process degrades it at the
    first time of the size. (For a resize that is R_{0→s} x_0; for a blur, which keeps the size, x_0 itself.)

    `FlexiUNet` is one; `wrap` makes one of any module.

    A denoiser that also says ``batch_independent = True`` promises that each image's prediction depends on that image,
    its time and label alone, and that a call changes nothing of the network: on a CPU the threads of one process then
    call it at the same time, each with a part of the batch. (Dropout and batch norm are seen without being told of, see
    `ssdcore_torch.parts.threads_for`.)

    Attributes:
        sizes: trailing shapes of the states, full size first: one per level
        channels: of the images, in and out
        num_classes: class-conditional if not None
        null_label: the label that means "no class", which guidance compares with; None: there is none
    """

    @property
    def sizes(self) -> tuple[Size, ...]: ...
    @property
    def channels(self) -> int: ...
    @property
    def num_classes(self) -> int | None: ...
    @property
    def null_label(self) -> int | None: ...

    def __call__(self, x: Tensor, t: Tensor, out_level: int | None = None, label: Tensor | None = None) -> Tensor: ...


def level_sizes_of(net: Predictor, proc: ssd.LinearDiffusion) -> list[Size]:
    """The size of each of the network's levels: those it was built for, or the process's for another callable."""
    return list(net.sizes) if isinstance(net, Denoiser) else list(proc.shapes)


def channels_of(net: Predictor, given: int | None = None) -> int:
    """Channels of the images: as given, or as many as the network says. Raises ValueError where neither says."""
    channels = given if given is not None else getattr(net, "channels", None)
    if not isinstance(channels, int):
        raise ValueError("channels: this callable does not say how many channels its images have; give channels=")
    return channels


def classes_of(net: object) -> tuple[int | None, int | None] | None:
    """(num_classes, null_label) of a denoiser; None for another callable, of which nothing is known."""
    return (net.num_classes, net.null_label) if isinstance(net, Denoiser) else None


def device_of(net: Predictor) -> torch.device:
    """Where the network's parameters are; the CPU for a callable that has none."""
    first = next(net.parameters(), None) if isinstance(net, nn.Module) else None
    return torch.device("cpu") if first is None else first.device


def compiled(net: Predictor) -> bool:
    """Whether another batch size costs a compilation."""
    return bool(getattr(net, "compiled", False))


def shadow(net: nn.Module) -> Any:
    """A copy to see shapes, operations and gradients with. It has data, as a module of the user's own may look at them,
    unless the module says `needs_data = False`: then nothing is computed or kept."""
    if getattr(net, "needs_data", True):
        return copy.deepcopy(net)
    with torch.device("meta"):
        held: dict[int, Any] = {
            id(x): nn.Parameter(torch.empty_like(x, device="meta"), x.requires_grad) for x in net.parameters()
        }
        held |= {id(x): torch.empty_like(x, device="meta") for x in net.buffers()}
        return copy.deepcopy(net, held)


def asked(net: Any, level: int, out_level: int, batch: int = 1) -> Tensor:
    """What the network gives for images of nothing, on its own device: to see shapes, operations and gradients."""
    device = device_of(net)
    x = torch.zeros((batch, net.channels, *net.sizes[level]), device=device)
    label = {} if net.num_classes is None else {"label": torch.zeros(batch, dtype=torch.int64, device=device)}
    y: Tensor = net(x, torch.ones(batch, device=device), out_level=out_level, **label)
    return y


def operations(net: Any, level: int, out_level: int) -> int:
    """Floating-point operations of one image's forward pass from `level` to `out_level`: twice the multiply-adds of
    convolutions, linear layers and attention, counted on shapes alone."""
    from torch.utils.flop_counter import FlopCounterMode

    twin = shadow(net).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        asked(twin, level, out_level)
    return counter.get_total_flops()
