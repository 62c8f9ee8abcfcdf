"""The oracle against closed forms, brute force, Monte-Carlo chains, the reference tables, and convergence orders."""

from __future__ import annotations

import math

import numpy as np
import pytest

import ssdcore as ssd
from ssdcore import oracle
from ssdcore.multistep import extrapolated, extrapolation_weight, half_log_snr

NOISE = ssd.NoiseSchedule.linear(1000)


def natural_spectrum(n: int, exponent: float = 2.5) -> np.ndarray:
    """Variance of DCT-II mode (i, j) ∝ (1 + √(i² + j²))^-exponent, mean pixel variance ¼."""
    i = np.arange(n)
    spectrum = (1 + np.hypot(i[:, None], i)) ** -exponent
    return spectrum * 0.25 * n * n / spectrum.sum()


def natural(n: int, exponent: float = 2.5) -> ssd.Covariance:
    return ssd.Covariance.cosine(natural_spectrum(n, exponent))


def random_covariance(n: int, seed: int = 0) -> np.ndarray:
    a = np.random.default_rng(seed).standard_normal((n, n))
    return a @ a.T / n + 0.05 * np.eye(n)


def resize(
    n: int, levels: ssd.ResolutionSchedule, noise: ssd.NoiseSchedule = NOISE, **kw: object
) -> ssd.LinearDiffusion:
    return ssd.LinearDiffusion.resize((n, n), noise, levels, **kw)


def bures(mean: np.ndarray, p: np.ndarray, c: np.ndarray) -> float:
    """Squared 2-Wasserstein distance by the textbook formula."""
    values, vectors = np.linalg.eigh(c)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ p @ root), 0)).sum()
    return float((mean**2).sum() + np.trace(c) + np.trace(p) - 2 * cross)


def brute_force(proc, c, times, eta=1.0, prior=None, mean=None):
    """Output mean and covariance of the sampler through `proc.posterior` on basis vectors, dense and step by step."""
    chain = proc if times is None else proc.respace(times)
    n = math.prod(chain.shape(0))
    m = np.zeros(n) if mean is None else mean.reshape(-1)

    def degradation(t):
        return np.eye(n) if t == 0 else chain.clean(np.eye(n).reshape(n, *chain.shape(0)), t).reshape(n, -1).T

    last = chain.steps
    r, a, s = degradation(last), chain.alpha(last), chain.sigma(last)
    centre, p = a * r @ m, a**2 * r @ c @ r.T + s**2 * np.eye(len(r))
    if prior is not None:
        centre, p = np.asarray(prior.mean).reshape(-1), prior.covariance.as_matrix()
    for t in range(last, 0, -1):
        r_t, r_s = degradation(t), degradation(t - 1)
        a, s = chain.alpha(t), chain.sigma(t)
        w = a * r_s @ c @ r_t.T @ np.linalg.inv(a**2 * r_t @ c @ r_t.T + s**2 * np.eye(len(r_t)))
        offset = r_s @ m - w @ (a * r_t @ m)

        def step(x, t=t, w=w, offset=offset):
            clean = (x @ w.T + offset).reshape(-1, *chain.shape(t - 1))
            return chain.posterior(x.reshape(-1, *chain.shape(t)), clean, t - 1, t, eta=eta)

        fixed = step(np.zeros((1, len(r_t))))
        gain = (step(np.eye(len(r_t))).mean - fixed.mean).reshape(len(r_t), -1).T
        centre = gain @ centre + fixed.mean.reshape(-1)
        p = gain @ p @ gain.T + fixed.covariance.as_matrix()
    return centre, p


# Closed forms


def test_one_pixel_by_hand():
    # One step from T to 0: x_0 = a v / (a² v + s²) x_T, so P = a² v² / (a² v + s²).
    noise = ssd.NoiseSchedule.from_log_snr([0.3])
    proc = ssd.LinearDiffusion.identity((1, 1), noise)
    v, a, s = 2.5, noise.alpha[1], noise.sigma[1]
    expected = (math.sqrt(v) - a * v / math.sqrt(a**2 * v + s**2)) ** 2
    assert oracle.sampler_error(proc, [[v]]) == pytest.approx(expected, rel=1e-13)
    # The start N(0, s²) that does not know the data, mean m included: m_P = m (1 − a² v / (a² v + s²)).
    w, m = a * v / (a**2 * v + s**2), 0.7
    expected = (math.sqrt(v) - w * s) ** 2 + (m * w * a) ** 2
    assert oracle.sampler_error(proc, [[v]], mean=[m], prior=proc.prior()) == pytest.approx(expected, rel=1e-13)


