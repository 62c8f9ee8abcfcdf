"""Train a tiny denoiser in pure jax and optax on an ssdcore process, and sample from it: no torch anywhere.

The data are pulses, one run of +1 somewhere in a signal of −1. The state shrinks from 32 to 16 to 8 samples as it gets
noisier. Training draws from the exact marginals, sampling from the exact posteriors, both under jit and vmap, the
changes of size included.

    python examples/jax_denoiser.py
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ssdcore as ssd

LENGTH, STEPS, WIDTH, BATCH = 32, 24, 128, 128
PROCESS = ssd.LinearDiffusion.resize(
    (LENGTH,), ssd.NoiseSchedule.cosine(STEPS), ssd.ResolutionSchedule.equal(STEPS, levels=3)
)
LOG_SNR = jnp.asarray([0.0, *np.log((PROCESS.noise.alpha[1:] / PROCESS.noise.sigma[1:]) ** 2)])

Params = dict[str, Any]


def pulses(rng: np.random.Generator, n: int) -> np.ndarray:
    """(n, LENGTH) signals of −1 with one run of +1, 4 to 14 samples long, anywhere inside."""
    width = rng.integers(4, 15, size=(n, 1))
    start = rng.integers(1, LENGTH - width)
    at = np.arange(LENGTH)
    return np.where((at >= start) & (at < start + width), 1.0, -1.0).astype(np.float32)


def are_pulses(signals: np.ndarray) -> np.ndarray:
    """Which signals are one run of positive samples between negative ones."""
    positive = np.asarray(signals) > 0
    starts = (positive[:, 1:] & ~positive[:, :-1]).sum(axis=1)
    return (starts == 1) & ~positive[:, 0] & ~positive[:, -1]


def init(key: jax.Array) -> Params:
    """One entrance and one exit for each size; the layers between serve all of them."""

    def layer(key: jax.Array, n: int, m: int) -> Params:
        return {"w": jax.random.normal(key, (n, m)) * n**-0.5, "b": jnp.zeros(m)}

    keys = iter(jax.random.split(key, 16))
    sizes = [n for (n,) in PROCESS.shapes]
    return {
        "in": {str(n): layer(next(keys), n + 16, WIDTH) for n in sizes},
        "trunk": [layer(next(keys), WIDTH, WIDTH) for _ in range(3)],
        "out": {str(n): layer(next(keys), WIDTH, n) for n in sizes},
    }


def denoise(params: Params, x: jax.Array, t: jax.Array, size: int) -> jax.Array:
    """The clean signal at `size`, predicted from one state x (n,) at time t."""

    def apply(layer: Params, h: jax.Array) -> jax.Array:
        return h @ layer["w"] + layer["b"]

    phase = LOG_SNR[t] * 2.0 ** jnp.arange(-5, 3)
    h = apply(params["in"][str(x.shape[0])], jnp.concatenate([x, jnp.sin(phase), jnp.cos(phase)]))
    for layer in params["trunk"]:
        h = h + apply(layer, jax.nn.gelu(h))
    return apply(params["out"][str(size)], jax.nn.gelu(h))


def batches(rng: np.random.Generator, data: np.ndarray, n: int) -> Iterator[tuple[int, np.ndarray, jax.Array]]:
    """(first time of the path, times, signals): times whose states share a size, before the step and after it."""
    paths = [
        np.array(list(times))
        for _, times in groupby(range(1, STEPS + 1), lambda t: (PROCESS.shape(t), PROCESS.shape(t - 1)))
    ]
    share = np.array([len(times) for times in paths]) / STEPS
    for _ in range(n):
        times = paths[rng.choice(len(paths), p=share)]
        yield int(times[0]), rng.choice(times, BATCH), jnp.asarray(data[rng.choice(len(data), BATCH)])


def loss(params: Params, key: jax.Array, x0: jax.Array, t: jax.Array, first: int) -> jax.Array:
    """Mean of min(SNR, 5) · (prediction − clean)² at times t (batch,) that degrade as `first` does."""
    clean = PROCESS.clean(x0, first)
    alpha, sigma = (jnp.asarray(level, clean.dtype)[t, None] for level in (PROCESS.noise.alpha, PROCESS.noise.sigma))
    x_t = alpha * clean + sigma * jax.random.normal(key, clean.shape)
    target = PROCESS.clean(x0, first - 1)
    predicted = jax.vmap(denoise, in_axes=(None, 0, 0, None))(params, x_t, t, target.shape[-1])
    return jnp.mean(jnp.minimum(jnp.exp(LOG_SNR[t]), 5.0)[:, None] * (predicted - target) ** 2)


def train(data: np.ndarray, steps: int, seed: int) -> tuple[Params, list[float]]:
    """(weights, the loss of every step)."""
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.warmup_cosine_decay_schedule(0.0, 3e-3, 100, steps))
    )

    @functools.partial(jax.jit, static_argnames="first")
    def step(
        params: Params, state: Any, key: jax.Array, x0: jax.Array, t: jax.Array, first: int
    ) -> tuple[Params, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(params, key, x0, t, first)
        update, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, update), state, value

    params = init(jax.random.key(seed))
    state = optimiser.init(params)
    losses = []
    for i, (first, t, x0) in enumerate(batches(np.random.default_rng(seed), data, steps)):
        params, state, value = step(params, state, jax.random.fold_in(jax.random.key(seed + 1), i), x0, t, first)
        losses.append(value)
    return params, [float(value) for value in losses]


def sample(params: Params, data: np.ndarray, n: int, seed: int) -> np.ndarray:
    """(n, LENGTH) signals: from x_T down through every posterior, one signal a key."""
    small = np.asarray(PROCESS.clean(data.astype(np.float64), STEPS))
    prior = PROCESS.prior(jnp.asarray(small.mean(0), jnp.float32), np.cov(small, rowvar=False))

    def draw(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, STEPS + 1)
        x = prior.sample(jax.random.normal(keys[STEPS], PROCESS.shape(STEPS)))
        for t in range(STEPS, 0, -1):
            size = PROCESS.shape(t - 1)
            clean = denoise(params, x, jnp.asarray(t), size[0])
            x = PROCESS.posterior(x, clean, t - 1, t).sample(jax.random.normal(keys[t - 1], size))
        return x

    return np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(seed), n)))


def jit_error() -> float:
    """Largest difference, relative to the largest value, of jitted float32 posteriors at level changes to float64."""
    rng = np.random.default_rng(0)
    worst = 0.0
    for t in PROCESS.size_changes:
        x_t, clean = rng.standard_normal((4, *PROCESS.shape(t))), rng.standard_normal((4, *PROCESS.shape(t - 1)))
        noise = rng.standard_normal(clean.shape)

        @jax.jit
        @jax.vmap
        def draw(x_t: jax.Array, clean: jax.Array, noise: jax.Array, t: int = t) -> jax.Array:
            return PROCESS.posterior(x_t, clean, t - 1, t).sample(noise)

        exact = PROCESS.posterior(x_t, clean, t - 1, t).sample(noise)
        got = np.asarray(draw(*(jnp.asarray(a, jnp.float32) for a in (x_t, clean, noise))))
        worst = max(worst, float(np.abs(got - exact).max() / np.abs(exact).max()))
    return worst


def main(steps: int = 1500, n: int = 1000, seed: int = 0) -> dict[str, float]:
    """Train, sample, compare; the figures that are printed."""
    start = time.perf_counter()
    rng = np.random.default_rng(seed)
    data, held_out = pulses(rng, 4096), pulses(rng, n)
    params, losses = train(data, steps, seed)
    trained = time.perf_counter()
    samples = sample(params, data, n, seed + 2)
    sampled = time.perf_counter()

    tenth = max(1, steps // 10)
    noise = rng.standard_normal(held_out.shape)
    gaussian = rng.multivariate_normal(data.mean(0), np.cov(data, rowvar=False), size=n)
    distance = {
        name: float(np.abs(signals.mean(0) - data.mean(0)).max())
        for name, signals in (("samples", samples), ("held-out data", held_out), ("white noise", noise))
    }
    shares = {
        "samples": float(are_pulses(samples).mean()),
        "held-out data": float(are_pulses(held_out).mean()),
        "Gaussian of the data's covariance": float(are_pulses(gaussian).mean()),
        "white noise": float(are_pulses(noise).mean()),
    }
    figures = {
        "first_loss": float(np.mean(losses[:tenth])),
        "last_loss": float(np.mean(losses[-tenth:])),
        "pulses": shares["samples"],
        "pulses_gaussian": shares["Gaussian of the data's covariance"],
        "mean_error": distance["samples"],
        "mean_error_noise": distance["white noise"],
        "jit_error": jit_error(),
    }
    print(
        f"sizes {' -> '.join(str(n) for (n,) in PROCESS.shapes)}, "
        f"level changes at t = {PROCESS.size_changes} of {STEPS}"
    )
    print(f"posterior at the level changes, jit and vmap in float32 against float64: {figures['jit_error']:.1e}")
    print(f"{steps} steps in {trained - start:.1f} s, loss {figures['first_loss']:.3f} -> {figures['last_loss']:.3f}")
    print(f"{n} samples in {sampled - trained:.1f} s, compilation included")
    for name, share in shares.items():
        print(f"  {100 * share:5.1f} % are one pulse: {name}")
    for name, value in distance.items():
        print(f"  {value:.3f} is the largest error of the mean signal: {name}")
    if "torch" in sys.modules:
        raise SystemExit("torch was imported: this example must do without")
    return figures


if __name__ == "__main__":
    main()
