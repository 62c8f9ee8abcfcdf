"""The law of x_T, from the training images."""

from __future__ import annotations

import itertools

import numpy as np
import torch

import ssdcore as ssd
from ssdcore_torch.data import Feed, ImageSet, ImageStream
from ssdcore_torch.sampling import fit_moments

STREAMED = 16384  # images read of a stream: enough for a covariance of some hundred numbers
BATCH = 256


def fitted_prior(data: ImageSet | ImageStream, process: ssd.LinearDiffusion) -> tuple[np.ndarray, np.ndarray] | None:
    """`sampling.fit_moments` of all images in memory, or of some thousands of a stream."""
    if isinstance(data, ImageSet):
        parts = np.array_split(data.images, -(-len(data) // BATCH))  # copied, as what is mapped cannot be written to
        return fit_moments((torch.from_numpy(part.copy()).movedim(-1, 1) for part in parts), process)
    feed = Feed(data, data.order(min(BATCH, len(data)), seed=0), torch.device("cpu"), seed=0)
    count = -(-min(STREAMED, len(data)) // BATCH)
    return fit_moments((batch.images for batch in itertools.islice(feed.batches(0), count)), process)
