"""Run folders: safetensors and JSON, each file replaced as a whole or not at all.

The files of a run:

    config.json          the `Config`
    trainer.safetensors  everything that training continues from, in one file: weights, their average, optimizer, step
    model.safetensors    the weights, for others to read
    ema.safetensors      their moving average: what samples are drawn with
    prior.safetensors    mean and covariance of the clean images at the smallest size, for the law of x_T (where fitted)
    log.jsonl            one line an interval: step, loss, learning rate, images per second
    samples.png  denoising.png
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import ssdcore as ssd
from ssdcore_torch.config import Config
from ssdcore_torch.official import import_official
from ssdcore_torch.unet import FlexiUNet

__all__ = [
    "Run",
    "State",
    "import_official",
    "load_run",
    "load_state",
    "load_tensors",
    "read_config",
    "save_config",
    "save_prior",
    "save_state",
    "save_tensors",
    "write_atomically",
]

Tensors = dict[str, Tensor]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """`write(temporary)`, then put it in the place of `path`: a crash leaves the old file or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors makes files that only their owner may read
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself, too, must reach the disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors, whatever their device and layout, as one safetensors file."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda file: save_file(plain, file, dict(metadata or {})))


def load_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """(tensors, metadata) on the CPU. Raises ValueError for a file that is truncated or of another kind."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: not a run of ssdcore_torch, or one that was never saved")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no readable safetensors file, cut short or of another kind ({error})") from error


@dataclass(frozen=True)
class State:
    """What training continues from, by parameter name.

    step      optimizer steps done
    images    number of training images: another number would mean another order
    updates   how often the optimizer has changed each parameter (a path leaves out the parameters of other sizes)
    """

    step: int
    images: int
    model: Tensors
    ema: Tensors
    first_moments: Tensors
    second_moments: Tensors
    updates: Tensors

    PARTS: ClassVar = ("model", "ema", "first_moments", "second_moments", "updates")


def save_state(run: Path, state: State) -> None:
    """One atomic file for `load_state`, then the weights and their average as files of their own."""
    joined = {f"{part}/{name}": x for part in State.PARTS for name, x in getattr(state, part).items()}
    metadata = {"format": "ssdcore_torch trainer 1", "step": str(state.step), "images": str(state.images)}
    save_tensors(run / "trainer.safetensors", joined, metadata)
    step = {"step": str(state.step)}
    save_tensors(run / "model.safetensors", state.model, step)
    save_tensors(run / "ema.safetensors", state.ema, step)


def load_state(run: Path, expected: Mapping[str, Tensor]) -> State:
    """The state saved in `run`, for a network whose state dict is `expected` (names and shapes are checked)."""
    path = run / "trainer.safetensors"
    tensors, metadata = load_tensors(path)
    numbers = [metadata.get(key, "") for key in ("step", "images")]
    if metadata.get("format") != "ssdcore_torch trainer 1" or not all(number.isdigit() for number in numbers):
        raise ValueError(f"{path} is not a trainer state of this version: its header says {metadata or 'nothing'}")
    parts: dict[str, Tensors] = {part: {} for part in State.PARTS}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        if part not in parts:
            raise ValueError(f"{path}: unknown tensor {key}")
        parts[part][name] = tensor
    for part, found in parts.items():
        like = {name: torch.empty(()) for name in expected} if part == "updates" else expected
        check_tensors(found, like, f"{path} ({part})")
    return State(int(numbers[0]), int(numbers[1]), **parts)


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Raises ValueError unless the names, shapes and dtypes are those expected, naming the first that is not."""
    for name in sorted({*found, *expected}):
        if name not in found or name not in expected:
            fault = "is missing" if name not in found else "is unknown"
        elif found[name].shape != expected[name].shape or found[name].dtype != expected[name].dtype:
            fault = f"has {_describe(found[name])} instead of {_describe(expected[name])}"
        else:
            continue
        raise ValueError(f"{where} does not fit the network of config.json: {name} {fault}")


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def save_config(run: Path, config: Config) -> None:
    write_atomically(run / "config.json", lambda file: file.write_text(config.to_json(), encoding="utf-8"))


def read_config(run: Path) -> Config:
    """Raises FileNotFoundError where there is no run, ValueError for a configuration that cannot be read."""
    path = run / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run} is no run folder: it has no config.json; train one with --out {run}")
    try:
        return Config.from_json(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def save_prior(run: Path, moments: tuple[np.ndarray, np.ndarray]) -> None:
    """Keep `sampling.fit_moments`."""
    mean, covariance = (torch.from_numpy(values) for values in moments)
    save_tensors(run / "prior.safetensors", {"mean": mean, "covariance": covariance})


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
        return self.config.build_process()


def load_run(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Run:
    """Open a run folder, its networks in evaluation mode on `device`.

    Raises FileNotFoundError for what is no run or misses a file, ValueError naming a file that is unreadable, cut short
    or belongs to another network.
    """
    run = Path(path)
    config = read_config(run)
    nets, steps = [], []
    for name in ("model.safetensors", "ema.safetensors"):
        net = FlexiUNet(config.network)
        tensors, metadata = load_tensors(run / name)
        check_tensors(tensors, net.state_dict(), str(run / name))
        net.load_state_dict(tensors)
        nets.append(net.to(device).eval())
        steps.append(metadata.get("step", ""))
    if not steps[1].isdigit():
        raise ValueError(f"{run / 'ema.safetensors'}: its header names no step; it is not from a run of this trainer")
    return Run(run, config, int(steps[1]), nets[0], nets[1], load_prior(run, config, device))


def load_prior(run: Path, config: Config, device: str | torch.device) -> ssd.Gaussian | None:
    """The law of x_T kept in the run; None where none was fitted."""
    path = run / "prior.safetensors"
    if not path.exists():
        return None
    tensors, _ = load_tensors(path)
    shape = (config.network.in_channels, *config.network.level_sizes[-1])
    count = int(np.prod(shape))
    like = {"mean": torch.empty(shape, dtype=torch.float64), "covariance": torch.empty(count, count).double()}
    check_tensors(tensors, like, str(path))
    return config.build_process().prior(tensors["mean"].to(device), tensors["covariance"].numpy())
