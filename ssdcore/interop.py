"""Operators in other people's solvers: scipy's LinearOperator and PyLops, both ways, on numpy arrays.

::

    A = ssd.interop.to_scipy(op)                # a scipy.sparse.linalg.LinearOperator over arrays flattened in C order
    op = ssd.interop.from_pylops(P)             # an ssdcore operator: posteriors, gram_function, check_operator

scipy and PyLops are imported when a function is called: ``pip install "ssdcore[interop]"``. The adapters for torch
libraries (diffusers, deepinv) are in `ssdcore_torch.interop`, which offers these four as well.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ssdcore import _extras
from ssdcore._arrays import Array, Shape, device_of, namespace_of
from ssdcore.operators import Functional, LinearOperator
from ssdcore.operators.linear_map import positive_shape

__all__ = ["from_pylops", "from_scipy", "to_pylops", "to_scipy"]


def to_scipy(op: LinearOperator, dtype: Any = np.float64) -> Any:
    """`op` as a `scipy.sparse.linalg.LinearOperator` of shape (prod(out_shape), prod(in_shape)).

    Vectors are arrays of the trailing axes flattened in C order; the columns of `matmat` and `rmatmat` go through the
    operator as one batch. Each result has the dtype of its input (of `dtype` for integers).

    Args:
        dtype: float64 or float32: what solvers make their own vectors in

    Raises:
        TypeError: For anything but an ssdcore operator, another dtype, and (when applied) complex vectors.
    """
    linalg = _load("scipy.sparse.linalg")
    _check_operator(op, "to_scipy")
    forward, backward = _Columns(op, _real_dtype(dtype)), _Columns(op.T, _real_dtype(dtype))
    return linalg.LinearOperator(
        shape=(math.prod(op.out_shape), math.prod(op.in_shape)),
        matvec=forward.vector,
        rmatvec=backward.vector,
        matmat=forward.columns,
        rmatmat=backward.columns,
        dtype=_real_dtype(dtype),
    )


def from_scipy(operator: Any, in_shape: Shape | int | None = None, out_shape: Shape | int | None = None) -> Functional:
    """A real `scipy.sparse.linalg.LinearOperator` as an ssdcore operator.

    A batch goes through its `matmat`. It runs on the host: arrays of other libraries are taken through numpy and back
    where they lie on the CPU and are not being differentiated, else a TypeError says so. Dense and sparse matrices need
    no adapter: `ssdcore.Matrix` takes them.

    Args:
        in_shape, out_shape: trailing axes that its columns and rows stand for, flattened in C order; default: one
            axis

    Raises:
        TypeError: For other kinds and complex operators.
        ValueError: For shapes that do not fit and for an operator without an adjoint.
    """
    linalg = _load("scipy.sparse.linalg")
    if not isinstance(operator, linalg.LinearOperator):
        raise TypeError(
            f"from_scipy: expected a scipy.sparse.linalg.LinearOperator, got {_name(operator)}; "
            "ssdcore.Matrix takes a matrix, from_pylops a PyLops operator"
        )
    rows, columns = operator.shape
    ins, outs = (columns if in_shape is None else in_shape), (rows if out_shape is None else out_shape)
    return _functional(operator, ins, outs, "from_scipy")


def to_pylops(op: LinearOperator, dtype: Any = np.float64) -> Any:
    """`op` as a `pylops.LinearOperator` with dims = in_shape and dimsd = out_shape, so that it composes with others.

    ``P @ x`` takes x flattened in C order or shaped `dims`. Arguments and errors are those of `to_scipy`.
    """
    pylops = _load("pylops")
    _check_operator(op, "to_pylops")
    return pylops.LinearOperator(Op=to_scipy(op, dtype), dims=op.in_shape, dimsd=op.out_shape)


def from_pylops(operator: Any, in_shape: Shape | int | None = None, out_shape: Shape | int | None = None) -> Functional:
    """A real PyLops operator as an ssdcore operator.

    Arrays of other libraries are treated, and errors raised, as by `from_scipy`.

    Args:
        in_shape, out_shape: trailing axes of what it takes and gives, flattened in C order; default: its dims and
            dimsd. ``from_pylops(pylops.Restriction(256, kept), in_shape=(16, 16))`` takes images
    """
    pylops = _load("pylops")
    if not isinstance(operator, pylops.LinearOperator):
        raise TypeError(
            f"from_pylops: expected a pylops.LinearOperator, got {_name(operator)}; "
            "from_scipy takes a scipy LinearOperator, ssdcore.Matrix a matrix"
        )
    ins, outs = (operator.dims if in_shape is None else in_shape), (operator.dimsd if out_shape is None else out_shape)
    return _functional(operator, ins, outs, "from_pylops")


class _Columns:
    """An operator on flattened vectors, and on matrices whose columns are such vectors."""

    def __init__(self, op: LinearOperator, dtype: np.dtype) -> None:
        self.op, self.dtype = op, dtype

    def vector(self, x: np.ndarray) -> np.ndarray:
        return self._batch(np.reshape(x, (1, -1)))[0]

    def columns(self, x: np.ndarray) -> np.ndarray:
        return self._batch(np.asarray(x).T).T

    def _batch(self, rows: np.ndarray) -> np.ndarray:
        if rows.dtype.kind in "iub":
            rows = rows.astype(self.dtype)
        x = np.ascontiguousarray(rows).reshape(-1, *self.op.in_shape)
        y = np.asarray(
            self.op(self.op.array_kind.namespace.asarray(x))
        )  # a Functional may be made for torch or jax arrays
        return y.reshape(len(rows), math.prod(self.op.out_shape))


def _functional(operator: Any, in_shape: Any, out_shape: Any, what: str) -> Functional:
    """An operator of scipy's interface, which PyLops shares, as a Functional."""
    ins, outs = positive_shape(in_shape, what), positive_shape(out_shape, what)
    rows, columns = operator.shape
    if (math.prod(outs), math.prod(ins)) != (rows, columns):
        raise ValueError(
            f"{what}: the operator is of shape {(rows, columns)}, which does not map {ins} to {outs} "
            f"({math.prod(ins)} to {math.prod(outs)} elements); batch axes are not part of in_shape and out_shape"
        )
    if np.dtype(operator.dtype).kind == "c":
        raise TypeError(
            f"{what}: expected a real operator, got dtype {operator.dtype}; complex ones have no place in a real "
            "Gaussian process (stack real and imaginary parts along an axis)"
        )
    try:
        operator.rmatvec(np.zeros(rows, dtype=operator.dtype))
    except (NotImplementedError, AttributeError) as error:
        raise ValueError(f"{what}: {_name(operator)} has no adjoint; define its rmatvec") from error
    return Functional(
        lambda x: _through_host(operator.matmat, x, ins, outs, what),
        lambda y: _through_host(operator.rmatmat, y, outs, ins, what),
        ins,
        outs,
    )


