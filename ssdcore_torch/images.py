"""Pictures of samples and of the chain that makes them; samples as arrays."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ssdcore.files import write_atomically
from ssdcore_torch.sampling import to_bytes
from ssdcore_torch.text import printable

TILE = 64  # pixels that a shown image has at least, by repeating its pixels
GAP = 4
LINE = 14  # height of a line of text
WIDEST = 256  # columns of a curve


def viewed(batch: Tensor) -> Tensor:
    """What a picture shows of a batch (n, channels, *size) in [−1, 1]: images of 1, 3 or 4 channels themselves, of
    others the first channel; signals as curves; of volumes the slice in the middle. (n, 1, 3 or 4, height, width)."""
    while batch.ndim > 4:
        batch = batch[:, :, batch.shape[2] // 2]
    if batch.ndim == 3:
        return _curves(batch)
    return batch if batch.shape[1] in (1, 3, 4) else batch[:, :1]


def _curves(batch: Tensor) -> Tensor:
    """(n, 1, TILE, width): signals (n, channels, length), each channel a curve, black on white, +1 at the top. At most
    `WIDEST` columns, in which a longer signal fills what lies between its least and greatest value."""
    width = min(batch.shape[2], WIDEST)
    ends = np.linspace(0, batch.shape[2], width + 1).astype(int)
    rows = ((1 - batch.detach().float().clamp(-1, 1).cpu().numpy()) / 2 * (TILE - 1)).round().astype(int)
    low = np.minimum.reduceat(rows, ends[:-1], axis=2)
    high = np.maximum.reduceat(rows, ends[:-1], axis=2)
    # up to the neighbour on the left, so that a steep curve has no holes
    low[..., 1:], high[..., 1:] = np.minimum(low[..., 1:], high[..., :-1]), np.maximum(high[..., 1:], low[..., :-1])
    height = np.arange(TILE)[:, None]
    black = ((low[:, :, None] <= height) & (height <= high[:, :, None])).any(1, keepdims=True)
    return torch.from_numpy(np.where(black, -1.0, 1.0).astype(np.float32))


def grid(
    images: Tensor, columns: int | None = None, *, title: str = "", captions: Sequence[str] | None = None
) -> Image.Image:
    """Images (n, 1, 3 or 4, h, w) in [−1, 1], or what is `viewed` of others, in rows on white, enlarged by a whole
    number to 64 pixels at least.

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
    """What stands below the images of these classes; None for images without any.

    Their names, without accents where Pillow's own font has none; or their numbers, where they have no names, or names
    with letters that the font lacks.
    """
    if labels is None:
        return None
    captions = {label: f"class {label}" for label in labels}
    for label in captions if names else ():
        drawn = _drawable(names[label])
        if drawn.count("?") == names[label].count("?"):  # no letter is lost
            captions[label] = drawn
    return [captions[label] for label in labels]


