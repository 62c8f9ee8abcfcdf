"""Blur: Gaussian blur, diagonal in the cosine basis (reflecting boundary) or the Fourier basis (periodic)."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from ssdcore._arrays import Array, Constant, Namespace, Shape, number
from ssdcore.axes import LONG, AxisMatrix, Basis, FastBasis, Spectral
from ssdcore.operators.base import LinearOperator
from ssdcore.operators.linear_map import positive_shape
from ssdcore.operators.separable import AxisOperator

_BOUNDARIES = ("reflect", "periodic")


@functools.lru_cache(maxsize=64)
def spectral_basis(n: int, boundary: str) -> tuple[Basis, np.ndarray]:
    """Orthonormal basis (n, n), columns the modes, and their frequencies ω in radians per sample.

    "reflect": DCT-II, ω = πk/n. "periodic": real Fourier, ω = 2πk/n for k up to n/2, cosines before sines. A long one
    is applied by fast transforms, and dense only where its `value` is asked for.
    """
    k = np.arange(n)
    frequencies = np.pi * k / n if boundary == "reflect" else 2 * np.pi * np.minimum(k, n - k) / n
    if n >= LONG:
        return FastBasis(n, boundary, _dense_basis), frequencies
    return Constant(_dense_basis(n, boundary)), frequencies


def _dense_basis(n: int, boundary: str) -> np.ndarray:
    j, k = np.arange(n)[:, None], np.arange(n)
    # Phases reduced to one turn in integers, so that large products lose nothing.
    if boundary == "reflect":
        basis = np.cos(np.pi * (((2 * j + 1) * k) % (4 * n)) / (2 * n))
    else:
        phase = 2 * np.pi * ((j * k) % n) / n
        basis = np.where(k <= n // 2, np.cos(phase), -np.sin(phase))
    return basis / np.linalg.norm(basis, axis=0)


@functools.lru_cache(maxsize=64)
def _blur_axis(n: int, sigma: float, boundary: str) -> AxisMatrix:
    basis, frequencies = spectral_basis(n, boundary)
    if sigma == 0:
        return AxisMatrix(Spectral(basis, Constant(np.ones(n))))
    with np.errstate(under="ignore"):
        return AxisMatrix(Spectral(basis, Constant(np.exp(-0.5 * (sigma * frequencies) ** 2))))


@dataclass(frozen=True, eq=False, repr=False)
class Blur(AxisOperator):
    """Gaussian blur with the response exp(−σ²ω²/2) on every trailing axis; widths add in squares.

    Symmetric and positive, of norm one. The degradation of blurring diffusion and, as `Blur.heat`, of heat dissipation.

    Attributes:
        sigma: standard deviation in samples: one number, or one per axis; >= 0
        boundary: "reflect": modes are DCT-II cosines, ω = πk/n; "periodic": Fourier modes, ω = 2πk/n

    Raises:
        ValueError: For a negative or non-finite width or an unknown boundary.

    >>> op = ssd.Blur((64, 64), 3.0)
    >>> op @ ssd.Blur((64, 64), 4.0)
    Blur((64, 64), sigma=5.0, boundary='reflect')
    >>> bool(np.allclose(op(np.ones((64, 64))), 1))  # a constant passes unchanged
    True
    """

    in_shape: Shape
    sigma: float | tuple[float, ...]
    boundary: str = "reflect"

    def __init__(self, shape: Shape | int, sigma: float | Sequence[float], boundary: str = "reflect") -> None:
        checked = positive_shape(shape, "Blur")
        sigma = number(sigma, "Blur: sigma")
        each = (sigma,) * len(checked) if isinstance(sigma, numbers.Real) else cast(Sequence[float], sigma)
        widths = tuple(float(number(s, "Blur: sigma")) for s in each)
        object.__setattr__(self, "in_shape", checked)
        object.__setattr__(self, "out_shape", checked)
        object.__setattr__(self, "sigma", widths[0] if len(set(widths)) == 1 else widths)
        object.__setattr__(self, "boundary", boundary)
        object.__setattr__(self, "_widths", widths)
        if len(widths) != len(checked):
            raise ValueError(f"Blur({checked}): expected one width or one for each axis, got {len(widths)}: {widths}")
        if not all(math.isfinite(s) and s >= 0 for s in widths):
            raise ValueError(f"Blur({checked}): widths must be finite and not negative, got {sigma}")
        if boundary not in _BOUNDARIES:
            raise ValueError(f"Blur({checked}): unknown boundary {boundary!r}; choose 'reflect' or 'periodic'")

    @classmethod
    def heat(cls, shape: Shape | int, time: float, boundary: str = "reflect") -> Blur:
        """Heat dissipation u' = Δu for `time` (squared samples): the response exp(−ω² time), a blur of σ² = 2·time."""
        time = number(time, "Blur.heat")
        if not (math.isfinite(time) and time >= 0):
            raise ValueError(f"Blur.heat: the time must be finite and not negative, got {time}")
        return cls(shape, math.sqrt(2 * time), boundary)

    @functools.cached_property
    def _axis_matrices(self) -> tuple[AxisMatrix, ...]:
        widths: tuple[float, ...] = self.__dict__["_widths"]
        return tuple(_blur_axis(n, s, self.boundary) for n, s in zip(self.in_shape, widths))

    def axis_matrices(self) -> tuple[AxisMatrix, ...]:
        return self._axis_matrices

    def apply_adjoint(self, xp: Namespace, y: Array) -> Array:
        return self.apply(xp, y)

    def after(self, inner: LinearOperator) -> LinearOperator | None:
        if isinstance(inner, Blur) and inner.boundary == self.boundary:
            return self.then(inner)
        return super().after(inner)

    def key(self) -> Hashable:
        return self.in_shape, self.__dict__["_widths"], self.boundary

    @property
    def T(self) -> LinearOperator:
        return self

    def then(self, other: Blur) -> Blur:
        """One blur equal to this and `other` in either order: variances add."""
        widths = tuple(math.hypot(a, b) for a, b in zip(self.__dict__["_widths"], other.__dict__["_widths"]))
        return Blur(self.in_shape, widths, self.boundary)

    def __repr__(self) -> str:
        return f"Blur({self.in_shape}, sigma={self.sigma}, boundary={self.boundary!r})"
