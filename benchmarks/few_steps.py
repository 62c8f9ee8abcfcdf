"""How few steps each sampler needs: python benchmarks/few_steps.py [RUN] [--samples N]

1. Gaussian data, exact (ssdcore.oracle): squared Fréchet error, summed over pixels, of the samplers of
   ssdcore_torch.generate with the perfect denoiser. 16×16 pixels, variance of DCT-II mode (i, j) proportional to
   (1 + √(i² + j²))^-2.5, mean pixel variance ¼; x_T from its exact law.
2. Real images, perfect denoiser: the exact posterior mean of 480 drawings at 16 px, run through ssdcore_torch.generate,
   and how its samples cover the drawings.
3. With RUN, a folder of ssdcore_torch.train: its network, by the Fréchet distance of its samples to its training images
   in pixels and in the features of a fixed random convolution network.

Linear β, T = 1000; three levels are the equal schedule with scale-matched noise. A sampler's default placement is used
unless its name says otherwise.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import ssdcore as ssd
from ssdcore_torch import generate, load_run
from ssdcore_torch.data import EMBEDDED, load_images
from ssdcore_torch.sampling import SAMPLERS, fit_moments, sampling_times, to_float

SIZE, STEPS = 16, (5, 10, 20, 50, 100)
REPEATS = 3  # seeds in table 3
LATER = 20  # a first time for table 3: σ = 0.076, about the error of the network measured there (see README.md)
NOISE = ssd.NoiseSchedule.linear(1000)


class Sampler(NamedTuple):
    name: str
    options: dict[str, Any]

    @property
    def eta(self) -> float:
        return float(self.options.get("eta", SAMPLERS[self.options["sampler"]].eta))

    @property
    def order(self) -> int:
        return 2 if self.options["sampler"] == "multistep" else 1

    def times(self, proc: ssd.LinearDiffusion, steps: int) -> tuple[int, ...]:
        placement = self.options.get("placement", SAMPLERS[self.options["sampler"]].placement)
        return sampling_times(proc, steps, placement)


ANCESTRAL = Sampler("ancestral", {"sampler": "ancestral"})
MULTISTEP = Sampler("multistep", {"sampler": "multistep"})
COMPARED = (
    ANCESTRAL,
    Sampler("ancestral, log-SNR", {"sampler": "ancestral", "placement": "log_snr"}),
    Sampler("eta = 0, log-SNR", {"sampler": "ancestral", "eta": 0.0, "placement": "log_snr"}),
    Sampler("multistep, time", {"sampler": "multistep", "placement": "time"}),
    MULTISTEP,
)


def processes(size: int) -> dict[str, ssd.LinearDiffusion]:
    levels = ssd.ResolutionSchedule.equal(1000, 3)
    return {
        "1 level": ssd.LinearDiffusion.identity((size, size), NOISE),
        "3 levels": ssd.LinearDiffusion.resize((size, size), NOISE, levels),
    }


def row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def gaussian_table() -> None:
    print("\n### Gaussian data, perfect denoiser: exact squared Fréchet error\n")
    i = np.arange(SIZE)
    spectrum = (1 + np.hypot(i[:, None], i)) ** -2.5
    covariance = ssd.Covariance.cosine(0.25 * spectrum / spectrum.mean())
    row("process", "sampler", *(f"{steps} steps" for steps in STEPS))
    row(*["---"] * (2 + len(STEPS)))
    for name, proc in processes(SIZE).items():
        for sampler in COMPARED:
            errors = [
                ssd.oracle.sampler_error(proc, covariance, sampler.times(proc, steps), sampler.eta, order=sampler.order)
                for steps in STEPS
            ]
            row(name, sampler.name, *(f"{error:.3g}" for error in errors))
    designed = []
    for steps in STEPS:
        if steps not in (10, 20):
            designed.append("-")
            continue
        found = ssd.oracle.design_levels(
            (SIZE, SIZE), NOISE, covariance, levels=3, steps=steps, tolerance=0.1, eta=0.0, order=2
        )
        designed.append(f"{found.error:.3g} ({found.cost / found.full_cost:.2f} of the pixels)")
    row("3 levels, designed", "multistep, designed times", *designed)


def drawings_table(samples: int) -> None:
    data = load_images(EMBEDDED, SIZE)
    pixels = torch.from_numpy(np.moveaxis(data.images[:480], 3, 1).copy())
    images = pixels.numpy() / 127.5 - 1.0
    labels = None if data.labels is None else data.labels[:480]
    floor = images.var(0).sum() / samples
    print(f"\n### 480 drawings at {SIZE} px, perfect denoiser: {samples} samples\n")
    print(f"Ideal: χ² per degree of freedom 1, squared mean error {floor:.3f}, variance ratio 1.\n")
    row("process", "sampler", "steps", "class χ²", "image χ²", "squared mean error", "variance ratio", "seconds")
    row(*["---"] * 8)
    for name, proc in processes(SIZE).items():
        moments = fit_moments(pixels, proc)
        prior = None if moments is None else proc.prior(*moments)
        denoiser = ssd.oracle.EmpiricalDenoiser(proc, images)
        for sampler, steps in ((ANCESTRAL, 100), (ANCESTRAL, 20), (COMPARED[2], 20), (MULTISTEP, 20), (MULTISTEP, 10)):
            started = time.perf_counter()
            drawn = generate(denoiser, proc, samples, steps, channels=3, prior=prior, batch_size=500, **sampler.options)
            got = ssd.oracle.coverage(drawn.numpy(), images, labels)
            cells = [f"{v:.3f}" for v in (got.class_chi2, got.mode_chi2, got.mean_error, got.variance_ratio)]
            row(name, sampler.name, steps, *cells, f"{time.perf_counter() - started:.0f}")


def features(images: Tensor) -> Tensor:
    """(n, 128) float64: means and deviations over pixels of 64 maps of a fixed random two-layer network."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(64, n, 3, 3, generator=generator) / (3 * n**0.5) for n in (3, 64))
    h = torch.nn.functional.conv2d(images, first, padding=1).relu()
    h = torch.nn.functional.conv2d(torch.nn.functional.avg_pool2d(h, 2), second, padding=1).relu().flatten(2)
    return torch.cat([h.mean(2), h.std(2)], 1).double()


