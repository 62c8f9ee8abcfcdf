"""python -m ssdcore_torch.ema."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ssdcore_torch.checkpoint import save_tensors
from ssdcore_torch.commands import cli
from ssdcore_torch.ema import exponent, mixed_average

FAR = 0.1  # a profile that differs by more is another average than the one asked for


def parser() -> argparse.ArgumentParser:
    options = cli.Parser(
        "ssdcore_torch.ema",
        "Make an average of any width of a run's weights, from the snapshots that training with train.ema_widths kept.",
    )
    add = options.add_argument
    add("run", type=Path, metavar="RUN", help="run folder")
    add("--width", type=float, required=True, help="relative width, of the length of training: 0.05, 0.1, …")
    add("--step", type=cli.integer(1), help="after which step; one that has snapshots (default: the last)")
    add("--out", type=cli.new_file, required=True, metavar="FILE", help="safetensors file to write")
    cli.add_force(options)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    args = parser().parse_args(argv)
    try:
        exponent(args.width)
    except ValueError as error:
        raise cli.UserError(f"--width: {error}") from error
    try:
        cli.check_outputs(args.force, out=args.out)
        average, step, count, distance = mixed_average(args.run, args.width, args.step)
        save_tensors(args.out, average, {"step": str(step), "width": str(args.width)})
    except (ValueError, OSError) as error:
        raise cli.UserError(str(error)) from error
    if distance > FAR:
        print(
            f"warning: the snapshots cannot make a width of {args.width} after step {step}: the profile is "
            f"{distance:.0%} off; take a width nearer to those of train.ema_widths, or train with more train.snapshots",
            file=sys.stderr,
        )
    print(
        f"{args.out}: average of width {args.width} after step {step}, mixed from {count} snapshots; "
        f"its profile is within {distance:.1e} of the one asked for"
    )
    return 0
