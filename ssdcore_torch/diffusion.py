"""What a training step is: the path and times of a batch, the noisy input, the clean target, the weighted loss."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import ssdcore as ssd


@dataclass(frozen=True)
class Path:
    """All times t whose states share a size and whose states at t − 1 share one too: what may share a batch.

    times      increasing times t
    size       (h, w) of x_t
    out_size   (h, w) of x_{t−1}, the size that the network predicts at
    """

    times: tuple[int, ...]
    size: tuple[int, ...]
    out_size: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """A path and one of its times for each image: (batch,) int64."""

    path: Path
    times: np.ndarray


@dataclass(frozen=True)
class Objective:
    """The paper's training objective: mean over a batch of w_t · mean over pixels of (x̂(x_t, t) − R_{0→t−1} x_0)².

        w_t = min(α_t²/σ_t², snr_clamp) · (share of the full-size pixels that the target has, if pixel_share)

    The process must degrade alike at all times of one size (a resize process does). The share turns means over pixels
    into sums, so that a coarse mode weighs the same at every level.

    change_share   share of the batches on size-changing paths, spread evenly over the changes; None: the paper's
                   batches (a time drawn uniformly decides the path; if its size equals that of t − 1, the batch is
                   filled with other times of the path)
    """

    process: ssd.LinearDiffusion
    snr_clamp: float = 5.0
    pixel_share: bool = False
    change_share: float | None = None

    @functools.cached_property
    def paths(self) -> tuple[Path, ...]:
        """Every path, in order of its first time."""
        groups: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
        for t in range(1, self.process.steps + 1):
            groups.setdefault((self.process.shape(t), self.process.shape(t - 1)), []).append(t)
        return tuple(Path(tuple(times), size, out) for (size, out), times in groups.items())

    @functools.cached_property
    def path_probabilities(self) -> np.ndarray:
        """Probability of each of `paths`."""
        counts = np.array([len(path.times) for path in self.paths], dtype=np.float64)
        changes = np.array([path.size != path.out_size for path in self.paths])
        if self.change_share is None or not changes.any():
            return counts / counts.sum()
        keeping = np.where(changes, 0.0, counts)
        return (1 - self.change_share) * keeping / keeping.sum() + self.change_share * changes / changes.sum()

    def draw(self, batch_size: int, seed: int, step: int, rank: int = 0) -> Batch:
        """The path and times of a step. The path hangs on (seed, step) alone, so all ranks take the same."""
        which = np.random.default_rng((seed, step)).choice(len(self.paths), p=self.path_probabilities)
        path = self.paths[which]
        times = np.random.default_rng((seed, step, rank)).choice(np.array(path.times), size=batch_size)
        return Batch(path, times)

    def __call__(self, net: Callable[..., Tensor], x0: Tensor, batch: Batch, noise: Tensor, out_level: int) -> Tensor:
        """The loss, a scalar.

        x0         (batch, channels, *full size) clean images in [−1, 1]
        noise      (batch, channels, *batch.path.size) standard normal
        out_level  the network's level of `batch.path.out_size`
        """
        table = torch.from_numpy(self._table[:, batch.times]).to(x0.device, non_blocking=True)
        t, weight = table[0], table[3]
        alpha, sigma = table[1, :, None, None, None], table[2, :, None, None, None]
        first = batch.path.times[0]
        x_t = alpha * self.process.clean(x0, first) + sigma * noise
        target = self.process.clean(x0, first - 1)
        error = (net(x_t, t, out_level=out_level).float() - target).square().mean(dim=(1, 2, 3))
        return (weight * error).mean()

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """(4, T + 1) float32: time, α, σ, weight (0 at t = 0)."""
        proc = self.process
        times = range(proc.steps + 1)
        alpha, sigma = (np.array([level(t) for t in times]) for level in (proc.alpha, proc.sigma))
        weight = np.zeros(proc.steps + 1)
        weight[1:] = np.minimum((alpha[1:] / sigma[1:]) ** 2, self.snr_clamp)
        if self.pixel_share:
            pixels = np.array([np.prod(proc.shape(max(t - 1, 0))) for t in times])
            weight *= pixels / pixels[0]
        return np.stack([np.array(times), alpha, sigma, weight]).astype(np.float32)
