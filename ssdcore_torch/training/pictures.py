"""Grids of samples while a run goes on, and the pictures at its end."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

import ssdcore as ssd
from ssdcore_torch import checkpoint, images
from ssdcore_torch.config import Config
from ssdcore_torch.denoisers.unet import FlexiUNet
from ssdcore_torch.sampling import StepRecorder, drawing_network, generate
from ssdcore_torch.training.trainer import Trainer

SAMPLES = 64
SAMPLE_STEPS = 100


def sample_grid(trainer: Trainer) -> Image.Image:
    """A grid of the averaged network's samples: the same noise, and classes in turn, at every call."""
    return images.grid(_drawn(trainer.averages.network, trainer.process, trainer.config, trainer.prior))


def final_pictures(run: checkpoint.Run) -> None:
    """samples.png and denoising.png, from the averaged weights."""
    chain: list[tuple[int, Tensor, Tensor]] = []
    drawn = _drawn(run.ema, run.process, run.config, run.prior, lambda *step: chain.append(step))
    images.save(images.grid(drawn), run.path / "samples.png")
    images.save(images.denoising_strip(chain), run.path / "denoising.png")


def _drawn(
    net: FlexiUNet,
    process: ssd.LinearDiffusion,
    config: Config,
    prior: ssd.Gaussian | None,
    on_step: StepRecorder | None = None,
) -> Tensor:
    device = next(net.parameters()).device
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
