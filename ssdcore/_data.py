"""Images for the commands: an array file, a folder, or the drawings that are shipped beside this package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from ssdcore.files import ArrayFile, only_images, open_picture
from ssdcore.operators import Resize

_CHUNK = 256
_MOST_BYTES = 4 * 2**30  # of a compressed array; what is not compressed is read where it lies


def read_images(path: str | None, size: int) -> tuple[np.ndarray, str]:
    """(images (n, channels, size, size) uint8, what was read, with any skipped files).

    Larger images are cropped to the centred square and resized (bicubic, antialiased). Transparency becomes white.

    Args:
        path: an image folder (Pillow reads it), an .npz or .npy file of uint8 images (n, h, w) or (n, h, w, 1, 3 or
            4), or None: the embedded drawings

    Raises:
        ValueError: For data that cannot be read or is smaller than `size`.
        FileNotFoundError: For no such path.
    """
    file = _embedded() if path is None else Path(path)
    if not file.exists():
        raise FileNotFoundError(f"no such data: {file}; give an image folder, an .npz or an .npy file")
    if file.is_dir():
        return _read_folder(file, size)
    images = _read_array(file)
    return _fitted(images, size, str(file)), f"{len(images)} images of {file}"


def _embedded() -> Path:
    spec = importlib.util.find_spec("ssdcore_torch")  # finds the package without importing it
    if spec is not None and spec.submodule_search_locations:
        file = Path(next(iter(spec.submodule_search_locations))) / "assets" / "drawings64.npz"
        if file.exists():
            return file
    raise ValueError("no --data was given, and the embedded drawings of ssdcore_torch are not installed; pass --data")


def _read_array(file: Path) -> np.ndarray:
    arrays = ArrayFile(file, _MOST_BYTES)
    name, _ = only_images(arrays, file)
    images = arrays[name]
    if images.dtype != np.uint8:
        raise ValueError(
            f"{file}: expected uint8 images, got {images.dtype}; save (255 * images).round().astype('uint8')"
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3, 4) or images.size == 0:
        raise ValueError(f"{file}: expected images shaped (n, h, w) or (n, h, w, 1, 3 or 4), got {images.shape}")
    return _over_white(images)


def _over_white(images: np.ndarray) -> np.ndarray:
    if images.shape[3] != 4:
        return images
    share = images[..., 3:] / 255.0
    return np.round(images[..., :3] * share + 255.0 * (1 - share)).astype(np.uint8)


def _fitted(images: np.ndarray, size: int, source: str) -> np.ndarray:
    """(n, h, w, c) bytes as (n, c, size, size) bytes."""
    height, width = images.shape[1:3]
    side = min(height, width)
    if side < size:
        raise ValueError(f"{source}: {width}×{height} pixels, smaller than size {size}: choose a smaller size")
    top, left = (height - side) // 2, (width - side) // 2
    square = np.moveaxis(images[:, top : top + side, left : left + side], 3, 1)
    if side == size:
        return np.ascontiguousarray(square)
    resize = Resize((side, side), (size, size), "bicubic")
    parts = [resize(square[i : i + _CHUNK].astype(np.float64)) for i in range(0, len(square), _CHUNK)]
    return np.concatenate([np.clip(np.round(part), 0, 255).astype(np.uint8) for part in parts])


def _read_folder(folder: Path, size: int) -> tuple[np.ndarray, str]:
    try:
        from PIL import ImageOps
    except ImportError as error:
        raise ValueError("reading an image folder needs Pillow: pip install pillow, or give an .npz file") from error
    files = sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith("."))
    images: list[np.ndarray] = []
    skipped: list[str] = []
    for file in files:
        try:
            with open_picture(file) as opened:
                pixels = np.asarray(ImageOps.exif_transpose(opened).convert("RGBA"))[None]
        except Exception as error:  # Pillow's readers raise many kinds on a broken file
            skipped.append(f"{file} ({' '.join(str(error).split()) or type(error).__name__})")
            continue
        images.append(_fitted(_over_white(pixels), size, str(file)))
    if not images:
        first = f"; the first, {skipped[0]}" if skipped else ""
        raise ValueError(f"{folder}: none of its {len(files)} files is a readable image{first}")
    note = f", {len(skipped)} unreadable files skipped, the first {skipped[0]}" if skipped else ""
    return np.concatenate(images), f"{len(images)} images of {folder}{note}"
