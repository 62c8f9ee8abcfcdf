"""Lanczos iteration for operators that have no decomposition: right, or refused."""

import math

import array_api_compat.numpy
import numpy as np
import pytest

import ssdcore as ssd
from ssdcore.spectral import LANCZOS_MAX_STEPS, lanczos_function

EPS = np.finfo(np.float64).eps


def hidden(op: ssd.LinearOperator) -> ssd.Functional:
    """The same operator with its structure out of sight."""
    return ssd.Functional(op, op.T, op.in_shape, op.out_shape)


LARGE = ssd.Resize((72, 64), (36, 32))  # more entries than a dense decomposition is taken of


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).standard_normal((3, 72, 64))


def test_a_large_functional_has_no_decomposition():
    assert hidden(LARGE).decomposition() is None
    with pytest.raises(ValueError, match="too large for a singular value decomposition"):
        hidden(LARGE).singular_values()
    with pytest.raises(ValueError, match="too large for a singular value decomposition"):
        ssd.Covariance.of_modes(hidden(LARGE), 1.0, 1.0)


@pytest.mark.parametrize("f", [lambda e: (1.5 - e) ** 0.5, lambda e: 1 / (0.2 + e)], ids=["root", "inverse"])
def test_lanczos_equals_the_exact_function(noise, f):
    exact = LARGE.gram_function(f, noise)
    error = np.linalg.norm(hidden(LARGE).gram_function(f, noise) - exact) / np.linalg.norm(exact)
    assert error < EPS**0.75


def test_lanczos_in_float32_and_on_the_output_side(noise):
    torch = pytest.importorskip("torch")
    y = torch.as_tensor(noise[:, ::2, ::2].copy(), dtype=torch.float32)
    got = hidden(LARGE).T.gram_function(lambda e: (1.5 - e) ** 0.5, y)
    assert got.dtype == torch.float32
    exact = LARGE.T.gram_function(lambda e: (1.5 - e) ** 0.5, y.double())
    assert float((got - exact).norm() / exact.norm()) < (2**-23) ** 0.75


def test_lanczos_stops_exactly_in_an_invariant_space():
    """Few distinct eigenvalues: the Krylov space closes after as many steps, whatever the size; zero stays zero."""
    projection = ssd.Functional(lambda x: x[..., :2000], lambda y: np.pad(y, [(0, 0)] * (y.ndim - 1) + [(0, 100)]),
                                (2100,), (2000,))  # fmt: skip
    x = np.random.default_rng(1).standard_normal((2, 2100))
    x[1] = 0
    y = projection.gram_function(lambda e: 3 + 2 * e, x)
    np.testing.assert_allclose(y[0], np.where(np.arange(2100) < 2000, 5, 3) * x[0], atol=1e4 * EPS)
    np.testing.assert_array_equal(y[1], 0)
    assert projection.norm() == pytest.approx(1.0, rel=1e3 * EPS)
    assert projection.gram_function(np.sqrt, np.ones((0, 2100))).shape == (0, 2100)


def test_lanczos_refuses_what_it_cannot_reach():
    grid = np.linspace(0, 1, 2100)
    op = ssd.Functional(lambda x: grid * x, lambda y: grid * y, (2100,), (2100,))
    assert op.decomposition() is None
    with pytest.raises(
        ssd.ConvergenceError,
        match=rf"stopped after {LANCZOS_MAX_STEPS} steps .* above the tolerance .*; use a smoother function",
    ):
        op.gram_function(lambda e: 1 / np.sqrt(e + 1e-12), np.ones(2100))


def test_lanczos_norm():
    assert hidden(LARGE).norm() == pytest.approx(LARGE.norm(), rel=EPS**0.5)
    zero = ssd.Functional(lambda x: 0 * x, lambda y: 0 * y, (2100,), (2100,))
    assert zero.norm() == 0.0
    crowded = np.cos(np.linspace(0, 0.3, 2100))  # the top of the spectrum is a continuum
    op = ssd.Functional(lambda x: crowded * x, lambda y: crowded * y, (2100,), (2100,))
    with pytest.raises(ssd.ConvergenceError, match="largest singular value is known only to a relative"):
        op.norm()


def test_posterior_and_transition_of_a_large_unstructured_operator(noise):
    noise_schedule = ssd.NoiseSchedule.linear(50)
    ops = [None] * 50
    ops[24] = hidden(LARGE)
    proc = ssd.LinearDiffusion.from_operators(ops, noise_schedule)
    ops[24] = LARGE
    exact = ssd.LinearDiffusion.from_operators(ops, noise_schedule)
    rng = np.random.default_rng(2)
    x_t = rng.standard_normal((3, 36, 32))
    for s, t in ((24, 25), (20, 30)):
        g, e = proc.posterior(x_t, noise, s, t), exact.posterior(x_t, noise, s, t)
        np.testing.assert_allclose(g.mean, e.mean, atol=1e3 * EPS)
        np.testing.assert_allclose(g.sample(noise), e.sample(noise), atol=1e-9)
        g, e = proc.transition(noise, s, t), exact.transition(noise, s, t)
        np.testing.assert_allclose(g.covariance(x_t), e.covariance(x_t), atol=1e-9)
    with pytest.raises(ValueError, match="eta < 1 needs the singular vectors"):
        proc.posterior(x_t, noise, 24, 25, eta=0.5)
    with pytest.raises(ValueError, match="log-determinant needs the whole spectrum"):
        g.log_prob(x_t)
    with pytest.raises(ValueError, match="too large to build"):
        g.covariance.as_matrix()


def test_a_dense_decomposition_has_the_right_complement():
    """Fewer rows than columns, flattened axes: f(0) acts on everything that the rows do not see."""
    a = np.random.default_rng(3).standard_normal((5, 12))
    op = ssd.Matrix(a, in_shape=(3, 4))
    x = np.random.default_rng(4).standard_normal((2, 3, 4))
    values, vectors = np.linalg.eigh(a.T @ a)
    expected = vectors @ (np.exp(-np.maximum(values, 0))[:, None] * (vectors.T @ x.reshape(2, 12).T))
    np.testing.assert_allclose(
        op.gram_function(lambda e: np.exp(-e), x).reshape(2, 12), expected.T, atol=12 * 12 * 16 * EPS * math.sqrt(24)
    )


def test_lanczos_keeps_the_digits_of_a_nearly_destroyed_mode():
    """√(1 − ρ λ) where ρ λ is nearly 1 for the top mode, in float32: T, the small matrix, is worked with in float64."""
    matrix = ssd.Resize((64,), (32,)).as_matrix()
    values, vectors = np.linalg.eigh(matrix.T @ matrix)
    noise = ssd.NoiseSchedule.linear(100_000)
    s, t = 49_999, 50_000
    ratio = (noise.sigma[s] * noise.alpha[t] / noise.sigma[t] / noise.alpha[s]) ** 2
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    small = matrix.astype(np.float32)

    def root(eigenvalues):
        return np.sqrt(np.maximum(1 - ratio * eigenvalues / values.max(), 0))

    got = lanczos_function(array_api_compat.numpy, lambda v: (v @ small.T) @ small, root, x, (64,), "op")
    exact = x.astype(np.float64) @ (vectors * root(values)) @ vectors.T
    assert got.dtype == np.float32
    top = vectors[:, -1]
    assert np.abs(got @ top - exact @ top).max() < 1.5e-4 * np.abs(exact @ top).max()  # in float32 it was 2.8e-4
