"""Reference sets, their cache, and the evaluation of a network against them."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import ssdcore as ssd
from ssdcore_torch import metrics
from ssdcore_torch.data import EMBEDDED, ImageSet, ImageStream, load_images, open_images
from ssdcore_torch.distributed import World

ALONE = World(0, 1, 0, torch.device("cpu"))
ROUNDING = 2 * 6 * math.sqrt(6 * torch.finfo(torch.float64).eps)  # of six eigenvalues near zero, their roots


@dataclass
class Counted:
    """The means of an image's channels and of its top rows, counting the images it is asked for."""

    name: str = "counted"
    num_features: int = 6
    fingerprint: str = "one"
    asked: list[int] = field(default_factory=list)

    def __call__(self, images: Tensor) -> Tensor:
        self.asked.append(len(images))
        return torch.cat([images.float().mean((2, 3)), images[:, :, 0].float().mean(2)], 1)


@pytest.fixture(scope="module")
def data() -> ImageSet:
    return load_images(EMBEDDED, 8)


def first(data: ImageSet, count: int) -> ImageSet:
    assert data.labels is not None
    return ImageSet(data.images[:count], data.labels[:count], data.class_names, data.source)


def test_a_reference_is_a_fixed_sample_of_the_data(data: ImageSet) -> None:
    reference = metrics.open_reference(data, Counted(), world=ALONE, most=300, batch_size=37)
    assert len(reference) == 300
    assert len(set(reference.indices.tolist())) == 300
    rows = torch.tensor([5, 0, 299])
    images = reference.images(rows)
    assert torch.equal(Counted()(images), reference.features[rows])
    assert reference.labels is not None
    assert torch.bincount(reference.labels, minlength=16).min() > 5  # not a prefix, which a sorted folder would give
    assert np.array_equal(metrics.open_reference(data, Counted(), world=ALONE, most=50).indices, reference.indices[:50])
    assert torch.allclose(reference.power, metrics.radial_power(reference.images(torch.arange(300))))
    assert torch.equal(reference.baseline.distances, metrics.nearest_others(reference.features).distances)
    with pytest.raises(ValueError, match="has 1 images: expected 2 at least"):
        metrics.open_reference(first(data, 1), Counted(), world=ALONE)


def test_a_stream_is_measured_as_a_resident_set(data: ImageSet, tmp_path: Path) -> None:
    for i, image in enumerate(data.images[:20]):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    streamed = open_images(tmp_path, 8, memory_gib=0)
    assert isinstance(streamed, ImageStream)
    ours = metrics.open_reference(streamed, Counted(), world=ALONE, batch_size=7)
    theirs = metrics.open_reference(first(data, 20), Counted(), world=ALONE, batch_size=6)
    assert torch.equal(ours.features, theirs.features)
    assert ours.about == theirs.about
    rows = torch.tensor([3, 0])
    assert torch.equal(ours.images(rows), theirs.images(rows))


def test_kept_measures_are_used_only_if_everything_agrees(
    data: ImageSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def measured(extractor: Counted, images: ImageSet, most: int = 100) -> tuple[metrics.Reference, int]:
        extractor.asked.clear()
        found = metrics.open_reference(images, extractor, world=ALONE, most=most, cache=tmp_path / "cache")
        return found, sum(extractor.asked)

    extractor, few = Counted(), first(data, 200)
    fresh, asked = measured(extractor, few)
    assert asked == 100
    kept, asked = measured(extractor, few)
    assert asked == 0
    assert torch.equal(kept.features, fresh.features)
    assert torch.equal(kept.power, fresh.power)
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()

    changed = few.images.copy()
    changed[few.images.shape[0] // 2 :, 0, 0, 0] ^= 1
    others = [
        (extractor, few, 101),
        (extractor, first(data, 201), 100),
        (extractor, ImageSet(changed, few.labels, few.class_names, few.source), 100),
        (Counted(fingerprint="two"), few, 100),
        (Counted(name="another"), few, 100),
    ]
    for other, images, most in others:
        assert measured(other, images, most)[1] == most
    assert measured(extractor, few)[1] == 0

    for spoilt in (whole[: len(whole) // 2], whole.replace(b"one", b"two"), b""):
        file.write_bytes(spoilt)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            again, asked = measured(extractor, few)
        assert asked == 100
        assert str(file) in caplog.text
        assert torch.equal(again.features, fresh.features)
        assert file.read_bytes() == whole

    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        found = metrics.open_reference(few, extractor, world=ALONE, most=100, cache=blocked)
    assert "cannot be kept" in caplog.text
    assert torch.equal(found.features, fresh.features)


def halved(x: Tensor, t: Tensor, out_level: int) -> Tensor:
    """A network of sorts."""
    return (x / 2).clamp(-1, 1)


def test_evaluating_a_network(data: ImageSet) -> None:
    process = ssd.LinearDiffusion.identity((8, 8), ssd.NoiseSchedule.linear(30))
    extractor = Counted()
    reference = metrics.open_reference(data, extractor, world=ALONE, most=60)

    def evaluate(n: int = 40, **options: Any) -> dict[str, float]:
        settings = {"seed": 3, "steps": 4, "channels": 3, "extractor": extractor, "world": ALONE} | options
        return metrics.evaluate_network(halved, process, reference, n, **settings)

    found = evaluate()
    assert set(found) == {
        "frechet",
        "kernel",
        "kernel_std",
        "precision",
        "recall",
        "nearest_ratio",
        "close_share",
        "detail_ratio",
    }
    assert all(math.isfinite(value) for value in found.values())
    assert evaluate() == found
    in_parts = evaluate(batch_size=7)
    assert in_parts == pytest.approx(found, rel=1e-4)
    assert evaluate(seed=4) != found
    with pytest.raises(
        ValueError, match=r"61 samples against 60 reference images: .* draw at most 60, or give more data"
    ):
        evaluate(61)
    with pytest.raises(ValueError, match="at least 4 samples, got 3"):
        evaluate(3)


def test_the_data_itself_is_a_perfect_sample(data: ImageSet) -> None:
    extractor = Counted()
    reference = metrics.open_reference(data, extractor, world=ALONE, most=200)
    itself = metrics.measure([reference.images(torch.arange(100))], extractor, ALONE)
    found = metrics.evaluate(itself, reference)
    assert found.n == 100
    assert found.figures["frechet"] <= ROUNDING * reference.features.var(0).sum().item()
    assert found.figures["precision"] == found.figures["recall"] == found.figures["close_share"] == 1.0
    assert found.figures["nearest_ratio"] < 1e-5
    assert found.figures["detail_ratio"] == pytest.approx(1, abs=0.5)
    assert torch.equal(found.memorisation.neighbours, torch.arange(100))
    assert found.classes is not None
    assert found.classes.degrees <= 15
    held_out = metrics.evaluate(itself, reference, held_out=reference.features[:100])
    assert held_out.memorisation.baseline.duplicates == 100
    assert held_out.figures["close_share"] == 1.0  # held-out images that were trained on are no baseline
