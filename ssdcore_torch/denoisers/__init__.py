"""Networks that predict clean images: the protocol, what wraps a foreign module, predictions, Flexi-UNet.

`NETWORKS` is the one place that names the kinds of networks a run can be configured with: a shape (a frozen dataclass
with `level_sizes`, `in_channels`, `num_classes` and `null_label`) and what builds a network of it.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ssdcore_torch.denoisers.predictions import DATA_STD, PREDICTIONS, Prediction, prediction_named
from ssdcore_torch.denoisers.protocol import (
    Denoiser,
    Predictor,
    asked,
    channels_of,
    classes_of,
    compiled,
    device_of,
    level_sizes_of,
    operations,
    shadow,
)
from ssdcore_torch.denoisers.unet import FlexiUNet, FlexiUNetConfig, network
from ssdcore_torch.denoisers.wrapped import WrappedConfig, WrappedDenoiser, check_denoiser, shape_of, wrap

NetworkConfig = FlexiUNetConfig | WrappedConfig
"""The shape of a network in a run's configuration."""

NETWORKS: Mapping[type, Callable[..., Any]] = {FlexiUNetConfig: network.build, WrappedConfig: WrappedConfig.build}

__all__ = [
    "DATA_STD",
    "NETWORKS",
    "PREDICTIONS",
    "Denoiser",
    "FlexiUNet",
    "FlexiUNetConfig",
    "NetworkConfig",
    "Prediction",
    "Predictor",
    "WrappedConfig",
    "WrappedDenoiser",
    "asked",
    "channels_of",
    "check_denoiser",
    "classes_of",
    "compiled",
    "device_of",
    "level_sizes_of",
    "operations",
    "prediction_named",
    "shadow",
    "shape_of",
    "wrap",
]
