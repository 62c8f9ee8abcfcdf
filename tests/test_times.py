"""Times of every kind: whole and real, one and many, of every library, known and traced; and schedules between them."""

import math
import pickle

import numpy as np
import pytest

import ssdcore as ssd

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
jnp = jax.numpy

EPS = np.finfo(np.float64).eps
T = 60
NOISE = ssd.NoiseSchedule.linear(T)
RESIZE = ssd.LinearDiffusion.resize((8, 8), NOISE, ssd.ResolutionSchedule.equal(T, 3))
BLUR = ssd.LinearDiffusion.blur((6, 5), NOISE, np.linspace(0, 2, T + 1))


def mixing() -> ssd.LinearDiffusion:
    """Operators of which several keep the shape: one state shape, three degradations."""
    ops = [None] * T
    ops[9] = 0.9 * ssd.Blur((6,), 1.0)
    ops[19] = ssd.Matrix(np.random.default_rng(0).standard_normal((6, 6)) / 9)
    ops[39] = ssd.Resize((6,), (3,))
    return ssd.LinearDiffusion.from_operators(ops, NOISE)


PROCESSES = {"resize": RESIZE, "blur": BLUR, "mixing": mixing(), "respaced": RESIZE.respace([1, 5, 19, 22, 40, 55, 60])}
ZERO_D = {
    "python": int,
    "numpy": np.int64,
    "numpy 0-d": np.asarray,
    "torch": torch.tensor,
    "jax": jnp.int32,
}


@pytest.mark.parametrize("make", ZERO_D.values(), ids=ZERO_D)
def test_one_time_of_any_library_is_that_time(make):
    assert RESIZE.alpha(make(30)) == RESIZE.alpha(30)
    assert RESIZE.shape(make(30)) == (4, 4)
    x0, noise = np.random.default_rng(0).standard_normal((2, 2, 8, 8))
    np.testing.assert_array_equal(RESIZE.marginal(x0, make(5)).mean, RESIZE.marginal(x0, 5).mean)
    np.testing.assert_array_equal(RESIZE.add_noise(x0, noise, make(5)), RESIZE.add_noise(x0, noise, 5))


def test_one_of_two_times_may_be_an_array():
    """One time for all items beside one for each, on either side."""
    x, many, one = np.random.default_rng(0).standard_normal((2, 8, 8)), np.array([3, 7]), 12
    law = RESIZE.transition(x, many, one)
    each = [RESIZE.transition(x[i], int(s), one).mean for i, s in enumerate(many)]
    np.testing.assert_allclose(law.mean, each, atol=1e-14)
    law = RESIZE.transition(x, 2, many)
    np.testing.assert_allclose(
        law.mean, [RESIZE.transition(x[i], 2, int(t)).mean for i, t in enumerate(many)], atol=1e-14
    )


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_batch_of_times_is_each_item_at_its_own(name, library):
    proc = PROCESSES[name]
    rng = np.random.default_rng(1)
    array = {"numpy": np.asarray, "torch": torch.tensor}[library]
    times_by_shape = {shape: [t for t in range(proc.steps + 1) if proc.shape(t) == shape] for shape in proc.shapes}
    for shape, times in times_by_shape.items():
        t = rng.choice(times, 7)
        x0, noise = rng.standard_normal((7, 2, *proc.shape(0))), rng.standard_normal((7, 2, *shape))
        low = [array(x.astype(np.float32)) for x in (x0, noise)]
        expected = np.stack([proc.marginal(a, int(k)).sample(b) for a, b, k in zip(x0, noise, t)])
        eps = np.finfo(np.float32).eps
        for given in (t, array(t)):
            got = proc.add_noise(*low, given)
            assert got.dtype == low[0].dtype
            np.testing.assert_allclose(np.asarray(got), expected, atol=64 * eps * np.abs(expected).max())
        np.testing.assert_array_equal(proc.add_noise(*low, t.tolist()), proc.add_noise(*low, t))
        clean = np.stack([proc.degrade(a, int(k)) for a, k in zip(x0, t)])
        np.testing.assert_allclose(np.asarray(proc.degrade(low[0], array(t))), clean, atol=64 * eps * np.abs(x0).max())


