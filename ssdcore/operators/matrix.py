"""Operators given by matrices: the identity, one matrix an axis, or one matrix for all axes, dense or sparse."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ssdcore._arrays import Array, Constant, Namespace, Shape, device_of, once_per_trace
from ssdcore.operators.base import LinearOperator, finite_matrix, positive_shape
from ssdcore.operators.resize import apply_axes
from ssdcore.spectral import AxisMatrix, Decomposition

if TYPE_CHECKING:
    import sympy


@dataclass(frozen=True, eq=False, repr=False)
class Identity(LinearOperator):
    """The identity on trailing axes `shape`: ordinary diffusion. It returns its input itself, not a copy.

    >>> x = np.ones((2, 8, 8))
    >>> ssd.Identity((8, 8))(x) is x
    True
    """

    in_shape: Shape

    def __init__(self, shape: Shape | int) -> None:
        object.__setattr__(self, "in_shape", positive_shape(shape, "Identity"))
        object.__setattr__(self, "out_shape", self.in_shape)

    def _apply(self, xp: Namespace, x: Array) -> Array:
        return x

    def _apply_adjoint(self, xp: Namespace, y: Array) -> Array:
        return self._apply(xp, y)

    @functools.cached_property
    def _decomposition(self) -> Decomposition:
        return Decomposition.identity(self.in_shape)

    def _as_sympy(self) -> sympy.Matrix:
        import sympy

        return sympy.eye(math.prod(self.in_shape))

    @property
    def T(self) -> LinearOperator:
        return self

    def __repr__(self) -> str:
        return f"Identity({self.in_shape})"


@dataclass(frozen=True, eq=False, repr=False)
class Separable(LinearOperator):
    """M = A_1 ⊗ A_2 ⊗ …: matrix A_i of shape (out_i, in_i) acts along trailing axis i.

    matrices   one real, finite matrix an axis (anything numpy.asarray takes), kept in float64

    Raises ValueError or TypeError for an empty list, a non-finite entry, or anything that is not a real matrix.

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
        axes = tuple(AxisMatrix(finite_matrix(a, f"Separable, axis {i}")) for i, a in enumerate(matrices))
        object.__setattr__(self, "axes", axes)
        object.__setattr__(self, "in_shape", tuple(axis.shape[1] for axis in axes))
        object.__setattr__(self, "out_shape", tuple(axis.shape[0] for axis in axes))

    def _axes(self) -> tuple[AxisMatrix, ...]:
        return self.axes

    def _apply(self, xp: Namespace, x: Array) -> Array:
        return apply_axes(xp, self.axes, self._axis_order, x)

    def _apply_adjoint(self, xp: Namespace, y: Array) -> Array:
        return apply_axes(xp, tuple(axis.T for axis in self.axes), reversed(self._axis_order), y)


class _SparseRows:
    """A sparse matrix as padded rows: column indices and values (rows, longest row). Gathers work on every backend."""

    def __init__(self, csr: Any) -> None:
        lengths = np.diff(csr.indptr)
        width = max(int(lengths.max(initial=0)), 1)
        self.shape = csr.shape
        columns = np.zeros((csr.shape[0], width), dtype=np.int64)
        values = np.zeros((csr.shape[0], width))
        slots = np.arange(width) < lengths[:, None]
        columns[slots], values[slots] = csr.indices, csr.data
        self.slots = values.shape
        self.columns, self.values = Constant(columns.ravel()), Constant(values)

    def apply(self, xp: Namespace, x: Array) -> Array:
        columns = self.columns.on(xp, xp.int32, device_of(x))  # not int64: jax has none by default
        gathered = xp.take(x, columns, axis=-1)
        by_row = xp.reshape(gathered, (*x.shape[:-1], *self.slots))
        return xp.sum(by_row * self.values.like(xp, x), axis=-1)


