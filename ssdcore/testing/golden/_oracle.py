"""Golden rows of the oracle and of the multistep sampler: errors, information, times, designs, fits, denoisers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import combinations, pairwise, product
from typing import Any

import numpy as np

from ssdcore import multistep, oracle
from ssdcore.gaussian import Covariance, Gaussian
from ssdcore.operators import Resize, Separable
from ssdcore.placement import sampling_times
from ssdcore.process import LinearDiffusion
from ssdcore.schedules import NoiseSchedule, ResolutionSchedule
from ssdcore.testing._report import Measurement
from ssdcore.testing.golden._exact import (
    REAL,
    agree,
    determinant,
    eye,
    floats,
    function_of,
    holds,
    integers,
    inverse,
    kron,
    real,
    reals,
    refuses,
    svd,
    zeros,
)
from ssdcore.testing.golden._model import (
    Reference,
    frechet,
    marginal,
    multistep_covariance,
    sampler_moments,
)
from ssdcore.testing.golden._operators import cosine_mode, resize_matrix
from ssdcore.testing.golden._processes import ALPHA, SIGMA, noise

_HALF = REAL.mpf(1) / 2


def _data(n: int) -> np.ndarray:
    """A covariance that no basis of the library makes diagonal."""
    factor = integers(n, n, seed=6) / 8
    return factor @ factor.T + eye(n) / 4


def _cosine(spectrum: np.ndarray) -> np.ndarray:
    modes = kron(*(np.stack([cosine_mode(n, k) for k in range(n)], axis=1) for n in spectrum.shape))
    return (modes * spectrum.ravel()) @ modes.T


def _resized(kernel: str, matched: bool = False) -> tuple[LinearDiffusion, Reference]:
    """Four values become two at t = 3."""
    levels = ResolutionSchedule.thresholds([3])
    proc = LinearDiffusion.resize((4,), noise(), levels, matched=matched, kernel=kernel)
    step = resize_matrix(4, 2, kernel)
    return proc, Reference(4, [None, None, step, None, None], *_levels(proc))


def _levels(proc: LinearDiffusion) -> tuple[np.ndarray, np.ndarray]:
    """The process' α and σ: what they should be is checked elsewhere."""
    times = range(proc.steps + 1)
    return reals([proc.alpha(t) for t in times]), reals([proc.sigma(t) for t in times])


def first_order(_: Any) -> Iterator[Measurement]:
    """The exact error of ancestral and deterministic chains: one size, a change of size, an operator of its own."""
    plain = LinearDiffusion.identity((3,), noise())
    cases: list[tuple[str, LinearDiffusion, Reference]] = [
        ("one size", plain, Reference(3, [None] * 5, ALPHA, SIGMA)),
        ("bilinear", *_resized("bilinear")),
        ("matched box", *_resized("box", matched=True)),
    ]
    odd = Separable([np.array([[0.5, 0.25, 0.0], [0.125, -0.25, 0.5]])])
    step = reals([["1/2", "1/4", "0"], ["1/8", "-1/4", "1/2"]])
    cases.append(
        (
            "an operator of its own",
            LinearDiffusion.from_operators([None, -1.0 * odd, None, None, None], noise()),
            Reference(3, [None, -step, None, None, None], ALPHA, SIGMA),
        )
    )
    for what, proc, model in cases:
        n = model.size
        spectrum = reals([Fraction(1, (1 + k) ** 2) for k in range(n)])
        forms: list[tuple[str, Any, np.ndarray]] = [
            ("cosine data", Covariance.cosine(floats(spectrum)), _cosine(spectrum)),
            ("dense data", floats(_data(n)), _data(n)),
        ]
        for form, law, matrix in forms:
            for times, eta in (((1, 2, 3, 4, 5), 1), ((1, 2, 4, 5), 0), ((1, 4), 0.5)):
                shift, p = sampler_moments(model, matrix, times, eta)
                found = oracle.sampler_error(proc, law, times, float(eta))
                label = f"{what}, {form}, times {times}, eta {eta}: error"
                yield from agree(label, found, frechet(shift, p, matrix), 2**10, scale=np.trace(matrix))
        for form, law, matrix in forms:
            shift, p = sampler_moments(model, matrix, (1, 2, 4, 5), 1, second_moments=True)
            found = oracle.sampler_error(proc, law, (1, 2, 4, 5), second_moments=True)
            label = f"{what}, {form}, exact to second moments: error"
            yield from agree(label, found, frechet(shift, p, matrix), 2**10, scale=np.trace(matrix))
        times = (1, 2, 3, 4, 5)
        shift, p = sampler_moments(model, _data(n), times, 1)
        law_of = oracle.sampler_law(proc, floats(_data(n)), times)
        yield from agree(f"{what}: covariance of the samples", law_of.covariance.as_matrix(), p, 2**10)
        yield from agree(f"{what}: mean of the samples", law_of.mean, [0] * n)
        yield from agree(f"{what}: kl", law_of.kl(), _kl(_data(n), p, shift), 2**14)
    yield from _other_starts()


