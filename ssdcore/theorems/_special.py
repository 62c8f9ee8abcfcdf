"""Known processes as special cases: DDPM, blurring diffusion and heat dissipation."""

from __future__ import annotations

import sympy as sp

from ._engine import Given, Proof, Step, choose
from ._symbols import I_n, n, rational, rho, sigma_s, sigma_t

_half = sp.Rational(1, 2)


def ddpm(variant: str | None) -> Proof:
    """Theorem 3 with M = √α_t I and variance-preserving noise is DDPM's posterior."""
    alpha, alpha_bar_s = sp.symbols("α_t ᾱ_s", positive=True)
    beta = 1 - alpha
    alpha_bar_t = alpha * alpha_bar_s
    variance_s, variance_t = 1 - alpha_bar_s, 1 - alpha_bar_t
    gain = choose(variant, sp.sqrt(alpha), square_root_missing=alpha)
    ratio = variance_s / variance_t
    ratio = choose(variant, ratio, ratio_of_deviations=sp.sqrt(ratio))
    c = sp.Symbol("c", positive=True)
    M = sp.MatrixSymbol("M", n, n)
    mu_s, x_t = sp.MatrixSymbol("μ_s", n, 1), sp.MatrixSymbol("x_t", n, 1)
    multiple = Given(
        rules=((M, c * I_n),),
        example={
            n: 2,
            c: _half,
            M: sp.eye(2) / 2,
            sigma_s: _half,
            sigma_t: sp.Rational(2, 3),
            mu_s: rational((1,), (2,)),
            x_t: rational((3,), (-1,)),
        },
    )
    y, epsilon = sp.symbols("x_t ε", positive=True)
    delta = sp.Symbol("δ", nonnegative=True)
    x_0 = (y - sp.sqrt(variance_t) * epsilon) / sp.sqrt(alpha_bar_t)
    posterior_variance = choose(variant, variance_s / variance_t * beta, variance_is_beta=beta)
    steps = [
        Step(
            "(7) with M = c I: the covariance is one number",
            sigma_s**2 * (I_n - rho * M.T * M),
            sigma_s**2 * (1 - rho * c**2) * I_n,
            given=multiple,
        ),
        Step(
            "and the mean weighs μ_s by 1 - ρ c² and x_t by ρ c",
            mu_s + rho * M.T * (x_t - M * mu_s),
            (1 - rho * c**2) * mu_s + rho * c * x_t,
            given=multiple,
        ),
        Step(
            "With c = √(ᾱ_t/ᾱ_s) = √α_t the signal is scaled by √ᾱ_t in all",
            gain * sp.sqrt(alpha_bar_s),
            sp.sqrt(alpha_bar_t),
        ),
        Step("Transition variance σ_t² - σ_s² c², with σ² = 1 - ᾱ: β_t", variance_t - variance_s * gain**2, beta),
        Step(
            "(4) holds for every β_t in [0, 1): with 1/α_t = 1 + δ, δ >= 0, the margin is δ/(1 + δ)",
            (variance_t - variance_s * alpha).subs(alpha, 1 / (1 + delta)),
            0,
            ">=",
        ),
        Step(
            "Posterior variance σ_s² (1 - ρ c²): DDPM's β̃_t = (1 - ᾱ_s)/(1 - ᾱ_t) β_t",
            variance_s * (1 - ratio * gain**2),
            posterior_variance,
        ),
        Step(
            "Weight of x_0, with μ_s = √ᾱ_s x_0: √ᾱ_s β_t/(1 - ᾱ_t)",
            sp.sqrt(alpha_bar_s) * (1 - ratio * gain**2),
            sp.sqrt(alpha_bar_s) * beta / variance_t,
        ),
        Step("Weight of x_t: √α_t (1 - ᾱ_s)/(1 - ᾱ_t)", ratio * gain, sp.sqrt(alpha) * variance_s / variance_t),
        Step(
            "In terms of the noise, x_0 = (x_t - √(1 - ᾱ_t) ε)/√ᾱ_t, the mean is (x_t - β_t/√(1 - ᾱ_t) ε)/√α_t",
            sp.sqrt(alpha_bar_s) * (1 - ratio * gain**2) * x_0 + ratio * gain * y,
            (y - beta / sp.sqrt(variance_t) * epsilon) / sp.sqrt(alpha),
        ),
    ]
    return Proof(
        "ddpm",
        "Theorem 3, Σ = σ_s² (I - ρ MᵀM) and μ = μ_s + ρ Mᵀ (x_t - M μ_s) with ρ = σ_s²/σ_t²  (7), where "
        "σ_t² >= σ_s² ‖M‖²  (4), is DDPM for R = I: M = √(ᾱ_t/ᾱ_s) I and σ² = 1 - ᾱ. Below α_t = ᾱ_t/ᾱ_s "
        "and β_t = 1 - α_t, for neighbours as in DDPM and for any s < t in a respaced chain.",
        tuple(steps),
        {
            "variance": posterior_variance,
            "weight of x_0": sp.sqrt(alpha_bar_s) * beta / variance_t,
            "weight of x_t": sp.sqrt(alpha) * variance_s / variance_t,
        },
    )


