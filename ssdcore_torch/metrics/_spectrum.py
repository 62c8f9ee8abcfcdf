"""Power spectra of images: whether samples have the detail that the data has."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 512


def radial_power(images: Tensor) -> Tensor:
    """Mean power at the spatial frequencies 1, 2, …, min(h, w)/2 cycles per image side: float64, on the CPU.

    The mean of |DFT|² over images, channels and the frequencies (f_y, f_x) with round(|f|) = 1, 2, …, of pixels in
    [0, 1], each image less its mean and under a Hann window, which keeps the jump between opposite edges out.

    Args:
        images: uint8 (n, channels, h, w)
    """
    if images.ndim != 4 or images.dtype != torch.uint8 or min(images.shape[2:]) < 4 or len(images) == 0:
        kind = str(images.dtype).removeprefix("torch.")
        raise ValueError(
            f"power spectrum: expected uint8 images (n, channels, h, w) of 4 pixels at least, got {kind} "
            f"{tuple(images.shape)}"
        )
    height, width = images.shape[2:]
    window = torch.hann_window(height)[:, None] * torch.hann_window(width)
    window = window.to(images.device)
    total = torch.zeros(height, width, dtype=torch.float64, device=images.device)
    for part in images.split(CHUNK):
        x = part.float() / 255
        x = (x - x.mean((2, 3), keepdim=True)) * window
        total += torch.fft.fft2(x).abs().square().sum((0, 1), dtype=torch.float64)
    frequency_y, frequency_x = torch.fft.fftfreq(height) * height, torch.fft.fftfreq(width) * width
    side = min(height, width)
    # In cycles along the shorter side, so that both axes measure the same length.
    radius = torch.hypot(frequency_y[:, None] * side / height, frequency_x * side / width).round().long()
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
