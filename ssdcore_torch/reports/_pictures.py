"""Tensors of images as pictures."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from ssdcore_torch.images import viewed
from ssdcore_torch.sampling import to_bytes

GAP = 2


def picture_of(image: Tensor) -> Image.Image:
    """What is `viewed` of an image, signal or volume (channels, *size) in [−1, 1], at its size."""
    pixels = to_bytes(viewed(image[None])[0]).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def strip(batch: Tensor, height: int, width: int) -> Image.Image:
    """Images side by side at their true size, each centred in a cell of this many pixels on transparent ground."""
    page = Image.new("RGBA", (len(batch) * (width + GAP) - GAP, height))
    for i, image in enumerate(batch):
        shown = picture_of(image)
        page.paste(shown, (i * (width + GAP) + (width - shown.width) // 2, (height - shown.height) // 2))
    return page
