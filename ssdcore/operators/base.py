"""LinearOperator: what every operator can do, and the algebra (@, +, *, .T) that keeps structure where it can."""

from __future__ import annotations

import functools
import math
import numbers
import operator
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from ssdcore._arrays import Array, ArrayKind, Namespace, flushing, number, once_per_trace
from ssdcore.axes import AxisMatrix
from ssdcore.operators.linear_map import LinearMap
from ssdcore.spectral import Decomposition, merged_sum


class LinearOperator(LinearMap):
    """A real linear map M from the trailing axes `in_shape` to `out_shape`; leading axes are batch and channels.

    ``op(x)`` maps ``(*batch, *in_shape) -> (*batch, *out_shape)`` for arrays of any array-API namespace (numpy, torch,
    jax, cupy, ...), on any device, and keeps dtype and device; float16 and bfloat16 are computed in float32.
    ``op.T`` is the exact adjoint, ``b @ a`` the composition "first a, then b", ``a + b`` and ``a - b`` sums,
    ``0.5 * op`` and ``op / 2`` multiples. Operators are immutable, equal if they are the same map by construction
    (`key`), and pytrees without leaves: they pass the borders of jax's and torch's transforms.

    Writing an operator
    -------------------
    Prefer ``Functional`` (two functions), ``Matrix`` or ``Separable``. A class of your own is worth its lines where the
    operator has a structure that these do not know: a fast transform, a mask, a sparse pattern. It sets ``in_shape``
    and ``out_shape`` and implements two methods::

        apply(xp, x)            M x;   xp is the array namespace, x an array ``(*batch, *in_shape)`` of a checked dtype
        apply_adjoint(xp, y)    Mᵀ y

    Both return new arrays: what they return may be kept by the caller, so never a buffer that the next call reuses.
    The rest has defaults, to be overridden where the structure gives something better::

        decompose()             its `Decomposition` M = U diag(s) Vᵀ, called once; default: by axes if separable, dense
                                if small, else None. With one, norms, spectral functions, posteriors at any eta and
                                their densities are exact at any size; without, they use Lanczos iteration
        add_applied(xp, base, scale, x), add_adjoint(xp, base, scale, y)
                                base + scale · M x and base + scale · Mᵀ y, where the sum can go into the product
        axis_matrices()         one `AxisMatrix` an axis if separable; then subclass ``ssd.operators.AxisOperator``,
                                which implements everything else
        after(inner)            one operator equal to ``self @ inner``, or None where no structure is gained
        before(outer)           one operator equal to ``outer @ self``, or None
        plus(other)             one operator equal to ``self + other``, or None
        key()                   what two equal operators have in common, hashable; default None: equal to itself only.
                                Equal operators share what jax has compiled
        precompute()            make and keep constants that `apply` reads; torch.compile runs it, untraced, while
                                tracing. Numbers belong in a ``ssd.operators.Constant``, which has a copy for each
                                namespace, dtype and device, and which torch.compile cannot confuse with another's
        array_kind              namespace, dtype and device of arrays that the library makes itself to learn the
                                operator's norm or matrix; default: float64 numpy

    A mask keeps its spectrum at any size by three more lines: its modes are the pixels themselves.

    >>> op = 0.5 * ssd.Resize((8, 8), (4, 4)) @ ssd.Blur((8, 8), 1.0)
    >>> op.in_shape, op.out_shape, op.T(np.zeros((10, 4, 4))).shape
    ((8, 8), (4, 4), (10, 8, 8))

    >>> class Mask(ssd.LinearOperator):
    ...     def __init__(self, keep):
    ...         self.in_shape = self.out_shape = keep.shape
    ...         self.keep = ssd.operators.Constant(keep.astype(float))
    ...     def apply(self, xp, x):
    ...         return x * self.keep.like(xp, x)
    ...     def apply_adjoint(self, xp, y):
    ...         return self.apply(xp, y)
    ...     def decompose(self):
    ...         pixels = ssd.Modes(self.in_shape, self.in_shape, ())
    ...         return ssd.Decomposition(pixels, pixels, self.keep.value)
    ...     def after(self, inner):
    ...         if isinstance(inner, Mask):
    ...             return Mask(self.keep.value * inner.keep.value > 0)
    >>> mask = Mask(np.arange(12).reshape(3, 4) % 2 == 0)
    >>> type(mask @ mask).__name__, mask.norm(), ssd.testing.check_operator(mask).passed
    ('Mask', 1.0, True)
    """

    __array_ufunc__ = None  # numpy scalars then leave `number * op` to us

    def after(self, inner: LinearOperator) -> LinearOperator | None:
        """One operator equal to ``self @ inner`` that keeps their common structure, or None."""
        return None

    def before(self, outer: LinearOperator) -> LinearOperator | None:
        """One operator equal to ``outer @ self`` that keeps their common structure, or None."""
        return None

    def plus(self, other: LinearOperator) -> LinearOperator | None:
        """One operator equal to ``self + other`` that keeps their common structure, or None."""
        return None

    def key(self) -> Hashable | None:
        """What operators that are the same map by construction have in common; None: equal to itself only."""
        return None

    @property
    def T(self) -> LinearOperator:
        """The adjoint Mᵀ, from out_shape to in_shape."""
        self._prepare_transpose()
        return self._transposed

    @functools.cached_property
    def _transposed(self) -> LinearOperator:
        return Transpose(self)

    @once_per_trace
    def _prepare_transpose(self) -> None:
        _ = self._transposed

    def gram_operator(self, f: Callable[[Array], Array]) -> LinearOperator:
        """f(MᵀM) as an operator from in_shape to in_shape that keeps the spectrum of M.

        Args:
            f: as for `gram_function`; it is called with arrays of every namespace, numpy's for the spectrum

        >>> R = ssd.Resize((8, 8), (4, 4))
        >>> mixed = R.gram_operator(lambda e: 0.3 + 0.7 * e)      # 0.3·I + 0.7·RᵀR
        >>> x = np.random.default_rng(0).standard_normal((8, 8))
        >>> bool(np.allclose(mixed(x), 0.3 * x + 0.7 * R.T(R(x)))), mixed.decomposition() is not None
        (True, True)
        """
        return GramOperator(self, f)

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        """Composition: (b @ a)(x) = b(a(x))."""
        if not isinstance(other, LinearOperator):
            raise TypeError(f"{self} @ {type(other).__name__}: @ composes two operators; to apply one, call it: op(x)")
        return compose(self, other)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        """Sum: (a + b)(x) = a(x) + b(x)."""
        if not isinstance(other, LinearOperator):
            raise TypeError(
                f"{self} + {type(other).__name__}: + adds two operators; a number c stands for c * ssd.Identity(shape)"
            )
        return add(self, other)

    def __radd__(self, other: object) -> LinearOperator:
        """``sum`` of operators starts from 0."""
        if isinstance(other, int) and other == 0:
            return self
        raise TypeError(
            f"{type(other).__name__} + {self}: + adds two operators; a number c stands for c * ssd.Identity(shape)"
        )

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        if not isinstance(other, LinearOperator):
            raise TypeError(
                f"{self} - {type(other).__name__}: - subtracts an operator; a number c stands for "
                "c * ssd.Identity(shape)"
            )
        return add(self, -other)

    def __mul__(self, scale: float) -> LinearOperator:
        return _scale(_real_factor(self, "*", scale), self)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> LinearOperator:
        """``op / c`` is ``(1 / c) * op``."""
        value = _real_factor(self, "/", divisor)
        if value == 0:
            raise ValueError(f"{self} / 0: the divisor must not be zero")
        return self * (1.0 / value)

    def __neg__(self) -> LinearOperator:
        return self * -1.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_shape} -> {self.out_shape})"


