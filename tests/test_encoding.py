"""Images to noise and back: what is kept, what is lost, and the law of what is drawn in its place."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from perfect import GaussianDenoiser, power_law
from torch import Tensor

import ssdcore as ssd
from ssdcore_torch.randomness import sample_noise
from ssdcore_torch.sampling import Encoding, decode, encode, interpolate, sampling_times
from ssdcore_torch.sampling._encoding import slerp

SHAPE = (8, 8)
NOISE = ssd.NoiseSchedule.linear(1000)
COVARIANCE = ssd.Covariance.cosine(power_law(SHAPE))
DENSE = COVARIANCE.as_matrix()


def process(levels: int) -> ssd.LinearDiffusion:
    if levels == 1:
        return ssd.LinearDiffusion.identity(SHAPE, NOISE)
    return ssd.LinearDiffusion.resize(SHAPE, NOISE, ssd.ResolutionSchedule.equal(1000, levels))


def images(count: int, seed: int = 0) -> Tensor:
    noise = torch.randn(count, 1, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return COVARIANCE.root(noise)


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize("levels", [1, 3])
def test_decoding_gives_the_images_back_up_to_the_noise_of_the_first_time(levels: int) -> None:
    """The stated error: σ/α at t = 1, what a perfect denoiser cannot tell from noise."""
    proc = process(levels)
    net, x0 = GaussianDenoiser(proc, DENSE), images(32)
    code = encode(net, proc, x0, steps=40, tolerance=1e-9)
    assert code.state.shape == (32, 1, *proc.shape(1000))
    assert [d.shape[2:] for d in code.details] == [(4, 4), (8, 8)][: levels - 1]
    floor = proc.sigma(1) / proc.alpha(1)
    assert rms(decode(net, proc, code) - x0) < 1.1 * floor
    # All of that is the first state's noise: the sampler goes back up the same path.
    first = proc.marginal(x0, 1)
    noise = sample_noise(0, range(32), range(1), math.prod(SHAPE), x0.device)
    drawn = first.mean + proc.sigma(1) * noise.view(x0.shape)
    expected = net(drawn, torch.ones(32), out_level=0)
    torch.testing.assert_close(decode(net, proc, code), expected, rtol=0, atol=1e-6)


def test_the_tolerance_bounds_the_inversion() -> None:
    proc = process(1)
    net, x0 = GaussianDenoiser(proc, DENSE), images(8)
    exact = decode(net, proc, encode(net, proc, x0, steps=40, tolerance=1e-12))
    for tolerance in (1e-3, 1e-5):
        back = decode(net, proc, encode(net, proc, x0, steps=40, tolerance=tolerance))
        assert 0 < float((back - exact).abs().max()) < 3 * tolerance


@pytest.mark.slow
@pytest.mark.parametrize("levels", [1, 3])
def test_encodings_follow_the_law_of_the_noise(levels: int) -> None:
    """x_T of Gaussian data against its exact law, and the kept details against the standard normal, on their modes."""
    proc = process(levels)
    net, count = GaussianDenoiser(proc, DENSE), 2000
    code = encode(net, proc, images(count), steps=200)
    law = net.start(proc).covariance
    n = math.prod(proc.shape(1000))
    chi2 = (code.state * law.solve(code.state)).sum() / (n * count)
    # Four standard errors of a χ², and the sampler's error of discretisation, of first order in 200 steps.
    assert abs(float(chi2) - 1) < 4 * math.sqrt(2 / (n * count)) + 0.03
    for detail, s in zip(code.details, (667, 334)):
        lost = 1 - math.prod(proc.shape(s)) / 4 / math.prod(proc.shape(s))
        variance = float(detail.square().mean())
        # The data's own fine modes are small there, but not nothing.
        assert lost * (1 - 0.03) < variance < lost * 1.2
        kept = proc.degradation(s - 1, s).T.gram_function(lambda v: v, proc.degradation(s - 1, s)(detail))
        assert rms(kept) < 1e-3


def test_what_a_change_of_size_loses_is_drawn_from_its_conditional_law() -> None:
    """Fresh details: other images with the same x_T, spread as the exact conditional law of this sampler says."""
    proc = process(3)
    net = GaussianDenoiser(proc, DENSE)
    one = encode(net, proc, images(1), steps=30)
    count = 3000
    many = Encoding(one.state.expand(count, -1, -1, -1), (), one.times)
    drawn = decode(net, proc, many, seed=4).flatten(1)
    # The law: push every unit vector of the details through the same deterministic decoder.
    unit = [torch.eye(math.prod(d.shape), dtype=torch.float64).reshape(-1, *d.shape[1:]) for d in one.details]
    columns = []
    for i in range(len(unit)):
        details = tuple(u if j == i else u.new_zeros(len(unit[i]), *u.shape[1:]) for j, u in enumerate(unit))
        columns.append(decode(net, proc, Encoding(one.state.expand(len(unit[i]), -1, -1, -1), details, one.times)))
    zero = tuple(torch.zeros_like(d) for d in one.details)
    mean = decode(net, proc, Encoding(one.state, zero, one.times)).flatten().numpy()
    deviations = np.concatenate([c.flatten(1).numpy() - mean for c in columns])
    expected = deviations.T @ deviations
    assert np.trace(expected) > 0.1 * np.trace(DENSE)
    assert np.abs((drawn.numpy().mean(0) - mean) / np.sqrt(np.diag(expected) / count)).max() < 4
    spread = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / count)
    assert np.abs((np.cov(drawn.numpy().T) - expected) / spread).max() < 5
    again = decode(net, proc, Encoding(one.state.expand(3, -1, -1, -1), (), one.times), seed=4)
    torch.testing.assert_close(again.flatten(1), drawn[:3], rtol=0, atol=1e-10)


def test_encodings_do_not_depend_on_the_batch() -> None:
    proc = process(3)
    net, x0 = GaussianDenoiser(proc, DENSE), images(5)
    whole = encode(net, proc, x0, steps=12, tolerance=1e-3)  # coarse: an image that went on would show
    first = encode(net, proc, x0[:2], steps=12, tolerance=1e-3)
    torch.testing.assert_close(first.state, whole.state[:2], rtol=0, atol=1e-12)
    for ours, theirs in zip(first.details, whole.details):
        torch.testing.assert_close(ours, theirs[:2], rtol=0, atol=1e-12)


def test_interpolation() -> None:
    """The ends are the images; what lies between has the data's variance, which the mean of two images has not."""
    proc = process(3)
    net, count = GaussianDenoiser(proc, DENSE), 400
    a, b = images(count, 1), images(count, 2)
    made = interpolate(net, proc, a, b, (0.0, 0.5, 1.0), steps=30, prior=net.start(proc))
    assert made.shape == (3, count, 1, *SHAPE)
    floor = 1.2 * proc.sigma(1)
    assert rms(made[0] - a) < floor
    assert rms(made[2] - b) < floor
    full, middle, average = (float(x.square().sum((1, 2, 3)).mean()) for x in (a, made[1], (a + b) / 2))
    assert average < 0.6 * full
    assert abs(middle / full - 1) < 0.2
    # Nearer to both ends than they are to each other.
    assert rms(made[1] - a) < 0.9 * rms(a - b)
    assert rms(made[1] - b) < 0.9 * rms(a - b)


