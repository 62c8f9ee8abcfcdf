"""LinearOperator: what every operator can do, and the algebra (@, *, .T) that keeps structure where it can."""

from __future__ import annotations

import abc
import functools
import math
import numbers
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ssdcore._arrays import (
    Array,
    Namespace,
    Shape,
    check_trailing,
    computing_dtype,
    full_precision,
    namespace_of,
    once_per_trace,
    real_namespace,
)
from ssdcore.spectral import AxisMatrix, Decomposition, lanczos_function, lanczos_norm

if TYPE_CHECKING:
    import sympy

# A dense singular value decomposition is taken up to these sizes (a few seconds at most, once an operator).
DENSE_MAX_ENTRIES = 2**22
DENSE_MAX_RANK = 2048
_SYMPY_MAX_ENTRIES = 4096


class LinearOperator(abc.ABC):
    """A real linear map M from the trailing axes `in_shape` to `out_shape`; leading axes are batch and channels.

    ``op(x)`` maps ``(*batch, *in_shape) -> (*batch, *out_shape)`` for arrays of any array-API namespace (numpy, torch,
    jax, cupy, ...), on any device, and keeps dtype and device; float16 and bfloat16 are computed in float32.
    ``op.T`` is the exact adjoint, ``b @ a`` the composition "first a, then b", ``0.5 * op`` a multiple.

    To write an operator of your own, prefer ``Functional``, ``Matrix`` or ``Separable``. A subclass sets ``in_shape``
    and ``out_shape`` and implements ``_apply(xp, x)`` and ``_apply_adjoint(xp, y)``, which get the array namespace
    and an array whose trailing shape and dtype have been checked.

    >>> op = 0.5 * ssd.Resize((8, 8), (4, 4)) @ ssd.Blur((8, 8), 1.0)
    >>> op.in_shape, op.out_shape, op.T(np.zeros((10, 4, 4))).shape
    ((8, 8), (4, 4), (10, 8, 8))
    """

    in_shape: Shape
    out_shape: Shape
    __array_ufunc__ = None  # numpy scalars then leave `number * op` to us

    @abc.abstractmethod
    def _apply(self, xp: Namespace, x: Array) -> Array:
        """M x, for x of trailing shape in_shape."""

    @abc.abstractmethod
    def _apply_adjoint(self, xp: Namespace, y: Array) -> Array:
        """Mᵀ y, for y of trailing shape out_shape."""

    def _axes(self) -> tuple[AxisMatrix, ...] | None:
        """One matrix an axis if the operator is separable, else None."""
        return None

    @functools.cached_property
    def _axis_order(self) -> tuple[int, ...]:
        """The axes of a separable operator in the order to apply them: those that shrink the array most first."""
        shrinks = [m / n for n, m in zip(self.in_shape, self.out_shape)]
        return tuple(sorted(range(len(shrinks)), key=shrinks.__getitem__))

    @property
    def _namespace(self) -> Namespace:
        """The namespace of arrays that the library makes itself to learn the operator's norm or matrix."""
        return namespace_of(np.zeros(1))

    def _as_sympy(self) -> sympy.Matrix:
        import sympy

        return sympy.Matrix(self.as_matrix()).applyfunc(sympy.Rational)

    @once_per_trace
    def _prepare(self) -> None:
        """Fill the caches that applying the operator reads."""
        for axis in self._axes() or ():
            _ = axis.bands, axis.T.bands, self._axis_order

    @once_per_trace
    def _prepare_spectrum(self) -> None:
        """Fill the caches that spectral functions read."""
        self._prepare()
        if self._decomposition is not None:
            _ = self._decomposition.eigenvalues

    @functools.cached_property
    def _decomposition(self) -> Decomposition | None:
        """The singular value decomposition: by axes if separable, dense if small, None if the operator is too large."""
        axes = self._axes()
        if axes is not None:
            return Decomposition.separable(self.in_shape, self.out_shape, axes)
        n, m = math.prod(self.in_shape), math.prod(self.out_shape)
        if n * m > DENSE_MAX_ENTRIES or min(n, m) > DENSE_MAX_RANK:
            return None
        return Decomposition.dense(self.in_shape, self.out_shape, self.as_matrix())

    def __call__(self, x: Array) -> Array:
        """M x. Raises TypeError for anything but a real floating-point array, ValueError for a wrong trailing shape."""
        return self._run(self._apply, x)

    def _run(self, apply: Callable[[Namespace, Array], Array], x: Array) -> Array:
        xp = real_namespace(x, self)
        check_trailing(x, self.in_shape, self)
        self._prepare()
        with full_precision(x):
            y = apply(xp, xp.astype(x, computing_dtype(xp, x.dtype), copy=False))
        return xp.astype(y, x.dtype, copy=False)

    @property
    def T(self) -> LinearOperator:
        """The adjoint Mᵀ, from out_shape to in_shape."""
        self._prepare_transpose()
        return self._transposed

    @functools.cached_property
    def _transposed(self) -> LinearOperator:
        return _Transpose(self)

    @once_per_trace
    def _prepare_transpose(self) -> None:
        _ = self._transposed

    def norm(self) -> float:
        """The largest singular value ‖M‖.

        Exact from the decomposition; for an operator too large for one (see `gram_function`), by Lanczos iteration
        to a relative √eps, or a `ConvergenceError`.
        """
        if self._decomposition is not None:
            return float(self._decomposition.singular_values.max())
        return lanczos_norm(self._namespace, self._gram, self.in_shape, self)

    def _gram(self, x: Array) -> Array:
        xp = real_namespace(x, self)
        return self._apply_adjoint(xp, self._apply(xp, x))

    def singular_values(self) -> np.ndarray:
        """The singular values in float64: one axis for each axis of a separable operator, else one axis.

        Raises ValueError for an operator that is neither separable nor small enough for a dense decomposition.
        """
        if self._decomposition is None:
            raise ValueError(f"{self} is too large for a singular value decomposition")
        values = self._decomposition.singular_values
        return np.array(np.broadcast_to(values, self._decomposition.input.counts))

    def as_matrix(self) -> np.ndarray:
        """The dense matrix (prod(out_shape), prod(in_shape)) in float64, axes flattened in C order."""
        xp = self._namespace
        n, m = math.prod(self.in_shape), math.prod(self.out_shape)
        if n * m > 2**28:
            raise ValueError(f"{self}: a dense matrix of {m} x {n} entries is too large to build")
        basis = xp.reshape(xp.eye(n, dtype=xp.float64), (n, *self.in_shape))
        return np.ascontiguousarray(np.asarray(xp.reshape(self(basis), (n, m))).T, dtype=np.float64)

    def as_sympy(self) -> sympy.Matrix:
        """The dense matrix as an exact sympy matrix (floating-point entries as the rationals they are).

        Raises ValueError above 4096 entries, where symbolic algebra is of no use.
        """
        entries = math.prod(self.in_shape) * math.prod(self.out_shape)
        if entries > _SYMPY_MAX_ENTRIES:
            raise ValueError(f"{self}: {entries} entries are too many for sympy (at most {_SYMPY_MAX_ENTRIES})")
        return self._as_sympy()

    def gram_function(self, f: Callable[[Array], Array], x: Array) -> Array:
        """f(MᵀM) x, for a function f of the eigenvalues; ``op.T.gram_function(f, y)`` is f(MMᵀ) y.

        f   maps an array of eigenvalues >= 0 to an array of the same shape, namespace, dtype and device
        x   (*batch, *in_shape)

        Exact, through small eigen-decompositions, for separable operators and for any other with at most 2^22 matrix
        entries and rank 2048; beyond that by batched Lanczos iteration with an error estimate, which raises
        ConvergenceError rather than return what misses its tolerance.
        """
        return self._run_spectral(functools.partial(self._gram_function, f=f), x)

    def _gram_function(self, xp: Namespace, x: Array, f: Callable[[Array], Array]) -> Array:
        if self._decomposition is None:
            return lanczos_function(xp, self._gram, f, x, self.in_shape, self)
        return self._decomposition.gram_function(xp, f, x)

    def _run_spectral(self, apply: Callable[[Namespace, Array], Array], x: Array) -> Array:
        self._prepare_spectrum()
        return self._run(apply, x)

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        """Composition: (b @ a)(x) = b(a(x))."""
        if not isinstance(other, LinearOperator):
            raise TypeError(f"{self} @ {type(other).__name__}: @ composes two operators; to apply one, call it: op(x)")
        return compose(self, other)

    def __mul__(self, scale: float) -> LinearOperator:
        if isinstance(scale, bool) or not isinstance(scale, numbers.Real):
            raise TypeError(
                f"{self} * {type(scale).__name__}: * takes a real number; to apply the operator call op(x), "
                "to compose two use @"
            )
        if not math.isfinite(scale):
            raise ValueError(f"{self} * {scale}: the factor must be finite")
        return _scale(float(scale), self)

    __rmul__ = __mul__

    def __neg__(self) -> LinearOperator:
        return self * -1.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_shape} -> {self.out_shape})"


