"""Begin a run, or continue with one: all is checked before anything is written."""

from __future__ import annotations

import copy
import errno
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

import ssdcore as ssd
from ssdcore_torch import checkpoint
from ssdcore_torch.config import OF_A_MACHINE, Config, differences, flat_settings
from ssdcore_torch.data import ImageSet, ImageStream, open_data, refuse_untyped
from ssdcore_torch.denoisers import Denoiser, WrappedDenoiser, shape_of
from ssdcore_torch.distributed import World, code_version
from ssdcore_torch.runs._configure import with_process
from ssdcore_torch.runs.process_file import PROCESS, ProcessFile
from ssdcore_torch.training import Trainer, fitted_prior, steps_within
from ssdcore_torch.training.memory import check_memory

Images = ImageSet | ImageStream


@dataclass(frozen=True)
class Session:
    """A trainer that stands where its run does, in a folder that rank 0 holds until `checkpoint.release`.

    Attributes:
        saved: the run's configuration as it was, where it is resumed; None for a new run
        started: whether it continues from a checkpoint
        said: what was replaced or made again on the way
    """

    trainer: Trainer
    out: Path
    saved: Config | None
    started: bool
    said: tuple[str, ...] = ()

    @property
    def data(self) -> Images:
        return self.trainer.feed.images

    def notes(self) -> list[str]:
        """What deserves to be said before training: files left out, settings that are no longer what they were."""
        said = list(self.said)
        if skipped := self.data.skipped:
            name, reason = skipped[0]
            more = f" and {len(skipped) - 1} more" if len(skipped) > 1 else ""
            said.append(f"skipped {len(skipped)} of {len(self.data) + len(skipped)} files: {name} ({reason}){more}")
        if self.saved is not None:
            allowed = checkpoint.resumable_changes(self.saved, self.trainer.config).allowed
            said += [f"changed: {change}" for change in allowed]
            if self.started:
                said.append(f"continuing after step {self.trainer.step} of {self.trainer.config.train.steps}")
            else:
                said.append(f"warning: {self.out} never saved a checkpoint: training begins at step 0")
        return said


