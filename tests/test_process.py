"""Processes against brute-force conditioning of the joint Gaussian, and against DDPM's and DDIM's own formulas."""

import gc
import math
import weakref

import numpy as np
import pytest

import ssdcore as ssd

EPS = np.finfo(np.float64).eps
T = 60
NOISE = ssd.NoiseSchedule.linear(T)


def mixing_chain():
    ops = [None] * T
    ops[9] = ssd.Matrix(np.random.default_rng(0).standard_normal((24, 24)) / 12, in_shape=(4, 6), out_shape=(4, 6))
    ops[29] = ssd.Resize((4, 6), (3, 2), kernel="lanczos3")
    ops[30] = 0.7 * ssd.Blur((3, 2), 0.5)
    return ssd.LinearDiffusion.from_operators(ops, NOISE)


def processes():
    levels = ssd.ResolutionSchedule.equal(T, 3)
    return {
        "identity": ssd.LinearDiffusion.identity((3, 4), NOISE),
        "resize": ssd.LinearDiffusion.resize((8, 8), NOISE, levels),
        "paper": ssd.LinearDiffusion.resize((8, 8), NOISE, levels, matched=False),
        "not square": ssd.LinearDiffusion.resize((8, 6), NOISE, levels, factor=1.5, kernel="bicubic"),
        "sizes": ssd.LinearDiffusion.resize((7,), NOISE, levels, sizes=[(7,), (5,), (2,)]),
        "two levels at once": ssd.LinearDiffusion.resize((8, 8), NOISE, ssd.ResolutionSchedule.thresholds([20, 20])),
        "blur": ssd.LinearDiffusion.blur((5, 4), NOISE, np.linspace(0, 2, T + 1) ** 2),
        "periodic blur": ssd.LinearDiffusion.blur((6,), NOISE, np.sqrt(np.linspace(0, 1, T + 1)), boundary="periodic"),
        "chain": mixing_chain(),
        "respaced": ssd.LinearDiffusion.resize((8, 8), NOISE, levels).respace([1, 5, 19, 22, 40, 55, 60]),
    }


PROCESSES = processes()
PAIRS = {"respaced": [(0, 1), (1, 2), (2, 4), (0, 7), (3, 5)]}
DEFAULT_PAIRS = [(0, 1), (1, 2), (8, 12), (19, 20), (20, 21), (29, 31), (10, 45), (40, 41), (0, 60)]


def cases():
    return [
        pytest.param(name, s, t, id=f"{name} {s}-{t}") for name in PROCESSES for s, t in PAIRS.get(name, DEFAULT_PAIRS)
    ]


def brute_force(proc, s, t, clean, x_t):
    """Condition the joint Gaussian of (x_s, x_t), with x_t = M x_s + independent noise, in float64."""
    m = proc.degradation(s, t).as_matrix()
    n = m.shape[1]
    mu = proc.alpha(s) * clean.reshape(-1, n)
    cov_s, cov_t = proc.sigma(s) ** 2 * np.eye(n), proc.sigma(t) ** 2 * np.eye(m.shape[0])
    gain = np.linalg.solve(cov_t, m @ cov_s).T
    mean = mu + (x_t.reshape(-1, m.shape[0]) - mu @ m.T) @ gain.T
    return mean, cov_s - gain @ m @ cov_s, cov_t - m @ cov_s @ m.T


@pytest.mark.parametrize(("name", "s", "t"), cases())
def test_posterior_and_transition_equal_brute_force_conditioning(name, s, t):
    proc = PROCESSES[name]
    rng = np.random.default_rng(1)
    clean, x_t = rng.standard_normal((2, 3, *proc.shape(s))), rng.standard_normal((2, 3, *proc.shape(t)))
    mean, covariance, transition = brute_force(proc, s, t, clean, x_t)
    n = mean.shape[1]
    bound = 64 * n * EPS * max(np.abs(clean).max(), np.abs(x_t).max()) * max(1.0, proc.degradation(s, t).norm())
    posterior = proc.posterior(x_t, clean, s, t)
    np.testing.assert_allclose(posterior.mean.reshape(6, n), mean, atol=bound)
    np.testing.assert_allclose(posterior.covariance.as_matrix(), covariance, atol=64 * n * EPS)
    step = proc.transition(clean, s, t)
    np.testing.assert_allclose(step.mean, proc.degradation(s, t)(clean), atol=bound)
    np.testing.assert_allclose(step.covariance.as_matrix(), transition, atol=64 * n * EPS)


