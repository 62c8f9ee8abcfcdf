"""Theorems 1 and 2 for any marginal covariances: the transition and the posterior of x_t = M x_s + noise."""

from __future__ import annotations

import numpy as np

from ssdcore._arrays import (
    Array,
    Constant,
    cast,
    check_same_backend,
    check_trailing,
    computing_dtype,
    flushing,
    full_precision,
    real_namespace,
)
from ssdcore.gaussian import Covariance, Gaussian, SpectralCovariance
from ssdcore.operators import LinearOperator, Matrix

_ROUNDING = 64 * np.finfo(np.float64).eps


class InadmissibleProcess(ValueError):
    """The marginals asked for would need a transition with negative noise: Σ_t − M Σ_s Mᵀ is not a covariance.

    >>> ops = [None, 2.0 * ssd.Identity((8,))]
    >>> ssd.LinearDiffusion.from_operators(ops, ssd.NoiseSchedule.from_log_snr([0.0, -1.0]))
    Traceback (most recent call last):
    ssdcore.conditioning.InadmissibleProcess: step 2: the transition would need negative noise: ...
    """


@flushing
def general_transition(
    x_s: Array, operator: LinearOperator, covariance_s: Covariance, covariance_t: Covariance
) -> Gaussian:
    """q(x_t | x_s) of the linear process whose marginal covariances are Σ_s and Σ_t (theorem 1 of the paper).

    ::

        mean = M x_s,   covariance = Σ_t − M Σ_s Mᵀ

    Exact and fast where both covariances are isotropic or diagonal in the operator's modes (`Covariance.of_modes`);
    otherwise through dense matrices. Raises InadmissibleProcess, with the eigenvalue, if the difference is not
    positive semi-definite.

    Args:
        x_s: ``(*batch, *operator.in_shape)``
        covariance_s, covariance_t: over operator.in_shape and operator.out_shape
    """
    _check_shapes(operator, covariance_s, covariance_t)
    spectral = _in_operator_modes(operator, covariance_s, covariance_t)
    if spectral is not None:
        s, (p, _), (q, q_rest) = spectral
        values = q - p * s**2
        _check_admissible(float(values.min()), float(np.broadcast_to(q, values.shape).max()))
        return Gaussian(operator(x_s), Covariance.of_modes(operator.T, np.maximum(values, 0.0), q_rest))
    m, sigma_s, sigma_t = operator.as_matrix(), covariance_s.as_matrix(), covariance_t.as_matrix()
    difference = sigma_t - m @ sigma_s @ m.T
    difference = (difference + difference.T) / 2
    least = float(np.linalg.eigvalsh(difference)[0])
    scale = float(np.abs(sigma_t).max())
    _check_admissible(least, len(difference) * scale)
    if least < 0:
        difference = difference + (-least) * np.eye(len(difference))  # rounding only, checked above
    return Gaussian(operator(x_s), Covariance.dense(difference, operator.out_shape))


@flushing
def general_posterior(
    x_t: Array, mean_s: Array, operator: LinearOperator, covariance_s: Covariance, covariance_t: Covariance
) -> Gaussian:
    """q(x_s | x_t, x_0) for marginals N(μ_s, Σ_s) and N(M μ_s, Σ_t) (theorem 2 of the paper).

    ::

        mean = μ_s + K (x_t − M μ_s),   covariance = Σ_s − K M Σ_s,   K = Σ_s Mᵀ Σ_t⁻¹

    This form conditions the joint Gaussian and needs no inverse of Σ_s or of the transition's covariance.

    Fast where both covariances are isotropic or diagonal in the operator's modes, otherwise through dense matrices.

    Args:
        x_t: ``(*batch, *operator.out_shape)``
        mean_s: ``(*batch, *operator.in_shape)``, the marginal mean a_s R_s x_0

    Raises:
        InadmissibleProcess: If no such process exists.
        ValueError: If Σ_t is singular.
    """
    _check_shapes(operator, covariance_s, covariance_t)
    check_same_backend(x_t, mean_s, "general_posterior")
    check_trailing(x_t, operator.out_shape, "general_posterior: x_t")
    xp = real_namespace(x_t, "general_posterior")
    if covariance_t.log_determinant() == -np.inf:
        raise ValueError("general_posterior: the marginal covariance at time t is singular")
    dtype = computing_dtype(xp, x_t.dtype)
    centre = cast(xp, mean_s, dtype)
    innovation = cast(xp, x_t, dtype) - operator(centre)
    spectral = _in_operator_modes(operator, covariance_s, covariance_t)
    if spectral is not None:
        s, (p, p_rest), (q, _) = spectral
        _check_admissible(float((q - p * s**2).min()), float(np.max(q)))
        decomposition = operator.decomposition()
        assert decomposition is not None  # what _in_operator_modes found it in
        with full_precision(x_t):
            raised = decomposition.lift(xp, innovation, Constant(p * s / q).like(xp, innovation))
        mean = cast(xp, centre + raised, x_t.dtype)
        return Gaussian(mean, Covariance.of_modes(operator, np.maximum(p - p**2 * s**2 / q, 0.0), p_rest))
    m, sigma_s, sigma_t = operator.as_matrix(), covariance_s.as_matrix(), covariance_t.as_matrix()
    _check_admissible(
        float(np.linalg.eigvalsh(sigma_t - m @ sigma_s @ m.T)[0]), len(sigma_t) * float(np.abs(sigma_t).max())
    )
    gain_matrix = np.linalg.solve(sigma_t, m @ sigma_s).T
    posterior = sigma_s - gain_matrix @ m @ sigma_s
    posterior = (posterior + posterior.T) / 2
    least = float(np.linalg.eigvalsh(posterior)[0])
    if least < 0:
        posterior = posterior + (-least) * np.eye(len(posterior))  # rounding: the joint Gaussian is admissible
    gain_operator = Matrix(gain_matrix, operator.out_shape, operator.in_shape)
    mean = cast(xp, centre + gain_operator(innovation), x_t.dtype)
    return Gaussian(mean, Covariance.dense(posterior, operator.in_shape))


def _check_shapes(operator: LinearOperator, covariance_s: Covariance, covariance_t: Covariance) -> None:
    for name, covariance, shape in (
        ("s", covariance_s, operator.in_shape),
        ("t", covariance_t, operator.out_shape),
    ):
        if covariance.shape != shape:
            raise ValueError(
                f"{operator}: the covariance at time {name} is over the trailing axes {covariance.shape}, "
                f"expected {shape}"
            )


def _check_admissible(least: float, scale: float) -> None:
    if least < -_ROUNDING * scale:
        raise InadmissibleProcess(
            f"the transition would need negative noise: Σ_t − M Σ_s Mᵀ has the eigenvalue {least:.6g}; "
            "raise Σ_t, lower Σ_s, or weaken the operator"
        )


_Diagonal = tuple[np.ndarray, float]


def _in_operator_modes(
    operator: LinearOperator, covariance_s: Covariance, covariance_t: Covariance
) -> tuple[np.ndarray, _Diagonal, _Diagonal] | None:
    """(singular values, Σ_s in the input modes, Σ_t in the output modes), or None where one is not diagonal there."""
    if not isinstance(covariance_s, SpectralCovariance) or not isinstance(covariance_t, SpectralCovariance):
        return None
    decomposition = operator.decomposition()
    if decomposition is None:
        return None
    p = covariance_s.in_modes(decomposition.input)
    q = covariance_t.in_modes(decomposition.output)
    if p is None or q is None:
        return None
    return decomposition.singular_values, p, q
