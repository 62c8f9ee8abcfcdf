"""`ssdcore.sampling`: the loop has the law that the oracle computes, in numpy, torch and jax; steps exact to second moments."""

import itertools
import math

import numpy as np
import pytest

import ssdcore as ssd

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
jnp = jax.numpy

T = 40
NOISE = ssd.NoiseSchedule.linear(T)
SPECTRUM = (1.0 + np.arange(8)) ** -2
COVARIANCE = ssd.Covariance.cosine(SPECTRUM)


def resize(levels=2, noise=NOISE):
    return ssd.LinearDiffusion.resize((8,), noise, ssd.ResolutionSchedule.equal(noise.steps, levels))


PROCESSES = {
    "identity": ssd.LinearDiffusion.identity((8,), NOISE),
    "resize": resize(3),
    "blur": ssd.LinearDiffusion.blur((8,), NOISE, np.linspace(0, 1.5, T + 1)),
    "one blur": ssd.LinearDiffusion.blur((8,), NOISE, np.where(np.arange(T + 1) < 20, 0.0, 1.0)),
    "flow": resize(2, ssd.NoiseSchedule.rectified_flow(T)),
}
TIMES = (2, 5, 9, 13, 14, 20, 26, 27, 28, 33, 40)


class Gaussian:
    """The optimal denoiser of N(0, C), and what it leaves open, as dense matrices by (t, s)."""

    def __init__(self, proc, xp=np):
        self.proc, self.xp = proc, xp
        r = [proc.operator(0, t).as_matrix() for t in range(proc.steps + 1)]
        c = COVARIANCE.as_matrix()
        self.gain, self.open = {}, {}
        for t in range(1, proc.steps + 1):
            seen = proc.alpha(t) ** 2 * r[t] @ c @ r[t].T + proc.sigma(t) ** 2 * np.eye(len(r[t]))
            for s in range(t):
                cross = proc.alpha(t) * r[s] @ c @ r[t].T
                self.gain[t, s] = np.linalg.solve(seen, cross.T).T
                self.open[t, s] = r[s] @ c @ r[s].T - self.gain[t, s] @ cross.T

    def __call__(self, x, t, s):
        if isinstance(t, int):
            gain = self.xp.asarray(self.gain[t, s])
        else:  # traced: t − s differs from step to step, so all pairs of one shape in a table
            table = np.zeros((T + 1, T + 1, x.shape[-1], x.shape[-1]))
            for (a, b), m in self.gain.items():
                if m.shape == table.shape[2:]:
                    table[a, b] = m
            gain = self.xp.asarray(table)[t, s]
        return x @ self.xp.astype(gain, x.dtype).T if self.xp is not torch else x @ gain.to(x.dtype).T

    def covariance(self, t, s):
        return ssd.Covariance.dense((self.open[t, s] + self.open[t, s].T) / 2)


def probed(proc, times, **options):
    """The covariance of x_0, from the loop itself: every normal number in turn is one, the others are zero."""
    last = proc.shape(times[-1])
    steps = [proc.shape(t)[0] for t in times[:-1]][::-1]  # sizes at which noise is drawn, in order
    count = last[0] + sum(steps)
    root = proc.prior(
        covariance=proc.operator(0, times[-1]).as_matrix()
        @ COVARIANCE.as_matrix()
        @ proc.operator(0, times[-1]).as_matrix().T
    )
    noise = np.eye(count)
    x_T, at = root.sample(noise[:, : last[0]]), [last[0]]

    def normal(shape):
        part = noise[:, at[0] : at[0] + shape[-1]]
        at[0] += shape[-1]
        return part

    x0 = ssd.sampling.sample(Gaussian(proc), proc, x_T, normal, times, **options)
    # all of the noise was asked for, but at deterministic steps, whose law has none
    assert at[0] == count or (options["eta"] == 0 and ("clean_covariance" not in options or options["order"] == 2))
    return x0.T @ x0


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(("eta", "order"), [(1.0, 1), (0.3, 1), (0.0, 1), (0.0, 2)])
def test_the_loop_has_the_law_of_the_oracle(name, eta, order):
    proc = PROCESSES[name]
    law = ssd.oracle.sampler_law(proc, COVARIANCE, TIMES, eta, order=order)
    np.testing.assert_allclose(probed(proc, TIMES, eta=eta, order=order), law.covariance.as_matrix(), atol=1e-11)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("eta", [1.0, 0.3, 0.0])
