"""What a path, an array or a Dataset is read by."""

from __future__ import annotations

import os
import zipfile
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ssdcore.files import open_regular
from ssdcore_torch.data._arrays import BEGINNING, ArraySource, from_memory, idx_files, idx_source
from ssdcore_torch.data._datasets import DatasetSource
from ssdcore_torch.data._folders import FolderSource, ZipSource
from ssdcore_torch.data._hub import HUB, HubSource, is_saved_dataset
from ssdcore_torch.data._remote import check_address, is_remote
from ssdcore_torch.data._shards import holds_shards, open_shards
from ssdcore_torch.data._sources import Choices, Source
from ssdcore_torch.text import printable

EMBEDDED = "embedded:drawings64"
"""The `data.path` that names the 4,096 CC0 drawings (64 px, 16 classes) inside the package."""

FROM_PYTHON = "python:"
"""The `data.path` of images that no file holds: an array or a Dataset that a program gave."""


def open_source(data: Any, choices: Choices | None = None) -> Source:
    """The pictures of whatever `open_images` takes, as they are. Raises as it does."""
    choices = choices or Choices()
    if not isinstance(data, (str, os.PathLike)):
        if isinstance(data, (np.ndarray, Tensor, tuple)):
            return from_memory(data, choices)
        if isinstance(data, (bytes, list, dict)) or data is None:
            raise TypeError(f"data: expected a path, an array, (array, labels) or a Dataset, got {type(data).__name__}")
        return DatasetSource(data, choices)
    text = os.fspath(data)
    if text == EMBEDDED:
        with resources.as_file(resources.files("ssdcore_torch") / "assets" / "drawings64.npz") as packed:
            return ArraySource(packed, "the embedded drawings", choices)
    check_given(text)
    if is_remote(text):
        check_address(text)
    file = Path(text)
    if text.startswith(HUB) or is_saved_dataset(file):
        return HubSource(text, choices)
    if holds_shards(text):
        return open_shards(text, choices)
    if not file.exists():
        raise FileNotFoundError(
            f"no such data: {file}; give an image folder, an .npz or .npy file, tar shards, or {HUB}NAME; if it has "
            "moved, its new place"
        )
    if file.is_dir():
        return idx_source(file, choices) if idx_files(file) else FolderSource(file, choices)
    return _open_file(file, choices)


def check_given(text: str) -> None:
    """Raises ValueError for the name of data that a program gave, and for a name with a null byte."""
    if text.startswith(FROM_PYTHON):
        raise ValueError("this run's data were given by a program, and no file holds them: give them again, as data=")
    if "\0" in text:
        raise ValueError(f"no such data: {printable(text)}")


def _open_file(file: Path, choices: Choices) -> Source:
    with open_regular(file) as opened:
        start = opened.read(BEGINNING)
        packed = start.startswith(b"PK") and _holds_no_arrays(file)
    if packed:
        return ZipSource(file, choices)
    if start.startswith((b"\x1f\x8b", b"\0\0\x08")):
        return idx_source(file, choices)
    if start.startswith(b"PAR1"):
        raise ValueError(f"{file} is a Parquet file: give the folder that it is in, as {HUB}{file.parent}")
    return ArraySource(file, str(file), choices)


def _holds_no_arrays(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as opened:
            return not any(name.endswith(".npy") for name in opened.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def is_address(path: str) -> bool:
    """Whether reading this opens an address on another machine: a URL, or a dataset of the hub."""
    return is_remote(path) or (path.startswith(HUB) and not Path(path[len(HUB) :].partition(":")[0]).is_dir())


def refuse_untyped(path: str, where: str) -> None:
    """Raises ValueError for a `data.path` that opens an address. For one that only a file names, such as a config.json
    that may come from anywhere; what the user has typed needs no such check.

    Args:
        where: the file
    """
    if is_address(path):
        raise ValueError(
            f"{where} names data on another machine, and no address is opened that only a file names: to open it, add "
            f"--data {printable(path)!r}"
        )


def absolute(path: str) -> str:
    """The same data by a name that holds in any working folder: local paths and patterns made absolute."""
    named = path in (EMBEDDED,) or is_remote(path) or path.startswith(("pipe:", FROM_PYTHON))
    if named or (path.startswith(HUB) and not is_saved_dataset(Path(path.removeprefix(HUB)))):
        return path
    prefix = HUB if path.startswith(HUB) else ""
    return prefix + os.path.abspath(path.removeprefix(HUB))