def _real_factor(op: LinearOperator, sign: str, factor: float) -> float:
    factor = number(factor, f"{op} {sign} {type(factor).__name__}")
    if isinstance(factor, bool) or not isinstance(factor, numbers.Real):
        raise TypeError(
            f"{op} {sign} {type(factor).__name__}: {sign} takes a real number; to apply the operator call op(x), "
            "to compose two use @"
        )
    if not math.isfinite(factor):
        raise ValueError(f"{op} {sign} {factor}: the factor must be finite")
    return float(factor)


@dataclass(frozen=True, eq=False, repr=False)
class Transpose(LinearOperator):
    """Mᵀ, what ``op.T`` gives of an operator that is not symmetric."""

    op: LinearOperator

    def __post_init__(self) -> None:
        object.__setattr__(self, "in_shape", self.op.out_shape)
        object.__setattr__(self, "out_shape", self.op.in_shape)

    def apply(self, xp: Namespace, x: Array) -> Array:
        return self.op.apply_adjoint(xp, x)

    def apply_adjoint(self, xp: Namespace, y: Array) -> Array:
        return self.op.apply(xp, y)

    def add_applied(self, xp: Namespace, base: Array, scale: float, x: Array) -> Array:
        return self.op.add_adjoint(xp, base, scale, x)

    def add_adjoint(self, xp: Namespace, base: Array, scale: float, y: Array) -> Array:
        return self.op.add_applied(xp, base, scale, y)

    def precompute(self) -> None:
        self.op.precompute()

    def held_bytes(self) -> int:
        return self.op.held_bytes()

    @property
    def array_kind(self) -> ArrayKind:
        return self.op.array_kind

    def axis_matrices(self) -> tuple[AxisMatrix, ...] | None:
        axes = self.op.axis_matrices()
        return None if axes is None else tuple(axis.T for axis in axes)

    def after(self, inner: LinearOperator) -> LinearOperator | None:
        product = self.op.before(inner.T)  # Aᵀ B = (Bᵀ A)ᵀ
        return None if product is None else product.T

    def before(self, outer: LinearOperator) -> LinearOperator | None:
        product = self.op.after(outer.T)
        return None if product is None else product.T

    def learns(self) -> bool:
        return self.op.learns()

    def key(self) -> Hashable | None:
        return self.op

    def decompose(self) -> Decomposition | None:
        decomposition = self.op.decomposition()
        return None if decomposition is None else decomposition.T

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
class Scaled(LinearOperator):
    """A multiple of an operator, what ``0.5 * op`` gives."""

    scale: float
    op: LinearOperator

    def __post_init__(self) -> None:
        object.__setattr__(self, "in_shape", self.op.in_shape)
        object.__setattr__(self, "out_shape", self.op.out_shape)

    def apply(self, xp: Namespace, x: Array) -> Array:
        return self.scale * self.op.apply(xp, x)

    def apply_adjoint(self, xp: Namespace, y: Array) -> Array:
        return self.scale * self.op.apply_adjoint(xp, y)

    def precompute(self) -> None:
        self.op.precompute()

    def held_bytes(self) -> int:
        return self.op.held_bytes()

    @property
    def array_kind(self) -> ArrayKind:
        return self.op.array_kind

    def learns(self) -> bool:
        return self.op.learns()

    def key(self) -> Hashable | None:
        return (self.scale, self.op)

    def decompose(self) -> Decomposition | None:
        decomposition = self.op.decomposition()
        return None if decomposition is None else decomposition.scaled(self.scale)

    def norm(self) -> float:
        return abs(self.scale) * self.op.norm()

    def as_matrix(self) -> np.ndarray:
        return self.scale * self.op.as_matrix()

    @functools.cached_property
    def _transposed(self) -> LinearOperator:
        return _scale(self.scale, self.op.T)

    def __repr__(self) -> str:
        return f"{self.scale:g} * {_bracketed(self.op, Sum)}"


