"""python -m ssdcore_torch.convert: a checkpoint of the paper's code as a run folder."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from ssdcore_torch import checkpoint
from ssdcore_torch.config import Config, DataConfig, ProcessConfig, preset
from ssdcore_torch.denoisers.unet import FlexiUNet
from ssdcore_torch.official import official_step


def convert(official: Path, out: Path, net: FlexiUNet, process: ProcessConfig) -> Config:
    """Write `net`, imported from `official`, and the process it was trained for as the run folder `out`; all of it or
    nothing. The file holds one set of weights: it becomes both the run's weights and their average.

    Raises ValueError if the schedule admits no process, FileExistsError if `out` exists.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists already; give another --out, or remove it")
    step = official_step(official)
    source = f"what {official.name} was trained on"
    config = Config(
        preset="official",
        seed=0,
        data=DataConfig(source),
        network=net.config,
        process=process,
        train=replace(preset("celeba64", source).train, steps=max(step, 1)),
    )
    config.build_process()
    staged = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        staged.mkdir(parents=True)
        for name in ("model.safetensors", "ema.safetensors"):
            checkpoint.save_tensors(staged / name, net.state_dict(), {"step": str(step)})
        checkpoint.save_config(staged, config)
        os.rename(staged, out)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return config


if __name__ == "__main__":
    from ssdcore_torch.commands import cli
    from ssdcore_torch.commands import convert as command

    cli.run(command.main)