def test_second_moments_give_the_law_of_the_oracle_and_the_data(name, eta):
    proc = PROCESSES[name]
    drawn = probed(proc, TIMES, eta=eta, clean_covariance=Gaussian(proc).covariance)
    law = ssd.oracle.sampler_law(proc, COVARIANCE, TIMES, eta, second_moments=True)
    np.testing.assert_allclose(drawn, law.covariance.as_matrix(), atol=1e-11)
    # every step is the true one: x_0 is the prediction from a true state at the first time
    last = Gaussian(proc)
    state = proc.operator(0, TIMES[0]).as_matrix()
    seen = proc.alpha(2) ** 2 * state @ COVARIANCE.as_matrix() @ state.T + proc.sigma(2) ** 2 * np.eye(len(state))
    np.testing.assert_allclose(drawn, last.gain[2, 0] @ seen @ last.gain[2, 0].T, atol=1e-11)


@pytest.mark.parametrize("name", PROCESSES)
def test_second_moments_of_multistep_give_the_law_of_the_oracle(name):
    """Only changes of size draw anything, the modes that they add with what the prediction leaves open of them."""
    proc, asked = PROCESSES[name], []

    def covariance(t, s):
        asked.append((t, s))
        return Gaussian(proc).covariance(t, s)

    options = {"eta": 0.0, "order": 2}
    drawn = probed(proc, TIMES, clean_covariance=covariance, **options)
    law = ssd.oracle.sampler_law(proc, COVARIANCE, TIMES, **options, second_moments=True)
    np.testing.assert_allclose(drawn, law.covariance.as_matrix(), atol=1e-11)
    changes = [(t, s) for s, t in itertools.pairwise(TIMES) if proc.shape(s) != proc.shape(t)]
    assert asked == changes[::-1]
    without = probed(proc, TIMES, **options)
    assert np.array_equal(drawn, without) == (not changes)
    if changes:  # the variance that it lacks otherwise comes back
        gap = [abs(np.trace(x) - SPECTRUM.sum()) for x in (drawn, without)]
        assert gap[0] < gap[1]


def ideal(size, to):
    """The resize that keeps the low cosine modes alone, all alike."""
    rows = []
    for n in (size, to):
        k, i = np.meshgrid(np.arange(to), np.arange(n), indexing="ij")
        rows.append(np.cos(np.pi * (i + 0.5) * k / n) * np.where(k == 0, 1, math.sqrt(2)) / math.sqrt(n))
    return ssd.Matrix(rows[1].T @ rows[0] * math.sqrt(to / size))


def test_second_order_holds_across_changes_of_size_with_second_moments():
    """Half the step, a quarter of the error in the covariance, as at one size; without, a floor remains."""
    steps, changes = 3000, (150, 400)
    base = ssd.NoiseSchedule.cosine(steps)
    ratio = base.sigma / base.alpha * math.sqrt(0.5) ** np.searchsorted(changes, np.arange(steps + 1), side="right")
    alpha = 1 / np.sqrt(1 + ratio**2)
    operators = [None] * steps
    operators[changes[0] - 1], operators[changes[1] - 1] = ideal(16, 8), ideal(8, 4)
    proc = ssd.LinearDiffusion.from_operators(operators, ssd.NoiseSchedule(alpha, ratio * alpha))
    data = ssd.Covariance.cosine((1.0 + np.arange(16)) ** -2)

    def error(n, born):
        times = ssd.sampling.sampling_times(proc, n, "log_snr")
        law = ssd.oracle.sampler_law(proc, data, times, 0.0, order=2, second_moments=born)
        return np.abs(law.covariance.as_matrix() - data.as_matrix()).max()

    for n in (80, 160, 320):
        assert error(n, True) / error(2 * n, True) > 3.5
    assert error(320, True) < 0.01 * error(320, False)
    assert error(160, False) < 1.1 * error(320, False)  # its floor


