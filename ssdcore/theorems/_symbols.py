"""The symbols and exact examples that the proofs share, for any pair of times s < t.

n and m are the numbers of values at s and t, r the rank of M; every size is general.
"""

from __future__ import annotations

from typing import Any

import sympy as sp

n, m, r = sp.symbols("n m r", integer=True, positive=True)
sigma_s, sigma_t = sp.symbols("σ_s σ_t", positive=True)
rho = sigma_s**2 / sigma_t**2

M = sp.MatrixSymbol("M", m, n)  # M_{s→t}
S = sp.MatrixSymbol("Σ_s", n, n)
T = sp.MatrixSymbol("Σ_t", m, m)
Q = sp.MatrixSymbol("Σ_t|s", m, m)
mu_s = sp.MatrixSymbol("μ_s", n, 1)  # M_{1:s} x_0
x_s = sp.MatrixSymbol("x_s", n, 1)
x_t = sp.MatrixSymbol("x_t", m, 1)
I_n, I_m, I_r = sp.Identity(n), sp.Identity(m), sp.Identity(r)

# The thin singular value decomposition M = U D Vᵀ: D diagonal with the positive singular values.
U = sp.MatrixSymbol("U", m, r)
D = sp.MatrixSymbol("D", r, r)
V = sp.MatrixSymbol("V", n, r)


def rational(*rows: Any) -> sp.ImmutableMatrix:
    """An explicit matrix of exact numbers, given as rows; entries may be strings such as "1/2"."""
    return sp.ImmutableMatrix([[sp.Rational(entry) for entry in row] for row in rows])


_m = rational(("1/2", 1, 0), (0, "1/3", -1))
_s = rational((2, 1, 0), (1, 2, "1/2"), (0, "1/2", 1))
_q = rational((1, "1/4"), ("1/4", "1/2"))

# Three values at s, two at t, no covariance diagonal.
LINEAR_GAUSSIAN: dict[Any, Any] = {
    n: 3,
    m: 2,
    M: _m,
    S: _s,
    Q: _q,
    T: _m * _s * _m.T + _q,
    mu_s: rational((1,), (-2,), ("1/2",)),
    x_s: rational((0,), (3,), (1,)),
    x_t: rational((2,), ("-1/3",)),
}

_u = rational(("3/5", "-4/5"), ("4/5", "3/5"))
_d = rational(("4/5", 0), (0, "20/39"))
_v = rational(("2/3", "-2/3"), ("2/3", "1/3"), ("1/3", "2/3"))

# Three values at s, two at t, singular values 4/5 and 20/39, one mode of s destroyed; (4) holds.
ISOTROPIC: dict[Any, Any] = {
    **{key: LINEAR_GAUSSIAN[key] for key in (n, m, mu_s, x_s, x_t)},
    r: 2,
    sigma_s: sp.Rational(1, 2),
    sigma_t: sp.Rational(2, 3),
    U: _u,
    D: _d,
    V: _v,
    M: _u * _d * _v.T,
    Q: sp.Rational(4, 9) * sp.eye(2) - sp.Rational(1, 4) * _u * _d * _d * _u.T,
}
