"""Golden rows: what the library must compute, from rational arithmetic and reals of thirty digits.

The conformance checks find a library that contradicts itself; these find one that is consistent and wrong. No reference
here is computed by the library: the formulas are written again, over fractions and mpmath's reals, in `_model` and
beside each row. `python -m ssdcore verify` runs them with the proofs; they need mpmath, which comes with sympy.
"""

from __future__ import annotations

from ssdcore.testing._report import Check, Report, run_check
from ssdcore.testing.golden import _gaussians, _operators, _oracle, _processes, _schedules

GOLDEN: tuple[Check, ...] = (
    Check("kernels", "rows of each resize kernel are the exact ones", _operators.kernels),
    Check("several axes", "resizes of images and volumes, axis by axis", _operators.several_axes),
    Check("long axes", "axes long enough for the banded product", _operators.long_axes),
    Check("blurs", "a blur's response is exp(−σ²ω²/2), for both boundaries", _operators.blurs),
    Check("algebra", "products, multiples, transposes in the right order with the right sign", _operators.algebra),
    Check("norms", "norms and singular values of known matrices", _operators.norms),
    Check("spectra", "functions of MᵀM, and which singular values are zero", _operators.spectra),
    Check("noise levels", "α, σ and log-SNR of the noise schedules", _schedules.noise_levels),
    Check("other noise", "flow, EDM's noise, and levels at real times", _schedules.other_noise),
    Check("scaled noise", "σ/α multiplied, each noise in its own normalisation", _schedules.scaled_noise),
    Check("level changes", "times at which levels change, ties included", _schedules.level_changes),
    Check("schedule refusals", "what is not a schedule is refused", _schedules.refusals),
    Check("sizes", "which size and which operator at which time", _processes.sizes),
    Check("matched noise", "κ from exact norms", _processes.matched_noise),
    Check("transitions", "marginals and transitions, by exact matrices", _processes.transitions),
    Check("posteriors", "posteriors at eta 1, ½ and 0, by exact conditioning", _processes.posteriors),
    Check("destroyed modes", "operators that lose modes or reach more values", _processes.destroyed_modes),
    Check("open predictions", "steps that are exact to second moments", _processes.open_predictions),
    Check("diffusion", "DDPM's and DDIM's formulas", _processes.diffusion),
    Check("blurring", "blurring diffusion for both boundaries", _processes.blurring),
    Check("arrays of times", "laws of a batch whose items have times of their own", _processes.arrays_of_times),
    Check("priors", "the law of x_T for every form of covariance", _processes.priors),
    Check("admissible", "negative noise and wrong arguments are refused, equality is not", _processes.admissible),
    Check("covariances", "every form of covariance against its matrix", _gaussians.covariances),
    Check("densities", "densities, entropies, divergences and draws", _gaussians.densities),
    Check("general theorems", "theorems 1 and 2 for dense, isotropic and spectral covariances", _gaussians.theorems),
    Check("sampler error", "the exact error of first-order chains", _oracle.first_order),
    Check("multistep", "the second-order formula and its exact error", _oracle.second_order),
    Check("information", "mutual information and shares of signal and pixels", _oracle.information),
    Check("sampling times", "even and optimal times", _oracle.times),
    Check("designs", "the cheapest schedule within a tolerance", _oracle.designs),
    Check("fits", "moments of images and the perfect denoiser", _oracle.fits),
    Check("limits", "single steps, and what the oracle refuses", _oracle.limits),
)


def check_golden() -> Report:
    """Compare the library's numbers with exact ones; the report, whether it passed or not."""
    return Report("ssdcore", "numpy", tuple(run_check(check, None, "float64", {}) for check in GOLDEN))


__all__ = ["GOLDEN", "check_golden"]
