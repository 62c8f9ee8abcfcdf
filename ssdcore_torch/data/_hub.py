"""Images of a Hugging Face dataset, through the `datasets` library."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from ssdcore.files import open_picture, read_text, size_of
from ssdcore_torch.data._pixels import reason
from ssdcore_torch.data._sources import MOST_FILE, Choices, Source, as_labels, check_labels, need, some
from ssdcore_torch.text import printable

HUB = "hf:"
_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")  # of a dataset on the hub
"""What the name of a dataset of the hub starts with; then NAME, or NAME:SPLIT. A saved folder may be NAME, too."""

SCRIPTLESS = 4  # the first version of `datasets` that runs no scripts of datasets, whatever it is told


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    )


class HubSource(Source):
    """A column of images of a dataset; labels are a column of class labels. `Choices` may name both, and the subset.

    path  a folder that `save_to_disk` wrote, or "hf:NAME" or "hf:NAME:SPLIT" with the name of such a folder or of a
          dataset of the hub. Without a split: the only one, or "train".
    """

    def __init__(self, path: str, choices: Choices | None = None) -> None:
        self.source, self.choices = path, choices or Choices()
        datasets = need("datasets")
        _refuse_scripts(datasets)
        name, split = path, None
        if path.startswith(HUB):
            name, _, split = path[len(HUB) :].partition(":")
        if (not _NAME.fullmatch(name) and not Path(name).is_dir()) or not name:
            raise ValueError(f"{path} names no dataset: give {HUB}NAME, or {HUB}NAME:SPLIT")
        found = _load(datasets, name, path, self.choices.subset)
        if isinstance(found, datasets.DatasetDict):
            split = split or ("train" if len(found) != 1 else next(iter(found)))
            if split not in found:
                raise ValueError(f"{path} has no split {split!r}; it has {list(found)}: name one, as {HUB}{name}:SPLIT")
            found = found[split]
        elif split:
            raise ValueError(f"{path}: {name} has no splits; leave :{split} out")
        self.roots = _roots(datasets, name)
        self.column = self._image_column(found, datasets)
        self.rows = found.select_columns([self.column]).cast_column(self.column, datasets.Image(decode=False))
        if not len(found):
            raise ValueError(f"{path} holds no images")
        if self.choices.labels:
            self._take_labels(found, datasets)

    def _image_column(self, found: Any, datasets: Any) -> str:
        columns = [name for name, feature in found.features.items() if isinstance(feature, datasets.Image)]
        wanted = self.choices.column
        if wanted is not None and wanted not in columns:
            raise ValueError(f"data.column: {self.source} has no column of images {wanted!r}; it has {columns}")
        if not columns:
            raise ValueError(f"{self.source} has no column of images; it has {dict(found.features)!s:.400}")
        if wanted is None and len(columns) > 1:
            shown = ", ".join(printable(name) for name in columns)
            self.doubts += (
                f"of the columns {shown}, {printable(columns[0])} is taken for the images: "
                f"--set data.column={printable(columns[1])} takes another",
            )
        return wanted or columns[0]

    def _take_labels(self, found: Any, datasets: Any) -> None:
        wanted, features = self.choices.label_column, found.features
        columns = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        if wanted is not None and wanted not in features:
            raise ValueError(f"data.label_column: {self.source} has no column {wanted!r}; it has {list(features)}")
        if wanted is None and len(columns) > 1:
            self.doubts += (
                f"of the columns {', '.join(printable(name) for name in columns)}, {printable(columns[0])} is taken "
                f"for the labels: --set data.label_column={printable(columns[1])} takes another",
            )
        label = wanted or next(iter(columns), None)
        if label is None:
            return
        values = found.select_columns([label]).with_format("numpy")[:][label]
        labels = as_labels(values, len(found), f"{self.source}, column {printable(label)}")
        if labels.min() >= 0:  # −1 says that a split has none
            names = tuple(features[label].names) if isinstance(features[label], datasets.ClassLabel) else ()
            self.labels, self.class_names = labels, check_labels(labels, names, self.source)
            self.labelled_by = f"its column {printable(label)}"

    def __len__(self) -> int:
        return len(self.rows)

    def _stored(self, index: int) -> bytes | str:
        """The file of a picture, or its path."""
        stored = self.rows[index][self.column]
        content, path = (stored or {}).get("bytes"), (stored or {}).get("path")
        if content is not None:
            return bytes(content)
        if path is None:
            raise ValueError("this row has no image")
        real = os.path.realpath(path)
        if not any(os.path.commonpath([real, root]) == root for root in self.roots):
            raise ValueError(f"the row names the file {printable(path)}, which is not part of the dataset")
        return str(path)

    def open(self, index: int) -> Image.Image:
        stored = self._stored(index)
        if isinstance(stored, bytes) and len(stored) > MOST_FILE:
            raise ValueError(f"takes {size_of(len(stored))}, more than a picture can")
        picture: Image.Image = open_picture(
            io.BytesIO(stored) if isinstance(stored, bytes) else stored, self.choices.most_pixels
        )
        return picture

    def name(self, index: int) -> str:
        return f"row {index} of {self.source}"

    def traits(self) -> Iterator[bytes]:
        for index in some(len(self), 16):
            try:
                stored = self._stored(index)
            except ValueError:
                yield b"none"
            else:
                yield stored if isinstance(stored, bytes) else os.path.basename(stored).encode()


def _refuse_scripts(datasets: Any) -> None:
    """Raises ImportError for a `datasets` that would run a script lying in a dataset."""
    version = str(getattr(datasets, "__version__", "0"))
    major = re.match(r"\d+", version)
    if major is None or int(major[0]) < SCRIPTLESS:
        raise ImportError(
            f"datasets {printable(version)} can run scripts that come with a dataset: pip install "
            f"'datasets>={SCRIPTLESS}'"
        )


def _roots(datasets: Any, name: str) -> tuple[str, ...]:
    """Folders that the pictures of a dataset may lie in: its own, and what `datasets` has fetched into."""
    config = datasets.config
    keys = ("HF_CACHE_HOME", "HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH")
    folders = [name, *(str(getattr(config, key, "")) for key in keys)]
    return tuple(os.path.realpath(folder) for folder in folders if folder and os.path.isdir(folder))


def _load(datasets: Any, name: str, path: str, subset: str | None) -> Any:
    folder = Path(name)
    try:
        if is_saved_dataset(folder):
            return datasets.load_from_disk(name)
        if folder.is_dir():
            _refuse_addresses(folder)
        return datasets.load_dataset(name) if subset is None else datasets.load_dataset(name, subset)
    except Exception as error:  # of its own, of the hub's, of the file formats'
        raise ValueError(f"{path} cannot be read as a Hugging Face dataset: {reason(error)}") from error


def _refuse_addresses(folder: Path) -> None:
    """Raises ValueError if the description in a folder sends `datasets` to other places for its files."""
    card = folder / "README.md"
    if not card.is_file():
        return
    head = re.match(r"---[ \t]*\n(.*?)\n---", read_text(card).replace("\r\n", "\n"), re.DOTALL)
    try:
        told = yaml.safe_load(head[1]) if head else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"the settings at the top of its README.md are not YAML: {error}") from error
    waiting = [told.get("configs"), told.get("data_files")] if isinstance(told, dict) else []
    seen: set[int] = set()  # of what YAML's aliases let appear again and again
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and ("://" in value or "::" in value):
            raise ValueError(f"its README.md names the files {printable(value)}: fetch them yourself")