@pytest.mark.parametrize("below", [1, 2, 8])
def test_a_state_right_below_a_change_is_not_extrapolated_further_than_one_step(below):
    """What two paths of a network disagree about is not divided by the small way between them."""
    proc = resize()
    (u,) = proc.size_changes
    t = u - below
    rng = np.random.default_rng(0)
    prediction, previous = rng.standard_normal((2, 8))
    moved = ssd.multistep.extrapolated(proc, 2, t, u, prediction, previous) - prediction
    _, _, v = np.linalg.svd(proc.operator(t, u).as_matrix(), full_matrices=False)
    assert np.abs(v @ moved).max() <= np.abs(v @ (prediction - previous)).max() * (1 + 1e-12)
    np.testing.assert_allclose(v.T @ (v @ moved), moved, atol=1e-12)
    assert np.abs(moved).max() > 0.01


def dense_projection(operator):
    """I − V Vᵀ over the singular vectors with r > 0."""
    _, r, v = np.linalg.svd(operator.as_matrix())
    kept = v[: int((r > 1e-9).sum())]
    return np.eye(v.shape[1]) - kept.T @ kept


def test_modes_that_a_change_destroyed_are_not_extrapolated_after_it():
    rng, halved = np.random.default_rng(0), ssd.Resize((8,), (4,)).as_matrix()
    one_kept = ssd.Matrix(np.outer(*rng.standard_normal((2, 4))) @ halved / 9)
    proc = ssd.LinearDiffusion.from_operators([None, None, one_kept, None], ssd.NoiseSchedule.cosine(4))
    prediction, previous = rng.standard_normal((2, 8))
    moved = ssd.multistep.extrapolated(proc, 1, 2, 3, prediction, previous) - prediction
    np.testing.assert_allclose(dense_projection(one_kept) @ moved, 0, atol=1e-12)
    assert np.abs(moved).max() > 0.01


@pytest.mark.parametrize("kind", ["isotropic", "cosine", "dense", "of modes"])
@pytest.mark.parametrize("singular", [False, True])
def test_the_covariance_of_the_modes_that_a_change_adds(kind, singular):
    """σ_s² P + α_s² P C P with a dense P, also where R destroys some of its own modes; drawn by any L with L Lᵀ so."""
    rng = np.random.default_rng(1)
    half = rng.standard_normal((8, 8))
    proc = resize()
    (t,) = proc.size_changes
    if singular:
        one_kept = np.outer(*rng.standard_normal((2, 4))) @ proc.operator(t - 1, t).as_matrix() / 9
        noise, t = ssd.NoiseSchedule.cosine(4), 2
        proc = ssd.LinearDiffusion.from_operators([None, ssd.Matrix(one_kept), None, None], noise)
    s = t - 1
    c = {
        "isotropic": ssd.Covariance.isotropic((8,), 0.3),
        "cosine": ssd.Covariance.cosine(rng.random(8)),
        "dense": ssd.Covariance.dense(half @ half.T),
        "of modes": ssd.Covariance.of_modes(proc.operator(s, t), rng.random(4), 0.2),
    }[kind]
    p = dense_projection(proc.operator(s, t))
    born = ssd.multistep.born_covariance(proc, s, t, c)
    np.testing.assert_allclose(born.as_matrix(), p @ c.as_matrix() @ p, atol=1e-12)
    law = proc.posterior(rng.standard_normal(proc.shape(t)), rng.standard_normal(8), s, t, 0.0, born)
    expected = p @ (proc.sigma(s) ** 2 * np.eye(8) + proc.alpha(s) ** 2 * c.as_matrix()) @ p
    np.testing.assert_allclose(law.covariance.as_matrix(), expected, atol=1e-12)
    np.testing.assert_allclose(law.covariance(np.eye(8)), expected, atol=1e-12)
    root = law.covariance.root(np.eye(8)).T
    np.testing.assert_allclose(root @ root.T, expected, atol=1e-12)
    assert ssd.multistep.born_covariance(proc, s, t, born) == born


