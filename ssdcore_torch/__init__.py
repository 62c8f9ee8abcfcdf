"""Scale space diffusion in PyTorch: Flexi-UNet, trainer and samplers on the exact algebra of `ssdcore`."""

from ssdcore_torch.checkpoint import Run, load_run
from ssdcore_torch.restoration import restore
from ssdcore_torch.sampling import decode, encode, generate, interpolate
from ssdcore_torch.unet import FlexiUNet, FlexiUNetConfig

__all__ = [
    "FlexiUNet",
    "FlexiUNetConfig",
    "Run",
    "decode",
    "encode",
    "generate",
    "interpolate",
    "load_run",
    "restore",
]
