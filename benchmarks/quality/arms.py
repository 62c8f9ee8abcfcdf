"""What the study compares: suites of arms, each a process, a schedule and a recipe on the same network and data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ssdcore_torch.config import Config, preset

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
        config = preset(self.preset, data).overlaid(self.settings).resized(self.size, arm.levels)
        run = {"seed": seed, "train": {"steps": steps, "keep": 1, "save_every": 1_000_000}}
        return config.overlaid(arm.settings).overlaid(run)


def merged(*settings: Settings) -> dict[str, Any]:
    """Settings laid over each other, section by section."""
    tree: dict[str, Any] = {}
    for layer in settings:
        for key, value in layer.items():
            tree[key] = merged(tree.get(key, {}), value) if isinstance(value, Mapping) else value
    return tree


# ---- what a recipe is made of; every name is used in the arms below

PAPER_PROCESS: Settings = {"process": {"schedule": "convex", "gamma": 0.5, "matched": False}}
MATCHED_CONVEX: Settings = {"process": {"schedule": "convex", "gamma": 0.5, "matched": True}}
MATCHED_EQUAL: Settings = {"process": {"schedule": "equal", "gamma": None, "matched": True}}
PAPER_EQUAL: Settings = {"process": {"schedule": "equal", "gamma": None, "matched": False}}

MIN_SNR: Settings = {"train": {"weighting": "min_snr", "pixel_share": False, "size_bias": 0.0}}
PIXEL_SHARE: Settings = {"train": {"weighting": "min_snr", "pixel_share": True, "size_bias": 0.0}}
PRECONDITIONED: Settings = {"network": {"preconditioned_times": 1000}}
EDM_WEIGHT: Settings = {"train": {"weighting": "edm", "pixel_share": False, "size_bias": 0.0}}
PLAIN: Settings = {"network": {"preconditioned_times": None}}
EQUAL_COST: Settings = {"train": {"equal_cost": True}}


def changes(share: float | None) -> Settings:
    return {"train": {"change_share": share}}


def bias(exponent: float) -> Settings:
    return {"train": {"size_bias": exponent}}


PAPER_RECIPE = merged(PLAIN, MIN_SNR, changes(None))
EDM = merged(PRECONDITIONED, EDM_WEIGHT)

# ---- suites

_CPU: Settings = {"data": {"classes": list(CLASSES)}, "train": {"batch_size": 16, "learning_rate": 1e-3}}
_CPU32: Settings = merged(
    _CPU, {"network": {"channel_multipliers": [1, 1, 2, 2], "level_sizes": [[32, 32]], "attention_sizes": [8]}}
)

SCREEN = Suite(
    16,
    "cpu",
    90,
    "seconds",
    {
        "1 level, paper's recipe": Arm(1, merged(PAPER_PROCESS, PAPER_RECIPE)),
        "1 level, preconditioned": Arm(1, merged(PAPER_PROCESS, PRECONDITIONED, MIN_SNR)),
        "1 level, EDM": Arm(1, merged(PAPER_PROCESS, EDM)),
        "paper": Arm(3, merged(PAPER_PROCESS, PAPER_RECIPE)),
        "paper, changes 10 %": Arm(3, merged(PAPER_PROCESS, PAPER_RECIPE, changes(0.1))),
        "paper, equal, changes 10 %": Arm(3, merged(PAPER_EQUAL, PAPER_RECIPE, changes(0.1))),
        "matched, convex": Arm(3, merged(MATCHED_CONVEX, PAPER_RECIPE, changes(0.1))),
        "matched, equal": Arm(3, merged(MATCHED_EQUAL, PAPER_RECIPE, changes(0.1))),
        "matched, equal, pixel share": Arm(3, merged(MATCHED_EQUAL, PLAIN, PIXEL_SHARE, changes(0.1))),
        "matched, convex, EDM": Arm(3, merged(MATCHED_CONVEX, EDM, changes(0.1))),
        "matched, equal, EDM": Arm(3, merged(MATCHED_EQUAL, EDM, changes(0.1))),
        "matched, equal, EDM, changes 3 %": Arm(3, merged(MATCHED_EQUAL, EDM, changes(0.03))),
        "matched, equal, EDM, changes 20 %": Arm(3, merged(MATCHED_EQUAL, EDM, changes(0.2))),
        "matched, equal, EDM, equal cost": Arm(3, merged(MATCHED_EQUAL, EDM, EQUAL_COST, changes(0.1))),
        "matched, convex, EDM, equal cost": Arm(3, merged(MATCHED_CONVEX, EDM, EQUAL_COST, changes(0.1))),
        "paper, convex, EDM": Arm(3, merged(PAPER_PROCESS, EDM, changes(0.1))),
        "paper, equal, EDM": Arm(3, merged(PAPER_EQUAL, EDM, changes(0.1))),
        "matched, equal, bias 0.5": Arm(3, merged(MATCHED_EQUAL, PAPER_RECIPE, changes(0.1), bias(0.5))),
        "matched, equal, bias 1": Arm(3, merged(MATCHED_EQUAL, PAPER_RECIPE, changes(0.1), bias(1))),
        "matched, equal, pixel share, bias 0.5": Arm(
            3, merged(MATCHED_EQUAL, PLAIN, PIXEL_SHARE, changes(0.1), bias(0.5))
        ),
        "matched, equal, preconditioned, bias 0.5": Arm(
            3, merged(MATCHED_EQUAL, PRECONDITIONED, MIN_SNR, changes(0.1), bias(0.5))
        ),
        "matched, equal, EDM, bias 0.5": Arm(3, merged(MATCHED_EQUAL, EDM, changes(0.1), bias(0.5))),
        "matched, equal, EDM, share": Arm(
            3, merged(MATCHED_EQUAL, EDM, {"train": {"pixel_share": True}}, changes(0.1))
        ),
        "matched, equal, preconditioned": Arm(3, merged(MATCHED_EQUAL, PRECONDITIONED, MIN_SNR, changes(0.1))),
    },
    settings=_CPU,
    seeds=(0,),
)

CPU32 = Suite(
    32,
    "cpu",
    420,
    "seconds",
    {
        "1 level": Arm(1, merged(PAPER_PROCESS, PAPER_RECIPE)),
        "4 levels, paper": Arm(4, merged(PAPER_PROCESS, PAPER_RECIPE)),
        "4 levels, matched equal, bias 0.5": Arm(4, merged(MATCHED_EQUAL, PAPER_RECIPE, changes(0.1), bias(0.5))),
        "4 levels, matched equal, bias 1": Arm(4, merged(MATCHED_EQUAL, PAPER_RECIPE, changes(0.1), bias(1))),
        "4 levels, matched equal, EDM, bias 0.5": Arm(4, merged(MATCHED_EQUAL, EDM, changes(0.1), bias(0.5))),
        "4 levels, matched equal": Arm(4, merged(MATCHED_EQUAL, PAPER_RECIPE, changes(0.1))),
        "4 levels, matched equal, pixel share": Arm(4, merged(MATCHED_EQUAL, PLAIN, PIXEL_SHARE, changes(0.1))),
        "4 levels, paper, equal": Arm(4, merged(PAPER_EQUAL, PAPER_RECIPE, changes(0.1))),
        "4 levels, matched convex": Arm(4, merged(MATCHED_CONVEX, PAPER_RECIPE, changes(0.1))),
        "4 levels, matched equal, EDM": Arm(4, merged(MATCHED_EQUAL, EDM, changes(0.1))),
        "4 levels, matched convex, EDM": Arm(4, merged(MATCHED_CONVEX, EDM, changes(0.1))),
        "4 levels, matched equal, EDM, equal cost": Arm(4, merged(MATCHED_EQUAL, EDM, EQUAL_COST, changes(0.1))),
        "4 levels, matched convex, EDM, equal cost": Arm(4, merged(MATCHED_CONVEX, EDM, EQUAL_COST, changes(0.1))),
        "1 level, EDM": Arm(1, merged(PAPER_PROCESS, EDM)),
    },
    settings=_CPU32,
    samples=500,
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
        "3 levels, matched equal": Arm(3, merged(MATCHED_EQUAL, PAPER_RECIPE, changes(0.1))),
        "3 levels, matched equal, bias 0.5": Arm(3, merged(MATCHED_EQUAL, PAPER_RECIPE, changes(0.1), bias(0.5))),
    },
    settings=_CPU,
)

LONG32 = replace(CPU32, budget=1200)

SUITES: Mapping[str, Suite] = {"screen16": SCREEN, "preset16": PRESET16, "cpu32": CPU32, "long32": LONG32}
