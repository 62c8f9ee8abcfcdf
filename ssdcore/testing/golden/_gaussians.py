"""Golden rows of Gaussians, of covariances in every form, and of theorems 1 and 2 for any covariances."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ssdcore.conditioning import InadmissibleProcess, general_posterior, general_transition
from ssdcore.gaussian import Covariance, Gaussian
from ssdcore.operators import Identity, Matrix, Resize, Separable
from ssdcore.testing._report import Measurement
from ssdcore.testing.golden._exact import (
    REAL,
    agree,
    determinant,
    eye,
    floats,
    function_of,
    holds,
    integers,
    inverse,
    kron,
    real,
    reals,
    refuses,
    svd,
)
from ssdcore.testing.golden._operators import cosine_mode, resize_matrix

_HALF = REAL.mpf(1) / 2


def covariances_of_four() -> list[tuple[str, Covariance, np.ndarray]]:
    """Covariances over (2, 2), each with its exact matrix."""
    factor = integers(4, 4, seed=3) / 4
    dense = factor @ factor.T + eye(4)
    spectrum = reals([["3", "2"], ["1", "1/2"]])
    modes = kron(*(np.stack([cosine_mode(2, k) for k in range(2)], axis=1) for _ in range(2)))
    cosine = (modes * spectrum.ravel()) @ modes.T
    mean = Separable([np.array([[0.5, 0.5]])] * 2)
    average = reals(np.full((4, 4), 0.25))
    split = 5 * average + _HALF**2 * (eye(4) - average)
    return [
        ("isotropic", Covariance.isotropic((2, 2), 0.75), 0.75 * eye(4)),
        ("dense", Covariance.dense(floats(dense), (2, 2)), dense),
        ("cosine", Covariance.cosine(floats(spectrum)), cosine),
        ("of modes, with a rest", Covariance.of_modes(mean, [[5.0]], 0.25), split),
    ]


def _quadratic(matrix: np.ndarray, x: np.ndarray) -> Any:
    return x @ inverse(matrix) @ x


def covariances(_: Any) -> Iterator[Measurement]:
    x = integers(2, 2, seed=6)
    flat = x.reshape(-1)
    for name, law, matrix in covariances_of_four():
        yield from agree(f"{name}: as a matrix", law.as_matrix(), matrix, 16)
        yield from agree(f"{name}: C x", law(floats(x)).ravel(), matrix @ flat, 16)
        yield from agree(f"{name}: C^½ x", law.root(floats(x)).ravel(), function_of(matrix, REAL.sqrt) @ flat, 64)
        yield from agree(f"{name}: C⁻¹ x", law.solve(floats(x)).ravel(), inverse(matrix) @ flat, 4096)
        yield from agree(f"{name}: log det C", law.log_determinant(), REAL.log(real(determinant(matrix))), 64)
    # small is not zero, and zero is zero
    small = Covariance.dense([[1.0, 0.0], [0.0, 2.0**-40]])
    yield from agree("log det of 1 and 2⁻⁴⁰", small.log_determinant(), -40 * REAL.log(2), 8)
    flat_law = Covariance.dense(np.outer([0.1, 0.7, 0.3], [0.1, 0.7, 0.3]))
    yield from holds("rank one is singular", flat_law.log_determinant() == -math.inf)
    singular = Gaussian(np.zeros(2), Covariance.dense([[1.0, 0.0], [0.0, 0.0]]))
    for what, call in (
        ("the density of a point mass", lambda: singular.log_prob(np.zeros(2))),
        ("a singular inverse", lambda: singular.covariance.solve(np.ones(2))),
        ("a divergence from a point mass", lambda: Gaussian(np.zeros(2), Covariance.isotropic(2, 1.0)).kl(singular)),
        ("a covariance with the eigenvalue −1e-6", lambda: Covariance.dense(np.diag([1.0, -1e-6]))),
        ("a covariance with the eigenvalue −1e-10", lambda: Covariance.dense(np.diag([1.0, -1e-10]))),
        ("a negative variance of a mode", lambda: Covariance.cosine([1.0, -1e-10])),
        ("a negative variance", lambda: Covariance.isotropic(2, -1e-10)),
        ("a matrix that is not symmetric", lambda: Covariance.dense([[1.0, 1e-9], [0.0, 1.0]])),
    ):
        yield from refuses(what, ValueError, call)


def densities(_: Any) -> Iterator[Measurement]:
    laws = covariances_of_four()
    means = [integers(2, 2, seed=k) / 4 for k in range(len(laws))]
    x, noise = integers(3, 2, 2, seed=9) / 2, integers(2, 2, seed=8)
    for k, (name, law, matrix) in enumerate(laws):
        g = Gaussian(floats(means[k]), law)
        log_det = REAL.log(real(determinant(matrix)))
        constant = 4 * REAL.log(2 * REAL.pi) + log_det
        want = [-(real(_quadratic(matrix, (y - means[k]).reshape(-1))) + constant) / 2 for y in x]
        yield from agree(f"{name}: log density", g.log_prob(floats(x)), want, 256)
        yield from agree(f"{name}: entropy", g.entropy(), (4 * REAL.log(2 * REAL.pi * REAL.e) + log_det) / 2, 64)
        drawn = means[k].reshape(-1) + function_of(matrix, REAL.sqrt) @ noise.reshape(-1)
        yield from agree(f"{name}: a draw", g.sample(floats(noise)).ravel(), drawn, 64)
        for j, (other, law_j, matrix_j) in enumerate(laws):
            gap = (means[k] - means[j]).reshape(-1)
            logs = REAL.log(real(determinant(matrix_j))) - log_det
            trace = real(np.trace(inverse(matrix_j) @ matrix))
            want_kl = (trace - 4 + logs + real(_quadratic(matrix_j, gap))) / 2
            got = g.kl(Gaussian(floats(means[j]), law_j))
            yield from agree(f"kl({name} ‖ {other})", got, want_kl, 4096)


def _general(matrix: np.ndarray, sigma_s: np.ndarray, sigma_t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(Σ_t|s, gain, Σ) of theorems 1 and 2."""
    gain = sigma_s @ matrix.T @ inverse(sigma_t)
    return sigma_t - matrix @ sigma_s @ matrix.T, gain, sigma_s - gain @ matrix @ sigma_s