def frechet(x: Tensor, y: Tensor) -> float:
    """Squared Fréchet distance between Gaussians fitted to the rows of x and of y."""
    cx, cy = torch.cov(x.T), torch.cov(y.T)
    values, vectors = torch.linalg.eigh(cx)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cy @ root).clamp(min=0).sqrt().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + cx.trace() + cy.trace() - 2 * cross)


def run_table(path: str, samples: int) -> None:
    run = load_run(path, "cuda" if torch.cuda.is_available() else "cpu")
    config = run.config
    data = load_images(config.data.path, config.size, config.data.classes)
    order = np.random.default_rng(0).permutation(len(data))
    images = to_float(torch.from_numpy(np.moveaxis(data.images, 3, 1).copy()))
    half = len(images) // 2
    count = min(samples, half)
    known = images[order[half:]]
    print(f"\n### Trained network: {REPEATS} × {count} samples of {config.size} px against {len(known)} images\n")
    print(
        f"Step {run.step}, {sum(p.numel() for p in run.ema.parameters()) / 1e6:.2f} M parameters. Mean ± deviation "
        f"over {REPEATS} seeds; the first row, as many other training images, is the floor that the counts set.\n"
    )
    row("sampler", "steps", "pixel Fréchet", "feature Fréchet ×10³", "seconds")
    row(*["---"] * 5)

    def line(name: str, steps: object, sets: list[Tensor], seconds: object) -> None:
        pixel = [frechet(drawn.flatten(1).double(), known.flatten(1).double()) for drawn in sets]
        feature = [1e3 * frechet(features(drawn), features(known)) for drawn in sets]
        row(name, steps, *(f"{np.mean(v):.3g} ± {np.std(v):.2g}" for v in (pixel, feature)), seconds)

    line("training images", "-", [images[order[:count]]], "-")
    later = {steps: sampling_times(run.process, steps, "log_snr", first=LATER) for steps in (20, 10)}
    for sampler, steps in (
        (ANCESTRAL, 100),
        (ANCESTRAL, 20),
        (COMPARED[2], 20),
        (COMPARED[3], 20),
        (MULTISTEP, 20),
        (MULTISTEP, 10),
        *((Sampler(f"multistep from t = {LATER}", {"sampler": "multistep", "times": later[n]}), n) for n in later),
    ):
        started = time.perf_counter()
        sets = [
            generate(run.ema, run.process, count, steps, seed=seed, prior=run.prior, **sampler.options).cpu()
            for seed in range(REPEATS)
        ]
        line(sampler.name, steps, sets, f"{time.perf_counter() - started:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", metavar="RUN", help="a folder of ssdcore_torch.train, for table 3")
    parser.add_argument("--samples", type=int, default=1000, help="samples in tables 2 and 3 (default: 1000)")
    parser.add_argument("--only", type=int, choices=(1, 2, 3), action="append", help="make only this table; repeatable")
    arguments = parser.parse_args()
    wanted = arguments.only or ([1, 2, 3] if arguments.run else [1, 2])
    if 3 in wanted and arguments.run is None:
        parser.error("table 3 needs a RUN; train one with python -m ssdcore_torch.train --preset cpu --out RUN")
    if 1 in wanted:
        gaussian_table()
    if 2 in wanted:
        drawings_table(arguments.samples)
    if 3 in wanted:
        run_table(arguments.run, arguments.samples)


if __name__ == "__main__":
    main()
