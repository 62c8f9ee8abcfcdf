"""Proved formulas against the library: each is turned into a function of numbers and evaluated on random instances.

A proof is of symbols; this is what ties it to the code. The formulas are the very expressions that stand in the proofs'
steps (`Proof` checks its `formulas`), of general size; what they are compared with is what the library returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy as sp

from ssdcore.conditioning import general_posterior, general_transition
from ssdcore.gaussian import Covariance
from ssdcore.multistep import extrapolated
from ssdcore.operators import LinearOperator, Matrix, Resize, Separable
from ssdcore.process import LinearDiffusion
from ssdcore.schedules import NoiseSchedule, ResolutionSchedule

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Comparison:
    """A formula's value against the library's on one instance, relative to the largest entry.

    Attributes:
        what: the formula, and the instance
        deviation: the largest difference
        tolerance: what rounding explains
    """

    what: str
    deviation: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        return self.deviation <= self.tolerance  # False for NaN


def evaluate(formula: Any, values: Mapping[str, Any]) -> np.ndarray:
    """The formula as a function of numbers, applied to values by symbol name: matrices (r, c), columns (r, 1), numbers.

    Raises:
        KeyError: For a symbol without a value.
    """
    sizes = {s: sp.Integer(values[s.name]) for s in formula.free_symbols if getattr(s, "is_integer", False)}
    sized = formula.xreplace(sizes)  # numpy's printer wants identities of a known size
    symbols = sorted(sized.free_symbols, key=str)
    plain = {
        symbol: sp.MatrixSymbol(f"A{i}", *symbol.shape) if isinstance(symbol, sp.MatrixSymbol) else sp.Symbol(f"x{i}")
        for i, symbol in enumerate(symbols)
    }
    function = sp.lambdify([plain[symbol] for symbol in symbols], sized.xreplace(plain), "numpy")
    return np.asarray(function(*(values[symbol.name] for symbol in symbols)), dtype=np.float64)


def comparisons(name: str, formulas: Mapping[str, Any], seed: int) -> tuple[Comparison, ...]:
    """The comparisons of one theorem on the instance that `seed` draws."""
    rng = np.random.default_rng([seed, *name.encode()])
    result = []
    for formula, instance, values, got, condition in _INSTANCES[name](rng):
        want = evaluate(formulas[formula], values)
        found = np.asarray(got, dtype=np.float64).reshape(want.shape)
        scale = max(float(np.abs(want).max(initial=0.0)), float(np.abs(found).max(initial=0.0)), 1e-3)
        deviation = float(np.abs(found - want).max(initial=0.0)) / scale
        size = max(want.size, *(np.size(v) for v in values.values()))
        result.append(Comparison(f"{formula}: {instance}", deviation, 64 * size * condition * _EPS))
    return tuple(result)


# (formula, instance in words, values of its symbols, the library's value, condition number)
_Row = tuple[str, str, Mapping[str, Any], Any, float]


def _positive(rng: np.random.Generator, n: int) -> np.ndarray:
    factor = rng.standard_normal((n, n + 2))
    return factor @ factor.T / n + 0.2 * np.eye(n)


def _operator(rng: np.random.Generator) -> LinearOperator:
    """An operator of any kind, of either sign, to fewer, equal or more values."""
    kind = rng.integers(4)
    n, m = (int(k) for k in rng.integers(1, 6, 2))
    if kind == 0:
        op: LinearOperator = Matrix(rng.standard_normal((m, n)) / math.sqrt(n))
    elif kind == 1:
        op = Separable([rng.standard_normal((m, n)), rng.standard_normal((2, 3)) / 3])
    elif kind == 2:
        op = Resize((n + 2, 3), (max(1, (n + 2) // 2), 2), str(rng.choice(["box", "bilinear", "bicubic", "lanczos3"])))
    else:
        op = Matrix(rng.standard_normal((m, n))) @ Separable([rng.standard_normal((n, m)) / math.sqrt(n)])
    return float(rng.choice([-0.7, 1.0])) * op


def _pair(rng: np.random.Generator, op: LinearOperator) -> LinearDiffusion:
    """A process of two steps, the second of them `op`, whose noise suffices."""
    alpha_s, ratio, sigma_s = rng.uniform(0.5, 1.0), rng.uniform(0.3, 1.0), rng.uniform(0.2, 0.8)
    sigma_t = sigma_s * ratio * op.norm() * rng.uniform(1.05, 2.0) + 0.05
    noise = NoiseSchedule(np.array([1.0, alpha_s, alpha_s * ratio]), np.array([0.0, sigma_s, sigma_t]))
    return LinearDiffusion.from_operators([None, op], noise)


def _symbols_of(proc: LinearDiffusion, op: LinearOperator) -> dict[str, Any]:
    m, n = math.prod(op.out_shape), math.prod(op.in_shape)
    ratio = proc.alpha(2) / proc.alpha(1)
    return {"n": n, "m": m, "σ_s": proc.sigma(1), "σ_t": proc.sigma(2), "M": ratio * op.as_matrix()}


def _named(op: LinearOperator) -> str:
    return f"{type(op).__name__} {op.in_shape} to {op.out_shape}"


def _forward_transition(rng: np.random.Generator) -> Iterator[_Row]:
    op = _operator(rng)
    m, n = math.prod(op.out_shape), math.prod(op.in_shape)
    matrix, sigma_s = op.as_matrix(), _positive(rng, n)
    sigma_t = matrix @ sigma_s @ matrix.T + _positive(rng, m)
    laws = Covariance.dense(sigma_s, op.in_shape), Covariance.dense((sigma_t + sigma_t.T) / 2, op.out_shape)
    got = general_transition(np.zeros(op.in_shape), op, *laws).covariance.as_matrix()
    yield "covariance", _named(op), {"M": matrix, "Σ_s": sigma_s, "Σ_t": sigma_t, "n": n, "m": m}, got, n
    proc = _pair(rng, op)
    got = proc.transition(np.zeros(op.in_shape), 1, 2).covariance.as_matrix()
    yield "isotropic covariance", _named(op), _symbols_of(proc, op), got, n


def _general(rng: np.random.Generator) -> tuple[LinearOperator, dict[str, Any], Any, float]:
    op = _operator(rng)
    m, n = math.prod(op.out_shape), math.prod(op.in_shape)
    matrix, sigma_s, noise = op.as_matrix(), _positive(rng, n), _positive(rng, m)
    sigma_t = matrix @ sigma_s @ matrix.T + noise
    sigma_t = (sigma_t + sigma_t.T) / 2
    mean, x = rng.standard_normal((n, 1)), rng.standard_normal((m, 1))
    laws = Covariance.dense(sigma_s, op.in_shape), Covariance.dense(sigma_t, op.out_shape)
    law = general_posterior(x.reshape(op.out_shape), mean.reshape(op.in_shape), op, *laws)
    values = {"M": matrix, "Σ_s": sigma_s, "Σ_t": sigma_t, "Σ_t|s": noise, "μ_s": mean, "x_t": x, "n": n, "m": m}
    condition = max(float(np.linalg.cond(a)) for a in (sigma_s, sigma_t, noise))
    return op, values, law, condition


def _posterior(rng: np.random.Generator) -> Iterator[_Row]:
    op, values, law, condition = _general(rng)
    yield "covariance", _named(op), values, law.covariance.as_matrix(), condition
    yield "mean", _named(op), values, law.mean, condition


def _forms_agree(rng: np.random.Generator) -> Iterator[_Row]:
    op, values, law, condition = _general(rng)
    yield "precision", _named(op), values, np.linalg.inv(law.covariance.as_matrix()), condition**2
    yield "covariance", _named(op), values, law.covariance.as_matrix(), condition
    yield "mean", _named(op), values, law.mean, condition


def _isotropic(rng: np.random.Generator) -> Iterator[_Row]:
    op = _operator(rng)
    proc = _pair(rng, op)
    values = _symbols_of(proc, op)
    clean, x = rng.standard_normal(op.in_shape), rng.standard_normal(op.out_shape)
    values |= {"μ_s": proc.alpha(1) * clean.reshape(-1, 1), "x_t": x.reshape(-1, 1)}
    law = proc.posterior(x, clean, 1, 2)
    yield "covariance", _named(op), values, law.covariance.as_matrix(), values["n"]
    yield "mean", _named(op), values, law.mean, values["n"]


def _ddpm(rng: np.random.Generator) -> Iterator[_Row]:
    steps = int(rng.integers(30, 1000))
    s, t = sorted(int(k) for k in rng.choice(np.arange(1, steps + 1), 2, replace=False))
    proc = LinearDiffusion.identity((1,), NoiseSchedule.linear(steps))
    squares = proc.alpha(s) ** 2, proc.alpha(t) ** 2
    values = {"ᾱ_s": squares[0], "α_t": squares[1] / squares[0]}
    one, zero, where = np.ones(1), np.zeros(1), f"{s} from {t} of {steps}"
    lost = 64 / (1 - values["α_t"])  # β_t is a difference
    yield "variance", where, values, proc.posterior(zero, zero, s, t).covariance(one)[0], lost
    yield "weight of x_0", where, values, proc.posterior(zero, one, s, t).mean[0], lost
    yield "weight of x_t", where, values, proc.posterior(one, zero, s, t).mean[0], lost


def _blurring(rng: np.random.Generator) -> Iterator[_Row]:
    n = int(rng.integers(2, 9))
    widths = np.concatenate([[0.0], np.sort(rng.uniform(0, 1.5, 2))])
    noise = NoiseSchedule.from_log_snr(np.sort(rng.uniform(-3, 3, 2))[::-1])
    proc = LinearDiffusion.blur((n,), noise, widths)
    clean, x = rng.standard_normal(n), rng.standard_normal(n)
    law = proc.posterior(x, clean, 1, 2)
    angle = np.pi * np.arange(n) / n
    modes = np.cos(angle * (np.arange(n)[:, None] + 0.5))
    modes = modes / np.linalg.norm(modes, axis=0)
    ratio = proc.alpha(2) / proc.alpha(1)
    variances = np.diag(modes.T @ law.covariance.as_matrix() @ modes)
    means, coefficients = modes.T @ law.mean, (proc.alpha(1) * modes.T @ clean, modes.T @ x)
    for k in range(n):
        values = {
            "σ_s": proc.sigma(1), "σ_t": proc.sigma(2),
            "e": ratio * math.exp(-0.5 * (widths[2] ** 2 - widths[1] ** 2) * angle[k] ** 2),
            "u_s": coefficients[0][k], "u_t": coefficients[1][k],
        }  # fmt: skip
        yield "variance of a frequency", f"{k} of {n}", values, variances[k], 16 * n
        yield "mean of a frequency", f"{k} of {n}", values, means[k], 16 * n


def _resized(rng: np.random.Generator) -> tuple[LinearDiffusion, NoiseSchedule]:
    """Two changes, at 3 and 5 of 6 steps."""
    shape = tuple(int(k) for k in rng.integers(5, 10, int(rng.integers(1, 3))))
    noise = NoiseSchedule.from_log_snr(np.sort(rng.uniform(-4, 6, 6))[::-1])
    kernel = str(rng.choice(["box", "bilinear", "bicubic", "lanczos3"]))
    levels = ResolutionSchedule.thresholds([3, 5])
    return LinearDiffusion.resize(shape, noise, levels, kernel=kernel), noise


def _matched(rng: np.random.Generator) -> Iterator[_Row]:
    proc, noise = _resized(rng)
    base = np.concatenate([[0.0], noise.sigma[1:] / noise.alpha[1:]])
    norms = [proc.degradation(t - 1, t).norm() * proc.alpha(t - 1) / proc.alpha(t) for t in (3, 5)]
    for s, t in ((1, 2), (2, 3), (2, 6), (3, 5)):
        changed = math.prod(norm for norm, at in zip(norms, (3, 5)) if s < at <= t)
        norm = proc.degradation(s, t).norm() * proc.alpha(s) / proc.alpha(t)
        values = {
            "a_s": proc.alpha(s), "a_t": proc.alpha(t), "b_s": base[s], "g": base[t] - base[s], "‖R‖": norm,
            "κ_s": math.prod(x for x, at in zip(norms, (3, 5)) if at <= s), "h": changed - norm,
        }  # fmt: skip
        got = proc.sigma(t) ** 2 - proc.sigma(s) ** 2 * proc.degradation(s, t).norm() ** 2
        yield "margin", f"{proc.shapes}, {s} to {t}", values, got, 256


def _continuous(rng: np.random.Generator) -> Iterator[_Row]:
    proc, noise = _resized(rng)
    base = np.concatenate([[0.0], noise.sigma[1:] / noise.alpha[1:]])
    kappa = 1.0
    for t in (3, 5):
        ratio = proc.alpha(t) / proc.alpha(t - 1)
        matrix = proc.degradation(t - 1, t).as_matrix() / ratio
        u, d, _ = np.linalg.svd(matrix, full_matrices=False)
        values = {
            "a_s": proc.alpha(t - 1), "a_t": proc.alpha(t), "b_s": base[t - 1], "b_t": base[t], "κ_s": kappa,
            "‖R‖": d[0],
        }  # fmt: skip
        where = f"{proc.shapes}, change at {t}"
        yield "ratio before", where, values, proc.sigma(t - 1) / proc.alpha(t - 1), 64
        yield "ratio after", where, values, proc.sigma(t) / (proc.alpha(t) * d[0]), 64
        law = proc.transition(np.zeros(proc.shape(t - 1)), t - 1, t).covariance.as_matrix()
        yield "added variance", where, values, u[:, 0] @ law @ u[:, 0], 256 * len(law)
        kappa *= d[0]


def _gain(proc: LinearDiffusion, op: LinearOperator, eta: float) -> np.ndarray:
    """B as the library applies it: the posterior's mean of each unit vector, clean image zero."""
    m, n = math.prod(op.out_shape), math.prod(op.in_shape)
    units = np.eye(m).reshape(m, *op.out_shape)
    return proc.posterior(units, np.zeros((m, *op.in_shape)), 1, 2, eta=eta).mean.reshape(m, n).T


