"""What a configuration calls a process, as a `LinearDiffusion`: the one place that names degradations and noises.

A new noise schedule is an entry of `ssdcore.schedules.NOISE_SCHEDULES`, a new way to degrade an entry of
`DEGRADATIONS`: options, configuration and help read these tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ssdcore as ssd
from ssdcore.degradations import BlurredResize
from ssdcore.files import MOST_TEXT, ArrayFile, read_text

Size = tuple[int, ...]

# Far beyond what anyone trains; a damaged config.json is refused before it asks for memory.
MOST_STEPS = 1_000_000
LOG_SNR = "log_snr"
"""The noise whose log-SNR values stand in the configuration."""
THRESHOLDS, INFORMATION = "thresholds", "information"
SCHEDULES = (*ssd.ResolutionSchedule.names(), THRESHOLDS, INFORMATION)
_DESIGN_STEPS = 50  # of sampling, that "information" counts the cost of
OPERATORS = "operators"
"""The degradation whose operators stand in a file of the run: any `LinearDiffusion`."""


@dataclass(frozen=True)
class ProcessConfig:
    """The forward process; its sizes are the network's levels.

    Attributes:
        schedule: shape of `ssdcore.ResolutionSchedule`: how long each level lasts; "thresholds": as `starts` says;
            "information": the size changes where photographs' states of these sizes lose `nats` by it
            (`ssdcore.oracle.information_starts`)
        gamma: its exponent; None for "equal", "thresholds" and "information", which have none
        matched: True: scale-matched noise; False: the paper's, the same noise-to-signal ratio at every size
        steps: T
        kernel: of the resize
        starts: the time at which level 1, 2, … starts; None unless the schedule is "thresholds"
        times: the sampling times that a schedule was designed for (`ssdcore.oracle.design_levels`), or None
        degradation: what happens to the image besides noise: "resize", "blur", "resize+blur" or "identity"
            (nothing); "operators": what `operators` names
        noise: of the full size, a name of `ssdcore.NoiseSchedule.names()`; "log_snr": as `log_snr` says
        log_snr: log(α²/σ²) at t = 1 … T, falling; None unless the noise is "log_snr"
        blur: standard deviation of the blur at T, in full-size pixels; None: an eighth of the shorter side
        blur_schedule: how it grows: "sine", as in blurring diffusion (Hoogeboom and Salimans 2022), or "log", as in
            heat dissipation (Rissanen et al. 2022)
        nats: that all changes of size lose together, per channel; None unless the schedule is "information"
        operators: SHA-256 of the file in the run that holds a process of one's own; None unless the degradation is
            "operators", whose noise that file holds, too
    """

    schedule: str
    gamma: float | None
    matched: bool
    steps: int = 1000
    kernel: str = "bilinear"
    starts: tuple[int, ...] | None = None
    times: tuple[int, ...] | None = None
    degradation: str = "resize"
    noise: str = "linear"
    log_snr: tuple[float, ...] | None = None
    blur: float | None = None
    blur_schedule: str = "sine"
    nats: float | None = None
    operators: str | None = None

    def __post_init__(self) -> None:
        _one_of("schedule", self.schedule, SCHEDULES)
        _one_of("degradation", self.degradation, (*DEGRADATIONS, OPERATORS))
        _one_of("noise", self.noise, noise_names())
        _one_of("blur_schedule", self.blur_schedule, tuple(WIDTHS))
        if not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(f"process.steps: expected 1 to {MOST_STEPS}, got {self.steps}")
        if (self.starts is None) != (self.schedule != THRESHOLDS):
            raise ValueError(
                f"process.starts: schedule {self.schedule!r} takes "
                f"{'a list of times' if self.starts is None else 'none (null)'}, got {self.starts}"
            )
        if (self.gamma is None) != (self.schedule in ("equal", THRESHOLDS, INFORMATION)):
            raise ValueError(
                f"process.gamma: schedule {self.schedule!r} takes {'none (null)' if self.gamma else 'a number'}, "
                f"got {self.gamma}"
            )
        if (self.nats is None) != (self.schedule != INFORMATION):
            raise ValueError(
                f"process.nats: schedule {self.schedule!r} takes "
                f"{'a number' if self.nats is None else 'none (null)'}, got {self.nats}"
            )
        if (self.log_snr is None) != (self.noise != LOG_SNR):
            raise ValueError(
                f"process.log_snr: noise {self.noise!r} takes "
                f"{'one value per step' if self.log_snr is None else 'none (null)'}"
            )
        if self.nats is not None and not 0 < self.nats < math.inf:
            raise ValueError(f"process.nats: expected a positive number, got {self.nats}")
        if self.log_snr is not None and len(self.log_snr) != self.steps:
            raise ValueError(f"process.log_snr: expected {self.steps} values, one per step, got {len(self.log_snr)}")
        if self.blur is not None and not 0 < self.blur < math.inf:
            raise ValueError(f"process.blur: expected a positive width in pixels, got {self.blur}")
        if (self.operators is None) != (self.degradation != OPERATORS):
            raise ValueError('process.operators: degradation "operators" and the file\'s SHA-256 go together')

    @property
    def resizes(self) -> bool:
        """Whether the state changes its size, so that there are levels."""
        return self.degradation in ("resize", "resize+blur", OPERATORS)

    def build(self, sizes: Sequence[Size]) -> ssd.LinearDiffusion:
        """The process over states of these sizes, full size first.

        Raises:
            ValueError: For settings that admit no process, and for several sizes of one that keeps its size.
        """
        if self.degradation == OPERATORS:
            raise ValueError("process.operators: this process is stored in the run's folder; open it with load_run")
        if not self.resizes and len(sizes) > 1:
            raise ValueError(
                f"process.degradation: {self.degradation!r} keeps the size of the state, and the network has "
                f"{len(sizes)} levels: take one (--levels 1)"
            )
        return DEGRADATIONS[self.degradation](self, [tuple(size) for size in sizes])

    def noise_schedule(self) -> ssd.NoiseSchedule:
        """The noise of the full size."""
        if self.log_snr is not None:
            return ssd.NoiseSchedule.from_log_snr(self.log_snr)
        return ssd.NoiseSchedule.named(self.noise, self.steps)

    def levels(self, sizes: Sequence[Size]) -> ssd.ResolutionSchedule:
        """How long the level of each of the sizes lasts."""
        count = len(sizes)
        if self.nats is not None:
            noise, spectrum = self.noise_schedule(), ssd.oracle.natural_spectrum(sizes[0])
            known = ssd.oracle.band_information(sizes, noise, spectrum, self.matched)
            starts = ssd.oracle.information_starts(known, noise, self.nats, min(_DESIGN_STEPS, self.steps))
            return ssd.ResolutionSchedule.thresholds(starts, self.steps)
        if self.starts is not None:
            if len(self.starts) != count - 1:
                raise ValueError(
                    f"process.starts: {count} levels change size {count - 1} times, got the times {list(self.starts)}"
                )
            return ssd.ResolutionSchedule.thresholds(self.starts, self.steps)
        gamma = {} if self.gamma is None else {"gamma": self.gamma}
        made: ssd.ResolutionSchedule = getattr(ssd.ResolutionSchedule, self.schedule)(
            steps=self.steps, levels=count, **gamma
        )
        return made

    def widths(self, size: Size) -> np.ndarray:
        """Standard deviation of the blur of x_0 at t = 0 … T, in pixels of the full `size`."""
        most = min(size) / 8 if self.blur is None else self.blur
        return WIDTHS[self.blur_schedule](self.steps) * most


# ---- degradations


def _resize(config: ProcessConfig, sizes: list[Size]) -> ssd.LinearDiffusion:
    return ssd.LinearDiffusion.resize(
        sizes[0],
        config.noise_schedule(),
        config.levels(sizes),
        matched=config.matched,
        kernel=config.kernel,
        sizes=sizes,
    )


def _identity(config: ProcessConfig, sizes: list[Size]) -> ssd.LinearDiffusion:
    return ssd.LinearDiffusion.identity(sizes[0], config.noise_schedule())


def _blur(config: ProcessConfig, sizes: list[Size]) -> ssd.LinearDiffusion:
    return ssd.LinearDiffusion.blur(sizes[0], config.noise_schedule(), config.widths(sizes[0]))


def _resize_and_blur(config: ProcessConfig, sizes: list[Size]) -> ssd.LinearDiffusion:
    resized = _resize(config, sizes)  # whose noise is matched to the sizes; a blur leaves the mean as it is
    blurred = BlurredResize(resized.degradations, config.widths(sizes[0]))
    return ssd.LinearDiffusion(resized.noise, blurred, resized.times)


DEGRADATIONS: Mapping[str, Callable[[ProcessConfig, list[Size]], ssd.LinearDiffusion]] = {
    "resize": _resize,
    "blur": _blur,
    "resize+blur": _resize_and_blur,
    "identity": _identity,
}


# ---- how a blur grows, from 0 to 1 over t = 0 … T


def _sine(steps: int) -> np.ndarray:
    """sin²(π t/2T): blurring diffusion's."""
    return np.sin(np.linspace(0, np.pi / 2, steps + 1)) ** 2


