"""Published changes of size beside ours, on Gaussian data: what law each leaves, exactly.

    python benchmarks/size_changes.py          # the tables in Markdown, a minute

A sampler holds a small state x_t whose law is right and makes a larger state x_s of it, 8 x 8 to 16 x 16. Every
method below does so by a linear map and Gaussian noise, x_s = G x_t + n (with the perfect prediction of Gaussian data
where it has one), so its law is exact linear algebra. "jump" is the squared 2-Wasserstein distance of that law to the
one it should have, N(0, a_s² C + σ_s² I), in units of σ_s² per pixel; "error" that of the finished images to the
data, after 100 ancestral steps at full size from there; "of it" its ratio to the same steps begun with the right law.
Relay Diffusion's states are blurred as well as noisy after the jump, so the law it should have and the steps are those
of its own blurring process.

Data: 16 x 16, variance of cosine mode (i, j) proportional to (1 + √(i² + j²))^-2.5, mean pixel variance ¼. The jumps
are those of the papers and their public code, named below, written afresh; everything else (noise schedule, the steps
after the jump, the perfect prediction) is the same for all, so this compares jumps, not systems. UDPM changes size at
each of a few large steps; here its rule is applied to one small step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import ssdcore as ssd

SIZE = 16
NOISE = ssd.NoiseSchedule.linear(1000)
LEVELS = (-4.0, 0.0, 4.0)  # log-SNR at the change
STEPS = 100


def data() -> ssd.Covariance:
    i = np.arange(SIZE)
    spectrum = (1 + np.sqrt(np.add.outer(i**2, i**2))) ** -2.5
    return ssd.Covariance.cosine(0.25 * spectrum / spectrum.mean())


@dataclass(frozen=True)
class Change:
    """x_s = G x_t + n from x_t ~ N(0, P_t), in units in which the state at s is alpha x_0 + sigma ε, or alpha D x_0 +
    sigma ε where the method's own states are blurred (by D of `relay_blur`)."""

    gain: np.ndarray
    noise: np.ndarray
    before: np.ndarray
    blurred: bool = False

    def law(self) -> np.ndarray:
        law = self.gain @ self.before @ self.gain.T + self.noise
        return (law + law.T) / 2


