"""The configuration of a run: one tree of frozen dataclasses, its JSON form, and the presets."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import types
import typing
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import yaml

import ssdcore as ssd
from ssdcore_torch.data import EMBEDDED, Choices
from ssdcore_torch.denoisers import FlexiUNetConfig, NetworkConfig
from ssdcore_torch.denoisers.unet import level_sizes
from ssdcore_torch.diffusion import TimeSampling, Weighting
from ssdcore_torch.processes import ProcessConfig
from ssdcore_torch.suggest import did_you_mean
from ssdcore_torch.text import printable

LARGEST_SIZE = 16_384
"""Far beyond what anyone trains: a damaged config.json is refused before it asks for memory."""


MOST_WORKERS, LARGEST_SEED = 1024, 2**63 - 1
NARROWEST = 0.001  # a relative width of an average; narrower ones are the last weights alone
_LARGEST = {
    **dict.fromkeys(("steps", "warmup", "log_every", "save_every", "sample_every", "evaluate_every"), 10**12),
    **dict.fromkeys(("batch_size", "accumulate", "snapshots", "keep"), 1 << 20),
    "evaluate_samples": 10**9,
}
_LARGEST_NETWORK = {"base_channels": 8192, "blocks_per_stage": 64, "in_channels": 64, "num_classes": 1_000_000}


@dataclass(frozen=True)
class DataConfig:
    """The images.

    labels, column, label_column, subset, bits, most_pixels
                  which of what the data holds is read, and how (`ssdcore_torch.data.Choices`)

    Attributes:
        path: whatever `ssdcore_torch.data.open_images` reads, or `EMBEDDED`
        classes: which of the data's classes, () for all
        class_names: names of the labels that a class-conditional network was trained on, in the order of their
            numbers; filled in when the run is made
        class_counts: how many images of each class it was trained on; filled in with the names. Classes without any
            are not drawn
        flip: mirror every image left to right with probability ½
        crop: of images that are not square: "center", or a "random" square each time
        workers: processes that decode; None: as many as there are cores, up to 8
        memory_gib: images that fit this much memory once decoded are kept there; more are read again in every epoch
        broken_share: share of unreadable files above which the run stops; up to it they are named, counted and
            skipped
    """

    path: str
    classes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    flip: bool = False
    crop: Literal["center", "random"] = "center"
    workers: int | None = None
    memory_gib: float = 4.0
    broken_share: float = 0.05
    labels: bool = True
    column: str | None = None
    label_column: str | None = None
    subset: str | None = None
    bits: int = 16
    most_pixels: int = Choices.most_pixels
    class_counts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("classes", "class_names"):
            names = getattr(self, name)
            if twice := [each for each, count in Counter(names).items() if count > 1]:
                raise ValueError(f"data.{name}: expected different names, got {twice[0]!r} more than once")
        Choices(bits=self.bits, most_pixels=self.most_pixels)
        if self.class_counts and len(self.class_counts) != len(self.class_names):
            raise ValueError(
                f"data.class_counts: expected one for each of {len(self.class_names)} class names, got "
                f"{len(self.class_counts)}"
            )
        if self.workers is not None and not 0 <= self.workers <= MOST_WORKERS:
            raise ValueError(f"data.workers: expected 0 to {MOST_WORKERS}, got {self.workers}")
        if not self.memory_gib >= 0:
            raise ValueError(f"data.memory_gib: expected at least 0, got {self.memory_gib}")
        if not 0 <= self.broken_share <= 1:
            raise ValueError(f"data.broken_share: expected a share from 0 to 1, got {self.broken_share}")

    def reading(self) -> dict[str, Any]:
        """What to tell `open_images` besides path, size, channels and crop."""
        names = ["classes", "workers", "memory_gib", "broken_share"]
        names += ["labels", "column", "label_column", "subset", "bits", "most_pixels"]
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation.

    Attributes:
        steps: optimizer steps
        batch_size: images per step, over all processes
        accumulate: parts that a process works through one after the other in a step, to save memory
        warmup: steps over which the learning rate grows linearly to `learning_rate`
        cosine_decay: then lower it to zero at the last step along a cosine; False keeps it
        clip: largest norm of the gradient, a longer one is scaled to it; None: any
        skip_spikes: skip the update where a loss exceeds this many times the running mean of its path; None: never
        ema: decays of the weights' moving averages, the first is drawn with; the first steps use min(decay, (1 +
            step) / (10 + step))
        ema_widths: relative widths (EDM2's σ_rel) of further averages, of which `snapshots` are kept, so that an
            average of any width can be made afterwards (`python -m ssdcore_torch.ema`)
        snapshots: how many of them, evenly over the run
        label_dropout: share of the labels left out, of a class-conditional network, so that it can be guided
        weighting: of the loss: "min_snr", min(SNR, snr_clamp); "snr", the error of the noise; "edm", EDM's loss
            (`Objective`)
        snr_clamp: of "min_snr"
        time_sampling: how times are drawn within a path: "uniform", or for "edm" by its "density" of noise levels,
            evenly spread over the batch: the same loss on average, less noise in it
        pixel_share: multiply the weight by the target's share of the full-size pixels: sums over pixels, not means
        change_share: share of the batches that train a size-increasing step; None: as uniform times give it,
            (levels − 1) in `process.steps`, which is too few for runs of some thousand steps
        size_bias: b: a path's share of the batches also grows as (pixels of its target)^b; 0: as times fall
        equal_cost: a step at a low level takes every image at several times, each with noise of its own, so that
            all steps cost about the same
        precision: of the network's arithmetic; weights, averages and optimizer are float32 always, so bfloat16,
            with float32's range, needs no scaling of the loss (float16 would, and is not offered); "auto": bfloat16 on
            CUDA, float32 elsewhere
        compile: compile the network, one graph a path: quicker steps after a minute or more of compiling
        cuda_graphs: run each path's whole step (forward, backward, clipping, optimizer, averages) as one CUDA
            graph, captured when the path comes for the third time: the host launches one thing in place of thousands.
            It takes the memory of the largest step once more. None: on one GPU, for networks of this package that are
            neither compiled nor recomputed
        recompute: keep less of the forward pass and compute it again in the backward one: less memory, slower
        log_every: steps between two lines of the log
        save_every: steps between two checkpoints
        keep: checkpoints kept; older ones are deleted
        sample_every: steps between two grids of samples; None: only at the end
        evaluate_every: steps between two evaluations (the best checkpoint is kept besides the newest); None: never
        evaluate_samples: images that an evaluation draws
        evaluate_features: what it compares: "lite0", EfficientNet-Lite0's features, or "pixels", quick
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int
    cosine_decay: bool
    ema: tuple[float, ...]
    pixel_share: bool
    change_share: float | None
    accumulate: int = 1
    clip: float | None = None
    skip_spikes: float | None = None
    ema_widths: tuple[float, ...] = ()
    snapshots: int = 64
    label_dropout: float = 0.1
    weighting: Weighting = "min_snr"
    snr_clamp: float = 5.0
    weight_decay: float = 0.0
    size_bias: float = 0.0
    time_sampling: TimeSampling = "uniform"
    equal_cost: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    cuda_graphs: bool | None = None
    recompute: bool = False
    log_every: int = 50
    save_every: int = 1000
    keep: int = 3
    sample_every: int | None = None
    evaluate_every: int | None = None
    evaluate_samples: int = 1000
    evaluate_features: Literal["lite0", "pixels"] = "lite0"

    def __post_init__(self) -> None:
        for name, most in _LARGEST.items():
            if (value := getattr(self, name)) is not None and value > most:
                raise ValueError(f"train.{name}: expected at most {most}, got {value}")
        least_one = ("steps", "batch_size", "accumulate", "snapshots", "log_every", "save_every", "keep")
        for name in (*least_one, "sample_every", "evaluate_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"train.{name}: expected at least 1, got {value}")
        if self.evaluate_samples < 4:
            raise ValueError(f"train.evaluate_samples: expected at least 4, got {self.evaluate_samples}")
        for name in ("warmup", "weight_decay", "size_bias"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"train.{name}: expected at least 0, got {getattr(self, name)}")
        for name in ("learning_rate", "snr_clamp", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"train.{name}: expected a positive number, got {value}")
        if self.skip_spikes is not None and not self.skip_spikes > 1:
            raise ValueError(f"train.skip_spikes: expected a factor above 1, got {self.skip_spikes}")
        for name in ("change_share", "label_dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"train.{name}: expected a number in [0, 1), got {value}")
        if self.time_sampling == "density" and self.weighting != "edm":
            raise ValueError(
                f'train.time_sampling: "density" needs train.weighting=edm, whose density of noise levels it draws by; '
                f"got {self.weighting}"
            )
        if not self.ema or not all(0 <= rate < 1 for rate in self.ema):
            raise ValueError(f"train.ema: expected one decay in [0, 1) or more, got {list(self.ema)}")
        if not all(NARROWEST <= width <= 0.28 for width in self.ema_widths):
            raise ValueError(f"train.ema_widths: expected widths from {NARROWEST} to 0.28, got {list(self.ema_widths)}")
        for name in ("ema", "ema_widths"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"train.{name}: expected different averages, got {list(getattr(self, name))}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"train.batch_size: {self.batch_size} images do not divide into accumulate = {self.accumulate} parts"
            )

    def in_bfloat16(self, device: str) -> bool:
        """Whether `precision` means bfloat16 on this type of device."""
        return self.precision == "bfloat16" or (self.precision == "auto" and device == "cuda")


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
        times = self.network.preconditioned_times if isinstance(self.network, FlexiUNetConfig) else None
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

    def resized(self, size: int | None = None, levels: int | None = None) -> Config:
        """Another image size or number of levels, each half the last. Raises ValueError if the network cannot."""
        size = self.size if size is None else size
        levels = len(self.network.level_sizes) if levels is None else levels
        if size < 1 or levels < 1:
            raise ValueError(f"expected size >= 1 and levels >= 1, got size {size} and {levels} levels")
        net = self._own_network("size and levels")
        sizes = level_sizes(size, levels, stages=net.stages, flexi=net.flexi)
        attention = None if net.attention_sizes is None else tuple(size >> k for k in net.attention_stages)
        return replace(self, network=replace(net, level_sizes=sizes, attention_sizes=attention))

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
        tree = _overlay(json.loads(self.to_json()), settings, "")
        if size is not None or levels is not None:
            own = self._own_network("size and levels")
            network = tree["network"]
            sizes = _read(tuple[tuple[int, int], ...], network["level_sizes"], "network.level_sizes")
            stages = len(_read(tuple[float, ...], network["channel_multipliers"], "network.channel_multipliers"))
            flexi = _read(bool, network["flexi"], "network.flexi")
            if not sizes:
                raise ValueError("network.level_sizes: expected at least the full size, got none")
            full = sizes[0][0] if size is None else size
            halved = level_sizes(full, len(sizes) if levels is None else levels, stages=stages, flexi=flexi)
            network["level_sizes"] = [list(each) for each in halved]
            if network["attention_sizes"] is not None and "attention_sizes" not in settings.get("network", {}):
                network["attention_sizes"] = [full >> k for k in own.attention_stages if k < stages]
        return _read(Config, tree, "")

    def scheduled(self, schedule: ssd.oracle.Schedule) -> Config:
        """The process of a designed schedule in place of this one's.

        Raises:
            ValueError: For a schedule of other sizes than the network's levels.
        """
        sizes = self.network.level_sizes
        if schedule.sizes != sizes:
            given, wanted = (", ".join("×".join(map(str, size)) for size in some) for some in (schedule.sizes, sizes))
            raise ValueError(f"the schedule has the sizes {given}, this network {wanted}; design one for these sizes")
        return self.overlaid(designed(schedule))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Raises ValueError that names the key which is unknown, missing or of the wrong type."""
        try:
            values = json.loads(text, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON: {error}") from error
        return _read(cls, values, "")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError where it names a key twice: one of the values would silently win."""
    if twice := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
        raise ValueError(f"{twice[0]!r:.60} is given twice in one object")
    return dict(pairs)


def read_settings(text: str) -> dict[str, Any]:
    """The settings in a YAML (or JSON, which is YAML too) file, for `Config.overlaid`. Raises ValueError for others."""
    settings = _yaml(text)
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ValueError(f"expected settings as in `train: {{clip: 1.0}}`, got {settings!r:.60}")
    return settings


def setting(text: str) -> dict[str, Any]:
    """`train.clip=1.0` as {"train": {"clip": 1.0}}; the value is read as YAML. Raises ValueError for other texts."""
    name, equals, value = text.partition("=")
    if not equals or not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"expected NAME=VALUE as in train.clip=1.0, got {text!r}")
    settings: Any = _yaml(value)
    for part in reversed(name.split(".")):
        settings = {part: settings}
    return settings


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


def merged(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """All the settings, section by section, those of later trees in the place of earlier ones.

    Raises:
        ValueError: Where one tree has a value and a later one a section, or the other way round.
    """
    return _merged(trees, "")


def _merged(trees: Sequence[Mapping[str, Any]], where: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            before = result.get(key, value)
            if isinstance(before, Mapping) and isinstance(value, Mapping):
                below = (before, value) if key in result else (value,)
                result[key] = _merged(below, f"{where}{key}.")
            elif isinstance(before, Mapping) or isinstance(value, Mapping):
                wrong = value if isinstance(before, Mapping) else before
                raise ValueError(f"{where}{key}: expected settings by name, got {wrong!r:.60}")
            else:
                result[key] = value
    return result


def _overlay(tree: Mapping[str, Any], settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    merged = dict(tree)
    for key, value in settings.items():
        if key not in tree:
            meant = did_you_mean(str(key), (f"{where}{name}" for name in flat_settings(tree)))
            raise ValueError(f"{where}{key}: unknown setting{meant or ';'} known here: {', '.join(tree)}")
        if isinstance(tree[key], dict):
            if not isinstance(value, dict):
                raise ValueError(f"{where}{key}: expected settings by name, got {value!r}")
            merged[key] = _overlay(tree[key], value, f"{where}{key}.")
        else:
            merged[key] = value
    return merged


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers (to PyYAML, which keeps to 1.1, 1e-4 is a word), no name given twice, and no aliases: a few
    lines of them stand for more than fits into memory, or for something that holds itself."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases (*{self.peek_event().anchor}) are not read: write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [key.value for key, _ in getattr(node, "value", ()) if isinstance(key, yaml.ScalarNode)]
        if double := [name for name in names if names.count(name) > 1]:
            raise yaml.YAMLError(f"{double[0]!r:.60} is given twice: leave one out")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _yaml(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"not YAML: {error}") from error  # PyYAML lets through what a wrong !!tag makes of a value


def differences(ours: Config, theirs: Config) -> list[str]:
    """Dotted names of the settings in which two configurations differ, each with both values."""
    a, b = flat_settings(dataclasses.asdict(ours)), flat_settings(dataclasses.asdict(theirs))
    # networks of different kinds have different settings
    both = {key: (a.get(key, "none"), b.get(key, "none")) for key in {**a, **b}}
    return [f"{key}: {one} instead of {two}" for key, (one, two) in both.items() if one != two]


# Settings that may differ between ranks: the same data may lie in another place on another machine.
OF_A_MACHINE = ("data.path", "data.workers")


def flat_settings(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a tree by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flat_settings(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _read(kind: Any, value: Any, where: str) -> Any:
    """`value`, as JSON gives it, as an object of the annotated type `kind`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    if origin in (typing.Union, types.UnionType):
        others = [k for k in arguments if k is not type(None)]
        return None if value is None and types.NoneType in arguments else _read(_kind_of(others, value), value, where)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where}: expected one of {', '.join(map(repr, arguments))}, got {value!r}")
        return value
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected values by name, got {value!r:.60}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where}: expected a list, got {value!r}")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise ValueError(f"{where}: expected {len(kinds)} values, got {value!r}")
        return tuple(_read(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value)))
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits:
        raise ValueError(f"{where}: expected {kind.__name__}, got {value!r}")
    if kind is float and not abs(value) <= sys.float_info.max:
        raise ValueError(f"{where}: expected a finite number, got {value!r:.60}")
    return value


