"""The state of a run and the step that advances it."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ssdcore as ssd
from ssdcore.process import Path
from ssdcore_torch import checkpoint
from ssdcore_torch.config import Config
from ssdcore_torch.data import Feed, ImageBatch, ImageSet, ImageStream
from ssdcore_torch.denoisers import NETWORKS, WrappedConfig, check_denoiser
from ssdcore_torch.devices import to_device
from ssdcore_torch.diffusion import Objective, equal_cost_repeats
from ssdcore_torch.distributed import World
from ssdcore_torch.ema import Averages
from ssdcore_torch.parts import Threads, threads_for
from ssdcore_torch.randomness import Purpose, keyed, torch_seed
from ssdcore_torch.sampling import to_float
from ssdcore_torch.text import printable, sides
from ssdcore_torch.training.draws import Draw, StepNumbers
from ssdcore_torch.training.graphs import StepGraphs
from ssdcore_torch.training.parallel import PathNetworks

SPIKE_MEMORY = 0.05  # weight of a new loss in the running mean of its path
SPIKE_TRIALS = 20  # losses of a path before its running mean counts
UNCHECKED = 10  # steps that a GPU runs ahead before the host looks whether they were finite


class NotFiniteError(ArithmeticError):
    """A loss or gradient of a step is not finite; `step` is its number, the weights are those before it."""

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


class Trainer:
    """Network, averages, optimizer and data of a run, and the step that advances them.

    A step is a function of (state, config, step number): all that is random is drawn for the whole batch from
    generators keyed by (seed, step), and each process takes its slice. So a run that is saved, stopped and restored
    continues as if it had not been stopped, and N processes train as one does.
    """

    def __init__(
        self,
        config: Config,
        data: ImageSet | ImageStream,
        world: World,
        process: ssd.LinearDiffusion | None = None,
        network: Any = None,
    ) -> None:
        """Args:
        process: instead of the configuration's: one of the user's own, which the configuration only names
        network: a `Denoiser` to train as it is, instead of a new one of the configuration's shape
        """
        train, device = config.train, world.device
        parts = world.size * train.accumulate
        if train.batch_size % parts:
            raise ValueError(
                f"train.batch_size: {train.batch_size} images do not divide evenly over {world.size} processes × "
                f"{train.accumulate} parts (train.accumulate); take a multiple of {parts}"
            )
        if train.evaluate_every is not None and train.evaluate_samples > len(data):
            fewer = f"take --set train.evaluate_samples={len(data)} at most"
            advice = fewer if len(data) >= 4 else "leave train.evaluate_every out, as an evaluation takes 4 at least"
            raise ValueError(
                f"train.evaluate_samples: {train.evaluate_samples} samples are compared with as many images, and "
                f"{data.source} has {len(data)}; {advice}"
            )
        self.config, self.world = config, world
        self.process = config.build_process() if process is None else process
        torch.manual_seed(config.seed)
        pictures = len(self.process.shape(0)) == 2
        layout = torch.channels_last if device.type == "cuda" and pictures else torch.contiguous_format
        made = NETWORKS[type(config.network)](config.network, self.process) if network is None else network
        if isinstance(config.network, WrappedConfig):
            check_denoiser(made.to(device), self.process)
        self.net = made.to(device).to(memory_format=layout).train()
        self.averages = Averages(self.net, train.ema, train.ema_widths)
        if train.recompute:
            _able(self.net, "train.recompute", "checkpoint_activations")()
        if train.compile:
            _able(self.net, "train.compile", "compile_paths")()
        repeats = equal_cost_repeats(self.process, self.net) if train.equal_cost else ()
        self.objective = Objective(
            self.process,
            train.snr_clamp,
            train.pixel_share,
            train.change_share,
            repeats,
            train.weighting,
            train.size_bias,
            train.time_sampling,
        )
        captured = self._captured()
        self.networks = PathNetworks(self.net, self.objective.paths, world)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(),
            lr=train.learning_rate,
            weight_decay=train.weight_decay,
            fused=True,
            capturable=captured,
        )
        self.feed = Feed(
            data,
            data.order(train.batch_size, config.seed),
            device,
            seed=config.seed,
            flip=config.data.flip,
            part=(world.rank, world.size),
            workers=config.data.workers,
        )
        self.images = data.count
        self.sizes = list(self.net.sizes)
        self.step = 0
        paths = len(self.objective.paths)
        self.best: dict[str, Any] | None = None
        self.prior: ssd.Gaussian | None = None
        # On the device, so that no step waits for the host: sums for the log, and what the update depends on.
        self._losses, self._norms = torch.zeros(paths, device=device), torch.zeros((), device=device)
        self._path_steps = np.zeros(paths, dtype=np.int64)
        self._spike_means, self._spike_counts = torch.zeros(paths, device=device), torch.zeros(paths, device=device)
        self._skipped = torch.zeros((), device=device)
        self._failed_step = torch.full((), -1, device=device)
        self._numbers = self._numbers_of(0)
        self._graphs: StepGraphs | None = None
        if captured:
            self.use_graphs()

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then constant or a cosine to zero."""
        train = self.config.train
        rate = train.learning_rate * min(1.0, (step + 1) / max(train.warmup, 1))
        if train.cosine_decay:
            rate *= 0.5 * (1 + math.cos(math.pi * step / train.steps))
        return rate

    def draw(self, step: int, path: Path | None = None) -> Draw:
        """Path (unless given), times, noise and left-out labels of a step, for its whole batch."""
        config, device = self.config, self.world.device
        batch = self.objective.draw(config.train.batch_size, config.seed, step, path)
        generator = torch.Generator(device).manual_seed(torch_seed(Purpose.NOISE, config.seed, step))
        noise = torch.randn(batch.noise_shape(config.network.in_channels), generator=generator, device=device)
        dropped = keyed(Purpose.LABELS, config.seed, step).random(len(batch)) < config.train.label_dropout
        return Draw(batch, noise, self.objective.rows(batch.times, device), to_device(dropped, device))

    def train_step(self, images: ImageBatch, path: Path | None = None) -> Tensor:
        """One optimizer step on this process' slice of the batch of step `self.step`; its mean loss, on the device.

        The update is left out, without the host being asked, where the loss or the gradient is not finite (and in all
        steps after: `check` then says so), and where the loss is a spike by `train.skip_spikes`.

        Args:
            path: to take instead of the one that the step draws, to time it
        """
        config, step = self.config, self.step
        drawn = self.draw(step, path)
        self._count(step)
        torch.manual_seed(torch_seed(Purpose.DROPOUT, config.seed, step, self.world.rank))
        loss = self._advance(images, drawn) if self._graphs is None else self._graphs(images, drawn)
        self._path_steps[self.objective.paths.index(drawn.batch.path)] += 1
        self.step += 1
        if self.world.device.type == "cpu" or self.step % UNCHECKED == 0:
            self.check()
        return loss

    def _captured(self) -> bool:
        """Whether steps become CUDA graphs. Raises ValueError where that is asked for and cannot be."""
        train, world, wanted = self.config.train, self.world, self.config.train.cuda_graphs
        obstacle = None
        if world.device.type != "cuda" or world.size > 1:
            where = f"{world.size} processes" if world.size > 1 else f"the device {world.device.type}"
            obstacle = f"expected one process on a CUDA device, got {where}"
        elif train.recompute:
            obstacle = "a step that recomputes (train.recompute) cannot be captured"
        elif not self.objective.alike:
            obstacle = "this process degrades images differently at every time, which a captured step cannot follow"
        if wanted and obstacle is not None:
            raise ValueError(f"train.cuda_graphs: {obstacle}; leave it out")
        if wanted is not None:
            return wanted
        return obstacle is None and not train.compile and hasattr(self.net, "capture_paths")

    def use_graphs(self) -> None:
        """From now on take steps as CUDA graphs: what changes between them is in tensors."""
        device = self.world.device
        shares = [torch.zeros((), device=device) for _ in self._numbers.shares]
        step = torch.zeros((), dtype=torch.int64, device=device)
        self._numbers = StepNumbers(step, torch.zeros((), device=device), shares)
        self._graphs = self._new_graphs()

    def _new_graphs(self) -> StepGraphs:
        return StepGraphs(self._advance, optional=self.config.train.cuda_graphs is None)

    def _numbers_of(self, step: int) -> StepNumbers:
        return StepNumbers(step, self.learning_rate(step), self.averages.shares(step))

    def _count(self, step: int) -> None:
        """The numbers of this step: for graphs, in the tensors that they read."""
        numbers = self._numbers_of(step)
        if self._graphs is None:
            self._numbers = numbers
        else:
            held = self._numbers
            for tensor, value in zip((held.step, held.rate, *held.shares), (step, numbers.rate, *numbers.shares)):
                assert isinstance(tensor, Tensor)
                tensor.fill_(value)
        for group in self.optimizer.param_groups:
            group["lr"] = self._numbers.rate

    def _advance(self, images: ImageBatch, drawn: Draw) -> Tensor:
        """The work of a step on the device, which may become a graph: it reads `_numbers`, and no other number that
        changes. Its mean loss."""
        with self.threads() as threads:
            return self._advance_on(threads, images, drawn)

    def threads(self) -> AbstractContextManager[Threads]:
        """The threads that take parts of a step's batch: of a world of one process, which has them for itself."""
        return threads_for(self.net) if self.world.size == 1 else nullcontext(Threads())

    def _advance_on(self, threads: Threads, images: ImageBatch, drawn: Draw) -> Tensor:
        path = drawn.batch.path
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.parts()
        loss = torch.zeros((), device=self.world.device)
        for part in parts[:-1]:
            with self.networks.keep_local(path):
                loss += self._backward(threads, images, drawn, part, len(parts))
        loss += self._backward(threads, images, drawn, parts[-1], len(parts))
        norm = self._clipped_norm()
        number = self.objective.paths.index(path)
        self._decide(loss, norm, number)
        self.optimizer.step()
        self.averages.follow(self.net, self._numbers.shares)
        self._losses[number] += loss
        self._norms += norm
        return loss

    def _clipped_norm(self) -> Tensor:
        """The norm of the gradients, which are then no longer than `train.clip`."""
        clip = self.config.train.clip
        if clip is not None:
            return torch.nn.utils.clip_grad_norm_(self.net.parameters(), clip)
        gradients = [parameter.grad for parameter in self.net.parameters() if parameter.grad is not None]
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))

    def parts(self) -> list[slice]:
        """The slices of the whole batch that this process works through in a step."""
        train, world = self.config.train, self.world
        size = train.batch_size // (world.size * train.accumulate)
        first = world.rank * train.accumulate
        return [slice(k * size, (k + 1) * size) for k in range(first, first + train.accumulate)]

    def part_loss(self, images: ImageBatch, drawn: Draw, part: slice) -> Tensor:
        """The mean loss of the images at these places of the whole batch, with its graph."""
        first = self.parts()[0].start
        here = slice(part.start - first, part.stop - first)  # `images` starts with this process' own
        x0 = to_float(images.images[here])
        labels = None
        if self.config.network.num_classes is not None:
            assert images.labels is not None
            labels = images.labels[here].masked_fill(drawn.dropped[part], self.config.network.num_classes)
        path = drawn.batch.path
        kind = self.world.device.type
        # Each use casts the weights again on a CPU: what is cast is kept for all threads, with the graph of one.
        kept = kind != "cpu"
        with torch.autocast(kind, torch.bfloat16, enabled=self.config.train.in_bfloat16(kind), cache_enabled=kept):
            return self.objective(
                self.networks.of(path),
                x0,
                drawn.batch[part],
                drawn.noise[part],
                self.sizes.index(path.target_shape),
                labels,
                drawn.rows[:, part],
            )

    def _backward(self, threads: Threads, images: ImageBatch, drawn: Draw, part: slice, parts: int) -> Tensor:
        """Add the gradients of one of a step's `parts`; its share of the loss."""
        if threads.count == 1:
            loss = self.part_loss(images, drawn, part) / parts
            loss.backward()
            return loss.detach()
        trained = [parameter for parameter in self.net.parameters() if parameter.requires_grad]

        def gradients(piece: slice) -> tuple[Tensor, tuple[Tensor | None, ...]]:
            share = (piece.stop - piece.start) / (parts * (part.stop - part.start))
            loss = self.part_loss(images, drawn, piece) * share
            return loss.detach(), torch.autograd.grad(loss, trained, allow_unused=True)

        times = drawn.batch.times
        pixels = math.prod(drawn.batch.path.target_shape) * (times.size // len(times))
        pieces = threads.map(gradients, part, pixels)
        for _, found in pieces:
            held = [(p, gradient) for p, gradient in zip(trained, found) if gradient is not None]
            known = [(p.grad, gradient) for p, gradient in held if p.grad is not None]
            for p, gradient in held:
                if p.grad is None:
                    p.grad = torch.empty_like(p).copy_(gradient)  # two parameters may be given one gradient
            if known:
                torch._foreach_add_(*map(list, zip(*known)))
        return torch.stack([loss for loss, _ in pieces]).sum()

    def _decide(self, loss: Tensor, norm: Tensor, number: int) -> None:
        """Tell the optimizer, on the device, whether to leave this update out."""
        train = self.config.train
        mean, count = self._spike_means[number], self._spike_counts[number]
        # The gradients are averaged over the processes, so their norm is the same on all and knows of all.
        failed = ~torch.isfinite(norm)
        skip = torch.zeros_like(failed)
        if train.skip_spikes is not None:
            loss = self.world.mean(loss)
            highest = train.skip_spikes * mean
            skip = (count >= SPIKE_TRIALS) & (loss > highest)
            seen = torch.where(skip, highest, loss)
            mean.copy_(torch.where(count == 0, seen, mean.lerp(seen, SPIKE_MEMORY)))
            count += 1
            self._skipped += skip
        first = failed & (self._failed_step < 0)
        self._failed_step.copy_(torch.where(first, self._numbers.step, self._failed_step))
        # What a GradScaler sets, too: the fused optimizer reads it on the device.
        self.optimizer.found_inf = (skip | (self._failed_step >= 0)).float()  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]

    def check(self) -> None:
        """Raise NotFiniteError if a step since the last call was not finite; waits for the device."""
        step = int(self._failed_step)
        if step < 0:
            return
        config = self.config
        batch = self.objective.draw(config.train.batch_size, config.seed, step)
        indices = self.feed.order.indices(step)
        raise NotFiniteError(
            step,
            f"step {step}: the loss or its gradient is not finite; stopped before the update. "
            f"Path {_name(batch.path)}, times {_some(batch.times)}, images {_some(indices)}",
        )

    def take_figures(self) -> dict[str, Any]:
        """Mean loss, of all and by path, mean gradient norm and learning rate of the steps since the last call.

        Waits for the device; all ranks must call it together, and get the same.
        """
        losses = self.world.mean(self._losses).tolist()
        steps, norm = self._path_steps.tolist(), self._norms.item()
        self._losses.zero_()
        self._norms.zero_()
        self._path_steps[:] = 0
        figures: dict[str, Any] = {
            "loss": sum(losses) / max(sum(steps), 1),
            "learning_rate": self.learning_rate(self.step - 1),
            "gradient_norm": norm / max(sum(steps), 1),
            "paths": {
                _name(path): loss / count for path, loss, count in zip(self.objective.paths, losses, steps) if count
            },
        }
        if self.config.train.skip_spikes is not None:
            figures["skipped"] = self.skipped
        return figures

    @property
    def skipped(self) -> int:
        """Updates left out as spikes; waits for the device."""
        return int(self._skipped)

    def state(self) -> checkpoint.State:
        """All that training continues from."""
        named = dict(self.net.named_parameters())
        moments = {name: self.optimizer.state.get(p, {}) for name, p in named.items()}
        # A parameter that no path has used yet has no moments: zeros after zero updates is the same.
        return checkpoint.State(
            step=self.step,
            images=self.images,
            model=self.net.state_dict(),
            averages=self.averages.state(),
            first_moments={n: m.get("exp_avg", torch.zeros_like(named[n])) for n, m in moments.items()},
            second_moments={n: m.get("exp_avg_sq", torch.zeros_like(named[n])) for n, m in moments.items()},
            updates={n: m.get("step", torch.tensor(0.0)) for n, m in moments.items()},
            extra={
                "best": self.best,
                "skipped": self.skipped,
                "spike_means": self._spike_means.tolist(),
                "spike_counts": self._spike_counts.tolist(),
            },
        )

    def restore(self, state: checkpoint.State) -> None:
        """Go on from a saved state. Raises ValueError if it was trained on another number of images, or counts other
        things than this trainer."""
        counts = _read_counts(state.extra, len(self.objective.paths))
        if state.images != self.images:
            raise ValueError(
                f"this run was trained on {state.images} images, and its data now has {self.images}: "
                "put the same images back, or start another run"
            )
        self.net.load_state_dict(state.model)
        self.averages.load(state.averages)
        packed = self.optimizer.state_dict()
        # In the weights' layout, as the optimizer makes them: on CUDA its fused kernel takes no other.
        packed["state"] = {
            i: {
                "step": state.updates[name],
                "exp_avg": torch.empty_like(weight).copy_(state.first_moments[name]),
                "exp_avg_sq": torch.empty_like(weight).copy_(state.second_moments[name]),
            }
            for i, (name, weight) in enumerate(self.net.named_parameters())
        }
        self.optimizer.load_state_dict(packed)
        if self._graphs is not None:
            self._graphs = self._new_graphs()  # those made before update what is gone
        for name, values in (("spike_means", self._spike_means), ("spike_counts", self._spike_counts)):
            values.copy_(torch.tensor(counts[name]))
        self._skipped.fill_(counts["skipped"])
        self.best = counts["best"]
        self.step = state.step