def test_two_steps_by_hand():
    noise = ssd.NoiseSchedule.from_log_snr([2.0, -1.0])
    a1, a2, s1, s2 = *noise.alpha[1:], *noise.sigma[1:]
    v, eta = 0.8, 0.6
    w2, w1 = a2 * v / (a2**2 * v + s2**2), a1 * v / (a1**2 * v + s1**2)
    b = s1 / s2 * math.sqrt(1 - eta**2 * (1 - (s1 * a2 / (s2 * a1)) ** 2))
    p1 = (a1 * w2 + b * (1 - a2 * w2)) ** 2 * (a2**2 * v + s2**2) + s1**2 - s2**2 * b**2
    expected = (math.sqrt(v) - w1 * math.sqrt(p1)) ** 2
    proc = ssd.LinearDiffusion.identity(1, noise)
    assert oracle.sampler_error(proc, [[v]], eta=eta) == pytest.approx(expected, rel=1e-12)


def test_identity_process_is_one_pixel_for_each_eigenvalue():
    c = random_covariance(9)
    proc = ssd.LinearDiffusion.identity((3, 3), NOISE)
    times = [5, 200, 700, 1000]
    expected = sum(
        oracle.sampler_error(ssd.LinearDiffusion.identity(1, NOISE), [[v]], times) for v in np.linalg.eigvalsh(c)
    )
    assert oracle.sampler_error(proc, c, times) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(
    "proc",
    [
        ssd.LinearDiffusion.resize((6, 4), NOISE, ssd.ResolutionSchedule.thresholds([300, 650])),
        ssd.LinearDiffusion.resize(
            (6, 4), NOISE, ssd.ResolutionSchedule.thresholds([300, 650]), matched=False, kernel="box"
        ),
        ssd.LinearDiffusion.resize((5, 4), NOISE, ssd.ResolutionSchedule.thresholds([1, 500]), factor=1.5),
        ssd.LinearDiffusion.blur((4, 3), NOISE, np.linspace(0, 2, 1001)),
        ssd.LinearDiffusion.from_operators(
            [None] * 400 + [ssd.Matrix(np.random.default_rng(3).uniform(0, 0.3, (5, 8)), 8, 5)] + [None] * 599, NOISE
        ),
    ],
    ids=["matched", "paper-box", "odd", "blur", "matrix"],
)
def test_law_is_that_of_the_posterior_chain(proc, eta):
    shape = proc.shape(0)
    n = math.prod(shape)
    rng = np.random.default_rng(7)
    times = [1, 90, 250, 299, 300, 420, 650, 900]
    mean, c = rng.standard_normal(shape), random_covariance(n)
    end = proc.shape(900)
    prior = ssd.Gaussian(rng.standard_normal(end), ssd.Covariance.dense(random_covariance(math.prod(end), 5), end))
    forms = [c] if len(shape) == 1 else [c, ssd.Covariance.cosine(rng.uniform(0.01, 1, shape))]
    for form in forms:
        matrix = form if isinstance(form, np.ndarray) else form.as_matrix()
        for start in (None, prior):
            law = oracle.sampler_law(proc, form, times, eta, mean, prior=start)
            centre, p = brute_force(proc, matrix, times, eta, start, mean)
            assert law.covariance.as_matrix() == pytest.approx(p, abs=n * 1e-11)
            assert law.mean.reshape(-1) == pytest.approx(centre, abs=1e-10)
            assert law.frechet() == pytest.approx(bures(centre - mean.reshape(-1), p, matrix), rel=1e-6)


def test_exact_start_keeps_the_mean():
    mean = np.random.default_rng(0).standard_normal((4, 4))
    law = oracle.sampler_law(
        resize(4, ssd.ResolutionSchedule.equal(1000, 2)), random_covariance(16), [10, 400, 800], 1.0, mean
    )
    assert law.mean == pytest.approx(mean, abs=1e-12)


def test_cosine_and_dense_forms_agree_and_blocks_are_found():
    proc, c = resize(8, ssd.ResolutionSchedule.equal(1000, 3)), natural(8)
    times = [1, 100, 333, 334, 500, 800, 1000]
    assert oracle.sampler_error(proc, c, times) == pytest.approx(
        oracle.sampler_error(proc, c.as_matrix(), times), rel=1e-9
    )
    structure = oracle._law.Structure.of(proc, c)
    assert [group.index[0].shape for group in structure.groups] == [(4, 16)]  # four reflection parities
    blur = ssd.LinearDiffusion.blur((8, 8), NOISE, np.linspace(0, 2, 1001)).respace(times)
    assert [group.index[0].shape for group in oracle._law.Structure.of(blur, c).groups] == [(64, 1)]


