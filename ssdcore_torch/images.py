"""Pictures of samples and of the chain that makes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ssdcore_torch.checkpoint import write_atomically
from ssdcore_torch.sampling import to_bytes
from ssdcore_torch.text import printable

TILE = 64  # pixels that a shown image has at least, by repeating its pixels
GAP = 4
LINE = 14  # height of a line of text


def grid(
    images: Tensor, columns: int | None = None, *, title: str = "", captions: Sequence[str] | None = None
) -> Image.Image:
    """Images (n, 1, 3 or 4, h, w) in [−1, 1] in rows on white, enlarged by a whole number to 64 pixels at least.

    Args:
        columns: None: as many as make the grid square
        title: a line above the grid
        captions: a line below each image, such as the name of its class; None: none
    """
    tiles = _tiles(images)
    count, height, width = tiles.shape[:3]
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    rows = math.ceil(count / columns)
    top, line = (LINE if title else 0), (LINE if captions is not None else 0)
    across, down = width + GAP, height + line + GAP
    page = Image.new("RGB", (columns * across + GAP, top + rows * down + GAP), "white")
    draw = ImageDraw.Draw(page)
    if title:
        _write(draw, (GAP, 2), title, page.width - 2 * GAP)
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns)
        left, upper = GAP + column * across, top + GAP + row * down
        page.paste(Image.fromarray(tile), (left, upper))
        if captions is not None:
            _write(draw, (left, upper + height), captions[i], width)
    return page


def class_captions(labels: Sequence[int] | None, names: Sequence[str]) -> list[str] | None:
    """What stands below the images of these classes: their names, or their numbers; None for images without any."""
    return None if labels is None else [names[label] if names else f"class {label}" for label in labels]


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, room: int) -> None:
    """One line of text, cut to `room` pixels."""
    font, text = ImageFont.load_default(), printable(text)
    if isinstance(font, ImageFont.ImageFont):  # Pillow without FreeType: letters of Latin-1 alone
        text = text.encode("latin-1", "replace").decode("latin-1")
    end = "..."
    if draw.textlength(text, font) > room:
        while text and draw.textlength(text + end, font) > room:
            text = text[:-1]
        text += end
    draw.text(place, text, fill="black", font=font)


def denoising_strip(steps: Sequence[tuple[int, Tensor, Tensor]], samples: int = 3, columns: int = 10) -> Image.Image:
    """The chain of the first `samples` images, from noise at the left to the image at the right.

    Above, x_t at the true size of its level; below, what the network predicts from it. The columns are spread evenly
    over the steps.

    Args:
        steps: (t, x_t, prediction) in the order of sampling, as `generate` reports them
    """
    picked = [steps[round(i)] for i in np.linspace(0, len(steps) - 1, min(columns, len(steps)))]
    size = max(prediction.shape[-1] for _, _, prediction in picked)
    scale = max(1, math.ceil(TILE / size))
    samples = min(samples, len(picked[0][1]))
    cell, line = size * scale + GAP, 14
    page = Image.new("RGB", (cell * len(picked) + GAP, line + samples * (2 * cell + GAP) + GAP), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default()
    for column, (t, x_t, prediction) in enumerate(picked):
        left = GAP + column * cell
        draw.text((left, 2), f"t={t}", fill="black", font=font)
        for sample in range(samples):
            top = line + GAP + sample * (2 * cell + GAP)
            for offset, image in ((0, x_t), (cell, prediction)):
                tile = _tiles(image[sample : sample + 1], scale)[0]
                inset = (size * scale - tile.shape[0]) // 2
                page.paste(Image.fromarray(tile), (left + inset, top + offset + inset))
    return page


def denoising_frames(
    steps: Sequence[tuple[int, Tensor, Tensor]], samples: int = 6, frames: int = 50
) -> list[Image.Image]:
    """The chain of the first `samples` images, a frame a step: x_t at the true size of its level above, growing, and
    below it what the network predicts from it, for `save_animation`.

    Args:
        steps: (t, x_t, prediction) in the order of sampling, as `generate` reports them for one batch
        frames: at most as many, spread evenly over the steps
    """
    if not steps:
        raise ValueError("denoising_frames: expected at least one step (t, x_t, prediction), got none")
    picked = [steps[round(i)] for i in np.linspace(0, len(steps) - 1, min(frames, len(steps)))]
    size = max(prediction.shape[-1] for _, _, prediction in picked)
    scale = max(1, math.ceil(TILE / size))
    count = min(samples, len(picked[0][1]))
    cell, line, margin = size * scale + GAP, 14, 62
    font = ImageFont.load_default()
    shown = []
    for t, x_t, prediction in picked:
        page = Image.new("RGB", (margin + count * cell + GAP, line + 2 * cell + GAP), "white")
        draw = ImageDraw.Draw(page)
        height, width = x_t.shape[-2:]
        draw.text((margin + GAP, 1), f"t = {t}, {height} by {width} pixels", fill="black", font=font)
        for row, (name, images) in enumerate((("x_t", x_t), ("prediction", prediction))):
            top = line + GAP + row * cell
            draw.text((GAP, top + cell // 2 - 8), name, fill="black", font=font)
            for sample, tile in enumerate(_tiles(images[:count], scale)):
                inset = (size * scale - tile.shape[0]) // 2
                page.paste(Image.fromarray(tile), (margin + GAP + sample * cell + inset, top + inset))
        shown.append(page)
    return shown


def save_animation(frames: Sequence[Image.Image], path: Path, milliseconds: int = 100, hold: int = 2000) -> None:
    """Write frames as an endless GIF, whole or not at all; the last one stays for `hold` milliseconds."""
    if path.suffix.lower() != ".gif":
        raise ValueError(f"{path}: an animation is written as GIF; end the name in .gif")
    if not frames:
        raise ValueError("save_animation: expected at least one frame, got none")
    first, *others = [frame.quantize(256, dither=Image.Dither.NONE) for frame in frames]
    durations = [milliseconds] * len(others) + [hold]

    def write(file: Path) -> None:
        first.save(file, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)

    write_atomically(path, write)


WRITTEN = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PCX", "PDF", "PNG", "PPM", "SGI", "TGA", "TIFF", "WEBP")
"""Pillow's names of the formats that it writes coloured pictures in, with what it always comes with."""


def picture_format(path: Path) -> str:
    """Pillow's name of the format that the file's suffix says; empty for none that pictures are written in."""
    name = Image.registered_extensions().get(path.suffix.lower(), "")
    return name if name in WRITTEN and name in Image.SAVE else ""


def save(picture: Image.Image, path: Path) -> None:
    """Write the picture, whole or not at all."""
    write_atomically(path, lambda file: picture.save(file, format=picture_format(path)))


def _tiles(images: Tensor, scale: int | None = None) -> np.ndarray:
    """(n, h·scale, w·scale, 3) bytes of images with 1, 3 or 4 channels; transparency becomes white."""
    pixels = to_bytes(images).permute(0, 2, 3, 1).cpu().numpy()
    if pixels.shape[3] == 4:
        share = pixels[..., 3:] / 255
        pixels = np.round(pixels[..., :3] * share + 255 * (1 - share)).astype(np.uint8)
    pixels = np.broadcast_to(pixels, (*pixels.shape[:3], 3))
    if scale is None:
        scale = max(1, math.ceil(TILE / pixels.shape[1]))
    return pixels.repeat(scale, axis=1).repeat(scale, axis=2)
