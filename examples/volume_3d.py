"""Three-dimensional volumes: a diffusion over 16×16×16, 8×8×8 and 4×4×4 voxels, nothing else changed.

The data are solids (boxes, balls, rings) at many places and sizes. Their perfect denoiser is a weighted mean, so the
sampler must reproduce each of them equally often; counting says whether it does.

    python examples/volume_3d.py
"""

from __future__ import annotations

import numpy as np
from sampling import multistep

import ssdcore as ssd

SIZE, STEPS = 16, 40
NOISE = ssd.NoiseSchedule.linear(1000)
LEVELS = ssd.ResolutionSchedule.convex(NOISE.steps, levels=3)


def solids(rng: np.random.Generator, each: int) -> tuple[np.ndarray, np.ndarray]:
    """(volumes (3·each, SIZE, SIZE, SIZE) in −1 … 1, labels): boxes, balls and rings."""
    volumes = []
    for kind in range(3):
        for _ in range(each):
            centre = rng.uniform(5, SIZE - 6, size=3)
            z, y, x = np.moveaxis(np.indices((SIZE, SIZE, SIZE)), 0, -1).T - centre[:, None, None, None]
            radius = rng.uniform(3, 5)
            if kind == 0:
                outside = np.maximum(np.maximum(np.abs(x), np.abs(y)), np.abs(z)) - 0.8 * radius
            elif kind == 1:
                outside = np.sqrt(x**2 + y**2 + z**2) - radius
            else:
                outside = np.hypot(np.hypot(x, y) - radius, z) - 1.3
            volumes.append(np.tanh(-2 * outside))
    return np.stack(volumes), np.repeat(np.arange(3), each)


def generate(proc: ssd.LinearDiffusion, volumes: np.ndarray, n: int, steps: int, seed: int) -> np.ndarray:
    """(n, SIZE, SIZE, SIZE) volumes in `steps` steps, uniform in log-SNR, with the perfect denoiser of `volumes`."""
    rng = np.random.default_rng(seed)
    chain = proc.respace(ssd.oracle.spread_times(NOISE, steps, "log_snr", LEVELS.starts))
    small = proc.clean(volumes, proc.steps)
    prior = chain.prior(small.mean(0), np.cov(small.reshape(len(small), -1), rowvar=False))
    x = prior.sample(rng.standard_normal((n, *small.shape[1:])))
    denoiser = ssd.oracle.EmpiricalDenoiser(proc, volumes)
    old = (0, *chain.times)  # the denoiser is asked with the times of the process it belongs to
    return multistep(chain, lambda x, s, t: denoiser.posterior_mean(x, old[t], old[s]), x, rng)


def main(n: int = 1000, each: int = 20, steps: int = STEPS, seed: int = 0) -> dict[str, float]:
    """Check the process, generate, count; the figures that are printed."""
    rng = np.random.default_rng(seed)
    volumes, labels = solids(rng, each)
    figures: dict[str, float] = {}
    for name, matched in (("scale-matched", True), ("the paper's", False)):
        proc = ssd.LinearDiffusion.resize((SIZE,) * 3, NOISE, LEVELS, matched)
        report = ssd.testing.check_process(proc, dtypes=["float32"], examples=1)
        samples = generate(proc, volumes, n, steps, seed + 1)
        got = ssd.oracle.coverage(samples, volumes, labels)
        figures[f"class χ², {name} noise"] = got.class_chi2 or 0.0
        figures[f"solid χ², {name} noise"] = got.mode_chi2
        figures[f"variance ratio, {name} noise"] = got.variance_ratio
        print(
            f"{' -> '.join(str(s) for s in proc.shapes)}, {name} noise: {len(report.rows)} checks of the process passed"
        )
        print(
            f"  {n} volumes in {steps} steps: χ² a degree of freedom {got.class_chi2:.2f} over 3 classes, "
            f"{got.mode_chi2:.2f} over {len(volumes)} solids (1 is ideal); "
            f"variance {got.variance_ratio:.3f} of the data's"
        )
    return figures


if __name__ == "__main__":
    main()
