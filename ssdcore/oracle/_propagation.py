"""A chain's state on Gaussian data, propagated exactly from x_T to x_0, block by block."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from ssdcore._arrays import known_array
from ssdcore._gains import innovation_gain
from ssdcore.gaussian import Gaussian
from ssdcore.multistep import extrapolated, extrapolation_weight
from ssdcore.oracle._blocks import Structure
from ssdcore.process import LinearDiffusion


@dataclass(frozen=True, eq=False)
class BlockLaw:
    """Law of a batch of b blocks of size n, in the eigenvectors of the data covariance.

    Attributes:
        index: (b, n) coordinates; vectors (b, n, n) the eigenvectors there, None for the coordinates themselves
        data: (b, n) variances of the data; covariance (b, n) or (b, n, n) that of the sampler's output
        shift: (b, n) mean of the output minus that of the data
    """

    index: np.ndarray
    vectors: np.ndarray | None
    data: np.ndarray
    covariance: np.ndarray
    shift: np.ndarray


def diagonals(values: np.ndarray) -> np.ndarray:
    return values[..., None] * np.eye(values.shape[-1])


def factor(covariance: np.ndarray) -> np.ndarray:
    """F with F Fᵀ = P for a batch of positive semi-definite P."""
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
        return vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]


@dataclass(frozen=True, eq=False)
class Stage:
    """The data as the states of one stage see it, for one group of blocks: S = R C Rᵀ = Q diag(λ) Qᵀ.

    Attributes:
        degradation: R (b, n_k, n), None at full size
        eigenvalues: λ (b, n_k); vectors Q (b, n_k, n_k), None where S is diagonal as it stands
    """

    degradation: np.ndarray | None
    eigenvalues: np.ndarray
    vectors: np.ndarray | None

    @staticmethod
    def of(degradation: np.ndarray | None, data: np.ndarray) -> Stage:
        if degradation is None and data.ndim == 2:
            return Stage(None, data, None)
        signal = data if degradation is None else degradation @ _times_data(degradation.swapaxes(1, 2), data)
        if signal.shape[-1] <= 1:
            return Stage(degradation, np.maximum(signal.reshape(signal.shape[:2]), 0.0), None)
        values, vectors = np.linalg.eigh(signal)
        return Stage(degradation, np.maximum(values, 0.0), vectors)

    @staticmethod
    def all(structure: Structure, stage: int, data: list[np.ndarray]) -> list[Stage]:
        """One stage for every group of blocks."""
        if stage == 0:
            return [Stage.of(None, block) for block in data]
        operator = structure.chain.operator(0, structure.stage_of.index(stage))
        return [Stage.of(r, block) for r, block in zip(structure.blocks(operator, 0, stage), data)]

    def rows(self, matrix: np.ndarray) -> np.ndarray:
        """Qᵀ A."""
        return matrix if self.vectors is None else self.vectors.swapaxes(1, 2) @ matrix

    def columns(self, matrix: np.ndarray) -> np.ndarray:
        """A Q."""
        return matrix if self.vectors is None else matrix @ self.vectors

    def vector(self, x: np.ndarray) -> np.ndarray:
        """Qᵀ x."""
        return self.rows(x[..., None])[..., 0]


def _times_data(matrix: np.ndarray, data: np.ndarray) -> np.ndarray:
    """C A for the data covariance of a group, variances (b, n) or matrices (b, n, n)."""
    return data[:, :, None] * matrix if data.ndim == 2 else data @ matrix


@dataclass(frozen=True, eq=False)
class _Change:
    """Blocks of one step to another degradation, in the eigenvectors of its two stages.

    Attributes:
        response: W (b, n_s, n_t): x̂ = R_s m + W (x_t − α_t R_t m)
        innovation: B (b, n_s, n_t) of the posterior
        down: R_{s→t} (b, n_t, n_s)
        cross: R_s C R_tᵀ (b, n_s, n_t)
    """

    response: np.ndarray
    innovation: np.ndarray
    down: np.ndarray
    cross: np.ndarray


ChainState = TypeVar("ChainState")


class Propagation(abc.ABC, Generic[ChainState]):
    """The law of the chain's state, stage by stage, in the eigenvectors of each stage's signal covariance.

    Steps that keep the degradation are diagonal there, so a whole run of them is a few vectors of gains. Means are kept
    as their distance from the exact marginal mean, on which every step acts linearly.
    """

    def __init__(self, chain: LinearDiffusion, structure: Structure, eta: float, second_moments: bool = False) -> None:
        self.chain, self.structure, self.eta, self.second_moments = chain, structure, eta, second_moments
        self.data = [structure.data_block(group) for group in structure.groups]

    @abc.abstractmethod
    def start(self, covariance: np.ndarray, shift: np.ndarray) -> ChainState:
        """The state x_T of covariance (b, n), diagonal, or (b, n, n), and mean distance (b, n)."""

    @abc.abstractmethod
    def run(self, stages: list[Stage], states: list[ChainState], first: int, last: int) -> list[ChainState]:
        """The steps last → last − 1 → … → first of one stage; at time 0 the state is the prediction itself."""

    @abc.abstractmethod
    def change(self, t: int, stages: list[Stage], below: list[Stage], states: list[ChainState]) -> list[ChainState]:
        """The step t → t − 1 to the degradation of the stages `below`."""

    @abc.abstractmethod
    def moments(self, state: ChainState) -> tuple[np.ndarray, np.ndarray]:
        """(covariance, mean distance) of x."""

    def law(self, mean: np.ndarray, prior: Gaussian | None) -> tuple[np.ndarray, tuple[BlockLaw, ...]]:
        """(mean of x_0, the law of each group of blocks around it)."""
        stage_of = self.structure.stage_of
        last = self.chain.steps
        stages = self._enter(stage_of[last])
        states = self._start(stages, mean, prior)
        while True:
            first = stage_of.index(stage_of[last])  # the times first … last share a stage
            states = self.run(stages, states, first, last)
            if first == 0:
                break
            below = self._enter(stage_of[first - 1])
            states = self.change(first, stages, below, states)
            stages, last = below, first - 1
        coordinates = self.structure.coordinates[0]
        shift = np.zeros(coordinates.size)
        blocks = []
        for group, stage, state in zip(self.structure.groups, stages, states):
            covariance, apart = self.moments(state)
            blocks.append(BlockLaw(group.index[0], stage.vectors, stage.eigenvalues, covariance, apart))
            shift[group.index[0]] = apart if stage.vectors is None else (stage.vectors @ apart[..., None])[..., 0]
        return mean + coordinates.synthesise(shift), tuple(blocks)

    def _enter(self, stage: int) -> list[Stage]:
        return Stage.all(self.structure, stage, self.data)

    def _start(self, stages: list[Stage], mean: np.ndarray, prior: Gaussian | None) -> list[ChainState]:
        chain, last = self.chain, self.chain.steps
        alpha, sigma = chain.alpha(last), chain.sigma(last)
        if prior is None:
            exact = [alpha**2 * stage.eigenvalues + sigma**2 for stage in stages]
            return [self.start(covariance, np.zeros_like(covariance)) for covariance in exact]
        at = self.structure.stage_of[last]
        gap = known_array(prior.mean, "prior").astype(np.float64) - alpha * chain.clean(mean, last)
        shift = self.structure.coordinates[at].analyse(gap)
        covariances = self.structure.blocks(prior.covariance, at, at)
        return [
            self.start(stage.columns(stage.rows(covariance)), stage.vector(shift[group.index[at]]))
            for group, stage, covariance in zip(self.structure.groups, stages, covariances)
        ]

    def step_gains(self, stage: Stage, t: int) -> tuple[np.ndarray, float]:
        """(response w of the prediction (b, n), innovation gain b) of the step t → t − 1 inside a stage."""
        chain, signal = self.chain, stage.eigenvalues
        alpha, sigma = chain.alpha(t), chain.sigma(t)
        response = alpha * signal / (alpha**2 * signal + sigma**2)
        carried = innovation_gain(np, self.eta, chain.alpha(t - 1), chain.sigma(t - 1), alpha, sigma)
        return response, float(carried)

    def maps(self, t: int, stages: list[Stage], below: list[Stage]) -> list[_Change]:
        chain, structure, s = self.chain, self.structure, t - 1
        source, target = structure.stage_of[t], structure.stage_of[s]

        def innovation(x: np.ndarray) -> np.ndarray:
            return chain.posterior(x, np.zeros((len(x), *chain.shape(s))), s, t, eta=self.eta).mean

        lifts = structure.blocks(innovation, source, target)
        downs = structure.blocks(chain.operator(s, t), target, source)
        result = []
        for data, high, low, lift, down in zip(self.data, below, stages, lifts, downs):
            assert low.degradation is not None  # only stage 0 has none, and no chain changes from there
            cross = _times_data(low.degradation.swapaxes(1, 2), data)
            if high.degradation is not None:
                cross = high.degradation @ cross
            weights = chain.alpha(t) / (chain.alpha(t) ** 2 * low.eigenvalues + chain.sigma(t) ** 2)
            cross = low.columns(high.rows(cross))
            response = cross * weights[:, None, :]
            result.append(_Change(response, low.columns(high.rows(lift)), high.columns(low.rows(down)), cross))
        return result

    def left_open(self, t: int, maps: _Change, high: Stage) -> np.ndarray:
        """C = Cov[R_s x_0 | x_t] at a change."""
        return diagonals(high.eigenvalues) - self.chain.alpha(t) * maps.response @ maps.cross.swapaxes(1, 2)

    def noise(self, t: int, innovation: np.ndarray) -> np.ndarray:
        """Posterior covariance σ_s² I − σ_t² B Bᵀ of a change."""
        noise = -(self.chain.sigma(t) ** 2) * (innovation @ innovation.swapaxes(1, 2))
        diagonal = np.arange(noise.shape[-1])
        noise[:, diagonal, diagonal] += self.chain.sigma(t - 1) ** 2
        return noise


_Covariance = tuple[np.ndarray, np.ndarray]


class Moments(Propagation[_Covariance]):
    """First-order chains, any eta: the state is (covariance (b, n) or (b, n, n), mean distance (b, n))."""

    def start(self, covariance: np.ndarray, shift: np.ndarray) -> _Covariance:
        return covariance, shift

    def moments(self, state: _Covariance) -> tuple[np.ndarray, np.ndarray]:
        return state

    def run(self, stages: list[Stage], states: list[_Covariance], first: int, last: int) -> list[_Covariance]:
        return [self._run(stage, *state, first, last) for stage, state in zip(stages, states)]

    def _run(self, stage: Stage, covariance: np.ndarray, shift: np.ndarray, first: int, last: int) -> _Covariance:
        chain = self.chain
        gain, noise = np.ones_like(shift), np.zeros_like(shift)
        for t in range(last, first, -1):
            response, carried = self.step_gains(stage, t)
            step = chain.alpha(t - 1) * response + carried * (1 - chain.alpha(t) * response)
            gain = step * gain
            noise = step**2 * noise + (chain.sigma(t - 1) ** 2 - (chain.sigma(t) * carried) ** 2)
            if self.second_moments and t > 1:
                left_open = stage.eigenvalues * (1 - chain.alpha(t) * response)  # Cov[R_t x_0 | x_t]
                noise = noise + (chain.alpha(t - 1) - carried * chain.alpha(t)) ** 2 * left_open
        if covariance.ndim == 2:
            return gain**2 * covariance + noise, gain * shift
        return gain[:, :, None] * covariance * gain[:, None, :] + diagonals(noise), gain * shift

    def change(self, t: int, stages: list[Stage], below: list[Stage], states: list[_Covariance]) -> list[_Covariance]:
        """G = α_s W + B (I − α_t R W), and the posterior's noise."""
        alpha_s, alpha_t = self.chain.alpha(t - 1), self.chain.alpha(t)
        result = []
        for maps, high, (covariance, shift) in zip(self.maps(t, stages, below), below, states):
            w, b = maps.response, maps.innovation
            gain = alpha_s * w + b - alpha_t * (b @ (maps.down @ w))
            carried = gain * covariance[:, None, :] if covariance.ndim == 2 else gain @ covariance
            moved = carried @ gain.swapaxes(1, 2) + self.noise(t, b)
            if self.second_moments and t > 1:
                moved = moved + self._put_back(t, maps, high)
            result.append(((moved + moved.swapaxes(1, 2)) / 2, (gain @ shift[..., None])[..., 0]))
        return result

    def _put_back(self, t: int, maps: _Change, high: Stage) -> np.ndarray:
        """D C Dᵀ with C = Cov[R_s x_0 | x_t] and D = α_s I − B α_t R, what second moments add to a change."""
        left_open = self.left_open(t, maps, high)
        through = self.chain.alpha(t - 1) * np.eye(left_open.shape[-1])
        through = through - self.chain.alpha(t) * maps.innovation @ maps.down
        return np.asarray(through @ left_open @ through.swapaxes(1, 2))