@pytest.mark.parametrize("name", ["resize", "blur", "mixing"])
def test_traced_times_in_add_noise_are_those_of_the_shape_of_the_noise(name):
    proc = PROCESSES[name]
    rng = np.random.default_rng(2)
    shape = proc.shapes[min(1, len(proc.shapes) - 1)] if name != "mixing" else proc.shapes[0]
    t = rng.choice([t for t in range(proc.steps + 1) if proc.shape(t) == shape], 5)
    x0, noise = (rng.standard_normal((5, *s)).astype(np.float32) for s in (proc.shape(0), shape))
    known = proc.add_noise(x0, noise, t)
    tolerance = 64 * np.finfo(np.float32).eps * np.abs(known).max()
    np.testing.assert_allclose(jax.jit(proc.add_noise)(x0, noise, t), known, atol=tolerance)
    np.testing.assert_allclose(jax.jit(jax.vmap(proc.add_noise))(x0, noise, t), known, atol=tolerance)
    by_torch = torch.func.vmap(proc.add_noise)(*(torch.tensor(x) for x in (x0, noise, t)))
    np.testing.assert_allclose(by_torch, known, atol=tolerance)


def test_levels_of_arrays_keep_library_and_shape():
    t = np.array([[0, 3], [30, 60]])
    np.testing.assert_array_equal(RESIZE.alpha(t), RESIZE.noise.alpha[t])
    for array, dtype in ((torch.tensor, torch.float32), (jnp.asarray, jnp.float32)):
        got = RESIZE.sigma(array(t))
        assert (got.dtype, tuple(got.shape)) == (dtype, (2, 2))
        np.testing.assert_allclose(np.asarray(got), RESIZE.noise.sigma[t], rtol=1e-6)
    log_snr = RESIZE.log_snr(t)
    assert log_snr[0, 0] == math.inf
    np.testing.assert_allclose(log_snr.reshape(-1)[1:], RESIZE.noise.log_snr()[[2, 29, 59]])
    assert RESIZE.log_snr(30) == pytest.approx(RESIZE.noise.log_snr()[29])
    np.testing.assert_allclose(jax.jit(RESIZE.alpha)(jnp.asarray(t)), RESIZE.noise.alpha[t], rtol=1e-6)


