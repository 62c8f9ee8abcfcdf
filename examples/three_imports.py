"""Three imports and three lines for a step of sampling across a change of size, against the same written by hand.

The step draws x_s from q(x_s | x_t, x_0), 3×16×16 states to 3×32×32, in three libraries. By hand, the resize is the one
that each library has (numpy has none), its transpose comes from automatic differentiation or a transposed matrix, and
the square root of the covariance from Lanczos iteration (a sample at a time, as in the paper's code) or a dense matrix.
By hand every call computes its square root, since each step of a chain has another; ssdcore keeps one decomposition
of the resize for all of them.

    python examples/three_imports.py
"""

from __future__ import annotations

import functools
import inspect
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from ssdcore import LinearDiffusion, NoiseSchedule, ResolutionSchedule

HIGH, LOW, BATCH = 32, 16, 16
S, T = 499, 500  # the state at T is the first small one

PROCESS = LinearDiffusion.resize(
    (HIGH, HIGH), NoiseSchedule.linear(), ResolutionSchedule.thresholds([T]), matched=False
)


def by_ssdcore(x_t: Any, clean: Any, noise: Any) -> Any:
    """The step in any of the libraries, with the process made once, above, for all steps."""
    law = PROCESS.posterior(x_t, clean, S, T)
    return law.sample(noise)


