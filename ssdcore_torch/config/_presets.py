"""Configurations by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ssdcore_torch.config._config import Config
from ssdcore_torch.config._sections import DataConfig, TrainConfig
from ssdcore_torch.data import EMBEDDED
from ssdcore_torch.denoisers import FlexiUNetConfig
from ssdcore_torch.denoisers.unet import level_sizes
from ssdcore_torch.processes import ProcessConfig

# "cpu" and "gpu64" train as the study of quality under equal budgets found best (benchmarks/quality/README.md): matched
# noise, batches that lean to the large sizes, changes of size where little is lost. "gpu64", which trains for longer,
# has preconditioning and EDM's loss: on drawings they win at 20 minutes of a core and lose at 2; on photographs they
# were behind after 10 seconds of a GPU, too.


def _cpu(data: str | None) -> Config:
    """Drawings at a small size: minutes on two cores."""
    return Config(
        preset="cpu",
        seed=0,
        data=DataConfig(data or EMBEDDED, () if data else ("moods", "planets", "sprouts")),
        network=FlexiUNetConfig(
            level_sizes(16, 3, stages=3),
            base_channels=32,
            channel_multipliers=(1, 2, 2),
            blocks_per_stage=1,
            attention_sizes=(8,),
        ),
        process=ProcessConfig(schedule="information", gamma=None, matched=True, nats=0.3),
        train=TrainConfig(
            steps=1400,
            batch_size=32,
            learning_rate=1e-3,
            warmup=100,
            cosine_decay=True,
            ema=(0.995,),
            pixel_share=False,
            change_share=0.1,
            size_bias=0.5,
        ),
    )


def _gpu64(data: str | None) -> Config:
    """64 px, four levels, every class: for one GPU."""
    return Config(
        preset="gpu64",
        seed=0,
        data=DataConfig(data or EMBEDDED),
        network=FlexiUNetConfig(level_sizes(64, 4, stages=4), base_channels=96, preconditioned_times=1000),
        process=ProcessConfig(schedule="information", gamma=None, matched=True, nats=0.3),
        train=TrainConfig(
            steps=10_000,
            batch_size=128,
            learning_rate=2e-4,
            warmup=500,
            cosine_decay=True,
            ema=(0.9995,),
            pixel_share=False,
            change_share=0.1,
            weighting="edm",
            size_bias=0.5,
        ),
    )


def _paper(
    name: str, size: int, levels: int, multipliers: tuple[float, ...], steps: int
) -> Callable[[str | None], Config]:
    """Hyper-parameters of the paper's released configuration (batch: for each of its GPUs)."""

    def build(data: str | None) -> Config:
        if data is None:
            raise ValueError(f"preset {name} has no data of its own: give --data FOLDER_OR_NPZ")
        return Config(
            preset=name,
            seed=0,
            data=DataConfig(data),
            network=FlexiUNetConfig(
                level_sizes(size, levels, stages=len(multipliers)), channel_multipliers=multipliers
            ),
            process=ProcessConfig(schedule="convex", gamma=0.5, matched=False),
            train=TrainConfig(
                steps=steps,
                batch_size=32,
                learning_rate=1e-4,
                warmup=0,
                cosine_decay=False,
                ema=(0.9999,),
                pixel_share=False,
                change_share=None,
                save_every=10_000,
            ),
        )

    return build


PRESETS: Mapping[str, Callable[[str | None], Config]] = {
    "cpu": _cpu,
    "gpu64": _gpu64,
    "celeba64": _paper("celeba64", 64, 4, (1, 2, 3, 4), 1_000_000),
    "celeba128": _paper("celeba128", 128, 5, (1, 1, 2, 3, 4), 300_000),
    "celeba256": _paper("celeba256", 256, 6, (1, 1, 2, 2, 4, 4), 300_000),
    "imagenet64": _paper("imagenet64", 64, 2, (1, 2, 3, 4), 1_000_000),
}


def preset(name: str, data: str | None = None) -> Config:
    """The preset of this name, on other data if given. Raises ValueError for an unknown name, listing the known."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name](data)
