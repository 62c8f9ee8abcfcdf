"""All posteriors with the same marginals, and the deterministic end of theorem 3."""

from __future__ import annotations

import sympy as sp

from ._engine import Given, Proof, Step, choose
from ._symbols import (
    ISOTROPIC,
    LINEAR_GAUSSIAN,
    D,
    I_n,
    I_r,
    M,
    S,
    T,
    U,
    V,
    m,
    mu_s,
    n,
    r,
    rational,
    rho,
    sigma_s,
    sigma_t,
)

_half = sp.Rational(1, 2)
_one = sp.Identity(1)


def same_marginal_family(variant: str | None) -> Proof:
    """(10): any B gives a reverse step that keeps the marginals."""
    B, k = sp.MatrixSymbol("B", n, m), sp.MatrixSymbol("k", n, 1)
    covariance = choose(
        variant,
        S - B * T * B.T,
        plus_sign=S + B * T * B.T,
        missing_transpose=S - B * T * B,
        noise_of_the_wrong_time=S - B * B.T,
    )
    example = {
        **LINEAR_GAUSSIAN,
        B: rational(("1/4", 0), ("1/5", "-1/3"), (0, "1/2")),
        k: rational((1,), (-2,), (3,)),
    }
    general = Given(symmetric=(S, T), example=example)
    i = sp.I
    log_cf_mean = i * k.T * (mu_s - B * M * mu_s) + i * k.T * B * M * mu_s
    other = sp.MatrixSymbol("Σ", n, n)

    w, b, a = sp.MatrixSymbol("w", n, 1), sp.MatrixSymbol("b", n, 1), sp.MatrixSymbol("a", m, 1)
    norm = sp.Symbol("‖B‖", positive=True)
    squared_length, shortfall, margin = sp.symbols("wᵀw d g", nonnegative=True)
    scale = choose(variant, sigma_t**2, deviation_for_variance=sigma_t)
    isotropic = sigma_s**2 * I_n - scale * B * B.T
    isotropic_example = {
        **ISOTROPIC,
        w: example[k],
        B: sp.Rational(3, 5) * ISOTROPIC[V] * sp.diag(1, _half) * ISOTROPIC[U].T,
        b: ISOTROPIC[V][:, 0],
        a: ISOTROPIC[U][:, 0],
        norm: sp.Rational(3, 5),
        S: sp.eye(3) / 4,
        T: sp.eye(2) * sp.Rational(4, 9),
    }
    steps = [
        Step(
            "x_s = μ_s + B (x_t - M μ_s) + ε with x_t ~ N(M μ_s, Σ_t) and ε ~ N(0, Σ_s - B Σ_t Bᵀ): the log"
            " characteristic function at k is that of N(μ_s, Σ_s), whatever B",
            log_cf_mean - _half * k.T * B * T * B.T * k - _half * k.T * covariance * k,
            i * k.T * mu_s - _half * k.T * S * k,
            given=general,
        ),
        Step(
            "No other covariance does: if B Σ_t Bᵀ + Σ = Σ_s then Σ is this one",
            covariance,
            other,
            given=Given(
                rules=((B * T * B.T, S - other),),
                symmetric=(S, T, other),
                example={**example, other: example[S] - example[B] * example[T] * example[B].T},
            ),
        ),
        Step(
            "Isotropic noise: Σ = σ_s² I - σ_t² B Bᵀ",
            covariance,
            isotropic,
            given=Given(
                rules=((S, sigma_s**2 * I_n), (T, sp.MatMul(sigma_t**2, sp.Identity(m)))),
                symmetric=(S, T),
                example=isotropic_example,
            ),
        ),
        Step(
            "Theorem 3 is B = ρ Mᵀ, ρ = σ_s²/σ_t²",
            isotropic.xreplace({B: rho * M.T}),
            sigma_s**2 * (I_n - rho * M.T * M),
            given=Given(example=ISOTROPIC),
        ),
        Step(
            "The variance along any w is σ_s² ‖w‖² - σ_t² ‖Bᵀw‖²",
            w.T * isotropic * w,
            sigma_s**2 * w.T * w - sigma_t**2 * (B.T * w).T * (B.T * w),
            given=Given(example=isotropic_example),
        ),
        Step(
            "If σ_t² ‖B‖² <= σ_s², put σ_s² = σ_t² ‖B‖² + g and ‖Bᵀw‖² = ‖B‖² wᵀw - d, g and d >= 0: a covariance",
            (sigma_t**2 * norm**2 + margin) * squared_length - scale * (norm**2 * squared_length - shortfall),
            0,
            ">=",
        ),
        Step(
            "If not, not: along the top singular pair, Bᵀb = ‖B‖ a with unit a and b, the variance is σ_s² - σ_t² ‖B‖²",
            b.T * isotropic * b,
            (sigma_s**2 - sigma_t**2 * norm**2) * _one,
            given=Given(rules=((B.T * b, norm * a), (a.T * a, _one), (b.T * b, _one)), example=isotropic_example),
        ),
    ]
    return Proof(
        "same_marginal_family",
        "For any B, q_B(x_s|x_t, x_0) = N(μ_s + B (x_t - M μ_s), Σ_s - B Σ_t Bᵀ) has the marginal "
        "q(x_s|x_0) = N(μ_s, Σ_s) when x_t ~ N(M μ_s, Σ_t)  (10), and so a chain of such steps keeps every "
        "marginal. With isotropic noise it is a Gaussian, σ_s² I - σ_t² B Bᵀ a covariance, if and only if "
        "σ_t² B Bᵀ <= σ_s² I, that is σ_t ‖B‖ <= σ_s.",
        tuple(steps),
        {"covariance": isotropic},
    )


