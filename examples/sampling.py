"""Sampling without a network, shared by audio_1d.py, volume_3d.py and graph.py: a sampler and a perfect denoiser."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

import ssdcore as ssd
from ssdcore.multistep import extrapolated

Denoiser = Callable[[np.ndarray, int, int], np.ndarray]  # (x_t, s, t) -> E[clean at the size of s | x_t]


def multistep(chain: ssd.LinearDiffusion, denoise: Denoiser, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """x_0 from x_T = `x` by every step of `chain`, each a draw from its posterior at eta = 0 (second order)."""
    previous = None
    for s, t in reversed(list(pairwise(range(chain.steps + 1)))):
        clean = denoise(x, s, t)
        used = extrapolated(chain, s, t, t + 1, clean, previous)
        x = chain.posterior(x, used, s, t, eta=0.0).sample(rng.standard_normal(clean.shape))
        previous = clean
    return x


def degraded_covariance(proc: ssd.LinearDiffusion, covariance: np.ndarray, t: int) -> np.ndarray:
    """R_t C R_tᵀ of data with one axis: covariance of the clean data at the size of t."""
    return proc.clean(np.ascontiguousarray(proc.clean(covariance, t).T), t)


def gaussian_denoiser(proc: ssd.LinearDiffusion, covariance: np.ndarray) -> Denoiser:
    """What a network would have to learn on data N(0, C) with one axis, known here exactly.

    x_t = α_t R_{s→t} (clean at s) + σ_t noise, and theorem 2 conditions on it.
    """

    def denoise(x: np.ndarray, s: int, t: int) -> np.ndarray:
        seen = proc.alpha(s) * proc.degradation(s, t)
        law_s = degraded_covariance(proc, covariance, s)
        law_t = proc.alpha(t) ** 2 * degraded_covariance(proc, covariance, t) + proc.sigma(t) ** 2 * np.eye(x.shape[-1])
        zero = np.zeros(proc.shape(s))
        return ssd.general_posterior(x, zero, seen, ssd.Covariance.dense(law_s), ssd.Covariance.dense(law_t)).mean

    return denoise


def draw_gaussian(chain: ssd.LinearDiffusion, covariance: np.ndarray, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Draws of N(0, C) by the diffusion `chain`, (*shape, *chain.shape(0))."""
    rng = np.random.default_rng(seed)
    prior = chain.prior(covariance=degraded_covariance(chain, covariance, chain.steps))
    x = prior.sample(rng.standard_normal((*shape, *chain.shape(chain.steps))))
    return multistep(chain, gaussian_denoiser(chain, covariance), x, rng)
