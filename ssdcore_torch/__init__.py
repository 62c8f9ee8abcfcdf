"""Scale space diffusion in PyTorch: Flexi-UNet, trainer and samplers on the exact algebra of `ssdcore`."""

from ssdcore_torch.checkpoint import Run, load_run
from ssdcore_torch.sampling import generate
from ssdcore_torch.unet import FlexiUNet, FlexiUNetConfig

__all__ = ["FlexiUNet", "FlexiUNetConfig", "Run", "generate", "load_run"]
