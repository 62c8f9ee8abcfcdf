"""Grids of samples while a run goes on, and the pictures at its end."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor

import ssdcore as ssd
from ssdcore_torch import images
from ssdcore_torch.config import Config
from ssdcore_torch.denoisers import Predictor, device_of
from ssdcore_torch.sampling import StepRecorder, drawing_network, generate
from ssdcore_torch.training.trainer import Trainer

SAMPLES = 64
SAMPLE_STEPS = 100


def sample_grid(trainer: Trainer) -> Image.Image:
    """A grid of the averaged network's samples: the same noise, and classes in turn, at every call."""
    return images.grid(_drawn(trainer.averages.network, trainer.process, trainer.config, trainer.prior))


def final_pictures(
    folder: Path, config: Config, net: Predictor, process: ssd.LinearDiffusion, prior: ssd.Gaussian | None
) -> None:
    """samples.png and denoising.png, from the averaged weights `net`."""
    chain: list[tuple[int, Tensor, Tensor]] = []
    drawn = _drawn(net, process, config, prior, lambda *step: chain.append(step))
    images.save(images.grid(drawn), folder / "samples.png")
    images.save(images.denoising_strip(chain), folder / "denoising.png")


def _drawn(
    net: Predictor,
    process: ssd.LinearDiffusion,
    config: Config,
    prior: ssd.Gaussian | None,
    on_step: StepRecorder | None = None,
) -> Tensor:
    device = device_of(net)
    return generate(
        drawing_network(net, config.train.in_bfloat16(device.type)),
        process,
        SAMPLES,
        steps=min(SAMPLE_STEPS, process.steps),
        seed=config.seed,
        prior=prior,
        labels=config.labels_in_turn(SAMPLES),
        batch_size=SAMPLES,
        on_step=on_step,
    )
