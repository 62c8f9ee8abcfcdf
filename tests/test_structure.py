"""What operators keep of their structure: spectra, bands, fast transforms; equality; and what caches hold."""

import functools
import itertools
import math
import pickle
import threading

import numpy as np
import pytest

import ssdcore as ssd
from ssdcore._arrays import Constant, Memo, namespace_of
from ssdcore.axes import AxisMatrix, AxisSVD, FastBasis, RaisedBasis
from ssdcore.bands import Band, Stencil, sums_rows
from ssdcore.operators.blur import spectral_basis

EPS = np.finfo(np.float64).eps


def rng():
    return np.random.default_rng(3)


# --- the algebra ------------------------------------------------------------------------------------------------


def test_sums_differences_and_quotients_are_those_of_the_matrices():
    r = rng()
    a, b = ssd.Resize((6, 4), (3, 2)), ssd.Matrix(r.standard_normal((6, 24)), (6, 4), (3, 2))
    x = r.standard_normal((2, 6, 4))
    for op, dense in (
        (a + b, a.as_matrix() + b.as_matrix()),
        (a - b, a.as_matrix() - b.as_matrix()),
        (a / 2, a.as_matrix() / 2),
        (2 * (a + b) - a / 4, 1.75 * a.as_matrix() + 2 * b.as_matrix()),
        ((a + b) @ ssd.Blur((6, 4), 1.0), (a.as_matrix() + b.as_matrix()) @ ssd.Blur((6, 4), 1.0).as_matrix()),
    ):
        np.testing.assert_allclose(op.as_matrix(), dense, atol=64 * EPS)
        np.testing.assert_allclose(op(x).reshape(2, -1), x.reshape(2, -1) @ dense.T, atol=256 * EPS)
        np.testing.assert_allclose(op.T.as_matrix(), dense.T, atol=64 * EPS)
        assert op.norm() == pytest.approx(np.linalg.norm(dense, 2), rel=64 * EPS)
    assert a + a == 2 * a
    assert sum([a, b, a]).key() == (a + b + a).key()
    assert isinstance(b + b, ssd.operators.Scaled)
    assert isinstance(b + ssd.Matrix(np.ones((6, 24)), (6, 4), (3, 2)), ssd.Matrix)
    assert repr(2.0 * (a + b)).startswith("2 * (")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda op: op + 1.0, TypeError, "ssd.Identity"),
        (lambda op: 1.0 + op, TypeError, "ssd.Identity"),
        (lambda op: sum([op], 2), TypeError, "ssd.Identity"),
        (lambda op: np.ones(3) + op, TypeError, "ndarray \\+ Resize"),
        (lambda op: op - np.ones(3), TypeError, "subtracts an operator"),
        (lambda op: op + ssd.Resize((4,), (3,)), ValueError, "a sum needs the same shapes"),
        (lambda op: op / 0, ValueError, "must not be zero"),
        (lambda op: op / "2", TypeError, "takes a real number"),
        (lambda op: op.gram_operator(3), TypeError, "a function of the eigenvalues"),
    ],
)
def test_bad_sums_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make(ssd.Resize((4,), (2,)))


@pytest.mark.parametrize("f", [lambda e: 0.3 + 0.7 * e, lambda e: -1 / (1 + e), lambda e: 1 - 2 * e])
@pytest.mark.parametrize("op", [ssd.Resize((6, 4), (3, 2)), ssd.Resize((3,), (6,)), -2 * ssd.Blur((5,), 1.0)], ids=repr)
def test_functions_of_an_operator_keep_its_spectrum(op, f):
    dense = op.as_matrix()
    values, vectors = np.linalg.eigh(dense.T @ dense)
    expected = (vectors * f(values)) @ vectors.T
    made = op.gram_operator(f)
    np.testing.assert_allclose(made.as_matrix(), expected, atol=100 * EPS)
    assert made.T is made
    d = made.decomposition()
    x = rng().standard_normal((2, *op.in_shape))
    again = d.output.synthesise(np, d.sign * d.singular_values * d.input.analyse(np, x))
    np.testing.assert_allclose(again.reshape(2, -1), x.reshape(2, -1) @ expected, atol=100 * EPS)


