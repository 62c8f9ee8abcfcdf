"""One walk down the chain: predictions, posteriors, and the noise they are sampled with."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import ssdcore as ssd
from ssdcore.multistep import extrapolated
from ssdcore_torch.denoisers.unet import FlexiUNet
from ssdcore_torch.sampling._placement import Placement


@dataclass(frozen=True)
class Defaults:
    """What a sampler takes where nothing else is asked for."""

    eta: float
    placement: Placement


SAMPLERS: Mapping[str, Defaults] = {
    "ancestral": Defaults(eta=1.0, placement="time"),  # the paper's
    "multistep": Defaults(eta=0.0, placement="log_snr"),  # its extrapolation is in log-SNR
}

Denoiser = Callable[..., Tensor]
"""net(x, t, out_level=…[, label=…]) -> clean images; a FlexiUNet or any other callable."""
StepRecorder = Callable[[int, Tensor, Tensor], None]
Draw = Callable[[tuple[int, ...]], Tensor]
"""Noise of a trailing shape: (batch, channels, *shape)."""


def defaults_of(sampler: str) -> Defaults:
    """Raises ValueError for an unknown name, listing the known."""
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler: expected one of {', '.join(SAMPLERS)}, got {sampler!r}")
    return SAMPLERS[sampler]


def level_sizes_of(net: Denoiser, proc: ssd.LinearDiffusion) -> list[tuple[int, ...]]:
    """The size of each of the network's levels: those it was built for, or the process's for another callable."""
    if isinstance(net, FlexiUNet):
        return list(net.config.level_sizes)
    return list(proc.shapes)


def device_of(net: Denoiser) -> torch.device:
    """Where the network's parameters are; the CPU for a callable that has none."""
    first = next(net.parameters(), None) if isinstance(net, nn.Module) else None
    return torch.device("cpu") if first is None else first.device


def fill_of(net: Denoiser, batch_size: int) -> int:
    """`Walk.fill` for samples in batches: their size if the network is compiled."""
    return batch_size if isinstance(net, FlexiUNet) and net.compiled else 0


@contextmanager
def evaluating(net: Denoiser) -> Iterator[None]:
    """Inside, a module is in evaluation mode and nothing keeps gradients."""
    module = net if isinstance(net, nn.Module) else nn.Module()
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)


def host_noise(seed: int, indices: Sequence[int], channels: int, dtype: torch.dtype, device: torch.device) -> Draw:
    """Standard normal noise whose i-th sample is a function of (seed, indices[i]) and of how often it was asked.

    Drawn on the host, sample by sample: the same numbers on every device and in every batch.
    """
    generators = [np.random.default_rng((seed, index)) for index in indices]

    def draw(shape: tuple[int, ...]) -> Tensor:
        drawn = np.empty((len(generators), channels, *shape), dtype=np.float32)
        for generator, sample in zip(generators, drawn):
            generator.standard_normal(out=sample, dtype=np.float32)
        noise = torch.from_numpy(drawn)
        if device.type == "cuda":  # from pinned memory the copy does not wait for the device
            noise = noise.pin_memory()
        return noise.to(device, dtype, non_blocking=True)

    return draw


def on_this_stream(draw: Draw, device: torch.device) -> Draw:
    """`draw`, its copies to a CUDA device queued where the caller's work is, also if another thread asks for it."""
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def drawn(shape: tuple[int, ...]) -> Tensor:
        with torch.cuda.stream(stream):
            return draw(shape)

    return drawn


def drawn_ahead(draw: Draw, shapes: Sequence[tuple[int, ...]], background: bool) -> Iterator[Tensor]:
    """draw(shape) for each of the shapes, in order; in the `background`, while the caller works with the one before."""
    if not background:
        yield from map(draw, shapes)
        return
    with ThreadPoolExecutor(max_workers=1) as worker:
        pending = deque(worker.submit(draw, shape) for shape in shapes[:1])
        for shape in shapes[1:]:
            pending.append(worker.submit(draw, shape))
            yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@dataclass(frozen=True)