def test_kl_is_that_of_the_gaussians():
    proc = resize(4, ssd.ResolutionSchedule.equal(1000, 2))
    c = random_covariance(16)
    law = oracle.sampler_law(proc, c, [20, 300, 600, 1000], mean=np.ones(16), prior=proc.prior())
    data = ssd.Gaussian(np.ones((4, 4)), ssd.Covariance.dense(c, (4, 4)))
    assert law.kl() == pytest.approx(float(data.kl(law.gaussian)), rel=1e-8)
    singular = oracle.sampler_law(proc, np.ones((16, 16)), [500, 1000])
    with pytest.raises(ValueError, match="singular"):
        singular.kl()


# The real chain


@pytest.mark.parametrize(("eta", "order"), [(1.0, 1), (0.0, 1), (0.0, 2)])
def test_monte_carlo_chain_has_the_law(eta, order):
    """Variances of all cosine modes of 20,000 sampled images against the law, in units of their standard error."""
    n, count = 4, 20_000
    proc = resize(n, ssd.ResolutionSchedule.equal(1000, 2))
    c = natural(n)
    matrix = c.as_matrix()
    times = [30, 200, 420, 501, 640, 1000]
    chain = proc.respace(times)
    rng = np.random.default_rng(11)

    def degraded(t):
        return chain.clean(np.eye(n * n).reshape(-1, n, n), t).reshape(n * n, -1).T

    r = degraded(chain.steps)
    start = ssd.Covariance.dense(r @ matrix @ r.T, chain.shape(chain.steps))
    x = chain.prior(covariance=start).sample(rng.standard_normal((count, *chain.shape(chain.steps))))
    previous = None
    for k in range(chain.steps, 0, -1):
        a, r_t, r_s = chain.alpha(k), degraded(k), degraded(k - 1)
        w = (
            a
            * r_s
            @ matrix
            @ r_t.T
            @ np.linalg.inv(a**2 * r_t @ matrix @ r_t.T + chain.sigma(k) ** 2 * np.eye(len(r_t)))
        )
        prediction = (x.reshape(count, -1) @ w.T).reshape(count, *chain.shape(k - 1))
        used = extrapolated(chain, k - 1, k, k + 1, prediction, previous) if order == 2 else prediction
        x = chain.posterior(x, used, k - 1, k, eta=eta).sample(rng.standard_normal(prediction.shape))
        previous = prediction
    law = oracle.sampler_law(proc, c, times, eta, order=order)
    expected = law.covariance.as_matrix()
    values, vectors = np.linalg.eigh(expected)
    z = (x.reshape(count, -1) @ vectors) / np.sqrt(values)
    measured = z.T @ z / count  # identity; standard error 1/√count off the diagonal, √2/√count on it
    error = np.sqrt(1 + np.eye(n * n)) / math.sqrt(count)
    assert np.abs((measured - np.eye(n * n)) / error).max() < 5
    other = oracle.sampler_law(proc, c, times, 1.0 - eta).covariance.as_matrix()
    assert np.abs((vectors.T @ (other - expected) @ vectors) / np.sqrt(np.outer(values, values)) / error).max() > 10


# Reference tables: squared Fréchet error, 16×16, three levels against one


@pytest.mark.parametrize(
    ("levels", "matched", "expected"),
    [
        (2, False, (1.02, 5.2, 5.6)),
        (3, False, (3.4, 5.6, 10.4)),
        (4, False, (6.0, 7.5, 15.7)),
        (2, True, (1.000, 1.003, 1.07)),
        (3, True, (1.001, 1.04, 1.46)),
        (4, True, (1.008, 1.16, 2.47)),
    ],
)
def test_schedule_table(levels, matched, expected):
    schedules = ssd.ResolutionSchedule
    times = np.round(np.linspace(1, 1000, 200)).astype(int)
    full = oracle.sampler_error(ssd.LinearDiffusion.identity((16, 16), NOISE), natural(16), times)
    assert full == pytest.approx(0.0667, abs=5e-5)
    shapes = (schedules.convex(1000, levels, 0.5), schedules.equal(1000, levels), schedules.convex(1000, levels, 2.0))
    for schedule, value in zip(shapes, expected):
        error = oracle.sampler_error(resize(16, schedule, matched=matched), natural(16), times)
        assert error / full == pytest.approx(value, rel=0.012)  # the references carry two or three digits


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (10, ((8.22, 3.55), (11.1, 5.58), (8.25, 3.60), (8.44, 3.82))),
        (50, ((0.53, 0.15), (1.00, 0.44), (0.53, 0.15), (0.55, 0.18))),
    ],
)
def test_steps_table(steps, expected):
    # References: uniform log-SNR, times rounded and duplicates dropped, and the start N(0, σ_T²).
    log_snr = NOISE.log_snr()
    goals = np.linspace(log_snr[0], log_snr[-1], steps)
    times = sorted({int(np.argmin(np.abs(log_snr - goal))) + 1 for goal in goals})
    convex, equal = ssd.ResolutionSchedule.convex(1000, 3), ssd.ResolutionSchedule.equal(1000, 3)
    identity = ssd.LinearDiffusion.identity((16, 16), NOISE)
    processes = (identity, resize(16, convex, matched=False), resize(16, convex), resize(16, equal))
    for proc, values in zip(processes, expected):
        for eta, value in zip((1.0, 0.0), values):
            error = oracle.sampler_error(proc, natural(16), times, eta, prior=proc.prior())
            assert error == pytest.approx(value, rel=0.005, abs=0.006)  # half a unit of the last digit