def blurring_diffusion(variant: str | None) -> Proof:
    """Blurs are diagonal in the DCT-II basis, where theorem 3 is DDPM's posterior frequency by frequency."""
    return Proof(
        "blurring_diffusion",
        "Blurring diffusion and heat dissipation are theorem 3, Σ = σ_s² (I - ρ MᵀM) and μ = μ_s + ρ Mᵀ "
        "(x_t - M μ_s) with ρ = σ_s²/σ_t²  (7), where σ_t² >= σ_s² ‖M‖²  (4), with M = (a_t/a_s) R, R = V "
        "diag(exp(-λ τ)) Vᵀ, V the DCT-II basis v_k(j) = cos(θ (j + 1/2)), θ = π k/n, 0 <= k < n, λ growing"
        " with the frequency k. Every frequency follows DDPM's formulas with its own signal scale, and the "
        "blurs compose: R_s→u = R_t→u R_s→t.",
        (*_cosine_basis_steps(), *_frequency_steps(variant), *_semigroup_steps(variant)),
        {"variance of a frequency": _frequency_variance(variant), "mean of a frequency": _frequency_mean(variant)},
    )


def _cosine_basis_steps() -> list[Step]:
    """The DCT-II vectors are the orthogonal eigenvectors of the reflecting second difference, for every n."""
    theta, other = sp.symbols("θ θ'", real=True)
    j, k, size = sp.symbols("j k n", integer=True, positive=True)

    def v(index: sp.Expr, angle: sp.Expr = theta) -> sp.Expr:
        return sp.cos(angle * (index + _half))

    L = sp.MatrixSymbol("L", n, n)
    first, second = sp.MatrixSymbol("v", n, 1), sp.MatrixSymbol("w", n, 1)
    value, other_value = sp.symbols("λ λ'", real=True)
    example = {
        n: 2,
        L: rational((1, -1), (-1, 1)),
        first: rational((1,), (1,)),
        second: rational((1,), (-1,)),
        value: sp.S.Zero,
        other_value: sp.S(2),
    }
    edge = sp.pi * k / size
    return [
        Step(
            "Inside, the second difference of v_k is a multiple of v_k: 2 v(j) - v(j-1) - v(j+1) = 2 (1 - cos θ) v(j)",
            2 * v(j) - v(j - 1) - v(j + 1),
            2 * (1 - sp.cos(theta)) * v(j),
        ),
        Step("The left edge reflects, v(-1) = v(0)", v(sp.S(-1)), v(sp.S.Zero)),
        Step("The right edge reflects at θ = π k/n, v(n) = v(n-1)", v(size, edge), v(size - 1, edge)),
        Step(
            "So the v_k are eigenvectors of one symmetric matrix L. Two of them: vᵀLw = λ vᵀw ...",
            first.T * L * second,
            value * first.T * second,
            given=Given(rules=((L * first, value * first),), symmetric=(L,), example=example),
        ),
        Step(
            "... and vᵀLw = λ' vᵀw, so (λ - λ') vᵀw = 0",
            first.T * L * second,
            other_value * first.T * second,
            given=Given(rules=((L * second, other_value * second),), symmetric=(L,), example=example),
        ),
        Step(
            "where λ - λ' = 2 (cos θ' - cos θ) is not zero for different θ, θ' in [0, π): vᵀw = 0",
            2 * (sp.cos(other) - sp.cos(theta)),
            4 * sp.sin((theta + other) / 2) * sp.sin((theta - other) / 2),
        ),
        Step(
            "Their lengths: 2 v(j)² = 1 + cos(2θ (j + 1/2)), whose second part telescopes ...",
            2 * sp.sin(theta) * (2 * v(j) ** 2 - 1),
            sp.sin(2 * theta * (j + 1)) - sp.sin(2 * theta * j),
        ),
        Step(
            "... to sin(2θ n) = sin(2π k) = 0 over j = 0 ... n-1: length² n/2 for k > 0 (and n for k = 0), "
            "so scaled they are orthonormal",
            sp.sin(2 * sp.pi * k, evaluate=False),
            0,
        ),
    ]


_e, _u_t, _u_s = sp.symbols("e u_t u_s", positive=True)


def _frequency_ratio(variant: str | None) -> sp.Expr:
    return choose(variant, rho, ratio_of_deviations=sigma_s / sigma_t)


def _frequency_variance(variant: str | None) -> sp.Expr:
    return sigma_s**2 * (1 - _frequency_ratio(variant) * _e**2)


def _frequency_mean(variant: str | None) -> sp.Expr:
    return _u_s + _frequency_ratio(variant) * _e * (_u_t - _e * _u_s)


