"""Evaluations during training: what `python -m ssdcore_torch.evaluate` measures, of fewer samples."""

from __future__ import annotations

from pathlib import Path

from ssdcore_torch.metrics import MOST, evaluate_network, open_extractor, open_reference
from ssdcore_torch.sampling import drawing_network
from ssdcore_torch.training.trainer import Trainer

STEPS = 50  # ancestral


class EvaluationInTraining:
    """trainer -> figures of its averaged network against the training images; all ranks share the work.

    The same seed every time, so that two evaluations of a run differ by the network alone.
    """

    def __init__(self, trainer: Trainer, out: Path) -> None:
        """Measure the training images, or take their measures from the run's cache. Raises ImportError without the
        extra "evaluate"."""
        world, train = trainer.world, trainer.config.train
        shape = (trainer.config.network.in_channels, *trainer.config.shape)
        self.extractor = open_extractor(train.evaluate_features, world.device, shape=shape)
        self.reference = open_reference(
            trainer.feed.images,
            self.extractor,
            world=world,
            most=max(MOST, train.evaluate_samples),
            cache=out / "reference",
        )

    def __call__(self, trainer: Trainer) -> dict[str, float]:
        config = trainer.config
        count = config.train.evaluate_samples
        # classes as often as among the images they are compared with
        labels = None if config.network.num_classes is None else self.reference.labels
        return evaluate_network(
            drawing_network(trainer.averages.network, config.train.in_bfloat16(trainer.world.device.type)),
            trainer.process,
            self.reference,
            count,
            extractor=self.extractor,
            world=trainer.world,
            prior=trainer.prior,
            seed=config.seed,
            steps=min(STEPS, trainer.process.steps),
            labels=None if labels is None else labels[:count],
        )
