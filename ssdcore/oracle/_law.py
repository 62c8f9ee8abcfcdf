"""The exact output law of a sampler on Gaussian data."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssdcore._arrays import Constant, flushing, known_array
from ssdcore.gaussian import Covariance, Gaussian, SpectralCovariance
from ssdcore.oracle._blocks import Coordinates, Structure
from ssdcore.oracle._propagation import BlockLaw, Factors, Moments, diagonals, factor
from ssdcore.process import LinearDiffusion
from ssdcore.sampling import Sampler
from ssdcore.spectral import Modes


@flushing
def sampler_error(
    proc: LinearDiffusion,
    covariance: Any,
    times: Sequence[int] | None = None,
    eta: float = 1.0,
    mean: Any = None,
    *,
    order: int = 1,
    prior: Gaussian | None = None,
    second_moments: bool = False,
) -> float:
    """Exact squared 2-Wasserstein (Fréchet) distance between the data N(m, C) and what the sampler draws.

    ::

        ‖m − m_P‖² + tr C + tr P − 2 tr (C^½ P C^½)^½, summed over pixels,

    for the sampler of `sampler_law`, whose arguments these are. There is no network, no training and no Monte-Carlo
    noise in it: with the optimal denoiser this is the error of discretisation alone. At one size it falls to 0 with
    the number of steps. A change of size leaves a floor that no number removes: the modes that it adds are drawn around
    their prediction with noise of σ_s² alone, without the variance α_s² Var(x_0 | x_t) that the prediction leaves open.
    It is small where the new modes carry little information at the time of the change (`level_information`);
    ``second_moments=True`` removes it.

    >>> noise, levels = ssd.NoiseSchedule.linear(1000), ssd.ResolutionSchedule.equal(1000, levels=3)
    >>> spectrum = (1 + np.hypot(*np.indices((16, 16)))) ** -2.5  # variance of each cosine mode of the data
    >>> for matched in (True, False):
    ...     proc = ssd.LinearDiffusion.resize((16, 16), noise, levels, matched=matched)
    ...     error = ssd.oracle.sampler_error(proc, ssd.Covariance.cosine(spectrum), times=range(20, 1001, 20))
    ...     print(f"{error:.4f}")
    0.1636
    0.1696
    """
    law = sampler_law(proc, covariance, times, eta, mean, order=order, prior=prior, second_moments=second_moments)
    return law.frechet()


@flushing
def sampler_law(
    proc: LinearDiffusion,
    covariance: Any,
    times: Sequence[int] | None = None,
    eta: float = 1.0,
    mean: Any = None,
    *,
    order: int = 1,
    prior: Gaussian | None = None,
    second_moments: bool = False,
) -> SamplerLaw:
    """The exact law N(m_P, P) of the sampler's x_0 for data x_0 ~ N(m, C) and the optimal denoiser, which is linear::

        x̂_s(x_t) = E[R_s x_0 | x_t] = R_s m + α_t R_s C R_tᵀ (α_t² R_t C R_tᵀ + σ_t² I)⁻¹ (x_t − α_t R_t m).

    Every step x_t → x_s draws from ``proc.posterior(x_t, x̂_s, s, t, eta)``, so each is affine with Gaussian noise.

    Computed block by block in coordinates that the covariance and the operators share, in float64. A cosine covariance
    is much faster than a dense one: within a level everything is diagonal, and resizes of even sizes split into the
    reflection parities. Raises ValueError for a covariance that is not positive semi-definite or of another size, and
    for times, eta or order outside their range.

    Args:
        covariance: C of one channel over shape(0): (n, n) over the pixels in C order, or a `Covariance` (cosine,
            dense, …)
        times: increasing times of 1 … T that the chain visits before 0; None: all
        eta: of the posterior: 1 ancestral, 0 deterministic where the size is kept
        mean: m, ``(*shape(0))`` or flattened; None: zero. It matters only with a `prior` that does not know it.
        order: 1, or 2 for the multistep sampler of `ssdcore.multistep`, which is for eta = 0
        prior: law that x_T is drawn from, over the shape at the last of the times. None: the exact N(α_T R_T m,
            α_T² R_T C R_Tᵀ + σ_T² I), which `LinearDiffusion.prior` fits to data; ``proc.prior()`` is N(0, σ_T² I).
        second_moments: True: steps by ``posterior(..., clean_covariance=Cov[R_s x_0 | x_t])``, which are the true
            ones for this data: exact at any number of steps, but for the last, which returns the prediction. At order 2
            the modes that a change adds get their part of it (`ssdcore.multistep.born_covariance`).
    """
    chain = proc if times is None else proc.respace(times)
    data = as_covariance(covariance, chain.shape(0))
    sampler = Sampler(float(eta), order)
    centre = _centre(mean, chain.shape(0))
    if prior is not None and (tuple(prior.mean.shape) != chain.shape(chain.steps)):
        raise ValueError(
            f"prior: expected a Gaussian over the shape {chain.shape(chain.steps)} at the last time "
            f"{chain.times[-1]}, got a mean shaped {tuple(prior.mean.shape)}"
        )
    structure = Structure.of(chain, data, None if prior is None else prior.covariance)
    propagation = Moments if sampler.order == 1 else Factors
    law, blocks = propagation(chain, structure, sampler.eta, second_moments).law(centre, prior)
    return SamplerLaw(law, structure.coordinates[0], blocks)


def as_covariance(covariance: Any, shape: tuple[int, ...]) -> Covariance:
    """A `Covariance` over `shape`, from one or from a matrix over its elements in C order; else a ValueError."""
    if not isinstance(covariance, Covariance):
        matrix = known_array(covariance, "covariance")
        n = math.prod(shape)
        if matrix.shape != (n, n):
            raise ValueError(
                f"covariance: expected ({n}, {n}) over the {n} pixels of {shape}, one channel, got {matrix.shape}"
            )
        return Covariance.dense(matrix, shape)
    if covariance.shape != shape:
        raise ValueError(f"covariance: expected one over the trailing axes {shape}, got one over {covariance.shape}")
    return covariance


def _centre(mean: Any, shape: tuple[int, ...]) -> np.ndarray:
    if mean is None:
        return np.zeros(shape)
    centre = known_array(mean, "mean").astype(np.float64)
    if centre.shape not in (shape, (math.prod(shape),)):
        raise ValueError(f"mean: expected the shape {shape} of one channel, or it flattened, got {centre.shape}")
    if not np.isfinite(centre).all():
        raise ValueError("mean: every element must be finite")
    return centre.reshape(shape)


@dataclass(frozen=True, eq=False)
class SamplerLaw:
    """Exact law of a sampler's output on Gaussian data, from `sampler_law`: compare it with the data, or read it.

    Attributes:
        mean: mean of the output, shaped like an image
    """

    mean: np.ndarray
    _coordinates: Coordinates
    _blocks: tuple[BlockLaw, ...]

    def frechet(self) -> float:
        """Squared 2-Wasserstein distance to the data, summed over pixels."""
        total = 0.0
        for block in self._blocks:
            root = np.sqrt(block.data)
            total += float((block.shift**2).sum())
            if block.covariance.ndim == 2:
                total += float(((root - np.sqrt(np.maximum(block.covariance, 0.0))) ** 2).sum())
                continue
            trace = float(np.trace(block.covariance, axis1=1, axis2=2).sum())
            # The singular values of C^½ F with P = F Fᵀ keep the precision that (C^½ P C^½)^½ would lose.
            overlap = np.linalg.svd(root[:, :, None] * factor(block.covariance), compute_uv=False)
            total += float(block.data.sum()) + trace - 2 * float(overlap.sum())
        return max(total, 0.0)

    def kl(self) -> float:
        """KL(data ‖ output) in nats, of one channel: what a likelihood under the sampler loses.

        Raises:
            ValueError: Where the data covariance is singular, for then there is no density.
        """
        total = 0.0
        for block in self._blocks:
            if (block.data <= 0).any():
                raise ValueError(
                    "kl: the data covariance is singular, so there is no density; compare with frechet() instead"
                )
            dense = block.covariance if block.covariance.ndim == 3 else diagonals(block.covariance)
            lower = np.linalg.cholesky(dense)
            ratio = np.linalg.solve(lower, diagonals(np.sqrt(block.data)))
            shift = np.linalg.solve(lower, block.shift[..., None])
            logs = 2 * np.log(np.diagonal(lower, axis1=1, axis2=2)).sum() - np.log(block.data).sum()
            total += float((ratio**2).sum() - block.data.size + (shift**2).sum() + logs) / 2
        return total

    @functools.cached_property
    def covariance(self) -> Covariance:
        """Covariance P of the output (dense unless it is diagonal in the data's modes)."""
        coordinates, size = self._coordinates, self._coordinates.size
        if coordinates.factors and all(b.vectors is None and b.covariance.ndim == 2 for b in self._blocks):
            values = np.empty(size)
            for block in self._blocks:
                values[block.index] = block.covariance
            shape = coordinates.shape
            factors = tuple(Constant(factor) for factor in coordinates.factors)
            return SpectralCovariance(Modes(shape, shape, factors), values.reshape(shape), 0.0)
        matrix = np.zeros((size, size))
        for block in self._blocks:
            dense = block.covariance if block.covariance.ndim == 3 else diagonals(block.covariance)
            if block.vectors is not None:
                dense = block.vectors @ dense @ block.vectors.swapaxes(1, 2)
            matrix[block.index[:, :, None], block.index[:, None, :]] = dense
        half = coordinates.synthesise(matrix).reshape(size, size)
        pixels = coordinates.synthesise(np.ascontiguousarray(half.T)).reshape(size, size)
        return Covariance.dense((pixels + pixels.T) / 2, coordinates.shape)

    @property
    def gaussian(self) -> Gaussian:
        """The law as a `Gaussian` over one channel."""
        return Gaussian(self.mean, self.covariance)
