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
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ssdcore.files import sync_folder, temporary_beside, write_durably
from ssdcore_torch.checkpoint._files import (
    Tensors,
    check_finite,
    content_of,
    json_writer,
    load_tensors,
    tensor_writer,
    versions,
)
from ssdcore_torch.checkpoint._layout import (
    FOLDER,
    PRIOR,
    RESIDUALS,
    checkpoints,
    delete,
    names_average,
    step_of,
    sweep,
)
from ssdcore_torch.checkpoint._resume import data_of, read_config
from ssdcore_torch.config import Config

log = logging.getLogger("ssdcore_torch")

STATE, MANIFEST = "ssdcore_torch state 1", "ssdcore_torch manifest 1"
OPTIMIZER_PARTS = ("first_moments", "second_moments", "updates")


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
    sweep(run)
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


def _writers(state: State, config: Config) -> dict[str, Callable[[Path], object]]:
    """File name -> what writes it. Raises ValueError or TypeError for a state that cannot be kept."""
    if not state.averages:
        raise ValueError("save_state: expected at least one average of the weights, got none")
    for name in state.averages:
        if not names_average(name):
            raise ValueError(f"save_state: {name!r} cannot name an average: it is to be a file's name")
    values = {
        "format": STATE,
        "step": state.step,
        "images": state.images,
        "averages": list(state.averages),
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


def _rotate(run: Path, step: int, keep: int, best: object) -> None:
    folders = checkpoints(run)
    newest = [folder for folder in folders if step_of(folder) <= step and folder.suffix != ".old"][:keep]
    for folder in folders:
        if folder not in newest and not (step_of(folder) == best and folder.suffix != ".old"):
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
        delete(doomed)