def _kl(data: np.ndarray, p: np.ndarray, shift: np.ndarray) -> Any:
    """KL(N(0, C) ‖ N(shift, P))."""
    n, shift = len(data), reals(shift)
    logs = REAL.log(real(determinant(reals(p)))) - REAL.log(real(determinant(data)))
    return (np.trace(inverse(reals(p)) @ reals(data)) - n + logs + shift @ inverse(reals(p)) @ shift) / 2


def _other_starts() -> Iterator[Measurement]:
    """x_T drawn from another law than its own: a mean that the prior does not know, a covariance of its own."""
    proc, model = _resized("bilinear")
    data, mean, times = _data(4), reals([1, -2, 3, 0]), (1, 2, 3, 5)
    covariance, centre = reals([["2", "1/2"], ["1/2", "1"]]), reals([1, -1])
    prior = Gaussian(floats(centre), Covariance.dense(floats(covariance)))
    gap = centre - ALPHA[5] * model.operator(0, 5) @ mean
    shift, p = sampler_moments(model, data, times, 1, (gap, covariance))
    found = oracle.sampler_error(proc, floats(data), times, mean=floats(mean), prior=prior)
    yield from agree("a prior of its own: error", found, frechet(shift, p, data), 2**10, scale=np.trace(data))
    law = oracle.sampler_law(proc, floats(data), times, mean=floats(mean), prior=prior)
    yield from agree("a prior of its own: mean", law.mean, mean + shift, 256)
    base = SIGMA[5] ** 2 * eye(2)
    shift, p = sampler_moments(model, data, times, 1, (-ALPHA[5] * model.operator(0, 5) @ mean, base))
    found = oracle.sampler_error(proc, floats(data), times, mean=floats(mean), prior=proc.prior())
    yield from agree("a prior without data: error", found, frechet(shift, p, data), 2**10, scale=np.trace(data))


