"""A run folder, open for use."""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import ssdcore as ssd
from ssdcore_torch.checkpoint._files import Tensors, check_tensors, load_tensors, save_tensors
from ssdcore_torch.checkpoint._resume import check_unchanged, read_config
from ssdcore_torch.checkpoint._state import PRIOR, check_finite, check_prior, checkpoints, open_newest
from ssdcore_torch.config import Config
from ssdcore_torch.denoisers.unet import FlexiUNet
from ssdcore_torch.text import printable


@dataclass(frozen=True)
class Run:
    """A run folder, open: `config`, `process`, and the networks `net` (the weights) and `ema` (their average).

    `step` is how many optimizer steps the weights have had; `prior` the law of x_T to hand to `generate`, or None.
    """

    path: Path
    config: Config
    step: int
    net: FlexiUNet
    ema: FlexiUNet
    prior: ssd.Gaussian | None

    @functools.cached_property
    def process(self) -> ssd.LinearDiffusion:
        return _process(self.config, self.path)


def load_run(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Run:
    """Open a run folder at its newest sound checkpoint, its networks in evaluation mode on `device`.

    A folder without checkpoints, as `ssdcore_torch.convert` writes them, gives its model.safetensors and
    ema.safetensors. A damaged checkpoint is named in a warning and the one before it taken.

    Raises FileNotFoundError for what is no run or misses a file, ValueError naming a file that is unreadable, cut short
    or belongs to another network, or each damaged checkpoint if none is sound.
    """
    run = Path(path)
    config = read_config(run)
    if checkpoints(run):
        opened = open_newest(run, everything=False)
        check_unchanged(opened.values["config"], config, opened.folder / "state.json", ("network", "process"))
        check_prior(run, opened)
        step = opened.values["step"]
        files = {opened.folder / f"{name}.safetensors": tensors for name, tensors in opened.tensors.items()}
    else:
        files, step = {}, ""
        for name in ("model.safetensors", "ema.safetensors"):
            files[run / name], metadata = load_tensors(run / name)
            step = metadata.get("step", "")
        if not (step.isascii() and step.isdigit()):
            raise ValueError(
                f"{run / 'ema.safetensors'}: its header names no step; it is not from a run of this trainer"
            )
    net, ema = (_network(config, tensors, file).to(device) for file, tensors in files.items())
    return Run(run, config, int(step), net, ema, load_prior(run, config, device))


def _network(config: Config, tensors: Tensors, file: Path) -> FlexiUNet:
    """The network of these weights. They are compared with what the configuration asks for before it takes memory."""
    shape = config.network
    if shape.stages * shape.blocks_per_stage > len(tensors):
        raise ValueError(
            f"{file} does not fit the network of config.json: it holds {len(tensors)} tensors, and the network has "
            f"{shape.stages} stages of {shape.blocks_per_stage} blocks"
        )
    try:
        with torch.device("meta"):
            net = FlexiUNet(shape)
    except RuntimeError as error:  # sizes whose product is no number of bytes
        raise ValueError(f"{file} does not fit the network of config.json, which cannot be built: {error}") from error
    check_tensors(tensors, net.state_dict(), str(file))
    check_finite(tensors, str(file))
    net.load_state_dict(tensors, assign=True)
    return net.eval()


def load_weights(net: FlexiUNet, path: Path) -> None:
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


def load_prior(run: Path, config: Config, device: str | torch.device) -> ssd.Gaussian | None:
    """The law of x_T kept in the run; None where none was fitted."""
    path = run / PRIOR
    if not path.exists():
        return None
    tensors, _ = load_tensors(path)
    check_finite(tensors, str(path))
    shape = (config.network.in_channels, *config.network.level_sizes[-1])
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
    process = _process(config, run)
    try:
        return process.prior(mean.to(device), covariance.numpy())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _process(config: Config, run: Path) -> ssd.LinearDiffusion:
    try:
        return config.build_process()
    except (ValueError, TypeError) as error:
        raise ValueError(f"{run / 'config.json'}: {printable(error)}") from error
