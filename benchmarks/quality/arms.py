"""What the study compares: suites of arms, each a process, a schedule and a recipe on the same network and data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ssdcore_torch.config import Config, merged, preset

CLASSES = ("moods", "planets", "sprouts")

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Arm:
    """One thing compared.

    levels    resolution levels, each half the size of the one before
    settings  of `Config`, laid over the suite's
    sampling  options of `ssdcore_torch.generate`, laid over the suite's
    """

    levels: int
    settings: Settings = field(default_factory=dict)
    sampling: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """Arms under one budget.

    size      height and width of the images
    preset    whose settings all arms share
    settings  laid over them
    budget    what every arm gets, in units of `unit`: seconds of training on one thread (or on the GPU), GFLOP of
              training (three forward passes an image), or images
    seeds     of weights, order, times and noise; a claim needs three
    samples   drawn of each, and as many reference images
    sampling  options of `ssdcore_torch.generate`
    """

    size: int
    preset: str
    budget: float
    unit: Literal["seconds", "gflop", "images"]
    arms: Mapping[str, Arm]
    settings: Settings = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    samples: int = 600
    sampling: Settings = field(default_factory=lambda: {"steps": 25})

    def config(self, name: str, seed: int, data: str, steps: int) -> Config:
        """The configuration of an arm's run."""
        arm = self.arms[name]
        config = preset(self.preset, data).overlaid(self.settings, self.size, arm.levels)
        run = {"seed": seed, "train": {"steps": steps, "keep": 1, "save_every": 1_000_000}}
        return config.overlaid(arm.settings).overlaid(run)


# ---- what a recipe is made of; every name is used in the arms below

PAPER_PROCESS: Settings = {"process": {"schedule": "convex", "gamma": 0.5, "nats": None, "matched": False}}
PAPER_EQUAL: Settings = {"process": {"schedule": "equal", "gamma": None, "nats": None, "matched": False}}
MATCHED_EQUAL: Settings = {"process": {"schedule": "equal", "gamma": None, "nats": None, "matched": True}}

# A little longer at the large sizes than equal shares; at 25 steps four levels still cost less than half of one.
MATCHED_CONVEX: Settings = {"process": {"schedule": "convex", "gamma": 0.8, "nats": None, "matched": True}}

MIN_SNR: Settings = {"train": {"weighting": "min_snr", "pixel_share": False, "size_bias": 0.0}}
PIXEL_SHARE: Settings = {"train": {"weighting": "min_snr", "pixel_share": True, "size_bias": 0.0}}
EDM_WEIGHT: Settings = {"train": {"weighting": "edm", "pixel_share": False, "size_bias": 0.0}}
PLAIN: Settings = {"network": {"preconditioned_times": None}}
PRECONDITIONED: Settings = {"network": {"preconditioned_times": 1000}}


def thresholds(*starts: int) -> Settings:
    """Matched noise, each level starting at the time given."""
    return {"process": {"schedule": "thresholds", "gamma": None, "nats": None, "matched": True, "starts": list(starts)}}


def blocks(count: int) -> Settings:
    return {"network": {"blocks_per_stage": count}}


def changes(share: float | None) -> Settings:
    return {"train": {"change_share": share}}


def bias(exponent: float) -> Settings:
    return {"train": {"size_bias": exponent}}


PAPER_RECIPE = merged(PLAIN, MIN_SNR, changes(None))
LEANING = merged(MATCHED_EQUAL, PLAIN, MIN_SNR, changes(0.1), bias(0.5))
EDM = merged(PRECONDITIONED, EDM_WEIGHT)
LEANING_EDM = merged(LEANING, EDM, bias(0.5))

# What `python -m ssdcore design --size 16 --levels 3 --steps 25 --times time` finds for the training images.
DESIGNED16 = thresholds(459, 709)

# ---- suites

