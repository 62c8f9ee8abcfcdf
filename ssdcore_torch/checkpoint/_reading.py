"""Opening checkpoints: only what is whole, and is what was written."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssdcore_torch.checkpoint._files import (
    Tensors,
    check_finite,
    check_tensors,
    content_of,
    digest,
    load_tensors,
    read_json,
)
from ssdcore_torch.checkpoint._layout import FOLDER, PRIOR, RESIDUALS, checkpoints, names_average, step_of, was_saved
from ssdcore_torch.checkpoint._resume import check_unchanged, data_of, read_config
from ssdcore_torch.checkpoint._state import MANIFEST, OPTIMIZER_PARTS, STATE, State
from ssdcore_torch.text import printable

log = logging.getLogger("ssdcore_torch")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are those that were written: its folder, manifest, state.json, each file's tensors."""

    folder: Path
    manifest: dict[str, Any]
    values: dict[str, Any]
    tensors: dict[str, Tensors]


def open_newest(run: Path, everything: bool) -> Checkpoint:
    """The newest intact checkpoint of the run: all of it, or the weights and their first average only.

    A checkpoint that is not whole, or not what was written, is named in a warning, and the one before it taken.

    Raises:
        FileNotFoundError: If the run has no checkpoint.
        ValueError: Naming each with its fault if none is intact.
    """
    faults: dict[str, str] = {}
    folders = checkpoints(run)
    for folder in folders:
        try:
            opened = _open(folder, everything)
        except (ValueError, OSError) as error:
            if folder.exists():  # else a trainer at work has just deleted it
                faults[folder.name] = str(error)
            continue
        for name, fault in faults.items():
            log.warning("checkpoint %s is refused: %s; %s is used instead", name, fault, folder.name)
        return opened
    if checkpoints(run) != folders:
        return open_newest(run, everything)
    if not faults:
        raise FileNotFoundError(f"{run} has no checkpoint: {run / FOLDER} is empty or missing")
    told = "; ".join(f"{name}: {fault}" for name, fault in faults.items())
    raise ValueError(f"{run} has no intact checkpoint ({told})")


def _open(folder: Path, everything: bool) -> Checkpoint:
    """Raises ValueError or OSError unless every file is the size, and those read the content, that were written."""
    manifest = _read_manifest(folder)
    files = manifest["files"]
    for name, entry in files.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found != entry["bytes"]:
            fault = "is missing" if found is None else f"is cut short or changed: {found} bytes, not {entry['bytes']}"
            raise ValueError(f"{folder / name}, which manifest.json lists, {fault}")
    _check_content(folder / "state.json", files)
    values = _read_state(folder / "state.json")
    needed = ["model", *values["averages"], "optimizer"] if everything else ["model", values["averages"][0]]
    tensors = {}
    for name in needed:
        path = folder / f"{name}.safetensors"
        _check_content(path, files)
        tensors[name], _ = load_tensors(path)
    return Checkpoint(folder, manifest, values, tensors)


def check_prior(run: Path, opened: Checkpoint) -> None:
    """Raises ValueError unless the run's prior is the one that the checkpoint was trained with: there or not, too."""
    if "prior" not in opened.manifest:
        return  # of a version that kept no account of it
    path, expected = run / PRIOR, opened.manifest["prior"]
    found = content_of(path) if path.is_file() else None
    if found != expected:
        fault = "is missing" if found is None else "is not the file that was written: its SHA-256 differs"
        raise ValueError(
            f"{path} {fault} (the law of x_T, fitted to the training images); python -m ssdcore_torch.train --out "
            f"{run} --resume fits it again"
        )


def account(run: Path) -> dict[str, Any]:
    """The manifest of the newest checkpoint that has a readable one; {} for a run without."""
    for folder in checkpoints(run):
        try:
            return _read_manifest(folder)
        except (ValueError, OSError):
            continue
    return {}


def prior_is_kept(run: Path) -> bool:
    """Whether the run's prior is the file that its checkpoints account for. If not, it is to be fitted again."""
    path, manifest = run / PRIOR, account(run)
    if "prior" in manifest:
        return path.is_file() and content_of(path) == manifest["prior"]
    return bool(manifest) and path.is_file()  # of a version that kept no account of it


def residuals_are_kept(run: Path, step: int) -> bool:
    """Whether the run has residual spectra of the weights after this step, as its checkpoint accounts for them."""
    try:
        listed = _listed_residuals(run, step)
    except (ValueError, OSError):
        return False
    return listed is not None and (run / RESIDUALS).is_file() and content_of(run / RESIDUALS) == listed


def check_residuals(run: Path, step: int) -> bool:
    """Whether there are residual spectra of the weights after this step; False where none were measured.

    Raises:
        ValueError: Where the file is missing, or not what was written.
    """
    listed = _listed_residuals(run, step)
    if listed is None:
        return False
    if not residuals_are_kept(run, step):
        fault = "is not the file that was written" if (run / RESIDUALS).is_file() else "is missing"
        raise ValueError(
            f"{run / RESIDUALS} {fault} (what the network's predictions leave open); python -m ssdcore_torch.train "
            f"--out {run} --resume measures it again"
        )
    return True


def _listed_residuals(run: Path, step: int) -> dict[str, Any] | None:
    folder = run / FOLDER / f"step-{step:08d}"
    listed: dict[str, Any] | None = None
    if folder.is_dir():
        listed = _read_manifest(folder).get("residuals")
    elif not checkpoints(run) and (run / "manifest.json").is_file():  # of a shared run
        files = read_json(run / "manifest.json").get("files")
        listed = files.get(RESIDUALS) if isinstance(files, dict) else None
    return listed


