"""Grids of samples while a run goes on, and the pictures at its end."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from ssdcore_torch import checkpoint, images
from ssdcore_torch.config import Config
from ssdcore_torch.sampling import generate
from ssdcore_torch.training.trainer import Trainer

SAMPLES = 64
SAMPLE_STEPS = 100


def sample_grid(trainer: Trainer) -> Image.Image:
    """A grid of the averaged network's samples: the same noise, and classes in turn, at every call."""
    process, config = trainer.process, trainer.config
    return images.grid(
        generate(
            trainer.averages.network,
            process,
            SAMPLES,
            steps=min(SAMPLE_STEPS, process.steps),
            seed=config.seed,
            prior=trainer.prior,
            labels=classes_in_turn(config, SAMPLES),
            batch_size=SAMPLES,
        )
    )


def final_pictures(run: checkpoint.Run) -> None:
    """samples.png and denoising.png, from the averaged weights."""
    chain: list[tuple[int, Tensor, Tensor]] = []
    drawn = generate(
        run.ema,
        run.process,
        SAMPLES,
        steps=min(SAMPLE_STEPS, run.process.steps),
        seed=run.config.seed,
        prior=run.prior,
        labels=classes_in_turn(run.config, SAMPLES),
        batch_size=SAMPLES,
        on_step=lambda t, x_t, prediction: chain.append((t, x_t, prediction)),
    )
    images.save(images.grid(drawn), run.path / "samples.png")
    images.save(images.denoising_strip(chain), run.path / "denoising.png")


def classes_in_turn(config: Config, count: int) -> list[int] | None:
    """Labels of `count` images: the classes trained on take turns; None for a network without classes."""
    if config.network.num_classes is None:
        return None
    names = config.data.class_names
    trained = [names.index(name) for name in config.data.classes] or list(range(config.network.num_classes))
    return [trained[i % len(trained)] for i in range(count)]