def test_a_sum_of_what_is_diagonal_together_keeps_the_spectrum():
    shape = (600, 8)  # no dense decomposition of it could be had
    op = 0.5 * ssd.Identity(shape) + 0.25 * ssd.Blur(shape, 2.0) + ssd.Blur(shape, 1.0)
    assert op.norm() == pytest.approx(1.75, rel=8 * EPS)
    x = rng().standard_normal(shape)
    np.testing.assert_allclose(op.gram_function(np.sqrt, x), op(x), atol=1e-12)  # symmetric and positive
    assert (ssd.Blur(shape, 2.0) + ssd.Blur(shape, 2.0, "periodic")).decomposition() is None


def test_a_class_of_ones_own_joins_products_and_takes_any_eta_when_large():
    class Mask(ssd.LinearOperator):
        def __init__(self, keep):
            self.in_shape = self.out_shape = keep.shape
            self.keep = ssd.operators.Constant(keep.astype(float))

        def apply(self, xp, x):
            return x * self.keep.like(xp, x)

        def apply_adjoint(self, xp, y):
            return self.apply(xp, y)

        def decompose(self):
            pixels = ssd.Modes(self.in_shape, self.in_shape, ())
            return ssd.Decomposition(pixels, pixels, self.keep.value)

        def after(self, inner):
            return Mask(self.keep.value * inner.keep.value > 0) if isinstance(inner, Mask) else None

    keep = rng().random((128, 128)) < 0.5
    mask = Mask(keep)
    assert isinstance(mask @ mask, Mask)
    assert mask.norm() == 1.0
    ops = [None, mask, None]
    proc = ssd.LinearDiffusion.from_operators(ops, ssd.NoiseSchedule.from_log_snr([2.0, 0.0, -2.0]))
    x, z = rng().standard_normal((2, 128, 128)), rng().standard_normal((2, 128, 128))
    law = proc.posterior(np.zeros_like(x), x, 1, 2, eta=0.0)
    drawn = law.sample(z) - law.mean
    np.testing.assert_allclose(drawn[:, keep], 0.0, atol=8 * EPS)
    np.testing.assert_allclose(drawn[:, ~keep], proc.sigma(1) * z[:, ~keep], rtol=8 * EPS)


# --- equality ---------------------------------------------------------------------------------------------------


def test_operators_are_equal_if_they_are_the_same_map_by_construction():
    scipy = pytest.importorskip("scipy.sparse")
    r = rng().standard_normal((3, 4))
    makers = [
        lambda: ssd.Identity((4,)),
        lambda: ssd.Resize((4,), (3,)),
        lambda: ssd.Blur((4,), 2.0),
        lambda: ssd.Separable([r]),
        lambda: ssd.Matrix(r),
        lambda: ssd.Matrix(scipy.csr_array(r)),
        lambda: ssd.Resize((4,), (3,)).T,
        lambda: 0.5 * ssd.Resize((4,), (3,)),
        lambda: ssd.Matrix(r) @ ssd.Blur((4,), 2.0),
        lambda: ssd.Matrix(r) + ssd.Resize((4,), (3,)),
        lambda: ssd.Resize((4,), (3,)).gram_operator(np.sqrt),
        lambda: ssd.Functional(np.sin, np.sin, (4,), (4,)),
    ]
    first, second = [make() for make in makers], [make() for make in makers]
    for i, a in enumerate(first):
        assert [a == b for b in second] == [i == j for j in range(len(second))]
        assert hash(a) == hash(second[i])
    assert ssd.Blur((4,), 2.0) != ssd.Blur((4,), 2.0, "periodic")
    assert ssd.Matrix(r) != ssd.Matrix(r + EPS)


