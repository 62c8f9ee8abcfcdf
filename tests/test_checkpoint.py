"""Run folders: checkpoints whole or refused, rotated, of the configuration that they were made with."""

from __future__ import annotations

import dataclasses
import errno
import functools
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ssdcore.files import write_atomically
from ssdcore_torch import FlexiUNet, FlexiUNetConfig, generate, load_run
from ssdcore_torch.checkpoint import (
    RESUMABLE,
    Changes,
    State,
    _reading,
    checkpoints,
    load_state,
    load_tensors,
    resumable_changes,
    save_config,
    save_prior,
    save_state,
    save_tensors,
    was_saved,
)
from ssdcore_torch.config import Config, preset
from ssdcore_torch.sampling import fit_moments


def tiny_config(steps: int = 8) -> Config:
    cpu = preset("cpu", "drawn below")
    network = FlexiUNetConfig(
        ((8, 8), (4, 4)),
        base_channels=32,
        channel_multipliers=(1, 1),
        blocks_per_stage=1,
        attention_sizes=(),
        dropout=0.1,
    )
    train = dataclasses.replace(cpu.train, steps=steps, batch_size=4, change_share=0.3, learning_rate=3e-3, warmup=2)
    return dataclasses.replace(cpu, network=network, train=train)


def state_after(step: int) -> State:
    """Random numbers for the weights of that network and all that goes with them."""
    generator = torch.Generator().manual_seed(step)
    like = network()

    def part() -> dict[str, torch.Tensor]:
        return {name: torch.randn(x.shape, generator=generator) for name, x in like.items()}

    updates = {name: torch.tensor(float(step)) for name in like}
    return State(step, 10, part(), {"ema": part(), "power-0.1": part()}, part(), part(), updates)


@functools.cache
def network() -> dict[str, torch.Tensor]:
    """The state dict that tiny_config's network has."""
    return FlexiUNet(tiny_config().network).state_dict()


def parts_of(state: State) -> dict[str, dict[str, torch.Tensor]]:
    moments = {name: getattr(state, name) for name in ("first_moments", "second_moments", "updates")}
    return {"model": state.model, **state.averages, **moments}


def equal_states(a: State, b: State) -> bool:
    ours, theirs = parts_of(a), parts_of(b)
    return (a.step, a.images, a.extra, list(ours)) == (b.step, b.images, b.extra, list(theirs)) and all(
        ours[part].keys() == theirs[part].keys()
        and all(torch.equal(ours[part][name], theirs[part][name]) for name in ours[part])
        for part in ours
    )


def moments() -> tuple[np.ndarray, np.ndarray]:
    pictures = np.random.default_rng(0).integers(0, 256, (10, 3, 8, 8), dtype=np.uint8)
    fitted = fit_moments(torch.from_numpy(pictures), tiny_config().build_process())
    assert fitted is not None
    return fitted


def save_run(run: Path, state: State) -> None:
    run.mkdir(exist_ok=True)
    save_config(run, tiny_config())
    save_prior(run, moments())
    save_state(run, state)


def test_load_run_gives_back_what_was_saved(tmp_path: Path) -> None:
    state = state_after(3)
    save_run(tmp_path / "run", state)
    run = load_run(tmp_path / "run")
    assert run.config == tiny_config()
    assert run.step == 3
    assert run.process.shape(run.process.steps) == (4, 4)
    assert not run.net.training
    for net, expected in ((run.net, state.model), (run.ema, state.averages["ema"])):
        assert all(torch.equal(parameter, expected[name]) for name, parameter in net.named_parameters())
    assert run.prior is not None
    mean, covariance = moments()
    alpha, sigma = run.process.alpha(run.process.steps), run.process.sigma(run.process.steps)
    np.testing.assert_allclose(run.prior.mean, alpha * mean)
    np.testing.assert_allclose(
        run.prior.covariance.as_matrix(), alpha**2 * covariance + sigma**2 * np.eye(48), atol=1e-12
    )
    assert generate(run.ema, run.process, 2, steps=3, prior=run.prior).shape == (2, 3, 8, 8)


