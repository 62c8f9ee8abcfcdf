"""Scale space diffusion in PyTorch: Flexi-UNet, trainer and samplers on the exact algebra of `ssdcore`."""

import os
import sys

if "torch" not in sys.modules and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    # OpenMP's threads wait for each other in loops that keep a core busy, and so slow each other where another
    # program wants the core. Read once, when torch is loaded.
    os.environ["GOMP_SPINCOUNT"] = "300"

try:
    import torch  # noqa: F401  (asked for here, so that its absence is told in one sentence)
except ImportError as error:
    raise ImportError('ssdcore_torch needs torch: pip install "ssdcore[torch]"') from error

from ssdcore_torch.denoisers import Denoiser, wrap
from ssdcore_torch.denoisers.unet import FlexiUNet, FlexiUNetConfig
from ssdcore_torch.restoration import restore
from ssdcore_torch.runs import Run, load_run
from ssdcore_torch.sampling import decode, encode, generate, interpolate

__all__ = [
    "Denoiser",
    "FlexiUNet",
    "FlexiUNetConfig",
    "Run",
    "decode",
    "encode",
    "generate",
    "interpolate",
    "load_run",
    "restore",
    "wrap",
]