def test_covariances_in_equal_modes_are_diagonal_together():
    noise = ssd.NoiseSchedule.linear(100)
    proc = ssd.LinearDiffusion.resize((96, 96), noise, ssd.ResolutionSchedule.thresholds([50]))
    x = np.zeros((96, 96))
    posterior = proc.posterior(np.zeros((48, 48)), x, 49, 50)
    marginal = proc.marginal(x, 49)
    there, back = marginal.kl(posterior), posterior.kl(marginal)  # too large for dense matrices
    copy = pickle.loads(pickle.dumps(posterior.covariance))
    assert copy == posterior.covariance
    again = ssd.Gaussian(posterior.mean, copy)
    assert float(posterior.kl(again)) == pytest.approx(0.0, abs=1e-9)
    assert (float(marginal.kl(again)), float(again.kl(marginal))) == (float(there), float(back))
    assert float(there) > 0
    assert float(back) > 0


def test_covariances_are_shown_in_a_line():
    p = ssd.LinearDiffusion.resize((8, 8), ssd.NoiseSchedule.linear(100), ssd.ResolutionSchedule.thresholds([50]))
    x, low, times = np.zeros((2, 8, 8)), np.zeros((2, 4, 4)), np.array([3, 4])
    large = ssd.Functional(lambda x: x, lambda y: y, (5000,), (5000,))
    chain = ssd.LinearDiffusion.from_operators([None, large], ssd.NoiseSchedule.from_log_snr([1.0, -1.0]))
    wide = np.zeros(5000)
    spread = ssd.Covariance.cosine(1 / (1 + np.arange(5000.0)))
    for covariance, shown in (
        (ssd.Covariance.isotropic((8, 8), 0.5), "Covariance((8, 8), 0.5 · I)"),
        (ssd.Covariance.cosine(np.arange(6.0).reshape(2, 3)), "Covariance((2, 3), 6 variances from 0 to 5)"),
        (ssd.Covariance.of_modes(ssd.Resize(4, 2), [1.0, 2.0], 3.0), "2 variances from 1 to 2, 3 elsewhere"),
        (p.posterior(low, x, 49, 50).covariance, "16 variances from"),
        (p.marginal(x, times).covariance, "BatchedCovariance((8, 8), variances shaped (2, 1, 1))"),
        (chain.posterior(wide, wide, 1, 2).covariance, "a function of "),
        (
            chain.posterior(wide, wide, 1, 2, clean_covariance=spread).covariance,
            "+ D Covariance((5000,), 5000 variances",
        ),
    ):
        assert shown in repr(covariance)
        assert len(repr(covariance)) < 200
    assert " at 0x" not in repr(ssd.Resize((8, 8), (4, 4)).decomposition())
    assert " at 0x" not in repr(ssd.Blur(1024, 1.0).decomposition())


def test_public_arrays_are_read_only():
    scipy = pytest.importorskip("scipy.sparse")
    given = np.ones((2, 3))
    op, sparse = ssd.Matrix(given), ssd.Matrix(scipy.csr_array(given))
    given[0, 0] = 7.0
    assert op.as_matrix()[0, 0] == sparse.as_matrix()[0, 0] == 1.0
    for held in (
        op.matrix,
        sparse.matrix.data,
        op.decomposition().singular_values,
        ssd.Covariance.isotropic(3, 1.0).values,
        ssd.NoiseSchedule.linear(30).alpha,
        ssd.LinearDiffusion.blur(3, ssd.NoiseSchedule.linear(30), np.arange(31.0)).degradations.widths,
    ):
        with pytest.raises(ValueError, match="read-only"):
            held[...] = 0.0


def test_a_function_that_works_in_place_spoils_nothing():
    op, x = ssd.Resize((6,), (3,)), np.arange(6.0)
    expected = op.gram_function(lambda e: e + 1, x)

    def in_place(e):
        e += 1
        return e

    for _ in range(2):
        np.testing.assert_array_equal(op.gram_function(in_place, x), expected)
    np.testing.assert_allclose(op.gram_function(lambda e: e, x), op.T(op(x)), atol=32 * EPS)