def _through_host(matmat: Any, x: Array, ins: Shape, outs: Shape, what: str) -> Array:
    try:
        host = np.asarray(x)
    except (TypeError, RuntimeError) as error:  # on an accelerator, or part of a gradient or a jit trace
        raise TypeError(
            f"{what}: the operator runs on the host in numpy and cannot take this array ({error}); move it to the CPU, "
            "outside of gradients and compiled functions"
        ) from error
    batch = host.shape[: host.ndim - len(ins)]
    rows = host.reshape(math.prod(batch), math.prod(ins))
    y = np.asarray(matmat(rows.T)).T if len(rows) else np.empty((0, math.prod(outs)))
    if y.dtype.kind == "c":
        raise TypeError(f"{what}: expected a real operator, but it returned {y.dtype} for {host.dtype}")
    y = np.ascontiguousarray(y, dtype=host.dtype).reshape(*batch, *outs)
    return y if isinstance(x, np.ndarray) else namespace_of(x).asarray(y, device=device_of(x))


def _real_dtype(dtype: Any) -> np.dtype:
    try:
        checked = np.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"dtype: expected float64 or float32, got {dtype!r}") from error
    if checked not in (np.float64, np.float32):
        raise TypeError(f"dtype: expected float64 or float32, as ssdcore operators are real, got {checked}")
    return checked


def _check_operator(op: Any, what: str) -> None:
    if not isinstance(op, LinearOperator):
        raise TypeError(f"{what}: expected an ssdcore operator, got {_name(op)}")


def _name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _load(name: str) -> Any:
    return _extras.need(name, "this adapter", "interop")
