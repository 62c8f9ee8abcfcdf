"""Matrices that act along one axis: dense, banded or diagonal in a fast basis, with what is computed of them once.

An image operator is a few of these (see ``ssdcore.operators.AxisOperator``), so their structure is what its speed and
memory come from: a long axis is applied by blocks of its band, a blur by fast cosine or Fourier transforms, a resize by
a whole factor as a convolution where that is fastest, and a norm comes from the band alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ssdcore._arrays import (
    Array,
    Constant,
    Namespace,
    add_matmul_axis,
    combined,
    device_of,
    digest,
    matmul_axis,
)
from ssdcore._keyed import Keyed
from ssdcore.bands import Band, Stencil, sums_rows

_EPS = float(np.finfo(np.float64).eps)
# A matrix along an axis this long or longer is applied block by block if its band makes that cheaper.
_BAND_MIN_LENGTH = 192
_BAND_BLOCK = 16
_BLOCK = 256  # columns at once where all of them would take much memory
# From this length on a cosine or Fourier basis is applied by fast transforms, and band matrices are never made dense.
LONG = 1024
# The singular value decomposition of one axis is taken up to this rank: seconds, and a few hundred megabytes.
SVD_MAX_RANK = 4096


class FastBasis(Keyed):
    """The orthonormal cosine ("reflect") or real Fourier ("periodic") modes of a long axis, applied by fast transforms.

    `value` is the dense matrix (n, n), columns the modes, made when it is asked for.
    """

    def __init__(self, n: int, boundary: str, dense: Callable[[int, str], np.ndarray]) -> None:
        self.n, self.boundary, self._dense = n, boundary, dense
        j, k = np.arange(n), np.arange(n)
        if boundary == "reflect":
            scale = np.sqrt(np.where(k == 0, 1.0, 2.0) / n)
            angle = np.pi * k / (2 * n)
            self._cos, self._sin = Constant(scale * np.cos(angle)), Constant(scale * np.sin(angle))
            order = np.concatenate([j[::2], j[1::2][::-1]])
            self._order, self._place = Constant(order), Constant(np.argsort(order))
        else:
            paired = (k > 0) & (2 * k != n)
            scale = np.sqrt(np.where(paired, 2.0, 1.0) / n)
            self._cos = Constant(np.where(2 * k <= n, scale, 0.0))
            self._sin = Constant(np.where(2 * k <= n, 0.0, scale))

    def __repr__(self) -> str:
        return f"FastBasis({self.n}, {self.boundary!r})"

    @property
    def shape(self) -> tuple[int, int]:
        return self.n, self.n

    @functools.cached_property
    def value(self) -> np.ndarray:
        made = self._dense(self.n, self.boundary)
        made.flags.writeable = False
        return made

    def key(self) -> tuple[int, str]:
        return self.n, self.boundary

    def analyse(self, xp: Namespace, x: Array, axis: int) -> Array:
        """Basisᵀ x along the negative `axis`."""
        x = xp.moveaxis(x, axis, -1)
        if self.boundary == "reflect":
            x = xp.take(x, _index(xp, self._order, x), axis=-1)
        spectrum = xp.fft.fft(xp.astype(x, _complex_of(xp, x)))
        z = self._cos.like(xp, x) * xp.real(spectrum) + self._sin.like(xp, x) * xp.imag(spectrum)
        return xp.moveaxis(z, -1, axis)

    def synthesise(self, xp: Namespace, z: Array, axis: int) -> Array:
        """Basis z along the negative `axis`."""
        z = xp.moveaxis(z, axis, -1)
        # The analysis is Re(w̄ F x) with w = cos + i sin; its inverse is its transpose Re(F w̄ z), F being symmetric.
        real, imaginary = self._cos.like(xp, z) * z, self._sin.like(xp, z) * z
        spectrum = xp.astype(real, _complex_of(xp, z)) - 1j * xp.astype(imaginary, _complex_of(xp, z))
        x = xp.real(xp.fft.fft(spectrum))
        if self.boundary == "reflect":
            x = xp.take(x, _index(xp, self._place, x), axis=-1)
        return xp.moveaxis(x, -1, axis)


def _complex_of(xp: Namespace, x: Array) -> object:
    return xp.complex128 if x.dtype == xp.float64 else xp.complex64


def _index(xp: Namespace, constant: Constant, x: Array) -> Array:
    return constant.on(xp, xp.int32, device_of(x))


class RaisedBasis(Keyed):
    """The orthonormal columns Aᵀ U / s (n, k) of a banded A = U diag(s) Vᵀ: quicker to apply, and smaller, than V.

    `value` is the dense matrix, made when it is asked for.
    """

    def __init__(self, matrix: AxisMatrix, u: Constant, s: np.ndarray) -> None:
        self._matrix, self._u, self._inverse = matrix, u, Constant(1 / s)
        matrix.precompute()  # cached properties hold a lock, which torch.compile cannot trace

    def __repr__(self) -> str:
        return f"RaisedBasis{self.shape}"

    @property
    def shape(self) -> tuple[int, int]:
        return self._matrix.shape[1], self._u.shape[1]

    @functools.cached_property
    def value(self) -> np.ndarray:
        made: np.ndarray = self.synthesise(np, np.eye(self.shape[1]), -2)
        made.flags.writeable = False
        return made

    def key(self) -> bytes:
        return self._matrix.digest

    def analyse(self, xp: Namespace, x: Array, axis: int) -> Array:
        """Basisᵀ x along the negative `axis`."""
        return self._along(xp, x, axis) * analyse_axis(xp, self._u, self._matrix.apply(xp, x, axis), axis)

    def synthesise(self, xp: Namespace, z: Array, axis: int) -> Array:
        """Basis z along the negative `axis`."""
        return self._matrix.T.apply(xp, synthesise_axis(xp, self._u, self._along(xp, z, axis) * z, axis), axis)

    def _along(self, xp: Namespace, x: Array, axis: int) -> Array:
        return xp.reshape(self._inverse.like(xp, x), (-1, *(1,) * (-1 - axis)))


Basis = Constant | FastBasis | RaisedBasis  # orthonormal columns (n, k)


def analyse_axis(xp: Namespace, basis: Basis, x: Array, axis: int) -> Array:
    """Basisᵀ x along the negative `axis`."""
    if not isinstance(basis, Constant):
        return basis.analyse(xp, x, axis)
    return matmul_axis(xp, basis.like(xp, x).T, x, axis)


def synthesise_axis(xp: Namespace, basis: Basis, z: Array, axis: int, base: Array | None = None) -> Array:
    """Basis z along the negative `axis`; added to `base`."""
    if not isinstance(basis, Constant):
        x = basis.synthesise(xp, z, axis)
        return x if base is None else combined(xp, base, 1.0, x)
    if base is None:
        return matmul_axis(xp, basis.like(xp, z), z, axis)
    return add_matmul_axis(xp, base, 1.0, basis.like(xp, z), z, axis)


@dataclass(frozen=True, eq=False)
class AxisSVD:
    """Thin singular value decomposition A = U diag(s) Vᵀ of one axis' matrix: U (m, k), s (k,), V (n, k)."""

    u: Basis
    s: np.ndarray
    v: Basis

    @staticmethod
    def of(matrix: np.ndarray) -> AxisSVD:
        """Decompose in float64; singular values that rounding cannot tell from zero are set to zero."""
        if min(matrix.shape) >= _BAND_MIN_LENGTH:
            quick = _by_gram(matrix)
            if quick is not None:
                return quick
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        s = np.where(s > max(matrix.shape) * _EPS * s[0], s, 0.0)
        return AxisSVD(Constant(u), s, Constant(vt.T))


