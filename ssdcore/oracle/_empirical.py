"""The perfect denoiser of a finite set of images, and how well samples cover that set."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssdcore._arrays import Array, Constant, Shape, check_trailing, device_of, known_array, real_namespace
from ssdcore.process import LinearDiffusion

_CACHED_DEGRADATIONS = 8  # degraded copies of the images that are kept: as many as a process has levels
_SAMPLE_CHUNK = 256


@dataclass(frozen=True, eq=False)
class EmpiricalDenoiser:
    """Exact posterior mean of the empirical distribution of `images` under any `LinearDiffusion`::

        E[R_{0→s} x_0 | x_t] = Σ_i w_i R_{0→s} x_i,   w = softmax_i(−‖x_t − α_t R_{0→t} x_i‖² / (2σ_t²)).

    Called like a network, ``denoiser(x, t, out_level=None)``, it runs through the same samplers: it is what a network
    trained to zero excess loss on these images would be.

    Weights are computed in float64, whatever the dtype of x, and by log-sum-exp.

    Attributes:
        process: the original process (not a respaced one): times t are its 1 … T
        images: ``(n, *leading, *process.shape(0))`` floating point, leading axes (channels) being those of x

    Raises:
        ValueError: For images of another trailing shape, an empty set, or values that are not finite.
    """

    process: LinearDiffusion
    images: np.ndarray

    def __post_init__(self) -> None:
        images = known_array(self.images, "EmpiricalDenoiser: images")
        real_namespace(images, "EmpiricalDenoiser: images")
        shape = self.process.shape(0)
        if images.ndim <= len(shape) or len(images) == 0:
            raise ValueError(f"EmpiricalDenoiser: expected images shaped (n, …, *{shape}), got {images.shape}")
        check_trailing(images, shape, "EmpiricalDenoiser: images")
        if not np.isfinite(images).all():
            raise ValueError("EmpiricalDenoiser: every pixel of the images must be finite")
        object.__setattr__(self, "images", images.astype(np.float64))

    @functools.cached_property
    def _time_of_size(self) -> dict[Shape, int | None]:
        """A time of each size; None where states of that size are degraded in several ways."""
        stages: dict[Shape, set[int]] = {}
        times: dict[Shape, int | None] = {}
        for t in range(self.process.steps + 1):
            shape = self.process.shape(t)
            stages.setdefault(shape, set()).add(self.process.stage(t))
            times[shape] = times.get(shape, t) if len(stages[shape]) == 1 else None
        return times

    @functools.cached_property
    def _degraded(self) -> Any:
        @functools.lru_cache(maxsize=_CACHED_DEGRADATIONS)
        def degraded(operator: Any) -> tuple[Constant, Constant]:
            flat = operator(self.images).reshape(len(self.images), -1)
            return Constant(flat), Constant(0.5 * (flat**2).sum(axis=1))

        return degraded

    def weights(self, x: Array, t: int) -> Array:
        """Probability of each image given x_t, (batch, n) in float64, for x ``(batch, *leading, *shape(t))``."""
        xp = real_namespace(x, "EmpiricalDenoiser: x")
        expected = (*self.images.shape[1 : self.images.ndim - len(self.process.shape(0))], *self.process.shape(t))
        if tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"EmpiricalDenoiser: expected x shaped (batch, {', '.join(map(str, expected))}) at t = {t}, "
                f"got {tuple(x.shape)}"
            )
        alpha, variance = self.process.alpha(t), self.process.sigma(t) ** 2
        images, half_norms = (c.on(xp, xp.float64, device_of(x)) for c in self._degraded(self.process.operator(0, t)))
        flat = xp.reshape(xp.astype(x, xp.float64), (x.shape[0], -1))
        # ‖x‖² is common to all images and drops out
        scores = (alpha * xp.matmul(flat, xp.matrix_transpose(images)) - alpha**2 * half_norms) / variance
        scores = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
        return scores / xp.sum(scores, axis=-1, keepdims=True)

    def posterior_mean(self, x: Array, t: int, s: int) -> Array:
        """E[R_{0→s} x_0 | x_t], ``(batch, *leading, *shape(s))``, for any times 1 <= t <= T and 0 <= s <= T."""
        if not 1 <= t <= self.process.steps:
            raise ValueError(f"EmpiricalDenoiser: expected a time of 1 … {self.process.steps}, got {t}")
        weights = self.weights(x, t)
        xp = real_namespace(x, "EmpiricalDenoiser: x")
        images = self._degraded(self.process.operator(0, s))[0].on(xp, xp.float64, device_of(x))
        leading = tuple(x.shape)[: x.ndim - len(self.process.shape(t))]
        return xp.astype(xp.reshape(xp.matmul(weights, images), (*leading, *self.process.shape(s))), x.dtype)

    def __call__(self, x: Array, t: Any, out_level: int | None = None) -> Array:
        """The clean prediction at the size of `out_level`, 0 the full one (default: the size of x).

        - x: ``(batch, *leading, *size)``
        - t: (batch,) or one number: times of the process, all with states of that size

        Raises:
            ValueError: Where the size does not tell the degradation (blurs): call `posterior_mean` there.
        """
        shape = (
            self.process.shapes[out_level]
            if out_level is not None
            else tuple(x.shape[x.ndim - len(self.process.shapes[0]) :])
        )
        s = self._time_of_size.get(shape)
        if s is None:
            raise ValueError(
                f"EmpiricalDenoiser: the size {shape} does not name one degradation of this process; "
                "call posterior_mean(x, t, s)"
            )
        given = [round(float(value)) for value in t] if getattr(t, "ndim", 0) else [round(float(t))] * x.shape[0]
        if len(given) != x.shape[0]:
            raise ValueError(f"EmpiricalDenoiser: expected one time for each of {x.shape[0]} states, got {len(given)}")
        xp = real_namespace(x, "EmpiricalDenoiser: x")
        if len(set(given)) == 1:
            return self.posterior_mean(x, given[0], s)
        return xp.concat([self.posterior_mean(x[i : i + 1], time, s) for i, time in enumerate(given)], axis=0)


@dataclass(frozen=True)
class Coverage:
    """How samples cover a set of images, from `coverage`.

    Attributes:
        class_chi2, mode_chi2: χ² per degree of freedom of the counts of nearest images, by class and image: 1 is
            ideal
        mean_error: ‖mean of samples − mean of images‖², summed over channels and pixels; its expectation for ideal
            samples is the total variance over their number
        variance_ratio: total variance of the samples over that of the images: 1 is ideal
    """

    class_chi2: float | None
    mode_chi2: float
    mean_error: float
    variance_ratio: float


def coverage(samples: Any, images: Any, labels: Any = None) -> Coverage:
    """Compare samples with the images of the distribution that they should follow.

    samples (m, …) and images (n, …), n >= 2, floating point, of the same shape after the first axis
    labels  (n,) integer class of each image; None: no class statistics. A sample belongs to its nearest image.

    Raises:
        ValueError: For shapes that do not match, fewer than two images, or a single class.
    """
    drawn, known = (known_array(a, "coverage").astype(np.float64).reshape(len(a), -1) for a in (samples, images))
    if np.shape(samples)[1:] != np.shape(images)[1:] or len(known) < 2 or len(drawn) == 0:
        raise ValueError(
            f"coverage: expected samples and at least two images of one shape, "
            f"got {np.shape(samples)} and {np.shape(images)}"
        )
    half_norms = 0.5 * (known**2).sum(axis=1)
    nearest = np.concatenate(
        [
            np.argmax(drawn[i : i + _SAMPLE_CHUNK] @ known.T - half_norms, axis=1)
            for i in range(0, len(drawn), _SAMPLE_CHUNK)
        ]
    )
    modes = np.bincount(nearest, minlength=len(known))
    class_chi2 = None
    if labels is not None:
        classes = known_array(labels, "coverage: labels")
        if classes.shape != (len(known),):
            raise ValueError(f"coverage: expected one label for each of {len(known)} images, got {classes.shape}")
        _, of_class = np.unique(classes, return_inverse=True)
        share = np.bincount(of_class) / len(known)
        if len(share) < 2:
            raise ValueError("coverage: class statistics need at least two classes")
        class_chi2 = _chi2(np.bincount(of_class[nearest], minlength=len(share)), share)
    return Coverage(
        class_chi2,
        _chi2(modes, np.full(len(known), 1 / len(known))),
        float(((drawn.mean(0) - known.mean(0)) ** 2).sum()),
        float(drawn.var(0).sum() / known.var(0).sum()),
    )


def _chi2(counts: np.ndarray, share: np.ndarray) -> float:
    expected = counts.sum() * share
    return float(((counts - expected) ** 2 / expected).sum() / (len(counts) - 1))
