"""Where the files of a run lie, what a trainer has left there, and what may be deleted."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

from ssdcore_torch.checkpoint._lock import LOCK

log = logging.getLogger("ssdcore_torch")

FOLDER = "checkpoints"
PRIOR = "prior.safetensors"
RESIDUALS = "residuals.safetensors"
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


def checkpoints(run: Path) -> list[Path]:
    """Folders of the run's checkpoints, intact or not, newest first."""
    found = [path for path in (run / FOLDER).glob("step-*") if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda folder: (-step_of(folder), folder.suffix))


def step_of(folder: Path) -> int:
    match = _CHECKPOINT.fullmatch(folder.name)
    assert match is not None
    return int(match[1])


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
            delete(path)


def sweep(run: Path) -> None:
    """Delete what a trainer that was killed while it wrote has left."""
    for folder in (run / FOLDER).glob(".step-*.tmp"):
        delete(folder)
    for pattern in (*(f".{name}.*.tmp" for name in OWN), *(f"{name}/.*.tmp" for name in OWN_FOLDERS)):
        for file in run.glob(pattern):
            delete(file)


def delete(path: Path) -> None:
    """What cannot be deleted, as a network file system keeps what another process reads, is left for the next time."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        log.warning("%s cannot be deleted yet: %s", path, error)


def names_average(name: object) -> bool:
    return isinstance(name, str) and bool(_AVERAGE.fullmatch(name)) and name not in ("model", "optimizer")
