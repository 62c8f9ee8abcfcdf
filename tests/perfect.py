"""The optimal denoiser of Gaussian data, dense in float64, and the exact law of what the real sampler makes of it."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

import ssdcore as ssd
from ssdcore_torch.denoisers import level_sizes_of
from ssdcore_torch.sampling._walk import NoiseSource, Walk


def power_law(shape: tuple[int, ...], variance: float = 0.25) -> np.ndarray:
    """Variances of cosine modes that fall with the frequency, `variance` a pixel."""
    frequency = np.sqrt(sum(k**2 for k in np.meshgrid(*map(np.arange, shape), indexing="ij")))
    spectrum = (1.0 + frequency) ** -2.5
    return variance * spectrum / spectrum.mean()


class GaussianDenoiser:
    """E[R_s x_0 | x_t] for x_0 ~ N(mean, covariance), both over the pixels of one channel in C order."""

    def __init__(self, proc: ssd.LinearDiffusion, covariance: np.ndarray, mean: np.ndarray | float = 0.0) -> None:
        self.proc, self.covariance = proc, covariance
        self.mean = np.broadcast_to(mean, len(covariance)).astype(np.float64)
        self.shapes = list(dict.fromkeys(proc.shape(t) for t in range(proc.steps + 1)))
        self.calls = 0

    @functools.cache  # noqa: B019 - lives as long as a test
    def degradation(self, t: int) -> np.ndarray:
        pixels = torch.eye(len(self.mean), dtype=torch.float64).reshape(-1, *self.shapes[0])
        return self.proc.clean(pixels, t).flatten(1).T.numpy()

    def resize(self, level: int) -> np.ndarray:
        return self.degradation(next(t for t in range(self.proc.steps + 1) if self.proc.shape(t) == self.shapes[level]))

    @functools.cache  # noqa: B019
    def gain(self, t: int, out_level: int) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = self.proc.alpha(t), self.proc.sigma(t)
        low, high = self.degradation(t), self.resize(out_level)
        total = alpha**2 * low @ self.covariance @ low.T + sigma**2 * np.eye(len(low))
        gain = np.linalg.solve(total, alpha * low @ self.covariance @ high.T).T
        return tuple(torch.from_numpy(a) for a in (gain, alpha * low @ self.mean, high @ self.mean))

    def __call__(self, x: Tensor, t: Tensor, out_level: int) -> Tensor:
        self.calls += 1
        gain, seen, predicted = self.gain(int(t[0]), out_level)
        y = (x.double().flatten(2) - seen) @ gain.T + predicted
        return y.reshape(*x.shape[:2], *self.shapes[out_level]).to(x.dtype)

    def start(self, chain: ssd.LinearDiffusion) -> ssd.Gaussian:
        """The exact law of x_T over one channel."""
        low = self.degradation(self.proc.steps)
        mean = torch.from_numpy(low @ self.mean).reshape(1, *self.shapes[-1])
        return chain.prior(mean, low @ self.covariance @ low.T)


def noise_shapes(chain: ssd.LinearDiffusion, eta: float) -> list[tuple[int, ...]]:
    """Of all noise that a walk down the chain takes: of x_T, and of the steps that are not deterministic."""
    taken = [k for k in range(chain.steps, 1, -1) if eta > 0 or chain.shape(k) != chain.shape(k - 1)]
    return [chain.shape(chain.steps), *(chain.shape(k - 1) for k in taken)]


def unit_noise(shapes: list[tuple[int, ...]]) -> NoiseSource:
    """Noise for a batch that holds no noise in its first sample and one unit vector of all that is asked for in each
    other, `shapes` being what will be asked for, in order."""
    count, offset, expected = sum(map(math.prod, shapes)) + 1, 1, iter(shapes)

    def draw(shape: tuple[int, ...]) -> Tensor:
        nonlocal offset
        assert shape == next(expected)
        n = math.prod(shape)
        noise = torch.zeros(count, 1, *shape, dtype=torch.float64)
        noise[offset : offset + n] = torch.eye(n, dtype=torch.float64).reshape(n, 1, *shape)
        offset += n
        return noise

    return draw


def output_law(
    net: GaussianDenoiser, chain: ssd.LinearDiffusion, sampler: str, eta: float, start: ssd.Gaussian | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance, exact to rounding, of what the real sampler draws with a linear denoiser.

    Its output is an affine function of the noise it asks for, so one batch that holds every unit vector of that noise,
    and one sample without any, tells all of it.
    """
    walk = Walk(net, level_sizes_of(net, net.proc), chain, ssd.sampling.Sampler.named(sampler, eta), clip=False)
    draw = unit_noise(noise_shapes(chain, eta))
    law = net.start(chain) if start is None else start
    made = walk.down(law.sample(draw(chain.shape(chain.steps))), draw).flatten(1).numpy()
    mean, columns = made[0], made[1:] - made[0]
    return mean, columns.T @ columns


def frechet(mean: np.ndarray, covariance: np.ndarray, other_mean: np.ndarray, other: np.ndarray) -> float:
    """Squared 2-Wasserstein distance between two Gaussians."""
    values, vectors = np.linalg.eigh(other)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariance @ root), 0)).sum()
    return float(((mean - other_mean) ** 2).sum() + np.trace(covariance) + np.trace(other) - 2 * cross)