@dataclass(frozen=True, eq=False, repr=False)
class Composition(LinearOperator):
    """Operators applied one after the other; `parts` in the order of application."""

    parts: tuple[LinearOperator, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "in_shape", self.parts[0].in_shape)
        object.__setattr__(self, "out_shape", self.parts[-1].out_shape)

    def apply(self, xp: Namespace, x: Array) -> Array:
        for part in self.parts:
            x = part.apply(xp, x)
        return x

    def apply_adjoint(self, xp: Namespace, y: Array) -> Array:
        for part in reversed(self.parts):
            y = part.apply_adjoint(xp, y)
        return y

    def precompute(self) -> None:
        for part in self.parts:
            part.precompute()

    def held_bytes(self) -> int:
        return sum(part.held_bytes() for part in self.parts)

    @property
    def array_kind(self) -> ArrayKind:
        return _shared_kind(self.parts)

    def learns(self) -> bool:
        return any(part.learns() for part in self.parts)

    def key(self) -> Hashable | None:
        return tuple(part for part in self.parts)

    def as_matrix(self) -> np.ndarray:
        return functools.reduce(np.matmul, [part.as_matrix() for part in reversed(self.parts)])

    @functools.cached_property
    def _transposed(self) -> LinearOperator:
        return Composition(tuple(part.T for part in reversed(self.parts)))

    def __repr__(self) -> str:
        return " @ ".join(_bracketed(part, Sum) for part in reversed(self.parts))