SCHEDULES = {
    "linear": NOISE,
    "cosine": ssd.NoiseSchedule.cosine(T),
    "rectified_flow": ssd.NoiseSchedule.rectified_flow(T),
    "edm": ssd.NoiseSchedule.edm(T),
    "log_snr": ssd.NoiseSchedule.from_log_snr([*np.linspace(9, -9, T - 1), -math.inf]),
    "own": ssd.NoiseSchedule(np.linspace(1, 0.2, T + 1), np.linspace(0, 3, T + 1)),
    "matched linear": RESIZE.noise,
    "matched flow": ssd.LinearDiffusion.resize(
        (8, 8), ssd.NoiseSchedule.rectified_flow(T), ssd.ResolutionSchedule.equal(T, 3)
    ).noise,
    "matched edm": ssd.LinearDiffusion.resize(
        (8, 8), ssd.NoiseSchedule.edm(T), ssd.ResolutionSchedule.equal(T, 3)
    ).noise,
    "one step": ssd.NoiseSchedule.from_log_snr([-math.inf]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_real_times_meet_the_whole_ones_and_lie_between_them(name):
    noise = SCHEDULES[name]
    grid = np.linspace(0, noise.steps, 7 * noise.steps + 1)
    alpha, sigma = noise.at(grid)
    whole = np.arange(0, len(grid), 7)
    np.testing.assert_array_equal(alpha[whole], noise.alpha)
    np.testing.assert_array_equal(sigma[whole], noise.sigma)
    with np.errstate(divide="ignore"):
        ratio = sigma / alpha
    same = np.repeat(np.floor(grid[:-1]), 1) == np.floor(grid[1:])  # across whole times a factor may step
    assert (np.diff(ratio)[same & np.isfinite(ratio[1:])] > 0).all()
    if noise.normalisation == "sum":
        np.testing.assert_allclose(alpha + sigma, 1, atol=4 * EPS)
    elif noise.normalisation == "signal":
        np.testing.assert_allclose(alpha, 1, atol=4 * EPS)
    elif name != "own":
        np.testing.assert_allclose(np.hypot(alpha, sigma), 1, atol=16 * EPS)
    for k in (3, 2 * noise.steps + 1):
        assert noise.at(float(grid[k])) == pytest.approx((alpha[k], sigma[k]), rel=8 * EPS)
    # continuous from the left end of a step: no jump but at whole times
    below, above = noise.at(np.arange(noise.steps) + 1e-9), (noise.alpha[:-1], noise.sigma[:-1])
    np.testing.assert_allclose(below, above, atol=1e-4 if name == "one step" else 2e-6)
    got = jax.jit(lambda t: jnp.stack(noise.at(t)))(jnp.asarray(grid, jnp.float32))
    np.testing.assert_allclose(got, [alpha, sigma], rtol=2e-4, atol=2e-4)
    got = torch.stack(noise.at(torch.tensor(grid)))
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got, [alpha, sigma], rtol=64 * EPS, atol=EPS)


def test_named_functions_between_whole_times():
    cosine = ssd.NoiseSchedule.cosine(1000)
    f = lambda t: math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2)  # noqa: E731
    assert cosine.at(500.5)[0] == pytest.approx(f(500.5) / f(0), rel=1e-12)
    beta = np.linspace(0.1 / T, 20 / T, T)
    assert NOISE.at(4.25)[0] ** 2 == pytest.approx(np.prod(1 - beta[:4]) * (1 - beta[4]) ** 0.25, rel=1e-13)
    assert ssd.NoiseSchedule.rectified_flow(10).at(3.5) == (0.65, 0.35)
    edm = ssd.NoiseSchedule.edm(18)
    expected = [(0.002 ** (1 / 7) + i / 17 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7 for i in range(18)]
    np.testing.assert_allclose(edm.sigma[1:], expected, rtol=1e-13)
    assert edm.at(0.5) == (1.0, 0.001)
    assert edm.at(9.5)[1] == pytest.approx((0.002 ** (1 / 7) + 8.5 / 17 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7)
    assert (ssd.NoiseSchedule.edm(1).sigma == [0, 80]).all()
    own = ssd.NoiseSchedule.from_log_snr([2.0, -2.0])
    assert own.at(1.5) == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)))  # log-SNR 0, half way


def test_names_are_one_table():
    for name in ssd.NoiseSchedule.names():
        assert ssd.NoiseSchedule.named(name, 40) == getattr(ssd.NoiseSchedule, name)(40)
    for name in ssd.ResolutionSchedule.names():
        make = getattr(ssd.ResolutionSchedule, name)
        assert ssd.ResolutionSchedule.named(name, 40, 3) == make(40, 3)
        if name != "equal":
            assert ssd.ResolutionSchedule.named(name, 40, 3, 3.0) == make(40, 3, 3.0)
    assert hash(ssd.NoiseSchedule.linear(40)) == hash(ssd.NoiseSchedule.linear(40)) != hash(NOISE)
    assert (ssd.NoiseSchedule.linear(40) == "linear") is False


def test_matched_noise_keeps_its_normalisation_and_its_proof():
    levels = ssd.ResolutionSchedule.equal(100, 3)
    for name in ("rectified_flow", "edm"):
        base = ssd.NoiseSchedule.named(name, 100)
        for kernel in ("box", "bilinear", "bicubic", "lanczos3"):
            proc = ssd.LinearDiffusion.resize((9, 12), base, levels, kernel=kernel, factor=1.5)  # admissible: it builds
            kept = proc.noise.alpha + proc.noise.sigma if name == "rectified_flow" else proc.noise.alpha
            np.testing.assert_allclose(kept, 1, atol=4 * EPS)
            kappa = np.ones(101)
            for t in proc.size_changes:
                kappa[t:] *= proc.operator(t - 1, t).norm()
            inside = slice(1, 100)
            ratio = proc.noise.sigma[inside] / proc.noise.alpha[inside]
            np.testing.assert_allclose(ratio, (kappa * base.sigma)[inside] / base.alpha[inside], rtol=1e-12)


