"""Resize: antialiased, half-pixel resampling of every trailing axis."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from ssdcore._arrays import Shape
from ssdcore.axes import LONG, AxisMatrix
from ssdcore.bands import Band
from ssdcore.operators.linear_map import positive_shape
from ssdcore.operators.separable import AxisOperator


def _box(z: Any) -> Any:
    return 1 if -1 < 2 * z <= 1 else 0  # half-open, so that a sample on the border counts once


def _triangle(z: Any) -> Any:
    return max(1 - abs(z), 0)


def _cubic(z: Any) -> Any:
    z = abs(z)
    if z < 1:
        return (3 * z - 5) * z * z / 2 + 1  # Keys' cubic convolution, a = −1/2
    return ((5 - z) * z / 2 - 4) * z + 2 if z < 2 else 0


def _lanczos3(z: Any) -> Any:
    if z == 0:
        return 1.0
    if abs(z) >= 3:
        return 0.0
    angle = math.pi * float(z)
    return 3 * math.sin(angle) * math.sin(angle / 3) / angle**2


# kernel -> (function of the distance in samples of the coarser grid, half-width of its support)
_KERNELS: dict[str, tuple[Callable[[Any], Any], int]] = {
    "box": (_box, 1),
    "bilinear": (_triangle, 1),
    "bicubic": (_cubic, 2),
    "lanczos3": (_lanczos3, 3),
}


def _resize_rows(n_in: int, n_out: int, kernel: str) -> list[dict[int, Any]]:
    """For each output sample {input index: weight}, exact rationals (floats for lanczos3), each row summing to one.

    Sample i of the output sits at (i + 1/2)·n_in/n_out in input pixels; the kernel is stretched by n_in/n_out when
    the size shrinks (antialiasing) and cut at the borders.
    """
    function, support = _KERNELS[kernel]
    scale = Fraction(n_in, n_out)
    stretch = max(scale, Fraction(1))
    period, shift = n_out // math.gcd(n_in, n_out), n_in // math.gcd(n_in, n_out)
    inner: dict[int, tuple[int, dict[int, Any]]] = {}  # phase -> a row that no border cuts, and its index
    rows = []
    for i in range(n_out):
        centre = (i + Fraction(1, 2)) * scale
        first, last = math.floor(centre - support * stretch), math.ceil(centre + support * stretch)
        whole = first >= 0 and last <= n_in
        if whole and i % period in inner:  # the same weights, some periods on
            before, row = inner[i % period]
            move = (i - before) // period * shift
            rows.append({j + move: weight for j, weight in row.items()})
            continue
        within = range(max(first, 0), min(last, n_in))
        weights = {j: function((j + Fraction(1, 2) - centre) / stretch) for j in within}
        total = sum(weights.values())
        rows.append({j: weight / total for j, weight in weights.items() if weight != 0})
        if whole:
            inner[i % period] = i, rows[-1]
    return rows


@functools.lru_cache(maxsize=64)
def _resize_axis(n_in: int, n_out: int, kernel: str) -> AxisMatrix:
    rows = _resize_rows(n_in, n_out, kernel)
    index = np.repeat(np.arange(n_out), [len(row) for row in rows])
    columns = np.array([j for row in rows for j in row])
    band = Band.from_entries((n_out, n_in), index, columns, np.array([float(w) for row in rows for w in row.values()]))
    return AxisMatrix(band if max(n_in, n_out) >= LONG else band.dense())


@dataclass(frozen=True, eq=False, repr=False)
class Resize(AxisOperator):
    """Resample every trailing axis from in_shape to out_shape, up or down, antialiased, half-pixel centred.

    Separable: one matrix per axis. This is the degradation of Scale Space Diffusion (with kernel="bilinear").

    Attributes:
        kernel: "box", "bilinear", "bicubic" (Keys, a = −1/2) or "lanczos3". "bilinear" and "bicubic" equal
            ``torch.nn.functional.interpolate(..., antialias=True, align_corners=False)``, all four equal Pillow's
            ``Image.resize`` on float images, to rounding. Two exceptions: Pillow decides ties of its box by rounding
            errors at some sizes (11 to 6, 17 to 10), which here are decided by exact rational arithmetic; and torch is
            wrong for images of a single column, where Pillow and jax agree with this operator.

    Raises:
        ValueError: For an empty axis, shapes with different numbers of axes, or an unknown kernel.

    >>> op = ssd.Resize((4,), (2,), kernel="box")
    >>> op(np.array([1.0, 3.0, 5.0, 7.0]))
    array([2., 6.])
    >>> op.T(np.array([1.0, 1.0]))
    array([0.5, 0.5, 0.5, 0.5])
    >>> print(f"{op.norm():.4f}")
    0.7071
    >>> ssd.Resize((64, 64), (32, 32))(np.zeros((8, 3, 64, 64))).shape
    (8, 3, 32, 32)
    """

    in_shape: Shape
    out_shape: Shape
    kernel: str = "bilinear"

    def __post_init__(self) -> None:
        object.__setattr__(self, "in_shape", positive_shape(self.in_shape, "Resize"))
        object.__setattr__(self, "out_shape", positive_shape(self.out_shape, "Resize"))
        if len(self.in_shape) != len(self.out_shape):
            raise ValueError(f"{self}: both shapes need the same number of axes")
        if not isinstance(self.kernel, str) or self.kernel not in _KERNELS:
            raise ValueError(f"{self}: unknown kernel {self.kernel!r}; choose one of {', '.join(_KERNELS)}")

    @functools.cached_property
    def _axis_matrices(self) -> tuple[AxisMatrix, ...]:
        return tuple(_resize_axis(n, m, self.kernel) for n, m in zip(self.in_shape, self.out_shape))

    def axis_matrices(self) -> tuple[AxisMatrix, ...]:
        return self._axis_matrices

    def key(self) -> Hashable:
        return self.in_shape, self.out_shape, self.kernel