@dataclass(frozen=True, eq=False, repr=False)
class _Transpose(LinearOperator):
    op: LinearOperator

    def __post_init__(self) -> None:
        object.__setattr__(self, "in_shape", self.op.out_shape)
        object.__setattr__(self, "out_shape", self.op.in_shape)

    def _apply(self, xp: Namespace, x: Array) -> Array:
        return self.op._apply_adjoint(xp, x)

    def _apply_adjoint(self, xp: Namespace, y: Array) -> Array:
        return self.op._apply(xp, y)

    @once_per_trace
    def _prepare(self) -> None:
        self.op._prepare()

    @property
    def _namespace(self) -> Namespace:
        return self.op._namespace

    def _axes(self) -> tuple[AxisMatrix, ...] | None:
        axes = self.op._axes()
        return None if axes is None else tuple(axis.T for axis in axes)

    def _as_sympy(self) -> sympy.Matrix:
        return self.op.as_sympy().T

    @functools.cached_property
    def _decomposition(self) -> Decomposition | None:
        return None if self.op._decomposition is None else self.op._decomposition.T

    def norm(self) -> float:
        return self.op.norm()

    def as_matrix(self) -> np.ndarray:
        return np.ascontiguousarray(self.op.as_matrix().T)

    @property
    def T(self) -> LinearOperator:
        return self.op

    def __repr__(self) -> str:
        return f"{self.op!r}.T"


