"""python -m ssdcore_torch.convert: a checkpoint of the paper's code as a run folder."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ssdcore_torch import checkpoint, cli
from ssdcore_torch.config import Config, DataConfig, ProcessConfig, preset
from ssdcore_torch.official import import_official, official_step
from ssdcore_torch.unet import FlexiUNet


def parser() -> argparse.ArgumentParser:
    options = cli.Parser(
        "ssdcore_torch.convert",
        "Write the weights of a checkpoint of the paper's code as a run folder, which ssdcore_torch.sample takes. "
        "The options say what the weights do not tell; their defaults are the paper's.",
    )
    add = options.add_argument
    add("official", type=Path, metavar="OFFICIAL", help="checkpoint, weights or their average (.pt or .safetensors)")
    add("--out", type=Path, required=True, metavar="RUN", help="run folder to write; must not exist yet")
    add("--levels", type=cli.whole_number(1), help="image sizes it was trained at (default: one a stage)")
    add("--factor", type=float, default=2.0, help="between those sizes (default: 2)")
    add("--heads", type=cli.whole_number(1), default=4, help="attention heads (default: 4)")
    add("--image-size", type=cli.whole_number(1), help="needed only where the file does not tell")
    add("--steps", type=cli.whole_number(2), default=1000, help="T of the linear noise schedule (default: 1000)")
    add("--schedule", choices=("equal", "convex", "sigmoid", "tanh"), default="convex", help="default: convex")
    add("--gamma", type=float, help="exponent of the schedule (default: 0.5 for convex)")
    add("--matched", action="store_true", help="scale-matched noise instead of the paper's")
    return options


def convert(official: Path, out: Path, net: FlexiUNet, process: ProcessConfig) -> Config:
    """Write `net`, imported from `official`, and the process it was trained for as the run folder `out`; all of it or
    nothing. The file holds one set of weights: it becomes both the run's weights and their average.

    Raises ValueError if the schedule admits no process, FileExistsError if `out` exists.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists already; give another --out, or remove it")
    step = official_step(official)
    source = f"what {official.name} was trained on"
    config = Config(
        preset="official",
        seed=0,
        data=DataConfig(source),
        network=net.config,
        process=process,
        train=replace(preset("celeba64", source).train, steps=max(step, 1)),
    )
    config.build_process()
    staged = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        staged.mkdir(parents=True)
        for name in ("model.safetensors", "ema.safetensors"):
            checkpoint.save_tensors(staged / name, net.state_dict(), {"step": str(step)})
        checkpoint.save_config(staged, config)
        os.rename(staged, out)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return config


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    args = parser().parse_args(argv)
    gamma = 0.5 if args.gamma is None and args.schedule == "convex" else args.gamma
    try:
        process = ProcessConfig(args.schedule, gamma, args.matched, args.steps)
        net = import_official(
            args.official, levels=args.levels, factor=args.factor, heads=args.heads, image_size=args.image_size
        )
        convert(args.official, args.out, net, process)
    except (ValueError, OSError) as error:
        raise cli.UserError(str(error)) from error
    parameters = sum(p.numel() for p in net.parameters()) / 1e6
    sizes = ", ".join(str(h) for h, _ in net.config.level_sizes)
    print(f"{args.out}: {parameters:.1f} million parameters, levels of {sizes} px")
    print(f"next: python -m ssdcore_torch.sample {args.out}")
    return 0


if __name__ == "__main__":
    cli.run(main)
