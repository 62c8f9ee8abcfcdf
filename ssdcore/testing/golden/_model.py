"""A reference process in exact numbers, written from the theorems: what `LinearDiffusion` and the oracle must give.

Every operator is an explicit matrix over the pixels in C order, every formula the general one: transitions by
Σ_t − M Σ_s Mᵀ, posteriors by conditioning the joint Gaussian, the family with the same marginals from a singular value
decomposition of thirty digits, a sampler's law by carrying its covariance from step to step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ssdcore.testing.golden._exact import REAL, eye, function_of, inverse, real, reals, svd, zeros


@dataclass(frozen=True, eq=False)
class Reference:
    """steps[t − 1] is R_{t−1→t} or None for the identity; alpha and sigma over t = 0 … T."""

    size: int
    steps: Sequence[np.ndarray | None]
    alpha: np.ndarray
    sigma: np.ndarray

    def operator(self, s: int, t: int) -> np.ndarray:
        """R_{s→t}, unscaled."""
        product: np.ndarray | None = None
        for step in self.steps[s:t]:
            if step is not None:
                product = step if product is None else step @ product
        return eye(self.size_at(s)) if product is None else product

    def size_at(self, t: int) -> int:
        sizes = [len(step) for step in self.steps[:t] if step is not None]
        return sizes[-1] if sizes else self.size

    def changes(self, s: int, t: int) -> bool:
        return any(step is not None for step in self.steps[s:t])

    def transition(self, s: int, t: int) -> tuple[np.ndarray, np.ndarray]:
        """(M, Σ_t|s)."""
        m = self.alpha[t] / self.alpha[s] * self.operator(s, t)
        return m, self.sigma[t] ** 2 * eye(len(m)) - self.sigma[s] ** 2 * m @ m.T

    def gain(self, s: int, t: int, eta: Any) -> np.ndarray:
        """B of the posterior: ρ Mᵀ at eta = 1, else V diag(b) Uᵀ with b = (σ_s/σ_t) √(1 − η² (1 − ρ d²))."""
        m, _ = self.transition(s, t)
        rho = (self.sigma[s] / self.sigma[t]) ** 2
        if eta == 1:
            return rho * m.T
        if s == 0:
            return zeros(self.size, len(m))  # σ_0 = 0
        u, d, v = svd(m)
        ratio = real(self.sigma[s]) / real(self.sigma[t])
        b = [ratio * REAL.sqrt(1 - real(eta) ** 2 * (1 - ratio**2 * value**2)) for value in d]
        return (v * np.array(b, dtype=object)) @ u.T

    def posterior(self, x_t: np.ndarray, clean_s: np.ndarray, s: int, t: int, eta: Any) -> tuple[Any, np.ndarray]:
        """(mean, covariance) of the family with the same marginals."""
        m, _ = self.transition(s, t)
        b = self.gain(s, t, eta)
        mean = self.alpha[s] * clean_s + b @ (x_t - m @ (self.alpha[s] * clean_s))
        return mean, self.sigma[s] ** 2 * eye(len(b)) - self.sigma[t] ** 2 * b @ b.T

    def conditioned(self, x_t: np.ndarray, clean_s: np.ndarray, s: int, t: int) -> tuple[np.ndarray, np.ndarray]:
        """(mean, covariance) of x_s given x_t by Bayes' rule in precisions (5); needs a regular Σ_t|s."""
        m, noise = self.transition(s, t)
        mean_s = self.alpha[s] * clean_s
        variance = self.sigma[s] ** 2
        covariance = inverse(eye(len(mean_s)) / variance + m.T @ inverse(noise) @ m)
        return covariance @ (mean_s / variance + m.T @ inverse(noise) @ x_t), covariance


def prediction(model: Reference, data: np.ndarray, s: int, t: int) -> np.ndarray:
    """W of the perfect prediction E[R_s x_0 | x_t] = R_s m + W (x_t − a_t R_t m)."""
    r_t, r_s = model.operator(0, t), model.operator(0, s)
    signal = model.alpha[t] ** 2 * r_t @ data @ r_t.T + model.sigma[t] ** 2 * eye(len(r_t))
    return model.alpha[t] * r_s @ data @ r_t.T @ inverse(signal)


def marginal(model: Reference, data: np.ndarray, t: int) -> np.ndarray:
    r = model.operator(0, t)
    return model.alpha[t] ** 2 * r @ data @ r.T + model.sigma[t] ** 2 * eye(len(r))


