"""Random numbers of training, each a function of what they are for, the run's seed and the step: no stream to save."""

from __future__ import annotations

import enum

import numpy as np


class Purpose(enum.IntEnum):
    """What numbers are drawn for: they come first in the key, so that no two draws share their bits."""

    ORDER = 1
    PATH = 2
    TIMES = 3
    NOISE = 4
    DROPOUT = 5
    LABELS = 6
    FLIP = 7
    CROP = 8


def keyed(purpose: Purpose, seed: int, *numbers: int) -> np.random.Generator:
    """A generator of its own for these numbers (a purpose always takes the same count of them)."""
    return np.random.default_rng((purpose, seed, *numbers))


def torch_seed(purpose: Purpose, seed: int, *numbers: int) -> int:
    """The same as a seed of 63 bits, for torch's generators."""
    return int(np.random.SeedSequence((purpose, seed, *numbers)).generate_state(1, np.uint64)[0] >> 1)
