"""Steps exact to second moments: generate gives back the data's covariance, whatever the number of steps."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from perfect import GaussianDenoiser, power_law
from torch import Tensor

import ssdcore as ssd
from ssdcore_torch import generate
from ssdcore_torch.sampling import ResidualSpectra, measure_residuals, measured_times

STEPS, SIDE = 100, 8
SPECTRUM = power_law((SIDE, SIDE))
BASIS = ssd.Covariance.cosine(np.ones((SIDE, SIDE))).modes


def cut(size: int, to: int) -> ssd.LinearOperator:
    """The ideal resize: the low cosine modes alone, so that all modes stay independent."""
    rows = []
    for n in (size, to):
        k, i = np.meshgrid(np.arange(to), np.arange(n), indexing="ij")
        rows.append(np.cos(np.pi * (i + 0.5) * k / n) * np.where(k == 0, 1, math.sqrt(2)) / math.sqrt(n))
    matrix = rows[1].T @ rows[0] * math.sqrt(to / size)
    return ssd.Separable([matrix, matrix])


def process(kind: str) -> ssd.LinearDiffusion:
    noise = ssd.NoiseSchedule.cosine(STEPS)
    if kind == "blur":
        return ssd.LinearDiffusion.blur((SIDE, SIDE), noise, np.linspace(0, 1.5, STEPS + 1))
    operators: list[ssd.LinearOperator | None] = [None] * STEPS
    if kind == "sizes":
        operators[39], operators[69] = cut(8, 4), cut(4, 2)
    return ssd.LinearDiffusion.from_operators(operators if kind == "sizes" else [ssd.Identity((8, 8))] * STEPS, noise)


def images(n: int, channels: int = 1, seed: int = 0) -> Tensor:
    white = np.random.default_rng(seed).standard_normal((n, channels, SIDE, SIDE))
    return torch.from_numpy(ssd.Covariance.cosine(SPECTRUM).root(white))


def perfect(proc: ssd.LinearDiffusion) -> GaussianDenoiser:
    return GaussianDenoiser(proc, ssd.Covariance.cosine(SPECTRUM).as_matrix())


def spectrum_of(drawn: Tensor) -> np.ndarray:
    """Mean square of each cosine mode."""
    return np.square(BASIS.analyse(np, drawn.double().numpy())).mean((0, 1))


@pytest.fixture(scope="module", params=["one size", "sizes", "blur"])
def case(request: pytest.FixtureRequest) -> tuple[ssd.LinearDiffusion, GaussianDenoiser, ResidualSpectra]:
    proc = process(request.param)
    net = perfect(proc)
    # a blur grows with t, so that what is left open is not as simple a function of the noise level as interpolation takes
    known = 12 if request.param == "blur" else 6
    return proc, net, measure_residuals(net, proc, [(images(2000), None)], clip=False, times_a_path=known)


@pytest.mark.parametrize("between", [0, 1, 4])
def test_samples_have_the_covariance_of_the_data(case, between: int) -> None:
    """n = 2,000: a mode's mean square errs by √(2/n) = 3 %, their mean over 64 modes by 0.4 %. The spectra are measured
    on as many images and times between interpolated. Without them the mean is off by far more than what is allowed."""
    proc, net, residuals = case
    changes = sorted(proc.size_changes)
    extra = [] if between == 0 else np.linspace(8, STEPS - 1, between).round().astype(int).tolist()
    times = sorted({1, *changes, *extra, STEPS})
    n, options = 2000, {"times": times, "channels": 1, "clip": False, "prior": net.start(proc), "seed": 1}
    options["batch_size"] = n
    ratio = spectrum_of(generate(net, proc, n, residuals=residuals, **options)) / SPECTRUM
    # the last step returns a prediction and loses what is left open at t = 1
    lost = ssd.oracle.sampler_error(proc, ssd.Covariance.cosine(SPECTRUM), times, second_moments=True)
    assert lost < 1e-3 * SPECTRUM.sum()
    error = math.sqrt(2 / n)
    assert np.abs(ratio - 1).max() < 7 * error
    assert abs(ratio.mean() - 1) < 6 * error / 8 + 0.01
    plain = spectrum_of(generate(net, proc, n, **options)) / SPECTRUM
    assert abs(plain.mean() - 1) > 0.1


def test_multistep_puts_back_the_variance_of_what_a_change_adds(case) -> None:
    """Samples have the oracle's law, mode by mode within 7 standard errors; without the spectra they have the other."""
    proc, net, residuals = case
    times = sorted({*np.linspace(1, STEPS, 12).round().astype(int).tolist(), *proc.size_changes})
    options = {
        "times": times,
        "channels": 1,
        "clip": False,
        "prior": net.start(proc),
        "seed": 1,
        "sampler": "multistep",
    }
    n, data = 2000, ssd.Covariance.cosine(SPECTRUM)
    options["batch_size"] = n
    mean = {}
    for spectra in (None, residuals):
        law = ssd.oracle.sampler_law(proc, data, times, 0.0, order=2, second_moments=spectra is not None)
        modes = BASIS.analyse(np, law.covariance.as_matrix().reshape(SIDE * SIDE, SIDE, SIDE)).reshape(SIDE * SIDE, -1)
        exact = np.diag(BASIS.analyse(np, modes.T.reshape(-1, SIDE, SIDE)).reshape(SIDE * SIDE, -1)).reshape(SIDE, SIDE)
        drawn = spectrum_of(generate(net, proc, n, residuals=spectra, **options))
        assert np.abs(drawn / exact - 1).max() < 7 * math.sqrt(2 / n)
        mean[spectra is not None] = float((drawn / SPECTRUM).mean())
    assert (mean[True] > mean[False] + 0.05) == bool(proc.size_changes)
    assert proc.size_changes or mean[True] == mean[False]


