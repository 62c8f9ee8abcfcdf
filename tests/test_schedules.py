"""Noise levels against DDPM's own recursions; resolution schedules against the paper's definitions, term by term."""

import math
import pickle

import numpy as np
import pytest

import ssdcore as ssd

EPS = np.finfo(np.float64).eps


def test_linear_is_the_ddpm_schedule():
    noise = ssd.NoiseSchedule.linear(1000)
    alpha_bar = 1.0
    for t, beta in enumerate(np.linspace(1e-4, 0.02, 1000), start=1):
        alpha_bar *= 1 - beta
        if t in (1, 2, 500, 1000):
            assert noise.alpha[t] == pytest.approx(math.sqrt(alpha_bar), rel=1e3 * EPS)
            assert noise.sigma[t] == pytest.approx(math.sqrt(1 - alpha_bar), rel=1e-10)
    assert (noise.alpha[0], noise.sigma[0], noise.steps) == (1.0, 0.0, 1000)


def test_cosine_betas_are_capped():
    noise = ssd.NoiseSchedule.cosine(1000)
    betas = 1 - (noise.alpha[1:] / noise.alpha[:-1]) ** 2
    assert betas.max() == pytest.approx(0.999, rel=1e-9)
    expected = (
        1 - math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos((0.499 + 0.008) / 1.008 * math.pi / 2) ** 2
    )
    assert betas[499] == pytest.approx(expected, rel=1e-9)


def test_from_log_snr_keeps_the_values_at_both_ends():
    values = np.linspace(30, -30, 25)
    noise = ssd.NoiseSchedule.from_log_snr(values)
    np.testing.assert_allclose(noise.log_snr(), values, atol=64 * EPS * 30)
    np.testing.assert_allclose(noise.alpha**2 + noise.sigma**2, 1, atol=8 * EPS)
    last = ssd.NoiseSchedule.from_log_snr([2.0, -math.inf])
    assert (last.alpha[-1], last.sigma[-1]) == (0.0, 1.0)
    proc = ssd.LinearDiffusion.identity((3,), last)
    g = proc.posterior(np.ones(3), np.full(3, 0.5), 1, 2)  # nothing left of the signal: the posterior is the marginal
    np.testing.assert_allclose(g.mean, last.alpha[1] * 0.5)
    np.testing.assert_allclose(g.covariance.as_matrix(), last.sigma[1] ** 2 * np.eye(3))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ssd.NoiseSchedule.linear(20), ValueError, "take at least 21"),
        (lambda: ssd.NoiseSchedule.linear(0), ValueError, "at least 1"),
        (lambda: ssd.NoiseSchedule.linear(10.0), TypeError, "integer"),
        (lambda: ssd.NoiseSchedule.from_log_snr([1.0, 2.0]), ValueError, "must not rise"),
        (lambda: ssd.NoiseSchedule.from_log_snr([math.nan]), ValueError, "NaN"),
        (lambda: ssd.NoiseSchedule.from_log_snr([]), ValueError, "T >= 1"),
        (lambda: ssd.NoiseSchedule(np.ones(3), np.ones(2)), ValueError, "two arrays"),
        (lambda: ssd.NoiseSchedule(np.ones(3), np.ones(3)), ValueError, "time 0 is clean"),
        (lambda: ssd.NoiseSchedule(np.ones(3), np.array([0, 1, 0.0])), ValueError, "at t = 2 .*sigma = 0"),
        (lambda: ssd.ResolutionSchedule.equal(10, 11), ValueError, "11 levels need at least 11 steps"),
        (lambda: ssd.ResolutionSchedule.convex(10, 2, 0.0), ValueError, "gamma must be finite and positive"),
        (lambda: ssd.ResolutionSchedule.tanh(10, 2, 0.5), ValueError, "at least 1, got 0.5"),
        (lambda: ssd.ResolutionSchedule.thresholds([5, 3]), ValueError, "one after the other"),
        (lambda: ssd.ResolutionSchedule.thresholds([0]), ValueError, "at least 1"),
        (lambda: ssd.ResolutionSchedule.thresholds([2.5]), TypeError, "integer"),
        (lambda: ssd.ResolutionSchedule.thresholds([11], steps=10), ValueError, "after T = 10"),
        (lambda: ssd.ResolutionSchedule.equal(10, 2).level(11), ValueError, "whose times are 0 … 10"),
    ],
)
def test_bad_schedules_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_schedules_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        ssd.NoiseSchedule.linear(100).alpha[3] = 0


