"""LinearDiffusion: a diffusion whose states are linearly degraded, with its exact transitions and posteriors."""

from __future__ import annotations

import functools
import html
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from ssdcore import _pytrees, _timed
from ssdcore._arrays import (
    Array,
    Constant,
    Memo,
    Shape,
    add_scaled,
    check_same_backend,
    check_trailing,
    computing_dtype,
    full_precision,
    is_tracing,
    namespace_of,
    number,
    once_per_trace,
    real_namespace,
)
from ssdcore._gains import posterior_gains, posterior_share
from ssdcore._second_moments import widened
from ssdcore._timed import check_items, degraded, level_of, levels, size_name, state_shape
from ssdcore._times import one_time, times_of
from ssdcore.conditioning import InadmissibleProcess
from ssdcore.degradations import Chain, Degradations, GrowingBlur
from ssdcore.gaussian import Covariance, Gaussian, OperatorCovariance, SpectralCovariance
from ssdcore.lifted import Lift, LiftedLaw
from ssdcore.operators import Blur, LinearOperator, Resize
from ssdcore.operators.linear_map import positive_shape
from ssdcore.schedules import NoiseSchedule, ResolutionSchedule

# Relative slack on the admissibility condition: rounding of a product of a few float64 numbers.
_ROUNDING = 64 * np.finfo(np.float64).eps


@dataclass(frozen=True)
class Path:
    """All times t whose states share a shape and whose states at t − 1 share one too: what may share a batch.

    Attributes:
        times: increasing times t
        shape: trailing shape of x_t
        target_shape: trailing shape of x_{t−1}, at which a network predicts the clean image
    """

    times: tuple[int, ...]
    shape: Shape
    target_shape: Shape