@pytest.mark.parametrize(("name", "s", "t"), cases())
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_every_eta_has_the_same_marginal(name, s, t, eta):
    """With x_t drawn from its marginal the posterior's mean varies by σ_t² B Bᵀ, and Σ + σ_t² B Bᵀ must be σ_s² I."""
    proc = PROCESSES[name]
    shape_s, shape_t = proc.shape(s), proc.shape(t)
    n, m = math.prod(shape_s), math.prod(shape_t)
    unit = np.eye(m).reshape(m, *shape_t)
    zero = np.zeros((m, *shape_s))
    posterior = proc.posterior(unit, zero, s, t, eta=eta)
    b = posterior.mean.reshape(m, n).T
    spread = posterior.covariance.as_matrix() + proc.sigma(t) ** 2 * b @ b.T
    np.testing.assert_allclose(spread, proc.sigma(s) ** 2 * np.eye(n), atol=256 * n * EPS)
    clean = np.random.default_rng(2).standard_normal(proc.shape(0))
    at_mean = proc.posterior(proc.marginal(clean, t).mean, proc.clean(clean, s), s, t, eta=eta)
    np.testing.assert_allclose(at_mean.mean, proc.marginal(clean, s).mean, atol=256 * n * EPS * np.abs(clean).max())


@pytest.mark.parametrize("name", PROCESSES)
def test_degradations_chain_and_marginals_follow_from_transitions(name):
    proc = PROCESSES[name]
    times = [0, 1, proc.steps // 3, proc.steps // 2 + 1, proc.steps]
    for s, t, u in zip(times, times[1:], times[2:]):
        whole = proc.degradation(s, u).as_matrix()
        parts = proc.degradation(t, u).as_matrix() @ proc.degradation(s, t).as_matrix()
        np.testing.assert_allclose(whole, parts, atol=256 * EPS * max(1.0, np.abs(whole).max()))
    x0 = np.random.default_rng(3).standard_normal((2, *proc.shape(0)))
    for t in times:
        marginal = proc.marginal(x0, t)
        assert marginal.mean.shape == (2, *proc.shape(t))
        np.testing.assert_allclose(marginal.mean, proc.alpha(t) * proc.clean(x0, t))
        assert marginal.covariance.as_matrix()[0, 0] == pytest.approx(proc.sigma(t) ** 2, rel=4 * EPS)
    assert proc.clean(x0, 0) is x0


def test_ddpm_and_ddim_are_the_identity_process():
    proc = PROCESSES["identity"]
    rng = np.random.default_rng(4)
    x0, x_t = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 3, 4))
    for t in (1, 2, 30, 60):
        bar_t, bar_s = proc.alpha(t) ** 2, proc.alpha(t - 1) ** 2
        beta = 1 - bar_t / bar_s
        mean = math.sqrt(bar_s) * beta / (1 - bar_t) * x0 + math.sqrt(1 - beta) * (1 - bar_s) / (1 - bar_t) * x_t
        g = proc.posterior(x_t, x0, t - 1, t)
        np.testing.assert_allclose(g.mean, mean, atol=64 * EPS)
        np.testing.assert_allclose(
            g.covariance.as_matrix(), beta * (1 - bar_s) / (1 - bar_t) * np.eye(12), atol=8 * EPS
        )
        noise = (x_t - math.sqrt(bar_t) * x0) / math.sqrt(1 - bar_t)
        ddim = proc.posterior(x_t, x0, t - 1, t, eta=0.0)
        np.testing.assert_allclose(ddim.mean, math.sqrt(bar_s) * x0 + math.sqrt(1 - bar_s) * noise, atol=64 * EPS)
        np.testing.assert_allclose(ddim.covariance.as_matrix(), 0, atol=8 * EPS)
        # DDIM's eta scales the same standard deviation
        half = proc.posterior(x_t, x0, t - 1, t, eta=0.5)
        np.testing.assert_allclose(half.covariance.as_matrix(), 0.25 * g.covariance.as_matrix(), atol=8 * EPS)


