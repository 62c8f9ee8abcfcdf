"""python -m ssdcore_torch.sample: draw images from a run.

Under `torchrun --nproc_per_node=N -m -- ssdcore_torch.sample …` N processes share the images, which stay the same.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ssdcore_torch import checkpoint, images
from ssdcore_torch.commands import cli
from ssdcore_torch.data import called
from ssdcore_torch.devices import memory_of
from ssdcore_torch.distributed import World, connect
from ssdcore_torch.runs import Drawing, Run, draw_images, labels_of, load_run
from ssdcore_torch.sampling import PLACEMENTS, SAMPLERS
from ssdcore_torch.text import short_sides, sides

CPU = torch.device("cpu")


def parser() -> argparse.ArgumentParser:
    options = cli.Parser(
        "ssdcore_torch.sample",
        "Draw images from a run of ssdcore_torch.train and save them as one picture, or as an array.",
    )
    add = options.add_argument
    add("run", type=Path, metavar="RUN", help="run folder")
    add("--n", type=cli.integer(1), default=64, help="number of images (default: 64)")
    add(
        "--label",
        action="append",
        metavar="CLASS",
        help="name or number of a class to draw, of a class-conditional run; several take turns (default: all in turn)",
    )
    add_sampling_options(options)
    add(
        "--out",
        type=cli.picture_or_array,
        metavar="FILE",
        help="picture to write, or an .npz or .npy of all images as uint8 (n, h, w, channels), of signals and volumes "
        "as float32 (n, *shape, channels) in [-1, 1] (default: RUN/grid.png; of signals and volumes RUN/drawn.npz)",
    )
    add("--gif", type=cli.animation, metavar="FILE", help="write the chain from noise to image as an animation, too")
    cli.add_force(options)
    add("--device", help="cpu, cuda, cuda:1, … (default: a CUDA device if there is one)")
    return options


def add_sampling_options(options: argparse.ArgumentParser) -> None:
    """What says how the images of a run are drawn: for `open_run` and `drawing_of`."""
    add = options.add_argument
    add("--steps", type=cli.integer(1), help="sampling steps: network evaluations per image (default: 100)")
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
    add(
        "--guidance",
        type=cli.positive,
        default=1.0,
        metavar="W",
        help="classifier-free guidance: 1 follows the label as learned, more follows it more strongly (default: 1)",
    )
    add(
        "--weights",
        type=Path,
        metavar="FILE",
        help="other weights of the run's network, as ssdcore_torch.ema writes them",
    )
    add(
        "--seed",
        type=cli.integer(0, cli.LARGEST_SEED),
        default=0,
        help="image i depends on the seed and i alone (default: 0)",
    )
    add(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the network's arithmetic; states stay float32 (default: auto, as the run was trained: bfloat16 on "
        "CUDA unless its train.precision says otherwise)",
    )
    add(
        "--compile",
        action="store_true",
        help="compile the network first: a minute or more per path, kept on disk, for many images on CUDA",
    )
    add(
        "--second-moments",
        action=argparse.BooleanOptionalAction,
        help="put back the variance that predictions leave open, as measured at the end of training: ancestral steps "
        "are then exact to second moments, and multistep draws with it the modes that a change of size adds (default: "
        "multistep does, where the run has it)",
    )
    add("--batch-size", type=cli.integer(1), default=64, help="images through the network at once (default: 64)")


def drawing_of(args: argparse.Namespace) -> Drawing:
    """What the options of `add_sampling_options` say. Raises ValueError for options that do not go together."""
    return Drawing(
        args.steps,
        args.sampler,
        args.eta,
        args.placement,
        args.guidance,
        args.seed,
        args.precision,
        args.batch_size,
        args.second_moments,
    )


def check_count(run: Run, n: int, device: torch.device) -> None:
    """Raises ValueError for more images than fit the memory."""
    shape = run.process.shape(0)
    what = f"{called(len(shape))} of {sides(shape)}"
    size, room = 4 * n * run.config.network.in_channels * math.prod(shape), min(memory_of(device), memory_of(CPU))
    if size > room:
        raise ValueError(
            f"--n {n}: so many {what} take {size / 2**30:.3g} GiB, and there are "
            f"{room / 2**30:.3g}: draw them in parts, each with another --seed"
        )


def open_run(args: argparse.Namespace, device: torch.device) -> Run:
    """The run, with the weights asked for."""
    run = load_run(args.run, device)
    if args.weights is not None:
        checkpoint.load_weights(run.ema, args.weights)
    return run


def _grid(run: Run, drawn: Tensor, labels: list[int] | None, how: Drawing, steps: int) -> Image.Image:
    """The grid of samples, with how they were drawn above it and their classes below them."""
    title = f"training step {run.step:,}, {how.sampler} in {steps} steps, seed {how.seed}"
    if how.guidance != 1:
        title += f", guidance {how.guidance:g}"
    return images.grid(drawn, title=title, captions=images.class_captions(labels, run.config.data.class_names))


def _drawn(run: Run, n: int) -> str:
    """How many of what were drawn."""
    shape = run.process.shape(0)
    return f"{n} {called(len(shape))} of {short_sides(shape)}{' px' if len(shape) == 2 else ''}"


def _run(args: argparse.Namespace, world: World) -> int:
    try:
        cli.agree(world, args)
        how, run = drawing_of(args), open_run(args, world.device)
        how.check(run.config)
        times = how.times(run.process, run.config.process.times)
        how.residuals(run)
        check_count(run, args.n, world.device)
        labels = labels_of(run.config, args.label, args.n)
        out: Path = args.out or args.run / ("grid.png" if len(run.process.shape(0)) == 2 else "drawn.npz")
        if world.leader:
            cli.check_outputs(args.force, out=out, gif=args.gif)
    except (ValueError, OSError) as error:
        raise cli.UserError(str(error)) from error
    chain: list[tuple[int, Tensor, Tensor]] = []

    def record(t: int, x_t: Tensor, prediction: Tensor) -> None:
        if len(chain) < len(times):  # of the first batch, which the animation shows
            chain.append((t, x_t, prediction))

    started = time.perf_counter()
    on_step = None if args.gif is None else record
    try:
        drawn = draw_images(run, world, args.n, how, args.label, on_step, args.compile)
    except ValueError as error:
        raise cli.UserError(str(error)) from error
    seconds = time.perf_counter() - started
    if not world.leader:
        return 0
    try:
        if out.suffix in cli.ARRAYS:
            images.save_array(drawn, labels, out)
        else:
            images.save(_grid(run, drawn, labels, how, len(times)), out)
        if args.gif is not None:
            images.save_animation(images.denoising_frames(chain), args.gif)
    except OSError as error:  # a disk that is full by now
        raise cli.UserError(f"the images are drawn and cannot be written: {error}") from error
    written = str(out)
    if args.gif is not None:
        written += f", {args.gif}"
    print(f"{_drawn(run, args.n)} from step {run.step} in {seconds:.1f} s: {written}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    args = parser().parse_args(argv)
    with connect(args.device) as world:
        return _run(args, world)
