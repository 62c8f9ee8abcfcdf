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
        [-0.004608182287983098, 0.009005459204891911],
        [-0.0002071382914436981, 0.0008183422614820302, -0.0005323791410773993],
    ),
    "gpu64": (
        {**NARROW, "preconditioned_times": 1000}, 16, 3,
        [4.928625106811523, 2.908442258834839, 1.9911797046661377, 4.48304557800293, 2.3566112518310547, 2.1205925941467285],
        [-0.0021326998639400094, 0.24615955866172973],
        [-0.1542302966117859, 0.13867129385471344, 0.05593077093362808],
    ),
    "celeba64": (
        NARROW, 16, 2,
        [1.3476905822753906, 0.24818918108940125, 0.18146313726902008, 0.9301801919937134, 0.226618692278862, 0.046016059815883636],
        [0.012482245352231894, 0.02487934015837008],
        [0.010716410353779793, 0.005726794712245464, 0.005644302349537611],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ["cpu", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpu64", "celeba64"))])
def test_a_preset_trains_and_samples_as_recorded(name):
    network, size, levels, losses, moments, pixel = RECORDED[name]
    data = EMBEDDED if name == "celeba64" else None
    settings = {"network": network, "train": {"batch_size": 4, "steps": 6, "warmup": 2, "learning_rate": 1e-4}}
    if name in ("cpu", "gpu64"):  # recorded with equal levels
        settings["process"] = {"schedule": "equal", "nats": None}
    config = preset(name, data).overlaid(settings, size, levels)
    images = open_images(config.data.path, config.size, classes=config.data.classes)
    trainer = Trainer(config, images, World(0, 1, 0, torch.device("cpu")))
    batches = trainer.feed.batches(0)
    assert [float(trainer.train_step(next(batches))) for _ in losses] == pytest.approx(losses, rel=1e-3)
    drawn = generate(trainer.averages.network, trainer.process, 2, steps=6, seed=3).double()
    # Adam's first steps are the gradients' signs, which rounding can turn where they are all but zero.
    assert [float(drawn.mean()), float(drawn.std())] == pytest.approx(moments, rel=1e-3, abs=1e-4)
    assert drawn[1, :, 3, 5].tolist() == pytest.approx(pixel, rel=1e-2, abs=1e-3)
