"""Golden rows of operators: kernels, blurs, algebra, norms and spectral functions."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np

from ssdcore.operators import Blur, Functional, Identity, LinearOperator, Matrix, Resize, Separable
from ssdcore.testing._report import Measurement
from ssdcore.testing.golden._exact import (
    REAL,
    agree,
    eye,
    floats,
    function_of,
    holds,
    integers,
    inverse,
    kron,
    real,
    reals,
    square_root,
    svd,
    zeros,
)

_HALF = REAL.mpf(1) / 2
KERNELS = ("box", "bilinear", "bicubic", "lanczos3")
_WIDE = Fraction(5, 2)
_A = Fraction(-1, 2)  # Keys' parameter, which Pillow and torch's antialiased bicubic have as well


def _kernel(name: str, z: Fraction) -> Any:
    d = abs(z)
    if name == "box":
        return Fraction(int(-1 < 2 * z <= 1))  # half-open: a sample on the border counts once
    if name == "bilinear":
        return max(1 - d, Fraction(0))
    if name == "bicubic":
        if d <= 1:
            return (_A + 2) * d**3 - (_A + 3) * d**2 + 1
        return _A * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else Fraction(0)
    return REAL.sinc(REAL.pi * real(d)) * REAL.sinc(REAL.pi * real(d) / 3) if d < 3 else REAL.mpf(0)


@functools.lru_cache(maxsize=64)
def resize_matrix(n: int, m: int, kernel: str) -> np.ndarray:
    """Rows of half-pixel, antialiased resampling from n to m: weights of kernel((j + ½ − c)/stretch), made to sum to
    one, with c = (i + ½) n/m and stretch = max(n/m, 1). Rational for all kernels but lanczos3."""
    stretch = max(Fraction(n, m), Fraction(1))
    matrix = zeros(m, n)
    for i in range(m):
        centre = (i + Fraction(1, 2)) * Fraction(n, m)
        near = range(max(0, math.floor(centre - 3 * stretch)), min(n, math.ceil(centre + 3 * stretch)))
        weights = [_kernel(kernel, (j + Fraction(1, 2) - centre) / stretch) for j in near]
        total = sum(weights)
        for j, weight in zip(near, weights):
            matrix[i, j] = real(weight / total)
    matrix.flags.writeable = False
    return matrix


def kernels(_: Any) -> Iterator[Measurement]:
    for kernel, (n, m) in product(KERNELS, ((8, 4), (7, 3), (11, 6), (17, 10), (9, 8), (3, 5), (6, 6), (5, 1))):
        want = resize_matrix(n, m, kernel)
        op = Resize((n,), (m,), kernel)
        yield from agree(f"{kernel} {n} to {m}: rows", op.as_matrix(), want)
        x = integers(2, n)
        yield from agree(f"{kernel} {n} to {m}: applied", op(floats(x)), x @ want.T, n)
        y = integers(2, m)
        yield from agree(f"{kernel} {n} to {m}: transposed", op.T(floats(y)), y @ want, n)
    down = resize_matrix(4, 2, "bilinear")
    yield from agree("bilinear is the default kernel", Resize((4,), (2,)).as_matrix(), down)
    yield from agree("bilinear 4 to 2 by hand", down, reals([["3/7", "3/7", "1/7", "0"], ["0", "1/7", "3/7", "3/7"]]))


def several_axes(_: Any) -> Iterator[Measurement]:
    for kernel in ("bilinear", "bicubic"):
        x, y = integers(2, 6, 5), integers(2, 3, 2)
        a, b = resize_matrix(6, 3, kernel), resize_matrix(5, 2, kernel)
        op = Resize((6, 5), (3, 2), kernel)
        yield from agree(f"{kernel} (6, 5) to (3, 2)", op(floats(x)), a @ x @ b.T, 30)
        yield from agree(f"{kernel} (6, 5) to (3, 2), transposed", op.T(floats(y)), a.T @ y @ b, 30)
        yield from agree(f"{kernel} (6, 5) to (3, 2) as a matrix", op.as_matrix(), kron(a, b), 30)
    a, b, c = (resize_matrix(n, m, "bilinear") for n, m in ((4, 2), (2, 3), (3, 1)))
    op = Resize((4, 2, 3), (2, 3, 1))
    x = integers(4, 2, 3)
    want = (kron(a, b, c) @ x.reshape(-1)).reshape(2, 3, 1)
    yield from agree("three axes, one growing", op(floats(x)), want, 24)


def long_axes(_: Any) -> Iterator[Measurement]:
    """Axes long enough for the banded product."""
    for kernel, (n, m) in zip(KERNELS, ((200, 67), (256, 128), (192, 64), (256, 100))):
        x, y = integers(n, 2), integers(m, 2)
        down, up = _sparse_products(resize_matrix(n, m, kernel), x, y)
        for what, op, given, want in (
            ("first axis", Resize((n, 2), (m, 2), kernel), (x, y), (down, up)),
            ("last axis", Resize((2, n), (2, m), kernel), (x.T, y.T), (down.T, up.T)),
        ):
            yield from agree(f"{kernel} {n} to {m}, {what}", op(floats(given[0])), want[0], 16)
            yield from agree(f"{kernel} {n} to {m}, {what}, transposed", op.T(floats(given[1])), want[1], 16)


def _sparse_products(a: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(A x, Aᵀ y), zeros left out."""
    down, up = zeros(len(a), x.shape[1]), zeros(a.shape[1], y.shape[1])
    for i, j in zip(*np.nonzero(floats(a))):
        down[i] += a[i, j] * x[j]
        up[j] += a[i, j] * y[i]
    return down, up


