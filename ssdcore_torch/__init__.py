"""Scale space diffusion in PyTorch: Flexi-UNet, trainer and samplers on the exact algebra of `ssdcore`."""

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
