"""Checkpoints: folders that training continues from, whole or not there, the newest of them kept.

::

    checkpoints/step-00002400/
        model.safetensors       the weights
        <average>.safetensors   each of their averages
        optimizer.safetensors   both moments of every parameter, and how often it was updated
        state.json              step, number of images, configuration, and what the trainer counts
        manifest.json           size and SHA-256 of each of the others, of the run's prior and of the residual spectra
                                of this step, the fingerprint of its data, and the versions that wrote them

A checkpoint is written in a folder with a temporary name, every file and the folder brought to the disk, the manifest
last; one rename then makes it a checkpoint. `model.safetensors` and `ema.safetensors` (the first average) at the top of
the run are the newest checkpoint's files under a second name.

No random generator has a state to keep: every random number of a step is drawn from one keyed by (seed, step). The
loader's position, too, is the step, and the learning rate a function of it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssdcore_torch.checkpoint._files import (
    Tensors,
    check_tensors,
    digest,
    json_writer,
    load_tensors,
    read_json,
    sync_folder,
    temporary_beside,
    tensor_writer,
    versions,
    write_durably,
)
from ssdcore_torch.checkpoint._lock import LOCK
from ssdcore_torch.checkpoint._resume import check_unchanged, data_of, read_config
from ssdcore_torch.config import Config
from ssdcore_torch.text import printable

log = logging.getLogger("ssdcore_torch")

FOLDER = "checkpoints"
STATE, MANIFEST = "ssdcore_torch state 1", "ssdcore_torch manifest 1"
PRIOR = "prior.safetensors"
RESIDUALS = "residuals.safetensors"
OPTIMIZER_PARTS = ("first_moments", "second_moments", "updates")
# What a trainer writes at the top of a run.
OWN = (
    "config.json",
    "data.json",
    "log.jsonl",
    PRIOR,
    RESIDUALS,
    "model.safetensors",
    "ema.safetensors",
    "samples.png",
    "samples.npz",
    "denoising.png",
    "report.html",
    "process.safetensors",
)
OWN_FOLDERS = ("snapshots", "samples", "profile", "reference")
# Names of files that a killed process was writing: `temporary_beside`, and of versions before it.
_PART = re.compile(rf"\.({'|'.join(re.escape(name) for name in OWN)})\.[0-9a-f]+\.tmp")
# What may be there before the first checkpoint.
_BEGUN = {*OWN, *OWN_FOLDERS, FOLDER, "tensorboard", "wandb"} - {"model.safetensors", "ema.safetensors"}
# A checkpoint that is replaced by another of its step goes by the second name until the new one is in place.
_CHECKPOINT = re.compile(r"step-(\d{8,18})(\.old)?")
_AVERAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class State:
    """What training continues from, by parameter name.

    Attributes:
        step: optimizer steps done; also the loader's position, and all that the random numbers depend on but the
            seed
        images: number of training images: another number would mean another order
        averages: averages of the weights by name, at least one; the first is what samples are drawn with
        updates: how often the optimizer has changed each parameter (a path leaves out the parameters of other
            sizes)
        extra: what else the trainer counts, as JSON has it; the checkpoint of extra["best"]["step"] is kept besides
            the newest
    """

    step: int
    images: int
    model: Tensors
    averages: dict[str, Tensors]
    first_moments: Tensors
    second_moments: Tensors
    updates: Tensors
    extra: dict[str, Any] = field(default_factory=dict)


def save_state(run: Path, state: State, keep: int = 3) -> Path:
    """Write a checkpoint of the run, whose config.json is there, then delete all but the newest `keep` up to this step
    and the one of step `state.extra["best"]["step"]`, where there is a best. Its folder.

    Checkpoints of later steps are deleted too: training continued from an older one because they were damaged.

    Raises:
        OSError: Where it cannot be written.
        ValueError: For weights that are not finite; the checkpoints that were there are then as they were.
    """
    if keep < 1:
        raise ValueError(f"save_state: expected to keep at least 1 checkpoint, got {keep}")
    folder = run / FOLDER / f"step-{state.step:08d}"
    writers = _writers(state, read_config(run))
    for name, tensors in {"model": state.model, **state.averages}.items():
        check_finite(tensors, f"{name} after step {state.step}, which is not saved,")
    new = not folder.parent.exists()
    folder.parent.mkdir(exist_ok=True)
    if new:
        sync_folder(run)
    _sweep(run)
    staged = temporary_beside(folder)
    try:
        staged.mkdir()
        for name, write in writers.items():
            write_durably(staged / name, write)
        files = {name: content_of(staged / name) for name in writers}
        manifest = {
            "format": MANIFEST,
            "step": state.step,
            "files": files,
            "prior": content_of(run / PRIOR) if (run / PRIOR).is_file() else None,
            "residuals": _residuals_of(run, state.step),
            "data": data_of(run),
            "versions": versions(),
            "threads": torch.get_num_threads(),
        }
        write_durably(staged / "manifest.json", json_writer(manifest))
        sync_folder(staged)
        if folder.exists():
            _remove(folder.with_name(f"{folder.name}.old"))
            os.rename(folder, folder.with_name(f"{folder.name}.old"))
        os.rename(staged, folder)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    sync_folder(folder.parent)
    first = next(iter(state.averages))
    _publish(folder / "model.safetensors", run / "model.safetensors")
    _publish(folder / f"{first}.safetensors", run / "ema.safetensors")
    _rotate(run, state.step, keep, (state.extra.get("best") or {}).get("step"))
    return folder


def content_of(path: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"bytes": path.stat().st_size, "sha256": digest(path)}


def _residuals_of(run: Path, step: int) -> dict[str, Any] | None:
    """What a manifest says of the residual spectra, where there are some of this step's weights."""
    path = run / RESIDUALS
    if not path.is_file():
        return None
    try:
        _, metadata = load_tensors(path)
    except ValueError:  # damaged: measured again at the end of training
        return None
    return content_of(path) if metadata.get("step") == str(step) else None


