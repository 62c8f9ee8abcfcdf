"""AxisOperator: one matrix per axis; Separable: such an operator given by its matrices."""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from ssdcore._arrays import Array, Namespace, Shape
from ssdcore.axes import AxisMatrix
from ssdcore.bands import convolves
from ssdcore.operators._convolution import Convolution
from ssdcore.operators.base import LinearOperator
from ssdcore.operators.linear_map import finite_matrix
from ssdcore.spectral import Decomposition


class AxisOperator(LinearOperator):
    """An operator M = A_1 ⊗ A_2 ⊗ … given by `axis_matrices`, which a subclass implements and keeps.

    Products of such operators are again such: they merge with `Resize`, `Blur` and `Separable` into one `Separable`.
    """

    @abc.abstractmethod
    def axis_matrices(self) -> tuple[AxisMatrix, ...]:
        """One matrix per axis; the same objects at every call, since they carry what has been computed of them."""

    @functools.cached_property
    def _axis_order(self) -> tuple[int, ...]:
        return _axis_order(self.in_shape, self.out_shape)

    @functools.cached_property
    def _adjoint_order(self) -> tuple[int, ...]:
        return _axis_order(self.out_shape, self.in_shape)

    @functools.cached_property
    def _convolution(self) -> Convolution | None:
        return Convolution.of(self.axis_matrices())

    def precompute(self) -> None:
        _ = self._axis_order, self._adjoint_order, self._convolution
        for axis in self.axis_matrices():
            axis.precompute()

    def apply(self, xp: Namespace, x: Array) -> Array:
        if self._convolution is not None and convolves(xp, x):
            return self._convolution.apply(xp, x)
        return _apply_axes(xp, self.axis_matrices(), self._axis_order, x)

    def add_applied(self, xp: Namespace, base: Array, scale: float, x: Array) -> Array:
        if self._convolution is not None and convolves(xp, x):
            return self._convolution.add_applied(xp, base, scale, x)
        return _apply_axes(xp, self.axis_matrices(), self._axis_order, x, base, scale)

    def apply_adjoint(self, xp: Namespace, y: Array) -> Array:
        if self._convolution is not None and convolves(xp, y):
            return self._convolution.apply_adjoint(xp, y)
        return _apply_axes(xp, self._transposed_axes(), self._adjoint_order, y)

    def add_adjoint(self, xp: Namespace, base: Array, scale: float, y: Array) -> Array:
        if self._convolution is not None and convolves(xp, y):
            return self._convolution.add_adjoint(xp, base, scale, y)
        return _apply_axes(xp, self._transposed_axes(), self._adjoint_order, y, base, scale)

    def _transposed_axes(self) -> tuple[AxisMatrix, ...]:
        return tuple(axis.T for axis in self.axis_matrices())

    def held_bytes(self) -> int:
        return sum(axis.held_bytes() for axis in self.axis_matrices())

    def norm(self) -> float:
        """The largest singular value ‖M‖, the product of those of the axes."""
        return math.prod(axis.norm() for axis in self.axis_matrices())

    def decompose(self) -> Decomposition | None:
        """By axes; None where one is longer than 4096 on its shorter side and has no modes known in advance."""
        axes = self.axis_matrices()
        if not all(axis.has_svd for axis in axes):
            return None
        return Decomposition.separable(self.in_shape, self.out_shape, axes)

    def after(self, inner: LinearOperator) -> LinearOperator | None:
        return _product(self.axis_matrices(), inner.axis_matrices())

    def before(self, outer: LinearOperator) -> LinearOperator | None:
        return _product(outer.axis_matrices(), self.axis_matrices())

    def plus(self, other: LinearOperator) -> LinearOperator | None:
        others = other.axis_matrices()
        if len(self.in_shape) > 1 or others is None:
            return None
        return Separable([self.axis_matrices()[0] + others[0]])


def _product(outer: tuple[AxisMatrix, ...] | None, inner: tuple[AxisMatrix, ...] | None) -> LinearOperator | None:
    if outer is None or inner is None or len(outer) != len(inner):
        return None
    return Separable([b @ a for b, a in zip(outer, inner)])


def _axis_order(ins: Shape, outs: Shape) -> tuple[int, ...]:
    """The axes in the order to apply them: those that shrink the array most first; of equals the last one where the
    array is small, since along any other a convolution may take less than a product."""
    shrinks = [m / n for n, m in zip(ins, outs)]
    axes = range(len(shrinks))
    return tuple(sorted(reversed(axes) if math.prod(outs) > math.prod(ins) else axes, key=shrinks.__getitem__))


def _apply_axes(
    xp: Namespace,
    axes: tuple[AxisMatrix, ...],
    order: tuple[int, ...],
    x: Array,
    base: Array | None = None,
    scale: float = 1.0,
) -> Array:
    """The matrices along their axes; with a `base`, base + scale times that."""
    for i in order[:-1]:
        x = axes[i].apply(xp, x, i - len(axes))
    last = order[-1]
    if base is None:
        return axes[last].apply(xp, x, last - len(axes))
    return axes[last].add_applied(xp, base, scale, x, last - len(axes))


@dataclass(frozen=True, eq=False, repr=False)
class Separable(AxisOperator):
    """M = A_1 ⊗ A_2 ⊗ …: matrix A_i of shape (out_i, in_i) acts along trailing axis i.

    - matrices: one real, finite matrix per axis (anything numpy.asarray takes), kept in float64, or an `AxisMatrix`

    Raises:
        ValueError: Or.
        TypeError: For an empty list, a non-finite entry, or anything that is not a real matrix.

    >>> op = ssd.Separable([[[1.0, 1.0]], np.eye(3)])  # adds two rows, keeps three columns
    >>> op(np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]))
    array([[11., 22., 33.]])
    >>> print(f"{op.norm():.4f}")
    1.4142
    """

    axes: tuple[AxisMatrix, ...]

    def __init__(self, matrices: Sequence[Any]) -> None:
        if len(matrices) == 0:
            raise ValueError("Separable: expected at least one matrix, one for each trailing axis")
        self._set(
            tuple(
                a if isinstance(a, AxisMatrix) else AxisMatrix(finite_matrix(a, f"Separable, axis {i}"))
                for i, a in enumerate(matrices)
            )
        )

    def _set(self, axes: tuple[AxisMatrix, ...]) -> None:
        object.__setattr__(self, "axes", axes)
        object.__setattr__(self, "in_shape", tuple(axis.shape[1] for axis in axes))
        object.__setattr__(self, "out_shape", tuple(axis.shape[0] for axis in axes))

    def axis_matrices(self) -> tuple[AxisMatrix, ...]:
        return self.axes

    def key(self) -> Hashable:
        return tuple((axis.shape, axis.digest) for axis in self.axes)

    @functools.cached_property
    def _transposed(self) -> LinearOperator:
        other = Separable.__new__(Separable)
        other._set(tuple(axis.T for axis in self.axes))  # which share what has been computed of them
        other.__dict__["_transposed"] = self
        return other
