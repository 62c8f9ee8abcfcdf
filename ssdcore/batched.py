"""Covariances held as arrays: one for each item of a batch, or traced."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssdcore import _pytrees
from ssdcore._arrays import Array, Constant, Namespace, Shape, cast, namespace_of
from ssdcore.gaussian import Covariance, SpectralCovariance
from ssdcore.spectral import Modes


@dataclass(frozen=True, eq=False, repr=False)
class BatchedCovariance(Covariance, static=False):
    """V diag(values) Vᵀ + rest (I − V Vᵀ), one for each item of the leading axis of the arrays that it is applied to.

    What `LinearDiffusion.marginal`, `transition` and `posterior` give for arrays of times, and for times traced by jax
    or torch. Values are not checked: they may be traced. `log_determinant` is an array, one number an item.

    Attributes:
        values: variances of the modes V, ``(*items, 1, …, *modes.counts)``, broadcast against coefficients (*batch,
            *counts)
        rest: variance of everything else, ``(*items, 1, …)``, broadcast against arrays ``(*batch, *modes.shape)``
    """

    modes: Modes
    values: Array
    rest: Array

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.modes.shape

    def __repr__(self) -> str:
        return f"BatchedCovariance({self.shape}, variances shaped {tuple(np.shape(self.values))})"

    def apply_power(self, xp: Namespace, x: Array, power: float) -> Array:
        values, rest = (self._power(xp, v, x, power) for v in (self.values, self.rest))
        if not self.modes.factors:
            return values * x
        if self.modes.complete:
            return self.modes.synthesise(xp, values * self.modes.analyse(xp, x))
        of_modes = xp.reshape(rest, (*rest.shape[: rest.ndim - len(self.shape)], *(1,) * len(self.modes.counts)))
        return self.modes.synthesise(xp, (values - of_modes) * self.modes.analyse(xp, x), rest * x)

    @staticmethod
    def _power(xp: Namespace, variance: Array, x: Array, power: float) -> Array:
        if isinstance(variance, (np.ndarray, np.generic)):
            return Constant(np.asarray(variance, dtype=np.float64) ** power).like(xp, x)
        return cast(xp, variance, x.dtype) ** power

    @property
    def singular(self) -> bool:
        """Whether the covariance of any item is, as far as they are known."""
        determinant = self.log_determinant()
        return isinstance(determinant, (np.ndarray, np.generic)) and bool((determinant == -np.inf).any())

    def log_determinant(self) -> Any:
        """log det C of each item, ``(*items, 1, …)``: −inf where an item's is singular."""
        xp = namespace_of(self.values)
        trailing = tuple(range(-len(self.modes.counts), 0))
        values = xp.broadcast_to(
            self.values, (*self.values.shape[: self.values.ndim - len(trailing)], *self.modes.counts)
        )
        logs = xp.sum(_log(xp, values), axis=trailing)
        others = self.size - math.prod(self.modes.counts)
        if not others:
            return logs
        rest = xp.reshape(self.rest, self.rest.shape[: self.rest.ndim - len(self.shape)])
        return logs + others * _log(xp, rest)

    def as_matrix(self) -> np.ndarray:
        """The dense matrix (n, n), of one item only. Raises ValueError for several."""
        if self.values.size != np.prod(self.values.shape[self.values.ndim - len(self.modes.counts) :]):
            raise ValueError("BatchedCovariance: it has one matrix per item; take the items at their own times")
        spectrum = np.asarray(self.values).reshape(self.values.shape[self.values.ndim - len(self.modes.counts) :])
        return SpectralCovariance(self.modes, spectrum, float(np.asarray(self.rest).reshape(-1)[0])).as_matrix()


def _log(xp: Namespace, variance: Array) -> Array:
    if not isinstance(variance, (np.ndarray, np.generic)):
        return xp.log(variance)
    with np.errstate(divide="ignore"):
        return np.log(variance)


def _unflatten(modes: Modes, children: Any) -> BatchedCovariance:
    made = BatchedCovariance.__new__(BatchedCovariance)
    for name, value in zip(("modes", "values", "rest"), (modes, *children)):
        object.__setattr__(made, name, value)
    return made


_pytrees.register(BatchedCovariance, lambda c: ((c.values, c.rest), c.modes), _unflatten)