def cosine_mode(n: int, k: int) -> np.ndarray:
    """Unit DCT-II vector."""
    wave = np.array([REAL.cos(REAL.pi * k * (2 * j + 1) / (2 * n)) for j in range(n)], dtype=object)
    return wave / REAL.sqrt(sum(w * w for w in wave))


def blur_matrix(n: int, sigma: Fraction, boundary: str) -> np.ndarray:
    """Σ_k exp(−σ²ω_k²/2) v_k v_kᵀ by the sum of its modes."""
    matrix = np.full((n, n), REAL.mpf(0), dtype=object)
    for k in range(n):
        frequency = REAL.pi * k / n if boundary == "reflect" else 2 * REAL.pi * min(k, n - k) / n
        response = REAL.exp(-((real(sigma) * frequency) ** 2) / 2)
        if boundary == "reflect":
            v = cosine_mode(n, k)
            matrix = matrix + response * np.multiply.outer(v, v)
        else:  # v_k v_k* of the two complex modes k and n − k is real together
            waves = [REAL.cos(2 * REAL.pi * k * j / n) / n for j in range(n)]
            matrix = matrix + response * np.array([[waves[(i - j) % n] for j in range(n)] for i in range(n)])
    return matrix


def blurs(_: Any) -> Iterator[Measurement]:
    for boundary, n, sigma in product(("reflect", "periodic"), (1, 6, 7), ("1/2", "5/4", "3")):
        width = Fraction(sigma)
        want = blur_matrix(n, width, boundary)
        op = Blur(n, float(width), boundary)
        yield from agree(f"blur of {sigma}, {n} {boundary}", op.as_matrix(), want, n)
        yield from agree(f"norm of a blur of {sigma}, {n} {boundary}", op.norm(), 1)
    a, b = blur_matrix(5, _HALF, "periodic"), blur_matrix(4, Fraction(2), "periodic")
    x = integers(5, 4)
    wide = Blur((5, 4), (0.5, 2.0), "periodic")
    yield from agree("a width for each axis", wide(floats(x)), a @ x @ b.T, 20)
    yield from agree("a width for each axis, transposed", wide.T(floats(x)), a.T @ x @ b, 20)
    yield from agree("reflecting is the default", Blur(5, 1.0).as_matrix(), blur_matrix(5, Fraction(1), "reflect"), 5)
    yield from agree("width 0 changes nothing", Blur((5, 4), 0.0)(floats(x)), x)
    a, b = blur_matrix(4, _WIDE, "reflect"), blur_matrix(4, Fraction(1, 2), "reflect")
    x = integers(4, 4)
    yield from agree("a width for each of two equal axes", Blur((4, 4), (2.5, 0.5))(floats(x)), a @ x @ b.T, 16)
    both = Blur(6, 3.0) @ Blur(6, 4.0)
    yield from agree("widths 3 and 4 are 5", both.as_matrix(), blur_matrix(6, Fraction(5), "reflect"), 6)
    mixed = Blur((6,), 0.5, "periodic") @ Blur((6,), 0.75)
    want = blur_matrix(6, _HALF, "periodic") @ blur_matrix(6, Fraction(3, 4), "reflect")
    yield from agree("boundaries are kept apart", mixed.as_matrix(), want, 6)
    # exp(−ω² τ): a blur of variance 2 τ
    yield from agree("heat for the time 2", Blur.heat(6, 2.0).as_matrix(), blur_matrix(6, Fraction(2), "reflect"), 6)


