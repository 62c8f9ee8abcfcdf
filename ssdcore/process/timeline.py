"""Timeline: what a process is at each of its times, before any law: noise levels, shapes, operators."""

from __future__ import annotations

import functools
import html
import math
import operator
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from ssdcore._arrays import Constant, Memo, Shape, is_tracing, namespace_of, once_per_trace
from ssdcore._keyed import Static
from ssdcore._times import one_time
from ssdcore.conditioning import InadmissibleProcess
from ssdcore.degradations import Degradations
from ssdcore.gaussian import Covariance
from ssdcore.operators import LinearOperator
from ssdcore.schedules import NoiseSchedule

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


def size_name(shape: Shape) -> str:
    """16×16."""
    return "×".join(map(str, shape))


@dataclass(frozen=True, eq=False, repr=False)
class Timeline(Static):
    """What `LinearDiffusion` knows of its times 0 … T; checked to be admissible when it is made."""

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

    def key(self) -> Hashable:
        return self.times, self.noise, self.degradations

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
        return self._ordered(self._time(s), self._time(t))

    @staticmethod
    def _ordered(s: int, t: int) -> tuple[int, int]:
        if s >= t:
            raise ValueError(f"expected times s < t, got s = {s}, t = {t}")
        return operator.index(s), operator.index(t)  # numbers where torch.compile has made symbols of them

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
        return self.kept(_between, s, t)

    def stage(self, t: int) -> int:
        """A number that two times share exactly if R_{0→t} is the same for both."""
        return self._stage_of[self._time(t)]

    def degradations_of(self, shape: Shape) -> tuple[int, ...]:
        """One time for each degradation R_{0→t} that states of `shape` have: its first. Empty for another shape."""
        return self._first_of_shape.get(shape, ())

    def signal_ratio(self, s: int, t: int) -> float:
        """alpha_t/alpha_s, the scalar of `degradation`; 0 where no signal is left at s."""
        alpha_s: float = self.alpha(s)
        return self.alpha(t) / alpha_s if alpha_s > 0 else 0.0

    def degradation(self, s: int, t: int) -> LinearOperator:
        """M_{s→t} = (alpha_t/alpha_s) R_{s→t}, scalar included, for 0 <= s < t <= T."""
        s, t = self._pair(s, t)
        return self.kept(_scaled, s, t)

    def kept(self, make: Callable[..., Any], *key: Any) -> Any:
        """``make(process, *key)``, made once: for what is computed outside of the arrays that a method is given.

        torch.compile has it made untraced, and then reads it where its guards see it: it never takes the result of
        another key, or of another process, for it.

        Args:
            make: a function of a module
            key: numbers; and covariances
        """
        if is_tracing():
            # index makes a number of what torch.compile has turned into a symbol; it compares a covariance by itself
            entry = self._made(make, *[k if isinstance(k, (float, Covariance)) else operator.index(k) for k in key])
            return self._memo.kept(entry)
        return self._memo.get(make, *key, of=(self,), sized=held_bytes)

    @once_per_trace
    def _made(self, make: Callable[..., Any], *key: Any) -> Any:
        return self._memo.shelve(Memo.entry(make, *key), self._memo.get(make, *key, of=(self,), sized=held_bytes))


def _scaled(proc: Timeline, s: int, t: int) -> LinearOperator:
    return proc.signal_ratio(s, t) * proc.operator(s, t)


def _between(proc: Timeline, s: int, t: int) -> LinearOperator:
    originals = proc.original_times.value
    return proc.degradations.between(int(originals[s]), int(originals[t]))


def held_bytes(made: Any) -> int:
    """About what `made`, one thing or a tuple of them, comes to hold in memory."""
    parts = made if isinstance(made, tuple) else (made,)
    return sum(part.held_bytes() for part in parts if hasattr(part, "held_bytes"))
