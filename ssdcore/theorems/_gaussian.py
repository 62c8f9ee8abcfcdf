"""Theorems 1 to 3: the forward transition, the posterior, and the isotropic posterior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy as sp
from sympy.matrices.expressions.matexpr import MatrixExpr

from ._engine import Given, Proof, Step, choose
from ._symbols import (
    ISOTROPIC,
    LINEAR_GAUSSIAN,
    D,
    I_m,
    I_n,
    I_r,
    M,
    Q,
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
    x_s,
    x_t,
)

_half = sp.Rational(1, 2)
_one = sp.Identity(1)


def forward_transition(variant: str | None) -> Proof:
    """Theorem 1 and the admissibility of isotropic noise."""
    covariance = choose(
        variant,
        lambda M, S, T: T - M * S * M.T,
        plus_sign=lambda M, S, T: T + M * S * M.T,
        missing_transpose=lambda M, S, T: T - M * S * M,
        forgets_the_past=lambda M, S, T: T,
    )
    p, u = sp.symbols("p l", integer=True, positive=True)
    k, A = sp.MatrixSymbol("k", m, 1), sp.MatrixSymbol("A", m, n)
    P, P_right = sp.MatrixSymbol("M_1:s", n, p), sp.MatrixSymbol("M_1:s^+", p, n)
    N, covariance_u = sp.MatrixSymbol("N", u, m), sp.MatrixSymbol("Σ_u", u, u)
    example = {
        **LINEAR_GAUSSIAN,
        k: rational((1,), (-2,)),
        p: 4,
        A: LINEAR_GAUSSIAN[M],
        P: rational((1, 0, 0, 2), (0, 1, 0, 0), (0, 0, 1, 0)),
        P_right: rational((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)),
        u: 1,
        N: rational((1, "1/2")),
        covariance_u: rational((20,)),
    }
    general = Given(symmetric=(S, T, covariance_u), example=example)
    i = sp.I

    def log_cf_s(gain: MatrixExpr) -> MatrixExpr:
        """log E exp(i kᵀ gain x_s)."""
        return i * k.T * gain * mu_s - _half * k.T * gain * S * gain.T * k

    log_cf_t = i * k.T * M * mu_s - _half * k.T * T * k
    steps = [
        Step(
            "(if) With x_t = M x_s + η, η ~ N(0, Σ_t|s) independent of x_s, the log characteristic function"
            " at k is log φ_s(Mᵀk) + log φ_η(k), and this is that of N(M μ_s, Σ_t)",
            log_cf_s(M) - _half * k.T * covariance(M, S, T) * k,
            log_cf_t,
            given=general,
        ),
        Step(
            "(only if) Let x_t = A x_s + η, η independent of x_s, have the law N(M μ_s, Σ_t). Then log φ_η(k) = "
            "log φ_t(k) - log φ_s(Aᵀk) is that of a Gaussian of mean (M - A) μ_s and of one covariance, fixed by A",
            log_cf_t - log_cf_s(A),
            i * k.T * (M - A) * mu_s - _half * k.T * covariance(A, S, T) * k,
            given=general,
        ),
        Step(
            "η has mean zero for every x_0 only if A M_1:s = M M_1:s. Where M_1:s has a right inverse "
            "(every state at s can be a clean signal's), (A - M) M_1:s M_1:s^+ is then zero ...",
            (A - M) * P * P_right,
            sp.ZeroMatrix(m, n),
            given=Given(rules=((A * P, M * P),), example=example),
        ),
        Step(
            "... and it is also A - M, so A = M (without one, A is fixed on the range of M_1:s, and the "
            "process takes M)",
            (A - M) * P * P_right,
            A - M,
            given=Given(rules=((P * P_right, I_n),), example=example),
        ),
        _hessian_step(covariance),
        Step(
            "Any pair of times: x_t = M x_s + η, then x_u = N x_t + η', is the transition of the product N M",
            covariance(N, T, covariance_u) + N * covariance(M, S, T) * N.T,
            covariance(N * M, S, covariance_u),
            given=general,
        ),
        *_admissibility_steps(variant),
    ]
    return Proof(
        "forward_transition",
        "Theorem 1. Let q(x_s|x_0) = N(μ_s, Σ_s) with μ_s = M_1:s x_0. A transition x_t = M x_s + η with "
        "Gaussian noise η independent of x_s gives q(x_t|x_0) = N(M μ_s, Σ_t) if and only if η ~ N(0, Σ_t|s) with "
        "Σ_t|s = Σ_t - M Σ_s Mᵀ. For isotropic noise, Σ = σ² I, that is a covariance if and only if σ_t² >= σ_s² ‖M‖² "
        "(4).",
        tuple(steps),
        {"covariance": covariance(M, S, T), "isotropic covariance": sigma_t**2 * I_m - sigma_s**2 * M * M.T},
    )


def _hessian_step(covariance: Callable[[Any, Any, Any], Any]) -> Step:
    """The covariance read off entry by entry, all entries symbols."""
    matrix = sp.Matrix(2, 2, sp.symbols("m_11 m_12 m_21 m_22", real=True))
    covariance_s = sp.diag(*sp.symbols("a b", positive=True))
    t_11, t_12, t_22 = sp.symbols("t_11 t_12 t_22", real=True)
    covariance_t = sp.Matrix([[t_11, t_12], [t_12, t_22]])
    k = sp.Matrix(sp.symbols("k_1 k_2", real=True))
    pulled = matrix.T * k
    log_cf = -_half * (k.T * covariance_t * k)[0] + _half * (pulled.T * covariance_s * pulled)[0]
    return Step(
        "A quadratic form has one symmetric matrix: minus the Hessian of log φ_η in k, written out for "
        "2 x 2 symbols with Σ_s = diag(a, b)",
        -sp.hessian(log_cf, list(k)).applyfunc(sp.expand),
        covariance(matrix, covariance_s, covariance_t).applyfunc(sp.expand),
    )


def _admissibility_steps(variant: str | None) -> list[Step]:
    norm = sp.Symbol("‖M‖", positive=True)
    claimed_square = choose(variant, norm**2, norm_not_squared=norm)
    w, u, v = sp.MatrixSymbol("w", m, 1), sp.MatrixSymbol("u", m, 1), sp.MatrixSymbol("v", n, 1)
    squared_length, shortfall, margin = sp.symbols("wᵀw d g", nonnegative=True)
    noise = sigma_t**2 * I_m - sigma_s**2 * M * M.T
    example = {
        **ISOTROPIC,
        w: rational((1,), (-2,)),
        u: ISOTROPIC[U][:, 0],
        v: ISOTROPIC[V][:, 0],
        norm: sp.Rational(4, 5),
    }
    top_pair = Given(rules=((M.T * u, norm * v), (u.T * u, _one), (v.T * v, _one)), example=example)
    frame = Given(rules=((U.T * U, I_r), (V.T * V, I_r), (M, U * D * V.T)), symmetric=(D,), example=ISOTROPIC)
    return [
        Step(
            "Isotropic noise: Σ_t|s = σ_t² I - σ_s² M Mᵀ, so for any w the variance wᵀ Σ_t|s w is σ_t² ‖w‖²"
            " - σ_s² ‖Mᵀw‖²",
            w.T * noise * w,
            sigma_t**2 * w.T * w - sigma_s**2 * (M.T * w).T * (M.T * w),
            given=Given(example=example),
        ),
        Step(
            "The condition (4) suffices: write σ_t² = σ_s² ‖M‖² + g with g >= 0, and ‖Mᵀw‖² = ‖M‖² wᵀw - d "
            "with d >= 0 since the norm is the largest stretch; every variance is then non-negative",
            (sigma_s**2 * claimed_square + margin) * squared_length
            - sigma_s**2 * (norm**2 * squared_length - shortfall),
            0,
            ">=",
        ),
        Step(
            "(4) is needed: along the top singular pair, Mᵀu = ‖M‖ v with unit u and v, the variance is the"
            " margin of (4)",
            u.T * noise * u,
            (sigma_t**2 - sigma_s**2 * claimed_square) * _one,
            given=top_pair,
        ),
        Step(
            "In singular modes, M = U D Vᵀ: the variances along the columns of U are σ_t² - σ_s² D²",
            U.T * noise * U,
            sigma_t**2 * I_r - sigma_s**2 * D * D,
            given=frame,
        ),
    ]


def posterior(variant: str | None) -> Proof:
    """Theorem 2, by completing the square and by conditioning the joint Gaussian."""
    C, Lambda = sp.MatrixSymbol("Σ", n, n), sp.MatrixSymbol("Λ", n, n)
    lambda_example = LINEAR_GAUSSIAN[S].inv() + LINEAR_GAUSSIAN[M].T * LINEAR_GAUSSIAN[Q].inv() * LINEAR_GAUSSIAN[M]
    example = {**LINEAR_GAUSSIAN, Lambda: lambda_example, C: lambda_example.inv()}
    # Bayes' rule in the exponents: the precision's meaning is used only where it does not meet its inverse.
    bayes = Given(
        rules=((Lambda * C, I_n), (C * Lambda, I_n), (Lambda, S.I + M.T * Q.I * M)),
        symmetric=(S, Q, C, Lambda),
        example=example,
    )
    pull = S.I * mu_s + choose(
        variant, M.T * Q.I * x_t, minus_sign=-M.T * Q.I * x_t, marginal_precision=M.T * T.I * x_t
    )
    exponent = (x_t - M * x_s).T * Q.I * (x_t - M * x_s) + (x_s - mu_s).T * S.I * (x_s - mu_s)
    mean = C * pull
    rest = x_t.T * Q.I * x_t + mu_s.T * S.I * mu_s - pull.T * C * pull

    gain = choose(variant, S * M.T * T.I, gain_of_transition_noise=S * M.T * Q.I)
    conditional = S - gain * M * S
    joint = Given(rules=((M * S * M.T, T - Q),), symmetric=(S, T, Q), example=LINEAR_GAUSSIAN)
    notation = Given(symmetric=(S, T, Q, C), example=example)
    zero_nm, zero_mn = sp.ZeroMatrix(n, m), sp.ZeroMatrix(m, n)
    joint_covariance = sp.BlockMatrix([[S, S * M.T], [M * S, T]])
    forward_factor = sp.BlockMatrix([[I_n, zero_nm], [M, I_m]])
    backward_factor = sp.BlockMatrix([[I_n, gain], [zero_mn, I_m]])
    steps = [
        Step(
            "Bayes: -2 log q(x_t|x_s) - 2 log q(x_s|x_0), with the square completed in x_s around μ = Σ h, "
            "h = Σ_s^-1 μ_s + Mᵀ Σ_t|s^-1 x_t, where Λ = Σ^-1 = Σ_s^-1 + Mᵀ Σ_t|s^-1 M",
            exponent,
            (x_s - mean).T * Lambda * (x_s - mean) + rest,
            given=bayes,
        ),
        Step("What is left over does not involve x_s, so (5) is the law of x_s", rest, x_s, "free of", notation),
        Step(
            "The joint law of (x_s, x_t): covariance built forwards from Σ_s and Σ_t|s = Σ_t - M Σ_s Mᵀ",
            forward_factor * sp.BlockMatrix([[S, zero_nm], [zero_mn, Q]]) * forward_factor.T,
            joint_covariance,
            given=joint,
        ),
        Step(
            "The same covariance built backwards from Σ_t, with gain K = Σ_s Mᵀ Σ_t^-1 and Σ = Σ_s - K M "
            "Σ_s: so x_s is K x_t plus independent noise of covariance Σ. This is (6), and it inverts Σ_t "
            "alone",
            backward_factor * sp.BlockMatrix([[conditional, zero_nm], [zero_mn, T]]) * backward_factor.T,
            joint_covariance,
            given=notation,
        ),
        *_noise_free_steps(),
        *_bayes_by_entries(variant),
    ]
    return Proof(
        "posterior",
        "Theorem 2. With q(x_s|x_0) = N(μ_s, Σ_s) and q(x_t|x_s) = N(M x_s, Σ_t|s), the posterior "
        "q(x_s|x_t, x_0) is N(μ, Σ) with Σ^-1 = Σ_s^-1 + Mᵀ Σ_t|s^-1 M and μ = Σ (Σ_s^-1 μ_s + Mᵀ Σ_t|s^-1 "
        "x_t)  (5), which is also Σ = Σ_s - Σ_s Mᵀ Σ_t^-1 M Σ_s and μ = μ_s + Σ_s Mᵀ Σ_t^-1 (x_t - M μ_s)  "
        "(6).",
        tuple(steps),
        {"covariance": conditional, "mean": mu_s + S * M.T * T.I * (x_t - M * mu_s)},
    )


def _noise_free_steps() -> list[Step]:
    """(6) where (5) does not exist: Σ_t|s = 0."""
    gain = S * M.T * T.I
    noise_free = Given(
        rules=((M * S * M.T, T),),
        symmetric=(S, T),
        example={**LINEAR_GAUSSIAN, Q: sp.zeros(2, 2), T: LINEAR_GAUSSIAN[T] - LINEAR_GAUSSIAN[Q]},
    )
    return [
        Step(
            "(6) needs no inverse of Σ_t|s. If Σ_t|s = 0 the posterior has no variance along M ...",
            M * (S - gain * M * S),
            sp.ZeroMatrix(m, n),
            given=noise_free,
        ),
        Step(
            "... and its mean is a state that M takes to x_t",
            M * (mu_s + gain * (x_t - M * mu_s)),
            x_t,
            given=noise_free,
        ),
    ]


def _bayes_by_entries(variant: str | None) -> list[Step]:
    """The densities of Bayes' rule for one value, and its constants for two values at s and one at t."""
    a, b, q = sp.symbols("a b q", positive=True)
    m_1, m_2, x, y, mean = sp.symbols("m_1 m_2 x y μ", real=True)
    total = a * m_1**2 + q
    gain = a * m_1 / choose(variant, total, gain_of_transition_noise=q)
    conditional = a - gain * m_1 * a
    matrix, covariance_s = sp.Matrix([[m_1, m_2]]), sp.diag(a, b)
    total_2 = (matrix * covariance_s * matrix.T)[0] + q
    gain_2 = covariance_s * matrix.T / choose(variant, total_2, gain_of_transition_noise=q)
    return [
        Step(
            "Written out for one value, M = m_1, Σ_s = a, Σ_t|s = q, x_t = y: the exponents of q(x_t|x_s) "
            "q(x_s|x_0) and of (6) times q(x_t|x_0) are one function",
            (y - m_1 * x) ** 2 / q + (x - mean) ** 2 / a,
            (x - mean - gain * (y - m_1 * mean)) ** 2 / conditional + (y - m_1 * mean) ** 2 / total,
        ),
        Step(
            "and so are the normalising constants, here for M = [m_1, m_2], Σ_s = diag(a, b): det Σ_s det "
            "Σ_t|s = det Σ det Σ_t",
            covariance_s.det() * q,
            (covariance_s - gain_2 * matrix * covariance_s).det() * total_2,
        ),
    ]