def second_order(_: Any) -> Iterator[Measurement]:
    """The multistep formula, within a size and on both sides of a change, and its exact error."""
    plain = LinearDiffusion.identity((3,), noise())
    model = Reference(3, [None] * 5, ALPHA, SIGMA)
    lam = [None, *(REAL.log(real(a) / real(s)) for a, s in zip(ALPHA[1:], SIGMA[1:]))]
    now, before = integers(3, seed=1), integers(3, seed=2)
    for s, t, u in ((1, 2, 3), (1, 3, 5), (2, 4, 5)):
        w = (lam[s] - lam[t]) / (2 * (lam[t] - lam[u]))
        found = multistep.extrapolated(plain, s, t, u, floats(now), floats(before))
        yield from agree(f"extrapolation {s}, {t}, {u}", found, now + w * (now - before), 64)
    first = multistep.extrapolated(plain, 1, 2, 3, floats(now), None)
    yield from agree("no extrapolation at the first step", first, now)
    last = multistep.extrapolated(plain, 0, 1, 2, floats(now), floats(before))
    yield from agree("no extrapolation at the last step", last, now)
    yield from agree("half the log-SNR", [multistep.half_log_snr(plain, t) for t in (1, 3)], [lam[1], lam[3]], 8)
    spectrum = reals(["2", "1", "1/4"])
    for what, law, data in (
        ("cosine", Covariance.cosine(floats(spectrum)), _cosine(spectrum)),
        ("dense", floats(_data(3)), _data(3)),
    ):
        for times in ((1, 2, 3, 4, 5), (1, 3, 5)):
            error = frechet(zeros(3), multistep_covariance(model, data, times), data)
            found = oracle.sampler_error(plain, law, times, 0.0, order=2)
            yield from agree(
                f"second order, {what} data, times {times}: error", found, error, 2**10, scale=np.trace(data)
            )
    proc, model = _changing()
    lam = [None, *(REAL.log(a / s) for a, s in zip(model.alpha[1:], model.sigma[1:]))]
    left, r, v = svd(model.operator(2, 3))
    now, before = integers(4, seed=3), integers(2, seed=4)
    weight = [(lam[2] - lam[3] - REAL.log(x)) / (2 * (lam[3] - lam[4])) for x in r]
    want = now + (v * np.array(weight)) @ (v.T @ now - (left / r).T @ before)
    found = multistep.extrapolated(proc, 2, 3, 4, floats(now), floats(before))
    yield from agree("extrapolation at a change", found, want, 256)
    now, before = integers(4, seed=5), integers(4, seed=6)
    weight = [(lam[1] - lam[2]) / (2 * (lam[2] - lam[3] - REAL.log(x))) for x in r]
    want = now + (v * np.array(weight)) @ (v.T @ (now - before))
    found = multistep.extrapolated(proc, 1, 2, 3, floats(now), floats(before))
    yield from agree("extrapolation after a change", found, want, 256)
    data = _data(4)
    error = frechet(zeros(4), multistep_covariance(model, data, (1, 2, 3, 4, 5)), data)
    found = oracle.sampler_error(proc, floats(data), (1, 2, 3, 4, 5), 0.0, order=2)
    yield from agree("second order across a change: error", found, error, 2**10, scale=np.trace(data))
    error = frechet(zeros(4), multistep_covariance(model, data, (1, 2, 3, 4, 5), second_moments=True), data)
    found = oracle.sampler_error(proc, floats(data), (1, 2, 3, 4, 5), 0.0, order=2, second_moments=True)
    yield from agree("second order, born variance: error", found, error, 2**10, scale=np.trace(data))
    yield from _born(proc, model, eye(4) - v @ v.T)
    near = NoiseSchedule.from_log_snr([3.0, 0.01, 0.0, -1.5, -3.0])
    close = LinearDiffusion.resize((4,), near, ResolutionSchedule.thresholds([3]), kernel="box")
    found = multistep.extrapolated(close, 1, 2, 3, floats(now), floats(before))
    yield from agree("a bounded extrapolation after a change", found, now + v @ (v.T @ (now - before)), 256)


def _born(proc: LinearDiffusion, model: Reference, added: np.ndarray) -> Iterator[Measurement]:
    """What the prediction leaves open of the modes that the change 3 → 2 adds, and their law."""
    left_open = _data(4)
    part = multistep.born_covariance(proc, 2, 3, Covariance.dense(floats(left_open)))
    yield from agree("born covariance", part.as_matrix(), added @ left_open @ added, 256)
    law = proc.posterior(np.zeros(2), np.zeros(4), 2, 3, 0.0, part)
    want = added @ (model.sigma[2] ** 2 * eye(4) + model.alpha[2] ** 2 * left_open) @ added
    yield from agree("law of the born modes", law.covariance.as_matrix(), want, 256)
    root = law.covariance.root(np.eye(4)).T
    yield from agree("draws of the born modes", root @ root.T, want, 256)


def _changing() -> tuple[LinearDiffusion, Reference]:
    """Even steps of log-SNR and a mean of pairs, whose singular values are all its norm."""
    base = NoiseSchedule.from_log_snr([3.0, 1.5, 0.0, -1.5, -3.0])
    proc = LinearDiffusion.resize((4,), base, ResolutionSchedule.thresholds([3]), kernel="box")
    return proc, Reference(4, [None, None, resize_matrix(4, 2, "box"), None, None], *_levels(proc))


