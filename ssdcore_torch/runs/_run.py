"""Run: a folder in which a model is trained, as an object."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ssdcore as ssd
from ssdcore_torch import checkpoint
from ssdcore_torch.arguments import local_path
from ssdcore_torch.checkpoint import Weights
from ssdcore_torch.config import Config, merged
from ssdcore_torch.data import CHANNELS, FROM_PYTHON
from ssdcore_torch.denoisers import shape_of
from ssdcore_torch.devices import open_device
from ssdcore_torch.distributed import World, connect
from ssdcore_torch.reports import write_report
from ssdcore_torch.restoration import restore
from ssdcore_torch.runs._begin import Session, begin
from ssdcore_torch.runs._configure import Asked, configure
from ssdcore_torch.runs._draw import Drawing, Label, draw_images, labels_of
from ssdcore_torch.runs._evaluate import evaluate_run
from ssdcore_torch.runs.process_file import PROCESS, ProcessFile
from ssdcore_torch.sampling import ResidualSpectra, StepRecorder
from ssdcore_torch.sharing import fetch
from ssdcore_torch.sharing import push as share
from ssdcore_torch.suggest import did_you_mean
from ssdcore_torch.text import printable
from ssdcore_torch.training import Extras, Logger, TensorBoard, final_pictures, train


@dataclass(frozen=True)
class Opened:
    """A run's networks at one of its steps."""

    step: int
    net: Any
    ema: Any
    prior: ssd.Gaussian | None