def newest_sound(run: Path) -> int | None:
    """The step of the newest checkpoint that training could continue from, every file of it looked at; None: there is
    none."""
    for folder in checkpoints(run):
        try:
            return int(_open(folder, everything=True).values["step"])
        except (ValueError, OSError):
            continue
    return None


def _check_content(path: Path, files: Mapping[str, Any]) -> None:
    if path.name not in files:
        raise ValueError(f"{path.with_name('manifest.json')} does not list {path.name}")
    if digest(path) != files[path.name]["sha256"]:
        raise ValueError(f"{path} is not the file that was written: its SHA-256 is not that of manifest.json")


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    values = read_json(path)
    _check_fields(values, {"format": MANIFEST, "step": int, "files": dict, "versions": dict, "threads": int}, path)
    if values["step"] != step_of(folder):
        raise ValueError(f"{path} is of step {values['step']}, its folder's name says {step_of(folder)}")
    for name, entry in values["files"].items():
        if Path(name).name != name or not isinstance(entry, dict):
            raise ValueError(f"{path}: files: expected names in this folder, each with bytes and sha256, got {name!r}")
        _check_fields(entry, {"bytes": int, "sha256": str}, path)
    for name in ("prior", "residuals"):
        if (entry := values.get(name)) is not None:
            _check_fields(entry if isinstance(entry, dict) else {}, {"bytes": int, "sha256": str}, path)
    if values.get("data") is not None:
        _check_fields(values, {"data": str}, path)
    return values


def check_data(run: Path, fingerprint: str) -> None:
    """Raises ValueError if the run was begun on other data. A run of which neither a checkpoint nor data.json knows
    the data is known by its number of images alone, which its checkpoints hold."""
    expected = account(run).get("data") or data_of(run)
    if expected not in (None, fingerprint):
        raise ValueError(
            "this run was begun on other data than this: files, sizes or labels are not those that "
            f"{run / 'data.json'} stands for; give the same data, in whatever place, or start another run"
        )


def _read_state(path: Path) -> dict[str, Any]:
    values = read_json(path)
    numbers: dict[str, type | str] = {"step": int, "images": int}
    _check_fields(values, {"format": STATE, **numbers, "averages": list, "config": dict, "extra": dict}, path)
    if values["step"] != step_of(path.parent):
        raise ValueError(f"{path} is of step {values['step']}, its folder's name says {step_of(path.parent)}")
    averages = values["averages"]
    if not averages or not all(map(names_average, averages)) or len(set(averages)) < len(averages):
        raise ValueError(f"{path}: averages: expected a list of names, got {averages!r:.60}")
    return values


def _check_fields(values: Mapping[str, Any], kinds: Mapping[str, type | str], path: Path) -> None:
    """Raises ValueError unless each value is there, of its type or, for a text, equal."""
    for name, kind in kinds.items():
        value = values.get(name)
        if value != kind if isinstance(kind, str) else type(value) is not kind:
            expected = repr(kind) if isinstance(kind, str) else kind.__name__
            raise ValueError(f"{path}: {name}: expected {expected}, got {value!r:.60}")


def load_state(run: Path, expected: Mapping[str, Tensor], buffers: Collection[str] = ()) -> State:
    """What to continue from: the newest intact checkpoint, for a network whose state dict is `expected`.

    A damaged checkpoint is named in a warning and the one before it taken; so is another version of torch, with which
    training does not continue bit for bit. Raises FileNotFoundError if nothing was saved; ValueError for weights that
    cannot be trained on (of `ssdcore_torch.convert`), if no checkpoint is intact, and if the newest is of another
    network or of a config.json that decides the result otherwise.

    Args:
        buffers: names in it that the optimizer does not know
    """
    if not was_saved(run):
        raise FileNotFoundError(f"{run} has no checkpoint: it was stopped before the first")
    opened = open_newest(run, everything=True)
    values, tensors = opened.values, opened.tensors
    check_unchanged(values["config"], read_config(run), opened.folder / "state.json")
    parts: dict[str, Tensors] = {part: {} for part in OPTIMIZER_PARTS}
    path = opened.folder / "optimizer.safetensors"
    for key, tensor in tensors.pop("optimizer").items():
        part, _, name = key.partition("/")
        if part not in parts:
            raise ValueError(f"{path}: unknown tensor {printable(key)}")
        parts[part][name] = tensor
    for part, found in parts.items():
        trained = {name: tensor for name, tensor in expected.items() if name not in buffers}
        like = {name: torch.empty(()) for name in trained} if part == "updates" else trained
        check_tensors(found, like, f"{path} ({part})")
    for name, found in tensors.items():
        check_tensors(found, expected, str(opened.folder / f"{name}.safetensors"))
        check_finite(found, str(opened.folder / f"{name}.safetensors"))
    for part, found in parts.items():
        check_finite(found, f"{path} ({part})")
    _note_versions(opened)
    model = tensors.pop("model")
    return State(values["step"], values["images"], model, tensors, **parts, extra=values["extra"])


def _note_versions(opened: Checkpoint) -> None:
    """Say where training will not continue bit for bit."""
    for name, ours in (("torch", torch.__version__), ("threads", torch.get_num_threads())):
        theirs = opened.manifest["versions"].get(name) if name == "torch" else opened.manifest[name]
        if theirs != ours:
            log.warning(
                "%s was written with %s %s, this is %s: training continues, but not as it would have bit for bit",
                opened.folder, name, theirs, ours,
            )  # fmt: skip
