"""Images of a Hugging Face dataset, through the `datasets` library."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ssdcore_torch.data._pixels import reason
from ssdcore_torch.data._sources import Source, check_labels, need, some

HUB = "hf:"
"""What the name of a dataset of the hub starts with; then NAME, or NAME:SPLIT. A saved folder may be NAME, too."""


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    )


class HubSource(Source):
    """The first image column of a dataset; labels are its first column of class labels.

    path  a folder that `save_to_disk` wrote, or "hf:NAME" or "hf:NAME:SPLIT" with the name of such a folder or of a
          dataset of the hub. Without a split: the only one, or "train".
    """

    def __init__(self, path: str) -> None:
        self.source = path
        datasets = need("datasets")
        name, split = path, None
        if path.startswith(HUB):
            name, _, split = path[len(HUB) :].partition(":")
        found = _load(datasets, name, path)
        if isinstance(found, datasets.DatasetDict):
            split = split or ("train" if len(found) != 1 else next(iter(found)))
            if split not in found:
                raise ValueError(f"{path} has no split {split!r}; it has {list(found)}: name one, as {HUB}{name}:SPLIT")
            found = found[split]
        elif split:
            raise ValueError(f"{path}: {name} has no splits; leave :{split} out")
        columns = {kind: self._column(found, kind) for kind in (datasets.Image, datasets.ClassLabel)}
        self.column = columns[datasets.Image]
        if self.column is None:
            raise ValueError(f"{path} has no column of images; it has {dict(found.features)}")
        self.rows = found.select_columns([self.column]).cast_column(self.column, datasets.Image(decode=False))
        if not len(found):
            raise ValueError(f"{path} holds no images")
        if (label := columns[datasets.ClassLabel]) is not None:
            labels = found.select_columns([label]).with_format("numpy")[:][label].astype(np.int64)
            if labels.min() >= 0:  # −1 says that a split has none
                self.labels, self.class_names = labels, tuple(found.features[label].names)
                check_labels(self.labels, self.class_names, path)

    @staticmethod
    def _column(found: Any, kind: type) -> str | None:
        return next((name for name, feature in found.features.items() if isinstance(feature, kind)), None)

    def __len__(self) -> int:
        return len(self.rows)

    def open(self, index: int) -> Image.Image:
        stored = self.rows[index][self.column]
        return Image.open(stored["path"] if stored["bytes"] is None else io.BytesIO(stored["bytes"]))

    def name(self, index: int) -> str:
        return f"row {index} of {self.source}"

    def traits(self) -> Iterator[bytes]:
        for index in some(len(self), 16):
            stored = self.rows[index][self.column]
            yield os.path.basename(stored["path"]).encode() if stored["bytes"] is None else stored["bytes"]


def _load(datasets: Any, name: str, path: str) -> Any:
    try:
        return datasets.load_from_disk(name) if is_saved_dataset(Path(name)) else datasets.load_dataset(name)
    except Exception as error:  # of its own, of the hub's, of the file formats'
        raise ValueError(f"{path} cannot be read as a Hugging Face dataset: {reason(error)}") from error
