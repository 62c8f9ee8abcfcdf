"""The order in which images are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ssdcore_torch.randomness import Purpose, keyed

WINDOW = 8
"""Blocks (tar shards) that are mixed with each other at any moment of an epoch."""


@dataclass(frozen=True)
class Order:
    """Which images a step trains on: epoch after epoch, each a permutation drawn from (seed, epoch).

    A pure function of the step, so that a resumed run continues in the middle of an epoch without replaying it.

    blocks  sizes of consecutive groups of images (tar shards) that are read together: the blocks are permuted, and the
            images within every `WINDOW` blocks in that order, so that few shards are in use at a time; () for none
    """

    count: int
    batch_size: int
    seed: int
    blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.count < 1 or self.batch_size < 1:
            raise ValueError(f"expected at least one image and a batch of one, got {self.count} and {self.batch_size}")
        if self.blocks and sum(self.blocks) != self.count:
            raise ValueError(f"blocks: expected sizes that sum to {self.count}, got {sum(self.blocks)}")

    def permutation(self, epoch: int) -> np.ndarray:
        """(count,) int64, the order of the images in this epoch."""
        random = keyed(Purpose.ORDER, self.seed, epoch)
        if len(self.blocks) <= WINDOW:
            return random.permutation(self.count)
        ends = np.cumsum(self.blocks)
        blocks = random.permutation(len(self.blocks))
        order: list[np.ndarray] = []
        for first in range(0, len(blocks), WINDOW):
            window = [np.arange(ends[b] - self.blocks[b], ends[b]) for b in blocks[first : first + WINDOW]]
            order.append(random.permutation(np.concatenate(window)))
        return np.concatenate(order)

    def indices(self, step: int) -> np.ndarray:
        """(batch_size,) int64, the images of this step."""
        return next(self.batches(step))

    def batches(self, first_step: int) -> Iterator[np.ndarray]:
        """(batch_size,) int64 indices of the images of step first_step, first_step + 1, …; a batch may span epochs."""
        epoch, offset = divmod(first_step * self.batch_size, self.count)
        queue = self.permutation(epoch)[offset:]
        while True:
            while len(queue) < self.batch_size:
                epoch += 1
                queue = np.concatenate([queue, self.permutation(epoch)])
            yield queue[: self.batch_size]
            queue = queue[self.batch_size :]
