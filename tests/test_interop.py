"""scipy's and PyLops' operators to ours and back, inside their own tests and solvers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import ssdcore as ssd

linalg = pytest.importorskip("scipy.sparse.linalg")
pylops = pytest.importorskip("pylops")

SHAPE = (6, 5)
EPS = np.finfo(np.float64).eps


def operators() -> list[ssd.LinearOperator]:
    rng = np.random.default_rng(0)
    return [
        ssd.Resize((8, 6), (4, 3), kernel="bicubic"),
        0.5 * ssd.Blur((4, 4, 3), 1.5).T,
        ssd.Separable([rng.standard_normal((3, 6)), rng.standard_normal((7, 5))]),
        ssd.Matrix(rng.standard_normal((4, 30)), SHAPE, (2, 2)),
        ssd.Functional(lambda x: x[..., ::2], lambda y: np.repeat(y, 2, -1) * (np.arange(8) % 2 == 0), (8,), (4,)),
    ]


def tolerance(dtype: str, size: int) -> float:
    """Relative to the norms of the two vectors of a dot test: each product is a random walk of `size` roundings."""
    return 10 * np.sqrt(size) * np.finfo(dtype).eps


def random_pair(op: ssd.LinearOperator, dtype: str = "float64") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return (rng.standard_normal(shape).astype(dtype) for shape in (op.in_shape, op.out_shape))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("adapt", [ssd.interop.to_scipy, ssd.interop.to_pylops])
@pytest.mark.parametrize("op", operators(), ids=repr)
def test_pylops_dot_test_passes(op, adapt, dtype):
    adapted = adapt(op, dtype)
    assert adapted.dtype == dtype
    np.random.seed(0)  # noqa: NPY002 - dottest draws from the global generator
    limit = tolerance(dtype, max(adapted.shape)) * op.norm() * np.sqrt(np.prod(adapted.shape))
    assert pylops.utils.dottest(adapted, rtol=0, atol=limit)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("op", operators(), ids=repr)
def test_a_scipy_operator_acts_as_the_operator_on_flattened_arrays(op, dtype):
    adapted = ssd.interop.to_scipy(op)
    x, y = random_pair(op, dtype)
    assert adapted.shape == (y.size, x.size)
    assert adapted.matvec(x.ravel()).dtype == dtype
    np.testing.assert_array_equal(adapted.matvec(x.ravel()), op(x).ravel())
    np.testing.assert_array_equal(adapted.rmatvec(y.ravel()[:, None]), op.T(y).reshape(-1, 1))
    matrix, close = op.as_matrix(), {"rtol": 0, "atol": tolerance("float64", x.size) * op.norm()}
    np.testing.assert_allclose(adapted @ np.eye(x.size), matrix, **close)
    np.testing.assert_allclose(adapted.H @ np.eye(y.size), matrix.T, **close)
    np.testing.assert_allclose(adapted.rmatmat(np.eye(y.size, dtype=int)), matrix.T, **close)


@pytest.mark.parametrize("op", operators(), ids=repr)
def test_a_pylops_operator_has_our_shapes_and_composes(op):
    adapted = ssd.interop.to_pylops(op)
    x, _ = random_pair(op)
    assert (adapted.dims, adapted.dimsd) == (op.in_shape, op.out_shape)
    np.testing.assert_array_equal(np.reshape(adapted @ x, op.out_shape), op(x))
    slope = pylops.FirstDerivative(op.out_shape, axis=0, kind="forward")
    np.testing.assert_array_equal(
        np.reshape((slope @ adapted) @ x, op.out_shape), np.reshape(slope @ op(x), op.out_shape)
    )


@pytest.mark.parametrize("op", operators(), ids=repr)
@pytest.mark.parametrize("library", ["scipy", "pylops"])
def test_round_trips_conform(op, library):
    if library == "scipy":
        back = ssd.interop.from_scipy(ssd.interop.to_scipy(op), op.in_shape, op.out_shape)
    else:
        back = ssd.interop.from_pylops(ssd.interop.to_pylops(op))
    assert (back.in_shape, back.out_shape) == (op.in_shape, op.out_shape)
    assert ssd.testing.check_operator(back, examples=1, dtypes=["float64", "float32"]).passed
    x, y = random_pair(op)
    np.testing.assert_array_equal(back(x), op(x))
    np.testing.assert_array_equal(back.T(y), op.T(y))


def test_pylops_own_operators_conform_and_drive_a_process():
    derivative = pylops.Gradient((6, 5), kind="forward")  # (2, 6, 5) values
    smooth = pylops.Smoothing2D([3, 3], dims=(6, 5))
    for operator in (derivative, smooth):
        op = ssd.interop.from_pylops(operator)
        assert (op.in_shape, op.out_shape) == (tuple(operator.dims), tuple(operator.dimsd))
        ssd.testing.check_operator(op, examples=1, dtypes="float64")
    restricted = ssd.interop.from_pylops(pylops.Restriction(8, np.array([0, 2, 4, 6])))
    ops = [None] * 40
    ops[20] = restricted
    proc = ssd.LinearDiffusion.from_operators(ops, ssd.NoiseSchedule.linear(40))
    ssd.testing.check_process(proc, examples=1, dtypes="float64")


def test_a_sparse_scipy_operator_conforms():
    sparse = pytest.importorskip("scipy.sparse")
    matrix = sparse.random(12, 30, density=0.2, random_state=0, format="csr")
    op = ssd.interop.from_scipy(linalg.aslinearoperator(matrix), SHAPE, (3, 4))
    ssd.testing.check_operator(op, examples=1, dtypes=["float64", "float32"])
    np.testing.assert_allclose(op.as_matrix(), matrix.toarray(), atol=EPS)
    assert op(np.zeros((0, 2, *SHAPE))).shape == (0, 2, 3, 4)


def test_scipy_svds_finds_the_norm():
    op = ssd.Resize((24, 20), (12, 10), kernel="lanczos3")
    largest = linalg.svds(ssd.interop.to_scipy(op), k=3, return_singular_vectors=False, random_state=0).max()
    assert largest == pytest.approx(op.norm(), rel=1e3 * EPS)


def test_scipy_lsqr_solves_as_a_dense_solver():
    op = ssd.Blur(SHAPE, 0.6)
    y = np.random.default_rng(0).standard_normal(SHAPE)
    solution = linalg.lsqr(ssd.interop.to_scipy(op), y.ravel(), damp=0.1, atol=1e-13, btol=1e-13, iter_lim=500)[0]
    matrix = op.as_matrix()
    dense = np.linalg.solve(matrix.T @ matrix + 0.01 * np.eye(30), matrix.T @ y.ravel())
    np.testing.assert_allclose(solution, dense, rtol=0, atol=1e-10 * np.abs(dense).max())


def test_pylops_solver_solves_as_a_dense_solver():
    op = ssd.Resize((12, 10), (6, 5))
    y = np.random.default_rng(0).standard_normal((6, 5))
    operator, regularisation = ssd.interop.to_pylops(op), pylops.Laplacian((12, 10))
    solution = pylops.optimization.leastsquares.regularized_inversion(
        operator, y.ravel(), [regularisation], epsRs=[0.3], iter_lim=2000, atol=1e-14, btol=1e-14
    )[0]
    matrix, rough = op.as_matrix(), regularisation.todense()
    dense = np.linalg.solve(matrix.T @ matrix + 0.09 * rough.T @ rough, matrix.T @ y.ravel())
    np.testing.assert_allclose(solution, dense, rtol=0, atol=1e-8 * np.abs(dense).max())


def test_other_backends_go_through_the_host():
    torch = pytest.importorskip("torch")
    blur = ssd.Blur(SHAPE, 0.7)
    op = ssd.interop.from_pylops(ssd.interop.to_pylops(blur))
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    y = op(x)
    assert y.dtype == x.dtype
    torch.testing.assert_close(y, torch.from_numpy(blur(x.numpy())), rtol=0, atol=0)
    with pytest.raises(TypeError, match=r"runs on the host .*outside of gradients"):
        op(x.requires_grad_())
    # the other way: an operator written for torch, in scipy
    flip = ssd.Functional(lambda z: torch.flip(z, (-1,)), lambda z: torch.flip(z, (-1,)), (5,), (5,), torch)
    np.testing.assert_array_equal(ssd.interop.to_scipy(flip).matvec(np.arange(5.0)), np.arange(5.0)[::-1])


NO_ADJOINT = linalg.LinearOperator((3, 4), matvec=lambda x: x[:3], dtype=np.float64)
COMPLEX = linalg.aslinearoperator(np.eye(3) * 1j)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: ssd.interop.to_scipy(np.eye(3)),
            TypeError,
            r"to_scipy: expected an ssdcore operator, got numpy\.ndarray",
        ),
        (lambda: ssd.interop.to_pylops(None), TypeError, r"to_pylops: expected an ssdcore operator"),
        (
            lambda: ssd.interop.to_scipy(ssd.Identity(3), complex),
            TypeError,
            r"expected float64 or float32, .*got complex128",
        ),
        (
            lambda: ssd.interop.to_pylops(ssd.Identity(3), "floaty"),
            TypeError,
            r"expected float64 or float32, got 'floaty'",
        ),
        (
            lambda: ssd.interop.to_scipy(ssd.Identity(3)).matvec(1j * np.ones(3)),
            TypeError,
            r"real floating-point array, got dtype complex128",
        ),
        (lambda: ssd.interop.from_scipy(np.eye(3)), TypeError, r"ssdcore\.Matrix takes a matrix, from_pylops"),
        (lambda: ssd.interop.from_pylops(linalg.aslinearoperator(np.eye(3))), TypeError, r"from_scipy takes a scipy"),
        (lambda: ssd.interop.from_scipy(COMPLEX), TypeError, r"expected a real operator, got dtype complex128"),
        (lambda: ssd.interop.from_pylops(pylops.signalprocessing.FFT(8)), TypeError, r"expected a real operator"),
        (lambda: ssd.interop.from_scipy(NO_ADJOINT), ValueError, r"has no adjoint; define its rmatvec"),
        (
            lambda: ssd.interop.from_scipy(linalg.aslinearoperator(np.eye(6)), (2, 2, 3)),
            ValueError,
            r"does not map \(2, 2, 3\) to \(6,\) .*batch axes are not part",
        ),
        (
            lambda: ssd.interop.from_scipy(linalg.aslinearoperator(np.eye(6)), "six"),
            TypeError,
            r"from_scipy: expected a shape",
        ),
    ],
)
def test_bad_input_gets_a_clear_error(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("missing", "call"),
    [
        ("scipy.sparse.linalg", lambda: ssd.interop.to_scipy(ssd.Identity(3))),
        ("scipy.sparse.linalg", lambda: ssd.interop.from_scipy(None)),
        ("pylops", lambda: ssd.interop.to_pylops(ssd.Identity(3))),
        ("pylops", lambda: ssd.interop.from_pylops(None)),
    ],
)
def test_a_missing_package_names_the_extra(monkeypatch, missing, call):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf'needs {missing.split(".")[0]}: pip install "ssdcore\[interop\]"'):
        call()


def test_the_core_adapters_need_no_torch_and_load_nothing_before_use():
    code = (
        "import sys, ssdcore as ssd; ssd.interop; assert not {'scipy', 'pylops', 'torch'} & set(sys.modules);"
        "ssd.interop.to_scipy(ssd.Identity(3)); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