def test_the_size_change_of_pyramid_flow_and_pixelflow_to_rounding():
    """Their renoising, (1 + s)/2 · nearest upsampling + √3/2 (1 − s) n' with off-diagonal −1/3, is posterior(eta=0)."""
    flow = ssd.NoiseSchedule.rectified_flow(100)
    proc = ssd.LinearDiffusion.resize((8, 8), flow, ssd.ResolutionSchedule.thresholds([40]), kernel="box")
    # both sides of the change at the same base time: as a process of one step, whose noise is matched
    s = flow.alpha[39]
    end = 2 * s / (1 + s)  # Pyramid-Flow's end of the low-resolution stage
    noise = ssd.NoiseSchedule(np.array([1, s, end]), np.array([0, 1 - s, 1 - end]))
    pair = ssd.LinearDiffusion.from_operators([None, proc.operator(39, 40)], noise)
    rng = np.random.default_rng(0)
    low, detail_free = rng.standard_normal((3, 4, 4)), rng.standard_normal((3, 4, 4))
    upsample = lambda x: np.kron(x, np.ones((1, 2, 2)))  # noqa: E731
    law = pair.posterior(low, upsample(detail_free), 1, 2, eta=0.0)
    np.testing.assert_allclose(law.mean, (1 + s) / 2 * upsample(low), atol=32 * EPS)
    block = np.full((4, 4), -1 / 3) + 4 / 3 * np.eye(4)
    order = np.arange(64).reshape(4, 2, 4, 2).transpose(0, 2, 1, 3).reshape(-1)  # pixels, block by block
    expected = (math.sqrt(3) / 2 * (1 - s)) ** 2 * np.kron(np.eye(16), block)
    np.testing.assert_allclose(law.covariance.as_matrix()[np.ix_(order, order)], expected, atol=32 * EPS)
    # and matched noise is what gives that end
    at_change = ssd.NoiseSchedule(np.array([1, s, s]), np.array([0, 1 - s, 1 - s])).scaled(np.array([1, 1, 0.5]))
    assert at_change.alpha[2] == pytest.approx(end, rel=4 * EPS)


