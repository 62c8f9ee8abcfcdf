"""Drawing images: the chain of exact posteriors from x_T to x_0."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

import ssdcore as ssd
from ssdcore_torch.unet import FlexiUNet

# A covariance of this many numbers squared is still small; a process whose smallest size has more has few levels, and
# there α_T is too small for the data to show in x_T.
LARGEST_FITTED_PRIOR = 1024

StepRecorder = Callable[[int, Tensor, Tensor], None]


def sampling_times(proc: ssd.LinearDiffusion, steps: int) -> tuple[int, ...]:
    """`steps` increasing times from 1 to T, as evenly spaced as whole numbers allow, with every size-changing time in.

    The network learns to raise the size only at the first time of a level, so the chain must pass there: the nearest
    even times are moved onto those. Raises ValueError if there are fewer steps than such times, or more than T.
    """
    changes = [t for t in range(1, proc.steps + 1) if proc.shape(t) != proc.shape(t - 1)]
    needed = sorted({proc.steps, *changes})
    if steps > proc.steps:
        raise ValueError(f"steps = {steps}: the process has only {proc.steps}; take at most that many")
    if steps < len(needed):
        raise ValueError(
            f"steps = {steps}: the chain must start at t = {proc.steps} and pass the {len(changes)} times where "
            f"the size changes, {changes}; take at least {len(needed)} steps"
        )
    times = {int(t) for t in np.round(np.linspace(1 if steps > 1 else proc.steps, proc.steps, steps))}
    for t in needed:
        if t not in times:
            times.remove(min(times.difference(needed), key=lambda other: (abs(other - t), other)))
            times.add(t)
    return tuple(sorted(times))


def level_sizes_of(net: Callable[..., Tensor], proc: ssd.LinearDiffusion) -> list[tuple[int, ...]]:
    """The size of each of the network's levels: those it was built for, or the process's for another callable."""
    if isinstance(net, FlexiUNet):
        return list(net.config.level_sizes)
    return list(dict.fromkeys(proc.shape(t) for t in range(proc.steps + 1)))


def fit_moments(images: Tensor, proc: ssd.LinearDiffusion) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean (channels, h, w) and covariance (n, n), n = channels·h·w, of clean images at the smallest size: float64.

    images   (count, channels, *full size) uint8
    Feed them to `proc.prior` for the law of x_T. None where n exceeds `LARGEST_FITTED_PRIOR`.
    """
    shape = (images.shape[1], *proc.shape(proc.steps))
    if np.prod(shape) > LARGEST_FITTED_PRIOR:
        return None
    chunks = [proc.clean(to_float(part), proc.steps).flatten(1).double().cpu() for part in images.split(1024)]
    values = torch.cat(chunks).numpy()
    return values.mean(0).reshape(shape), np.cov(values, rowvar=False, bias=True)


def to_float(images: Tensor) -> Tensor:
    """Bytes 0 … 255 as float32 in [−1, 1]."""
    return images.float() / 127.5 - 1


def to_bytes(images: Tensor) -> Tensor:
    """[−1, 1], clipped, as bytes 0 … 255."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


@torch.no_grad()
def generate(
    net: Callable[..., Tensor],
    proc: ssd.LinearDiffusion,
    n: int,
    steps: int = 100,
    eta: float = 1.0,
    seed: int = 0,
    *,
    prior: ssd.Gaussian | None = None,
    channels: int = 3,
    batch_size: int = 64,
    on_step: StepRecorder | None = None,
) -> Tensor:
    """(n, channels, h, w) images in [−1, 1], on the network's device.

    At each of `sampling_times` the network predicts the clean image at the size of the next time s, the prediction is
    clipped to [−1, 1], and x_s is drawn from the exact posterior q_η(x_s | x_t, x̂): the paper's ancestral sampling at
    eta = 1, and at eta = 0 nothing is drawn but what a size change destroyed. x_0 is the last prediction.

    net         a FlexiUNet, or any callable net(x, t, out_level=…) that predicts clean images
    prior       law of x_T as `proc.prior` gives it, over (channels, h, w) at the smallest size; None: N(0, σ_T² I)
    batch_size  images that go through the network at once
    on_step     called with (t, x_t, prediction) at every step of every batch, for pictures of the chain

    Sample i is a function of (seed, i) alone (up to rounding, whatever the batch it shares). A module is run in
    evaluation mode. Raises ValueError for n < 1, for steps that `sampling_times` refuses, and for eta outside [0, 1].
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f"expected n >= 1 and batch_size >= 1, got n = {n} and batch_size = {batch_size}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: expected a number from 0 (deterministic where the size is kept) to 1, got {eta}")
    chain = proc.respace(sampling_times(proc, steps))
    module = net if isinstance(net, nn.Module) else nn.Module()
    was_training = module.training
    module.eval()
    try:
        parts = [
            _chain(net, proc, chain, range(first, min(first + batch_size, n)), eta, seed, prior, channels, on_step)
            for first in range(0, n, batch_size)
        ]
    finally:
        module.train(was_training)
    return torch.cat(parts)


def _chain(
    net: Callable[..., Tensor],
    proc: ssd.LinearDiffusion,
    chain: ssd.LinearDiffusion,
    indices: range,
    eta: float,
    seed: int,
    prior: ssd.Gaussian | None,
    channels: int,
    on_step: StepRecorder | None,
) -> Tensor:
    device = next(net.parameters()).device if isinstance(net, nn.Module) else torch.device("cpu")
    sizes = level_sizes_of(net, proc)
    generators = [np.random.default_rng((seed, index)) for index in indices]

    def noise(shape: tuple[int, ...]) -> Tensor:
        # Drawn on the host, sample by sample: the same numbers on every device and in every batch.
        drawn = [g.standard_normal((channels, *shape), dtype=np.float32) for g in generators]
        return torch.from_numpy(np.stack(drawn)).to(device)

    start = chain.prior() if prior is None else prior
    centre = torch.as_tensor(start.mean, dtype=torch.float32, device=device)
    x = ssd.Gaussian(centre, start.covariance).sample(noise(chain.shape(chain.steps)))
    for k in range(chain.steps, 0, -1):
        t = chain.times[k - 1]
        times = torch.full((len(x),), float(t), device=device)
        clean = net(x, times, out_level=sizes.index(chain.shape(k - 1))).float().clamp(-1, 1)
        if on_step is not None:
            on_step(int(t), x, clean)
        if k > 1:
            x = chain.posterior(x, clean, k - 1, k, eta=eta).sample(noise(chain.shape(k - 1)))
    return clean