def _state(operator: np.ndarray, c: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    return alpha**2 * operator @ c @ operator.T + sigma**2 * np.eye(len(operator))


def _posterior(
    operator: np.ndarray, c: np.ndarray, s: tuple[float, float], t: tuple[float, float], full: bool
) -> Change:
    """Theorem 3 with the perfect prediction; `full` adds the variance that the prediction leaves open."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = s, t
    before = _state(operator, c, alpha_t, sigma_t)
    predict = alpha_t * c @ operator.T @ np.linalg.inv(before)
    b = (sigma_s / sigma_t) ** 2 * alpha_t / alpha_s * operator.T
    d = alpha_s * np.eye(len(c)) - alpha_t * b @ operator
    noise = sigma_s**2 * np.eye(len(c)) - sigma_t**2 * b @ b.T
    if full:
        noise = noise + d @ (c - predict @ before @ predict.T) @ d.T
    return Change(b + d @ predict, noise, before)


def _scaled(ratio: float, total: float = 1.0) -> tuple[float, float]:
    """(alpha, sigma) of that sigma/alpha with alpha² + sigma² = total."""
    alpha = math.sqrt(total / (1 + ratio**2))
    return alpha, ratio * alpha


def ours(c: np.ndarray, s: int, full: bool = False) -> Change:
    op = ssd.Resize((SIZE, SIZE), (SIZE // 2, SIZE // 2))
    pair = (NOISE.alpha[s], NOISE.sigma[s])
    ratio = NOISE.sigma[s + 1] / NOISE.alpha[s + 1] * op.norm()
    return _posterior(op.as_matrix(), c, pair, _scaled(ratio), full)


def the_paper(c: np.ndarray, s: int) -> Change:
    """Scale Space Diffusion (CVPR 2026): theorem 3, bilinear, the same sigma/alpha at every size."""
    op = ssd.Resize((SIZE, SIZE), (SIZE // 2, SIZE // 2)).as_matrix()
    return _posterior(op, c, (NOISE.alpha[s], NOISE.sigma[s]), (NOISE.alpha[s + 1], NOISE.sigma[s + 1]), False)


def _pairs() -> np.ndarray:
    """Orthonormal averages of 2 x 2 pixels."""
    axis = np.kron(np.eye(SIZE // 2), np.full((1, 2), math.sqrt(0.5)))
    return np.kron(axis, axis)


def _truncation() -> np.ndarray:
    """The lower half of the orthonormal cosines an axis."""

    def basis(n: int) -> np.ndarray:
        waves = np.cos(np.pi * np.outer(np.arange(n), np.arange(n) + 0.5) / n)
        return waves / np.linalg.norm(waves, axis=1, keepdims=True)

    axis = basis(SIZE // 2).T @ basis(SIZE)[: SIZE // 2]
    return np.kron(axis, axis)


def subspace(c: np.ndarray, s: int) -> Change:
    """Subspace Diffusion (Jing et al. 2022), its code's `upsampling_fn`: the state unpooled, in the rest noise of the
    one variance σ² + α² v, v the mean variance of the data there."""
    u, alpha, sigma = _pairs(), NOISE.alpha[s], NOISE.sigma[s]
    rest = np.eye(len(c)) - u.T @ u
    born = np.trace(rest @ c) / np.trace(rest)
    return Change(u.T, (sigma**2 + alpha**2 * born) * rest, _state(u, c, alpha, sigma))


def block_noise(c: np.ndarray, s: int, more_noise: float) -> Change:
    """A flow, α + σ = 1, of 2 x 2 averages: x_s = β Up(x_t) + (1 − α_s) n, n of the block covariance I − 1/z², which
    leaves white noise whatever z = `more_noise`, the ratio of σ/α after the jump to that before it; at least 2."""
    z, mean = more_noise, _pairs() / 2
    ratio = NOISE.sigma[s] / NOISE.alpha[s]  # of the state at s; on the small side 1/z of it
    alpha_t = 1 / (1 + ratio / z)
    sigma_t = 1 - alpha_t
    beta = 1 / (z * sigma_t + alpha_t)
    block = np.eye(len(c)) - (2 * mean).T @ (2 * mean) * 4 / z**2
    unit = NOISE.sigma[s] / (1 - beta * alpha_t)  # back to the units of alpha² + sigma² = 1
    return Change(unit * beta * 4 * mean.T, NOISE.sigma[s] ** 2 * block, _state(mean, c, alpha_t, sigma_t))


def ralu(c: np.ndarray, s: int) -> Change:
    """RALU (Jeong et al. 2025), its code's `generate_noise`: z fitted to the times of its steps, 6.3 at 4x speed."""
    return block_noise(c, s, 6.3)


def pyramid_flow(c: np.ndarray, s: int) -> Change:
    """Pyramid-Flow (Jin et al., ICLR 2025), its code's `sample_block_noise`, and PixelFlow (2025). A flow, α + σ = 1:
    x_s = k Up(x_t) + k √3 σ_t n, n of the 2 x 2 block covariance (4/3) I − 1/3, where k makes it a flow again."""
    mean = _pairs() / 2
    ratio = NOISE.sigma[s] / NOISE.alpha[s]  # of the state at s; on the small side half of it
    alpha_t = 1 / (1 + ratio / 2)
    sigma_t = 1 - alpha_t
    k = 1 / (alpha_t + 2 * sigma_t)
    up, block = 4 * mean.T, np.eye(len(c)) * 4 / 3 - (2 * mean).T @ (2 * mean) * 4 / 3
    unit = NOISE.sigma[s] / (2 * k * sigma_t)  # back to the units of alpha² + sigma² = 1
    return Change(unit * k * up, 3 * (unit * k * sigma_t) ** 2 * block, _state(mean, c, alpha_t, sigma_t))


def truncated(c: np.ndarray, s: int) -> Change:
    """SPEED (2026): cosines cut off, the new ones drawn as noise alone."""
    u, alpha, sigma = _truncation(), NOISE.alpha[s], NOISE.sigma[s]
    return Change(u.T, sigma**2 * (np.eye(len(c)) - u.T @ u), _state(u, c, alpha, sigma))


def udpm(c: np.ndarray, s: int) -> Change:
    """UDPM (Abu-Hussein and Giryes 2023), its code's `get_sigma_scalar`: theorem 2 with the one number
    1/(α_t/β_t + 1/(1 − ᾱ_s)) for the covariance, as if HᵀH were I; orthonormal averages, the perfect prediction."""
    h, squared_s, squared_t = _pairs(), NOISE.alpha[s] ** 2, NOISE.alpha[s + 1] ** 2
    step = squared_t / squared_s
    variance = 1 / (step / (1 - step) + 1 / (1 - squared_s))
    before = _state(h, c, math.sqrt(squared_t), math.sqrt(1 - squared_t))
    predict = math.sqrt(squared_t) * c @ h.T @ np.linalg.inv(before)
    gain = variance * (math.sqrt(step) / (1 - step) * h.T + math.sqrt(squared_s) / (1 - squared_s) * predict)
    return Change(gain, variance * np.eye(len(c)), before)


def relay_blur(s: int) -> np.ndarray:
    """D at that noise: cosines of 2 x 2 patches damped as heat does, but for a thousandth of each."""
    level = math.log(NOISE.sigma[s] / NOISE.alpha[s])
    share = 0.5 * (1 + math.erf((level + 1.2) / 1.2 / math.sqrt(2))) / 0.93
    width = 3 * math.sin(min(share, 1.0) * math.pi / 2) ** 2
    squared = (np.pi / 2 * np.arange(2)) ** 2
    damped = np.exp(-np.add.outer(squared, squared) * width**2 / 2) * (1 - 0.001) + 0.001
    cosines = np.array([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2)
    axis = np.kron(np.eye(SIZE // 2), cosines)
    patches = np.kron(axis, axis)
    modes = np.tile(damped, (SIZE // 2, SIZE // 2)).ravel()
    return patches.T @ (modes[:, None] * patches)


def relay(c: np.ndarray, s: int) -> Change:
    """Relay Diffusion (Teng et al., ICLR 2024), its code's `blur_sampler`: the finished small image, nearest
    upsampled, and noise; from there on a blurring process, whose state it takes this for."""
    mean = _pairs() / 2
    return Change(NOISE.alpha[s] * 4 * mean.T, NOISE.sigma[s] ** 2 * np.eye(len(c)), mean @ c @ mean.T, blurred=True)


METHODS: tuple[tuple[str, Callable[[np.ndarray, int], Change], str], ...] = (
    ("ours: matched noise", ours, "new modes lack α² Var(x_0 given x_t)"),
    ("ours: matched noise, theory (13)", lambda c, s: ours(c, s, full=True), "none"),
    ("Scale Space Diffusion", the_paper, "the same; the coarse modes' SNR falls by 4 at once"),
    ("Subspace Diffusion", subspace, "new modes' variance is one number, independent of x_t"),
    ("Pyramid-Flow, PixelFlow", pyramid_flow, "new modes are noise alone: its own process starts each stage so"),
    ("RALU", ralu, "the same law, with more noise put back, from a less noisy small state"),
    ("Relay Diffusion", relay, "what the blur D of its process leaves of the new modes"),
    ("SPEED", truncated, "new modes are noise alone"),
    ("UDPM", udpm, "one number for the covariance: new modes get too little noise and too little signal"),
)  # fmt: skip


def distance(p: np.ndarray, q: np.ndarray) -> float:
    """Squared 2-Wasserstein distance of two centred Gaussians."""
    values, vectors = np.linalg.eigh(q)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ p @ root), 0)).sum()
    return max(float(np.trace(p) + np.trace(q) - 2 * overlap), 0.0)


def right_law(s: int, blurred: bool) -> np.ndarray:
    degradation = relay_blur(s) if blurred else np.eye(SIZE**2)
    return _state(degradation, data().as_matrix(), NOISE.alpha[s], NOISE.sigma[s])


def finish(law: np.ndarray, s: int, blurred: bool) -> float:
    """Error of the images after STEPS ancestral steps from that law at s, by the exact oracle."""
    shape, times = (SIZE, SIZE), sorted({round(t) for t in np.linspace(1, s, min(STEPS, s))})
    noise = ssd.NoiseSchedule(NOISE.alpha[[0, *times]], NOISE.sigma[[0, *times]])
    if blurred:
        proc = ssd.LinearDiffusion.from_operators([ssd.Matrix(relay_blur(t), shape, shape) for t in times], noise)
    else:
        proc = ssd.LinearDiffusion.identity(shape, noise)
    start = ssd.Gaussian(np.zeros(shape), ssd.Covariance.dense(law, shape))
    return ssd.oracle.sampler_error(proc, data(), range(1, len(times) + 1), prior=start)


def rows() -> list[tuple[str, float, float, float, float, str]]:
    """(method, log-SNR, jump, error, ratio, what is wrong)."""
    c = data().as_matrix()
    result = []
    for wanted in LEVELS:
        s = int(np.argmin(np.abs(NOISE.log_snr() - wanted))) + 1
        right = {blurred: right_law(s, blurred) for blurred in (False, True)}
        ideal = {blurred: finish(law, s, blurred) for blurred, law in right.items()}
        for name, method, wrong in METHODS:
            change = method(c, s)
            error = finish(change.law(), s, change.blurred)
            jump = distance(change.law(), right[change.blurred]) / (NOISE.sigma[s] ** 2 * len(c))
            result.append((name, wanted, jump, error, error / ideal[change.blurred], wrong))
    return result


def main() -> None:
    found = rows()
    for wanted in LEVELS:
        print(f"\nThe change at a log-SNR of {wanted:g}:\n")
        print("| method | jump | error | of it | what the law lacks |\n|---|---|---|---|---|")
        for name, level, jump, error, ratio, wrong in found:
            if level == wanted:
                print(f"| {name} | {jump:.2e} | {error:.4g} | {ratio:.4g} | {wrong} |")


if __name__ == "__main__":
    main()