def deterministic_end(variant: str | None) -> Proof:
    """(11) and (12): from DDIM's counterpart (eta = 0) to theorem 3 (eta = 1)."""
    ratio = choose(variant, sigma_s / sigma_t, ratio_inverted=sigma_t / sigma_s)
    B = choose(variant, ratio * V * U.T, transposed=ratio * U * V.T)
    w = sp.MatrixSymbol("w", n, 1)
    destroyed = rational((1,), (-2,), (2,)) / 3
    kept = Given(rules=((U.T * U, I_r), (V.T * V, I_r)), symmetric=(D,), example=ISOTROPIC)
    lost = Given(
        rules=((U.T * U, I_r), (V.T * V, I_r), (V.T * w, sp.ZeroMatrix(r, 1))),
        symmetric=(D,),
        example={**ISOTROPIC, w: destroyed},
    )
    thin, inverse_root = U * D * V.T, V * D.I * V.T
    covariance = sigma_s**2 * I_n - sigma_t**2 * B * B.T
    steps = [
        Step(
            "B = (σ_s/σ_t) V Uᵀ leaves the covariance σ_s² I - σ_t² B Bᵀ = σ_s² (I - V Vᵀ)",
            covariance,
            sigma_s**2 * (I_n - V * V.T),
            given=kept,
        ),
        Step("which is zero on the modes that M keeps, those of V", covariance * V, sp.ZeroMatrix(n, r), given=kept),
        Step("A direction w with Vᵀw = 0 is destroyed, M w = 0", thin * w, sp.ZeroMatrix(m, 1), given=lost),
        Step("and drawn afresh with the full variance σ_s²", covariance * w, sigma_s**2 * w, given=lost),
        Step(
            "(MᵀM)^-1/2 on the kept modes is P = V D^-1 Vᵀ: P² MᵀM is the projection on them",
            (inverse_root * inverse_root) * (thin.T * thin),
            V * V.T,
            given=kept,
        ),
        Step(
            "so B is (σ_s/σ_t) (MᵀM)^-1/2 Mᵀ, a spectral function of M",
            B,
            sigma_s / sigma_t * inverse_root * thin.T,
            given=kept,
        ),
        *_pair_of_pixels_steps(ratio),
        *_ddim_steps(ratio),
        *_eta_steps(variant),
    ]
    return Proof(
        "deterministic_end",
        "Let M = U D Vᵀ, thin, D > 0. In the family (10), B = (σ_s/σ_t) V Uᵀ  (11) draws no noise on the "
        "modes that M keeps and fresh noise of variance σ_s² on those it destroys; where sizes are equal it"
        " is DDIM's update. B = V diag(b) Uᵀ, b = (σ_s/σ_t) √(1 - η² (1 - ρ d²)) for a singular value d  "
        "(12), scales the standard deviation of theorem 3's noise on the kept modes by η.",
        tuple(steps),
        {"deterministic gain": B, "variance of a mode": _eta_variance()},
    )


def _pair_of_pixels_steps(ratio: sp.Expr) -> list[Step]:
    """M = [m_1, m_2], two pixels made one, written out."""
    m_1, m_2 = sp.symbols("m_1 m_2", positive=True)
    length = sp.sqrt(m_1**2 + m_2**2)
    direction = sp.Matrix([m_1, m_2]) / length
    detail = sp.Matrix([m_2, -m_1]) / length
    gain = ratio * direction
    return [
        Step(
            "Written out for two pixels made one, M = [m_1, m_2]: noise only along the detail (m_2, -m_1) "
            "that M destroys",
            sigma_s**2 * sp.eye(2) - sigma_t**2 * gain * gain.T,
            sigma_s**2 * detail * detail.T,
        )
    ]