@dataclass(frozen=True, eq=False, repr=False)
class _Scaled(LinearOperator):
    scale: float
    op: LinearOperator

    def __post_init__(self) -> None:
        object.__setattr__(self, "in_shape", self.op.in_shape)
        object.__setattr__(self, "out_shape", self.op.out_shape)

    def _apply(self, xp: Namespace, x: Array) -> Array:
        return self.scale * self.op._apply(xp, x)

    def _apply_adjoint(self, xp: Namespace, y: Array) -> Array:
        return self.scale * self.op._apply_adjoint(xp, y)

    @once_per_trace
    def _prepare(self) -> None:
        self.op._prepare()

    @property
    def _namespace(self) -> Namespace:
        return self.op._namespace

    def _as_sympy(self) -> sympy.Matrix:
        import sympy

        return sympy.Rational(self.scale) * self.op.as_sympy()

    @functools.cached_property
    def _decomposition(self) -> Decomposition | None:
        return None if self.op._decomposition is None else self.op._decomposition.scaled(self.scale)

    def norm(self) -> float:
        return abs(self.scale) * self.op.norm()

    def as_matrix(self) -> np.ndarray:
        return self.scale * self.op.as_matrix()

    @functools.cached_property
    def _transposed(self) -> LinearOperator:
        return _scale(self.scale, self.op.T)

    def __repr__(self) -> str:
        return f"{self.scale:g} * {self.op!r}"


@dataclass(frozen=True, eq=False, repr=False)
class _Composition(LinearOperator):
    """Operators applied one after the other; `parts` in the order of application."""

    parts: tuple[LinearOperator, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "in_shape", self.parts[0].in_shape)
        object.__setattr__(self, "out_shape", self.parts[-1].out_shape)

    def _apply(self, xp: Namespace, x: Array) -> Array:
        for part in self.parts:
            x = part._apply(xp, x)
        return x

    def _apply_adjoint(self, xp: Namespace, y: Array) -> Array:
        for part in reversed(self.parts):
            y = part._apply_adjoint(xp, y)
        return y

    @once_per_trace
    def _prepare(self) -> None:
        for part in self.parts:
            part._prepare()

    @property
    def _namespace(self) -> Namespace:
        own = super()._namespace
        return next((part._namespace for part in self.parts if part._namespace is not own), own)

    def _as_sympy(self) -> sympy.Matrix:
        return functools.reduce(operator.mul, [part.as_sympy() for part in reversed(self.parts)])

    def as_matrix(self) -> np.ndarray:
        return functools.reduce(np.matmul, [part.as_matrix() for part in reversed(self.parts)])

    @functools.cached_property
    def _transposed(self) -> LinearOperator:
        return _Composition(tuple(part.T for part in reversed(self.parts)))

    def __repr__(self) -> str:
        return " @ ".join(repr(part) for part in reversed(self.parts))