# Convergence


def order_of(errors: list[float]) -> float:
    """Slope of the 2-Wasserstein distance against the step, over the last doubling."""
    return math.log2(math.sqrt(errors[-2]) / math.sqrt(errors[-1]))


@pytest.mark.parametrize(("eta", "order", "slope"), [(1.0, 1, 1), (0.0, 1, 1), (0.0, 2, 2)])
def test_convergence_order_at_one_size(eta, order, slope):
    errors = []
    for steps in (100, 200, 400):
        noise = ssd.NoiseSchedule.from_log_snr(np.linspace(22, -9, steps))
        errors.append(
            oracle.sampler_error(ssd.LinearDiffusion.identity((4, 4), noise), natural(4), eta=eta, order=order)
        )
    assert order_of(errors) == pytest.approx(slope, abs=0.2)


def errors_with_changes_at(shares, eta, order, counts=(50, 100, 200)):
    errors = []
    for steps in counts:
        noise = ssd.NoiseSchedule.from_log_snr(np.linspace(22, -9, steps))
        levels = ssd.ResolutionSchedule.thresholds([int(share * steps) for share in shares])
        errors.append(oracle.sampler_error(resize(8, levels, noise), natural(8), eta=eta, order=order))
    return errors


@pytest.mark.parametrize(("eta", "order", "slope"), [(1.0, 1, 1), (0.0, 1, 1), (0.0, 2, 2)])
def test_convergence_order_across_changes_where_they_are_free(eta, order, slope):
    assert order_of(errors_with_changes_at((0.9, 0.96), eta, order)) == pytest.approx(slope, abs=0.2)


def test_an_early_change_leaves_an_error_that_no_step_count_removes():
    early = errors_with_changes_at((0.7, 0.85), 0.0, 2, (200, 800))
    assert early[1] > 0.7 * early[0]
    assert early[1] > 1000 * errors_with_changes_at((0.9, 0.96), 0.0, 2, (200,))[0]


def test_twenty_multistep_steps_beat_a_hundred_ancestral_ones():
    proc, c = resize(16, ssd.ResolutionSchedule.equal(1000, 3)), natural(16)
    hundred = min(oracle.sampler_error(proc, c, oracle.spread_times(NOISE, 100, s)) for s in ("time", "log_snr"))
    times = oracle.spread_times(NOISE, 20, "log_snr", required=(334, 667))
    first = oracle.sampler_error(proc, c, times, eta=0.0)
    second = oracle.sampler_error(proc, c, times, eta=0.0, order=2)
    assert second < hundred < first


def test_second_order_survives_a_change_that_nearly_destroys_modes():
    """Errors of what the change attenuates are not amplified: 860,898 once, by a division by all that is not zero."""
    noise, smooth = ssd.NoiseSchedule.linear(100), ssd.Covariance.cosine((1 + np.arange(32)) ** -2.0)
    widths = np.zeros(101)
    widths[50:] = 3.0
    times = range(10, 101, 10)
    blurred = ssd.LinearDiffusion.blur((32,), noise, widths)
    assert oracle.sampler_error(blurred, smooth, times, 0.0, order=2) == pytest.approx(0.11675, abs=5e-5)
    ops = [None] * 100
    ops[49] = ssd.Resize((32,), (16,)) @ ssd.Blur((32,), 2.0)  # a Gaussian pyramid
    pyramid = ssd.LinearDiffusion.from_operators(ops, noise)
    assert oracle.sampler_error(pyramid, smooth, times, 0.0, order=2) == pytest.approx(0.1180, abs=5e-5)
    # what an error of the previous prediction becomes, mode by mode
    for proc in (blurred, pyramid):
        wrong = np.eye(proc.shape(50)[0])
        after = extrapolated(proc, 40, 50, 60, np.zeros((len(wrong), 32)), wrong)
        assert np.linalg.norm(after, 2) <= 2.5 / proc.operator(40, 50).norm() * (1 + 1e-9)