def _frequency_steps(variant: str | None) -> list[Step]:
    V, E = sp.MatrixSymbol("V", n, n), sp.MatrixSymbol("E", n, n)
    mu_s, x_t = sp.MatrixSymbol("μ_s", n, 1), sp.MatrixSymbol("x_t", n, 1)
    basis = Given(
        rules=((V.T * V, I_n), (V * V.T, I_n)),
        symmetric=(E,),
        example={
            n: 2,
            V: rational(("3/5", "-4/5"), ("4/5", "3/5")),
            E: rational((1, 0), (0, "1/3")),
            mu_s: rational((1,), (2,)),
            x_t: rational((3,), (-1,)),
            sigma_s: _half,
            sigma_t: sp.Rational(2, 3),
        },
    )
    M = V * E * V.T
    transition = sigma_t**2 - _e**2 * sigma_s**2
    variance = 1 / (1 / sigma_s**2 + _e**2 / transition)
    pull = choose(variant, _e, gain_squared=_e**2) / transition
    return [
        Step(
            "(7) with M = V E Vᵀ, E diagonal, in frequencies: the covariance is σ_s² (I - ρ E²), no two "
            "frequencies mix",
            V.T * (sigma_s**2 * (I_n - rho * M.T * M)) * V,
            sigma_s**2 * (I_n - rho * E * E),
            given=basis,
        ),
        Step(
            "and the mean, frequency by frequency",
            V.T * (mu_s + rho * M.T * (x_t - M * mu_s)),
            V.T * mu_s + rho * E * (V.T * x_t - E * V.T * mu_s),
            given=basis,
        ),
        Step(
            "One frequency of gain e, transition variance σ_t|s² = σ_t² - e² σ_s²: the variance that "
            "blurring diffusion states, 1/(1/σ_s² + e²/σ_t|s²), is that of (7)",
            variance,
            _frequency_variance(variant),
        ),
        Step(
            "and its mean, variance times (e/σ_t|s² u_t + u_s/σ_s²), u_s the frequency of μ_s, is that of (7)",
            variance * (pull * _u_t + _u_s / sigma_s**2),
            _frequency_mean(variant),
        ),
    ]


def _semigroup_steps(variant: str | None) -> list[Step]:
    V = sp.MatrixSymbol("V", n, n)
    E_ts, E_ut, E_us = (sp.MatrixSymbol(f"E_{pair}", n, n) for pair in ("s→t", "t→u", "s→u"))
    rate, tau_s, tau_st, tau_tu = sp.symbols("λ τ_s Δ Δ'", nonnegative=True)
    a_s, a_t = sp.symbols("a_s a_t", positive=True)
    width_s, width_t, omega = sp.symbols("b_s b_t ω", positive=True)
    composition = Given(
        rules=((V.T * V, I_n), (E_ut * E_ts, E_us)),
        example={
            n: 2,
            V: rational(("3/5", "-4/5"), ("4/5", "3/5")),
            E_ts: rational((1, 0), (0, "1/3")),
            E_ut: rational((1, 0), (0, "1/2")),
            E_us: rational((1, 0), (0, "1/6")),
        },
    )
    total = choose(variant, tau_st + tau_tu, times_multiply=tau_st * tau_tu)
    between = choose(variant, width_t**2 - width_s**2, widths_subtract=(width_t - width_s) ** 2)
    return [
        Step(
            "A frequency dissipates like exp(-λ τ), so times add: exp(-λ Δ') exp(-λ Δ) = exp(-λ (Δ + Δ'))",
            sp.exp(-rate * tau_tu) * sp.exp(-rate * tau_st),
            sp.exp(-rate * total),
        ),
        Step(
            "and the operators compose, R_t→u R_s→t = R_s→u",
            (V * E_ut * V.T) * (V * E_ts * V.T),
            V * E_us * V.T,
            given=composition,
        ),
        Step(
            "Gaussian blurs of widths b, exp(-b² ω²/2): from s to t the width² is b_t² - b_s²",
            sp.exp(-between * omega**2 / 2) * sp.exp(-(width_s**2) * omega**2 / 2),
            sp.exp(-(width_t**2) * omega**2 / 2),
        ),
        Step(
            "The signal scale of a frequency at t, a_t exp(-λ (τ_s + Δ)), is that at s times the gain e = "
            "(a_t/a_s) exp(-λ Δ)",
            a_s * sp.exp(-rate * tau_s) * (a_t / a_s * sp.exp(-rate * tau_st)),
            a_t * sp.exp(-rate * (tau_s + tau_st)),
        ),
        Step(
            "The gain e falls as the frequency's λ grows (minus its derivative), so ‖M‖ is its value at λ = 0 ...",
            -sp.diff(a_t / a_s * sp.exp(-rate * tau_st), rate),
            0,
            ">=",
        ),
        Step(
            "... which is a_t/a_s: (4) is the condition of the same process without blur, and the mean over"
            " pixels follows DDPM",
            (a_t / a_s * sp.exp(-rate * tau_st)).subs(rate, 0),
            a_t / a_s,
        ),
    ]
