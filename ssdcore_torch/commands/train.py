"""python -m ssdcore_torch.train: train a model, draw samples, leave a run folder.

Under `torchrun --nproc_per_node=N -m -- ssdcore_torch.train …` the batch is shared by N processes, one a device.
"""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

import ssdcore as ssd
from ssdcore.files import read_text
from ssdcore_torch import checkpoint
from ssdcore_torch.commands import cli
from ssdcore_torch.config import PRESETS, read_settings, setting
from ssdcore_torch.data import CHANNELS, is_address
from ssdcore_torch.distributed import World, connect
from ssdcore_torch.errors import out_of_memory
from ssdcore_torch.processes import DEGRADATIONS, log_snr_file
from ssdcore_torch.runs import Asked, Session, begin, configure, finish, load_run, naming, withdraw
from ssdcore_torch.text import short_sides
from ssdcore_torch.training import Logger, NotFiniteError, TensorBoard, Trainer, WeightsAndBiases, plan, replay


def parser() -> argparse.ArgumentParser:
    options = cli.Parser(
        "ssdcore_torch.train",
        "Train a scale space diffusion model and draw samples from it. Without options: a small model on the drawings "
        "that come with the package, in minutes on a CPU; a 64-pixel one on a GPU. On N GPUs: torchrun "
        "--nproc_per_node=N -m -- ssdcore_torch.train and the same options.",
    )
    add = options.add_argument
    add("--preset", help=f"one of {', '.join(PRESETS)} (default: gpu64 with a CUDA device, else cpu)")
    add(
        "--data",
        metavar="DATA",
        help="images: a folder, an .npz or .npy file, tar shards, hf:NAME of a Hugging Face dataset (default: the "
        "preset's)",
    )
    add("--size", type=cli.integer(1), metavar="PX", help="height and width of the images")
    add("--channels", type=int, choices=CHANNELS, help="1: grey, 3: RGB, 4: RGBA (default: the preset's, 3)")
    add("--levels", type=cli.integer(1), metavar="N", help="resolution levels, each half the size of the last")
    add("--schedule", type=Path, metavar="FILE", help="resolution schedule that `python -m ssdcore design --out` wrote")
    add("--conditional", action="store_true", help="learn the data's class labels, to sample a class of your choice")
    add(
        "--degradation",
        choices=list(DEGRADATIONS),
        help="what happens to the image besides noise: its size falls, it is blurred, both, or nothing (default: the "
        "preset's, resize)",
    )
    add(
        "--noise",
        metavar="NOISE",
        help=f"noise schedule, {', '.join(ssd.NoiseSchedule.names())}, or a file of log-SNR values, one per step "
        "(default: the preset's, linear)",
    )
    add("--steps", type=cli.integer(1), metavar="N", help="optimizer steps of the whole training")
    add(
        "--minutes",
        type=cli.positive,
        metavar="M",
        help="instead of --steps: as many steps as take so long at the speed measured before the first. Their number, "
        "and with it the learning rate's decay, is fixed then: if the machine gets busier, training takes longer",
    )
    add("--batch-size", type=cli.integer(1), metavar="N", help="images per step, over all processes")
    add("--lr", type=cli.positive, metavar="RATE", help="learning rate")
    add(
        "--seed",
        type=cli.integer(0, cli.LARGEST_SEED),
        metavar="N",
        help="of weights, order, times and noise (default: 0)",
    )
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML or JSON file of settings that override the preset's; options override both",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one setting of config.json, as in train.clip=1.0 or data.flip=true; may be given several times",
    )
    add("--out", type=Path, metavar="RUN", help="run folder to make (default: the first free of runs/PRESET, …-2, …)")
    add(
        "--resume",
        action="store_true",
        help="continue the run in --out from its newest intact checkpoint; options that would change what is trained "
        "are refused",
    )
    add(
        "--replay",
        type=cli.integer(0),
        metavar="STEP",
        help="with --resume: go to this step, look at it, save nothing",
    )
    add("--dry-run", action="store_true", help="say what the run will cost (parameters, memory, time) and stop")
    add("--tensorboard", action="store_true", help="write TensorBoard's event files into the run folder, too")
    add("--wandb", metavar="PROJECT", help="log to this project of Weights & Biases, too")
    add("--profile", action="store_true", help="trace some steps once the run is warm, into RUN/profile")
    add("--device", help="cpu, cuda, cuda:1, … (default: a CUDA device if there is one)")
    return options