def _names_average(name: object) -> bool:
    return isinstance(name, str) and bool(_AVERAGE.fullmatch(name)) and name not in ("model", "optimizer")


def _writers(state: State, config: Config) -> dict[str, Callable[[Path], object]]:
    """File name -> what writes it. Raises ValueError or TypeError for a state that cannot be kept."""
    if not state.averages:
        raise ValueError("save_state: expected at least one average of the weights, got none")
    for name in state.averages:
        if not _names_average(name):
            raise ValueError(f"save_state: {name!r} cannot name an average: it is to be a file's name")
    values = {
        "format": STATE,
        "step": state.step,
        "images": state.images,
        "averages": list(state.averages),
        "random_numbers": "keyed by (seed, step): no generator has a state to keep",
        "loader": {"position": state.step, "order": "a function of (seed, step)"},
        "learning_rate": "a function of (configuration, step)",
        "config": json.loads(config.to_json()),
        "extra": state.extra,
    }
    try:
        write_json = json_writer(values)
    except (TypeError, ValueError) as error:
        raise type(error)(f"save_state: extra holds what JSON cannot: {error}") from error
    step = {"step": str(state.step)}
    optimizer = {f"{part}/{name}": x for part in OPTIMIZER_PARTS for name, x in getattr(state, part).items()}
    return {
        "model.safetensors": tensor_writer(state.model, step),
        **{f"{name}.safetensors": tensor_writer(x, {**step, "average": name}) for name, x in state.averages.items()},
        "optimizer.safetensors": tensor_writer(optimizer, step),
        "state.json": write_json,
    }


def _publish(source: Path, path: Path) -> None:
    """Put `source` in the place of `path`, as a second name of the same file where the file system can."""
    temporary = temporary_beside(path)
    try:
        try:
            os.link(source, temporary)
        except OSError:  # no hard links here
            write_durably(temporary, lambda file: shutil.copyfile(source, file))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _sweep(run: Path) -> None:
    """Delete what a trainer that was killed while it wrote has left."""
    for folder in (run / FOLDER).glob(".step-*.tmp"):
        _delete(folder)
    for pattern in (*(f".{name}.*.tmp" for name in OWN), *(f"{name}/.*.tmp" for name in OWN_FOLDERS)):
        for file in run.glob(pattern):
            _delete(file)