def test_one_dense_row_does_not_make_a_sparse_matrix_dense():
    scipy = pytest.importorskip("scipy.sparse")
    n = 4000
    rows = np.concatenate([np.arange(n), np.zeros(n, dtype=int)])
    columns = np.concatenate([np.arange(n), np.arange(n)])
    matrix = scipy.coo_array((rng().standard_normal(2 * n), (rows, columns)), shape=(n, n)).tocsr()
    op, x = ssd.Matrix(matrix), rng().standard_normal((2, n))
    np.testing.assert_allclose(op(x), x @ matrix.T.toarray(), atol=n * EPS)
    np.testing.assert_allclose(op.T(x), x @ matrix.toarray(), atol=n * EPS)


# --- axes -------------------------------------------------------------------------------------------------------

AXES = [
    (64, 32, "bilinear"),
    (64, 20, "lanczos3"),
    (31, 64, "bicubic"),
    (96, 32, "box"),
    (5, 3, "box"),
    (40, 40, "box"),
]


@pytest.mark.parametrize(("n", "m", "kernel"), AXES)
def test_bands_hold_their_matrix(n, m, kernel):
    a = ssd.Resize((n,), (m,), kernel).as_matrix()
    band = Band.of(a)
    np.testing.assert_array_equal(band.dense(), a)
    np.testing.assert_array_equal(band.T.dense(), a.T)
    np.testing.assert_allclose((band.T @ band).dense(), a.T @ a, atol=8 * EPS)
    assert band.norm() == pytest.approx(np.linalg.norm(a, 2), rel=16 * EPS)


def test_stencils_are_found_where_there_are_any():
    found = Stencil.of(Band.of(ssd.Resize((64,), (32,)).as_matrix()))
    np.testing.assert_allclose(found.taps, np.array([1, 3, 3, 1]) / 8, rtol=4 * EPS)
    np.testing.assert_allclose(found.scale, [8 / 7, *[1.0] * 30, 8 / 7], rtol=8 * EPS)
    assert (found.stride, found.padding) == (2, 1)
    broken = ssd.Resize((64,), (32,)).as_matrix()
    broken[5, 10] *= 1.001
    assert Stencil.of(Band.of(broken)) is None
    assert Stencil.of(Band.of(ssd.Resize((64,), (20,)).as_matrix())) is None


@pytest.mark.parametrize(
    ("ins", "outs", "kernel"),
    [
        ((64, 64), (32, 32), "bilinear"),
        ((128, 96), (32, 32), "bicubic"),
        ((96,), (32,), "box"),
        ((66, 70), (33, 35), "lanczos3"),
    ],
)
def test_convolutions_equal_the_products_of_matrices(ins, outs, kernel):
    torch = pytest.importorskip("torch")
    op, r = ssd.Resize(ins, outs, kernel), rng()
    x, y = r.standard_normal((2, 3, *ins)), r.standard_normal((2, 3, *outs))
    for side, values in ((op, x), (op.T, y)):
        wide = side(values)
        leaf = torch.tensor(values, dtype=torch.float32, requires_grad=True)
        got = side(leaf)
        np.testing.assert_allclose(got.detach(), wide, atol=64 * 2**-24 * np.abs(wide).max())
        cotangent = torch.tensor(wide, dtype=torch.float32)
        (gradient,) = torch.autograd.grad(got, leaf, cotangent)
        back = side.T(wide)
        np.testing.assert_allclose(gradient, back, atol=128 * 2**-24 * np.abs(back).max())
    assert op(torch.zeros(0, 3, *ins)).shape == (0, 3, *outs)


# A bilinear half and a box, a third with rows of all scales, and a quarter without symmetry that lacks a tap.
ROWS = [
    Stencil(np.array([1, 3, 3, 1]) / 8, 2, 1, np.array([8 / 7, *[1.0] * 30, 8 / 7])),
    Stencil(np.array([0.5, 0.5]), 2, 0, np.ones(24)),
    Stencil(np.array([1.0, 2.0, 3.0, 2.0, 1.0]) / 9, 3, 1, np.linspace(0.5, 1.5, 25)),
    Stencil(np.array([0.3, -0.2, 0.0, 0.4, 0.1]), 4, 1, np.ones(16)),
]