def asked_of(args: argparse.Namespace) -> Asked:
    """What the options ask of the run. Raises ValueError for settings that cannot be read, naming where they are."""
    given: dict[str, dict[str, Any]] = {}
    if args.config is not None:
        with naming(f"--config {args.config}"):
            given[f"--config {args.config}"] = read_settings(read_text(args.config))
    for text in args.set:
        with naming(f"--set {text}"):
            given[f"--set {text}"] = setting(text)
    train = {"steps": args.steps, "batch_size": args.batch_size, "learning_rate": args.lr}
    options: dict[str, Any] = {"train": {name: value for name, value in train.items() if value is not None}}
    if args.seed is not None:
        options["seed"] = args.seed
    if args.channels is not None:
        options["network"] = {"in_channels": args.channels}
    process: dict[str, Any] = {} if args.degradation is None else {"degradation": args.degradation}
    if args.noise is not None:
        process |= _noise(args.noise)
    if process:
        options["process"] = process
    return Asked(args.preset, args.data, args.size, args.levels, args.schedule, given, options)


def _noise(named: str) -> dict[str, Any]:
    """The settings of --noise: a name, or a file of log-SNR values. Raises ValueError for neither."""
    if named in ssd.NoiseSchedule.names():
        return {"noise": named, "log_snr": None}
    path = Path(named)
    if not path.is_file():
        raise ValueError(
            f"--noise {named}: expected one of {', '.join(ssd.NoiseSchedule.names())}, or a file of log-SNR values"
        )
    with naming(f"--noise {named}"):
        values = log_snr_file(path)
    return {"noise": "log_snr", "log_snr": list(values), "steps": len(values)}


def loggers_of(args: argparse.Namespace) -> list[Logger]:
    """Where figures and pictures go besides the run folder. Raises ImportError for what is not installed."""
    loggers: list[Logger] = []
    if args.tensorboard:
        loggers.append(TensorBoard())
    if args.wandb is not None:
        loggers.append(WeightsAndBiases(args.wandb))
    return loggers


def session_of(args: argparse.Namespace, world: World) -> Session:
    """The session that the options ask for. Raises UserError."""
    if args.out is None and (args.resume or world.size > 1):
        why = "--resume needs" if args.resume else "several processes need"
        raise cli.UserError(f"{why} --out RUN, the folder of the run")
    if args.replay is not None and (not args.resume or world.size > 1):
        raise cli.UserError("--replay needs --out RUN --resume, and one process")
    if args.minutes is not None and (args.steps is not None or not args.minutes):
        raise cli.UserError("--minutes: expected more than 0, and no --steps, as they say how long, too")
    try:
        loggers_of(args)
        asked = asked_of(args)
        session = begin(
            args.out,
            lambda saved: configure(asked, saved, world.device.type),
            world,
            resume=args.resume,
            conditional=args.conditional,
            minutes=args.minutes,
            replay=args.replay,
            dry_run=args.dry_run,
            typed=args.data is not None or any(text.startswith("data.path=") for text in args.set),
            where=None if args.config is None else str(args.config),
        )
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise cli.UserError(str(error)) from error
    if world.leader and not args.dry_run and args.replay is None:
        for line in session.notes():
            print(line, file=sys.stderr)
    return session