@dataclass(frozen=True, eq=False, repr=False)
class Sum(LinearOperator):
    """The sum of operators with the same shapes, what ``a + b`` gives where it does not become one operator.

    It keeps the spectrum where its parts are diagonal in the same modes and the sum has one sign, as blurs of one
    boundary and the identity are. For functions of one operator see `LinearOperator.gram_operator`.
    """

    parts: tuple[LinearOperator, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "in_shape", self.parts[0].in_shape)
        object.__setattr__(self, "out_shape", self.parts[0].out_shape)

    def apply(self, xp: Namespace, x: Array) -> Array:
        return functools.reduce(operator.add, [part.apply(xp, x) for part in self.parts])

    def apply_adjoint(self, xp: Namespace, y: Array) -> Array:
        return functools.reduce(operator.add, [part.apply_adjoint(xp, y) for part in self.parts])

    def precompute(self) -> None:
        for part in self.parts:
            part.precompute()

    def held_bytes(self) -> int:
        return sum(part.held_bytes() for part in self.parts)

    @property
    def array_kind(self) -> ArrayKind:
        return _shared_kind(self.parts)

    def learns(self) -> bool:
        return any(part.learns() for part in self.parts)

    def key(self) -> Hashable | None:
        return frozenset(Counter(part for part in self.parts).items())

    def decompose(self) -> Decomposition | None:
        decompositions = [part.decomposition() for part in self.parts]
        if all(decomposition is not None for decomposition in decompositions):
            merged = merged_sum(cast(list[Decomposition], decompositions))
            if merged is not None:
                return merged
        return super().decompose()

    def as_matrix(self) -> np.ndarray:
        return functools.reduce(np.add, [part.as_matrix() for part in self.parts])

    @functools.cached_property
    def _transposed(self) -> LinearOperator:
        return Sum(tuple(part.T for part in self.parts))

    def __repr__(self) -> str:
        return " + ".join(repr(part) for part in self.parts)


