"""Arrays without values, numpy told to raise, half precision: what surrounds a call does not change what it is."""

import math

import numpy as np
import pytest

import ssdcore as ssd

torch = pytest.importorskip("torch")

T = 20
NOISE = ssd.NoiseSchedule.cosine(T)
PROCESSES = {
    "identity": ssd.LinearDiffusion.identity((8, 6), NOISE),
    "resize": ssd.LinearDiffusion.resize((8, 6), NOISE, ssd.ResolutionSchedule.equal(T, 2)),
    "blur": ssd.LinearDiffusion.blur((8, 6), NOISE, np.linspace(0, 40, T + 1)),  # its far modes underflow
    "matrix": ssd.LinearDiffusion.from_operators(
        [None] * 9 + [ssd.Matrix(np.random.default_rng(0).standard_normal((12, 48)) / 20, (8, 6), (12,))] + [None] * 10,
        NOISE,
    ),
}
OPERATORS = {
    "resize": ssd.Resize((8, 6), (4, 3)),
    "banded": ssd.Resize(256, 128),
    "blur": ssd.Blur((8, 6), 1.0),
    "matrix": ssd.Matrix(np.random.default_rng(0).standard_normal((3, 5))),
    "product": ssd.Matrix(np.ones((2, 12)), (4, 3), (2,)) @ (2.0 * ssd.Resize((8, 6), (4, 3))),
    "functional": ssd.Functional(lambda x: 2 * x, None, (5,), (5,), torch),
}


def draws(proc, zeros):
    """Every law of a process at a change of size and away from it, by arrays that `zeros` makes."""
    at = lambda t: zeros((2, 3, *proc.shape(t)))  # noqa: E731
    yield proc.degrade(at(0), T), at(T)
    yield proc.add_noise(at(0), at(5), 5), at(5)
    yield proc.add_noise(at(0), at(0), [2, 3]), at(0)
    yield proc.marginal(at(0), 12).sample(at(12)), at(12)
    yield proc.marginal(at(0), [2, 3]).sample(at(0)), at(0)
    yield proc.marginal(at(0), 12).log_prob(at(12)), zeros((2, 3))
    yield proc.prior(mean=at(T)).sample(at(T)), at(T)
    for s, t in ((3, 5), (7, 15), (9, 10), (15, 20)):
        yield proc.transition(at(s), s, t).sample(at(t)), at(t)
        for eta in (0.0, 0.5, 1.0):
            yield proc.posterior(at(t), at(s), s, t, eta).sample(at(s)), at(s)
    residual = ssd.Covariance.isotropic(proc.shape(3), 0.1)
    yield proc.posterior(at(5), at(3), 3, 5, clean_covariance=residual).sample(at(3)), at(3)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_on_arrays_without_values(name):
    for got, like in draws(PROCESSES[name], lambda shape: torch.zeros(shape, device="meta")):
        assert (got.device.type, got.dtype, got.shape) == ("meta", torch.float32, like.shape)


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_on_arrays_without_values(name):
    op = OPERATORS[name]
    for dtype in (torch.float64, torch.bfloat16):
        x, y = (torch.zeros((2, *shape), device="meta", dtype=dtype) for shape in (op.in_shape, op.out_shape))
        for got, like in ((op(x), y), (op.T(y), x), (op.gram_function(lambda e: 1 + e, x), x)):
            assert (got.device.type, got.dtype, got.shape) == ("meta", dtype, like.shape)


def test_sampling_on_arrays_without_values():
    proc = PROCESSES["resize"]
    zeros = lambda shape: torch.zeros(tuple(shape), device="meta")  # noqa: E731
    x = ssd.sampling.sample(lambda x, t, s: zeros((2, *proc.shape(s))), proc, zeros((2, 4, 3)), zeros, order=2, eta=0.0)
    assert (x.device.type, x.shape) == ("meta", (2, 8, 6))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("name", PROCESSES)
def test_numpy_that_raises_changes_nothing(name, dtype):
    proc = PROCESSES[name]
    random = lambda: np.random.default_rng(0)  # noqa: E731
    kept = [got for got, _ in draws(proc, lambda shape: random().standard_normal(shape).astype(dtype))]
    with np.errstate(all="raise"):
        fresh = ssd.LinearDiffusion(proc.noise, proc.degradations, proc.times)  # nothing is kept from before
        raised = [got for got, _ in draws(fresh, lambda shape: random().standard_normal(shape).astype(dtype))]
    for a, b in zip(kept, raised, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["resize", "blur"])