def _describe(trainer: Trainer, out: Path) -> str:
    config, world = trainer.config, trainer.world
    sizes = " → ".join(short_sides(size) for size in reversed(config.network.level_sizes))
    parameters = sum(p.numel() for p in trainer.net.parameters())
    classes = "" if config.network.num_classes is None else f", {config.network.num_classes} classes"
    processes = "" if world.size == 1 else f" and {world.size - 1} more"
    return (
        f"{config.preset}: {trainer.feed.images.describe()}{classes}\n"
        f"sizes {sizes}, {parameters / 1e6:.2f} M parameters, {config.train.steps} steps of {config.train.batch_size} "
        f"on {world.device}{processes}; writing to {out}"
    )


def _command(world: World, *arguments: object) -> str:
    """A command of this module that a shell takes as it is, under torchrun if this process is."""
    launcher = ["python", "-m"]
    if world.size > 1:
        launcher = ["torchrun", f"--nproc_per_node={os.environ.get('LOCAL_WORLD_SIZE', world.size)}", "-m", "--"]
    return shlex.join([*launcher, "ssdcore_torch.train", *map(str, arguments)])


def _run(args: argparse.Namespace, world: World) -> int:
    session = session_of(args, world)
    trainer, out = session.trainer, session.out
    gone = False
    try:
        return _work(args, world, session)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(_interrupted(trainer, out)) from error
    except BaseException as error:
        gone = not isinstance(error.__cause__, NotFiniteError)  # which is to be looked at there
        raise
    finally:
        withdraw(out, gone and world.leader and not args.resume and not args.dry_run)


def _work(args: argparse.Namespace, world: World, session: Session) -> int:
    trainer, out = session.trainer, session.out
    say = print if world.leader else _silent
    try:
        if args.dry_run:
            say(_describe(trainer, out).replace("writing to", "would write to"))
            for line in trainer.feed.images.understood:
                say(line)
            say("timing a few steps of every path ...")
            say(plan(trainer).table())
            return 0
        if args.replay is not None:
            for line in replay(trainer, args.replay):
                print(line)
            return 0
        say(_describe(trainer, out))
        for line in trainer.feed.images.understood:
            say(line)
        started, first = time.perf_counter(), trainer.step
        finished = finish(session, loggers=loggers_of(args), profile=args.profile)
    except NotFiniteError as error:
        raise cli.UserError(_not_finite(error, world, trainer, out)) from error
    except (OSError, SafetensorError) as error:
        what = f"{out} cannot be written ({error})" if _of_writing(error, out) else str(error)
        raise cli.UserError(f"{what}: {_standing(out)}") from error
    except (ValueError, RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            what = str(error).splitlines()[0] if str(error) else "asked for too much"
            advice = "lower --batch-size, or raise train.accumulate (--set train.accumulate=2)"
            raise cli.UserError(f"not enough memory ({what}): {advice}; {_standing(out)}") from error
        if not isinstance(error, ValueError):
            raise
        # Too much of the data is broken.
        raise cli.UserError(f"{error}; {_standing(out)}") from error
    if not finished:
        again = _command(world, *_resume(trainer, out))
        say(f"stopped after step {trainer.step} and saved; to continue:\n  {again}")
        return cli.INTERRUPTED
    trained = time.perf_counter()
    if world.leader:
        try:
            load_run(out, world.device).draw_pictures()
        except (OSError, ValueError, RuntimeError, KeyboardInterrupt) as error:  # a full disk; a device without memory
            why = "were not drawn" if isinstance(error, KeyboardInterrupt) else f"cannot be drawn ({error})"
            advice = f"the run is complete and saved in {out}, but its pictures {why}; to draw some: "
            advice += _next("sample", out, "--n", 64)
            if isinstance(error, KeyboardInterrupt):
                print(advice, file=sys.stderr)
                return cli.INTERRUPTED
            raise cli.UserError(advice) from error
    world.wait()
    say(_summary(trainer, out, trainer.step - first, trained - started, time.perf_counter() - trained))
    return 0


def _standing(out: Path) -> str:
    """What a run that failed can continue from."""
    step = checkpoint.newest_sound(out)
    return "nothing was saved" if step is None else f"the run's last checkpoint is intact (step {step}), to --resume"


def _not_finite(error: NotFiniteError, world: World, trainer: Trainer, out: Path) -> str:
    # One process takes the parts of the batch that several had.
    parts = ["--set", f"train.accumulate={trainer.config.train.accumulate * world.size}"] if world.size > 1 else []
    again = _command(replace(world, size=1), *_resume(trainer, out), "--replay", error.step, *parts)
    return (
        f"{error}. Of the steps before, {_standing(out)}. To look at this step image by image: {again}. If nothing is "
        "wrong with the images, start another run with a lower train.learning_rate, or with train.clip"
    )


def _interrupted(trainer: Trainer, out: Path) -> str:
    """What is left after a second request to stop, or one before the first step."""
    saved = checkpoint.checkpoints(out)
    if not saved:
        return f"interrupted after step {trainer.step}: {out} has no checkpoint"
    last = int(saved[0].name.removeprefix("step-").removesuffix(".old"))
    again = _command(trainer.world, *_resume(trainer, out))
    return f"interrupted after step {trainer.step}: what came after step {last} is lost; to continue from it: {again}"


def _of_writing(error: Exception, out: Path) -> bool:
    """Whether an error is about the run folder, and not, say, about a process that could not be started."""
    if not isinstance(error, OSError):
        return True  # safetensors tells no file
    names = [name for name in (error.filename, error.filename2) if isinstance(name, (str, os.PathLike))]
    if not names:  # of a file that was open already
        return error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG)
    return any(Path(name).resolve().is_relative_to(out.resolve()) for name in names)


