"""Images to noise and back: the deterministic sampler run upwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import ssdcore as ssd
from ssdcore.sampling import Sampler
from ssdcore_torch.denoisers import Predictor, device_of, level_sizes_of
from ssdcore_torch.sampling._labels import Labels, check_labels
from ssdcore_torch.sampling._placement import Placement, chain_of
from ssdcore_torch.sampling._walk import (
    Noise,
    NoiseSource,
    Walk,
    evaluating,
    fill_of,
)

_MAX_ITERATIONS = 100


@dataclass(frozen=True)
class Encoding:
    """What `encode` makes of images, and `decode` takes back.

    Attributes:
        state: ``(n, channels, *smallest size)`` x_T
        details: for each change of size, from the smallest up: ``(n, channels, *larger size)``, the standard normal
            noise that puts back the modes which the change destroys, zero on the others. Empty if no size changes.
        times: the times of the chain
    """

    state: Tensor
    details: tuple[Tensor, ...]
    times: tuple[int, ...]


def encode(
    net: Predictor,
    proc: ssd.LinearDiffusion,
    images: Tensor,
    steps: int = 100,
    seed: int = 0,
    *,
    placement: Placement = "log_snr",
    times: Sequence[int] | None = None,
    labels: Labels | None = None,
    batch_size: int = 64,
    tolerance: float = 1e-4,
) -> Encoding:
    """The x_T from which the sampler at eta = 0 makes these images.

    The first state is drawn, x_{t_1} ~ q(x_{t_1} | x_0), since the last step of sampling (which returns a prediction)
    has no inverse: what lies below the noise level σ of the first time cannot be told from noise, and `decode` returns
    E[x_0 | x_{t_1}] in its place. Each further step s → t solves the sampler's own step for x_t,

    ::

        x_s = α_s x̂_s(x_t) + B (x_t − α_t R x̂_s(x_t)),   B = (σ_s/σ_t) V Uᵀ,   R = U diag(r) Vᵀ,

    by iterating x_t ← (1 − ω) x_t + ω [α_t R x̂_s(x_t) + (σ_t/σ_s) U Vᵀ (x_s − α_s x̂_s(x_t))] until no element of the
    two sides differs by more than `tolerance`. With ω = 2/(1 + q), q = σ_t/(σ_s‖M‖) >= 1, the error shrinks by
    (q − 1)/(q + 1) a round within a size, if the network is a posterior mean whose slope α_t ∂x̂/∂x_t lies between 0
    and 1 (as on Gaussian data). Within a size that determines x_t from x_s. Where the size changes, the modes that R
    destroys are not in x_t; they are kept beside it, as the noise of the posterior that `decode` will need there. So

    ::

        ‖decode(encode(x_0)) − x_0‖_rms ≲ σ_{t_1}/α_{t_1} + what the iteration's tolerance grows to on the way down.

    A network's own error at the first time counts as noise there, σ_{t_1} being the unit. Where it is larger than that
    (small or briefly trained networks), the encoding is off the law of x_T by as much: start later then, with
    ``times=sampling_times(proc, steps, "log_snr", first=…)`` at a σ of about that error.

    Image i is encoded by itself, whatever the batch: images[i] with its label and the noise of (seed, i).

    ValueError where α_T = 0.

    Args:
        images: ``(n, channels, *full size)`` floating point, of the range that the network was trained for
        placement, steps, times, labels, batch_size: as for `generate`
        tolerance: in units of the state (whose noise is about 1 at T); at float32 not below 1e-5

    Raises:
        ConvergenceError: Where the iteration does not converge in 100 rounds: the network is then steeper than
            that, or the step long (q above 20), and more steps help.
    """
    chain = chain_of(proc, steps, placement, times)
    if images.ndim != 2 + len(proc.shape(0)) or not images.is_floating_point() or len(images) == 0:
        raise ValueError(
            f"images: expected floating-point (n, channels, {', '.join(map(str, proc.shape(0)))}), n >= 1, got "
            f"{images.dtype} of shape {tuple(images.shape)}"
        )
    if batch_size < 1:
        raise ValueError(f"expected batch_size >= 1, got {batch_size}")
    classes = check_labels(net, labels, len(images))
    sizes, device = level_sizes_of(net, proc), device_of(net)
    parts = []
    with evaluating(net) as threads:
        for first in range(0, len(images), batch_size):
            part = images[first : first + batch_size].to(device)
            some = None if classes is None else classes[first : first + batch_size].to(device)
            draw = Noise(seed, range(first, first + len(part)), part.shape[1], part.dtype, device)
            fill = fill_of(net, batch_size)
            walk = Walk(net, sizes, chain, Sampler(eta=0.0), clip=False, labels=some, fill=fill, threads=threads)
            parts.append(_up(walk, part, draw, tolerance))
    states, details = zip(*parts)
    return Encoding(torch.cat(states), tuple(torch.cat(same) for same in zip(*details)), chain.times)


def _up(walk: Walk, images: Tensor, draw: NoiseSource, tolerance: float) -> tuple[Tensor, list[Tensor]]:
    """x_T and the details of one batch."""
    chain = walk.chain
    details: list[Tensor] = []
    x = chain.marginal(images, 1).sample(draw(chain.shape(1)))
    for k in range(2, chain.steps + 1):
        above = _solve(walk, x, chain.clean(images, k - 1), k, tolerance)
        if chain.shape(k) != chain.shape(k - 1):
            mean = chain.posterior(above, walk.given(walk.predict(above, k), k), k - 1, k, eta=0.0).mean
            details.insert(0, (x - mean) / chain.sigma(k - 1))
        x = above
    return x, details


def _solve(walk: Walk, x: Tensor, clean: Tensor, k: int, tolerance: float) -> Tensor:
    """The state at step k that the deterministic step takes to x at step k − 1; `clean` guesses the prediction."""
    chain, s, t = walk.chain, k - 1, k
    operator = chain.degradation(s, t)
    stretch = chain.sigma(t) / chain.sigma(s)
    norm = operator.norm()
    if norm == 0:
        raise ValueError(
            f"encode: no signal is left at t = {chain.times[k - 1]} (α = 0), so no state there stands for an image; "
            "take a process whose last α is positive"
        )
    relaxation = 2 / (1 + stretch / norm)

    def rotated(z: Tensor) -> Tensor:
        """U Vᵀ z = (M Mᵀ)^(−1/2) M z."""
        return operator.T.gram_function(lambda v: torch.where(v > 0, v, torch.inf).rsqrt(), operator(z))

    def state(prediction: Tensor) -> Tensor:
        z = chain.alpha(s) * prediction
        return operator(z) + stretch * rotated(x - z)

    above = state(clean)
    moving = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for _ in range(_MAX_ITERATIONS):
        change = state(walk.given(walk.predict(above, k), k)) - above
        # A sample that has settled stays as it is, so that its encoding does not hang on the batch it shares.
        above = torch.where(moving.view(-1, *[1] * (x.ndim - 1)), above + relaxation * change, above)
        moving = moving & ~(change.flatten(1).abs().amax(1) <= tolerance)
        if not moving.any():
            return above
    raise ssd.ConvergenceError(
        f"encode: {int(moving.sum())} of {len(x)} images still move by {float(change.abs().max()):.2g} after "
        f"{_MAX_ITERATIONS} rounds at t = {chain.times[k - 1]}, above the tolerance {tolerance:g}; take more steps"
    )


def decode(
    net: Predictor,
    proc: ssd.LinearDiffusion,
    encoding: Encoding,
    seed: int | None = None,
    *,
    labels: Labels | None = None,
    batch_size: int = 64,
) -> Tensor:
    """Images ``(n, channels, *full size)`` from their `Encoding`, by the sampler at eta = 0 and the encoding's times.

    Args:
        seed: None: the details that the encoding keeps, which gives the images back. A number: what the changes of
            size destroy is drawn afresh from its exact conditional law given the state that is left, image i by (seed,
            i): other images with the same coarse content. Without changes of size there is nothing to draw.
        labels, batch_size: as for `generate`: the labels given to `encode` for the images themselves, or others
    """
    if batch_size < 1:
        raise ValueError(f"expected batch_size >= 1, got {batch_size}")
    chain, sizes, device = proc.respace(encoding.times), level_sizes_of(net, proc), device_of(net)
    classes = check_labels(net, labels, len(encoding.state))
    parts = []
    with evaluating(net) as threads:
        for first in range(0, len(encoding.state), batch_size):
            part = slice(first, first + batch_size)
            x = encoding.state[part].to(device)
            if seed is None:
                draw = _held([detail[part].to(x) for detail in encoding.details])
            else:
                draw = Noise(seed, range(first, first + len(x)), x.shape[1], x.dtype, device)
            some = None if classes is None else classes[part].to(device)
            fill = fill_of(net, batch_size)
            parts.append(
                Walk(net, sizes, chain, Sampler(eta=0.0), clip=False, labels=some, fill=fill, threads=threads).down(
                    x, draw
                )
            )
    return torch.cat(parts)


def _held(details: Sequence[Tensor]) -> NoiseSource:
    """The details of the change to a size; the other steps of that size ask for no noise."""
    kept = {tuple(detail.shape[2:]): detail for detail in details}
    return lambda shape: kept[shape]


def interpolate(
    net: Predictor,
    proc: ssd.LinearDiffusion,
    first: Tensor,
    second: Tensor,
    weights: Sequence[float] | np.ndarray,
    steps: int = 100,
    seed: int = 0,
    *,
    placement: Placement = "log_snr",
    times: Sequence[int] | None = None,
    prior: ssd.Gaussian | None = None,
    labels: Labels | None = None,
    batch_size: int = 64,
    tolerance: float = 1e-4,
) -> Tensor:
    """Images between `first` (weight 0) and `second` (weight 1): ``(len(weights), n, channels, *full size)``.

    Both are encoded, their noise (x_T less its mean, and the details of every change of size) is interpolated
    spherically, which keeps its length and so its plausibility as noise, and the result is decoded.

    The other arguments are those of `encode`; at the ends the error is its.

    Args:
        first, second: ``(n, channels, *full size)``
        prior: law of x_T, as for `generate`; only its mean matters
        labels: one for all, or n of them, each for both images of its pair
    """
    if first.shape != second.shape:
        raise ValueError(f"expected as many images of one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
    classes = check_labels(net, labels, len(first))
    both = encode(
        net,
        proc,
        torch.cat([first, second]),
        steps,
        seed,
        placement=placement,
        times=times,
        labels=None if classes is None else torch.cat([classes, classes]),
        batch_size=batch_size,
        tolerance=tolerance,
    )
    mean = torch.zeros(()) if prior is None else torch.as_tensor(prior.mean)
    mean = mean.to(both.state)
    a, b = (both.state - mean).chunk(2)
    pairs = [detail.chunk(2) for detail in both.details]
    made = []
    for weight in weights:
        w = float(weight)
        details = tuple(slerp(low, high, w) for low, high in pairs)
        between = Encoding(mean + slerp(a, b, w), details, both.times)
        made.append(decode(net, proc, between, labels=classes, batch_size=batch_size))
    return torch.stack(made)


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """(sin((1−w)Ω) a + sin(wΩ) b)/sin Ω for each image, Ω the angle between a and b; a straight line where Ω is 0 or π.

    Args:
        a, b: (n, …)
    """
    shape = (-1, *[1] * (a.ndim - 1))
    u, v = a.flatten(1), b.flatten(1)
    cosine = torch.nn.functional.cosine_similarity(u, v, eps=torch.finfo(a.dtype).tiny).clamp(-1, 1)
    angle = torch.arccos(cosine)
    sine = torch.sin(angle)
    flat = sine < 1e-4
    safe = torch.where(flat, 1.0, sine)
    of_a = torch.where(flat, 1 - weight, torch.sin((1 - weight) * angle) / safe)
    of_b = torch.where(flat, weight, torch.sin(weight * angle) / safe)
    return of_a.view(shape) * a + of_b.view(shape) * b
