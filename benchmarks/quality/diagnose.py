"""Where a trained run's error comes from: python benchmarks/quality/diagnose.py RUN --reference HELD_OUT.npz

RUN is a folder of ssdcore_torch.train or of one run of study.py. Two tables:

1. By path: the network's mean squared error over the path's times, on training images, beside that of the perfect
   denoiser of the training images (their exact posterior mean, the least that any network can have on them).
2. Fréchet distances of samples: of the network as it is; with one path's predictions at a time by the perfect denoiser
   instead; with size-changing predictions lifted (the prediction at the state's own size through the pseudo-inverse of
   the resize, so that nothing is predicted of the new, fine modes); and by other samplers and numbers of steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import ssdcore as ssd
from ssdcore_torch import Run, load_run
from ssdcore_torch.data import open_images
from ssdcore_torch.diffusion import Path as TimePath
from ssdcore_torch.distributed import connect
from ssdcore_torch.metrics import draw, frechet_distance, measure, open_extractor, open_reference
from ssdcore_torch.sampling import to_float

Denoiser = Callable[..., Tensor]
ERROR_TIMES, ERROR_IMAGES = 12, 256
CUT = 1e-2  # singular values of a resize below this share of the largest count as destroyed modes


def name_of(path: TimePath) -> str:
    size, out = path.shape[0], path.target_shape[0]
    return f"{size}" if size == out else f"{size} → {out}"


def replaced(run: Run, perfect: Denoiser, path: TimePath) -> Denoiser:
    """The network, but for one path."""
    sizes = run.config.network.level_sizes

    def net(x: Tensor, t: Tensor, out_level: int) -> Tensor:
        here = tuple(x.shape[2:]) == path.shape and sizes[out_level] == path.target_shape
        return perfect(x, t, out_level=out_level) if here else run.ema(x, t, out_level)

    return net


def lifted(run: Run) -> Denoiser:
    """The network, its size-changing predictions by R⁺ x̂: minimal in norm among the images that shrink to x̂."""
    sizes = run.config.network.level_sizes

    def net(x: Tensor, t: Tensor, out_level: int) -> Tensor:
        size = tuple(x.shape[2:])
        if size == sizes[out_level]:
            return run.ema(x, t, out_level)
        small = run.ema(x, t, None)
        resize = ssd.Resize(sizes[out_level], size, run.config.process.kernel)
        least = (CUT * resize.norm()) ** 2
        # R⁺ = Rᵀ (R Rᵀ)⁺
        return resize.T(resize.T.gram_function(lambda value: _inverse(value, least), small))

    return net


def _inverse(value: Tensor, least: float) -> Tensor:
    return torch.where(value > least, 1 / torch.clamp(value, min=least), torch.zeros_like(value))


def path_errors(run: Run, perfect: Denoiser, images: Tensor) -> dict[str, tuple[float, float]]:
    """Mean squared error a pixel by path: (network, perfect denoiser)."""
    sizes, process = run.config.network.level_sizes, run.process
    generator = torch.Generator().manual_seed(0)
    errors = {}
    for path in process.paths:
        level = sizes.index((path.target_shape[0], path.target_shape[1]))
        picked = [path.times[round(i)] for i in np.linspace(0, len(path.times) - 1, min(ERROR_TIMES, len(path.times)))]
        rows = []
        for t in picked:
            mean = process.marginal(images, t)
            x_t = mean.sample(torch.randn(mean.mean.shape, generator=generator))
            target, times = process.clean(images, t - 1), torch.full((len(images),), float(t))
            rows.append([float((net(x_t, times, level) - target).square().mean()) for net in (run.ema, perfect)])
        network, least = np.mean(rows, axis=0)
        errors[name_of(path)] = (network, least)
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--reference", type=Path, required=True, metavar="NPZ", help="images never trained on")
    parser.add_argument("--samples", type=int, default=400, metavar="N")
    args = parser.parse_args()
    run = load_run(args.run)
    config = run.config
    classes = config.data.classes
    data = open_images(config.data.path, config.size, classes=classes)
    pixels = torch.from_numpy(np.moveaxis(data.images, 3, 1).copy())
    perfect = ssd.oracle.EmpiricalDenoiser(run.process, to_float(pixels).numpy())

    print("| path | network's squared error a pixel | perfect denoiser's | ratio |\n|---|---|---|---|")
    with torch.no_grad():
        for name, (network, least) in path_errors(run, perfect, to_float(pixels[:ERROR_IMAGES])).items():
            print(f"| {name} | {network:.5f} | {least:.5f} | {network / max(least, 1e-12):.2f} |", flush=True)

    nets: dict[str, tuple[Denoiser, dict[str, object]]] = {"as it is, 25 ancestral steps": (run.ema, {"steps": 25})}
    for path in run.process.paths:
        nets[f"perfect {name_of(path)}"] = (replaced(run, perfect, path), {"steps": 25})
    if len(config.network.level_sizes) > 1:
        nets["size changes lifted"] = (lifted(run), {"steps": 25})
    nets["perfect everywhere"] = (perfect, {"steps": 25})
    nets["50 ancestral steps"] = (run.ema, {"steps": 50})
    nets["12 ancestral steps"] = (run.ema, {"steps": 12})
    nets["eta = 0, 25 steps"] = (run.ema, {"steps": 25, "eta": 0.0})
    nets["multistep, even times, 25 steps"] = (run.ema, {"steps": 25, "sampler": "multistep", "placement": "time"})

    print("\n| predictions and sampler | Fréchet lite0 | Fréchet pixels |\n|---|---|---|")
    with connect("cpu") as world:
        extractors = {name: open_extractor(name, "cpu") for name in ("lite0", "pixels")}
        held_out = open_images(str(args.reference.resolve()), config.size, classes=classes)
        cache = args.reference.parent / "measured"
        known = {name: open_reference(held_out, e, world=world, cache=cache) for name, e in extractors.items()}
        for name, (net, options) in nets.items():
            drawn = torch.cat(list(draw(net, run.process, args.samples, world=world, prior=run.prior, **options)))
            figures = [
                frechet_distance(
                    measure(drawn.split(64), extractor, world).features, known[space].features[: args.samples]
                )
                for space, extractor in extractors.items()
            ]
            print(f"| {name} | {figures[0]:.1f} | {figures[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
