"""Scale space diffusion in PyTorch: Flexi-UNet, trainer and samplers on the exact algebra of `ssdcore`."""

import os

# Before torch loads OpenMP: with threads that spin while they wait, a training step on two cores that another program
# also uses took 3 to 8 times as long. A value that is set already is kept.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

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