class Run:
    """A run folder: make one with `create`, or `open` one; then `train`, `sample`, `restore`, `evaluate`.

    ::

        run = Run.create("runs/mine", data="pictures", size=32, levels=3, settings={"train": {"steps": 500}})
        run.train()
        images = run.sample(64, steps=25)

    - path: the folder
    - config: the `Config`

    Attributes:
        process: the `LinearDiffusion`
        net, ema: the network at the newest intact checkpoint, and its average, in evaluation mode
        step: optimizer steps that they have had
        prior: law of x_T to hand to `generate`, or None
        residuals: what the average's predictions leave open, to hand to `generate`; None: not measured
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        device: str | torch.device,
        *,
        network: Any = None,
        data: Any = None,
    ) -> None:
        """`create` and `open` make runs."""
        self.path, self.config, self.device = path, config, device
        self._network, self._data = network, data
        self._opened: Opened | None = None
        self._residuals: tuple[int, ResidualSpectra | None] | None = None  # with the step that they are of

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, preset {self.config.preset})"

    # ---- making one

    @classmethod
    def create(
        cls,
        out: str | os.PathLike[str],
        data: Any = None,
        preset: str | None = None,
        size: int | None = None,
        levels: int | None = None,
        settings: Mapping[str, Any] | None = None,
        process: ssd.LinearDiffusion | None = None,
        network: Any = None,
        *,
        conditional: bool = False,
        minutes: float | None = None,
        device: str | None = None,
    ) -> Run:
        """A new run in the folder `out`, which must be new or empty; everything is checked before it is made.

        Raises ValueError, OSError or ImportError, in one line that says what to do; nothing is left behind.

        Args:
            data: all that the command's --data takes, an array (n, h, w) or (n, h, w, c) of uint8, (array, labels),
                or a torch `Dataset` of pictures or (picture, class number); None: the preset's. For a process over
                signals or volumes: arrays ``(n, *shape)`` or ``(n, *shape, channels)``, channels last, of uint8 or of
                floats in [−1, 1], as an array, an .npy or .npz file or a Dataset (`ssdcore_torch.data.open_data`)
            preset: a name of `ssdcore_torch.config.PRESETS`; None: "gpu64" with a CUDA device, else "cpu"
            size, levels: height and width of the images, and how many sizes, each half the last; None: the
                preset's, or those of `process`
            settings: of config.json, as a tree: {"train": {"steps": 500}, "process": {"degradation": "blur"}}
            process: any `LinearDiffusion`; it is saved by its operators. None: as `settings` say
            network: a `Denoiser`, such as ``wrap(net, process)`` of any module, trained as it is; None: a new
                Flexi-UNet
            conditional: learn the data's classes
            minutes: train for as many steps as take so long at the speed measured before the first, instead of a
                number; the number is fixed then, whatever the machine does later
            device: "cpu", "cuda", …; None: a CUDA device if there is one
        """
        path = local_path("out", out)
        if settings is not None and not isinstance(settings, Mapping):
            raise TypeError(
                f'settings: expected a mapping such as {{"train": {{"steps": 500}}}}, got {type(settings).__name__}'
            )
        if (process is not None or network is not None) and (size is not None or levels is not None):
            raise ValueError("size, levels: the process or network that is given has its own; leave them out")
        held = None if data is None or isinstance(data, (str, os.PathLike)) else data
        named = data if data is None or held is None else FROM_PYTHON
        channels = _channels_of(held)
        if channels is not None and process is None and network is None:
            settings = merged({"network": {"in_channels": channels}}, settings or {})
        asked = Asked(preset, None if named is None else os.fspath(named), size, levels, options=settings or {})
        with connect(device) as world:
            session = begin(
                path,
                lambda saved: configure(asked, saved, world.device.type),
                world,
                conditional=conditional,
                minutes=minutes,
                process=process,
                network=network,
                data=held,
                typed=data is not None,
            )
            checkpoint.release(path)
        return cls._of(session, network)

    @classmethod
    def _of(cls, session: Session, network: Any) -> Run:
        trainer = session.trainer
        return cls(session.out, trainer.config, trainer.world.device, network=network, data=session.data)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        device: str | torch.device = "cpu",
        *,
        network: Any = None,
        data: Any = None,
    ) -> Run:
        """The run in a folder, at its newest intact checkpoint, its networks on `device`.

        A damaged checkpoint is named in a warning and the one before it taken.

        Args:
            network: the wrapped network of a run that was made with one that a folder cannot make again
            data: the images of a run that was made with an array

        Raises:
            FileNotFoundError: For what is not a run or misses a file.
            ValueError: Naming a file that is unreadable, cut short or belongs to another network, or each damaged
                checkpoint if none is intact.
        """
        folder = local_path("path", path)
        run = cls(folder, checkpoint.read_config(folder), open_device(str(device)), network=network, data=data)
        if not run._waits_for_its_first_save():
            run._load()
        return run

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | None = None,
        device: str | torch.device = "cpu",
        network: Any = None,
    ) -> Run:
        """A run that `push` has shared: a model of the Hugging Face hub ("OWNER/NAME"), or a folder.

        It is sampled from, restored with and evaluated (with `data=`); training cannot continue with it. Its files are
        data: reading them runs nothing, and the images that it names on other machines are not opened.

        Args:
            revision: branch, tag or commit; None: the newest
            token: of the hub, for a private model; None: the one that is logged in
            network: as for `open`

        Raises:
            ValueError: For what is neither a folder nor OWNER/NAME, and as `open` does.
            OSError: Where it cannot be fetched.
            ImportError: Without the extra "hub".
        """
        return cls.open(fetch(os.fspath(name), revision=revision, token=token), device, network=network)

    def _waits_for_its_first_save(self) -> bool:
        """Whether it was made, but never trained so far that anything was kept."""
        kept = checkpoint.checkpoints(self.path) or list(self.path.glob("*.safetensors"))
        others = [path for path in kept if path.name not in ("prior.safetensors", "residuals.safetensors", PROCESS)]
        return not others and (self.path / "data.json").exists() and not (self.path / "checkpoints").exists()

    def _load(self) -> Opened:
        if self._opened is None:
            weights = checkpoint.newest_weights(self.path, self.config)
            net, ema = (self._build(weights, average).to(self.device) for average in (False, True))
            channels = self.config.network.in_channels
            prior = checkpoint.load_prior(self.path, self.process, channels, self.device)
            self._opened = Opened(weights.step, net, ema, prior)
        return self._opened

    def _build(self, weights: Weights, average: bool) -> Any:
        tensors, file = weights.ema if average else weights.net
        if self._network is None:
            return checkpoint.build_network(self.config, self.process, tensors, file)
        if self._network.channels is None:  # as when the run was made
            self._network.channels = self.config.network.in_channels
        if shape_of(self._network) != self.config.network:
            raise ValueError(f"network: it is not the one of {self.path}, which has {self.config.network}")
        return checkpoint.fill_network(copy.deepcopy(self._network).cpu(), tensors, file)

    @functools.cached_property
    def process(self) -> ssd.LinearDiffusion:
        try:
            if self.config.process.operators is not None:
                return ProcessFile.load(self.path / PROCESS, self.config.process.operators).build()
            return self.config.build_process()
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise ValueError(f"{self.path / 'config.json'}: {printable(error)}") from error

    @property
    def net(self) -> Any:
        return self._load().net

    @property
    def ema(self) -> Any:
        return self._load().ema

    @property
    def step(self) -> int:
        return self._load().step

    @property
    def prior(self) -> ssd.Gaussian | None:
        return self._load().prior

    @property
    def residuals(self) -> ResidualSpectra | None:
        if self._residuals is None or self._residuals[0] != self.step:
            found = checkpoint.load_residuals(self.path, self.process, self.config.network.in_channels, self.step)
            self._residuals = self.step, found
        return self._residuals[1]

    # ---- using one

    def train(
        self,
        steps: int | None = None,
        *,
        tensorboard: bool = False,
        profile: bool = False,
        loggers: Sequence[Logger] = (),
    ) -> bool:
        """Train to the end, or until asked to stop (Ctrl-C, SIGTERM), from the newest intact checkpoint if any.

        Progress is shown, and checkpoints, log and pictures are written, as the command does.

        Returns whether the run is complete. Either way its state is saved. Raises what `begin` and
        `ssdcore_torch.training.train` raise: NotFiniteError before an update that is not finite, OSError where the
        folder cannot be written; the last checkpoint is then intact.

        Args:
            steps: optimizer steps: to this many in all, instead of as many as the configuration says, which then says
                so
            tensorboard: write its event files, too
            profile: trace some steps once the run is warm
            loggers: where figures and pictures go besides the folder, such as
                ``ssdcore_torch.training.WeightsAndBiases("project")``
        """
        loggers = [*([TensorBoard()] if tensorboard else []), *loggers]
        config = self.config
        if steps is not None:
            config = replace(config, train=replace(config.train, steps=steps))
        with connect(_device_name(self.device)) as world:
            session = begin(
                self.path,
                lambda saved: config,
                world,
                resume=True,
                network=self._network,
                data=self._data,
            )
            try:
                finished = finish(session, loggers=loggers, profile=profile)
            finally:
                checkpoint.release(self.path)
            self.config, self._data, self._opened, self._residuals = config, session.data, None, None
            if finished and world.leader:
                self.draw_pictures()
        return finished

    def draw_pictures(self) -> None:
        """samples.png, denoising.png and report.html in the folder, from the averaged weights."""
        drawn = final_pictures(self.path, self.config, self.ema, self.process, self.prior, self.step)
        write_report(self, self.path / "report.html", drawn)

    def sample(
        self,
        n: int,
        steps: int | None = None,
        seed: int = 0,
        label: Label | None = None,
        *,
        on_step: StepRecorder | None = None,
        **drawing: Any,
    ) -> Tensor:
        """n images (n, channels, h, w) in [−1, 1], or ``(n, channels, *shape)`` of another process, from the averaged
        weights, as `python -m ssdcore_torch.sample` draws them: with the run's prior and precision, its classes in
        turn.

        Args:
            steps: sampling steps: network evaluations per image (default: 100)
            label: a class by name or number, or several that take turns; None: all of a class-conditional run in
                turn
            drawing: the other fields of `Drawing`: sampler, eta, placement, guidance, precision, batch_size,
                second_moments
            on_step: as for `generate`

        Raises:
            ValueError: For what the run cannot do.
            TypeError: For an unknown option.
        """
        return draw_images(
            self, World(0, 1, 0, torch.device(self.device)), n, _drawing(steps, seed, drawing), label, on_step
        )

    def restore(
        self,
        operator: ssd.LinearOperator,
        measurements: Tensor,
        noise_level: float,
        steps: int | None = None,
        seed: int = 0,
        label: Label | None = None,
        *,
        data: ssd.Gaussian | None = None,
        **drawing: Any,
    ) -> Tensor:
        """Draws from p(x_0 | y) for y = A x_0 + σ·noise, one for each measurement: `ssdcore_torch.restore` with the
        run's averaged weights, precision and classes. The other arguments are those of `sample`."""
        how = _drawing(steps, seed, drawing)
        how.check(self.config)
        if how.second_moments:
            raise ValueError("second_moments: restoring has a covariance of its own for what predictions leave open")
        return restore(
            how.network(self, torch.device(self.device).type),
            self.process,
            operator,
            measurements,
            noise_level,
            seed=how.seed,
            eta=how.eta,
            data=data,
            labels=labels_of(self.config, label, len(measurements)),
            guidance=how.guidance,
            sampler=how.sampler,
            times=how.times(self.process, self.config.process.times),
            batch_size=how.batch_size,
        )

    def report(self, path: str | os.PathLike[str] = "report.html") -> None:
        """One HTML page of the run: losses, samples, the chain from noise to image, figures, settings, commands."""
        write_report(self, local_path("path", path))

    push = share

    def evaluate(
        self,
        n: int | None = None,
        *,
        features: str | None = None,
        data: Any = None,
        held_out: str | None = None,
        cache: Path | None = None,
        steps: int | None = None,
        seed: int = 0,
        **drawing: Any,
    ) -> dict[str, Any]:
        """The report of `python -m ssdcore_torch.evaluate`: n samples against as many real images.

        Args:
            n: samples; None: 5,000, or all of the data where it has fewer
            features: "lite0", "pixels", or a file of Inception's weights; None: "lite0", or "pixels" for
                signals and volumes
            data: the real images, as for `create`; None: those that the run was trained on
            held_out: real images that were not trained on, to judge by how near samples come to training
            cache: where features of real images are kept; None: ssdcore in the user's cache folder
            drawing: as for `sample`
        """
        with connect(_device_name(self.device)) as world:
            return evaluate_run(
                self,
                world,
                _drawing(steps, seed, drawing),
                n=n,
                features=features,
                data=data,
                held_out=held_out,
                cache=cache,
                opened=self._data if data is None else None,
            ).report


