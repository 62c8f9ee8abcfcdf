"""The unscaled degradations R_{s→t} of a process: a chain of operators, or a growing blur."""

from __future__ import annotations

import abc
import bisect
import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from ssdcore._arrays import Array, Constant, Memo, Namespace, Shape, known_array
from ssdcore._keyed import Keyed
from ssdcore._times import look_up
from ssdcore.operators import Blur, Identity, LinearOperator
from ssdcore.operators.blur import spectral_basis
from ssdcore.spectral import Modes


class Degradations(Keyed, abc.ABC):
    """The unscaled operators R_{s→t}, 0 <= s <= t <= T, with R_{s→u} = R_{t→u} R_{s→t}."""

    @property
    @abc.abstractmethod
    def steps(self) -> int:
        """T."""

    @abc.abstractmethod
    def shape(self, t: int) -> Shape:
        """Trailing shape of the state at time t."""

    @abc.abstractmethod
    def between(self, s: int, t: int) -> LinearOperator:
        """R_{s→t}."""

    @abc.abstractmethod
    def stage(self, t: int) -> int:
        """A number that two times share exactly if R_{0→t} is the same for both."""

    @abc.abstractmethod
    def key(self) -> Hashable:
        """What tells these degradations from others: two are equal if their kinds and keys are."""

    @abc.abstractmethod
    def step_norms(self) -> np.ndarray:
        """‖R_{t−1→t}‖ for t = 1 … T."""

    @property
    def modes(self) -> Modes | None:
        """Modes in which every R_{s→t} is diagonal, where there are such; `response` then gives the diagonals."""
        return None

    def response(self, xp: Namespace, s: Array, t: Array, dtype: Any) -> Array:
        """Eigenvalues of R_{s→t} for arrays of times, ``(*s.shape, *modes.counts)``."""
        raise ValueError(f"{type(self).__name__}: its degradations have no modes in common")


class Chain(Degradations):
    """One operator per step, None for the identity."""

    def __init__(self, shape: Shape, ops: Sequence[LinearOperator | None]) -> None:
        self._changes = [t for t, op in enumerate(ops, start=1) if op is not None]
        self._ops = [op for op in ops if op is not None]
        self._steps = len(ops)
        self._shapes = [shape]
        for t, op in zip(self._changes, self._ops):
            if op.in_shape != self._shapes[-1]:
                raise ValueError(f"step {t}: {op} takes {op.in_shape}, but the state before it is {self._shapes[-1]}")
            self._shapes.append(op.out_shape)
        self._products = Memo()

    def __repr__(self) -> str:
        kinds = {type(op).__name__: None for op in self._ops}
        return f"{len(self._ops)} of {', '.join(kinds)}" if self._ops else "not degraded"

    @property
    def steps(self) -> int:
        return self._steps

    def key(self) -> Hashable:
        return self._steps, self._shapes[0], tuple(self._changes), tuple(self._ops)

    def stage(self, t: int) -> int:
        """How many operators have been applied at time t."""
        return bisect.bisect_right(self._changes, t)

    def shape(self, t: int) -> Shape:
        return self._shapes[self.stage(t)]

    def between(self, s: int, t: int) -> LinearOperator:
        return self._products.get(self._product, self.stage(s), self.stage(t), sized=self._size)

    def _product(self, first: int, last: int) -> LinearOperator:
        product: LinearOperator = Identity(self._shapes[first])
        for op in self._ops[first:last]:
            product = op @ product
        return product

    def _size(self, product: LinearOperator) -> int:
        """About how many bytes a product holds beside the operators of the chain themselves."""
        if any(product is op for op in self._ops):
            return 0
        return product.held_bytes()

    def step_norms(self) -> np.ndarray:
        norms = np.ones(self._steps)
        by_operator = {op: op.norm() for op in dict.fromkeys(self._ops)}
        for t, op in zip(self._changes, self._ops):
            norms[t - 1] = by_operator[op]
        return norms