@pytest.mark.parametrize("stencil", ROWS, ids=lambda s: f"{len(s.taps)} taps by {s.stride}")
@pytest.mark.parametrize("axis", [-2, -3])
def test_sums_of_rows_equal_the_products_of_matrices(stencil, axis):
    torch = pytest.importorskip("torch")
    m, n = len(stencil.scale), len(stencil.scale) * stencil.stride
    matrix = np.zeros((m, n))
    for i, k in itertools.product(range(m), range(len(stencil.taps))):
        if 0 <= (column := i * stencil.stride - stencil.padding + k) < n:
            matrix[i, column] = stencil.scale[i] * stencil.taps[k]
    assert stencil.sums
    found = AxisMatrix(matrix)
    assert found.stencil is not None
    after = (64,) if axis == -2 else (16, 4)
    r = rng()
    for side in (found, found.T):
        x = r.standard_normal((40, side.shape[1], *after))
        base = r.standard_normal((40, side.shape[0], *after))
        wide = np.moveaxis(np.moveaxis(x, 1, -1) @ side.constant.value.T, -1, 1)
        leaf, given = torch.tensor(x), torch.tensor(base)
        assert sums_rows(namespace_of(leaf), leaf)
        for values in (leaf, leaf.clone().requires_grad_()):
            np.testing.assert_allclose(side.apply(namespace_of(leaf), values, axis).detach(), wide, atol=64 * EPS)
            added = side.add_applied(namespace_of(leaf), given, -0.7, values, axis).detach()
            np.testing.assert_allclose(added, base - 0.7 * wide, atol=64 * EPS)
        np.testing.assert_array_equal(leaf, x)
        np.testing.assert_array_equal(given, base)


def test_sums_of_rows_are_for_few_taps_and_large_arrays_without_gradients():
    torch = pytest.importorskip("torch")
    assert not Stencil(np.full(12, 1 / 12), 2, 5, np.ones(64)).sums
    assert not Stencil(np.array([0.5, 0.0, 0.5]), 2, 1, np.ones(64)).sums  # a single one that all rows have
    x = torch.zeros(2, 128, 128)
    xp = namespace_of(x)
    assert sums_rows(xp, x)
    assert not sums_rows(xp, x[:, :64])
    assert not sums_rows(np, np.zeros((2, 128, 128)))
    assert not sums_rows(xp, x.to("meta"))
    learning = torch.zeros(1, requires_grad=True)
    assert not sums_rows(xp, x + learning)
    assert not sums_rows(xp, x, learning)
    with torch.no_grad():
        assert sums_rows(xp, x, learning)


def change(op):
    """The only change of size of a process of two steps."""
    return ssd.LinearDiffusion.from_operators([None, op], ssd.NoiseSchedule([1.0, 0.9, 0.5], [0.0, 0.4, 0.8]))


LIFTED = {
    "64×64": ((3, 4), ssd.Resize((64, 64), (32, 32))),  # sums of rows
    "64×24": ((12, 2), ssd.Resize((64, 24), (32, 8), "box")),
    "two matrices": ((2,), ssd.Separable([rng().standard_normal((3, 7)) / 9, rng().standard_normal((6, 5)) / 9])),
    "volume": ((2,), ssd.Resize((12, 8, 10), (6, 4, 9))),
    "four axes": ((), ssd.Resize((4, 6, 3, 4), (2, 3, 3, 2))),
    "signal": ((5,), ssd.Resize((64,), (21,), "lanczos3")),
    "dense": ((2, 3), -0.5 * ssd.Matrix(rng().standard_normal((4, 9)) / 9)),
    "dense image": ((2,), ssd.Matrix(rng().standard_normal((4, 12)) / 12, (3, 4), (2, 2))),
    "large": ((2,), ssd.Resize((140, 132), (70, 66))),
}