def information(_: Any) -> Iterator[Measurement]:
    proc, model = _resized("bilinear")
    data = _data(4)

    def nats(t: int, operator: np.ndarray) -> Any:
        signal = eye(len(operator)) + (ALPHA[t] / SIGMA[t]) ** 2 * operator @ data @ operator.T
        return REAL.log(real(determinant(signal))) / 2

    want = [nats(t, model.operator(0, t)) for t in range(1, 6)]
    yield from agree("mutual information", oracle.mutual_information(proc, floats(data)), want, 64)
    rows = [[nats(t, step) for t in range(1, 6)] for step in (eye(4), resize_matrix(4, 2, "bilinear"))]
    found = oracle.level_information((4,), noise(), floats(data), 2, matched=False)
    yield from agree("information of each level", found, rows, 64)
    table = np.array([[9.0, 5.0, 2.0, 1.0, 0.5], [6.0, 4.5, 1.9, 0.5, 0.45], [0.0] * 5])
    starts = oracle.free_starts(table, 0.25)
    yield from holds(f"a level is free from the last time on that costs more: {starts}", starts == (5, None))
    yield from holds("free everywhere", oracle.free_starts(table[[0, 0]], 0.25) == (1,))
    yield from _information_of_bands()
    images = np.array([[0.5, -0.25], [0.0, 1.0]])
    share = [
        sum(REAL.erf(abs(real(x)) * real(a) / real(s) / REAL.sqrt(2)) for x in images.ravel()) / 4
        for a, s in zip(ALPHA[1:], SIGMA[1:])
    ]
    yield from agree("share of signal-dominated pixels", oracle.signal_share(images, noise()), share, 8)
    byte = np.array([0, 51, 255], dtype=np.uint8)
    values = [abs(Fraction(int(b) * 2, 255) - 1) for b in byte]
    share = [
        sum(REAL.erf(real(x) * real(a) / real(s) / REAL.sqrt(2)) for x in values) / 3
        for a, s in zip(ALPHA[1:], SIGMA[1:])
    ]
    yield from agree("the same of bytes", oracle.signal_share(byte, noise()), share, 8)
    square = LinearDiffusion.resize((4, 4), noise(), ResolutionSchedule.thresholds([3]))
    yield from agree("share of pixels", oracle.pixel_share(square), reals([1, 1, 0.25, 0.25, 0.25]))


def _information_of_bands() -> Iterator[Measurement]:
    # 1/(1 + f²) at f = 0, 1 and 0, 2 along the short axis, whose waves are twice as long
    power = [[Fraction(1), Fraction(1, 2), Fraction(1, 5), Fraction(1, 10)]]
    power.append([Fraction(1, 5), Fraction(1, 6), Fraction(1, 9), Fraction(1, 14)])
    total = sum(map(sum, power))
    want = [[real(p * 8 / total) * real(Fraction(1, 4)) for p in row] for row in power]
    found = oracle.natural_spectrum((2, 4), 2.0)
    yield from agree("spectrum of photographs", found, np.array(want), 16)
    noise = NoiseSchedule.from_log_snr([0.0, -2 * float(np.log(2))])  # α²/σ² is 1 and ¼
    spectrum = [3.0, 1.0]
    for matched, share in ((True, Fraction(1)), (False, Fraction(1, 2))):
        rows = [
            [(REAL.log(real(1 + 3 * r)) + REAL.log(real(1 + r))) / 2 for r in (Fraction(1), Fraction(1, 4))],
            [REAL.log(real(1 + 3 * r * share)) / 2 for r in (Fraction(1), Fraction(1, 4))],
        ]
        found = oracle.band_information([(2,), (1,)], noise, spectrum, matched)
        yield from agree(f"information of bands, matched {matched}", found, np.array(rows), 16)
    even = NoiseSchedule.from_log_snr(np.linspace(8, -8, 9))
    lost = np.array([2.0 ** (8 - t) for t in range(9)])  # 256, 128, … 1
    starts = oracle.information_starts(np.stack([lost, 0 * lost]), even, 20.0, 9)
    yield from holds(f"the first time that loses no more than 20 nats is 5, got {starts}", starts == (5,))
    cost, table = (1.0, 0.5, 0.1), np.stack([2.6 * lost, 1.6 * lost, 0 * lost])

    def measured(first: int, second: int) -> tuple[float, float]:
        spent = cost[0] * (first - 1) + cost[1] * (second - first) + cost[2] * (9 - second)
        return spent, float(lost[first - 1] + 1.6 * lost[second - 1])

    # a level below the first lasts two steps or none, the last one at least one besides T
    allowed = [(a, b) for a in range(2, 9) for b in range(a, 9) if b - a != 1]
    points = {pair: measured(*pair) for pair in allowed}
    slopes = {(d - c) / (m - n) for (c, m), (d, n) in product(points.values(), repeat=2) if m > n and d > c}
    prices = sorted({0.0, *slopes, 2 * max(slopes)})  # of a nat; between two of them one choice is the cheapest
    middles = [(low + high) / 2 for low, high in pairwise(prices)]
    cheapest = {min(points, key=lambda pair: points[pair][0] + price * points[pair][1]) for price in middles}
    for nats in (200.0, 40.0, 20.0, 8.0):
        starts = oracle.information_starts(table, even, nats, 9, cost)
        best = min((pair for pair in cheapest if points[pair][1] <= nats), key=lambda pair: points[pair][0])
        yield from holds(f"of all starts that lose {nats:g} nats, {best} are cheapest, got {starts}", starts == best)