class Walk:
    """A denoiser, the chain of times that it is asked at, and how one state follows from another.

    net      the denoiser;   sizes  the size of each of its levels
    chain    a process respaced to the sampler's times
    sampler  one of SAMPLERS
    eta      of the posteriors
    clip     clip every prediction to [−1, 1]
    correct  makes another prediction of (x_t, prediction, k) at step k of the chain, after clipping; or None
    labels   (batch,) class labels on the network's device, or None
    guidance weight w of classifier-free guidance: x̂ = x̂_null + w (x̂_label − x̂_null), before clipping; 1: x̂_label
    fill     show the network batches of at least this many samples, adding some whose predictions are dropped: for
             compiled networks, where another batch size costs another compilation
    """

    net: Denoiser
    sizes: Sequence[tuple[int, ...]]
    chain: ssd.LinearDiffusion
    sampler: str = "ancestral"
    eta: float = 1.0
    clip: bool = True
    correct: Callable[[Tensor, Tensor, int], Tensor] | None = None
    labels: Tensor | None = None
    guidance: float = 1.0
    fill: int = 0

    def __post_init__(self) -> None:
        defaults_of(self.sampler)
        if not 0 <= self.eta <= 1:
            raise ValueError(
                f"eta: expected a number from 0 (deterministic where the size is kept) to 1, got {self.eta}"
            )
        if self.sampler == "multistep" and self.eta != 0:
            raise ValueError(f'eta: the sampler "multistep" is the deterministic one: expected 0, got {self.eta}')

    @property
    def null_label(self) -> int | None:
        return self.net.config.null_label if isinstance(self.net, FlexiUNet) else None

    def predict(self, x: Tensor, k: int) -> Tensor:
        """The clean image at the size of step k − 1, predicted from the state x at step k."""
        count, missing = len(x), max(0, self.fill - len(x))
        state, labels = x, self.labels
        if missing:
            state = torch.cat([x, x[:1].expand(missing, *x.shape[1:])])
            labels = None if labels is None else torch.cat([labels, labels[:1].expand(missing)])
        if self.guidance == 1:
            clean = self._evaluate(state, labels, k)[:count]
        else:
            assert labels is not None
            assert self.null_label is not None
            null = torch.full_like(labels, self.null_label)
            both = self._evaluate(torch.cat([state, state]), torch.cat([labels, null]), k)
            labelled, unlabelled = (half[:count] for half in both.chunk(2))
            clean = unlabelled + self.guidance * (labelled - unlabelled)
        if self.clip:
            clean = clean.clamp(-1, 1)
        return clean if self.correct is None else self.correct(x, clean, k)

    def _evaluate(self, x: Tensor, labels: Tensor | None, k: int) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)  # bfloat16 has only some of the whole numbers above 256
        times = torch.full((len(x),), float(self.chain.times[k - 1]), dtype=wide, device=x.device)
        condition = {} if labels is None else {"label": labels}
        return self.net(x, times, out_level=self.sizes.index(self.chain.shape(k - 1)), **condition).to(x.dtype)

    def down(self, x: Tensor, draw: Draw, on_step: StepRecorder | None = None) -> Tensor:
        """x_0, the last prediction, from x_T (batch, channels, *smallest size)."""
        chain = self.chain
        previous: Tensor | None = None
        shapes = [chain.shape(k - 1) for k in range(chain.steps, 1, -1)]
        noise = drawn_ahead(on_this_stream(draw, x.device), shapes, background=x.is_cuda)
        for k in range(chain.steps, 0, -1):
            clean = self.predict(x, k)
            if on_step is not None:
                on_step(chain.times[k - 1], x, clean)
            if k == 1:
                break
            used = clean
            if self.sampler == "multistep":
                used = extrapolated(chain, k - 1, k, k + 1, clean, previous)
                previous = clean
            x = chain.posterior(x, used, k - 1, k, eta=self.eta).sample(next(noise))
        return clean
