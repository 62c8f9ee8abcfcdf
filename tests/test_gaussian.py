"""Gaussians with structured covariances against dense linear algebra."""

import math

import numpy as np
import pytest

import ssdcore as ssd

EPS = np.finfo(np.float64).eps


def random_covariance(n, seed, rank=None):
    root = np.random.default_rng(seed).standard_normal((n, rank or 2 * n))
    return root @ root.T / n


def covariances():
    op = ssd.Resize((4, 6), (2, 3))
    wide = ssd.Matrix(np.random.default_rng(5).standard_normal((7, 24)), in_shape=(4, 6))
    s = op.singular_values()
    return {
        "isotropic": ssd.Covariance.isotropic((4, 6), 0.7),
        "dense": ssd.Covariance.dense(random_covariance(24, 0), (4, 6)),
        "cosine": ssd.Covariance.cosine(1 / (1 + np.add.outer(np.arange(4.0), np.arange(6.0)))),
        "modes": ssd.Covariance.of_modes(op, 0.5 + s**2, 0.9),
        "flattened modes": ssd.Covariance.of_modes(wide, np.arange(1.0, 8.0), 0.3),
        "output modes": ssd.Covariance.of_modes(ssd.Resize((8, 12), (4, 6)).T, 0.2, 0.2),
    }


COVARIANCES = covariances()


@pytest.mark.parametrize("name", COVARIANCES)
def test_covariance_agrees_with_its_dense_matrix(name):
    c = COVARIANCES[name]
    dense = c.as_matrix()
    x = np.random.default_rng(1).standard_normal((2, 3, 4, 6))
    flat = x.reshape(6, 24).T
    values, vectors = np.linalg.eigh(dense)
    assert values.min() > 0
    scale = 24 * 24 * 8 * EPS * values.max() * np.abs(flat).max()
    np.testing.assert_allclose(dense, dense.T, atol=scale)
    np.testing.assert_allclose(c(x).reshape(6, 24).T, dense @ flat, atol=scale)
    np.testing.assert_allclose(c.root(c.root(x)), c(x), atol=scale)
    np.testing.assert_allclose(
        c.root(x).reshape(6, 24).T, vectors @ (np.sqrt(values)[:, None] * (vectors.T @ flat)), atol=scale
    )
    np.testing.assert_allclose(c(c.solve(x)), x, atol=scale * values.max() / values.min())
    assert c.log_determinant() == pytest.approx(np.log(values).sum(), abs=24 * 64 * EPS * values.max() / values.min())