@dataclass(frozen=True, eq=False, repr=False)
class GramOperator(LinearOperator):
    """f(MᵀM), what ``op.gram_operator(f)`` gives: symmetric, with the modes of M."""

    op: LinearOperator
    function: Callable[[Array], Array]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"gram_operator: expected a function of the eigenvalues, got {self.function!r}")
        object.__setattr__(self, "in_shape", self.op.in_shape)
        object.__setattr__(self, "out_shape", self.op.in_shape)

    def apply(self, xp: Namespace, x: Array) -> Array:
        return self.op.apply_gram_function(xp, x, self.function)

    def apply_adjoint(self, xp: Namespace, y: Array) -> Array:
        return self.apply(xp, y)

    def precompute(self) -> None:
        self.op.prepare_spectrum()

    @property
    def array_kind(self) -> ArrayKind:
        return self.op.array_kind

    def learns(self) -> bool:
        return self.op.learns()

    def key(self) -> Hashable | None:
        return (self.op, self.function)

    def decompose(self) -> Decomposition | None:
        decomposition = self.op.decomposition()
        spectral = None if decomposition is None else decomposition.of_gram(self.function)
        return super().decompose() if spectral is None else spectral

    @property
    def T(self) -> LinearOperator:
        return self

    def __repr__(self) -> str:
        return f"{self.op!r}.gram_operator({getattr(self.function, '__name__', self.function)})"


def _bracketed(op: LinearOperator, *kinds: type[LinearOperator]) -> str:
    return f"({op!r})" if isinstance(op, kinds) else repr(op)


def _shared_kind(parts: Sequence[LinearOperator]) -> ArrayKind:
    """The kind of arrays of the first part that asks for one of its own."""
    own = ArrayKind.numpy()
    return next((part.array_kind for part in parts if part.array_kind != own), own)


def _scale(scale: float, op: LinearOperator) -> LinearOperator:
    if isinstance(op, Scaled):
        scale, op = scale * op.scale, op.op
    return op if scale == 1.0 else Scaled(scale, op)


def _split_scale(op: LinearOperator) -> tuple[float, LinearOperator]:
    return (op.scale, op.op) if isinstance(op, Scaled) else (1.0, op)


@flushing
def compose(outer: LinearOperator, inner: LinearOperator) -> LinearOperator:
    """outer @ inner with scalars in front, neighbours merged where their product keeps a structure."""
    if inner.out_shape != outer.in_shape:
        raise ValueError(
            f"{outer} @ {inner}: the inner operator gives trailing axes {inner.out_shape}, "
            f"the outer one takes {outer.in_shape}"
        )
    outer_scale, outer = _split_scale(outer)
    inner_scale, inner = _split_scale(inner)
    outer_parts = outer.parts if isinstance(outer, Composition) else (outer,)
    inner_parts = inner.parts if isinstance(inner, Composition) else (inner,)
    merged = outer_parts[0].after(inner_parts[-1])
    if merged is None:
        merged = inner_parts[-1].before(outer_parts[0])
    if merged is None:
        parts = (*inner_parts, *outer_parts)
    else:
        scale, middle = _split_scale(merged)
        outer_scale *= scale
        parts = (*inner_parts[:-1], middle, *outer_parts[1:])
    product = parts[0] if len(parts) == 1 else Composition(parts)
    return _scale(outer_scale * inner_scale, product)


@flushing
def add(a: LinearOperator, b: LinearOperator) -> LinearOperator:
    """a + b: multiples of one operator join, and neighbours where their sum keeps a structure."""
    if (a.in_shape, a.out_shape) != (b.in_shape, b.out_shape):
        raise ValueError(
            f"{a} + {b}: the operators map {a.in_shape} to {a.out_shape} and {b.in_shape} to {b.out_shape}; "
            "a sum needs the same shapes"
        )
    parts = list(a.parts if isinstance(a, Sum) else (a,))
    for part in b.parts if isinstance(b, Sum) else (b,):
        for i, other in enumerate(parts):
            joined = _joined(other, part)
            if joined is not None:
                parts[i] = joined
                break
        else:
            parts.append(part)
    return parts[0] if len(parts) == 1 else Sum(tuple(parts))


def _joined(a: LinearOperator, b: LinearOperator) -> LinearOperator | None:
    (scale_a, plain_a), (scale_b, plain_b) = _split_scale(a), _split_scale(b)
    if plain_a == plain_b:
        return _scale(scale_a + scale_b, plain_a)
    joined = a.plus(b)
    return b.plus(a) if joined is None else joined
