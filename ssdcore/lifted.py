"""The posterior of a step that wins back a larger state, drawn with one Rᵀ for mean and noise together.

With M = (α_t/α_s) R, ρ = (σ_s/σ_t)² and h(λ) = 1/(1 + √(1 − ρ λ)), the symmetric root of the covariance is

::

    σ_s (I − ρ MᵀM)^(1/2) = σ_s (I − ρ Mᵀ h(MMᵀ) M),

since 1 − √(1 − ρλ) = ρλ h(λ). The spectral work is then on the small side, where R ends, and a draw is

::

    x_s = α_s c + σ_s z + ρ Mᵀ [x_t − α_t R c − σ_s h(MMᵀ) M z].

It is the draw that the root of the dense covariance gives for the same noise z, to rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ssdcore._arrays import Array, Constant, Namespace, Shape, add_to, cast, full_precision, real_namespace
from ssdcore.operators import LinearOperator
from ssdcore.spectral import Decomposition

_SMALL = 64  # up to this length of an axis, dense products with its modes are the quickest way


@dataclass(frozen=True, eq=False)
class Lift:
    """The numbers of one step t → s.

    Attributes:
        operator: R, with fewer elements on its output side and a known decomposition
        sigma: σ_s
        gain: ρ α_t/α_s: what Rᵀ is multiplied with
        weights: −σ_s (α_t/α_s) h(λ), for the coefficients of R z in the output modes of R, or times ± r for those of
            z in the input modes where that takes less work than R and its output modes
    """

    operator: LinearOperator
    decomposition: Decomposition
    small: bool
    sigma: float
    gain: float
    weights: Constant

    @staticmethod
    def of(operator: LinearOperator, sigma: float, ratio: float, rho: float) -> Lift | None:
        """The step's numbers; None where R does not shrink the state or has no decomposition."""
        if math.prod(operator.out_shape) >= math.prod(operator.in_shape):
            return None
        decomposition = operator.decomposition()
        if decomposition is None:
            return None
        kept = np.maximum(1 - rho * (ratio * decomposition.singular_values) ** 2, 0.0)
        weights = -sigma * ratio / (1 + np.sqrt(kept))
        small = max(decomposition.input.grid) <= _SMALL
        if small:
            weights = weights * decomposition.sign * decomposition.singular_values
        return Lift(operator, decomposition, small, sigma, rho * ratio, Constant(weights))

    def mean(self, xp: Namespace, centre: Array, innovation: Array) -> Array:
        """α_s c + ρ Mᵀ (x_t − α_t R c), `centre` being α_s c."""
        return self.operator.add_adjoint(xp, centre, self.gain, innovation)

    def draw(self, xp: Namespace, centre: Array, innovation: Array, noise: Array) -> Array:
        """The mean and the symmetric root of the covariance times `noise`."""
        modes, weights = self.decomposition.output, self.weights.like(xp, noise)
        if self.small:
            coefficients = self.decomposition.input.analyse(xp, noise)
        else:
            coefficients = modes.analyse(xp, self.operator.apply(xp, noise))
        lowered = modes.synthesise(xp, weights * coefficients, innovation)
        return add_to(xp, self.operator.add_adjoint(xp, centre, self.gain, lowered), self.sigma, noise)


@dataclass(frozen=True, eq=False)
class LiftedLaw:
    """Mean and draws of the posterior for one prediction: what `Gaussian.of_draws` takes.

    Attributes:
        centre: α_s c, ``(*batch, *in_shape)``
        innovation: x_t − α_t R c, ``(*batch, *out_shape)``, of the same dtype
        like: an array of the dtype, namespace and device of the results
    """

    lift: Lift
    centre: Array
    innovation: Array
    like: Array

    @property
    def shape(self) -> Shape:
        ins, outs = self.lift.operator.in_shape, self.lift.operator.out_shape
        batches = (self.centre.shape[: -len(ins)], self.innovation.shape[: -len(outs)])
        if batches[0] != batches[1]:
            batches = (np.broadcast_shapes(*map(tuple, batches)), ())
        return (*batches[0], *ins)

    def mean(self) -> Array:
        xp = real_namespace(self.like, "posterior")
        with full_precision(self.like):
            mean = self.lift.mean(xp, self.centre, self.innovation)
            return cast(xp, mean, self.like.dtype)

    def draw(self, noise: Array) -> Array:
        xp = real_namespace(self.like, "posterior")
        with full_precision(self.like):
            noise = cast(xp, noise, self.centre.dtype)
            drawn = self.lift.draw(xp, self.centre, self.innovation, noise)
            return cast(xp, drawn, self.like.dtype)
