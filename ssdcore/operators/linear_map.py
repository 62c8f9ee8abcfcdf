"""LinearMap: what can be computed with a linear map that is given by two methods, `apply` and `apply_adjoint`."""

from __future__ import annotations

import abc
import functools
import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ssdcore._arrays import (
    Array,
    ArrayKind,
    Namespace,
    Shape,
    add_scaled,
    cast,
    check_trailing,
    computing_dtype,
    flushing,
    full_precision,
    known_array,
    number,
    once_per_trace,
    real_namespace,
    to_numpy,
)
from ssdcore._keyed import Static
from ssdcore.axes import AxisMatrix
from ssdcore.spectral import Decomposition, lanczos_function, lanczos_norm

# A dense singular value decomposition is taken up to these sizes (a few seconds at most, once an operator).
DENSE_MAX_ENTRIES = 2**22
DENSE_MAX_RANK = 2048


class LinearMap(Static, abc.ABC):
    """The part of `LinearOperator` that makes no other operators: applying it, its spectrum, its matrix."""

    in_shape: Shape
    out_shape: Shape

    @abc.abstractmethod
    def apply(self, xp: Namespace, x: Array) -> Array:
        """M x, for x of trailing shape in_shape: what a subclass implements. To apply an operator, call it."""

    @abc.abstractmethod
    def apply_adjoint(self, xp: Namespace, y: Array) -> Array:
        """Mᵀ y, for y of trailing shape out_shape: what a subclass implements. To apply it, call ``op.T``."""

    def add_applied(self, xp: Namespace, base: Array, scale: float, x: Array) -> Array:
        """base + scale · M x, a new array: overridden where the sum takes no pass of its own."""
        return add_scaled(xp, base, scale, self.apply(xp, x))

    def add_adjoint(self, xp: Namespace, base: Array, scale: float, y: Array) -> Array:
        """base + scale · Mᵀ y, a new array: overridden where the sum takes no pass of its own."""
        return add_scaled(xp, base, scale, self.apply_adjoint(xp, y))

    def axis_matrices(self) -> tuple[AxisMatrix, ...] | None:
        """One matrix per axis if the operator is separable, else None."""
        return None

    def decompose(self) -> Decomposition | None:
        """Make the singular value decomposition that `decomposition` keeps; None if there is none at hand."""
        n, m = math.prod(self.in_shape), math.prod(self.out_shape)
        if self.learns() or n * m > DENSE_MAX_ENTRIES or min(n, m) > DENSE_MAX_RANK:
            return None
        return Decomposition.dense(self.in_shape, self.out_shape, self.as_matrix())

    def precompute(self) -> None:
        """Fill the caches that applying the operator reads."""

    def learns(self) -> bool:
        """Whether weights inside want gradients: then no decomposition is kept."""
        return False

    def held_bytes(self) -> int:
        """About how much memory its matrices take once they are used: what caches of operators are bounded by."""
        return 0

    @property
    def array_kind(self) -> ArrayKind:
        """What arrays the library makes itself to learn the operator's norm or matrix."""
        return ArrayKind.numpy()

    def decomposition(self) -> Decomposition | None:
        """The exact singular value decomposition M = U diag(s) Vᵀ: by axes if separable, dense if small; else None.

        >>> op = ssd.Resize((4,), (2,), kernel="box")
        >>> op.decomposition().singular_values.round(4)
        array([0.7071, 0.7071])
        """
        return self._decomposition

    @functools.cached_property
    @flushing
    def _decomposition(self) -> Decomposition | None:
        return self.decompose()

    @once_per_trace
    @flushing
    def _prepared(self) -> None:
        self.precompute()

    @once_per_trace
    @flushing
    def prepare_spectrum(self) -> None:
        """Fill the caches that spectral functions read; torch.compile runs it, untraced, while tracing."""
        self.precompute()
        decomposition = self.decomposition()
        if decomposition is not None:
            _ = decomposition.eigenvalues

    def __call__(self, x: Array) -> Array:
        """M x. Raises TypeError for anything but a real floating-point array, ValueError for a wrong trailing shape."""
        return self._run(self.apply, x)

    def _run(self, apply: Callable[[Namespace, Array], Array], x: Array) -> Array:
        xp = real_namespace(x, self)
        check_trailing(x, self.in_shape, self)
        self._prepared()
        with full_precision(x):
            y = apply(xp, cast(xp, x, computing_dtype(xp, x.dtype)))
            return cast(xp, y, x.dtype)

    def norm(self) -> float:
        """The largest singular value ‖M‖.

        Exact from the decomposition; for an operator too large for one (see `gram_function`), by Lanczos iteration
        to a relative √eps, or a `ConvergenceError`.
        """
        decomposition = self.decomposition()
        if decomposition is not None:
            return float(decomposition.singular_values.max())
        return flushing(lanczos_norm)(self.array_kind, self.gram, self.in_shape, self)

    def gram(self, x: Array) -> Array:
        """MᵀM x."""
        xp = real_namespace(x, self)
        return self.apply_adjoint(xp, self.apply(xp, x))

    def singular_values(self) -> np.ndarray:
        """The singular values in float64: one axis for each axis of a separable operator, else one axis.

        Raises:
            ValueError: For an operator that is neither separable nor small enough for a dense decomposition.
        """
        decomposition = self.decomposition()
        if decomposition is None:
            why = "has weights that learn: none is kept of its" if self.learns() else "is too large for a"
            raise ValueError(f"{self} {why} singular value decomposition")
        return np.array(np.broadcast_to(decomposition.singular_values, decomposition.input.counts))

    def as_matrix(self) -> np.ndarray:
        """The dense matrix (prod(out_shape), prod(in_shape)) in float64, axes flattened in C order."""
        n, m = math.prod(self.in_shape), math.prod(self.out_shape)
        if n * m > 2**28:
            raise ValueError(f"{self}: a dense matrix of {m} x {n} entries is too large to build")
        kind = self.array_kind
        columns = to_numpy(self(kind.asarray(np.eye(n).reshape(n, *self.in_shape))))
        return np.ascontiguousarray(columns.reshape(n, m).T)

    def gram_function(self, f: Callable[[Array], Array], x: Array) -> Array:
        """f(MᵀM) x, for a function f of the eigenvalues; ``op.T.gram_function(f, y)`` is f(MMᵀ) y.

        Exact, through small eigen-decompositions, for separable operators and for any other with at most 2^22 matrix
        entries and rank 2048; beyond that by batched Lanczos iteration with an error estimate, which raises
        ConvergenceError rather than return what misses its tolerance.

        Args:
            f: maps an array of eigenvalues >= 0 to an array of the same shape, namespace, dtype and device
            x: ``(*batch, *in_shape)``
        """
        self.prepare_spectrum()
        return self._run(functools.partial(self.apply_gram_function, f=f), x)

    def apply_gram_function(self, xp: Namespace, x: Array, f: Callable[[Array], Array]) -> Array:
        """`gram_function` of an array that has been checked."""
        decomposition = self.decomposition()
        if decomposition is None:
            return lanczos_function(xp, self.gram, f, x, self.in_shape, self)
        return decomposition.gram_function(xp, f, x)


