"""The feature spaces that images are compared in: the installed networks, and those in files."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssdcore_torch import metrics
from ssdcore_torch.data import EMBEDDED, load_images
from ssdcore_torch.metrics import _lite0


@pytest.fixture(scope="module")
def drawings() -> Tensor:
    """uint8 (4096, 3, 64, 64)"""
    return torch.from_numpy(load_images(EMBEDDED, 64).images).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("name", "dimension"), [("lite0", 1280), ("pixels", 768)])
def test_features_are_deterministic_and_independent_of_the_batch(drawings: Tensor, name: str, dimension: int) -> None:
    extractor = metrics.open_extractor(name)
    again = metrics.open_extractor(name)
    assert isinstance(again, torch.nn.Module)
    again.train()
    images = drawings[:3]
    features = extractor(images)
    assert features.dtype == torch.float32
    assert features.shape == (3, dimension)
    assert extractor.num_features == dimension
    assert torch.equal(features, again(images))
    alone = torch.cat([extractor(image[None]) for image in images])
    # float32 sums in another order, through some 50 layers
    assert torch.allclose(
        alone, features, rtol=0, atol=500 * torch.finfo(torch.float32).eps * features.abs().max().item()
    )
    assert (features[0] - features[1]).norm() > 0.1 * features[0].norm()
    with pytest.raises(ValueError, match=r"expected uint8 images \(n, 1, 3 or 4, h, w\), got float32 \(3, 3, 64, 64\)"):
        extractor(images.float())
    with pytest.raises(ValueError, match=r"got uint8 \(3, 64, 64\)"):
        extractor(images[0])


def test_pixels_are_means_of_areas(drawings: Tensor) -> None:
    features = metrics.open_extractor("pixels")(drawings[:2]).reshape(2, 3, 16, 16)
    block = drawings[1, 2, 20:24, 8:12].double().mean()
    assert features[1, 2, 5, 2].item() == pytest.approx(block.item() / 127.5 - 1, abs=1e-6)


def test_lite0_is_the_network_of_the_weights() -> None:
    extractor: Any = metrics.open_extractor("lite0")
    parameters = sum(p.numel() for p in extractor.parameters())
    assert parameters + 1281 * 1000 == 4_652_008  # with the classifier: what its authors' table says, 4.7 million
    released = extractor.net.network.state_dict()
    assert len(released) == 49 * 6  # a convolution and five entries of its normalisation, in 49 layers
    assert all(value.std() > 0 for key, value in released.items() if value.numel() > 1)
    state = _lite0.Lite0().state_dict()
    with pytest.raises(RuntimeError, match="Missing key"):
        _lite0.Lite0().load_state_dict({k: state[k] for k in list(state)[1:]})


@pytest.mark.slow
def test_the_floor_of_the_drawings_in_lite0_features(drawings: Tensor) -> None:
    """Two sets of drawings are 100.0 apart at n = 64; 85 with the scaling (x − 127)/128, 84 with bicubic resizing."""
    extractor = metrics.open_extractor("lite0")
    features = torch.cat([extractor(part) for part in drawings[:128].split(32)])
    floor = metrics.frechet_distance(features[:64], features[64:])
    assert floor == pytest.approx(100.004, abs=0.02)
    blurred = torch.nn.functional.avg_pool2d(drawings[64:128].float(), 3, 1, 1).to(torch.uint8)
    assert metrics.frechet_distance(features[:64], extractor(blurred)) > 1.2 * floor


# ---- networks in files


class Sums(torch.nn.Module):
    """Twelve features of an image; with `return_features` unset, one, as in the published Inception file."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        quarters = torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)
        return quarters if return_features else quarters.sum(1, keepdim=True)


class Mean(torch.nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean()


class OnlySmall(torch.nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.reshape(-1, 3, 8, 8).float().flatten(1) @ torch.ones(images[0].numel(), 4)


def scripted(module: torch.nn.Module, path: Path) -> Path:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(module).save(str(path))
    return path


def test_a_torchscript_file_is_a_feature_space(tmp_path: Path, drawings: Tensor) -> None:
    extractor = metrics.open_extractor(scripted(Sums(), tmp_path / "sums.pt"), trusted=True)
    assert (extractor.name, extractor.num_features) == ("sums.pt", 12)
    assert torch.equal(extractor(drawings[:5]), Sums()(drawings[:5], return_features=True))
    file = tmp_path / "sums.pt"
    moved = file.rename(tmp_path / "moved.pt")
    assert (
        metrics.open_extractor(moved, trusted=True).fingerprint == extractor.fingerprint
    )  # the content's, not the name's
    for module in (Mean(), OnlySmall()):
        with pytest.raises(
            ValueError, match=r"bad.pt: expected a network from uint8 images \(n, 3, h, w\) to features"
        ):
            metrics.open_extractor(scripted(module, tmp_path / "bad.pt"), trusted=True)
    whole = moved.read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut.pt .* cut short"):
        metrics.open_extractor(tmp_path / "cut.pt")
    with pytest.raises(FileNotFoundError, match=r"no such features: .*; take lite0, pixels or a file"):
        metrics.open_extractor("inception")


class Trap:
    """Code that a careless reader of pickles runs."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.sprung,))


def test_pickled_code_is_refused_and_not_run(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    torch.save({"fc.weight": torch.zeros(1008, 2048), "trap": Trap(sprung)}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match="cannot be read without running code"):
        metrics.open_extractor(tmp_path / "trap.pth")
    assert not sprung.exists()
    torch.load(tmp_path / "trap.pth", weights_only=False)
    assert sprung.exists()  # the trap works
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"holds no Inception weights .* 1008 × 2048"):
        metrics.open_extractor(tmp_path / "other.pth")


def test_inception_weights_reach_torch_fidelity_as_tensors_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawings: Tensor
) -> None:
    weights = {"fc.weight": torch.arange(1008.0 * 2048).reshape(1008, 2048)}
    file = tmp_path / "inception.pth"
    torch.save(weights, file)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match="pip install torch-fidelity"):
        metrics.open_extractor(file)

    class StandIn(torch.nn.Module):
        def __init__(self, name: str, features: list[str], path: str) -> None:
            super().__init__()
            assert features == ["2048"]
            assert Path(path) != file  # not what the user gave, which could have changed since it was checked
            self.weight = torch.load(path, weights_only=False)["fc.weight"]

        def forward(self, images: Tensor) -> tuple[Tensor]:
            return (images.float().flatten(1)[:, :1008] @ self.weight,)

    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    extractor = metrics.open_extractor(file)
    expected = drawings[:2].float().flatten(1)[:, :1008] @ weights["fc.weight"]
    assert torch.equal(extractor(drawings[:2]), expected)
