"""Group norm, scale and shift, and SiLU of channels-last images as one operation on CUDA, in Triton.

torch's group norm takes channels-first memory, so between channels-last convolutions every image is copied to the other
layout and back: on an H100 these copies and what follows from them took half of a training step (benchmarks/README.md).

With x̂ = (x − mean) · rstd over the channels and pixels of a group,

::

    y = act(u),   u = (x̂ · weight + bias) · (1 + scale) + shift = a · (x − mean) + b,   act = SiLU or nothing,

a and b being one number per image and channel. Backward, with g = dL/du, S1 = Σ g and S2 = Σ g x̂ over pixels, and m1
and m2 the means over a group of weight (1 + scale) g and of the same times x̂,

::

    dL/dx = a · g − rstd · (m1 + x̂ · m2).

Everything is computed in float32, from inputs and to results of the image's dtype. Sums are taken in a fixed order, so
equal inputs give equal bits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS = 256
"""Pixels that one program sums over, at most."""
TILE_ROWS = 16


@triton.jit
def _moments(x, part_mean, part_square, pixels, channels, rows, TILE_ROWS: tl.constexpr, TILE_CHANNELS: tl.constexpr):
    """Mean and sum of squared deviations of `rows` pixels, by channel.

    Taken about the first pixel, so that no two large sums are subtracted.
    """
    image, part = tl.program_id(0), tl.program_id(1)
    channel = tl.program_id(2) * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)
    inside = channel < channels
    base = x + image.to(tl.int64) * pixels * channels + part * rows * channels
    origin = tl.load(base + channel, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((TILE_ROWS, TILE_CHANNELS), tl.float32)
    squares = tl.zeros((TILE_ROWS, TILE_CHANNELS), tl.float32)
    for first in range(0, rows, TILE_ROWS):
        row = first + tl.arange(0, TILE_ROWS)
        mask = (row < rows)[:, None] & inside[None, :]
        value = tl.load(base + row[:, None] * channels + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        value = tl.where(mask, value - origin[None, :], 0.0)
        total += value
        squares += value * value
    offset = tl.sum(total, 0) / rows
    place = (image * tl.num_programs(1) + part) * channels + channel
    tl.store(part_mean + place, origin + offset, mask=inside)
    tl.store(part_square + place, tl.sum(squares, 0) - rows * offset * offset, mask=inside)


@triton.jit
def _affine(
    part_mean, part_square, weight, bias, scale, shift, a, b, mean, rstd,
    parts, rows, channels, scale_stride, shift_stride, eps,
    MODULATED: tl.constexpr, TILE_PARTS: tl.constexpr, TILE_CHANNELS: tl.constexpr,
):  # fmt: skip
    """a and b of one group of one image, from the moments of its parts."""
    image, group, groups = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    width = channels // groups
    inner = tl.arange(0, TILE_CHANNELS)
    inside = inner < width
    channel = group * width + inner
    part = tl.arange(0, TILE_PARTS)
    mask = (part < parts)[:, None] & inside[None, :]
    place = (image * parts + part)[:, None] * channels + channel[None, :]
    means = tl.load(part_mean + place, mask=mask, other=0.0)
    squares = tl.load(part_square + place, mask=mask, other=0.0)
    group_mean = tl.sum(tl.sum(means, 1), 0) / (parts * width)
    deviation = tl.where(mask, means - group_mean, 0.0)
    variance = tl.sum(tl.sum(squares + rows * deviation * deviation, 1), 0) / (parts * width * rows)
    group_rstd = 1 / tl.sqrt(variance + eps)
    slope = group_rstd * tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    start = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    if MODULATED:
        factor = 1 + tl.load(scale + image * scale_stride + channel, mask=inside, other=0.0).to(tl.float32)
        start = start * factor + tl.load(shift + image * shift_stride + channel, mask=inside, other=0.0).to(tl.float32)
        slope = slope * factor
    tl.store(a + image * channels + channel, slope, mask=inside)
    tl.store(b + image * channels + channel, start, mask=inside)
    tl.store(mean + image * groups + group, group_mean)
    tl.store(rstd + image * groups + group, group_rstd)


@triton.jit
def _apply(
    x, a, b, mean, y, pixels, channels, groups,
    ACTIVATED: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_CHANNELS: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0)
    row = tl.program_id(1) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    channel = tl.program_id(2) * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)
    inside = channel < channels
    mask = (row < pixels)[:, None] & inside[None, :]
    slope = tl.load(a + image * channels + channel, mask=inside, other=0.0)
    start = tl.load(b + image * channels + channel, mask=inside, other=0.0)
    centre = tl.load(mean + image * groups + channel // (channels // groups), mask=inside, other=0.0)
    place = image.to(tl.int64) * pixels * channels + row[:, None] * channels + channel[None, :]
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) - centre[None, :]
    u = value * slope[None, :] + start[None, :]
    if ACTIVATED:
        u = u * tl.sigmoid(u)
    tl.store(y + place, u.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _slope_of(dy, u, ACTIVATED: tl.constexpr):
    """dL/du from dL/dy."""
    if ACTIVATED:
        share = tl.sigmoid(u)
        dy = dy * share * (1 + u * (1 - share))
    return dy


@triton.jit
def _gradient_sums(
    x, dy, a, b, mean, rstd, part_1, part_2, pixels, channels, rows, groups,
    ACTIVATED: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_CHANNELS: tl.constexpr,
):  # fmt: skip
    """S1 and S2 of `rows` pixels, by channel."""
    image, part = tl.program_id(0), tl.program_id(1)
    channel = tl.program_id(2) * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)
    inside = channel < channels
    slope = tl.load(a + image * channels + channel, mask=inside, other=0.0)
    start = tl.load(b + image * channels + channel, mask=inside, other=0.0)
    group = channel // (channels // groups)
    centre = tl.load(mean + image * groups + group, mask=inside, other=0.0)
    inverse = tl.load(rstd + image * groups + group, mask=inside, other=0.0)
    base = image.to(tl.int64) * pixels * channels + part * rows * channels
    sum_1 = tl.zeros((TILE_ROWS, TILE_CHANNELS), tl.float32)
    sum_2 = tl.zeros((TILE_ROWS, TILE_CHANNELS), tl.float32)
    for first in range(0, rows, TILE_ROWS):
        row = first + tl.arange(0, TILE_ROWS)
        mask = (row < rows)[:, None] & inside[None, :]
        place = base + row[:, None] * channels + channel[None, :]
        value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) - centre[None, :]
        g = tl.load(dy + place, mask=mask, other=0.0).to(tl.float32)
        g = _slope_of(g, value * slope[None, :] + start[None, :], ACTIVATED)
        sum_1 += g
        sum_2 += g * value * inverse[None, :]
    place = (image * tl.num_programs(1) + part) * channels + channel
    tl.store(part_1 + place, tl.sum(sum_1, 0), mask=inside)
    tl.store(part_2 + place, tl.sum(sum_2, 0), mask=inside)


@triton.jit
def _gradient_means(
    part_1, part_2, weight, scale, rstd, sum_1, sum_2, p, q, parts, pixels, channels, scale_stride,
    MODULATED: tl.constexpr, TILE_PARTS: tl.constexpr, TILE_CHANNELS: tl.constexpr,
):  # fmt: skip
    """S1 and S2 over all pixels, and p, q of dL/dx = a · g + p · (x − mean) + q, of one group of one image."""
    image, group, groups = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    width = channels // groups
    inner = tl.arange(0, TILE_CHANNELS)
    inside = inner < width
    channel = group * width + inner
    part = tl.arange(0, TILE_PARTS)
    mask = (part < parts)[:, None] & inside[None, :]
    place = (image * parts + part)[:, None] * channels + channel[None, :]
    total_1 = tl.sum(tl.load(part_1 + place, mask=mask, other=0.0), 0)
    total_2 = tl.sum(tl.load(part_2 + place, mask=mask, other=0.0), 0)
    tl.store(sum_1 + image * channels + channel, total_1, mask=inside)
    tl.store(sum_2 + image * channels + channel, total_2, mask=inside)
    factor = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    if MODULATED:
        factor *= 1 + tl.load(scale + image * scale_stride + channel, mask=inside, other=0.0).to(tl.float32)
    mean_1 = tl.sum(factor * total_1, 0) / (width * pixels)
    mean_2 = tl.sum(factor * total_2, 0) / (width * pixels)
    inverse = tl.load(rstd + image * groups + group)
    tl.store(p + image * groups + group, -inverse * inverse * mean_2)
    tl.store(q + image * groups + group, -inverse * mean_1)


@triton.jit
def _gradient(
    x, dy, a, b, mean, p, q, dx, pixels, channels, groups,
    ACTIVATED: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_CHANNELS: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0)
    row = tl.program_id(1) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    channel = tl.program_id(2) * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)
    inside = channel < channels
    mask = (row < pixels)[:, None] & inside[None, :]
    slope = tl.load(a + image * channels + channel, mask=inside, other=0.0)
    start = tl.load(b + image * channels + channel, mask=inside, other=0.0)
    group = channel // (channels // groups)
    centre = tl.load(mean + image * groups + group, mask=inside, other=0.0)
    more = tl.load(p + image * groups + group, mask=inside, other=0.0)
    rest = tl.load(q + image * groups + group, mask=inside, other=0.0)
    place = image.to(tl.int64) * pixels * channels + row[:, None] * channels + channel[None, :]
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) - centre[None, :]
    g = tl.load(dy + place, mask=mask, other=0.0).to(tl.float32)
    g = _slope_of(g, value * slope[None, :] + start[None, :], ACTIVATED)
    result = g * slope[None, :] + value * more[None, :] + rest[None, :]
    tl.store(dx + place, result.to(dx.dtype.element_ty), mask=mask)


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activated: bool = False,
) -> Tensor:
    """act((group norm of x) · (1 + scale) + shift), in the layout and dtype of x.

    Differentiable once, in x, weight, bias, scale and shift.

    Args:
        x: (batch, channels, h, w), contiguous in channels-last memory
        weight, bias: (channels,)
        scale, shift: (batch, channels), their last axis contiguous; both or neither
        activated: SiLU at the end
    """
    with torch.cuda.device_of(x):
        return _GroupNorm.apply(x, groups, weight, bias, eps, scale, shift, activated)


class _Sizes:
    """How the programs share the work on images of one shape."""

    def __init__(self, x: Tensor, groups: int) -> None:
        self.batch, self.channels, height, width = x.shape
        self.pixels = height * width
        self.rows = next(rows for rows in range(min(ROWS, self.pixels), 0, -1) if self.pixels % rows == 0)
        self.parts = self.pixels // self.rows
        tile = min(128, triton.next_power_of_2(self.channels))
        tiles = triton.cdiv(self.channels, tile)
        self.by_part = (self.batch, self.parts, tiles)
        self.by_group = (self.batch, groups)
        self.by_tile = (self.batch, triton.cdiv(self.pixels, TILE_ROWS), tiles)
        self.tile = {"TILE_ROWS": TILE_ROWS, "TILE_CHANNELS": tile}
        self.group = {
            "TILE_PARTS": triton.next_power_of_2(self.parts),
            "TILE_CHANNELS": triton.next_power_of_2(self.channels // groups),
        }

    def by_channel(self, x: Tensor, *leading: int) -> Tensor:
        return torch.empty(self.batch, *leading, self.channels, dtype=torch.float32, device=x.device)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        x: Tensor,
        groups: int,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        scale: Tensor | None,
        shift: Tensor | None,
        activated: bool,
    ) -> Tensor:
        sizes = _Sizes(x, groups)
        pixels, channels, rows, parts = sizes.pixels, sizes.channels, sizes.rows, sizes.parts
        part_mean, part_square = sizes.by_channel(x, parts), sizes.by_channel(x, parts)
        _moments[sizes.by_part](x, part_mean, part_square, pixels, channels, rows, **sizes.tile)
        a, b = sizes.by_channel(x), sizes.by_channel(x)
        mean, rstd = (torch.empty(sizes.by_group, dtype=torch.float32, device=x.device) for _ in range(2))
        modulated = scale is not None and shift is not None
        strides = (scale.stride(0), shift.stride(0)) if scale is not None and shift is not None else (0, 0)
        _affine[sizes.by_group](
            part_mean, part_square, weight, bias, scale if modulated else weight, shift if modulated else weight,
            a, b, mean, rstd, parts, rows, channels, *strides, eps, MODULATED=modulated, **sizes.group,
        )  # fmt: skip
        y = torch.empty_like(x)
        _apply[sizes.by_tile](x, a, b, mean, y, pixels, channels, groups, ACTIVATED=activated, **sizes.tile)
        context.save_for_backward(x, weight, bias, scale, a, b, mean, rstd)
        context.groups, context.activated = groups, activated
        return y

    @staticmethod
    @once_differentiable
    def backward(context: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, scale, a, b, mean, rstd = context.saved_tensors
        groups, activated = context.groups, context.activated
        sizes = _Sizes(x, groups)
        pixels, channels, parts = sizes.pixels, sizes.channels, sizes.parts
        dy = dy.contiguous(memory_format=torch.channels_last)
        part_1, part_2 = sizes.by_channel(x, parts), sizes.by_channel(x, parts)
        _gradient_sums[sizes.by_part](
            x, dy, a, b, mean, rstd, part_1, part_2, pixels, channels, sizes.rows, groups,
            ACTIVATED=activated, **sizes.tile,
        )  # fmt: skip
        sum_1, sum_2 = sizes.by_channel(x), sizes.by_channel(x)
        p, q = torch.empty_like(mean), torch.empty_like(mean)
        modulated = scale is not None
        _gradient_means[sizes.by_group](
            part_1, part_2, weight, scale if modulated else weight, rstd, sum_1, sum_2, p, q,
            parts, pixels, channels, scale.stride(0) if modulated else 0, MODULATED=modulated, **sizes.group,
        )  # fmt: skip
        dx = torch.empty_like(x)
        _gradient[sizes.by_tile](
            x, dy, a, b, mean, p, q, dx, pixels, channels, groups, ACTIVATED=activated, **sizes.tile
        )
        dscale = dshift = None
        if modulated:
            dscale, dshift = (sum_2 * weight + sum_1 * bias).to(scale.dtype), sum_1.to(scale.dtype)
            factor = 1 + scale.float()
            sum_1, sum_2 = sum_1 * factor, sum_2 * factor
        return dx, None, sum_2.sum(0).to(weight.dtype), sum_1.sum(0).to(bias.dtype), None, dscale, dshift, None