def times(_: Any) -> Iterator[Measurement]:
    base = NoiseSchedule.from_log_snr([8.0, 7.0, 1.0, 0.0, -1.0, -8.0])
    ten = NoiseSchedule.from_log_snr(np.linspace(8, -8, 10))
    for what, found, want in (
        ("even in time", oracle.spread_times(ten, 4), (1, 4, 7, 10)),
        ("one step is the last time", oracle.spread_times(ten, 1), (10,)),
        ("even in log-SNR", oracle.spread_times(base, 3, "log_snr"), (1, 4, 6)),
        ("every time", oracle.spread_times(base, 6, "log_snr"), (1, 2, 3, 4, 5, 6)),
        ("with a required time", oracle.spread_times(ten, 4, required=(5,)), (1, 5, 7, 10)),
    ):
        yield from holds(f"{what}: {want}, got {found}", found == want)
    even = NoiseSchedule.from_log_snr(np.linspace(8, -8, 41))
    levels = LinearDiffusion.resize((8, 8), even, ResolutionSchedule.thresholds([14, 25]))
    # spans of 13, 11 and 16: two and a half steps of 5.2, one and a half of 7⅓, three of 5⅓
    for expected in ([1, 14, 25, 41], [1, 14, 21, 25, 41], [1, 6, 11, 14, 21, 25, 30, 36, 41]):
        visited = list(sampling_times(levels, len(expected), "log_snr"))
        yield from holds(f"half a step after each change of size: {expected}, got {visited}", visited == expected)
    for spectrum, span, eta in (((1.0, 0.25, 0.0625, 0.015625), (6, -5), 1), ((4.0, 0.5, 0.001), (8, -4), 0)):
        base = NoiseSchedule.from_log_snr(np.linspace(*span, 8))
        found = oracle.optimal_times((len(spectrum),), base, Covariance.cosine(spectrum), 3, float(eta))
        errors = {(a, b, 8): _chain_error(base, spectrum, (a, b, 8), eta) for a, b in combinations(range(1, 8), 2)}
        best = min(errors, key=errors.__getitem__)
        yield from holds(f"the best three times at eta {eta} are {best}, got {found}", found == best)
    base, spectrum = NoiseSchedule.from_log_snr(np.linspace(7, -5, 40)), (2.0, 0.25, 0.03125, 0.00390625)
    found = oracle.optimal_times((4,), base, Covariance.cosine(spectrum), 4)
    own = _chain_error(base, spectrum, found, 1)
    for i, step in product(range(3), (-1, 1)):
        moved = tuple(t + step * (k == i) for k, t in enumerate(found))
        if sorted({0, *moved}) == [0, *moved]:
            gain = float(1 - _chain_error(base, spectrum, moved, 1) / own)
            yield from holds(f"no time of {found} is better elsewhere, such as {moved} by {gain:.1e}", gain < 2e-4)
    yield from refuses("more steps than times", ValueError, lambda: oracle.spread_times(base, 41))
    yield from refuses("an unknown spacing", ValueError, lambda: oracle.spread_times(base, 3, "linear"))  # type: ignore[arg-type]


def _chain_error(base: NoiseSchedule, spectrum: Sequence[float], chain: tuple[int, ...], eta: int) -> Any:
    """Mode by mode: p_s = g² p_t + v, at one size."""
    total = REAL.mpf(0)
    alpha, sigma = reals(base.alpha), reals(base.sigma)
    for c in reals(spectrum):
        p = alpha[chain[-1]] ** 2 * c + sigma[chain[-1]] ** 2
        for s, t in reversed(list(zip((0, *chain), chain))):
            w = alpha[t] * c / (alpha[t] ** 2 * c + sigma[t] ** 2)
            b = sigma[s] ** 2 / sigma[t] ** 2 * alpha[t] / alpha[s] if eta else sigma[s] / sigma[t]
            g = alpha[s] * w + b * (1 - alpha[t] * w)
            p = g * g * p + sigma[s] ** 2 - sigma[t] ** 2 * b * b
        total += (REAL.sqrt(p) - REAL.sqrt(c)) ** 2
    return total


