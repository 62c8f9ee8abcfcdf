"""A designed schedule on its way: python -m ssdcore design, train --schedule, sample --placement design."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import refusal
from PIL import Image

import ssdcore as ssd
from ssdcore.__main__ import main as ssdcore_main
from ssdcore_torch import generate, load_run
from ssdcore_torch.checkpoint import save_tensors
from ssdcore_torch.commands import sample, train
from ssdcore_torch.config import Config, preset
from ssdcore_torch.training import pictures

TINY = ["--preset", "cpu", "--size", "8", "--batch-size", "2", "--steps", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def schedule(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the design command writes for 8-pixel drawings in two levels and 6 steps."""
    file = tmp_path_factory.mktemp("design") / "schedule.json"
    options = ["--size", "8", "--levels", "2", "--steps", "6", "--tolerance", "0.5", "--out", str(file)]
    assert ssdcore_main(["design", *options]) == 0
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, schedule: Path) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    patch = pytest.MonkeyPatch()
    patch.setattr(pictures, "SAMPLES", 4)
    patch.setattr(pictures, "SAMPLE_STEPS", 3)
    assert train.main([*TINY, "--schedule", str(schedule), "--out", str(out)]) == 0
    patch.undo()
    ema = load_run(out).ema
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in ema.parameters():  # a network of two steps still predicts almost nothing
            if parameter.abs().max() < 0.01:
                parameter.normal_(std=0.1)
    save_tensors(out / "ema.safetensors", ema.state_dict(), {"step": "2"})
    shutil.rmtree(out / "checkpoints")
    return out


def test_a_run_follows_the_designed_schedule(run: Path, schedule: Path) -> None:
    designed = ssd.oracle.Schedule.load(schedule)
    loaded = load_run(run)
    assert loaded.config.network.level_sizes == designed.sizes == ((8, 8), (4, 4))
    ours, theirs = loaded.process, designed.process()
    assert [ours.shape(t) for t in range(1001)] == [theirs.shape(t) for t in range(1001)]
    assert [ours.sigma(t) for t in range(1001)] == [theirs.sigma(t) for t in range(1001)]
    assert loaded.config.process.times == designed.times
    assert Config.from_json(loaded.config.to_json()) == loaded.config


def test_sampling_at_the_designed_times(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "drawn.npz"
    assert sample.main([str(run), "--n", "2", "--placement", "design", "--device", "cpu", "--out", str(out)]) == 0
    loaded = load_run(run)
    drawn = generate(loaded.ema, loaded.process, 2, times=loaded.config.process.times, prior=loaded.prior)
    expected = ((drawn.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    with np.load(out) as saved:
        assert np.array_equal(saved["images"], expected)
    capsys.readouterr()
    line = refusal(capsys, sample.main, run, "--placement", "design", "--steps", 7, "--out", out)
    assert "--steps 7: the run's schedule was designed for 6" in line


def test_sampler_options(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = []
    for i, options in enumerate(
        (
            ["--sampler", "multistep"],
            ["--sampler", "multistep", "--placement", "time"],
            ["--eta", "0", "--placement", "log_snr"],
            ["--placement", "log_snr"],
        )
    ):
        out = tmp_path / f"{i}.png"
        assert sample.main([str(run), "--n", "1", "--steps", "5", "--device", "cpu", "--out", str(out), *options]) == 0
        pictures.append(np.asarray(Image.open(out)).astype(int))
    assert all(not np.array_equal(a, b) for i, a in enumerate(pictures) for b in pictures[:i])
    out = tmp_path / "no.png"
    capsys.readouterr()
    assert "invalid choice: 'heun'" in refusal(capsys, sample.main, run, "--sampler", "heun", "--out", out)
    assert "invalid choice: 'karras'" in refusal(capsys, sample.main, run, "--placement", "karras", "--out", out)
    line = refusal(capsys, sample.main, run, "--sampler", "multistep", "--eta", 0.5, "--out", out)
    assert "--sampler multistep is deterministic" in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, ["--size", "16"], "is a schedule for the size (8, 8), expected (16, 16)"),
        ({}, ["--levels", "3"], "has the sizes 8×8, 4×4, this network 8×8, 4×4, 2×2"),
        ({"sizes": [[8, 8], [5, 5]]}, [], "has the sizes 8×8, 5×5, this network 8×8, 4×4"),
        ({"format": "something else"}, [], "is not a schedule file"),
    ],
)
def test_schedules_for_something_else_are_refused(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    schedule: Path,
    change: dict[str, object],
    options: list[str],
    message: str,
) -> None:
    file = tmp_path / "other.json"
    file.write_text(json.dumps({**json.loads(schedule.read_text()), **change}))
    out = tmp_path / "run"
    line = refusal(capsys, train.main, *TINY, "--schedule", file, "--out", out, *options)
    assert "other.json" in line
    assert message in line
    assert not out.exists()
    assert "nothing.json" in refusal(capsys, train.main, *TINY, "--schedule", tmp_path / "nothing.json", "--out", out)


def test_a_run_without_a_schedule_has_no_designed_times(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, run: Path
) -> None:
    copy = tmp_path / "plain"
    copy.mkdir()
    for file in run.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = load_run(run).config
    plain = dataclasses.replace(config, process=preset("cpu").process)
    (copy / "config.json").write_text(plain.to_json())
    line = refusal(capsys, sample.main, copy, "--placement", "design", "--out", tmp_path / "no.png")
    assert "this run has no designed times; train one with --schedule" in line


def test_starts_and_schedule_must_agree() -> None:
    config = preset("cpu")
    with pytest.raises(ValueError, match=r"process.starts: schedule 'thresholds' takes a list of times, got None"):
        dataclasses.replace(config.process, schedule="thresholds", gamma=None)
    with pytest.raises(ValueError, match=r"process.starts: schedule 'information' takes none \(null\), got \(5,\)"):
        dataclasses.replace(config.process, starts=(5,))
    wrong = dataclasses.replace(config.process, schedule="thresholds", starts=(5,), nats=None)
    with pytest.raises(ValueError, match="3 levels change size 2 times, got the times"):
        dataclasses.replace(config, process=wrong).build_process()