@pytest.mark.parametrize(("eta", "order"), [(1.0, 1), (0.5, 1), (0.0, 1), (0.0, 2)])
def test_states_without_signal_at_the_end_are_exact_starts(eta, order):
    """Two steps of pure noise change nothing: the chain starts where signal begins."""
    levels = np.linspace(8, -8, 30)
    with_end = ssd.NoiseSchedule.from_log_snr([*levels, -math.inf, -math.inf])
    smooth = ssd.Covariance.cosine((1 + np.arange(8)) ** -2.0)
    dark = ssd.LinearDiffusion.identity((8,), with_end)
    error = oracle.sampler_error(dark, smooth, None, eta, order=order)
    once = oracle.sampler_error(dark, smooth, range(1, 32), eta, order=order)
    assert error == pytest.approx(once, rel=1e-12)
    assert 0 < error < 0.1
    flow = ssd.LinearDiffusion.resize((8,), ssd.NoiseSchedule.rectified_flow(50), ssd.ResolutionSchedule.equal(50, 2))
    assert 0 < oracle.sampler_error(flow, smooth, None, eta, order=order) < 0.1
    x = np.ones((2, 8))
    assert np.isfinite(extrapolated(dark, 29, 30, 31, x, x)).all()
    assert extrapolation_weight(dark, 30, 31, 32) == 0.0


def test_extrapolation_is_dpm_solver_inside_a_level():
    """x_s = (σ_s/σ_t) x_t − α_s (e^−h − 1) D, D = (1 + 1/2r) x̂_t − x̂_u/2r, r = h_last/h: algorithm 2 of DPM-Solver++."""
    proc = ssd.LinearDiffusion.identity((2, 2), NOISE)
    rng = np.random.default_rng(0)
    x, now, before = rng.standard_normal((3, 5, 2, 2))
    s, t, u = 200, 320, 500
    h, last = half_log_snr(proc, s) - half_log_snr(proc, t), half_log_snr(proc, t) - half_log_snr(proc, u)
    ratio = last / h
    d = (1 + 1 / (2 * ratio)) * now - before / (2 * ratio)
    expected = proc.sigma(s) / proc.sigma(t) * x - proc.alpha(s) * math.expm1(-h) * d
    posterior = proc.posterior(x, extrapolated(proc, s, t, u, now, before), s, t, eta=0.0)
    assert posterior.mean == pytest.approx(expected, abs=1e-12)
    assert extrapolation_weight(proc, 0, t, u) == 0.0
    assert extrapolated(proc, 0, t, u, now, before) is now
    assert extrapolated(proc, s, t, u, now, None) is now


@pytest.mark.parametrize("xp", ["numpy", "torch"])
def test_extrapolation_across_a_change_keeps_what_is_consistent(xp):
    """Where the prediction before was the same image, nothing is extrapolated; new modes are never touched."""
    proc = resize(8, ssd.ResolutionSchedule.thresholds([400]))
    rng = np.random.default_rng(1)
    image, other = rng.standard_normal((2, 3, 8, 8))
    to = np.asarray if xp == "numpy" else pytest.importorskip("torch").asarray
    held = extrapolated(proc, 300, 400, 450, to(image), to(proc.clean(image, 400)))
    assert np.asarray(held) == pytest.approx(image, abs=1e-12)
    operator = proc.operator(300, 400)
    moved = np.asarray(extrapolated(proc, 300, 400, 450, to(image), to(proc.clean(other, 400)))) - image
    row_space = np.linalg.pinv(operator.as_matrix()) @ operator.as_matrix()
    assert moved.reshape(3, -1) @ row_space == pytest.approx(moved.reshape(3, -1), abs=1e-10)
    assert np.abs(moved).max() > 0.1
    after = np.asarray(extrapolated(proc, 200, 300, 400, to(image), to(other))) - image
    assert after.reshape(3, -1) @ row_space == pytest.approx(after.reshape(3, -1), abs=1e-10)
    with pytest.raises(ValueError, match="previous prediction"):
        extrapolated(proc, 300, 400, 450, to(image), to(image))


# Times


@pytest.mark.parametrize("spacing", ["time", "log_snr"])
@pytest.mark.parametrize("steps", [1, 7, 100, 1000])
def test_sampling_times_are_distinct_and_end_at_the_last(spacing, steps):
    times = oracle.spread_times(NOISE, steps, spacing)
    assert len(times) == steps
    assert list(times) == sorted(set(times))
    assert times[-1] == 1000
    assert times[0] >= 1


