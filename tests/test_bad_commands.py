"""Bad command lines of train, sample, evaluate and ema: exit status 2, one line that names what was typed, nothing left
behind, and no work done before."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import refusal
from test_training import WORLD, tiny_config

from ssdcore_torch import checkpoint, devices, ema, load_run
from ssdcore_torch.commands import cli, evaluate, sample, train
from ssdcore_torch.commands import ema as ema_command
from ssdcore_torch.data import EMBEDDED, load_images
from ssdcore_torch.training import Trainer, fitted_prior

COMMANDS: dict[str, Callable[..., int]] = {
    "train": train.main,
    "sample": sample.main,
    "evaluate": evaluate.main,
    "ema": ema_command.main,
}
SECONDS = 20.0  # of the CPU; each takes well under one


def make_run(folder: Path) -> Path:
    """A run, its network untrained, in this folder."""
    run = folder / "run"
    run.mkdir()
    config = tiny_config(steps=4, ema_widths=(0.05, 0.1))
    images = load_images(EMBEDDED, 8, config.data.classes)
    trainer = Trainer(config, images, WORLD)
    checkpoint.save_config(run, config)
    checkpoint.save_data(run, images.fingerprint)
    checkpoint.save_prior(run, fitted_prior(images, trainer.process))
    trainer.step = 4
    checkpoint.save_state(run, trainer.state())
    ema.save_snapshot(run, 4, trainer.averages)
    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run in it, and files that are no good."""
    folder = tmp_path_factory.mktemp("place")
    make_run(folder)
    for name in ("there.png", "there.npz", "there.json", "there.safetensors"):
        (folder / name).write_text("of an hour's work")
    (folder / "folder.png").mkdir()
    (folder / "latin.yaml").write_bytes(b"data: {path: \xe9t\xe9}")
    (folder / "twice.yaml").write_text("train: {clip: 1.0}\ntrain: {clip: 2.0}\n")
    (folder / "bomb.yaml").write_text("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n")
    (folder / "loop.yaml").write_text("train: &a {clip: *a}\n")
    (folder / "list.yaml").write_text("- 1\n")
    (folder / "not.json").write_text("{")
    os.mkfifo(folder / "pipe.yaml")
    os.mkfifo(folder / "pipe.png")
    return folder


