"""Tensors and JSON in files, written whole, and reading what may be damaged."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import ssdcore
from ssdcore.files import read_bytes, write_atomically
from ssdcore_torch.text import printable

Tensors = dict[str, Tensor]


def tensor_writer(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Callable[[Path], None]:
    """What writes these tensors, whatever their device and layout, to a safetensors file. It raises OSError."""

    def write(path: Path) -> None:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            save_file(plain, path, dict(metadata))
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(f"{path} cannot be written: {error}") from error
        _sort_metadata(path)

    return write


def _sort_metadata(path: Path) -> None:
    """safetensors writes the metadata in a random order: sorted, files of equal runs are equal byte for byte."""
    with open(path, "rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(ordered.ljust(length))  # the same text in another order; spaces at the end, as safetensors pads it


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors, whatever their device and layout, as one safetensors file, all of it or nothing."""
    write_atomically(path, tensor_writer(tensors, metadata or {}))


def load_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """(tensors, metadata) on the CPU. Raises ValueError for a file that is truncated or of another kind."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: not a run of ssdcore_torch, or one that was never saved")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # copies: the tensors themselves are the mapped file, which may go away, on another machine's disk at that
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        fault = f"not a readable safetensors file: cut short or of another kind ({printable(error)})"
        raise ValueError(f"{path} is {fault}") from error


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Raises ValueError unless the names, shapes and dtypes are those expected, naming the first that is not."""
    for name in sorted({*found, *expected}):
        if name not in found or name not in expected:
            fault = "is missing" if name not in found else "is unknown"
        elif found[name].shape != expected[name].shape or found[name].dtype != expected[name].dtype:
            fault = f"has {_describe(found[name])} instead of {_describe(expected[name])}"
        else:
            continue
        raise ValueError(f"{where} does not fit the network of config.json: {printable(name)} {fault}")


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError naming the file for anything else, FileNotFoundError if missing."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        values = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({printable(error)})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected an object, got {type(values).__name__}")
    return values


def json_writer(values: Mapping[str, Any]) -> Callable[[Path], object]:
    """What writes these values as a JSON file. Raises ValueError or TypeError for values that JSON has not."""
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    return lambda path: path.write_text(text, encoding="utf-8")


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def versions() -> dict[str, str]:
    """What wrote a checkpoint."""
    return {"ssdcore": ssdcore.__version__, "torch": torch.__version__, "python": platform.python_version()}


def content_of(path: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"bytes": path.stat().st_size, "sha256": digest(path)}


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises ValueError naming the first tensor that holds NaN or an infinity."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{where} holds values that are not finite, in {printable(name)}")