def test_required_times_are_in():
    times = oracle.spread_times(NOISE, 10, "log_snr", required=(333, 334, 667))
    assert len(times) == 10
    assert {333, 334, 667, 1000} <= set(times)
    assert oracle.spread_times(NOISE, 2, required=(1,)) == (1, 1000)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_optimal_times_beat_both_spacings_and_single_moves(eta):
    c, noise = natural(4), ssd.NoiseSchedule.linear(100)
    identity = ssd.LinearDiffusion.identity((4, 4), noise)

    def error(times):
        return oracle.sampler_error(identity, c, sorted(times), eta)

    times = oracle.optimal_times((4, 4), noise, c, 6, eta)
    assert error(times) < 0.9 * min(error(oracle.spread_times(noise, 6, s)) for s in ("time", "log_snr"))
    moves = [{*times[:k], t, *times[k + 1 :]} for k in range(5) for t in range(1, 100) if t not in times]
    assert min(error(m) for m in moves) >= (1 - 2e-4) * error(times)


# Fitting


def test_fit_recovers_each_form():
    rng = np.random.default_rng(0)
    rows, columns = random_covariance(3, 1), random_covariance(4, 2)
    z = rng.standard_normal((20_000, 2, 3, 4))
    mean = rng.standard_normal((2, 3, 4))
    images = mean + np.einsum("ij,ncjk,lk->ncil", np.linalg.cholesky(rows), z, np.linalg.cholesky(columns))
    truth = np.kron(rows, columns)
    for form in ("dense", "separable"):
        fitted = oracle.fit(images, form)
        assert fitted.mean == pytest.approx(images.mean(0), abs=1e-12)
        assert fitted.covariance.as_matrix() == pytest.approx(truth, abs=6 * np.abs(truth).max() / math.sqrt(40_000))
    centred = (images - images.mean(0)).reshape(-1, 12)
    assert oracle.fit(images, "dense").covariance.as_matrix() == pytest.approx(centred.T @ centred / 40_000, abs=1e-12)
    cosine = oracle.fit(images).covariance.as_matrix()
    basis = np.kron(*(ssd.operators.blur.spectral_basis(n, "reflect")[0].value for n in (3, 4)))
    assert np.diag(basis.T @ cosine @ basis) == pytest.approx(np.diag(basis.T @ (centred.T @ centred / 40_000) @ basis))
    assert basis.T @ cosine @ basis == pytest.approx(np.diag(np.diag(basis.T @ cosine @ basis)), abs=1e-12)


def test_fit_of_bytes_is_in_the_samplers_range():
    images = np.random.default_rng(0).integers(0, 256, (300, 4, 4), dtype=np.uint8)
    bytes_, floats = oracle.fit(images), oracle.fit(images / 127.5 - 1)
    assert bytes_.mean == pytest.approx(floats.mean)
    assert bytes_.covariance.as_matrix() == pytest.approx(floats.covariance.as_matrix())


# Information


def test_mutual_information_is_the_gaussian_one():
    proc, c = resize(6, ssd.ResolutionSchedule.equal(1000, 2)), random_covariance(36)
    information = oracle.mutual_information(proc, c)
    for t in (1, 400, 700, 1000):
        r = np.eye(36) if t <= 500 else proc.degradation(0, t).as_matrix() / proc.alpha(t)
        state = proc.alpha(t) ** 2 * r @ c @ r.T / proc.sigma(t) ** 2 + np.eye(len(r))
        assert information[t - 1] == pytest.approx(0.5 * np.linalg.slogdet(state)[1], rel=1e-9)
    assert (np.diff(information) <= 1e-12).all()  # a Markov chain only loses information


@pytest.mark.parametrize("matched", [True, False])
def test_a_level_change_never_adds_information(matched):
    table = oracle.level_information((8, 8), NOISE, natural(8), 3, matched=matched)
    assert table.shape == (3, 1000)
    assert (np.diff(table, axis=0) <= 1e-12).all()
    proc = resize(8, ssd.ResolutionSchedule.equal(1000, 3), matched=matched)
    assert oracle.mutual_information(proc, natural(8))[499] == pytest.approx(table[1, 499])
    first, second = oracle.free_starts(table, 0.5)
    assert first is not None
    assert second is not None
    assert table[0, first - 1] - table[1, first - 1] <= 0.5 < table[0, first - 2] - table[1, first - 2]
    assert oracle.free_starts(table, 0.0)[0] is None