def test_numpy_that_raises_in_design(name):
    proc = PROCESSES[name]
    spectrum = np.exp(-np.add.outer(np.arange(8.0), np.arange(6.0)) * 60)
    with np.errstate(all="raise"):
        data = ssd.Covariance.cosine(spectrum)
        for eta, order in ((1.0, 1), (0.0, 2)):
            assert math.isfinite(ssd.oracle.sampler_error(proc, data, [3, 9, 20], eta, order=order))
        assert math.isfinite(ssd.oracle.sampler_error(proc, data, [3, 9, 20], second_moments=True))
        for name in ssd.NoiseSchedule.names():
            ssd.NoiseSchedule.named(name, 30).at(np.array([0.5, 3.25, 29.9]))
        ssd.NoiseSchedule.from_log_snr([1400.0, 0.0, -1400.0]).at(1.5)
        tiny = 1e-200 * ssd.Blur((300,), 50.0)
        assert (tiny @ tiny).norm() == 0.0
        assert np.isfinite(tiny.gram_function(lambda e: 1 + e, np.ones(300))).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_densities_of_images_in_half_precision(dtype):
    g = torch.Generator().manual_seed(0)
    mean, x = (torch.randn((3, 512, 512), generator=g).to(dtype) for _ in range(2))
    law = ssd.Gaussian(mean, ssd.Covariance.isotropic((512, 512), 1e-3))
    exact = ssd.Gaussian(mean.double(), law.covariance)
    other = ssd.Gaussian(x, ssd.Covariance.isotropic((512, 512), 2e-3))
    # float32 sums of squares over n elements, whose terms have one sign
    for got, want in (
        (law.log_prob(x), exact.log_prob(x.double())),
        (law.kl(other), exact.kl(ssd.Gaussian(x.double(), other.covariance))),
    ):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)


NUMBERS = {
    "numpy": np.asarray,
    "torch": lambda v: torch.tensor(np.asarray(v)),
    "float32": lambda v: np.asarray(v, np.asarray(v).dtype)[()],
}


@pytest.mark.parametrize("make", NUMBERS.values(), ids=NUMBERS)
def test_numbers_in_arrays_without_axes(make):
    one = ssd.Identity((8, 6))
    assert (make(0.5) * one, one * make(0.5), one / make(0.5)) == (0.5 * one, 0.5 * one, 2 * one)
    assert ssd.Blur((8, 6), make(1.5)) == ssd.Blur((8, 6), 1.5)
    assert ssd.Blur((8, 6), (make(1.5), make(2.0))) == ssd.Blur((8, 6), (1.5, 2.0))
    assert ssd.Blur.heat((8, 6), make(0.5)) == ssd.Blur.heat((8, 6), 0.5)
    assert ssd.Covariance.isotropic((8, 6), make(0.5)) == ssd.Covariance.isotropic((8, 6), 0.5)
    noise = ssd.NoiseSchedule.edm(make(T), make(0.002), make(80.0), make(7.0))
    assert noise == ssd.NoiseSchedule.edm(T)
    levels = ssd.ResolutionSchedule.convex(make(T), make(2), make(0.5))
    assert levels == ssd.ResolutionSchedule.convex(T, 2, 0.5)
    proc = ssd.LinearDiffusion.resize((8, 6), noise, levels, factor=make(2.0))
    assert proc == ssd.LinearDiffusion.resize((8, 6), noise, levels)
    x = np.ones((2, 8, 6))
    got, want = (
        proc.posterior(x, x, s, t, eta).sample(x) for s, t, eta in ((make(2), make(3), make(0.5)), (2, 3, 0.5))
    )
    np.testing.assert_array_equal(got, want)


