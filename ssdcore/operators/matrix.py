"""The identity, and operators given by one matrix for all axes, dense or sparse."""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssdcore._arrays import Array, Constant, Namespace, Shape, device_of, digest
from ssdcore.axes import AxisMatrix
from ssdcore.operators.base import LinearOperator
from ssdcore.operators.linear_map import finite_matrix, positive_shape
from ssdcore.spectral import Decomposition


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

    def apply(self, xp: Namespace, x: Array) -> Array:
        return x

    def apply_adjoint(self, xp: Namespace, y: Array) -> Array:
        return self.apply(xp, y)

    def decompose(self) -> Decomposition:
        return Decomposition.identity(self.in_shape)

    def after(self, inner: LinearOperator) -> LinearOperator:
        return inner

    def before(self, outer: LinearOperator) -> LinearOperator:
        return outer

    def key(self) -> Hashable:
        return self.in_shape

    @property
    def T(self) -> LinearOperator:
        return self

    def __repr__(self) -> str:
        return f"Identity({self.in_shape})"


class _SparseRows:
    """A sparse matrix by rows of about the same length: gathers of their entries work on every backend.

    Rows of up to 1, 2, 4, … entries are padded to that length and go together, so that one long row does not make the
    others longer: at most twice the nonzero entries are held, and a row's index tells where its result stands.
    """

    def __init__(self, csr: Any) -> None:
        lengths = np.diff(csr.indptr)
        widths = 2 ** np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64)
        self.blocks: list[tuple[Constant, Constant, tuple[int, int]]] = []
        order = []
        for width in np.unique(widths):
            rows = np.flatnonzero(widths == width)
            slots = np.arange(width) < lengths[rows, None]
            source = (csr.indptr[rows, None] + np.arange(width))[slots]
            columns = np.zeros(slots.shape, dtype=np.int64)
            values = np.zeros(slots.shape)
            columns[slots], values[slots] = csr.indices[source], csr.data[source]
            self.blocks.append((Constant(columns.ravel()), Constant(values), slots.shape))
            order.append(rows)
        self.place = Constant(np.argsort(np.concatenate(order)))

    def apply(self, xp: Namespace, x: Array) -> Array:
        parts = []
        for columns, values, slots in self.blocks:
            gathered = xp.take(x, _index(columns, xp, x), axis=-1)
            by_row = xp.reshape(gathered, (*x.shape[:-1], *slots))
            parts.append(xp.sum(by_row * values.like(xp, x), axis=-1))
        if len(parts) == 1:
            return parts[0]
        return xp.take(xp.concat(parts, axis=-1), _index(self.place, xp, x), axis=-1)


def _index(constant: Constant, xp: Namespace, x: Array) -> Array:
    return constant.on(xp, xp.int32, device_of(x))  # not int64: jax has none by default


@dataclass(frozen=True, eq=False, repr=False)
class Matrix(LinearOperator):
    """A real matrix (out, in), dense or a scipy sparse matrix or array; graph coarsening is the typical sparse one.

    A copy is kept in float64, read-only. A sparse one is applied by gathering the entries of its rows, on every
    backend: memory and work are those of its nonzero entries, at most doubled, in both directions.

    Attributes:
        in_shape, out_shape: trailing axes that the matrix maps between, flattened in C order; by default one axis
            each

    Raises:
        ValueError: Or.
        TypeError: For non-finite entries, complex numbers, or shapes that do not match.

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
            if matrix.dtype.kind not in "fiub":
                raise TypeError(f"Matrix: expected a real matrix, got dtype {matrix.dtype}")
            matrix = matrix.tocsr().astype(np.float64, copy=True)
            matrix.sum_duplicates()
            if 0 in matrix.shape:
                raise ValueError(f"Matrix: expected a matrix without empty axes, got the shape {matrix.shape}")
            if not np.isfinite(matrix.data).all():
                raise ValueError("Matrix: the sparse matrix holds NaN or infinite entries; they must be finite")
            for part in (matrix.data, matrix.indices, matrix.indptr):
                part.flags.writeable = False
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

    def precompute(self) -> None:
        for side in (self._rows, self._columns):
            if isinstance(side, AxisMatrix):
                side.precompute()

    def apply(self, xp: Namespace, x: Array) -> Array:
        return _apply_flat(xp, self._rows, x, self.in_shape, self.out_shape)

    def apply_adjoint(self, xp: Namespace, y: Array) -> Array:
        return _apply_flat(xp, self._columns, y, self.out_shape, self.in_shape)

    def as_matrix(self) -> np.ndarray:
        return np.array(self.matrix.toarray() if self._is_sparse else self.matrix)

    @functools.cached_property
    def _digests(self) -> tuple[bytes, ...]:
        a = self.matrix
        return tuple(digest(part) for part in ((a.data, a.indices, a.indptr) if self._is_sparse else (a,)))

    def key(self) -> Hashable:
        return self.in_shape, self.out_shape, self._digests

    def held_bytes(self) -> int:
        return 6 * int(self.matrix.data.nbytes) if self._is_sparse else 2 * int(self.matrix.nbytes)

    def after(self, inner: LinearOperator) -> LinearOperator | None:
        return self.times(inner) if isinstance(inner, Matrix) else None

    def plus(self, other: LinearOperator) -> LinearOperator | None:
        if not isinstance(other, Matrix):
            return None
        if self._is_sparse != other._is_sparse:
            return Matrix(self.as_matrix() + other.as_matrix(), self.in_shape, self.out_shape)
        return Matrix(self.matrix + other.matrix, self.in_shape, self.out_shape)

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
