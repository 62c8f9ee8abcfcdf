"""Train a tiny denoiser in pure jax and optax on an ssdcore process, and sample from it: no torch anywhere.

The data are pulses, one run of +1 somewhere in a signal of −1. The state shrinks from 32 to 16 to 8 samples as it gets
noisier. Training draws from the exact marginals, at a time of its own for every signal; sampling goes through all 1,000
exact posteriors, changes of size included, in one jitted function whose tracing does not grow with their number.

    python examples/jax_denoiser.py
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ssdcore as ssd

LENGTH, STEPS, WIDTH, BATCH = 32, 1000, 128, 128
PROCESS = ssd.LinearDiffusion.resize(
    (LENGTH,), ssd.NoiseSchedule.cosine(STEPS), ssd.ResolutionSchedule.equal(STEPS, levels=3)
)

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

    phase = PROCESS.log_snr(t) * 2.0 ** jnp.arange(-5, 3)
    h = apply(params["in"][str(x.shape[0])], jnp.concatenate([x, jnp.sin(phase), jnp.cos(phase)]))
    for layer in params["trunk"]:
        h = h + apply(layer, jax.nn.gelu(h))
    return apply(params["out"][str(size)], jax.nn.gelu(h))


def batches(rng: np.random.Generator, data: np.ndarray, n: int) -> Iterator[tuple[ssd.Path, np.ndarray, jax.Array]]:
    """(path, times, signals): times whose states share a size, before the step and after it."""
    share = np.array([len(path.times) for path in PROCESS.paths]) / STEPS
    share = (
        np.maximum(share, 0.02) / np.maximum(share, 0.02).sum()
    )  # a change of size is a single time: seen often enough
    for _ in range(n):
        path = PROCESS.paths[rng.choice(len(share), p=share)]
        yield path, rng.choice(path.times, BATCH), jnp.asarray(data[rng.choice(len(data), BATCH)])


def loss(params: Params, key: jax.Array, x0: jax.Array, t: jax.Array, path: ssd.Path) -> jax.Array:
    """Mean of min(SNR, 5) · (prediction − clean)² at times t (batch,) of one path."""
    x_t = PROCESS.add_noise(x0, jax.random.normal(key, (len(x0), *path.shape)), t)
    target = PROCESS.degrade(x0, path.times[0] - 1)
    predicted = jax.vmap(denoise, in_axes=(None, 0, 0, None))(params, x_t, t, target.shape[-1])
    return jnp.mean(jnp.minimum(jnp.exp(PROCESS.log_snr(t)), 5.0)[:, None] * (predicted - target) ** 2)


def train(data: np.ndarray, steps: int, seed: int) -> tuple[Params, list[float]]:
    """(weights, the loss of every step)."""
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.warmup_cosine_decay_schedule(0.0, 3e-3, 100, steps))
    )

    @functools.partial(jax.jit, static_argnames="path")
    def step(
        params: Params, state: Any, key: jax.Array, x0: jax.Array, t: jax.Array, path: ssd.Path
    ) -> tuple[Params, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(params, key, x0, t, path)
        update, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, update), state, value

    params = init(jax.random.key(seed))
    state = optimiser.init(params)
    losses = []
    for i, (path, t, x0) in enumerate(batches(np.random.default_rng(seed), data, steps)):
        params, state, value = step(params, state, jax.random.fold_in(jax.random.key(seed + 1), i), x0, t, path)
        losses.append(value)
    return params, [float(value) for value in losses]


def sample(params: Params, data: np.ndarray, n: int, seed: int) -> np.ndarray:
    """(n, LENGTH) signals: from x_T down through every posterior."""
    small = np.asarray(PROCESS.degrade(data.astype(np.float64), STEPS))
    prior = PROCESS.prior(jnp.asarray(small.mean(0), jnp.float32), np.cov(small, rowvar=False))

    def predict(x: jax.Array, t: Any, s: Any) -> jax.Array:
        # within a size t and s are traced, and the prediction has the size of the state
        size = PROCESS.shape(s)[0] if isinstance(s, int) else x.shape[-1]
        return jax.vmap(denoise, in_axes=(None, 0, None, None))(params, x, jnp.asarray(t), size)

    @jax.jit
    def draw(key: jax.Array) -> jax.Array:
        first, rest = jax.random.split(key)
        x_T = prior.sample(jax.random.normal(first, (n, *PROCESS.shape(STEPS))))
        return ssd.sampling.sample(predict, PROCESS, x_T, rest)

    return np.asarray(draw(jax.random.key(seed)))


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
