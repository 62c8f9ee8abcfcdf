"""Steps that are exact to second moments: the variance that a prediction leaves open, put back."""

from __future__ import annotations

import sympy as sp

from ._engine import Given, Proof, Step, choose
from ._symbols import I_m, I_n, m, n, rational, sigma_s, sigma_t, x_t

_half = sp.Rational(1, 2)
p = sp.Symbol("p", integer=True, positive=True)  # values of x_0
a_s, a_t = sp.symbols("a_s a_t", positive=True)
R_s, R_t = sp.MatrixSymbol("R_s", n, p), sp.MatrixSymbol("R_t", m, p)
B, C, C_t = sp.MatrixSymbol("B", n, m), sp.MatrixSymbol("C", p, p), sp.MatrixSymbol("C_t", p, p)
S_t, W = sp.MatrixSymbol("S_t", m, m), sp.MatrixSymbol("W", p, m)
y, epsilon, prediction = (sp.MatrixSymbol(name, size, 1) for name, size in (("y", p), ("ε", n), ("x̂", p)))

_r_s = rational((1, 0, "1/2"), (0, "1/2", 1))
_r_t = rational(("1/2", "1/3", 0))
_c = rational((2, 1, 0), (1, 2, "1/2"), (0, "1/2", 1))
_s_t = (_r_t * _c * _r_t.T) / 4 + sp.eye(1) * sp.Rational(4, 9)
_w = _c * _r_t.T * _s_t.inv() / 2
EXAMPLE = {
    p: 3, n: 2, m: 1,
    a_s: sp.Rational(3, 4), a_t: _half, sigma_s: sp.Rational(1, 3), sigma_t: sp.Rational(2, 3),
    R_s: _r_s, R_t: _r_t, B: rational(("1/5",), ("1/4",)), C: _c, S_t: _s_t, W: _w, C_t: _c - _w * _s_t * _w.T,
    y: rational((1,), (-1,), (2,)), epsilon: rational((2,), (-3,)), prediction: rational((1,), (0,), ("1/2",)),
    x_t: rational(("3/2",)),
}  # fmt: skip


def second_moments(variant: str | None) -> Proof:
    """Theory (13): mean and covariance of the true reverse step, for any data."""
    D = choose(
        variant, a_s * R_s - B * (a_t * R_t), sum_of_gains=a_s * R_s + B * (a_t * R_t), clean_gain_alone=a_s * R_s
    )
    kept = sigma_s**2 * I_n - sigma_t**2 * B * B.T
    free = Given(example=EXAMPLE)
    gaussian = Given(
        rules=((W * S_t, a_t * C * R_t.T), (R_t * C * R_t.T, a_t**-2 * (S_t - sigma_t**2 * I_m))),
        symmetric=(S_t, C),
        example=EXAMPLE,
    )
    # for Gaussian data C_t = C − W S_t Wᵀ, spelt out so that it cancels against the prediction's spread
    open_covariance = C - W * S_t * W.T
    true_step = choose(
        variant,
        kept + D * open_covariance * D.T,
        prediction_taken_for_the_image=kept,
        missing_transpose=kept + D * open_covariance * D,
    )
    G = B + D * W
    return Proof(
        "second_moments",
        "Let x_0 given x_t have any law of mean x̂ and covariance C_t. The step x_s|x_t ~ N(a_s R_s x̂ + "
        "B (x_t - a_t R_t x̂), σ_s² I - σ_t² B Bᵀ + D C_t Dᵀ) with D = a_s R_s - B a_t R_t  (13) has the mean and the "
        "covariance of the true reverse step of the family (10), for every B. For Gaussian data it is the true step, "
        "so a chain of such steps keeps every marginal, in any number of steps.",
        (
            Step(
                "x_s given x_t and x_0 = x̂ + y is a_s R_s x_0 + B (x_t - a_t R_t x_0) + ε: its mean splits into what "
                "the prediction gives and D y",
                a_s * R_s * (prediction + y) + B * (x_t - a_t * R_t * (prediction + y)),
                a_s * R_s * prediction + B * (x_t - a_t * R_t * prediction) + D * y,
                given=free,
            ),
            Step(
                "Its square about that mean, with y and ε independent and of mean zero, has the mean "
                "D E[y yᵀ] Dᵀ + E[ε εᵀ], for the mixed terms vanish: multiplied out",
                (D * y + epsilon) * (D * y + epsilon).T,
                D * (y * y.T) * D.T + epsilon * epsilon.T + D * y * epsilon.T + epsilon * y.T * D.T,
                given=free,
            ),
            *_two_points(variant),
            Step(
                "Gaussian data: x̂ = W x_t with W S_t = a_t C R_tᵀ, S_t = a_t² R_t C R_tᵀ + σ_t² I (means aside). "
                "Then W a_t R_t C = W S_t Wᵀ, so C_t = C - W S_t Wᵀ is the covariance of x_0 given x_t",
                a_t * C * R_t.T * W.T,
                W * S_t * W.T,
                given=Given(rules=((W * S_t, a_t * C * R_t.T),), symmetric=(S_t, C), example=EXAMPLE),
            ),
            Step(
                "The step takes x_t ~ N(0, S_t) through x_s = G x_t + noise, G = B + D W, to the marginal at s: "
                "a_s² R_s C R_sᵀ + σ_s² I",
                G * S_t * G.T + true_step,
                a_s**2 * R_s * C * R_s.T + sigma_s**2 * I_n,
                given=gaussian,
            ),
            Step(
                "and its covariance with x_t is right as well, G S_t = a_s a_t R_s C R_tᵀ + B σ_t²: the joint law is "
                "the true one",
                G * S_t,
                a_s * a_t * R_s * C * R_t.T + sigma_t**2 * B,
                given=gaussian,
            ),
            *_born(variant),
        ),
        formulas={"D": D, "covariance": kept + D * C_t * D.T} if variant is None else {},
    )


