"""Scale-matched noise is admissible, and needs the exact operator norms."""

from __future__ import annotations

import math
from fractions import Fraction

import sympy as sp

from ._engine import Given, Proof, Step, choose
from ._symbols import rational


def scale_matched_admissible(variant: str | None) -> Proof:
    """Condition (4) for σ_t/a_t = base(t) κ(t), κ the product of the norms of the size changes."""
    a_s, a_t, base_s, kappa_s, norm = sp.symbols("a_s a_t b_s κ_s ‖R‖", positive=True)
    growth, loss = sp.symbols("g h", nonnegative=True)
    base_t = choose(variant, base_s + growth, base_falls=base_s - growth)
    norms = norm + loss
    kappa_t = kappa_s * choose(variant, norms, norms_squared=norms**2, norms_inverted=1 / norms)
    margin = (a_t * base_t * kappa_t) ** 2 - (a_s * base_s * kappa_s) ** 2 * (a_t / a_s * norm) ** 2
    ratio = sp.Symbol("ν", positive=True)
    amplitude = 1 / sp.sqrt(1 + ratio**2)
    steps = [
        *_submultiplicative_steps(),
        Step(
            "For s < t put base(t) = b_s + g, g >= 0, and Π ‖R_change‖ = ‖R‖ + h, h >= 0, R = R_s→t. With M"
            " = (a_t/a_s) R the margin of (4), σ_t² - σ_s² ‖M‖², is free of a_s",
            margin,
            a_t**2 * kappa_s**2 * ((base_s + growth) ** 2 * (norm + loss) ** 2 - base_s**2 * norm**2),
        ),
        Step("and it is non-negative", margin, 0, ">="),
        Step(
            "Back to a² + σ² = 1 with the same ratio ν = σ/a: a = 1/√(1 + ν²), σ = ν a",
            amplitude**2 + (ratio * amplitude) ** 2,
            1,
        ),
        *_small_resize_steps(variant),
    ]
    return Proof(
        "scale_matched_admissible",
        "Scale-matched noise, σ_t/a_t = base(t) κ(t) with κ(t) the product of ‖R_change‖ over the size "
        "changes before t and base growing, satisfies σ_t² >= σ_s² ‖M_s→t‖², the condition (4), for every s"
        " < t. The norms must be exact: κ = 1/2 a level breaks (4) at the antialiased bilinear resize 8 x 8"
        " -> 4 x 4.",
        tuple(steps),
        {"margin": margin},
    )