_CPU: Settings = {"data": {"classes": list(CLASSES)}, "train": {"batch_size": 16, "learning_rate": 1e-3}}
_CPU32: Settings = merged(
    _CPU, {"network": {"channel_multipliers": [1, 1, 2, 2], "level_sizes": [[32, 32]], "attention_sizes": [8]}}
)

SCREEN16 = Suite(
    16,
    "cpu",
    90,
    "seconds",
    {
        "1 level, paper's recipe": Arm(1, merged(PAPER_PROCESS, PAPER_RECIPE)),
        "1 level, EDM": Arm(1, merged(PAPER_PROCESS, EDM)),
        "matched, equal": Arm(3, merged(LEANING, bias(0))),
        "matched, equal, bias 0.5": Arm(3, LEANING),
        "matched, equal, bias 1": Arm(3, merged(LEANING, bias(1))),
        "matched, equal, pixel share, bias 0.5": Arm(3, merged(LEANING, PIXEL_SHARE, bias(0.5))),
        "matched, equal, preconditioned, bias 0.5": Arm(3, merged(LEANING, PRECONDITIONED)),
        "matched, equal, EDM, bias 0.5": Arm(3, LEANING_EDM),
    },
    settings=_CPU,
    seeds=(0,),
)

PRESET16 = Suite(
    16,
    "cpu",
    240,
    "seconds",
    {
        "1 level": Arm(1, merged(PAPER_PROCESS, PAPER_RECIPE)),
        "3 levels, paper": Arm(3, merged(PAPER_PROCESS, PAPER_RECIPE)),
        "3 levels, paper equal": Arm(3, merged(PAPER_EQUAL, PAPER_RECIPE, changes(0.1))),
        "3 levels, matched equal, bias 0.5": Arm(3, LEANING),
        "3 levels, matched convex 0.8, bias 0.5": Arm(3, merged(LEANING, MATCHED_CONVEX)),
        "3 levels, matched designed, bias 0.5": Arm(3, merged(LEANING, DESIGNED16)),
    },
    settings=_CPU,
)

_AGAINST_ONE: Mapping[str, Arm] = {
    "1 level": Arm(1, merged(PAPER_PROCESS, PAPER_RECIPE)),
    "1 level, EDM": Arm(1, merged(PAPER_PROCESS, EDM)),
    # As many operations a sample as four equal levels in 25 steps.
    "1 level, EDM, 11 steps": Arm(1, merged(PAPER_PROCESS, EDM), {"steps": 11}),
    "4 levels, paper": Arm(4, merged(PAPER_PROCESS, PAPER_RECIPE)),
    "4 levels, matched equal, bias 0.5": Arm(4, LEANING),
    "4 levels, matched equal, EDM, bias 0.5": Arm(4, LEANING_EDM),
    "4 levels, matched convex 0.8, EDM, bias 0.5": Arm(4, merged(LEANING_EDM, MATCHED_CONVEX)),
}
CPU32 = Suite(32, "cpu", 420, "seconds", _AGAINST_ONE, settings=_CPU32, samples=500)
LONG32 = replace(CPU32, budget=1200)


def _scaling(size: int, most_levels: int) -> Mapping[str, Arm]:
    return {
        f"{size} px, depth {depth}, levels {levels}": Arm(levels, merged(LEANING, blocks(depth)))
        for depth in (1, 2)
        for levels in range(1, most_levels + 1)
    }


# Into one folder, for one table: sizes, levels and depth.
SCALING16 = Suite(16, "cpu", 180, "seconds", _scaling(16, 3), settings=_CPU, seeds=(0,), samples=500)
SCALING32 = Suite(32, "cpu", 180, "seconds", _scaling(32, 4), settings=_CPU32, seeds=(0,), samples=500)

SUITES: Mapping[str, Suite] = {
    "screen16": SCREEN16,
    "preset16": PRESET16,
    "cpu32": CPU32,
    "long32": LONG32,
    "scaling16": SCALING16,
    "scaling32": SCALING32,
}
