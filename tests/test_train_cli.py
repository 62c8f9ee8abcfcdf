"""The commands, as a user calls them: whole runs in a subprocess, and every bad input."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import refusal
from PIL import Image
from safetensors.torch import load_file
from test_data import bad_inputs

from ssdcore_torch import checkpoint, load_run
from ssdcore_torch.commands import cli, ema, sample, train
from ssdcore_torch.config import Config, preset
from ssdcore_torch.data import EMBEDDED, load_images
from ssdcore_torch.denoisers.unet import FlexiUNet
from ssdcore_torch.distributed import World
from ssdcore_torch.runs import _begin as beginning
from ssdcore_torch.runs import _run as runs_module
from ssdcore_torch.runs import configure
from ssdcore_torch.training import NotFiniteError, Trainer
from ssdcore_torch.training import pictures as pictures_module

TINY = ["--preset", "cpu", "--size", "8", "--levels", "2", "--batch-size", "4", "--device", "cpu"]


def start(module: str, *options: object, cwd: Path | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", f"ssdcore_torch.{module}", *map(str, options)]
    pipe = subprocess.PIPE
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=cwd, env=environment)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=240)
    return process.returncode, out, error


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of PNG files made from the drawings, one of them no image."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "sub").mkdir()
    for i, image in enumerate(load_images(EMBEDDED, 64).images[:24]):
        Image.fromarray(image).save(folder / ("sub" if i % 2 else ".") / f"{i}.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> tuple[Path, str, str]:
    """A finished run on the PNG files, with as many pictures at its end as users get, of fewer steps: (folder, stdout, stderr)."""
    out, text, error = tmp_path_factory.mktemp("runs") / "run", io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(text), redirect_stderr(error):
        patched.setattr(pictures_module, "SAMPLES", 64)
        patched.setattr(pictures_module, "SAMPLE_STEPS", 10)
        code = train.main([*TINY, "--data", str(pictures), "--steps", "12", "--out", str(out)])
    assert code == 0, error.getvalue()
    return out, text.getvalue(), error.getvalue()


def test_a_run_on_image_files(run_folder: tuple[Path, str, str], pictures: Path) -> None:
    out, text, error = run_folder
    assert {f.name for f in out.iterdir()} == {
        ".lock",
        "config.json",
        "data.json",
        "checkpoints",
        "model.safetensors",
        "ema.safetensors",
        "prior.safetensors",
        "residuals.safetensors",
        "log.jsonl",
        "samples.png",
        "denoising.png",
        "report.html",
    }
    assert "skipped 1 of 25 files" in error
    assert "notes.txt (not an image)" in error
    assert "images/s" in error  # the progress bar
    assert "loss=" in error
    for name in ("samples.png", "denoising.png", "report.html", "log.jsonl"):
        assert str(out / name) in text
    assert f"python -m ssdcore_torch.sample {out}" in text
    (line,) = (out / "log.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert entry["step"] == 12
    assert np.isfinite(entry["loss"])
    run = load_run(out)
    assert run.step == 12
    assert run.config.network.level_sizes == ((8, 8), (4, 4))
    assert run.config.data.path == str(pictures)
    for name in ("samples.png", "denoising.png"):
        shown = np.asarray(Image.open(out / name))
        assert min(shown.shape[:2]) >= 400
        assert shown.std() > 10


def test_samples_of_a_run(run_folder: tuple[Path, str, str], tmp_path: Path) -> None:
    out, _, _ = run_folder
    grids = []
    for name, seed in (("a.png", 0), ("b.png", 0), ("c.png", 1)):
        assert (
            sample.main([str(out), "--n", "5", "--steps", "6", "--seed", str(seed), "--out", str(tmp_path / name)]) == 0
        )
        grids.append(np.asarray(Image.open(tmp_path / name)))
    assert np.array_equal(grids[0], grids[1])
    assert not np.array_equal(grids[0], grids[2])
    code, text, error = finish(start("sample", out, "--n", 5, "--steps", 6, "--out", "d.jpg", cwd=tmp_path))
    assert code == 0, error
    assert "5 images of 8 px from step 12" in text
    assert Image.open(tmp_path / "d.jpg").format == "JPEG"


@pytest.mark.slow
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, pictures: Path) -> None:
    options = [*TINY, "--data", str(pictures), "--steps", "120"]
    broken = tmp_path / "broken"
    process = start("train", *options, "--out", broken)
    deadline = time.monotonic() + 120
    while not (broken / "log.jsonl").exists() or not (broken / "log.jsonl").read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    code, text, error = finish(process)
    assert code == cli.INTERRUPTED, error
    assert f"--out {broken} --resume" in text
    stopped = int(re.search(r"stopped after step (\d+)", text).group(1))  # type: ignore[union-attr]
    assert 50 <= stopped < 120
    assert not (broken / "samples.png").exists()

    assert train.main(["--out", str(broken), "--resume", "--device", "cpu"]) == 0
    whole = tmp_path / "whole"
    assert train.main([*options, "--out", str(whole)]) == 0
    for name in ("model.safetensors", "ema.safetensors", "checkpoints/step-00000120/optimizer.safetensors"):
        ours, theirs = load_file(broken / name), load_file(whole / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    losses = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in losses] == [50, 100, 120]
    assert losses[-1]["loss"] < losses[0]["loss"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", 0], "expected a whole number of at least 1, got 0"),
        (["--steps", "many"], "expected a whole number of at least 1, got many"),
        (["--preset", "tpu"], "unknown preset 'tpu': choose one of cpu, gpu64"),
        (["--preset", "celeba64"], "give --data"),
        (["--size", 18], "divisible by 4"),
        (["--size", 128], "smaller than size 128"),
        (["--levels", 7], "take at most"),
        (["--levels", 0], "at least 1"),
        (["--device", "abacus"], "--device abacus cannot be used"),
        (["--speed", 3], "unrecognized arguments: --speed 3, did you mean --seed? (--help lists the options)"),
        (["--seed", -1], "at least 0"),
    ],
)
def test_bad_options_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[object], message: str
) -> None:
    out = tmp_path / "run"
    assert message in refusal(capsys, train.main, "--device", "cpu", "--out", out, *options)
    assert not out.exists()


def test_bad_data_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    for path, message in bad_inputs(tmp_path).values():
        line = refusal(capsys, train.main, "--device", "cpu", "--preset", "cpu", "--data", path, "--out", out)
        assert re.search(message, line)
        assert path.name in line
        assert not out.exists()


def test_folders_in_use_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, run_folder: tuple[Path, str, str], pictures: Path
) -> None:
    out, _, _ = run_folder
    before = {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}
    same = [*TINY, "--data", pictures, "--steps", 12, "--out", out]
    assert "add --resume" in refusal(capsys, train.main, *same)
    line = refusal(capsys, train.main, *same, "--seed", 5)
    assert "another configuration (seed: 5 instead of 0): choose another folder" in line
    line = refusal(capsys, train.main, *same, "--resume", "--batch-size", 8)
    assert "train.batch_size: 8 instead of 4" in line
    assert "this run has done 12" in refusal(capsys, train.main, "--out", out, "--resume", "--steps", 5)
    assert {f: f.read_bytes() for f in out.rglob("*") if f.is_file()} == before

    assert "needs --out" in refusal(capsys, train.main, "--resume")
    assert "is not a run folder" in refusal(capsys, train.main, "--resume", "--out", tmp_path / "nothing")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    assert "not empty" in refusal(capsys, train.main, *TINY, "--out", tmp_path / "full")
    assert "is a file" in refusal(capsys, train.main, *TINY, "--out", tmp_path / "full" / "thesis.tex")


def test_unreadable_checkpoints_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, run_folder: tuple[Path, str, str]
) -> None:
    for name, command in (("optimizer.safetensors", "train"), ("ema-0.995.safetensors", "sample")):
        copy = tmp_path / command
        shutil.copytree(run_folder[0], copy)
        file = copy / "checkpoints" / "step-00000012" / name
        file.write_bytes(file.read_bytes()[:1000])
        if command == "train":
            line = refusal(capsys, train.main, "--out", copy, "--resume", "--device", "cpu")
        else:
            line = refusal(capsys, sample.main, copy, "--device", "cpu", "--out", tmp_path / "grid.png")
        assert name in line
        assert "cut short" in line
    assert not (tmp_path / "grid.png").exists()


def test_samples_in_lower_precision_and_compiled(
    run_folder: tuple[Path, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--precision lowers the network's arithmetic alone; --compile compiles the network that draws."""
    compiled: list[FlexiUNet] = []
    monkeypatch.setattr(FlexiUNet, "compile_paths", lambda net: compiled.append(net) or net)
    drawn = {}
    for name, options in {
        "auto": [],
        "float32": ["--precision", "float32"],
        "bfloat16": ["--precision", "bfloat16", "--compile"],
    }.items():
        out = tmp_path / f"{name}.npz"
        command = [str(run_folder[0]), "--n", "3", "--steps", "5", "--device", "cpu", "--out", str(out), *options]
        assert sample.main(command) == 0
        drawn[name] = np.load(out)["images"].astype(int)
    assert np.array_equal(drawn["auto"], drawn["float32"])
    difference = np.abs(drawn["bfloat16"] - drawn["float32"])
    assert 0 < difference.mean() < 8  # of 255
    assert len(compiled) == 1


