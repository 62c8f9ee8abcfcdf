"""Batches on the device, and how long they were waited for."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssdcore_torch.data._images import ImageSet, ImageStream
from ssdcore_torch.data._order import WINDOW, Order
from ssdcore_torch.data._reading import Task
from ssdcore_torch.data._shards import Prefetcher, ShardSource
from ssdcore_torch.randomness import Purpose, keyed
from ssdcore_torch.workers import check_workers


@dataclass(frozen=True)
class ImageBatch:
    """Images of a step.

    Attributes:
        images: (b, c, *size) uint8, or float32 in [−1, 1], on the device
        labels: (b,) int64 on the device, or None where the data has none
        indices: (b,) int64, the numbers of these images among all in the source
    """

    images: Tensor
    labels: Tensor | None
    indices: np.ndarray


class Feed:
    """The batches of a run, a pure function of (seed, step): nothing to save, and resuming replays nothing.

    - order: what each global batch holds
    - flip: mirror half of the images left to right (along the last axis), by coin tosses for the whole global batch
    - part: (i, n): only the i-th of n contiguous equal slices of each global batch

    workers  processes that decode an `ImageStream`; None: one for each core but one, at most 8; 0: none. The batches
             are the same whatever their number.

    Raises:
        ValueError: If n does not divide the batch size, or if the order is of another number of images.
    """

    def __init__(
        self,
        images: ImageSet | ImageStream,
        order: Order,
        device: torch.device,
        *,
        seed: int,
        flip: bool = False,
        part: tuple[int, int] = (0, 1),
        workers: int | None = None,
    ) -> None:
        number, parts = part
        if not 0 <= number < parts:
            raise ValueError(f"part: expected (i, n) with 0 <= i < n, got {part}")
        if order.batch_size % parts:
            raise ValueError(f"expected a batch size that {parts} processes can share equally, got {order.batch_size}")
        if order.count != images.count:
            raise ValueError(f"expected an order of {images.count} images, got one of {order.count}")
        self.images, self.order, self.device = images, order, torch.device(device)
        self.seed, self.flip, self.workers = seed, flip, check_workers(workers)
        share = order.batch_size // parts
        self.slice = slice(number * share, (number + 1) * share)
        self._waited, self._since = 0.0, time.perf_counter()

    @property
    def wait_share(self) -> float:
        """The share of the time since this was last asked that the taker of batches spent waiting for them."""
        now = time.perf_counter()
        share = self._waited / max(now - self._since, 1e-9)
        self._waited, self._since = 0.0, now
        return min(share, 1.0)

    @property
    def skipped(self) -> int:
        """Files that this process has found to be of no use so far: no pictures, broken, or too small."""
        return len(self.images.skipped)

    def batches(self, first_step: int) -> Iterator[ImageBatch]:
        """The batches of step first_step, first_step + 1, … without end.

        Raises:
            ValueError: Once too many pictures of a stream are broken.
        """
        read = self._gather(first_step) if isinstance(self.images, ImageSet) else self._stream(first_step)
        step = first_step
        while True:
            started = time.perf_counter()
            pixels, indices = next(read)
            batch = self._deliver(pixels, indices, step)
            self._waited += time.perf_counter() - started
            step += 1
            yield batch

    def _deliver(self, pixels: Tensor, indices: np.ndarray, step: int) -> ImageBatch:
        images = self._send(pixels).movedim(-1, 1)
        if self.flip:
            tosses = keyed(Purpose.FLIP, self.seed, step).random(self.order.batch_size)[self.slice]
            flipped = self._send(torch.from_numpy(tosses < 0.5))
            images = torch.where(flipped.view(-1, *[1] * (images.ndim - 1)), images.flip(-1), images)
        labels = self.images.labels_of(indices)
        shown = None if labels is None else self._send(torch.from_numpy(labels))
        return ImageBatch(images.contiguous(), shown, indices)

    def _send(self, values: Tensor) -> Tensor:
        if self.device.type == "cuda" and not values.is_pinned():
            values = values.pin_memory()  # or the copy would hold up the host
        return values.to(self.device, non_blocking=True)

    def _gather(self, first_step: int) -> Iterator[tuple[Tensor, np.ndarray]]:
        assert isinstance(self.images, ImageSet)
        for batch in self.order.batches(first_step):
            pixels, indices = self.images.take(batch[self.slice])
            yield torch.from_numpy(pixels), indices

    def _stream(self, first_step: int) -> Iterator[tuple[Tensor, np.ndarray]]:
        assert isinstance(self.images, ImageStream)
        return self.images.read(self._tasks(first_step), self.workers, pin=self.device.type == "cuda")

    def _tasks(self, first_step: int) -> Iterator[Task]:
        assert isinstance(self.images, ImageStream)
        prefetch = self._prefetch(first_step)
        for step, batch in enumerate(self.order.batches(first_step), first_step):
            next(prefetch)
            crops = None
            if self.images.crop == "random":
                crops = keyed(Purpose.CROP, self.seed, step).random((self.order.batch_size, 3))[self.slice]
            yield batch[self.slice], crops

    def _prefetch(self, first_step: int) -> Iterator[None]:
        """At each step, ask for what is read a window of shards later, if that has to come from another machine."""
        assert isinstance(self.images, ImageStream)
        source = self.images.reader.source
        if not (isinstance(source, ShardSource) and source.slow):
            yield from itertools.repeat(None)
            return
        ahead = WINDOW * len(self.images) // max(1, len(self.order.blocks)) // self.order.batch_size
        prefetcher = Prefetcher(source)
        try:
            for batch in self.order.batches(first_step + ahead):
                prefetcher.want(self.images.reader.rows[batch])
                yield
        finally:
            prefetcher.close()