def by_hand_torch(x_t: torch.Tensor, clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """interpolate, its transpose by autograd, and 40 Lanczos steps per sample for the square root."""
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    alpha_s, alpha_t = alpha_bar[S - 1].sqrt(), alpha_bar[T - 1].sqrt()
    sigma_s, sigma_t = (1 - alpha_bar[S - 1]).sqrt(), (1 - alpha_bar[T - 1]).sqrt()
    ratio, rho = alpha_t / alpha_s, (sigma_s / sigma_t) ** 2

    def down(x: torch.Tensor) -> torch.Tensor:
        return ratio * torch.nn.functional.interpolate(x, size=(LOW, LOW), mode="bilinear", antialias=True)

    def up(y: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = torch.zeros(*y.shape[:-2], HIGH, HIGH, dtype=y.dtype, requires_grad=True)
            return torch.autograd.grad(down(x), x, y)[0]

    def covariance(v: torch.Tensor) -> torch.Tensor:
        return v - rho * up(down(v[None]))[0]

    def root(v: torch.Tensor, steps: int = 40) -> torch.Tensor:
        length = v.norm()
        basis, diagonal, off = [v / length], [], []
        for _ in range(steps):
            w = covariance(basis[-1])
            diagonal.append((w * basis[-1]).sum())
            for q in basis:  # orthogonal to all that came before
                w = w - (w * q).sum() * q
            off.append(w.norm())
            basis.append(w / off[-1])
        side = torch.stack(off[:-1])
        tridiagonal = torch.diag(torch.stack(diagonal)) + torch.diag(side, 1) + torch.diag(side, -1)
        values, vectors = torch.linalg.eigh(tridiagonal)
        weights = vectors @ (values.clamp(min=0).sqrt() * vectors[0])
        return length * torch.einsum("k,kchw->chw", weights, torch.stack(basis[:-1]))

    mean_s = alpha_s * clean
    mean = mean_s + rho * up(x_t - down(mean_s))
    return mean + sigma_s * torch.stack([root(v) for v in noise])


def by_hand_jax(x_t: jax.Array, clean: jax.Array, noise: jax.Array) -> jax.Array:
    """jax.image.resize, its transpose by linear_transpose, and a dense square root."""
    alpha_bar = jnp.cumprod(1 - jnp.linspace(1e-4, 0.02, 1000))
    alpha_s, alpha_t = jnp.sqrt(alpha_bar[S - 1]), jnp.sqrt(alpha_bar[T - 1])
    sigma_s, sigma_t = jnp.sqrt(1 - alpha_bar[S - 1]), jnp.sqrt(1 - alpha_bar[T - 1])
    ratio, rho = alpha_t / alpha_s, (sigma_s / sigma_t) ** 2

    def down(x: jax.Array) -> jax.Array:
        return ratio * jax.image.resize(x, (*x.shape[:-2], LOW, LOW), "linear", antialias=True)

    def up(y: jax.Array) -> jax.Array:
        return jax.linear_transpose(down, jax.ShapeDtypeStruct((*y.shape[:-2], HIGH, HIGH), y.dtype))(y)[0]

    pixels = jnp.eye(HIGH * HIGH).reshape(-1, HIGH, HIGH)
    covariance = (pixels - rho * up(down(pixels))).reshape(len(pixels), -1)
    values, vectors = jnp.linalg.eigh((covariance + covariance.T) / 2)
    root = (vectors * jnp.sqrt(jnp.maximum(values, 0))) @ vectors.T
    mean_s = alpha_s * clean
    mean = mean_s + rho * up(x_t - down(mean_s))
    return mean + sigma_s * (noise.reshape(*noise.shape[:-2], -1) @ root).reshape(noise.shape)


def by_hand_numpy(x_t: np.ndarray, clean: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The resize written out as a matrix of triangle weights, its transpose, and a dense square root."""
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    alpha_s, alpha_t = np.sqrt(alpha_bar[S - 1]), np.sqrt(alpha_bar[T - 1])
    sigma_s, sigma_t = np.sqrt(1 - alpha_bar[S - 1]), np.sqrt(1 - alpha_bar[T - 1])
    ratio, rho = alpha_t / alpha_s, (sigma_s / sigma_t) ** 2

    scale = HIGH / LOW
    centres = (np.arange(LOW) + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs((np.arange(HIGH) + 0.5) - centres[:, None]) / scale)
    weights /= weights.sum(axis=1, keepdims=True)
    matrix = ratio * np.kron(weights, weights)

    def flat(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:-2], -1)

    values, vectors = np.linalg.eigh(np.eye(HIGH * HIGH) - rho * matrix.T @ matrix)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    mean_s = alpha_s * flat(clean)
    mean = mean_s + rho * (flat(x_t) - mean_s @ matrix.T) @ matrix
    return (mean + sigma_s * flat(noise) @ root).reshape(clean.shape)


def lines(function: Callable[..., Any]) -> int:
    """Lines of code inside a function: no blanks, no comments, no docstring, no signature."""
    source = inspect.getsource(function).replace(f'"""{function.__doc__}"""', "")
    code = [line.strip() for line in source.splitlines()]
    return sum(bool(line) and not line.startswith("#") for line in code) - 1


def seconds(function: Callable[[], Any], repeats: int = 3) -> float:
    """Median wall time of a call after a warm-up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> list[dict[str, Any]]:
    """Compare the three pairs; a row for each, as printed."""
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((BATCH, 3, size, size)) for size in (LOW, HIGH, HIGH)]  # x_t, clean, noise
    cases: list[tuple[str, Callable[..., Any], Callable[[np.ndarray], Any]]] = [
        ("numpy", by_hand_numpy, np.asarray),
        ("torch", by_hand_torch, torch.from_numpy),
        ("jax", by_hand_jax, jnp.asarray),
    ]
    rows = []
    print(f"x_s from x_t, {BATCH} samples of 3×{LOW}×{LOW} -> 3×{HIGH}×{HIGH}, float64")
    print("| library | lines by hand | with ssdcore | relative difference | by hand | with ssdcore | times faster |")
    print("|---|---|---|---|---|---|---|")
    with jax.enable_x64(True):
        for name, by_hand, convert in cases:
            arrays = [convert(a) for a in inputs]
            ours, theirs = np.asarray(by_ssdcore(*arrays)), np.asarray(by_hand(*arrays))
            row: dict[str, Any] = {
                "library": name,
                "lines_by_hand": lines(by_hand),
                "lines": 1 + lines(by_ssdcore),
                "difference": float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)),
                "seconds_by_hand": seconds(functools.partial(by_hand, *arrays)),
                "seconds": seconds(functools.partial(by_ssdcore, *arrays)),
            }
            rows.append(row)
            print(
                f"| {name} | {row['lines_by_hand']} | {row['lines']} | {row['difference']:.1e} "
                f"| {1e3 * row['seconds_by_hand']:.0f} ms | {1e3 * row['seconds']:.2f} ms "
                f"| {row['seconds_by_hand'] / row['seconds']:.0f} |"
            )
    return rows


if __name__ == "__main__":
    main()
