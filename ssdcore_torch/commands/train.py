"""python -m ssdcore_torch.train: train a Flexi-UNet, draw samples, leave a run folder.

Under `torchrun --nproc_per_node=N -m -- ssdcore_torch.train …` the batch is shared by N processes, one a device.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

import ssdcore as ssd
from ssdcore._files import open_regular, read_text
from ssdcore_torch import checkpoint
from ssdcore_torch.commands import cli
from ssdcore_torch.config import (
    PRESETS,
    Config,
    designed,
    differences,
    flat_settings,
    merged,
    preset,
    read_settings,
    setting,
)
from ssdcore_torch.data import CHANNELS, EMBEDDED, ImageSet, ImageStream, absolute, open_images, refuse_untyped
from ssdcore_torch.distributed import World, code_version, connect
from ssdcore_torch.errors import out_of_memory
from ssdcore_torch.training import Extras, NotFiniteError, Trainer, final_pictures, fitted_prior, plan, replay, train
from ssdcore_torch.training.log import summary_writer
from ssdcore_torch.training.memory import check_memory


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
    add("--size", type=cli.whole_number(1), metavar="PX", help="height and width of the images")
    add("--channels", type=int, choices=CHANNELS, help="1: grey, 3: RGB, 4: RGBA (default: the preset's, 3)")
    add("--levels", type=cli.whole_number(1), metavar="N", help="resolution levels, each half the size of the last")
    add("--schedule", type=Path, metavar="FILE", help="resolution schedule that `python -m ssdcore design --out` wrote")
    add("--conditional", action="store_true", help="learn the data's class labels, to sample a class of your choice")
    add("--steps", type=cli.whole_number(1), metavar="N", help="optimizer steps")
    add("--batch-size", type=cli.whole_number(1), metavar="N", help="images a step, over all processes")
    add(
        "--seed",
        type=cli.whole_number(0, cli.LARGEST_SEED),
        metavar="N",
        help="of weights, order, times and noise (default: 0)",
    )
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML or JSON file of settings, laid over the preset's; options win over it",
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
        help="go on with the run in --out from its newest sound checkpoint; options that would change what is trained "
        "are refused",
    )
    add(
        "--replay",
        type=cli.whole_number(0),
        metavar="STEP",
        help="with --resume: go to this step, look at it, save nothing",
    )
    add("--dry-run", action="store_true", help="say what the run will cost (parameters, memory, time) and stop")
    add("--tensorboard", action="store_true", help="write TensorBoard's event files into the run folder, too")
    add("--profile", action="store_true", help="trace some steps once the run is warm, into RUN/profile")
    add("--device", help="cpu, cuda, cuda:1, … (default: a CUDA device if there is one)")
    return options


def _config(args: argparse.Namespace, device: torch.device, saved: Config | None) -> Config:
    """The configuration asked for: the saved run's or the preset's, with the options laid over it."""
    data = args.data
    if args.preset is not None or saved is None:
        name = args.preset or ("gpu64" if device.type == "cuda" else "cpu")
        config = preset(name, data or (saved.data.path if saved and saved.data.path != EMBEDDED else None))
    else:
        config = saved
    config = _overlaid(args, config)
    # so that the run can be resumed from another folder
    return replace(config, data=replace(config.data, path=absolute(config.data.path)))


def _overlaid(args: argparse.Namespace, config: Config) -> Config:
    """`config` with what --config, each --set and the options say, in this order, laid over it as one tree: some
    settings go only together. Raises ValueError, naming where they come from."""
    given: dict[str, dict[str, Any]] = {}
    if args.config is not None:
        with _naming(f"--config {args.config}"):
            given[f"--config {args.config}"] = read_settings(read_text(args.config))
    for text in args.set:
        with _naming(f"--set {text}"):
            given[f"--set {text}"] = setting(text)
    numbers = {"steps": args.steps, "batch_size": args.batch_size}
    options: dict[str, Any] = {"train": {name: value for name, value in numbers.items() if value is not None}}
    if args.seed is not None:
        options["seed"] = args.seed
    if args.data is not None:
        options["data"] = {"path": args.data}
    if args.channels is not None:
        options["network"] = {"in_channels": args.channels}
    schedule, levels = None, args.levels
    if args.schedule is not None:
        with _naming(f"--schedule {args.schedule}"):
            open_regular(args.schedule).close()
            schedule = ssd.oracle.Schedule.load(args.schedule, (args.size or config.size,) * 2)
        levels = levels or len(schedule.sizes)
        given[f"--schedule {args.schedule}"] = designed(schedule)
    try:
        config = config.overlaid(merged(*given.values(), options), args.size, levels)
        return config if schedule is None else config.scheduled(schedule)
    except ValueError as error:
        raise ValueError(_blamed(str(error), given)) from error


def _blamed(fault: str, given: Mapping[str, Mapping[str, Any]]) -> str:
    """A fault that begins with the name of a setting, after the options that say this setting; all, if none does."""
    name = fault.partition(":")[0].partition("[")[0]
    guilty = [option for option, tree in given.items() if any(_related(name, key) for key in flat_settings(tree))]
    options = ", ".join(guilty or given)
    return f"{options}: {fault}" if options else fault


def _related(name: str, key: str) -> bool:
    """Whether one setting is the other, or a section of it."""
    return f"{name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{name}.")


@contextmanager
def _naming(option: str) -> Iterator[None]:
    """Raises ValueError, naming the option as it was typed, for what is wrong with it."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{option}: it cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error


