"""python -m ssdcore_torch.convert."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ssdcore_torch.checkpoint import import_official
from ssdcore_torch.commands import cli
from ssdcore_torch.config import ProcessConfig
from ssdcore_torch.convert import convert
from ssdcore_torch.official import told_by_name


def parser() -> argparse.ArgumentParser:
    options = cli.Parser(
        "ssdcore_torch.convert",
        "Write the weights of a checkpoint of the paper's code as a run folder, which ssdcore_torch.sample takes. "
        "The options say what the weights do not tell; their defaults are the paper's.",
    )
    add = options.add_argument
    add("official", type=Path, metavar="OFFICIAL", help="checkpoint, weights or their average (.pt or .safetensors)")
    add("--out", type=Path, required=True, metavar="RUN", help="run folder to write; must not exist yet")
    add("--levels", type=cli.integer(1), help="image sizes it was trained at (default: what the file's name says)")
    add("--factor", type=float, default=2.0, help="between those sizes (default: 2)")
    add("--heads", type=cli.integer(1), default=4, help="attention heads (default: 4)")
    add(
        "--image-size",
        type=cli.integer(1),
        help="height and width of its images (default: what the file's name says, else the names of its layers)",
    )
    add("--steps", type=cli.integer(2), default=1000, help="T of the linear noise schedule (default: 1000)")
    add("--schedule", choices=("equal", "convex", "sigmoid", "tanh"), default="convex", help="default: convex")
    add("--gamma", type=float, help="exponent of the schedule (default: 0.5 for convex)")
    add("--matched", action="store_true", help="scale-matched noise instead of the paper's")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    args = parser().parse_args(argv)
    gamma = 0.5 if args.gamma is None and args.schedule == "convex" else args.gamma
    size, levels = told_by_name(args.official)
    try:
        process = ProcessConfig(args.schedule, gamma, args.matched, args.steps)
        net = import_official(
            args.official, levels=args.levels, factor=args.factor, heads=args.heads, image_size=args.image_size
        )
        if args.levels is None and levels is None:
            raise ValueError(
                f"{args.official}: the weights do not say at how many sizes they were trained, and the name does not: "
                "give --levels (the paper's files have it in their names: ssd_64res_celeba_4levels_….pt)"
            )
        convert(args.official, args.out, net, process)
    except (ValueError, OSError) as error:
        raise cli.UserError(str(error)) from error
    parameters = sum(p.numel() for p in net.parameters()) / 1e6
    sizes = ", ".join(str(h) for h, _ in net.config.level_sizes)
    print(f"{args.out}: {parameters:.1f} million parameters, levels of {sizes} px")
    taken = [
        f"{what} {told}"
        for what, told, asked in (("image size", size, args.image_size), ("levels", levels, args.levels))
        if told is not None and asked is None
    ]
    if taken:
        print(f"taken from the name of the file: {', '.join(taken)}")
    print(f"next: python -m ssdcore_torch.sample {args.out}")
    return 0
