"""The protocol of networks: predictions, wrapped modules, and what a plain DDPM is in other people's code."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

import ssdcore as ssd  # noqa: E402
from ssdcore_torch import Denoiser, FlexiUNet, FlexiUNetConfig, generate, wrap  # noqa: E402
from ssdcore_torch.denoisers import PREDICTIONS, check_denoiser, operations, shadow  # noqa: E402
from ssdcore_torch.diffusion import Batch, Objective  # noqa: E402
from ssdcore_torch.processes import ProcessConfig  # noqa: E402
from ssdcore_torch.sampling import sampling_times  # noqa: E402
from ssdcore_torch.sampling._walk import Noise  # noqa: E402


class Toy(nn.Module):
    """A module of any number of axes: what it is given, mixed over channels, with the time in it."""

    def __init__(self, channels: int = 3, scale: float = 0.3) -> None:
        super().__init__()
        self.mix = nn.Linear(channels, channels)
        self.scale = scale
        self.seen: list[float] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen += t.tolist()
        time = (t / 100).view(-1, *[1] * (x.ndim - 1))
        return self.scale * torch.tanh(self.mix(x.movedim(1, -1)).movedim(-1, 1) + time)


def resizing(steps: int = 40) -> ssd.LinearDiffusion:
    return ssd.LinearDiffusion.resize((8, 8), ssd.NoiseSchedule.cosine(steps), ssd.ResolutionSchedule.equal(steps, 2))


def blurring(shape: tuple[int, ...] = (8, 8), steps: int = 40) -> ssd.LinearDiffusion:
    return ssd.LinearDiffusion.blur(shape, ssd.NoiseSchedule.cosine(steps), np.linspace(0, 2, steps + 1))


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("noise", [ssd.NoiseSchedule.cosine(40), ssd.NoiseSchedule.edm(40)], ids=["cosine", "edm"])
def test_a_prediction_of_the_truth_gives_the_clean_image(name, noise):
    """F as the table in the module defines it, put back through the coefficients, is x_0; and it is what it is called."""
    alpha, sigma = noise.alpha[1:], noise.sigma[1:]
    c_in, c_skip, c_out, told = PREDICTIONS[name].table(name, ssd.LinearDiffusion.identity((1,), noise))[:, 1:]
    x0, eps = 0.7, -1.3
    x_t = alpha * x0 + sigma * eps
    F = (x0 - c_skip * x_t) / c_out
    meant = {"clean": x0, "noise": eps, "velocity": alpha * eps - sigma * x0}
    if name in meant:
        np.testing.assert_allclose(F, np.broadcast_to(meant[name], 40), rtol=1e-8, atol=1e-8)
        np.testing.assert_array_equal(told, np.arange(40))
    else:  # of white data of deviation ½ both what the layers see and what they are asked for have variance one
        variance = alpha**2 / 4 + sigma**2
        np.testing.assert_allclose(c_in**2 * variance, 1)
        np.testing.assert_allclose(((1 - c_skip * alpha) ** 2 / 4 + (c_skip * sigma) ** 2) / c_out**2, 1)
        np.testing.assert_allclose(told, 0.25 * np.log(sigma / alpha))


def test_noise_says_nothing_of_an_image_without_signal():
    flow = ssd.LinearDiffusion.identity((8, 8), ssd.NoiseSchedule.rectified_flow(10))
    with pytest.raises(ValueError, match=r'"noise" says nothing .*alpha = 0 at t = 10.*; take clean, velocity or edm'):
        wrap(Toy(), flow, "noise")
    for name in ("clean", "velocity", "edm"):
        assert generate(wrap(Toy(), flow, name), flow, 1, steps=4, channels=3).isfinite().all()
    with pytest.raises(ValueError, match="expected one of clean, noise, velocity, edm, got 'eps'"):
        wrap(Toy(), flow, "eps")


def test_a_wrapped_module_is_a_denoiser_of_every_size():
    net = wrap(Toy(), resizing(), channels=3)
    assert isinstance(net, Denoiser)
    assert isinstance(FlexiUNet(FlexiUNetConfig(((8, 8),), base_channels=32, channel_multipliers=(1,))), Denoiser)
    assert not isinstance(Toy(), Denoiser)
    check_denoiser(net, resizing())
    x = torch.randn(2, 3, 4, 4)
    assert net(x, torch.tensor([30.0, 40.0])).shape == (2, 3, 4, 4)
    assert net(x, torch.tensor([30.0, 40.0]), out_level=0).shape == (2, 3, 8, 8)
    assert net.module.seen[-2:] == [29.0, 39.0]  # as diffusers' networks count
    with pytest.raises(ValueError, match="one of"):
        net(torch.randn(2, 3, 5, 5), torch.ones(2))
    with pytest.raises(ValueError, match=r"gives levels 0\.\.0, got 1"):
        net(torch.randn(2, 3, 8, 8), torch.ones(2), out_level=1)


def test_the_lift_keeps_the_coarsest_mode():
    """Rᵀ/‖R‖² of a state that a constant image left behind is that constant, away from the edges of the kernel."""
    net = wrap(Toy(scale=0.0), resizing(), "edm", channels=3)
    x = torch.ones(1, 3, 4, 4)
    c_skip = net.table[1, 25]
    lifted = (net(x, torch.tensor([25.0]), out_level=0) / c_skip).detach()
    assert lifted.mean().item() == pytest.approx(1, rel=0.05)
    assert lifted[..., 2:6, 2:6].numpy() == pytest.approx(1, rel=0.06)


def test_copies_share_the_process_and_shadows_leave_the_network_alone():
    net = wrap(Toy(), resizing(), channels=3)
    assert copy.deepcopy(net).process is net.process
    assert shadow(net).module.mix is not net.module.mix
    flexi = FlexiUNet(FlexiUNetConfig(((8, 8),), base_channels=32, channel_multipliers=(1,)))
    assert all(p.is_meta for p in shadow(flexi).parameters())
    assert not any(p.is_meta for p in flexi.parameters())
    assert operations(net, 0, 0) == 2 * 3 * 3 * 64
    assert operations(net, 1, 0) > operations(net, 0, 0)  # the lift


class Half(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x[:, :, ::2]


class Tied(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.again = self.mix


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            lambda p: wrap(Half(), p, channels=3),
            r"must give \(1, 3, 8, 8\), the shape of its input, got \(1, 3, 4, 8\)",
        ),
        (lambda p: wrap(Toy(4), p, channels=3), "fails on an image of 3 channels and size"),
        (lambda p: wrap(Tied(), p, channels=3), r"again\.weight is another name of a tensor"),
        (lambda p: wrap(Toy(), blurring(), channels=3), "its sizes are .* the process has"),
    ],
    ids=["shape", "channels", "tied", "sizes"],
)
def test_what_cannot_be_trained_is_named(net, message):
    process = resizing()
    with pytest.raises(ValueError, match=message):
        check_denoiser(net(process), process)


def test_what_is_no_network_is_refused():
    with pytest.raises(TypeError, match="expected a torch module, got function"):
        wrap(lambda x, t: x, resizing())
    with pytest.raises(TypeError, match=r"expected an ssdcore\.LinearDiffusion, got str"):
        wrap(Toy(), "resize")
    with pytest.raises(TypeError, match="wrapped already"):
        wrap(wrap(Toy(), resizing()), resizing())
    with pytest.raises(ValueError, match="does not say how many channels"):
        generate(lambda x, t, out_level: x, blurring(), 1, steps=2)


@pytest.mark.parametrize("shape", [(16,), (6, 6), (4, 4, 4)], ids=["1-D", "2-D", "3-D"])
def test_every_image_is_degraded_by_its_own_time(shape):
    """What the network sees is add_noise of each time alone, and the target of a blur is x_0 itself."""
    process = blurring(shape)
    objective, seen = Objective(process), []

    def net(x: Tensor, t: Tensor, out_level: int) -> Tensor:
        seen.append((x, t))
        return torch.zeros_like(x)

    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(4, 2, *shape, generator=generator, dtype=torch.float64)
    noise = torch.randn(4, 2, *shape, generator=generator, dtype=torch.float64)
    times = np.array([1, 40, 17, 17])
    losses = objective.losses(net, x0, Batch(process.paths[0], times), noise, 0)
    (x_t, t), weights = seen[0], np.minimum(np.exp(process.noise.log_snr()), 5)[times - 1]
    assert t.tolist() == times.tolist()
    for i, time in enumerate(times.tolist()):
        alone = process.add_noise(x0[i : i + 1], noise[i : i + 1], time)
        torch.testing.assert_close(x_t[i : i + 1], alone, rtol=1e-5, atol=1e-6)  # levels are float32
        assert losses[i].item() == pytest.approx(weights[i] * x0[i].square().mean().item(), rel=1e-5)


def test_a_smaller_size_with_blur_is_predicted_as_at_its_first_time():
    process = ProcessConfig("equal", None, True, 40, degradation="resize+blur").build([(8, 8), (4, 4)])
    change = process.size_changes[0]
    objective, x0 = Objective(process), torch.randn(2, 1, 8, 8)
    path = process.paths[-1]
    assert path.shape == path.target_shape == (4, 4)
    batch = Batch(path, np.array([change + 1, 40]))
    expected = process.degrade(x0, change)
    losses = objective.losses(lambda x, t, out_level: expected, x0, batch, torch.zeros(2, 1, 4, 4), 1)
    torch.testing.assert_close(losses, torch.zeros(2))


def test_samples_of_a_blur_are_those_of_exact_posteriors():
    """The sampler's chain of a known prediction equals the posteriors of the process, written out."""
    process, steps = blurring(), 6
    x0 = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    made = generate(lambda x, t, out_level: x0, process, 1, steps=steps, seed=3, channels=1)
    torch.testing.assert_close(made, x0)  # the last step returns the prediction
    states: list[Tensor] = []
    generate(
        lambda x, t, out_level: x0,
        process,
        1,
        steps=steps,
        seed=3,
        channels=1,
        on_step=lambda t, x, y: states.append(x),
    )
    draw = Noise(3, range(1), 1, torch.float32, torch.device("cpu"))
    x = process.sigma(40) * draw((8, 8))
    assert len(states) == steps
    torch.testing.assert_close(states[0], x)
    chain = process.respace(sampling_times(process, steps))
    for k in range(steps, 1, -1):
        x = chain.posterior(x, chain.degrade(x0, k - 1), k - 1, k).sample(draw((8, 8)))
        torch.testing.assert_close(states[steps - k + 1], x)


