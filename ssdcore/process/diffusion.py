"""LinearDiffusion: a diffusion whose states are linearly degraded, with its exact transitions and posteriors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ssdcore._arrays import (
    Array,
    Shape,
    add_scaled,
    cast,
    check_same_backend,
    check_trailing,
    computing_dtype,
    full_precision,
    known_array,
    real_namespace,
    real_number,
)
from ssdcore._times import times_of
from ssdcore.degradations import Chain, Degradations, GrowingBlur
from ssdcore.gaussian import Covariance, Gaussian, SpectralCovariance
from ssdcore.lifted import Lift, LiftedLaw
from ssdcore.operators import Blur, LinearOperator, Resize
from ssdcore.operators.linear_map import positive_shape
from ssdcore.process import steps, timed
from ssdcore.process.timed import check_items, degraded, level_of, levels, state_shape
from ssdcore.process.timeline import Timeline, size_name
from ssdcore.schedules import NoiseSchedule, ResolutionSchedule


class LinearDiffusion(Timeline):
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
        _check_kind(noise, NoiseSchedule, "LinearDiffusion.identity: noise")
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
        _check_kind(noise, NoiseSchedule, "LinearDiffusion.resize: noise")
        _check_kind(levels, ResolutionSchedule, "LinearDiffusion.resize: levels")
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
        shapes = level_shapes(base, levels.levels, factor, sizes)
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
        _check_kind(noise, NoiseSchedule, "LinearDiffusion.blur: noise")
        w = known_array(widths, "LinearDiffusion.blur: widths").astype(np.float64)
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
        _check_kind(noise, NoiseSchedule, "LinearDiffusion.from_operators: noise")
        if not isinstance(ops, Sequence):
            raise TypeError(f"LinearDiffusion.from_operators: expected a list of operators, got {type(ops).__name__}")
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
            clean, noise = (cast(xp, x, dtype) for x in (clean, noise))
            if not isinstance(time, int):
                cp, *both = levels(self, time, dtype)
                alpha, sigma = (level_of(xp, cp, level, clean, shape) for level in both)
            return cast(xp, alpha * clean + sigma * noise, x0.dtype)

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
            return timed.marginal(self, x0, time)
        operator, covariance = self.kept(steps.marginal, time)
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
            return timed.transition(self, x_s, *map(timed.as_times, times))
        s, t = self._pair(s, t)
        operator, covariance = self.kept(steps.transition, s, t)
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
        if clean_covariance is not None:
            _check_kind(clean_covariance, Covariance, "posterior: clean_covariance")
        eta = real_number(eta, "posterior: eta")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {eta}")
        final = self.steps
        first, last = times_of(s, final), times_of(t, final)
        check_same_backend(x_t, clean_s, "posterior")
        if not (isinstance(first, int) and isinstance(last, int)):
            pair = timed.as_times(first), timed.as_times(last)
            return timed.posterior(self, x_t, clean_s, *pair, float(eta), clean_covariance)
        s, t = self._ordered(first, last)
        step = self.kept(steps.posterior, s, t, float(eta))
        operator, lift, alpha_s = step.operator, step.lift, step.alpha_s
        check_trailing(x_t, operator.out_shape, f"posterior: x_t at t = {t}")
        check_trailing(clean_s, operator.in_shape, f"posterior: clean_s at s = {s}")
        xp = real_namespace(x_t, "posterior: x_t")
        real_namespace(clean_s, "posterior: clean_s")
        dtype = computing_dtype(xp, x_t.dtype)
        clean = cast(xp, clean_s, dtype)
        with full_precision(x_t):
            state = cast(xp, x_t, dtype)
            if isinstance(lift, Lift):
                law = LiftedLaw(lift, alpha_s * clean, lift.innovation(xp, state, step.alpha_t, clean), x_t)
                if clean_covariance is None:
                    return Gaussian.of_draws(law, step.covariance)
                mean = law.mean()
            else:
                innovation = operator.add_applied(xp, state, -step.alpha_t, clean)
                if isinstance(lift, float):
                    mean = operator.T(lift * innovation)
                else:
                    decomposition = operator.decomposition()
                    assert decomposition is not None  # steps.posterior refuses eta < 1 otherwise
                    mean = decomposition.lift(xp, innovation, lift.like(xp, innovation))
                mean = cast(xp, add_scaled(xp, mean, alpha_s, clean), x_t.dtype)
        if clean_covariance is None:
            return Gaussian(mean, step.covariance)
        return Gaussian(mean, self.kept(steps.widened_posterior, s, t, float(eta), clean_covariance))

    def prior(self, mean: Array | None = None, covariance: Any = None) -> Gaussian:
        """The law of x_T that sampling starts from, N(α_T m, α_T² C + σ_T² I).

        N(0, I) is this law only where α_T vanishes, which scale-matched noise at a low level is far from.
        Draw n states with ``.sample(noise)``, noise shaped ``(n, *mean.shape)``.

        Args:
            mean: m, mean of the clean data at the smallest size, ``(*batch, *shape(T))``; None: zero, which follows the
                library and dtype of the noise
            covariance: C, their covariance: a `Covariance`, or a matrix over shape(T) (leading axes independent),
                or over all axes of `mean` (channels correlated), in C order; None: zero

        >>> noise, levels = ssd.NoiseSchedule.linear(1000), ssd.ResolutionSchedule.thresholds([500])
        >>> proc = ssd.LinearDiffusion.resize((8, 8), noise, levels)
        >>> proc.prior(mean=np.zeros((3, 4, 4))).sample(np.zeros((10, 3, 4, 4))).shape
        (10, 3, 4, 4)
        """
        t = self.steps
        shape = self.shape(t)
        if mean is not None:
            real_namespace(mean, "prior: mean")
            check_trailing(mean, shape, "prior: mean")
        law: Covariance
        if covariance is None:
            law = self.kept(steps.marginal, t)[1]
        else:
            if not isinstance(covariance, Covariance):
                covariance = known_array(covariance, "prior: covariance")
                n = covariance.shape[0] if covariance.ndim else 0
                over = shape if mean is None or n == math.prod(shape) else tuple(mean.shape)
                covariance = Covariance.dense(covariance, over)
            if not isinstance(covariance, SpectralCovariance):
                raise TypeError(
                    "prior: expected a covariance with a known spectrum (isotropic, dense, cosine, of_modes)"
                )
            law = self.kept(steps.prior_covariance, covariance)
        if mean is None:
            return Gaussian.about(self.kept(steps.zero, t), law)
        with full_precision(mean):
            return Gaussian(self.alpha(t) * mean, law)

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
        if not isinstance(times, Iterable):
            raise TypeError(f"respace: expected increasing times, got {times!r}")
        chosen = [self._time(t) for t in times]
        if not chosen or chosen[0] < 1 or any(b <= a for a, b in pairwise(chosen)):
            raise ValueError(f"respace: expected increasing times within 1 … {self.steps}, got {list(times)}")
        kept = [0, *chosen]
        noise = NoiseSchedule(self.noise.alpha[kept], self.noise.sigma[kept], None, self.noise.normalisation)
        return LinearDiffusion(noise, self.degradations, tuple(self.original_times.value[chosen].tolist()))


def _check_kind(value: Any, kind: type, what: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{what}: expected a {kind.__name__}, got {type(value).__name__}")


def level_shapes(base: Shape, levels: int, factor: float, sizes: Sequence[Shape | int] | None) -> list[Shape]:
    """Of each level, as `LinearDiffusion.resize` takes them."""
    if sizes is not None:
        if not isinstance(sizes, Iterable):
            raise TypeError(f"LinearDiffusion.resize: sizes: expected a list of shapes, got {sizes!r}")
        shapes = [positive_shape(size, "LinearDiffusion.resize: sizes") for size in sizes]
        if len(shapes) != levels or shapes[0] != base:
            raise ValueError(
                f"LinearDiffusion.resize: expected {levels} sizes, one per level, the first being {base}; got {shapes}"
            )
    else:
        factor = real_number(factor, "LinearDiffusion.resize: factor")
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
