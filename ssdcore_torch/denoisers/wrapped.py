"""Any module as a denoiser: told its process, and what its layers predict."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import ssdcore as ssd
from ssdcore_torch.denoisers.predictions import prediction_named
from ssdcore_torch.denoisers.protocol import Size, asked

REBUILT = "diffusers"
"""The library whose models a run folder can make again, from their class's name and their configuration."""


@dataclass(frozen=True)
class WrappedConfig:
    """A `WrappedDenoiser` in a run's configuration.

    Attributes:
        prediction: a name of `PREDICTIONS`
        level_sizes: trailing shapes of the states, full size first
        in_channels: of the images, in and out
        num_classes: class-conditional if given; label `num_classes` then means "no class"
        module: name of the wrapped module's class, with its package
        settings: the configuration that makes a diffusers model again; None for other modules
    """

    prediction: str
    level_sizes: tuple[Size, ...]
    in_channels: int
    module: str
    num_classes: int | None = None
    settings: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        prediction_named(self.prediction)
        if not self.level_sizes or self.in_channels < 1:
            raise ValueError(
                f"network: expected level_sizes and in_channels >= 1, got {self.level_sizes}, {self.in_channels}"
            )

    @property
    def null_label(self) -> int | None:
        return self.num_classes

    @property
    def preconditioned_times(self) -> None:
        """It has no table of times of its own: a wrapped network is told its process."""

    def build(self, process: ssd.LinearDiffusion) -> WrappedDenoiser:
        """The network, with new weights. Raises ValueError for a module that only its owner can make."""
        library, _, name = self.module.partition(".")
        if self.settings is None or library != REBUILT or not name.isidentifier():
            raise ValueError(
                f"the network of this run is {self.module}, which a folder cannot make again: give it, as "
                "Run.open(out, network=wrap(net, process))"
            )
        try:
            diffusers = importlib.import_module(REBUILT)
        except ImportError as error:
            raise ImportError(f'the network of this run is {self.module}: pip install "ssdcore[interop]"') from error
        kind = getattr(diffusers, name, None)
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise ValueError(f"the network of this run is {self.module}, which this version of diffusers does not have")
        try:
            net = kind.from_config(self.settings)  # type: ignore[attr-defined]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.module} cannot be made from network.settings ({error})") from error
        return WrappedDenoiser(net, process, self.prediction, self.in_channels, self.num_classes)


