"""What a prediction leaves open, put back: the posterior plus D C Dᵀ, D = α_s I − B α_t R."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ssdcore._arrays import Array, Constant, Namespace, Shape, namespace_of
from ssdcore.gaussian import Covariance, SpectralCovariance
from ssdcore.operators import LinearOperator
from ssdcore.spectral import lanczos_function

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

    def as_matrix(self) -> np.ndarray:
        n = math.prod(self.shape)
        if n > 4096:
            raise ValueError(f"Covariance: a dense matrix over {n} elements is too large to build")
        basis = np.eye(n).reshape(n, *self.shape)
        return np.ascontiguousarray(self._apply(basis).reshape(n, n).T)


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

    total = SumCovariance(base, clean, spread)
    if total.size > _DENSE_MAX:
        return total
    matrix = total.as_matrix()
    return Covariance.dense((matrix + matrix.T) / 2, total.shape)