class GrowingBlur(Degradations):
    """R_{s→t} is a blur of variance widths[t]² − widths[s]²."""

    def __init__(self, shape: Shape, widths: np.ndarray, boundary: str) -> None:
        widths = Constant(widths).value  # read-only, and not the caller's
        self._shape, self._widths, self._boundary = shape, widths, boundary
        self._variances = Constant(widths**2)
        bases = [spectral_basis(n, boundary) for n in shape]
        self._modes = Modes(shape, shape, tuple(basis for basis, _ in bases))
        self._squares = [Constant(frequencies**2) for _, frequencies in bases]
        self._stages = np.searchsorted(np.unique(widths), widths).tolist()
        self._memo = Memo()

    @property
    def widths(self) -> np.ndarray:
        """(T + 1,) the standard deviations at t = 0 … T, in samples."""
        return self._widths

    @property
    def boundary(self) -> str:
        """What lies beyond the edges, as for `Blur`."""
        return self._boundary

    def __repr__(self) -> str:
        return f"blur up to {self._widths[-1]:.4g} samples, {self._boundary}"

    @property
    def steps(self) -> int:
        return len(self._widths) - 1

    def key(self) -> Hashable:
        return self._shape, self._widths.tobytes(), self._boundary

    def stage(self, t: int) -> int:
        return int(self._stages[t])

    def shape(self, t: int) -> Shape:
        return self._shape

    def between(self, s: int, t: int) -> LinearOperator:
        low, high = float(self._widths[s]), float(self._widths[t])
        return self._memo.get(self._blur, low, high, sized=lambda blur: blur.held_bytes())

    def _blur(self, low: float, high: float) -> LinearOperator:
        if high == low:
            return Identity(self._shape)
        return Blur(self._shape, math.sqrt((high - low) * (high + low)), self._boundary)

    @property
    def modes(self) -> Modes:
        return self._modes

    def response(self, xp: Namespace, s: Array, t: Array, dtype: Any) -> Array:
        low, high = (look_up(xp, self._variances, index, dtype) for index in (s, t))
        exponent: Any = 0.0
        for axis, n in enumerate(self._shape):
            squares = self._squares[axis].like(xp, low)
            exponent = exponent + xp.reshape(squares, (n, *(1,) * (len(self._shape) - axis - 1)))
        grown = xp.clip(high - low, 0.0, None)
        grown = xp.reshape(grown, (*grown.shape, *(1,) * len(self._shape)))
        return xp.exp(-0.5 * grown * exponent)

    def step_norms(self) -> np.ndarray:
        return np.ones(len(self._widths) - 1)  # the mean passes every blur unchanged


class BlurredResize(Degradations):
    """A chain whose states are blurred besides: R_{0→t} shows x_0 blurred by widths[t], in pixels of the full size.

    ::

        R_{s→t} = B_k(w_s', w_t) C_k ⋯ C_{j+1} B_j(w_s, w_{t_{j+1}})

    for states of level j at s and k at t: within a level it blurs by the variance that the widths have gained there,
    scaled to the level's pixels; where `inner` changes the state at t, it blurs up to widths[t] first.

    - inner: the chain, changing at few times

    widths  (T + 1,) standard deviations, widths[0] = 0, never falling
    """

    def __init__(self, inner: Degradations, widths: Sequence[float] | np.ndarray, boundary: str = "reflect") -> None:
        w = known_array(widths, "BlurredResize: widths").astype(np.float64)
        if w.shape != (inner.steps + 1,) or not np.isfinite(w).all() or w[0] != 0 or (np.diff(w) < 0).any():
            raise ValueError(
                f"BlurredResize: expected {inner.steps + 1} finite widths for t = 0 … {inner.steps} that start at 0 "
                f"and never fall, got the shape {w.shape}"
            )
        w.flags.writeable = False
        self.inner, self.widths, self.boundary = inner, w, boundary
        self._starts = [t for t in range(1, inner.steps + 1) if inner.stage(t) != inner.stage(t - 1)]
        pairs = zip([inner.stage(t) for t in range(inner.steps + 1)], w.tolist())
        numbers: dict[tuple[int, float], int] = {}
        self._stages = [numbers.setdefault(pair, len(numbers)) for pair in pairs]
        self._memo = Memo()

    def __repr__(self) -> str:
        return f"{self.inner!r} with blur up to {self.widths[-1]:.4g} pixels"

    @property
    def steps(self) -> int:
        return self.inner.steps

    def key(self) -> Hashable:
        return self.inner, self.widths.tobytes(), self.boundary

    def shape(self, t: int) -> Shape:
        return self.inner.shape(t)

    def stage(self, t: int) -> int:
        return self._stages[t]

    def between(self, s: int, t: int) -> LinearOperator:
        size = sum(32 * n * n for n in self.shape(s))  # its matrices in two forms and two dtypes, once it is applied
        return self._memo.get(self._between, s, t, sized=lambda operator: size)

    def _between(self, s: int, t: int) -> LinearOperator:
        product: LinearOperator = Identity(self.shape(s))
        now = s
        for change in (*(c for c in self._starts if s < c <= t), None):
            until = t if change is None else change
            high, low = self.widths[until], self.widths[now]
            if high > low:
                scale = math.prod(a / b for a, b in zip(self.shape(now), self.shape(0))) ** (1 / len(self.shape(0)))
                width = scale * math.sqrt((high - low) * (high + low))
                product = Blur(self.shape(now), width, self.boundary) @ product
            if change is not None:
                product = self.inner.between(change - 1, change) @ product
                now = change
        return product

    def step_norms(self) -> np.ndarray:
        norms = np.array(self.inner.step_norms())  # the mean passes every blur unchanged
        for t in self._starts:
            norms[t - 1] = self.between(t - 1, t).norm()
        return norms
