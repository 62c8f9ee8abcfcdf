"""What a process does at arrays of times, and at times that are traced: one state shape, one time an item."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ssdcore._arrays import Array, Constant, Namespace, Shape, computing_dtype, device_of, full_precision
from ssdcore._times import Times, look_up

if TYPE_CHECKING:
    from ssdcore.process import LinearDiffusion


def size_name(shape: Shape) -> str:
    """16×16."""
    return "×".join(map(str, shape))


def state_shape(proc: LinearDiffusion, times: Times, like: Array, what: str) -> Shape:
    """The one shape of the states at `times`; where they are traced, the trailing shape of `like`, a state."""
    if times.known is None:
        shape = tuple(like.shape)[like.ndim - len(proc.shape(0)) :]
        if shape not in proc.shapes:
            raise ValueError(
                f"{what}: traced times are of the state shape that the array shows, and {size_name(shape)} is none of "
                f"{', '.join(map(size_name, proc.shapes))}"
            )
        return shape
    shapes = sorted({proc.shape(int(t)) for t in np.unique(times.known)}, reverse=True)
    if len(shapes) > 1:
        sizes = [size_name(shape) for shape in shapes]
        listed = f"{', '.join(sizes[:-1])} and {sizes[-1]}"
        raise ValueError(f"{what} takes times of one size; these have {listed}: split the batch by `proc.paths`")
    return shapes[0]


def check_items(times: Times, x: Array, shape: Shape, what: str) -> None:
    """Refuse times that are not one for all or one for each item of the leading axis of `x`, (*batch, *shape)."""
    ndim = times.array.ndim
    batch = tuple(x.shape)[: x.ndim - len(shape)]
    if ndim and (ndim > 1 or not batch or batch[0] != times.array.shape[0]):
        raise ValueError(
            f"{what}: expected one time, or one for each item of the leading axis; got times shaped "
            f"{tuple(times.array.shape)} for an array shaped {tuple(x.shape)} with states {size_name(shape)}"
        )


def originals(proc: LinearDiffusion, times: Times) -> tuple[Namespace, Array]:
    """(namespace, array) of times as the degradations count them: numpy where they are known."""
    table = proc.original_times
    if times.known is not None:
        return np, table.value[times.known]
    return times.xp, look_up(times.xp, table, times.array, times.xp.int32)


def levels(proc: LinearDiffusion, times: Times, dtype: Any) -> tuple[Namespace, Array, Array]:
    """(namespace, alpha, sigma): float64 numpy where the times are known, else traced arrays of `dtype`."""
    if times.known is not None:
        return np, proc.noise.alpha[times.known], proc.noise.sigma[times.known]
    alpha, sigma = (look_up(times.xp, table, times.array, dtype) for table in proc.noise.tables)
    return times.xp, alpha, sigma


def spread(xp: Namespace, values: Array, x: Array, items: int, trailing: int = 0) -> Array:
    """Coefficients (*items, *trailing axes) with axes of one between them, so that they broadcast against `x`."""
    if not items:
        return values
    shape = tuple(values.shape)
    return xp.reshape(values, (*shape[:items], *(1,) * (x.ndim - items - trailing), *shape[items:]))


def onto(xp: Namespace, values: Array, x: Array, items: int, trailing: int = 0) -> Array:
    """`spread`, in the library, dtype and device of `x`."""
    if isinstance(values, (np.ndarray, np.generic)):
        return Constant(np.asarray(spread(np, np.asarray(values), x, items, trailing))).like(xp, x)
    return xp.astype(spread(xp, values, x, items, trailing), x.dtype, copy=False)


def degraded(proc: LinearDiffusion, xp: Namespace, x0: Array, times: Times, shape: Shape) -> Array:
    """R_{0→t} x_0 for times whose states have `shape`, each item of the leading axis at its own."""
    degradations, items = proc.degradations, times.array.ndim
    known = times.known
    at = originals(proc, times)
    if known is None:
        candidates = [t for t in (0, *proc.times) if degradations.shape(t) == shape]
    else:
        candidates = [int(t) for t in np.unique(at[1])]
    first = {degradations.stage(t): t for t in reversed(candidates)}
    if len(first) == 1:
        return degradations.between(0, next(iter(first.values())))(x0)
    modes = degradations.modes
    if modes is not None:
        cp, index = at
        wide = xp.astype(x0, computing_dtype(xp, x0.dtype), copy=False)
        response = degradations.response(cp, index * 0, index, np.float64 if cp is np else wide.dtype)
        with full_precision(x0):
            result = modes.scale(xp, wide, onto(xp, response, wide, items, len(shape)), 0.0)
        return xp.astype(result, x0.dtype, copy=False)
    stages = {stage: k for k, stage in enumerate(sorted(first))}
    if known is not None:
        which = np.array([stages[degradations.stage(int(t))] for t in at[1]])
        parts = [
            degradations.between(0, first[stage])(_items(xp, x0, np.flatnonzero(which == k)))
            for stage, k in stages.items()
        ]
        return _items(xp, xp.concat(parts, axis=0), np.argsort(np.argsort(which, kind="stable")))
    table = Constant(np.array([stages.get(degradations.stage(t), 0) for t in range(degradations.steps + 1)]))
    which = look_up(at[0], table, at[1], at[0].int32)
    result = None
    for stage, k in stages.items():
        image = degradations.between(0, first[stage])(x0)
        result = image if result is None else xp.where(spread(xp, which == k, image, items), image, result)
    return result


def _items(xp: Namespace, x: Array, index: np.ndarray) -> Array:
    return xp.take(x, Constant(index).on(xp, xp.int32, device_of(x)), axis=0)
