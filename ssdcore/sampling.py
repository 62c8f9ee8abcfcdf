"""Sampling loops for any array library, and the step that they, and every other sampler of the library, are made of.

What a user of DDPM writes, with `proc.add_noise` to train and `step` to sample, is the same in every library; only the
draws differ. A network `net(x_t, t)` predicts the clean image at the size of t − 1:

>>> noise, levels = ssd.NoiseSchedule.linear(1000), ssd.ResolutionSchedule.thresholds([500])
>>> proc = ssd.LinearDiffusion.resize((8, 8), noise, levels)
>>> path = proc.paths[0]  # times of one state shape and one target shape: 1 … 499, all 8×8

numpy

>>> rng = np.random.default_rng(0)
>>> x0, net = rng.standard_normal((4, 3, 8, 8)), lambda x_t, t: 0.5 * x_t
>>> t = rng.choice(path.times, 4)
>>> x_t = proc.add_noise(x0, rng.standard_normal((4, 3, *path.shape)), t)
>>> prediction = net(x_t, t)  # compared with proc.degrade(x0, t - 1) in training
>>> x_s = ssd.sampling.step(proc, x_t, prediction, t - 1, t, rng.standard_normal)
>>> x_s.shape
(4, 3, 8, 8)

torch

>>> import torch
>>> x0 = torch.randn(4, 3, 8, 8)
>>> t = torch.tensor(path.times)[torch.randint(len(path.times), (4,))]
>>> x_t = proc.add_noise(x0, torch.randn(4, 3, *path.shape), t)
>>> prediction = net(x_t, t)
>>> x_s = ssd.sampling.step(proc, x_t, prediction, t - 1, t, torch.randn)
>>> x_s.dtype, tuple(x_s.shape)
(torch.float32, (4, 3, 8, 8))

jax, under jit too

>>> import jax
>>> keys = jax.random.split(jax.random.key(0), 4)
>>> x0 = jax.random.normal(keys[0], (4, 3, 8, 8))
>>> t = jax.random.choice(keys[1], np.array(path.times), (4,))
>>> x_t = jax.jit(proc.add_noise)(x0, jax.random.normal(keys[2], (4, 3, *path.shape)), t)
>>> prediction = net(x_t, t)
>>> x_s = ssd.sampling.step(proc, x_t, prediction, t - 1, t, lambda shape: jax.random.normal(keys[3], shape))
>>> x_s.dtype, x_s.shape
(dtype('float32'), (4, 3, 8, 8))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import array_api_compat
import numpy as np

from ssdcore._arrays import Array, check_trailing, real_namespace
from ssdcore.batched import BatchedCovariance
from ssdcore.gaussian import Covariance, SpectralCovariance
from ssdcore.multistep import born_covariance, extrapolated, extrapolation_weight
from ssdcore.placement import PLACEMENTS, Placement, sampling_times
from ssdcore.process import LinearDiffusion

Denoise = Callable[[Array, Any, Any], Array]
"""denoise(x_t, t, s): the clean image at the size of s, predicted from the state at t."""
Normal = Callable[[tuple[int, ...]], Array]
"""normal(shape): standard normal numbers, anew at every call."""
CleanCovariance = Callable[[int, int], "Covariance | None"]
"""covariance(t, s): of what the prediction at t leaves open, over the shape of s; None where nothing is known of it."""


@dataclass(frozen=True)
class Sampler:
    """How one state follows from another, where noise enters, and which times are visited if nobody says otherwise.

    One object for every loop that samples, for the adapters and for the oracle; `SAMPLERS` names some.

    Attributes:
        eta: factor on the posterior's noise where a change of size does not force it: 1 ancestral (theorem 3) … 0
            deterministic where the size is kept (DDIM)
        order: 1: the prediction as it is; 2: extrapolated from the last two (DPM-Solver++(2M) carried across changes of
            size, `ssdcore.multistep`), which is for eta = 0
        placement: of the times, as for `sampling_times`

    Raises:
        ValueError: For numbers outside these ranges, and order 2 at another eta.
    """

    eta: float = 1.0
    order: int = 1
    placement: Placement = "time"

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {self.eta}")
        if self.order not in (1, 2):
            raise ValueError(f"order: expected 1 (posterior steps) or 2 (multistep), got {self.order!r}")
        if self.order == 2 and self.eta != 0:
            raise ValueError(f"order = 2 is a deterministic sampler: expected eta = 0, got {self.eta}")
        if self.placement not in PLACEMENTS:
            raise ValueError(f"placement: expected one of {', '.join(PLACEMENTS)}, got {self.placement!r}")

    @staticmethod
    def named(name: str, eta: float | None = None) -> Sampler:
        """The sampler that `SAMPLERS` calls so, with another eta if one is given.

        >>> ssd.sampling.Sampler.named("multistep")
        Sampler(eta=0.0, order=2, placement='log_snr')
        """
        if name not in SAMPLERS:
            raise ValueError(f"sampler: expected one of {', '.join(SAMPLERS)}, got {name!r}")
        own = SAMPLERS[name]
        if eta is None:
            return own
        if own.order == 2 and eta != 0:
            raise ValueError(f'eta: the sampler "{name}" is deterministic: expected 0, got {eta}')
        return replace(own, eta=eta)

    def times(self, proc: LinearDiffusion, steps: int) -> tuple[int, ...]:
        """As many times of the process, placed as this sampler does."""
        return sampling_times(proc, steps, self.placement)

    def puts_back(self, chain: LinearDiffusion, k: int) -> bool:
        """Whether the step k → k − 1 takes what its prediction leaves open: at order 2 only a change of size does."""
        return k > 1 and (self.order == 1 or chain.shape(k) != chain.shape(k - 1))

    def takes_noise(self, chain: LinearDiffusion, k: int, second_moments: bool = False) -> bool:
        """Whether the step k → k − 1 of a chain draws any: never the last, and at eta = 0 only a change of size."""
        if k == 1:
            return False
        return self.eta > 0 or chain.shape(k) != chain.shape(k - 1) or (second_moments and self.puts_back(chain, k))

    def step(
        self,
        chain: LinearDiffusion,
        x: Array,
        prediction: Array,
        k: int,
        normal: Normal,
        previous: Array | None = None,
        clean_covariance: Covariance | None = None,
    ) -> Array:
        """The state at step k − 1 of a chain from that at step k: `step` as this sampler takes it.

        Args:
            previous: the prediction of the step before, None at the first; of no effect at order 1
            clean_covariance: what the prediction leaves open. At order 2 a change of size draws the modes that it adds
                with it, and the others take none (`ssdcore.multistep.born_covariance`)
        """
        second = {"previous": previous, "u": k + 1} if self.order == 2 else {}
        return step(chain, x, prediction, k - 1, k, normal, self.eta, clean_covariance=clean_covariance, **second)


SAMPLERS: dict[str, Sampler] = {
    "ancestral": Sampler(eta=1.0, order=1, placement="time"),  # the paper's
    "multistep": Sampler(eta=0.0, order=2, placement="log_snr"),  # its extrapolation is in log-SNR
}
"""Samplers by the names that commands, adapters and runs take. A new one is one entry."""


def step(
    proc: LinearDiffusion,
    x_t: Array,
    prediction: Array,
    s: Any,
    t: Any,
    normal: Normal,
    eta: float = 1.0,
    *,
    previous: Array | None = None,
    u: int | None = None,
    clean_covariance: Covariance | None = None,
) -> Array:
    """x_s drawn from ``proc.posterior(x_t, prediction, s, t, eta, clean_covariance)``; at s = 0 the prediction itself.

    Args:
        x_t: ``(*batch, *shape(t))`` state
        prediction: ``(*batch, *shape(s))`` clean image at the size of s, as predicted from x_t
        s, t: times of `proc`, s < t, as `posterior` takes them: one, one for each item, or traced
        normal: normal(shape) -> standard normal array like x_t; called once, and not where the law has no noise
        eta: 1 ancestral … 0 deterministic where the size is kept (DDIM)
        previous: ``(*batch, *shape(t))`` what was predicted in the step u → t before. With eta = 0 the step is then the
            second-order multistep one (`ssdcore.multistep.extrapolated`), DPM-Solver++(2M) within a size
        u: the time of the state that `previous` was predicted from; with `previous` None the step is the first of
            such steps
        clean_covariance: what the prediction leaves open (see `posterior`); in a second-order step only what of it is
            in the modes that a change of size adds (`ssdcore.multistep.born_covariance`)

    >>> proc = ssd.LinearDiffusion.identity((2,), ssd.NoiseSchedule.cosine(10))
    >>> ssd.sampling.step(proc, np.ones(2), np.zeros(2), 4, 5, np.ones, eta=0.0).round(3)
    array([0.835, 0.835])
    """
    if previous is not None:
        if u is None:
            raise ValueError("step: `previous` is known, so `u`, the time that it was predicted at, must be, too")
        prediction = extrapolated(proc, s, t, u, prediction, previous)
    if u is not None and clean_covariance is not None:
        clean_covariance = born_covariance(proc, s, t, clean_covariance)
    if isinstance(s, int) and s == 0:
        check_trailing(prediction, proc.shape(0), "step: prediction for s = 0")
        return prediction
    options = {} if clean_covariance is None else {"clean_covariance": clean_covariance}
    law = proc.posterior(x_t, prediction, s, t, eta, **options)
    return law.mean if law.covariance.is_zero else law.sample(normal(law.shape))


def sample(
    denoise: Denoise,
    proc: LinearDiffusion,
    x_T: Array,
    normal: Normal | Any,
    times: Sequence[int] | None = None,
    eta: float = 1.0,
    order: int = 1,
    *,
    clean_covariance: CleanCovariance | None = None,
) -> Array:
    """x_0 from x_T, ``(*batch, *shape(0))``: down the chain, a draw from the posterior at every step.

    The last prediction is the result. In jax the steps within one size are one `lax.scan`, so that tracing does not
    grow with their number: `denoise` must be traceable, and is given t and s as traced integers there. A `normal` that
    is a function draws the noise of all steps of a size at once, ``(steps, *shape)``; a key draws it step by step. The
    covariances of a scan must share their modes (all cosine, say), or its steps are unrolled. Wrap the call in
    `jax.jit` to keep what was compiled.

    Args:
        denoise: denoise(x_t, t, s) -> the clean image at the size of s, ``(*batch, *shape(s))``. t and s are times of
            the process that a network was trained on: of `proc`, or where that was respaced, of its `times`
        x_T: ``(*batch, *shape at the last time)`` of any array library, drawn from ``proc.prior(…)``
        normal: normal(shape) -> standard normal array like x_T. For jax a key will do: ``jax.random.key(0)``
        times: increasing times of `proc` to visit before 0, the last being that of x_T; None: all
        eta: 1 ancestral (theorem 3) … 0 deterministic where the size is kept (DDIM)
        order: 2: second-order multistep, DPM-Solver++(2M) carried across changes of size; for eta = 0
        clean_covariance: clean_covariance(t, s) -> Covariance over shape(s) of what the prediction leaves open, or
            None. At order 1 each step then has the mean *and covariance* of the true one (`LinearDiffusion.posterior`);
            at order 2 it is asked for at changes of size, for the modes that they add
            (`ssdcore.multistep.born_covariance`)

    Raises:
        ValueError: For times, eta or order outside their range, and for arrays of other shapes than their times
            ask.

    >>> spectrum = (1 + np.hypot(*np.indices((8, 8)))) ** -2.5
    >>> noise, levels = ssd.NoiseSchedule.linear(1000), ssd.ResolutionSchedule.equal(1000, levels=2)
    >>> proc, rng = ssd.LinearDiffusion.resize((8, 8), noise, levels), np.random.default_rng(0)
    >>> x_T = proc.prior().sample(rng.standard_normal((5, 4, 4)))
    >>> denoise = lambda x_t, t, s: np.zeros((5, *proc.shape(s)))  # what is best for data that are all zero
    >>> ssd.sampling.sample(denoise, proc, x_T, rng.standard_normal, times=range(100, 1001, 100)).shape
    (5, 8, 8)
    """
    chain = proc if times is None else proc.respace(times)
    sampler = Sampler(float(eta), order)
    real_namespace(x_T, "sample: x_T")
    check_trailing(x_T, chain.shape(chain.steps), f"sample: x_T at t = {chain.times[-1]}")
    if not callable(denoise):
        raise TypeError(f"sample: denoise: expected a function of (x_t, t, s), got {type(denoise).__name__}")
    walk = _Walk(denoise, chain, normal, sampler, clean_covariance)
    return walk.scanned(x_T) if array_api_compat.is_jax_array(x_T) else walk.down(x_T)


class _Walk:
    """One way down a chain: the arguments of `sample`."""

    def __init__(
        self,
        denoise: Denoise,
        chain: LinearDiffusion,
        normal: Any,
        sampler: Sampler,
        clean_covariance: CleanCovariance | None,
    ) -> None:
        self.denoise, self.chain, self.normal, self.sampler = denoise, chain, normal, sampler
        self.original = (0, *chain.times)
        self.clean_covariance = clean_covariance

    def predict(self, x: Array, t: Any, s: Any, shape: tuple[int, ...]) -> Array:
        prediction = self.denoise(x, t, s)
        check_trailing(prediction, shape, "sample: the result of denoise(x_t, t, s), the clean image at the size of s")
        return prediction

    def covariance(self, k: int) -> Covariance | None:
        if self.clean_covariance is None or not self.sampler.puts_back(self.chain, k):
            return None
        return self.clean_covariance(self.original[k], self.original[k - 1])

    def one(self, x: Array, previous: Array | None, k: int, normal: Normal) -> tuple[Array, Array]:
        """The step k → k − 1: (state, prediction)."""
        prediction = self.predict(x, self.original[k], self.original[k - 1], self.chain.shape(k - 1))
        return self.sampler.step(self.chain, x, prediction, k, normal, previous, self.covariance(k)), prediction

    def down(self, x: Array) -> Array:
        previous = None
        for k in range(self.chain.steps, 0, -1):
            x, previous = self.one(x, previous, k, self.normal)
        return x

    # In jax: runs of steps that one traced step can stand for.

    def _weight(self, k: int) -> float | None:
        """How much the step k extrapolates; None where it does so mode by mode."""
        chain = self.chain
        if self.sampler.order == 1 or k == chain.steps:
            return 0.0
        kept, arrived = chain.stage(k) == chain.stage(k - 1), chain.stage(k + 1) == chain.stage(k)
        if kept != arrived:
            return None
        return extrapolation_weight(chain, k - 1, k, k + 1) if kept else 0.0

    def _plain(self, k: int) -> bool:
        """Whether the step k keeps the shape, and the shape tells the degradation or all share their modes."""
        chain = self.chain
        if k == 1 or chain.shape(k) != chain.shape(k - 1) or self._weight(k) is None:
            return False
        if chain.degradations.modes is not None:
            return True
        shape = chain.shape(k)
        return len({chain.stage(j) for j in range(chain.steps + 1) if chain.shape(j) == shape}) == 1

    def scanned(self, x: Array) -> Array:
        import jax

        keyed = not callable(self.normal)

        def drawn(k: Any) -> Normal:
            if not keyed:
                normal: Normal = self.normal
                return normal
            return lambda shape: jax.random.normal(jax.random.fold_in(self.normal, k), shape, x.dtype)

        previous, k = None, self.chain.steps
        plain = [False, *(self._plain(j) for j in range(1, self.chain.steps + 1))]
        while k > 0:
            low = k
            while low > 1 and plain[low]:
                low -= 1
            steps = range(k, low, -1)  # k, k − 1, …, low + 1
            covariances = self._stacked([self.covariance(j) for j in steps]) if len(steps) > 2 else None
            if covariances is None:
                x, previous = self.one(x, previous, k, drawn(k))
                k -= 1
                continue
            x, previous = self._scan(x, previous, steps, drawn, keyed, covariances)
            k = low
        return x

    @staticmethod
    def _stacked(covariances: list[Covariance | None]) -> tuple[Any, ...] | None:
        """(modes, values, rest) of all steps, () where no step has any; None where they have nothing in common."""
        if all(c is None for c in covariances):
            return ()
        if not all(isinstance(c, SpectralCovariance) for c in covariances):
            return None
        known = [c for c in covariances if isinstance(c, SpectralCovariance)]
        modes = known[0].modes
        found = [c.in_modes(modes) for c in known]
        if any(f is None for f in found):
            return None
        full = [np.broadcast_to(f[0], modes.counts) for f in found if f is not None]
        return modes, np.stack(full), np.array([f[1] for f in found if f is not None])

    def _scan(
        self,
        x: Array,
        previous: Array | None,
        steps: range,
        drawn: Callable[[Any], Normal],
        keyed: bool,
        covariances: tuple[Any, ...],
    ) -> tuple[Array, Array]:
        import jax
        import jax.numpy as jnp

        chain, times = self.chain, np.array(self.original)
        k = np.array(steps)
        noiseless = (
            self.sampler.eta == 0 and not covariances and all(chain.stage(j) == chain.stage(j - 1) for j in steps)
        )
        inputs = {
            "k": jnp.asarray(k),
            "t": jnp.asarray(times[k]),
            "s": jnp.asarray(times[k - 1]),
            "weight": jnp.asarray([self._weight(j) for j in steps], dtype=x.dtype),
        }
        if not keyed and not noiseless:
            inputs["noise"] = self.normal((len(steps), *x.shape))
        if covariances:
            inputs["values"], inputs["rest"] = (jnp.asarray(part, dtype=x.dtype) for part in covariances[1:])

        def body(carry: tuple[Array, Array], at: dict[str, Array]) -> tuple[tuple[Array, Array], None]:
            state, last = carry
            prediction = self.predict(state, at["t"], at["s"], chain.shape(int(k[0])))
            used = prediction
            if self.sampler.order == 2:
                used = prediction + at["weight"] * (prediction - last)
            spread = BatchedCovariance(covariances[0], at["values"], at["rest"]) if covariances else None
            law = chain.posterior(state, used, at["k"] - 1, at["k"], self.sampler.eta, spread)
            if noiseless:
                return (law.mean, prediction), None
            noise = drawn(at["k"])(tuple(state.shape)) if keyed else at["noise"]
            return (law.sample(noise), prediction), None

        start = jnp.zeros_like(x) if previous is None or previous.shape != x.shape else previous
        (x, last), _ = jax.lax.scan(body, (x, start), inputs)
        return x, last
