"""Training images in memory (the embedded drawings, a folder, an array file), and the order they are drawn in."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

EMBEDDED = "embedded:drawings64"
"""The `data.path` that names the 4,096 CC0 drawings (64 px, 16 classes) inside the package."""


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, held as bytes.

    images       (n, size, size, 3) uint8, sRGB
    labels       (n,) int64 indices into `class_names`, or None where the source has no labels
    class_names  names of the labels; empty without labels
    source       what was read, for messages
    skipped      (path, reason) of every file that could not be read as an image
    """

    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    source: str
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.images)


def load_images(path: str | os.PathLike[str], size: int, classes: Sequence[str] = ()) -> ImageSet:
    """Read every image of `path`, centre-cropped and resized (antialiased) to `size` × `size` RGB.

    path     `EMBEDDED`, a folder (searched through; any format that Pillow reads), or an .npz / .npy file of images
             shaped (n, h, w), (n, h, w, 1), (n, h, w, 3) or (n, h, w, 4), uint8 or uint16
    classes  keep only these classes, for a source with class names; empty keeps all

    Files of a folder that are no readable image are listed in `skipped`. Raises ValueError if nothing is readable, if
    an image is smaller than `size`, or if an array has another shape or dtype; FileNotFoundError for no such path.
    """
    if str(path) == EMBEDDED:
        with resources.as_file(resources.files("ssdcore_torch") / "assets" / "drawings64.npz") as file:
            return _load_array(file, size, classes, source="the embedded drawings")
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"no such data: {file}; give an image folder, an .npz or an .npy file")
    if file.is_dir():
        if classes:
            raise ValueError(f"data.classes = {tuple(classes)} needs class names, which the folder {file} has not")
        return _load_folder(file, size)
    return _load_array(file, size, classes, source=str(file))


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
        image = Image.fromarray(_to_bytes(grey.astype(np.uint16)))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def fit(image: Image.Image, size: int) -> np.ndarray:
    """The largest centred square, resized with an antialiased bicubic filter: (size, size, 3) uint8."""
    return np.asarray(ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC))


def image_files(folder: Path) -> list[Path]:
    """Every file below `folder` but hidden ones, in one order on every machine."""
    files = [f for f in folder.rglob("*") if f.is_file()]
    files = [f for f in files if not any(p.startswith(".") for p in f.relative_to(folder).parts)]
    return sorted(files, key=lambda f: f.relative_to(folder).as_posix())


def _load_folder(folder: Path, size: int) -> ImageSet:
    files = image_files(folder)
    if not files:
        raise ValueError(f"{folder} holds no files: give a folder with images in it (subfolders are searched)")
    images: list[np.ndarray] = []
    skipped: list[tuple[str, str]] = []
    small: list[str] = []
    for file in files:
        try:
            with Image.open(file) as opened:
                if min(opened.size) < size:
                    small.append(f"{file} is {opened.width}×{opened.height}")
                    continue
                if not small:  # otherwise the load fails anyway: only headers are read from here on
                    images.append(fit(to_rgb(opened), size))
        except Exception as error:  # Pillow's readers raise many kinds on a broken file; the reason is kept
            skipped.append((str(file), _reason(error)))
    if small:
        more = f" (and {len(small) - 1} more)" if len(small) > 1 else ""
        raise ValueError(f"{small[0]} pixels, smaller than size {size}{more}: choose a smaller size or remove it")
    if not images:
        name, reason = skipped[0]
        raise ValueError(f"none of the {len(files)} files in {folder} is a readable image; the first, {name}: {reason}")
    return ImageSet(np.stack(images), None, (), str(folder), tuple(skipped))


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return " ".join(str(error).split()) or type(error).__name__


def _load_array(file: Path, size: int, classes: Sequence[str], source: str) -> ImageSet:
    try:
        loaded = np.load(file, allow_pickle=False)
        arrays = dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else {"images": loaded}
    except Exception as error:  # zip, header and pickle errors alike mean: not an array file
        raise ValueError(
            f"{file} is not a readable .npz or .npy file of images ({_reason(error)}); "
            "save one with numpy.savez(file, images=array)"
        ) from error
    images = arrays.get("images")
    if images is None:
        if len(arrays) != 1:
            raise ValueError(f"{file} holds {sorted(arrays)}: expected an array named 'images', or only one array")
        (images,) = arrays.values()
    images = _check_array(images, file, size)

    labels = arrays.get("labels")
    names = tuple(str(name) for name in arrays["class_names"]) if "class_names" in arrays else ()
    if labels is not None and labels.shape != (len(images),):
        raise ValueError(f"{file}: expected labels shaped ({len(images)},), got {labels.shape}")
    if classes:
        unknown = [name for name in classes if name not in names]
        if unknown or labels is None:
            raise ValueError(f"data.classes: {source} has no class {unknown}; it has {list(names)}")
        keep = np.isin(labels, [names.index(name) for name in classes])
        images, labels = images[keep], labels[keep]
    if images.shape[1:] != (size, size, 3):
        images = np.stack([fit(to_rgb(Image.fromarray(image)), size) for image in images])
    return ImageSet(images, None if labels is None else labels.astype(np.int64), names, source)


def _check_array(images: np.ndarray, file: Path, size: int) -> np.ndarray:
    """The images as (n, h, w) or (n, h, w, 3 or 4) bytes."""
    if images.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"{file}: expected images of dtype uint8 or uint16, got {images.dtype}; "
            "for values in [0, 1] save (255 * images).round().astype('uint8')"
        )
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)) or len(images) == 0:
        raise ValueError(f"{file}: expected images shaped (n, h, w) or (n, h, w, 1, 3 or 4), got {images.shape}")
    if min(images.shape[1:3]) < size:
        raise ValueError(
            f"{file}: its images are {images.shape[2]}×{images.shape[1]} pixels, smaller than size {size}: "
            "choose a smaller size"
        )
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    return _to_bytes(images)


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """uint16 to uint8 by the ratio of the full ranges; uint8 as it is."""
    return values if values.dtype == np.uint8 else ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


@dataclass(frozen=True)
class Order:
    """Which images a step trains on: epoch after epoch, each a permutation drawn from (seed, epoch).

    A pure function of the step, so that a resumed run goes on in the middle of an epoch without replaying it.
    """

    count: int
    batch_size: int
    seed: int

    def permutation(self, epoch: int) -> np.ndarray:
        """(count,) int64, the order of the images in this epoch."""
        return np.random.default_rng((self.seed, epoch)).permutation(self.count)

    def batches(self, first_step: int) -> Iterator[np.ndarray]:
        """(batch_size,) int64 indices of the images of step first_step, first_step + 1, …; a batch may span epochs."""
        epoch, offset = divmod(first_step * self.batch_size, self.count)
        queue = self.permutation(epoch)[offset:]
        while True:
            while len(queue) < self.batch_size:
                epoch += 1
                queue = np.concatenate([queue, self.permutation(epoch)])
            yield queue[: self.batch_size]
            queue = queue[self.batch_size :]