def test_bad_sample_options_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, run_folder: tuple[Path, str, str]
) -> None:
    run = run_folder[0]
    assert "is not a run folder" in refusal(capsys, sample.main, tmp_path / "nothing", "--out", tmp_path / "g.png")
    assert "at least 2 steps" in refusal(capsys, sample.main, run, "--steps", 1, "--out", tmp_path / "g.png")
    assert "only 1000" in refusal(capsys, sample.main, run, "--steps", 1001, "--out", tmp_path / "g.png")
    assert "end it in .png" in refusal(capsys, sample.main, run, "--out", tmp_path / "grid.xyz")
    assert "no folder" in refusal(capsys, sample.main, run, "--out", tmp_path / "none" / "grid.png")
    assert "at least 1" in refusal(capsys, sample.main, run, "--n", 0)
    assert "from 0 to 1" in refusal(capsys, sample.main, run, "--eta", 2)
    assert not (tmp_path / "g.png").exists()


def test_no_options_take_a_free_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --out the run goes to runs/PRESET, or the next free name; the embedded drawings are the data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "cpu").mkdir(parents=True)
    assert train.main(["--device", "cpu", "--steps", "2", "--batch-size", "2"]) == 0
    assert "writing to runs/cpu-2" in capsys.readouterr().out
    run = load_run("runs/cpu-2")
    assert run.config.data.path == EMBEDDED
    assert (tmp_path / "runs" / "cpu-2" / "samples.png").exists()