# ---- a plain DDPM


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(32,), layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=8,
    ).eval()  # fmt: skip


def theirs(steps: int) -> object:
    from diffusers import DDPMScheduler

    return DDPMScheduler(steps, trained_betas=np.linspace(0.1 / steps, 20 / steps, steps), clip_sample=True)


def test_a_plain_ddpm_has_diffusers_loss(unet):
    process, steps = ssd.LinearDiffusion.identity((8, 8), ssd.NoiseSchedule.linear(50)), 50
    net, objective = wrap(unet, process, "noise"), Objective(process, weighting="snr")
    x0, noise = torch.rand(8, 3, 8, 8) * 2 - 1, torch.randn(8, 3, 8, 8)
    times = np.array([1, 2, 5, 10, 20, 30, 40, 50])
    ours = objective.losses(net, x0, Batch(process.paths[0], times), noise, 0)
    timesteps = torch.from_numpy(times - 1)
    noisy = theirs(steps).add_noise(x0, noise, timesteps)
    expected = (unet(noisy, timesteps).sample - noise).square().mean((1, 2, 3))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_a_plain_ddpm_samples_as_diffusers_does(unet, monkeypatch):
    from diffusers.schedulers import scheduling_ddpm

    steps = 25
    process = ssd.LinearDiffusion.identity((8, 8), ssd.NoiseSchedule.linear(steps))
    ours = generate(wrap(unet, process, "noise"), process, 2, steps=steps, seed=4)
    draw = Noise(4, range(2), 3, torch.float32, torch.device("cpu"))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda shape, **_: draw((8, 8)))
    scheduler = theirs(steps)
    scheduler.set_timesteps(steps)
    x = draw((8, 8)) * process.sigma(steps)  # diffusers starts from N(0, 1)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-4)
