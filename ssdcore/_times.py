"""Times as callers give them: whole or real, one or an array, known or traced."""

from __future__ import annotations

import math
import numbers
import sys
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np

from ssdcore._arrays import Array, Constant, Namespace, device_of, namespace_of


@dataclass(frozen=True, eq=False)
class Times:
    """An array of times.

    Attributes:
        array: the times, in the library they came in
        xp: its namespace
        dtype: floating dtype for what is looked up at them
        whole: whether they are integers
        known: the same times as numpy array; None while jax or torch.compile traces them
    """

    array: Array
    xp: Namespace
    dtype: Any
    whole: bool
    known: np.ndarray | None


def times_of(t: Any, steps: float) -> int | Times:
    """A time or times of 0 … steps (math.inf: without end): an int for one that is known, else `Times`.

    One integer may be Python's, numpy's, or an array without axes of any library. Raises TypeError for what is no
    integer and ValueError for a time outside, as far as times are known.
    """
    return _read(t, steps, real=False)  # type: ignore[return-value]


def one_time(t: Any, steps: int) -> int:
    """`times_of` for what takes a single time that is known."""
    time = times_of(t, steps)
    if not isinstance(time, int):
        raise TypeError(
            f"expected one time known as a number, got {'traced' if time.known is None else 'an array of'} times"
        )
    return time


def real_times_of(t: Any, steps: int) -> int | float | Times:
    """`times_of` that takes real times, too, a float for one that is known."""
    return _read(t, steps, real=True)


def _read(t: Any, steps: float, real: bool) -> int | float | Times:
    if type(t) is int:  # first, and alone on its line: the path that torch.compile traces
        return _within(t, steps)
    if isinstance(t, numbers.Integral) and not isinstance(t, bool):
        return _within(int(t), steps)
    if isinstance(t, numbers.Real) and not isinstance(t, bool):
        if real:
            return _within(float(t), steps)
        raise TypeError(f"a time must be an integer, got {t!r}")
    if isinstance(t, (list, tuple)) and t:
        t = np.asarray(t)
    if not _is_array(t):
        raise TypeError(f"a time must be an integer or an array of integers, got {t!r}")
    xp = namespace_of(t)
    whole = xp.isdtype(t.dtype, "integral")
    if not whole and not (real and xp.isdtype(t.dtype, "real floating")):
        wanted = "integers or real numbers" if real else "integers"
        raise TypeError(f"a time must be an integer: expected {wanted}, got an array of dtype {t.dtype}")
    dtype = default_dtype(xp) if whole else t.dtype
    known = _known(t)
    if known is None:
        return Times(t, xp, dtype, whole, None)
    if known.ndim == 0:
        return _within(known.item(), steps)
    outside = ~((known >= 0) & (known <= steps))
    if outside.any():
        _within(known[outside].reshape(-1)[0].item(), steps)
    return Times(t, xp, dtype, whole, known)


def _within(t: Any, steps: float) -> Any:
    if not 0 <= t <= steps:
        last = "" if steps == math.inf else f" {steps}"
        raise ValueError(f"time {t} is outside the process, whose times are 0 …{last}")
    return t


def _is_array(t: Any) -> bool:
    torch = sys.modules.get("torch")
    return (torch is not None and isinstance(t, torch.Tensor)) or array_api_compat.is_array_api_obj(t)


def _known(t: Array) -> np.ndarray | None:
    """The numbers of an array, or None where they are traced."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(t, torch.Tensor):
        if torch.compiler.is_compiling():
            return None
        try:
            return np.asarray(t.detach().cpu())
        except RuntimeError:  # inside torch.func.vmap, or a tensor without storage
            return None
    if array_api_compat.is_jax_array(t) and isinstance(t, sys.modules["jax"].core.Tracer):
        return None
    if array_api_compat.is_cupy_array(t):
        return np.asarray(t.get())
    return np.asarray(t)


def default_dtype(xp: Namespace) -> Any:
    """The floating dtype that a library gives to Python numbers."""
    return xp.asarray(0.0).dtype


def look_up(xp: Namespace, table: Constant, index: Array, dtype: Any) -> Array:
    """table[index] for a table of one axis, shaped like `index`."""
    values = table.on(xp, dtype, device_of(index))
    return xp.reshape(xp.take(values, xp.reshape(index, (-1,)), axis=0), index.shape)
