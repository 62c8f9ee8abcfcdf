"""Preconditioning: what the coefficients are, what the network makes of them, and that training keeps them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ssdcore as ssd
from ssdcore_torch import checkpoint, load_run
from ssdcore_torch.config import Config, preset
from ssdcore_torch.data import ImageSet, open_images
from ssdcore_torch.denoisers.unet import DATA_STD, FlexiUNet, FlexiUNetConfig, level_sizes
from ssdcore_torch.diffusion import Objective
from ssdcore_torch.distributed import World, connect
from ssdcore_torch.training import Extras, Trainer, train
from ssdcore_torch.training.parallel import used_parameters

T = 40
CONFIG = FlexiUNetConfig(
    level_sizes(8, 2, stages=2),
    base_channels=32,
    channel_multipliers=(1, 1),
    blocks_per_stage=1,
    preconditioned_times=T,
)
PATHS = [(0, 0), (1, 1), (1, 0)]


def process(matched: bool = True) -> ssd.LinearDiffusion:
    levels = ssd.ResolutionSchedule.thresholds([20], steps=T)
    return ssd.LinearDiffusion.resize((8, 8), ssd.NoiseSchedule.linear(T), levels, matched=matched)


def networks() -> tuple[FlexiUNet, FlexiUNet]:
    """(a preconditioned network, its layers alone with the same weights), nothing in them zero."""
    torch.manual_seed(0)
    net = FlexiUNet(CONFIG).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name != "coefficients":
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    layers = FlexiUNet(dataclasses.replace(CONFIG, preconditioned_times=None)).eval()
    layers.load_state_dict({k: v for k, v in net.state_dict().items() if k != "coefficients"})
    return net.precondition(process()), layers


def state(level: int) -> Tensor:
    generator = torch.Generator().manual_seed(level)
    return torch.randn(3, 3, *CONFIG.level_sizes[level], generator=generator)


@pytest.mark.parametrize("matched", [True, False])
def test_the_coefficients_are_the_best_linear_prediction_of_white_data(matched: bool) -> None:
    """x_t = α x_0 + σ ε, x_0 of deviation s: regression of x_0 on x_t, and the deviation of what is left."""
    proc = process(matched)
    net = FlexiUNet(CONFIG).precondition(proc)
    assert net.coefficients is not None
    for t in range(T + 1):
        alpha, sigma = proc.alpha(t), proc.sigma(t)
        joint = np.array(
            [[DATA_STD**2, alpha * DATA_STD**2], [alpha * DATA_STD**2, (alpha * DATA_STD) ** 2 + sigma**2]]
        )
        slope = joint[0, 1] / joint[1, 1]
        left = joint[0, 0] - slope * joint[0, 1]
        c_in, c_skip, c_out = net.coefficients[:, t].double().tolist()
        assert c_in**2 * joint[1, 1] == pytest.approx(1, rel=1e-6)
        assert c_skip == pytest.approx(slope, rel=1e-6)
        assert c_out**2 == pytest.approx(left, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize(("level", "out_level"), PATHS)
@pytest.mark.parametrize("t", [1.0, 7.0, 30.0, float(T)])
def test_the_prediction_is_the_scaled_input_and_a_correction(level: int, out_level: int, t: float) -> None:
    net, layers = networks()
    x, times = state(level), torch.full((3,), t)
    assert net.coefficients is not None
    c_in, c_skip, c_out = net.coefficients[:, int(t)].tolist()
    lifted = F.interpolate(x, CONFIG.level_sizes[out_level], mode="bilinear") if level != out_level else x
    with torch.no_grad():
        expected = c_skip * lifted + c_out * layers(c_in * x, times, out_level)
        torch.testing.assert_close(net(x, times, out_level), expected)


def test_a_time_between_two_takes_its_share_of_both() -> None:
    net, layers = networks()
    x, times = state(0), torch.tensor([3.25, 3.25, 3.25])
    assert net.coefficients is not None
    c_in, c_skip, c_out = (0.75 * net.coefficients[:, 3] + 0.25 * net.coefficients[:, 4]).tolist()
    with torch.no_grad():
        torch.testing.assert_close(net(x, times), c_skip * x + c_out * layers(c_in * x, times))


def test_before_it_is_told_the_process_it_is_the_plain_network() -> None:
    _, layers = networks()
    net = FlexiUNet(CONFIG).eval()
    net.load_state_dict(layers.state_dict(), strict=False)
    x, t = state(1), torch.full((3,), 30.0)
    with torch.no_grad():
        torch.testing.assert_close(net(x, t, 0), F.interpolate(x, (8, 8), mode="bilinear") * 0 + layers(x, t, 0))


@pytest.mark.parametrize(
    ("level", "out_level"), [pytest.param(*p, marks=[] if p == PATHS[0] else pytest.mark.slow) for p in PATHS]
)
def test_compiled_and_bfloat16_agree(level: int, out_level: int) -> None:
    net, _ = networks()
    x, t = state(level), torch.full((3,), 30.0)
    with torch.no_grad():
        plain = net(x, t, out_level)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = net(x, t, out_level)
        compiled = net.compile_paths(backend="eager")(x, t, out_level)
    torch.testing.assert_close(compiled, plain)
    assert rounded.dtype == torch.float32
    # the skip stays in float32; a dozen layers round to 2^-8 each
    assert (rounded - plain).abs().max() < 12 * 2**-8 * plain.abs().max()
    assert not torch.equal(rounded, plain)


@pytest.mark.parametrize("matched", [True, False])
def test_edm_weights_are_the_layers_squared_error_under_edms_draw_of_the_noise(matched: bool) -> None:
    """weight · c_out² over T sums like a density of ln(σ/α): to the normal probability of each level's range of it."""
    steps = 1000
    levels = ssd.ResolutionSchedule.thresholds([400, 700], steps=steps)
    proc = ssd.LinearDiffusion.resize((8, 8), ssd.NoiseSchedule.linear(steps), levels, matched=matched)
    net = FlexiUNet(dataclasses.replace(CONFIG, preconditioned_times=steps)).precondition(proc)
    assert net.coefficients is not None
    weights = Objective(proc, weighting="edm")._table[3, 1:].astype(np.float64)
    share = weights * net.coefficients[2, 1:].double().square().numpy() / steps
    assert (share > 0).all()

    def probability(ratio: float) -> float:
        return 0.5 * (1 + math.erf((math.log(ratio) + 1.2) / (1.2 * math.sqrt(2))))

    for first, last in ((2, 399), (401, 699), (701, 1000)):
        low, high = (proc.sigma(t) / proc.alpha(t) for t in (first - 1, last))
        # steps of ln(σ/α) are at most 0.8 at the start, 0.02 elsewhere; a sum of right ends errs by half a step
        assert share[first - 1 : last].sum() == pytest.approx(probability(high) - probability(low), abs=0.012)