@pytest.mark.parametrize("name", LIFTED)
def test_draws_at_a_change_of_size_are_those_of_the_dense_root(name):
    torch = pytest.importorskip("torch")
    batch, op = LIFTED[name]
    proc, r = change(op), rng()
    x_t, clean, noise = (r.standard_normal((*batch, *shape)) for shape in (op.out_shape, op.in_shape, op.in_shape))
    law = proc.posterior(x_t, clean, 1, 2)
    size = np.abs(law.mean).max()
    ratio, rho = proc.signal_ratio(1, 2), (proc.sigma(1) / proc.sigma(2)) ** 2
    mean = proc.alpha(1) * clean + rho * ratio * op.T(x_t - proc.alpha(2) * op(clean))
    expected = mean + law.covariance.root(noise)
    np.testing.assert_allclose(law.mean, mean, atol=64 * EPS * size)
    np.testing.assert_allclose(law.sample(noise), expected, atol=256 * EPS * size)
    for dtype, unit in ((torch.float64, EPS), (torch.float32, 2.0**-24)):
        arrays = [torch.tensor(v, dtype=dtype) for v in (x_t, clean, noise)]
        for leaf in (None, 0, 1, 2):  # plain, and with a gradient to one of them
            if leaf is not None:
                arrays[leaf].requires_grad_()
            drawn = proc.posterior(arrays[0], arrays[1], 1, 2).sample(arrays[2])
            np.testing.assert_allclose(drawn.detach(), expected, atol=256 * unit * size)
            if leaf is not None:
                (gradient,) = torch.autograd.grad(drawn.sum(), arrays[leaf])
                assert gradient.abs().max() > 0
                arrays[leaf].requires_grad_(False)
        for array, before in zip(arrays, (x_t, clean, noise)):
            np.testing.assert_array_equal(array, torch.tensor(before, dtype=dtype))


def test_draws_of_large_images_broadcast_and_map():
    torch = pytest.importorskip("torch")
    proc = change(ssd.Resize((64, 64), (32, 32)))
    generator = torch.Generator().manual_seed(0)
    x_t, clean, noise = (torch.randn(9, 2, n, n, generator=generator) for n in (32, 64, 64))
    plain = proc.posterior(x_t, clean, 1, 2).sample(noise)

    def draw(*arrays):
        return proc.posterior(*arrays[:2], 1, 2).sample(arrays[2])

    def close(found, expected):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

    close(proc.posterior(x_t, clean[:1], 1, 2).sample(noise), draw(x_t, clean[:1].expand(9, -1, -1, -1), noise))
    many = proc.posterior(x_t[0], clean[0], 1, 2).sample(noise)
    close(many, torch.stack([draw(x_t[0], clean[0], z) for z in noise]))
    close(torch.func.vmap(draw)(x_t, clean, noise), plain)
    for mapped in range(3):
        arrays = [array if i == mapped else array[0] for i, array in enumerate((x_t, clean, noise))]
        dims = tuple(0 if i == mapped else None for i in range(3))
        each = [draw(*(a[j] if i == mapped else a for i, a in enumerate(arrays))) for j in range(9)]
        close(torch.func.vmap(draw, in_dims=dims)(*arrays), torch.stack(each))
    transposed = [array.mT.contiguous().mT for array in (x_t, clean, noise)]  # other strides
    close(draw(*transposed), plain)


@pytest.mark.parametrize("boundary", ["reflect", "periodic"])
@pytest.mark.parametrize("n", [1024, 1027])
def test_fast_bases_are_their_dense_matrices(n, boundary):
    basis = spectral_basis(n, boundary)[0]
    assert isinstance(basis, FastBasis)
    x = rng().standard_normal((2, n, 3))
    np.testing.assert_allclose(basis.value.T @ basis.value, np.eye(n), atol=n * EPS)
    np.testing.assert_allclose(basis.analyse(np, x, -2), basis.value.T @ x, atol=n * EPS)
    np.testing.assert_allclose(basis.synthesise(np, x, -2), basis.value @ x, atol=n * EPS)
    op = ssd.Blur((n,), 3.0, boundary)
    np.testing.assert_allclose(op(x[..., 0]), x[..., 0] @ op.axis_matrices()[0].constant.value, atol=n * EPS)


def test_a_decomposition_by_the_gram_matrix_is_as_exact_as_one_of_the_matrix():
    for n, m in ((512, 256), (256, 512), (400, 201)):
        a = ssd.Resize((n,), (m,)).as_matrix()
        svd = AxisSVD.of(a)
        k = min(n, m)
        for factor in (svd.u.value, svd.v.value):
            np.testing.assert_allclose(factor.T @ factor, np.eye(k), atol=n * EPS)
        np.testing.assert_allclose((svd.u.value * svd.s) @ svd.v.value.T, a, atol=n * EPS)


