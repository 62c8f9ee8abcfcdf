"""What a run will cost, before it starts: parameters, operations, memory, time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssdcore.process import Path
from ssdcore_torch.data import ImageBatch
from ssdcore_torch.denoisers import asked, operations, shadow
from ssdcore_torch.text import sides
from ssdcore_torch.training.trainer import Trainer

TIMED = 3  # steps of each path that are timed, after one that is not
SLOW = 10.0  # seconds: a first step that takes so long stands for all, but not where it compiles


@dataclass(frozen=True)
class PathPlan:
    """One path of a run: its share of the steps, forward GFLOP per image, seconds per step."""

    path: Path
    share: float
    gflop: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """A run's costs on this device.

    Attributes:
        parameters: of the network
        state_bytes: weights, gradients, optimizer moments and averages
        saved_bytes: the most that a path keeps for its backward pass, at this process' part of a batch, in float32
        seconds: of all the steps, as measured on this device with images drawn at random; loading is not in it
    """

    parameters: int
    state_bytes: int
    saved_bytes: int
    paths: tuple[PathPlan, ...]
    steps: int
    seconds: float

    def table(self) -> str:
        """The plan in words and a table."""
        head = f"{self.parameters / 1e6:.2f} M parameters; {self.steps} steps in about {_duration(self.seconds)}\n"
        memory = (
            f"memory per process: {_gib(self.state_bytes)} of weights, gradients, moments and averages, and about "
            f"{_gib(self.saved_bytes)} kept for the backward pass of the largest path (in bfloat16 about half of it)\n"
        )
        rows = [f"{'path':>16} {'steps':>9} {'GFLOP per image':>15} {'s per step':>9}"]
        for plan in self.paths:
            size, out = (sides(shape) for shape in (plan.path.shape, plan.path.target_shape))
            name = size if size == out else f"{size} → {out}"
            rows.append(f"{name:>16} {plan.share * self.steps:>9.0f} {plan.gflop:>15.3f} {plan.seconds:>9.3f}")
        return head + memory + "\n".join(rows)


def plan(trainer: Trainer) -> Plan:
    """Measure a few steps of every path on random images. The trainer is used up: build another to train."""
    config, objective = trainer.config, trainer.objective
    net, sizes = trainer.net, trainer.sizes
    images = _random_images(trainer)
    paths = []
    for path, share in zip(objective.paths, objective.path_probabilities):
        if share == 0:
            continue
        gflop = operations(net, sizes.index(path.shape), sizes.index(path.target_shape)) / 1e9
        paths.append(PathPlan(path, float(share), gflop, _seconds_a_step(trainer, images, path)))
    parameters = sum(p.numel() for p in trainer.net.parameters())
    with trainer.threads() as threads:
        summed = threads.count if threads.count > 1 else 0  # gradients, one of each thread
    copies = 4 + summed + len(trainer.averages.state())
    repeats = objective.repeats or (1,) * len(objective.paths)
    recompute = config.train.recompute
    saved = max(count * saved_bytes(trainer.net, path, recompute) for path, count in zip(objective.paths, repeats))
    part = config.train.batch_size // (trainer.world.size * config.train.accumulate)
    return Plan(
        parameters,
        4 * copies * parameters,
        part * saved,
        tuple(paths),
        config.train.steps,
        config.train.steps * sum(p.share * p.seconds for p in paths),
    )


def steps_within(trainer: Trainer, seconds: float) -> int:
    """How many steps take so long, as a few of each path take now; at least one. The trainer is used up. All ranks must
    ask together, and get the same."""
    images = _random_images(trainer)
    shares = zip(trainer.objective.paths, trainer.objective.path_probabilities)
    a_step = sum(float(share) * _seconds_a_step(trainer, images, path) for path, share in shares if share > 0)
    count = torch.tensor([max(1, round(seconds / a_step))])
    trainer.world.copy_from_leader([count])
    return int(count)


def saved_bytes(net: Any, path: Path, recompute: bool = False) -> int:
    """Bytes that one image's forward pass keeps for the backward pass in float32, found on shapes alone.

    Args:
        recompute: as the network's `checkpoint_activations` does: what is kept until a block is computed again
    """
    sizes = list(net.sizes)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()  # the storage's address: on the meta device it has no data's
        return tensor  # alive until the graph is gone, so that no address comes twice

    back: Callable[[Tensor], Tensor] = lambda tensor: tensor  # noqa: E731
    twin = shadow(net).train()
    if hasattr(twin, "checkpoint_activations"):
        twin.checkpoint_activations(recompute)
    weights = {p.untyped_storage()._cdata for p in twin.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, back):
        out = asked(twin, sizes.index(path.shape), sizes.index(path.target_shape))
    del out
    return sum(size for storage, size in kept.items() if storage not in weights)


def _random_images(trainer: Trainer) -> ImageBatch:
    config, device = trainer.config, trainer.world.device
    count = config.train.batch_size // trainer.world.size
    shape = (count, config.network.in_channels, *config.shape)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    labels = None if config.network.num_classes is None else torch.zeros(count, dtype=torch.int64, device=device)
    return ImageBatch(images, labels, torch.arange(count).numpy())


def _seconds_a_step(trainer: Trainer, images: ImageBatch, path: Path) -> float:
    """Of a whole training step on this path: the least of a few, or the first if that is slow."""
    times: list[float] = []
    while len(times) <= TIMED:
        if times and times[0] >= SLOW and not trainer.config.train.compile:
            return times[0]
        started = time.perf_counter()
        trainer.train_step(images, path)
        trainer.take_figures()  # waits for the device
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.0f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
