"""What a prediction leaves open, put back: the posterior plus D C Dᵀ, D = α_s I − B α_t R."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np

from ssdcore._arrays import Array, Constant, Namespace, Shape, namespace_of
from ssdcore.gaussian import Covariance, SpectralCovariance
from ssdcore.operators import LinearOperator
from ssdcore.spectral import Modes, lanczos_function

# A covariance over at most so many elements is decomposed as a dense matrix (a second at most).
_DENSE_MAX = 1024


@dataclass(frozen=True, eq=False, repr=False)
class SumCovariance(Covariance):
    """K + D C D for a symmetric D, applied as it stands; its root by Lanczos iteration.

    Attributes:
        base: K
        clean: C
        sides: (namespace, x) -> D x
    """

    base: Covariance
    clean: Covariance
    sides: Callable[[Namespace, Array], Array]

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.base.shape

    def __repr__(self) -> str:
        return f"Covariance({self.shape}, {self.base!r} + D {self.clean!r} Dᵀ)"

    def _apply(self, x: Array) -> Array:
        xp = namespace_of(x)
        return self.base(x) + self.sides(xp, self.clean(self.sides(xp, x)))

    def apply_power(self, xp: Namespace, x: Array, power: float) -> Array:
        if power == 1:
            return self._apply(x)
        return lanczos_function(xp, self._apply, lambda values: values**power, x, self.shape, "the step's covariance")

    def log_determinant(self) -> float:
        raise ValueError("the log-determinant needs the whole spectrum, and this covariance is too large for it")


@dataclass(frozen=True, eq=False, repr=False)
class BornCovariance(Covariance):
    """P C P, P the projection onto what an operator R destroys: the part of C in the modes that a change of size adds.

    `root` is P C^(1/2), a root that is not symmetric, which costs no decomposition: noise of it has this covariance.

    Attributes:
        modes: the input modes V of R
        destroyed: 1 for modes of V whose singular value is 0, else 0; all that V does not span is destroyed, too
        inner: C
    """

    modes: Modes
    destroyed: Constant
    inner: Covariance

    @staticmethod
    def of(clean: Covariance, operator: LinearOperator) -> Covariance:
        """P C P; C itself where it has been taken already, and zero where R destroys nothing."""
        decomposition = operator.decomposition()
        if decomposition is None:
            raise ValueError(
                f"second moments of a multistep step need the singular vectors of {operator}, which is too large for a "
                "decomposition; leave them out, or take an operator with structure (Separable, Blur, a smaller Matrix)"
            )
        destroyed = (decomposition.singular_values == 0).astype(np.float64)
        if decomposition.input.complete and not destroyed.any():
            return Covariance.isotropic(clean.shape, 0.0)
        if isinstance(clean, BornCovariance) and clean.modes == decomposition.input:
            return clean
        return BornCovariance(decomposition.input, Constant(destroyed), clean)

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.modes.shape

    def __repr__(self) -> str:
        return f"Covariance({self.shape}, {self.inner!r} in the modes that are born)"

    def _project(self, xp: Namespace, x: Array) -> Array:
        return self.modes.scale(xp, x, self.destroyed.like(xp, x), 1.0)

    def precompute(self, power: float) -> None:
        self.inner.precompute(power)

    def apply_power(self, xp: Namespace, x: Array, power: float) -> Array:
        inner = self._project(xp, x) if power == 1 else x
        return self._project(xp, self.inner.apply_power(xp, inner, power))

    def added_to(self, base: Covariance, scale: float) -> Covariance | None:
        """base + scale · P C P as one of these, where base is a variance in the born modes alone; else None."""
        if not (isinstance(base, SpectralCovariance) and isinstance(self.inner, SpectralCovariance)):
            return None
        if base.modes != self.modes or not np.array_equal(base.values, base.rest * self.destroyed.value):
            return None
        return BornCovariance(self.modes, self.destroyed, self.inner.affine(scale, base.rest))

    def held_bytes(self) -> int:
        return self.inner.held_bytes()

    def key(self) -> Hashable:
        return self.modes, self.destroyed, self.inner

    def log_determinant(self) -> float:
        return -math.inf


def widened(
    base: Covariance,
    operator: LinearOperator,
    alpha_s: float,
    gain: Callable[[np.ndarray], np.ndarray],
    clean: Covariance,
) -> Covariance:
    """K + D C Dᵀ.

    Args:
        base: K, the posterior's covariance
        operator: R_{s→t}, unscaled
        alpha_s: D on everything that R destroys
        gain: the singular values r of R -> D in its input modes, α_s − α_t b r
        clean: C, over operator.in_shape
    """
    if isinstance(clean, BornCovariance) and (total := clean.added_to(base, alpha_s**2)) is not None:
        return total
    decomposition = operator.decomposition()
    if decomposition is None:
        # −α_t b r at r = 1; at eta = 1, which alone goes without singular vectors, it grows as r²
        weight = float(gain(np.ones(1))[0]) - alpha_s

        def through(xp: Namespace, x: Array) -> Array:
            return alpha_s * x + weight * operator.T(operator(x))

        return SumCovariance(base, clean, through)
    kept = gain(decomposition.singular_values)
    modes = decomposition.input
    if isinstance(base, SpectralCovariance) and isinstance(clean, SpectralCovariance):
        if not modes.factors:  # R keeps everything alike: D is a number
            number, variance = float(kept.reshape(-1)[0]), float(base.values.reshape(-1)[0])
            return clean.affine(number**2, variance)
        own, added = base.in_modes(modes), clean.in_modes(modes)
        if own is not None and added is not None:
            return SpectralCovariance(modes, own[0] + kept**2 * added[0], own[1] + alpha_s**2 * added[1])
    held = Constant(kept)

    def spread(xp: Namespace, x: Array) -> Array:
        return modes.scale(xp, x, held.like(xp, x), alpha_s)

    summed = SumCovariance(base, clean, spread)
    if summed.size > _DENSE_MAX:
        return summed
    matrix = summed.as_matrix()
    return Covariance.dense((matrix + matrix.T) / 2, summed.shape)
