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


# What survived the mutation run (benchmarks/mutation): each test below kills one mutant or more.


def test_sums_and_transposed_products_that_become_one_operator() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((2, 3, 3))
    np.testing.assert_allclose((ssd.Matrix(a) + ssd.Matrix(b)).as_matrix(), a + b, atol=16 * EPS)
    for left, right in ((ssd.Matrix(a).T, ssd.Matrix(b).T), (ssd.Separable([a]).T, ssd.Separable([b]).T)):
        product = left @ right
        np.testing.assert_allclose(product.as_matrix(), a.T @ b.T, atol=64 * EPS)
        np.testing.assert_allclose(product(np.ones(3)), a.T @ b.T @ np.ones(3), atol=64 * EPS)


def test_sparse_matrix_under_several_leading_axes() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    a = np.array([[0.5, 0.0, 2.0], [0.0, 1.0, 0.0]])
    x = np.random.default_rng(3).standard_normal((2, 3, 4, 3))
    np.testing.assert_allclose(ssd.Matrix(sparse.csr_matrix(a))(x), x @ a.T, atol=16 * EPS)


def test_empty_batches_and_large_operators() -> None:
    large = ssd.Functional(lambda v: 0.5 * v, lambda v: 0.5 * v, (2304,), (2304,))
    assert large.gram_function(np.sqrt, np.zeros((0, 2304))).shape == (0, 2304)
    noise = ssd.NoiseSchedule.from_log_snr([1.0, 0.0])
    law = ssd.LinearDiffusion.from_operators([None, large], noise).transition(np.zeros(2304), 1, 2)
    plain = ssd.Gaussian(np.zeros(2304), ssd.Covariance.isotropic(2304, 1.0))
    for p, q in ((law, plain), (plain, law)):
        with pytest.raises(ValueError, match="too large"):
            p.kl(q)


def test_a_step_without_noise_is_a_schedule() -> None:
    noise = ssd.NoiseSchedule.from_betas([0.5, 0.0])
    assert noise.alpha[1] == noise.alpha[2] == pytest.approx(math.sqrt(0.5), rel=4 * EPS)
    with pytest.raises(ValueError, match="must not rise"):
        ssd.NoiseSchedule.from_log_snr([3.0, 1.0, 2.0])


def test_a_size_that_changes_at_the_first_step() -> None:
    levels = ssd.ResolutionSchedule.thresholds([1])
    proc = ssd.LinearDiffusion.resize((4,), ssd.NoiseSchedule.from_log_snr([1.0, 0.0]), levels)
    assert proc.degrade(np.ones(4), 1).shape == (2,)
    with pytest.raises(ValueError, match="4"):
        proc.degrade(np.ones(2), 1)
    assert ssd.oracle.sampler_error(proc, np.eye(4)) > 0
    with pytest.raises(ValueError, match="covariance"):
        ssd.oracle.sampler_error(proc, np.eye(2))


def test_mean_of_the_second_order_sampler() -> None:
    """A single step extrapolates nothing, so both orders give one law, its mean with it."""
    proc = ssd.LinearDiffusion.identity((3,), ssd.NoiseSchedule.from_log_snr([1.0, 0.0]))
    prior = ssd.Gaussian(np.array([1.0, -2.0, 0.5]), ssd.Covariance.isotropic(3, 1.0))
    laws = [ssd.oracle.sampler_law(proc, np.eye(3), (2,), 0.0, order=k, prior=prior) for k in (1, 2)]
    np.testing.assert_allclose(laws[0].mean, laws[1].mean, atol=16 * EPS)
    assert np.abs(laws[0].mean).max() > 0.1


def test_covariance_of_samples_whose_blocks_are_of_several_kinds() -> None:
    """Cosine data under a resize: some blocks are single modes, some couple two."""
    spectrum = 1 / (1 + np.arange(5.0)) ** 2
    levels = ssd.ResolutionSchedule.thresholds([2])
    proc = ssd.LinearDiffusion.resize((5,), ssd.NoiseSchedule.from_log_snr([1.0, 0.0, -2.0]), levels)
    cosine = ssd.Covariance.cosine(spectrum)
    fast = ssd.oracle.sampler_law(proc, cosine).covariance.as_matrix()
    slow = ssd.oracle.sampler_law(proc, cosine.as_matrix()).covariance.as_matrix()
    np.testing.assert_allclose(fast, slow, atol=1e-12)


def test_a_perfect_denoiser_of_one_image_returns_it() -> None:
    proc = ssd.LinearDiffusion.identity((3,), ssd.NoiseSchedule.from_log_snr([1.0, 0.0]))
    denoiser = ssd.oracle.EmpiricalDenoiser(proc, np.array([[1.0, 2.0, 3.0]]))
    np.testing.assert_allclose(denoiser.posterior_mean(np.zeros((2, 3)), 2, 0), [[1.0, 2.0, 3.0]] * 2)


def test_the_cheapest_start_of_a_level_is_found_at_every_tolerance() -> None:
    noise = ssd.NoiseSchedule.from_log_snr(np.linspace(5, -5, 12))
    law = ssd.Covariance.cosine([1.0, 0.125, 0.015, 0.008])
    times = tuple(range(1, 13))
    full = ssd.oracle.sampler_error(ssd.LinearDiffusion.identity((4,), noise), law, times)
    excess = {}
    for start in times[1:]:
        proc = ssd.LinearDiffusion.resize((4,), noise, ssd.ResolutionSchedule.thresholds([start]))
        excess[start] = ssd.oracle.sampler_error(proc, law, times) / full - 1
    for tolerance in (0.01, 0.03, 0.1, 0.3, 1.0):
        if min(excess.values()) <= tolerance:
            found = ssd.oracle.design_levels((4,), noise, law, 2, 12, tolerance, times=times).levels.starts
            assert found == (min(start for start in excess if excess[start] <= tolerance),)


def test_one_width_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        ssd.LinearDiffusion.blur((4,), ssd.NoiseSchedule.from_log_snr([1.0, 0.0]), [0.0, 1.0, math.inf])


def test_the_image_with_one_value_that_is_not_finite_is_named() -> None:
    images = np.zeros((5, 2, 2))
    images[3, 0, 1] = math.nan
    with pytest.raises(ValueError, match="image 3"):
        ssd.oracle.fit(images)


@pytest.mark.parametrize(("step", "known"), [(4.9, True), (5.1, False)])
def test_extrapolation_at_a_change_stops_where_it_would_magnify_errors(step: float, known: bool) -> None:
    """w = step/(2 gap) up to 2.5 in the modes that the change keeps best; further out, first order."""
    from ssdcore.multistep import extrapolated

    # with matched noise λ_t + log r is that of the base, so the gap is 1 and w = step/2
    base = ssd.NoiseSchedule.from_log_snr([2 * step + 1.0, 2 * step, 0.0, -2.0])
    proc = ssd.LinearDiffusion.resize((4,), base, ssd.ResolutionSchedule.thresholds([3]), kernel="box")
    now, before = np.array([1.0, 2.0, 3.0, 5.0]), np.array([0.5, 0.25])
    used = extrapolated(proc, 2, 3, 4, now, before)
    pairs = np.kron(np.eye(2), np.full((2, 2), 0.5))  # the modes that the change keeps
    gap = pairs @ now - np.repeat(before, 2)
    np.testing.assert_allclose(used, now + (step / 2 if known else 0.0) * gap, atol=1e-11)
