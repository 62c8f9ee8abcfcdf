"""How much a noisy, small state tells: the paper's signal share, and mutual information of the Gaussian model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ssdcore._arrays import Shape, flushing, known_array, positive_int, real_number
from ssdcore.operators.linear_map import positive_shape
from ssdcore.oracle._blocks import Structure
from ssdcore.oracle._law import as_covariance
from ssdcore.oracle._propagation import Stage
from ssdcore.process import LinearDiffusion
from ssdcore.process.diffusion import level_shapes
from ssdcore.schedules import NoiseSchedule, ResolutionSchedule

_erf = np.frompyfunc(math.erf, 1, 1)


@flushing
def signal_share(images: Any, noise: NoiseSchedule) -> np.ndarray:
    """Info(t) of the paper's information analysis for t = 1 … T, (T,): the share of signal-dominated pixels,

    ::

        P(|α_t x_0| >= |σ_t ε|) = E[2Φ(|x_0| α_t/σ_t) − 1],   ε ~ N(0, 1),

    over all pixels of `images` (any shape; floating point as they are, uint8 as byte/127.5 − 1). Exact: each distinct
    magnitude is weighed by how often it occurs, so bytes are quick and a million different floats are not.
    """
    array = known_array(images, "signal_share")
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"signal_share: expected floating-point or uint8 images, got dtype {array.dtype}")
    if array.size == 0 or (array.dtype != np.uint8 and not np.isfinite(array).all()):
        raise ValueError("signal_share: expected images with finite values, got none or some that are not finite")
    values, counts = np.unique(array, return_counts=True)
    magnitudes = np.abs(values / 127.5 - 1.0 if array.dtype == np.uint8 else values.astype(np.float64))
    ratio = noise.alpha[1:] / noise.sigma[1:]
    # 2Φ(z) − 1 = erf(z/√2)
    shares = [float(_erf(magnitudes * (r / math.sqrt(2))).astype(np.float64) @ counts) for r in ratio]
    return np.array(shares) / array.size


def pixel_share(proc: LinearDiffusion) -> np.ndarray:
    """Info(r) of the paper's information analysis for t = 1 … T, (T,): the share of pixels x_t keeps, r² in images."""
    full = math.prod(proc.shape(0))
    return np.array([math.prod(proc.shape(t)) / full for t in range(1, proc.steps + 1)])


@flushing
def mutual_information(proc: LinearDiffusion, covariance: Any) -> np.ndarray:
    """I(x_0; x_t) = ½ Σ log(1 + α_t² λ/σ_t²) in nats for t = 1 … T, (T,), one channel x_0 ~ N(·, C).

    λ are the eigenvalues of R_{0→t} C R_{0→t}ᵀ.  covariance: (n, n) over the pixels in C order, or a `Covariance`.
    """
    structure = Structure.of(proc, as_covariance(covariance, proc.shape(0)))
    spectra: dict[int, np.ndarray] = {}
    information = np.empty(proc.steps)
    for t in range(1, proc.steps + 1):
        stage = structure.stage_of[t]
        if stage not in spectra:
            data = [structure.data_block(group) for group in structure.groups]
            spectra[stage] = np.concatenate([s.eigenvalues.reshape(-1) for s in Stage.all(structure, stage, data)])
        information[t - 1] = 0.5 * np.log1p((proc.alpha(t) / proc.sigma(t)) ** 2 * spectra[stage]).sum()
    return information


@flushing
def level_information(
    shape: Shape | int,
    noise: NoiseSchedule,
    covariance: Any,
    levels: int,
    matched: bool = True,
    factor: float = 2,
    kernel: str = "bilinear",
    sizes: Sequence[Shape | int] | None = None,
) -> np.ndarray:
    """I(x_0; x_t) in nats, (levels, T), of the state that `LinearDiffusion.resize` would have at time t on each level.

    Row k − 1 minus row k is what the change to level k loses if it happens at t; it is never negative.
    """
    base, levels = positive_shape(shape, "level_information"), positive_int(levels, "level_information: levels")
    shapes, rows = level_shapes(base, levels, factor, sizes), []
    for k in range(levels):
        # every change before the first step: the process that has been on level k all along
        at_once = ResolutionSchedule.thresholds([1] * k)
        proc = LinearDiffusion.resize(base, noise, at_once, matched, kernel=kernel, sizes=shapes[: k + 1])
        rows.append(mutual_information(proc, covariance))
    return np.stack(rows)


def free_starts(information: np.ndarray, nats: float) -> tuple[int | None, ...]:
    """For each level k = 1, 2, … the first time from which changing to it loses at most `nats`; None if never.

    Args:
        information: (levels, T) nats of one channel, from `level_information`
    """
    table, nats = known_array(information, "free_starts"), real_number(nats, "free_starts: nats")
    if table.ndim != 2 or not np.isfinite(table).all() or not nats >= 0:
        raise ValueError(
            "free_starts: expected information of (levels, T) finite nats and nats of at least 0, got the shape "
            f"{table.shape} and {nats}"
        )
    starts: list[int | None] = []
    for high, low in pairwise(table):
        costly = np.flatnonzero(high - low > nats)
        first = int(costly[-1]) + 2 if costly.size else 1
        starts.append(first if first <= table.shape[1] else None)
    return tuple(starts)