def test_signal_share():
    # |x| = 1 everywhere: 2Φ(α/σ) − 1 = erf(α/(σ√2)); half zeros halve it
    share = oracle.signal_share(np.array([1.0, -1.0, 0.0, 0.0]), NOISE)
    expected = [0.5 * math.erf(a / (s * math.sqrt(2))) for a, s in zip(NOISE.alpha[1:], NOISE.sigma[1:])]
    assert share == pytest.approx(expected, rel=1e-12)
    assert oracle.signal_share(np.array([255, 0], np.uint8), NOISE) == pytest.approx(2 * share)
    assert oracle.pixel_share(resize(8, ssd.ResolutionSchedule.thresholds([11, 21])))[[9, 10, 20]].tolist() == [
        1,
        1 / 4,
        1 / 16,
    ]


# The perfect denoiser of a set of images


def few_images(n: int = 6, size: int = 4) -> np.ndarray:
    return np.random.default_rng(2).uniform(-1, 1, (n, 2, size, size))


def test_empirical_posterior_mean_by_bayes():
    proc, images = resize(4, ssd.ResolutionSchedule.thresholds([500])), few_images()
    denoiser = oracle.EmpiricalDenoiser(proc, images)
    x = np.random.default_rng(0).standard_normal((3, 2, 2, 2))
    for t, s in ((700, 700), (700, 100), (700, 0)):
        log_likelihood = np.stack(
            [
                -((x - proc.alpha(t) * proc.clean(image, t)) ** 2).sum((1, 2, 3)) / (2 * proc.sigma(t) ** 2)
                for image in images
            ]
        )
        weights = np.exp(log_likelihood) / np.exp(log_likelihood).sum(0)
        clean = images if s < 500 else proc.clean(images, s)
        expected = np.einsum("ib,ichw->bchw", weights, clean)
        assert denoiser.posterior_mean(x, t, s) == pytest.approx(expected, abs=1e-12)
    assert denoiser(x, np.array([700.0] * 3), out_level=0) == pytest.approx(denoiser.posterior_mean(x, 700, 0))
    assert denoiser(x, np.array([700.0] * 3)).shape == (3, 2, 2, 2)
    mixed = denoiser(x, np.array([700, 600, 900]))
    assert mixed[1:2] == pytest.approx(denoiser.posterior_mean(x[1:2], 600, 600))


def test_empirical_denoiser_is_stable_where_the_noise_is_small():
    noise = ssd.NoiseSchedule.from_log_snr([25.0, 0.0])
    images = few_images()
    images[1] = images[0] + 1e-3  # 1e8 standard deviations of scores away from overflow, and nearly equal
    denoiser = oracle.EmpiricalDenoiser(ssd.LinearDiffusion.identity((4, 4), noise), images)
    x = (noise.alpha[1] * images).astype(np.float32)
    assert denoiser(x, 1) == pytest.approx(images, abs=1e-6)
    assert denoiser(x, 1).dtype == np.float32


def test_empirical_denoiser_runs_as_a_network():
    torch = pytest.importorskip("torch")
    from ssdcore_torch.sampling import generate

    proc, images = resize(4, ssd.ResolutionSchedule.thresholds([500])), few_images(3)
    denoiser = oracle.EmpiricalDenoiser(proc, images)
    samples = generate(denoiser, proc, 60, steps=30, seed=0, channels=2)
    assert samples.dtype == torch.float32
    nearest = np.abs(samples.numpy()[:, None] - images).max((2, 3, 4))
    assert nearest.min(1).max() < 1e-3  # at t = 1 the posterior has chosen one image
    result = oracle.coverage(samples.numpy(), images, labels=[0, 0, 1])
    assert result.mode_chi2 < 8
    assert result.class_chi2 is not None
    assert result.class_chi2 < 8


def test_coverage_by_hand():
    images = np.array([[0.0], [1.0], [10.0], [11.0]])
    samples = np.array([[0.1], [0.9], [0.9], [10.0]])
    result = oracle.coverage(samples, images, labels=[0, 0, 1, 1])
    assert result.mode_chi2 == pytest.approx((0 + 1 + 0 + 1) / 3)
    assert result.class_chi2 == pytest.approx((3 - 2) ** 2 / 2 + (1 - 2) ** 2 / 2)
    assert result.mean_error == pytest.approx((samples.mean() - 5.5) ** 2)
    assert result.variance_ratio == pytest.approx(samples.var() / images.var())


# Refusals