@dataclass(frozen=True, eq=False, repr=False)
class Matrix(LinearOperator):
    """A real matrix (out, in), dense or a scipy sparse matrix or array; graph coarsening is the typical sparse one.

    in_shape, out_shape   trailing axes that the matrix maps between, flattened in C order; by default one axis each

    A dense matrix is kept in float64. A sparse one is applied by gathering the entries of its rows, on every backend:
    memory and work are rows × longest row, in both directions.
    Raises ValueError or TypeError for non-finite entries, complex numbers, or shapes that do not match.

    >>> op = ssd.Matrix([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])  # nodes 0 and 1 become one
    >>> op(np.array([2.0, 4.0, 6.0]))
    array([3., 6.])
    >>> op.gram_function(np.sqrt, np.array([1.0, 1.0, 1.0])).round(4)  # (MᵀM)^(1/2) x
    array([0.7071, 0.7071, 1.    ])
    """

    matrix: Any
    in_shape: Shape
    out_shape: Shape

    def __init__(self, matrix: Any, in_shape: Shape | int | None = None, out_shape: Shape | int | None = None) -> None:
        if hasattr(matrix, "tocsr"):
            matrix = matrix.tocsr().astype(np.float64) if matrix.dtype.kind in "fiub" else matrix
            if matrix.dtype.kind != "f":
                raise TypeError(f"Matrix: expected a real matrix, got dtype {matrix.dtype}")
            matrix.sum_duplicates()
            if 0 in matrix.shape:
                raise ValueError(f"Matrix: expected a matrix without empty axes, got the shape {matrix.shape}")
            if not np.isfinite(matrix.data).all():
                raise ValueError("Matrix: the sparse matrix holds NaN or infinite entries; they must be finite")
        else:
            matrix = finite_matrix(matrix, "Matrix")
        m, n = matrix.shape
        ins = positive_shape(n if in_shape is None else in_shape, "Matrix")
        outs = positive_shape(m if out_shape is None else out_shape, "Matrix")
        if (math.prod(outs), math.prod(ins)) != (m, n):
            raise ValueError(f"Matrix: a matrix of shape {(m, n)} does not map {ins} to {outs}")
        object.__setattr__(self, "matrix", matrix)
        object.__setattr__(self, "in_shape", ins)
        object.__setattr__(self, "out_shape", outs)

    @property
    def _is_sparse(self) -> bool:
        return not isinstance(self.matrix, np.ndarray)

    @functools.cached_property
    def _rows(self) -> _SparseRows | AxisMatrix:
        return _SparseRows(self.matrix) if self._is_sparse else AxisMatrix(self.matrix)

    @functools.cached_property
    def _columns(self) -> _SparseRows | AxisMatrix:
        return _SparseRows(self.matrix.T.tocsr()) if isinstance(self._rows, _SparseRows) else self._rows.T

    @once_per_trace
    def _prepare(self) -> None:
        for side in (self._rows, self._columns):
            if isinstance(side, AxisMatrix):
                _ = side.bands

    def _apply(self, xp: Namespace, x: Array) -> Array:
        return _apply_flat(xp, self._rows, x, self.in_shape, self.out_shape)

    def _apply_adjoint(self, xp: Namespace, y: Array) -> Array:
        return _apply_flat(xp, self._columns, y, self.out_shape, self.in_shape)

    def as_matrix(self) -> np.ndarray:
        return np.array(self.matrix.toarray() if self._is_sparse else self.matrix)

    def times(self, inner: Matrix) -> Matrix:
        """The matrix product, sparse if both are."""
        if self._is_sparse != inner._is_sparse:
            return Matrix(self.as_matrix() @ inner.as_matrix(), inner.in_shape, self.out_shape)
        return Matrix(self.matrix @ inner.matrix, inner.in_shape, self.out_shape)


def _apply_flat(xp: Namespace, side: _SparseRows | AxisMatrix, x: Array, ins: Shape, outs: Shape) -> Array:
    batch = x.shape[: x.ndim - len(ins)]
    flat = xp.reshape(x, (*batch, math.prod(ins)))
    y = side.apply(xp, flat) if isinstance(side, _SparseRows) else side.apply(xp, flat, -1)
    return xp.reshape(y, (*batch, *outs))
