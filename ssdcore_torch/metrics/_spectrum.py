"""Power spectra of images: whether samples have the detail that the data has."""

from __future__ import annotations

import torch
from torch import Tensor

from ssdcore.plotting import radial_spectrum

CHUNK = 512


def radial_power(images: Tensor) -> Tensor:
    """The power of `ssdcore.plotting.radial_spectrum` at 1, 2, …, min(h, w)/2 cycles per side: float64, on the CPU.

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
    parts = [radial_spectrum(part, len(size))[1] * len(part) for part in images.split(CHUNK)]
    return torch.from_numpy(sum(parts[1:], parts[0])) / len(images)


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