@pytest.mark.parametrize(("n", "m"), [(512, 256), (256, 512), (402, 201), (600, 200)])
def test_a_decomposition_by_the_band_raises_its_modes_instead_of_holding_them(n, m):
    svd = ssd.Resize((n,), (m,)).axis_matrices()[0].svd
    raised, held = (svd.v, svd.u) if m < n else (svd.u, svd.v)
    assert isinstance(raised, RaisedBasis)
    assert isinstance(held, Constant)
    for factor in (svd.u.value, svd.v.value):
        np.testing.assert_allclose(factor.T @ factor, np.eye(min(n, m)), atol=n * EPS)
    assert (np.diff(svd.s) <= n * EPS).all()
    np.testing.assert_allclose((svd.u.value * svd.s) @ svd.v.value.T, ssd.Resize((n,), (m,)).as_matrix(), atol=n * EPS)
    x, z = rng().standard_normal((2, *raised.shape[:1], 3)), rng().standard_normal((2, raised.shape[1], 3))
    for axis in (-2, -1):
        x, z = (x, z) if axis == -2 else (np.swapaxes(x, -1, -2), np.swapaxes(z, -1, -2))
        dense = raised.value if axis == -2 else raised.value.T
        product = (dense.T @ x, dense @ z) if axis == -2 else (x @ dense.T, z @ dense)
        np.testing.assert_allclose(raised.analyse(np, x, axis), product[0], atol=n * EPS)
        np.testing.assert_allclose(raised.synthesise(np, z, axis), product[1], atol=n * EPS)


def test_long_signals_need_no_dense_matrix():
    op = ssd.Resize((6000,), (3000,))
    assert op.norm() == pytest.approx(2**-0.5, abs=1e-3)
    assert op(np.ones(6000)) == pytest.approx(np.ones(3000))
    assert not any("constant" in vars(axis) for axis in op.axis_matrices())
    blur = ssd.Blur((20000,), 4.0)
    assert blur.norm() == 1.0
    np.testing.assert_allclose(blur(np.ones(20000)), 1.0, atol=1e-10)
    wave = np.cos(np.pi * 500 / 20000 * (np.arange(20000) + 0.5))
    response = math.exp(-0.25 * (4 * np.pi * 500 / 20000) ** 2)
    np.testing.assert_allclose(blur.gram_function(lambda e: e**0.25, wave), response * wave, atol=1e-10)


# --- posteriors -------------------------------------------------------------------------------------------------