def _log(steps: int) -> np.ndarray:
    """Even in the logarithm, from 1/40 at t = 1: heat dissipation's 0.5 to 20 pixels."""
    return np.concatenate([[0.0], np.geomspace(1 / 40, 1, steps)])


WIDTHS: Mapping[str, Callable[[int], np.ndarray]] = {"sine": _sine, "log": _log}


# ---- noises


def noise_names() -> tuple[str, ...]:
    """Every noise that a configuration can name."""
    return (*ssd.NoiseSchedule.names(), LOG_SNR)


GO_WITH: Mapping[str, Mapping[str, Any]] = {
    "edm": {"network": {"preconditioned_times": ...}, "train": {"weighting": "edm"}},
}
"""Settings that a noise is trained with where nothing else is asked for; `...` stands for the number of steps. States
of EDM's noise are up to eighty times as large as images: only a preconditioned network takes them."""


def log_snr_file(path: Path) -> tuple[float, ...]:
    """log(α²/σ²) at t = 1 … T from a text file of numbers, or an .npy file. Raises ValueError for anything else."""
    try:
        if path.suffix == ".npy":
            values = ArrayFile(path, MOST_TEXT)["images"]
        else:
            values = np.array(read_text(path).replace(",", " ").split(), dtype=np.float64)
        if values.ndim != 1 or not len(values):
            raise ValueError(f"expected one number per step, got the shape {values.shape}")
        ssd.NoiseSchedule.from_log_snr(values)
    except (ValueError, TypeError, EOFError) as error:
        raise ValueError(f"{path} holds no log-SNR values ({error}): one number per step, falling") from error
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: expected finite values; what ends without signal is the noise rectified_flow")
    return tuple(float(value) for value in values)


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"process.{name}: expected one of {', '.join(map(repr, known))}, got {value!r}")