def algebra(_: Any) -> Iterator[Measurement]:
    a, b, c, d = (integers(*shape, seed=k) for k, shape in enumerate(((3, 3), (2, 2), (3, 3), (2, 2)), 2))
    first, second = Separable([floats(a), floats(b)]), Separable([floats(c), floats(d)])
    x = integers(4, 3, 2)
    yield from agree("separable", first(floats(x)), a @ x @ b.T, 6)
    yield from agree("separable, transposed", first.T(floats(x)), a.T @ x @ b, 6)
    yield from agree("separable as a matrix", first.as_matrix(), kron(a, b), 6)
    square = second @ first
    yield from agree("square separables, first on the right", square(floats(x)), c @ a @ x @ (d @ b).T, 36)
    yield from agree("square separables, transposed", square.T(floats(x)), (c @ a).T @ x @ d @ b, 36)
    yield from agree("square separables as a matrix", square.as_matrix(), kron(c, d) @ kron(a, b), 36)
    e, f = integers(3, 3, seed=12), integers(3, 3, seed=13)
    z = integers(3, 3)
    alike = Separable([floats(e), floats(f)])
    yield from agree("two matrices of one shape", alike(floats(z)), e @ z @ f.T, 9)
    yield from agree("two matrices of one shape, transposed", alike.T(floats(z)), e.T @ z @ f, 9)
    yield from agree("square matrices", (Matrix(floats(e)) @ Matrix(floats(f)))(floats(z)), z @ (e @ f).T, 9)
    sums = (
        ("sum", alike + Matrix(floats(kron(f, e)), (3, 3), (3, 3)), kron(e, f) + kron(f, e)),
        ("difference", alike - 0.5 * Identity((3, 3)), kron(e, f) - _HALF * eye(9)),
        ("quotient", alike / 4.0, kron(e, f) / 4),
        ("sum of blurs", Blur(9, 1.0) + 2.0 * Blur(9, 2.0),
         blur_matrix(9, Fraction(1), "reflect") + 2 * blur_matrix(9, Fraction(2), "reflect")),
    )  # fmt: skip
    for what, total, matrix in sums:
        w = integers(9, seed=14).reshape(total.in_shape)
        yield from agree(what, total(floats(w)).ravel(), matrix @ w.ravel(), 81)
        yield from agree(f"{what}, transposed", total.T(floats(w)).ravel(), matrix.T @ w.ravel(), 81)
        yield from agree(f"{what} as a matrix", total.as_matrix(), matrix, 81)
        yield from agree(f"{what}: norm", total.norm(), svd(matrix)[1][0], 81)
        gram = (matrix.T @ matrix) @ w.ravel()
        yield from agree(f"{what}: MᵀM", total.gram_function(lambda z: z, floats(w)).ravel(), gram, 729)
    m, k = integers(4, 6, seed=7), integers(6, 6, seed=8)
    dense, own = Matrix(floats(m), (3, 2), (2, 2)), Matrix(floats(k), (3, 2), (3, 2))
    flat = x.reshape(4, 6)
    for what, op, matrix in (
        ("matrix", dense, m),
        ("matrix after matrix", dense @ own, m @ k),
        ("matrix after separable", dense @ first, m @ kron(a, b)),
        ("separable after matrix", Separable([floats(a), floats(b)]) @ own, kron(a, b) @ k),
        ("three in a row", dense @ first @ own, m @ kron(a, b) @ k),
        ("negative multiple", -1.5 * dense, -3 * m / 2),
        ("multiple of a multiple", -(0.5 * (3.0 * dense)), -3 * m / 2),
        ("multiples in a product", (2.0 * dense) @ (-0.25 * own), -_HALF * m @ k),
        ("identity on the left", Identity((2, 2)) @ dense, m),
        ("identity on the right", dense @ Identity((3, 2)), m),
        ("functional", Functional(dense, dense.T, (3, 2), (2, 2)), m),
    ):
        yield from agree(what, op(floats(x)), (flat @ matrix.T).reshape(4, 2, -1).reshape(4, *op.out_shape), 216)
        y = integers(3, *op.out_shape, seed=9)
        adjoint = (y.reshape(3, -1) @ matrix).reshape(3, 3, 2)
        yield from agree(f"{what}, transposed", op.T(floats(y)), adjoint, 216)
        yield from agree(f"{what} as a matrix", op.as_matrix(), matrix, 216)
        yield from agree(f"{what}, transposed, as a matrix", op.T.as_matrix(), matrix.T, 216)
    try:
        import scipy.sparse
    except ImportError:
        return
    holes = np.where(integers(4, 6, seed=11) > 2, m, REAL.mpf(0))
    sparse = Matrix(scipy.sparse.csr_matrix(floats(holes)), (3, 2), (2, 2))
    yield from agree("sparse matrix", sparse(floats(x)), (flat @ holes.T).reshape(4, 2, 2), 6)
    y = integers(3, 2, 2, seed=9)
    yield from agree("sparse matrix, transposed", sparse.T(floats(y)), (y.reshape(3, 4) @ holes).reshape(3, 3, 2), 6)


