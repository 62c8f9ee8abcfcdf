"""What `python -m ssdcore_torch.prepare` knows of the paper's data sets: their layout, and how pictures are cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ssdcore.files import ArrayFile, read_text
from ssdcore_torch.data import fit, open_source
from ssdcore_torch.data._folders import FolderSource
from ssdcore_torch.data._sources import LEAST_UNPACKED, MOST_CLASSES, FatalSourceError, Source
from ssdcore_torch.text import printable


def paper_crop(image: Image.Image, size: int) -> np.ndarray:
    """The centred square as guided diffusion cuts it, and so the paper's code: (size, size, 3) uint8.

    The whole picture is halved by 2×2 means while its shorter side is at least 2·size, its shorter side brought to
    `size` with a bicubic filter, and the middle cut out.
    """
    width, height = image.size
    while min(width, height) >= 2 * size:
        width, height = width // 2, height // 2
        image = image.resize((width, height), Image.Resampling.BOX)
    scale = size / min(width, height)
    width, height = round(width * scale), round(height * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


@dataclass(frozen=True)
class Recipe:
    """How to make images of one data set.

    Attributes:
        about: what it reads, for --help
        open: the pictures of --from
        crop: a picture to (size, size, 3) bytes
        check: why a picture of this (width, height) does not belong, or ""
        usual: the number of images that the whole data set has, or 0

    Raises:
        ValueError: Or.
        FileNotFoundError: If they are not this data set's.
    """

    about: str
    open: Callable[[str | Path], Source]
    crop: Callable[[Image.Image, int], np.ndarray] = paper_crop
    check: Callable[[tuple[int, int]], str] = lambda size: ""
    usual: int = 0


class DownsampledImageNet(Source):
    """The batches of the downsampled ImageNet release: train_data_batch_1.npz, …, of `data` (n, 3·s·s), `labels` 1 ….

    Class names are WordNet's if the release's map_clsloc.txt lies beside them, else the release's numbers.
    """

    def __init__(self, folder: Path) -> None:
        self.source = str(folder)
        self._files = sorted(folder.glob("train_data_batch_*.npz"))
        labels = [self._array(file, "labels").astype(np.int64).ravel() for file in self._files]
        self.labels = np.concatenate(labels) - 1
        self.blocks = tuple(len(part) for part in labels)
        self.ends = np.cumsum(self.blocks)
        count = int(self.labels.max()) + 1
        if self.labels.min() < 0:
            raise ValueError(f"{folder}: expected labels from 1 on, got {int(self.labels.min()) + 1}")
        self.class_names = _names_of_classes(folder / "map_clsloc.txt", count)
        self._loaded: tuple[int, np.ndarray] | None = None
        side = self.open(0).size[0]
        self.size = (side, side)

    def __len__(self) -> int:
        return len(self.labels) if self.labels is not None else 0

    def open(self, index: int) -> Image.Image:
        number = int(np.searchsorted(self.ends, index, side="right"))
        if self._loaded is None or self._loaded[0] != number:
            data = self._array(self._files[number], "data")
            side = round((data.shape[-1] / 3) ** 0.5)
            if data.dtype != np.uint8 or data.shape != (self.blocks[number], 3 * side * side):
                raise FatalSourceError(
                    f"{self._files[number]}: expected bytes shaped (n, 3·s·s), got {data.dtype} {data.shape}"
                )
            self._loaded = number, data.reshape(-1, 3, side, side)  # one file at a time is in memory
        first = int(self.ends[number]) - self.blocks[number]
        return Image.fromarray(np.ascontiguousarray(self._loaded[1][index - first].transpose(1, 2, 0)))

    def name(self, index: int) -> str:
        return f"image {index} of {self.source}"

    @property
    def files(self) -> list[Path]:
        return self._files

    @staticmethod
    def _array(file: Path, name: str) -> np.ndarray:
        try:
            return ArrayFile(file, 4 * LEAST_UNPACKED)[name]
        except (ValueError, OSError, KeyError) as error:
            raise FatalSourceError(
                f"{file} is not a batch of the downsampled ImageNet release: {printable(error)}"
            ) from error


def _names_of_classes(file: Path, count: int) -> tuple[str, ...]:
    """From lines "n02119789 1 kit_fox"."""
    names = {k: str(k + 1) for k in range(count)}
    if file.is_file():
        for line in read_text(file).splitlines():
            words = line.split()
            if len(words) < 2 or not words[1].isdecimal() or not 0 < int(words[1][:9]) <= MOST_CLASSES:
                raise ValueError(f'{file}: expected lines as "n02119789 1 kit_fox", got {line[:80]!r}')
            names[int(words[1]) - 1] = words[0]
    return tuple(names[k] for k in sorted(names))


def _pictures(folder: str | Path) -> FolderSource:
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"--from {folder}: there is no such folder")
    return FolderSource(Path(folder))


def _faces(folder: str | Path) -> Source:
    source = _pictures(folder)
    source.forget_labels()  # its sub-folders are not classes
    return source


def _imagenet(folder: str | Path) -> Source:
    if any(Path(folder).glob("train_data_batch_*.npz")):
        return DownsampledImageNet(Path(folder))
    source = _pictures(folder)
    if source.labels is None:
        raise ValueError(
            f"--from {folder}: expected train_data_batch_1.npz, … of the downsampled release, or one folder per class "
            "(n01440764, …) of pictures"
        )
    return source


def _is_aligned(size: tuple[int, int]) -> str:
    return "" if size == (178, 218) else f"is {size[0]}×{size[1]} pixels, not 178×218 as the aligned pictures"


def _is_square(size: tuple[int, int]) -> str:
    return "" if size[0] == size[1] else f"is {size[0]}×{size[1]} pixels, not square as CelebA-HQ's pictures"


RECIPES = {
    "celeba": Recipe(
        "CelebA's aligned pictures (img_align_celeba, 178×218): the paper's crop, the centred 178×178, to --size",
        _faces,
        check=_is_aligned,
        usual=202_599,
    ),
    "celebahq": Recipe(
        "CelebA-HQ (square pictures, 256 or 1024 pixels): the same filter, to --size",
        _faces,
        check=_is_square,
        usual=30_000,
    ),
    "imagenet": Recipe(
        "ImageNet with its classes: the folders n01440764, … of the training pictures, cropped as the paper's code "
        "does, or the .npz batches of the downsampled release, whose makers squeezed whole pictures to 64×64",
        _imagenet,
        usual=1_281_167,
    ),
    "folder": Recipe(
        "anything that --data of training takes, cropped and resized as training does", open_source, crop=fit
    ),
}
