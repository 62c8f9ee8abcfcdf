"""Marginals, transitions and posteriors for arrays of times and for traced times, against the same at each time alone."""

import numpy as np
import pytest

import ssdcore as ssd

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
jnp = jax.numpy

T = 60
NOISE = ssd.NoiseSchedule.linear(T)
EPS32 = float(np.finfo(np.float32).eps)


def dense_change() -> ssd.LinearDiffusion:
    ops = [None] * T
    ops[29] = -1.0 * ssd.Matrix(np.random.default_rng(0).standard_normal((2, 6)) / 4, (2, 3), (2,))
    return ssd.LinearDiffusion.from_operators(ops, NOISE)


PROCESSES = {
    "resize": ssd.LinearDiffusion.resize((8, 8), NOISE, ssd.ResolutionSchedule.equal(T, 3)),
    "blur": ssd.LinearDiffusion.blur((6, 5), NOISE, np.linspace(0, 2, T + 1)),
    "flow": ssd.LinearDiffusion.resize((8,), ssd.NoiseSchedule.rectified_flow(T), ssd.ResolutionSchedule.equal(T, 2)),
    "dense": dense_change(),
    "respaced": ssd.LinearDiffusion.resize((8,), NOISE, ssd.ResolutionSchedule.equal(T, 3)).respace(range(3, T + 1, 3)),
}


def pairs_of(proc, rng, n=5):
    """[(s, t)] of n pairs for each (shape, shape) group with s < t."""
    groups = {}
    for s in range(proc.steps):
        for t in range(s + 1, proc.steps + 1):
            groups.setdefault((proc.shape(s), proc.shape(t)), []).append((s, t))
    return {shapes: np.array(group)[rng.integers(len(group), size=n)] for shapes, group in groups.items()}


def alone(law, item, noise):
    return law(item).mean, law(item).sample(noise)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("eta", [1.0, 0.4, 0.0])
def test_posteriors_at_arrays_of_pairs_are_those_of_each_pair(name, eta):
    proc, rng = PROCESSES[name], np.random.default_rng(1)
    for (shape_s, shape_t), pairs in pairs_of(proc, rng).items():
        x_t, clean, noise = (rng.standard_normal((5, 2, *shape)) for shape in (shape_t, shape_s, shape_s))
        s, t = pairs.T
        law = proc.posterior(x_t, clean, s, t, eta=eta)
        each = [proc.posterior(x_t[k], clean[k], int(s[k]), int(t[k]), eta=eta) for k in range(5)]
        np.testing.assert_allclose(law.mean, np.stack([g.mean for g in each]), atol=1e-12)
        expected = np.stack([g.sample(noise[k]) for k, g in enumerate(each)])
        # a root of a variance that is zero but for rounding
        np.testing.assert_allclose(law.sample(noise), expected, atol=1e-7)
        np.testing.assert_allclose(
            law.covariance(noise), np.stack([g.covariance(noise[k]) for k, g in enumerate(each)]), atol=1e-13
        )
        # one s for all, by number; and torch in single precision
        if (s < t.min()).any():
            s0 = int(s[s < t.min()][0])
            got = proc.posterior(x_t, clean, s0, t, eta=eta).mean
            want = [proc.posterior(x_t[k], clean[k], s0, int(t[k]), eta=eta).mean for k in range(5)]
            np.testing.assert_allclose(got, np.stack(want), atol=1e-12)
        low = [torch.tensor(x, dtype=torch.float32) for x in (x_t, clean, noise)]
        got = proc.posterior(low[0], low[1], torch.tensor(s), torch.tensor(t), eta=eta).sample(low[2])
        assert got.dtype == torch.float32
        np.testing.assert_allclose(got, expected, atol=2e-4)


@pytest.mark.parametrize("name", PROCESSES)
def test_marginals_and_transitions_at_arrays_of_times(name):
    proc, rng = PROCESSES[name], np.random.default_rng(2)
    for (shape_s, shape_t), pairs in pairs_of(proc, rng).items():
        s, t = pairs.T
        x_s, noise, x0 = (rng.standard_normal((5, 2, *shape)) for shape in (shape_s, shape_t, proc.shape(0)))
        each = [proc.transition(x_s[k], int(s[k]), int(t[k])) for k in range(5)]
        law = proc.transition(x_s, s, t)
        np.testing.assert_allclose(law.mean, np.stack([g.mean for g in each]), atol=1e-12)
        np.testing.assert_allclose(law.sample(noise), np.stack([g.sample(n) for g, n in zip(each, noise)]), atol=1e-7)
        marginal = proc.marginal(x0, t)
        each = [proc.marginal(x0[k], int(t[k])) for k in range(5)]
        np.testing.assert_allclose(marginal.sample(noise), np.stack([g.sample(n) for g, n in zip(each, noise)]))
        np.testing.assert_allclose(marginal.log_prob(noise), np.stack([g.log_prob(n) for g, n in zip(each, noise)]))