def test_blurring_diffusion_is_ddpm_for_each_frequency():
    widths = np.linspace(0, 2, T + 1)
    proc = ssd.LinearDiffusion.blur((8,), NOISE, widths)
    s, t = 20, 33
    omega = np.pi * np.arange(8) / 8
    ratio = proc.alpha(t) / proc.alpha(s) * np.exp(-0.5 * (widths[t] ** 2 - widths[s] ** 2) * omega**2)
    values = np.linalg.eigvalsh(proc.posterior(np.zeros(8), np.zeros(8), s, t).covariance.as_matrix())
    expected = proc.sigma(s) ** 2 * (1 - proc.sigma(s) ** 2 / proc.sigma(t) ** 2 * ratio**2)
    np.testing.assert_allclose(values, np.sort(expected), atol=64 * EPS)


def test_sampling_a_size_change_has_the_posterior_covariance():
    proc = ssd.LinearDiffusion.resize((4, 4), NOISE, ssd.ResolutionSchedule.equal(T, 2), matched=False)
    s, t = 30, 31
    noise = np.random.default_rng(5).standard_normal((40_000, 4, 4))
    g = proc.posterior(np.ones((1, 2, 2)), np.zeros((1, 4, 4)), s, t)
    draws = g.sample(noise[:, None])[:, 0].reshape(-1, 16)
    exact = g.covariance.as_matrix()
    spread = np.sqrt((np.outer(np.diag(exact), np.diag(exact)) + exact**2) / 40_000)
    assert (np.abs(np.cov(draws.T) - exact) < 5 * spread).all()
    assert (np.abs(draws.mean(0) - g.mean.ravel()) < 5 * np.sqrt(np.diag(exact) / 40_000)).all()
    assert np.abs(exact - np.diag(np.diag(exact))).max() > 0.01, "a size change needs correlated noise"


@pytest.mark.parametrize("kernel", ["box", "bilinear", "bicubic", "lanczos3"])
@pytest.mark.parametrize(("size", "levels"), [((16, 16), 3), ((9, 14), 3), ((32,), 5), ((6, 6, 6), 2)])
def test_scale_matched_noise_is_admissible_everywhere(kernel, size, levels):
    noise = ssd.NoiseSchedule.cosine(40)
    proc = ssd.LinearDiffusion.resize(size, noise, ssd.ResolutionSchedule.equal(40, levels), kernel=kernel)
    for thinned in (proc, proc.respace([3, 10, 11, 29, 40])):
        for t in range(1, thinned.steps + 1):
            for s in range(0, t, 7):
                assert thinned.sigma(t) ** 2 >= thinned.sigma(s) ** 2 * thinned.degradation(s, t).norm() ** 2 * (
                    1 - 64 * EPS
                )
    np.testing.assert_allclose(proc.noise.alpha**2 + proc.noise.sigma**2, 1, atol=8 * EPS)
    kappa = 1.0
    for k, start in enumerate(ssd.ResolutionSchedule.equal(40, levels).starts):
        kappa *= ssd.Resize(proc.shape(start - 1), proc.shape(start), kernel).norm()
        ratio = proc.sigma(start) / proc.alpha(start)
        assert ratio == pytest.approx(noise.sigma[start] / noise.alpha[start] * kappa, rel=64 * EPS), k


