"""The numbers of a step between two known times, made once for each pair by `Timeline.kept`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ssdcore._arrays import Constant
from ssdcore._gains import posterior_gains, posterior_share
from ssdcore._second_moments import widened
from ssdcore.gaussian import Covariance, OperatorCovariance, SpectralCovariance
from ssdcore.lifted import Lift
from ssdcore.operators import LinearOperator
from ssdcore.process.timeline import Timeline

# Relative size below which what is left of a variance is rounding.
_ROUNDING = 64 * np.finfo(np.float64).eps


@dataclass(frozen=True, eq=False)
class PosteriorStep:
    """The numbers of `posterior` for one pair of times.

    Attributes:
        operator: R
        lift: what raises the innovation: a `Lift` or a factor of Rᵀ at eta = 1, else weights on the modes of R
    """

    alpha_s: float
    alpha_t: float
    operator: LinearOperator
    lift: Lift | float | Constant
    covariance: Covariance

    def held_bytes(self) -> int:
        """About how much memory it comes to hold: other weights are as many as those of `covariance`."""
        weights = self.lift if isinstance(self.lift, Lift) else self.covariance
        return self.operator.held_bytes() + self.covariance.held_bytes() + weights.held_bytes()


def _covariance(operator: LinearOperator, values: Any, rest: float) -> Covariance:
    """`values`(eigenvalues of OᵀO) in the operator's input modes, `rest` elsewhere."""
    decomposition = operator.decomposition()
    if decomposition is None:
        return OperatorCovariance(operator, values)
    variances = values(decomposition.singular_values**2)
    # What is zero but for rounding is zero: such a law is a point in these modes, and has no density.
    variances = np.where(variances <= _ROUNDING * rest, 0.0, variances)
    return Covariance.of_modes(operator, variances, rest)


def marginal(proc: Timeline, t: int) -> tuple[LinearOperator, Covariance]:
    """(M, covariance) of q(x_t | x_0)."""
    operator = proc.degradation(0, t) if t else proc.operator(0, 0)
    return operator, Covariance.isotropic(proc.shape(t), proc.sigma(t) ** 2)


def transition(proc: Timeline, s: int, t: int) -> tuple[LinearOperator, Covariance]:
    """(M, covariance) of q(x_t | x_s)."""
    variance_s, variance_t = proc.sigma(s) ** 2, proc.sigma(t) ** 2
    operator = proc.degradation(s, t)
    return operator, _covariance(operator.T, lambda m2: variance_t - variance_s * m2, variance_t)


def posterior(proc: Timeline, s: int, t: int, eta: float) -> PosteriorStep:
    """What the mean and covariance of q(x_s | x_t, x_0) are made of."""
    alphas = proc.alpha(s), proc.alpha(t)
    unscaled, ratio = proc.operator(s, t), proc.signal_ratio(s, t)
    sigma_s, sigma_t = proc.sigma(s), proc.sigma(t)
    rho = (sigma_s / sigma_t) ** 2
    if eta == 1:
        covariance = _covariance(ratio * unscaled, lambda m2: sigma_s**2 * (1 - rho * m2), sigma_s**2)
        unscaled.precompute()
        lift = Lift.of(unscaled, sigma_s, ratio, rho)
        return PosteriorStep(*alphas, unscaled, rho * ratio if lift is None else lift, covariance)
    unscaled.prepare_spectrum()
    decomposition = unscaled.decomposition()
    if decomposition is None:
        if unscaled.learns():
            raise ValueError(
                f"posterior: eta < 1 needs the singular vectors of {unscaled}, which are not kept while its "
                "weights learn; use eta = 1, or weights that need no gradient"
            )
        raise ValueError(
            f"posterior: eta < 1 needs the singular vectors of {unscaled}, which is too large for a "
            "decomposition; use eta = 1, or an operator with structure (Separable, Blur, a smaller Matrix)"
        )
    kept = decomposition.singular_values > 0
    share = np.where(kept, posterior_share(eta, rho, (ratio * decomposition.singular_values) ** 2), 0.0)
    weights = Constant((sigma_s / sigma_t) * np.sqrt(np.maximum(share, 0.0)))
    covariance = Covariance.of_modes(unscaled, np.maximum(sigma_s**2 * (1 - share), 0.0), sigma_s**2)
    return PosteriorStep(*alphas, unscaled, weights, covariance)


def widened_posterior(proc: Timeline, s: int, t: int, eta: float, clean_covariance: Covariance) -> Covariance:
    """The covariance of `posterior` with D C Dᵀ added."""
    if clean_covariance.shape != proc.shape(s):
        raise ValueError(
            f"posterior: clean_covariance: expected a Covariance over {proc.shape(s)}, the shape at s = {s}, got "
            f"{clean_covariance.shape}"
        )
    levels = proc.alpha(s), proc.sigma(s), proc.alpha(t), proc.sigma(t)

    def gain(r: np.ndarray) -> np.ndarray:
        alpha_s, sigma_s, alpha_t, sigma_t = map(np.asarray, levels)
        b, _ = posterior_gains(np, eta, alpha_s, sigma_s, alpha_t, sigma_t, r)
        return np.asarray(levels[0] - levels[2] * b * r)

    covariance = proc.kept(posterior, s, t, eta).covariance
    return widened(covariance, proc.operator(s, t), levels[0], gain, clean_covariance)


def prior_covariance(proc: Timeline, covariance: SpectralCovariance) -> Covariance:
    """α_T² C + σ_T² I."""
    return covariance.affine(proc.alpha(proc.steps) ** 2, proc.sigma(proc.steps) ** 2)


def zero(proc: Timeline, t: int) -> Constant:
    """A state at t of zeros."""
    return Constant(np.zeros(proc.shape(t)))