@pytest.mark.parametrize("kind", ["isotropic", "cosine", "dense", "of modes"])
@pytest.mark.parametrize("eta", [1.0, 0.5, 0.0])
def test_the_covariance_that_a_prediction_leaves_open(kind, eta):
    """σ_s² I − σ_t² B Bᵀ + D C Dᵀ with D = α_s I − α_t B R, as dense matrices."""
    rng = np.random.default_rng(0)
    for name in ("resize", "blur", "identity"):
        proc = PROCESSES[name]
        for s, t in ((3, 4), (13, 14), (5, 30)):
            n, (m,) = proc.shape(s)[0], proc.shape(t)
            half = rng.standard_normal((n, n))
            c = {
                "isotropic": ssd.Covariance.isotropic((n,), 0.3),
                "cosine": ssd.Covariance.cosine(rng.random(n)),
                "dense": ssd.Covariance.dense(half @ half.T),
                "of modes": ssd.Covariance.of_modes(proc.degradation(s, t), rng.random(min(n, m)), 0.2),
            }[kind]
            plain = proc.posterior(np.zeros(m), np.zeros(n), s, t, eta)
            b = np.stack([proc.posterior(e, np.zeros(n), s, t, eta).mean for e in np.eye(m)], axis=1)
            d = proc.alpha(s) * np.eye(n) - proc.alpha(t) * b @ proc.operator(s, t).as_matrix()
            law = proc.posterior(np.zeros(m), np.zeros(n), s, t, eta, c)
            expected = plain.covariance.as_matrix() + d @ c.as_matrix() @ d.T
            np.testing.assert_allclose(law.covariance.as_matrix(), expected, atol=1e-12)
            root = law.covariance.root(np.eye(n))
            np.testing.assert_allclose(root @ root.T, expected, atol=1e-7)
            if (
                kind in ("isotropic", "of modes")
                or proc.stage(s) == proc.stage(t)
                or (name, kind) == ("blur", "cosine")
            ):
                batched = proc.posterior(np.zeros((2, m)), np.zeros((2, n)), np.array([s, s]), t, eta, c)
                applied = batched.covariance(np.repeat(np.eye(n)[:, None], 2, axis=1))
                np.testing.assert_allclose(applied, np.repeat(expected[:, None], 2, axis=1), atol=1e-11)


def test_a_large_covariance_is_applied_without_a_matrix():
    noise = ssd.NoiseSchedule.linear(T)
    proc = ssd.LinearDiffusion.resize((36, 36), noise, ssd.ResolutionSchedule.equal(T, 2))
    t = proc.size_changes[0]
    c = ssd.Covariance.cosine((1 + np.hypot(*np.indices((36, 36)))) ** -2.5)
    law = proc.posterior(np.zeros(proc.shape(t)), np.zeros((36, 36)), t - 1, t, clean_covariance=c)
    rng = np.random.default_rng(0)
    v = rng.standard_normal((2, 36, 36))
    plain = proc.posterior(np.zeros(proc.shape(t)), np.zeros((36, 36)), t - 1, t)

    def d(x):
        b = lambda y: proc.posterior(y, np.zeros_like(x), t - 1, t).mean  # noqa: E731
        return proc.alpha(t - 1) * x - proc.alpha(t) * b(proc.operator(t - 1, t)(x))

    expected = plain.covariance(v) + d(c(d(v)))
    np.testing.assert_allclose(law.covariance(v), expected, atol=1e-12)
    np.testing.assert_allclose(law.covariance.root(law.covariance.root(v)), expected, atol=1e-8)
    with pytest.raises(ValueError, match="too large"):
        law.covariance.log_determinant()


@pytest.mark.parametrize(("name", "eta", "order"), [("resize", 0.0, 2), ("blur", 0.0, 1), ("one blur", 0.0, 2)])
def test_jax_scans_what_numpy_walks(name, eta, order):
    """Deterministic but for changes, whose noise is set to zero: the same chain in single precision."""
    proc = PROCESSES[name]
    x_T = np.random.default_rng(0).standard_normal((3, *proc.shape(T)))
    expected = ssd.sampling.sample(Gaussian(proc), proc, x_T, np.zeros, None, eta, order)
    denoise = Gaussian(proc, jnp)
    got = jax.jit(lambda x: ssd.sampling.sample(denoise, proc, x, jnp.zeros, None, eta, order))(jnp.asarray(x_T))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, atol=2e-4 * max(1, np.abs(expected).max()))