def _check_extras(config: Config, tensorboard: bool) -> None:
    """Raises ImportError, naming what to install, if the run would miss an optional package."""
    if config.train.evaluate_every is not None:
        from ssdcore_torch.metrics import open_extractor, require_torchmetrics

        try:
            require_torchmetrics()
            open_extractor(config.train.evaluate_features)
        except ImportError as error:
            raise ImportError(f"train.evaluate_every: {error}") from error
    if tensorboard:
        summary_writer()


def _conditional(config: Config, data: ImageSet | ImageStream, asked: bool) -> Config:
    """The configuration with the data's classes, where the network is to know them. Raises ValueError for no labels."""
    if not asked and config.network.num_classes is None:
        return config
    if data.labels is None or not data.class_names:
        raise ValueError(
            f"a class-conditional network needs labels, and {data.source} has none: give a folder with a folder a "
            "class, or an .npz with labels, or leave --conditional out"
        )
    known, names = config.data.class_names, data.class_names
    if known and known != names:
        raise ValueError(f"the run was trained on the classes {list(known)}, and its data now has {list(names)}")
    if config.network.num_classes not in (None, len(names)):
        raise ValueError(
            f"network.num_classes: the data has {len(names)} classes ({', '.join(names[:8])}), not "
            f"{config.network.num_classes}: leave the setting out"
        )
    network = replace(config.network, num_classes=len(names))
    counts = () if known and not config.data.class_counts else data.class_counts  # of an older run: as it was
    return replace(config, network=network, data=replace(config.data, class_names=names, class_counts=counts))


def _run_folder(args: argparse.Namespace, config: Config, saved: Config | None) -> Path:
    """The folder to write to. Raises ValueError if it holds another run, or anything else."""
    if args.out is None:
        return next(folder for folder in _free_names(config) if not folder.exists())
    out: Path = args.out
    if saved is not None:
        if refused := checkpoint.resumable_changes(saved, config).refused:
            raise ValueError(f"--resume: {out} was made otherwise ({'; '.join(refused)}): leave these options out")
    elif (out / "config.json").exists() and not checkpoint.never_saved(out):
        filled_in = ("network.num_classes", "data.class_names") if args.conditional else ()  # from the data
        changed = [text for text in differences(config, checkpoint.read_config(out)) if not text.startswith(filled_in)]
        advice = f"of another configuration ({'; '.join(changed)})" if changed else "(add --resume to go on with it)"
        raise ValueError(f"--out {out} already holds a run {advice}: choose another folder")
    elif out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: choose a new folder")
    elif not (checkpoint.never_saved(out) or checkpoint.is_free(out)):
        raise ValueError(f"--out {out} is not empty: choose a new folder")
    return out


def _check_place(out: Path) -> None:
    """Raises OSError where a folder cannot be made, before the work that would go into it."""
    place = out.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))


def _free_names(config: Config) -> Iterator[Path]:
    """The default names of a run's folder, in turn."""
    yield Path("runs") / config.preset
    for count in itertools.count(2):
        yield Path("runs") / f"{config.preset}-{count}"


def _claim(args: argparse.Namespace, config: Config, out: Path, replaced: bool) -> Path:
    """Make the folder of a new run, and hold it; under the next free name, if another run took a default one meanwhile.

    replaced   there was a run already, which never saved: it is deleted
    Raises ValueError if another run took the folder asked for.
    """
    if args.out is not None:
        out.mkdir(parents=True, exist_ok=True)  # the lock decides who has it
    else:
        for out in _free_names(config):
            out.parent.mkdir(exist_ok=True)
            try:
                out.mkdir()
                break
            except FileExistsError:
                continue
    checkpoint.hold(out)
    if replaced and checkpoint.never_saved(out):
        print(f"the run in {out}, which was stopped before its first checkpoint, is replaced", file=sys.stderr)
        checkpoint.discard(out)
    elif (out / "config.json").exists():
        checkpoint.release(out)
        raise ValueError(f"--out {out} already holds a run, which began just now: choose another folder")
    return out


