"""The layers of a Flexi-UNet."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssdcore_torch.unet.config import NORM_GROUPS, FlexiUNetConfig, Size

Layer = TypeVar("Layer", nn.Conv1d, nn.Conv2d)


class Norm(nn.GroupNorm):
    """Group norm over 32 groups, computed in float32 at least and returned in the input's dtype."""

    def __init__(self, channels: int) -> None:
        super().__init__(NORM_GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        return F.group_norm(x.to(wide), self.num_groups, weight, bias, self.eps).to(x.dtype)

    def with_zero_channels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of x with zero channels appended up to `num_channels`, without making them.

        Zero channels still count in their groups' mean and variance, and come out constant in space. Returns
        the normed x, and those constants, (batch, num_channels − channels of x).
        """
        count, wide = x.shape[1], torch.promote_types(x.dtype, torch.float32)
        # a group's variance = the mean variance of its channels + the variance of their means,
        # which never takes the difference of two large sums
        variance, mean = torch.var_mean(x.to(wide), dim=(2, 3), correction=0)
        groups = (self.num_groups, self.num_channels // self.num_groups)
        mean = F.pad(mean, (0, self.num_channels - count)).unflatten(1, groups)
        variance = F.pad(variance, (0, self.num_channels - count)).unflatten(1, groups)
        group_mean = mean.mean(2, keepdim=True)
        group_variance = (variance + (mean - group_mean).square()).mean(2, keepdim=True)
        scale = torch.rsqrt(group_variance + self.eps) * self.weight.to(wide).unflatten(0, groups)
        shift = self.bias.to(wide).unflatten(0, groups) - group_mean * scale
        scale, shift = scale.flatten(1), shift.flatten(1)
        normed = x.to(wide) * scale[:, :count, None, None] + shift[:, :count, None, None]
        return normed.to(x.dtype), shift[:, count:].to(x.dtype)


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
    """x + conv(silu(norm(conv(silu(norm(x)))) · (1 + scale) + shift)), scale and shift from the embedded time."""

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
        h = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self._second_half(h, embedding)

    def _second_half(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.condition(F.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.conv2(self.dropout(F.silu(h)))


class DecoderBlock(nn.Module):
    """A residual block on the concatenation of x and a skip from the encoder, which may be empty (all zeros),
    then attention if its stage has any."""

    def __init__(self, in_channels: int, skip_channels: int, config: FlexiUNetConfig, stage: int) -> None:
        super().__init__()
        out = config.channels[stage]
        embedding = 4 * config.base_channels
        self.residual = ResidualBlock(in_channels + skip_channels, out, embedding, config.dropout)
        self.attention = Attention(out, config.heads) if stage in config.attention_stages else None

    def forward(self, h: Tensor, embedding: Tensor, skip: Tensor | None) -> Tensor:
        """skip = None: what a skip of zeros gives, without making or convolving one."""
        if skip is None:
            h = self._without_skip(h, embedding)
        else:
            h = self.residual(torch.cat([h, skip], dim=1), embedding)
        return h if self.attention is None else self.attention(h)

    def _without_skip(self, x: Tensor, embedding: Tensor) -> Tensor:
        block, count = self.residual, x.shape[1]
        normed, constants = block.norm1.with_zero_channels(x)
        weight = block.conv1.weight
        h = F.conv2d(F.silu(normed), weight[:, :count], block.conv1.bias, padding=1)
        h = h + _convolve_constant(F.silu(constants), weight[:, count:], h.shape[2], h.shape[3])
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
        qkv = self.qkv(self.norm(x).flatten(2))
        qkv = qkv.view(batch, self.heads, 3, channels // self.heads, height * width)
        q, k, v = qkv.permute(2, 0, 1, 4, 3)
        h = F.scaled_dot_product_attention(q, k, v)
        h = h.transpose(2, 3).reshape(batch, channels, height * width)
        return x + self.projection(h).unflatten(2, (height, width))


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


class EncoderBlock(nn.Module):
    """A residual block, then attention if its stage has any."""

    def __init__(self, in_channels: int, config: FlexiUNetConfig, stage: int) -> None:
        super().__init__()
        out = config.channels[stage]
        self.residual = ResidualBlock(in_channels, out, 4 * config.base_channels, config.dropout)
        self.attention = Attention(out, config.heads) if stage in config.attention_stages else None

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
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


class Middle(nn.Module):
    """Residual block, attention, residual block, at the smallest size."""

    def __init__(self, config: FlexiUNetConfig) -> None:
        super().__init__()
        channels, embedding = config.channels[-1], 4 * config.base_channels
        self.block1 = ResidualBlock(channels, channels, embedding, config.dropout)
        self.attention = Attention(channels, config.heads)
        self.block2 = ResidualBlock(channels, channels, embedding, config.dropout)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
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
