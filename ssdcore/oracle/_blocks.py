"""Block structure: coordinates in which a data covariance and every operator of a chain are block-diagonal."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ssdcore._arrays import Shape, matmul_axis
from ssdcore.gaussian import Covariance, SpectralCovariance
from ssdcore.operators import Identity, LinearOperator
from ssdcore.operators.blur import spectral_basis
from ssdcore.process import LinearDiffusion

_EPS = np.finfo(np.float64).eps


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Orthonormal coordinates of arrays ``(*batch, *shape)``; no factors: the elements themselves, in C order."""

    shape: Shape
    factors: tuple[np.ndarray, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def analyse(self, x: np.ndarray) -> np.ndarray:
        """``(*batch, *shape)`` -> ``(*batch, size)``."""
        for i, factor in enumerate(self.factors):
            x = matmul_axis(np, factor.T, x, i - len(self.shape))
        return x.reshape(*x.shape[: x.ndim - len(self.shape)], self.size)

    def synthesise(self, z: np.ndarray) -> np.ndarray:
        """``(*batch, size)`` -> ``(*batch, *shape)``."""
        x = z.reshape(*z.shape[:-1], *self.shape)
        for i, factor in enumerate(self.factors):
            x = matmul_axis(np, factor, x, i - len(self.shape))
        return x

    def matrix(self, covariance: Covariance) -> np.ndarray:
        """A covariance (size, size) in these coordinates."""
        half = self.analyse(covariance.as_matrix().reshape(self.size, *self.shape))
        return self.analyse(np.ascontiguousarray(half.T).reshape(self.size, *self.shape))


@dataclass(frozen=True, eq=False)
class Group:
    """Blocks that have the same size at every stage: index[k][b] are the coordinates of block b at stage k."""

    index: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class Structure:
    """Stages (times that share a degradation R_{0→t}), their coordinates and the blocks that nothing couples.

    The blocks are found, not assumed: they are the connected components of what the operators and the covariance
    couple beyond rounding. Centred resizes of even sizes give the reflection parities, 2^d blocks with a cosine
    covariance; blurs give single modes; a covariance without symmetry gives one block.
    """

    chain: LinearDiffusion
    stage_of: tuple[int, ...]
    coordinates: tuple[Coordinates, ...]
    groups: tuple[Group, ...]
    diagonal: bool  # the covariance is diagonal in the coordinates of stage 0
    data: np.ndarray  # the data covariance there: (size,) if diagonal, else (size, size)

    @staticmethod
    def of(chain: LinearDiffusion, covariance: Covariance, prior: Covariance | None = None) -> Structure:
        stages: dict[int, int] = {}
        operators: list[LinearOperator] = []
        times, stage_of = [], []
        for t in range(chain.steps + 1):
            stage = stages.setdefault(chain.stage(t), len(operators))
            if stage == len(operators):
                operators.append(chain.operator(0, t))
                times.append(t)
            stage_of.append(stage)
        coordinates = _coordinates([chain.shape(t) for t in times], operators, covariance)
        steps = [chain.operator(s, t) for s, t in pairwise(times)]
        labels = _operator_labels(coordinates, steps)
        data, diagonal = _in_coordinates(coordinates[0], covariance)
        couplings = [] if diagonal else [(labels[0], data)]
        if prior is not None and not _is_isotropic(prior):
            couplings.append((labels[-1], coordinates[-1].matrix(prior)))
        labels = _merged(labels, couplings)
        return Structure(chain, tuple(stage_of), coordinates, _groups(labels), diagonal, data)

    @functools.cached_property
    def probes(self) -> tuple[np.ndarray, ...]:
        """Per stage (count, size): probe j holds a one at the j-th coordinate of every block."""
        result = []
        for k, coordinates in enumerate(self.coordinates):
            count = max((group.index[k].shape[1] for group in self.groups), default=0)
            probe = np.zeros((count, coordinates.size))
            for group in self.groups:
                for j in range(group.index[k].shape[1]):
                    probe[j, group.index[k][:, j]] = 1.0
            result.append(probe)
        return tuple(result)

    def blocks(self, apply: Callable[[np.ndarray], np.ndarray], source: int, target: int) -> list[np.ndarray]:
        """The blocks (b, n_target, n_source) of a linear map from stage `source` to stage `target`, for each group.

        All blocks are read off together: as nothing couples them, one probe excites one coordinate in each.
        """
        image = self.coordinates[target].analyse(apply(self.coordinates[source].synthesise(self.probes[source])))
        result = []
        for group in self.groups:
            count = group.index[source].shape[1]
            result.append(np.ascontiguousarray(np.moveaxis(image[:count, group.index[target]], 0, -1)))
        return result

    def data_block(self, group: Group) -> np.ndarray:
        """The data covariance of a group: (b, n) variances if diagonal, else (b, n, n)."""
        index = group.index[0]
        return self.data[index] if self.diagonal else self.data[index[:, :, None], index[:, None, :]]


def _coordinates(
    shapes: Sequence[Shape], operators: Sequence[LinearOperator], covariance: Covariance
) -> tuple[Coordinates, ...]:
    """The covariance's own modes at the full size where it has one set an axis, else cosines; for operators that are
    not separable the elements themselves."""
    if not all(isinstance(op, Identity) or op.axis_matrices() is not None for op in operators):
        return tuple(Coordinates(shape, ()) for shape in shapes)
    own: tuple[np.ndarray, ...] | None = None
    if isinstance(covariance, SpectralCovariance):
        modes = covariance.modes
        if modes.factors and modes.grid == modes.shape and modes.complete:
            own = tuple(factor.value for factor in modes.factors)
    result = []
    for shape in shapes:
        if own is not None and shape == shapes[0]:
            result.append(Coordinates(shape, own))
        else:
            result.append(Coordinates(shape, tuple(spectral_basis(n, "reflect")[0].value for n in shape)))
    return tuple(result)


def _in_coordinates(coordinates: Coordinates, covariance: Covariance) -> tuple[np.ndarray, bool]:
    if isinstance(covariance, SpectralCovariance):
        if _is_isotropic(covariance):
            return np.full(coordinates.size, covariance.values.item()), True
        modes = covariance.modes
        if (
            modes.complete
            and len(modes.factors) == len(coordinates.factors)
            and all(factor.value is own for factor, own in zip(modes.factors, coordinates.factors))
        ):
            return np.broadcast_to(covariance.values, modes.counts).reshape(-1), True
    matrix = coordinates.matrix(covariance)
    rounding = len(matrix) * _EPS * np.abs(matrix).max()
    if np.abs(matrix - np.diag(np.diagonal(matrix))).max() <= rounding:
        return np.maximum(np.diagonal(matrix), 0.0), True
    return (matrix + matrix.T) / 2, False


def _is_isotropic(covariance: Covariance) -> bool:
    return isinstance(covariance, SpectralCovariance) and not covariance.modes.factors and covariance.values.size == 1


class _Components:
    """Union-find over the integers below n."""

    def __init__(self, n: int) -> None:
        self._parent = list(range(n))
        self.count = n

    def root(self, i: int) -> int:
        parent = self._parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(self, i: int, j: int) -> None:
        i, j = self.root(i), self.root(j)
        if i != j:
            self._parent[i] = j
            self.count -= 1

    def couple(self, matrix: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> None:
        """Join the node of each row with those of the columns where the matrix is not zero to rounding."""
        size = np.abs(matrix)
        significant = size > max(matrix.shape) * _EPS * size.max(initial=0.0)
        for i, j in zip(*np.nonzero(significant)):
            if self.count == 1:
                return
            self.join(int(rows[i]), int(columns[j]))

    def labels(self, nodes: np.ndarray) -> np.ndarray:
        return np.array([self.root(int(i)) for i in nodes], dtype=np.int64)


def _operator_labels(coordinates: Sequence[Coordinates], steps: Sequence[LinearOperator]) -> list[np.ndarray]:
    """For each stage a label of each coordinate; equal labels where a chain of operators couples two coordinates.

    Separable operators couple the axes one by one, and the components are products of those of the axes.
    """
    if not coordinates[0].factors:
        grids: list[Shape] = [(c.size,) for c in coordinates]
    else:
        grids = [c.shape for c in coordinates]
    labels = [np.zeros((1,) * len(grid), dtype=np.int64) for grid in grids]
    for axis in range(len(grids[0])):
        offsets = np.concatenate([[0], np.cumsum([grid[axis] for grid in grids])])
        nodes = [np.arange(low, high) for low, high in pairwise(offsets)]
        components = _Components(int(offsets[-1]))
        for k, operator in enumerate(steps):
            components.couple(_axis_matrix(operator, coordinates[k], coordinates[k + 1], axis), nodes[k + 1], nodes[k])
        _, compact = np.unique(components.labels(np.arange(offsets[-1])), return_inverse=True)
        for k, grid in enumerate(grids):
            view = [1] * len(grid)
            view[axis] = grid[axis]
            labels[k] = labels[k] * components.count + compact[nodes[k]].reshape(view)
    return [np.broadcast_to(label, grid).reshape(-1) for label, grid in zip(labels, grids)]


def _axis_matrix(operator: LinearOperator, source: Coordinates, target: Coordinates, axis: int) -> np.ndarray:
    if not source.factors:
        return operator.as_matrix()
    axes = operator.axis_matrices()
    matrix = np.eye(source.shape[axis]) if axes is None else axes[axis].constant.value
    return target.factors[axis].T @ matrix @ source.factors[axis]


def _merged(labels: list[np.ndarray], couplings: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """Compact labels 0, 1, …, those joined that a coupling matrix over the coordinates of its labels connects."""
    values, flat = np.unique(np.concatenate(labels), return_inverse=True)
    components = _Components(len(values))
    for over, matrix in couplings:
        nodes = np.searchsorted(values, over)
        components.couple(matrix, nodes, nodes)
    _, compact = np.unique(components.labels(np.arange(len(values)))[flat], return_inverse=True)
    return np.split(compact, np.cumsum([len(label) for label in labels])[:-1])


def _groups(labels: list[np.ndarray]) -> tuple[Group, ...]:
    count = max(int(label.max()) for label in labels) + 1
    sizes = np.stack([np.bincount(label, minlength=count) for label in labels])  # (stages, blocks)
    _, group_of = np.unique(sizes, axis=1, return_inverse=True)
    order = [np.argsort(label, kind="stable") for label in labels]
    starts = [np.concatenate([[0], np.cumsum(row)[:-1]]) for row in sizes]
    groups = []
    for g in range(int(group_of.max()) + 1):
        members = np.flatnonzero(group_of.reshape(-1) == g)
        groups.append(
            Group(
                tuple(
                    order[k][starts[k][members][:, None] + np.arange(sizes[k, members[0]])] for k in range(len(labels))
                )
            )
        )
    return tuple(groups)