@functools.cache
def change_of(size):
    """A process whose size changes at time 50; of its posterior there M, the gain and the root of the covariance."""
    noise = ssd.NoiseSchedule.linear(100)
    proc = ssd.LinearDiffusion.resize((size, 8), noise, ssd.ResolutionSchedule.thresholds([50]), matched=False)
    m = proc.degradation(49, 50).as_matrix()
    gain = (proc.sigma(49) / proc.sigma(50)) ** 2 * m.T
    values, vectors = np.linalg.eigh(proc.sigma(49) ** 2 * (np.eye(len(gain)) - gain @ m))
    return proc, m, gain, (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


@pytest.mark.parametrize("size", [16, 96])  # through the modes of the image, and through R
@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_a_draw_at_a_size_change_is_the_symmetric_root(size, library):
    xp = pytest.importorskip({"numpy": "numpy", "torch": "torch", "jax": "jax.numpy"}[library])
    proc, m, gain, root = change_of(size)
    s, t, r = 49, 50, rng()
    x_t, clean, z = (r.standard_normal((2, *shape)) for shape in ((size // 2, 4), (size, 8), (size, 8)))
    centre = proc.alpha(s) * clean.reshape(2, -1)
    mean = centre + (x_t.reshape(2, -1) - centre @ m.T) @ gain.T
    arrays = [xp.asarray(a, dtype=xp.float32) for a in (x_t, clean, z)]
    law = proc.posterior(*arrays[:2], s, t)
    atol = 64 * 2**-24 * np.abs(mean).max()
    drawn = np.asarray(law.sample(arrays[2])).reshape(2, -1)  # before the mean is asked for
    np.testing.assert_allclose(drawn, mean + z.reshape(2, -1) @ root, atol=atol)
    np.testing.assert_allclose(np.asarray(law.mean).reshape(2, -1), mean, atol=atol)
    many = law.sample(xp.stack([arrays[2]] * 3))
    np.testing.assert_allclose(np.asarray(many)[1].reshape(2, -1), drawn, atol=atol)
    with pytest.raises(ValueError, match="shaped like the mean"):
        law.sample(arrays[0])


def test_a_law_keeps_nothing_that_its_caller_may_change():
    proc = ssd.LinearDiffusion.resize((8, 8), ssd.NoiseSchedule.linear(100), ssd.ResolutionSchedule.thresholds([50]))
    x_t, clean = np.ones((4, 4)), np.ones((8, 8))
    law, twin = (proc.posterior(x_t.copy(), given, 49, 50) for given in (clean, clean.copy()))
    clean[:] = 7.0
    np.testing.assert_array_equal(law.mean, twin.mean)


def test_a_step_computes_no_mean_to_know_the_shape_of_its_noise(monkeypatch):
    proc = ssd.LinearDiffusion.resize((8, 8), ssd.NoiseSchedule.linear(100), ssd.ResolutionSchedule.thresholds([50]))
    law = proc.posterior(np.ones((3, 1, 4, 4)), np.ones((2, 8, 8)), 49, 50)
    assert law.shape == (3, 2, 8, 8) == law.mean.shape == law.shape
    assert ssd.Gaussian(np.ones((2, 3)), ssd.Covariance.isotropic(3, 1.0)).shape == (2, 3)
    assert proc.prior().shape == (4, 4)
    monkeypatch.setattr(ssd.Gaussian, "mean", property(lambda law: pytest.fail("asked for the mean")))
    x = ssd.sampling.step(proc, np.ones((2, 4, 4)), np.ones((2, 8, 8)), 49, 50, np.ones)
    assert x.shape == (2, 8, 8)


def test_what_an_adjoint_returns_is_not_written_to():
    total = ssd.Functional(
        lambda x: x.sum(-1, keepdims=True) / 8, lambda y: np.broadcast_to(y / 8, (*y.shape[:-1], 8)), (8,), (1,)
    )
    proc = ssd.LinearDiffusion.from_operators([None, total, None], ssd.NoiseSchedule.from_log_snr([2.0, 0.0, -2.0]))
    law = proc.posterior(np.ones((2, 1)), np.ones((2, 8)), 1, 2)
    assert law.mean.shape == law.sample(np.ones((2, 8))).shape == (2, 8)


# --- caches -----------------------------------------------------------------------------------------------------


def test_a_memo_is_bounded_by_entries_and_bytes_and_drops_what_was_not_used():
    made = []

    def square(k):
        made.append(k)
        return k * k

    memo = Memo(entries=3, bytes=100)
    for k in (1, 2, 3, 1, 4):
        assert memo.get(square, k) == k * k
    assert memo.get(square, 1) == 1  # used lately
    assert memo.get(square, 2) == 4  # dropped
    assert made == [1, 2, 3, 4, 2]
    heavy = Memo(entries=10, bytes=100)
    for k in range(5):
        heavy.get(square, k, sized=lambda _: 40)
    made.clear()
    heavy.get(square, 4)
    heavy.get(square, 3)
    assert made == []
    heavy.get(square, 2)
    assert made == [2]


def test_memos_are_shared_between_threads():
    memo, errors = Memo(entries=8), []

    def ask():
        try:
            for k in range(3000):
                assert memo.get(str, k % 13) == str(k % 13)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_powers_of_a_covariance_are_made_when_asked_for():
    covariance = ssd.Covariance.cosine(np.ones((4, 4)))
    covariance.root(np.ones((4, 4)))
    assert list(vars(covariance._powers)) == ["root"]
