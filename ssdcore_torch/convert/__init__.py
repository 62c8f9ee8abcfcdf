"""python -m ssdcore_torch.convert: a checkpoint of the paper's code as a run folder."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

from ssdcore.files import temporary_beside
from ssdcore_torch import checkpoint
from ssdcore_torch.config import CONVERTED, Config, DataConfig, ProcessConfig, preset, unnamed_data
from ssdcore_torch.denoisers.unet import FlexiUNet
from ssdcore_torch.locks import lock_folder, unlock_folder
from ssdcore_torch.official import official_step


def convert(official: Path, out: Path, net: FlexiUNet, process: ProcessConfig) -> Config:
    """Write `net`, imported from `official`, and the process it was trained for as the run folder `out`; all of it or
    nothing. The file holds one set of weights: it becomes both the run's weights and their average.

    Raises:
        ValueError: If the schedule admits no process.
        FileExistsError: If `out` exists.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists already; give another --out, or remove it")
    step = official_step(official)
    source = unnamed_data(official.name)
    config = Config(
        preset=CONVERTED,
        seed=0,
        data=DataConfig(source),
        network=net.config,
        process=process,
        train=replace(preset("celeba64", source).train, steps=max(step, 1)),
    )
    config.build_process()
    out.parent.mkdir(parents=True, exist_ok=True)
    _sweep(out)
    staged = temporary_beside(out)
    staged.mkdir()
    lock = lock_folder(staged)
    try:
        for name in ("model.safetensors", "ema.safetensors"):
            checkpoint.save_tensors(staged / name, net.state_dict(), {"step": str(step)})
        checkpoint.save_config(staged, config)
        checkpoint.save_account(staged, config)
        os.rename(staged, out)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    finally:
        unlock_folder(lock)
    return config


def _sweep(out: Path) -> None:
    """Remove what conversions to `out` that were killed have left beside it."""
    for left in out.parent.iterdir():
        if not re.fullmatch(rf"\.{re.escape(out.name)}\.[0-9a-f]{{16}}\.tmp", left.name) or left.is_symlink():
            continue
        try:
            lock = lock_folder(left)
        except OSError:  # in use, or not ours
            continue
        shutil.rmtree(left, ignore_errors=True)
        unlock_folder(lock)
