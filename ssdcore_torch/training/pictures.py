"""Grids of samples during training, and the pictures at its end."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor

import ssdcore as ssd
from ssdcore_torch import images
from ssdcore_torch.config import Config
from ssdcore_torch.denoisers import Predictor, device_of
from ssdcore_torch.progress import drawing_bar
from ssdcore_torch.sampling import StepRecorder, drawing_network, generate
from ssdcore_torch.training.trainer import Trainer

SAMPLES = 64
SAMPLE_STEPS, SAMPLER = 20, "multistep"  # no worse than twice as many ancestral ones (benchmarks/quality/README.md)

Step = tuple[int, Tensor, Tensor]


def sample_grid(trainer: Trainer) -> Image.Image:
    """A grid of the averaged network's samples: the same noise, and classes in turn, at every call."""
    config = trainer.config
    drawn = draw_samples(trainer.averages.network, trainer.process, config, trainer.prior, SAMPLES)
    return _titled(drawn, config, trainer.step)


def final_pictures(
    folder: Path, config: Config, net: Predictor, process: ssd.LinearDiffusion, prior: ssd.Gaussian | None, step: int
) -> tuple[Tensor, list[Step]]:
    """samples.png and denoising.png, from the averaged weights `net` after `step` steps; of signals and volumes, whose
    pictures show little, samples.npz, too.

    Returns the samples, and the steps (t, x_t, prediction) of their chain, for who shows them elsewhere, too.
    """
    chain: list[Step] = []
    drawn = draw_samples(net, process, config, prior, SAMPLES, lambda *step: chain.append(step))
    images.save(_titled(drawn, config, step), folder / "samples.png")
    images.save(images.denoising_strip(chain), folder / "denoising.png")
    if drawn.ndim != 4:
        images.save_array(drawn, config.labels_in_turn(len(drawn)), folder / "samples.npz")
    return drawn, chain


def _titled(drawn: Tensor, config: Config, step: int) -> Image.Image:
    """A grid of samples with its heading and the names of their classes."""
    labels = config.labels_in_turn(len(drawn))
    return images.grid(
        drawn,
        title=f"step {step:,} of {config.train.steps:,}, seed {config.seed}",
        captions=images.class_captions(labels, config.data.class_names),
    )


def draw_samples(
    net: Predictor,
    process: ssd.LinearDiffusion,
    config: Config,
    prior: ssd.Gaussian | None,
    n: int,
    on_step: StepRecorder | None = None,
) -> Tensor:
    """n samples as a run's pictures show them: its seed, classes in turn, `SAMPLE_STEPS` steps at least, a bar."""
    device = device_of(net)
    steps = min(max(SAMPLE_STEPS, len(process.shapes)), process.steps)  # a chain passes every size
    with drawing_bar(n, n, steps, on_step) as recorder:
        return generate(
            drawing_network(net, config.train.in_bfloat16(device.type)),
            process,
            n,
            steps=steps,
            seed=config.seed,
            sampler=SAMPLER,
            prior=prior,
            labels=config.labels_in_turn(n),
            batch_size=n,
            on_step=recorder,
        )