def _family(rng: np.random.Generator) -> Iterator[_Row]:
    op = _operator(rng)
    proc = _pair(rng, op)
    for eta in (0.0, float(rng.uniform(0.1, 0.9)), 1.0):
        values = {**_symbols_of(proc, op), "B": _gain(proc, op, eta)}
        law = proc.posterior(np.zeros(op.out_shape), np.zeros(op.in_shape), 1, 2, eta=eta)
        yield "covariance", f"{_named(op)}, η = {eta:.3g}", values, law.covariance.as_matrix(), 8 * values["n"]


def _deterministic(rng: np.random.Generator) -> Iterator[_Row]:
    op = _operator(rng)
    proc = _pair(rng, op)
    values = _symbols_of(proc, op)
    u, d, vt = np.linalg.svd(values["M"], full_matrices=False)
    kept = d > 1e-9 * d[0]
    values |= {"U": u[:, kept], "V": vt[kept].T, "r": int(kept.sum())}
    condition = float(d[0] / d[kept][-1])
    yield "deterministic gain", _named(op), values, _gain(proc, op, 0.0), values["n"] * condition
    eta = float(rng.uniform(0.1, 0.9))
    law = proc.posterior(np.zeros(op.out_shape), np.zeros(op.in_shape), 1, 2, eta=eta).covariance.as_matrix()
    for value, v in zip(d[kept], vt[kept]):
        mode = {**values, "η": eta, "d": value}
        yield "variance of a mode", f"{_named(op)}, η = {eta:.3g}", mode, v @ law @ v, values["n"] * condition