@pytest.mark.parametrize("name", COVARIANCES)
def test_log_prob_entropy_and_kl(name):
    c = COVARIANCES[name]
    dense = c.as_matrix()
    rng = np.random.default_rng(2)
    mean, x = rng.standard_normal((2, 4, 6)), rng.standard_normal((2, 4, 6))
    g = ssd.Gaussian(mean, c)
    log_det = np.linalg.slogdet(dense)[1]
    d = (x - mean).reshape(2, 24)
    quadratic = np.einsum("bi,ij,bj->b", d, np.linalg.inv(dense), d)
    expected = -0.5 * (quadratic + log_det + 24 * math.log(2 * math.pi))
    np.testing.assert_allclose(g.log_prob(x), expected, rtol=1e-9)
    assert g.entropy() == pytest.approx(0.5 * (log_det + 24 * math.log(2 * math.pi * math.e)), rel=1e-9)
    for other in COVARIANCES.values():
        q = other.as_matrix()
        got = g.kl(ssd.Gaussian(x, other))
        dq = np.einsum("bi,ij,bj->b", d, np.linalg.inv(q), d)
        kl = 0.5 * (np.trace(np.linalg.solve(q, dense)) + dq - 24 + np.linalg.slogdet(q)[1] - log_det)
        np.testing.assert_allclose(got, kl, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(g.kl(g), 0, atol=1e-10)


def test_sampling_uses_only_the_noise_it_is_given():
    c = COVARIANCES["modes"]
    g = ssd.Gaussian(np.zeros((4, 6)), c)
    noise = np.random.default_rng(3).standard_normal((20_000, 4, 6))
    before = noise.copy()
    x = g.sample(noise)
    np.testing.assert_array_equal(noise, before)
    np.testing.assert_array_equal(x, g.sample(noise))
    empirical = np.cov(x.reshape(-1, 24).T)
    # entries of an empirical covariance of N draws deviate by about sqrt((C_ii C_jj + C_ij²)/N)
    spread = np.sqrt((np.outer(np.diag(c.as_matrix()), np.diag(c.as_matrix())) + c.as_matrix() ** 2) / 20_000)
    assert (np.abs(empirical - c.as_matrix()) < 5 * spread).all()


def test_degenerate_gaussians_sample_but_have_no_density():
    g = ssd.Gaussian(np.ones((2, 3)), ssd.Covariance.isotropic((3,), 0.0))
    np.testing.assert_array_equal(g.sample(np.ones((2, 3))), 1)
    assert g.entropy() == -math.inf
    with pytest.raises(ValueError, match="singular, so there is no density"):
        g.log_prob(np.ones((2, 3)))
    with pytest.raises(ValueError, match="no inverse"):
        ssd.Gaussian(np.ones((2, 3)), ssd.Covariance.isotropic((3,), 1.0)).kl(g)
    low_rank = ssd.Covariance.dense(random_covariance(6, 1, rank=2))
    assert low_rank.log_determinant() == -math.inf


def test_float32_and_float16_are_kept():
    c = COVARIANCES["modes"]
    x = np.random.default_rng(4).standard_normal((2, 4, 6))
    for dtype in (np.float32, np.float16):
        g = ssd.Gaussian(x.astype(dtype), c)
        assert g.sample(x.astype(dtype)).dtype == dtype
        assert g.covariance(x.astype(dtype)).dtype == dtype
        np.testing.assert_allclose(c(x.astype(dtype)), c(x), atol=8 * np.finfo(dtype).eps * np.abs(x).max())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ssd.Covariance.dense(np.diag([1.0, -1.0])), ValueError, "not positive semi-definite, its smallest eigenvalue is -1"),
        (lambda: ssd.Covariance.dense([[1.0, 0.5], [0.0, 1.0]]), ValueError, "not symmetric"),
        (lambda: ssd.Covariance.dense(np.ones((2, 3))), ValueError, "square matrix"),
        (lambda: ssd.Covariance.dense(np.eye(4), (3,)), ValueError, "over 3 elements"),
        (lambda: ssd.Covariance.dense([[math.nan]]), ValueError, "finite"),
        (lambda: ssd.Covariance.cosine([[1.0, -2.0]]), ValueError, r"mode \[0, 1\]"),
        (lambda: ssd.Covariance.isotropic((2,), math.nan), ValueError, "finite"),
        (lambda: ssd.Gaussian(np.ones((2, 3)), ssd.Covariance.isotropic((4,), 1.0)), ValueError, "Gaussian mean: expected trailing axes"),
        (lambda: ssd.Gaussian([1.0], ssd.Covariance.isotropic((1,), 1.0)), TypeError, "got list"),
        (lambda: ssd.Gaussian(np.ones(3), ssd.Covariance.isotropic((3,), 1.0)).sample(np.ones(4)), ValueError, "the noise, shaped like the mean"),
        (lambda: ssd.Gaussian(np.ones(3), ssd.Covariance.isotropic((3,), 1.0)).kl(
            ssd.Gaussian(np.ones(4), ssd.Covariance.isotropic((4,), 1.0))), ValueError, "trailing axes differ"),
        (lambda: ssd.Covariance.isotropic((100, 100), 1.0).as_matrix(), ValueError, "too large to build"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_mixed_namespaces_are_refused():
    torch = pytest.importorskip("torch")
    g = ssd.Gaussian(torch.ones(3, dtype=torch.float64), ssd.Covariance.isotropic((3,), 1.0))
    with pytest.raises(TypeError, match="two namespaces"):
        g.sample(np.ones(3))
    with pytest.raises(TypeError, match="two namespaces"):
        g.log_prob(np.ones(3))


def test_covariances_of_few_bfloat16_samples_are_accepted():
    torch = pytest.importorskip("torch")
    x = torch.tensor(np.random.default_rng(0).standard_normal((5, 40)))
    matrix = x.T @ x / 5
    assert ssd.Covariance.dense(matrix.bfloat16()).shape == (40,)
    with pytest.raises(ValueError, match="not positive semi-definite"):
        ssd.Covariance.dense(matrix.bfloat16().double())


def test_covariances_of_few_float32_samples_are_accepted():
    x = np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32)
    matrix = x.T @ x / np.float32(5)  # of rank 5: rounding leaves eigenvalues below zero
    assert np.linalg.eigvalsh(matrix.astype(np.float64))[0] < -1e-9
    covariance = ssd.Covariance.dense(matrix)
    np.testing.assert_allclose(covariance.as_matrix(), matrix, atol=64 * 40 * 2**-23 * np.abs(matrix).max())
    with pytest.raises(ValueError, match="not positive semi-definite"):
        ssd.Covariance.dense(matrix - np.float32(0.01) * np.eye(40, dtype=np.float32))


def test_a_variance_that_is_zero_but_for_rounding_has_no_density():
    ops = [None, 0.3 * ssd.Identity((2,))]
    noise = ssd.NoiseSchedule([1.0, 0.9, 0.9], [0.0, 0.7, 0.7 * 0.3])
    proc = ssd.LinearDiffusion.from_operators(ops, noise)
    law = proc.transition(np.ones(2), 1, 2)
    with pytest.raises(ValueError, match="no density"):
        law.log_prob(law.mean)


def test_masked_arrays_are_refused():
    with pytest.raises(TypeError, match="lose its mask"):
        ssd.Resize((4,), (2,))(np.ma.masked_array(np.ones(4), [0, 1, 0, 0]))


def test_a_numpy_mean_follows_the_noise():
    torch = pytest.importorskip("torch")
    g = ssd.Gaussian(np.array([1.0, 2.0]), ssd.Covariance.isotropic((2,), 4.0))
    drawn = g.sample(torch.ones(3, 2))
    assert drawn.dtype == torch.float32
    np.testing.assert_array_equal(drawn, [[3.0, 4.0]] * 3)


def test_mixed_devices_are_refused():
    torch = pytest.importorskip("torch")
    g = ssd.Gaussian(torch.ones(3), ssd.Covariance.isotropic((3,), 1.0))
    with pytest.raises(ValueError, match="two devices"):
        g.sample(torch.ones(3, device="meta"))