def designs(_: Any) -> Iterator[Measurement]:
    """The cheapest start of a second level within a tolerance, against every one."""
    base = NoiseSchedule.from_log_snr(np.linspace(5, -5, 8))
    spectrum = reals(["1", "1/8", "1/64", "1/128"])
    data, law = _cosine(spectrum), Covariance.cosine(floats(spectrum))
    grid = (1, 3, 5, 6, 8)
    plain = Reference(4, [None] * 8, reals(base.alpha), reals(base.sigma))
    full = frechet(*sampler_moments(plain, data, grid, 1), data)
    step, norm = resize_matrix(4, 2, "bilinear"), svd(resize_matrix(4, 2, "bilinear"))[1][0]
    errors: dict[int, Any] = {}
    for start in grid[1:]:
        ratios = [s / a * (norm if t >= start else 1) for t, (a, s) in enumerate(zip(plain.alpha, plain.sigma))]
        alpha = [1 / REAL.sqrt(1 + x * x) for x in ratios]
        ops = [step if t == start else None for t in range(1, 9)]
        model = Reference(4, ops, reals(alpha), reals([x * a for x, a in zip(ratios, alpha)]))
        errors[start] = frechet(*sampler_moments(model, data, grid, 1), data)
    # two thirds of the excess of the earliest start: it is refused, as nothing else of twice the tolerance would be
    tolerance = float((errors[3] / full - 1) / 1.5)
    start = next(t for t in grid[1:] if errors[t] <= (1 + tolerance) * full)
    found = oracle.design_levels((4,), base, law, levels=2, steps=5, tolerance=tolerance, times=grid)
    yield from agree("design: error at full size", found.full_error, full, 2**14)
    yield from agree("design: cost at full size", found.full_cost, 20)
    yield from holds(f"design: level 1 starts at {start}, got {found.levels.starts}", found.levels.starts == (start,))
    steps_above = grid.index(start)
    yield from agree("design: cost", found.cost, 4 * steps_above + 2 * (5 - steps_above))
    yield from agree("design: error", found.error, errors[start], 2**14)
    yield from holds("design: times", found.times == grid)
    eight = Covariance.cosine(floats(reals([Fraction(1, 2**k) for k in range(8)])))
    short = oracle.design_levels((8,), base, eight, levels=3, steps=3, tolerance=1e9, times=(2, 5, 8))
    yield from holds("design: a step on each level", short.levels.starts == (5, 8))
    yield from agree("design: cost of a step on each level", short.cost, 8 + 4 + 2)