def test_one_time_a_level_has_edm_weights() -> None:
    levels = ssd.ResolutionSchedule.thresholds([38, 39, 40], steps=T)
    proc = ssd.LinearDiffusion.resize((8, 8), ssd.NoiseSchedule.linear(T), levels)
    weights = Objective(proc, weighting="edm")._table[3, 1:]
    assert np.isfinite(weights).all()
    assert (weights > 0).all()


def test_wrong_processes_and_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match="preconditioned_times = 40, as many as the process has, got None"):
        FlexiUNet(dataclasses.replace(CONFIG, preconditioned_times=None)).precondition(process())
    with pytest.raises(ValueError, match="got 41"):
        FlexiUNet(dataclasses.replace(CONFIG, preconditioned_times=T + 1)).precondition(process())
    with pytest.raises(ValueError, match="preconditioned_times: expected a whole number >= 1, got 0"):
        dataclasses.replace(CONFIG, preconditioned_times=0)
    with pytest.raises(ValueError, match="released_behaviour predicts the clean image itself"):
        dataclasses.replace(CONFIG, released_behaviour=True)
    with pytest.raises(ValueError, match=r"network.preconditioned_times: expected process.steps, 1000, or none"):
        preset("cpu", "drawn by no one").overlaid({"network": {"preconditioned_times": 10}})
    with pytest.raises(ValueError, match=r"train.weighting: expected one of 'min_snr', 'snr', 'edm', got 'sum'"):
        preset("cpu", "drawn by no one").overlaid({"train": {"weighting": "sum"}})


# ---- in training


def tiny(tmp_path: Path, steps: int) -> tuple[Config, ImageSet]:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels)
    data = str(tmp_path / "images.npz")
    config = preset("cpu", data)
    config = dataclasses.replace(
        config,
        network=CONFIG,
        process=dataclasses.replace(config.process, steps=T, matched=True),
        train=dataclasses.replace(
            config.train, steps=steps, batch_size=4, weighting="edm", ema=(0.9, 0.99), ema_widths=(0.1,)
        ),
    )
    images = open_images(data, 8)
    assert isinstance(images, ImageSet)
    return config, images


def run_to(config: Config, data: ImageSet, out: Path, world: World) -> None:
    trainer = Trainer(config, data, world)
    if checkpoint.was_saved(out):
        trainer.restore(checkpoint.load_state(out, trainer.net.state_dict()))
    else:
        out.mkdir()
        checkpoint.save_config(out, config)
    train(trainer, out, Extras())


def test_training_keeps_the_coefficients_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    config, data = tiny(tmp_path, 12)
    constant = dataclasses.replace(config, train=dataclasses.replace(config.train, cosine_decay=False))
    with connect("cpu") as world:
        run_to(constant, data, tmp_path / "whole", world)
        part = dataclasses.replace(constant, train=dataclasses.replace(constant.train, steps=5))
        run_to(part, data, tmp_path / "parts", world)
        run_to(constant, data, tmp_path / "parts", world)
    expected = FlexiUNet(CONFIG).precondition(constant.build_process()).coefficients
    assert expected is not None
    runs = [load_run(tmp_path / name) for name in ("whole", "parts")]
    for run in runs:
        for net in (run.net, run.ema):
            assert torch.equal(net.state_dict()["coefficients"], expected)
    for name, value in runs[0].net.state_dict().items():
        assert torch.equal(value, runs[1].net.state_dict()[name]), name
    assert not torch.equal(runs[0].net.head_conv.weight, FlexiUNet(CONFIG).head_conv.weight)


def test_a_step_has_no_gradient_of_the_coefficients() -> None:
    """So that processes that share a batch do not wait for one."""
    net = FlexiUNet(CONFIG)
    used = [used_parameters(net, path) for path in process().paths]
    assert len(used) == 3
    assert all(used)
    assert "coefficients" not in set(itertools.chain.from_iterable(used))