LONG = "x" * 300
TRAIN = "train --preset cpu --size 8 --levels 2 --batch-size 4 --device cpu --out new"
# What is typed, in the folder above -> what the line says. {long} is a name of 300 characters.
BAD: dict[str, str] = {
    # numbers
    f"{TRAIN} --seed 99999999999999999999": "--seed: expected a whole number of at most 9223372036854775807",
    f"{TRAIN} --seed -1": "--seed: expected a whole number of at least 0",
    f"{TRAIN} --steps 1e3": "--steps: expected a whole number",
    f"{TRAIN} --steps 99999999999999999999999": "--steps: expected a whole number of at most",
    f"{TRAIN} --batch-size 1000000000000": "--batch-size: expected a whole number of at most",
    f"{TRAIN} --batch-size 900000000": "train.batch_size: expected at most",
    f"{TRAIN} --size 1000000": "network.level_sizes: expected at most 16384 pixels",
    f"{TRAIN} --levels 100000": "take at most",
    f"{TRAIN} --batch-size 1000000 --set network.base_channels=4096": "has",
    # settings
    f"{TRAIN} --set network.base_channels=1000000": "--set network.base_channels=1000000: network.base_channels: expected at most",
    f"{TRAIN} --set network.base_channels=8192": "network: ",
    f"{TRAIN} --set network.base_channels=33": "network.base_channels: expected an even number",
    f"{TRAIN} --set network.blocks_per_stage=100000": "network.blocks_per_stage: expected at most 64",
    f"{TRAIN} --set network.dropout=2": "network.dropout: expected a probability",
    f"{TRAIN} --set process.kernel=foo": "--set process.kernel=foo: process.kernel: unknown kernel 'foo'",
    f"{TRAIN} --set process.steps=1000000000": "process.steps: expected",
    f"{TRAIN} --set train.ema_widths=[1e-300]": "train.ema_widths: expected widths from 0.001",
    f"{TRAIN} --set train.ema_widths=[0.05,0.05]": "train.ema_widths: expected different averages",
    f"{TRAIN} --set train.ema=[0.9,0.9]": "train.ema: expected different averages",
    f"{TRAIN} --set train.snapshots=10000000000": "train.snapshots: expected at most",
    f"{TRAIN} --set train.steps=-3": "train.steps: expected at least 1",
    f"{TRAIN} --set train.steps=yes": "--set train.steps=yes: train.steps: expected int",
    f"{TRAIN} --set train.learning_rate=.nan": "train.learning_rate: expected a finite number",
    f"{TRAIN} --set data.workers=1000000": "data.workers: expected 0 to 1024",
    f"{TRAIN} --set data.classes=[a,a]": "data.classes: expected different names, got 'a'",
    f"{TRAIN} --set seed=99999999999999999999": "seed: expected 0 to",
    f"{TRAIN} --set train.clip=1 --set train.klip=2 --set seed=3": "error: --set train.klip=2: train.klip: unknown setting",
    f"{TRAIN} --set train.clip=[": "--set train.clip=[: not YAML",
    f"{TRAIN} --set train.clip=*a": "--set train.clip=*a: not YAML: aliases (*a) are not read",
    f"{TRAIN} --set =1": "expected NAME=VALUE",
    # files of settings
    f"{TRAIN} --config nowhere.yaml": "--config nowhere.yaml: it cannot be read (No such file or directory)",
    f"{TRAIN} --config folder.png": "--config folder.png: it cannot be read (folder.png is a folder)",
    f"{TRAIN} --config pipe.yaml": "--config pipe.yaml: it cannot be read (pipe.yaml is not a regular file)",
    f"{TRAIN} --config latin.yaml": "--config latin.yaml: latin.yaml is not UTF-8 text",
    f"{TRAIN} --config twice.yaml": "--config twice.yaml: not YAML: 'train' is given twice",
    f"{TRAIN} --config bomb.yaml": "--config bomb.yaml: not YAML: aliases (*a) are not read",
    f"{TRAIN} --config loop.yaml": "--config loop.yaml: not YAML: aliases (*a) are not read",
    f"{TRAIN} --config list.yaml": "--config list.yaml: expected settings as in",
    f"{TRAIN} --schedule nowhere.json": "--schedule nowhere.json: it cannot be read",
    f"{TRAIN} --schedule not.json": "--schedule not.json: ",
    # devices, folders, processes
    f"{TRAIN} --device meta": "--device meta cannot be used (it computes nothing)",
    f"{TRAIN} --device cpu:7": "--device cpu:7 cannot be used",
    f"{TRAIN} --device cuda:99": "--device cuda:99 cannot be used",
    f"{TRAIN} --device xla": "--device xla cannot be used",
    "train --device cpu --out run": "already holds a run",
    "train --device cpu --out there.png": "is a file",
    "train --device cpu --out {long}": "--out",
    "train --device cpu --out caf\udce9": "--out caf\\udce9: the name is not UTF-8",
    "train --device cpu --out run --resume --replay 100000000": "--replay 100000000: the run's steps are 0 to 3",
    "train --device cpu --out run --resume --steps 2": "--steps 2: this run has done 4",
    "train --device cpu --out run --resume --seed 5": "seed: 5 instead of 0",
    "train --device cpu --out nothing --resume": "nothing is no",
    # samples
    "sample run --device cpu --n 1000000000000": "--n: expected a whole number of at most",
    "sample run --device cpu --n 900000000": "--n 900000000: so many images of 8×8 take",
    "sample run --device cpu --seed 99999999999999999999": "--seed: expected a whole number of at most",
    "sample run --device meta": "--device meta cannot be used",
    "sample run --device cpu --out there.png": "--out there.png is there already: choose another name, or add --force",
    "sample run --device cpu --out there.npz": "--out there.npz is there already",
    "sample run --device cpu --out folder.png": "--out folder.png is there already, and is not a file",
    "sample run --device cpu --out folder.png --force": "is not a file",
    "sample run --device cpu --out pipe.png --force": "is not a file",
    "sample run --device cpu --out {long}.png": "cannot be written (File name too long)",
    "sample run --device cpu --out nowhere/a.png": "there is no folder nowhere",
    "sample run --device cpu --out new.grib": "new.grib",
    "sample run --device cpu --out new.h5": "new.h5",
    "sample run --device cpu --out new.bufr": "new.bufr",
    "sample run --device cpu --out new.wmf": "new.wmf",
    "sample run --device cpu --out new.xbm": "new.xbm",
    "sample run --device cpu --out new.palm": "new.palm",
    "sample run --device cpu --out new.msp": "new.msp",
    "sample run --device cpu --out new.blp": "new.blp",
    "sample run --device cpu --out new": "names no picture format",
    "sample run --device cpu --out new.gif --gif new.gif": "is the name of another result",
    "sample run --device cpu --gif new.png": "an animation is written as GIF",
    "sample run --device cpu --steps 100000": "100000",
    "sample run --device cpu --weights nowhere.safetensors": "nowhere.safetensors",
    "sample run --device cpu --weights there.safetensors": "there.safetensors",
    f"sample run --device cpu --label {'9' * 90_000}": "this run knows no classes",
    "sample run --device cpu --label x": "--label x: this run knows no classes",
    "sample nothing --device cpu": "nothing is no",
    "sample there.png --device cpu": "there.png",
    # evaluations
    "evaluate run --device cpu --features pixels --out there.json": "--out there.json is there already",
    "evaluate run --device cpu --features pixels --picture there.png": "--picture there.png is there already",
    "evaluate run --device cpu --features pixels --out {long}.json": "cannot be written (File name too long)",
    "evaluate run --device cpu --features pixels --out new.png": "the picture has this name",
    "evaluate run --device cpu --features pixels --picture new.grib": "new.grib",
    "evaluate run --device cpu --features pixels --n 3": "--n: expected a whole number of at least 4",
    "evaluate run --device cpu --features pixels --n 900000000": "900000000",
    "evaluate run --device meta --features pixels": "--device meta",
    "evaluate nothing --device cpu": "nothing is no",
    "evaluate --device cpu": "expected one thing to evaluate",
    "evaluate --compare there.json": "--compare: expected two reports",
    "evaluate --compare there.json there.json": "there.json",
    # averages
    "ema run --width 1e-300 --out new.safetensors": "--width: expected a relative width from 0.001",
    "ema run --width 1e-9 --out new.safetensors": "--width: expected a relative width from 0.001",
    "ema run --width nan --out new.safetensors": "--width: expected a relative width",
    "ema run --width 3 --out new.safetensors": "--width: expected a relative width",
    "ema run --width x --out new.safetensors": "--width",
    "ema run --width 0.05 --step 3 --out new.safetensors": "step 3 has no snapshots",
    "ema run --width 0.05 --out there.safetensors": "--out there.safetensors is there already",
    "ema run --width 0.05 --out nowhere/new.safetensors": "there is no folder nowhere",
    "ema run --width 0.05 --out {long}": "File name too long",
    "ema nothing --width 0.05 --out new.safetensors": "nothing",
}