@pytest.mark.parametrize("name", PROCESSES)
def test_traced_pairs_of_times(name):
    """Under jit and vmap of jax, and under vmap of torch.func, the shapes of the arrays tell the group."""
    proc, rng = PROCESSES[name], np.random.default_rng(3)
    groups = pairs_of(proc, rng)
    first, last = next(iter(groups)), list(groups)[-1]
    chosen = {first: groups[first], last: groups[last]}
    change = next((shapes for shapes in groups if shapes[0] != shapes[1]), first)
    chosen[change] = groups[change]
    draw = lambda x, c, e, s, t: proc.posterior(x, c, s, t, eta=0.5).sample(e)  # noqa: E731
    for (shape_s, shape_t), pairs in chosen.items():
        s, t = pairs.T
        x_t, clean, noise = (rng.standard_normal((5, *q)).astype(np.float32) for q in (shape_t, shape_s, shape_s))
        expected = proc.posterior(*(x.astype(np.float64) for x in (x_t, clean)), s, t, eta=0.5).sample(noise * 1.0)
        np.testing.assert_allclose(jax.jit(draw)(x_t, clean, noise, s, t), expected, atol=1e-3)
        np.testing.assert_allclose(jax.jit(jax.vmap(draw))(x_t, clean, noise, s, t), expected, atol=1e-3)
        by_torch = torch.func.vmap(draw)(*(torch.tensor(a) for a in (x_t, clean, noise, s, t)))
        np.testing.assert_allclose(by_torch, expected, atol=1e-3)


def test_a_chain_in_one_fori_loop():
    proc = ssd.LinearDiffusion.resize((8, 8), NOISE, ssd.ResolutionSchedule.equal(T, 3))

    def body(i, x):
        t = 20 - i
        return proc.posterior(x, jnp.tanh(x), t - 1, t, eta=0.0).mean

    x = jnp.asarray(np.random.default_rng(4).standard_normal((8, 8)), jnp.float32)
    got = jax.jit(lambda x: jax.lax.fori_loop(0, 19, body, x))(x)
    expected = np.asarray(x, np.float64)
    for t in range(20, 1, -1):
        expected = proc.posterior(expected, np.tanh(expected), t - 1, t, eta=0.0).mean
    np.testing.assert_allclose(got, expected, atol=1e-4)


X = np.zeros((2, 8, 8))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: p.posterior(X, X, np.array([1, 5]), np.array([2, 5])), ValueError, "expected times s < t, got s = 5, t = 5"),
        (lambda p: p.posterior(X, X, np.array([1, 2, 3]), np.array([5, 6])), ValueError, "as many times s as t"),
        (lambda p: p.posterior(X, X, np.array([1, 2]), np.array([5, 30])), ValueError, "posterior takes times of one size; these have 8×8 and 4×4"),
        (lambda p: p.posterior(X, X, np.array([1, 2]), np.array([30, 31])), ValueError, "the state at t: expected trailing axes"),
        (lambda p: p.transition(np.zeros((3, 8, 8)), np.array([1, 2]), np.array([5, 6])), ValueError, "one for each item of the leading axis"),
        (lambda p: p.marginal(X, np.array([1, 2])).covariance.as_matrix(), ValueError, "one matrix per item"),
        (lambda p: p.marginal(X, np.array([0, 2])).log_prob(X), ValueError, "singular"),
    ],
)  # fmt: skip
def test_bad_arrays_of_times_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make(PROCESSES["resize"])


def test_several_degradations_of_one_shape_have_no_common_posterior():
    ops = [None] * T
    ops[9], ops[19] = 0.9 * ssd.Blur((6,), 1.0), ssd.Matrix(np.eye(6)[::-1].copy())
    proc = ssd.LinearDiffusion.from_operators(ops, NOISE)
    x = np.zeros((2, 6))
    with pytest.raises(ValueError, match="several degradations between them; split the batch"):
        proc.posterior(x, x, np.array([1, 1]), np.array([5, 15]))
    assert proc.posterior(x, x, np.array([1, 2]), np.array([11, 12])).mean.shape == (2, 6)  # one degradation
