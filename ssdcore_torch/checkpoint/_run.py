"""The weights of a run folder, its prior and its residual spectra."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

import ssdcore as ssd
from ssdcore.files import write_atomically
from ssdcore_torch.checkpoint._files import (
    Tensors,
    check_finite,
    check_tensors,
    content_of,
    json_writer,
    load_tensors,
    read_json,
    save_tensors,
)
from ssdcore_torch.checkpoint._layout import PRIOR, RESIDUALS, checkpoints
from ssdcore_torch.checkpoint._reading import check_prior, check_residuals, open_newest
from ssdcore_torch.checkpoint._resume import check_unchanged
from ssdcore_torch.config import Config
from ssdcore_torch.denoisers import NETWORKS, FlexiUNetConfig
from ssdcore_torch.sampling import ResidualSpectra
from ssdcore_torch.text import printable


class OpenRun(Protocol):
    """What drawing, evaluating and reporting ask of a `ssdcore_torch.Run`."""

    path: Path
    config: Config

    @property
    def process(self) -> ssd.LinearDiffusion: ...
    @property
    def net(self) -> Any: ...
    @property
    def ema(self) -> Any: ...
    @property
    def prior(self) -> ssd.Gaussian | None: ...
    @property
    def residuals(self) -> ResidualSpectra | None: ...
    @property
    def step(self) -> int: ...


@dataclass(frozen=True)
class Weights:
    """The newest intact weights of a run, and their average: the step they are of, tensors by name, file."""

    step: int
    net: tuple[Tensors, Path]
    ema: tuple[Tensors, Path]


_WEIGHTS = ("model.safetensors", "ema.safetensors")
_FORMAT = "ssdcore_torch weights 1"


def save_account(run: Path, config: Config) -> None:
    """Write manifest.json, by which the weights of a run without checkpoints are known, with its prior and residual
    spectra where it has them, and what they were made for."""
    files = {name: content_of(run / name) for name in (*_WEIGHTS, PRIOR, RESIDUALS) if (run / name).is_file()}
    values = {"format": _FORMAT, "files": files, "config": json.loads(config.to_json())}
    write_atomically(run / "manifest.json", json_writer(values))


def _check_account(run: Path, config: Config) -> None:
    """Raises ValueError unless the weights, and the network and process of config.json, are those of manifest.json. A
    run of a version that wrote none has none."""
    path = run / "manifest.json"
    if not path.exists():
        return
    values = read_json(path)
    files, saved = values.get("files"), values.get("config")
    if values.get("format") != _FORMAT or not isinstance(files, dict) or not isinstance(saved, dict):
        raise ValueError(f"{path}: expected the format {_FORMAT!r}, with files and config")
    for name in _WEIGHTS:
        if (run / name).is_file() and content_of(run / name) != files.get(name):
            raise ValueError(f"{run / name} is not the file that was written: its SHA-256 is not that of manifest.json")
    for name in (PRIOR, RESIDUALS):
        path = run / name
        if (content_of(path) if path.is_file() else None) != files.get(name):
            fault = "is not the file that was written" if path.is_file() else "is missing"
            raise ValueError(f"{path} {fault}: manifest.json has another SHA-256 or none")
    check_unchanged(saved, config, path, ("network", "process"))


def newest_weights(run: Path, config: Config) -> Weights:
    """A folder without checkpoints, as `ssdcore_torch.convert` writes them, gives its model.safetensors and
    ema.safetensors. A damaged checkpoint is named in a warning and the one before it taken.

    Raises:
        FileNotFoundError: For what misses a file.
        ValueError: Naming a file that is unreadable, cut short or belongs to another configuration, or each damaged
            checkpoint if none is intact.
    """
    if checkpoints(run):
        opened = open_newest(run, everything=False)
        check_unchanged(opened.values["config"], config, opened.folder / "state.json", ("network", "process"))
        check_prior(run, opened)
        step = str(opened.values["step"])
        found = [(tensors, opened.folder / f"{name}.safetensors") for name, tensors in opened.tensors.items()]
    else:
        _check_account(run, config)
        found, step = [], ""
        for name in _WEIGHTS:
            tensors, metadata = load_tensors(run / name)
            found.append((tensors, run / name))
            step = metadata.get("step", "")
        if not (step.isascii() and step.isdigit()):
            raise ValueError(
                f"{run / 'ema.safetensors'}: its header names no step; it is not from a run of this trainer"
            )
    return Weights(int(step), *found)


def build_network(config: Config, process: ssd.LinearDiffusion, tensors: Tensors, file: Path) -> Any:
    """The network of these weights, in evaluation mode. They are compared with what the configuration asks for before
    it takes memory."""
    shape = config.network
    if isinstance(shape, FlexiUNetConfig) and shape.stages * shape.blocks_per_stage > len(tensors):
        raise ValueError(
            f"{file} does not fit the network of config.json: it holds {len(tensors)} tensors, and the network has "
            f"{shape.stages} stages of {shape.blocks_per_stage} blocks"
        )
    # other networks hold tensors besides their weights
    with torch.device("meta" if isinstance(shape, FlexiUNetConfig) else "cpu"):
        try:
            net = NETWORKS[type(shape)](shape, process)
        except RuntimeError as error:  # sizes whose product is not a number of bytes
            raise ValueError(
                f"{file} does not fit the network of config.json, which cannot be built: {error}"
            ) from error
    return fill_network(net, tensors, file)


def fill_network(net: Any, tensors: Tensors, file: Path) -> Any:
    """The network with these weights in it. Raises ValueError where they are of another network, or not finite."""
    check_tensors(tensors, net.state_dict(), str(file))
    check_finite(tensors, str(file))
    net.load_state_dict(tensors, assign=True)
    return net.eval()


def load_weights(net: Any, path: Path) -> None:
    """Put the weights of a safetensors file into `net`. Raises ValueError where they are of another network."""
    tensors, _ = load_tensors(path)
    check_tensors(tensors, net.state_dict(), str(path))
    check_finite(tensors, str(path))
    net.load_state_dict(tensors)


def save_prior(run: Path, moments: tuple[np.ndarray, np.ndarray] | None) -> None:
    """Keep `sampling.fit_moments`, or that there are none."""
    if moments is None:
        (run / PRIOR).unlink(missing_ok=True)
        return
    mean, covariance = (torch.from_numpy(values) for values in moments)
    save_tensors(run / PRIOR, {"mean": mean, "covariance": covariance})


def load_prior(
    run: Path, process: ssd.LinearDiffusion, channels: int, device: str | torch.device
) -> ssd.Gaussian | None:
    """The law of x_T kept in the run; None where none was fitted."""
    path = run / PRIOR
    if not path.exists():
        return None
    tensors, _ = load_tensors(path)
    check_finite(tensors, str(path))
    shape = (channels, *process.shape(process.steps))
    count = math.prod(shape)
    if tensors.keys() != {"mean", "covariance"} or any(x.dtype != torch.float64 for x in tensors.values()):
        raise ValueError(
            f"{path}: expected mean and covariance in float64, got {printable(', '.join(tensors) or 'nothing')}"
        )
    mean, covariance = tensors["mean"], tensors["covariance"]
    if mean.shape != shape or covariance.shape != (count, count):
        raise ValueError(
            f"{path} does not fit the network of config.json: a mean of {tuple(mean.shape)} and a covariance of "
            f"{tuple(covariance.shape)} instead of {shape} and {(count, count)}"
        )
    try:
        return process.prior(mean.to(device), covariance.numpy())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def save_residuals(run: Path, residuals: ResidualSpectra, step: int) -> None:
    """Keep the residual spectra of the weights after this step; the checkpoint that is saved next accounts for them."""
    tensors = {"channel_modes": torch.from_numpy(residuals.channel_modes)}
    for number, held in enumerate(residuals.paths):
        if held is not None:
            tensors |= {f"times/{number}": torch.from_numpy(held[0]), f"power/{number}": torch.from_numpy(held[1])}
    save_tensors(run / RESIDUALS, tensors, {"step": str(step)})


def load_residuals(run: Path, process: ssd.LinearDiffusion, channels: int, step: int) -> ResidualSpectra | None:
    """The residual spectra of the weights after this step; None where none were measured.

    Raises:
        ValueError: Where the file is missing, changed, or of another process.
    """
    if not check_residuals(run, step):
        return None
    path = run / RESIDUALS
    tensors, _ = load_tensors(path)
    check_finite(tensors, str(path))
    paths = tuple(
        (tensors[f"times/{i}"].numpy(), tensors[f"power/{i}"].numpy()) if f"times/{i}" in tensors else None
        for i in range(len(process.paths))
    )
    try:
        found = ResidualSpectra(process, tensors["channel_modes"].numpy(), paths)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path}: {error}") from error
    if found.channels != channels:
        raise ValueError(f"{path} does not fit the network of config.json: it is of {found.channels} channels")
    return found
