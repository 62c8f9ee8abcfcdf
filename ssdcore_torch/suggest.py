"""What somebody may have meant by a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

# What other programs call it -> what it is called here.
SYNONYMS: Mapping[str, str] = {
    "lr": "learning_rate",
    "learning_rate": "lr",
    "epochs": "steps",
    "iterations": "steps",
    "max_steps": "steps",
    "bs": "batch_size",
    "batch": "batch_size",
    "image_size": "size",
    "resolution": "size",
    "dataset": "data",
    "output_dir": "out",
    "num_samples": "n",
    "num_inference_steps": "steps",
    "cfg": "guidance",
    "class": "label",
}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The words ", did you mean X?" with the known name that is nearest, or none; dashes, underscores and sections are
    all one."""
    names: dict[str, str] = {}
    for name in known:
        names.setdefault(_plain(name), name)
    wanted = _plain(word)
    synonym = SYNONYMS.get(wanted)
    near = difflib.get_close_matches(wanted, names, 1, 0.7)
    found = wanted if wanted in names else synonym if synonym in names else near[0] if near else None
    return "" if found is None else f", did you mean {names[found]}?"


def _plain(name: str) -> str:
    return name.lstrip("-").rpartition(".")[2].replace("-", "_").lower()
