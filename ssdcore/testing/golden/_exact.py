"""Arithmetic for the golden rows: reals of thirty digits in numpy arrays of objects, fractions where ties decide.

Nothing here, and nothing that builds a reference, may use the library: a reference that shares code with what it is
compared with agrees with it however wrong both are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np

from ssdcore.testing._report import Measurement

REAL = mpmath.MPContext()  # its own: the precision of other users of mpmath is not touched
REAL.dps = 30

EPS = float(np.finfo(np.float64).eps)
_ZERO = 1e-24  # thirty digits leave this of a number that is zero


def real(x: Any) -> Any:
    """A real of thirty digits; floats and fractions are taken as exactly what they are."""
    if isinstance(x, str):
        x = Fraction(x)
    if isinstance(x, Fraction):
        return REAL.mpf(x.numerator) / x.denominator
    return REAL.mpf(x if not isinstance(x, np.generic) else x.item())


def reals(values: Any) -> np.ndarray:
    """An array of reals from nested numbers, fractions, or strings such as "1/3"."""
    array = np.asarray(values, dtype=object)
    return np.array([real(x) for x in array.ravel()], dtype=object).reshape(array.shape)


def integers(*shape: int, seed: int = 1) -> np.ndarray:
    """Whole numbers from −8 to 8: no rounding in float64, and no pattern that hides a transpose."""
    values, state = [], 12345 + 7919 * seed
    for _ in range(math.prod(shape)):
        state = (1103515245 * state + 12345) % 2**31
        values.append(REAL.mpf(state // 65536 % 17 - 8))
    return np.array(values, dtype=object).reshape(shape)


def eye(n: int) -> np.ndarray:
    return reals(np.eye(n))


def zeros(*shape: int) -> np.ndarray:
    return reals(np.zeros(shape))


def kron(*matrices: np.ndarray) -> np.ndarray:
    """Kronecker product: the matrix of one operator per axis on arrays flattened in C order."""
    product = matrices[0]
    for matrix in matrices[1:]:
        rows, columns = (a * b for a, b in zip(product.shape, matrix.shape))
        product = np.multiply.outer(product, matrix).transpose(0, 2, 1, 3).reshape(rows, columns)
    return product


def inverse(matrix: np.ndarray) -> np.ndarray:
    """By Gauss and Jordan, with the largest pivot."""
    n = len(matrix)
    work = np.concatenate([matrix, eye(n)], axis=1)
    for i in range(n):
        pivot = i + int(np.argmax([abs(x) for x in work[i:, i]]))
        work[[i, pivot]] = work[[pivot, i]]
        work[i] = work[i] / work[i, i]
        for j in range(n):
            if j != i:
                work[j] = work[j] - work[j, i] * work[i]
    return work[:, n:]


def determinant(matrix: np.ndarray) -> Any:
    work, result = matrix.copy(), REAL.mpf(1)
    for i in range(len(work)):
        pivot = i + int(np.argmax([abs(x) for x in work[i:, i]]))
        if pivot != i:
            work[[i, pivot]] = work[[pivot, i]]
            result = -result
        result = result * work[i, i]
        for j in range(i + 1, len(work)):
            work[j] = work[j] - work[j, i] / work[i, i] * work[i]
    return result


def svd(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thin U, s, V of a matrix, singular values that are zero (to twenty digits) left out."""
    u, s, vt = REAL.svd_r(REAL.matrix(reals(matrix).tolist()))
    kept = [i for i in range(len(s)) if s[i] > s[0] * REAL.mpf("1e-20")]
    left = np.array([[u[i, k] for k in kept] for i in range(u.rows)], dtype=object)
    right = np.array([[vt[k, j] for k in kept] for j in range(vt.cols)], dtype=object)
    return left, np.array([s[k] for k in kept], dtype=object), right


def eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors (columns) of a symmetric matrix."""
    values, vectors = REAL.eigsy(REAL.matrix(reals(matrix).tolist()))
    n = len(matrix)
    return (
        np.array([values[i] for i in range(n)], dtype=object),
        np.array([[vectors[i, j] for j in range(n)] for i in range(n)], dtype=object),
    )


def function_of(matrix: np.ndarray, f: Callable[[Any], Any]) -> np.ndarray:
    """f of a symmetric positive semi-definite matrix; eigenvalues that rounding made negative count as zero."""
    values, vectors = eigh(matrix)
    return (vectors * np.array([f(max(v, REAL.mpf(0))) for v in values], dtype=object)) @ vectors.T


def square_root(x: Any) -> Any:
    return REAL.sqrt(real(x))


def floats(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=object).astype(np.float64)


def agree(
    what: str, got: Any, want: Any, operations: float = 1, relative: bool = False, scale: Any = 0.0
) -> Iterator[Measurement]:
    """The deviation of float64 numbers from exact ones, in units of the largest of them (or each of its own size).

    Args:
        operations: length of the sums behind one number: the tolerance is 64 roundings for each
        scale: size of the terms of those sums, where they cancel: the least unit
    """
    expected = floats(want)
    found = np.asarray(got, dtype=np.float64)
    if found.shape != expected.shape:
        yield Measurement(math.inf, 0.0, f"{what}: shape {found.shape}, expected {expected.shape}")
        return
    size = np.abs(expected) if relative else np.abs(expected).max(initial=0.0)
    unit = np.maximum(size, float(scale))
    error = np.abs(found - expected) / np.where(unit > _ZERO, unit, 1.0)
    yield Measurement(float(error.max(initial=0.0)), 64 * EPS * operations, what)


def holds(what: str, condition: Any) -> Iterator[Measurement]:
    yield Measurement(0.0 if condition else 1.0, 0.5, what)


def refuses(what: str, error: type[Exception], call: Callable[[], Any]) -> Iterator[Measurement]:
    """That a call raises this error."""
    try:
        call()
    except error:
        yield from holds(f"{what} is refused", True)
    else:
        yield from holds(f"{what} is refused, but was accepted", False)
