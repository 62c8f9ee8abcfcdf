"""The sampler: its times, its randomness, and its law where that is known."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

import ssdcore as ssd
from ssdcore_torch import FlexiUNet, FlexiUNetConfig, generate
from ssdcore_torch.sampling import LARGEST_FITTED_PRIOR, fit_moments, sampling_times, to_bytes, to_float

SIZES = ((8, 8), (4, 4), (2, 2))


def process(steps: int = 200) -> ssd.LinearDiffusion:
    levels = ssd.ResolutionSchedule.equal(steps, 3)
    return ssd.LinearDiffusion.resize((8, 8), ssd.NoiseSchedule.linear(steps), levels, sizes=SIZES)


@pytest.fixture(scope="module")
def net() -> FlexiUNet:
    """A network with every weight random: a new one predicts zeros."""
    torch.manual_seed(0)
    config = FlexiUNetConfig(
        SIZES, base_channels=32, channel_multipliers=(1, 1, 1), blocks_per_stage=1, attention_sizes=()
    )
    made = FlexiUNet(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.abs().max() == 0:
                parameter.normal_(std=0.1)
    return made.eval()


def test_times_are_even_and_pass_every_change() -> None:
    proc = process()
    changes = [t for t in range(1, 201) if proc.shape(t) != proc.shape(t - 1)]
    assert len(changes) == 2
    for steps in (3, 4, 10, 37, 199, 200):
        times = sampling_times(proc, steps)
        assert len(times) == steps
        assert list(times) == sorted(set(times))
        assert times[-1] == 200
        assert set(changes) <= set(times)
        if steps > 20:
            assert times[0] == 1
            assert max(np.diff(times)) <= 2 * 199 / (steps - 1) + 1
    one_level = ssd.LinearDiffusion.identity((8, 8), ssd.NoiseSchedule.linear(200))
    assert sampling_times(one_level, 1) == (200,)
    assert sampling_times(one_level, 5) == (1, 51, 100, 150, 200)


def test_impossible_numbers_of_steps() -> None:
    with pytest.raises(ValueError, match=r"steps = 2: .*take at least 3 steps"):
        sampling_times(process(), 2)
    with pytest.raises(ValueError, match="steps = 201: the process has only 200"):
        sampling_times(process(), 201)


def test_samples_do_not_depend_on_the_batch(net: FlexiUNet) -> None:
    proc, net = process(), copy.deepcopy(net).double()
    whole = generate(net, proc, 7, steps=8, seed=3, batch_size=64)
    assert whole.shape == (7, 3, 8, 8)
    assert whole.abs().max() <= 1
    # Kernels round differently for other batch sizes. In float64 what an untrained network makes of that stays small
    # beside the float32 of the states.
    for batch_size in (1, 3):
        torch.testing.assert_close(
            generate(net, proc, 7, steps=8, seed=3, batch_size=batch_size), whole, rtol=0, atol=1e-4
        )
    torch.testing.assert_close(generate(net, proc, 2, steps=8, seed=3), whole[:2], rtol=0, atol=1e-4)
    assert (whole[0] - whole[1]).abs().mean() > 0.05


def test_a_seed_gives_the_same_bits_and_another_seed_other_samples(net: FlexiUNet) -> None:
    proc = process()
    first = generate(net, proc, 4, steps=6, seed=1)
    torch.manual_seed(99)  # the global generator has no part in it
    assert torch.equal(generate(net, proc, 4, steps=6, seed=1), first)
    assert (generate(net, proc, 4, steps=6, seed=2) - first).abs().mean() > 0.05
    assert (generate(net, proc, 4, steps=6, seed=1, eta=0.0) - first).abs().mean() > 1e-3


class ConstantImages:
    """The exact posterior mean for data c · 1, c ~ N(mean, deviation²): resizing keeps constants."""

    def __init__(self, proc: ssd.LinearDiffusion, mean: float, deviation: float) -> None:
        self.proc, self.mean, self.variance = proc, mean, deviation**2

    def __call__(self, x: Tensor, t: Tensor, out_level: int) -> Tensor:
        time = int(t[0])
        alpha, sigma = self.proc.alpha(time), self.proc.sigma(time)
        pixels = x[0, 0].numel()
        surprise = (x - alpha * self.mean).sum((2, 3), keepdim=True)
        c = self.mean + alpha * self.variance * surprise / (alpha**2 * self.variance * pixels + sigma**2)
        return c.expand(-1, -1, *SIZES[out_level])


@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_the_perfect_denoiser_gives_back_the_data(eta: float) -> None:
    proc, mean, deviation, count = process(), 0.3, 0.15, 1500
    prior = proc.prior(torch.full((1, 2, 2), mean), np.full((4, 4), deviation**2))
    images = generate(
        ConstantImages(proc, mean, deviation),
        proc,
        count,
        steps=100,
        eta=eta,
        prior=prior,
        channels=1,
        batch_size=count,
    )
    values = images[:, 0, 0, 0].double()
    torch.testing.assert_close(images, images[:, :, :1, :1].expand_as(images))
    # Four standard errors of a Gaussian sample, and 5 % for the finite number of steps.
    assert abs(float(values.mean()) - mean) < 4 * deviation / count**0.5
    assert abs(float(values.std()) / deviation - 1) < 4 / (2 * count) ** 0.5 + 0.05


def test_prior_is_where_the_chain_starts(net: FlexiUNet) -> None:
    proc = process()
    seen: list[tuple[int, Tensor, Tensor]] = []
    prior = proc.prior(torch.full((3, 2, 2), 0.5), np.zeros((12, 12)))
    for law in (None, prior):
        generate(net, proc, 5, steps=4, prior=law, on_step=lambda t, x, clean: seen.append((t, x, clean)))
    assert [t for t, _, _ in seen[:4]] == sorted(sampling_times(proc, 4), reverse=True)
    assert [x.shape[-1] for _, x, _ in seen[:4]] == [2, 2, 4, 8]
    assert [clean.shape[-1] for _, _, clean in seen[:4]] == [2, 4, 8, 8]
    shift = seen[4][1] - seen[0][1]  # the same noise about another mean
    torch.testing.assert_close(shift, torch.full_like(shift, 0.5 * proc.alpha(200)))


def test_predictions_are_clipped_and_the_module_left_as_it_was(net: FlexiUNet) -> None:
    proc = process()
    images = generate(lambda x, t, out_level: torch.full((len(x), 3, *SIZES[out_level]), 5.0), proc, 2, steps=5)
    assert torch.equal(images, torch.ones_like(images))
    modes: list[bool] = []
    net.train()
    generate(net, proc, 1, steps=3, on_step=lambda *_: modes.append(net.training))
    assert modes == [False] * 3
    assert net.training
    net.eval()


def test_bad_arguments(net: FlexiUNet) -> None:
    with pytest.raises(ValueError, match="n = 0"):
        generate(net, process(), 0)
    with pytest.raises(ValueError, match="eta"):
        generate(net, process(), 1, eta=1.5)


def test_moments_of_the_data_at_the_smallest_size() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 3, 8, 8), generator=generator, dtype=torch.uint8)
    moments = fit_moments(images, process())
    assert moments is not None
    mean, covariance = moments
    small = process().clean(to_float(images).double(), 200).flatten(1).numpy()
    np.testing.assert_allclose(mean, small.mean(0).reshape(3, 2, 2), atol=1e-6)
    np.testing.assert_allclose(covariance, np.cov(small.T, bias=True), atol=1e-6)
    large = ssd.LinearDiffusion.identity((32, 32), ssd.NoiseSchedule.linear(40))
    assert LARGEST_FITTED_PRIOR < 3 * 32 * 32
    assert fit_moments(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), large) is None


def test_bytes_round_trip() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_float(values)), values)
    assert to_bytes(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