def prepare(args: argparse.Namespace, world: World) -> tuple[Trainer, Path]:
    """Check everything, read the data, build or restore the trainer; only then make the run folder, which rank 0 then
    holds until `checkpoint.release`."""
    if args.out is None and (args.resume or world.size > 1):
        why = "--resume needs" if args.resume else "several processes need"
        raise cli.UserError(f"{why} --out RUN, the folder of the run")
    if args.replay is not None and (not args.resume or world.size > 1):
        raise cli.UserError("--replay needs --out RUN --resume, and one process")
    out: Path | None = args.out
    made = False
    try:
        saved = checkpoint.read_config(args.out) if args.resume else None
        writes = world.leader and not args.dry_run and args.replay is None
        if saved is not None:
            checkpoint.check_folders(args.out)
        if saved is not None and writes:
            with _writing(args.out):
                checkpoint.hold(args.out)
        started = saved is not None and checkpoint.was_saved(args.out)  # else it was stopped before its first save
        config = _config(args, world.device, saved)
        _agree(args, config, world)
        if args.replay is not None and args.replay >= config.train.steps:
            raise ValueError(f"--replay {args.replay}: the run's steps are 0 to {config.train.steps - 1}")
        with _writing(args.out or Path("runs")):
            _check_place(_run_folder(args, config, saved))
        _check_extras(config, args.tensorboard)
        check_memory(config, world.device, world.size)
        if args.data is None and not any(text.startswith("data.path=") for text in args.set):
            refuse_untyped(config.data.path, str(args.config or Path(args.out or "", "config.json")))
        data = open_images(
            config.data.path,
            config.network.level_sizes[0],
            channels=config.network.in_channels,
            crop=config.data.crop,
            world=world,
            **config.data.reading(),
        )
        config = _conditional(config, data, args.conditional)
        world.agree({"the training images": data.fingerprint})
        out = _run_folder(args, config, saved)
        replaced = saved is None and (out / "config.json").exists()
        if saved is not None:
            checkpoint.check_data(out, data.fingerprint)
        trainer = Trainer(config, data, world)
        if started:
            trainer.restore(checkpoint.load_state(out, trainer.net.state_dict()))
        world.agree({"the checkpoint": f"step {trainer.step}"})
        if trainer.step > config.train.steps:
            raise ValueError(f"--steps {config.train.steps}: this run has done {trainer.step}; take at least as many")
        world.wait()  # until all have found the folder free
        if args.dry_run or args.replay is not None:
            return trainer, out
        if world.leader:
            fitted = saved is not None and checkpoint.prior_is_kept(out)
            # reads images, which may turn out broken: while there is no folder yet
            moments = None if fitted else fitted_prior(data, trainer.process)
            with _writing(out):
                if saved is None:
                    out = _claim(args, config, out, replaced)
                    made = True
                checkpoint.save_data(out, data.fingerprint)
                checkpoint.save_config(out, config)
                if not fitted:
                    checkpoint.save_prior(out, moments)
                    if started:  # its checkpoint accounts for the prior that it was trained with
                        print(
                            f"{out / 'prior.safetensors'} was missing or changed, and is fitted again", file=sys.stderr
                        )
                        checkpoint.save_state(out, trainer.state(), config.train.keep)
        world.wait()
        trainer.prior = checkpoint.load_prior(out, config, world.device)
    except (ValueError, OSError, ImportError) as error:
        if out is not None:
            _withdraw(out, made)
        raise cli.UserError(str(error)) from error
    except BaseException:
        if out is not None:
            _withdraw(out, made)
        raise
    if world.leader:
        _note(data, saved, config)
        if saved is not None:
            _note_start(trainer, out, started)
    return trainer, out


def _withdraw(out: Path, made: bool) -> None:
    """Let go of the folder; of one that this process made and never saved to, nothing is left that would refuse the
    corrected command."""
    if made:
        checkpoint.discard(out)
    checkpoint.release(out)
    if made:
        with suppress(OSError):  # something else is in it
            (out / checkpoint.LOCK).unlink(missing_ok=True)
            out.rmdir()


def _note_start(trainer: Trainer, out: Path, started: bool) -> None:
    if started:
        print(f"going on after step {trainer.step} of {trainer.config.train.steps}", file=sys.stderr)
    else:
        print(f"warning: {out} never saved a checkpoint: training begins at step 0", file=sys.stderr)


