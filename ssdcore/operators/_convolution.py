"""Resizes by whole factors as convolutions, for torch on a CPU in float32: two to three times as fast when large."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable

import numpy as np

from ssdcore._arrays import Array, Constant, Namespace, add_to
from ssdcore.axes import AxisMatrix
from ssdcore.bands import Stencil

_MIN_LENGTH = 96  # below it matrix products win


class Convolution:
    """⊗ A_i = D C for axes that are stencils: all items and channels as the channels of one depthwise convolution."""

    def __init__(self, stencils: tuple[Stencil, ...], ins: tuple[int, ...]) -> None:
        kernel = functools.reduce(np.multiply.outer, [stencil.taps for stencil in stencils])
        scale = functools.reduce(np.multiply.outer, [stencil.scale for stencil in stencils])
        self.kernel, self.scale = Constant(kernel[None, None]), Constant(scale)
        self.ins, self.outs = ins, tuple(len(stencil.scale) for stencil in stencils)
        self.strides = tuple(stencil.stride for stencil in stencils)
        self.paddings = tuple(stencil.padding for stencil in stencils)
        self.rest = tuple(stencil.rest for stencil in stencils)

    @staticmethod
    def of(axes: tuple[AxisMatrix, ...]) -> Convolution | None:
        """The convolution that the axes are, where it is worth it."""
        if len(axes) > 2 or min(axis.shape[1] for axis in axes) < _MIN_LENGTH:
            return None
        stencils = [axis.stencil for axis in axes]
        found = tuple(stencil for stencil in stencils if stencil is not None)
        if len(found) < len(axes):
            return None
        return Convolution(found, tuple(axis.shape[1] for axis in axes))

    def apply(self, xp: Namespace, x: Array) -> Array:
        return self._run(xp, x, self.ins, self._forward).mul_(self.scale.like(xp, x))

    def apply_adjoint(self, xp: Namespace, y: Array, scale: float = 1.0) -> Array:
        scales = self.scale.like(xp, y)
        return self._run(xp, y * (scales if scale == 1 else scale * scales), self.outs, self._backward)

    def add_applied(self, xp: Namespace, base: Array, scale: float, x: Array) -> Array:
        y = self._run(xp, x, self.ins, self._forward)
        return base.addcmul(y, self.scale.like(xp, x), value=scale)

    def add_adjoint(self, xp: Namespace, base: Array, scale: float, y: Array) -> Array:
        return add_to(xp, self.apply_adjoint(xp, y, scale), 1.0, base)

    def _run(self, xp: Namespace, x: Array, trailing: tuple[int, ...], convolve: Callable[..., Array]) -> Array:
        batch = x.shape[: x.ndim - len(trailing)]
        groups = math.prod(batch)
        kernel = self.kernel.like(xp, x).expand(groups, *(-1,) * (len(trailing) + 1))
        y = convolve(x.reshape(1, groups, *trailing), kernel, groups)
        return y.reshape(*batch, *y.shape[2:])

    def _forward(self, x: Array, kernel: Array, groups: int) -> Array:
        functional = sys.modules["torch"].nn.functional
        convolve = functional.conv2d if len(self.ins) == 2 else functional.conv1d
        return convolve(x, kernel, stride=self.strides, padding=self.paddings, groups=groups)

    def _backward(self, y: Array, kernel: Array, groups: int) -> Array:
        functional = sys.modules["torch"].nn.functional
        convolve = functional.conv_transpose2d if len(self.ins) == 2 else functional.conv_transpose1d
        return convolve(y, kernel, stride=self.strides, padding=self.paddings, output_padding=self.rest, groups=groups)