def begin(
    out: Path | None,
    configuration: Callable[[Config | None], Config],
    world: World,
    *,
    resume: bool = False,
    conditional: bool = False,
    dry_run: bool = False,
    replay: int | None = None,
    minutes: float | None = None,
    process: ssd.LinearDiffusion | None = None,
    network: Any = None,
    data: Any = None,
    typed: bool = False,
    where: str | None = None,
) -> Session:
    """Check everything, read the data, build or restore the trainer; only then make the run folder.

    Raises ValueError, OSError or ImportError; nothing is then left of a new run.

    Args:
        out: None: the first free of runs/PRESET, runs/PRESET-2, …
        configuration: the run's, from the saved one or, for a new run, None
        resume: continue the run in `out` from its newest intact checkpoint
        conditional: learn the data's classes
        dry_run: nothing is written: for a look at what a run would cost
        replay: nothing is written: for a look at this step
        minutes: train for as many steps as take so long on this machine, as measured first, decays included
        process: any `LinearDiffusion`, instead of the configuration's; it is saved by its operators
        network: a `Denoiser` to train, instead of a new one of the configuration's shape
        data: images in memory, or opened before, instead of those at `config.data.path`
        typed: whether the user has named the data: an address that only a file, `where`, names is not opened
    """
    made, said = False, list[str]()
    writes = not dry_run and replay is None
    try:
        saved = checkpoint.read_config(out) if resume and out is not None else None
        if saved is not None and out is not None:
            checkpoint.check_folders(out)
            if writes and world.leader:
                with _writing(out):
                    checkpoint.hold(out)
        started = (
            saved is not None and out is not None and checkpoint.was_saved(out)
        )  # else stopped before its first save
        config = configuration(saved)
        _agree(config, world, {"--resume": resume, "--dry-run": dry_run, "--conditional": conditional})
        if replay is not None and replay >= config.train.steps:
            raise ValueError(f"--replay {replay}: the run's steps are 0 to {config.train.steps - 1}")
        if process is None and saved is None and isinstance(network, WrappedDenoiser):
            process = network.process
        file = None
        if process is not None:
            file = ProcessFile.of(process)
        elif config.process.operators is not None and out is not None:
            file = ProcessFile.load(out / PROCESS, config.process.operators)
        if file is not None:
            process = file.build()  # as it comes back: a resumed run trains on the same numbers
        if not typed and data is None:
            refuse_untyped(config.data.path, where or str(Path(out or "", "config.json")))
        early = None
        given = network is not None or saved is not None
        if process is not None and given and len(process.shape(0)) != 2:  # arrays, which say how many channels
            early = open_run_data(config, data, world, process.shape(0), None)
        config, process = _fitted(config, process, file, network, None if early is None else early.channels)
        with _writing(out or Path("runs")):
            _check_place(_run_folder(out, config, saved, conditional))
        _check_extras(config)
        check_memory(config, world.device, world.size)
        opened = early
        if opened is None:
            opened = open_run_data(config, data, world, config.shape, config.network.in_channels)
        config = _conditional(config, opened, conditional, network)
        world.agree({"the training images": opened.fingerprint})
        named, out = out is not None, _run_folder(out, config, saved, conditional)
        replaced = saved is None and (out / "config.json").exists()
        if saved is not None:
            checkpoint.check_data(out, opened.fingerprint)
        if minutes is not None:
            if saved is not None:
                raise ValueError("--minutes: how long a run is was decided when it began; to train longer give --steps")
            measured = Trainer(config, opened, world, process, copy.deepcopy(network))
            steps = steps_within(measured, 60 * minutes)
            config = replace(config, train=replace(config.train, steps=steps))
        trainer = Trainer(config, opened, world, process, network)
        if started:
            buffers = dict(trainer.net.named_buffers())
            trainer.restore(checkpoint.load_state(out, trainer.net.state_dict(), buffers))
        world.agree({"the checkpoint": f"step {trainer.step}"})
        if trainer.step > config.train.steps:
            raise ValueError(f"--steps {config.train.steps}: this run has done {trainer.step}; take at least as many")
        world.wait()  # until all have found the folder free
        if not writes:
            return Session(trainer, out, saved, started)
        if world.leader:
            fitted = saved is not None and checkpoint.prior_is_kept(out)
            # reads images, which may turn out broken: while there is no folder yet
            moments = None if fitted else fitted_prior(opened, trainer.process)
            with _writing(out):
                if saved is None:
                    out = _claim(out if named else None, config)
                    if replaced and checkpoint.never_saved(out):
                        said.append(f"the run in {out}, which was stopped before its first checkpoint, is replaced")
                        checkpoint.discard(out)
                    elif (out / "config.json").exists():
                        checkpoint.release(out)
                        raise ValueError(
                            f"--out {out} already holds a run, which began just now: choose another folder"
                        )
                    made = True
                checkpoint.save_data(out, opened.fingerprint)
                checkpoint.save_config(out, config)
                if file is not None:
                    file.save(out / PROCESS)
                if not fitted:
                    checkpoint.save_prior(out, moments)
                    if started:  # its checkpoint accounts for the prior that it was trained with
                        said.append(f"{out / 'prior.safetensors'} was missing or changed, and is fitted again")
                        checkpoint.save_state(out, trainer.state(), config.train.keep)
                if saved is None and network is not None:
                    # its weights are known to nobody else: a run that is killed before its first save has them
                    checkpoint.save_state(out, trainer.state(), config.train.keep)
        world.wait()
        channels = config.network.in_channels
        trainer.prior = checkpoint.load_prior(out, trainer.process, channels, world.device)
    except BaseException:
        if out is not None:
            withdraw(out, made)
        raise
    return Session(trainer, out, saved, started, tuple(said))


def withdraw(out: Path, made: bool) -> None:
    """Let go of the folder; of one that this process made and never saved to, nothing is left that would refuse the
    corrected command."""
    if made:
        checkpoint.discard(out)
    checkpoint.release(out)
    if made:
        with suppress(OSError):  # something else is in it
            (out / checkpoint.LOCK).unlink(missing_ok=True)
            out.rmdir()


def _agree(config: Config, world: World, options: Mapping[str, object]) -> None:
    """Raises ValueError, on every rank, unless all were started alike, by the same code."""
    if world.size == 1:
        return
    settings = flat_settings(json.loads(config.to_json()))
    world.agree(
        {name: str(value) for name, value in settings.items() if name not in OF_A_MACHINE}
        | {name: str(value) for name, value in options.items()}
        | {"the code": code_version(), "the kind of device": world.device.type}
    )