def test_jax_draws_the_modes_that_a_change_adds_as_numpy_does():
    proc = PROCESSES["resize"]
    x_T = np.random.default_rng(0).standard_normal((3, *proc.shape(T)))
    noise = np.random.default_rng(1).standard_normal((3, 8))
    options = {"times": (2, 5, 14, 27, T), "eta": 0.0, "order": 2}
    left_open = Gaussian(proc).covariance
    flat = lambda shape: noise[:, : shape[-1]]  # noqa: E731
    expected = ssd.sampling.sample(Gaussian(proc), proc, x_T, flat, **options, clean_covariance=left_open)
    assert np.abs(expected - ssd.sampling.sample(Gaussian(proc), proc, x_T, flat, **options)).max() > 0.01
    many = lambda shape: jnp.asarray(noise[:, : shape[-1]], jnp.float32)  # noqa: E731
    got = jax.jit(
        lambda x: ssd.sampling.sample(Gaussian(proc, jnp), proc, x, many, **options, clean_covariance=left_open)
    )(jnp.asarray(x_T))
    np.testing.assert_allclose(got, expected, atol=2e-4 * max(1, np.abs(expected).max()))


def test_a_key_serves_every_step_of_jax_anew():
    proc, times, n = resize(2), range(4, T + 1, 4), 20000
    seen = proc.operator(0, T).as_matrix()
    start = proc.prior(jnp.zeros(proc.shape(T)), seen @ COVARIANCE.as_matrix() @ seen.T)
    denoise = Gaussian(proc, jnp)

    @jax.jit
    def draw(key):
        first, rest = jax.random.split(key)
        x_T = start.sample(jax.random.normal(first, (n, *proc.shape(T))))
        return ssd.sampling.sample(denoise, proc, x_T, rest, times)

    drawn = np.asarray(draw(jax.random.key(0)), np.float64)
    expected = ssd.oracle.sampler_law(proc, COVARIANCE, times).covariance.as_matrix()
    found = drawn.T @ drawn / n
    deviation = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / n)
    assert (np.abs(found - expected) < 6 * deviation).all()


def test_covariances_of_a_scan():
    proc = PROCESSES["resize"]
    x_T = np.random.default_rng(0).standard_normal((3, *proc.shape(T)))
    noise = np.random.default_rng(1).standard_normal((3, 8))

    def left_open(t, s):
        return ssd.Covariance.cosine(0.01 * t / T / (1 + np.arange(proc.shape(s)[0])))

    flat = lambda shape: noise[:, : shape[-1]]  # noqa: E731
    expected = ssd.sampling.sample(Gaussian(proc), proc, x_T, flat, clean_covariance=left_open)
    many = lambda shape: jnp.broadcast_to(jnp.asarray(noise[:, : shape[-1]], jnp.float32), shape)  # noqa: E731
    got = jax.jit(lambda x: ssd.sampling.sample(Gaussian(proc, jnp), proc, x, many, clean_covariance=left_open))(
        jnp.asarray(x_T, jnp.float32)
    )
    np.testing.assert_allclose(got, expected, atol=1e-3)


def test_tracing_does_not_grow_with_the_steps():
    calls = []

    def denoise(x, t, s):
        calls.append(t)
        return jnp.zeros((1, *long.shape(s))) if isinstance(s, int) else jnp.tanh(x)

    counts = []
    for steps in (40, 400):
        noise = ssd.NoiseSchedule.linear(steps)
        long = ssd.LinearDiffusion.resize((8,), noise, ssd.ResolutionSchedule.equal(steps, 3))
        calls.clear()
        jax.make_jaxpr(lambda x, long=long: ssd.sampling.sample(denoise, long, x, jax.random.key(0)))(jnp.zeros((1, 2)))
        counts.append(len(calls))
    assert counts[0] == counts[1] < 20


