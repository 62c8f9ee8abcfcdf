"""From an opened picture to `size` × `size` RGB bytes."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

LEAST_CROP = 0.8
"""Side of the smallest random crop, as a share of the picture's shorter side: guided diffusion's, as in the paper."""


def to_rgb(image: Image.Image) -> Image.Image:
    """An 8-bit RGB image, upright as its EXIF orientation says; transparency is laid over white, 16-bit grey scaled."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        grey = np.asarray(image)
        if image.mode == "F" or grey.min() < 0 or grey.max() > 65535:
            raise ValueError(
                f"pixel mode {image.mode} has no known range of values: save it with 8 or 16 bits a channel"
            )
        # Pillow's own conversion clips at 255 instead of scaling.
        image = Image.fromarray(to_bytes(grey.astype(np.uint16)))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def fit(image: Image.Image, size: int) -> np.ndarray:
    """The largest centred square, resized with an antialiased bicubic filter: (size, size, 3) uint8."""
    return np.asarray(ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC))


def fit_random(image: Image.Image, size: int, numbers: np.ndarray) -> np.ndarray:
    """A square somewhere in the image, resized as by `fit`, never enlarged: (size, size, 3) uint8.

    numbers  (3,) in [0, 1): the square's side between `LEAST_CROP` of the shorter side (but at least `size`) and all
             of it, and its place across and down
    """
    width, height = image.size
    shorter = min(width, height)
    least = max(size, int(LEAST_CROP * shorter))
    side = least + int(numbers[0] * (shorter - least + 1))
    left, top = int(numbers[1] * (width - side + 1)), int(numbers[2] * (height - side + 1))
    return fit(image.crop((left, top, left + side, top + side)), size)


def to_bytes(values: np.ndarray) -> np.ndarray:
    """uint16 to uint8 by the ratio of the full ranges; uint8 as it is."""
    return values if values.dtype == np.uint8 else ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def reason(error: Exception) -> str:
    """Why a file could not be read, in one line."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return " ".join(str(error).split()) or type(error).__name__
