"""Operators as deepinv physics, and deepinv's linear physics as operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import ssdcore as ssd
from ssdcore import _extras
from ssdcore.operators.linear_map import positive_shape


def to_deepinv(op: ssd.LinearOperator) -> Any:
    """`op` as a `deepinv.physics.LinearPhysics` on images ``(batch, channels, *in_shape)``, with its exact adjoint.

    The operator acts on the trailing axes, so every image and channel is measured alike; dtype and device are kept. Add
    noise with the physics' `set_noise_model`.

    Raises:
        TypeError: For anything but an ssdcore operator.
    """
    physics = _deepinv().physics
    if not isinstance(op, ssd.LinearOperator):
        raise TypeError(f"to_deepinv: expected an ssdcore operator, got {type(op).__module__}.{type(op).__qualname__}")
    # parameters: what a noise model is called with reaches A as well
    return physics.LinearPhysics(A=lambda x, **parameters: op(x), A_adjoint=lambda y, **parameters: op.T(y))


def from_deepinv(
    physics: Any,
    in_shape: tuple[int, ...],
    out_shape: tuple[int, ...] | None = None,
    *,
    per_channel: bool = False,
) -> ssd.Functional:
    """The noiseless part A of a `deepinv.physics.LinearPhysics`, with its adjoint, as an ssdcore operator.

    The operator takes torch tensors on the physics' device, of its precision or less. Its norm, its matrix and
    `restore` need float64: call ``physics.to(torch.float64)`` where the physics holds tensors, such as a filter.

    Args:
        in_shape: of one image, as the physics takes it after the batch axis: (channels, height, width)
        out_shape: of its measurement; None: found by measuring zeros
        per_channel: leave the channel axis out of in_shape and out_shape: the physics gets one channel at a time,
            as processes and `ssdcore_torch.restore` want

    Raises:
        TypeError: For a physics that is not linear, or whose measurements are complex or more than one tensor.
        ValueError: For shapes that do not fit, and for tensors on another device or of more precision than the
            physics.
    """
    kinds = _deepinv().physics
    if not isinstance(physics, kinds.LinearPhysics):
        raise TypeError(
            f"from_deepinv: expected a deepinv.physics.LinearPhysics, got {type(physics).__name__}; only a linear "
            "operator has an adjoint"
        )
    ins = positive_shape(in_shape, "from_deepinv")
    adapter = _Physics(physics, per_channel)
    try:
        measured = adapter.run(physics.A, adapter.zeros(ins), ins)
    except RuntimeError as error:
        raise ValueError(f"from_deepinv: the physics does not take images of shape {ins} ({error})") from error
    outs = positive_shape(tuple(measured.shape[1:]) if out_shape is None else out_shape, "from_deepinv")
    if outs != tuple(measured.shape[1:]):
        raise ValueError(f"from_deepinv: the physics measures {ins} as {tuple(measured.shape[1:])}, not {outs}")

    def forward(x: Tensor) -> Tensor:
        return adapter.run(physics.A, x, ins, outs)

    def adjoint(y: Tensor) -> Tensor:
        return adapter.run(physics.A_adjoint, y, outs, ins)

    return ssd.Functional(forward, adjoint, ins, outs, namespace=torch)


class _Physics:
    """A physics on tensors with any leading axes."""

    def __init__(self, physics: Any, per_channel: bool) -> None:
        self.physics, self.per_channel = physics, per_channel

    def held(self) -> tuple[torch.device | None, torch.dtype | None]:
        """The device of the physics, and the dtype of the floating-point tensors that A works with."""
        tensors = dict(self.physics.named_parameters()) | dict(self.physics.named_buffers())
        device = next((x.device for x in tensors.values()), None)
        # the scalar that marks its device, and the parameters of its noise, stay in float32
        others = [x for name, x in tensors.items() if not {"_device_holder", "noise_model"} & set(name.split("."))]
        return device, next((x.dtype for x in others if x.is_floating_point()), None)

    def zeros(self, shape: tuple[int, ...]) -> Tensor:
        device, dtype = self.held()
        return torch.zeros((1, *shape), device=device, dtype=dtype)

    def run(self, apply: Any, x: Tensor, ins: tuple[int, ...], outs: tuple[int, ...] | None = None) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"a deepinv physics takes torch tensors, got {type(x).__module__}.{type(x).__qualname__}")
        device, dtype = self.held()
        if device is not None and device != x.device:
            raise ValueError(f"the physics is on {device}, the tensor on {x.device}; move one of them")
        if dtype is not None and torch.promote_types(dtype, x.dtype) != dtype:
            raise ValueError(f"the physics holds {dtype}, the tensor {x.dtype}; call physics.to({x.dtype})")
        batch = x.shape[: x.ndim - len(ins)]
        if outs is not None and 0 in batch:  # their convolutions take no empty batch
            return x.new_zeros((*batch, *outs))
        images = x.reshape(-1, 1, *ins) if self.per_channel else x.reshape(-1, *ins)
        y = apply(images if dtype is None else images.to(dtype))
        if not isinstance(y, Tensor) or y.is_complex():
            kind = f"a {y.dtype} tensor" if isinstance(y, Tensor) else type(y).__name__
            raise TypeError(f"from_deepinv: expected the physics to give one real tensor, got {kind}")
        if self.per_channel:
            if y.shape[1] != 1:
                raise ValueError(
                    f"from_deepinv: with per_channel one channel must give one, this physics gives {y.shape[1]}"
                )
            y = y[:, 0]
        return y.reshape(*batch, *y.shape[1:]).to(x.dtype)


def _deepinv() -> Any:
    try:
        return _extras.need("deepinv", "this adapter", "deepinv")
    except RuntimeError as error:  # torchvision made for another torch
        raise ImportError(
            f"deepinv is installed but does not import ({error}); its torchvision must be one made for torch "
            f"{torch.__version__}"
        ) from error