def contents(folder: Path) -> dict[str, bytes | None]:
    found = sorted(folder.rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else None for path in found if path.name != ".lock"}


def marks(folder: Path) -> dict[str, tuple[int, ...]]:
    """What changes with any file in the folder; read faster than `contents`."""
    found = ((path, path.lstat()) for path in sorted(folder.rglob("*")) if path.name != ".lock")
    return {str(path): (about.st_ino, about.st_size, about.st_mtime_ns, about.st_mode) for path, about in found
            if path.is_file()}  # fmt: skip


@pytest.mark.parametrize("typed", list(BAD))
def test_bad_input_is_one_line_and_leaves_nothing(
    typed: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    before, started = marks(place), time.process_time()
    name, *options = typed.format(long=LONG).split()
    line = refusal(capsys, COMMANDS[name], *options)
    assert BAD[typed] in line
    assert len(line) < 5000
    assert time.process_time() - started < SECONDS
    assert marks(place) == before


ENVIRONMENTS = {
    "RANK=5 WORLD_SIZE=2": "describes no process of several (WORLD_SIZE=2, RANK=5",
    "RANK=-1 WORLD_SIZE=2": "describes no process of several",
    "RANK=0 WORLD_SIZE=0": "describes no process of several",
    "RANK=1": "describes no process of several (WORLD_SIZE=1, RANK=1",
    "RANK=0 WORLD_SIZE=many": "WORLD_SIZE=many",
    "RANK=0 WORLD_SIZE=99999999999999999999": "describes no process of several",
    "RANK=0 WORLD_SIZE=2": "without MASTER_ADDR and MASTER_PORT: start several processes with torchrun",
    "RANK=0 WORLD_SIZE=2 MASTER_ADDR=localhost": "without MASTER_PORT",
    "RANK=0 WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=x": "cannot meet the other 1",
}


@pytest.mark.parametrize("left", list(ENVIRONMENTS))
def test_an_environment_that_was_left_is_one_line(
    left: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    for pair in left.split():
        monkeypatch.setenv(*pair.split("=", 1))
    with pytest.raises(SystemExit) as caught:
        cli.run(train.main, [*TRAIN.split()[1:], "--out", "new"])
    said = capsys.readouterr().err
    assert caught.value.code == cli.BAD_INPUT
    assert ENVIRONMENTS[left] in said.splitlines()[-1]
    assert not (place / "new").exists()


def test_force_overwrites_and_results_lie_in_the_run(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = str(place / "run")
    draw = [run, "--device", "cpu", "--n", "2", "--steps", "3"]
    assert sample.main(draw) == 0
    shown = place / "run" / "grid.png"
    first = shown.read_bytes()
    assert "add --force" in refusal_after(capsys, sample.main, *draw)
    assert sample.main([*draw, "--n", "3", "--force"]) == 0
    assert shown.read_bytes() != first
    shown.unlink()
    evaluates = [run, "--device", "cpu", "--n", "8", "--steps", "3", "--features", "pixels"]
    evaluates += ["--cache", str(tmp_path / "cache")]
    assert evaluate.main(evaluates) == 0
    report = place / "run" / "evaluation.json"
    assert json.loads(report.read_text())["n"] == 8
    assert "add --force" in refusal_after(capsys, evaluate.main, *evaluates)
    assert evaluate.main([*evaluates, "--force"]) == 0
    for path in (report, report.with_suffix(".png")):
        path.unlink()
    assert sorted(os.listdir(tmp_path)) == ["cache"]


def refusal_after(capsys: pytest.CaptureFixture[str], main: Callable[..., int], *options: object) -> str:
    capsys.readouterr()
    return refusal(capsys, main, *options)


def test_a_link_in_the_place_of_a_result_is_replaced_and_not_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "mine.txt", tmp_path / "grid.png"
    target.write_text("mine")
    link.symlink_to(target)
    with pytest.raises(ValueError, match="is there already: choose"):
        cli.check_outputs(False, out=link)
    cli.check_outputs(True, out=link)
    assert target.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["grid.png", "mine.txt"]


def test_a_batch_that_does_not_fit_is_refused_before_the_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ssdcore_torch.training.memory.memory_of", lambda device: 40 << 20)
    line = refusal(capsys, train.main, *TRAIN.split()[1:], "--batch-size", 32768)
    assert "train.batch_size: 32768 images of 8×8 at once take" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB"),
            "not enough memory (CUDA out of memory",
        ),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "lower --batch-size"),
        (MemoryError(), "not enough memory (asked for too much)"),
        (OSError(errno.ENOSPC, "No space left on device"), "cannot be written"),
        (ValueError("too much of the data is broken"), "too much of the data is broken"),
    ],
)
def test_what_fails_before_the_first_checkpoint_leaves_no_folder(
    error: BaseException,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Trainer, "train_step", fails)
    with pytest.raises(SystemExit) as caught:
        cli.run(train.main, [*TRAIN.split()[1:], "--steps", "2"])
    assert caught.value.code == cli.BAD_INPUT
    line = capsys.readouterr().err.splitlines()[-1]
    assert says in line
    assert "nothing was saved" in line
    assert not list(tmp_path.iterdir())