def test_inadmissible_processes_are_refused_by_step_and_both_sides():
    """κ = ½ a level instead of the exact norm breaks the change from 8 to 4."""
    steps = 1000
    noise = ssd.NoiseSchedule.linear(steps)
    factors = np.where(np.arange(steps + 1) >= 400, 0.25, 1.0)
    ops = [None] * steps
    ops[399] = ssd.Resize((8, 8), (4, 4))
    with pytest.raises(ssd.InadmissibleProcess, match=r"step 400: .*σ_t² = 0\.\d+ < σ_s²‖M‖² = 0\.\d+; raise σ"):
        ssd.LinearDiffusion.from_operators(ops, noise.scaled(factors))
    falling = ssd.NoiseSchedule(np.array([1.0, 0.5, 0.6]), np.array([0.0, 0.5, 0.5]))
    with pytest.raises(ssd.InadmissibleProcess, match="step 2"):
        ssd.LinearDiffusion.identity((3,), falling)
    amplifier = [2 * ssd.Identity((3,))] * 3
    with pytest.raises(ssd.InadmissibleProcess, match="step 2"):
        ssd.LinearDiffusion.from_operators(amplifier, ssd.NoiseSchedule.from_log_snr([3, 2.9, 2.8]))


def test_admissibility_is_decided_where_the_smallest_eigenvalue_changes_sign():
    op = ssd.Matrix(np.random.default_rng(6).standard_normal((4, 6)))
    norm = op.norm()
    for margin, admissible in ((1.0001, True), (0.9999, False)):
        sigma = np.array([0.0, 0.3, 0.3 * norm * margin])
        noise = ssd.NoiseSchedule(np.array([1.0, 1.0, 1.0]), sigma)
        m = op.as_matrix()
        least = np.linalg.eigvalsh(sigma[2] ** 2 * np.eye(4) - sigma[1] ** 2 * m @ m.T)[0]
        assert (least >= 0) == admissible
        if admissible:
            ssd.LinearDiffusion.from_operators([None, op], noise)
        else:
            with pytest.raises(ssd.InadmissibleProcess):
                ssd.LinearDiffusion.from_operators([None, op], noise)


def test_respace_keeps_the_laws_and_the_original_times():
    proc = PROCESSES["resize"]
    once = proc.respace([5, 10, 20, 41, 60])
    twice = once.respace([2, 3, 5])
    assert once.times == (5, 10, 20, 41, 60)
    assert twice.times == (10, 20, 60)
    assert proc.times == tuple(range(1, T + 1))
    assert (twice.steps, twice.shape(2), twice.alpha(3)) == (3, proc.shape(20), proc.alpha(60))
    x_t, clean = np.ones(proc.shape(41)), np.ones(proc.shape(10))
    np.testing.assert_array_equal(once.posterior(x_t, clean, 2, 4).mean, proc.posterior(x_t, clean, 10, 41).mean)


@pytest.mark.parametrize("library", ["numpy", "torch", "jax.numpy"])
def test_a_prior_without_a_mean_follows_the_arrays_that_it_meets(library):
    xp = pytest.importorskip(library)
    proc = PROCESSES["resize"]
    shape = proc.shape(proc.steps)
    z = xp.asarray(np.random.default_rng(0).standard_normal((4, *shape)), dtype=xp.float32)
    law, sigma = proc.prior(), proc.sigma(proc.steps)
    assert law.mean.shape == shape
    assert not law.mean.any()
    drawn = law.sample(z)
    assert (type(drawn), drawn.dtype) == (type(z), z.dtype)
    np.testing.assert_allclose(np.asarray(drawn), sigma * np.asarray(z), rtol=1e-6)
    same = ssd.Gaussian(0 * z, law.covariance)
    np.testing.assert_allclose(np.asarray(law.log_prob(z)), np.asarray(same.log_prob(z)), rtol=1e-6)
    moved = ssd.Gaussian(z, law.covariance)
    np.testing.assert_allclose(np.asarray(moved.kl(law)), np.asarray(law.kl(moved)), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(moved.kl(law)), (np.asarray(z) ** 2).sum((1, 2)) / sigma**2 / 2, rtol=1e-5)


