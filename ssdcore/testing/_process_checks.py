"""The checks that a process must pass: its theorems against brute force, and its manners as a library object."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ssdcore._arrays import computing_dtype, namespace_of
from ssdcore.gaussian import Covariance, Gaussian
from ssdcore.process import InadmissibleProcess
from ssdcore.schedules import NoiseSchedule
from ssdcore.testing._backend import Backend, norm, same_device, to_numpy
from ssdcore.testing._gaussian_checks import covariance, densities, sampling
from ssdcore.testing._operator_checks import deviation, exact, raises, read_only, unchanged_generators
from ssdcore.testing._process_context import ProcessContext
from ssdcore.testing._report import Check, Measurement, Skipped


def _spectral_norm(a: np.ndarray) -> float:
    return float(np.linalg.norm(a, 2))


def clean(c: ProcessContext) -> Iterator[Measurement]:
    proc = c.proc
    x0 = c.random((2, *proc.shape(0)))
    yield exact(bool((to_numpy(proc.clean(x0, 0)) == to_numpy(x0)).all()), "clean(x0, 0) is x0")
    yield exact(proc.alpha(0) == 1.0 and proc.sigma(0) == 0.0, "at t = 0 alpha is 1 and sigma 0")
    for s, t in c.pairs:
        x = c.random(proc.shape(0))
        at_s, at_t, m = to_numpy(proc.clean(x, s)), to_numpy(proc.clean(x, t)), proc.degradation(s, t)
        yield exact((m.in_shape, m.out_shape) == (proc.shape(s), proc.shape(t)), f"shapes of degradation({s}, {t})")
        moved = to_numpy(m(c.backend.array(proc.alpha(s) * at_s)))
        scale = m.norm() * proc.alpha(s) * norm(to_numpy(x)) + proc.alpha(t) * norm(to_numpy(x))
        tolerance = c.backend.rounding(4 * (c.size(0) + c.size(s)), moved.size) * scale
        tolerance += c.backend.storing(moved) + 2 * m.norm() * c.backend.storing(at_s) + c.backend.storing(at_t)
        yield deviation(moved, proc.alpha(t) * at_t, tolerance, f"M(α R x0) from {s} to {t} against α R x0 at {t}")


def marginal(c: ProcessContext) -> Iterator[Measurement]:
    proc = c.proc
    for _, t in c.pairs:
        x0 = c.random((2, *proc.shape(0)))
        g = proc.marginal(x0, t)
        expected = proc.alpha(t) * to_numpy(proc.clean(x0, t))
        tolerance = c.backend.rounding(2, expected.size) * norm(expected) + 2 * c.backend.storing(expected)
        yield deviation(to_numpy(g.mean), expected, tolerance, f"marginal mean at {t} against α R x0")
        v = c.random(proc.shape(t))
        scaled = proc.sigma(t) ** 2 * to_numpy(v)
        tolerance = c.backend.rounding(4, scaled.size) * norm(scaled) + c.backend.storing(scaled)
        yield deviation(to_numpy(g.covariance(v)), scaled, tolerance, f"marginal covariance at {t} against σ² I")


def transition(c: ProcessContext) -> Iterator[Measurement]:
    """Theorem 1: mean M x_s, covariance σ_t² I − σ_s² M Mᵀ; so the marginal at s becomes the marginal at t."""
    proc = c.proc
    for s, t in c.pairs:
        x = c.random((2, *proc.shape(s)))
        m = proc.degradation(s, t)
        expected = to_numpy(m(x))
        g = proc.transition(x, s, t)
        tolerance = 2 * c.rounding(s, t, expected.size) * m.norm() * norm(to_numpy(x)) + 2 * c.backend.storing(expected)
        yield deviation(to_numpy(g.mean), expected, tolerance, f"transition mean {s} → {t} against M x")
    for s, t in c.dense_pairs:
        a = c.m(s, t)
        g = proc.transition(c.random(proc.shape(s)), s, t)
        variance_s, variance_t = proc.sigma(s) ** 2, proc.sigma(t) ** 2
        expected = variance_t * np.eye(len(a)) - variance_s * a @ a.T
        tolerance = math.sqrt(len(a)) * c.dense_rounding(s, t, a.size) * variance_t
        yield deviation(
            g.covariance.as_matrix(), expected, tolerance, f"transition covariance {s} → {t} against Σ_t − M Σ_s Mᵀ"
        )
        pushed = variance_s * a @ a.T + g.covariance.as_matrix()
        yield deviation(pushed, variance_t * np.eye(len(a)), tolerance, f"marginal at {t} reached from {s}")


def chaining(c: ProcessContext) -> Iterator[Measurement]:
    """s → u through t is s → u at once, in the mean's operator and in the covariance."""
    proc = c.proc
    triples = [(s, t, u) for s, u in c.dense_pairs for t in sorted({s + 1, (s + u) // 2, u - 1}) if s < t < u]
    if not triples:
        raise Skipped("no three times s < t < u among the pairs of small states")
    for s, t, u in triples[: 2 * c.examples]:
        first, second, whole = c.m(s, t), c.m(t, u), c.m(s, u)
        scale = _spectral_norm(second) * _spectral_norm(first)
        tolerance = math.sqrt(len(whole)) * c.dense_rounding(s, u, whole.size) * scale
        yield deviation(second @ first, whole, 2 * tolerance, f"M from {s} through {t} to {u} against M at once")
        law_t = proc.transition(c.random(proc.shape(s)), s, t).covariance.as_matrix()
        law_u = proc.transition(c.random(proc.shape(t)), t, u).covariance.as_matrix()
        at_once = proc.transition(c.random(proc.shape(s)), s, u).covariance.as_matrix()
        tolerance = math.sqrt(len(at_once)) * c.dense_rounding(s, u, at_once.size) * 2 * proc.sigma(u) ** 2
        yield deviation(
            second @ law_t @ second.T + law_u, at_once, tolerance, f"noise from {s} through {t} to {u} against at once"
        )


def posterior(c: ProcessContext) -> Iterator[Measurement]:
    """Theorem 3 against conditioning of the joint Gaussian of (x_s, x_t), and against theorem 2 where it exists."""
    proc = c.proc
    for s, t in c.dense_pairs:
        a = c.m(s, t)
        m, n = a.shape
        variance_s, variance_t = proc.sigma(s) ** 2, proc.sigma(t) ** 2
        noise = proc.transition(c.random(proc.shape(s)), s, t).covariance.as_matrix()
        cross = variance_s * a.T
        gain = np.linalg.solve(variance_s * a @ a.T + noise, cross.T).T
        conditional = variance_s * np.eye(n) - gain @ cross.T
        x_t, clean_s = c.random((2, *proc.shape(t))), c.random((2, *proc.shape(s)))
        g = proc.posterior(x_t, clean_s, s, t)
        what = f"{s} ← {t}"
        tolerance = math.sqrt(n) * c.dense_rounding(s, t, n * n) * variance_s
        yield deviation(
            g.covariance.as_matrix(), conditional, 2 * tolerance, f"posterior covariance {what} against conditioning"
        )
        mu_s = proc.alpha(s) * to_numpy(clean_s).reshape(2, n)
        xt = to_numpy(x_t).reshape(2, m)
        mean = (mu_s + (xt - mu_s @ a.T) @ gain.T).reshape(2, *proc.shape(s))
        gained = _spectral_norm(gain)
        scale = norm(mu_s) + gained * (norm(xt) + _spectral_norm(a) * norm(mu_s))
        scale += variance_s / variance_t * _spectral_norm(a) * (norm(xt) + norm(mu_s))
        tolerance = (c.rounding(s, t, mean.size) + c.dense_rounding(s, t, mean.size)) * scale + c.backend.storing(mean)
        yield deviation(to_numpy(g.mean), mean, tolerance, f"posterior mean {what} against conditioning")
        least = float(np.linalg.eigvalsh(noise)[0]) if variance_s > 0 else 0.0
        # Theorem 2 inverts Σ_{t|s}: compared where that loses at most half of the digits.
        if least > variance_t * math.sqrt(np.finfo(np.float64).eps):
            precision = np.linalg.inv(noise)
            inverse = np.linalg.inv(np.eye(n) / variance_s + a.T @ precision @ a)
            lost = variance_t / least
            tolerance = math.sqrt(n) * c.dense_rounding(s, t, n * n) * variance_s * lost
            yield deviation(g.covariance.as_matrix(), inverse, tolerance, f"posterior covariance {what}, theorem 2")
            wide = proc.posterior(c.wide.array(xt.reshape(x_t.shape)), c.wide.array(to_numpy(clean_s)), s, t)
            weighted = (mu_s / variance_s + xt @ precision.T @ a) @ inverse.T
            tolerance = c.dense_rounding(s, t, mean.size) * lost * (scale + norm(xt) + norm(mu_s))
            yield deviation(
                to_numpy(wide.mean).reshape(2, n), weighted, tolerance, f"posterior mean {what} against theorem 2"
            )


def eta_family(c: ProcessContext) -> Iterator[Measurement]:
    """The posterior for every eta keeps the marginals, and its B has the singular values that eta asks for."""
    proc = c.proc
    for s, t in c.dense_pairs:
        a = c.m(s, t)
        n = a.shape[1]
        sigma_s, sigma_t = proc.sigma(s), proc.sigma(t)
        u, values, vt = np.linalg.svd(a, full_matrices=False)
        zero_s, zero_t = c.wide.array(np.zeros(proc.shape(s))), c.wide.array(np.zeros(proc.shape(t)))
        for eta in (0.0, 0.3, 0.8, 1.0):
            what = f"{s} ← {t}, eta {eta}"
            law = proc.posterior(zero_t, zero_s, s, t, eta=eta).covariance.as_matrix()
            b = _response_to_state(c, s, t, eta)
            unit = math.sqrt(n) * c.dense_rounding(s, t, n * n)
            kept = sigma_t**2 * b @ b.T + law
            tolerance = 2 * unit * sigma_s**2
            yield deviation(kept, sigma_s**2 * np.eye(n), tolerance, f"marginal of x_s, {what}: B Σ_t Bᵀ + Σ")
            # 1 − η²(1 − ρ m²), in a form that loses nothing where m is small
            share = (1 - eta) * (1 + eta) + (eta * sigma_s / sigma_t * values) ** 2
            gains = (sigma_s / sigma_t) * np.sqrt(share)
            # B itself jumps where a singular value vanishes, B M and M B do not.
            scale = (1 + math.log(n)) * (sigma_s / sigma_t) * float(values[0])
            yield deviation(b @ a, (vt.T * (gains * values)) @ vt, unit * scale, f"B M, {what}")
            yield deviation(a @ b, (u * (gains * values)) @ u.T, unit * scale, f"M B, {what}")
            if proc.alpha(s) > 0:
                d = _response_to_clean(c, s, t, eta)
                expected = proc.alpha(s) * (np.eye(n) - b @ a)
                tolerance = unit * proc.alpha(s) * (1 + sigma_s / sigma_t * float(values[0]))
                yield deviation(
                    d, expected, tolerance, f"response of the mean to the clean image, {what}: α_s(I − B M)"
                )


def _response_to_state(c: ProcessContext, s: int, t: int, eta: float) -> np.ndarray:
    zeros = c.wide.array(np.zeros((c.size(t), *c.proc.shape(s))))
    return c.probe_map(lambda y: c.proc.posterior(y, zeros, s, t, eta=eta).mean, c.proc.shape(t))


def _response_to_clean(c: ProcessContext, s: int, t: int, eta: float) -> np.ndarray:
    zeros = c.wide.array(np.zeros((c.size(s), *c.proc.shape(t))))
    return c.probe_map(lambda x: c.proc.posterior(zeros, x, s, t, eta=eta).mean, c.proc.shape(s))


def second_moments(c: ProcessContext) -> Iterator[Measurement]:
    """With the covariance C that the prediction leaves open: the posterior's plus D C Dᵀ, D = α_s I − B α_t R."""
    proc = c.proc
    for s, t in c.dense_pairs:
        n = c.size(s)
        factor = c.values((n, n + 1)) / math.sqrt(n)
        law = Covariance.dense(factor @ factor.T, proc.shape(s))
        zero_s, zero_t = c.wide.array(np.zeros(proc.shape(s))), c.wide.array(np.zeros(proc.shape(t)))
        for eta in (0.3, 1.0):
            d = proc.alpha(s) * np.eye(n) - proc.alpha(t) * _response_to_state(c, s, t, eta) @ _probe_of(c, s, t)
            plain = proc.posterior(zero_t, zero_s, s, t, eta).covariance.as_matrix()
            expected = plain + d @ law.as_matrix() @ d.T
            found = proc.posterior(zero_t, zero_s, s, t, eta, clean_covariance=law).covariance.as_matrix()
            scale = proc.sigma(s) ** 2 + _spectral_norm(d) ** 2 * _spectral_norm(law.as_matrix())
            tolerance = 4 * math.sqrt(n) * c.dense_rounding(s, t, n * n) * scale
            yield deviation(
                found, expected, tolerance, f"posterior covariance {s} ← {t}, eta {eta}, with Cov[x_0 | x_t]"
            )


def _probe_of(c: ProcessContext, s: int, t: int) -> np.ndarray:
    """Dense R_{s→t}."""
    return c.probe_map(c.proc.operator(s, t), c.proc.shape(s))


def noising(c: ProcessContext) -> Iterator[Measurement]:
    """x_t = α_t R x_0 + σ_t noise, at one time and at a time of its own for each item."""
    proc = c.proc
    for path in proc.paths[: c.examples + 1]:
        times = sorted({path.times[0], path.times[len(path.times) // 2], path.times[-1]})
        x0, noise = c.random((len(times), *proc.shape(0))), c.random((len(times), *path.shape))
        together = to_numpy(proc.add_noise(x0, noise, np.array(times)))
        for k, t in enumerate(times):
            clean, e = to_numpy(proc.degrade(x0[k, ...], t)), to_numpy(noise[k, ...])
            expected = proc.alpha(t) * clean + proc.sigma(t) * e
            tolerance = c.backend.rounding(4, e.size) * (norm(clean) + norm(e)) + 2 * c.backend.storing(expected)
            tolerance += c.rounding(0, t, e.size) * norm(to_numpy(x0[k, ...]))
            alone = to_numpy(proc.add_noise(x0[k, ...], noise[k, ...], t))
            yield deviation(alone, expected, tolerance, f"add_noise at {t} against α R x0 + σ noise")
            yield deviation(together[k], expected, tolerance, f"add_noise at {t} among {times}")


def times(c: ProcessContext) -> Iterator[Measurement]:
    """Laws at arrays of times are those of each item at its own; levels at arrays are those of each time."""
    proc, (s, t) = c.proc, c.main_pair
    everything = np.arange(proc.steps + 1)
    for name, level in (("alpha", proc.alpha), ("sigma", proc.sigma)):
        same = np.array_equal(level(everything), [level(int(k)) for k in everything])
        yield exact(same, f"{name} of an array of times")
    pairs = [(s, t), *((a, b) for a, b in c.pairs if (proc.stage(a), proc.stage(b)) == (proc.stage(s), proc.stage(t)))]
    first, last = np.array(pairs).T
    n = len(pairs)
    x_t, clean_s, noise = (c.random((n, *proc.shape(k))) for k in (t, s, s))
    law = proc.posterior(x_t, clean_s, first, last)
    mean, applied = to_numpy(law.mean), to_numpy(law.covariance(noise))
    for k, (a, b) in enumerate(pairs):
        alone = proc.posterior(x_t[k, ...], clean_s[k, ...], a, b)
        size = norm(to_numpy(x_t[k, ...])) + norm(to_numpy(clean_s[k, ...]))
        tolerance = 2 * c.rounding(a, b, c.size(s)) * size + 2 * c.backend.storing(mean[k])
        yield deviation(mean[k], to_numpy(alone.mean), tolerance, f"posterior mean {a} ← {b} among {n} pairs")
        expected = to_numpy(alone.covariance(noise[k, ...]))
        tolerance = 2 * c.rounding(a, b, c.size(s)) * proc.sigma(a) ** 2 * norm(to_numpy(noise[k, ...]))
        tolerance += 2 * c.backend.storing(expected)
        yield deviation(applied[k], expected, tolerance, f"posterior covariance {a} ← {b} among {n} pairs")


def admissibility(c: ProcessContext) -> Iterator[Measurement]:
    """Every transition covariance is positive semi-definite, and a process is refused exactly where one is not."""
    proc = c.proc
    margin = math.sqrt(2 * c.wide.unit)  # far above rounding, far below any modelling error
    for s, t in c.dense_pairs:
        a = c.m(s, t)
        largest = _spectral_norm(a) ** 2
        shortfall = proc.sigma(s) ** 2 * largest - proc.sigma(t) ** 2
        tolerance = 2 * c.dense_rounding(s, t, 1) * proc.sigma(t) ** 2
        yield Measurement(max(shortfall, 0.0), tolerance, f"σ_s²‖M‖² − σ_t² from {s} to {t}")
        alphas = proc.alpha(s), proc.alpha(t)
        if s == 0 or min(alphas) <= 0 or largest == 0:
            continue
        ops = [(1 / alphas[0]) * proc.degradation(0, s), (alphas[0] / alphas[1]) * proc.degradation(s, t)]
        critical = proc.sigma(s) * math.sqrt(largest)
        for factor in (0.5, 1 - margin, 1 + margin, 2.0):
            sigma = factor * critical
            least = float(np.linalg.eigvalsh(sigma**2 * np.eye(len(a)) - proc.sigma(s) ** 2 * a @ a.T)[0])
            noise = NoiseSchedule(np.array([1.0, *alphas]), np.array([0.0, proc.sigma(s), sigma]))
            try:
                type(proc).from_operators(ops, noise)
                refused = False
            except InadmissibleProcess:
                refused = True
            yield exact(
                refused == (least < 0),
                f"from {s} to {t} with σ_t {factor:.9g} of the critical one: "
                f"{'refused' if refused else 'accepted'}, smallest eigenvalue {least:.3g}",
            )


def respace(c: ProcessContext) -> Iterator[Measurement]:
    proc = c.proc
    chosen = sorted({t for pair in c.pairs for t in pair if t > 0})
    shorter = proc.respace(chosen)
    yield exact(shorter.steps == len(chosen), f"{shorter.steps} steps after respace to {len(chosen)} times")
    expected = tuple(proc.times[t - 1] for t in chosen)
    yield exact(tuple(shorter.times) == expected, f"times {shorter.times}, expected {expected}")
    for k, t in enumerate([0, *chosen]):
        same = (shorter.alpha(k), shorter.sigma(k), shorter.shape(k)) == (proc.alpha(t), proc.sigma(t), proc.shape(t))
        yield exact(same, f"alpha, sigma and shape of step {k} are those of time {t}")
    for k, t in enumerate(chosen, start=1):
        s = chosen[k - 2] if k > 1 else 0
        x_t, clean_s = c.random(proc.shape(t)), c.random(proc.shape(s))
        before, after = proc.posterior(x_t, clean_s, s, t), shorter.posterior(x_t, clean_s, k - 1, k)
        tolerance = c.rounding(s, t, c.size(s)) * (norm(to_numpy(x_t)) + norm(to_numpy(clean_s)))
        tolerance += c.backend.storing(to_numpy(before.mean))
        yield deviation(to_numpy(after.mean), to_numpy(before.mean), tolerance, f"posterior mean {s} ← {t}, respaced")
        v = c.random(proc.shape(s))
        expected_v = to_numpy(before.covariance(v))
        tolerance = c.rounding(s, t, c.size(s)) * proc.sigma(s) ** 2 * norm(to_numpy(v)) + c.backend.storing(expected_v)
        yield deviation(
            to_numpy(after.covariance(v)), expected_v, tolerance, f"posterior covariance {s} ← {t}, respaced"
        )
    again = shorter.respace([shorter.steps])
    yield exact(tuple(again.times) == expected[-1:], "times of a process respaced twice")


def prior(c: ProcessContext) -> Iterator[Measurement]:
    proc, last = c.proc, c.proc.steps
    shape, alpha, variance = proc.shape(last), proc.alpha(last), proc.sigma(last) ** 2
    n = c.size(last)
    plain = proc.prior()
    yield exact(tuple(plain.mean.shape) == shape and not np.any(plain.mean), "prior() has mean zero at the last size")
    v = c.values(shape)
    tolerance = c.wide.rounding(4, n) * variance * norm(v)
    yield deviation(to_numpy(plain.covariance(v)), variance * v, tolerance, "covariance of prior() against σ_T² I")
    mean = c.random((2, *shape))
    expected = alpha * to_numpy(mean)
    fitted = proc.prior(mean)
    # in half precision α_T and its product with m are each rounded
    tolerance = c.backend.rounding(2, expected.size) * norm(expected) + 2 * c.backend.storing(expected)
    yield deviation(to_numpy(fitted.mean), expected, tolerance, "mean of prior(m) against α_T m")
    if n <= 256:
        factor = c.values((n, n + 1))
        data = factor @ factor.T
        law = proc.prior(mean, data).covariance.as_matrix()
        dense = alpha**2 * data + variance * np.eye(n)
        tolerance = math.sqrt(n) * Backend(np, "float64").rounding(4 * n, n * n) * _spectral_norm(dense)
        yield deviation(law, dense, tolerance, "covariance of prior(m, C) against α_T² C + σ_T² I")


def batch_items(c: ProcessContext) -> Iterator[Measurement]:
    inputs = {name: c.random((2, 3, *x.shape)) for name, x in c.inputs(()).items()}
    s, t = c.main_pair
    for name, (call, trailing) in c.calls().items():
        for batch in ((), (0,)):
            shape = c.backend.shape_of(call, c.inputs(batch))
            yield exact(shape == (*batch, *trailing), f"{name} of batch {batch}: {shape}, not {(*batch, *trailing)}")
        together = to_numpy(call(inputs))
        for i, j in np.ndindex(2, 3):
            alone = to_numpy(call({key: x[i, j, ...] for key, x in inputs.items()}))
            size = sum(norm(to_numpy(x[i, j, ...])) for x in inputs.values())
            sensitivity = 1.0
            if "log_prob" in name:
                sensitivity = (1 + size) / c.proc.sigma(t) ** 2
                size += abs(float(alone))
            tolerance = 2 * c.rounding(s, t, alone.size) * size * sensitivity + 2 * c.backend.storing(alone)
            yield deviation(together[i, j], alone, tolerance, f"{name}: item ({i}, {j}) of a batch against it alone")


def dtype(c: ProcessContext) -> Iterator[Measurement]:
    for name, (call, _) in c.calls().items():
        found = call(c.inputs((2,))).dtype
        # a half cannot hold the log density of an image
        expected = computing_dtype(c.backend.xp, c.backend.dtype) if "log_prob" in name else c.backend.dtype
        yield exact(found == expected, f"{name}: dtype {found}, expected {expected}")


def namespace(c: ProcessContext) -> Iterator[Measurement]:
    for device in c.backend.devices():
        inputs = c.inputs((2,), Backend(c.backend.xp, c.backend.dtype_name, device))
        for name, (call, _) in c.calls().items():
            result = call(inputs)
            found, expected = namespace_of(result), c.backend.xp
            what = f"{name} on {device}"
            yield exact(found is expected, f"{what}: namespace {found.__name__}, expected {expected.__name__}")
            if found is expected:
                yield exact(same_device(result, inputs["x_t"]), f"{what}: the result is on another device")


def repeatability(c: ProcessContext) -> Iterator[Measurement]:
    inputs = c.inputs((2,))
    for name, (call, _) in c.calls().items():
        first, second = to_numpy(call(inputs)), to_numpy(call(inputs))
        difference = float(np.abs(first - second).max(initial=0.0))
        yield Measurement(difference, 0.0, f"{name}: two calls on the same input")


def global_rng(c: ProcessContext) -> Iterator[Measurement]:
    inputs = c.inputs((2,))
    for name, (call, _) in c.calls().items():
        yield from unchanged_generators(lambda call=call: call(inputs), name)  # type: ignore[misc]


def inputs_untouched(c: ProcessContext) -> Iterator[Measurement]:
    for name, (call, _) in c.calls().items():
        inputs = {key: read_only(x) for key, x in c.inputs((2,)).items()}
        before = {key: to_numpy(x) for key, x in inputs.items()}
        call(inputs)
        for key, x in inputs.items():
            yield exact(bool((to_numpy(x) == before[key]).all()), f"{name} wrote to {key}")


def refusals(c: ProcessContext) -> Iterator[Measurement]:
    proc, last = c.proc, c.proc.steps
    s, t = c.main_pair
    x = c.inputs((2,))
    wrong = c.random((2, *proc.shape(t)[:-1], proc.shape(t)[-1] + 1))
    cases = {
        "a transition with s = t": lambda: proc.transition(x["x_t"], t, t),
        "a transition with s > t": lambda: proc.transition(x["x_t"], t, s),
        "a time after the last": lambda: proc.marginal(x["x0"], last + 1),
        "a negative time": lambda: proc.degradation(-1, last),
        "eta above 1": lambda: proc.posterior(x["x_t"], x["clean_s"], s, t, eta=1.5),
        "eta below 0": lambda: proc.posterior(x["x_t"], x["clean_s"], s, t, eta=-0.5),
        "eta NaN": lambda: proc.posterior(x["x_t"], x["clean_s"], s, t, eta=math.nan),
        "x_t of another shape": lambda: proc.posterior(wrong, x["clean_s"], s, t),
        "times that do not increase": lambda: proc.respace([last, 1] if last > 1 else [1, 1]),
    }
    for what, call in cases.items():
        yield raises(ValueError, call, what)
    yield raises(TypeError, lambda: proc.shape(0.5), "a time that is not an integer")  # type: ignore[arg-type]
    point: Gaussian = proc.posterior(c.random(proc.shape(1)), c.random(proc.shape(0)), 0, 1)
    yield raises(ValueError, lambda: point.log_prob(c.random(proc.shape(0))), "log_prob of the law of a point")


PROCESS_CHECKS: tuple[Check, ...] = (
    Check("clean", "R_{0→t} chains with the degradations M_{s→t} = (α_t/α_s) R_{s→t}", clean),
    Check("marginal", "N(α_t R_{0→t} x_0, σ_t² I)", marginal),
    Check("transition", "theorem 1: N(M x_s, Σ_t − M Σ_s Mᵀ), which carries marginals to marginals", transition),
    Check("chaining", "s → u through t is s → u at once", chaining),
    Check("posterior", "theorem 3 against conditioning of the joint Gaussian, and against theorem 2", posterior),
    Check("eta_family", "every eta keeps the marginals and has the B it should", eta_family),
    Check("second_moments", "what a prediction leaves open is put back: D C Dᵀ", second_moments),
    Check("noising", "add_noise draws from the marginal, for each item at its own time", noising),
    Check("times", "laws and levels at arrays of times are those at each time", times),
    Check(
        "covariance", "applied, root, inverse, determinant and sample of each covariance against its matrix", covariance
    ),
    Check("densities", "log_prob, entropy and kl against dense formulas", densities),
    Check("sampling", "mean and covariance of samples of the posterior, within statistical bounds", sampling),
    Check("admissibility", "refused exactly where the transition's smallest eigenvalue is negative", admissibility),
    Check("respace", "the same process at some of its times", respace),
    Check("prior", "N(α_T m, α_T² C + σ_T² I)", prior),
    Check("batch_items", "batches of every shape, whose items do not mix", batch_items),
    Check("dtype", "results have the dtype of their inputs", dtype),
    Check("namespace", "results stay in the namespace and on the device of their inputs", namespace),
    Check("repeatability", "the same inputs twice give the same bits: no hidden randomness", repeatability),
    Check("global_rng", "global random states are left alone", global_rng),
    Check("inputs_untouched", "inputs are never written to", inputs_untouched),
    Check("refusals", "wrong times, shapes and eta raise ValueError, wrong kinds TypeError", refusals),
)
