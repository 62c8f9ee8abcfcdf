"""The numbers of a step t → s of `LinearDiffusion.posterior`, singular value by singular value: one formula for all."""

from __future__ import annotations

from typing import Any

from ssdcore._arrays import Array, Namespace


def posterior_share(eta: float, rho: Any, squared: Any) -> Any:
    """Share 1 − η² (1 − ρ m²) of σ_s² that `LinearDiffusion.posterior` carries over from x_t in a mode that M keeps.

    The posterior's innovation gain is b = (σ_s/σ_t) √share there and its variance σ_s² (1 − share).

    Args:
        squared: m², the squared singular value of M, > 0
        rho: σ_s²/σ_t²
    """
    return (1 - eta) * (1 + eta) + eta**2 * (rho * squared)


def signal_ratio(xp: Namespace, alpha_s: Array, alpha_t: Array) -> Array:
    """α_t/α_s; 0 where no signal is left at s, and so none at t."""
    positive = xp.where(alpha_s > 0, alpha_s, xp.ones_like(alpha_s))
    ratio = alpha_t / positive
    return xp.where(alpha_s > 0, ratio, xp.zeros_like(ratio))


def posterior_gains(
    xp: Namespace, eta: float, alpha_s: Array, sigma_s: Array, alpha_t: Array, sigma_t: Array, r: Array
) -> tuple[Array, Array]:
    """(b, v) in the modes of R with singular values r >= 0: innovation gain, and noise variance σ_s² − σ_t² b².

    Arrays of `xp` that broadcast. b jumps where r reaches 0 unless eta = 1, v with it.
    """
    rho, ratio = (sigma_s / sigma_t) ** 2, signal_ratio(xp, alpha_s, alpha_t)
    noise = xp.clip(1 - rho * (ratio * r) ** 2, 0.0, None)  # below zero by rounding alone
    if eta == 1:
        return rho * ratio * r, sigma_s**2 * noise
    share = posterior_share(eta, rho, (ratio * r) ** 2)
    kept = r > 0
    gain = (sigma_s / sigma_t) * xp.sqrt(xp.clip(share, 0.0, 1.0))
    return xp.where(kept, gain, xp.zeros_like(gain)), sigma_s**2 * xp.where(kept, eta**2 * noise, xp.ones_like(noise))


def innovation_gain(xp: Namespace, eta: float, alpha_s: Any, sigma_s: Any, alpha_t: Any, sigma_t: Any) -> Array:
    """b of a step that keeps the degradation: `posterior_gains` at r = 1."""
    levels = [xp.asarray(level) for level in (alpha_s, sigma_s, alpha_t, sigma_t)]
    return posterior_gains(xp, eta, levels[0], levels[1], levels[2], levels[3], xp.ones_like(levels[0]))[0]