def test_prior_is_the_law_of_the_last_state():
    proc = PROCESSES["resize"]
    shape, alpha, variance = proc.shape(T), proc.alpha(T), proc.sigma(T) ** 2
    n = math.prod(shape)
    root = np.random.default_rng(7).standard_normal((3 * n, 3 * n))
    joint = root @ root.T
    mean = np.random.default_rng(8).standard_normal((3, *shape))
    g = proc.prior(mean, joint)
    np.testing.assert_allclose(g.mean, alpha * mean)
    np.testing.assert_allclose(g.covariance.as_matrix(), alpha**2 * joint + variance * np.eye(3 * n), atol=1e-10)
    each = proc.prior(mean, joint[:n, :n])
    np.testing.assert_allclose(each.covariance.as_matrix(), alpha**2 * joint[:n, :n] + variance * np.eye(n), atol=1e-10)
    assert each.sample(np.zeros((5, 3, *shape))).shape == (5, 3, *shape)
    plain = proc.prior()
    np.testing.assert_allclose(plain.covariance.as_matrix(), variance * np.eye(n))
    np.testing.assert_array_equal(plain.mean, 0)
    spectral = proc.prior(mean, ssd.Covariance.cosine(np.ones(shape)))
    np.testing.assert_allclose(spectral.covariance.as_matrix(), (alpha**2 + variance) * np.eye(n), atol=1e-12)


@pytest.mark.parametrize(("s", "t"), [(0, 1), (19, 20), (25, 45)])
@pytest.mark.parametrize("kind", ["isotropic", "spectral", "dense"])
def test_general_theorems_equal_the_isotropic_closed_form_and_dense_algebra(s, t, kind):
    proc = PROCESSES["not square"]
    operator = proc.degradation(s, t)
    m = operator.as_matrix()
    n, k = math.prod(operator.in_shape), math.prod(operator.out_shape)
    variance_s, variance_t = max(proc.sigma(s), 0.1) ** 2, 1.5 * max(proc.sigma(t), 0.2) ** 2
    if kind == "isotropic":
        cov_s = ssd.Covariance.isotropic(operator.in_shape, variance_s)
        cov_t = ssd.Covariance.isotropic(operator.out_shape, variance_t)
    elif kind == "spectral":
        modes = operator.singular_values()
        cov_s = ssd.Covariance.of_modes(operator, variance_s * (0.5 + modes), 0.5 * variance_s)
        cov_t = ssd.Covariance.of_modes(operator.T, variance_t * (1 + modes), variance_t)
    else:
        rng = np.random.default_rng(9)
        a, b = rng.standard_normal((n, n)), rng.standard_normal((k, k))
        cov_s = ssd.Covariance.dense(a @ a.T / n, operator.in_shape)
        cov_t = ssd.Covariance.dense(m @ (a @ a.T / n) @ m.T + b @ b.T / k, operator.out_shape)
    p, q = cov_s.as_matrix(), cov_t.as_matrix()
    rng = np.random.default_rng(10)
    mean_s, x_t = rng.standard_normal((2, *operator.in_shape)), rng.standard_normal((2, *operator.out_shape))
    gain = np.linalg.solve(q, m @ p).T
    bound = 1e4 * n * EPS * np.linalg.cond(q)
    g = ssd.general_posterior(x_t, mean_s, operator, cov_s, cov_t)
    expected = mean_s.reshape(2, n) + (x_t.reshape(2, k) - mean_s.reshape(2, n) @ m.T) @ gain.T
    np.testing.assert_allclose(g.mean.reshape(2, n), expected, atol=bound)
    np.testing.assert_allclose(g.covariance.as_matrix(), p - gain @ m @ p, atol=bound)
    h = ssd.general_transition(mean_s, operator, cov_s, cov_t)
    np.testing.assert_allclose(h.covariance.as_matrix(), q - m @ p @ m.T, atol=bound)
    np.testing.assert_allclose(h.mean, operator(mean_s))
    # the information form of theorem 2, which needs the transition's inverse
    transition = q - m @ p @ m.T
    information = np.linalg.inv(np.linalg.inv(p) + m.T @ np.linalg.solve(transition, m))
    np.testing.assert_allclose(g.covariance.as_matrix(), information, atol=bound * np.linalg.cond(transition))


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_travels_between_processes_after_use(name):
    import copy
    import pickle

    proc = PROCESSES[name]
    s, t = proc.steps - 1, proc.steps
    x_t, clean = np.ones(proc.shape(t)), np.ones(proc.shape(s))
    before = proc.posterior(x_t, clean, s, t), proc.transition(clean, s, t)
    for twin in (pickle.loads(pickle.dumps(proc)), copy.deepcopy(proc)):
        after = twin.posterior(x_t, clean, s, t), twin.transition(clean, s, t)
        for a, b in zip(before, after):
            np.testing.assert_array_equal(a.mean, b.mean)
            np.testing.assert_array_equal(a.covariance.as_matrix(), b.covariance.as_matrix())