def fits(_: Any) -> Iterator[Measurement]:
    """Moments of images, dense and in cosines, and the perfect denoiser of a set of images."""
    images = integers(5, 2, 2, 3, seed=2) / 4
    mean = images.sum(axis=0) / 5
    centred = (images - mean).reshape(10, 6)
    covariance = centred.T @ centred / 10
    for form in ("dense", "cosine"):
        found = oracle.fit(floats(images), form)
        yield from agree(f"{form} fit: mean", found.mean, mean, 8)
        if form == "dense":
            yield from agree("dense fit: covariance", found.covariance.as_matrix(), covariance, 64)
        else:
            modes = kron(*(np.stack([cosine_mode(n, k) for k in range(n)], axis=1) for n in (2, 3)))
            kept = (modes * np.array([m @ covariance @ m for m in modes.T])) @ modes.T
            yield from agree("cosine fit: covariance", found.covariance.as_matrix(), kept, 64)
    byte = np.array([[[0, 51]], [[102, 255]], [[204, 34]]], dtype=np.uint8)
    values = reals([[Fraction(2 * int(b), 255) - 1 for b in row] for row in byte.reshape(3, 2)])
    off = values - values.sum(axis=0) / 3
    of_bytes = oracle.fit(byte, "dense")
    yield from agree("fit of bytes: mean", of_bytes.mean.ravel(), values.sum(axis=0) / 3, 16)
    yield from agree("fit of bytes: covariance", of_bytes.covariance.as_matrix(), off.T @ off / 3, 64)
    rows, columns = (np.einsum(e, images - mean, images - mean) for e in ("ncij,nckj->ik", "ncij,ncik->jk"))
    product = kron(rows, columns) / np.trace(rows) / 10
    yield from agree("separable fit", oracle.fit(floats(images), "separable").covariance.as_matrix(), product, 64)
    proc, model = _resized("bilinear")
    known = integers(3, 4, seed=8) / 8
    denoiser = oracle.EmpiricalDenoiser(proc, floats(known))
    for t, s in ((4, 2), (2, 1), (5, 0)):
        r_t, r_s = model.operator(0, t), model.operator(0, s)
        x = integers(len(r_t), seed=t) / 8
        scores = [-real(sum((x - ALPHA[t] * r_t @ image) ** 2)) / (2 * real(SIGMA[t]) ** 2) for image in known]
        weights = [REAL.exp(score) for score in scores]
        want = sum(w * reals(r_s @ image) for w, image in zip(weights, known)) / sum(weights)
        found_mean = denoiser.posterior_mean(floats(x)[None], t, s)[0]
        yield from agree(f"perfect denoiser, {t} to {s}", found_mean, want, 256)
    samples = np.array([[0.0, 0.0], [0.9, 0.1], [1.0, 0.2], [0.1, 1.0]])
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found_coverage = oracle.coverage(samples, corners, np.array([0, 0, 1]))
    third, shares = real("4/3"), ((3, real("8/3")), (1, real("4/3")))
    yield from agree(
        "χ² of the modes", found_coverage.mode_chi2, sum((c - third) ** 2 / third for c in (1, 2, 1)) / 2, 8
    )
    yield from agree("χ² of the classes", found_coverage.class_chi2, sum((c - e) ** 2 / e for c, e in shares), 8)
    centre = reals(samples).sum(axis=0) / 4 - reals(corners).sum(axis=0) / 3
    yield from agree("squared distance of the means", found_coverage.mean_error, sum(centre**2), 64)
    spread = [((reals(a) - reals(a).sum(axis=0) / len(a)) ** 2).sum() / len(a) for a in (samples, corners)]
    yield from agree("ratio of the variances", found_coverage.variance_ratio, spread[0] / spread[1], 64)


def limits(_: Any) -> Iterator[Measurement]:
    """What must come out whatever the numbers: the marginals themselves."""
    proc, model = _resized("bilinear")
    data = _data(4)
    law = proc.posterior(np.zeros((1, 2)), np.zeros((1, 4)), 2, 3)
    clean = prediction_variance(model, data)
    yield from holds("one more step never adds information", clean >= 0)
    yield from agree("one size, one step: the prediction itself", *_single(proc, model, data), 2**12)
    yield from holds("a batch shares its covariance", law.covariance.shape == (4,))
    root = function_of(marginal(model, data, 2), REAL.sqrt)
    yield from agree("the reference's root", floats(root @ root), marginal(model, data, 2), 64)
    yield from refuses("order 2 with noise", ValueError, lambda: oracle.sampler_error(proc, floats(data), order=2))
    yield from refuses("order 3", ValueError, lambda: oracle.sampler_error(proc, floats(data), eta=0.0, order=3))
    yield from refuses("data of another size", ValueError, lambda: oracle.sampler_error(proc, np.eye(3)))
    yield from holds("the step is bilinear", Resize((4,), (2,)).kernel == "bilinear")


def prediction_variance(model: Reference, data: np.ndarray) -> float:
    r = model.operator(0, 3)
    w = ALPHA[3] * data @ r.T @ inverse(marginal(model, data, 3))
    return float(np.trace(data - w @ r @ data * ALPHA[3]))


def _single(proc: LinearDiffusion, model: Reference, data: np.ndarray) -> tuple[float, Any]:
    """Chain 1 → 0: x_0 is the prediction, whose covariance is α² C (α² C + σ²)⁻¹ C."""
    w = ALPHA[1] * data @ inverse(marginal(model, data, 1))
    p = w @ marginal(model, data, 1) @ w.T
    found = oracle.sampler_error(proc, floats(data), (1,))
    return found, frechet(zeros(4), p, data)
