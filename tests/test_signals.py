"""Runs of what is not a picture: signals of one axis and volumes of three."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from items import Items
from torch import Tensor, nn

import ssdcore as ssd
from ssdcore_torch import Run, images, wrap
from ssdcore_torch.commands import evaluate as evaluate_command
from ssdcore_torch.commands import sample as sample_command
from ssdcore_torch.data import ImageSet, open_data
from ssdcore_torch.errors import UserError
from ssdcore_torch.metrics import open_extractor, radial_power

TRAIN = {
    "steps": 4,
    "batch_size": 4,
    "warmup": 0,
    "cosine_decay": False,
    "save_every": 2,
    "sample_every": 2,
    "evaluate_every": 4,
    "evaluate_samples": 4,
    "evaluate_features": "pixels",
}
RANDOM = np.random.default_rng(0)
KINDS: dict[str, tuple[tuple[int, ...], Any]] = {
    "signals": ((32,), RANDOM.uniform(-0.9, 0.9, (12, 32, 1)).astype(np.float32)),
    "volumes": ((6, 4, 6), RANDOM.integers(0, 256, (12, 6, 4, 6, 2), dtype=np.uint8)),
}


class Own(nn.Module):
    def __init__(self, axes: int, channels: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        conv = {1: nn.Conv1d, 3: nn.Conv3d}[axes]
        self.layers = nn.Sequential(conv(channels, 6, 3, padding=1), nn.SiLU(), conv(6, channels, 1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(x) + (t / 50).view(-1, *[1] * (x.ndim - 1))


def process(shape: tuple[int, ...]) -> ssd.LinearDiffusion:
    return ssd.LinearDiffusion.resize(shape, ssd.NoiseSchedule.cosine(30), ssd.ResolutionSchedule.equal(30, 2))


def network(kind: str) -> Any:
    shape, data = KINDS[kind]
    return wrap(Own(len(shape), data.shape[-1]), process(shape), "velocity")


def create(out: Path, kind: str, **train: Any) -> Run:
    shape, data = KINDS[kind]
    settings = {"train": {**TRAIN, **train}}
    return Run.create(out, data=data, process=process(shape), network=network(kind), settings=settings, device="cpu")


@pytest.fixture(autouse=True)
def few(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_no_pictures_does_what_runs_do(kind, tmp_path):
    pytest.importorskip("torchmetrics")
    shape, data = KINDS[kind]
    whole = create(tmp_path / "whole", kind)
    assert whole.train()
    assert create(tmp_path / "parts", kind, steps=2, evaluate_every=None).train()
    run = Run.open(tmp_path / "parts", network=network(kind), data=data)
    assert run.train(4)
    for name in ("net", "ema"):
        for key, value in getattr(run, name).state_dict().items():
            assert torch.equal(value, getattr(whole, name).state_dict()[key]), key

    drawn = run.sample(3, steps=3, seed=5)
    assert drawn.shape == (3, data.shape[-1], *shape)
    assert torch.equal(drawn, whole.sample(3, steps=3, seed=5))
    half = ssd.Resize(shape, tuple(n // 2 for n in shape))
    assert run.restore(half, half(drawn), 0.1, steps=3).shape == drawn.shape
    report = run.evaluate(6, steps=3)  # of a run that was opened with its array
    assert all(np.isfinite(report["figures"][name]) for name in ("frechet", "kernel", "close_share"))
    assert report["features"]["num_features"] == int(np.prod(shape)) * data.shape[-1]  # small enough to be whole
    with pytest.raises(ValueError, match=f"^features: lite0 is for pictures, and these are {kind}: take pixels$"):
        run.evaluate(6, features="lite0")

    folder = tmp_path / "whole"
    with np.load(folder / "samples.npz") as saved:
        assert saved["images"].dtype == np.float32
        assert saved["images"].shape == (2, *shape, data.shape[-1])
        assert np.abs(saved["images"]).max() <= 1
    for name in ("samples.png", "denoising.png", "report.html", "samples/step-00000002.png"):
        assert (folder / name).stat().st_size > 0
    assert "×".join(map(str, shape)) in (folder / "report.html").read_text()
    assert sum(path.name == "samples.npz" for path in folder.iterdir()) == 1
    with pytest.raises(
        UserError, match=r"cannot make again: give it, as Run\.open\(out, network=wrap\(net, process\)\)"
    ):
        sample_command.main([str(folder), "--n", "1", "--device", "cpu"])


def test_commands_draw_and_evaluate_signals_of_a_network_that_a_folder_can_make(tmp_path, capsys):
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("torchmetrics")
    shape, data = KINDS["signals"]
    np.savez(tmp_path / "signals.npz", images=data, labels=np.arange(12) % 3)
    down, up = ("DownBlock1DNoSkip", "DownBlock1D"), ("UpBlock1D", "UpBlock1DNoSkip")
    net = diffusers.UNet1DModel(32, in_channels=1, out_channels=1, extra_in_channels=32, block_out_channels=(16, 32),
                                down_block_types=down, up_block_types=up, norm_num_groups=8)  # fmt: skip
    out, proc = tmp_path / "run", process(shape)
    settings = {"train": {"steps": 1, "batch_size": 4}}
    run = Run.create(
        out, tmp_path / "signals.npz", process=proc, network=wrap(net, proc), settings=settings, device="cpu"
    )
    assert run.train()
    sampling = ["--n", "2", "--steps", "2", "--device", "cpu"]
    assert sample_command.main([str(out), *sampling]) == 0
    assert sample_command.main([str(out), *sampling, "--out", str(out / "x.npy"), "--gif", str(out / "x.gif")]) == 0
    assert "2 signals of 32 from step 1" in capsys.readouterr().out
    with np.load(out / "drawn.npz") as saved:
        assert np.array_equal(saved["images"], np.load(out / "x.npy"))
    evaluating = ["--n", "4", "--steps", "2", "--device", "cpu", "--cache", str(tmp_path / "cache")]
    assert evaluate_command.main([str(out), *evaluating]) == 0
    assert (out / "evaluation.png").stat().st_size > 0
    told = json.loads((out / "evaluation.json").read_text())["figures"]
    assert (
        sample_command.main([str(out), "--n", "4", "--steps", "2", "--device", "cpu", "--out", str(out / "y.npz")]) == 0
    )
    theirs = ["--samples", str(out / "y.npz"), "--data", str(tmp_path / "signals.npz"), *evaluating[4:]]
    assert evaluate_command.main([*theirs, "--out", str(out / "theirs.json")]) == 0
    found = json.loads((out / "theirs.json").read_text())["figures"]
    assert found["frechet"] == pytest.approx(told["frechet"], rel=1e-3)


SHAPE = (5,)
GOOD = np.linspace(-1, 1, 15, dtype=np.float32).reshape(3, 5)


def labelled() -> Items:
    found = Items([(row, k % 2) for k, row in enumerate(GOOD)])
    found.classes = ("a", "b")  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(
    "data",
    [
        GOOD,
        GOOD[..., None].astype(np.float64),
        torch.from_numpy(GOOD),
        Items([torch.from_numpy(row)[None] for row in GOOD]),  # channels first, as tensors have them
        Items([row[:, None] for row in GOOD]),
    ],
)
def test_arrays_of_floats_are_taken_as_they_are(data):
    found = open_data(data, SHAPE)
    assert isinstance(found, ImageSet)
    assert found.images.dtype == np.float32
    assert np.array_equal(found.images[..., 0], GOOD)
    assert found.understood[0] == "signals: 3 of 5, channels: 1, float32, values from -1 to 1 of −1 to 1"
    assert found.fingerprint == open_data(GOOD, SHAPE).fingerprint != open_data(-GOOD, SHAPE).fingerprint


def test_labels_come_along_and_choose(tmp_path):
    np.savez(tmp_path / "x.npz", images=GOOD, labels=[0, 1, 0], class_names=["a", "b"])
    given = [(GOOD, [0, 1, 0], ("a", "b")), labelled(), tmp_path / "x.npz"]
    for data in given:
        found = open_data(data, SHAPE, classes=("a",))
        assert found.class_names == ("a", "b")
        assert np.array_equal(found.images[..., 0], GOOD[[0, 2]])
        assert open_data(data, SHAPE, labels=False).labels is None


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (GOOD[:, :4], {}, r"states of \(5,\), so expected \(n, 5\) or \(n, 5, channels\), got \(3, 4\)$"),
        (GOOD[:, None], {}, r"put the channels last: np\.moveaxis\(x, 1, -1\)$"),
        (1.5 * GOOD, {}, r"must lie within \[−1, 1\]; these are from -1\.5 to 1\.5: divide"),
        (np.where(GOOD > 0.9, np.nan, GOOD), {}, "expected finite values"),
        ((GOOD * 30000).astype(np.int16), {}, "got int16: divide int16 by 32768$"),
        (GOOD > 0, {}, "got bool: scale them"),
        (GOOD, {"channels": 2}, "its signals have 1 channels, and the network takes 2$"),
        (GOOD, {"crop": "random"}, r"^data\.crop: signals are taken as they are"),
        (GOOD, {"classes": ("a",)}, "needs class names"),
        ((GOOD, [0, 1]), {}, r"expected integer labels shaped \(3,\)"),
        ("embedded:drawings64", {}, r"holds pictures, and states of \(5,\) take an array"),
        (".", {}, "is a folder, and"),
        ("nothing.npy", {}, "^no such data: nothing.npy; states of"),
        (Items([GOOD[0], GOOD[0, :4]]), {}, r"item 1 is float32 \(4,\), the first float32 \(5,\)"),
        (Items([(GOOD[0], 1), GOOD[1]]), {}, "give all one, or none"),
        (Items(["a"]), {}, "expected arrays, or .*, got str$"),
        (Items([]), {}, "expected .* a Dataset of some items"),
        ([GOOD], {}, "got list$"),
    ],
)  # fmt: skip
def test_other_arrays_are_refused_in_one_line(data, options, message):
    with pytest.raises((ValueError, TypeError, OSError), match=message) as caught:
        open_data(data, SHAPE, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("data", "warning"), [(np.abs(GOOD), "give 2 * x - 1"), (GOOD / 20, "scale the data")])
def test_a_range_that_looks_wrong_is_said(data, warning, caplog):
    open_data(data, SHAPE)
    assert warning in caplog.text
    caplog.clear()
    open_data(GOOD, SHAPE)
    assert not caplog.text


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    shape, data = KINDS["signals"]
    net = wrap(Own(1, 2), process(shape), channels=2)
    with pytest.raises(ValueError, match=r"network: it takes 2 channels, and the data have 1$"):
        Run.create(tmp_path / "run", data=data, network=net, device="cpu")
    settings = {"train": {"evaluate_every": 5, "evaluate_samples": 4}}
    with pytest.raises(ValueError, match=r"^train\.evaluate_features: features: lite0 is for pictures"):
        Run.create(tmp_path / "run", data=data, network=network("signals"), settings=settings, device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shape", [(32,), (16, 32), (16, 16, 20)])
def test_power_stands_at_the_frequency_of_a_wave(shape):
    cycles = 5
    wave = np.sin(2 * np.pi * cycles * np.arange(shape[-1]) / shape[-1]) * 0.9
    x = torch.from_numpy(np.broadcast_to(wave, (2, 1, *shape)).copy())
    power = radial_power((127.5 * (x + 1)).round().to(torch.uint8))
    assert len(power) == min(shape) // 2
    at = round(cycles * min(shape) / shape[-1])  # in cycles along the shortest side
    assert power.argmax() == at - 1
    if len(shape) != 2:
        assert torch.allclose(radial_power(x), power, rtol=0.05, atol=1e-2)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 9, 9)])
def test_data_thin_along_an_axis_have_the_few_frequencies_that_it_holds(shape):
    power = radial_power(torch.rand(4, 2, *shape) * 2 - 1)
    assert power.shape == (min(shape) // 2,)
    assert power.isfinite().all()


def test_features_of_signals_are_means():
    x = torch.rand(3, 2, 1024) * 2 - 1
    extractor = open_extractor("pixels", shape=(2, 1024))
    assert extractor.num_features == 512
    torch.testing.assert_close(extractor(x), x.view(3, 2, 256, 4).mean(-1).flatten(1))
    with pytest.raises(ValueError, match=r"^features: expected \(n, 2, 1024\), got \(3, 2, 512\)$"):
        extractor(x[..., :512])


def test_a_curve_is_where_its_values_are():
    ramp = torch.linspace(1, -1, images.TILE).view(1, 1, -1)
    assert torch.equal(images.viewed(ramp)[0, 0].argmin(0), torch.arange(images.TILE).clamp(min=1) - 1)  # joined
    assert images.viewed(torch.zeros(2, 3, 5000)).shape == (2, 1, images.TILE, images.WIDEST)
    volume = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(1, 1, 4, 3, 5)
    assert torch.equal(images.viewed(volume), torch.full((1, 1, 3, 5), 2.0))
    assert images.viewed(torch.zeros(2, 7, 8, 9)).shape == (2, 1, 8, 9)