def _multistep(rng: np.random.Generator) -> Iterator[_Row]:
    """Weights of the mode that a change keeps best, read off the extrapolation of that mode."""
    high, low = (int(rng.integers(5, 10)),), (3,)
    half = np.cumsum(np.concatenate([[-2.0], rng.uniform(0.8, 1.2, 4)]))[::-1]
    noise = NoiseSchedule.from_log_snr(2 * half)
    levels = ResolutionSchedule.thresholds([3])
    kernel = str(rng.choice(["box", "bilinear", "bicubic", "lanczos3"]))
    proc = LinearDiffusion.resize(high, noise, levels, sizes=[high, low], kernel=kernel)
    lam = [math.inf, *(math.log(proc.alpha(t) / proc.sigma(t)) for t in range(1, 6))]
    _, d, vt = np.linalg.svd(proc.degradation(2, 3).as_matrix() * proc.alpha(2) / proc.alpha(3))
    mode = vt[0]
    where = f"{kernel} {high} to {low}"

    def weight(s: int, t: int, u: int, now: np.ndarray, before: np.ndarray) -> float:
        return float(extrapolated(proc, s, t, u, now, before) @ now) - 1.0

    def values(s: int, t: int, u: int, r: float) -> dict[str, float]:
        return {"λ_s": lam[s], "λ_t": lam[t], "λ_u": lam[u], "r": r}

    unit = np.eye(3)[0]
    yield "weight at a change", "no change", values(3, 4, 5, 1.0), weight(3, 4, 5, unit, np.zeros(3)), 256
    yield "weight at a change", where, values(2, 3, 4, d[0]), weight(2, 3, 4, mode, np.zeros(3)), 256
    yield "weight after a change", where, values(1, 2, 3, d[0]), weight(1, 2, 3, mode, np.zeros(high)), 256