def smooth(z, gamma):
    x = np.sign(z) * abs(z) ** gamma + 0.5
    return 3 * x**2 - 2 * x**3 - 0.5


def by_bisection(w, gamma):
    """The inverse of ½ S(z)/S(−½) (a falling function of z) on [−½, ½], by bisection."""
    low, high = -0.5, 0.5
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if 0.5 * smooth(middle, gamma) / smooth(-0.5, gamma) > w else (low, middle)
    return low


PAPER = {
    "equal": lambda tau, g: tau,
    "convex": lambda tau, g: 1 - (1 - tau) ** g,
    "tanh": lambda tau, g: 0.5 * smooth(0.5 - tau, g) / smooth(-0.5, g) + 0.5,
    "sigmoid": lambda tau, g: 0.5 * by_bisection(0.5 - tau, g) / by_bisection(-0.5, g) + 0.5,
}


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(
    ("name", "gamma"),
    [
        ("equal", None),
        ("convex", 0.5),
        ("convex", 2.0),
        ("tanh", 1.0),
        ("tanh", 2.0),
        ("sigmoid", 1.0),
        ("sigmoid", 3.0),
    ],
)
def test_every_schedule_follows_its_definition(name, gamma, levels):
    steps = 137
    arguments = () if gamma is None else (gamma,)
    schedule = getattr(ssd.ResolutionSchedule, name)(steps, levels, *arguments)
    assert schedule.level(0) == 0
    for i in range(steps):
        u = levels * PAPER[name](i / (steps - 1), gamma)
        # where S is flat the reference's bisection resolves z only to eps^(1/gamma) or √eps: rounding decides a tie
        unsure = 0 if name in ("equal", "convex") else 100 * levels * max(EPS ** (1 / gamma), EPS**0.5)
        if abs(u - round(u)) >= unsure:
            assert schedule.level(i + 1) == min(math.floor(u), levels - 1), i


def test_the_papers_own_schedule_in_numbers():
    schedule = ssd.ResolutionSchedule.convex(steps=1000, levels=3, gamma=0.5)
    assert schedule.starts == (556, 890)  # counted from zero: 555 and 889
    assert [schedule.level(t) for t in (1, 555, 556, 889, 890, 1000)] == [0, 0, 1, 1, 2, 2]
    assert schedule.levels == 3


def test_thresholds_and_one_step():
    schedule = ssd.ResolutionSchedule.thresholds([3, 3, 9])
    assert [schedule.level(t) for t in (0, 2, 3, 8, 9, 1000)] == [0, 0, 2, 2, 3, 3]
    assert ssd.ResolutionSchedule.equal(1, 1).level(1) == 0


def test_scaled_noise_keeps_the_total_power_and_scales_the_ratio():
    noise = ssd.NoiseSchedule.linear(100)
    factors = np.linspace(1, 0.25, 101)
    scaled = noise.scaled(factors)
    np.testing.assert_allclose(scaled.alpha**2 + scaled.sigma**2, 1, atol=8 * EPS)
    np.testing.assert_allclose(scaled.sigma / scaled.alpha, factors * noise.sigma / noise.alpha, rtol=16 * EPS)