def _kind_of(kinds: Sequence[Any], value: Any) -> Any:
    """Of several dataclasses the one whose required fields are there; else the first."""

    def fits(kind: Any) -> bool:
        needed = {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
        return isinstance(value, dict) and needed <= value.keys()

    return next((kind for kind in reversed(kinds) if len(kinds) > 1 and fits(kind)), kinds[0])


def _read_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'the configuration'}: expected an object of settings, got {value!r}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in fields:
            raise ValueError(f"{prefix}{key}: unknown setting; known here: {', '.join(fields)}")
    for name, field in fields.items():
        if name not in value and field.default is dataclasses.MISSING:
            raise ValueError(f"{prefix}{name}: this setting is missing")
    hints = typing.get_type_hints(kind)
    values = {key: _read(hints[key], value[key], prefix + key) for key in value}
    try:
        return kind(**values)
    except ValueError as error:
        if where and re.split(r"\W", str(error), maxsplit=1)[0] in fields:
            raise ValueError(f"{prefix}{error}") from error  # of a class that knows no section that it is in
        raise


# ---- presets

# "cpu" and "gpu64" train as the study of quality under equal budgets found best: matched noise, equal levels, batches
# that lean to the large sizes; "gpu64", which trains for longer, with preconditioning and EDM's loss, which win at 20
# minutes and lose at 2 (benchmarks/quality/README.md; on a CPU, at 16 and 32 pixels).


