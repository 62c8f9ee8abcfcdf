"""The configuration of a run: one tree of frozen dataclasses, and its JSON form."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ssdcore as ssd
from ssdcore_torch.config._sections import DataConfig, TrainConfig
from ssdcore_torch.config._tree import flat_settings, once, overlay, read_as
from ssdcore_torch.denoisers import FlexiUNetConfig, NetworkConfig
from ssdcore_torch.denoisers.unet import level_sizes
from ssdcore_torch.processes import ProcessConfig
from ssdcore_torch.text import printable, sides

LARGEST_SEED = 2**63 - 1
LARGEST_SIZE = 16_384
"""Far beyond what anyone trains: a damaged config.json is refused before it asks for memory."""

_LARGEST_NETWORK = {"base_channels": 8192, "blocks_per_stage": 64, "in_channels": 64, "num_classes": 1_000_000}


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's result. `network.level_sizes` are the sizes of the whole run."""

    preset: str
    seed: int
    data: DataConfig
    network: NetworkConfig
    process: ProcessConfig
    train: TrainConfig

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"seed: expected 0 to {LARGEST_SEED}, got {self.seed}")
        for name, most in _LARGEST_NETWORK.items():
            if (value := getattr(self.network, name, None)) is not None and value > most:
                raise ValueError(f"network.{name}: expected at most {most}, got {value}")
        try:
            ssd.Resize((2,), (1,), kernel=self.process.kernel)
        except ValueError as error:  # which names the operator
            raise ValueError(f"process.kernel: {str(error).rpartition(': ')[2]}") from error
        names = self.data.class_names
        if names and (unknown := [name for name in self.data.classes if name not in names]):
            raise ValueError(f"data.classes: {unknown[0]!r:.60} is not among data.class_names")
        full = self.network.level_sizes[0]
        if len(full) == 2 and max(full) > LARGEST_SIZE:
            raise ValueError(f"network.level_sizes: expected at most {LARGEST_SIZE} pixels per side, got {max(full)}")
        times = self.network.preconditioned_times
        if times not in (None, self.process.steps):
            raise ValueError(
                f"network.preconditioned_times: expected process.steps, {self.process.steps}, or none (null), got "
                f"{times}"
            )

    @property
    def size(self) -> int:
        """Height of the images."""
        return self.network.level_sizes[0][0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is drawn, without channels: (height, width) of images, (length,) of signals."""
        return self.network.level_sizes[0]

    def trained_labels(self) -> list[int]:
        """The classes that training saw images of, as far as the run knows; of `data.classes` in their order. None of a
        network without classes, which are then no more than a choice of images."""
        if self.network.num_classes is None:
            return []
        names, counts = self.data.class_names, self.data.class_counts
        chosen = [names.index(name) for name in self.data.classes] or list(range(self.network.num_classes))
        return [number for number in chosen if not counts or counts[number]]

    def labels_in_turn(self, count: int) -> list[int] | None:
        """Labels of `count` images: the classes trained on take turns; None for a network without classes."""
        if self.network.num_classes is None:
            return None
        trained = self.trained_labels()
        return [trained[i % len(trained)] for i in range(count)]

    def check_conditions(self, labels: Sequence[int] | None, guidance: float) -> None:
        """Raises ValueError for a class that training saw no image of, and for guidance where it saw no image without
        its class: a network has numbers for these, too, but what it draws by them is not a picture of the data."""
        trained, names = set(self.trained_labels()), self.data.class_names
        if labels is not None and (unseen := sorted(set(labels) - trained)):
            known = ", ".join(printable(names[k]) if names else str(k) for k in sorted(trained)[:50])
            name = printable(names[unseen[0]]) if names else unseen[0]
            raise ValueError(f"training saw no image of the class {name}; it saw {known}: choose among these")
        if guidance != 1 and self.network.num_classes is not None and self.train.label_dropout == 0:
            raise ValueError(
                f"guidance {guidance:g}: with train.label_dropout=0 the run never saw images without a class, which is "
                "what guidance compares with: leave it at 1, or train with train.label_dropout=0.1"
            )

    def build_process(self) -> ssd.LinearDiffusion:
        """The forward process. Raises ssdcore.InadmissibleProcess where the schedule admits none."""
        return self.process.build(self.network.level_sizes)

    def _own_network(self, what: str) -> FlexiUNetConfig:
        if not isinstance(self.network, FlexiUNetConfig):
            raise ValueError(f"{what}: a network of your own takes them from the process; leave them out")
        return self.network

    def overlaid(self, settings: Mapping[str, Any], size: int | None = None, levels: int | None = None) -> Config:
        """This configuration with some settings of the tree replaced: {"train": {"clip": 1.0}, "seed": 3}.

        `size` and `levels` then make the level sizes anew, each half the last, for the network that the settings give;
        attention stays at its stages, unless the settings say otherwise.

        Raises:
            ValueError: That names the key which is unknown or of the wrong type.
        """
        tree = overlay(json.loads(self.to_json()), settings, "")
        if size is not None or levels is not None:
            own = self._own_network("size and levels")
            network = tree["network"]
            sizes = read_as(tuple[tuple[int, int], ...], network["level_sizes"], "network.level_sizes")
            stages = len(read_as(tuple[float, ...], network["channel_multipliers"], "network.channel_multipliers"))
            flexi = read_as(bool, network["flexi"], "network.flexi")
            if not sizes:
                raise ValueError("network.level_sizes: expected at least the full size, got none")
            full = sizes[0][0] if size is None else size
            halved = level_sizes(full, len(sizes) if levels is None else levels, stages=stages, flexi=flexi)
            network["level_sizes"] = [list(each) for each in halved]
            if network["attention_sizes"] is not None and "attention_sizes" not in settings.get("network", {}):
                network["attention_sizes"] = [full >> k for k in own.attention_stages if k < stages]
        return read_as(Config, tree, "")

    def scheduled(self, schedule: ssd.oracle.Schedule) -> Config:
        """The process of a designed schedule in place of this one's.

        Raises:
            ValueError: For a schedule of other sizes than the network's levels.
        """
        sizes = self.network.level_sizes
        if schedule.sizes != sizes:
            given, wanted = (", ".join(sides(size) for size in some) for some in (schedule.sizes, sizes))
            raise ValueError(f"the schedule has the sizes {given}, this network {wanted}; design one for these sizes")
        return self.overlaid(designed(schedule))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Raises ValueError that names the key which is unknown, missing or of the wrong type."""
        try:
            values = json.loads(text, object_pairs_hook=once)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON: {error}") from error
        return read_as(cls, values, "")


def designed(schedule: ssd.oracle.Schedule) -> dict[str, Any]:
    """The settings of a designed schedule's process, for `Config.overlaid`."""
    process = ProcessConfig(
        "thresholds",
        None,
        schedule.matched,
        schedule.steps,
        schedule.kernel,
        schedule.starts,
        schedule.times,
        noise=schedule.noise,
    )
    return {"process": json.loads(json.dumps(dataclasses.asdict(process)))}


def differences(ours: Config, theirs: Config) -> list[str]:
    """Dotted names of the settings in which two configurations differ, each with both values."""
    a, b = flat_settings(dataclasses.asdict(ours)), flat_settings(dataclasses.asdict(theirs))
    # networks of different kinds have different settings
    both = {key: (a.get(key, "none"), b.get(key, "none")) for key in {**a, **b}}
    return [f"{key}: {one} instead of {two}" for key, (one, two) in both.items() if one != two]


# Settings that may differ between ranks: the same data may lie in another place on another machine.
OF_A_MACHINE = ("data.path", "data.workers")


def unnamed_data(name: str) -> str:
    """`data.path` of a run whose images are not known here: what `name` was trained on."""
    return f"what {name} was trained on"


def is_unnamed_data(path: str) -> bool:
    return path.startswith("what ") and path.endswith(" was trained on")


CONVERTED = "official"
"""In the place of a preset's name: weights of the paper's code, whose images the run does not know."""
