"""A run's config.json, the settings that may change when training continues, and data.json, which knows its data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssdcore.files import read_text, write_atomically
from ssdcore_torch.checkpoint._files import json_writer, read_json
from ssdcore_torch.config import Config, differences
from ssdcore_torch.text import printable

_WHEN = "only when something is written depends on it"
_HOW = "only speed and memory depend on it"

# Setting -> why it may differ between a run and its continuation. All others decide what is trained.
RESUMABLE: Mapping[str, str] = {
    "train.steps": "training continues to it; a decaying learning rate follows the new length from here on",
    "train.log_every": _WHEN,
    "train.save_every": _WHEN,
    "train.keep": _WHEN,
    "train.snapshots": _WHEN,
    "train.sample_every": _WHEN,
    "train.evaluate_every": _WHEN,
    "train.evaluate_samples": _WHEN,
    "train.evaluate_features": _WHEN,
    "train.accumulate": "the same images make a step; their gradients are added in another order, so equal to rounding",
    "train.compile": "only speed depends on it; the results are equal to rounding",
    "train.cuda_graphs": "only speed depends on it; the results are equal to rounding",
    "train.recompute": _HOW,
    "data.path": "the same data may lie in another place",
    "data.workers": _HOW,
    "data.memory_gib": _HOW,
    "data.broken_share": "only when too many broken files stop the run depends on it",
}
_WHY_NOT: Mapping[str, str] = {
    "seed": "it decides order, times and noise",
    "data": "it decides which images are seen, and in which order",
    "network": "the saved weights are of the other network",
    "process": "the saved weights were trained for the other process",
    "train": "it decides what the weights become",
}
_ONLY_A_LABEL = "it decides what the run was made from"


@dataclass(frozen=True)
class Changes:
    """Settings that differ between a saved run and what is asked of its continuation, each with both values and why:
    those with which training can continue, and those with which it cannot."""

    allowed: tuple[str, ...]
    refused: tuple[str, ...]


def resumable_changes(saved: Config, asked: Config) -> Changes:
    """Which settings of `asked` differ from the run's `saved` ones, and which of these may."""
    allowed, refused = [], []
    for change in differences(asked, saved):
        name = change.partition(":")[0]
        if name in RESUMABLE:
            allowed.append(f"{change} ({RESUMABLE[name]})")
        else:
            refused.append(f"{change} ({_WHY_NOT.get(name.partition('.')[0], _ONLY_A_LABEL)})")
    return Changes(tuple(allowed), tuple(refused))


def check_unchanged(saved: Mapping[str, Any], config: Config, where: Path, sections: tuple[str, ...] = ()) -> None:
    """Raises ValueError if config.json is not the configuration that a checkpoint was `saved` with, but for what may
    change; of `sections` only, where given."""
    try:
        before = Config.from_json(json.dumps(saved))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: config: {printable(error)}") from error
    refused = [
        change for change in resumable_changes(before, config).refused
        if not sections or change.partition(".")[0] in sections
    ]  # fmt: skip
    if refused:
        raise ValueError(
            f"config.json is not that of the checkpoint {where.parent.name} ({'; '.join(refused)}): put back the "
            "config.json that this run was trained with"
        )


def save_config(run: Path, config: Config) -> None:
    write_atomically(run / "config.json", lambda file: file.write_text(config.to_json(), encoding="utf-8"))


def read_config(run: Path) -> Config:
    """Raises FileNotFoundError where there is no run, ValueError for a configuration that cannot be read."""
    path = run / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run} is not a run folder: it has no config.json; train one with --out {run}")
    try:
        return Config.from_json(read_text(path))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {printable(error)}") from error


def save_data(run: Path, fingerprint: str) -> None:
    """Write data.json, by which `check_data` knows the run's data: the `fingerprint` of what `open_images` gave."""
    write_atomically(run / "data.json", json_writer({"fingerprint": fingerprint}))


def data_of(run: Path) -> str | None:
    """The fingerprint in data.json; None where there is none, or one that is damaged."""
    try:
        fingerprint = read_json(run / "data.json").get("fingerprint")
    except (ValueError, OSError):
        return None
    return fingerprint if isinstance(fingerprint, str) else None