def test_interpolation_is_exact_for_gaussian_data() -> None:
    proc = process("one size")
    path = proc.paths[0]
    times = measured_times(proc, path, 5)
    assert times[0] == 1
    assert times[-1] == STEPS

    def left_open(t: int) -> np.ndarray:
        return SPECTRUM * proc.sigma(t) ** 2 / (proc.alpha(t) ** 2 * SPECTRUM + proc.sigma(t) ** 2)

    spectra = ResidualSpectra(proc, np.eye(1), ((times, np.stack([left_open(t)[None] for t in times])),))
    for t in (2, 17, 50, 77, 99):
        (covariance,) = spectra.covariances(t, t - 1)
        np.testing.assert_allclose(covariance.in_modes(BASIS)[0], left_open(t), rtol=1e-6)


def test_grey_as_three_channels_stays_grey() -> None:
    """Channels that always agree leave nothing open between them."""
    proc = process("sizes")
    net = perfect(proc)
    grey = images(64).expand(-1, 3, -1, -1).contiguous()

    def one(x: Tensor, t: Tensor, out_level: int) -> Tensor:
        return net(x.mean(1, keepdim=True), t, out_level).expand(-1, 3, *net.shapes[out_level])

    residuals = measure_residuals(one, proc, [(grey, None)], clip=False, times_a_path=3)
    drawn = generate(one, proc, 8, times=[1, 40, 70, 100], channels=3, clip=False, residuals=residuals)
    assert (drawn - drawn.mean(1, keepdim=True)).abs().max() < 0.02 * drawn.std()


def test_a_sample_is_the_same_in_every_batch_with_second_moments(case) -> None:
    proc, net, residuals = case
    times = [1, 20, *proc.size_changes, 85, STEPS]
    options = {"times": times, "channels": 1, "residuals": residuals, "dtype": torch.float64, "seed": 3}
    whole = generate(net, proc, 5, batch_size=5, **options)
    torch.testing.assert_close(generate(net, proc, 5, batch_size=2, **options), whole, rtol=0, atol=1e-9)
    torch.testing.assert_close(generate(net, proc, 3, first=2, batch_size=1, **options), whole[2:], rtol=0, atol=1e-9)


def test_what_second_moments_refuse(case) -> None:
    proc, net, residuals = case
    with pytest.raises(ValueError, match="they are of 1 channels, the images have 3"):
        generate(lambda x, t, out_level: x.mean() + torch.zeros(len(x), 3, *proc.shapes[out_level]), proc, 1, 5,
                 channels=3, residuals=residuals)  # fmt: skip
    with pytest.raises(ValueError, match="expected images, got none"):
        measure_residuals(net, proc, [])
    with pytest.raises(ValueError, match="the process has"):
        dataclasses.replace(residuals, paths=())
    times, power = residuals.paths[0]
    for wrong in ((times, -power), (times[::-1], power), (times, power[:, :, :3])):
        with pytest.raises(ValueError, match="residual spectra: expected"):
            dataclasses.replace(residuals, paths=(wrong, *residuals.paths[1:]))


def test_a_path_without_spectra_puts_nothing_back(case) -> None:
    proc, net, residuals = case
    nothing = dataclasses.replace(residuals, paths=(None,) * len(residuals.paths))
    options = {"times": [1, *proc.size_changes, STEPS], "channels": 1, "seed": 2}
    assert torch.equal(generate(net, proc, 2, residuals=nothing, **options), generate(net, proc, 2, **options))


def test_the_scheduler_of_diffusers_takes_the_spectra() -> None:
    """Its steps are those of generate."""
    interop = pytest.importorskip("ssdcore_torch.interop.diffusers_scheduler")
    made = interop.SSDScheduler([[8, 8], [4, 4]], num_train_timesteps=STEPS)
    proc = made.process
    net = GaussianDenoiser(proc, ssd.Covariance.cosine(SPECTRUM).as_matrix())
    residuals = measure_residuals(net, proc, [(images(50).expand(-1, 2, -1, -1), None)], times_a_path=3)
    times = [1, 30, *proc.size_changes, STEPS]
    states: list[tuple[int, Tensor]] = []
    drawn = generate(net, proc, 2, times=times, channels=2, residuals=residuals, seed=1,
                     on_step=lambda t, x, clean: states.append((t, x)))  # fmt: skip
    made.residuals = residuals
    made.set_timesteps(timesteps=[t - 1 for t in reversed(times)])
    from ssdcore_torch.sampling._walk import Noise

    noise = Noise(1, range(2), 2, torch.float32, torch.device("cpu"))
    noise(proc.shape(STEPS))
    x = states[0][1]
    for t in made.timesteps:
        size = made.prediction_size(t)
        clean = net(x, torch.full((2,), float(t) + 1), net.shapes.index(size))
        x = made.step(clean, t, x, variance_noise=noise(size) if made.takes_noise(t) else None).prev_sample
    torch.testing.assert_close(x, drawn, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="of another process"):
        interop.SSDScheduler([[8, 8]], num_train_timesteps=STEPS).residuals = residuals