WIDTHS = np.linspace(0, 2, T + 1)
FROM_ARRAYS = {
    "Matrix": lambda a: ssd.Matrix(a([[1.0, 2.0], [0.5, 3.0]])),
    "Separable": lambda a: ssd.Separable([a([[1.0, 2.0]]), a([[0.5, 0.25], [1.0, 1.0]])]),
    "dense": lambda a: ssd.Covariance.dense(a([[2.0, 1.0], [1.0, 2.0]])),
    "cosine": lambda a: ssd.Covariance.cosine(a([2.0, 1.0])),
    "of_modes": lambda a: ssd.Covariance.of_modes(ssd.Resize(4, 2), a([2.0, 1.0]), a(0.5)),
    "levels": lambda a: ssd.NoiseSchedule(a([1.0, 0.5]), a([0.0, 0.5])),
    "from_betas": lambda a: ssd.NoiseSchedule.from_betas(a([0.25, 0.5])),
    "from_log_snr": lambda a: ssd.NoiseSchedule.from_log_snr(a([2.0, -2.0])),
    "scaled": lambda a: ssd.NoiseSchedule.edm(1).scaled(a([1.0, 0.5])),
    "blur": lambda a: ssd.LinearDiffusion.blur((8, 6), NOISE, a((WIDTHS * 4).round() / 4)),
    "prior": lambda a: PROCESSES["resize"].prior(covariance=a(np.eye(12))).covariance,
    "sampler_error": lambda a: ssd.oracle.sampler_error(
        ssd.LinearDiffusion.identity(2, NOISE), a([[2.0, 1.0], [1.0, 2.0]]), [3, 20], mean=a([0.5, 0.0])
    ),
    "fit": lambda a: ssd.oracle.fit(a(np.arange(24.0).reshape(2, 3, 4)), "dense").covariance,
    "shape": lambda a: ssd.Resize(a([8, 6]), (a(4), 3)),
    "axis": lambda a: ssd.Identity(a(4)),
    "respace": lambda a: PROCESSES["resize"].respace(a([2, 20])),
}
GRADIENTS = [name for name in FROM_ARRAYS if name not in ("shape", "axis", "respace")]


@pytest.mark.parametrize("name", FROM_ARRAYS)
def test_arrays_of_every_library_make_the_same_objects(name):
    jax = pytest.importorskip("jax.numpy")
    make = FROM_ARRAYS[name]
    wanted = make(lambda v: np.asarray(v).tolist())
    half = torch.float32 if name == "from_log_snr" else torch.bfloat16  # every number here is one of bfloat16's
    for library in (
        np.asarray,
        jax.asarray,
        lambda v: torch.tensor(np.asarray(v)),
        lambda v: torch.tensor(np.asarray(v)).to(half) if np.asarray(v).dtype.kind == "f" else torch.tensor(v),
        lambda v: np.asarray(v, dtype=object) if np.ndim(v) else v,
    ):
        got = make(library)
        assert got == wanted if not isinstance(wanted, float) else got == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("name", GRADIENTS)
def test_arrays_that_are_no_known_real_numbers_are_refused(name):
    jax = pytest.importorskip("jax")
    make = FROM_ARRAYS[name]

    def masked(v):
        return np.ma.masked_array(v, mask=np.zeros(np.shape(v), bool)) if np.ndim(v) else v

    for library, message in (
        (lambda v: torch.tensor(np.asarray(v), requires_grad=True), "a gradient would lose it"),
        (lambda v: np.asarray(v) + 0j if np.ndim(v) else v, "expected real numbers"),
        (lambda v: np.asarray(v).astype(str) if np.ndim(v) else v, "expected real numbers"),
        (masked, "would lose its mask"),
    ):
        with pytest.raises(TypeError, match=message):
            make(library)
    with pytest.raises(TypeError, match="that are known, got an array that is traced"):
        jax.jit(lambda one: (make(lambda v: one * np.asarray(v)), one)[1])(1.0)


def test_levels_of_an_array_of_times():
    jax = pytest.importorskip("jax")
    levels = ssd.ResolutionSchedule.thresholds([3, 3, 9])
    times = [0, 2, 3, 8, 9, 1000]
    wanted = [levels.level(t) for t in times]
    assert wanted == [0, 0, 2, 2, 3, 3]
    for got in (
        levels.level(times),
        levels.level(torch.tensor(times)),
        levels.level(jax.numpy.asarray(times)),
        jax.jit(levels.level)(jax.numpy.asarray(times)),
    ):
        assert got.tolist() == wanted
    assert levels.level(torch.tensor(9)) == 3
    for bad, error in ((-1, ValueError), ([1, -1], ValueError), (1.5, TypeError), ("3", TypeError)):
        with pytest.raises(error, match="time"):
            levels.level(bad)


