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
from typing import Protocol

import numpy as np

from ssdcore._arrays import (
    Array,
    Constant,
    Namespace,
    Shape,
    add_matmul_axis,
    add_to,
    cast,
    full_precision,
    matmul_axis,
    real_namespace,
)
from ssdcore._planes import Planes
from ssdcore.axes import AxisMatrix
from ssdcore.operators import LinearOperator
from ssdcore.spectral import Decomposition

_MOST = 2**18  # entries of matrices made for one pair of times: two megabytes; reading many more takes what they save


class _Root(Protocol):
    """A way to U diag(weights) Uᵀ R z, with the modes U of R's output."""

    def add(self, xp: Namespace, base: Array, noise: Array) -> Array:
        """`base` + that for z = `noise`, a new array."""

    def held_bytes(self) -> int:
        """About how much memory its numbers come to hold."""


@dataclass(frozen=True, eq=False)
class _ByModes:
    """R, its modes, and back."""

    operator: LinearOperator
    decomposition: Decomposition
    weights: Constant

    def add(self, xp: Namespace, base: Array, noise: Array) -> Array:
        modes = self.decomposition.output
        coefficients = modes.analyse(xp, self.operator.apply(xp, noise))
        return modes.synthesise(xp, self.weights.like(xp, noise) * coefficients, base)

    def held_bytes(self) -> int:
        return 2 * self.weights.value.nbytes


@dataclass(frozen=True, eq=False)
class _ByMatrix:
    """One matrix (m, n), where all axes are taken as one, as a dense operator takes them, or are one."""

    decomposition: Decomposition
    matrix: Constant

    @staticmethod
    def of(decomposition: Decomposition, weights: np.ndarray) -> _ByMatrix | None:
        factors = decomposition.output.factors + decomposition.input.factors
        if len(factors) != 2 or math.prod(f.shape[0] for f in factors) > _MOST:
            return None
        u, v = (factor.value for factor in factors)
        values = decomposition.sign * weights * decomposition.singular_values
        return _ByMatrix(decomposition, Constant((u * values) @ v.T))

    def add(self, xp: Namespace, base: Array, noise: Array) -> Array:
        ins, outs = self.decomposition.input, self.decomposition.output
        matrix = self.matrix.like(xp, noise)
        return outs.off_grid(xp, add_matmul_axis(xp, outs.on_grid(xp, base), 1.0, matrix, ins.on_grid(xp, noise), -1))

    def held_bytes(self) -> int:
        return 2 * self.matrix.value.nbytes


@dataclass(frozen=True, eq=False)
class _ByBlocks:
    """Of a separable R, a matrix (m, m) along the last axis but one, U diag Uᵀ, for each mode of the others.

    Along that axis the modes would take two products with a pass between, and here it is one.

    Attributes:
        axis: R along that axis
        down: Uᵀ R along each other axis (k, n), the last one last
        up: U of each (m, k)
        blocks: ``(k of the last axis, k of all before, m, m)``; without the second where none is before
    """

    axis: AxisMatrix
    down: tuple[Constant, ...]
    up: tuple[Constant, ...]
    blocks: Constant

    @staticmethod
    def of(operator: LinearOperator, decomposition: Decomposition, weights: np.ndarray) -> _ByBlocks | None:
        axes, modes = operator.axis_matrices(), decomposition.output
        if axes is None or len(axes) < 2 or len(modes.factors) != len(axes):
            return None
        counts, m = modes.counts, modes.grid[-2]
        if math.prod(counts) // counts[-2] * m**2 > _MOST:
            return None
        *before, u, last = (factor.value for factor in modes.factors)
        values = np.moveaxis(np.broadcast_to(weights, counts), -1, 0)
        values = values.reshape(*(counts[-1:] if not before else (counts[-1], -1)), 1, counts[-2])
        up, matrices = (*before, last), (*axes[:-2], axes[-1])
        down = tuple(Constant(v.T @ matrix.constant.value) for v, matrix in zip(up, matrices))
        return _ByBlocks(axes[-2], down, tuple(map(Constant, up)), Constant((u * values) @ u.T))

    def add(self, xp: Namespace, base: Array, noise: Array) -> Array:
        d = len(self.up) + 1
        z = self.axis.apply(xp, noise, -2)
        for i, matrix in enumerate(self.down[:-1]):
            z = matmul_axis(xp, matrix.like(xp, z), z, i - d)
        *before, m, n = z.shape
        # The modes of the last axis come first, without a copy: a product may write its transpose.
        z = self.down[-1].like(xp, z) @ xp.reshape(z, (-1, n)).T
        k, blocks = z.shape[0], self.blocks.like(xp, z)
        if d == 2:
            z = xp.reshape(z, (k, -1, m)) @ blocks
        else:
            z = xp.permute_dims(xp.reshape(z, (k, -1, blocks.shape[1], m)), (0, 2, 1, 3)) @ blocks
            z = xp.reshape(xp.permute_dims(z, (0, 2, 1, 3)), (k, *before, m))
            for i, matrix in enumerate(self.up[:-1]):
                z = matmul_axis(xp, matrix.like(xp, z), z, i - d + 1)
            before = list(z.shape[1:-1])
        z = xp.reshape(xp.reshape(z, (k, -1)).T, (*before, m, k))
        return add_matmul_axis(xp, base, 1.0, self.up[-1].like(xp, z), z, -1)

    def held_bytes(self) -> int:
        return 2 * self.blocks.value.nbytes


@dataclass(frozen=True, eq=False)
class Lift:
    """The numbers of one step t → s.

    Attributes:
        operator: R, with fewer elements on its output side and a known decomposition
        sigma: σ_s
        gain: ρ α_t/α_s: what Rᵀ is multiplied with
        root: −σ_s (α_t/α_s) h(MMᵀ) R
        planes: the same numbers for large images of torch on a CPU
    """

    operator: LinearOperator
    sigma: float
    gain: float
    root: _Root
    planes: Planes | None

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
        gain = rho * ratio
        root = _ByBlocks.of(operator, decomposition, weights)
        if root is not None:
            axes = operator.axis_matrices() or ()
            planes = Planes.of(axes, root.down[-1], root.up[-1], root.blocks, gain)
            return Lift(operator, sigma, gain, root, planes)
        other = _ByMatrix.of(decomposition, weights) or _ByModes(operator, decomposition, Constant(weights))
        return Lift(operator, sigma, gain, other, None)

    def innovation(self, xp: Namespace, x_t: Array, alpha_t: float, clean: Array) -> Array:
        """x_t − α_t R c, for c = `clean`."""
        if self.planes is not None and self.planes.serves(xp, clean, x_t):
            return self.planes.innovation(xp, x_t, alpha_t, clean)
        return self.operator.add_applied(xp, x_t, -alpha_t, clean)

    def mean(self, xp: Namespace, centre: Array, innovation: Array) -> Array:
        """α_s c + ρ Mᵀ (x_t − α_t R c), `centre` being α_s c."""
        return self.operator.add_adjoint(xp, centre, self.gain, innovation)

    def draw(self, xp: Namespace, centre: Array, innovation: Array, noise: Array) -> Array:
        """The mean and the symmetric root of the covariance times `noise`."""
        if self.planes is not None and self.planes.serves(xp, noise, centre, innovation):
            return self.planes.draw(xp, centre, innovation, self.sigma, noise)
        lowered = self.root.add(xp, innovation, noise)
        return add_to(xp, self.operator.add_adjoint(xp, centre, self.gain, lowered), self.sigma, noise)

    def held_bytes(self) -> int:
        """About how much memory its numbers come to hold."""
        return self.root.held_bytes()


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