def load_run(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Run:
    """`Run.open`."""
    return Run.open(path, device)


def finish(session: Session, *, loggers: Sequence[Logger] = (), profile: bool = False) -> bool:
    """Train a session to its end, or until asked to stop: whether it is complete."""
    trainer, out = session.trainer, session.out
    evaluation = None
    if trainer.config.train.evaluate_every is not None:
        from ssdcore_torch.training.evaluation import EvaluationInTraining

        evaluation = EvaluationInTraining(trainer, out)
    return train(trainer, out, Extras(evaluation, loggers, profile))


def _drawing(steps: int | None, seed: int, others: Mapping[str, Any]) -> Drawing:
    """Raises TypeError for an option that there is not."""
    known = [field.name for field in fields(Drawing)]
    for name in others:
        if name not in known:
            raise TypeError(f"{name}: unknown option{did_you_mean(name, known)}; there are {', '.join(known)}")
    return Drawing(steps, seed=seed, **others)


def _device_name(device: str | torch.device) -> str:
    return str(device)


def _channels_of(data: Any) -> int | None:
    """Channels of an array of images, or of the one in (array, labels); None where it does not say."""
    array = data[0] if isinstance(data, tuple) and data else data
    shape = tuple(getattr(array, "shape", ()))
    if len(shape) == 3:
        return 1
    return int(shape[3]) if len(shape) == 4 and shape[3] in CHANNELS else None