def _cpu(data: str | None) -> Config:
    """Drawings at a small size: minutes on two cores."""
    return Config(
        preset="cpu",
        seed=0,
        data=DataConfig(data or EMBEDDED, () if data else ("moods", "planets", "sprouts")),
        network=FlexiUNetConfig(
            level_sizes(16, 3, stages=3),
            base_channels=32,
            channel_multipliers=(1, 2, 2),
            blocks_per_stage=1,
            attention_sizes=(8,),
        ),
        process=ProcessConfig(schedule="equal", gamma=None, matched=True),
        train=TrainConfig(
            steps=2400,
            batch_size=32,
            learning_rate=1e-3,
            warmup=100,
            cosine_decay=True,
            ema=(0.995,),
            pixel_share=False,
            change_share=0.1,
            size_bias=0.5,
        ),
    )


def _gpu64(data: str | None) -> Config:
    """64 px, four levels, every class: for one GPU."""
    return Config(
        preset="gpu64",
        seed=0,
        data=DataConfig(data or EMBEDDED),
        network=FlexiUNetConfig(level_sizes(64, 4, stages=4), base_channels=96, preconditioned_times=1000),
        process=ProcessConfig(schedule="equal", gamma=None, matched=True),
        train=TrainConfig(
            steps=10_000,
            batch_size=128,
            learning_rate=2e-4,
            warmup=500,
            cosine_decay=True,
            ema=(0.9995,),
            pixel_share=False,
            change_share=0.1,
            weighting="edm",
            size_bias=0.5,
        ),
    )