def _scale(scale: float, op: LinearOperator) -> LinearOperator:
    if isinstance(op, _Scaled):
        scale, op = scale * op.scale, op.op
    return op if scale == 1.0 else _Scaled(scale, op)


def _split_scale(op: LinearOperator) -> tuple[float, LinearOperator]:
    return (op.scale, op.op) if isinstance(op, _Scaled) else (1.0, op)


def compose(outer: LinearOperator, inner: LinearOperator) -> LinearOperator:
    """outer @ inner with scalars in front, neighbours merged where their product keeps a structure."""
    if inner.out_shape != outer.in_shape:
        raise ValueError(
            f"{outer} @ {inner}: the inner operator gives trailing axes {inner.out_shape}, "
            f"the outer one takes {outer.in_shape}"
        )
    outer_scale, outer = _split_scale(outer)
    inner_scale, inner = _split_scale(inner)
    outer_parts = outer.parts if isinstance(outer, _Composition) else (outer,)
    inner_parts = inner.parts if isinstance(inner, _Composition) else (inner,)
    merged = _merge(outer_parts[0], inner_parts[-1])
    if merged is None:
        parts = (*inner_parts, *outer_parts)
    else:
        scale, middle = _split_scale(merged)
        outer_scale *= scale
        parts = (*inner_parts[:-1], middle, *outer_parts[1:])
    product = parts[0] if len(parts) == 1 else _Composition(parts)
    return _scale(outer_scale * inner_scale, product)


def _merge(outer: LinearOperator, inner: LinearOperator) -> LinearOperator | None:
    """One operator equal to outer @ inner that keeps their common structure, or None."""
    from ssdcore.operators.blur import Blur
    from ssdcore.operators.matrix import Identity, Matrix, Separable

    if isinstance(outer, Identity):
        return inner
    if isinstance(inner, Identity):
        return outer
    if isinstance(outer, Blur) and isinstance(inner, Blur) and outer.boundary == inner.boundary:
        return outer.then(inner)
    if isinstance(outer, Matrix) and isinstance(inner, Matrix):
        return outer.times(inner)
    outer_axes, inner_axes = outer._axes(), inner._axes()
    if outer_axes is None or inner_axes is None or len(outer_axes) != len(inner_axes):
        return None
    return Separable([b.constant.value @ a.constant.value for b, a in zip(outer_axes, inner_axes)])


def positive_shape(shape: Any, what: str) -> Shape:
    """A shape as a tuple of positive ints; an int means one axis."""
    axes: Sequence[Any] = (shape,) if isinstance(shape, numbers.Integral) else tuple(shape)
    if not axes or not all(isinstance(n, numbers.Integral) and not isinstance(n, bool) for n in axes):
        raise TypeError(f"{what}: expected a shape such as (64, 64), a non-empty tuple of integers, got {shape!r}")
    if any(n < 1 for n in axes):
        raise ValueError(f"{what}: every axis needs at least one element, got the shape {tuple(axes)}")
    return tuple(int(n) for n in axes)


def finite_matrix(matrix: Any, what: str) -> np.ndarray:
    """A float64 matrix; refuses complex numbers, NaN, infinities, and anything not two-dimensional."""
    a = np.asarray(matrix)
    if a.dtype.kind not in "fiub":
        raise TypeError(f"{what}: expected a real matrix, got dtype {a.dtype}")
    if a.ndim != 2 or 0 in a.shape:
        raise ValueError(f"{what}: expected a matrix (out, in) without empty axes, got the shape {a.shape}")
    a = a.astype(np.float64)
    if not np.isfinite(a).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(a))[0])
        raise ValueError(f"{what}: the matrix holds {a[row, column]} at row {row}, column {column}; it must be finite")
    return a