def _read_counts(extra: Mapping[str, Any], paths: int) -> Mapping[str, Any]:
    """The `extra` of a `Trainer.state`. Raises ValueError naming what is missing or of another kind."""
    best = extra.get("best")
    fits = {
        "best": "best" in extra
        and (best is None or (isinstance(best, dict) and _whole(best.get("step")) and _finite(best.get("frechet")))),
        "skipped": _whole(extra.get("skipped")),
        "spike_means": _numbers(extra.get("spike_means"), paths),
        "spike_counts": _numbers(extra.get("spike_counts"), paths),
    }
    for name, fit in fits.items():
        if not fit:
            raise ValueError(
                f"the checkpoint's state.json does not fit this run of {paths} paths: extra: {name} is "
                f"{printable(extra[name])[:60] if name in extra else 'missing'}"
            )
    return extra


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _finite(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]


def _numbers(values: object, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(_finite(value) and value >= 0 for value in values)


def _name(path: Path) -> str:
    return "→".join(sides(size) for size in (path.shape, path.target_shape))


def _able(net: Any, setting: str, method: str) -> Any:
    """What the network can do besides predicting. Raises ValueError, naming the setting, where it cannot."""
    if not hasattr(net, method):
        raise ValueError(f"{setting}: a {type(net).__name__} has no {method}; leave the setting out")
    return getattr(net, method)


def _some(values: np.ndarray, count: int = 8) -> str:
    shown = ", ".join(str(value) for value in values[:count])
    return f"[{shown}{f', … {len(values)} in all' if len(values) > count else ''}]"