def test_a_loss_that_is_not_finite_is_not_saved_and_can_be_replayed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Trainer.part_loss

    def part_loss(trainer: Trainer, *arguments: Any) -> torch.Tensor:
        return honest(trainer, *arguments) * (math.nan if trainer.step == 3 else 1)

    monkeypatch.setattr(Trainer, "part_loss", part_loss)
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as caught:
        cli.run(train.main, [*TINY, "--steps", "9", "--set", "train.save_every=2", "--out", str(run)])
    assert caught.value.code == cli.BAD_INPUT
    line = capsys.readouterr().err
    assert "step 3: the loss or its gradient is not finite; stopped before the update. Path" in line
    command = re.search(r"python -m ssdcore_torch.train (--out .* --replay 3)\.", line)
    assert command
    assert [path.name for path in checkpoint.checkpoints(run)] == ["step-00000002"]
    capsys.readouterr()
    before = {f: f.read_bytes() for f in run.rglob("*") if f.is_file()}
    assert train.main([*command.group(1).split(), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("loss nan") == 4
    assert "gradients not finite: " in shown
    assert {f: f.read_bytes() for f in run.rglob("*") if f.is_file()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "train.clip"], "--set train.clip: expected NAME=VALUE"),
        (["--set", "train.klip=1"], "--set train.klip=1: train.klip: unknown setting"),
        (["--set", "train=1"], "--set train=1: train: expected settings by name, got 1"),
        (["--set", "train.batch_size.x=1"], "train.batch_size: expected settings by name, got 4"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--batch-size", 6, "--set", "train.accumulate=4"], "do not divide into accumulate = 4"),
        (["--replay", 3], "--replay needs --out RUN --resume"),
        (["--set", "train.evaluate_every=5", "--set", "train.evaluate_samples=5000"], "768; take --set"),
    ],
)
def test_bad_settings_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[object], message: str
) -> None:
    assert message in refusal(capsys, train.main, *TINY, "--out", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def asked(*options: object) -> Config:
    """The configuration that these options ask for."""
    return configure(train.asked_of(train.parser().parse_args(list(map(str, options)))), None, "cpu")


def test_options_win_over_set_and_set_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"  # another run's config.json says everything
    file.write_text(preset("cpu", str(tmp_path / "theirs")).to_json())
    options = ["--preset", "cpu", "--config", file, "--set", "train.steps=7", "--set", "train.batch_size=6"]
    config = asked(*options, "--data", tmp_path / "mine", "--size", 32, "--levels", 2, "--batch-size", 8)
    assert config.data.path == str(tmp_path / "mine")
    assert config.network.level_sizes == ((32, 32), (16, 16))
    assert (config.train.steps, config.train.batch_size) == (7, 8)
    assert asked(*options).data.path == str(tmp_path / "theirs")


def test_sizes_are_those_of_the_network_that_is_set() -> None:
    two_stages = ["--set", "network.channel_multipliers=[1, 2]", "--set", "network.attention_sizes=null"]
    config = asked("--preset", "cpu", "--size", 18, "--levels", 2, *two_stages)  # three stages do not divide 18
    assert config.network.level_sizes == ((18, 18), (9, 9))
    config = asked("--preset", "cpu", "--size", 32)
    assert config == preset("cpu").overlaid({}, 32)
    assert config.network.attention_sizes == (16,)  # at the stage where the preset has it


def test_local_data_is_named_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pattern = tmp_path / "shards" / "*.tar"
    for options in (["--data", "shards/*.tar"], ["--set", "data.path=shards/*.tar"]):
        assert asked("--preset", "cpu", *options).data.path == str(pattern)
    assert asked("--preset", "cpu", "--data", "s3://b/*.tar").data.path == "s3://b/*.tar"


def test_labels_that_the_data_has_not(capsys: pytest.CaptureFixture[str], tmp_path: Path, pictures: Path) -> None:
    line = refusal(capsys, train.main, *TINY, "--data", pictures, "--conditional", "--out", tmp_path / "run")
    assert "a class-conditional network needs labels" in line


def test_a_conditional_run_draws_its_classes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = tmp_path / "settings.yaml"
    settings.write_text("data: {flip: true}\ntrain: {ema_widths: [0.05, 0.1], snapshots: 2}\n")
    assert train.main([*TINY, "--conditional", "--steps", "4", "--config", str(settings), "--out", str(run)]) == 0
    opened = load_run(run)
    names = opened.config.data.class_names
    assert names[opened.config.network.num_classes - 1]
    assert opened.config.data.flip
    draws = {}
    for name in ("planets", "moods"):
        file = tmp_path / f"{name}.npz"
        assert sample.main([str(run), "--n", "3", "--steps", "4", "--label", name, "--out", str(file)]) == 0
        draws[name] = np.load(file)
        assert draws[name]["labels"].tolist() == [names.index(name)] * 3
    assert not np.array_equal(draws["planets"]["images"], draws["moods"]["images"])
    capsys.readouterr()
    assert "this run's classes are" in refusal(capsys, sample.main, run, "--label", "dragons", "--n", 1)
    wide = tmp_path / "wide.safetensors"
    assert ema.main([str(run), "--width", "0.07", "--out", str(wide)]) == 0
    picture = [str(run), "--n", "2", "--steps", "4", "--out", str(tmp_path / "a.png")]
    assert sample.main([*picture, "--weights", str(wide), "--gif", str(tmp_path / "a.gif")]) == 0
    assert Image.open(tmp_path / "a.gif").n_frames == 4


def test_a_dry_run_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert train.main([*TINY, "--dry-run", "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    for word in ("M parameters", "GFLOP per image", "kept for the backward pass", "8×8", "would write to"):
        assert word in shown
    assert not (tmp_path / "run").exists()


def test_a_failing_disk_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(train.checkpoint, "save_state", full)
    with pytest.raises(SystemExit) as caught:
        cli.run(train.main, [*TINY, "--steps", "2", "--out", str(tmp_path / "run")])
    assert caught.value.code == cli.BAD_INPUT
    said = capsys.readouterr().err
    assert "cannot be written ([Errno 28] No space left on device): nothing was saved" in said


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        OSError(errno.ENOSPC, "No space left on device", "/cache/of/shards/0.tar"),
    ],
)
def test_an_error_that_is_not_of_the_run_folder_is_not_said_to_be(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(runs_module, "train", fails)
    with pytest.raises(cli.UserError, match=f"^{re.escape(str(error))}: nothing was saved"):
        train.main([*TINY, "--out", str(tmp_path / "run")])


def test_a_folder_that_cannot_be_made_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "run"
    assert f"--out {out} cannot be written (" in refusal(capsys, train.main, *TINY, "--out", out)


def test_a_run_folder_that_may_only_be_read_is_named(
    run_folder: tuple[Path, str, str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    shutil.copytree(run_folder[0], out)

    def hold(run: Path) -> None:  # the superuser, who runs the tests in containers, may write everywhere
        raise PermissionError(errno.EACCES, "Permission denied", str(run / checkpoint.LOCK))

    monkeypatch.setattr(train.checkpoint, "hold", hold)
    for options in (["--out", out, "--resume", "--device", "cpu"], [*TINY, "--out", tmp_path / "new"]):
        line = refusal(capsys, train.main, *options)
        assert re.search(r"--out \S+ cannot be written \(\[Errno 13\] Permission denied.*choose a folder", line)


def test_data_that_turns_out_broken_leaves_no_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("too many pictures are broken")

    monkeypatch.setattr(beginning, "fitted_prior", broken)
    assert "too many pictures" in refusal(capsys, train.main, *TINY, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_replay_of_a_shared_run_takes_its_batch_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process holds no more images at once than each of four did."""
    world, out = World(0, 1, 0, torch.device("cpu")), tmp_path / "a run"
    arguments = train.parser().parse_args([*TINY, "--set", "train.accumulate=1", "--out", str(out)])
    session = train.session_of(arguments, world)
    trainer = session.trainer
    checkpoint.save_state(out, trainer.state())
    checkpoint.release(out)

    def fails(*_: object) -> None:
        raise NotFiniteError(3, "the loss is not finite")

    monkeypatch.setattr(runs_module, "train", fails)
    with pytest.raises(cli.UserError) as caught:
        train._work(arguments, replace(world, size=4), session)
    command = re.search(r"python -m ssdcore_torch.train (.*?)\. If", str(caught.value))
    assert command, caught.value
    words = shlex.split(command[1])
    assert words == ["--out", str(out), "--resume", "--replay", "3", "--set", "train.accumulate=4"]

    taken: list[int] = []
    honest = Trainer.part_loss

    def part_loss(trainer: Trainer, images: Any, drawn: Any, part: slice) -> torch.Tensor:
        taken.append(len(range(*part.indices(4))))
        return honest(trainer, images, drawn, part)

    monkeypatch.setattr(Trainer, "part_loss", part_loss)
    assert train.main([*words, "--device", "cpu"]) == 0
    assert set(taken) == {1}  # of the batch of 4


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), RuntimeError("CUDA out of memory")])
def test_pictures_that_cannot_be_drawn_do_not_hide_the_run(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(runs_module, "final_pictures", full)
    with pytest.raises(cli.UserError, match="the run is complete and saved in") as caught:
        train.main([*TINY, "--steps", "2", "--out", str(tmp_path / "a run")])
    assert f"ssdcore_torch.sample '{tmp_path / 'a run'}'" in str(caught.value)
    assert load_run(tmp_path / "a run").step == 2


def test_settings_that_only_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("process: {schedule: convex}")
    options = ["--config", settings, "--set", "process.gamma=0.5", "--batch-size", 6, "--set", "train.accumulate=3"]
    assert train.main([str(word) for word in (*TINY, *options, "--steps", 1, "--out", tmp_path / "run")]) == 0
    capsys.readouterr()
    config = load_run(tmp_path / "run").config
    assert (config.process.schedule, config.process.gamma) == ("convex", 0.5)
    assert (config.train.batch_size, config.train.accumulate) == (6, 3)
    line = refusal(capsys, train.main, *TINY, *options, "--set", "train.klip=1", "--out", tmp_path / "other")
    assert line.startswith("error: --set train.klip=1: train.klip: unknown setting")  # not the others


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_run_folder_is_trained_in_by_one_process(
    run_folder: tuple[Path, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(run_folder[0], out)
    checkpoint.hold(out)
    before = {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}
    code, _, error = finish(start("train", "--out", out, "--resume", "--steps", 14, "--device", "cpu"))
    assert code == cli.BAD_INPUT
    assert f"{out} is being trained by another process" in error
    code, text, _ = finish(start("train", "--out", out, "--resume", "--dry-run", "--device", "cpu"))
    assert code == 0, text  # which writes nothing
    assert {f: f.read_bytes() for f in out.rglob("*") if f.is_file()} == before
    checkpoint.release(out)
    code, _, error = finish(start("train", "--out", out, "--resume", "--steps", 14, "--device", "cpu"))
    assert code == 0, error


def test_a_killed_trainer_holds_its_folder_no_more(tmp_path: Path) -> None:
    """Though a process that decodes for it, and has its open files, outlives it for a while."""
    reading, writing = os.pipe()
    holder = os.fork()
    if holder == 0:
        with suppress(BaseException):
            checkpoint.hold(tmp_path)
            if child := os.fork():
                os.write(writing, str(child).encode())
            time.sleep(600)
        os._exit(1)
    os.close(writing)
    child = int(os.read(reading, 20))
    os.close(reading)
    try:
        with pytest.raises(ValueError, match="is being trained by another process"):
            checkpoint.hold(tmp_path)
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        checkpoint.hold(tmp_path)
        checkpoint.release(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)


def test_two_runs_begun_at_once_have_a_folder_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second finds the name free, as the first has not made its folder yet."""
    monkeypatch.chdir(tmp_path)
    world, build = World(0, 1, 0, torch.device("cpu")), beginning.Trainer
    arguments = train.parser().parse_args(list(map(str, TINY)))
    meanwhile: list[Path] = []

    def slow(*things: Any) -> Trainer:
        if not meanwhile:
            meanwhile.append(Path("."))
            meanwhile[0] = train.session_of(arguments, world).out
        return build(*things)

    monkeypatch.setattr(beginning, "Trainer", slow)
    out = train.session_of(arguments, world).out
    assert sorted(map(str, (out, *meanwhile))) == ["runs/cpu", "runs/cpu-2"]
    named = train.parser().parse_args([*map(str, TINY), "--out", "mine"])
    meanwhile.clear()

    def also(*things: Any) -> Trainer:
        if not meanwhile:
            meanwhile.append(Path("."))
            train.session_of(named, world)
        return build(*things)

    monkeypatch.setattr(beginning, "Trainer", also)
    with pytest.raises(cli.UserError, match="mine"):
        train.session_of(named, world)
    for folder in ("runs/cpu", "runs/cpu-2", "mine"):
        assert (Path(folder) / "config.json").exists()
        checkpoint.release(Path(folder))


def test_what_a_killed_trainer_left_does_not_lock_its_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / ".config.json.123.tmp").write_text("{")
    (out / ".lock").touch()
    assert train.main([str(word) for word in (*TINY, "--steps", 1, "--out", out)]) == 0
    assert not list(out.glob(".*.tmp"))


def test_moved_data_is_known_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there, out = tmp_path / "here.npy", tmp_path / "there.npy", tmp_path / "run"
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    np.save(here, pixels)
    monkeypatch.chdir(tmp_path)
    assert train.main([str(word) for word in (*TINY, "--data", "here.npy", "--steps", 1, "--out", out)]) == 0
    capsys.readouterr()
    assert load_run(out).config.data.path == str(here)  # so that it can be resumed from anywhere
    here.rename(there)
    resume = ["--out", out, "--resume", "--steps", 2, "--device", "cpu"]
    assert "if it has moved, its new place" in refusal(capsys, train.main, *resume)
    np.save(here, 255 - pixels)
    assert "was begun on other data" in refusal(capsys, train.main, *resume)
    assert train.main([str(word) for word in (*resume, "--data", "there.npy")]) == 0
    assert load_run(out).config.data.path == str(there)


@pytest.mark.parametrize(
    ("options", "module", "says"),
    [
        (["--wandb", "mine"], "wandb", "ssdcore[wandb]"),
        (["--tensorboard"], "torch.utils.tensorboard", "ssdcore[tensorboard]"),
        (["--set", "train.evaluate_every=1"], "torchmetrics.image.fid", "ssdcore[evaluate]"),
    ],
)
def test_a_missing_package_is_named_before_anything_is_written(
    options: list[str],
    module: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert says in refusal(capsys, train.main, *TINY, *options, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_help_is_readable() -> None:
    for command, options in (
        (train, ("--preset", "--data", "--size", "--levels", "--steps", "--out", "--seed", "--resume", "--device")),
        (sample, ("RUN", "--n", "--steps", "--seed", "--out")),
    ):
        text = command.parser().format_help()
        assert all(option in text for option in options)