def _second_moments(rng: np.random.Generator) -> Iterator[_Row]:
    op = _operator(rng)
    proc = _pair(rng, op)
    n = math.prod(op.in_shape)
    eta = float(rng.choice([0.0, 0.5, 1.0]))
    # the clean image that is predicted is the one at s: R_s is the identity
    values = {**_symbols_of(proc, op), "a_s": proc.alpha(1), "a_t": proc.alpha(2), "R_s": np.eye(n), "p": n}
    values |= {"R_t": op.as_matrix(), "B": _gain(proc, op, eta)}
    units = np.eye(n).reshape(n, *op.in_shape)
    got = proc.posterior(np.zeros((n, *op.out_shape)), units, 1, 2, eta=eta).mean.reshape(n, n).T
    yield "D", f"{_named(op)}, η = {eta}", values, got, n
    values["C_t"] = _positive(rng, n)
    left_open = Covariance.dense(values["C_t"], op.in_shape)
    x, clean = np.zeros(op.out_shape), np.zeros(op.in_shape)
    law = proc.posterior(x, clean, 1, 2, eta=eta, clean_covariance=left_open)
    yield "covariance", f"{_named(op)}, η = {eta}", values, law.covariance.as_matrix(), 4 * n


_INSTANCES: Mapping[str, Callable[[np.random.Generator], Iterator[_Row]]] = {
    "forward_transition": _forward_transition,
    "posterior": _posterior,
    "posterior_forms_agree": _forms_agree,
    "isotropic_posterior": _isotropic,
    "ddpm": _ddpm,
    "blurring_diffusion": _blurring,
    "scale_matched_admissible": _matched,
    "same_marginal_family": _family,
    "deterministic_end": _deterministic,
    "scale_matched_continuous": _continuous,
    "multistep_order": _multistep,
    "second_moments": _second_moments,
}
