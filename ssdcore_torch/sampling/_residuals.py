"""A step down the chain, and what predictions leave open, Cov[x_0 | x_t], as power spectra that steps put back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import ssdcore as ssd
from ssdcore.sampling import Sampler

Size = tuple[int, ...]


def first_of_size(chain: ssd.LinearDiffusion, k: int) -> int:
    """The first step of the chain whose state has the size of step k: 0 at full size."""
    return (
        0
        if chain.shape(k) == chain.shape(0)
        else next(j for j in chain.size_changes if chain.shape(j) == chain.shape(k))
    )


def degraded_further(chain: ssd.LinearDiffusion, clean: Tensor, k: int) -> Tensor:
    """R from the first step of a size to step k, which has the size too, on clean images of the first."""
    first = first_of_size(chain, k)
    return clean if first == k else chain.operator(first, k)(clean)


@dataclass(frozen=True, eq=False)
class ResidualSpectra:
    """Mean squares of (clean image − prediction), mode by mode, at some times of every path of a process.

    The residual's covariance given x_t is taken to be diagonal in the cosine modes (DCT-II) of the prediction's size
    and in `channel_modes`, as it nearly is for natural images; it is what a step exact to second moments puts back
    (`ssdcore.LinearDiffusion.posterior`, clean_covariance). Between measured times its inverse is interpolated linearly
    in the signal-to-noise ratio α²/σ², which is exact for Gaussian data.

    Attributes:
        process: the one that the network was trained for
        channel_modes: (channels, channels) orthogonal: its columns are the combinations of channels
        paths: (times, power) of each of `process.paths`, in order: (k,) increasing, and (k, channels, *target shape),
            the variance of each combination's mode; None: steps of that path put nothing back

    Raises:
        ValueError: For arrays of other shapes, other times than the path's, and negative or infinite power.
    """

    process: ssd.LinearDiffusion
    channel_modes: np.ndarray
    paths: tuple[tuple[np.ndarray, np.ndarray] | None, ...]

    def __post_init__(self) -> None:
        channels, columns = self.channel_modes.shape
        gram = self.channel_modes.T @ self.channel_modes
        if channels != columns or not np.allclose(gram, np.eye(channels), atol=1e-5):
            raise ValueError("residual spectra: the combinations of channels are not an orthogonal matrix")
        if len(self.paths) != len(self.process.paths):
            raise ValueError(
                f"residual spectra: the process has {len(self.process.paths)} paths, these are of {len(self.paths)}"
            )
        for path, held in zip(self.process.paths, self.paths):
            if held is None:
                continue
            times, power = held
            if power.shape != (len(times), channels, *path.target_shape):
                raise ValueError(
                    f"residual spectra: expected the shape {(len(times), channels, *path.target_shape)} for a path to "
                    f"{path.target_shape}, got {power.shape}"
                )
            if not len(times) or np.any(np.diff(times) <= 0) or not set(times.tolist()) <= set(path.times):
                raise ValueError(f"residual spectra: expected increasing times of {path}, got {times}")
            if not (np.isfinite(power).all() and (power >= 0).all()):
                raise ValueError("residual spectra: expected finite power, 0 or more")

    @property
    def channels(self) -> int:
        return len(self.channel_modes)

    def covariances(self, t: int, s: int) -> tuple[ssd.Covariance, ...] | None:
        """Cov[R_{0→s} x_0 | x_t] over shape(s) for each combination of channels; None where nothing is put back.

        Args:
            t, s: times of `process`, s < t, both of one size, or s the last time before t's size

        Raises:
            ValueError: For an s of another size than the network predicts at t.
        """
        return self._covariances(int(t), int(s))

    @functools.cached_property
    def _known(self) -> dict[tuple[int, int], tuple[ssd.Covariance, ...] | None]:
        return {}

    def _covariances(self, t: int, s: int) -> tuple[ssd.Covariance, ...] | None:
        if (t, s) not in self._known:
            self._known[t, s] = self._made(t, s)
        return self._known[t, s]

    def _made(self, t: int, s: int) -> tuple[ssd.Covariance, ...] | None:
        proc = self.process
        number = next(i for i, path in enumerate(proc.paths) if t in path.times)
        held = self.paths[number]
        if held is None:
            return None
        if proc.shape(s) != (target := proc.paths[number].target_shape):
            raise ValueError(
                f"residual spectra: at t = {t} the network predicts the size {target}, and s = {s} has {proc.shape(s)}"
            )
        power = self._power(t, *held)
        operator = proc.operator(first_of_size(proc, s), s)  # a blur continues within a size
        return tuple(ssd.Covariance.cosine(each).through(operator) for each in power)

    def _power(self, t: int, times: np.ndarray, power: np.ndarray) -> np.ndarray:
        """(channels, *target shape) at t."""
        high = int(np.searchsorted(times, t))
        if high in (0, len(times)) or times[high] == t:
            return np.asarray(power[min(high, len(times) - 1)], dtype=np.float64)
        around = map(int, (times[high - 1], t, times[high]))
        snr = [(self.process.alpha(u) / self.process.sigma(u)) ** 2 for u in around]
        share = (snr[0] - snr[1]) / (snr[0] - snr[2]) if snr[0] > snr[2] else 0.5
        least = np.finfo(np.float64).tiny
        low, top = (np.maximum(power[i].astype(np.float64), least) for i in (high - 1, high))
        return np.asarray(1 / ((1 - share) / low + share / top))


def reverse_step(
    sampler: Sampler,
    chain: ssd.LinearDiffusion,
    x: Tensor,
    clean: Tensor,
    k: int,
    normal: Callable[[Size], Tensor],
    previous: Tensor | None = None,
    residuals: ResidualSpectra | None = None,
) -> Tensor:
    """x at step k − 1 of a chain from x at step k, with what predictions leave open put back as the sampler does.

    Args:
        x: ``(batch, channels, *shape(k))``
        clean: ``(batch, channels, *shape(k − 1))``
        normal: as for `Sampler.step`
        previous: what was predicted in the step before, or None
    """
    original = (0, *chain.times)
    covariances = None
    if residuals is not None and sampler.puts_back(chain, k):
        covariances = residuals.covariances(original[k], original[k - 1])
    if residuals is None or covariances is None:
        plain: Tensor = sampler.step(chain, x, clean, k, normal, previous)
        return plain
    if x.shape[1] != residuals.channels:
        raise ValueError(f"residual spectra: they are of {residuals.channels} channels, the images have {x.shape[1]}")
    # a rotation of the channels, which the process leaves alone, and back
    turn = torch.as_tensor(residuals.channel_modes, dtype=x.dtype, device=x.device)
    noise = normal(tuple(clean.shape))
    known = (x, clean, noise) if previous is None else (x, clean, noise, previous)
    states, images, noises, *earlier = (torch.einsum("bc...,cd->bd...", z, turn) for z in known)
    parts = []
    for i, covariance in enumerate(covariances):
        one = slice(i, i + 1)

        def own(_: Size, one: slice = one) -> Tensor:
            return noises[:, one]

        before = earlier[0][:, one] if earlier else None
        parts.append(sampler.step(chain, states[:, one], images[:, one], k, own, before, covariance))
    return torch.einsum("bd...,cd->bc...", torch.cat(parts, 1), turn)
