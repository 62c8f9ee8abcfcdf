"""Do a step again and look at it image by image: for a loss that was not finite."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ssdcore_torch.training.trainer import Trainer


def replay(trainer: Trainer, step: int) -> Iterator[str]:
    """Lines that say what step `step` does, in place of its update: each image's time and loss, gradients that are not
    finite. The steps up to it are done as in training, from where the trainer stands; nothing is saved.

    Raises:
        ValueError: Where the trainer is past the step.
        NotFiniteError: If an earlier step fails already.
    """
    if step < trainer.step:
        raise ValueError(f"--replay {step}: the last checkpoint is of step {trainer.step}, which is past it")
    batches = trainer.feed.batches(trainer.step)
    while trainer.step < step:
        trainer.train_step(next(batches))
    trainer.check()
    images, drawn = next(batches), trainer.draw(step)
    yield f"step {step}: {len(drawn.batch.times)} images of {drawn.batch.path.shape} to {drawn.batch.path.target_shape}"
    for i, (index, t) in enumerate(zip(images.indices, drawn.batch.times)):
        with torch.no_grad():
            loss = trainer.part_loss(images, drawn, slice(i, i + 1)).item()
        yield f"  image {index}, t = {t}: loss {loss:.6g}"
    trainer.net.zero_grad()
    for part in trainer.parts():
        trainer.part_loss(images, drawn, part).backward()
    named = [(name, p.grad) for name, p in trainer.net.named_parameters() if p.grad is not None]
    bad = [name for name, gradient in named if not torch.isfinite(gradient).all()]
    yield f"gradients not finite: {', '.join(bad) or 'none'}, of {len(named)} parameters with one"