def _fitted(
    config: Config,
    process: ssd.LinearDiffusion | None,
    file: ProcessFile | None,
    network: Any,
    channels: int | None,
) -> tuple[Config, ssd.LinearDiffusion]:
    """The configuration with the process and the network that were given, and the process.

    Args:
        channels: of the data, where these are open already
    """
    if network is not None and not (isinstance(network, nn.Module) and isinstance(network, Denoiser)):
        raise TypeError(
            f"network: expected a Denoiser, such as wrap(net, process) of any module, got {type(network).__name__}"
        )
    if file is None and network is not None and not isinstance(network, WrappedDenoiser):
        config = replace(config, network=shape_of(network))
    if process is None or file is None:
        process = config.build_process()
    if network is not None and network.sizes != process.shapes:
        raise ValueError(
            f"network: it is made for states of {network.sizes}, and the process has {process.shapes}: give one that "
            "is made for this process, such as wrap(net, process)"
        )
    if isinstance(network, WrappedDenoiser):
        if network.channels is None:
            network.channels = config.network.in_channels if channels is None else channels
        network.told_by(process)
    shape = None if network is None else shape_of(network)
    if file is not None:
        config = with_process(config, process, file.digest, shape)
    elif shape is not None:
        config = replace(config, network=shape)
    if channels not in (None, config.network.in_channels):
        raise ValueError(f"network: it takes {config.network.in_channels} channels, and the data have {channels}")
    return config, process


def open_run_data(config: Config, data: Any, world: World, size: tuple[int, ...], channels: int | None) -> Images:
    """The training data: `data`, where it is open already or was given by a program, or those at config.data.path."""
    if isinstance(data, (ImageSet, ImageStream)):
        return data
    path = config.data.path if data is None else data
    crop, reading = config.data.crop, config.data.reading()
    return open_data(path, size, channels=channels, crop=crop, world=world, **reading)


def _check_extras(config: Config) -> None:
    """Raises ImportError, naming what to install, if the run would miss an optional package."""
    if config.train.evaluate_every is not None:
        from ssdcore_torch.metrics import open_extractor, require_torchmetrics

        try:
            require_torchmetrics()
            open_extractor(config.train.evaluate_features, shape=(config.network.in_channels, *config.shape))
        except ImportError as error:
            raise ImportError(f"train.evaluate_every: {error}") from error
        except ValueError as error:
            raise ValueError(f"train.evaluate_features: {error}") from error


def _conditional(config: Config, data: Images, asked: bool, network: Any) -> Config:
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
    if network is not None and network.num_classes != len(names):
        raise ValueError(
            f"the network was made for {network.num_classes or 'no'} classes, and {data.source} has {len(names)}: "
            f"{', '.join(names)}"
        )
    shape = replace(config.network, num_classes=len(names))
    counts = () if known and not config.data.class_counts else data.class_counts  # of an older run: as it was
    return replace(config, network=shape, data=replace(config.data, class_names=names, class_counts=counts))


def _run_folder(out: Path | None, config: Config, saved: Config | None, conditional: bool) -> Path:
    """The folder to write to. Raises ValueError if it holds another run, or anything else."""
    if out is None:
        return next(folder for folder in _free_names(config) if not folder.exists())
    if saved is not None:
        if refused := checkpoint.resumable_changes(saved, config).refused:
            raise ValueError(f"--resume: {out} was made otherwise ({'; '.join(refused)}): leave these options out")
    elif (out / "config.json").exists() and not checkpoint.never_saved(out):
        filled_in = ("network.num_classes", "data.class_names") if conditional else ()  # from the data
        changed = [text for text in differences(config, checkpoint.read_config(out)) if not text.startswith(filled_in)]
        advice = f"of another configuration ({'; '.join(changed)})" if changed else "(add --resume to continue it)"
        raise ValueError(f"--out {out} already holds a run {advice}: choose another folder")
    elif out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: choose a new folder")
    elif not (checkpoint.never_saved(out) or checkpoint.is_free(out)):
        raise ValueError(f"--out {out} is not empty: choose a new folder")
    return out


def _check_place(out: Path) -> None:
    """Raises OSError where a folder cannot be made, ValueError where safetensors could not open its files, before the
    work that would go into it."""
    try:
        os.fspath(out.absolute()).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"--out {out}: the name is not UTF-8, as that of safetensors files must be") from error
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


def _claim(out: Path | None, config: Config) -> Path:
    """Make the folder of a new run, and hold it; None: under the first free name, whoever takes them meanwhile.

    Raises:
        ValueError: If another process holds the folder asked for.
    """
    folder = _first_free(config) if out is None else out
    if out is not None:
        folder.mkdir(parents=True, exist_ok=True)  # the lock decides who has it
    checkpoint.hold(folder)
    return folder


def _first_free(config: Config) -> Path:
    """A default folder that nobody has made yet, made."""
    for folder in _free_names(config):
        folder.parent.mkdir(exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError("the names have no end")


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Raises ValueError, naming the folder, where the system does not let it be written."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"--out {out} cannot be written ({error}): choose a folder that you may write to, on a disk with room"
        ) from error