def scale_matched_continuous(variant: str | None) -> Proof:
    """What matched noise is for: the mode that a change keeps best does not notice it."""
    m_, n_ = sp.symbols("m n", integer=True, positive=True)
    R, u, v = sp.MatrixSymbol("R", m_, n_), sp.MatrixSymbol("u", m_, 1), sp.MatrixSymbol("v", n_, 1)
    x_0 = sp.MatrixSymbol("R_s x_0", n_, 1)
    norm, a_s, a_t, base_s, base_t, kappa_s = sp.symbols("‖R‖ a_s a_t b_s b_t κ_s", positive=True)
    growth = sp.Symbol("g", nonnegative=True)
    factor = choose(variant, norm, paper_s_noise=sp.S.One, norm_squared=norm**2, norm_inverted=1 / norm)
    kappa_t = kappa_s * factor
    one = sp.Identity(1)
    pair = Given(
        rules=((R.T * u, norm * v), (u.T * u, one)),
        example={
            m_: 1, n_: 2, R: rational((3, 4)), u: rational((1,)), v: rational(("3/5",), ("4/5",)), norm: sp.S(5),
            x_0: rational((1,), (2,)), a_t: sp.Rational(1, 3), a_s: sp.Rational(1, 2), base_s: sp.Rational(1, 5),
            base_t: sp.Rational(1, 4), kappa_s: sp.Rational(2, 3),
        },
    )  # fmt: skip
    before = kappa_s * base_s
    sigma_s, sigma_t = a_s * base_s * kappa_s, a_t * base_t * kappa_t
    after = sigma_t / (a_t * norm)
    added = sigma_t**2 - sigma_s**2 * (a_t / a_s * norm) ** 2
    unknown = sp.Symbol("f", positive=True)
    return Proof(
        "scale_matched_continuous",
        "Let a change R have the top singular pair Rᵀu = ‖R‖ v. With scale-matched noise, σ_t/a_t = base(t) κ(t), "
        "κ_t = κ_s ‖R‖, the noise-to-signal ratio of this mode is base(t) κ_s after the change and base(s) κ_s before "
        "it: it follows the base alone, as if nothing had changed, and the transition adds it no noise but what the "
        "base's growth adds. No other factor than ‖R‖ does: with the paper's noise, κ_t = κ_s, the ratio jumps by "
        "1/‖R‖.",
        (
            Step(
                "The mode as x_t sees it: uᵀ a_t R R_s x_0 is ‖R‖ a_t times the coefficient vᵀ R_s x_0 of x_s",
                a_t * u.T * R * x_0,
                a_t * norm * v.T * x_0,
                given=Given(rules=(pair.rules[0],), example=pair.example),
            ),
            Step(
                "The noise along u is σ_t: its variance is σ_t² uᵀu = σ_t²",
                sigma_t**2 * u.T * u,
                sigma_t**2 * one,
                given=Given(rules=(pair.rules[1],), example=pair.example),
            ),
            Step("Before the change the mode's noise-to-signal ratio is σ_s/a_s = base(s) κ_s", sigma_s / a_s, before),
            Step("After it σ_t/(a_t ‖R‖) = base(t) κ_s", after, kappa_s * base_t),
            Step("so it grows as the base does, whatever the change", after / before, base_t / base_s),
            Step("and is continuous where the base is", after.subs(base_t, base_s), before),
            Step(
                "The transition adds the mode the variance σ_t² - σ_s² m², m = (a_t/a_s) ‖R‖: the base's growth",
                added,
                a_t**2 * kappa_s**2 * norm**2 * (base_t**2 - base_s**2),
            ),
            Step(
                "none at all where the base stands still, and never less: with base(t) = base(s) + g, g >= 0",
                added.subs(base_t, base_s + growth),
                0,
                ">=",
            ),
            Step(
                "With another factor f the ratio jumps by f/‖R‖, which is 1 for f = ‖R‖ alone",
                (a_t * base_s * kappa_s * unknown / (a_t * norm)) / before,
                unknown / norm,
            ),
        ),
        formulas={"ratio after": after, "ratio before": before, "added variance": added},
    )


def _submultiplicative_steps() -> list[Step]:
    p, q, size = sp.symbols("p q n", integer=True, positive=True)
    A, B = sp.MatrixSymbol("A", p, q), sp.MatrixSymbol("B", q, size)
    x = sp.MatrixSymbol("x", size, 1)
    norm_a, norm_b = sp.symbols("‖A‖ ‖B‖", positive=True)
    slack_a, slack_b = sp.symbols("d_A d_B", nonnegative=True)
    given = Given(
        example={
            p: 1,
            q: 2,
            size: 3,
            A: rational((3, 4)),
            B: rational((1, 2, 0), (0, 1, -1)),
            x: rational((1,), (-1,), (2,)),
            norm_a: sp.S(5),
            norm_b: sp.sqrt(6),
        }
    )
    return [
        Step(
            "Norms of a product: ‖A‖²‖B‖² ‖x‖² - ‖ABx‖² splits into the two slacks of the norms' definition",
            norm_a**2 * norm_b**2 * x.T * x - (A * B * x).T * (A * B * x),
            norm_a**2 * (norm_b**2 * x.T * x - (B * x).T * (B * x))
            + (norm_a**2 * (B * x).T * (B * x) - (A * (B * x)).T * (A * (B * x))),
            given=given,
        ),
        Step(
            "each of them >= 0, so ‖AB‖ <= ‖A‖ ‖B‖ and, by induction, ‖R_s→t‖ <= Π ‖R_change‖ over the changes between",
            norm_a**2 * slack_b + slack_a,
            0,
            ">=",
        ),
    ]


