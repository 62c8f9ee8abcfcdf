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