def break_file(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.unlink()  # whatever other name the file has keeps its content
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "foreign":
        path.write_bytes(b"not a checkpoint" * 100)
    elif how == "one bit":
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif how == "other network":
        other = FlexiUNet(FlexiUNetConfig(((8, 8), (4, 4)), base_channels=64, channel_multipliers=(1, 1)))
        save_file(other.state_dict(), path)
    else:
        assert how == "missing"


BELIEVED = ("manifest.json", "one bit")  # until it no longer fits its files
FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


Saved = tuple[Path, State, State]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A run with checkpoints after 2 and 4 steps: its folder and the states."""
    run, first, second = tmp_path_factory.mktemp("runs") / "run", state_after(2), state_after(4)
    save_run(run, first)
    save_state(run, second)
    return run, first, second


def copied(saved: Saved, to: Path) -> Path:
    shutil.copytree(saved[0], to / "run")
    return to / "run"


HOW = ("cut", "empty", "foreign", "one bit", "missing")


def test_of_two_checkpoints_the_newest_is_used(saved: Saved, caplog: pytest.LogCaptureFixture) -> None:
    assert equal_states(load_state(saved[0], network()), saved[2])
    assert caplog.text == ""


@pytest.mark.parametrize(("name", "how"), [pair for pair in itertools.product(FILES, HOW) if pair != BELIEVED])
def test_of_a_damaged_checkpoint_the_one_before_is_used(
    tmp_path: Path, saved: Saved, caplog: pytest.LogCaptureFixture, name: str, how: str
) -> None:
    run = copied(saved, tmp_path)
    break_file(run / "checkpoints" / "step-00000004" / name, how)
    assert equal_states(load_state(run, network()), saved[1])
    assert "step-00000004 is refused" in caplog.text
    assert name in caplog.text
    assert "step-00000002 is used instead" in caplog.text
    if name != "optimizer.safetensors" or how != "one bit":  # of which drawing samples reads the size only
        assert load_run(run).step == 2

    break_file(run / "checkpoints" / "step-00000002" / name, how)
    with pytest.raises(ValueError, match=rf"no intact checkpoint \(step-00000004: .*{name}.*; step-00000002: .*{name}"):
        load_state(run, network())
    assert (run / "model.safetensors").exists()


def test_a_damaged_checkpoint_goes_when_its_step_was_passed_otherwise(tmp_path: Path, saved: Saved) -> None:
    run = copied(saved, tmp_path)
    break_file(run / "checkpoints" / "step-00000004" / "model.safetensors", "cut")
    state = load_state(run, network())
    save_state(run, dataclasses.replace(state, step=3))
    assert [folder.name for folder in checkpoints(run)] == ["step-00000003", "step-00000002"]


def test_swapped_files_are_refused(tmp_path: Path, saved: Saved) -> None:
    run = copied(saved, tmp_path)
    newest, before = checkpoints(run)
    for name in ("model.safetensors", "state.json", "manifest.json"):
        shutil.copy(before / name, newest / name)
        assert load_run(run).step == 2, name
    shutil.rmtree(newest)
    before.rename(newest)
    with pytest.raises(ValueError, match=r"step-00000004: .*manifest.json is of step 2, its folder's name says 4"):
        load_run(run)


@pytest.mark.parametrize("how", ["cut", "empty", "foreign", "other network"])
@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "prior.safetensors"])
def test_broken_files_beside_no_checkpoint_are_refused_by_name(
    tmp_path: Path, saved: Saved, name: str, how: str
) -> None:
    run = copied(saved, tmp_path)
    shutil.rmtree(run / "checkpoints")
    assert load_run(run).step == 4
    break_file(run / name, how)
    with pytest.raises((ValueError, FileNotFoundError), match=name) as caught:
        load_run(run)
    assert "\n" not in str(caught.value)


def test_missing_weights_are_named(tmp_path: Path, saved: Saved) -> None:
    run = copied(saved, tmp_path)
    shutil.rmtree(run / "checkpoints")
    (run / "prior.safetensors").unlink()
    assert load_run(run).prior is None  # where none was fitted
    (run / "ema.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"ema.safetensors is missing"):
        load_run(run)


def test_weights_alone_are_no_run_to_go_on_with(tmp_path: Path, saved: Saved) -> None:
    run = copied(saved, tmp_path)
    shutil.rmtree(run / "checkpoints")
    for read in (lambda: was_saved(run), lambda: load_state(run, network())):
        with pytest.raises(ValueError, match=r"weights without an optimizer's state.*--out"):
            read()
    (run / "model.safetensors").unlink()
    assert not was_saved(run)
    with pytest.raises(FileNotFoundError, match="has no checkpoint"):
        load_state(run, network())


def test_the_top_of_the_run_shows_the_newest_checkpoint(saved: Saved) -> None:
    run, _, state = saved
    for name, expected in (("model", state.model), ("ema", state.averages["ema"])):
        tensors, metadata = load_tensors(run / f"{name}.safetensors")
        assert metadata["step"] == "4"
        assert all(torch.equal(tensors[key], expected[key]) for key in expected)
        assert (run / f"{name}.safetensors").samefile(run / "checkpoints" / "step-00000004" / f"{name}.safetensors")


def test_where_there_are_no_hard_links_they_are_copies(
    tmp_path: Path, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError("Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    run = copied(saved, tmp_path)
    folder = save_state(run, dataclasses.replace(saved[1], step=5))
    assert (run / "ema.safetensors").read_bytes() == (folder / "ema.safetensors").read_bytes()
    assert not (run / "ema.safetensors").samefile(folder / "ema.safetensors")
    assert not list(run.glob(".*"))


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path: Path, saved: Saved) -> None:
    run, state = copied(saved, tmp_path), saved[2]
    for step in range(5, 9):
        save_state(run, dataclasses.replace(state, step=step, extra={"best": {"step": 4, "frechet": 0.1}}), keep=2)
    assert [folder.name for folder in checkpoints(run)] == ["step-00000008", "step-00000007", "step-00000004"]
    assert load_state(run, state.model).extra == {"best": {"step": 4, "frechet": 0.1}}
    save_state(run, dataclasses.replace(state, step=8), keep=1)  # a second one of the same step
    assert [folder.name for folder in checkpoints(run)] == ["step-00000008"]
    assert sorted(os.listdir(run / "checkpoints")) == ["step-00000008"]
    assert load_state(run, state.model).extra == {}


def test_a_trainer_at_work_may_delete_what_is_being_opened(
    tmp_path: Path, saved: Saved, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = copied(saved, tmp_path)
    original = _reading.digest

    def meanwhile(path: Path) -> str:
        monkeypatch.setattr(_reading, "digest", original)
        save_state(run, dataclasses.replace(saved[2], step=7), keep=1)
        return original(path)

    monkeypatch.setattr(_reading, "digest", meanwhile)
    assert load_run(run).step == 7
    assert caplog.text == ""


def test_what_a_killed_trainer_left_goes_with_the_next_save(tmp_path: Path, saved: Saved) -> None:
    run, state = copied(saved, tmp_path), saved[2]
    (run / "checkpoints" / ".step-00000009.123.tmp").mkdir()
    (run / "snapshots").mkdir()
    (run / ".denoising.png.7.tmp").touch()
    left = [run / ".log.jsonl.123.tmp", run / ".ema.safetensors.4.tmp", run / "snapshots" / ".power-0.1-5.6.tmp"]
    for path in (*left, run / ".grid.png.123.tmp", run / ".mine"):
        path.touch()
    save_state(run, state)
    assert {path.name for path in run.rglob(".*")} == {".grid.png.123.tmp", ".mine"}  # another command's, the user's


@pytest.mark.parametrize("fails", ["rmtree", "rename", "unlink"])
def test_what_cannot_be_deleted_does_not_end_the_run(
    tmp_path: Path, saved: Saved, fails: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a network file system, where a reader has it open."""
    run, state = copied(saved, tmp_path), saved[2]
    (run / ".log.jsonl.123.tmp").touch()
    owner = {"rmtree": shutil, "rename": os, "unlink": Path}[fails]
    honest = getattr(owner, fails)

    def busy(path: Path, *rest: Any, **options: Any) -> Any:
        if "step-00000002" in str(path) or path.name == ".log.jsonl.123.tmp":
            raise OSError(errno.ENOTEMPTY, "Directory not empty", ".nfs0001")
        return honest(path, *rest, **options)

    monkeypatch.setattr(owner, fails, busy)
    save_state(run, dataclasses.replace(state, step=6), keep=1)
    assert load_state(run, network()).step == 6
    assert (".log.jsonl.123.tmp" if fails == "unlink" else "step-00000002") in caplog.text
    assert "cannot be deleted yet: [Errno" in caplog.text
    monkeypatch.undo()
    save_state(run, dataclasses.replace(state, step=8), keep=1)
    assert os.listdir(run / "checkpoints") == ["step-00000008"]


def test_what_cannot_be_kept_is_refused_before_anything_is_written(tmp_path: Path, saved: Saved) -> None:
    run, state = copied(saved, tmp_path), saved[2]
    before = sorted(path.relative_to(run) for path in run.rglob("*"))
    for wrong, message in (
        ({"extra": {"best": float("inf")}}, "extra holds what JSON cannot"),
        ({"extra": {"image": object()}}, "extra holds what JSON cannot"),
        ({"averages": {}}, "at least one average"),
        ({"averages": {"../ema": state.model}}, "cannot name an average"),
        ({"averages": {"optimizer": state.model}}, "cannot name an average"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            save_state(run, dataclasses.replace(state, step=9, **wrong))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1 checkpoint, got 0"):
        save_state(run, state, keep=0)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        save_state(tmp_path / "elsewhere", state)
    assert sorted(path.relative_to(run) for path in run.rglob("*")) == before


def test_a_mixed_up_run_is_noticed(tmp_path: Path, saved: Saved) -> None:
    run = copied(saved, tmp_path)
    config = tiny_config()
    save_config(run, dataclasses.replace(config, train=dataclasses.replace(config.train, steps=99, log_every=7)))
    assert load_state(run, network()).step == 4
    save_config(run, dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=8)))
    with pytest.raises(
        ValueError, match=r"config.json is not that of .*step-00000004 \(train.batch_size: 8 instead of 4"
    ):
        load_state(run, network())
    assert load_run(run).step == 4  # drawing samples does not depend on it
    save_config(run, dataclasses.replace(config, process=dataclasses.replace(config.process, matched=False)))
    with pytest.raises(ValueError, match=r"process.matched: False instead of True"):
        load_run(run)


def test_another_torch_is_noted(tmp_path: Path, saved: Saved, caplog: pytest.LogCaptureFixture) -> None:
    run = copied(saved, tmp_path)
    path = checkpoints(run)[0] / "manifest.json"
    values = json.loads(path.read_text())
    assert values["versions"].keys() == {"ssdcore", "torch", "python"}
    values["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(values))
    load_state(run, network())
    assert "was written with torch 1.0" in caplog.text
    assert "not as it would have bit for bit" in caplog.text


def test_what_may_change_when_training_goes_on() -> None:
    saved = tiny_config()
    assert resumable_changes(saved, saved) == Changes((), ())
    train = dataclasses.replace(saved.train, steps=20, keep=1, learning_rate=1.0, batch_size=8)
    data = dataclasses.replace(saved.data, workers=3, flip=True)
    changes = resumable_changes(saved, dataclasses.replace(saved, seed=7, train=train, data=data))
    assert [text.split(":")[0] for text in changes.allowed] == ["data.workers", "train.steps", "train.keep"]
    assert changes.allowed[1].startswith("train.steps: 20 instead of 8 (training continues to it")
    refused = [text.split(":")[0] for text in changes.refused]
    assert refused == ["seed", "data.flip", "train.batch_size", "train.learning_rate"]
    assert "seed: 7 instead of 0 (it decides order, times and noise)" in changes.refused


def test_every_setting_that_may_change_exists() -> None:
    config = json.loads(tiny_config().to_json())
    for name in RESUMABLE:
        section, _, setting = name.partition(".")
        assert setting in config[section], name


def test_broken_configurations_are_refused_by_name(tmp_path: Path) -> None:
    save_run(tmp_path / "run", state_after(1))
    path = tmp_path / "run" / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "colour": "red"}))
    with pytest.raises(ValueError, match=r"config.json: colour: unknown setting"):
        load_run(tmp_path / "run")
    path.write_text(path.read_text()[:40])
    with pytest.raises(ValueError, match=r"config.json: not JSON"):
        load_run(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"is not a run folder.*--out"):
        load_run(tmp_path / "nothing")


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fails(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fails)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
    write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"


def test_tensor_files_are_as_readable_as_any_other(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2, 3).T}, {"step": "4"})
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
    tensors, metadata = load_tensors(tmp_path / "a.safetensors")
    assert torch.equal(tensors["x"], torch.ones(3, 2))
    assert metadata == {"step": "4"}
