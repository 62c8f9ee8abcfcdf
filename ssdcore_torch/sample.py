"""python -m ssdcore_torch.sample: draw images from a run."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from ssdcore_torch import checkpoint, cli, images
from ssdcore_torch.sampling import PLACEMENTS, SAMPLERS, generate, sampling_times


def parser() -> argparse.ArgumentParser:
    options = cli.Parser(
        "ssdcore_torch.sample", "Draw images from a run of ssdcore_torch.train and save them as one picture."
    )
    add = options.add_argument
    add("run", type=Path, metavar="RUN", help="run folder")
    add("--n", type=cli.whole_number(1), default=64, help="number of images (default: 64)")
    add("--steps", type=cli.whole_number(1), help="network evaluations an image (default: 100)")
    add(
        "--sampler",
        choices=list(SAMPLERS),
        default="ancestral",
        help="ancestral, the paper's, or multistep: deterministic, second order, for few steps (default: ancestral)",
    )
    add(
        "--eta",
        type=cli.number,
        help="1: ancestral sampling; 0: noise only where the size changes (default: 1; with --sampler multistep 0)",
    )
    add(
        "--placement",
        choices=[*PLACEMENTS, "design"],
        help="steps even in time or in log-SNR, or the times that the run's --schedule was designed for "
        "(default: time; with --sampler multistep log_snr)",
    )
    add("--seed", type=cli.whole_number(0), default=0, help="image i depends on the seed and i alone (default: 0)")
    add("--batch-size", type=cli.whole_number(1), default=64, help="images through the network at once (default: 64)")
    add("--out", type=cli.picture, default=Path("grid.png"), help="picture to write (default: grid.png)")
    add("--device", help="cpu, cuda, cuda:1, … (default: a CUDA device if there is one)")
    return options


def _times(run: checkpoint.Run, args: argparse.Namespace) -> tuple[int, ...]:
    """The sampling times. Raises ValueError for options that do not go together, before any work."""
    if args.sampler == "multistep" and args.eta:
        raise ValueError(f"--eta {args.eta:g}: --sampler multistep is the deterministic one; leave --eta out")
    if args.placement != "design":
        placement = args.placement or SAMPLERS[args.sampler].placement
        return sampling_times(run.process, args.steps or 100, placement)
    times = run.config.process.times
    if times is None:
        raise ValueError(
            "--placement design: this run has no designed times; train one with --schedule, or choose time or log_snr"
        )
    if args.steps is not None and args.steps != len(times):
        raise ValueError(f"--steps {args.steps}: the run's schedule was designed for {len(times)}; leave --steps out")
    return times


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    args = parser().parse_args(argv)
    device = cli.open_device(args.device)
    try:
        run = checkpoint.load_run(args.run, device)
        times = _times(run, args)
    except (ValueError, OSError) as error:
        raise cli.UserError(str(error)) from error
    started = time.perf_counter()
    drawn = generate(
        run.ema,
        run.process,
        args.n,
        eta=args.eta,
        seed=args.seed,
        sampler=args.sampler,
        times=times,
        prior=run.prior,
        batch_size=args.batch_size,
    )
    seconds = time.perf_counter() - started
    images.save(images.grid(drawn), args.out)
    print(f"{args.n} images of {run.config.size} px from step {run.step} in {seconds:.1f} s: {args.out}")
    return 0


if __name__ == "__main__":
    cli.run(main)