def positive_shape(shape: Any, what: str) -> Shape:
    """A shape as a tuple of positive ints; an int means one axis."""
    shape = number(shape, what)
    try:
        axes: Sequence[Any] = (shape,) if isinstance(shape, numbers.Number) else [number(n, what) for n in shape]
    except TypeError as error:
        if isinstance(shape, Iterable):
            raise
        raise TypeError(f"{what}: expected a shape such as (64, 64), got {shape!r}") from error
    if not axes or not all(isinstance(n, numbers.Integral) and not isinstance(n, bool) for n in axes):
        raise TypeError(f"{what}: expected a shape such as (64, 64), a non-empty tuple of integers, got {shape!r}")
    if any(n < 1 for n in axes):
        raise ValueError(f"{what}: every axis needs at least one element, got the shape {tuple(axes)}")
    return tuple(int(n) for n in axes)


def finite_matrix(matrix: Any, what: str) -> np.ndarray:
    """A read-only float64 copy of a matrix; refuses complex numbers, NaN, infinities, and all but two dimensions."""
    a = known_array(matrix, what)
    if a.ndim != 2 or 0 in a.shape:
        raise ValueError(f"{what}: expected a matrix (out, in) without empty axes, got the shape {a.shape}")
    a = a.astype(np.float64)
    a.flags.writeable = False
    if not np.isfinite(a).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(a))[0])
        raise ValueError(f"{what}: the matrix holds {a[row, column]} at row {row}, column {column}; it must be finite")
    return a
