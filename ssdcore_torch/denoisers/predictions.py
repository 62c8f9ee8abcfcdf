"""What the layers of a network are asked for, and how the clean image follows from it.

A network F and a prediction make a denoiser: with z the state x_t (lifted to the size of the prediction where that is
larger) and the coefficients of the state's time,

::

    x̂ = c_skip z + c_out F(c_in z, c_noise).

    name        c_in   c_skip        c_out        what F is, where the state is the clean image with noise
    clean       1      0             1            x_0
    noise       1      1/α           −σ/α         ε                        Ho et al. 2020
    velocity    1      α/(α² + σ²)   −σ/(α² + σ²) α ε − σ x_0              Salimans and Ho 2022
    edm         1/√v   α s²/v        s σ/√v       the rest of x_0, scaled  Karras et al. 2022, v = α² s² + σ², s = ½

Where a state is blurred, or smaller than the prediction, F is whatever takes it to the clean image by the same formula.
`PREDICTIONS` is the one place that names them: an entry is a prediction of one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

import ssdcore as ssd

DATA_STD = 0.5
"""Standard deviation of an image's pixels, in [−1, 1], that preconditioning reckons with (EDM's σ_data)."""

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(c_in, c_skip, c_out), each over the same times."""


@dataclass(frozen=True)
class Prediction:
    """How a clean image follows from what a network gives.

    Attributes:
        coefficients: float64 arrays (α, σ) -> (c_in, c_skip, c_out)
        needs_signal: whether it says nothing of the image where no signal is left (α = 0)
        by_noise: whether the network is told ¼ ln(σ/α), EDM's c_noise, and not the time t − 1
    """

    coefficients: Callable[[np.ndarray, np.ndarray], Rows]
    needs_signal: bool = False
    by_noise: bool = False

    def table(self, name: str, process: ssd.LinearDiffusion) -> np.ndarray:
        """(4, T + 1) float64: c_in, c_skip, c_out and what the network is told, over t = 0 … T (t = 0 is never asked).

        Raises:
            ValueError: Where the prediction does not fit the process's noise.
        """
        alpha, sigma = process.noise.alpha, process.noise.sigma
        if self.needs_signal and not alpha.all():
            raise ValueError(
                f'prediction: "{name}" says nothing of the image where no signal is left (alpha = 0 at '
                f"t = {int(np.argmin(alpha))}); take clean, velocity or edm"
            )
        told = np.arange(-1.0, process.steps)
        if self.by_noise:
            with np.errstate(divide="ignore"):
                told = np.clip(0.25 * (np.log(sigma) - np.log(alpha)), -10, 10)
        return np.stack([*self.coefficients(alpha, sigma), told])


def _clean(alpha: np.ndarray, sigma: np.ndarray) -> Rows:
    return np.ones_like(alpha), np.zeros_like(alpha), np.ones_like(alpha)


def _noise(alpha: np.ndarray, sigma: np.ndarray) -> Rows:
    return np.ones_like(alpha), 1 / alpha, -sigma / alpha


def _velocity(alpha: np.ndarray, sigma: np.ndarray) -> Rows:
    total = alpha**2 + sigma**2
    return np.ones_like(alpha), alpha / total, -sigma / total


def _edm(alpha: np.ndarray, sigma: np.ndarray) -> Rows:
    """c_skip x_t is the best linear prediction of white data of deviation s, c_out its error's deviation, and c_in
    gives the layers an input of variance one, so at every time F is asked for something of that size."""
    variance = (alpha * DATA_STD) ** 2 + sigma**2
    return variance**-0.5, alpha * DATA_STD**2 / variance, DATA_STD * sigma * variance**-0.5


PREDICTIONS: Mapping[str, Prediction] = {
    "clean": Prediction(_clean),
    "noise": Prediction(_noise, needs_signal=True),
    "velocity": Prediction(_velocity),
    "edm": Prediction(_edm, by_noise=True),
}


def prediction_named(name: str) -> Prediction:
    """Raises ValueError for an unknown name, listing the known."""
    if name not in PREDICTIONS:
        raise ValueError(f"prediction: expected one of {', '.join(PREDICTIONS)}, got {name!r}")
    return PREDICTIONS[name]