def norms(_: Any) -> Iterator[Measurement]:
    pairs = Separable([np.full((1, 2), 0.5)] * 2)
    yield from agree("mean of two by two", pairs.norm(), _HALF)
    yield from agree("box halving", Resize((8,), (4,), "box").norm(), square_root(_HALF))
    halving = REAL.sqrt((1245 + 13 * REAL.sqrt(673)) / REAL.mpf(3136))
    yield from agree("bilinear 8 to 4", Resize((8,), (4,)).norm(), halving)
    yield from agree("bilinear (8, 8) to (4, 4)", Resize((8, 8), (4, 4)).norm(), halving**2)
    for kernel in KERNELS:
        values = [svd(resize_matrix(n, m, kernel))[1] for n, m in ((7, 3), (6, 4))]
        resize = Resize((7, 6), (3, 4), kernel)
        yield from agree(f"{kernel} (7, 6) to (3, 4)", resize.norm(), values[0][0] * values[1][0], 4)
        grid = floats(np.multiply.outer(*values)).ravel()
        yield from agree(
            f"{kernel}: singular values", np.sort(resize.singular_values().ravel())[::-1], np.sort(grid)[::-1], 8
        )
    two = Matrix([[3.0, 0.0], [4.0, 5.0]])  # MᵀM has the eigenvalues 45 and 5
    for what, op, largest in (
        ("matrix", two, square_root(45)),
        ("transposed", two.T, square_root(45)),
        ("negative multiple", -2.0 * two, 2 * square_root(45)),
        ("identity", Identity((2, 3)), 1),
        ("product", two @ two, svd(reals([[9, 0], [32, 25]]))[1][0]),
    ):
        yield from agree(f"norm, {what}", op.norm(), largest, 4)
    yield from agree("both singular values", np.sort(two.singular_values()), [square_root(5), square_root(45)], 2)