@dataclass(frozen=True, eq=False, repr=False)
class LinearDiffusion:
    """The process ``x_t = alpha_t R_{0→t} x_0 + sigma_t ε`` with its exact Markov structure.

    R_{s→t} is a resize, a blur, the identity or any chain of linear operators with R_{s→u} = R_{t→u} R_{s→t};
    M_{s→t} = (alpha_t/alpha_s) R_{s→t}. Time runs from 0 (clean) to `steps`; arrays are ``(*batch, *shape(t))``, batch
    and channels leading. Build one with `resize`, `identity`, `blur` or `from_operators`.

    The transition x_s → x_t is a Gaussian only if sigma_t² >= sigma_s² ‖M_{s→t}‖² (theorem 1 of the paper). A process
    that breaks this at any step is refused with InadmissibleProcess, naming the step and both sides.

    Immutable; equal to a process of equal noise, degradations and times. jax and torch take it as a pytree without
    leaves, so it goes through ``jit`` as an argument.

    >>> noise, levels = ssd.NoiseSchedule.linear(1000), ssd.ResolutionSchedule.equal(1000, levels=3)
    >>> proc = ssd.LinearDiffusion.resize((64, 64), noise, levels)
    >>> proc.shapes, proc.size_changes
    (((64, 64), (32, 32), (16, 16)), (334, 667))
    """

    noise: NoiseSchedule
    degradations: Degradations
    times: tuple[int, ...]
    shapes: tuple[Shape, ...] = field(init=False)  # the different trailing shapes of the states, full size first
    original_times: Constant = field(init=False)  # 0 and `times`: what the degradations call step 0 … T
    _shape_of: tuple[Shape, ...] = field(init=False)
    _stage_of: tuple[int, ...] = field(init=False)
    _first_of_shape: dict[Shape, tuple[int, ...]] = field(init=False)
    _memo: Memo = field(init=False)

    def __post_init__(self) -> None:
        for name, kind in (("noise", NoiseSchedule), ("degradations", Degradations)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(
                    f"LinearDiffusion: {name}: expected {kind.__name__}, got {type(getattr(self, name)).__name__}; "
                    "build a process with LinearDiffusion.resize, .blur, .identity or .from_operators"
                )
        times = tuple(one_time(t, self.degradations.steps) for t in self.times)
        if len(times) != self.noise.steps or any(t <= s for s, t in pairwise((0, *times))):
            raise ValueError(
                f"LinearDiffusion: expected {self.noise.steps} increasing times, one for each step of the noise, "
                f"within 1 … {self.degradations.steps}, got {times if len(times) < 8 else f'{len(times)} of them'}"
            )
        object.__setattr__(self, "times", times)
        # Tables and caches that torch.compile can read while it traces: cached properties hold a lock.
        originals = (0, *times)
        shapes = tuple(self.degradations.shape(t) for t in originals)
        stages = tuple(self.degradations.stage(t) for t in originals)
        first = {stage: k for k, stage in reversed(list(enumerate(stages)))}
        for name, value in (
            ("_shape_of", shapes),
            ("_stage_of", stages),
            ("shapes", tuple(dict.fromkeys(shapes))),
            (
                "_first_of_shape",
                {shape: tuple(sorted(k for k in first.values() if shapes[k] == shape)) for shape in shapes},
            ),
            ("original_times", Constant(np.array(originals))),
            ("_memo", Memo()),
        ):
            object.__setattr__(self, name, value)
        self._check_admissible()
        _pytrees.ensure()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _pytrees.register_static(cls)

    def _repr_html_(self) -> str:
        """One row for each state shape, for notebooks."""
        rows = []
        starts = [0, *self.size_changes]
        for first, following in zip(starts, [*self.size_changes, self.steps + 1]):
            last, low = following - 1, max(first, 1)
            ratio = f"{self.log_snr(low):.3g} … {self.log_snr(last):.3g}" if last >= 1 else ""
            cells = (size_name(self.shape(first)), f"{first} … {last}", ratio)
            rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        head = "<tr><th>state</th><th>times</th><th>log-SNR</th></tr>"
        return f"<table><caption>{html.escape(repr(self))}</caption>{head}{''.join(rows)}</table>"

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, LinearDiffusion):
            return self is other
        mine, theirs = ((type(p), p.times, p.noise, p.degradations) for p in (self, other))
        return mine == theirs

    def __hash__(self) -> int:
        return hash((type(self), self.times, self.noise, self.degradations))

    def _check_admissible(self) -> None:
        """Theorem 1 at every step; by the product of the norms of the steps between where that is enough."""
        alpha, sigma = self.noise.alpha, self.noise.sigma
        revived = (alpha[:-1] == 0) & (alpha[1:] > 0)
        if revived.any():
            t = int(np.argmax(revived)) + 1
            raise InadmissibleProcess(
                f"step {t}: alpha rises from 0 to {alpha[t]:.6g}: a state that holds no signal cannot lead to one that "
                "does; let alpha be 0 at the end only"
            )
        ratio = np.divide(alpha[1:], alpha[:-1], out=np.zeros(self.steps), where=alpha[:-1] > 0)
        each = self.degradations.step_norms()
        bounds = np.array([math.prod(each[s:t]) for s, t in pairwise((0, *self.times))])
        needed = (sigma[:-1] * ratio * bounds) ** 2
        for t in (np.flatnonzero(sigma[1:] ** 2 < needed * (1 - _ROUNDING)) + 1).tolist():
            s, u = (0, *self.times)[t - 1 : t + 1]
            norm = bounds[t - 1] if u == s + 1 else self.degradations.between(s, u).norm()
            least = (sigma[t - 1] * ratio[t - 1] * norm) ** 2
            if sigma[t] ** 2 < least * (1 - _ROUNDING):
                raise InadmissibleProcess(
                    f"step {t}: the transition would need negative noise: σ_t² = {sigma[t] ** 2:.6g} < "
                    f"σ_s²‖M‖² = {least:.6g}; raise σ at this step, or weaken the operator"
                )

    def __repr__(self) -> str:
        sizes = " → ".join(map(size_name, self.shapes))
        changes = f" at t = {', '.join(map(str, self.size_changes))}" if self.size_changes else ""
        kept = (
            ""
            if self.times == tuple(range(1, self.degradations.steps + 1))
            else (f", {self.steps} of the times 1 … {self.degradations.steps}")
        )
        return f"LinearDiffusion({sizes}{changes}, {self.degradations!r}, {self.noise!r}{kept})"

    @classmethod
    def _of(cls, noise: NoiseSchedule, degradations: Degradations) -> LinearDiffusion:
        return cls(noise, degradations, tuple(range(1, noise.steps + 1)))

    @classmethod
    def identity(cls, shape: Shape | int, noise: NoiseSchedule) -> LinearDiffusion:
        """Ordinary diffusion: the state keeps its size and nothing degrades it but noise.

        >>> ssd.LinearDiffusion.identity((64, 64), ssd.NoiseSchedule.cosine(500)).shape(500)
        (64, 64)
        """
        checked = positive_shape(shape, "LinearDiffusion.identity")
        return cls._of(noise, Chain(checked, [None] * noise.steps))

    @classmethod
    def resize(
        cls,
        shape: Shape | int,
        noise: NoiseSchedule,
        levels: ResolutionSchedule,
        matched: bool = True,
        factor: float = 2,
        kernel: str = "bilinear",
        sizes: Sequence[Shape | int] | None = None,
    ) -> LinearDiffusion:
        """Scale Space Diffusion: the state shrinks at the times that `levels` says.

        With the paper's noise σ/α is the same function of t at every size. A level change averages pixels, which
        divides the noise of coarse modes by ‖R‖² (¼ for images), and the transition adds the difference back: their
        signal-to-noise ratio falls fourfold in one step, and the reverse step must win it back at once. Matched noise
        keeps the ratio of the mode that the resize keeps best continuous,

        ::

            σ_t/α_t = (σ/α of `noise` at t) · κ(t),   κ(t) = Π ‖R_change‖ over the level changes up to t,

        in the normalisation of `noise` (a flow keeps α + σ = 1, EDM's noise α = 1). It is admissible for every
        kernel, size and number of levels, since σ/α of `noise` grows and κ_t = κ_s Π‖R‖ >= κ_s ‖R_{s→t}‖. What it
        gains: the sampler's discretisation error stays that of the full-size process. What it costs: low levels are
        less noisy at the end, so x_T should be drawn from `prior` fitted to data, and a loss weight written for one
        size must account for the level's share of pixels.

        Args:
            shape: trailing shape at level 0
            noise: noise levels of the full-size process
            levels: which level the state has at each time
            matched: scale-matched noise (default) or, if False, the paper's
            factor: each level is smaller than the one before by this factor, > 1, sizes rounded to integers
            kernel: of `Resize`
            sizes: the shape of every level, instead of `factor`, sizes[0] being `shape`

        >>> noise, levels = ssd.NoiseSchedule.linear(1000), ssd.ResolutionSchedule.thresholds([500])
        >>> for matched in (True, False):
        ...     proc = ssd.LinearDiffusion.resize((64, 64), noise, levels, matched=matched)
        ...     high, low = (proc.sigma(t) / proc.alpha(t) for t in (499, 500))
        ...     print(f"σ/α {high:.2f} at 64×64, {low:.2f} at 32×32")
        σ/α 3.41 at 64×64, 1.71 at 32×32
        σ/α 3.41 at 64×64, 3.42 at 32×32
        """
        base = positive_shape(shape, "LinearDiffusion.resize")
        factor = number(factor, "LinearDiffusion.resize: factor")
        if levels.steps is not None and levels.steps != noise.steps:
            raise ValueError(
                f"LinearDiffusion.resize: the noise schedule has {noise.steps} steps, "
                f"the resolution schedule {levels.steps}; make both for the same number"
            )
        if levels.starts and levels.starts[-1] > noise.steps:
            raise ValueError(
                f"LinearDiffusion.resize: level {levels.levels - 1} starts at t = {levels.starts[-1]}, "
                f"after the last step {noise.steps}"
            )
        shapes = _level_shapes(base, levels.levels, factor, sizes)
        changes = [Resize(high, low, kernel) for high, low in pairwise(shapes)]
        ops: list[LinearOperator | None] = [None] * noise.steps
        kappa = np.ones(noise.steps + 1)
        for start, change in zip(levels.starts, changes):
            before = ops[start - 1]
            ops[start - 1] = change if before is None else change @ before
            kappa[start:] *= change.norm()
        return cls._of(noise.scaled(kappa) if matched else noise, Chain(base, ops))

    @classmethod
    def blur(
        cls,
        shape: Shape | int,
        noise: NoiseSchedule,
        widths: Sequence[float] | np.ndarray,
        boundary: str = "reflect",
    ) -> LinearDiffusion:
        """Blurring diffusion: R_{0→t} is a Gaussian blur of standard deviation widths[t] samples, t = 0 … T.

        widths must start at 0 and not fall. Heat dissipation for a time τ is the width √(2τ).

        >>> proc = ssd.LinearDiffusion.blur((32, 32), ssd.NoiseSchedule.linear(100), np.linspace(0, 4, 101))
        >>> proc.degradation(0, 100).in_shape
        (32, 32)
        """
        checked = positive_shape(shape, "LinearDiffusion.blur")
        w = np.array(widths, dtype=np.float64)
        if w.shape != (noise.steps + 1,):
            raise ValueError(
                f"LinearDiffusion.blur: expected {noise.steps + 1} widths for t = 0 … {noise.steps}, "
                f"got the shape {w.shape}"
            )
        if not np.isfinite(w).all() or w[0] != 0 or (np.diff(w) < 0).any():
            raise ValueError("LinearDiffusion.blur: widths must be finite, start at 0 (time 0 is clean) and never fall")
        Blur(checked, 0.0, boundary)  # refuses an unknown boundary
        return cls._of(noise, GrowingBlur(checked, w, boundary))

    @classmethod
    def from_operators(cls, ops: Sequence[LinearOperator | None], noise: NoiseSchedule) -> LinearDiffusion:
        """Any chain of linear operators: ops[t − 1] is the unscaled R_{t−1→t}, None the identity.

        >>> ops = [None] * 100
        >>> ops[49] = ssd.Matrix(np.kron(np.eye(4), [[0.5, 0.5]]))  # 8 nodes become 4 at t = 50
        >>> proc = ssd.LinearDiffusion.from_operators(ops, ssd.NoiseSchedule.linear(100))
        >>> proc.shape(49), proc.shape(50)
        ((8,), (4,))
        """
        if len(ops) != noise.steps:
            raise ValueError(
                f"LinearDiffusion.from_operators: expected one operator (or None) for each of the {noise.steps} steps, "
                f"got {len(ops)}"
            )
        for t, op in enumerate(ops, start=1):
            if op is not None and not isinstance(op, LinearOperator):
                raise TypeError(f"step {t}: expected a LinearOperator or None, got {type(op).__name__}")
        first = next((op for op in ops if op is not None), None)
        if first is None:
            raise ValueError(
                "LinearDiffusion.from_operators: every step is None; use LinearDiffusion.identity(shape, noise)"
            )
        return cls._of(noise, Chain(first.in_shape, ops))

    @property
    def steps(self) -> int:
        """T, the last time."""
        return self.noise.steps

    def alpha(self, t: Any) -> Any:
        """Signal level alpha_t, for one time or an array of them, whole or real: see `NoiseSchedule.at`."""
        return self.noise.at(t)[0]

    def sigma(self, t: Any) -> Any:
        """Noise level sigma_t, the deviation of the noise in every element of x_t; takes what `alpha` takes."""
        return self.noise.at(t)[1]

    def log_snr(self, t: Any) -> Any:
        """log(alpha_t²/sigma_t²), ∞ at t = 0 and −∞ where no signal is left. Takes what `alpha` takes.

        >>> proc = ssd.LinearDiffusion.identity((3,), ssd.NoiseSchedule.rectified_flow(10))
        >>> proc.log_snr(5), proc.log_snr(np.array([0, 5, 10])).tolist()
        (0.0, [inf, 0.0, -inf])
        """
        alpha, sigma = self.noise.at(t)
        if isinstance(alpha, float):
            if alpha == 0 or sigma == 0:
                return math.inf if sigma == 0 else -math.inf
            return 2 * (math.log(alpha) - math.log(sigma))
        xp = namespace_of(alpha)
        if not isinstance(alpha, np.ndarray):
            return 2 * (xp.log(alpha) - xp.log(sigma))
        with np.errstate(divide="ignore"):
            return 2 * (np.log(alpha) - np.log(sigma))

    def shape(self, t: int) -> Shape:
        """Trailing shape of x_t."""
        return self._shape_of[self._time(t)]

    @functools.cached_property
    def size_changes(self) -> tuple[int, ...]:
        """The times t at which x_t has another shape than x_{t−1}."""
        return tuple(t for t in range(1, self.steps + 1) if self.shape(t) != self.shape(t - 1))

    @property
    def paths(self) -> tuple[Path, ...]:
        """The groups of times whose batches have one state shape and one target shape, in order of their first times.

        Draw a path, then times of it, and a batch goes through `add_noise` and a network as one array.

        >>> noise, levels = ssd.NoiseSchedule.linear(1000), ssd.ResolutionSchedule.thresholds([500])
        >>> for path in ssd.LinearDiffusion.resize((8, 8), noise, levels).paths:
        ...     print(path.times[0], path.times[-1], path.shape, path.target_shape)
        1 499 (8, 8) (8, 8)
        500 500 (4, 4) (8, 8)
        501 1000 (4, 4) (4, 4)
        """
        return self._paths

    @functools.cached_property
    def _paths(self) -> tuple[Path, ...]:
        groups: dict[tuple[Shape, Shape], list[int]] = {}
        for t in range(1, self.steps + 1):
            groups.setdefault((self.shape(t), self.shape(t - 1)), []).append(t)
        return tuple(Path(tuple(times), *shapes) for shapes, times in groups.items())

    def _time(self, t: Any) -> int:
        return one_time(t, self.steps)

    def _pair(self, s: int, t: int) -> tuple[int, int]:
        s, t = self._time(s), self._time(t)
        if s >= t:
            raise ValueError(f"expected times s < t, got s = {s}, t = {t}")
        return operator.index(s), operator.index(t)  # numbers where torch.compile has made symbols of them

    def _original(self, t: int) -> int:
        t = self._time(t)
        return self.times[t - 1] if t else 0

    def operator(self, s: int, t: int) -> LinearOperator:
        """R_{s→t}, unscaled, for 0 <= s <= t <= T.

        >>> noise, levels = ssd.NoiseSchedule.linear(1000), ssd.ResolutionSchedule.thresholds([500])
        >>> proc = ssd.LinearDiffusion.resize((8, 8), noise, levels)
        >>> proc.operator(0, 499), proc.operator(0, 1000)
        (Identity((8, 8)), Resize((8, 8) -> (4, 4)))
        """
        s, t = self._time(s), self._time(t)
        if s > t:
            raise ValueError(f"expected times s <= t, got s = {s}, t = {t}")
        return self._numbers("_between", s, t)

    def stage(self, t: int) -> int:
        """A number that two times share exactly if R_{0→t} is the same for both."""
        return self._stage_of[self._time(t)]

    def degradations_of(self, shape: Shape) -> tuple[int, ...]:
        """One time for each degradation R_{0→t} that states of `shape` have: its first. Empty for another shape."""
        return self._first_of_shape.get(shape, ())

    def _signal_ratio(self, s: int, t: int) -> float:
        alpha_s = self.alpha(s)
        return self.alpha(t) / alpha_s if alpha_s > 0 else 0.0

    def degradation(self, s: int, t: int) -> LinearOperator:
        """M_{s→t} = (alpha_t/alpha_s) R_{s→t}, scalar included, for 0 <= s < t <= T."""
        s, t = self._pair(s, t)
        return self._numbers("_scaled", s, t)

    def degrade(self, x0: Array, t: Any) -> Array:
        """R_{0→t} x_0: the unscaled clean image at the size of time t.

        Args:
            x0: ``(*batch, *shape(0))``
            t: a time, or an integer array of one time for each item of the leading axis, all of one state shape
        """
        time = times_of(t, self.steps)
        if isinstance(time, int):
            return self.operator(0, time)(x0)
        check_trailing(x0, self.shape(0), "degrade: x0")
        shape = state_shape(self, time, x0, "degrade")
        check_items(time, x0, self.shape(0), "degrade")
        return degraded(self, real_namespace(x0, "degrade: x0"), x0, time, shape)

    def clean(self, x0: Array, t: Any) -> Array:
        """Another name of `degrade`."""
        return self.degrade(x0, t)

    def add_noise(self, x0: Array, noise: Array, times: Any) -> Array:
        """x_t = alpha_t R_{0→t} x_0 + sigma_t noise: what a network is trained on.

        In the dtype and library of x0. Raises ValueError for times of several state shapes, for times that are not one
        per item, and for noise of another shape.

        Training and sampling, the same in numpy, torch and jax:

        Args:
            x0: ``(*batch, *shape(0))`` clean images
            noise: ``(*batch, *shape(t))`` standard normal
            times: one time, or an integer array with one for each item of the leading axis, all of one state shape
                (draw them from one of `paths`). Traced times (under jit) are of the state shape that `noise` has.

        >>> proc = ssd.LinearDiffusion.resize(
        ...     (8, 8), ssd.NoiseSchedule.linear(1000), ssd.ResolutionSchedule.thresholds([500])
        ... )
        >>> rng, x0 = np.random.default_rng(0), np.zeros((16, 3, 8, 8))
        >>> path = proc.paths[rng.integers(len(proc.paths))]
        >>> t = rng.choice(path.times, 16)
        >>> x_t = proc.add_noise(x0, rng.standard_normal((16, 3, *path.shape)), t)
        >>> x_t.shape == (16, 3, *path.shape)
        True
        """
        time = times_of(times, self.steps)
        xp = real_namespace(x0, "add_noise: x0")
        real_namespace(noise, "add_noise: noise")
        check_same_backend(x0, noise, "add_noise")
        check_trailing(x0, self.shape(0), "add_noise: x0")
        if isinstance(time, int):
            operator = self.operator(0, time)
            clean, shape = operator(x0), operator.out_shape
            alpha, sigma = self.noise.at(time)
        else:
            shape = state_shape(self, time, noise, "add_noise")
            check_items(time, x0, self.shape(0), "add_noise")
            clean = degraded(self, xp, x0, time, shape)
        if tuple(noise.shape) != tuple(clean.shape):
            raise ValueError(
                f"add_noise: expected noise shaped {tuple(clean.shape)}, like x0 with states {size_name(shape)}, "
                f"got {tuple(noise.shape)}"
            )
        dtype = computing_dtype(xp, x0.dtype)
        with full_precision(x0):
            clean, noise = (xp.astype(x, dtype, copy=False) for x in (clean, noise))
            if not isinstance(time, int):
                cp, *both = levels(self, time, dtype)
                alpha, sigma = (level_of(xp, cp, level, clean, shape) for level in both)
            return xp.astype(alpha * clean + sigma * noise, x0.dtype, copy=False)

    def marginal(self, x0: Array, t: Any) -> Gaussian:
        """q(x_t | x_0) = N(alpha_t R_{0→t} x_0, sigma_t² I).

        Args:
            x0: ``(*batch, *shape(0))``
            t: a time, or an integer array of one for each item of the leading axis, all of one state shape; a
                traced time (under jit) is one of the full-size states

        >>> proc = ssd.LinearDiffusion.identity((3,), ssd.NoiseSchedule.from_log_snr([0.0]))
        >>> proc.marginal(np.ones(3), 1).sample(np.array([-1.0, 0.0, 1.0])).round(4)
        array([0.    , 0.7071, 1.4142])
        """
        time = times_of(t, self.steps)
        if not isinstance(time, int):
            return _timed.marginal(self, x0, time)
        operator, covariance = self._numbers("_marginal", time)
        return Gaussian(operator(x0), covariance)

    def transition(self, x_s: Array, s: Any, t: Any) -> Gaussian:
        """q(x_t | x_s) for any s < t, theorem 1 of the paper.

        ::

            mean = M x_s,   covariance = σ_t² I − σ_s² M Mᵀ,   M = M_{s→t}

        Args:
            x_s: ``(*batch, *shape(s))``
            s, t: times, or integer arrays of one for each item of the leading axis, all of one pair of shapes;
                traced times (under jit) share the shape of x_s

        Raises:
            ValueError: If s >= t or the trailing shape is not that of time s.

        >>> noise, levels = ssd.NoiseSchedule.linear(1000), ssd.ResolutionSchedule.thresholds([500])
        >>> proc = ssd.LinearDiffusion.resize((8, 8), noise, levels)
        >>> proc.transition(np.zeros((3, 8, 8)), 499, 500).mean.shape
        (3, 4, 4)
        """
        times = times_of(s, self.steps), times_of(t, self.steps)
        if not (isinstance(times[0], int) and isinstance(times[1], int)):
            return _timed.transition(self, x_s, *map(_timed.as_times, times))
        s, t = self._pair(s, t)
        operator, covariance = self._numbers("_transition", s, t)
        return Gaussian(operator(x_s), covariance)

    def posterior(
        self,
        x_t: Array,
        clean_s: Array,
        s: Any,
        t: Any,
        eta: float = 1.0,
        clean_covariance: Covariance | None = None,
    ) -> Gaussian:
        """q(x_s | x_t, x_0) for any s < t: theorem 3 of the paper at eta = 1, with less noise below.

        ::

            mean = α_s clean_s + B (x_t − α_t R clean_s),   covariance = σ_s² I − σ_t² B Bᵀ,

        with M = (α_t/α_s) R, R = U diag(r) Vᵀ, m = (α_t/α_s) r, ρ = σ_s²/σ_t² and B = V diag(b) Uᵀ, where
        b = (σ_s/σ_t) √(1 − η² (1 − ρ m²)) for r > 0, else 0. At eta = 1 that is B = ρ Mᵀ. At eta = 0 it is a partial
        isometry: the modes that R keeps follow without noise (DDIM where s and t share a size), and those that it
        destroys are drawn afresh. Every eta has the same marginals. Where no signal is left at t, b is
        (σ_s/σ_t) √(1 − η²).

        A network predicts the mean of x_0 given x_t, and the law above takes it for x_0 itself. With C the covariance
        is

        ::

            σ_s² I − σ_t² B Bᵀ + D C Dᵀ,   D = α_s I − B α_t R,

        and the step has the mean and the covariance of the true one for any data; for Gaussian data it is the true one,
        however far t is from s. Where the size changes the modes that are born get α_s² C. Diagonal, so as fast as
        without, where C is in the modes of R or R keeps everything alike; dense up to 1,024 elements; else its root is
        found by Lanczos iteration.

        Args:
            x_t: ``(*batch, *shape(t))``, state at t
            clean_s: ``(*batch, *shape(s))``, unscaled clean image at the size of s: what a network predicts
            s, t: times, or integer arrays of one for each item of the leading axis, all of one pair of shapes;
                traced times (under jit) are of the shapes that clean_s and x_t have
            eta: in [0, 1]: factor on the standard deviation of theorem 3's noise, on the modes that M keeps
            clean_covariance: C, a `Covariance` over shape(s): what clean_s leaves open, Cov[R_{0→s} x_0 | x_t]

        Raises:
            ValueError: If s >= t, eta is outside [0, 1], or a trailing shape is not that of its time.

        >>> noise, levels = ssd.NoiseSchedule.linear(1000), ssd.ResolutionSchedule.thresholds([500])
        >>> proc = ssd.LinearDiffusion.resize((8, 8), noise, levels)
        >>> law = proc.posterior(np.ones((3, 4, 4)), np.zeros((3, 8, 8)), 499, 500)
        >>> law.sample(np.zeros((3, 8, 8))).shape
        (3, 8, 8)
        """
        eta = number(eta, "posterior: eta")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {eta}")
        times = times_of(s, self.steps), times_of(t, self.steps)
        if not (isinstance(times[0], int) and isinstance(times[1], int)):
            check_same_backend(x_t, clean_s, "posterior")
            first, last = map(_timed.as_times, times)
            return _timed.posterior(self, x_t, clean_s, first, last, float(eta), clean_covariance)
        s, t = self._pair(s, t)
        check_same_backend(x_t, clean_s, "posterior")
        step = self._numbers("_posterior", s, t, float(eta))
        operator, lift, alpha_s = step.operator, step.lift, step.alpha_s
        check_trailing(x_t, operator.out_shape, f"posterior: x_t at t = {t}")
        check_trailing(clean_s, operator.in_shape, f"posterior: clean_s at s = {s}")
        xp = real_namespace(x_t, "posterior: x_t")
        real_namespace(clean_s, "posterior: clean_s")
        dtype = computing_dtype(xp, x_t.dtype)
        clean = xp.astype(clean_s, dtype, copy=False)
        with full_precision(x_t):
            innovation = add_scaled(xp, xp.astype(x_t, dtype, copy=False), -step.alpha_t, operator(clean))
            if isinstance(lift, Lift):
                law = LiftedLaw(lift, alpha_s * clean, innovation, x_t)
                if clean_covariance is None:
                    return Gaussian.of_draws(law, step.covariance)
                mean = law.mean()
            elif isinstance(lift, float):
                mean = operator.T(lift * innovation)
            else:
                decomposition = operator.decomposition()
                assert decomposition is not None  # _posterior refuses eta < 1 otherwise
                mean = decomposition.lift(xp, innovation, lift.like(xp, innovation))
            if not isinstance(lift, Lift):
                mean = add_scaled(xp, mean, alpha_s, clean)
            mean = xp.astype(mean, x_t.dtype, copy=False)
        if clean_covariance is None:
            return Gaussian(mean, step.covariance)
        return Gaussian(mean, self._numbers("_widened", s, t, float(eta), clean_covariance))

    def prior(self, mean: Array | None = None, covariance: Any = None) -> Gaussian:
        """The law of x_T that sampling starts from, N(α_T m, α_T² C + σ_T² I).

        N(0, I) is this law only where α_T vanishes, which scale-matched noise at a low level is far from.
        Draw n states with ``.sample(noise)``, noise shaped ``(n, *mean.shape)``.

        Args:
            mean: m, mean of the clean data at the smallest size, ``(*batch, *shape(T))``; None: zero, as numpy array
            covariance: C, their covariance: a `Covariance`, or a matrix over shape(T) (leading axes independent),
                or over all axes of `mean` (channels correlated), in C order; None: zero

        >>> noise, levels = ssd.NoiseSchedule.linear(1000), ssd.ResolutionSchedule.thresholds([500])
        >>> proc = ssd.LinearDiffusion.resize((8, 8), noise, levels)
        >>> proc.prior(mean=np.zeros((3, 4, 4))).sample(np.zeros((10, 3, 4, 4))).shape
        (10, 3, 4, 4)
        """
        t = self.steps
        shape, alpha, variance = self.shape(t), self.alpha(t), self.sigma(t) ** 2
        centre = np.zeros(shape) if mean is None else mean
        real_namespace(centre, "prior: mean")
        check_trailing(centre, shape, "prior: mean")
        law: Covariance
        if covariance is None:
            law = self._numbers("_marginal", t)[1]
        else:
            if not isinstance(covariance, Covariance):
                n = np.shape(covariance)[0] if np.ndim(covariance) else 0
                over = shape if n == math.prod(shape) else tuple(centre.shape)
                covariance = Covariance.dense(covariance, over)
            if not isinstance(covariance, SpectralCovariance):
                raise TypeError(
                    "prior: expected a covariance with a known spectrum (isotropic, dense, cosine, of_modes)"
                )
            law = covariance.affine(alpha**2, variance)
        with full_precision(centre):
            return Gaussian(alpha * centre, law)

    def respace(self, times: Sequence[int]) -> LinearDiffusion:
        """The process seen only at some of its times: new step k is the present time times[k − 1].

        Exact: marginals, transitions and posteriors hold for any pair of times.

        Args:
            times: increasing, within 1 … T. The result's `.times` keep the numbers of the original process (a
                network trained on it is asked with those).

        >>> proc = ssd.LinearDiffusion.identity((8, 8), ssd.NoiseSchedule.linear(1000)).respace([10, 100, 1000])
        >>> proc.steps, proc.times
        (3, (10, 100, 1000))
        """
        chosen = [self._time(t) for t in times]
        if not chosen or chosen[0] < 1 or any(b <= a for a, b in pairwise(chosen)):
            raise ValueError(f"respace: expected increasing times within 1 … {self.steps}, got {list(times)}")
        kept = [0, *chosen]
        noise = NoiseSchedule(self.noise.alpha[kept], self.noise.sigma[kept])
        return LinearDiffusion(noise, self.degradations, tuple(self._original(t) for t in chosen))

    def _covariance(self, operator: LinearOperator, values: Any, rest: float) -> Covariance:
        """`values`(eigenvalues of OᵀO) in the operator's input modes, `rest` elsewhere."""
        decomposition = operator.decomposition()
        if decomposition is None:
            return OperatorCovariance(operator, values)
        variances = values(decomposition.singular_values**2)
        # What is zero but for rounding is zero: such a law is a point in these modes, and has no density.
        variances = np.where(variances <= _ROUNDING * rest, 0.0, variances)
        return Covariance.of_modes(operator, variances, rest)

    def _transition_covariance(self, s: int, t: int) -> Covariance:
        variance_s, variance_t = self.sigma(s) ** 2, self.sigma(t) ** 2
        operator = self.degradation(s, t).T
        return self._covariance(operator, lambda m2: variance_t - variance_s * m2, variance_t)

    def kept(self, make: Callable[..., Any], *numbers: float) -> Any:
        """``make(process, *numbers)``, made once: for what is computed outside of the arrays that a method is given.

        `make` is a function of a module. torch.compile finds the result while it traces, and never takes the result of
        other numbers, or of another process, for it.
        """
        return self._numbers(make, *numbers)

    def _numbers(self, kind: Any, *key: Any) -> Any:
        """What the method `kind` makes of times, kept. Where torch.compile traces, it is made untraced, and then read
        where the guards see it: the graph of one time, or process, is never taken for another's."""
        if is_tracing():
            # index makes a number of what torch.compile has turned into a symbol; it compares a covariance by itself
            entry = self._made(kind, *[k if isinstance(k, (float, Covariance)) else operator.index(k) for k in key])
            return self._memo.kept(entry)
        return self._memo.get(self._maker(kind), *key, sized=_held_bytes)

    def _maker(self, kind: Any) -> Callable[..., Any]:
        if isinstance(kind, str):
            made: Callable[..., Any] = getattr(self, kind)
            return made
        bound = functools.partial(kind, self)
        bound.__name__ = kind.__name__  # type: ignore[attr-defined]
        return bound

    @once_per_trace
    def _made(self, kind: Any, *key: Any) -> Any:
        make = self._maker(kind)
        return self._memo.shelve(Memo.entry(make, *key), self._memo.get(make, *key, sized=_held_bytes))

    def _scaled(self, s: int, t: int) -> LinearOperator:
        return self._signal_ratio(s, t) * self.operator(s, t)

    def _between(self, s: int, t: int) -> LinearOperator:
        return self.degradations.between(self._original(s), self._original(t))

    def _marginal(self, t: int) -> tuple[LinearOperator, Covariance]:
        operator = self.degradation(0, t) if t else self.operator(0, 0)
        return operator, Covariance.isotropic(self.shape(t), self.sigma(t) ** 2)

    def _transition(self, s: int, t: int) -> tuple[LinearOperator, Covariance]:
        return self.degradation(s, t), self._transition_covariance(s, t)

    def _posterior(self, s: int, t: int, eta: float) -> _PosteriorStep:
        alphas = self.alpha(s), self.alpha(t)
        unscaled, ratio = self.operator(s, t), self._signal_ratio(s, t)
        sigma_s, sigma_t = self.sigma(s), self.sigma(t)
        rho = (sigma_s / sigma_t) ** 2
        if eta == 1:
            covariance = self._covariance(ratio * unscaled, lambda m2: sigma_s**2 * (1 - rho * m2), sigma_s**2)
            unscaled.precompute()
            lift = Lift.of(unscaled, sigma_s, ratio, rho)
            return _PosteriorStep(*alphas, unscaled, rho * ratio if lift is None else lift, covariance)
        unscaled.prepare_spectrum()
        decomposition = unscaled.decomposition()
        if decomposition is None:
            if unscaled.learns():
                raise ValueError(
                    f"posterior: eta < 1 needs the singular vectors of {unscaled}, which are not kept while its "
                    "weights learn; use eta = 1, or weights that need no gradient"
                )
            raise ValueError(
                f"posterior: eta < 1 needs the singular vectors of {unscaled}, which is too large for a "
                "decomposition; use eta = 1, or an operator with structure (Separable, Blur, a smaller Matrix)"
            )
        kept = decomposition.singular_values > 0
        share = np.where(kept, posterior_share(eta, rho, (ratio * decomposition.singular_values) ** 2), 0.0)
        weights = Constant((sigma_s / sigma_t) * np.sqrt(np.maximum(share, 0.0)))
        covariance = Covariance.of_modes(unscaled, np.maximum(sigma_s**2 * (1 - share), 0.0), sigma_s**2)
        return _PosteriorStep(*alphas, unscaled, weights, covariance)

    def _widened(self, s: int, t: int, eta: float, clean_covariance: Covariance) -> Covariance:
        if not isinstance(clean_covariance, Covariance) or clean_covariance.shape != self.shape(s):
            raise ValueError(
                f"posterior: clean_covariance: expected a Covariance over {self.shape(s)}, the shape at s = {s}, got "
                f"{getattr(clean_covariance, 'shape', type(clean_covariance).__name__)}"
            )
        levels = self.alpha(s), self.sigma(s), self.alpha(t), self.sigma(t)

        def gain(r: np.ndarray) -> np.ndarray:
            alpha_s, sigma_s, alpha_t, sigma_t = map(np.asarray, levels)
            b, _ = posterior_gains(np, eta, alpha_s, sigma_s, alpha_t, sigma_t, r)
            return np.asarray(levels[0] - levels[2] * b * r)

        covariance = self._memo.get(self._posterior, s, t, eta, sized=_held_bytes).covariance
        return widened(covariance, self.operator(s, t), levels[0], gain, clean_covariance)