def _paper(
    name: str, size: int, levels: int, multipliers: tuple[float, ...], steps: int
) -> Callable[[str | None], Config]:
    """Hyper-parameters of the paper's released configuration (batch: for each of its GPUs)."""

    def build(data: str | None) -> Config:
        if data is None:
            raise ValueError(f"preset {name} has no data of its own: give --data FOLDER_OR_NPZ")
        return Config(
            preset=name,
            seed=0,
            data=DataConfig(data),
            network=FlexiUNetConfig(
                level_sizes(size, levels, stages=len(multipliers)), channel_multipliers=multipliers
            ),
            process=ProcessConfig(schedule="convex", gamma=0.5, matched=False),
            train=TrainConfig(
                steps=steps,
                batch_size=32,
                learning_rate=1e-4,
                warmup=0,
                cosine_decay=False,
                ema=(0.9999,),
                pixel_share=False,
                change_share=None,
                save_every=10_000,
            ),
        )

    return build


PRESETS: Mapping[str, Callable[[str | None], Config]] = {
    "cpu": _cpu,
    "gpu64": _gpu64,
    "celeba64": _paper("celeba64", 64, 4, (1, 2, 3, 4), 1_000_000),
    "celeba128": _paper("celeba128", 128, 5, (1, 1, 2, 3, 4), 300_000),
    "celeba256": _paper("celeba256", 256, 6, (1, 1, 2, 2, 4, 4), 300_000),
    "imagenet64": _paper("imagenet64", 64, 2, (1, 2, 3, 4), 1_000_000),
}


def unnamed_data(name: str) -> str:
    """`data.path` of a run whose images are not known here: what `name` was trained on."""
    return f"what {name} was trained on"


def is_unnamed_data(path: str) -> bool:
    return path.startswith("what ") and path.endswith(" was trained on")


CONVERTED = "official"
"""In the place of a preset's name: weights of the paper's code, whose images the run does not know."""


def preset(name: str, data: str | None = None) -> Config:
    """The preset of this name, on other data if given. Raises ValueError for an unknown name, listing the known."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name](data)