def test_numbers_that_would_lose_a_gradient_are_refused():
    scale = torch.tensor(0.5, requires_grad=True)
    for use in (
        lambda: scale * ssd.Identity(3),
        lambda: ssd.Blur(8, scale),
        lambda: ssd.Covariance.isotropic(3, scale),
    ):
        with pytest.raises(TypeError, match=r"requires a gradient would lose it here; pass value\.item"):
            use()


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-8, 1e8, 1e20, 1e30])
def test_operators_of_extreme_norm_are_checked_as_any_other(scale):
    a = np.random.default_rng(0).standard_normal((3, 5))
    for right in (ssd.Matrix(scale * a), scale * ssd.Resize((6, 4), (3, 2))):
        assert ssd.testing.check_operator(right).passed
    ours = lambda m: lambda x: (x.astype(np.float64) @ (scale * m)).astype(x.dtype)  # noqa: E731
    for wrong in (ssd.Functional(ours(a.T), ours(1.01 * a), 5, 3), ssd.Functional(ours(a.T), ours(-a), 5, 3)):
        for dtypes in (None, "float32", "float16"):
            with pytest.raises(ssd.testing.CheckFailed, match="adjoint"):
                ssd.testing.check_operator(wrong, dtypes=dtypes)
    buffer = np.empty((2, 3), np.float32)

    def reused(x):
        return np.matmul(x, (scale * a.T).astype(np.float32), out=buffer) if x.shape == (2, 5) else x @ (scale * a.T)

    with pytest.raises(ssd.testing.CheckFailed, match="results_kept"):
        ssd.testing.check_operator(ssd.Functional(reused, ours(a), 5, 3), dtypes="float32")


def layer(dtype):
    convolution = torch.nn.Conv1d(1, 1, 3, padding=1, bias=False, dtype=dtype)
    with torch.no_grad():
        convolution.weight[:] = torch.tensor([0.3, -0.5, 0.2])
    apply = lambda x: convolution(x.reshape(-1, 1, 8)).reshape(x.shape)  # noqa: E731
    return convolution.weight, ssd.Functional(apply, None, 8, 8, torch, dtype=dtype)


def test_a_layer_of_float32_weights_is_checked_in_float32():
    _, op = layer(torch.float32)
    for report in (ssd.testing.check_operator(op, xp=torch), ssd.testing.check_operator(op)):  # torch: it says so
        assert {row.dtype for row in report.rows} == {"float32"}


@pytest.mark.parametrize("form", ["alone", "scaled", "product", "sum", "gram"])
def test_gradients_reach_the_weights_of_a_layer(form):
    weight, op = layer(torch.float64)
    half = 0.5 * ssd.Identity(8)
    used = {
        "alone": op,
        "scaled": (-2.0 * op).T,
        "product": ssd.Matrix(np.eye(8)[::-1]) @ op,
        "sum": op + half,
        "gram": op.gram_operator(lambda e: 1 + e),
    }[form]
    with torch.no_grad():
        used.norm()  # what is learnt of the operator here must not be kept
    g = torch.Generator().manual_seed(0)
    x, c = (torch.randn(3, 8, dtype=torch.float64, generator=g) for _ in range(2))
    eye = torch.eye(8, dtype=torch.float64)
    for value, matrix in (
        (used.gram_function(lambda e: 1 / (1 + e), x), lambda m: torch.linalg.inv(eye + m.T @ m)),
        (used(x), lambda m: m.T),
        (used.T(x), lambda m: m),
    ):
        (got,) = torch.autograd.grad((value * c).sum(), weight)
        m = used(eye).T
        (want,) = torch.autograd.grad(((x @ matrix(m)) * c).sum(), weight)
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


def test_what_learns_says_why_it_has_no_decomposition():
    _, op = layer(torch.float64)
    with pytest.raises(ValueError, match="weights that learn"):
        op.singular_values()
    proc = ssd.LinearDiffusion.from_operators([None, 0.5 * op], ssd.NoiseSchedule([1, 0.9, 0.5], [0, 0.4, 0.9]))
    x = torch.ones(2, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="not kept while its weights learn; use eta = 1, or weights that need"):
        proc.posterior(x, x, 1, 2, eta=0.5)


def test_what_cannot_be_mapped_or_traced_says_what_it_needs():
    a = np.ones((3, 5))
    op = ssd.Functional(lambda v: a @ v, lambda v: a.T @ v, 5, 3)
    with pytest.raises(ValueError, match=r"`apply` failed for an array shaped \(2, 5\).*must take any leading axes"):
        op(np.ones((2, 5)))
    jax = pytest.importorskip("jax")
    large = ssd.Functional(lambda x: 0.5 * x, lambda x: 0.5 * x, 5000, 5000, jax.numpy)
    with pytest.raises(TypeError, match="cannot trace; call it outside"):
        jax.jit(lambda x: large.gram_function(lambda e: 1 + e, x))(jax.numpy.ones(5000))