# (x, the last prediction or None), both linear in independent standard normals: (b, n, 1 + normals), the first column
# being the mean distance.
_Linear = tuple[np.ndarray, "np.ndarray | None"]


class Factors(Propagation[_Linear]):
    """The multistep sampler: x and the last prediction as linear maps of the same independent normals.

    It draws noise only at changes, so everything between is a matrix whose rows are scaled.
    """

    def start(self, covariance: np.ndarray, shift: np.ndarray) -> _Linear:
        root = diagonals(np.sqrt(covariance)) if covariance.ndim == 2 else factor(covariance)
        return np.concatenate([shift[..., None], root], axis=2), None

    def moments(self, state: _Linear) -> tuple[np.ndarray, np.ndarray]:
        root = state[0][:, :, 1:]
        return root @ root.swapaxes(1, 2), state[0][:, :, 0]

    def run(self, stages: list[Stage], states: list[_Linear], first: int, last: int) -> list[_Linear]:
        arrived = last < self.chain.steps and self.structure.stage_of[last + 1] != self.structure.stage_of[last]
        if arrived and first < last:
            spread = self._extrapolation(last, stages, stages)
            states = [self._after_change(st, state, maps, last) for st, state, maps in zip(stages, states, spread)]
            last -= 1
        return [self._run(stage, *state, first, last) for stage, state in zip(stages, states)]

    def _after_change(self, stage: Stage, state: _Linear, maps: tuple[np.ndarray, np.ndarray], t: int) -> _Linear:
        x, previous = state
        assert previous is not None  # a change always leaves its prediction
        response, carried = self.step_gains(stage, t)
        prediction = response[:, :, None] * x
        used = maps[0] @ prediction + maps[1] @ previous
        return self.chain.alpha(t - 1) * used + carried * (x - self.chain.alpha(t) * used), prediction

    def _run(self, stage: Stage, x: np.ndarray, previous: np.ndarray | None, first: int, last: int) -> _Linear:
        if first == last:
            return x, previous
        chain = self.chain
        zero, one = np.zeros_like(stage.eigenvalues), np.ones_like(stage.eigenvalues)
        state, history = np.stack([one, zero]), np.stack([zero, one])  # as multiples of (x, previous) on entry
        known = previous is not None
        for t in range(last, first, -1):
            response, carried = self.step_gains(stage, t)
            prediction = response * state
            used = prediction
            if known:
                used = prediction + extrapolation_weight(chain, t - 1, t, t + 1) * (prediction - history)
            state = chain.alpha(t - 1) * used + carried * (state - chain.alpha(t) * used)
            history, known = prediction, True

        def combine(gains: np.ndarray) -> np.ndarray:
            result = gains[0][:, :, None] * x
            return result if previous is None else result + gains[1][:, :, None] * previous

        return combine(state), combine(history)

    def change(self, t: int, stages: list[Stage], below: list[Stage], states: list[_Linear]) -> list[_Linear]:
        chain = self.chain
        spread = self._extrapolation(t, stages, below) if t < chain.steps else [None] * len(states)
        result: list[_Linear] = []
        for maps, extrapolation, high, (x, previous) in zip(self.maps(t, stages, below), spread, below, states):
            prediction = maps.response @ x
            used = prediction
            if extrapolation is not None and previous is not None:
                used = extrapolation[0] @ prediction + extrapolation[1] @ previous
            moved = chain.alpha(t - 1) * used + maps.innovation @ (x - chain.alpha(t) * (maps.down @ used))
            noise = self.noise(t, maps.innovation)
            if self.second_moments and t > 1:
                born = noise / chain.sigma(t - 1) ** 2  # B is a partial isometry: what it leaves is a projection
                noise = noise + chain.alpha(t - 1) ** 2 * born @ self.left_open(t, maps, high) @ born
            noise = factor(noise)
            padding = np.zeros_like(noise)
            result.append((np.concatenate([moved, noise], axis=2), np.concatenate([prediction, padding], axis=2)))
        return result

    def _extrapolation(self, t: int, stages: list[Stage], below: list[Stage]) -> list[tuple[np.ndarray, np.ndarray]]:
        """The two linear maps of `extrapolated` at the step t → t − 1, on the prediction and on the one before."""
        chain, structure, s = self.chain, self.structure, t - 1
        source, target = structure.stage_of[t], structure.stage_of[s]

        def of_prediction(x: np.ndarray) -> np.ndarray:
            return extrapolated(chain, s, t, t + 1, x, np.zeros((len(x), *chain.shape(t))))

        def of_previous(x: np.ndarray) -> np.ndarray:
            return extrapolated(chain, s, t, t + 1, np.zeros((len(x), *chain.shape(s))), x)

        pairs = zip(structure.blocks(of_prediction, target, target), structure.blocks(of_previous, source, target))
        return [
            (high.columns(high.rows(own)), low.columns(high.rows(before)))
            for high, low, (own, before) in zip(below, stages, pairs)
        ]
