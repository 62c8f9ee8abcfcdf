"""What a process does at arrays of times, and at times that are traced: one state shape, one time an item."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ssdcore._arrays import (
    Array,
    Constant,
    Namespace,
    Shape,
    cast,
    check_trailing,
    computing_dtype,
    device_of,
    full_precision,
    real_namespace,
)
from ssdcore._gains import posterior_gains, signal_ratio
from ssdcore._times import Times, look_up
from ssdcore.batched import BatchedCovariance
from ssdcore.gaussian import Covariance, Gaussian, SpectralCovariance
from ssdcore.operators import LinearOperator
from ssdcore.process.timeline import Timeline, size_name
from ssdcore.spectral import Modes


def state_shape(proc: Timeline, times: Times, like: Array, what: str) -> Shape:
    """The one shape of the states at `times`; where they are traced, the trailing shape of `like`, a state."""
    if times.known is None:
        got = tuple(like.shape)
        shown = [shape for shape in proc.shapes if got[len(got) - len(shape) :] == shape]
        if not shown:
            raise ValueError(
                f"{what}: traced times are of the state shape that the array shows, and none of "
                f"{', '.join(map(size_name, proc.shapes))} is at the end of {size_name(got)}"
            )
        return max(shown, key=len)
    if times.known.size == 0:
        raise ValueError(f"{what}: expected at least one time, got none")
    shapes = sorted({proc.shape(t) for t in np.unique(times.known).tolist()}, reverse=True)
    if len(shapes) > 1:
        sizes = [size_name(shape) for shape in shapes]
        listed = f"{', '.join(sizes[:-1])} and {sizes[-1]}"
        raise ValueError(f"{what} takes times of one size; these have {listed}: split the batch by `proc.paths`")
    return shapes[0]


def check_items(times: Times, x: Array, shape: Shape, what: str) -> None:
    """Refuse times that are not one for all or one for each item of the leading axis of `x`, ``(*batch, *shape)``."""
    ndim = times.array.ndim
    batch = tuple(x.shape)[: x.ndim - len(shape)]
    if ndim and (ndim > 1 or not batch or batch[0] != times.array.shape[0]):
        raise ValueError(
            f"{what}: expected one time, or one for each item of the leading axis; got times shaped "
            f"{tuple(times.array.shape)} for an array shaped {tuple(x.shape)} with states {size_name(shape)}"
        )


def originals(proc: Timeline, times: Times) -> tuple[Namespace, Array]:
    """(namespace, array) of times as the degradations count them: numpy where they are known."""
    table = proc.original_times
    if times.known is not None:
        return np, table.value[times.known]
    return times.xp, look_up(times.xp, table, times.array, times.xp.int32)


def levels(proc: Timeline, times: Times, dtype: Any) -> tuple[Namespace, Array, Array]:
    """(namespace, alpha, sigma): float64 numpy where the times are known, else traced arrays of `dtype`."""
    if times.known is not None:
        return np, proc.noise.alpha[times.known], proc.noise.sigma[times.known]
    alpha, sigma = (look_up(times.xp, table, times.array, dtype) for table in proc.noise.tables)
    return times.xp, alpha, sigma


def spread(xp: Namespace, values: Array, batch: int, trailing: int) -> Array:
    """``(*items, *trailing axes)`` with axes of one between them, for arrays of `batch` leading axes."""
    items = values.ndim - trailing
    if not items or items == batch:
        return values
    shape = tuple(values.shape)
    return xp.reshape(values, (*shape[:items], *(1,) * (batch - items), *shape[items:]))


def column(xp: Namespace, numbers: Array, trailing: int) -> Array:
    """``(*items)`` with an axis of one for each of the trailing axes."""
    return xp.reshape(numbers, (*numbers.shape, *(1,) * trailing))


def onto(xp: Namespace, values: Array, x: Array) -> Array:
    """`values` in the library, dtype and device of `x`."""
    if isinstance(values, (np.ndarray, np.generic)):
        return Constant(np.asarray(values)).like(xp, x)
    return cast(xp, values, x.dtype)


def level_of(xp: Namespace, cp: Namespace, numbers: Array, x: Array, shape: Shape) -> Array:
    """Numbers ``(*items)``, ready to multiply `x` ``(*batch, *shape)``."""
    return onto(xp, spread(cp, column(cp, numbers, len(shape)), x.ndim - len(shape), len(shape)), x)


def degraded(proc: Timeline, xp: Namespace, x0: Array, times: Times, shape: Shape) -> Array:
    """R_{0→t} x_0 for times whose states have `shape`, each item of the leading axis at its own."""
    degradations, known = proc.degradations, times.known
    first = _stages(proc, times, shape)
    if len(first) == 1:
        return proc.operator(0, next(iter(first.values())))(x0)
    modes = degradations.modes
    if modes is not None:
        cp, index = originals(proc, times)
        wide = cast(xp, x0, computing_dtype(xp, x0.dtype))
        response = degradations.response(cp, index * 0, index, np.float64 if cp is np else wide.dtype)
        with full_precision(x0):
            diagonal = onto(xp, spread(cp, response, x0.ndim - len(shape), len(shape)), wide)
            result = modes.scale(xp, wide, diagonal, 0.0)
            return cast(xp, result, x0.dtype)
    stages = {stage: k for k, stage in enumerate(sorted(first))}
    images = {k: proc.operator(0, first[stage]) for stage, k in stages.items()}
    if known is not None:
        which = np.array([stages[proc.stage(int(t))] for t in known])
        parts = [operator(_items(xp, x0, np.flatnonzero(which == k))) for k, operator in images.items()]
        return _items(xp, xp.concat(parts, axis=0), np.argsort(np.argsort(which, kind="stable")))
    table = Constant(np.array([stages.get(proc.stage(t), 0) for t in range(proc.steps + 1)]))
    which = look_up(times.xp, table, times.array, times.xp.int32)
    result = None
    for k, operator in images.items():
        image = operator(x0)
        chosen = spread(times.xp, column(times.xp, which == k, len(shape)), image.ndim - len(shape), len(shape))
        result = image if result is None else xp.where(chosen, image, result)
    return result


def _items(xp: Namespace, x: Array, index: np.ndarray) -> Array:
    return xp.take(x, Constant(index).on(xp, xp.int32, device_of(x)), axis=0)


def as_times(t: int | Times) -> Times:
    if isinstance(t, Times):
        return t
    known = np.asarray(t)
    return Times(known, np, np.float64, True, known)


def _both_levels(proc: Timeline, s: Times, t: Times, dtype: Any) -> tuple[Namespace, tuple[Array, Array, Array, Array]]:
    """(namespace, (α_s, σ_s, α_t, σ_t)): numpy where both times are known."""
    found = [levels(proc, time, dtype) for time in (s, t)]
    xp = next((xp for xp, *_ in found if xp is not np), np)
    arrays = [level if own is xp else xp.asarray(level, dtype=dtype) for own, *both in found for level in both]
    a, b, c, d = arrays
    return xp, (a, b, c, d)


def _stages(proc: Timeline, times: Times, shape: Shape) -> dict[int, int]:
    """{stage: its first time} that `times` can be at."""
    at = proc.degradations_of(shape) if times.known is None else np.unique(times.known).tolist()
    return {proc.stage(t): t for t in reversed(at)}


@dataclass(frozen=True, eq=False)
class Between:
    """R_{s→t} for times that differ by item or are traced: one operator for all, or eigenvalues in common modes.

    Attributes:
        operator: R, or None where the items have different ones
        modes: input modes V of R = sign · U diag(r) Vᵀ
        output: its output modes U
        response: r, ``(*counts)`` or ``(*items, *counts)``, in the namespace of the levels; None: R is the identity
    """

    operator: LinearOperator | None
    modes: Modes
    output: Modes
    response: Array | None
    sign: float = 1.0

    @staticmethod
    def of(proc: Timeline, s: Times, t: Times, shapes: tuple[Shape, Shape], what: str, dtype: Any) -> Between:
        stages = _stages(proc, s, shapes[0]), _stages(proc, t, shapes[1])
        degradations = proc.degradations
        if len(stages[0]) == len(stages[1]) == 1:
            (low,), (high,) = (list(stage.values()) for stage in stages)
            if proc.stage(low) == proc.stage(high):
                plain = Modes(shapes[0], shapes[0], ())
                return Between(proc.operator(0, 0), plain, plain, None)
            operator = proc.operator(low, high)
            operator.prepare_spectrum()
            decomposition = operator.decomposition()
            if decomposition is None:
                raise ValueError(
                    f"{what}: for several or traced times the singular vectors of {operator} are needed, which is too "
                    "large for a decomposition; take known times one by one"
                )
            return Between(
                operator, decomposition.input, decomposition.output, decomposition.singular_values, decomposition.sign
            )
        if degradations.modes is None:
            raise ValueError(
                f"{what}: the pairs of times have several degradations between them; split the batch so that each has "
                "one, or take known times one by one"
            )
        (xp, low_index), (other, high_index) = originals(proc, s), originals(proc, t)
        if xp is not other:  # one is traced
            xp = xp if xp is not np else other
            low_index, high_index = (xp.asarray(index) for index in (low_index, high_index))
        modes = degradations.modes
        return Between(
            None, modes, modes, degradations.response(xp, low_index, high_index, np.float64 if xp is np else dtype)
        )

    def apply(self, step: _Step, xp: Namespace, x: Array) -> Array:
        """R x."""
        if self.response is None:
            return x
        if self.operator is not None:
            return self.operator(x)
        return self.modes.scale(xp, x, step.modal(xp, step.response(), x, self.modes), 0.0)

    def lift(self, step: _Step, xp: Namespace, gain: Array, y: Array) -> Array:
        """V diag(gain) Uᵀ y."""
        gain = step.modal(xp, gain, y, self.output)
        if self.response is None:
            return gain * y
        return self.modes.synthesise(xp, (self.sign * gain) * self.output.analyse(xp, y))


@dataclass(frozen=True, eq=False)
class _Step:
    """What the laws between s and t are made of: levels and R, numbers spread so that they broadcast against states."""

    proc: Timeline
    s: Times
    t: Times
    xp: Namespace  # of the coefficients
    levels: tuple[Array, Array, Array, Array]  # (*items)
    between: Between

    @staticmethod
    def of(proc: Timeline, s: Times, t: Times, x_s: Array | None, x_t: Array | None, what: str) -> _Step:
        if s.known is not None and t.known is not None:
            try:
                low, high = np.broadcast_arrays(s.known, t.known)
            except ValueError:
                raise ValueError(
                    f"{what}: expected as many times s as t, got shapes {s.known.shape} and {t.known.shape}"
                ) from None
            for k in np.flatnonzero((low >= high).reshape(-1))[:1]:
                raise ValueError(f"expected times s < t, got s = {low.reshape(-1)[k]}, t = {high.reshape(-1)[k]}")
        like = x_s if x_s is not None else x_t
        assert like is not None
        shape_s = state_shape(proc, s, like if x_s is None else x_s, what)
        shape_t = state_shape(proc, t, like if x_t is None else x_t, what)
        for name, x, shape in (("s", x_s, shape_s), ("t", x_t, shape_t)):
            if x is not None:
                check_trailing(x, shape, f"{what}: the state at {name}")
                for times in (s, t):
                    check_items(times, x, shape, what)
        array_namespace = real_namespace(like, what)
        dtype = computing_dtype(array_namespace, like.dtype)
        between = Between.of(proc, s, t, (shape_s, shape_t), what, dtype)
        xp, numbers = _both_levels(proc, s, t, dtype)
        return _Step(proc, s, t, xp, numbers, between)

    @property
    def counts(self) -> int:
        """How many axes the coefficients of the modes have."""
        return len(self.between.modes.counts)

    def response(self) -> Array:
        """r, ``(*items, *counts)`` or ``(*counts)`` or ones, among the coefficients."""
        r, dtype = self.between.response, self.levels[0].dtype
        if r is None:
            return self.xp.ones((1,) * self.counts, dtype=dtype)
        return r if self.xp is np or not isinstance(r, np.ndarray) else self.xp.asarray(r, dtype=dtype)

    def modal(self, xp: Namespace, coefficients: Array, x: Array, modes: Modes) -> Array:
        """``(*items, *counts)``, ready to multiply the coefficients of `x` ``(*batch, *modes.shape)``."""
        batch = x.ndim - len(modes.shape)
        return onto(xp, spread(self.xp, coefficients, batch, self.counts), x)

    def law(self, mean: Array, values: Array, rest: Array) -> Gaussian:
        """The Gaussian with `values` ``(*items, *counts)`` in the modes V and `rest` ``(*items)`` elsewhere."""
        modes = self.between.modes
        n = len(modes.shape)
        batch = mean.ndim - n
        values = spread(self.xp, values, batch, len(modes.counts))
        return Gaussian(mean, BatchedCovariance(modes, values, spread(self.xp, column(self.xp, rest, n), batch, n)))


def posterior(
    proc: Timeline,
    x_t: Array,
    clean_s: Array,
    s: Times,
    t: Times,
    eta: float,
    clean_covariance: Covariance | None = None,
) -> Gaussian:
    """`LinearDiffusion.posterior` for pairs of times of one (shape, shape) group, or traced times."""
    step = _Step.of(proc, s, t, clean_s, x_t, "posterior")
    between, cp = step.between, step.xp
    alpha_s, sigma_s, alpha_t, sigma_t = (column(cp, level, step.counts) for level in step.levels)
    r = step.response()
    gain, values = posterior_gains(cp, eta, alpha_s, sigma_s, alpha_t, sigma_t, r)
    xp = real_namespace(x_t, "posterior: x_t")
    dtype = computing_dtype(xp, x_t.dtype)
    with full_precision(x_t):
        state, clean = (cast(xp, x, dtype) for x in (x_t, clean_s))
        degraded_clean = between.apply(step, xp, clean)
        innovation = state - level_of(xp, cp, step.levels[2], state, between.output.shape) * degraded_clean
        lifted = between.lift(step, xp, gain, innovation)
        mean = level_of(xp, cp, step.levels[0], clean, between.modes.shape) * clean + lifted
        mean = cast(xp, mean, x_t.dtype)
    rest = step.levels[1] ** 2
    if clean_covariance is not None:
        return _widened(step, mean, values, rest, alpha_s - alpha_t * gain * r, clean_covariance)
    return step.law(mean, values, rest)


def _widened(
    step: _Step, mean: Array, values: Array, rest: Array, kept: Array, clean_covariance: Covariance
) -> Gaussian:
    """The law with D C Dᵀ added, D being `kept` in the modes and α_s elsewhere."""
    modes, xp = step.between.modes, step.xp
    if isinstance(clean_covariance, BatchedCovariance):
        same = clean_covariance.modes == modes
        own = clean_covariance.modes, clean_covariance.values, clean_covariance.rest
    elif isinstance(clean_covariance, SpectralCovariance):
        found = clean_covariance.in_modes(modes)
        same = found is not None
        c, c_rest = found if found is not None else (clean_covariance.values, clean_covariance.rest)
        own = clean_covariance.modes, xp.asarray(c), xp.asarray(c_rest)
    else:
        raise TypeError(
            "posterior: clean_covariance: for several or traced times expected a covariance with a known spectrum "
            "(isotropic, dense, cosine, of_modes)"
        )
    a_s = step.levels[0]
    if same:
        return step.law(mean, values + kept**2 * own[1], rest + a_s**2 * own[2])
    if step.between.response is not None:
        raise ValueError(
            "posterior: clean_covariance is not diagonal in the modes of the degradation between these times; take "
            "known times one by one"
        )
    moved = replace(step, between=Between(step.between.operator, own[0], own[0], None))
    flat = [xp.reshape(v, v.shape[: v.ndim - step.counts]) for v in (values, kept)]
    base, factor = (column(xp, v, moved.counts) for v in flat)
    return moved.law(mean, base + factor**2 * own[1], flat[0] + flat[1] ** 2 * own[2])


def transition(proc: Timeline, x_s: Array, s: Times, t: Times) -> Gaussian:
    """`LinearDiffusion.transition` for pairs of times of one (shape, shape) group, or traced times of one shape."""
    step = _Step.of(proc, s, t, x_s, None, "transition")
    between, cp = step.between, step.xp
    alpha_s, sigma_s, alpha_t, sigma_t = (column(cp, level, step.counts) for level in step.levels)
    ratio = signal_ratio(cp, alpha_s, alpha_t)
    values = cp.clip(sigma_t**2 - sigma_s**2 * (ratio * step.response()) ** 2, 0.0, None)
    xp = real_namespace(x_s, "transition: x_s")
    with full_precision(x_s):
        moved = between.apply(step, xp, cast(xp, x_s, computing_dtype(xp, x_s.dtype)))
        scale = signal_ratio(cp, step.levels[0], step.levels[2])
        mean = cast(xp, level_of(xp, cp, scale, moved, between.output.shape) * moved, x_s.dtype)
    turned = replace(step, between=replace(between, modes=between.output, output=between.modes))
    return turned.law(mean, values, step.levels[3] ** 2)


def marginal(proc: Timeline, x0: Array, t: Times) -> Gaussian:
    """`LinearDiffusion.marginal` for times of one state shape, or traced times of the full size."""
    shape = state_shape(proc, t, x0, "marginal")
    check_trailing(x0, proc.shape(0), "marginal: x0")
    check_items(t, x0, proc.shape(0), "marginal")
    xp = real_namespace(x0, "marginal: x0")
    clean = degraded(proc, xp, x0, t, shape)
    wide = cast(xp, clean, computing_dtype(xp, x0.dtype))
    cp, alpha, sigma = levels(proc, t, wide.dtype)
    with full_precision(x0):
        mean = cast(xp, level_of(xp, cp, alpha, wide, shape) * wide, x0.dtype)
    variance = spread(cp, column(cp, sigma**2, len(shape)), mean.ndim - len(shape), len(shape))
    return Gaussian(mean, BatchedCovariance(Modes(shape, shape, ()), variance, variance))
