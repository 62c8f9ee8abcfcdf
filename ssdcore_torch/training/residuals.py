"""The residual spectra of a trained network, from the images of its run."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ssdcore_torch.data import Feed
from ssdcore_torch.sampling import ResidualSpectra, drawing_network, measure_residuals, measured_times, to_float
from ssdcore_torch.training.trainer import Trainer

MOST, LEAST, BATCH = 256, 8, 32  # images
SHARE = 0.1  # of the images that training has seen: a network that was trained for seconds is measured in a moment


def measured_residuals(trainer: Trainer) -> ResidualSpectra:
    """Of the averaged network, on up to 256 images in the order of another seed.

    Rank 0 does it alone, and so the same for any number of ranks.
    """
    config, data, device = trainer.config, trainer.feed.images, trainer.world.device
    times = sum(len(measured_times(trainer.process, path)) for path in trainer.process.paths)
    seen = trainer.step * config.train.batch_size
    count = min(len(data), MOST, max(LEAST, int(SHARE * seen / times)))
    size = min(count, BATCH)
    feed = Feed(data, data.order(size, config.seed + 1), device, seed=config.seed + 1, workers=0)

    def batches() -> Iterator[tuple[Tensor, Tensor | None]]:
        conditional = config.network.num_classes is not None
        for _, batch in zip(range(-(-count // size)), feed.batches(0)):
            yield to_float(batch.images), batch.labels if conditional else None

    net = drawing_network(trainer.averages.network, config.train.in_bfloat16(device.type))
    return measure_residuals(net, trainer.process, batches(), config.seed)
