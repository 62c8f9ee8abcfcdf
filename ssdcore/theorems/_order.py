"""Second order: why the multistep sampler extrapolates as it does, within a size and across a change."""

from __future__ import annotations

import sympy as sp

from ._engine import Proof, Step, choose
from ._symbols import sigma_s, sigma_t


def multistep_order(variant: str | None) -> Proof:
    """The extrapolated prediction makes the local error third order in the steps of λ = log(a/σ)."""
    h, k = sp.symbols("h k", positive=True)  # λ_s − λ_t and λ_t − λ_u
    z = sp.Symbol("z", real=True)
    c_0, c_1, c_2, x = sp.symbols("c_0 c_1 c_2 x_t", real=True)
    lambda_t = sp.Symbol("λ_t", real=True)
    weight = choose(variant, h / (2 * k), without_its_half=h / k, inverted=k / (2 * h))
    sign = choose(variant, 1, towards_the_past=-1)

    def predicted(at: sp.Expr) -> sp.Expr:
        """The prediction along the exact path, z being λ − λ_t: any function, to second order."""
        return c_0 + c_1 * at + c_2 * at**2

    used = predicted(sp.S.Zero) + sign * weight * (predicted(sp.S.Zero) - predicted(-k))
    grown = sp.exp(lambda_t + h) - sp.exp(lambda_t)
    a_s, a_t = sigma_s * sp.exp(lambda_t + h), sigma_t * sp.exp(lambda_t)
    exact = sp.integrate(sp.expand(sp.exp(z) * predicted(z)), (z, 0, h))
    error = sp.expand(exact - (sp.exp(h) - 1) * used)
    return Proof(
        "multistep_order",
        "The deterministic posterior, a_s x̂ + (σ_s/σ_t)(x_t - a_t x̂), with x̂ = x̂_t + w (x̂_t - x̂_u) and "
        "w = (λ_s - λ_t)/(2 (λ_t - λ_u)), λ = log(a/σ), s < t < u, has a local error of third order in the steps "
        "of λ: a sampler of second order. Where a change of norm r lies between t and s, a mode that it keeps is "
        "seen at t with λ_t + log r, and w = (λ_s - λ_t - log r)/(2 (λ_t - λ_u)); where it lies between u and t, "
        "w = (λ_s - λ_t)/(2 (λ_t - λ_u - log r)).",
        (
            Step(
                "With a = σ exp(λ) the deterministic posterior is x_s = (σ_s/σ_t) x_t + σ_s (exp λ_s - exp λ_t) x̂",
                a_s * c_0 + sigma_s / sigma_t * (x - a_t * c_0),
                sigma_s / sigma_t * x + sigma_s * sp.expand(grown * c_0),
            ),
            Step(
                "The exact path is x_s = (σ_s/σ_t) x_t + σ_s ∫ exp(λ) x̂(λ) dλ from λ_t to λ_s: its derivative in λ_s"
                " at fixed x_t/σ_t is that of x_s/σ_s = x_t/σ_t + ∫, namely exp(λ_s) x̂(λ_s)",
                sp.diff(sp.exp(lambda_t) * exact, h),
                sp.expand(sp.exp(lambda_t + h) * predicted(h)),
            ),
            Step(
                "A prediction that stays the same is followed exactly, by steps of any length",
                error.subs({c_1: 0, c_2: 0}),
                0,
            ),
            *_series(error, h, k),
            *_across_changes(variant, h, k, weight),
        ),
        formulas={"weight at a change": _at_change(variant), "weight after a change": _after(variant)},
    )


def _series(error: sp.Expr, h: sp.Symbol, k: sp.Symbol) -> tuple[Step, ...]:
    """The local error in units of σ_s exp(λ_t), for k = q h with any ratio q of the steps."""
    ratio = sp.Symbol("q", positive=True)
    c_1, c_2 = sp.symbols("c_1 c_2", real=True)
    terms = sp.series(sp.expand(error.subs(k, ratio * h)), h, 0, 4).removeO()
    coefficients = [sp.expand(terms).coeff(h, i) for i in range(4)]
    words = ("zeroth", "first", "second")
    return (
        *(
            Step(f"The local error, steps h and k = q h, has no term of {words[i]} order in h ...", coefficients[i], 0)
            for i in range(3)
        ),
        Step(
            "... and one of third order: N = O(1/h) steps leave an error of second order",
            coefficients[3],
            c_1 / 12 + c_2 * (sp.Rational(1, 3) + ratio / 2),
        ),
    )


_lam_s, _lam_t, _lam_u = sp.symbols("λ_s λ_t λ_u", real=True)
_r = sp.Symbol("r", positive=True)


def _at_change(variant: str | None) -> sp.Expr:
    log_r = choose(variant, sp.log(_r), log_r_subtracted=-sp.log(_r))
    return (_lam_s - _lam_t - log_r) / (2 * (_lam_t - _lam_u))


def _after(variant: str | None) -> sp.Expr:
    log_r = choose(variant, sp.log(_r), log_r_subtracted=-sp.log(_r))
    return (_lam_s - _lam_t) / (2 * (_lam_t - _lam_u - log_r))


def _across_changes(variant: str | None, h: sp.Symbol, k: sp.Symbol, weight: sp.Expr) -> tuple[Step, ...]:
    """A mode of the larger state, u for the smaller one's: uᵀ R v = r."""
    a_s, x, c = sp.symbols("a_s uᵀx_t c", positive=True)
    a_t = sp.Symbol("a_t", positive=True)
    seen = sp.log(a_t * _r / sigma_t)
    return (
        Step(
            "A change between t and s: the kept mode's step is a_s x̂ + (σ_s/σ_t)(uᵀx_t - a_t r x̂), the same with r a_t"
            " for a_t, so with the half log-SNR log(r a_t/σ_t) = λ_t + log r",
            seen,
            sp.log(a_t) - sp.log(sigma_t) + sp.log(_r),
        ),
        Step(
            "and again exact where the prediction stays the same: x_s/σ_s grows by (exp λ_s - r exp λ_t) x̂",
            (a_s * c + sigma_s / sigma_t * (x - a_t * _r * c)) / sigma_s,
            x / sigma_t + (a_s / sigma_s - _r * a_t / sigma_t) * c,
        ),
        Step(
            "Both t and u are on the small side: h = λ_s - (λ_t + log r), k = (λ_t + log r) - (λ_u + log r)",
            weight.subs({h: _lam_s - _lam_t - sp.log(_r), k: (_lam_t + sp.log(_r)) - (_lam_u + sp.log(_r))}),
            _at_change(variant),
        ),
        Step(
            "A change between u and t: u alone is on the small side, k = λ_t - (λ_u + log r)",
            weight.subs({h: _lam_s - _lam_t, k: _lam_t - _lam_u - sp.log(_r)}),
            _after(variant),
        ),
    )