def _rotate(run: Path, step: int, keep: int, best: object) -> None:
    folders = checkpoints(run)
    newest = [folder for folder in folders if _step(folder) <= step and folder.suffix != ".old"][:keep]
    for folder in folders:
        if folder not in newest and not (_step(folder) == best and folder.suffix != ".old"):
            _remove(folder)


def _remove(folder: Path) -> None:
    """Delete a checkpoint; under another name first, so that a part of one is never taken for one."""
    if not folder.exists():
        return
    doomed = temporary_beside(folder)
    try:
        os.rename(folder, doomed)
    except OSError as error:
        log.warning("%s cannot be deleted yet: %s", folder, error)
    else:
        _delete(doomed)


def _delete(path: Path) -> None:
    """What cannot be deleted, as a network file system keeps what another process reads, is left for the next time."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        log.warning("%s cannot be deleted yet: %s", path, error)


def checkpoints(run: Path) -> list[Path]:
    """Folders of the run's checkpoints, intact or not, newest first."""
    found = [path for path in (run / FOLDER).glob("step-*") if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda folder: (-_step(folder), folder.suffix))


def _step(folder: Path) -> int:
    match = _CHECKPOINT.fullmatch(folder.name)
    assert match is not None
    return int(match[1])


# ---- reading


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
    if values["step"] != _step(folder):
        raise ValueError(f"{path} is of step {values['step']}, its folder's name says {_step(folder)}")
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
    if values["step"] != _step(path.parent):
        raise ValueError(f"{path} is of step {values['step']}, its folder's name says {_step(path.parent)}")
    averages = values["averages"]
    if not averages or not all(map(_names_average, averages)) or len(set(averages)) < len(averages):
        raise ValueError(f"{path}: averages: expected a list of names, got {averages!r:.60}")
    return values


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises ValueError naming the first tensor that holds NaN or an infinity."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{where} holds values that are not finite, in {printable(name)}")


def _check_fields(values: Mapping[str, Any], kinds: Mapping[str, type | str], path: Path) -> None:
    """Raises ValueError unless each value is there, of its type or, for a text, equal."""
    for name, kind in kinds.items():
        value = values.get(name)
        if value != kind if isinstance(kind, str) else type(value) is not kind:
            expected = repr(kind) if isinstance(kind, str) else kind.__name__
            raise ValueError(f"{path}: {name}: expected {expected}, got {value!r:.60}")


def was_saved(run: Path) -> bool:
    """Whether the run has a checkpoint to continue from: False for one that was stopped before its first.

    Raises:
        ValueError: For a run of weights without an optimizer's state, which has none to continue from.
    """
    if not checkpoints(run) and (run / "model.safetensors").exists():
        raise ValueError(
            f"{run} holds weights without an optimizer's state, as ssdcore_torch.convert and Run.push write them: "
            "it can be sampled from, but training cannot continue with it; train another with --out"
        )
    return bool(checkpoints(run))


def check_folders(run: Path) -> None:
    """Raises ValueError where a folder of the run is a link: who continues with it would write and delete elsewhere."""
    for name in (FOLDER, *OWN_FOLDERS, "tensorboard", "wandb"):
        if (run / name).is_symlink():
            raise ValueError(
                f"{run / name} is a link: training would write and delete in another folder; put the folder itself here"
            )


def never_saved(run: Path) -> bool:
    """Whether there is a run that a trainer began and left before its first checkpoint, and nothing else: `discard` may
    take it away."""
    if not (run / "config.json").is_file() or checkpoints(run) or (run / "model.safetensors").exists():
        return False
    return all(path.name in _BEGUN or _left_over(path.name) for path in run.iterdir())


def is_free(run: Path) -> bool:
    """Whether a run may be made there: no folder yet, or one with nothing in it but what a killed trainer left."""
    return not run.exists() or all(_left_over(path.name) for path in run.iterdir())


def _left_over(name: str) -> bool:
    return name == LOCK or _PART.fullmatch(name) is not None


def discard(run: Path) -> None:
    """Delete what a trainer that never saved has left in its folder, which is held: all but the lock."""
    if not never_saved(run):
        return
    for path in run.iterdir():
        if path.name != LOCK:
            _delete(path)


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
