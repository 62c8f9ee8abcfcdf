"""What is set of the data and of the optimisation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from ssdcore_torch.data import Choices
from ssdcore_torch.diffusion import TimeSampling, Weighting

MOST_WORKERS = 1024
NARROWEST = 0.001  # a relative width of an average; narrower ones are the last weights alone
_LARGEST = {
    **dict.fromkeys(("steps", "warmup", "log_every", "save_every", "sample_every", "evaluate_every"), 10**12),
    **dict.fromkeys(("batch_size", "accumulate", "snapshots", "keep"), 1 << 20),
    "evaluate_samples": 10**9,
}


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
