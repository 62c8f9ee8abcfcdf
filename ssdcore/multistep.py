"""Second-order multistep sampling: one formula, shared by the samplers that run it and the oracle that measures it.

DPM-Solver++ (2M) for a model that predicts clean images is the deterministic posterior (eta = 0) given, in place of the
prediction x̂_t, its linear extrapolation in the half log signal-to-noise ratio λ = log(α/σ),

::

    x_s ~ q_0(x_s | x_t, x̂),   x̂ = x̂_t + w (x̂_t − x̂_u),   w = (λ_s − λ_t) / (2 (λ_t − λ_u)),   s < t < u,

x̂_u being the prediction of the step before (Lu et al., "DPM-Solver++", 2022, algorithm 2). Here it is carried across
changes of the degradation, mode by mode, for the modes that the change keeps.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

import numpy as np

from ssdcore._arrays import Array, Constant, check_trailing, full_precision, real_namespace
from ssdcore._second_moments import BornCovariance
from ssdcore.gaussian import Covariance
from ssdcore.process import LinearDiffusion
from ssdcore.spectral import Decomposition

_ROUNDING = 64 * float(np.finfo(np.float64).eps)
# How much of the previous prediction's error a mode may take on, relative to the one that the change keeps best.
# At 2 the rings of examples/graph.py, groups of another size than the rest, would be left out, at 5 % of its error.
_LARGEST = 2.5
_LARGEST_AFTER = 1.0  # weight in the step after a change


def extrapolated(proc: LinearDiffusion, s: int, t: int, u: int, prediction: Array, previous: Array | None) -> Array:
    """The clean image to give ``proc.posterior(x_t, ·, s, t, eta=0)`` for a second-order step t → s.

    With R = U diag(r) Vᵀ the degradation that a change removes, a mode v of the larger state is seen by the smaller one
    at the ratio λ + log r, and only the modes V are extrapolated::

        t → s a change:   x̂_t + V diag(w) (Vᵀ x̂_t − r⁻¹ Uᵀ x̂_u),   w = (λ_s − λ_t − log r) / (2 (λ_t − λ_u))
        u → t a change:   x̂_t + V diag(w) Vᵀ (x̂_t − x̂_u),          w = (λ_s − λ_t) / (2 (λ_t − λ_u − log r))

    The first multiplies the error of x̂_u by w/r, so a mode that the change nearly destroys is left as it was predicted:
    modes with w/r above 2.5/‖R‖ are not extrapolated. No theorem sets that number: the extrapolated prediction has
    the error (1 + w) e_t − (w/r) e_u, which any bound keeps finite, and the modes within it keep their weights. Exact
    errors on Gaussian images differ by less than 0.1 % for bounds from 1 to 4; at 2 a graph whose groups differ in
    size loses modes that it should keep. In the second, x̂_u and x̂_t are of two paths of a network, which never agree
    to the last, and w divides what separates them by λ_t − λ_u: it is at most 1, a step twice as long as the one
    before. (A trained network's chain that stood one time below a change had a Fréchet distance of 200; with this
    bound 69.)

    The modes that a change adds start as their mean given x_t with noise of σ_s² alone, which leaves an error however
    many the steps: small where they carry little information at the time of the change (see
    ``ssdcore.oracle.level_information``), and large in few steps. `born_covariance` puts it right.

    First order, so `prediction` itself: at the first step, at the last (λ_0 is infinite), after a state that holds no
    signal (λ_u = −∞), where both steps are changes, and for changes without a known decomposition. Raises ValueError
    for a wrong trailing shape.

    Args:
        s, t, u: times of `proc`; u → t is the step before (anything at the first step)
        prediction: ``(*batch, *shape(s))``, x̂_t, predicted from x_t at the size of s
        previous: ``(*batch, *shape(t))``, x̂_u, predicted from x_u at the size of t; None at the first step
    """
    s, t, u = (operator.index(time) for time in (s, t, u))  # numbers where torch.compile has made symbols of them
    check_trailing(prediction, proc.shape(s), f"extrapolated: prediction for s = {s}")
    if previous is None or s == 0:
        return prediction
    check_trailing(previous, proc.shape(t), f"extrapolated: previous prediction for t = {t}")
    found = proc.kept(_extrapolation, s, t, u)
    if found.change is None:
        with full_precision(prediction):
            return prediction + found.weight * (prediction - previous) if found.weight else prediction
    change: Decomposition = found.change
    xp = real_namespace(prediction, "extrapolated")
    with full_precision(prediction):
        if found.inverse is None:
            difference = change.input.analyse(xp, prediction - previous)
        else:
            held = change.sign * found.inverse.like(xp, prediction) * change.output.analyse(xp, previous)
            difference = change.input.analyse(xp, prediction) - held
        return prediction + change.input.synthesise(xp, found.weights.like(xp, prediction) * difference)


def born_covariance(proc: LinearDiffusion, s: int, t: int, clean_covariance: Covariance) -> Covariance:
    """P C P, the part of C = Cov[R_{0→s} x_0 | x_t] in the modes that the change t → s adds; zero where there is none.

    Given to ``proc.posterior(x_t, x̂, s, t, eta=0, clean_covariance=…)`` it makes the new modes' covariance σ_s² I +
    α_s² C, theirs given x_t, and leaves the others to the differential equation, whose solution carries their variance.
    Where a change keeps its modes alike (an ideal resize) second order then holds across it. Other kernels keep some
    modes less well: those cross log(‖R‖/r) at once, whatever the number of steps. For orthogonal averages this is the
    variance that Subspace Diffusion (Jing et al., 2022) adds where a subspace opens.

    Args:
        clean_covariance: C over shape(s)

    Raises:
        ValueError: For a C over another shape, and an operator without a decomposition.
    """
    if clean_covariance.shape != proc.shape(s):
        raise ValueError(
            f"born_covariance: expected a Covariance over {proc.shape(s)}, the shape at s = {s}, got "
            f"{clean_covariance.shape}"
        )
    made: Covariance = proc.kept(_born, s, t, clean_covariance)
    return made


def _born(proc: LinearDiffusion, s: int, t: int, clean_covariance: Covariance) -> Covariance:
    return BornCovariance.of(clean_covariance, proc.operator(s, t))


@dataclass(frozen=True, eq=False)
class _Extrapolation:
    """Numbers of `extrapolated`: one weight for all, or where a step is a change, R's decomposition and w in its modes.

    Attributes:
        inverse: r⁻¹, where the second of the two steps is the change; None where the first is
    """

    weight: float = 0.0
    change: Decomposition | None = None
    weights: Constant | None = None
    inverse: Constant | None = None


def _extrapolation(proc: LinearDiffusion, s: int, t: int, u: int) -> _Extrapolation:
    kept, arrived = proc.stage(s) == proc.stage(t), proc.stage(t) == proc.stage(u)
    if kept and arrived:
        return _Extrapolation(extrapolation_weight(proc, s, t, u))
    step, last = _gain(proc, s, t), _gain(proc, t, u)
    if kept == arrived or not (math.isfinite(step) and math.isfinite(last)):
        return _Extrapolation()
    change = (proc.operator(s, t) if arrived else proc.operator(t, u)).decomposition()
    if change is None or (arrived and not _grew(proc, last, t)):
        return _Extrapolation()
    r = change.singular_values
    positive = np.where(r > 0, r, 1.0)
    if not arrived:
        gap = last - np.log(positive)
        known = (r > 0) & (gap > _ROUNDING * max(1.0, abs(last)))
        weights = np.where(known, np.minimum(step / (2 * np.where(known, gap, 1.0)), _LARGEST_AFTER), 0.0)
        return _Extrapolation(change=change, weights=Constant(weights))
    weights = (step - np.log(positive)) / (2 * last)
    trusted = (r > 0) & (weights * r.max() <= _LARGEST * positive)
    inverse = Constant(np.where(trusted, 1.0 / positive, 0.0))
    return _Extrapolation(change=change, weights=Constant(np.where(trusted, weights, 0.0)), inverse=inverse)


def extrapolation_weight(proc: LinearDiffusion, s: int, t: int, u: int) -> float:
    """w where u → t → s keeps the degradation; 0 at the last step and where λ_u is no smaller than λ_t, or −∞."""
    step, last = _gain(proc, s, t), _gain(proc, t, u)
    return step / (2 * last) if _grew(proc, last, t) and math.isfinite(step) else 0.0


def _gain(proc: LinearDiffusion, s: int, t: int) -> float:
    """λ_s − λ_t; infinite at the last step and from a state without signal."""
    low, high = half_log_snr(proc, t), half_log_snr(proc, s)
    return math.inf if math.isinf(low) or math.isinf(high) else high - low


def _grew(proc: LinearDiffusion, gain: float, t: int) -> bool:
    """Whether a gain in λ, finite, is more than the rounding of λ_t."""
    return math.isfinite(gain) and gain > _ROUNDING * max(1.0, abs(half_log_snr(proc, t)))


def half_log_snr(proc: LinearDiffusion, t: int) -> float:
    """λ_t = log(α_t/σ_t); infinite at t = 0, −inf where no signal is left."""
    alpha, sigma = proc.alpha(t), proc.sigma(t)
    if sigma == 0:
        return math.inf
    return math.log(alpha / sigma) if alpha > 0 else -math.inf
