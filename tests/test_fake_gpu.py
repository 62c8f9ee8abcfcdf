"""The trainer's step, saving and restoring, every sampler, encoding, restoration, features and the diffusers scheduler on a
device that is not there: no tensor of the host meets one of the device, and nothing waits that is not listed here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_gpu import FakeGpu, HostWait, MixedDevices
from test_speed_paths import TINY, process
from test_training import tiny_config, tiny_data
from test_unet import random_net

import ssdcore as ssd
from ssdcore_torch import checkpoint, generate
from ssdcore_torch.config import preset
from ssdcore_torch.data import EMBEDDED, open_images
from ssdcore_torch.distributed import World
from ssdcore_torch.metrics import open_extractor
from ssdcore_torch.restoration import restore
from ssdcore_torch.sampling import decode, drawing_network, encode
from ssdcore_torch.training import Trainer

CUDA = torch.device("cuda")
pytestmark = pytest.mark.filterwarnings("ignore:CUDA is not available")  # autocast says so
WORLD = World(0, 1, 0, CUDA)

WAITS = {  # what may wait, and why
    "check": "once in ten steps: whether they were finite",
    "take_figures": "the log's line, at intervals",
    "state": "a checkpoint's numbers",
    "restore": "once, when a run continues",
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    fake = FakeGpu(monkeypatch)
    for name in WAITS:
        monkeypatch.setattr(Trainer, name, fake.allow(getattr(Trainer, name)))
    with fake.on():
        yield fake


STEPS = {
    "plain": {},
    "labels, clip, spikes, averages": {
        "classes": 2,
        "clip": 0.5,
        "skip_spikes": 1.5,
        "ema": (0.9, 0.99),
        "ema_widths": (0.1,),
    },
    "equal cost in parts": {"equal_cost": True, "accumulate": 2, "size_bias": 0.5},
    "recomputed, dropout": {"recompute": True, "dropout": 0.1},
    "preconditioned": {"weighting": "edm", "preconditioned_times": 1000},
}


def trainer(**settings: Any) -> Trainer:
    network = {key: settings.pop(key) for key in ("dropout", "preconditioned_times") if key in settings}
    classes = settings.pop("classes", None)
    config = tiny_config(steps=40, classes=classes, change_share=0.5, **settings)
    config = replace(config, network=replace(config.network, **network))
    return Trainer(config, tiny_data(classes=classes), WORLD)


QUICK = "labels, clip, spikes, averages"


@pytest.mark.parametrize(
    "settings",
    [pytest.param(value, id=key, marks=[] if key == QUICK else pytest.mark.slow) for key, value in STEPS.items()],
)
def test_training_and_restoring(settings: dict[str, Any], gpu: FakeGpu, tmp_path: Path) -> None:
    made = trainer(**settings)
    assert next(made.net.parameters()).is_cuda
    batches, paths = made.feed.batches(0), made.objective.paths
    for path in paths:
        made.train_step(next(batches), path)  # constants are moved there once
    with gpu.no_waiting():
        for path in paths:
            loss = made.train_step(next(batches), path)
    assert loss.is_cuda
    assert made.take_figures()["loss"] > 0
    checkpoint.save_config(tmp_path, made.config)
    checkpoint.save_state(tmp_path, made.state())
    again = trainer(**settings)
    again.restore(checkpoint.load_state(tmp_path, again.net.state_dict()))
    batches = again.feed.batches(again.step)
    again.train_step(next(batches))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [("gpu64", 16), ("celeba64", 16), ("celeba128", 32), ("celeba256", 64), ("imagenet64", 16)]
)
def test_every_path_of_every_preset(name: str, size: int, gpu: FakeGpu) -> None:
    """Narrow, and small: with all the levels and settings that the preset has."""
    full = preset(name, EMBEDDED)
    levels = len(full.network.level_sizes)
    narrow = {"base_channels": 32, "channel_multipliers": [1] * len(full.network.channel_multipliers)}
    config = full.overlaid({"network": narrow, "train": {"batch_size": 2, "accumulate": 1, "steps": 40}}, size, levels)
    made = Trainer(config, open_images(EMBEDDED, config.size, classes=config.data.classes), WORLD)
    batches, paths = made.feed.batches(0), made.objective.paths
    assert len(made.process.shapes) == levels
    for path in paths:
        made.train_step(next(batches), path)
    with gpu.no_waiting():
        for path in paths:
            made.train_step(next(batches), path)


@pytest.mark.parametrize(
    ("options", "in_bfloat16"),
    [
        pytest.param({"labels": 1, "guidance": 2.0}, True, marks=pytest.mark.slow),
        ({}, False),
        pytest.param({"eta": 0.0}, False, marks=pytest.mark.slow),
        pytest.param({"sampler": "multistep"}, False, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_sampling(options: dict[str, Any], in_bfloat16: bool, gpu: FakeGpu) -> None:
    net, proc = drawing_network(random_net(TINY).to(CUDA), in_bfloat16), process()
    generate(net, proc, 2, 5, **options)
    with gpu.no_waiting():
        drawn = generate(net, proc, 3, 5, batch_size=2, **options)
    assert drawn.is_cuda


@pytest.mark.slow
def test_encoding_and_restoration(gpu: FakeGpu) -> None:
    """Which wait by design: for what has settled, and for the residuals."""
    proc = process()

    def denoiser(x: torch.Tensor, t: torch.Tensor, out_level: int) -> torch.Tensor:
        small = 0.5 * torch.tanh(x)
        return (
            small
            if tuple(x.shape[2:]) == proc.shapes[out_level]
            else small.repeat_interleave(2, 2).repeat_interleave(2, 3)
        )

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, *arguments: Any, **options: Any) -> torch.Tensor:
            return self.weight * denoiser(*arguments, **options)

    net = Net().to(CUDA)
    images = torch.rand(2, 3, 8, 8, device=CUDA) - 0.5
    code = encode(net, proc, images, 10)
    assert decode(net, proc, code, seed=1).is_cuda
    measured = torch.rand(2, 3, 4, 4, device=CUDA)
    assert restore(net, proc, ssd.Resize((8, 8), (4, 4)), measured, 0.1, 5).is_cuda


def test_features(gpu: FakeGpu) -> None:
    extractor = open_extractor("pixels", CUDA)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, device=CUDA)
    with gpu.no_waiting():
        assert extractor(images).is_cuda


def test_the_diffusers_scheduler(gpu: FakeGpu) -> None:
    pytest.importorskip("diffusers")
    from ssdcore_torch.interop import SSDScheduler

    scheduler = SSDScheduler([(8, 8), (4, 4)], num_train_timesteps=40)
    scheduler.set_timesteps(6, device=CUDA)
    x = torch.randn(2, 3, *scheduler.state_size(scheduler.timesteps[0].item()), device=CUDA)
    for t in scheduler.timesteps.tolist():
        clean = torch.randn(2, 3, *scheduler.prediction_size(t), device=CUDA)
        with gpu.no_waiting():
            x = scheduler.step(clean, t, x).prev_sample
    assert x.is_cuda


# ---- that it would be seen


def test_a_planted_wait_is_found(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer()
    batches, honest = made.feed.batches(0), Trainer._decide

    def reading(self: Trainer, loss: torch.Tensor, norm: torch.Tensor, number: int) -> None:
        if loss.item() < 1e9:
            honest(self, loss, norm, number)

    made.train_step(next(batches))
    monkeypatch.setattr(Trainer, "_decide", reading)
    with gpu.no_waiting(), pytest.raises(HostWait, match="item"):
        made.train_step(next(batches))


def test_a_planted_constant_of_the_host_is_found(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer()
    batches, honest = made.feed.batches(0), Trainer.part_loss
    weight = torch.ones(1)
    monkeypatch.setattr(Trainer, "part_loss", lambda *arguments: (weight * honest(*arguments)).sum())
    with pytest.raises(MixedDevices, match="mul"):
        made.train_step(next(batches))


def test_other_planted_faults_are_found(gpu: FakeGpu) -> None:
    x = torch.ones(4, 4, device="cuda")
    with gpu.no_waiting():
        with pytest.raises(HostWait, match="not pinned"):
            torch.ones(3).to(CUDA, non_blocking=True)
        with pytest.raises(HostWait, match="numbers of the host"):
            torch.tensor([1.0], device=CUDA)
        with pytest.raises(HostWait, match="cpu"):
            x.cpu()
        with pytest.raises(HostWait, match="nonzero"):
            x.nonzero()
    with pytest.raises(MixedDevices, match="index"):
        x[torch.tensor([0, 1])]
    assert (x * torch.tensor(2.0)).is_cuda  # a single number of the host may meet them
