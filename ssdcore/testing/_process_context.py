"""What the checks of a process share: pairs of times, dense matrices, and calls of every public method."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

import numpy as np

from ssdcore._arrays import Array, Shape
from ssdcore.process import LinearDiffusion
from ssdcore.testing._backend import Backend
from ssdcore.testing._operator_checks import probe
from ssdcore.testing._report import Skipped

# States of at most this many elements are compared with dense matrices.
DENSE_LIMIT = 256


class ProcessContext:
    """One process on one backend."""

    def __init__(self, proc: LinearDiffusion, backend: Backend, examples: int, seed: int) -> None:
        self.proc, self.backend, self.wide, self.examples = proc, backend, backend.widest, examples
        self._rng = np.random.default_rng(seed)
        self.pairs = self._choose_pairs()
        self._matrices: dict[tuple[int, int], np.ndarray] = {}

    def _choose_pairs(self) -> list[tuple[int, int]]:
        """Pairs s < t: at both ends, around the first changes of size, and drawn at random."""
        last = self.proc.steps
        pairs = [(t - 1, t) for t in self.proc.size_changes[:2]] + [(last - 1, last), (0, 1), (0, last)]
        for _ in range(self.examples):
            s, t = sorted(int(i) for i in self._rng.choice(last + 1, size=2, replace=False))
            pairs.append((s, t))
        return list(dict.fromkeys(pairs))

    def size(self, t: int) -> int:
        return math.prod(self.proc.shape(t))

    @functools.cached_property
    def dense_pairs(self) -> list[tuple[int, int]]:
        """The pairs whose states are small enough for dense matrices."""
        pairs = [(s, t) for s, t in self.pairs if max(self.size(s), self.size(t)) <= DENSE_LIMIT]
        if not pairs:
            raise Skipped(f"no state of at most {DENSE_LIMIT} elements: no dense matrix is built")
        return pairs

    @property
    def main_pair(self) -> tuple[int, int]:
        """One pair for what does not depend on times: a change of size after the first step, where there is one."""
        return next(((s, t) for s, t in self.pairs if s > 0), self.pairs[0])

    def m(self, s: int, t: int) -> np.ndarray:
        """Dense M_{s→t}."""
        if (s, t) not in self._matrices:
            self._matrices[s, t] = probe(self.proc.degradation(s, t), self.wide)
        return self._matrices[s, t]

    def probe_map(self, call: Callable[[Array], Array], shape: Shape) -> np.ndarray:
        """Dense matrix of a linear function of arrays, in the widest dtype."""
        return probe(call, self.wide, shape)

    def random(self, shape: Shape, backend: Backend | None = None) -> Array:
        return (backend or self.backend).array(self._rng.standard_normal(shape))

    def values(self, shape: Shape) -> np.ndarray:
        return self._rng.standard_normal(shape)

    def dense_rounding(self, s: int, t: int, entries: int) -> float:
        """Relative error of dense matrices over the states at s and t, computed in the widest dtype."""
        return self.wide.rounding(4 * (self.size(s) + self.size(t)), entries)

    def rounding(self, s: int, t: int, entries: int) -> float:
        """Relative error of M_{s→t}, a covariance or a posterior mean in this dtype."""
        return self.backend.rounding(4 * (self.size(s) + self.size(t)), entries)

    def inputs(self, batch: Shape, backend: Backend | None = None) -> dict[str, Array]:
        """Arrays for `calls`, with leading axes `batch`, at the main pair of times."""
        (s, t), shape = self.main_pair, self.proc.shape
        shapes = {"x0": shape(0), "x_s": shape(s), "x_t": shape(t), "clean_s": shape(s), "noise_s": shape(s)}
        return {name: self.random((*batch, *trailing), backend) for name, trailing in shapes.items()}

    def calls(self) -> dict[str, tuple[Callable[[Mapping[str, Array]], Array], Shape]]:
        """Every public method that returns arrays: name -> (function of the inputs, trailing shape of its result)."""
        (s, t), proc = self.main_pair, self.proc
        at_s, at_t = proc.shape(s), proc.shape(t)
        return {
            "clean": (lambda x: proc.clean(x["x0"], t), at_t),
            "add_noise": (lambda x: proc.add_noise(x["x0"], x["x_t"], t), at_t),
            "marginal": (lambda x: proc.marginal(x["x0"], t).mean, at_t),
            "marginal log_prob": (lambda x: proc.marginal(x["x0"], t).log_prob(x["x_t"]), ()),
            "transition": (lambda x: proc.transition(x["x_s"], s, t).mean, at_t),
            "transition sample": (lambda x: proc.transition(x["x_s"], s, t).sample(x["x_t"]), at_t),
            "posterior": (lambda x: proc.posterior(x["x_t"], x["clean_s"], s, t).mean, at_s),
            "posterior, eta 0": (lambda x: proc.posterior(x["x_t"], x["clean_s"], s, t, eta=0.0).mean, at_s),
            "posterior covariance": (
                lambda x: proc.posterior(x["x_t"], x["clean_s"], s, t).covariance(x["noise_s"]),
                at_s,
            ),
            "posterior sample": (lambda x: proc.posterior(x["x_t"], x["clean_s"], s, t).sample(x["noise_s"]), at_s),
        }
