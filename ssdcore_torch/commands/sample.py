"""python -m ssdcore_torch.sample: draw images from a run.

Under `torchrun --nproc_per_node=N -m -- ssdcore_torch.sample …` N processes share the images, which stay the same.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssdcore_torch import checkpoint, images
from ssdcore_torch.commands import cli
from ssdcore_torch.denoisers.unet import FlexiUNet
from ssdcore_torch.devices import memory_of
from ssdcore_torch.distributed import World, connect
from ssdcore_torch.sampling import PLACEMENTS, SAMPLERS, drawing_network, generate_shared, sampling_times, to_bytes

CPU = torch.device("cpu")


def parser() -> argparse.ArgumentParser:
    options = cli.Parser(
        "ssdcore_torch.sample",
        "Draw images from a run of ssdcore_torch.train and save them as one picture, or as an array.",
    )
    add = options.add_argument
    add("run", type=Path, metavar="RUN", help="run folder")
    add("--n", type=cli.whole_number(1), default=64, help="number of images (default: 64)")
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
        help="picture to write, or an .npz of all images as uint8 (n, h, w, 3) (default: RUN/grid.png)",
    )
    add("--gif", type=cli.animation, metavar="FILE", help="write the chain from noise to image as an animation, too")
    cli.add_force(options)
    add("--device", help="cpu, cuda, cuda:1, … (default: a CUDA device if there is one)")
    return options


def add_sampling_options(options: argparse.ArgumentParser) -> None:
    """What says how the images of a run are drawn: for `open_run` and `times_of`."""
    add = options.add_argument
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
        type=cli.whole_number(0, cli.LARGEST_SEED),
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
        help="compile the network first: a minute or more a path, kept on disk, for many images on CUDA",
    )
    add("--batch-size", type=cli.whole_number(1), default=64, help="images through the network at once (default: 64)")


def times_of(run: checkpoint.Run, args: argparse.Namespace) -> tuple[int, ...]:
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


def labels_of(run: checkpoint.Run, wanted: Sequence[str] | None, n: int) -> list[int] | None:
    """Numbers of the classes `wanted` by name or number, taking turns over n images; of all classes for None.

    Raises ValueError for an unknown class, or for any of a run without classes.
    """
    count, names = run.config.network.num_classes, run.config.data.class_names
    if count is None:
        if wanted:
            raise ValueError(f"--label {wanted[0]}: this run knows no classes; train one with --conditional")
        return None
    if not wanted:
        return run.config.labels_in_turn(n)
    numbers = []
    for name in wanted:
        if name in names:
            numbers.append(names.index(name))
        elif name.isdecimal() and int(name) < count:
            numbers.append(int(name))
        else:
            known = ", ".join(names) if names else f"0..{count - 1}"
            raise ValueError(f"--label {name}: this run's classes are {known}")
    try:
        run.config.check_conditions(numbers, 1)
    except ValueError as error:
        raise ValueError(f"--label: {error}") from error
    return [numbers[i % len(numbers)] for i in range(n)]


def check_count(run: checkpoint.Run, n: int, device: torch.device) -> None:
    """Raises ValueError for more images than fit the memory."""
    height, width = run.process.shape(0)
    size, room = 4 * n * run.net.config.in_channels * height * width, min(memory_of(device), memory_of(CPU))
    if size > room:
        raise ValueError(
            f"--n {n}: so many images of {height}×{width} take {size / 2**30:.3g} GiB, and there are "
            f"{room / 2**30:.3g}: draw them in parts, each with another --seed"
        )


def save_array(drawn: Tensor, labels: list[int] | None, path: Path) -> None:
    """Write images as the .npz that --data and ssdcore_torch.evaluate read."""
    arrays = {"images": to_bytes(drawn).permute(0, 2, 3, 1).cpu().numpy()}
    if labels is not None:
        arrays["labels"] = np.array(labels)

    def write(file: Path) -> None:
        with open(file, "wb") as opened:
            np.savez(opened, **arrays)  # type: ignore[arg-type]

    checkpoint.write_atomically(path, write)


def open_run(args: argparse.Namespace, device: torch.device) -> checkpoint.Run:
    """The run, with the weights asked for. Raises ValueError for guidance of a run that never saw images without a
    class, too."""
    run = checkpoint.load_run(args.run, device)
    network = run.config.network
    if args.guidance != 1 and network.num_classes is None:
        raise ValueError(f"--guidance {args.guidance:g}: this run knows no classes; train one with --conditional")
    if args.guidance != 1 and network.null_label is None:
        raise ValueError(
            f'--guidance {args.guidance:g}: this run has no label for "no class" to compare with (the paper\'s '
            "released weights have none); leave --guidance out"
        )
    try:
        run.config.check_conditions(None, args.guidance)
    except ValueError as error:
        raise ValueError(f"--{error}") from error
    if args.weights is not None:
        checkpoint.load_weights(run.ema, args.weights)
    return run


def network_of(run: checkpoint.Run, args: argparse.Namespace, device: torch.device) -> FlexiUNet:
    """The run's average as it draws fastest with these options."""
    net = drawing_network(run.ema, in_bfloat16(run, args, device))
    return net.compile_paths() if args.compile else net


def in_bfloat16(run: checkpoint.Run, args: argparse.Namespace, device: torch.device) -> bool:
    """What --precision means for the network's arithmetic on this device."""
    return args.precision == "bfloat16" or (args.precision == "auto" and run.config.train.in_bfloat16(device.type))


def _run(args: argparse.Namespace, world: World) -> int:
    try:
        cli.agree(world, args)
        run = open_run(args, world.device)
        times = times_of(run, args)
        check_count(run, args.n, world.device)
        labels = labels_of(run, args.label, args.n)
        out: Path = args.out or args.run / "grid.png"
        if world.leader:
            cli.check_outputs(args.force, out=out, gif=args.gif)
    except (ValueError, OSError) as error:
        raise cli.UserError(str(error)) from error
    chain: list[tuple[int, Tensor, Tensor]] = []

    def record(t: int, x_t: Tensor, prediction: Tensor) -> None:
        if len(chain) < len(times):  # of the first batch, which the animation shows
            chain.append((t, x_t, prediction))

    started = time.perf_counter()
    drawn = generate_shared(
        world,
        network_of(run, args, world.device),
        run.process,
        args.n,
        labels=labels,
        guidance=args.guidance,
        eta=args.eta,
        seed=args.seed,
        sampler=args.sampler,
        times=times,
        prior=run.prior,
        batch_size=args.batch_size,
        on_step=None if args.gif is None else record,
    )
    seconds = time.perf_counter() - started
    if not world.leader:
        return 0
    try:
        if out.suffix == ".npz":
            save_array(drawn, labels, out)
        else:
            images.save(images.grid(drawn), out)
        if args.gif is not None:
            images.save_animation(images.denoising_frames(chain), args.gif)
    except OSError as error:  # a disk that is full by now
        raise cli.UserError(f"the images are drawn and cannot be written: {error}") from error
    written = str(out)
    if args.gif is not None:
        written += f", {args.gif}"
    print(f"{args.n} images of {run.config.size} px from step {run.step} in {seconds:.1f} s: {written}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    args = parser().parse_args(argv)
    with connect(args.device) as world:
        return _run(args, world)
