"""python -m ssdcore_torch.sample: draw images from a run."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from ssdcore_torch import checkpoint, cli, images
from ssdcore_torch.sampling import generate, sampling_times


def parser() -> argparse.ArgumentParser:
    options = cli.Parser(
        "ssdcore_torch.sample", "Draw images from a run of ssdcore_torch.train and save them as one picture."
    )
    add = options.add_argument
    add("run", type=Path, metavar="RUN", help="run folder")
    add("--n", type=cli.whole_number(1), default=64, help="number of images (default: 64)")
    add("--steps", type=cli.whole_number(1), default=100, help="network evaluations an image (default: 100)")
    add(
        "--eta",
        type=cli.number,
        default=1.0,
        help="1: ancestral sampling; 0: noise only where the size changes (default: 1)",
    )
    add("--seed", type=cli.whole_number(0), default=0, help="image i depends on the seed and i alone (default: 0)")
    add("--batch-size", type=cli.whole_number(1), default=64, help="images through the network at once (default: 64)")
    add("--out", type=cli.picture, default=Path("grid.png"), help="picture to write (default: grid.png)")
    add("--device", help="cpu, cuda, cuda:1, … (default: a CUDA device if there is one)")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    args = parser().parse_args(argv)
    device = cli.open_device(args.device)
    try:
        run = checkpoint.load_run(args.run, device)
        sampling_times(run.process, args.steps)  # refuses a number of steps before any work
    except (ValueError, OSError) as error:
        raise cli.UserError(str(error)) from error
    started = time.perf_counter()
    drawn = generate(
        run.ema, run.process, args.n, args.steps, args.eta, args.seed, prior=run.prior, batch_size=args.batch_size
    )
    seconds = time.perf_counter() - started
    images.save(images.grid(drawn), args.out)
    print(f"{args.n} images of {run.config.size} px from step {run.step} in {seconds:.1f} s: {args.out}")
    return 0


if __name__ == "__main__":
    cli.run(main)
