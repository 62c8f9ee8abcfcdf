"""The theorems of the library, proved symbolically (needs sympy; nothing else imports it).

`names()` lists them, `prove(name)` derives one step by step and checks every step, `print(prove(name))` is the
derivation to read. `compare(name)` evaluates what was proved against the library's own numbers. `false_variants(name)`
lists near misses of the statement (a wrong sign, a wrong power of σ, a
missing transpose); `prove(name, variant)` puts one through the same machinery, which must refute it.

Theorems 1 to 3 are those of "Scale Space Diffusion" (CVPR 2026). Times are a pair s < t, not only neighbours; M is
M_s→t, Σ_s and Σ_t the marginal covariances, Σ_t|s the transition's, μ_s = M_1:s x_0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

try:
    import sympy  # noqa: F401  (asked for here, so that its absence is told in one sentence)
except ImportError as error:
    raise ImportError('ssdcore.theorems needs sympy: pip install "ssdcore[verify]"') from error

from ._compare import Comparison, comparisons
from ._engine import Proof, Step
from ._family import deterministic_end, same_marginal_family
from ._gaussian import forward_transition, isotropic_posterior, posterior, posterior_forms_agree
from ._moments import second_moments
from ._noise import scale_matched_admissible, scale_matched_continuous
from ._order import multistep_order
from ._special import blurring_diffusion, ddpm

__all__ = ["Comparison", "Proof", "Step", "compare", "false_variants", "names", "prove"]

_THEOREMS: dict[str, tuple[Callable[[str | None], Proof], tuple[str, ...]]] = {
    "forward_transition": (
        forward_transition,
        ("plus_sign", "missing_transpose", "forgets_the_past", "norm_not_squared"),
    ),
    "posterior": (posterior, ("minus_sign", "marginal_precision", "gain_of_transition_noise")),
    "isotropic_posterior": (isotropic_posterior, ("plus_sign", "ratio_of_deviations", "ratio_inverted")),
    "posterior_forms_agree": (posterior_forms_agree, ("plus_sign", "gain_of_transition_noise")),
    "ddpm": (ddpm, ("variance_is_beta", "ratio_of_deviations", "square_root_missing")),
    "blurring_diffusion": (
        blurring_diffusion,
        ("gain_squared", "ratio_of_deviations", "times_multiply", "widths_subtract"),
    ),
    "scale_matched_admissible": (
        scale_matched_admissible,
        ("kappa_half", "norms_squared", "norms_inverted", "base_falls"),
    ),
    "same_marginal_family": (
        same_marginal_family,
        ("plus_sign", "missing_transpose", "noise_of_the_wrong_time", "deviation_for_variance"),
    ),
    "deterministic_end": (
        deterministic_end,
        ("ratio_inverted", "transposed", "eta_scales_variance", "ratio_of_deviations"),
    ),
    "scale_matched_continuous": (
        scale_matched_continuous,
        ("paper_s_noise", "norm_squared", "norm_inverted"),
    ),
    "multistep_order": (
        multistep_order,
        ("without_its_half", "inverted", "towards_the_past", "log_r_subtracted"),
    ),
    "second_moments": (
        second_moments,
        ("prediction_taken_for_the_image", "sum_of_gains", "clean_gain_alone", "missing_transpose"),
    ),
}


def names() -> tuple[str, ...]:
    """The names that `prove` takes."""
    return tuple(_THEOREMS)


def false_variants(name: str) -> tuple[str, ...]:
    """The false statements close to a theorem that `prove(name, variant)` refutes. ValueError for an unknown name."""
    return _find(name)[1]


def prove(name: str, variant: str | None = None) -> Proof:
    """Derive a theorem and check every step; with a variant, the false statement of that name instead.

    Returns a Proof(name, statement, steps, holds); `str()` writes it out. `holds` is computed from the steps: True for
    each theorem, False for each variant. Raises ValueError, listing what there is, for an unknown name or variant.

    >>> proof = ssd.theorems.prove("isotropic_posterior")
    >>> proof.holds, len(proof.steps) > 0
    (True, True)
    >>> ssd.theorems.prove("isotropic_posterior", "plus_sign").holds
    False
    """
    variants = _find(name)[1]
    if variant is not None and variant not in variants:
        raise ValueError(f"{name} has no false variant {variant!r}; expected one of {', '.join(variants)}")
    return _derived(name, variant)


def compare(name: str, seed: int = 0) -> tuple[Comparison, ...]:
    """A theorem's proved formulas against the library's own numbers, on one random instance of random size.

    Each of `prove(name).formulas`, made a function of numbers, must give what the library computes: a proof alone is of
    formulas, and no fault of the code can fail it. Deterministic in `seed`.

    >>> all(comparison.agrees for comparison in ssd.theorems.compare("isotropic_posterior", seed=3))
    True
    """
    return comparisons(name, prove(name).formulas, seed)


@functools.cache  # there are some fifty, which nothing changes
def _derived(name: str, variant: str | None) -> Proof:
    return _find(name)[0](variant)


def _find(name: str) -> tuple[Callable[[str | None], Proof], tuple[str, ...]]:
    if name not in _THEOREMS:
        raise ValueError(f"no theorem is named {name!r}; expected one of {', '.join(_THEOREMS)}")
    return _THEOREMS[name]
