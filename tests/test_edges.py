"""Signs, orders and thresholds that a library can have wrong and stay consistent: each test is the death of such a fault."""

from __future__ import annotations

import math

import numpy as np
import pytest

import ssdcore as ssd

EPS = np.finfo(np.float64).eps
NOISE = ssd.NoiseSchedule(np.array([1.0, 0.9, 0.6, 0.3]), np.array([0.0, 0.3, 0.7, 0.9]))
# A rank of 2, so that one mode of (3,) is destroyed and one of the output is never reached.
SINGULAR = np.array([[0.6, 0.2, 0.1], [0.1, -0.5, 0.3], [0.7, -0.3, 0.4]])


def family(matrix: np.ndarray, s: int, t: int, eta: float) -> np.ndarray:
    """B = V diag(b) Uᵀ of theory (12), from numpy's own decomposition of the signed matrix."""
    ratio = NOISE.alpha[t] / NOISE.alpha[s]
    rho = (NOISE.sigma[s] / NOISE.sigma[t]) ** 2
    u, d, vt = np.linalg.svd(ratio * matrix)
    kept = d > 1e-10
    b = np.where(kept, np.sqrt(rho * (1 - eta**2 * (1 - rho * d**2))), 0.0)
    return vt.T @ np.diag(b) @ u.T


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("form", ["matrix", "separable", "resize"])
def test_posterior_of_a_signed_operator_with_destroyed_modes(form: str, sign: float, eta: float) -> None:
    base = {
        "matrix": ssd.Matrix(SINGULAR),
        "separable": ssd.Separable([SINGULAR]),
        "resize": ssd.Resize((3,), (2,), "bicubic"),
    }[form]
    proc = ssd.LinearDiffusion.from_operators([None, sign * base, None], NOISE)
    rng = np.random.default_rng(0)
    x_t, clean = rng.standard_normal(base.out_shape), rng.standard_normal(3)
    law = proc.posterior(x_t, clean, 1, 2, eta=eta)
    matrix = sign * base.as_matrix()
    if form == "resize":
        u, d, vt = np.linalg.svd(matrix * NOISE.alpha[2] / NOISE.alpha[1], full_matrices=False)
        rho = (NOISE.sigma[1] / NOISE.sigma[2]) ** 2
        b = (vt.T * np.sqrt(rho * (1 - eta**2 * (1 - rho * d**2)))) @ u.T
    else:
        b = family(matrix, 1, 2, eta)
    mean = NOISE.alpha[1] * clean + b @ (x_t - NOISE.alpha[2] * matrix @ clean)
    np.testing.assert_allclose(law.mean, mean, atol=256 * EPS)
    covariance = NOISE.sigma[1] ** 2 * np.eye(3) - NOISE.sigma[2] ** 2 * b @ b.T
    np.testing.assert_allclose(law.covariance.as_matrix(), covariance, atol=256 * EPS)


def test_order_of_a_product_of_square_separables() -> None:
    rng = np.random.default_rng(1)
    a, b, c, d = (rng.standard_normal((n, n)) for n in (3, 2, 3, 2))
    product = ssd.Separable([c, d]) @ ssd.Separable([a, b])
    x = rng.standard_normal((3, 2))
    np.testing.assert_allclose(product(x), c @ a @ x @ (d @ b).T, atol=64 * EPS * np.abs(product(x)).max())
    np.testing.assert_allclose(product.T(x), (c @ a).T @ x @ d @ b, atol=64 * EPS * np.abs(product.T(x)).max())


def test_prior_of_data_that_vary_outside_their_modes() -> None:
    """α_T² C + σ_T² I holds for what is orthogonal to the modes of C, too."""
    proc = ssd.LinearDiffusion.identity((4,), NOISE)
    mean = ssd.Matrix(np.full((1, 4), 0.5))  # of norm one: its one mode is the constant
    law = proc.prior(None, ssd.Covariance.of_modes(mean, [3.0], 0.5))
    flat = np.full((4, 4), 0.25)
    data = 3.0 * flat + 0.5 * (np.eye(4) - flat)
    want = NOISE.alpha[3] ** 2 * data + NOISE.sigma[3] ** 2 * np.eye(4)
    np.testing.assert_allclose(law.covariance.as_matrix(), want, atol=16 * EPS)


@pytest.mark.parametrize("below", [1e-2, 1e-6, 1e-10])
def test_a_negative_eigenvalue_is_refused_however_small(below: float) -> None:
    for make in (
        lambda: ssd.Covariance.dense(np.diag([1.0, -below])),
        lambda: ssd.Covariance.cosine([1.0, -below]),
        lambda: ssd.Covariance.of_modes(ssd.Identity((2,)) @ ssd.Matrix(np.eye(2)), [1.0, -below], 0.0),
        lambda: ssd.Covariance.of_modes(ssd.Matrix([[1.0, 0.0]]), [1.0], -below),
    ):
        with pytest.raises(ValueError, match="not positive semi-definite"):
            make()


