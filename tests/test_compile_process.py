"""Every method of a process as one graph of torch.compile, at fixed times and at times in tensors; never another's graph."""

import itertools

import numpy as np
import pytest

import ssdcore as ssd

torch = pytest.importorskip("torch")

T = 60
NOISE = ssd.NoiseSchedule.linear(T)
LEVELS = ssd.ResolutionSchedule.equal(T, 3)


def processes():
    return {
        "resize": ssd.LinearDiffusion.resize((8, 8), NOISE, LEVELS),
        "blur": ssd.LinearDiffusion.blur((8, 8), NOISE, np.linspace(0, 2, T + 1)),
    }


RESIDUALS = ssd.Covariance.isotropic((8, 8), 0.3), ssd.Covariance.cosine(1 / (1.0 + np.arange(64).reshape(8, 8)))

# times come in as numbers: torch.compile makes symbols of them from the second pair on
CALLS = {
    "levels": lambda p, x, s, t: p.alpha(s) * x + p.sigma(t) + p.log_snr(t) + p.alpha(5.5),
    "operators": lambda p, x, s, t: p.operator(0, t)(x) + p.degradation(s, t)(x) + p.degrade(x, s),
    "add_noise": lambda p, x, s, t: p.add_noise(x, x, s),
    "marginal": lambda p, x, s, t: p.marginal(x, s).sample(x),
    "transition": lambda p, x, s, t: p.transition(x, s, t).sample(x),
    "posterior": lambda p, x, s, t: p.posterior(x, x, s, t).sample(x) + p.posterior(x, x, s, t, eta=0.5).sample(x),
    "densities": lambda p, x, s, t: (
        p.marginal(x, s).log_prob(x) + p.posterior(x, x, s, t).log_prob(x) + p.marginal(x, s).kl(p.marginal(2 * x, t))
    ),
    "second moments": lambda p, x, s, t: (
        p.posterior(x, x, s, t, clean_covariance=RESIDUALS[0]).sample(x)
        + p.posterior(x, x, s, t, clean_covariance=RESIDUALS[1]).sample(x)
    ),
    "step": lambda p, x, s, t: ssd.sampling.step(p, x, x, s, t, torch.zeros, 0.0, previous=x, u=t + 3),
}


@pytest.mark.parametrize("call", [pytest.param(c, marks=[] if c == "posterior" else pytest.mark.slow) for c in CALLS])
def test_one_graph_at_fixed_times_and_its_own_for_each_time_and_process(call):
    torch._dynamo.reset()
    compiled = torch.compile(CALLS[call], fullgraph=True, backend="eager")
    x = torch.tensor(np.random.default_rng(0).standard_normal((2, 3, 8, 8)), dtype=torch.float32)
    for s, t in ((3, 9), (5, 17)):
        for proc, fresh in zip(processes().values(), processes().values()):  # nothing is kept from a call before
            torch.testing.assert_close(compiled(proc, x, s, t), CALLS[call](fresh, x, s, t), atol=1e-5, rtol=1e-5)


def test_one_graph_across_a_change_of_size():
    torch._dynamo.reset()

    def draw(proc, x):
        low = proc.degrade(x, 25)
        used = ssd.multistep.extrapolated(proc, 15, 25, 30, x, low)
        high = ssd.multistep.extrapolated(proc, 12, 15, 25, x, 2 * x)
        return proc.posterior(low, used + high, 15, 25, eta=0.3).sample(x)

    proc, fresh = processes()["resize"], processes()["resize"]
    x = torch.tensor(np.random.default_rng(0).standard_normal((2, 8, 8)), dtype=torch.float32)
    compiled = torch.compile(draw, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(proc, x), draw(fresh, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["resize", pytest.param("blur", marks=pytest.mark.slow)])
def test_times_in_tensors_are_inputs_of_one_graph(name):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def draw(proc, x, t):
        noisy = proc.add_noise(x, x, t) + proc.marginal(x, t).mean * proc.sigma(t)[:, None, None]
        return noisy + proc.posterior(x, x, t - 1, t, eta=0.3).sample(x)

    proc = processes()[name]
    x = torch.tensor(np.random.default_rng(0).standard_normal((2, 8, 8)), dtype=torch.float32)
    compiled = torch.compile(draw, fullgraph=True, backend=backend)
    for times in ([3, 5], [20, 2], [7, 7]):
        t = torch.tensor(times)
        torch.testing.assert_close(compiled(proc, x, t), draw(proc, x, t), atol=1e-4, rtol=1e-4)
    assert len(graphs) == 1


@pytest.mark.parametrize("pairs", ["each", pytest.param("all", marks=pytest.mark.slow)])
def test_a_prior_is_one_graph_made_inside_or_outside(pairs):
    torch._dynamo.reset()
    x = torch.tensor(np.random.default_rng(0).standard_normal((5, 3, 2, 2)), dtype=torch.float32)
    data = [ssd.Covariance.isotropic((2, 2), 0.3), ssd.Covariance.dense(np.eye(4) + 0.5, (2, 2))]

    def draw(proc, x, covariance):
        zero, around = proc.prior(covariance=covariance), proc.prior(x[0], covariance)
        return proc.prior().sample(x) + zero.sample(x) + around.sample(x) + zero.log_prob(x)[..., None, None]

    compiled = torch.compile(draw, fullgraph=True, backend="eager")
    for matched, covariance in (zip if pairs == "each" else itertools.product)((True, False), data):
        proc, fresh = (ssd.LinearDiffusion.resize((8, 8), NOISE, LEVELS, matched) for _ in range(2))
        torch.testing.assert_close(compiled(proc, x, covariance), draw(fresh, x, covariance), atol=1e-5, rtol=1e-5)

    drawn = torch.compile(lambda law, x: law.sample(x), fullgraph=True, backend="eager")
    for value in (1.0, 2.0):  # a numpy mean, held by a law from outside
        law = proc.prior(np.full((2, 2), value))
        torch.testing.assert_close(drawn(law, x), law.sample(x))
