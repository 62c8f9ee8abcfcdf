"""The configuration of a run: one tree of frozen dataclasses, its JSON form, and the presets."""

from ssdcore_torch.config._config import (
    CONVERTED,
    OF_A_MACHINE,
    Config,
    designed,
    differences,
    is_unnamed_data,
    unnamed_data,
)
from ssdcore_torch.config._presets import PRESETS, preset
from ssdcore_torch.config._sections import NARROWEST, DataConfig, TrainConfig
from ssdcore_torch.config._tree import flat_settings, merged, read_settings, setting
from ssdcore_torch.processes import ProcessConfig

__all__ = [
    "CONVERTED",
    "NARROWEST",
    "OF_A_MACHINE",
    "PRESETS",
    "Config",
    "DataConfig",
    "ProcessConfig",
    "TrainConfig",
    "designed",
    "differences",
    "flat_settings",
    "is_unnamed_data",
    "merged",
    "preset",
    "read_settings",
    "setting",
    "unnamed_data",
]