X0, BIG, SMALL = np.zeros((2, 8, 8)), np.zeros((2, 8, 8)), np.zeros((2, 4, 4))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RESIZE.add_noise(X0, BIG, np.array([1, 30])), ValueError, r"add_noise takes times of one size; these have 8×8 and 4×4: split the batch by `proc.paths`"),
        (lambda: RESIZE.degrade(X0, torch.tensor([1, 30])), ValueError, "degrade takes times of one size"),
        (lambda: RESIZE.add_noise(X0, BIG, np.array([1, 2, 3])), ValueError, r"one for each item of the leading axis; got times shaped \(3,\)"),
        (lambda: RESIZE.add_noise(X0, BIG, np.array([[1, 2]])), ValueError, "one time, or one for each item"),
        (lambda: RESIZE.add_noise(np.zeros((8, 8)), np.zeros((8, 8)), np.array([1])), ValueError, "one for each item"),
        (lambda: RESIZE.add_noise(X0, SMALL, 5), ValueError, r"expected noise shaped \(2, 8, 8\).* got \(2, 4, 4\)"),
        (lambda: RESIZE.add_noise(X0, SMALL, np.array([5, 5])), ValueError, "expected noise shaped"),
        (lambda: RESIZE.add_noise(SMALL, SMALL, 30), ValueError, "add_noise: x0: expected trailing axes"),
        (lambda: RESIZE.add_noise(X0, torch.zeros(2, 8, 8), 5), TypeError, "two namespaces"),
        (lambda: RESIZE.add_noise(X0, BIG, np.array([1, 61])), ValueError, "time 61 is outside the process, whose times are 0 … 60"),
        (lambda: RESIZE.add_noise(X0, BIG, np.array([1.0, 2.0])), TypeError, "integers, got an array of dtype float64"),
        (lambda: RESIZE.add_noise(X0, BIG, "5"), TypeError, "a time must be an integer or an array of integers"),
        (lambda: RESIZE.add_noise(X0, BIG, []), TypeError, "a time must be an integer"),
        (lambda: RESIZE.add_noise(X0, BIG, True), TypeError, "a time must be an integer"),
        (lambda: RESIZE.shape(np.array([1, 2])), TypeError, "expected one time known as a number, got an array of times"),
        (lambda: RESIZE.alpha(60.5), ValueError, "time 60.5 is outside"),
        (lambda: RESIZE.alpha(math.nan), ValueError, "time nan is outside"),
        (lambda: RESIZE.operator(5, 4), ValueError, "expected times s <= t, got s = 5, t = 4"),
        (lambda: jax.jit(lambda e, t: RESIZE.add_noise(jnp.zeros((8, 8)), e, t))(jnp.zeros((3, 3)), 1), ValueError, "none of 8×8, 4×4, 2×2 is at the end of 3×3"),
        (lambda: NOISE.scaled(np.ones(3)), ValueError, "expected 61 finite positive factors"),
        (lambda: ssd.NoiseSchedule.named("quadratic", 9), ValueError, "one of linear, cosine, rectified_flow, edm, got 'quadratic'"),
        (lambda: ssd.ResolutionSchedule.named("step", 9, 2), ValueError, "one of equal, convex, sigmoid, tanh"),
        (lambda: ssd.ResolutionSchedule.named("equal", 9, 2, 1.0), ValueError, "has no gamma"),
        (lambda: ssd.NoiseSchedule.edm(9, sigma_min=3, sigma_max=2), ValueError, "0 < sigma_min < sigma_max"),
    ],
)  # fmt: skip
def test_bad_times_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_the_constructor_refuses_what_is_no_process():
    flat = ssd.LinearDiffusion.identity((4,), ssd.NoiseSchedule.linear(30)).degradations
    with pytest.raises(ssd.InadmissibleProcess, match="step 2: the transition would need negative noise"):
        ssd.LinearDiffusion(ssd.NoiseSchedule([1, 0.5, 0.5], [0, 0.9, 0.1]), flat, (1, 2))
    with pytest.raises(ssd.InadmissibleProcess, match=r"step 3: alpha rises from 0 to 0\.5"):
        ssd.LinearDiffusion.identity((4,), ssd.NoiseSchedule([1, 0.5, 0, 0.5], [0, 0.5, 1, 0.9]))
    with pytest.raises(ValueError, match="expected 2 increasing times"):
        ssd.LinearDiffusion(ssd.NoiseSchedule([1, 0.5, 0.4], [0, 0.9, 0.9]), flat, (2, 1))
    with pytest.raises(TypeError, match="noise: expected NoiseSchedule, got int"):
        ssd.LinearDiffusion(3, flat, (1, 2))
    # the bound by products of norms is not the truth: each step amplifies another mode, the two together none
    ops = [None, ssd.Matrix(np.diag([2.0, 0.5])), ssd.Matrix(np.diag([0.5, 2.0]))]
    chain = ssd.LinearDiffusion.from_operators(ops, ssd.NoiseSchedule([1, 1, 1, 1], [0, 1, 2, 4])).degradations
    ssd.LinearDiffusion(ssd.NoiseSchedule([1, 1, 1], [0, 1, 1.01]), chain, (1, 3))
    with pytest.raises(ssd.InadmissibleProcess, match="step 2"):
        ssd.LinearDiffusion(ssd.NoiseSchedule([1, 1, 1], [0, 1, 0.99]), chain, (1, 3))