def test_torch_runs_the_same_loop():
    proc = PROCESSES["resize"]
    x_T = np.random.default_rng(0).standard_normal((3, 2, *proc.shape(T)))
    denoise = Gaussian(proc, torch)
    for options in ({"eta": 0.0, "order": 2}, {"times": TIMES}):
        expected = ssd.sampling.sample(Gaussian(proc), proc, x_T, np.zeros, **options)
        got = ssd.sampling.sample(
            denoise, proc, torch.tensor(x_T), lambda s: torch.zeros(s, dtype=torch.float64), **options
        )
        np.testing.assert_allclose(got, expected, atol=1e-12)


def test_times_are_those_of_the_process_that_was_trained_on():
    proc, asked = PROCESSES["resize"], []

    def denoise(x, t, s):
        asked.append((t, s))
        return np.zeros(proc.shape(s))

    x_T = np.zeros(proc.shape(T))
    ssd.sampling.sample(denoise, proc, x_T, np.zeros, times=[3, 20, T])
    ssd.sampling.sample(denoise, proc.respace([3, 20, T]), x_T, np.zeros)
    assert asked == 2 * [(T, 20), (20, 3), (3, 0)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 1.5}, r"eta must be in \[0, 1\], got 1.5"),
        ({"order": 3}, "order: expected 1"),
        ({"order": 2}, "expected eta = 0"),
        ({"times": [3, 20]}, "sample: x_T at t = 20: expected trailing axes"),
        ({"denoise": lambda x, t, s: x}, "the result of denoise"),
        ({"clean_covariance": lambda t, s: ssd.Covariance.isotropic((3,), 1.0)}, "expected a Covariance over"),
        (
            {"order": 2, "eta": 0.0, "clean_covariance": lambda t, s: ssd.Covariance.isotropic((3,), 1.0)},
            "born_covariance: expected a Covariance over",
        ),
    ],
)
def test_bad_arguments_are_refused(options, message):
    proc = PROCESSES["resize"]
    denoise = options.pop("denoise", lambda x, t, s: np.zeros(proc.shape(s)))
    with pytest.raises(ValueError, match=message):
        ssd.sampling.sample(denoise, proc, np.zeros(proc.shape(T)), np.zeros, **options)


def test_steps():
    proc, rng = PROCESSES["resize"], np.random.default_rng(0)
    x, now, before = rng.standard_normal((3, 8))
    law = proc.posterior(x, now, 4, 5, eta=0.5)
    np.testing.assert_array_equal(ssd.sampling.step(proc, x, now, 4, 5, np.ones, 0.5), law.sample(np.ones(8)))
    assert ssd.sampling.step(proc, x, now, 0, 5, np.ones) is now
    used = ssd.multistep.extrapolated(proc, 4, 5, 7, now, before)
    second = ssd.sampling.step(proc, x, now, 4, 5, np.zeros, 0.0, previous=before, u=7)
    np.testing.assert_array_equal(second, proc.posterior(x, used, 4, 5, eta=0.0).mean)
    with pytest.raises(ValueError, match="`u`, the time that it was predicted at"):
        ssd.sampling.step(proc, x, now, 4, 5, np.zeros, 0.0, previous=before)
    assert math.isfinite(float(second.sum()))


def test_the_first_of_second_order_steps_takes_only_what_is_open_in_the_modes_that_are_born():
    proc, rng = PROCESSES["resize"], np.random.default_rng(0)
    t = proc.size_changes[0]
    x, now, noise = (rng.standard_normal(proc.shape(k)) for k in (t, t - 1, t - 1))
    left_open = ssd.Covariance.isotropic(proc.shape(t - 1), 0.3)
    born = ssd.multistep.born_covariance(proc, t - 1, t, left_open)
    expected = proc.posterior(x, now, t - 1, t, 0.0, born).sample(noise)
    found = ssd.sampling.step(proc, x, now, t - 1, t, lambda shape: noise, 0.0, u=t + 1, clean_covariance=left_open)
    np.testing.assert_array_equal(found, expected)
    sampler = ssd.sampling.Sampler(0.0, 2)
    found = sampler.step(proc, x, now, t, lambda shape: noise, None, left_open)
    np.testing.assert_array_equal(found, expected)
    plain = ssd.sampling.step(proc, x, now, t - 1, t, lambda shape: noise, 0.0, clean_covariance=left_open)
    assert np.abs(plain - expected).max() > 1e-3