Lift = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Told:
    """What a denoiser knows of its process; `lifts` from level k to level k − 1. Copies of the network share it."""

    process: ssd.LinearDiffusion
    lifts: tuple[Lift | None, ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> _Told:
        return self


class WrappedDenoiser(nn.Module):
    """A module F and a prediction as a `Denoiser`: x̂ = c_skip z + c_out F(c_in z, c_noise), z = L x_t.

    L is the identity where the prediction has the state's size. Where it is larger, L = Rᵀ/‖R‖² with R the
    process's change of size: the smooth interpolation that belongs to the kernel, whose coarsest mode has gain one.
    F itself never changes a size, so any fully convolutional network runs at every level. Make one with `wrap`.
    """

    def __init__(
        self,
        module: nn.Module,
        process: ssd.LinearDiffusion,
        prediction: str,
        channels: int | None,
        num_classes: int | None,
    ) -> None:
        super().__init__()
        self.module = module
        self.prediction, self.channels, self.num_classes = prediction, channels, num_classes
        self.sizes: tuple[Size, ...] = process.shapes
        self._told: _Told
        self.table: Tensor
        self.register_buffer("table", torch.empty(0), persistent=False)
        self.told_by(process)

    def told_by(self, process: ssd.LinearDiffusion) -> WrappedDenoiser:
        """Take the coefficients and changes of size of this process, of the same sizes; returns self.

        Raises:
            ValueError: Where the prediction does not fit its noise.
        """
        table = prediction_named(self.prediction).table(self.prediction, process)
        self.table = torch.from_numpy(table).to(self.table.device, torch.float32)
        self._told = _Told(process, (None, *(_lift_of(process, t) for t in process.size_changes)))
        return self

    @property
    def batch_independent(self) -> bool:
        """As the module says, or, where it does not, whether it is made of torch's and diffusers' own layers alone."""
        said = getattr(self.module, "batch_independent", None)
        if said is not None:
            return bool(said)
        return all(type(part).__module__.startswith(("torch.nn.", f"{REBUILT}.")) for part in self.module.modules())

    @property
    def process(self) -> ssd.LinearDiffusion:
        """Whose states it is shown."""
        return self._told.process

    @property
    def null_label(self) -> int | None:
        return self.num_classes

    def lower_precision(self, dtype: torch.dtype = torch.bfloat16) -> WrappedDenoiser:
        """Let the module compute in this dtype; states and predictions keep theirs. Returns self."""
        self.module.to(dtype)
        return self

    def config(self) -> WrappedConfig:
        """What a run folder keeps of it. Raises ValueError where the number of channels is not known."""
        kind = type(self.module)
        library = kind.__module__.partition(".")[0]
        settings = None
        if library == REBUILT and hasattr(self.module, "config"):
            settings = json.loads(json.dumps(_plain(self.module.config)))
        name = f"{library}.{kind.__name__}" if settings is not None else f"{kind.__module__}.{kind.__qualname__}"
        if self.channels is None:
            raise ValueError("wrap: the network does not say how many channels its images have; give channels=")
        return WrappedConfig(self.prediction, self.sizes, self.channels, name, self.num_classes, settings)

    def forward(self, x: Tensor, t: Tensor, out_level: int | None = None, label: Tensor | None = None) -> Tensor:
        size = tuple(x.shape[2:])
        if size not in self.sizes:
            raise ValueError(f"x: expected the trailing shape of a state, one of {self.sizes}, got {tuple(x.shape)}")
        level = self.sizes.index(size)
        out_level = level if out_level is None else out_level
        if not 0 <= out_level <= level:
            raise ValueError(f"out_level: a state of level {level} gives levels 0..{level}, got {out_level}")
        z = x
        for k in range(level, out_level, -1):
            lift = self._told.lifts[k]
            assert lift is not None  # level 0 is not lifted
            z = lift(z)
        at = t.clamp(0, self.table.shape[1] - 1)  # a time that is not whole takes its share of both neighbours
        rows = self.table[:, at.floor().long()]
        rows = torch.lerp(rows, self.table[:, at.ceil().long()], (at - at.floor()).to(rows.dtype))
        c_in, c_skip, c_out, told = (row.view(-1, *[1] * (x.ndim - 1)).to(x.dtype) for row in rows)
        given = self._labelled(label, len(x), x.device)
        weight = next(self.module.parameters(), z)
        y = self.module((c_in * z).to(weight.dtype), told.flatten(), **given)
        y = getattr(y, "sample", y)
        if not isinstance(y, Tensor) or y.shape != z.shape:
            came = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(
                f"the wrapped network must give {tuple(z.shape)}, the shape of its input, got {came}; learned "
                "variances are not taken"
            )
        return c_skip * z + c_out * y.to(x.dtype)

    def _labelled(self, label: Tensor | None, count: int, device: torch.device) -> dict[str, Tensor]:
        if self.num_classes is None:
            if label is not None:
                raise ValueError("label: this network has no classes; leave it out")
            return {}
        if label is None:
            label = torch.full((count,), self.num_classes, device=device)
        # diffusers calls them class_labels
        return {"class_labels" if hasattr(self.module, "config_name") else "label": label}


def _lift_of(process: ssd.LinearDiffusion, t: int) -> Lift:
    """Rᵀ/‖R‖² for the change of size R at time t."""
    change = process.operator(t - 1, t)
    return functools.partial(_lift, change.T, change.norm() ** -2)


def _lift(adjoint: ssd.LinearOperator, factor: float, x: Tensor) -> Tensor:
    return factor * adjoint(x)


def wrap(
    net: nn.Module,
    proc: ssd.LinearDiffusion,
    prediction: str = "clean",
    *,
    channels: int | None = None,
    num_classes: int | None = None,
) -> WrappedDenoiser:
    """A `Denoiser` of any module, for the trainer, the samplers and the run folder.

    Args:
        net: called as net(x, t): x ``(batch, channels, *size)`` of every size of the process, t (batch,) the time as
            most networks embed it, 0 … T − 1 (¼ ln(σ/α) where the prediction is "edm"). It returns a tensor of x's
            shape, or an object that holds one as `sample`, as diffusers' models do. With classes it is also given
            class_labels (a diffusers model) or label, (batch,) int64. A module of your own that handles each image by
            itself and changes nothing when called may say ``batch_independent = True``: a CPU then splits batches over
            threads
        proc: the process whose states it is shown
        prediction: what it predicts: "clean", "noise", "velocity" or "edm" (see
            `ssdcore_torch.denoisers.predictions`)
        channels: of the images; None: as the network's configuration says, or else as the data has
        num_classes: of a class-conditional network, which also knows the label num_classes, "no class"; None: of a
            diffusers model, num_class_embeds − 1

    Raises:
        TypeError: For what is not a module.
        ValueError: For a prediction that is unknown or does not fit the noise.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"wrap: expected a torch module, got {type(net).__name__}")
    if not isinstance(proc, ssd.LinearDiffusion):
        raise TypeError(f"wrap: expected an ssdcore.LinearDiffusion, got {type(proc).__name__}")
    if isinstance(net, WrappedDenoiser):
        raise TypeError("wrap: this network is wrapped already")
    config = getattr(net, "config", None)
    settings: Mapping[str, Any] = config if isinstance(config, Mapping) else {}
    if channels is None:
        said = settings["in_channels"] if "in_channels" in settings else getattr(net, "in_channels", None)
        channels = said if isinstance(said, int) else None
    if num_classes is None and settings.get("num_class_embeds") is not None:
        num_classes = settings["num_class_embeds"] - 1
    if settings.get("out_channels", channels) != channels:
        raise ValueError(
            f"wrap: the network takes {channels} channels and gives {settings['out_channels']}; it must give as many "
            "(learned variances are not taken)"
        )
    return WrappedDenoiser(net, proc, prediction, channels, num_classes)


def shape_of(net: Any) -> Any:
    """A denoiser in a run's configuration: as its `config` says, or, of one of the user's own, a `WrappedConfig` that
    names its class, from which no folder can make it again.

    Raises:
        ValueError: For a class-conditional network whose label for "no class" is not num_classes.
    """
    config = getattr(net, "config", None)
    if callable(config):
        config = config()
    if hasattr(config, "level_sizes"):
        return config
    if net.num_classes is not None and net.null_label != net.num_classes:
        raise ValueError(
            f'network: training leaves labels out by the label "no class", which must be num_classes, '
            f"{net.num_classes}; null_label is {net.null_label}"
        )
    sizes = tuple(tuple(size) for size in net.sizes)
    return WrappedConfig(
        "clean", sizes, net.channels, f"{type(net).__module__}.{type(net).__qualname__}", net.num_classes
    )


def check_denoiser(net: Any, process: ssd.LinearDiffusion) -> None:
    """Show the network an image of nothing on every path of the process.

    Raises:
        ValueError: Where its sizes are not the process's, its predictions have another shape than they should, it
            fails, or holds one tensor under two names.
    """
    if tuple(net.sizes) != process.shapes:
        raise ValueError(f"network: its sizes are {tuple(net.sizes)}, the process has {process.shapes}")
    names = {*dict(net.named_parameters()), *dict(net.named_buffers())}
    if tied := [name for name in net.state_dict() if name not in names]:
        raise ValueError(f"network: {tied[0]} is another name of a tensor that it holds already, which cannot be saved")
    was_training = net.training
    net.eval()
    try:
        with torch.no_grad():
            for level in range(len(net.sizes)):
                for out_level in {level, max(level - 1, 0)}:
                    expected = (1, net.channels, *net.sizes[out_level])
                    try:
                        found = tuple(asked(net, level, out_level).shape)
                    except (RuntimeError, TypeError, ValueError, IndexError) as error:
                        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                        raise ValueError(
                            f"network: it fails on an image of {net.channels} channels and size "
                            f"{net.sizes[level]}: {reason}"
                        ) from error
                    if found != expected:
                        raise ValueError(
                            f"network: from size {net.sizes[level]} to {net.sizes[out_level]} it must give {expected}, "
                            f"got {found}"
                        )
    finally:
        net.train(was_training)


def _plain(config: Any) -> dict[str, Any]:
    """A diffusers configuration without what it notes about itself."""
    values = config if isinstance(config, Mapping) else dataclasses.asdict(config)
    return {name: value for name, value in values.items() if not name.startswith("_")}
