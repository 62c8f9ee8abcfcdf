"""The presets train and sample as they always did: losses and pixels of tiny runs, recorded once."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from ssdcore_torch import generate
from ssdcore_torch.config import preset
from ssdcore_torch.data import EMBEDDED, open_images
from ssdcore_torch.distributed import World
from ssdcore_torch.training import Trainer

NARROW = {"base_channels": 32, "channel_multipliers": [1, 1, 2]}
# name: (network settings, size, levels, loss of each step, mean and deviation of two samples, a pixel of the second)
RECORDED = {
    "cpu": (
        {}, None, None,
        [1.501697301864624, 1.0278863906860352, 0.6931043863296509, 1.457608699798584, 0.6361867189407349, 0.5972597002983093],
        [-0.00440067177631794, 0.00778404956926485],
        [0.0064860135316848755, 0.010601156391203403, 0.008246664889156818],
    ),
    "gpu64": (
        {**NARROW, "preconditioned_times": 1000}, 16, 3,
        [4.928625106811523, 2.908442258834839, 1.9911797046661377, 4.48304557800293, 2.3566112518310547, 2.1205925941467285],
        [0.0007518374929140018, 0.2425181300346447],
        [0.27079153060913086, 0.12611861526966095, 0.007367182523012161],
    ),
    "celeba64": (
        NARROW, 16, 2,
        [1.3476905822753906, 0.24818918108940125, 0.18146313726902008, 0.9301801919937134, 0.226618692278862, 0.046016059815883636],
        [0.012230649166943644, 0.023118758064524257],
        [0.03439038246870041, 0.023804273456335068, 0.020750004798173904],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDED)
def test_a_preset_trains_and_samples_as_recorded(name):
    network, size, levels, losses, moments, pixel = RECORDED[name]
    data = EMBEDDED if name == "celeba64" else None
    settings = {"network": network, "train": {"batch_size": 4, "steps": 6, "warmup": 2, "learning_rate": 1e-4}}
    config = preset(name, data).overlaid(settings, size, levels)
    images = open_images(config.data.path, config.size, classes=config.data.classes)
    trainer = Trainer(config, images, World(0, 1, 0, torch.device("cpu")))
    batches = trainer.feed.batches(0)
    assert [float(trainer.train_step(next(batches))) for _ in losses] == pytest.approx(losses, rel=1e-3)
    drawn = generate(trainer.averages.network, trainer.process, 2, steps=6, seed=3).double()
    # Adam's first steps are the gradients' signs, which rounding can turn where they are all but zero.
    assert [float(drawn.mean()), float(drawn.std())] == pytest.approx(moments, rel=1e-3, abs=1e-4)
    assert drawn[1, :, 3, 5].tolist() == pytest.approx(pixel, rel=1e-2, abs=1e-3)