def test_a_run_that_never_saved_is_replaced_or_gone_on_with_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a kill before the first checkpoint leaves it."""
    arguments = train.parser().parse_args([*TRAIN.split()[1:-1], str(tmp_path / "run")])
    run = tmp_path / "run"
    train.session_of(arguments, WORLD)
    checkpoint.release(run)
    (run / "log.jsonl").write_text('{"step": 1}\n')
    capsys.readouterr()
    again = train.parser().parse_args([*TRAIN.split()[1:-1], str(run), "--seed", "5"])
    train.session_of(again, WORLD)
    checkpoint.release(run)
    assert "which was stopped before its first checkpoint, is replaced" in capsys.readouterr().err
    assert checkpoint.read_config(run).seed == 5
    assert not (run / "log.jsonl").exists()
    trainer = train.session_of(
        train.parser().parse_args(["--out", str(run), "--resume", "--device", "cpu"]), WORLD
    ).trainer
    assert "never saved a checkpoint: training begins at step 0" in capsys.readouterr().err
    checkpoint.save_state(run, replace(trainer.state(), step=3))
    checkpoint.release(run)
    train.session_of(train.parser().parse_args(["--out", str(run), "--resume", "--device", "cpu"]), WORLD)
    checkpoint.release(run)
    assert "continuing after step 3 of" in capsys.readouterr().err
    (run / "thesis.tex").touch()
    assert not checkpoint.never_saved(run)


def _resumed(run: Path) -> Trainer:
    trainer = train.session_of(
        train.parser().parse_args(["--out", str(run), "--resume", "--device", "cpu"]), WORLD
    ).trainer
    checkpoint.release(run)
    return trainer


@pytest.mark.parametrize("how", ["altered", "cut", "missing", "another"])
def test_a_prior_that_is_not_the_one_trained_with_is_refused_and_fitted_again(
    how: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    path = run / "prior.safetensors"
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "another":
        checkpoint.save_prior(run, (np.zeros((3, 4, 4)), np.eye(48)))
    else:
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:] if how == "altered" else content[:200])
    fault = "is missing" if how == "missing" else "is not the file that was written"
    line = refusal(capsys, sample.main, run, "--device", "cpu")
    assert f"prior.safetensors {fault}" in line
    assert "--resume fits it again" in line
    _resumed(run)
    assert "is fitted again" in capsys.readouterr().err
    assert path.read_bytes() == content
    assert load_run(run).prior is not None


def test_data_json_that_is_damaged_does_not_lock_the_run(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    content = (run / "data.json").read_bytes()
    (run / "data.json").write_text('{"fingerprint": "of something else"}')
    _resumed(run)
    assert (run / "data.json").read_bytes() == content


def test_a_folder_of_a_run_that_is_a_link_is_not_written_to(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, mine = tmp_path / "run", tmp_path / "mine"
    shutil.copytree(place / "run", run)
    (run / "checkpoints").rename(mine)
    (run / "checkpoints").symlink_to(mine)
    before = contents(mine)
    assert "checkpoints is a link" in refusal(capsys, train.main, "--out", run, "--resume", "--device", "cpu")
    assert contents(mine) == before


def test_the_lock_is_no_link_keeps_its_rights_and_outlives_its_file(place: Path, tmp_path: Path) -> None:
    run, target = tmp_path / "run", tmp_path / "mine.txt"
    run.mkdir()
    target.write_text("mine")
    (run / ".lock").symlink_to(target)
    with pytest.raises(ValueError, match="lock is a link"):
        checkpoint.hold(run)
    assert target.read_text() == "mine"
    (run / ".lock").unlink()
    (run / ".lock").touch()
    (run / ".lock").chmod(0o664)
    checkpoint.hold(run)
    assert (run / ".lock").stat().st_mode & 0o777 == 0o664
    (run / ".lock").unlink()
    child = os.fork()
    if child == 0:
        try:
            checkpoint.hold(run)
        except ValueError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    checkpoint.release(run)
    checkpoint.hold(run)
    checkpoint.release(run)


def test_the_memory_of_this_machine_is_known() -> None:
    assert 1 << 28 < devices.memory_of(torch.device("cpu")) < 1 << 50


def test_two_saves_of_one_state_are_equal_byte_for_byte(place: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny_config(steps=4, ema_widths=(0.05, 0.1)), load_images(EMBEDDED, 8), WORLD)
    written = []
    for name in ("a", "b"):
        run = tmp_path / name
        run.mkdir()
        checkpoint.save_config(run, trainer.config)
        checkpoint.save_state(run, trainer.state())
        ema.save_snapshot(run, 1, trainer.averages)
        written.append({key.removeprefix(str(run)): value for key, value in contents(run).items()})
    assert written[0] == written[1]
