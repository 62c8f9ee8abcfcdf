"""The residual spectra of a network, measured on images."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

import array_api_compat
import numpy as np
import torch
from torch import Tensor

import ssdcore as ssd
from ssdcore.process import Path
from ssdcore_torch.denoisers import Predictor, level_sizes_of
from ssdcore_torch.randomness import Purpose, keyed
from ssdcore_torch.sampling._residuals import ResidualSpectra, Size, first_of_size
from ssdcore_torch.sampling._walk import Walk, evaluating

TIMES_A_PATH = 16


def measured_times(proc: ssd.LinearDiffusion, path: Path, most: int = TIMES_A_PATH) -> np.ndarray:
    """At most so many times of a path, its first and last among them, even in the log signal-to-noise ratio."""
    times = np.array(path.times)
    ratio = np.array([proc.alpha(t) / proc.sigma(t) for t in path.times])
    log_snr = np.minimum.accumulate(2 * np.log(np.maximum(ratio, 1e-8)))
    goals = np.linspace(log_snr[0], log_snr[-1], most)
    wanted = np.interp(-goals, -log_snr, np.arange(len(times))).round().astype(int)
    return times[np.unique([0, *wanted, len(times) - 1])]


def measure_residuals(
    net: Predictor,
    proc: ssd.LinearDiffusion,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    seed: int = 0,
    *,
    clip: bool = True,
    times_a_path: int = TIMES_A_PATH,
) -> ResidualSpectra:
    """The residual spectra of a network on clean images.

    Args:
        net: as for `generate`
        batches: (images, labels): ``(b, channels, *full size)`` in [−1, 1] on the network's device, with (b,) labels
            or None. Images that were not trained on are best, as a network errs less on those it knows
        seed: of the noise in the states
        clip: clip predictions to [−1, 1], as sampling will
        times_a_path: at most so many

    Raises:
        ValueError: For no images, and for predictions that are not finite.
    """
    sizes, times = level_sizes_of(net, proc), [measured_times(proc, path, times_a_path) for path in proc.paths]
    # by path and time: Σ over images of the products of any two channels, mode by mode
    sums: dict[tuple[int, int], Tensor] = {}
    count = 0
    with evaluating(net) as threads:
        for images, labels in batches:
            walk = Walk(net, sizes, proc, clip=clip, labels=labels, threads=threads)
            for number, path in enumerate(proc.paths):
                target = proc.degrade(images, first_of_size(proc, path.times[0] - 1))
                for t in times[number].tolist():
                    products = _products(walk, images, target, t, keyed(Purpose.RESIDUALS, seed, t, count))
                    sums[number, t] = products if (number, t) not in sums else sums[number, t] + products
            count += len(images)
    if not count:
        raise ValueError("measure_residuals: expected images, got none")
    spectra = {key: total.cpu().numpy() / count for key, total in sums.items()}
    if not all(np.isfinite(each).all() for each in spectra.values()):
        raise ValueError("measure_residuals: the network's predictions are not finite")
    turn = _channel_modes(spectra)
    power = {key: np.einsum("ca,cd...,da->a...", turn, each, turn).clip(0) for key, each in spectra.items()}
    held = tuple(
        (each, np.stack([power[number, int(t)] for t in each]).astype(np.float32)) for number, each in enumerate(times)
    )
    return ResidualSpectra(proc, turn, held)


def _products(walk: Walk, images: Tensor, target: Tensor, t: int, random: np.random.Generator) -> Tensor:
    """(channels, channels, *target shape) float64: what the residuals at t add to the sums."""
    proc = walk.chain
    shape = (*images.shape[:2], *proc.shape(t))
    noise = torch.from_numpy(random.standard_normal(shape, dtype=np.float32)).to(images)
    error = (target - walk.predict(proc.add_noise(images, noise, t), t)).double()
    modes = _cosine_modes(tuple(target.shape[2:]))
    z = modes.analyse(array_api_compat.array_namespace(error), error)
    return torch.einsum("bc...,bd...->cd...", z, z)


@functools.cache
def _cosine_modes(shape: Size) -> ssd.Modes:
    return ssd.Covariance.cosine(np.ones(shape)).modes  # type: ignore[attr-defined]


def _channel_modes(spectra: Mapping[tuple[int, int], np.ndarray]) -> np.ndarray:
    """(channels, channels): the combinations of channels that residuals at all times together are uncorrelated in."""
    total = 0.0
    for each in spectra.values():
        joint = each.reshape(*each.shape[:2], -1).sum(-1)
        total = total + joint / max(float(np.trace(joint)), np.finfo(np.float64).tiny)
    _, vectors = np.linalg.eigh(total)
    largest = np.abs(vectors).argmax(0)
    return np.asarray(vectors * np.sign(vectors[largest, np.arange(len(vectors))]))