def _drawable(text: str) -> str:
    """The text in letters that Pillow's own font has: without accents that it lacks, "?" for what is left."""
    font, text = ImageFont.load_default(), printable(text)
    if isinstance(font, ImageFont.ImageFont):  # Pillow without FreeType
        return text.encode("latin-1", "replace").decode("latin-1")
    box = bytes(font.getmask("\U0010fffd"))  # drawn for every character that it lacks
    letters = []
    for letter in text:
        plain = unicodedata.normalize("NFKD", letter)[0]
        letters.append(next((tried for tried in (letter, plain) if bytes(font.getmask(tried)) != box), "?"))
    return "".join(letters)


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, room: int) -> None:
    """One line of text, cut to `room` pixels."""
    font, text = ImageFont.load_default(), _drawable(text)
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
    picked = [(t, viewed(x_t[:samples]), viewed(prediction[:samples])) for t, x_t, prediction in picked]
    height, width, scale = _cell(picked)
    samples = min(samples, len(picked[0][1]))
    across, down, line = width + GAP, height + GAP, 14
    page = Image.new("RGB", (across * len(picked) + GAP, line + samples * (2 * down + GAP) + GAP), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default()
    for column, (t, x_t, prediction) in enumerate(picked):
        left = GAP + column * across
        draw.text((left, 2), f"t={t}", fill="black", font=font)
        for sample in range(samples):
            top = line + GAP + sample * (2 * down + GAP)
            for offset, image in ((0, x_t), (down, prediction)):
                tile = _tiles(image[sample : sample + 1], scale)[0]
                page.paste(Image.fromarray(tile), _centred(tile, left, top + offset, height, width))
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
    shapes = [tuple(x_t.shape[2:]) for _, x_t, _ in picked]
    picked = [(t, viewed(x_t[:samples]), viewed(prediction[:samples])) for t, x_t, prediction in picked]
    height, width, scale = _cell(picked)
    count = min(samples, len(picked[0][1]))
    across, down, line, margin = width + GAP, height + GAP, 14, 62
    font = ImageFont.load_default()
    shown = []
    for shape, (t, x_t, prediction) in zip(shapes, picked):
        page = Image.new("RGB", (margin + count * across + GAP, line + 2 * down + GAP), "white")
        draw = ImageDraw.Draw(page)
        size = " by ".join(map(str, shape)) + (" pixels" if len(shape) == 2 else "")
        draw.text((margin + GAP, 1), f"t = {t}, {size}", fill="black", font=font)
        for row, (name, images) in enumerate((("x_t", x_t), ("prediction", prediction))):
            top = line + GAP + row * down
            draw.text((GAP, top + down // 2 - 8), name, fill="black", font=font)
            for sample, tile in enumerate(_tiles(images[:count], scale)):
                left = margin + GAP + sample * across
                page.paste(Image.fromarray(tile), _centred(tile, left, top, height, width))
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


def _cell(steps: Sequence[tuple[int, Tensor, Tensor]]) -> tuple[int, int, int]:
    """(height, width) of the room that the largest prediction of a chain takes, and by what it is enlarged."""
    height, width = (max(prediction.shape[axis] for _, _, prediction in steps) for axis in (-2, -1))
    scale = max(1, math.ceil(TILE / width))
    return height * scale, width * scale, scale


def _centred(tile: np.ndarray, left: int, top: int, height: int, width: int) -> tuple[int, int]:
    return left + (width - tile.shape[1]) // 2, top + (height - tile.shape[0]) // 2


def save_array(drawn: Tensor, labels: Sequence[int] | None, path: Path) -> None:
    """Write samples (n, channels, *size) as an .npz of `images` and `labels`, or as an .npy, channels last, as training
    and evaluating read them: of images uint8, of others float32 in [−1, 1]. All of the file or nothing."""
    values = to_bytes(drawn) if drawn.ndim == 4 else drawn.float().clamp(-1, 1)
    arrays = {"images": values.movedim(1, -1).cpu().numpy()}
    if labels is not None:
        arrays["labels"] = np.array(labels)

    def write(file: Path) -> None:
        with open(file, "wb") as opened:
            if path.suffix == ".npy":
                np.save(opened, arrays["images"])
            else:
                np.savez(opened, **arrays)  # type: ignore[arg-type]

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
    """(n, h·scale, w·scale, 3) bytes of what is `viewed`; transparency becomes white."""
    pixels = to_bytes(viewed(images)).permute(0, 2, 3, 1).cpu().numpy()
    if pixels.shape[3] == 4:
        share = pixels[..., 3:] / 255
        pixels = np.round(pixels[..., :3] * share + 255 * (1 - share)).astype(np.uint8)
    pixels = np.broadcast_to(pixels, (*pixels.shape[:3], 3))
    if scale is None:
        scale = max(1, math.ceil(TILE / pixels.shape[1]))
    return pixels.repeat(scale, axis=1).repeat(scale, axis=2)