def _resume(trainer: Trainer, out: Path) -> list[object]:
    """The options that continue with a run."""
    return ["--out", out, "--resume", *_typed(trainer)]


def _typed(trainer: Trainer) -> list[object]:
    """--data, where the run's data are on another machine: no such address is opened unless it is typed."""
    path = trainer.config.data.path
    return ["--data", path] if is_address(path) else []


def _next(command: str, *arguments: object) -> str:
    return shlex.join(["python", "-m", f"ssdcore_torch.{command}", *map(str, arguments)])


def _summary(trainer: Trainer, out: Path, steps: int, training: float, drawing: float) -> str:
    """Figures, where the files are, what to do next."""
    config = trainer.config
    speed = steps * config.train.batch_size / max(training, 1e-9)
    lines = [f"{steps} steps in {training:.0f} s ({speed:.0f} images/s), samples in {drawing:.0f} s"]
    if trainer.skipped:
        lines.append(f"{trainer.skipped} updates left out as spikes (train.skip_spikes)")
    if trainer.feed.skipped:
        lines.append(f"{trainer.feed.skipped} files skipped, others in their place; the log above names them")
    if trainer.best is not None:
        best: Mapping[str, Any] = trainer.best
        kept = out / "checkpoints" / f"step-{best['step']:08d}"
        lines.append(f"best Fréchet distance {best['frechet']:.4g} after step {best['step']}, kept in {kept}")
    lines += [
        f"  {out / 'samples.png'}    samples",
        f"  {out / 'denoising.png'}  from noise to image: x_t above, prediction below",
        f"  {out / 'report.html'}    all of this run on one page, for a browser",
        f"  {out / 'log.jsonl'}      the loss",
        f"  {out / 'ema.safetensors'}  the averaged weights",
        f"next: {_next('sample', out, '--n', 64, '--steps', 100, '--seed', 1)}",
        f"      {_next('evaluate', out, *_typed(trainer))}",
    ]
    return "\n".join(lines)


def _silent(text: str) -> None:
    """Ranks but the first say nothing."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    args = parser().parse_args(argv)
    with connect(args.device) as world:
        return _run(args, world)
