"""Operators against dense matrices, PyTorch, Pillow and closed forms; what they refuse."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ssdcore as ssd
from ssdcore._arrays import namespace_of

EPS = np.finfo(np.float64).eps
RNG_SEED = 7


def rng():
    return np.random.default_rng(RNG_SEED)


def every_operator():
    r = rng()
    return {
        "identity": ssd.Identity((4, 6)),
        "resize": ssd.Resize((8, 6), (4, 5)),
        "resize_1d": ssd.Resize((9,), (4,), kernel="lanczos3"),
        "resize_3d": ssd.Resize((4, 6, 5), (2, 3, 7), kernel="box"),
        "resize_banded": ssd.Resize((260,), (130,), kernel="bicubic"),
        "blur": ssd.Blur((6, 5), (0.7, 1.4)),
        "blur_periodic": ssd.Blur((6, 5), 1.1, boundary="periodic"),
        "separable": ssd.Separable([r.standard_normal((3, 4)), r.standard_normal((5, 2))]),
        "matrix": ssd.Matrix(r.standard_normal((6, 8)), in_shape=(2, 4), out_shape=(3, 2)),
        "transpose": ssd.Resize((8, 6), (4, 5)).T,
        "scaled": -0.3 * ssd.Resize((8, 6), (4, 5)),
        "composition": ssd.Matrix(r.standard_normal((7, 20)), in_shape=(4, 5)) @ ssd.Resize((8, 6), (4, 5)),
        "functional": ssd.Functional(lambda x: x[..., ::2] + x[..., 1::2], lambda y: np.repeat(y, 2, -1), (8,), (4,)),
    }


OPERATORS = every_operator()


@pytest.mark.parametrize("name", OPERATORS)
def test_apply_adjoint_and_norm_agree_with_the_dense_matrix(name):
    op, r = OPERATORS[name], rng()
    dense = op.as_matrix()
    n, m = math.prod(op.in_shape), math.prod(op.out_shape)
    assert dense.shape == (m, n)
    x, y = r.standard_normal((3, 2, *op.in_shape)), r.standard_normal((3, 2, *op.out_shape))
    bound = 8 * n * m * EPS * max(1.0, np.abs(dense).max()) * 4
    np.testing.assert_allclose(op(x).reshape(3, 2, m), x.reshape(3, 2, n) @ dense.T, atol=bound, rtol=0)
    np.testing.assert_allclose(op.T(y).reshape(3, 2, n), y.reshape(3, 2, m) @ dense, atol=bound, rtol=0)
    np.testing.assert_allclose(op.T.as_matrix(), dense.T, atol=bound, rtol=0)
    assert op.norm() == pytest.approx(np.linalg.norm(dense, 2), rel=1e3 * EPS)
    assert op.T.norm() == pytest.approx(op.norm(), rel=1e3 * EPS)
    assert np.sort(op.singular_values().ravel())[-1] == pytest.approx(op.norm(), rel=1e3 * EPS)
    assert op.T.T.in_shape == op.in_shape


@pytest.mark.parametrize("name", [*OPERATORS, "convolution"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_products_are_added_to_a_base_that_stays_as_it_was(name, library):
    op = OPERATORS[name] if name in OPERATORS else ssd.Resize((96, 96), (48, 48))
    convert = np.asarray if library == "numpy" else pytest.importorskip("torch").from_numpy
    if name == "functional" and library == "torch":
        pytest.skip("its functions are numpy's")
    r = rng()
    xp = namespace_of(convert(r.standard_normal(1)))
    for add, apply, ins, outs in (
        (op.add_applied, op, op.in_shape, op.out_shape),
        (op.add_adjoint, op.T, op.out_shape, op.in_shape),
    ):
        for batch, base_batch in (((3, 2), (3, 2)), ((2,), (3, 1)), ((3, 2), (2,)), ((), ())):
            x = r.standard_normal((*batch, *ins)).astype(np.float32)
            base = r.standard_normal((*base_batch, *outs)).astype(np.float32)
            given = convert(x.copy()), convert(base.copy())
            expected = base + -0.7 * np.asarray(apply(convert(x)))
            got = np.asarray(add(xp, given[1], -0.7, given[0]))
            bound = 64 * np.finfo(np.float32).eps * np.abs(expected).max() * math.sqrt(math.prod(ins))
            np.testing.assert_allclose(got, expected, atol=bound, rtol=0)
            assert got.dtype == np.float32
            for array, before in zip(given, (x, base)):
                np.testing.assert_array_equal(np.asarray(array), before)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("side", ["input", "output"])
def test_gram_function_is_the_spectral_function_of_the_dense_gram_matrix(name, side):
    op = OPERATORS[name] if side == "input" else OPERATORS[name].T
    dense = op.as_matrix()
    values, vectors = np.linalg.eigh(dense.T @ dense)
    x = rng().standard_normal((2, *op.in_shape))
    for f in (lambda e: np.sqrt(1 + e), lambda e: 1 / (1 + e), lambda e: e * 0 + 2.0, lambda e: e):
        expected = (vectors * f(np.maximum(values, 0))) @ (vectors.T @ x.reshape(2, -1).T)
        got = op.gram_function(f, x).reshape(2, -1).T
        bound = 100 * len(values) * EPS * np.abs(f(np.maximum(values, 0))).max() * np.linalg.norm(x)
        np.testing.assert_allclose(got, expected, atol=bound, rtol=0)


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("big", "small"),
    [((64, 64), (32, 32)), ((64, 48), (20, 31)), ((9, 7), (4, 7)), ((5, 6), (12, 11)), ((256, 8), (64, 3))],
)
def test_resize_equals_torch(kernel, big, small):
    torch = pytest.importorskip("torch")
    x = torch.as_tensor(rng().standard_normal((2, 3, *big)))
    expected = torch.nn.functional.interpolate(x, size=small, mode=kernel, antialias=True, align_corners=False)
    # torch sums up to `taps` products of its own rounded weights
    taps = 4 * math.prod(max(2, math.ceil(n / m)) for n, m in zip(big, small))
    np.testing.assert_allclose(ssd.Resize(big, small, kernel)(x), expected, atol=8 * taps * EPS * x.abs().max(), rtol=0)


@pytest.mark.parametrize("kernel", ["box", "bilinear", "bicubic", "lanczos3"])
@pytest.mark.parametrize(
    ("big", "small"), [((16, 16), (8, 8)), ((15, 12), (4, 5)), ((6, 5), (9, 16)), ((3, 3), (2, 2))]
)
def test_resize_equals_pillow(kernel, big, small):
    image = pytest.importorskip("PIL.Image")
    filters = {"box": "BOX", "bilinear": "BILINEAR", "bicubic": "BICUBIC", "lanczos3": "LANCZOS"}
    x = rng().standard_normal(big).astype(np.float32)
    expected = np.asarray(image.fromarray(x).resize(small[::-1], getattr(image.Resampling, filters[kernel])))
    # Pillow keeps float32 between its two passes
    np.testing.assert_allclose(ssd.Resize(big, small, kernel)(x), expected, atol=64 * 2**-23 * np.abs(x).max(), rtol=0)


def test_banded_application_equals_the_dense_product():
    op = ssd.Resize((512, 300), (200, 301))
    x = rng().standard_normal((2, 512, 300))
    assert op.axis_matrices()[0].bands, "a long axis should be applied by blocks"
    a, b = (axis.constant.value for axis in op.axis_matrices())
    np.testing.assert_allclose(op(x), a @ x @ b.T, atol=600 * EPS * 5, rtol=0)
    np.testing.assert_allclose(op.T(op(x)), a.T @ (a @ x @ b.T) @ b, atol=600 * EPS * 5, rtol=0)


def test_bilinear_halving_of_eight_has_a_norm_above_one_half():
    """The reason why scale-matched noise must use exact norms and not one half a level."""
    assert ssd.Resize((8,), (4,)).norm() > 0.5
    assert ssd.Resize((8, 8), (4, 4)).norm() == pytest.approx(ssd.Resize((8,), (4,)).norm() ** 2, rel=4 * EPS)


@pytest.mark.parametrize("boundary", ["reflect", "periodic"])
def test_blur_has_the_gaussian_response_on_its_modes(boundary):
    n, sigma = 9, 1.3
    op = ssd.Blur((n,), sigma, boundary)
    j = np.arange(n)
    for k in range(5):
        omega = (1 if boundary == "reflect" else 2) * np.pi * k / n
        mode = np.cos(omega * (j + (0.5 if boundary == "reflect" else 0)))
        np.testing.assert_allclose(op(mode), np.exp(-0.5 * (sigma * omega) ** 2) * mode, atol=32 * n * EPS)
    assert op.T is op
    assert op.norm() == 1.0


def test_blur_widths_add_in_squares_and_heat_is_a_blur():
    a, b = ssd.Blur((6, 7), 0.6), ssd.Blur((6, 7), (0.8, 0.0))
    product = a @ b
    assert isinstance(product, ssd.Blur)
    np.testing.assert_allclose(product.sigma, (1.0, 0.6), rtol=4 * EPS)
    np.testing.assert_allclose(product.as_matrix(), a.as_matrix() @ b.as_matrix(), atol=100 * EPS)
    heat = ssd.Blur.heat((5,), 0.3) @ ssd.Blur.heat((5,), 0.2)
    np.testing.assert_allclose(heat.as_matrix(), ssd.Blur((5,), 1.0).as_matrix(), atol=50 * EPS)
    np.testing.assert_array_equal(ssd.Blur((4, 3), 0.0).as_matrix(), np.eye(12))


def test_composition_keeps_structure():
    resize, blur = ssd.Resize((8, 8), (4, 4)), ssd.Blur((8, 8), 0.7)
    assert isinstance(resize @ blur, ssd.Separable)
    assert isinstance(ssd.Resize((4, 4), (2, 2)) @ resize, ssd.Separable)
    assert isinstance(resize.T @ resize, ssd.Separable)
    assert (resize @ ssd.Identity((8, 8))) is resize
    assert (ssd.Identity((4, 4)) @ resize) is resize
    assert not isinstance(ssd.Blur((8, 8), 1, "periodic") @ blur, ssd.Blur)
    assert isinstance(ssd.Matrix(np.ones((2, 3))) @ ssd.Matrix(np.ones((3, 4))), ssd.Matrix)
    assert (2.0 * resize * 0.5) is resize
    np.testing.assert_allclose((-(3 * blur)).as_matrix(), -3 * blur.as_matrix())
    np.testing.assert_allclose((np.float64(0.5) * resize).as_matrix(), 0.5 * resize.as_matrix())


def test_a_longer_chain_merges_neighbours_and_carries_scalars_in_front():
    mixing = ssd.Matrix(rng().standard_normal((16, 16)), in_shape=(4, 4), out_shape=(4, 4))
    inner = mixing @ ssd.Resize((8, 8), (4, 4))
    chain = (0.5 * ssd.Resize((4, 4), (2, 2))) @ (2.0 * ssd.Blur((4, 4), 1.0)) @ (3.0 * inner)
    expected = 3 * ssd.Resize((4, 4), (2, 2)).as_matrix() @ ssd.Blur((4, 4), 1.0).as_matrix() @ inner.as_matrix()
    np.testing.assert_allclose(chain.as_matrix(), expected, atol=200 * EPS)
    np.testing.assert_allclose(chain.T.as_matrix(), expected.T, atol=200 * EPS)
    assert repr(chain).count("@") == 2
    again = chain.T.T @ ssd.Identity((8, 8))
    np.testing.assert_allclose(again.as_matrix(), expected, atol=200 * EPS)


def test_sparse_matrices_equal_dense_ones_on_every_side():
    sparse = pytest.importorskip("scipy.sparse")
    dense = np.where(rng().random((7, 12)) < 0.3, rng().standard_normal((7, 12)), 0.0)
    op, ref = ssd.Matrix(sparse.csr_array(dense)), ssd.Matrix(dense)
    x, y = rng().standard_normal((2, 12)), rng().standard_normal((2, 7))
    np.testing.assert_allclose(op(x), ref(x), atol=50 * EPS)
    np.testing.assert_allclose(op.T(y), ref.T(y), atol=50 * EPS)
    np.testing.assert_array_equal(op.as_matrix(), dense)
    product = op @ ssd.Matrix(sparse.coo_array(np.eye(12)))
    assert sparse.issparse(product.matrix)
    np.testing.assert_array_equal(product.as_matrix(), dense)
    np.testing.assert_array_equal((op @ ssd.Matrix(np.eye(12))).as_matrix(), dense)
    np.testing.assert_allclose(op.gram_function(np.sqrt, x), ref.gram_function(np.sqrt, x), atol=200 * EPS)
    assert op.norm() == pytest.approx(ref.norm(), rel=100 * EPS)


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_functional_takes_its_adjoint_from_the_vector_jacobian_product(library):
    if library == "torch":
        torch = pytest.importorskip("torch")
        namespace, make = torch, lambda a: torch.as_tensor(a, dtype=torch.float32)
    else:
        jnp = pytest.importorskip("jax.numpy")
        namespace, make = jnp, lambda a: jnp.asarray(a, dtype=jnp.float32)
    op = ssd.Functional(lambda x: x[..., 1:] - 0.5 * x[..., :-1], None, (6,), (5,), namespace=namespace)
    x, y = rng().standard_normal((2, 6)), rng().standard_normal((2, 5))
    left = float((op(make(x)) * make(y)).sum())
    right = float((make(x) * op.T(make(y))).sum())
    assert left == pytest.approx(right, abs=64 * 2**-23 * np.linalg.norm(x) * np.linalg.norm(y))
    if library == "torch":  # jax has no float64 unless asked
        assert op.norm() == pytest.approx(np.linalg.norm(op.as_matrix(), 2), rel=100 * EPS)
        assert (2 * op.T).array_kind == op.array_kind == (op @ ssd.Identity((6,))).array_kind
        np.testing.assert_allclose(
            (op @ ssd.Functional(lambda x: 2 * x, None, (6,), (6,), torch)).as_matrix(),
            2 * op.as_matrix(),
            atol=8 * EPS,
        )


def test_functional_errors():
    with pytest.raises(TypeError, match="pass adjoint="):
        ssd.Functional(lambda x: x, None, (4,), (4,)).T(np.ones(4))
    with pytest.raises(ValueError, match=r"`apply` returned the shape \(2, 4\).*expected \(2, 3\)"):
        ssd.Functional(lambda x: x, lambda y: y, (4,), (3,))(np.ones((2, 4)))
    with pytest.raises(ValueError, match="`adjoint` returned"):
        ssd.Functional(lambda x: x[..., :3], lambda y: y, (4,), (3,)).T(np.ones((2, 3)))
    with pytest.raises(TypeError, match="must be a function"):
        ssd.Functional(3, None, (4,), (4,))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_low_precision_is_kept_and_computed_safely(dtype):
    op = ssd.Resize((64, 64), (8, 8))
    x = rng().uniform(-1, 1, (2, 64, 64)).astype(dtype)
    y = op(x)
    assert y.dtype == dtype
    np.testing.assert_allclose(y, op(x.astype(np.float64)), atol=np.finfo(dtype).eps)


def test_precision_survives_autocast_and_inference_mode():
    torch = pytest.importorskip("torch")
    op = ssd.Resize((12, 12), (6, 6))
    x = torch.as_tensor(rng().standard_normal((1, 12, 12)), dtype=torch.float32)
    with torch.inference_mode():  # the first call makes the constants
        reference = op(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = op(x)
    assert y.dtype == torch.float32
    np.testing.assert_array_equal(y, reference)
    leaf = x.clone().requires_grad_()
    op(leaf).sum().backward()  # constants made in inference mode must not break autograd
    np.testing.assert_allclose(leaf.grad, op.T(torch.ones(1, 6, 6)), atol=1e-6)


def test_operators_travel_between_processes():
    import copy
    import pickle

    op = ssd.Resize((8, 8), (4, 4)) @ ssd.Blur((8, 8), 0.5)
    op(np.ones((8, 8)))
    x = rng().standard_normal((8, 8))
    for twin in (pickle.loads(pickle.dumps(op)), copy.deepcopy(op)):
        np.testing.assert_array_equal(twin(x), op(x))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ssd.Resize((64, 64), (32, 32))(np.ones((8, 3, 32, 64))), ValueError,
         r"Resize\(\(64, 64\) -> \(32, 32\)\): expected trailing axes \(64, 64\), got \(32, 64\) in an array shaped \(8, 3, 32, 64\)"),
        (lambda: ssd.Resize((4,), (2,))(np.ones(4, dtype=int)), TypeError, "expected a real floating-point array, got dtype int"),
        (lambda: ssd.Resize((4,), (2,))(np.ones(4, dtype=complex)), TypeError, "complex"),
        (lambda: ssd.Resize((4,), (2,))([1.0, 2.0, 3.0, 4.0]), TypeError, "got list; convert it first"),
        (lambda: ssd.Resize((4,), (2,))(np.ones(3)), ValueError, r"expected trailing axes \(4,\), got \(3,\)"),
        (lambda: ssd.Resize((4, 4), (2,)), ValueError, "same number of axes"),
        (lambda: ssd.Resize((4, 0), (2, 2)), ValueError, "at least one element"),
        (lambda: ssd.Resize((4.5,), (2,)), TypeError, "tuple of integers"),
        (lambda: ssd.Resize((), ()), TypeError, "non-empty"),
        (lambda: ssd.Resize((4,), (2,), kernel="cubic"), ValueError, "unknown kernel 'cubic'; choose one of box, bilinear"),
        (lambda: ssd.Blur((4,), -1.0), ValueError, "not negative, got -1.0"),
        (lambda: ssd.Blur((4,), math.nan), ValueError, "finite"),
        (lambda: ssd.Blur((4, 4), (1.0, 1.0, 1.0)), ValueError, "one for each axis, got 3"),
        (lambda: ssd.Blur((4,), 1.0, "mirror"), ValueError, "unknown boundary 'mirror'"),
        (lambda: ssd.Blur.heat((4,), -1.0), ValueError, "time must be finite"),
        (lambda: ssd.Separable([]), ValueError, "at least one matrix"),
        (lambda: ssd.Separable([np.ones(3)]), ValueError, "axis 0: expected a matrix"),
        (lambda: ssd.Matrix([[1.0, math.nan]]), ValueError, "holds nan at row 0, column 1"),
        (lambda: ssd.Matrix([[1j]]), TypeError, "expected real numbers"),
        (lambda: ssd.Matrix(np.ones((2, 3)), in_shape=(2, 2)), ValueError, r"does not map \(2, 2\)"),
        (lambda: ssd.Resize((4,), (2,)) @ ssd.Resize((4,), (2,)), ValueError, "the inner operator gives"),
        (lambda: ssd.Resize((4,), (2,)) @ np.ones(4), TypeError, "call it: op"),
        (lambda: ssd.Resize((4,), (2,)) * np.ones(4), TypeError, "takes a real number"),
        (lambda: ssd.Resize((4,), (2,)) * True, TypeError, "takes a real number"),
        (lambda: math.inf * ssd.Resize((4,), (2,)), ValueError, "finite"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_what_came_and_the_mend(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("bad", ["complex", "empty", "nan"])
def test_bad_sparse_matrices_are_refused(bad):
    sparse = pytest.importorskip("scipy.sparse")
    matrix, error = {
        "complex": (sparse.csr_array(np.array([[1j]])), TypeError),
        "empty": (sparse.csr_array((0, 3)), ValueError),
        "nan": (sparse.csr_array(np.array([[math.nan]])), ValueError),
    }[bad]
    with pytest.raises(error):
        ssd.Matrix(matrix)


def test_empty_batches_and_missing_batches_work():
    op = ssd.Resize((4, 4), (2, 2))
    assert op(np.ones((0, 3, 4, 4))).shape == (0, 3, 2, 2)
    assert op(np.ones((4, 4))).shape == (2, 2)
    assert op.gram_function(np.sqrt, np.ones((0, 4, 4))).shape == (0, 4, 4)


def test_dense_matrices_too_large_to_build_are_refused():
    with pytest.raises(ValueError, match="too large to build"):
        ssd.Resize((512, 512), (256, 256)).as_matrix()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["box", "bilinear", "bicubic", "lanczos3"]))
def test_resize_rows_average_and_reverse(n, m, kernel):
    """Constants pass unchanged and, except for box's half-open border, reversing in and out is the same map."""
    a = ssd.Resize((n,), (m,), kernel).as_matrix()
    np.testing.assert_allclose(a.sum(axis=1), 1.0, atol=32 * EPS)
    if kernel != "box":
        np.testing.assert_allclose(a[::-1, ::-1], a, atol=64 * EPS)


def test_import_is_light():
    code = (
        "import sys, ssdcore; heavy = {'torch', 'sympy', 'scipy', 'hypothesis', 'matplotlib', 'jax', 'pytest'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_unknown_attributes_are_named():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ssd.nothing
