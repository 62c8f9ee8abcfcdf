"""The operations of `lifted.Lift` for large torch images on a CPU, one after the other with little between them.

At 64×64 what Python does between two products takes half as long as a product, since caches are cold by then. So here
arrays have three axes from beginning to end, constants are at hand, and no layer asks what the one before has asked.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from ssdcore._arrays import Array, Constant, Namespace
from ssdcore.axes import AxisMatrix
from ssdcore.bands import Stencil, sums_rows

Numbers = tuple[Array, ...]


@dataclass(frozen=True, eq=False)
class Planes:
    """R = A ⊗ B with a stencil A, which is quicker as sums of rows, and a small matrix for each mode of the columns.

    Attributes:
        rows: A
        columns: B, (m, n)
        down, up: Uᵀ B (k, n) and U (m, k), U being the modes of B's output
        blocks: (k, m, m), what the rows of each mode are multiplied with, A's weights included
        gain: what Rᵀ is multiplied with
    """

    rows: Stencil
    columns: Constant
    down: Constant
    up: Constant
    blocks: Constant
    gain: float

    @staticmethod
    def of(axes: tuple[AxisMatrix, ...], down: Constant, up: Constant, blocks: Constant, gain: float) -> Planes | None:
        """None where the rows have no stencil, or a product is as quick."""
        rows = axes[0].stencil
        if len(axes) != 2 or rows is None or not rows.sums:
            return None
        return Planes(rows, axes[1].constant, down, up, Constant(rows.weights.value * blocks.value), gain)

    @staticmethod
    def serves(xp: Namespace, large: Array, *others: Array) -> bool:
        """Whether the arrays are such as `sums_rows` asks for, and of one batch."""
        return sums_rows(xp, large, *others) and all(x.shape[:-2] == large.shape[:-2] for x in others)

    @functools.cached_property
    def _raising(self) -> Constant:
        return Constant(self.gain * self.rows.weights.value)

    @functools.cached_property
    def _held(self) -> dict[Any, Numbers]:
        return {}

    def _numbers(self, xp: Namespace, x: Array) -> Numbers:
        found = self._held.get((x.dtype, x.device))
        if found is None:
            parts = (self.rows.weights, self.columns, self.down, self.blocks, self.up, self._raising)
            found = self._held[x.dtype, x.device] = tuple(part.like(xp, x) for part in parts)
        return found

    def innovation(self, xp: Namespace, x_t: Array, alpha_t: float, clean: Array) -> Array:
        """x_t − α_t R c, for c = `clean`."""
        weights, columns, *_ = self._numbers(xp, clean)
        m, n = columns.shape
        degraded = self.rows.lowered(clean.reshape(-1, *clean.shape[-2:])).mul_(weights).reshape(-1, n)
        return x_t.reshape(-1, m).addmm(degraded, columns.T, alpha=-alpha_t).reshape(x_t.shape)

    def draw(self, xp: Namespace, centre: Array, innovation: Array, sigma: float, noise: Array) -> Array:
        """centre + σ z + gain · Rᵀ (innovation + the blocks' work on R z), for z = `noise`."""
        _, columns, down, blocks, up, raising = self._numbers(xp, noise)
        (m, n), k = columns.shape, down.shape[0]
        lowered = self.rows.lowered(noise.reshape(-1, *noise.shape[-2:]))
        height = lowered.shape[1]
        modes = down.mm(lowered.reshape(-1, n).T).reshape(k, -1, height).bmm(blocks)
        small = innovation.reshape(-1, m).addmm(modes.reshape(k, -1).T, up.T).reshape(-1, height, m).mul_(raising)
        x = self.rows.raised(small.reshape(-1, m).mm(columns).reshape(-1, height, n)).reshape(noise.shape)
        return x.add_(centre).add_(noise, alpha=sigma)
