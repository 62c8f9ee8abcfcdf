"""Functional: an operator given by functions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssdcore._arrays import Array, ArrayKind, Namespace, Shape, device_of, namespace_of
from ssdcore.operators.base import LinearOperator
from ssdcore.operators.linear_map import positive_shape


@dataclass(frozen=True, eq=False, repr=False)
class Functional(LinearOperator):
    """An operator from a function that applies it, and one that applies its adjoint.

    A torch layer that learns keeps its gradients, in `gram_function` and posteriors as well: it has no decomposition,
    which a step of its weights would make stale, and its spectral functions are Lanczos iterations (posteriors at
    eta = 1 alone).

    - apply: maps ``(*batch, *in_shape)`` to ``(*batch, *out_shape)``, linearly, for any leading axes

    Whether `adjoint` is one is not checked here: put the operator through ``ssdcore.testing.check_operator``, which
    measures the mismatch. Raises TypeError where no adjoint is given and the arrays' library has no automatic
    differentiation, ValueError where a function returns another shape than declared.

    Attributes:
        adjoint: maps back by the transposed matrix; None takes the vector-Jacobian product of `apply` (torch, jax)
        namespace: module whose arrays `apply` takes when the library makes them itself, for `norm`, `as_matrix` and
            small decompositions: numpy unless given (torch and jax.numpy are others)
        dtype: of those arrays, such as torch.float32 for a layer with float32 weights; default: float64, or the
            widest that the namespace has
        device: of those arrays, such as "cuda" for a layer whose weights lie there; default: the namespace's own

    >>> first_half = ssd.Functional(
    ...     apply=lambda x: x[..., :2],
    ...     adjoint=lambda y: np.concatenate([y, 0 * y], axis=-1),
    ...     in_shape=(4,),
    ...     out_shape=(2,),
    ... )
    >>> first_half(np.arange(4.0))
    array([0., 1.])
    >>> ssd.testing.check_operator(first_half).passed
    True
    """

    function: Callable[[Array], Array]
    adjoint: Callable[[Array], Array] | None
    in_shape: Shape
    out_shape: Shape
    namespace: Namespace = np
    dtype: Any = None
    device: Any = None

    def __init__(
        self,
        apply: Callable[[Array], Array],
        adjoint: Callable[[Array], Array] | None,
        in_shape: Shape | int,
        out_shape: Shape | int,
        namespace: Namespace = np,
        dtype: Any = None,
        device: Any = None,
    ) -> None:
        if not callable(apply) or not (adjoint is None or callable(adjoint)):
            raise TypeError("Functional: `apply` must be a function, `adjoint` a function or None")
        object.__setattr__(self, "function", apply)
        object.__setattr__(self, "adjoint", adjoint)
        object.__setattr__(self, "in_shape", positive_shape(in_shape, "Functional"))
        object.__setattr__(self, "out_shape", positive_shape(out_shape, "Functional"))
        object.__setattr__(self, "namespace", namespace)
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "device", device)

    @property
    def array_kind(self) -> ArrayKind:
        found = namespace_of(self.namespace.zeros(1))
        return ArrayKind(found, found.float64 if self.dtype is None else self.dtype, self.device)

    def key(self) -> Hashable:
        where = (self.namespace.__name__, str(self.dtype), str(self.device))
        return self.function, self.adjoint, self.in_shape, self.out_shape, where

    def apply(self, xp: Namespace, x: Array) -> Array:
        y = self._called("apply", self.function, x, self.in_shape)
        self._check_result("apply", x, y, self.in_shape, self.out_shape)
        return y

    def apply_adjoint(self, xp: Namespace, y: Array) -> Array:
        x = (
            self._transpose_by_vjp(xp, y)
            if self.adjoint is None
            else self._called("adjoint", self.adjoint, y, self.out_shape)
        )
        self._check_result("adjoint", y, x, self.out_shape, self.in_shape)
        return x

    def _called(self, name: str, function: Callable[[Array], Array], x: Array, taken: Shape) -> Array:
        try:
            return function(x)
        except (ValueError, RuntimeError, IndexError) as error:
            if x.ndim == len(taken):
                raise
            raise ValueError(
                f"{self}: `{name}` failed for an array shaped {tuple(x.shape)}: {error}. "
                "It must take any leading axes; where it takes one vector, map it over them "
                "(numpy.apply_along_axis, torch.vmap, jax.vmap)"
            ) from error

    def learns(self) -> bool:
        kind = self.array_kind
        if kind.namespace.__name__ != "array_api_compat.torch":
            return False
        with sys.modules["torch"].enable_grad():
            return bool(self.function(kind.asarray(np.zeros(self.in_shape))).requires_grad)

    def _transpose_by_vjp(self, xp: Namespace, y: Array) -> Array:
        batch = y.shape[: y.ndim - len(self.out_shape)]
        origin = xp.zeros((*batch, *self.in_shape), dtype=y.dtype, device=device_of(y))
        if xp.__name__ == "array_api_compat.torch":
            return sys.modules["torch"].func.vjp(self.function, origin)[1](y)[0]
        if xp.__name__ == "jax.numpy":
            return sys.modules["jax"].vjp(self.function, origin)[1](y)[0]
        raise TypeError(
            f"{self}: no adjoint was given, and {xp.__name__} has no automatic differentiation to derive one; "
            "pass adjoint=..., or call the operator with torch or jax arrays (namespace=... for its norm and matrix)"
        )

    def _check_result(self, name: str, x: Array, y: Array, taken: Shape, declared: Shape) -> None:
        expected = (*x.shape[: x.ndim - len(taken)], *declared)
        if tuple(y.shape) != expected:
            raise ValueError(
                f"{self}: `{name}` returned the shape {tuple(y.shape)} for an input shaped {tuple(x.shape)}, "
                f"expected {expected}; it must leave leading axes alone"
            )