def _antialiased_bilinear(size: int, target: int) -> sp.ImmutableMatrix:
    """The half-pixel resize matrix with a triangle kernel two scales wide and rows of sum 1, exactly."""
    scale = sp.Rational(size, target)
    rows = []
    for i in range(target):
        centre = scale * (i + sp.Rational(1, 2))
        weights = [sp.Max(0, 1 - abs(j + sp.Rational(1, 2) - centre) / scale) for j in range(size)]
        rows.append([weight / sum(weights) for weight in weights])
    return sp.ImmutableMatrix(rows)


def _base_growth(step: int) -> tuple[sp.Rational, sp.Rational]:
    """(base(t)/base(t-1))² at t = step, from below and above to twelve digits: linear β from 1e-4 to 0.02, T = 1000.

    base² = (1 - ᾱ)/ᾱ, computed exactly; the exact fraction has thousands of digits.
    """
    betas = [Fraction(1, 10_000) + Fraction(i, 999) * Fraction(199, 10_000) for i in range(step)]
    kept = math.prod(1 - beta for beta in betas[:-1])
    growth = (1 / (kept * (1 - betas[-1])) - 1) / (1 / kept - 1)
    scale = 10**12
    below = math.floor(growth * scale)
    return sp.Rational(below, scale), sp.Rational(below + 1, scale)


def _small_resize_steps(variant: str | None) -> list[Step]:
    resize = _antialiased_bilinear(8, 4)
    gram = resize * resize.T
    x = sp.Symbol("x")
    roots = [
        (centre + sign * width) / 3136
        for centre, width in ((1245, 13 * sp.sqrt(673)), (951, sp.sqrt(183121)))
        for sign in (1, -1)
    ]
    largest = roots[0]
    m_1, m_2, m_3, m_4 = sp.symbols("a_1:5")
    first, second = sp.Matrix([[m_1, m_2]]), sp.Matrix([[m_3], [m_4]])
    y, z = sp.Matrix(sp.symbols("y_1 y_2")), sp.Matrix([sp.Symbol("z")])
    growth_below, growth_above = _base_growth(751)
    kappa = choose(variant, largest, kappa_half=sp.Rational(1, 2))
    return [
        Step(
            "Two axes: (A ⊗ B)(y ⊗ z) = (A y) ⊗ (B z), here written out, so singular values multiply and a "
            "square resize's norm is the square of one axis's",
            sp.kronecker_product(first, second) * sp.kronecker_product(y, z),
            sp.kronecker_product(first * y, second * z),
        ),
        Step("The rows of the exact 8 -> 4 matrix sum to 1", resize * sp.ones(8, 1), sp.ones(4, 1)),
        Step(
            "Its Gram matrix R Rᵀ has these four eigenvalues (characteristic polynomial)",
            gram.charpoly(x).as_expr(),
            sp.expand(sp.prod(x - root for root in roots)),
        ),
        *(
            Step(f"The largest of them is ‖R‖²: above eigenvalue {i}", largest, root, ">")
            for i, root in enumerate(roots[1:], start=2)
        ),
        Step("‖R‖² is above 1/2 on an axis", largest, sp.Rational(1, 2), ">"),
        Step("so above 1/4 in two dimensions", largest**2, sp.Rational(1, 4), ">"),
        Step(
            "Linear β (1e-4 to 0.02, T = 1000) and four equal levels from 32 x 32: the change to 4 x 4 is "
            "at t = 751, where base² grows by less than the factor 4 ‖R‖² that κ = 1/2 would need, so that "
            "choice breaks (4)",
            4 * largest**2,
            growth_above,
            ">",
        ),
        Step(
            "With κ's factor there equal to the exact norm (the square of one axis's), the margin of (4) in"
            " units of a_t² κ_s² b_s² is positive: (b_t/b_s)² factor² > ‖R‖²",
            growth_below * kappa**2,
            largest**2,
            ">",
        ),
    ]