def test_paths_and_names():
    assert [(p.shape, p.target_shape, len(p.times)) for p in RESIZE.paths] == [
        ((8, 8), (8, 8), 20), ((4, 4), (8, 8), 1), ((4, 4), (4, 4), 19), ((2, 2), (4, 4), 1), ((2, 2), (2, 2), 19),
    ]  # fmt: skip
    for proc in PROCESSES.values():
        assert len(repr(proc)) < 400
    assert repr(RESIZE).startswith("LinearDiffusion(8×8 → 4×4 → 2×2 at t = 21, 41, 2 of Resize, NoiseSchedule(T = 60")
    for name in ("multistep", "oracle", "testing", "theorems", "interop", "plotting"):
        assert name in dir(ssd)
        assert hasattr(ssd, name)
    assert not {"importlib", "Any", "TYPE_CHECKING"} & set(dir(ssd))


def test_equal_processes_are_equal_and_go_through_jit_as_arguments():
    def make(gamma=0.5, kernel="bilinear"):
        levels = ssd.ResolutionSchedule.convex(T, 3, gamma)
        return ssd.LinearDiffusion.resize((8, 8), ssd.NoiseSchedule.linear(T), levels, kernel=kernel)

    same, other = make(), make(2.0)
    assert make() == same
    assert hash(make()) == hash(same)
    assert len({same, other, make(kernel="box"), same.respace([5, T]), BLUR, RESIZE}) == 6
    assert pickle.loads(pickle.dumps(same)) == same
    assert same != "process"
    traced = []

    @jax.jit
    def f(proc, noise, levels, x):
        traced.append(levels.starts)
        return proc.marginal(x, 50).mean * noise.alpha[5]

    x = jnp.ones((8, 8))
    for proc in (same, make(), other):
        expected = proc.marginal(np.ones((8, 8)), 50).mean * NOISE.alpha[5]
        np.testing.assert_allclose(f(proc, NOISE, ssd.ResolutionSchedule.equal(T, 2), x), expected, rtol=1e-5)
    assert len(traced) == 2
    for leafless in (same, BLUR, NOISE, ssd.ResolutionSchedule.equal(T, 2)):
        assert jax.tree_util.tree_leaves(leafless) == []
        assert torch.utils._pytree.tree_leaves(leafless) == []


def test_what_a_notebook_shows():
    page = RESIZE._repr_html_()
    assert all(part in page for part in ("8×8", "4×4", "2×2", "21 … 40", "log-SNR"))
    assert page.count("<tr>") == 4
    report = ssd.testing.check_operator(ssd.Resize((6,), (3,)))
    assert str(report).startswith("Resize((6,) -> (3,)) on numpy: passed (")
    assert len(str(report).splitlines()) == 1 + sum(row.status != "passed" for row in report.rows)
    assert len(repr(report)) < 120
    wrong = ssd.Functional(lambda x: 2 * x, lambda y: 3 * y, in_shape=(4,), out_shape=(4,))
    with pytest.raises(ssd.testing.CheckFailed) as caught:
        ssd.testing.check_operator(wrong)
    failed = caught.value.report
    assert "FAILED" in str(failed)
    assert "adjoint" in str(failed)
    assert failed._repr_html_().count("color: #b00020") == len(failed.failures)
    assert "(4,) -&gt; (4,)" in failed._repr_html_()


def test_what_rounding_leaves_of_a_variance_is_no_density():
    noise = ssd.NoiseSchedule([1, 0.7, 0.35], [0, 0.6, 0.3])  # σ_2² = σ_1² (α_2/α_1)²: the second step adds no noise
    proc = ssd.LinearDiffusion.identity((3,), noise)
    law = proc.transition(np.ones(3), 1, 2)
    np.testing.assert_array_equal(law.covariance.as_matrix(), np.zeros((3, 3)))
    with pytest.raises(ValueError, match="no density"):
        law.log_prob(np.ones(3))
    back = proc.posterior(np.ones(3), np.ones(3), 1, 2)
    with pytest.raises(ValueError, match="no density"):
        back.log_prob(np.ones(3))


@pytest.mark.parametrize("name", ["rectified_flow", "edm"])
def test_flow_and_edm_processes_conform(name):
    levels = ssd.ResolutionSchedule.convex(30, 2)
    proc = ssd.LinearDiffusion.resize((6, 4), ssd.NoiseSchedule.named(name, 30), levels)
    assert ssd.testing.check_process(proc, dtypes="float64").passed