def theorems(_: Any) -> Iterator[Measurement]:
    """Theorems 1 and 2 against exact conditioning: dense covariances, isotropic ones, and the operator's own modes."""
    m = reals([["1/2", "1/4", "0"], ["0", "-1/4", "1/2"]])
    factor = integers(3, 3, seed=5) / 8
    sigma_s = factor @ factor.T + eye(3) / 2
    extra = reals([["1/2", "1/8"], ["1/8", "1/4"]])
    sigma_t = m @ sigma_s @ m.T + extra
    u, d, v = svd(m)
    in_modes_s = np.array([REAL.mpf(1), REAL.mpf(1) / 2], dtype=object)
    in_modes_t = in_modes_s * d**2 + _HALF
    own_s = (v * in_modes_s) @ v.T + real("1/8") * (eye(3) - v @ v.T)
    own_t = (u * in_modes_t) @ u.T
    op = Matrix(floats(m))
    halving = kron(resize_matrix(4, 2, "bilinear"), resize_matrix(2, 1, "bilinear"))
    resize = Resize((4, 2), (2, 1))
    dense = (Covariance.dense(floats(sigma_s)), Covariance.dense(floats(sigma_t)))
    own = (
        Covariance.of_modes(op, _in_order(op, d, in_modes_s), 0.125),
        Covariance.of_modes(op.T, _in_order(op, d, in_modes_t), 0.0),
    )
    round_s, round_t = Covariance.isotropic(3, 0.25), Covariance.isotropic(2, 0.75)
    even = (_HALF**2 * eye(3), 0.75 * eye(2))
    cases: list[tuple[str, Any, np.ndarray, tuple[Covariance, Covariance], tuple[np.ndarray, np.ndarray]]] = [
        ("dense", op, m, dense, (sigma_s, sigma_t)),
        ("isotropic", op, m, (round_s, round_t), even),
        ("isotropic, dense at t", op, m, (round_s, Covariance.dense(floats(even[1]))), even),
        ("its own modes", op, m, own, (own_s, own_t)),
        ("negative, its own modes", -1.0 * op, -m, own, (own_s, own_t)),
        ("negative, isotropic", -1.0 * op, -m, (round_s, round_t), even),
        ("its own modes, dense at t", op, m, (own[0], Covariance.dense(floats(own_t))), (own_s, own_t)),
        (
            "resize",
            resize,
            halving,
            (Covariance.isotropic((4, 2), 0.25), Covariance.isotropic((2, 1), 0.75)),
            (_HALF**2 * eye(8), 0.75 * eye(2)),
        ),
        ("square", Identity((2,)), eye(2), (Covariance.isotropic(2, 0.25), round_t), (_HALF**2 * eye(2), even[1])),
    ]
    for what, operator, matrix, laws, (a, b) in cases:
        noise, gain, posterior = _general(matrix, a, b)
        x_s, x_t, mean = (integers(matrix.shape[i], seed=k) for i, k in ((1, 1), (0, 2), (1, 3)))
        shape_s, shape_t = operator.in_shape, operator.out_shape
        forward = general_transition(floats(x_s).reshape(shape_s), operator, *laws)
        yield from agree(f"{what}: transition mean", forward.mean.ravel(), matrix @ x_s, 16)
        yield from agree(f"{what}: transition covariance", forward.covariance.as_matrix(), noise, 64)
        back = general_posterior(floats(x_t).reshape(shape_t), floats(mean).reshape(shape_s), operator, *laws)
        yield from agree(f"{what}: posterior mean", back.mean.ravel(), mean + gain @ (x_t - matrix @ mean), 256)
        yield from agree(f"{what}: posterior covariance", back.covariance.as_matrix(), posterior, 256)
    small = Covariance.dense(floats(m @ sigma_s @ m.T - extra / 10**9))
    one, enough = Covariance.isotropic(3, 1.0), float(svd(m)[1][0]) ** 2
    for what, call in (
        ("a dense Σ_t too small by 1e-9", lambda: general_transition(np.zeros(3), op, dense[0], small)),
        ("the same, backwards", lambda: general_posterior(np.zeros(2), np.zeros(3), op, dense[0], small)),
        (
            "an isotropic Σ_t too small by 1e-9",
            lambda: general_transition(np.zeros(3), op, one, Covariance.isotropic(2, enough * (1 - 1e-9))),
        ),
    ):
        yield from refuses(what, InadmissibleProcess, call)
    exactly = general_transition(np.zeros(3), op, one, Covariance.isotropic(2, enough * (1 + 1e-13)))
    yield from holds("an isotropic Σ_t that just suffices is accepted", exactly.covariance.shape == (2,))


def _in_order(op: Matrix, d: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values that belong to the singular values d, in the order in which the operator lists its own."""
    return np.array([float(values[int(np.argmin(np.abs(floats(d) - s)))]) for s in op.singular_values()])