def sampler_moments(
    model: Reference,
    data: np.ndarray,
    times: Sequence[int],
    eta: Any,
    start: tuple[np.ndarray, np.ndarray] | None = None,
    second_moments: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """(mean of x_0 minus that of the data, covariance of x_0) of the chain over `times` and 0, perfect predictions.

    Args:
        start: (distance of the mean of x_T from the exact one, its covariance); None: the exact marginal
        second_moments: add D Cov[x_0 | x_t] Dᵀ, D = a_s R_s − a_t B R_t, at every step but the last
    """
    last = times[-1]
    shift, p = (zeros(model.size_at(last)), marginal(model, data, last)) if start is None else start
    for s, t in reversed(list(pairwise([0, *times]))):
        w, b = prediction(model, data, s, t), model.gain(s, t, eta)
        g = model.alpha[s] * w + b @ (eye(len(p)) - model.alpha[t] * model.operator(s, t) @ w)
        noise = model.sigma[s] ** 2 * eye(len(g)) - model.sigma[t] ** 2 * b @ b.T
        if second_moments and s > 0:
            d = model.alpha[s] * model.operator(0, s) - model.alpha[t] * b @ model.operator(0, t)
            clean = model.alpha[t] * data @ model.operator(0, t).T @ inverse(marginal(model, data, t))
            left_open = data - clean @ marginal(model, data, t) @ clean.T
            noise = noise + d @ left_open @ d.T
        p = reals(g @ p @ g.T + noise)
        shift = g @ shift
    return shift, p


def multistep_covariance(
    model: Reference, data: np.ndarray, times: Sequence[int], second_moments: bool = False
) -> np.ndarray:
    """Covariance of x_0 of the second-order sampler: x and the last prediction as maps of the same normals.

    Args:
        second_moments: add a_s² P Cov[R_s x_0 | x_t] P at a change of size, P the projection onto what it adds
    """
    x = function_of(marginal(model, data, times[-1]), REAL.sqrt)
    lam = {t: REAL.log(real(model.alpha[t]) / real(model.sigma[t])) for t in times}
    previous, u = None, None
    for s, t in reversed(list(pairwise([0, *times]))):
        w, b = prediction(model, data, s, t), model.gain(s, t, 0)
        own = w @ x
        used = own
        if u is not None and previous is not None and s > 0:
            if not model.changes(s, t) and not model.changes(t, u):
                used = own + (lam[s] - lam[t]) / (2 * (lam[t] - lam[u])) * (own - previous)
            elif not model.changes(t, u):
                left, r, v = svd(model.operator(s, t))
                weight = [(lam[s] - lam[t] - REAL.log(each)) / (2 * (lam[t] - lam[u])) for each in r]
                gap = v.T @ own - (left / r).T @ previous
                used = own + (v * np.array(weight, dtype=object)) @ gap
            elif not model.changes(s, t):
                _, r, v = svd(model.operator(t, u))
                weight = [(lam[s] - lam[t]) / (2 * (lam[t] - lam[u] - REAL.log(each))) for each in r]
                used = own + (v * np.array(weight, dtype=object)) @ (v.T @ (own - previous))
        moved = model.alpha[s] * used + b @ (x - model.alpha[t] * model.operator(s, t) @ used)
        noise = reals(model.sigma[s] ** 2 * eye(len(b)) - model.sigma[t] ** 2 * b @ b.T)
        if s > 0 and model.changes(s, t):
            if second_moments:
                added = noise / model.sigma[s] ** 2
                clean = model.operator(0, s) @ data @ model.operator(0, s).T
                left_open = clean - w @ marginal(model, data, t) @ w.T
                noise = reals(noise + model.alpha[s] ** 2 * added @ left_open @ added)
            root = function_of(noise, REAL.sqrt)
            moved = np.concatenate([moved, root], axis=1)
            own = np.concatenate([own, zeros(*root.shape)], axis=1)
        x, previous, u = moved, own, t
    return x @ x.T


def frechet(shift: np.ndarray, p: np.ndarray, data: np.ndarray) -> Any:
    """Squared 2-Wasserstein distance of N(shift, P) and N(0, C)."""
    root = function_of(data, REAL.sqrt)
    overlap = function_of(root @ reals(p) @ root, REAL.sqrt)
    return sum(x * x for x in reals(shift)) + real(np.trace(data)) + real(np.trace(p)) - 2 * np.trace(overlap)