# Settings that may differ between the ranks of a run: the same data may lie in another place on another machine.
_OF_A_MACHINE = ("data.path", "data.workers")


def _agree(args: argparse.Namespace, config: Config, world: World) -> None:
    """Raises ValueError, on every rank, unless all were started alike, by the same code."""
    if world.size == 1:
        return
    settings = flat_settings(json.loads(config.to_json()))
    options = {f"--{name.replace('_', '-')}": str(getattr(args, name)) for name in ("resume", "dry_run", "conditional")}
    world.agree(
        {name: str(value) for name, value in settings.items() if name not in _OF_A_MACHINE}
        | options
        | {"the code": code_version(), "the kind of device": world.device.type}
    )


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Raises ValueError, naming the folder, where the system does not let it be written."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"--out {out} cannot be written ({error}): choose a folder that you may write to, on a disk with room"
        ) from error


def _note(data: ImageSet | ImageStream, saved: Config | None, config: Config) -> None:
    if data.skipped:
        name, reason = data.skipped[0]
        more = f" and {len(data.skipped) - 1} more" if len(data.skipped) > 1 else ""
        count = len(data) + len(data.skipped)
        print(f"skipped {len(data.skipped)} of {count} files: {name} ({reason}){more}", file=sys.stderr)
    if saved is not None:
        for change in checkpoint.resumable_changes(saved, config).allowed:
            print(f"changed: {change}", file=sys.stderr)


def _extras(args: argparse.Namespace, trainer: Trainer, out: Path) -> Extras:
    if trainer.config.train.evaluate_every is None:
        return Extras(None, args.tensorboard, args.profile)
    from ssdcore_torch.training.evaluation import Evaluation

    return Extras(Evaluation(trainer, out), args.tensorboard, args.profile)


def _describe(trainer: Trainer, out: Path) -> str:
    config, world = trainer.config, trainer.world
    sizes = " → ".join(str(size[0]) for size in reversed(config.network.level_sizes))
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
    trainer, out = prepare(args, world)
    gone = False
    try:
        return _work(args, world, trainer, out)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(_interrupted(trainer, out)) from error
    except BaseException as error:
        gone = not isinstance(error.__cause__, NotFiniteError)  # which is to be looked at there
        raise
    finally:
        _withdraw(out, gone and world.leader and not args.resume and not args.dry_run)


def _work(args: argparse.Namespace, world: World, trainer: Trainer, out: Path) -> int:
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
        finished = train(trainer, out, _extras(args, trainer, out))
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
        if not isinstance(error, ValueError) and "DataLoader worker" not in str(error):
            raise
        # Too much of the data is broken, or a process that decodes was killed.
        raise cli.UserError(f"{error}; {_standing(out)}") from error
    if not finished:
        again = _command(world, "--out", out, "--resume")
        say(f"stopped after step {trainer.step} and saved; to go on:\n  {again}")
        return cli.INTERRUPTED
    trained = time.perf_counter()
    if world.leader:
        try:
            final_pictures(checkpoint.load_run(out, world.device))
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
    """What a run that failed can go on from."""
    step = checkpoint.newest_sound(out)
    return "nothing was saved" if step is None else f"the run's last checkpoint is intact (step {step}), to --resume"


def _not_finite(error: NotFiniteError, world: World, trainer: Trainer, out: Path) -> str:
    # One process takes the parts of the batch that several had.
    parts = ["--set", f"train.accumulate={trainer.config.train.accumulate * world.size}"] if world.size > 1 else []
    again = _command(replace(world, size=1), "--out", out, "--resume", "--replay", error.step, *parts)
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
    again = _command(trainer.world, "--out", out, "--resume")
    return f"interrupted after step {trainer.step}: what came after step {last} is lost; to go on from it: {again}"


def _of_writing(error: Exception, out: Path) -> bool:
    """Whether an error is about the run folder, and not, say, about a process that could not be started."""
    if not isinstance(error, OSError):
        return True  # safetensors tells no file
    names = [name for name in (error.filename, error.filename2) if isinstance(name, (str, os.PathLike))]
    if not names:  # of a file that was open already
        return error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG)
    return any(Path(name).resolve().is_relative_to(out.resolve()) for name in names)


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
        f"  {out / 'log.jsonl'}      the loss",
        f"  {out / 'ema.safetensors'}  the averaged weights",
        f"next: {_next('sample', out, '--n', 64, '--steps', 100, '--seed', 1)}",
        f"      {_next('evaluate', out)}",
    ]
    return "\n".join(lines)


def _silent(text: str) -> None:
    """Ranks but the first say nothing."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    args = parser().parse_args(argv)
    with connect(args.device) as world:
        return _run(args, world)
