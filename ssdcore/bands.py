"""Matrices with their entries near the diagonal: bands, their exact norm, and those that are strided convolutions."""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import dataclass

import numpy as np

from ssdcore._arrays import Array, Constant, Namespace, add_to

_EPS = float(np.finfo(np.float64).eps)
_TRIED = 512  # values at once in a search for a norm: as quick as a few
# Sums of rows beat a matrix product from so many columns for each tap on, and so many elements.
_PRODUCTS = 12
_LEAST = 2**15


@dataclass(frozen=True, eq=False)
class Band:
    """Rows (m, n) with their nonzero entries near each other: row i holds weights[i] from column first[i] on.

    Columns outside 0 … n − 1 have weight 0.
    """

    n: int
    first: np.ndarray
    weights: np.ndarray

    @staticmethod
    def of(matrix: np.ndarray) -> Band:
        occupied = matrix != 0
        some = occupied.any(axis=1)
        first = np.where(some, occupied.argmax(axis=1), 0)
        last = np.where(some, matrix.shape[1] - 1 - occupied[:, ::-1].argmax(axis=1), 0)
        columns = first[:, None] + np.arange(int((last - first).max()) + 1)
        inside = columns < matrix.shape[1]
        rows = np.arange(len(matrix))[:, None]
        weights = np.where(inside, matrix[rows, np.minimum(columns, matrix.shape[1] - 1)], 0.0)
        return Band(matrix.shape[1], first, weights)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.first), self.n

    def _entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(rows, columns, values) of the nonzero entries, row by row."""
        columns = self.first[:, None] + np.arange(self.weights.shape[1])
        held = self.weights != 0
        rows = np.broadcast_to(np.arange(len(self.first))[:, None], held.shape)
        return rows[held], columns[held], self.weights[held]

    def dense(self) -> np.ndarray:
        matrix = np.zeros(self.shape)
        rows, columns, values = self._entries()
        matrix[rows, columns] = values
        return matrix

    @property
    def T(self) -> Band:
        rows, columns, values = self._entries()
        return Band.from_entries(self.shape[::-1], columns, rows, values)

    @staticmethod
    def from_entries(shape: tuple[int, int], rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> Band:
        """Entries at the same place are added."""
        m, n = shape
        first, last = np.full(m, n), np.zeros(m, dtype=np.int64)
        np.minimum.at(first, rows, columns)
        np.maximum.at(last, rows, columns)
        first = np.minimum(first, last)
        weights = np.zeros((m, int((last - first).max()) + 1))
        np.add.at(weights, (rows, columns - first[rows]), values)
        return Band(n, first, weights)

    def __matmul__(self, inner: Band) -> Band:
        rows, middle, values = self._entries()
        columns = inner.first[middle][:, None] + np.arange(inner.weights.shape[1])
        products = values[:, None] * inner.weights[middle]
        held = products != 0
        spread_rows = np.broadcast_to(rows[:, None], held.shape)
        return Band.from_entries((self.shape[0], inner.n), spread_rows[held], columns[held], products[held])

    def norm(self) -> float:
        """The largest singular value, exact to rounding: where λ I − A Aᵀ stops having a Cholesky factor.

        Many values of λ are tried at once, and the interval between two of them again, until it is narrow as rounding.
        """
        gram = self @ self.T if self.shape[0] <= self.n else self.T @ self
        m = gram.shape[0]
        bandwidth = int(max((np.arange(m) - gram.first).max(), 0))
        lower = np.zeros((m, bandwidth + 1))  # lower[i, k] is entry (i, i − k)
        rows, columns, values = gram._entries()
        below = columns <= rows
        lower[rows[below], (rows - columns)[below]] = values[below]
        low, high = float(lower[:, 0].max()), float(np.abs(gram.weights).sum(axis=1).max())
        high *= 1 + 4 * _EPS
        while high - low > 4 * _EPS * high:
            tried = low + (high - low) * np.arange(1, _TRIED) / _TRIED
            with np.errstate(all="ignore"):  # whatever follows a pivot that is not positive
                fits = np.flatnonzero(_definite(lower, tried))
            index = int(fits[0]) if fits.size else _TRIED - 1
            new_low = low if index == 0 else float(tried[index - 1])
            new_high = high if index == _TRIED - 1 else float(tried[index])
            if (new_low, new_high) == (low, high):
                break
            low, high = new_low, new_high
        return math.sqrt(high)


def _definite(lower: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """For each shift λ whether λ I − G is positive definite, G given by its band below the diagonal."""
    m, width = lower.shape
    b = width - 1
    if b == 1:
        pivot, least = np.ones(len(shifts)), np.full(len(shifts), np.inf)
        for diagonal, squared in zip(lower[:, 0].tolist(), (lower[:, 1] ** 2).tolist()):
            pivot = shifts - diagonal - squared / pivot
            np.minimum(least, pivot, out=least)
        return least > 0
    good = np.ones(len(shifts), dtype=bool)
    factor: list[np.ndarray] = []  # of the last b rows, (b + 1, shifts): unit lower entries times pivots, newest last
    pivots: list[np.ndarray] = []
    for i in range(m):
        reach = min(b, i)
        row = np.zeros((reach + 1, len(shifts)))  # row[k] is entry (i, i − reach + k) of L D
        for k in range(reach):
            j = i - reach + k
            entry = np.full(len(shifts), -lower[i, i - j])
            older = factor[k - reach]  # row j of L D
            shared = min(k, len(older) - 1)
            for p in range(1, shared + 1):
                entry = entry - row[k - p] * older[len(older) - 1 - p] / pivots[k - p - reach]
            row[k] = entry
        pivot = shifts - lower[i, 0]
        for k in range(reach):
            pivot = pivot - row[k] ** 2 / pivots[k - reach]
        good &= pivot > 0
        pivot = np.where(good, pivot, 1.0)
        row[reach] = pivot
        factor, pivots = [*factor, row][-b:] if b else [], [*pivots, pivot][-b:] if b else []
    return good


@dataclass(frozen=True, eq=False)
class Stencil:
    """A = D C: C a convolution with `taps` at every `stride`-th place, zero outside, and D = diag(`scale`).

    Row i holds scale[i] · taps from column i · stride − padding on.

    """

    taps: np.ndarray
    stride: int
    padding: int
    scale: np.ndarray

    @property
    def rest(self) -> int:
        """What a transposed convolution would leave out at the far end."""
        return self.stride + 2 * self.padding - len(self.taps)

    @staticmethod
    def of(band: Band) -> Stencil | None:
        """The stencil of a band that has one to rounding, as an antialiased resize by a whole factor has."""
        m, n = band.shape
        if m < 8 or n % m or n == m:
            return None
        stride, middle = n // m, m // 2
        row = np.flatnonzero(band.weights[middle])
        taps = band.weights[middle, row[0] : row[-1] + 1]
        padding = middle * stride - int(band.first[middle] + row[0])
        if padding < 0 or not 0 <= stride + 2 * padding - len(taps) < stride:  # a convolution would have other outputs
            return None
        columns = np.arange(m)[:, None] * stride - padding + np.arange(len(taps))
        inside = (columns >= 0) & (columns < n)
        present = np.where(inside, taps, 0.0)
        total = present.sum(axis=1)
        if not (np.abs(total) > 0).all():
            return None
        scale = band.weights.sum(axis=1) / total
        rows = np.broadcast_to(np.arange(m)[:, None], columns.shape)
        rebuilt = Band.from_entries((m, n), rows[inside], columns[inside], (scale[:, None] * present)[inside])
        a, b = rebuilt._entries(), band._entries()
        same = len(a[2]) == len(b[2]) and (a[0] == b[0]).all() and (a[1] == b[1]).all()
        if not same or np.abs(a[2] - b[2]).max() > 16 * _EPS * np.abs(taps).max():
            return None
        return Stencil(taps, stride, padding, scale)

    @functools.cached_property
    def _terms(self) -> tuple[tuple[int, float, tuple[slice, slice], tuple[slice, slice]], ...]:
        """(phase, tap by the first one's, rows of A x, rows of x): A x sums x at that phase of every `stride` entries.

        Those that every row has come first.
        """
        m, found = len(self.scale), []
        for k, tap in enumerate(self.taps.tolist()):
            group, phase = divmod(k - self.padding, self.stride)
            low, high = max(-group, 0), m - max(group, 0)
            if tap and low < high:
                found.append((group != 0, phase, tap, low, high, group))
        found.sort()
        every = slice(None)
        return tuple(
            (phase, tap / found[0][2], (every, slice(low, high)), (every, slice(low + group, high + group)))
            for _, phase, tap, low, high, group in found
        )

    @functools.cached_property
    def _spread(self) -> tuple[tuple[int, float, tuple[slice, slice], tuple[slice, slice]], ...]:
        """The terms of Aᵀ y where every phase has all rows once already."""
        every = (slice(None), slice(0, len(self.scale)))
        once = dict.fromkeys(range(self.stride), 0.0) | {phase: tap for phase, tap, of, _ in self._terms if of == every}
        own = [(phase, tap - 1, every, every) for phase, tap in once.items() if tap != 1]
        return (*own, *(term for term in self._terms if term[2] != every))

    @functools.cached_property
    def weights(self) -> Constant:
        """D times the first of the taps, (m, 1)."""
        first = self._terms[0][0]
        return Constant(self.taps[first + self.padding] * self.scale[:, None])

    @functools.cached_property
    def sums(self) -> bool:
        """Whether `apply` takes less time than a product: for long rows, and two taps or more that all of them have."""
        whole = sum(rows[1] == slice(0, len(self.scale)) for _, _, rows, _ in self._terms)
        return whole > 1 and _PRODUCTS * len(self._terms) <= self.stride * len(self.scale)

    def apply(self, xp: Namespace, x: Array, axis: int) -> Array:
        """A x along the negative `axis` of a torch array, not the last one."""
        after = x.shape[x.ndim + axis + 1 :]
        y = self.lowered(x.reshape(-1, x.shape[axis], math.prod(after))).mul_(self.weights.like(xp, x))
        return y.reshape(*x.shape[:axis], len(self.scale), *after)

    def add_adjoint(self, xp: Namespace, base: Array, scale: float, y: Array, axis: int) -> Array:
        """base + scale · Aᵀ y along the negative `axis` of torch arrays, not the last one."""
        m, after = len(self.scale), y.shape[y.ndim + axis + 1 :]
        x = self.raised(y.reshape(-1, m, math.prod(after)) * (scale * self.weights.like(xp, y)))
        return add_to(xp, x.reshape(*y.shape[:axis], m * self.stride, *after), 1.0, base)

    def lowered(self, x: Array) -> Array:
        """A x by `weights` along the middle one of three axes, a new array."""
        phases = x.reshape(x.shape[0], -1, self.stride, x.shape[2]).unbind(2)
        (first, _, _, _), (second, ratio, _, _), *others = self._terms
        y = phases[first].add(phases[second], alpha=ratio)
        for phase, tap, rows, of in others:
            y[rows].add_(phases[phase][of], alpha=tap)
        return y

    def raised(self, rows: Array) -> Array:
        """Aᵀ y along the middle one of three axes, `rows` being y times `weights`: a new array, (…, m, stride, …)."""
        x = sys.modules["torch"].stack((rows,) * self.stride, 2)
        phases = x.unbind(2)
        for phase, tap, of, to in self._spread:
            phases[phase][to].add_(rows[of], alpha=tap)
        return x


def convolves(xp: Namespace, x: Array) -> bool:
    """Whether convolutions may be the faster way for `x`: torch on a CPU in float32, and not compiled."""
    if xp.__name__ != "array_api_compat.torch":
        return False
    torch = sys.modules["torch"]
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling() and x.numel() > 0


def sums_rows(xp: Namespace, x: Array, *others: Array) -> bool:
    """Whether sums of rows (`Stencil.lowered`) may be the faster way for `x`: large, of torch on a CPU, not compiled.

    And without gradients, to it or to the `others` that it meets: each sum would make a copy of them.
    """
    if xp.__name__ != "array_api_compat.torch":
        return False
    torch = sys.modules["torch"]
    if x.device.type != "cpu" or type(x) is not torch.Tensor or x.numel() < _LEAST or torch.compiler.is_compiling():
        return False
    return not (torch.is_grad_enabled() and (x.requires_grad or any(y.requires_grad for y in others)))
