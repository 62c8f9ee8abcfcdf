"""Operators as deepinv physics, and deepinv's linear physics as operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import ssdcore as ssd
from ssdcore.operators.base import positive_shape


def to_deepinv(op: ssd.LinearOperator) -> Any:
    """`op` as a `deepinv.physics.LinearPhysics` on images (batch, channels, *in_shape), with its exact adjoint.

    The operator acts on the trailing axes, so every image and channel is measured alike; dtype and device are kept. Add
    noise with the physics' `set_noise_model`.

    Raises TypeError for anything but an ssdcore operator.
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

    in_shape     of one image, as the physics takes it after the batch axis: (channels, height, width)
    out_shape    of its measurement; None: found by measuring zeros
    per_channel  leave the channel axis out of in_shape and out_shape: the physics gets one channel at a time, as
                 processes and `ssdcore_torch.restore` want

    The operator takes torch tensors on the physics' device. Its norm and matrix are found in float64, so a physics that
    holds tensors of its own should be in float64 for those (``physics.to(torch.float64)``).

    Raises TypeError for a physics that is not linear, or whose measurements are complex or more than one tensor;
    ValueError for shapes that do not fit, and tensors on another device than the physics.
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
        measured = adapter.forward(adapter.zeros(ins), ins)
    except RuntimeError as error:
        raise ValueError(f"from_deepinv: the physics does not take images of shape {ins} ({error})") from error
    outs = positive_shape(tuple(measured.shape[1:]) if out_shape is None else out_shape, "from_deepinv")
    if outs != tuple(measured.shape[1:]):
        raise ValueError(f"from_deepinv: the physics measures {ins} as {tuple(measured.shape[1:])}, not {outs}")
    return ssd.Functional(
        lambda x: adapter.forward(x, ins), lambda y: adapter.backward(y, outs), ins, outs, namespace=torch
    )


class _Physics:
    """A physics on tensors with any leading axes."""

    def __init__(self, physics: Any, per_channel: bool) -> None:
        self.physics, self.per_channel = physics, per_channel

    @property
    def tensor(self) -> Tensor | None:
        """A floating-point tensor that the physics holds."""
        held = [*self.physics.parameters(), *self.physics.buffers()]
        return next((x for x in held if x.is_floating_point()), None)

    def zeros(self, shape: tuple[int, ...]) -> Tensor:
        held = self.tensor
        return torch.zeros((1, *shape)) if held is None else held.new_zeros((1, *shape))

    def forward(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self._run(self.physics.A, x, shape)

    def backward(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self._run(self.physics.A_adjoint, y, shape)

    def _run(self, apply: Any, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        held = self.tensor
        if not isinstance(x, Tensor):
            raise TypeError(f"a deepinv physics takes torch tensors, got {type(x).__module__}.{type(x).__qualname__}")
        if held is not None and held.device != x.device:
            raise ValueError(f"the physics is on {held.device}, the tensor on {x.device}; move one of them")
        batch = x.shape[: x.ndim - len(shape)]
        images = x.reshape(-1, 1, *shape) if self.per_channel else x.reshape(-1, *shape)
        y = apply(images)
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
        import deepinv
    except ImportError as error:
        raise ImportError('this adapter needs deepinv: pip install "ssdcore[deepinv]"') from error
    except RuntimeError as error:  # torchvision made for another torch
        raise ImportError(
            f"deepinv is installed but does not import ({error}); its torchvision must be one made for torch "
            f"{torch.__version__}"
        ) from error
    return deepinv