def spectra(_: Any) -> Iterator[Measurement]:
    """Spectral functions, against rational polynomials of MᵀM, and what counts as zero."""

    def f(z: Any) -> Any:
        return z * z - 3.0 * z + 2.0

    def polynomial(gram: np.ndarray) -> np.ndarray:
        return gram @ gram - 3 * gram + 2 * eye(len(gram))

    m = reals(integers(2, 4, seed=4)) / 8
    a, b = resize_matrix(5, 3, "bilinear"), resize_matrix(4, 2, "bicubic")
    for what, op, matrix in (
        ("wide matrix", Matrix(floats(m)), m),
        ("tall matrix", Matrix(floats(m.T)), m.T),
        ("negative multiple", -0.5 * Matrix(floats(m)), -_HALF * m),
        ("resize", Resize((5, 4), (3, 4), "bilinear"), kron(a, resize_matrix(4, 4, "bilinear"))),
        ("resize, two kernels", Separable([floats(a), floats(b)]), kron(a, b)),
        ("functional", Functional(Matrix(floats(m)), Matrix(floats(m)).T, (4,), (2,)), m),
    ):
        x = integers(2, *op.in_shape, seed=5)
        want = (x.reshape(2, -1) @ polynomial(matrix.T @ matrix)).reshape(x.shape)
        yield from agree(f"f(MᵀM), {what}", op.gram_function(f, floats(x)), want, 64)
        y = integers(2, *op.out_shape, seed=6)
        want = (y.reshape(2, -1) @ polynomial(matrix @ matrix.T)).reshape(y.shape)
        yield from agree(f"f(MMᵀ), {what}", op.T.gram_function(f, floats(y)), want, 64)
    wide = blur_matrix(5, Fraction(1), "reflect")
    root = function_of(wide @ wide, lambda z: REAL.sqrt(z))
    x = integers(5, seed=3)
    yield from agree("(MᵀM)^½ of a blur", Blur(5, 1.0).gram_function(np.sqrt, floats(x)), root @ x, 25)
    # singular values far apart: small is not zero, and zero is zero
    steep = Matrix(np.diag([1.0, 2.0**-40]))
    yield from agree("1 and 2⁻⁴⁰", np.sort(steep.singular_values()), [REAL.mpf(2) ** -40, 1], relative=True)
    unit = np.array([1.0, 1.0])
    power = steep.gram_function(lambda z: np.where(z > 0, 1 / np.where(z > 0, z, 1), 0), unit)
    yield from agree("inverse of small eigenvalues", power, [1, 2**80], relative=True)
    flat = np.outer([0.1, 0.7, 0.3], [0.3, 0.9, 0.2, 0.6])
    for what, op in (("matrix", Matrix(flat)), ("separable", Separable([flat])), ("transposed", Matrix(flat).T)):
        values = np.sort(op.singular_values())
        yield from holds(f"a {what} of rank one has one singular value that is not zero", (values[:-1] == 0).all())
    # too large to decompose: Lanczos on four distinct singular values
    steps = np.array([0.25, 0.5, 0.75, 1.0])[np.arange(2304) % 4]
    large: LinearOperator = Functional(lambda v: v * steps, lambda v: v * steps, (2304,), (2304,))
    x = integers(2304, seed=2)
    gram = reals(steps) ** 2
    yield from agree("f(MᵀM) by Lanczos", large.gram_function(f, floats(x)), (gram * gram - 3 * gram + 2) * x, 2304)
    yield from agree("norm by Lanczos", large.norm(), 1, 2304)
    gram = gram / 4
    negative = (-0.5 * large).gram_function(f, floats(x))
    yield from agree("f(MᵀM) of a negative multiple by Lanczos", negative, (gram * gram - 3 * gram + 2) * x, 2304)
    law = inverse(reals([[2, 1], [1, 3]]))
    yield from agree("the references themselves", law, reals([["3/5", "-1/5"], ["-1/5", "2/5"]]))
