"""Tensors of images as pictures."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from ssdcore_torch.sampling import to_bytes

GAP = 2


def picture_of(image: Tensor) -> Image.Image:
    """An image (1, 3 or 4 channels, h, w) in [−1, 1], at its size."""
    pixels = to_bytes(image).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def strip(batch: Tensor, side: int) -> Image.Image:
    """Images side by side at their true size, each centred in a square cell of `side` pixels on transparent ground."""
    page = Image.new("RGBA", (len(batch) * (side + GAP) - GAP, side))
    height, width = batch.shape[-2:]
    for i, image in enumerate(batch):
        page.paste(picture_of(image), (i * (side + GAP) + (side - width) // 2, (side - height) // 2))
    return page