IDENTITY = ssd.LinearDiffusion.identity((4, 4), NOISE)
PROC = resize(4, ssd.ResolutionSchedule.thresholds([500]))
BLUR = ssd.LinearDiffusion.blur((4, 4), NOISE, np.linspace(0, 1, 1001))
GOOD = np.eye(16)
IMAGES = np.zeros((3, 4, 4))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: oracle.sampler_error(IDENTITY, np.eye(9)),
            ValueError,
            r"expected \(16, 16\) over the 16 pixels of \(4, 4\).* got \(9, 9\)",
        ),
        (
            lambda: oracle.sampler_error(IDENTITY, ssd.Covariance.isotropic((3, 3), 1.0)),
            ValueError,
            r"\(4, 4\), got one over \(3, 3\)",
        ),
        (
            lambda: oracle.sampler_error(IDENTITY, np.diag([1.0] * 15 + [-0.5])),
            ValueError,
            "smallest eigenvalue is -0.5 ",
        ),
        (lambda: oracle.sampler_error(IDENTITY, GOOD, order=3), ValueError, "order: expected 1 .* got 3"),
        (lambda: oracle.sampler_error(IDENTITY, GOOD, order=2), ValueError, "expected eta = 0, got 1"),
        (lambda: oracle.sampler_error(IDENTITY, GOOD, eta=1.5), ValueError, r"eta must be in \[0, 1\], got 1.5"),
        (lambda: oracle.sampler_error(IDENTITY, GOOD, times=[5, 5]), ValueError, "increasing times"),
        (
            lambda: oracle.sampler_error(IDENTITY, GOOD, mean=np.zeros(3)),
            ValueError,
            r"mean: expected the shape \(4, 4\).* got \(3,\)",
        ),
        (lambda: oracle.sampler_error(IDENTITY, GOOD, mean=np.full(16, np.nan)), ValueError, "must be finite"),
        (
            lambda: oracle.sampler_error(PROC, GOOD, prior=IDENTITY.prior()),
            ValueError,
            r"shape \(2, 2\) at the last time 1000, got a mean shaped \(4, 4\)",
        ),
        (lambda: oracle.spread_times(NOISE, 1001), ValueError, "only 1000"),
        (lambda: oracle.spread_times(NOISE, 2, required=(3, 4)), ValueError, "at least 3 steps"),
        (lambda: oracle.spread_times(NOISE, 2, required=(0,)), ValueError, r"within 1 … 1000"),
        (lambda: oracle.spread_times(NOISE, 2, "cosine"), ValueError, "one of time, log_snr"),
        (lambda: oracle.fit(IMAGES, "full"), ValueError, "choose cosine, separable or dense"),
        (lambda: oracle.fit(IMAGES.astype(int)), TypeError, "got dtype int64"),
        (lambda: oracle.fit(IMAGES[0]), ValueError, r"got \(4, 4\)"),
        (lambda: oracle.fit(IMAGES[:1]), ValueError, "at least two images"),
        (lambda: oracle.fit(np.where(np.arange(3)[:, None, None] == 1, np.nan, IMAGES)), ValueError, "image 1 holds"),
        (lambda: oracle.signal_share(np.array([np.inf]), NOISE), ValueError, "finite"),
        (lambda: oracle.signal_share(np.array([1]), NOISE), TypeError, "int64"),
        (lambda: oracle.EmpiricalDenoiser(PROC, np.zeros((2, 3, 3))), ValueError, r"\(4, 4\), got \(3, 3\)"),
        (lambda: oracle.EmpiricalDenoiser(PROC, np.zeros((4, 4))), ValueError, r"shaped \(n, …, \*\(4, 4\)\)"),
        (lambda: oracle.EmpiricalDenoiser(PROC, np.full((2, 4, 4), np.nan)), ValueError, "finite"),
        (
            lambda: oracle.EmpiricalDenoiser(PROC, IMAGES)(np.zeros((1, 4, 4)), 700),
            ValueError,
            r"\(batch, 2, 2\) at t = 700, got \(1, 4, 4\)",
        ),
        (
            lambda: oracle.EmpiricalDenoiser(PROC, IMAGES)(np.zeros((2, 4, 4)), np.ones(3)),
            ValueError,
            "each of 2 states, got 3",
        ),
        (lambda: oracle.EmpiricalDenoiser(PROC, IMAGES).posterior_mean(np.zeros((2, 4, 4)), 0, 0), ValueError, "got 0"),
        (lambda: oracle.EmpiricalDenoiser(BLUR, IMAGES)(np.zeros((1, 4, 4)), 5), ValueError, "call posterior_mean"),
        (lambda: oracle.coverage(np.zeros((2, 3)), np.zeros((2, 4))), ValueError, r"\(2, 3\) and \(2, 4\)"),
        (lambda: oracle.coverage(np.zeros((2, 3)), np.ones((2, 3)), [1]), ValueError, "label for each of 2"),
        (lambda: oracle.coverage(np.zeros((2, 3)), np.ones((2, 3)), [1, 1]), ValueError, "two classes"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