def _by_gram(matrix: np.ndarray) -> AxisSVD | None:
    """The decomposition from the eigenvectors of the smaller Gram matrix: much faster, and as exact where the condition
    number is below four (its square enters the error); else None."""
    m, n = matrix.shape
    wide = matrix if m <= n else matrix.T
    u = _well_conditioned(wide @ wide.T)
    if u is None:
        return None
    v = wide.T @ u
    s = np.linalg.norm(v, axis=0)
    v /= s
    return AxisSVD(Constant(u), s, Constant(v)) if m <= n else AxisSVD(Constant(v), s, Constant(u))


def _by_band(matrix: AxisMatrix) -> AxisSVD | None:
    """`_by_gram` without a dense product: the band makes the Gram matrix, and raises its eigenvectors when asked to."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    if min(wide.shape) < _BAND_MIN_LENGTH or wide.band is None:
        return None
    u = _well_conditioned((wide.band @ wide.band.T).dense())
    if u is None:
        return None
    blocks = (u[:, i : i + _BLOCK] for i in range(0, u.shape[1], _BLOCK))
    s = np.concatenate([np.linalg.norm(wide.T.apply(np, block, -2), axis=0) for block in blocks])
    left = Constant(u)
    right = RaisedBasis(wide, left, s)
    return AxisSVD(left, s, right) if wide is matrix else AxisSVD(right, s, left)


def _well_conditioned(gram: np.ndarray) -> np.ndarray | None:
    """The eigenvectors, of falling eigenvalues; None where the least is below a sixteenth of the largest."""
    values, u = _eigh(gram)
    return None if values[-1] <= values[0] / 16 else u


def _eigh(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, falling, and eigenvectors; by halves where reversing rows and columns changes nothing."""
    n = len(gram)
    if n % 2 or np.abs(gram - gram[::-1, ::-1]).max() > n * _EPS * np.abs(gram).max():
        values, vectors = np.linalg.eigh(gram)
        return values[::-1], np.ascontiguousarray(vectors[:, ::-1])
    h = n // 2
    block, corner = gram[:h, :h], gram[:h, h:][:, ::-1]
    even, odd = (np.linalg.eigh(block + sign * corner) for sign in (1.0, -1.0))
    values = np.concatenate([even[0], odd[0]])
    order = np.argsort(values)[::-1]
    place = np.argsort(order)
    vectors = np.empty((n, n))
    for sign, (_, half), columns in ((1.0, even, place[:h]), (-1.0, odd, place[h:])):
        vectors[:h, columns] = half / math.sqrt(2)
        vectors[h:, columns] = half[::-1] * (sign / math.sqrt(2))
    return values[order], vectors