def test_betas_give_the_named_schedules_and_are_checked():
    linear = ssd.NoiseSchedule.from_betas(np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_array_equal(linear.alpha, ssd.NoiseSchedule.linear(1000).alpha)
    np.testing.assert_allclose(
        ssd.NoiseSchedule.from_betas([0.25, 0.5, 1.0]).alpha ** 2, [1, 0.75, 0.375, 0], rtol=1e-15
    )
    for bad in ([], [[0.1]], [0.1, -0.1], [1.1], [np.nan]):
        with pytest.raises(ValueError, match=r"from_betas: expected T >= 1 numbers in \[0, 1\]"):
            ssd.NoiseSchedule.from_betas(bad)


@pytest.mark.parametrize(
    ("noise", "kept"),
    [
        (ssd.NoiseSchedule.from_log_snr([900.0, -900.0]), "length"),  # alpha + sigma is 1 as well, to rounding
        (ssd.NoiseSchedule.from_log_snr([45.0, 42.0]), "length"),  # alpha is 1 as well
        (ssd.NoiseSchedule.from_betas([1e-16, 1.0]), "length"),
        (ssd.NoiseSchedule.rectified_flow(1), "sum"),
        (ssd.NoiseSchedule.edm(1), "signal"),
        (ssd.NoiseSchedule.edm(3, 1e-12, 1e-9), "signal"),
        (ssd.NoiseSchedule([1, 0.75, 0.5], [0, 0.25, 0.5]), "sum"),
        (ssd.NoiseSchedule([1, 1, 1], [0, 0.25, 5]), "signal"),
        (ssd.NoiseSchedule([1, 0], [0, 1]), "length"),
        (ssd.NoiseSchedule([1, 0], [0, 1], normalisation="sum"), "sum"),
        (ssd.NoiseSchedule(1 - np.linspace(0, 1, 12, dtype="f4"), np.linspace(0, 1, 12, dtype="f4")), "sum"),
        (ssd.NoiseSchedule([1, 0.75, 0.5], [0, 0.25, 0.6]), "length"),
    ],
)
def test_every_schedule_knows_what_it_keeps(noise, kept):
    assert noise.normalisation == kept
    scaled = noise.scaled(np.geomspace(1, 0.125, noise.steps + 1))
    assert scaled.normalisation == scaled.scaled(np.full(noise.steps + 1, 2.0)).normalisation == kept
    total = {"sum": scaled.alpha + scaled.sigma, "signal": scaled.alpha}.get(kept, np.hypot(scaled.alpha, scaled.sigma))
    was = np.hypot(noise.alpha, noise.sigma) if kept == "length" else 1.0
    np.testing.assert_allclose(total, was, rtol=8 * EPS)
    process = ssd.LinearDiffusion.identity(3, noise).respace([noise.steps])
    assert process.noise.normalisation == kept


def test_a_stated_normalisation_holds():
    with pytest.raises(ValueError, match=r"asks for alpha \+ sigma = 1; at t = 2 it is 1.1"):
        ssd.NoiseSchedule([1, 0.75, 0.5], [0, 0.25, 0.6], normalisation="sum")
    with pytest.raises(ValueError, match=r"asks for alpha = 1; at t = 1 it is 0.75"):
        ssd.NoiseSchedule([1, 0.75], [0, 0.25], normalisation="signal")
    with pytest.raises(ValueError, match='expected "length", "sum", "signal" or None'):
        ssd.NoiseSchedule([1, 0.75], [0, 0.25], normalisation="vp")


def test_schedules_are_equal_if_they_are_at_all_times():
    """Equal ones share what jax has compiled, so they must agree between whole times, too."""
    named = [ssd.NoiseSchedule.named(name, 30) for name in ssd.NoiseSchedule.names()]
    made = [*named, *(noise.scaled(np.full(31, 0.5)) for noise in named)]
    made += [ssd.NoiseSchedule(noise.alpha, noise.sigma) for noise in named]  # interpolated
    again = [pickle.loads(pickle.dumps(noise)) for noise in made]
    for i, noise in enumerate(made):
        assert [noise == other for other in again] == [i == j for j in range(len(made))]
        assert hash(noise) == hash(again[i])
