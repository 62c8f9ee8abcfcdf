"""New images from noise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

import ssdcore as ssd
from ssdcore.sampling import Sampler
from ssdcore_torch.denoisers import Predictor, channels_of, device_of, level_sizes_of
from ssdcore_torch.devices import to_device
from ssdcore_torch.sampling._labels import Labels, check_labels
from ssdcore_torch.sampling._placement import Placement, chain_of
from ssdcore_torch.sampling._residuals import ResidualSpectra
from ssdcore_torch.sampling._walk import (
    Noise,
    StepRecorder,
    Walk,
    evaluating,
    fill_of,
)

# A covariance of this many numbers squared is still small; a process whose smallest size has more has few levels, and
# there α_T is too small for the data to show in x_T.
LARGEST_FITTED_PRIOR = 1024


def fit_moments(images: Tensor | Iterable[Tensor], proc: ssd.LinearDiffusion) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean (channels, h, w) and covariance (n, n), n = channels·h·w, of clean images at the smallest size: float64.

    Feed them to `proc.prior` for the law of x_T. None where n exceeds `LARGEST_FITTED_PRIOR`.

    Args:
        images: ``(count, channels, *full size)`` uint8, or floats in [−1, 1], or batches of them, one of which is held
            at a time
    """
    small: list[Tensor] = []
    for batch in images.split(1024) if isinstance(images, Tensor) else images:
        shape = (batch.shape[1], *proc.shape(proc.steps))
        if np.prod(shape) > LARGEST_FITTED_PRIOR:
            return None
        small.append(proc.clean(to_float(batch), proc.steps).flatten(1).double().cpu())
    values = torch.cat(small).numpy()
    return values.mean(0).reshape(shape), np.cov(values, rowvar=False, bias=True)


def to_float(images: Tensor) -> Tensor:
    """Bytes 0 … 255 as float32 in [−1, 1]; floats, which are in it, as they are."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images.float()


def to_bytes(images: Tensor) -> Tensor:
    """[−1, 1], clipped, as bytes 0 … 255."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def generate(
    net: Predictor,
    proc: ssd.LinearDiffusion,
    n: int,
    steps: int = 100,
    eta: float | None = None,
    seed: int = 0,
    *,
    labels: Labels | None = None,
    guidance: float = 1.0,
    first: int = 0,
    sampler: str = "ancestral",
    placement: Placement | None = None,
    times: Sequence[int] | None = None,
    prior: ssd.Gaussian | None = None,
    residuals: ResidualSpectra | None = None,
    channels: int | None = None,
    batch_size: int = 64,
    clip: bool = True,
    dtype: torch.dtype = torch.float32,
    on_step: StepRecorder | None = None,
) -> Tensor:
    """(n, channels, h, w) images, on the network's device.

    At each time t of the chain the network predicts the clean image x̂_t at the size of the next time s, and x_s is
    drawn from the exact posterior q_η(x_s | x_t, x̂); x_0 is the last prediction.

    ::

        "ancestral"   x̂ = x̂_t: the paper's sampling at eta = 1, DDIM within a size at eta = 0
        "multistep"   eta = 0 and x̂ = x̂_t extrapolated from the last two predictions, which is second order in the log
                      signal-to-noise ratio: DPM-Solver++(2M) within a size (Lu et al., 2022), carried across changes
                      of size by `ssdcore.multistep`

    For few steps take "multistep": with a perfect denoiser 20 of its steps come nearer to the data than 100 ancestral
    ones. A small or briefly trained network, inaccurate at little noise, does better with placement="time" or a later
    first time, ``times=sampling_times(proc, steps, "log_snr", first=…)``.

    Sample i is a function of (seed, i) and its label alone (up to rounding, whatever the batch it shares). A module is
    run in evaluation mode. Raises ValueError for n < 1, for an unknown sampler or placement, for steps or times that
    the chain cannot take, for eta outside [0, 1], and for labels or a guidance that the network cannot take.

    Args:
        net: a `Denoiser`, or any callable net(x, t, out_level=…) that predicts clean images (and takes label=…,
            (batch,) int64, where labels are given)
        steps: network evaluations per image
        eta: factor on the posterior's noise where a change of size does not force it: 1 (the default of
            "ancestral") all of it, 0 (that of "multistep", which takes no other) none
        labels: class of each sample, n of them or one for all, `net.null_label` meaning none; None: no class
        guidance: w of classifier-free guidance (Ho and Salimans, 2022): x̂_t = x̂_null + w (x̂_label − x̂_null),
            both predicted in one batch. 1: x̂_label alone. Else labels and a denoiser with a null label are needed.
        first: make samples first … first + n − 1 of the seed, so that several calls or ranks share one set
        sampler: a name of `SAMPLERS`, each a `ssdcore.sampling.Sampler`
        placement: how `sampling_times` spreads the steps: "time" (the default of "ancestral") or "log_snr"
            ("multistep")
        times: increasing times to visit instead, T and those at which the size changes among them (`steps` and
            `placement` are then of no effect)
        prior: law of x_T as `proc.prior` gives it, over (h, w) or (channels, h, w) at the smallest size; None: N(0,
            σ_T² I)
        residuals: what the predictions leave open (`measure_residuals`, `Run.residuals`). Each step of "ancestral" then
            has the mean and covariance of the true one, at any eta; "multistep" draws with it the modes that a change
            of size adds, which few steps need most. None: steps take x̂ for x_0 itself
        channels: of the images; None: as many as the denoiser says, or the prior is over
        batch_size: images that go through the network at once (through a compiled network always, also where fewer
            are left or asked for: another size would be another compilation)
        clip: clip every prediction to [−1, 1], the range of images
        dtype: of the states and of the result; the network must take it. Under `torch.autocast` the network alone
            computes in its lower precision.
        on_step: called with (t, x_t, prediction) at every step of every batch, for pictures of the chain
    """
    if n < 1 or batch_size < 1 or first < 0:
        raise ValueError(
            f"expected n >= 1, batch_size >= 1 and first >= 0, got n = {n}, batch_size = {batch_size}, first = {first}"
        )
    classes = check_labels(net, labels, n, guidance)
    how = Sampler.named(sampler, eta)
    chain = chain_of(proc, steps, how.placement if placement is None else placement, times)
    device = device_of(net)
    if channels is None and prior is not None and len(prior.mean.shape) > len(proc.shape(proc.steps)):
        channels = int(prior.mean.shape[-1 - len(proc.shape(proc.steps))])
    channels = channels_of(net, channels)
    law = chain.prior(torch.zeros(chain.shape(chain.steps), dtype=dtype, device=device)) if prior is None else prior
    law = ssd.Gaussian(torch.as_tensor(law.mean, dtype=dtype, device=device), law.covariance)
    parts = []
    with evaluating(net) as threads:
        for start in range(0, n, batch_size):
            stop = min(start + batch_size, n)
            part = None if classes is None else to_device(classes[start:stop].numpy(), device)
            walk = Walk(
                net,
                level_sizes_of(net, proc),
                chain,
                how,
                clip,
                labels=part,
                guidance=guidance,
                fill=fill_of(net, batch_size),
                residuals=residuals,
                threads=threads,
            )
            draw = Noise(seed, range(first + start, first + stop), channels, dtype, device)
            parts.append(walk.down(law.sample(draw(chain.shape(chain.steps))), draw, on_step))
    return torch.cat(parts)
