"""One walk down the chain: predictions, posteriors, and the noise they are sampled with."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import ssdcore as ssd
from ssdcore.sampling import Sampler
from ssdcore_torch.denoisers import Predictor, classes_of, compiled
from ssdcore_torch.parts import Threads, threads_for
from ssdcore_torch.randomness import sample_noise
from ssdcore_torch.sampling._residuals import ResidualSpectra, degraded_further, reverse_step

StepRecorder = Callable[[int, Tensor, Tensor], None]
NoiseSource = Callable[[tuple[int, ...]], Tensor]
"""Noise of a trailing shape, (batch, channels, *shape): a `Noise`, or what stands for one."""


def fill_of(net: Predictor, batch_size: int) -> int:
    """`Walk.fill` for samples in batches: their size if the network is compiled."""
    return batch_size if compiled(net) else 0


@contextmanager
def evaluating(net: Predictor) -> Iterator[Threads]:
    """Inside, a module is in evaluation mode and nothing keeps gradients. Gives the threads to split batches over."""
    module = net if isinstance(net, nn.Module) else nn.Module()
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad(), threads_for(net) as threads:
            yield threads
    finally:
        module.train(was_training)


class Noise:
    """Standard normal noise whose i-th sample is a function of (seed, indices[i]) and of how often it was asked for.

    Computed where it is needed, from counters: the same on every device and in every batch.

    ::

        noise(shape) -> ``(len(indices), channels, *shape)``
    """

    def __init__(
        self, seed: int, indices: Sequence[int], channels: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.seed, self.indices, self.channels, self.dtype, self.device = seed, indices, channels, dtype, device
        self._asked = 0
        self._ahead: deque[Tensor] = deque()  # for the next times, should they be of the same shape

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        size = self.channels * math.prod(shape)
        if not self._ahead or self._ahead[0][0].numel() != size:
            # A GPU takes as long for a few numbers as for many, so it draws those of several steps at once.
            times = max(1, _AT_ONCE // (size * len(self.indices))) if self.device.type == "cuda" else 1
            draws = range(self._asked, self._asked + times)
            self._ahead = deque(sample_noise(self.seed, self.indices, draws, size, self.device).to(self.dtype))
        self._asked += 1
        return self._ahead.popleft().view(len(self.indices), self.channels, *shape)


_AT_ONCE = 2**21  # numbers: 100 MB while they are made


@dataclass(frozen=True)
class Walk:
    """A denoiser, the chain of times that it is asked at, and how one state follows from another.

    Attributes:
        net: the denoiser
        sizes: the size of each of its levels
        chain: a process respaced to the sampler's times
        sampler: how a state follows from another
        clip: clip every prediction to [−1, 1]
        correct: makes another prediction of (x_t, prediction, k) at step k of the chain, after clipping; or None.
            Its prediction, as every one, is the clean image as degraded at step `first_of_size(chain, k − 1)`
        labels: (batch,) class labels on the network's device, or None
        guidance: weight w of classifier-free guidance: x̂ = x̂_null + w (x̂_label − x̂_null), before clipping; 1:
            x̂_label
        fill: show the network batches of at least this many samples, adding some whose predictions are dropped: for
            compiled networks, where another batch size costs another compilation
        threads: what batches are split over, as `evaluating` gives them
        residuals: what predictions leave open, which steps put back as the sampler does; None: they take predictions
            for the clean image itself
    """

    net: Predictor
    sizes: Sequence[tuple[int, ...]]
    chain: ssd.LinearDiffusion
    sampler: Sampler = Sampler()  # noqa: RUF009 - immutable
    clip: bool = True
    correct: Callable[[Tensor, Tensor, int], Tensor] | None = None
    labels: Tensor | None = None
    guidance: float = 1.0
    fill: int = 0
    residuals: ResidualSpectra | None = None
    threads: Threads = Threads()  # noqa: RUF009 - immutable

    @property
    def null_label(self) -> int | None:
        known = classes_of(self.net)
        return None if known is None else known[1]

    def predict(self, x: Tensor, k: int) -> Tensor:
        """The clean image at the size of step k − 1, predicted from the state x at step k.

        It is degraded as at the first time of its size: by a resize to that size, but by no blur within it. `given`
        makes of it what the posterior takes.
        """
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

    def given(self, clean: Tensor, k: int) -> Tensor:
        """The clean image as degraded at step k − 1, from a prediction: expectations pass through linear maps."""
        return degraded_further(self.chain, clean, k - 1)

    def _evaluate(self, x: Tensor, labels: Tensor | None, k: int) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)  # bfloat16 has only some of the whole numbers above 256
        times = torch.full((len(x),), float(self.chain.times[k - 1]), dtype=wide, device=x.device)
        size = self.chain.shape(k - 1)

        def predicted(part: slice) -> Tensor:
            condition = {} if labels is None else {"label": labels[part]}
            return self.net(x[part], times[part], out_level=self.sizes.index(size), **condition)

        parts = self.threads.map(predicted, slice(0, len(x)), math.prod(size))
        return (torch.cat(parts) if len(parts) > 1 else parts[0]).to(x.dtype)

    def down(self, x: Tensor, draw: NoiseSource, on_step: StepRecorder | None = None) -> Tensor:
        """x_0, the last prediction, from x_T ``(batch, channels, *smallest size)``; noise is drawn where needed."""
        chain = self.chain
        previous: Tensor | None = None
        for k in range(chain.steps, 0, -1):
            clean = self.predict(x, k)
            if on_step is not None:
                on_step(chain.times[k - 1], x, clean)
            if k == 1:
                break
            clean = self.given(clean, k)

            def normal(_: tuple[int, ...], k: int = k) -> Tensor:
                return draw(chain.shape(k - 1))

            x, previous = reverse_step(self.sampler, chain, x, clean, k, normal, previous, self.residuals), clean
        return clean
