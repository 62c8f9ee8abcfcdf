"""hypothesis strategies for operators, schedules and processes. hypothesis is imported when one is asked for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ssdcore._arrays import Shape
from ssdcore.operators import Blur, Functional, Identity, LinearOperator, Matrix, Resize, Separable
from ssdcore.process import LinearDiffusion
from ssdcore.schedules import NoiseSchedule, ResolutionSchedule

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

_KERNELS = ("box", "bilinear", "bicubic", "lanczos3")
_BOUNDARIES = ("reflect", "periodic")


def _hypothesis() -> Any:
    try:
        import hypothesis.strategies
    except ImportError as error:
        raise ImportError("the strategies need hypothesis: pip install 'ssdcore[verify]'") from error
    return hypothesis.strategies


def _matrix(draw: DrawFn, rows: int, columns: int) -> np.ndarray:
    """Normal entries from a drawn seed; sometimes of lower rank."""
    st = _hypothesis()
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rank = draw(st.sampled_from([min(rows, columns), max(1, min(rows, columns) - 1)]))
    return rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns)) / math.sqrt(rank)


def operators(
    in_shape: Shape | None = None, *, max_axes: int = 3, max_side: int = 6, compositions: bool = True
) -> SearchStrategy[LinearOperator]:
    """Linear operators of every kind: identity, resize, blur, separable, matrix, functional, transposes, multiples and
    compositions.

    Args:
        in_shape: trailing shape that they take; None: any with at most max_axes axes of at most max_side elements
        compositions: False: single operators only
    """
    st = _hypothesis()

    @st.composite
    def single(draw: DrawFn, shape: Shape) -> LinearOperator:
        kind = draw(st.sampled_from(["identity", "resize", "blur", "separable", "matrix", "functional", "transpose"]))
        side = st.integers(1, max_side)
        if kind == "identity":
            return Identity(shape)
        if kind == "resize":
            return Resize(shape, tuple(draw(side) for _ in shape), draw(st.sampled_from(_KERNELS)))
        if kind == "blur":
            widths = [draw(st.floats(0, 4, allow_subnormal=False)) for _ in shape]
            return Blur(shape, widths, draw(st.sampled_from(_BOUNDARIES)))
        if kind == "separable":
            return Separable([_matrix(draw, draw(side), n) for n in shape])
        if kind == "transpose":
            return Resize(tuple(draw(side) for _ in shape), shape, draw(st.sampled_from(_KERNELS))).T
        out = tuple(draw(side) for _ in range(draw(st.integers(1, 2))))
        inner = Matrix(_matrix(draw, math.prod(out), math.prod(shape)), shape, out)
        return inner if kind == "matrix" else Functional(inner, inner.T, shape, out)

    @st.composite
    def any_operator(draw: DrawFn) -> LinearOperator:
        shape = in_shape
        if shape is None:
            shape = tuple(draw(st.integers(1, max_side)) for _ in range(draw(st.integers(1, max_axes))))
        op = draw(single(shape))
        if compositions and draw(st.booleans()):
            op = draw(single(op.out_shape)) @ op
        if draw(st.booleans()):
            op = draw(st.sampled_from([-2.0, -0.7, 0.3, 1.5])) * op
        return op

    return any_operator()


def noise_schedules(*, min_steps: int = 1, max_steps: int = 40) -> SearchStrategy[NoiseSchedule]:
    """Variance-preserving noise schedules: linear (from 21 steps), cosine, and from a falling log SNR."""
    st = _hypothesis()

    @st.composite
    def schedule(draw: DrawFn) -> NoiseSchedule:
        steps = draw(st.integers(min_steps, max_steps))
        kind = draw(st.sampled_from(["cosine", "from_log_snr", *(["linear"] if steps > 20 else [])]))
        if kind == "linear":
            return NoiseSchedule.linear(steps)
        if kind == "cosine":
            return NoiseSchedule.cosine(steps)
        first = draw(st.floats(-2, 8))
        falls = draw(st.lists(st.floats(0.01, 3), min_size=steps - 1, max_size=steps - 1))
        return NoiseSchedule.from_log_snr(first - np.cumsum([0.0, *falls]))

    return schedule()


def resolution_schedules(steps: int, *, max_levels: int = 3) -> SearchStrategy[ResolutionSchedule]:
    """Resolution schedules of every named shape, and thresholds, for `steps` steps and at most max_levels levels."""
    st = _hypothesis()

    @st.composite
    def schedule(draw: DrawFn) -> ResolutionSchedule:
        levels = draw(st.integers(1, min(max_levels, steps)))
        kind = draw(st.sampled_from(["equal", "convex", "sigmoid", "tanh", "thresholds"]))
        if kind == "thresholds":
            starts = draw(st.lists(st.integers(1, steps), min_size=levels - 1, max_size=levels - 1))
            return ResolutionSchedule.thresholds(sorted(starts), steps)
        if kind == "equal":
            return ResolutionSchedule.equal(steps, levels)
        gamma = draw(st.floats(0.2, 3) if kind == "convex" else st.floats(1, 3))
        return getattr(ResolutionSchedule, kind)(steps, levels, gamma)

    return schedule()


def processes(*, max_axes: int = 2, max_side: int = 6, max_steps: int = 40) -> SearchStrategy[LinearDiffusion]:
    """Admissible processes of every kind: identity, resize (scale-matched), blur, and chains of operators."""
    st = _hypothesis()

    @st.composite
    def process(draw: DrawFn) -> LinearDiffusion:
        shape = tuple(draw(st.integers(1, max_side)) for _ in range(draw(st.integers(1, max_axes))))
        noise = draw(noise_schedules(max_steps=max_steps))
        kind = draw(st.sampled_from(["identity", "resize", "blur", "operators"]))
        if kind == "resize" and max(shape) > 1:
            shape = tuple(max(n, 2) for n in shape)
            levels = draw(resolution_schedules(noise.steps, max_levels=2 if max(shape) < 4 else 3))
            kernel = draw(st.sampled_from(_KERNELS))
            return LinearDiffusion.resize(shape, noise, levels, matched=True, kernel=kernel)
        if kind == "blur":
            grown = draw(st.lists(st.floats(0, 1), min_size=noise.steps, max_size=noise.steps))
            widths = np.cumsum([0.0, *grown])
            return LinearDiffusion.blur(shape, noise, widths, draw(st.sampled_from(_BOUNDARIES)))
        if kind == "operators":
            # norm at most one: admissible with every schedule whose σ/α and σ grow
            ops: list[LinearOperator | None] = [None] * noise.steps
            at = draw(st.integers(0, noise.steps - 1))
            op = draw(operators(shape, max_side=max_side))
            ops[at] = (0.999 / max(op.norm(), 1.0)) * op
            return LinearDiffusion.from_operators(ops, noise)
        return LinearDiffusion.identity(shape, noise)

    return process()
