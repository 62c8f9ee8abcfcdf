"""Golden rows of processes: sizes, matched noise, transitions, posteriors, priors, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise, product
from typing import Any

import numpy as np

from ssdcore.conditioning import InadmissibleProcess
from ssdcore.gaussian import Covariance
from ssdcore.operators import Identity, Matrix, Resize
from ssdcore.process import LinearDiffusion
from ssdcore.schedules import NoiseSchedule, ResolutionSchedule
from ssdcore.testing._report import Measurement
from ssdcore.testing.golden._exact import (
    REAL,
    agree,
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
)
from ssdcore.testing.golden._model import Reference
from ssdcore.testing.golden._operators import blur_matrix, resize_matrix
from ssdcore.testing.golden._schedules import levels_of, linear_betas

_HALF = REAL.mpf(1) / 2
# binary fractions, so that float64 has them exactly; neither variance preserving nor exploding
ALPHA = reals([1.0, 0.9375, 0.75, 0.5, 0.375, 0.125])
SIGMA = reals([0.0, 0.25, 0.5, 0.75, 0.875, 1.0])


def noise() -> NoiseSchedule:
    return NoiseSchedule(floats(ALPHA), floats(SIGMA))


def example() -> tuple[LinearDiffusion, Reference]:
    """(2, 3) to (1, 3) at t = 2 by a resize, to two values at t = 4 by a dense matrix of sign −1 and no symmetry."""
    down = kron(resize_matrix(2, 1, "bilinear"), eye(3))
    dense = reals([["-1/2", "1/4", "0"], ["1/8", "-1/4", "-1/2"]])
    ops = [None, Resize((2, 3), (1, 3)), None, -1.0 * Matrix(floats(-dense), (1, 3), (2,)), None]
    proc = LinearDiffusion.from_operators(ops, noise())
    return proc, Reference(6, [None, down, None, dense, None], ALPHA, SIGMA)


PAIRS = ((0, 1), (0, 5), (1, 2), (2, 3), (1, 3), (3, 4), (2, 5), (4, 5), (1, 5))
ETAS = (1, 0.5, 0)


def sizes(_: Any) -> Iterator[Measurement]:
    """Which size the state has when, and which resize takes it there."""
    base = NoiseSchedule.linear(40)
    levels = ResolutionSchedule.thresholds([11, 21])
    proc = LinearDiffusion.resize((12, 6), base, levels)
    found = [proc.shape(t) for t in (0, 1, 10, 11, 20, 21, 40)]
    want = [(12, 6)] * 3 + [(6, 3)] * 2 + [(3, 2)] * 2  # 6/4 = 1.5 rounds to the even 2
    yield from holds(f"sizes by 2 a level, from each start on, got {found}", found == want)
    yield from holds(f"changes at 11 and 21, got {proc.size_changes}", proc.size_changes == (11, 21))
    third = LinearDiffusion.resize((27, 9), base, levels, factor=3, kernel="box")
    yield from holds("factor 3", third.shapes == ((27, 9), (9, 3), (3, 1)))
    own = LinearDiffusion.resize((9, 9), base, levels, sizes=[(9, 9), (9, 4), (2, 4)], kernel="bicubic")
    yield from holds("sizes of one's own", own.shapes == ((9, 9), (9, 4), (2, 4)))
    x = integers(9, 9)
    a, b = resize_matrix(9, 2, "bicubic"), resize_matrix(9, 4, "bicubic")
    yield from agree("the clean image after two changes, kernel kept", own.clean(floats(x), 30), a @ x @ b.T, 81)
    step = Resize((12, 6), (6, 3)).as_matrix()
    yield from agree(
        "resize from 10 to 11",
        proc.degradation(10, 11).as_matrix(),
        reals(proc.alpha(11))
        / reals(proc.alpha(10))
        * kron(resize_matrix(12, 6, "bilinear"), resize_matrix(6, 3, "bilinear")),
        8,
    )
    yield from holds("its shape", step.shape == (18, 72))
    chosen = proc.respace([5, 15, 40])
    yield from holds("times of a respaced process", chosen.times == (5, 15, 40) and chosen.steps == 3)
    yield from holds("and again", chosen.respace([1, 3]).times == (5, 40))
    yield from holds("its shapes", [chosen.shape(t) for t in range(4)] == [(12, 6), (12, 6), (6, 3), (3, 2)])
    yield from agree("its σ", [chosen.sigma(t) for t in (1, 2, 3)], reals([proc.sigma(t) for t in (5, 15, 40)]))
    two = kron(resize_matrix(6, 3, "bilinear"), resize_matrix(3, 2, "bilinear")) @ kron(
        resize_matrix(12, 6, "bilinear"), resize_matrix(6, 3, "bilinear")
    )
    ratio = reals(proc.alpha(40)) / reals(proc.alpha(5))
    yield from agree("from 5 to 40 in one step", chosen.degradation(1, 3).as_matrix(), ratio * two, 72)


def matched_noise(_: Any) -> Iterator[Measurement]:
    """σ/α is that of the base times κ, the product of the exact norms of the changes so far."""
    alpha, sigma = levels_of(linear_betas(40))
    base = [s / a for a, s in zip(alpha, sigma)]
    for kernel, shapes in (
        ("bilinear", [(8, 8), (4, 4), (2, 2)]),
        ("box", [(8,), (4,), (2,)]),
        ("bicubic", [(9, 6), (4, 3), (2, 2)]),
    ):
        levels = ResolutionSchedule.thresholds([11, 21])
        proc = LinearDiffusion.resize(shapes[0], NoiseSchedule.linear(40), levels, kernel=kernel, sizes=shapes)
        kappa = [REAL.mpf(1)]
        for high, low in pairwise(shapes):
            norms = [svd(resize_matrix(n, m, kernel))[1][0] for n, m in zip(high, low)]
            kappa.append(kappa[-1] * norms[0] * (norms[1] if len(norms) > 1 else 1))
        want = [base[t] * kappa[(t >= 11) + (t >= 21)] for t in range(1, 41)]
        ratio = [proc.sigma(t) / proc.alpha(t) for t in range(1, 41)]
        yield from agree(f"{kernel}: σ/α", ratio, want, 64 * 64, relative=True)
        total = [proc.sigma(t) ** 2 + proc.alpha(t) ** 2 for t in range(41)]
        yield from agree(f"{kernel}: α² + σ² = 1", total, [1] * 41, 8)
        paper = LinearDiffusion.resize(
            shapes[0], NoiseSchedule.linear(40), levels, matched=False, kernel=kernel, sizes=shapes
        )
        ratio = [paper.sigma(t) / paper.alpha(t) for t in range(1, 41)]
        yield from agree(f"{kernel}: σ/α of the paper's noise", ratio, base[1:], 64 * 64, relative=True)
    # theory's table: the norm of a bilinear halving is above ½, so κ = ½ would not be admissible
    change = LinearDiffusion.resize((8, 8), NoiseSchedule.linear(40), ResolutionSchedule.thresholds([20]))
    least = LinearDiffusion.resize((8, 8), NoiseSchedule.linear(40), ResolutionSchedule.thresholds([20]), matched=False)
    kappa_of_one = (change.sigma(20) / change.alpha(20)) / (least.sigma(20) / least.alpha(20))
    yield from agree("κ of 8 to 4", kappa_of_one, (1245 + 13 * REAL.sqrt(673)) / REAL.mpf(3136), 64)


def transitions(_: Any) -> Iterator[Measurement]:
    proc, model = example()
    x0 = integers(2, 6)
    for t in range(1, 6):
        law = proc.marginal(floats(x0).reshape(2, 2, 3), t)
        mean = x0 @ (ALPHA[t] * model.operator(0, t)).T
        yield from agree(f"marginal mean at {t}", law.mean.reshape(2, -1), mean, 36)
        yield from agree(f"marginal covariance at {t}", law.covariance.as_matrix(), SIGMA[t] ** 2 * eye(mean.shape[1]))
        clean = proc.clean(floats(x0).reshape(2, 2, 3), t)
        yield from agree(f"clean image at {t}", clean.reshape(2, -1), x0 @ model.operator(0, t).T, 36)
        z = integers(2, mean.shape[1], seed=20 + t)
        noisy = proc.add_noise(floats(x0).reshape(2, 2, 3), floats(z).reshape(2, *proc.shape(t)), t)
        yield from agree(f"noisy images at {t}", noisy.reshape(2, -1), mean + SIGMA[t] * z, 36)
    z = integers(2, 3, seed=30)
    noisy = proc.add_noise(floats(x0).reshape(2, 2, 3), floats(z).reshape(2, 1, 3), np.array([2, 3]))
    want = [x0[i] @ (ALPHA[t] * model.operator(0, t)).T + SIGMA[t] * z[i] for i, t in enumerate((2, 3))]
    yield from agree("noisy images, a time for each", noisy.reshape(2, -1), np.stack(want), 36)
    groups = [(path.times, path.shape, path.target_shape) for path in proc.paths]
    paths = [((1,), (2, 3), (2, 3)), ((2,), (1, 3), (2, 3)), ((3,), (1, 3), (1, 3)), ((4,), (2,), (1, 3)),
             ((5,), (2,), (2,))]  # fmt: skip
    yield from holds(f"paths {paths}, got {groups}", [(tuple(t), *shapes) for t, *shapes in groups] == paths)
    for s, t in PAIRS:
        yield from agree(f"R from {s} to {t}, unscaled", proc.operator(s, t).as_matrix(), model.operator(s, t), 36)
        m, covariance = model.transition(s, t)
        x = integers(2, m.shape[1], seed=s)
        law = proc.transition(floats(x).reshape(2, *proc.shape(s)), s, t)
        yield from agree(f"degradation {s} to {t}", proc.degradation(s, t).as_matrix(), m, 36)
        yield from agree(f"transition mean {s} to {t}", law.mean.reshape(2, -1), x @ m.T, 36)
        yield from agree(f"transition covariance {s} to {t}", law.covariance.as_matrix(), covariance, 36)
        z = integers(2, len(m), seed=t)
        root = function_of(covariance, REAL.sqrt)
        drawn = law.sample(floats(z).reshape(2, *proc.shape(t))).reshape(2, -1)
        yield from agree(f"a draw of the transition {s} to {t}", drawn, x @ m.T + z @ root, 144)


def posteriors(_: Any) -> Iterator[Measurement]:
    proc, model = example()
    for s, t in PAIRS:
        n, k = model.size_at(s), model.size_at(t)
        clean, x = integers(n, seed=s), integers(k, seed=t + 10)
        state, image = floats(x).reshape(proc.shape(t)), floats(clean).reshape(proc.shape(s))
        for eta in ETAS:
            mean, covariance = model.posterior(x, clean, s, t, eta)
            law = proc.posterior(state, image, s, t, eta=float(eta))
            what = f"posterior {s} from {t}, eta {eta}"
            yield from agree(f"{what}: mean", law.mean.reshape(-1), mean, 144)
            yield from agree(f"{what}: covariance", law.covariance.as_matrix(), covariance, 144)
            if s > 0:
                z = integers(n, seed=3)
                root = function_of(covariance, REAL.sqrt)
                drawn = law.sample(floats(z).reshape(proc.shape(s))).reshape(-1)
                yield from agree(f"{what}: a draw", drawn, mean + root @ z, 2**20)  # the root of a rounded zero
        if s > 0:
            mean, covariance = model.conditioned(x, clean, s, t)
            law = proc.posterior(state, image, s, t)
            yield from agree(f"posterior {s} from {t}, Bayes' rule: mean", law.mean.reshape(-1), mean, 144)
            yield from agree(
                f"posterior {s} from {t}, Bayes' rule: covariance", law.covariance.as_matrix(), covariance, 144
            )


def destroyed_modes(_: Any) -> Iterator[Measurement]:
    """An operator of lower rank than its size, of either sign: what it destroys is drawn afresh at every eta."""
    low = reals([["1/2", "-1/4", "1/8"], ["-1/4", "1/2", "1/2"], ["1/4", "1/4", "5/8"]])  # the last row is a sum
    for sign in (1, -1):
        proc = LinearDiffusion.from_operators([None, sign * Matrix(floats(low)), None, None, None], noise())
        model = Reference(3, [None, sign * low, None, None, None], ALPHA, SIGMA)
        x, clean = integers(3, seed=1), integers(3, seed=2)
        for (s, t), eta in product(((1, 2), (1, 5)), ETAS):
            mean, covariance = model.posterior(x, clean, s, t, eta)
            law = proc.posterior(floats(x), floats(clean), s, t, eta=float(eta))
            what = f"rank two of three, sign {sign}, posterior {s} from {t}, eta {eta}"
            yield from agree(f"{what}: mean", law.mean, mean, 64)
            yield from agree(f"{what}: covariance", law.covariance.as_matrix(), covariance, 64)
    wider = Matrix(np.array([[0.5], [0.25]]))  # more values at t than at s: what is never reached is noise alone
    proc = LinearDiffusion.from_operators([None, wider, None, None, None], noise())
    model = Reference(1, [None, reals([["1/2"], ["1/4"]]), None, None, None], ALPHA, SIGMA)
    covariance = model.transition(1, 2)[1]
    found = proc.transition(np.zeros(1), 1, 2).covariance.as_matrix()
    yield from agree("to more values: transition covariance", found, covariance, 8)
    for eta in ETAS:
        mean, covariance = model.posterior(integers(2, seed=3), integers(1, seed=4), 1, 2, eta)
        law = proc.posterior(floats(integers(2, seed=3)), floats(integers(1, seed=4)), 1, 2, eta=float(eta))
        yield from agree(f"from more values, eta {eta}: mean", law.mean, mean, 8)
        yield from agree(f"from more values, eta {eta}: covariance", law.covariance.as_matrix(), covariance, 8, scale=1)


def open_predictions(_: Any) -> Iterator[Measurement]:
    """Posteriors that put back what a prediction leaves open: D C Dᵀ on top, D = α_s − α_t B R."""
    proc, model = example()
    for s, t in ((1, 2), (3, 4), (1, 5), (2, 3)):
        n = model.size_at(s)
        factor = integers(n, n, seed=7) / 8
        dense = factor @ factor.T + eye(n) / 4
        x, clean = integers(model.size_at(t), seed=1), integers(n, seed=2)
        state, image = floats(x).reshape(proc.shape(t)), floats(clean).reshape(proc.shape(s))
        forms = (
            ("dense", Covariance.dense(floats(dense), proc.shape(s)), dense),
            ("isotropic", Covariance.isotropic(proc.shape(s), 0.75), 0.75 * eye(n)),
        )
        for (form, left_open, matrix), eta in product(forms, ETAS):
            mean, covariance = model.posterior(x, clean, s, t, eta)
            d = ALPHA[s] * eye(n) - ALPHA[t] * model.gain(s, t, eta) @ model.operator(s, t)
            law = proc.posterior(state, image, s, t, eta=float(eta), clean_covariance=left_open)
            what = f"posterior {s} from {t}, eta {eta}, {form} covariance of the clean image"
            yield from agree(f"{what}: mean", law.mean.ravel(), mean, 144)
            yield from agree(f"{what}: covariance", law.covariance.as_matrix(), covariance + d @ matrix @ d.T, 1024)


def diffusion(_: Any) -> Iterator[Measurement]:
    """Ordinary diffusion: DDPM's and DDIM's own formulas, for neighbours and across."""
    alpha, sigma = levels_of(linear_betas(1000))
    proc = LinearDiffusion.identity((3,), NoiseSchedule.linear(1000))
    x, clean = integers(3, seed=1), integers(3, seed=2)
    for s, t in ((499, 500), (100, 900), (1, 2), (999, 1000)):
        beta = 1 - (alpha[t] / alpha[s]) ** 2
        for eta in ETAS:
            variance = real(eta) ** 2 * sigma[s] ** 2 / sigma[t] ** 2 * beta
            noise_part = (x - alpha[t] * clean) / sigma[t]
            mean = alpha[s] * clean + REAL.sqrt(sigma[s] ** 2 - variance) * noise_part
            law = proc.posterior(floats(x), floats(clean), s, t, eta=float(eta))
            yield from agree(f"DDIM {s} from {t}, eta {eta}: mean", law.mean, mean, 4000)
            yield from agree(
                f"DDIM {s} from {t}, eta {eta}: variance",
                law.covariance(np.ones(3)),
                [variance] * 3,
                4000 / float(beta),
            )
        ddpm = alpha[s] * beta / sigma[t] ** 2 * clean + alpha[t] / alpha[s] * sigma[s] ** 2 / sigma[t] ** 2 * x
        yield from agree(f"DDPM {s} from {t}: mean", proc.posterior(floats(x), floats(clean), s, t).mean, ddpm, 4000)
        law = proc.transition(floats(x), s, t)
        yield from agree(f"forward {s} to {t}: mean", law.mean, alpha[t] / alpha[s] * x, 4000)
        yield from agree(f"forward {s} to {t}: variance", law.covariance(np.ones(3)), [beta] * 3, 4000 / float(beta))


def blurring(_: Any) -> Iterator[Measurement]:
    """R_{s→t} is a blur of variance widths[t]² − widths[s]²."""
    widths = [0.0, 0.75, 1.25, 1.25, 2.0, 3.0]
    for boundary in ("reflect", "periodic"):
        proc = LinearDiffusion.blur((4,), noise(), widths, boundary)
        steps = [
            blur_matrix_of(4, Fraction(b) ** 2 - Fraction(a) ** 2, boundary) if b > a else None
            for a, b in pairwise(widths)
        ]
        model = Reference(4, steps, ALPHA, SIGMA)
        x, clean = integers(4, seed=4), integers(4, seed=5)
        yield from agree(
            f"{boundary} blur of the clean image",
            proc.clean(floats(clean), 5),
            blur_matrix(4, Fraction(3), boundary) @ clean,
            16,
            scale=8,
        )
        for s, t in ((0, 5), (1, 2), (2, 3), (1, 4), (4, 5)):
            m, covariance = model.transition(s, t)
            yield from agree(f"{boundary} blur {s} to {t}", proc.degradation(s, t).as_matrix(), m, 64)
            law = proc.transition(floats(x), s, t)
            yield from agree(f"{boundary} blur {s} to {t}: covariance", law.covariance.as_matrix(), covariance, 64)
            for eta in ETAS:
                mean, covariance_s = model.posterior(x, clean, s, t, eta)
                back = proc.posterior(floats(x), floats(clean), s, t, eta=float(eta))
                what = f"{boundary} blur, posterior {s} from {t}, eta {eta}"
                yield from agree(f"{what}: mean", back.mean, mean, 256)
                yield from agree(f"{what}: covariance", back.covariance.as_matrix(), covariance_s, 256)


def blur_matrix_of(n: int, variance: Fraction, boundary: str) -> np.ndarray:
    """A blur of a variance whose root need not be a fraction."""
    matrix = np.full((n, n), REAL.mpf(0), dtype=object)
    one = blur_matrix(n, Fraction(1), boundary)
    # the response is exp(−variance ω²/2): the same modes, responses of width 1 to the power `variance`
    matrix = function_of(one, lambda z: REAL.power(z, real(variance)))
    return matrix


def arrays_of_times(_: Any) -> Iterator[Measurement]:
    """The same laws for a batch in which each item has its own times."""
    widths = [0.0, 0.75, 1.25, 1.25, 2.0, 3.0]
    blur = LinearDiffusion.blur((4,), noise(), widths)
    steps = [
        blur_matrix_of(4, Fraction(b) ** 2 - Fraction(a) ** 2, "reflect") if b > a else None
        for a, b in pairwise(widths)
    ]
    halving = LinearDiffusion.resize((4,), noise(), ResolutionSchedule.thresholds([4]), matched=False)
    down = resize_matrix(4, 2, "bilinear")
    plain = LinearDiffusion.identity((4,), noise())
    for what, proc, changes, before, after in (
        ("one size", plain, [None] * 5, [1, 2, 1], [2, 5, 4]),
        ("blur", blur, steps, [1, 2, 1], [2, 5, 4]),
        ("resize, a change", halving, [None, None, None, down, None], [1, 3, 2], [4, 4, 5]),
    ):
        model = Reference(4, changes, ALPHA, SIGMA)
        n = model.size_at(after[0])
        x, clean, x_s = integers(3, n, seed=1), integers(3, 4, seed=2), integers(3, 4, seed=3)
        s, t = np.array(before), np.array(after)
        forward = proc.transition(floats(x_s), s, t)
        units = np.broadcast_to(np.eye(n)[:, None], (n, 3, n))
        found = np.stack([forward.covariance(unit) for unit in units], axis=-1)
        for i in range(3):
            m, covariance = model.transition(before[i], after[i])
            where = f"{what}, {before[i]} to {after[i]} of an array"
            yield from agree(f"{where}: transition mean", forward.mean[i], m @ x_s[i], 64)
            yield from agree(f"{where}: transition covariance", found[i], covariance, 64)
        for eta in ETAS:
            law = proc.posterior(floats(x), floats(clean), s, t, eta=float(eta))
            units = np.broadcast_to(np.eye(4)[:, None], (4, 3, 4))
            found = np.stack([law.covariance(unit) for unit in units], axis=-1)
            for i in range(3):
                mean, covariance = model.posterior(x[i], clean[i], before[i], after[i], eta)
                where = f"{what}, {before[i]} from {after[i]} of an array, eta {eta}"
                yield from agree(f"{where}: mean", law.mean[i], mean, 256)
                yield from agree(f"{where}: covariance", found[i], covariance, 256)
        left_open = Covariance.isotropic((4,), 0.75)
        regular = proc.posterior(floats(x), floats(clean), s, t)
        wider = proc.posterior(floats(x), floats(clean), s, t, clean_covariance=left_open)
        roots = np.stack([regular.covariance.root(unit) for unit in units], axis=-1)
        found = np.stack([wider.covariance(unit) for unit in units], axis=-1)
        densities = regular.log_prob(floats(x_s))
        for i in range(3):
            mean, covariance = model.posterior(x[i], clean[i], before[i], after[i], 1)
            d = ALPHA[before[i]] * eye(4) - ALPHA[after[i]] * model.gain(before[i], after[i], 1) @ model.operator(
                before[i], after[i]
            )
            where = f"{what}, {before[i]} from {after[i]} of an array"
            yield from agree(f"{where}: open prediction", found[i], covariance + 0.75 * d @ d.T, 1024)
            yield from agree(f"{where}: root", roots[i], function_of(covariance, REAL.sqrt), 256)
            off = x_s[i] - mean
            exponent = off @ inverse(covariance) @ off + np.trace(function_of(2 * REAL.pi * covariance, REAL.log))
            yield from agree(f"{where}: log density", densities[i], -exponent / 2, 1024)
        x0 = integers(3, 4, seed=5)
        law = proc.marginal(floats(x0), t)
        for i in range(3):
            mean = ALPHA[after[i]] * model.operator(0, after[i]) @ x0[i]
            yield from agree(f"{what}, {after[i]} of an array: marginal mean", law.mean[i], mean, 64)


def priors(_: Any) -> Iterator[Measurement]:
    """α_T² C + σ_T² I around α_T m, for every form of covariance."""
    proc, _model = example()
    a, variance = ALPHA[5], SIGMA[5] ** 2
    law = proc.prior()
    yield from agree("prior without data: covariance", law.covariance.as_matrix(), variance * eye(2))
    yield from agree("prior without data: mean", law.mean, [0, 0])
    mean, c = integers(3, 2), reals([["2", "1/2"], ["1/2", "1"]])
    law = proc.prior(floats(mean), floats(c))
    yield from agree("prior, covariance over pixels: mean", law.mean, a * mean)
    yield from agree("prior, covariance over pixels", law.covariance.as_matrix(), a**2 * c + variance * eye(2), 8)
    factor = integers(6, 6, seed=5)
    full = factor @ factor.T
    law = proc.prior(floats(mean), floats(full))
    yield from agree(
        "prior, covariance over channels and pixels", law.covariance.as_matrix(), a**2 * full + variance * eye(6), 36
    )
    direction = Matrix(np.array([[0.6, 0.8]]))  # one mode of two: the rest has a variance of its own
    law = proc.prior(None, Covariance.of_modes(direction, [3.0], 0.5))
    v = reals([["3/5"], ["4/5"]])
    want = a**2 * (3 * v @ v.T + _HALF * (eye(2) - v @ v.T)) + variance * eye(2)
    yield from agree("prior, covariance of modes with a rest", law.covariance.as_matrix(), want, 8)


def admissible(_: Any) -> Iterator[Measurement]:
    """σ_t² >= σ_s² ‖M‖², to the rounding of float64: equality is a process, a little less is none."""
    shrink = 0.5 * Identity((2,))

    def process(short: float, operator: Any = shrink) -> LinearDiffusion:
        # at the last step σ_t² must be at least 0.25 · 0.25 · … exactly: (0.5 · 0.5 · 0.5)²
        levels = NoiseSchedule(np.array([1.0, 1.0, 0.5]), np.array([0.0, 0.5, 0.125 * (1 - short)]))
        return LinearDiffusion.from_operators([None, operator], levels)

    law = process(0.0).transition(np.ones(2), 1, 2)
    yield from agree("equality: a transition without noise", law.covariance.as_matrix(), [[0, 0], [0, 0]])
    yield from agree("equality: its mean", law.mean, [0.25] * 2)
    for short in (1e-2, 1e-6, 1e-9, 1e-12):
        yield from refuses(f"noise too small by {short:g}", InadmissibleProcess, lambda short=short: process(short))  # type: ignore[misc]
    yield from refuses(
        "a dense operator that grows", InadmissibleProcess, lambda: process(0.0, Matrix([[0.5, 0.001], [0.0, 0.5]]))
    )
    yield from refuses(
        "noise that falls",
        InadmissibleProcess,
        lambda: LinearDiffusion.identity((2,), NoiseSchedule(np.ones(3), np.array([0.0, 0.5, 0.499999]))),
    )
    # κ = ½ a level at 8 × 8 → 4 × 4 is refused, the exact norm is not (theorem scale_matched_admissible)
    base, halving = NoiseSchedule.linear(1000), Resize((8, 8), (4, 4))
    for kappa, wrong in ((0.5, True), (halving.norm(), False)):
        factors = np.ones(1001)
        factors[751:] = kappa
        ops = [None] * 750 + [halving] + [None] * 249
        make = lambda ops=ops, factors=factors: LinearDiffusion.from_operators(ops, base.scaled(factors))  # noqa: E731
        if wrong:
            yield from refuses("κ = ½ at 8 × 8 to 4 × 4", InadmissibleProcess, make)
        else:
            yield from holds("κ by the exact norm is accepted", make().steps == 1000)
    proc, _model = example()
    x, high = np.zeros((1, 3)), np.zeros((2, 3))
    for what, call in (
        ("s = t", lambda: proc.transition(x, 2, 2)),
        ("s > t", lambda: proc.posterior(high, x, 2, 1)),
        ("eta above 1", lambda: proc.posterior(x, high, 1, 2, eta=1.001)),
        ("eta below 0", lambda: proc.posterior(x, high, 1, 2, eta=-0.001)),
        ("a time after T", lambda: proc.sigma(6)),
        ("a state of the wrong size", lambda: proc.posterior(high, high, 1, 2)),
        ("a clean image of the wrong size", lambda: proc.posterior(x, x, 1, 2)),
        ("times that do not grow", lambda: proc.respace([2, 2])),
        ("widths that fall", lambda: LinearDiffusion.blur((4,), noise(), [0, 1, 2, 3, 2, 4])),
        ("a blur of the clean image", lambda: LinearDiffusion.blur((4,), noise(), [1, 1, 2, 3, 4, 5])),
    ):
        yield from refuses(what, ValueError, call)