def _ddim_steps(ratio: sp.Expr) -> list[Step]:
    a_s, a_t = sp.symbols("a_s a_t", positive=True)
    x_0, epsilon = sp.symbols("x_0 ε", real=True)
    W = sp.MatrixSymbol("W", n, n)
    orthogonal = Given(
        rules=((W * W.T, I_n),),
        example={
            n: 2,
            W: rational(("3/5", "-4/5"), ("4/5", "3/5")),
            sigma_s: _half,
            sigma_t: sp.Rational(2, 3),
        },
    )
    x_t = a_t * x_0 + sigma_t * epsilon
    return [
        Step(
            "Equal sizes, M = c I = W (c I) Wᵀ for any orthogonal W: U = V = W make B the number σ_s/σ_t",
            ratio * W * W.T,
            sigma_s / sigma_t * I_n,
            given=orthogonal,
        ),
        Step(
            "and the step is DDIM's: with x_t = a_t x_0 + σ_t ε, a_s x_0 + B (x_t - a_t x_0) = a_s x_0 + σ_s ε",
            a_s * x_0 + ratio * (x_t - a_t * x_0),
            a_s * x_0 + sigma_s * epsilon,
        ),
    ]


_eta, _d = sp.symbols("η d", positive=True)


def _eta_variance() -> sp.Expr:
    """Variance left in a kept mode, by (12)."""
    return _eta**2 * sigma_s**2 * (1 - rho * _d**2)


def _eta_steps(variant: str | None) -> list[Step]:
    eta, d = _eta, _d
    power = choose(variant, eta**2, eta_scales_variance=eta)
    inner_ratio = choose(variant, rho, ratio_of_deviations=sigma_s / sigma_t)
    gain_squared = rho * (1 - power * (1 - inner_ratio * d**2))
    b = sp.MatrixSymbol("b", r, r)
    eta_value = sp.Rational(1, 2)
    diagonal = [ISOTROPIC[sigma_s] / ISOTROPIC[sigma_t]] * 2
    values = [
        ratio * sp.sqrt(1 - eta_value**2 * (1 - sp.Rational(9, 16) * ISOTROPIC[D][i, i] ** 2))
        for i, ratio in enumerate(diagonal)
    ]
    modes = Given(
        rules=((U.T * U, I_r), (V.T * V, I_r), (b * b, rho * (I_r - eta**2 * (I_r - rho * D * D)))),
        symmetric=(D, b),
        example={**ISOTROPIC, eta: eta_value, b: sp.diag(*values)},
    )
    B = V * b * U.T
    keep, complement = sp.symbols("η² e", nonnegative=True)
    alpha, alpha_bar_s = sp.symbols("α_t ᾱ_s", positive=True)
    variance_s, variance_t = 1 - alpha_bar_s, 1 - alpha * alpha_bar_s
    ddim = eta**2 * variance_s / variance_t * (1 - alpha)
    vp = {sigma_s**2: variance_s, sigma_t**2: variance_t}
    return [
        Step(
            "(12), with b² = ρ (I - η² (I - ρ D²)): the covariance on the kept modes is theorem 3's, σ_s² "
            "(I - ρ D²), times η²",
            V.T * (sigma_s**2 * I_n - sigma_t**2 * B * B.T) * V,
            power * sigma_s**2 * (I_r - inner_ratio * D * D),
            given=modes,
        ),
        Step(
            "mode by mode: the variance left, σ_s² - σ_t² b², has a standard deviation η times theorem 3's",
            sigma_s**2 - sigma_t**2 * gain_squared,
            _eta_variance(),
        ),
        Step("eta = 1 is theorem 3, b = ρ d: B = ρ V D Uᵀ = ρ Mᵀ", sp.sqrt(gain_squared.subs(eta, 1)), rho * d),
        Step("eta = 0 is (11), b = σ_s/σ_t", sp.sqrt(gain_squared.subs(eta, 0)), sigma_s / sigma_t),
        Step(
            "b is real for eta in [0, 1]: with 1 = η² + e, 1 - η² (1 - ρ d²) >= 0",
            (keep + complement) - keep * (1 - rho * d**2),
            0,
            ">=",
        ),
        Step(
            "Equal sizes, σ² = 1 - ᾱ and d² = α_t = ᾱ_t/ᾱ_s: DDIM's variance σ_η² = η² (1 - ᾱ_s)/(1 - ᾱ_t) "
            "(1 - ᾱ_t/ᾱ_s)",
            sp.expand(sigma_s**2 - sigma_t**2 * gain_squared.subs(d, sp.sqrt(alpha))).subs(vp),
            ddim,
        ),
        Step(
            "and DDIM's weight of ε, σ_t² b² = 1 - ᾱ_s - σ_η²",
            sp.expand(sigma_t**2 * gain_squared.subs(d, sp.sqrt(alpha))).subs(vp),
            variance_s - ddim,
        ),
    ]
