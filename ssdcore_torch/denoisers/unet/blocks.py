"""The layers of a Flexi-UNet."""

from __future__ import annotations

import functools
import importlib.util
import math
from types import ModuleType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssdcore_torch.denoisers.unet.config import NORM_GROUPS, FlexiUNetConfig, Size

Layer = TypeVar("Layer", nn.Conv1d, nn.Conv2d)


class Norm(nn.GroupNorm):
    """Group norm over 32 groups, computed in float32 at least and returned in the input's dtype."""

    def __init__(self, channels: int) -> None:
        super().__init__(NORM_GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        if fuses(x):
            return self._fused(x, None, None, activated=False)
        return self._normed(x).to(x.dtype)

    def activated(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """silu(norm(x) · (1 + scale) + shift), rounded to the dtype of x only at the end.

        Args:
            scale, shift: (batch, channels), both or neither
        """
        if fuses(x):
            return self._fused(x, scale, shift, activated=True)
        if by_channel(x):
            return F.silu(_modulated(x, *self._affine(x), scale, shift)).to(x.dtype)
        h = self._normed(x)
        if scale is not None and shift is not None:
            h = torch.addcmul(shift[:, :, None, None].to(h.dtype), h, 1 + scale[:, :, None, None].to(h.dtype))
        return F.silu(h).to(x.dtype)

    def activated_with_zeros(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`activated` of x with zero channels appended up to `num_channels`, without making them.

        Zero channels still count in their groups' mean and variance, and come out constant in space. Returns
        what becomes of x, and those constants, (batch, num_channels − channels of x).
        """
        scale, shift = self._affine(x)
        count = x.shape[1]
        activated = F.silu(_modulated(x, scale[:, :count], shift[:, :count]))
        return activated.to(x.dtype), F.silu(shift[:, count:]).to(x.dtype)

    def _fused(self, x: Tensor, scale: Tensor | None, shift: Tensor | None, activated: bool) -> Tensor:
        kernels = _kernels()
        assert kernels is not None  # `fuses` has looked
        y: Tensor = kernels.group_norm(
            x, self.num_groups, self.weight, self.bias, self.eps, scale, shift, activated=activated
        )
        return y

    def _normed(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.group_norm(x.to(wide), self.num_groups, self.weight.to(wide), self.bias.to(wide), self.eps)

    def _affine(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The norm as a scale and a shift, (batch, num_channels): norm(x) = x · scale + shift, x filled up with zero
        channels where it has fewer."""
        wide = torch.promote_types(x.dtype, torch.float32)
        # a group's variance = the mean variance of its channels + the variance of their means,
        # which never takes the difference of two large sums
        variance, mean = torch.var_mean(x.to(wide), dim=(2, 3), correction=0)
        groups, missing = (self.num_groups, self.num_channels // self.num_groups), self.num_channels - x.shape[1]
        mean, variance = (F.pad(moment, (0, missing)).unflatten(1, groups) for moment in (mean, variance))
        group_mean = mean.mean(2, keepdim=True)
        group_variance = (variance + (mean - group_mean).square()).mean(2, keepdim=True)
        scale = torch.rsqrt(group_variance + self.eps) * self.weight.to(wide).unflatten(0, groups)
        shift = self.bias.to(wide).unflatten(0, groups) - group_mean * scale
        return scale.flatten(1), shift.flatten(1)


@functools.cache
def _kernels() -> ModuleType | None:
    """The Triton kernels; None where Triton, which torch's CUDA builds bring, is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    from ssdcore_torch.denoisers.unet import fused

    return fused


def fuses(x: Tensor) -> bool:
    """Whether a norm of x is one fused operation: of channels-last images in eager CUDA code.

    Compiled code fuses by itself, and a tracer's tensors have no memory for a kernel.
    """
    return (
        x.is_cuda
        and type(x) is Tensor
        and not torch.compiler.is_compiling()
        and x.is_contiguous(memory_format=torch.channels_last)
        and _kernels() is not None
    )


def by_channel(x: Tensor) -> bool:
    """Whether to take a norm's moments channel by channel: in compiled CUDA code, where the channels lie side by side
    and the few of one group do not fill a memory transaction. Elsewhere the library's own group norm is faster."""
    return x.is_cuda and torch.compiler.is_compiling()


def _modulated(
    x: Tensor, scale: Tensor, shift: Tensor, more_scale: Tensor | None = None, more_shift: Tensor | None = None
) -> Tensor:
    """(x · scale + shift) · (1 + more_scale) + more_shift with all four (batch, channels), in one pass over x."""
    if more_scale is not None and more_shift is not None:
        factor = 1 + more_scale.to(scale.dtype)
        scale, shift = scale * factor, shift * factor + more_shift.to(scale.dtype)
    return torch.addcmul(shift[:, :, None, None], x.to(scale.dtype), scale[:, :, None, None])


def _convolve_constant(values: Tensor, weight: Tensor, height: int, width: int) -> Tensor:
    """3×3 convolution, zero-padded by 1, of channels constant in space: (batch, out, height, width).

    Only the border differs from the interior, so an image of 3×3 (less where the real one is less) has every
    distinct value, and its middle row and column are repeated.
    """
    small = values[:, :, None, None].expand(-1, -1, min(height, 3), min(width, 3))
    small = F.conv2d(small, weight, padding=1)
    if height > 3:
        middle = small[:, :, 1:2].expand(-1, -1, height - 2, -1)
        small = torch.cat([small[:, :, :1], middle, small[:, :, 2:]], dim=2)
    if width > 3:
        middle = small[..., 1:2].expand(-1, -1, -1, width - 2)
        small = torch.cat([small[..., :1], middle, small[..., 2:]], dim=3)
    return small


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))) · (1 + scale) + shift)), scale and shift linear in `embedding`, the
    activated embedding of time and label."""

    def __init__(self, in_channels: int, out_channels: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = Norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.condition = nn.Linear(embedding, 2 * out_channels)
        self.norm2 = Norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.shortcut: nn.Conv2d | nn.Identity = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(self.norm1.activated(x))
        return self.shortcut(x) + self._second_half(h, embedding)

    def _second_half(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.condition(embedding).chunk(2, dim=1)
        return self.conv2(self.dropout(self.norm2.activated(h, scale, shift)))


class Block(nn.Module):
    """What is kept or recomputed as a whole: with `checkpointed`, a forward pass whose gradients are wanted keeps the
    arguments alone, and the backward pass runs it again. The results are the same."""

    checkpointed = False

    def forward(self, *arguments: Tensor | None) -> Tensor:
        if self.checkpointed and torch.is_grad_enabled():
            return checkpoint(self.run, *arguments, use_reentrant=False)
        return self.run(*arguments)

    def run(self, *arguments: Any) -> Tensor:
        raise NotImplementedError


class DecoderBlock(Block):
    """A residual block on the concatenation of x and a skip from the encoder, which may be empty (all zeros),
    then attention if its stage has any."""

    def __init__(self, in_channels: int, skip_channels: int, config: FlexiUNetConfig, stage: int) -> None:
        super().__init__()
        out = config.channels[stage]
        embedding = 4 * config.base_channels
        self.residual = ResidualBlock(in_channels + skip_channels, out, embedding, config.dropout)
        self.attention = Attention(out, config.heads) if stage in config.attention_stages else None

    def run(self, h: Tensor, embedding: Tensor, skip: Tensor | None) -> Tensor:
        """skip = None: what a skip of zeros gives, without making or convolving one."""
        if skip is None:
            h = self._without_skip(h, embedding)
        else:
            h = self.residual(torch.cat([h, skip], dim=1), embedding)
        return h if self.attention is None else self.attention(h)

    def _without_skip(self, x: Tensor, embedding: Tensor) -> Tensor:
        block, count = self.residual, x.shape[1]
        activated, constants = block.norm1.activated_with_zeros(x)
        weight = block.conv1.weight
        h = F.conv2d(activated, weight[:, :count], block.conv1.bias, padding=1)
        h = h + _convolve_constant(constants, weight[:, count:], h.shape[2], h.shape[3])
        # an input with its skip is always wider than the output, so the block has a convolved shortcut
        assert isinstance(block.shortcut, nn.Conv2d)
        shortcut = F.conv2d(x, block.shortcut.weight[:, :count], block.shortcut.bias)
        return shortcut + block._second_half(h, embedding)


class Attention(nn.Module):
    """x + projection of self-attention over all positions. The rows of `qkv` go head by head: q, k, v of the
    first head, then of the next."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = Norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.projection = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # position by position, as a channels-last image lies in memory: no layout changes on the way
        positions = self.norm(x).flatten(2).transpose(1, 2)
        qkv = F.linear(positions, self.qkv.weight[:, :, 0], self.qkv.bias)
        qkv = qkv.view(batch, height * width, self.heads, 3, channels // self.heads)
        q, k, v = qkv.permute(3, 0, 2, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = F.linear(h, self.projection.weight[:, :, 0], self.projection.bias)
        return x + h.transpose(1, 2).unflatten(2, (height, width))


class TimeEmbedding(nn.Module):
    """Cosines and sines of t − 1 at frequencies 10000^(−i/n), i = 0..n−1, then two linear layers."""

    def __init__(self, base: int) -> None:
        super().__init__()
        self.frequencies = base // 2
        self.linear1 = nn.Linear(base, 4 * base)
        self.linear2 = nn.Linear(4 * base, 4 * base)

    def forward(self, t: Tensor) -> Tensor:
        steps = torch.arange(self.frequencies, dtype=torch.float32, device=t.device)
        frequencies = torch.exp(-math.log(10000.0) / self.frequencies * steps)
        angles = (t - 1).float()[:, None] * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        return self.linear2(F.silu(self.linear1(waves.to(self.linear1.weight.dtype))))


class Upsample(nn.Module):
    """Nearest-neighbour resize to a size (twice the input's at level factors of 2), then a 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        return self.conv(F.interpolate(x, size, mode="nearest-exact"))


class EncoderBlock(Block):
    """A residual block, then attention if its stage has any."""

    def __init__(self, in_channels: int, config: FlexiUNetConfig, stage: int) -> None:
        super().__init__()
        out = config.channels[stage]
        self.residual = ResidualBlock(in_channels, out, 4 * config.base_channels, config.dropout)
        self.attention = Attention(out, config.heads) if stage in config.attention_stages else None

    def run(self, h: Tensor, embedding: Tensor) -> Tensor:
        h = self.residual(h, embedding)
        return h if self.attention is None else self.attention(h)


class EncoderStage(nn.Module):
    """Blocks, then a strided convolution down to the next stage (none at the last)."""

    def __init__(self, config: FlexiUNetConfig, stage: int) -> None:
        super().__init__()
        out = config.channels[stage]
        widths = [config.entry_channels[stage]] + [out] * (config.blocks_per_stage - 1)
        self.blocks = nn.ModuleList(EncoderBlock(width, config, stage) for width in widths)
        last = stage == config.stages - 1
        self.downsample = None if last else nn.Conv2d(out, out, 3, stride=2, padding=1)

    def forward(self, h: Tensor, embedding: Tensor, skips: list[Tensor]) -> Tensor:
        """Appends the output of every block, and of the downsampling, to `skips`."""
        for block in self.blocks:
            h = block(h, embedding)
            skips.append(h)
        if self.downsample is not None:
            h = self.downsample(h)
            skips.append(h)
        return h


class Middle(Block):
    """Residual block, attention, residual block, at the smallest size."""

    def __init__(self, config: FlexiUNetConfig) -> None:
        super().__init__()
        channels, embedding = config.channels[-1], 4 * config.base_channels
        self.block1 = ResidualBlock(channels, channels, embedding, config.dropout)
        self.attention = Attention(channels, config.heads)
        self.block2 = ResidualBlock(channels, channels, embedding, config.dropout)

    def run(self, h: Tensor, embedding: Tensor) -> Tensor:
        return self.block2(self.attention(self.block1(h, embedding)), embedding)


class DecoderStage(nn.Module):
    """One block more than the encoder stage, each taking a skip."""

    def __init__(self, config: FlexiUNetConfig, stage: int) -> None:
        super().__init__()
        out = config.channels[stage]
        below = config.channels[min(stage + 1, config.stages - 1)]
        skip_widths = [out] * config.blocks_per_stage + [config.entry_channels[stage]]
        self.blocks = nn.ModuleList(
            DecoderBlock(out if i else below, width, config, stage) for i, width in enumerate(skip_widths)
        )

    def forward(self, h: Tensor, embedding: Tensor, skips: list[Tensor | None]) -> Tensor:
        """Runs one block a skip."""
        for block, skip in zip(self.blocks, skips):
            h = block(h, embedding, skip)
        return h


def zeroed(layer: Layer) -> Layer:
    """The layer, starting at zero: the branch that it ends then starts as nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
