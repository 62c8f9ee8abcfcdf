"""Power spectra of images: whether samples have the detail that the data has."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

CHUNK = 512


def radial_power(images: Tensor) -> Tensor:
    """Mean power at the spatial frequencies 1, 2, …, min(h, w)/2 cycles per image side: float64, on the CPU.

    The mean of |DFT|² over images, channels and the frequencies (f_y, f_x) with round(|f|) = 1, 2, …, of pixels in
    [0, 1], each image less its mean and under a Hann window, which keeps the jump between opposite edges out.

    Args:
        images: (n, channels, h, w) uint8, or (n, channels, *size) uint8 or floats in [−1, 1] of signals and volumes
    """
    size = tuple(images.shape[2:])
    if len(size) == 2:
        fits = images.dtype == torch.uint8 and min(size) >= 4
    else:
        fits = len(size) > 0 and (images.dtype == torch.uint8 or images.is_floating_point())
    if not fits or len(images) == 0:
        kind = str(images.dtype).removeprefix("torch.")
        raise ValueError(
            f"power spectrum: expected uint8 images (n, channels, h, w) of 4 pixels at least, got {kind} "
            f"{tuple(images.shape)}"
        )
    axes = tuple(range(-len(size), 0))
    first, *others = map(torch.hann_window, size)
    window = functools.reduce(lambda product, each: product[..., None] * each, others, first).to(images.device)
    total = torch.zeros(size, dtype=torch.float64, device=images.device)
    for part in images.split(CHUNK):
        x = part.float() / 255 if part.dtype == torch.uint8 else (part.float() + 1) / 2
        x = (x - x.mean(axes, keepdim=True)) * window
        total += torch.fft.fftn(x, dim=axes).abs().square().sum((0, 1), dtype=torch.float64)
    side = min(size)
    # In cycles along the shortest side, so that all axes measure the same length.
    along = torch.meshgrid(*(torch.fft.fftfreq(n) * side for n in size), indexing="ij")
    radius = torch.stack(along).square().sum(0).sqrt().round().long()
    power = total.cpu() / (images.shape[0] * images.shape[1])
    bins = side // 2 + 1
    inside = radius < bins
    sums = torch.zeros(bins, dtype=torch.float64).index_add_(0, radius[inside], power[inside])
    return (sums / torch.bincount(radius[inside], minlength=bins))[1:]


def radial_spectrum_ratio(samples: Tensor, reference: Tensor) -> Tensor:
    """`radial_power` of the samples over that of the reference: (min(h, w)/2,) float64, 1 where their detail agrees.

    Raises:
        ValueError: For images of different sizes.
    """
    if samples.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"power spectrum: expected images of one size, got {tuple(samples.shape[1:])} and "
            f"{tuple(reference.shape[1:])}"
        )
    return radial_power(samples) / radial_power(reference)