def test_rounding_below_zero_is_zero() -> None:
    law = ssd.Covariance.dense(np.diag([1.0, -EPS]))
    assert law.log_determinant() == -math.inf
    np.testing.assert_array_equal(law.as_matrix(), np.diag([1.0, 0.0]))


@pytest.mark.parametrize("small", [1e-5, 1e-8, 1e-12])
def test_small_singular_values_and_variances_are_not_zero(small: float) -> None:
    for op in (ssd.Matrix(np.diag([1.0, small])), ssd.Separable([np.diag([1.0, small])])):
        assert sorted(op.singular_values()) == pytest.approx([small, 1.0], rel=1e-12)
        proc = ssd.LinearDiffusion.from_operators([None, op, None], NOISE)
        drawn = proc.posterior(np.zeros(2), np.zeros(2), 1, 2, eta=0.0).covariance.as_matrix()
        np.testing.assert_allclose(drawn, 0.0, atol=16 * EPS)  # every mode is kept, so nothing is drawn
    assert ssd.Covariance.dense(np.diag([1.0, small])).log_determinant() == pytest.approx(math.log(small), rel=1e-12)


def test_singular_values_that_are_zero_are_exactly_zero() -> None:
    """So that eta = 0 draws their modes afresh instead of dividing by rounding."""
    matrix = np.outer([0.1, 0.7, 0.3], [0.3, 0.9, 0.2])
    for op in (ssd.Matrix(matrix), ssd.Separable([matrix]), ssd.Matrix(matrix).T):
        assert np.count_nonzero(op.singular_values()) == 1
        proc = ssd.LinearDiffusion.from_operators([None, 0.5 * op, None], NOISE)
        drawn = proc.posterior(np.zeros(3), np.zeros(3), 1, 2, eta=0.0).covariance.as_matrix()
        assert np.trace(drawn) == pytest.approx(2 * NOISE.sigma[1] ** 2, rel=64 * EPS)
    assert ssd.Covariance.dense(np.outer([0.1, 0.7, 0.3], [0.1, 0.7, 0.3])).log_determinant() == -math.inf


@pytest.mark.parametrize("short", [1e-3, 1e-6, 1e-8, 1e-9, 1e-12])
def test_noise_that_is_too_small_is_refused_however_little(short: float) -> None:
    half = ssd.Matrix(0.5 * np.eye(2))
    noise = ssd.NoiseSchedule(np.array([1.0, 1.0, 1.0]), np.array([0.0, 0.5, 0.25 * (1 - short)]))
    with pytest.raises(ssd.InadmissibleProcess, match=r"step 2: .* negative noise"):
        ssd.LinearDiffusion.from_operators([None, half], noise)
    at_s, at_t = ssd.Covariance.isotropic(2, 0.25), ssd.Covariance.isotropic(2, 0.0625 * (1 - short))
    dense = ssd.Covariance.dense(0.0625 * (1 - short) * np.eye(2) + 1e-30)
    for law in (at_t, dense):
        with pytest.raises(ssd.InadmissibleProcess):
            ssd.general_transition(np.zeros(2), half, at_s, law)
        with pytest.raises(ssd.InadmissibleProcess):
            ssd.general_posterior(np.zeros(2), np.zeros(2), half, at_s, law)


def test_noise_that_just_suffices_is_a_transition_without_noise() -> None:
    half = ssd.Matrix(0.5 * np.eye(2))
    noise = ssd.NoiseSchedule(np.array([1.0, 1.0, 1.0]), np.array([0.0, 0.5, 0.25]))
    law = ssd.LinearDiffusion.from_operators([None, half], noise).transition(np.ones(2), 1, 2)
    np.testing.assert_array_equal(law.covariance.as_matrix(), np.zeros((2, 2)))
    np.testing.assert_array_equal(law.mean, [0.5, 0.5])


@pytest.mark.parametrize(
    "noise",
    [
        ssd.NoiseSchedule.linear(30),
        ssd.NoiseSchedule(np.ones(4), np.array([0.0, 0.5, 4.0, 60.0])),
        ssd.NoiseSchedule(np.array([1.0, 0.7, 0.4, 0.1]), np.array([0.0, 0.3, 0.6, 0.9])),
        NOISE,
    ],
    ids=["preserving", "exploding", "flow", "neither"],
)
def test_scaled_noise_has_the_ratio_that_was_asked_for(noise: ssd.NoiseSchedule) -> None:
    factors = np.linspace(1.0, 0.25, noise.steps + 1)
    scaled = noise.scaled(factors)
    np.testing.assert_allclose(
        scaled.sigma[1:] / scaled.alpha[1:], factors[1:] * noise.sigma[1:] / noise.alpha[1:], rtol=16 * EPS
    )
    same = noise.scaled(np.ones(noise.steps + 1))
    np.testing.assert_allclose(same.alpha, noise.alpha, rtol=8 * EPS)
    np.testing.assert_allclose(same.sigma, noise.sigma, rtol=8 * EPS)