def posterior_forms_agree(variant: str | None) -> Proof:
    """(5) and (6) are one Gaussian: Woodbury's identity."""
    correction = S * M.T * T.I * M * S
    covariance = choose(variant, S - correction, plus_sign=S + correction)
    gain = choose(variant, S * M.T * T.I, gain_of_transition_noise=S * M.T * Q.I)
    precision = S.I + M.T * Q.I * M
    given = Given(rules=((M * S * M.T, T - Q),), symmetric=(S, T, Q), example=LINEAR_GAUSSIAN)
    notation = Given(symmetric=(S, T, Q), example=LINEAR_GAUSSIAN)
    mean = mu_s + gain * (x_t - M * mu_s)
    steps = [
        Step("The covariance of (6) times the precision of (5) is I", covariance * precision, I_n, given=given),
        Step("and in the other order", precision * covariance, I_n, given=given),
        Step(
            "The weight of x_t in (5) is the gain of (6)",
            covariance * M.T * Q.I,
            gain,
            given=given,
        ),
        Step("The weight of μ_s in (5) is what the gain leaves", covariance * S.I, I_n - gain * M, given=notation),
        Step(
            "So the means agree",
            covariance * (S.I * mu_s + M.T * Q.I * x_t),
            mean,
            given=given,
        ),
        *_forms_by_entries(variant),
    ]
    return Proof(
        "posterior_forms_agree",
        "Theorem 2 in two forms. (5): Σ = (Σ_s^-1 + Mᵀ Σ_t|s^-1 M)^-1, μ = Σ (Σ_s^-1 μ_s + Mᵀ Σ_t|s^-1 "
        "x_t), and (6): Σ = Σ_s - Σ_s Mᵀ Σ_t^-1 M Σ_s, μ = μ_s + Σ_s Mᵀ Σ_t^-1 (x_t - M μ_s), with Σ_t|s = "
        "Σ_t - M Σ_s Mᵀ, agree wherever (5) exists.",
        tuple(steps),
        {"precision": precision, "covariance": covariance, "mean": mean},
    )