def test_spherical_interpolation_keeps_the_length() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 2, 40, generator=g, dtype=torch.float64) for _ in range(2))
    b *= a.flatten(1).norm(dim=1).view(-1, 1, 1) / b.flatten(1).norm(dim=1).view(-1, 1, 1)
    for weight in (0.0, 0.2, 0.5, 1.0):
        torch.testing.assert_close(slerp(a, b, weight).flatten(1).norm(dim=1), a.flatten(1).norm(dim=1))
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    torch.testing.assert_close(slerp(a, a, 0.3), a)
    assert torch.equal(slerp(torch.zeros_like(a), torch.zeros_like(a), 0.5), torch.zeros_like(a))


def test_bad_input() -> None:
    proc = process(1)
    net = GaussianDenoiser(proc, DENSE)
    with pytest.raises(
        ValueError, match=r"images: expected floating-point \(n, channels, 8, 8\), n >= 1, got torch.uint8"
    ):
        encode(net, proc, torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"of shape \(1, 8, 8\)"):
        encode(net, proc, torch.zeros(1, 8, 8))

    def steep(x: Tensor, t: Tensor, out_level: int) -> Tensor:
        return 50 * torch.sin(50 * x)

    with pytest.raises(ssd.ConvergenceError, match=r"2 of 2 images still move .* take more steps"):
        encode(steep, proc, images(2), steps=6)
    silent = ssd.LinearDiffusion.identity(SHAPE, ssd.NoiseSchedule.from_log_snr([5, 0, -np.inf]))
    with pytest.raises(ValueError, match=r"no signal is left at t = 3 \(α = 0\)"):
        encode(GaussianDenoiser(silent, DENSE), silent, images(1), steps=3)
    with pytest.raises(ValueError, match="of one shape"):
        interpolate(net, proc, images(2), images(3), [0.5])
    with pytest.raises(ValueError, match="placement"):
        encode(net, proc, images(1), placement="no")  # type: ignore[arg-type]