@dataclass(frozen=True, eq=False)
class _PosteriorStep:
    """The numbers of `posterior` for one pair of times.

    Attributes:
        operator: R
        lift: what raises the innovation: a `Lift` or a factor of Rᵀ at eta = 1, else weights on the modes of R
    """

    alpha_s: float
    alpha_t: float
    operator: LinearOperator
    lift: Lift | float | Constant
    covariance: Covariance


def _held_bytes(made: Any) -> int:
    """About what the numbers of a step come to hold: spectra in a few forms, and the matrices of its operator."""
    parts = made if isinstance(made, tuple) else (made,)
    if isinstance(made, _PosteriorStep):
        parts = (made.operator, made.covariance, made.covariance)
    held = 0
    for part in parts:
        if isinstance(part, SpectralCovariance):
            held += 3 * part.values.nbytes
        elif isinstance(part, LinearOperator):
            held += part.held_bytes()
    return held


_pytrees.register_static(LinearDiffusion)


def _level_shapes(base: Shape, levels: int, factor: float, sizes: Sequence[Shape | int] | None) -> list[Shape]:
    if sizes is not None:
        shapes = [positive_shape(size, "LinearDiffusion.resize: sizes") for size in sizes]
        if len(shapes) != levels or shapes[0] != base:
            raise ValueError(
                f"LinearDiffusion.resize: expected {levels} sizes, one per level, the first being {base}; got {shapes}"
            )
    else:
        if not (math.isfinite(factor) and factor > 1):
            raise ValueError(f"LinearDiffusion.resize: the factor between levels must be above 1, got {factor}")
        shapes = [tuple(max(1, round(n / factor**k)) for n in base) for k in range(levels)]
    for high, low in pairwise(shapes):
        if len(low) != len(base) or math.prod(low) >= math.prod(high) or any(b > a for a, b in zip(high, low)):
            raise ValueError(
                f"LinearDiffusion.resize: each level must be smaller than the one before, got {high} -> {low}; "
                f"take fewer levels than {levels} or other sizes"
            )
    return shapes