def _forms_by_entries(variant: str | None) -> list[Step]:
    """Two values at s, one at t, Σ_s = L Lᵀ."""
    matrix = sp.Matrix([sp.symbols("m_1 m_2", real=True)])
    a, c, q = sp.symbols("l_11 l_22 q", positive=True)
    b = sp.Symbol("l_21", real=True)
    factor = sp.Matrix([[a, 0], [b, c]])
    covariance_s = factor * factor.T
    total = (matrix * covariance_s * matrix.T)[0] + q
    sign = choose(variant, -1, plus_sign=1)
    divisor = choose(variant, total, gain_of_transition_noise=q)
    form_6 = covariance_s + sign * covariance_s * matrix.T * matrix * covariance_s / divisor
    precision = covariance_s.inv() + matrix.T * matrix / q
    return [
        Step(
            f"Written out for M = [m_1, m_2], Σ_s = L Lᵀ, Σ_t|s = q: entry ({i + 1}, {j + 1}) of (5) and of (6)",
            sp.factor(precision.adjugate()[i, j] / precision.det()),
            sp.factor(form_6[i, j]),
        )
        for i, j in ((0, 0), (0, 1), (1, 1))
    ]


def isotropic_posterior(variant: str | None) -> Proof:
    """Theorem 3."""
    ratio = choose(variant, rho, ratio_of_deviations=sigma_s / sigma_t, ratio_inverted=1 / rho)
    sign = choose(variant, -1, plus_sign=1)
    covariance = sigma_s**2 * (I_n + sign * ratio * M.T * M)
    mean = mu_s + ratio * M.T * (x_t - M * mu_s)
    form_6 = Given(
        rules=((S, sigma_s**2 * I_n), (T.I, sigma_t**-2 * I_m)),
        symmetric=(S, T),
        example={**ISOTROPIC, S: sp.eye(3) / 4, T: sp.eye(2) * sp.Rational(4, 9)},
    )
    form_5 = Given(rules=((M * M.T, (sigma_t**2 * I_m - Q) / sigma_s**2),), symmetric=(Q,), example=ISOTROPIC)
    precision = sigma_s**-2 * I_n + M.T * Q.I * M
    modes = Given(rules=((U.T * U, I_r), (V.T * V, I_r), (M, U * D * V.T)), symmetric=(D,), example=ISOTROPIC)
    F = sp.MatrixSymbol("F", r, r)
    root_modes = Given(
        rules=((V.T * V, I_r), (F * F, I_r - rho * D * D), (M.T * M, V * D * D * V.T)),
        symmetric=(D, F),
        example={**ISOTROPIC, F: rational(("4/5", 0), (0, "12/13"))},
    )
    root = sigma_s * (V * F * V.T + I_n - V * V.T)
    mode = sp.Symbol("d", nonnegative=True)
    shortfall, margin = sp.symbols("h g", nonnegative=True)
    admissible = sp.sqrt(sigma_s**2 * (mode**2 + shortfall) + margin)
    steps = [
        Step(
            "Put Σ_s = σ_s² I and Σ_t = σ_t² I into the covariance of (6)",
            S - S * M.T * T.I * M * S,
            covariance,
            given=form_6,
        ),
        Step("and into its mean", mu_s + S * M.T * T.I * (x_t - M * mu_s), mean, given=form_6),
        Step(
            "Directly from (5), with Σ_t|s = σ_t² I - σ_s² M Mᵀ: the covariance inverts the precision",
            covariance * precision,
            I_n,
            given=form_5,
        ),
        Step("and the mean is its own", covariance * (sigma_s**-2 * mu_s + M.T * Q.I * x_t), mean, given=form_5),
        Step(
            "In singular modes, M = U D Vᵀ: the variances along the columns of V are σ_s² (I - ρ D²)",
            V.T * covariance * V,
            sigma_s**2 * (I_r - rho * D * D),
            given=modes,
        ),
        Step(
            "They are non-negative where (4) holds: with σ_t² = σ_s² ‖M‖² + g and ‖M‖² = d² + h, g and h >="
            " 0, σ_t² times the variance of a mode of singular value d",
            sp.expand(sigma_t**2 * sigma_s**2 * (1 + sign * ratio * mode**2)).subs(sigma_t, admissible),
            0,
            ">=",
        ),
        Step(
            "The noise to draw: with F² = I - ρ D², the symmetric root σ_s (V F Vᵀ + I - V Vᵀ) squares to "
            "the covariance",
            root * root,
            covariance,
            given=root_modes,
        ),
    ]
    return Proof(
        "isotropic_posterior",
        "Theorem 3. With Σ_s = σ_s² I, Σ_t = σ_t² I and ρ = σ_s²/σ_t², theorem 2 becomes "
        "Σ = σ_s² (I - ρ MᵀM),  μ = μ_s + ρ Mᵀ (x_t - M μ_s)  (7).",
        tuple(steps),
        {"covariance": covariance, "mean": mean},
    )
