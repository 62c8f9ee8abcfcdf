"""From an opened picture to bytes of one size with one, three or four channels."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from ssdcore_torch.text import printable

LEAST_CROP = 0.8
"""Side of the smallest random crop, as a share of the picture's shorter side: guided diffusion's, as in the paper."""

CHANNELS = {1: "grey", 3: "RGB", 4: "RGBA"}
"""What images may consist of, and what to call it."""


def called(axes: int) -> str:
    """What to call data of so many axes."""
    return {1: "signals", 2: "images", 3: "volumes"}.get(axes, "arrays")


DEEPEST = 16  # bits per channel

Size = int | tuple[int, int]
"""Height and width, or one number for both."""


def extent(size: Size) -> tuple[int, int]:
    """(height, width). Raises TypeError for anything else, ValueError for less than one pixel."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) for side in pair):
        raise TypeError(f"size: expected a number of pixels, or (height, width), got {size!r}")
    if min(pair) < 1:
        raise ValueError(f"size: expected at least 1, got {size}")
    return pair


def to_channels(image: Image.Image, channels: int, bits: int = DEEPEST) -> Image.Image:
    """The image with 8 bits in each of 1 (grey, L), 3 (RGB) or 4 (RGBA) channels, upright as its EXIF data says.

    Transparency becomes white unless there are 4 channels. Grey values of more than 8 bits are scaled from
    0 … 2^bits − 1. Raises ValueError for values beyond that, and for floats, whose range nobody knows.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        grey = np.asarray(image)
        if image.mode == "F" or grey.min() < 0 or grey.max() > 65535:
            raise ValueError(
                f"pixel mode {image.mode} has no known range of values: save it with 8 or 16 bits per channel"
            )
        # Pillow's own conversion clips at 255 instead of scaling.
        image = Image.fromarray(to_bytes(grey.astype(np.uint16), bits))
    if channels == 4:
        return image.convert("RGBA")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")  # palettes hold colours, too
    return image.convert("L") if channels == 1 else image


def to_rgb(image: Image.Image) -> Image.Image:
    """`to_channels` with 3."""
    return to_channels(image, 3)


def fit(image: Image.Image, size: Size) -> np.ndarray:
    """The largest centred part of this shape, resized with an antialiased bicubic filter: (height, width, c) uint8."""
    height, width = extent(size)
    fitted = np.asarray(ImageOps.fit(image, (width, height), method=Image.Resampling.BICUBIC))
    return fitted if fitted.ndim == 3 else fitted[..., None]


def fit_random(image: Image.Image, size: Size, numbers: np.ndarray) -> np.ndarray:
    """A part of this shape somewhere in the image, resized as by `fit`, never enlarged: (height, width, c) uint8.

    numbers  (3,) in [0, 1): the part's height between `LEAST_CROP` of the largest that fits (but at least the height
             asked for) and all of it, and its place across and down
    """
    wanted_height, wanted_width = extent(size)
    width, height = image.size
    tallest = min(height, width * wanted_height // wanted_width)
    least = max(wanted_height, int(LEAST_CROP * tallest))
    high = least + int(numbers[0] * (tallest - least + 1))
    wide = min(width, max(wanted_width, round(high * wanted_width / wanted_height)))
    left, top = int(numbers[1] * (width - wide + 1)), int(numbers[2] * (height - high + 1))
    return fit(image.crop((left, top, left + wide, top + high)), (wanted_height, wanted_width))


def to_bytes(values: np.ndarray, bits: int = DEEPEST) -> np.ndarray:
    """uint16 to uint8 by the ratio of the full ranges, from 0 … 2^bits − 1; uint8 as it is.

    Raises:
        ValueError: For a value above.
    """
    if values.dtype == np.uint8:
        return values
    highest = 2**bits - 1
    if bits < DEEPEST and values.size and (most := int(values.max())) > highest:
        raise ValueError(f"holds the value {most}, more than data.bits={bits} has: {highest}")
    return ((values.astype(np.uint32) * 255 + highest // 2) // highest).astype(np.uint8)


def reason(error: Exception) -> str:
    """Why a file could not be read, in one printable line."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return printable(" ".join(str(error).split())) or type(error).__name__