@dataclass(frozen=True, eq=False)
class Spectral:
    """B diag(response) Bᵀ in an orthonormal basis B (n, n), for responses >= 0."""

    basis: Basis
    response: Constant

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.basis.shape
        return m, n

    @property
    def T(self) -> Spectral:
        return self

    def dense(self) -> np.ndarray:
        if (self.response.value == 1).all():
            return np.eye(self.shape[0])
        return (self.basis.value * self.response.value) @ self.basis.value.T

    def apply(self, xp: Namespace, x: Array, axis: int) -> Array:
        response = xp.reshape(self.response.like(xp, x), (-1, *(1,) * (-1 - axis)))
        return synthesise_axis(xp, self.basis, response * analyse_axis(xp, self.basis, x, axis), axis)


class AxisMatrix:
    """A matrix (m, n) that acts along one axis, with its decomposition computed once and shared with its transpose.

    - form: the matrix: dense, a `Band`, or `Spectral`; `constant` is the dense matrix in any case
    """

    def __init__(self, form: np.ndarray | Band | Spectral) -> None:
        self.form = form
        self._transpose: AxisMatrix | None = None

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.form.shape
        return m, n

    @functools.cached_property
    def constant(self) -> Constant:
        """The dense matrix."""
        return Constant(self.form if isinstance(self.form, np.ndarray) else self.form.dense())

    @functools.cached_property
    def band(self) -> Band | None:
        """The rows as a band where that holds much less than the dense matrix, else None."""
        if isinstance(self.form, Spectral):
            return None
        band = self.form if isinstance(self.form, Band) else Band.of(self.form)
        return band if 4 * band.weights.shape[1] <= band.n else None

    @functools.cached_property
    def svd(self) -> AxisSVD:
        if isinstance(self.form, Spectral):
            return AxisSVD(self.form.basis, self.form.response.value, self.form.basis)
        if self._transpose is not None and "svd" in self._transpose.__dict__:
            other = self._transpose.svd
            return AxisSVD(other.v, other.s, other.u)
        return _by_band(self) or AxisSVD.of(self.constant.value)

    @property
    def has_svd(self) -> bool:
        """Whether the decomposition is known, or small enough to be taken."""
        return isinstance(self.form, Spectral) or min(self.shape) <= SVD_MAX_RANK

    def norm(self) -> float:
        """The largest singular value: from the band of a long matrix, without its decomposition."""
        if max(self.shape) >= LONG and "svd" not in self.__dict__ and self.band is not None:
            return self.band.norm()
        return float(self.svd.s.max())

    @property
    def T(self) -> AxisMatrix:
        if self._transpose is None:
            flipped = AxisMatrix(self.form.T)
            flipped._transpose, self._transpose = self, flipped
        return self._transpose

    def __matmul__(self, inner: AxisMatrix) -> AxisMatrix:
        if max(*self.shape, *inner.shape) >= LONG and self.band is not None and inner.band is not None:
            return AxisMatrix(self.band @ inner.band)
        return AxisMatrix(self.constant.value @ inner.constant.value)

    def __add__(self, other: AxisMatrix) -> AxisMatrix:
        return AxisMatrix(self.constant.value + other.constant.value)

    def held_bytes(self) -> int:
        """About how much memory it takes once it is used: the forms that it has, in two dtypes."""
        if isinstance(self.form, Band):
            return 64 * self.form.weights.size
        m, n = self.shape
        return 64 * n if self._is_fast else 32 * m * n

    @functools.cached_property
    def digest(self) -> bytes:
        """A fingerprint of the values."""
        if isinstance(self.form, Band):
            return digest(np.concatenate([self.form.first[:, None], self.form.weights], axis=1))
        return self.constant.key()

    @functools.cached_property
    def bands(self) -> tuple[tuple[Constant, int, int], ...]:
        """(block of rows, first column, end column) covering the matrix; empty where one dense product is cheaper."""
        m, n = self.shape
        if max(m, n) < _BAND_MIN_LENGTH or self.band is None:
            return ()
        band, blocks = self.band, []
        for row in range(0, m, _BAND_BLOCK):
            first, weights = band.first[row : row + _BAND_BLOCK], band.weights[row : row + _BAND_BLOCK]
            low, high = int(first.min()), min(int(first.max()) + weights.shape[1], n)
            block = np.zeros((len(first), int(first.max()) + weights.shape[1] - low))
            block[np.arange(len(first))[:, None], first[:, None] - low + np.arange(weights.shape[1])] = weights
            blocks.append((Constant(block[:, : high - low]), low, high))
        work = sum(block.value.size for block, _, _ in blocks)
        return tuple(blocks) if 2 * work <= m * n else ()

    @functools.cached_property
    def stencil(self) -> Stencil | None:
        """The matrix as a strided convolution with scaled rows, where it is one."""
        return None if self.band is None else Stencil.of(self.band)

    @property
    def _is_fast(self) -> bool:
        return isinstance(self.form, Spectral) and isinstance(self.form.basis, FastBasis)

    def precompute(self) -> None:
        """Fill the caches that `apply` reads, here and for the transpose."""
        for matrix in (self, self.T):
            if not (matrix._is_fast or matrix.bands):
                _ = matrix.constant

    def apply(self, xp: Namespace, x: Array, axis: int) -> Array:
        """The matrix times `x` along the negative `axis`."""
        if axis < -1 and sums_rows(xp, x) and self.stencil is not None and self.stencil.sums:
            return self.stencil.apply(xp, x, axis)
        if isinstance(self.form, Spectral) and self._is_fast:
            return self.form.apply(xp, x, axis)
        if not self.bands:
            return matmul_axis(xp, self.constant.like(xp, x), x, axis)
        return self._by_bands(xp, x, axis)

    def add_applied(self, xp: Namespace, base: Array, scale: float, x: Array, axis: int) -> Array:
        """base + scale · the matrix times `x` along the negative `axis`, a new array."""
        if axis < -1 and sums_rows(xp, x) and self.T.stencil is not None and self.T.stencil.sums:
            return self.T.stencil.add_adjoint(xp, base, scale, x, axis)
        if self._is_fast or self.bands:
            return combined(xp, base, scale, self.apply(xp, x, axis))
        return add_matmul_axis(xp, base, scale, self.constant.like(xp, x), x, axis)

    def _by_bands(self, xp: Namespace, x: Array, axis: int) -> Array:
        index: list[slice] = [slice(None)] * x.ndim
        parts = []
        for block, low, high in self.bands:
            index[axis] = slice(low, high)
            parts.append((block.like(xp, x), x[tuple(index)]))
        if isinstance(x, np.ndarray) and axis >= -2:  # each into its place
            y = np.empty((*x.shape[:axis], self.shape[0], *x.shape[x.ndim + axis + 1 :]), x.dtype)
            row = 0
            for matrix, piece in parts:
                index[axis] = slice(row, row := row + len(matrix))
                left, right = (matrix, piece) if axis == -2 else (piece, matrix.T)
                np.matmul(left, right, out=y[tuple(index)])
            return y
        return xp.concat([matmul_axis(xp, *part, axis) for part in parts], axis=x.ndim + axis)
