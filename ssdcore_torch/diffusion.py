"""What a training step is: the path and times of a batch, the noisy input, the clean target, the weighted loss."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import ssdcore as ssd
from ssdcore.process import Path
from ssdcore_torch.denoisers import DATA_STD, operations
from ssdcore_torch.devices import to_device
from ssdcore_torch.randomness import Purpose, keyed

Weighting = Literal["min_snr", "snr", "edm"]
TimeSampling = Literal["uniform", "density"]
EDM_LOG_NOISE = (-1.2, 1.2)
"""Mean and deviation of ln(σ/α) in EDM's training (its table 1)."""


@dataclass(frozen=True)
class Batch:
    """A path and times of it for each image. ``batch[part]``, `part` a slice, is the same for a part of the images.

    Attributes:
        times: int64, (batch,), or (batch, repeats) where a step takes every image at several times
    """

    path: Path
    times: np.ndarray

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, part: slice) -> Batch:
        return Batch(self.path, self.times[part])

    def noise_shape(self, channels: int) -> tuple[int, ...]:
        """``(*times.shape, channels, *path.shape)``: of the noise that these images take."""
        return (*self.times.shape, channels, *self.path.shape)


def equal_cost_repeats(process: ssd.LinearDiffusion, net: Any) -> tuple[int, ...]:
    """How often each path can take every image, so that no step costs more than one at full size.

    By the operations of the forward pass of `net`, a `Denoiser`: a step at a low level then takes an image at several
    times, with noise of its own for each, and all steps cost about the same. The order of the images is not touched, so
    what a step takes remains a function of (seed, step).
    """
    level = {size: k for k, size in enumerate(net.sizes)}
    full = operations(net, 0, 0)
    costs = [operations(net, level[path.shape], level[path.target_shape]) for path in process.paths]
    return tuple(max(1, full // cost) for cost in costs)


@dataclass(frozen=True)
class Objective:
    """The training objective: mean over a batch of w_t · mean over pixels of (x̂(x_t, t) − x_0)².

    x̂ has the size of the state at t − 1, and x_0 is compared with it as it is degraded at the first time of that size:
    a resize process's R_{0→t−1} x_0, a blur's x_0 itself. Every image is degraded by its own time.

    ::

        w_t = min(α_t²/σ_t², snr_clamp)   "min_snr", the paper's (Hang et al. 2023)
        w_t = α_t²/σ_t²                   "snr": the error of the noise within a size, DDPM's loss (Ho et al. 2020)
        w_t = (α_t²/σ_t² + 1/s²) · p_t    "edm" (Karras et al. 2022), s = `DATA_STD`. The first factor is 1/c_out² of
                                          `FlexiUNet.precondition`: all times ask as much of its layers. The second
                                          turns uniform times into EDM's draw, ln(σ/α) ~ N(−1.2, 1.2²), by the ratio
                                          of the densities: times of nearly pure noise weigh little
        times the share of the full-size pixels that the target has, if pixel_share

    The share turns means over pixels into sums, so that a coarse mode weighs the same at every level.

    How the times of a path are drawn changes the noise of this estimate, not what it estimates::

        "uniform"   each as often as any other, independently
        "density"   for the weighting "edm": time t with probability p_t / Σ p over its path, so the mean of p over the
                    path is all that remains of p_t in the weight. The times of a batch share one uniform number u:
                    image i takes the quantile of (u + i)/B (Kingma et al. 2021, "Variational diffusion models"), so
                    that every batch has its share of each part of the path

    Attributes:
        change_share: share of the batches on size-changing paths, which have one time each; None: the paper's
            batches (a time drawn uniformly decides the path; if its size equals that of t − 1, the batch is filled with
            other times of the path)
        size_bias: b >= 0: a path's share also grows as (pixels of its target)^b, among the size-keeping paths and
            among the changes; 0: as times fall. Small sizes are learned in fewer steps than large ones.
        repeats: times and noises that each image gets in a step, one number a path (`equal_cost_repeats`); (): one
    """

    process: ssd.LinearDiffusion
    snr_clamp: float = 5.0
    pixel_share: bool = False
    change_share: float | None = None
    repeats: tuple[int, ...] = ()
    weighting: Weighting = "min_snr"
    size_bias: float = 0.0
    time_sampling: TimeSampling = "uniform"

    def __post_init__(self) -> None:
        if self.time_sampling not in ("uniform", "density"):
            raise ValueError(f"time_sampling: expected 'uniform' or 'density', got {self.time_sampling!r}")
        if self.time_sampling == "density" and self.weighting != "edm":
            raise ValueError(
                f"time_sampling: 'density' draws by the density of the weighting 'edm', and {self.weighting!r} has "
                "none: take 'uniform', or the weighting 'edm'"
            )
        if not self.size_bias >= 0:
            raise ValueError(f"size_bias: expected at least 0, got {self.size_bias}")
        if self.repeats and (len(self.repeats) != len(self.paths) or min(self.repeats) < 1):
            raise ValueError(
                f"repeats: expected a number >= 1 for each of the {len(self.paths)} paths, got {self.repeats}"
            )

    @functools.cached_property
    def paths(self) -> tuple[Path, ...]:
        """Every path, in order of its first time."""
        return self.process.paths

    @functools.cached_property
    def path_probabilities(self) -> np.ndarray:
        """Probability of each of `paths`."""
        counts = np.array([len(path.times) for path in self.paths], dtype=np.float64)
        pixels = np.array([np.prod(path.target_shape) for path in self.paths])
        shares = counts * (pixels / pixels.max()) ** self.size_bias
        changes = np.array([path.shape != path.target_shape for path in self.paths])
        if self.change_share is None or not changes.any():
            return shares / shares.sum()
        keeping, changing = np.where(changes, 0.0, shares), np.where(changes, shares, 0.0)
        return (1 - self.change_share) * keeping / keeping.sum() + self.change_share * changing / changing.sum()

    def draw(self, batch_size: int, seed: int, step: int, path: Path | None = None) -> Batch:
        """The path (unless given) and times of a step, for its whole batch: a function of the arguments alone."""
        if path is None:
            number = keyed(Purpose.PATH, seed, step).choice(len(self.paths), p=self.path_probabilities)
        else:
            number = self.paths.index(path)
        repeats = self.repeats[number] if self.repeats else 1
        path, generator = self.paths[number], keyed(Purpose.TIMES, seed, step)
        shape = batch_size if repeats == 1 else (batch_size, repeats)
        if self.time_sampling == "uniform":
            return Batch(path, generator.choice(np.array(path.times), size=shape))
        # Neighbouring quantiles go to different images, so that an image taken at several times has unlike ones.
        quantiles = (generator.random() + np.arange(batch_size * repeats)) / (batch_size * repeats)
        chosen = np.searchsorted(self._cumulative[number], quantiles, side="right")
        times = np.array(path.times)[np.minimum(chosen, len(path.times) - 1)]
        return Batch(path, times.reshape(repeats, batch_size).T.reshape(shape))

    def __call__(
        self,
        net: Callable[..., Tensor],
        x0: Tensor,
        batch: Batch,
        noise: Tensor,
        out_level: int,
        labels: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar: the mean of `losses`, of the same arguments."""
        return self.losses(net, x0, batch, noise, out_level, labels, rows).mean()

    def losses(
        self,
        net: Callable[..., Tensor],
        x0: Tensor,
        batch: Batch,
        noise: Tensor,
        out_level: int,
        labels: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """The weighted loss of every image and time: shaped like `batch.times`.

        What the network is given and compared with is computed in the precision of x0, under autocast too.

        Args:
            x0: ``(batch, channels, *full size)`` clean images in [−1, 1]
            noise: standard normal, shaped `batch.noise_shape(channels)`
            out_level: the network's level of `batch.path.target_shape`
            labels: (batch,) int64 class labels, the network's null label among them; None for a network without
                classes
            rows: what `rows` gives for the batch's times; None: made here

        Raises:
            ValueError: For noise or labels of another shape.
        """
        if noise.shape != (expected := batch.noise_shape(x0.shape[1])):
            raise ValueError(f"noise: expected the shape {expected} for this batch, got {tuple(noise.shape)}")
        if labels is not None and labels.shape != (len(batch),):
            raise ValueError(f"labels: expected shape ({len(batch)},), one per image, got {tuple(labels.shape)}")
        repeats = batch.times.size // len(batch)
        with torch.autocast(x0.device.type, enabled=False):
            t, alpha, sigma, weight = (self.rows(batch.times, x0.device) if rows is None else rows).flatten(1)
            seen, target = self._degraded(x0, batch, repeats)
            over = (-1, *[1] * (seen.ndim - 1))
            x_t = alpha.view(over) * seen + sigma.view(over) * noise.view(seen.shape)
        condition = {} if labels is None else {"label": _repeated(labels, repeats)}
        prediction = net(x_t, t, out_level=out_level, **condition)
        if prediction.shape != target.shape:
            raise ValueError(f"the network must give {tuple(target.shape)} here, got {tuple(prediction.shape)}")
        error = (prediction.to(x0.dtype) - target).square().mean(dim=tuple(range(1, x0.ndim)))
        return (weight * error).view(batch.times.shape)

    def rows(self, times: np.ndarray, device: torch.device) -> Tensor:
        """``(4, *times.shape)``: time, α, σ, weight; copied without waiting for the device."""
        return to_device(self._table[:, times], device)

    @functools.cached_property
    def alike(self) -> bool:
        """Whether each path degrades its images alike at all its times: `losses` then takes times by `rows` alone."""
        return all(self._stage(path.times[0]) == self._stage(path.times[-1]) for path in self.paths)

    def _degraded(self, x0: Tensor, batch: Batch, repeats: int) -> tuple[Tensor, Tensor]:
        """(what the states show of x_0, each at its own time; what the network is to predict)."""
        process, path = self.process, batch.path
        first = next(t for t in (0, *process.size_changes) if process.shape(t) == path.target_shape)
        stage, least, most = (self._stage(t) for t in (first, path.times[0], path.times[-1]))
        if least != most:  # within a path it never falls
            seen = process.degrade(_repeated(x0, repeats), batch.times.reshape(-1))
            return seen, _repeated(process.degrade(x0, first), repeats)
        seen = process.degrade(x0, path.times[0])
        target = seen if stage == least else process.degrade(x0, first)
        return _repeated(seen, repeats), _repeated(target, repeats)

    def _stage(self, t: int) -> int:
        """A number that two times share if an image is degraded alike at both."""
        return self.process.degradations.stage((0, *self.process.times)[t])

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """(4, T + 1) float32: time, α, σ, weight (0 at t = 0)."""
        proc = self.process
        times = range(proc.steps + 1)
        alpha, sigma = (np.array([level(t) for t in times]) for level in (proc.alpha, proc.sigma))
        weight = np.zeros(proc.steps + 1)
        snr = (alpha[1:] / sigma[1:]) ** 2
        if self.weighting == "edm":
            weight[1:] = snr + DATA_STD**-2
            if self.time_sampling == "uniform":
                weight[1:] *= self._density
            else:
                for path in self.paths:
                    weight[list(path.times)] *= self._density[np.array(path.times) - 1].mean()
        elif self.weighting == "snr":
            weight[1:] = snr
        else:
            weight[1:] = np.minimum(snr, self.snr_clamp)
        if self.pixel_share:
            pixels = np.array([np.prod(proc.shape(max(t - 1, 0))) for t in times])
            weight *= pixels / pixels[0]
        # a network is told the times of the process that it was trained on
        return np.stack([np.array((0, *proc.times)), alpha, sigma, weight]).astype(np.float32)

    @functools.cached_property
    def _cumulative(self) -> tuple[np.ndarray, ...]:
        """For each path, its times' probabilities summed up to each, 1 at the last."""
        sums = []
        for path in self.paths:
            density = self._density[np.array(path.times) - 1]
            # of a path far from EDM's noise levels every density may round to 0: its times then weigh nothing
            total = np.cumsum(density if density.any() else np.ones_like(density))
            sums.append(total / total[-1])
        return tuple(sums)

    @functools.cached_property
    def _density(self) -> np.ndarray:
        """(T,): EDM's density of ln(σ/α) over that of uniform times, which is 1/(T · its increase in a step)."""
        times = np.arange(1, self.process.steps + 1)
        with np.errstate(divide="ignore"):
            log_noise = -np.log([self.process.alpha(int(t)) / self.process.sigma(int(t)) for t in times])
        # ln(σ/α) may jump where the size changes, and t = 1 has no step before it: the nearest other steps count.
        # Without signal it is infinite: that time has no density.
        rises = np.diff(log_noise, prepend=np.nan)
        known = times[~np.isin(times, [1, *self.process.size_changes]) & np.isfinite(rises)]
        increase = np.interp(times, known, rises[known - 1]) if len(known) else 1.0
        mean, deviation = EDM_LOG_NOISE
        normal = np.exp(-0.5 * ((log_noise - mean) / deviation) ** 2) / (deviation * math.sqrt(2 * math.pi))
        return np.asarray(self.process.steps * increase * normal)


def _repeated(x: Tensor, repeats: int) -> Tensor:
    return x if repeats == 1 else x.repeat_interleave(repeats, 0)