@pytest.mark.parametrize("levels", [1, 3])
def test_long_steps_are_inverted_too(levels: int) -> None:
    proc = process(levels)
    net, x0 = GaussianDenoiser(proc, DENSE), images(4)
    for times in (sampling_times(proc, 7, "log_snr"), sampling_times(proc, 40, "time")):
        code = encode(net, proc, x0, times=times)
        assert code.times == times
        assert rms(decode(net, proc, code) - x0) < 1.2 * proc.sigma(1)


class TwoClasses:
    """Images of class 1 are those of class 0 brighter by 0.5."""

    def __init__(self, proc: ssd.LinearDiffusion) -> None:
        self.nets = [GaussianDenoiser(proc, DENSE, mean) for mean in (0.0, 0.5)]

    def __call__(self, x: Tensor, t: Tensor, out_level: int, label: Tensor) -> Tensor:
        zero, one = (net(x, t, out_level) for net in self.nets)
        return torch.where(label.view(-1, 1, 1, 1) == 1, one, zero)


def test_each_image_is_encoded_and_decoded_as_its_class() -> None:
    proc, labels = process(3), [0, 1, 1, 0]
    net = TwoClasses(proc)
    x0 = images(4) + 0.5 * torch.tensor(labels).view(-1, 1, 1, 1)
    code = encode(net, proc, x0, steps=20, labels=labels, batch_size=3)
    back = decode(net, proc, code, labels=labels, batch_size=2)
    assert rms(back - x0) < 1.1 * proc.sigma(1) / proc.alpha(1)
    for i, label in enumerate(labels):  # what the network of each class alone makes of the same images
        alone = encode(net.nets[label], proc, x0, steps=20)
        torch.testing.assert_close(code.state[i], alone.state[i], rtol=0, atol=1e-10)
        torch.testing.assert_close(decode(net.nets[label], proc, alone)[i], back[i], rtol=0, atol=1e-10)
    ends = interpolate(net, proc, x0, x0.flip(0), [0.0], steps=20, labels=labels, batch_size=3)
    torch.testing.assert_close(ends[0], back, rtol=0, atol=1e-10)
    brighter = decode(net, proc, code, labels=1) - back
    assert float(brighter[0].mean()) > 0.2
    assert float(brighter[1].abs().max()) < 1e-10


def test_the_batch_size_must_be_positive() -> None:
    proc = process(1)
    net = GaussianDenoiser(proc, DENSE)
    with pytest.raises(ValueError, match="expected batch_size >= 1, got 0"):
        encode(net, proc, images(1), batch_size=0)
    with pytest.raises(ValueError, match="expected batch_size >= 1, got 0"):
        decode(net, proc, encode(net, proc, images(1), steps=20), batch_size=0)