def _two_points(variant: str | None) -> tuple[Step, ...]:
    """A law that is not Gaussian, written out: one value, two points."""
    d, b, s, q = sp.symbols("a_s b a_t q", positive=True)  # of one value: R = 1
    y_1, y_2 = sp.symbols("y_1 y_2", real=True)
    mean = q * y_1 + (1 - q) * y_2
    open_variance = q * (y_1 - mean) ** 2 + (1 - q) * (y_2 - mean) ** 2
    gain = choose(variant, d - b * s, sum_of_gains=d + b * s, clean_gain_alone=d)
    scale = choose(variant, gain**2, prediction_taken_for_the_image=sp.S.Zero, missing_transpose=gain**2)
    x, noise = sp.Symbol("x_t", real=True), sigma_s**2 - sigma_t**2 * b**2

    def step(x_0: sp.Expr) -> sp.Expr:
        return d * x_0 + b * (x - s * x_0)

    centre = q * step(y_1) + (1 - q) * step(y_2)
    return (
        Step(
            "Written out for one value and a law of two points, y_1 with probability q: the mean of the mixture is the"
            " step of the mean",
            centre,
            step(mean),
        ),
        Step(
            "and its variance is σ_s² - σ_t² b² plus D² times the variance of the two points",
            q * (step(y_1) - centre) ** 2 + (1 - q) * (step(y_2) - centre) ** 2 + noise,
            noise + scale * open_variance,
        ),
    )


def _born(variant: str | None) -> tuple[Step, ...]:
    w = sp.MatrixSymbol("w", n, 1)
    D = choose(
        variant, a_s * R_s - B * (a_t * R_t), sum_of_gains=a_s * R_s + B * (a_t * R_t), clean_gain_alone=a_s * R_s
    )
    born = rational((5,), (-4,))  # Bᵀ w = 0 in the example
    added = sigma_s**2 * I_n - sigma_t**2 * B * B.T + D * C_t * D.T
    return (
        Step(
            "Along a mode w that the change destroyed, Bᵀw = 0, the variance is σ_s² + a_s² wᵀ R_s C_t R_sᵀ w: "
            "Subspace Diffusion's born variance is this term",
            w.T * added * w,
            sigma_s**2 * w.T * w + a_s**2 * w.T * R_s * C_t * R_s.T * w,
            given=Given(rules=((B.T * w, sp.ZeroMatrix(m, 1)),), symmetric=(C_t,), example={**EXAMPLE, w: born}),
        ),
    )
