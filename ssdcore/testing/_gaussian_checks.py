"""The checks of a process's Gaussians: their covariances, densities and samples."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ssdcore.gaussian import Covariance, Gaussian
from ssdcore.testing._backend import Backend, norm, to_numpy
from ssdcore.testing._operator_checks import deviation, exact
from ssdcore.testing._process_context import ProcessContext
from ssdcore.testing._report import FALSE_ALARM, Measurement

_NUMPY = Backend(np, "float64")  # determinants, entropies and dense matrices are numpy's float64 on every backend


def _laws(c: ProcessContext, s: int, t: int) -> list[tuple[str, Gaussian]]:
    """The Gaussians of a pair of times, two means each."""
    proc = c.proc
    x_s, x_t, clean_s = (c.random((2, *proc.shape(k))) for k in (s, t, s))
    return [
        (f"transition {s} → {t}", proc.transition(x_s, s, t)),
        (f"posterior {s} ← {t}", proc.posterior(x_t, clean_s, s, t)),
        (f"posterior {s} ← {t}, eta 0.3", proc.posterior(x_t, clean_s, s, t, eta=0.3)),
    ]


def covariance(c: ProcessContext) -> Iterator[Measurement]:
    for s, t in c.dense_pairs:
        for name, g in _laws(c, s, t):
            yield from _one_covariance(c, name, g)


def _one_covariance(c: ProcessContext, name: str, g: Gaussian) -> Iterator[Measurement]:
    law: Covariance = g.covariance
    dense = law.as_matrix()
    n = len(dense)
    unit = math.sqrt(n) * c.wide.rounding(4 * n, n * n)
    eigenvalues = np.linalg.eigvalsh((dense + dense.T) / 2)
    largest = float(np.abs(eigenvalues).max())
    yield deviation(dense, dense.T, unit * largest, f"covariance of the {name}: symmetry")
    yield Measurement(
        max(-float(eigenvalues[0]), 0.0), unit * largest, f"{name}: below zero by the smallest eigenvalue"
    )
    root = c.probe_map(law.root, law.shape)
    yield deviation(root, root.T, unit * math.sqrt(largest), f"{name}: symmetry of the root")
    yield deviation(root @ root, dense, 2 * unit * largest, f"{name}: root² against the covariance")
    x = c.random(law.shape)
    vx = to_numpy(x).ravel()
    rounding = c.backend.rounding(4 * n, n)
    for what, call, matrix in (("covariance", law, dense), ("root", law.root, root)):
        expected = matrix @ vx
        scale = largest if what == "covariance" else math.sqrt(largest)
        tolerance = (rounding + unit) * scale * norm(vx) + c.backend.storing(expected)
        yield deviation(to_numpy(call(x)).ravel(), expected, tolerance, f"{name}: {what} applied to an array")
    noise = c.random(tuple(g.mean.shape))
    expected = to_numpy(g.mean) + (to_numpy(noise).reshape(-1, n) @ root.T).reshape(noise.shape)
    tolerance = (rounding + unit) * (norm(to_numpy(g.mean)) + math.sqrt(largest) * norm(to_numpy(noise)))
    tolerance += 2 * c.backend.storing(expected) + c.backend.storing(to_numpy(g.mean))
    yield deviation(to_numpy(g.sample(noise)), expected, tolerance, f"{name}: sample against mean + root · noise")
    determinant = law.log_determinant()
    lost = largest / max(float(eigenvalues[0]), 0.0) if eigenvalues[0] > 0 else math.inf
    if lost * unit > 0.5:  # singular to rounding: the determinant is −inf or means nothing
        yield exact(
            determinant < n * math.log(largest or 1.0) or largest == 0, f"{name}: log-determinant of a singular"
        )
        return
    yield Measurement(
        abs(determinant - float(np.linalg.slogdet(dense)[1])), 2 * n * unit * lost, f"{name}: log-determinant"
    )
    if 8 / float(eigenvalues[0]) < float(c.backend.xp.finfo(c.backend.dtype).max):
        y = to_numpy(law.solve(x)).ravel()
        tolerance = (rounding + unit) * largest * norm(y) + largest * c.backend.storing(y)
        yield deviation(dense @ y, vx, tolerance, f"{name}: covariance · solve(x) against x")


def densities(c: ProcessContext) -> Iterator[Measurement]:
    proc = c.proc
    for s, t in c.dense_pairs:
        x0 = c.random((2, *proc.shape(0)))
        laws = _laws(c, s, t)
        marginals = {t: proc.marginal(x0, t), s: proc.marginal(x0, s)}
        for k, (name, g) in enumerate([*laws, (f"marginal at {t}", marginals[t])]):
            factor = _regular(c, g)
            if factor is None:
                continue
            yield from _log_prob_and_entropy(c, name, g, factor)
            other = marginals[t if k in (0, 3) else s]
            if _regular(c, other) is not None:
                yield from _divergence(c, f"kl({name} ‖ marginal)", g, other)
                yield from _divergence(c, f"kl(marginal ‖ {name})", other, g)


def _regular(c: ProcessContext, g: Gaussian) -> float | None:
    """The condition number of the covariance, or None if densities mean nothing: it is singular to half the digits."""
    eigenvalues = np.linalg.eigvalsh(g.covariance.as_matrix())
    if eigenvalues[0] <= eigenvalues[-1] * math.sqrt(np.finfo(np.float64).eps):
        return None
    return float(eigenvalues[-1] / eigenvalues[0])


def _log_prob_and_entropy(c: ProcessContext, name: str, g: Gaussian, condition: float) -> Iterator[Measurement]:
    dense = g.covariance.as_matrix()
    n = len(dense)
    determinant = float(np.linalg.slogdet(dense)[1])
    dense_error = 2 * n * math.sqrt(n) * _NUMPY.rounding(4 * n, n * n) * condition
    entropy = 0.5 * (n * math.log(2 * math.pi * math.e) + determinant)
    tolerance = dense_error + _NUMPY.rounding(4, 1) * n
    yield Measurement(abs(g.entropy() - entropy), tolerance, f"entropy of the {name}")
    x = g.sample(c.random(tuple(g.mean.shape)))
    d = (to_numpy(x) - to_numpy(g.mean)).reshape(2, n)
    solved = np.linalg.solve(dense, d.T).T
    quadratic = np.sum(d * solved, axis=-1)
    expected = -0.5 * (quadratic + n * math.log(2 * math.pi) + determinant)
    # rounding of x − mean, of the solve (in every mode relative to its own size and to the largest), and of the sum
    rounding = c.backend.rounding(4 * n, 2)
    inverse_norm = condition / float(np.linalg.norm(dense, 2))
    tolerance = rounding * (
        2 * norm(solved) * (norm(to_numpy(x)) + norm(to_numpy(g.mean)))
        + inverse_norm * norm(d) ** 2
        + norm(quadratic)
        + abs(determinant)
        + 2 * n
    )
    tolerance += dense_error * (1 + norm(quadratic)) + c.backend.storing(expected)
    yield deviation(to_numpy(g.log_prob(x)), expected, tolerance, f"log_prob of the {name}")


def _divergence(c: ProcessContext, name: str, p: Gaussian, q: Gaussian) -> Iterator[Measurement]:
    a, b = p.covariance.as_matrix(), q.covariance.as_matrix()
    n = len(a)
    d = (to_numpy(p.mean) - to_numpy(q.mean)).reshape(2, n)
    solved = np.linalg.solve(b, d.T).T
    trace = float(np.trace(np.linalg.solve(b, a)))
    determinants = float(np.linalg.slogdet(b)[1] - np.linalg.slogdet(a)[1])
    quadratic = np.sum(d * solved, axis=-1)
    expected = 0.5 * (trace - n + determinants + quadratic)
    condition = max(_regular(c, p) or math.inf, _regular(c, q) or math.inf)
    inverse_norm = float(np.linalg.norm(np.linalg.inv(b), 2))
    rounding = c.backend.rounding(4 * n, 2)
    tolerance = rounding * (
        2 * norm(solved) * (norm(to_numpy(p.mean)) + norm(to_numpy(q.mean)))
        + inverse_norm * norm(d) ** 2
        + norm(quadratic)
        + abs(trace)
        + abs(determinants)
        + n
    )
    tolerance += 2 * n * math.sqrt(n) * _NUMPY.rounding(4 * n, n * n) * condition * (1 + abs(trace) + norm(quadratic))
    tolerance += c.backend.storing(expected)
    if float(np.abs(expected).max()) < float(c.backend.xp.finfo(c.backend.dtype).max):
        yield deviation(to_numpy(p.kl(q)), expected, tolerance, name)


SAMPLES = 4096


def sampling(c: ProcessContext) -> Iterator[Measurement]:
    """Empirical moments of posterior samples.

    For N samples of N(μ, Σ) with modes v_i of variance λ_i: vᵢᵀ(mean − μ) is N(0, λ_i/N), the variance along v_i is
    λ_i χ²_N/N, which Laurent and Massart (2000) bound by |χ²_N/N − 1| <= 2√(x/N) + 2x/N but for e^(−x) each side, and
    ‖Σ̂ − Σ‖ <= ‖Σ‖(2a + a²) with a = (√n + √(2 log(2/δ)))/√N (Davidson and Szarek, 2001).

    Power, for n = 24 values and N = 4096: a mode whose variance is a quarter too large, or whose mean is off by 0.16 of
    its standard deviation, is found 99 times in 100.
    """
    proc = c.proc
    pairs = [(s, t) for s, t in c.dense_pairs if s > 0][:2] or c.dense_pairs[:1]
    for s, t in pairs:
        a = c.m(s, t)
        n = a.shape[1]
        variance, ratio = proc.sigma(s) ** 2, (proc.sigma(s) / proc.sigma(t)) ** 2
        law = variance * (np.eye(n) - ratio * a.T @ a)
        x_t, clean_s = c.random(proc.shape(t)), c.random(proc.shape(s))
        mu_s = proc.alpha(s) * to_numpy(clean_s).ravel()
        mean = mu_s + ratio * a.T @ (to_numpy(x_t).ravel() - a @ mu_s)
        drawn = proc.posterior(x_t, clean_s, s, t).sample(c.random((SAMPLES, *proc.shape(s))))
        centred = to_numpy(drawn).reshape(SAMPLES, n) - mean
        values, modes = np.linalg.eigh(law)
        values = np.maximum(values, 0.0)
        # every number of a sample is off by rounding, of the mean above all
        per_mode = c.rounding(s, t, n) * (norm(mean) + math.sqrt(variance * n)) + c.backend.storing(mean)
        quantile = math.sqrt(2 * math.log(2 * n / FALSE_ALARM))
        along = centred @ modes
        worst = int(np.argmax(np.abs(along.mean(axis=0)) / (np.sqrt(values / SAMPLES) * quantile + per_mode + 1e-300)))
        yield Measurement(
            abs(float(along.mean(axis=0)[worst])),
            float(np.sqrt(values[worst] / SAMPLES)) * quantile + per_mode,
            f"mean of {SAMPLES} posterior samples {s} ← {t}, along the worst mode",
        )
        x = math.log(2 * n / FALSE_ALARM)
        spread = 2 * math.sqrt(x / SAMPLES) + 2 * x / SAMPLES
        empirical = np.mean(along**2, axis=0)
        slack = values * spread + 2 * np.sqrt(values * (1 + spread)) * per_mode + per_mode**2
        worst = int(np.argmax(np.abs(empirical - values) / (slack + 1e-300)))
        yield Measurement(
            abs(float(empirical[worst] - values[worst])),
            float(slack[worst]),
            f"variance of posterior samples {s} ← {t}, along the worst mode",
        )
        edge = (math.sqrt(n) + math.sqrt(2 * math.log(2 / FALSE_ALARM))) / math.sqrt(SAMPLES)
        largest = float(values[-1])
        tolerance = largest * (2 * edge + edge**2) + 2 * math.sqrt(largest * n) * per_mode + n * per_mode**2
        difference = float(np.linalg.norm(centred.T @ centred / SAMPLES - law, 2))
        yield Measurement(difference, tolerance, f"covariance of posterior samples {s} ← {t}, spectral norm")
