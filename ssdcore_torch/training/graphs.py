"""Whole training steps as CUDA graphs, one a path."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from ssdcore.process import Path
from ssdcore_torch.data import ImageBatch
from ssdcore_torch.graphs import Pool
from ssdcore_torch.training.draws import Draw

PLAIN = 2  # steps of a path before its capture: in the first the optimizer makes its state

_log = logging.getLogger("ssdcore_torch")

Work = Callable[[ImageBatch, Draw], Tensor]
Inputs = TypeVar("Inputs", ImageBatch, Draw)


@dataclass(frozen=True)
class _Captured:
    """A graph, the inputs that it reads, and the loss that it writes."""

    graph: torch.cuda.CUDAGraph
    images: ImageBatch
    drawn: Draw
    loss: Tensor


class StepGraphs:
    """A step's work on the device: done as it is when a path is new, then captured, and from then on replayed.

    Args:
        work: (images, draw) -> the loss. All that changes from step to step must be in its arguments' tensors, or
            in tensors that stay where they are; the shapes of a path stay the same.
        optional: where the memory is too small for a graph, continue with plain steps, and say so
    """

    def __init__(self, work: Work, optional: bool = False) -> None:
        self._work, self._optional, self._pool = work, optional, Pool()
        self._plain: set[Path] = set()
        self._steps: Counter[Path] = Counter()
        self._captured: dict[Path, _Captured] = {}

    def __call__(self, images: ImageBatch, drawn: Draw) -> Tensor:
        path = drawn.batch.path
        if path not in self._captured:
            self._steps[path] += 1
            if self._steps[path] <= PLAIN or path in self._plain:
                return self._work(images, drawn)
            try:
                self._captured[path] = self._capture(images, drawn)
            except torch.OutOfMemoryError:
                if not self._optional:
                    raise
                self._plain.add(path)
                _log.warning(
                    "too little memory for a CUDA graph of the steps at %s: they are taken one by one", path.shape
                )
                return self._work(images, drawn)
        captured = self._captured[path]
        given = _tensors(images) | _tensors(drawn)
        for name, held in (_tensors(captured.images) | _tensors(captured.drawn)).items():
            held.copy_(given[name])
        self._pool.replay(captured.graph)
        return captured.loss.clone()

    def _capture(self, images: ImageBatch, drawn: Draw) -> _Captured:
        images, drawn = _copied(images), _copied(drawn)
        try:
            graph, loss = self._pool.capture(lambda: self._work(images, drawn))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RuntimeError(
                f"a step at {drawn.batch.path.shape} cannot be captured as a CUDA graph ({error}): leave "
                "train.cuda_graphs out"
            ) from error
        return _Captured(graph, images, drawn, loss)


def _tensors(inputs: ImageBatch | Draw) -> dict[str, Tensor]:
    return {name: value for name, value in vars(inputs).items() if isinstance(value, Tensor)}


def _copied(inputs: Inputs) -> Inputs:
    """The same, its tensors copied."""
    return replace(inputs, **{name: tensor.clone() for name, tensor in _tensors(inputs).items()})  # type: ignore[arg-type]