def test_shapes_and_size_changes_over_time():
    proc = PROCESSES["resize"]
    assert proc.shapes == ((8, 8), (4, 4), (2, 2))
    assert proc.size_changes == (21, 41)
    assert PROCESSES["identity"].size_changes == ()
    assert PROCESSES["respaced"].size_changes == (4, 6)


@pytest.mark.parametrize("dense", [False, True])
def test_general_posterior_in_half_precision_rounds_once(dense):
    op = ssd.Resize((6,), (3,))
    p = ssd.Covariance.dense(0.5 * np.eye(6)) if dense else ssd.Covariance.isotropic((6,), 0.5)
    q = ssd.Covariance.dense(np.eye(3)) if dense else ssd.Covariance.isotropic((3,), 1.0)
    rng = np.random.default_rng(12)
    x_t, mean_s = (rng.standard_normal((50, n)).astype(np.float16) for n in (3, 6))
    g = ssd.general_posterior(x_t, mean_s, op, p, q)
    exact = ssd.general_posterior(x_t.astype(np.float64), mean_s.astype(np.float64), op, p, q).mean
    assert g.mean.dtype == np.float16
    np.testing.assert_allclose(g.mean, exact, rtol=2**-10, atol=2**-20)


def test_general_theorems_refuse():
    op = ssd.Resize((4,), (2,))
    good, small = ssd.Covariance.isotropic((4,), 1.0), ssd.Covariance.isotropic((2,), 0.1)
    with pytest.raises(ssd.InadmissibleProcess, match="eigenvalue -0"):
        ssd.general_transition(np.ones(4), op, good, small)
    with pytest.raises(ssd.InadmissibleProcess, match="negative noise"):
        ssd.general_posterior(
            np.ones(2), np.ones(4), op, ssd.Covariance.dense(np.eye(4)), ssd.Covariance.dense(0.1 * np.eye(2))
        )
    with pytest.raises(ssd.InadmissibleProcess, match="negative noise"):
        ssd.general_transition(np.ones(4), op, ssd.Covariance.dense(np.eye(4)), ssd.Covariance.dense(0.1 * np.eye(2)))
    with pytest.raises(ValueError, match=r"at time t is over the trailing axes \(4,\), expected \(2,\)"):
        ssd.general_transition(np.ones(4), op, good, good)
    with pytest.raises(ValueError, match="at time t is singular"):
        ssd.general_posterior(np.ones(2), np.ones(4), op, good, ssd.Covariance.isotropic((2,), 0.0))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: p.posterior(np.ones(p.shape(2)), np.ones(p.shape(3)), 3, 2), ValueError, "expected times s < t, got s = 3, t = 2"),
        (lambda p: p.posterior(np.ones(p.shape(2)), np.ones(p.shape(2)), 2, 2), ValueError, "s < t"),
        (lambda p: p.alpha(61), ValueError, "time 61 is outside the process, whose times are 0 … 60"),
        (lambda p: p.sigma(-1), ValueError, "time -1 is outside"),
        (lambda p: p.shape(1.5), TypeError, "must be an integer"),
        (lambda p: p.posterior(np.ones((8, 8)), np.ones((8, 8)), 1, 2, eta=1.5), ValueError, r"eta must be in \[0, 1\], got 1.5"),
        (lambda p: p.posterior(np.ones((8, 8)), np.ones((8, 8)), 1, 2, eta=math.nan), ValueError, "eta"),
        (lambda p: p.posterior(np.ones((8, 8)), np.ones((8, 8)), 20, 21), ValueError, r"x_t at t = 21: expected trailing axes \(4, 4\)"),
        (lambda p: p.posterior(np.ones((4, 4)), np.ones((4, 4)), 20, 21), ValueError, "clean_s at s = 20"),
        (lambda p: p.posterior(np.ones((8, 8)), np.ones((8, 8), dtype=int), 1, 2), TypeError, "clean_s: expected a real floating"),
        (lambda p: p.posterior(np.ones((8, 8)), np.ones((8, 8)), 1, 2, eta="1"), TypeError, "eta: expected a real number, got '1'"),
        (lambda p: p.posterior(np.ones((8, 8)), np.ones((8, 8)), 1, 2, eta=None), TypeError, "eta: expected a real number, got None"),
        (lambda p: p.posterior(np.ones((8, 8)), np.ones((8, 8)), 1, 2, clean_covariance=np.eye(64)), TypeError, "expected a Covariance, got ndarray"),
        (lambda p: p.posterior(np.ones((8, 8)), np.ones((8, 8)), 1, 2, clean_covariance=ssd.Covariance.isotropic(3, 1.0)), ValueError, "Covariance over"),
        (lambda p: p.marginal(np.ones((0, 8, 8)), np.zeros(0, int)), ValueError, "at least one time, got none"),
        (lambda p: p.respace(5), TypeError, "respace: expected increasing times, got 5"),
        (lambda p: p.resize((8, 8), None, ssd.ResolutionSchedule.equal(T, 2)), TypeError, "resize: noise: expected a NoiseSchedule, got NoneType"),
        (lambda p: p.resize((8, 8), NOISE, None), TypeError, "resize: levels: expected a ResolutionSchedule"),
        (lambda p: p.resize((8, 8), NOISE, ssd.ResolutionSchedule.equal(T, 2), factor="2"), TypeError, "factor: expected a real number, got '2'"),
        (lambda p: p.resize((8, 8), NOISE, ssd.ResolutionSchedule.equal(T, 2), sizes=5), TypeError, "sizes: expected a list of shapes, got 5"),
        (lambda p: p.identity(8, np.ones(3)), TypeError, "identity: noise: expected a NoiseSchedule, got ndarray"),
        (lambda p: p.blur(8, None, [0]), TypeError, "blur: noise: expected a NoiseSchedule"),
        (lambda p: p.from_operators([None], None), TypeError, "from_operators: noise: expected a NoiseSchedule"),
        (lambda p: p.from_operators(ssd.Identity(3), NOISE), TypeError, "expected a list of operators, got Identity"),
        (lambda p: p.marginal(np.ones((8, 8)), 1).kl(3), TypeError, "kl: expected a Gaussian, got int"),
        (lambda p: ssd.Gaussian(np.ones(3), np.eye(3)), TypeError, "expected a Covariance, got ndarray"),
        (lambda p: ssd.Resize(8, 4, ["box"]), ValueError, "unknown kernel"),
        (lambda p: ssd.ResolutionSchedule.thresholds(5), TypeError, "expected a list of times, got 5"),
        (lambda p: ssd.sampling.sample(3, p, np.ones((2, 2)), np.ones), TypeError, "denoise: expected a function"),
        (lambda p: ssd.Identity(3.5), TypeError, "expected a shape such as"),
        (lambda p: ssd.Identity(None), TypeError, "expected a shape such as"),
        (lambda p: p.respace([]), ValueError, "increasing times"),
        (lambda p: p.respace([0, 5]), ValueError, "within 1 … 60"),
        (lambda p: p.respace([5, 5]), ValueError, "increasing"),
        (lambda p: p.prior(np.ones(3)), ValueError, "prior: mean"),
        (lambda p: p.prior(np.ones((2, 2)), np.eye(3)), ValueError, "over 4 elements"),
        (lambda p: p.resize((8, 8), NOISE, ssd.ResolutionSchedule.equal(50, 2)), ValueError, "60 steps, the resolution schedule 50"),
        (lambda p: p.resize((8, 8), NOISE, ssd.ResolutionSchedule.thresholds([61])), ValueError, "starts at t = 61, after the last step 60"),
        (lambda p: p.resize((8, 8), NOISE, ssd.ResolutionSchedule.equal(T, 5)), ValueError, "fewer levels than 5"),
        (lambda p: p.resize((8, 8), NOISE, ssd.ResolutionSchedule.equal(T, 2), factor=1.0), ValueError, "must be above 1"),
        (lambda p: p.resize((8, 8), NOISE, ssd.ResolutionSchedule.equal(T, 2), sizes=[(8, 8)]), ValueError, "expected 2 sizes"),
        (lambda p: p.resize((8, 8), NOISE, ssd.ResolutionSchedule.equal(T, 2), sizes=[(8, 8), (4, 9)]), ValueError, "must be smaller"),
        (lambda p: p.blur((8,), NOISE, [0, 1]), ValueError, "expected 61 widths"),
        (lambda p: p.blur((8,), NOISE, np.ones(61)), ValueError, "start at 0"),
        (lambda p: p.blur((8,), NOISE, np.zeros(61), "mirror"), ValueError, "unknown boundary"),
        (lambda p: p.from_operators([None], NOISE), ValueError, "each of the 60 steps, got 1"),
        (lambda p: p.from_operators([None] * 60, NOISE), ValueError, "use LinearDiffusion.identity"),
        (lambda p: p.from_operators([np.eye(3)] * 60, NOISE), TypeError, "step 1: expected a LinearOperator or None, got ndarray"),
        (lambda p: p.from_operators([ssd.Resize((4,), (2,))] * 60, NOISE), ValueError, r"step 2: .* but the state before it is \(2,\)"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make(PROCESSES["resize"])


def test_prior_of_an_unstructured_covariance_is_refused():
    class Custom(ssd.Covariance):
        shape = (2, 2)

        def apply_power(self, xp, x, power): ...
        def log_determinant(self): ...
        def as_matrix(self): ...

    with pytest.raises(TypeError, match="known spectrum"):
        PROCESSES["resize"].prior(None, Custom())


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_torch_tensors_give_the_same_posterior_in_their_own_dtype(dtype):
    torch = pytest.importorskip("torch")
    proc = PROCESSES["resize"]
    rng = np.random.default_rng(11)
    for s, t, eta in ((30, 31, 1.0), (20, 21, 1.0), (20, 21, 0.5)):
        clean, x_t = rng.standard_normal((2, 3, *proc.shape(s))), rng.standard_normal((2, 3, *proc.shape(t)))
        noise = rng.standard_normal(clean.shape)
        kind = getattr(torch, dtype)
        low = [torch.as_tensor(a).to(kind) for a in (clean, x_t, noise)]
        exact = [a.double().numpy() for a in low]
        g = proc.posterior(low[1], low[0], s, t, eta=eta)
        reference = proc.posterior(exact[1], exact[0], s, t, eta=eta).sample(exact[2])
        assert g.mean.dtype == g.sample(low[2]).dtype == kind
        eps = max(torch.finfo(kind).eps, 0.0)
        np.testing.assert_allclose(g.sample(low[2]).double(), reference, atol=64 * eps * np.abs(reference).max())


def test_what_a_process_keeps_is_bounded_in_bytes():
    """Blurs of 512 samples hold 8 MiB each once applied, so eight of them fill the 64 MiB that are kept."""
    steps = 30
    noise = ssd.NoiseSchedule.linear(steps)
    blur = ssd.LinearDiffusion.blur((512,), noise, np.linspace(0, 2, steps + 1))
    rng = np.random.default_rng(0)
    half = np.kron(np.eye(3), np.full((200, 200), 0.004))  # products of three 600 × 600 matrices, 5.5 MiB each
    dense = ssd.LinearDiffusion.from_operators([ssd.Matrix(half) for _ in range(steps)], noise)
    for proc, most in ((blur, 8), (dense, 12)):
        held = [weakref.ref(proc.operator(t - 3, t)) for t in range(3, steps + 1)]
        gc.collect()
        assert 1 <= sum(ref() is not None for ref in held) <= most
        x = rng.standard_normal(proc.shape(0))
        np.testing.assert_array_equal(proc.operator(0, 3)(x), proc.operator(0, 3)(x))  # what was dropped comes back
