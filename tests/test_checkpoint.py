"""Run folders: atomic files, refusals, and resuming bit for bit."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ssdcore_torch import FlexiUNet, FlexiUNetConfig, generate, load_run
from ssdcore_torch.checkpoint import (
    RESUMABLE,
    Changes,
    State,
    checkpoints,
    load_state,
    load_tensors,
    resumable_changes,
    save_config,
    save_prior,
    save_state,
    save_tensors,
    was_saved,
    write_atomically,
)
from ssdcore_torch.config import Config, preset
from ssdcore_torch.data import ImageSet
from ssdcore_torch.sampling import fit_moments
from ssdcore_torch.train import Log, Trainer


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


def tiny_data(count: int = 10) -> ImageSet:
    y, x = np.mgrid[:8, :8]
    shades = np.random.default_rng(0).integers(0, 256, (count, 1, 1, 3))
    return ImageSet(np.where((x + y < 8)[..., None], shades, 255 - shades).astype(np.uint8), None, (), "test")


def trainer() -> Trainer:
    return Trainer(tiny_config(), tiny_data(), torch.device("cpu"))


def advance(made: Trainer, steps: int) -> list[float]:
    batches = made.order.batches(made.step)
    return [made.train_step(next(batches)).item() for _ in range(steps)]


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


def save_run(run: Path, made: Trainer) -> None:
    run.mkdir(exist_ok=True)
    save_config(run, made.config)
    moments = fit_moments(made.images, made.process)
    assert moments is not None
    save_prior(run, moments)
    save_state(run, made.state())


@pytest.mark.parametrize("stop", [1, 5])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, stop: int) -> None:
    whole = trainer()
    losses = advance(whole, 8)
    first = trainer()
    head = advance(first, stop)
    save_run(tmp_path, first)
    torch.manual_seed(12345)  # a new process has another global generator
    second = trainer()
    second.restore(load_state(tmp_path, second.net.state_dict()))
    assert second.step == stop
    assert head + advance(second, 8 - stop) == losses
    assert equal_states(second.state(), whole.state())


def test_the_average_follows_the_weights() -> None:
    made = trainer()
    before = {n: p.clone() for n, p in made.ema.named_parameters()}
    advance(made, 1)
    # First step: decay (1 + 0)/(10 + 0).
    for name, p in made.net.named_parameters():
        torch.testing.assert_close(made.ema.get_parameter(name), 0.1 * before[name] + 0.9 * p.detach())


def test_learning_rate_warms_up_and_decays() -> None:
    made = trainer()
    rates = [made.learning_rate(step) for step in range(9)]
    assert rates[0] == pytest.approx(0.5 * 3e-3)
    assert rates[1] == pytest.approx(3e-3 * 0.5 * (1 + np.cos(np.pi / 8)))
    assert rates[8] == pytest.approx(0)


def test_loss_falls_on_a_tiny_run() -> None:
    made = Trainer(tiny_config(steps=60), tiny_data(), torch.device("cpu"))

    def held_out_loss() -> float:
        total = 0.0
        with torch.no_grad():
            for step in range(1000, 1024):
                batch = made.objective.draw(10, seed=1, step=step)
                x0 = made.images.float() / 127.5 - 1
                noise = torch.randn(10, 3, *batch.path.size, generator=torch.Generator().manual_seed(step))
                total += made.objective(made.net.eval(), x0, batch, noise, made.sizes.index(batch.path.out_size)).item()
        made.net.train()
        return total / 24

    before = held_out_loss()
    advance(made, 60)
    assert held_out_loss() < 0.5 * before


def test_load_run_gives_back_what_was_saved(tmp_path: Path) -> None:
    made = trainer()
    advance(made, 3)
    save_run(tmp_path / "run", made)
    run = load_run(tmp_path / "run")
    assert run.config == made.config
    assert run.step == 3
    assert run.process.shape(run.process.steps) == (4, 4)
    assert not run.net.training
    for net, expected in ((run.net, made.net), (run.ema, made.ema)):
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), expected.parameters()))
    assert any(not torch.equal(a, b) for a, b in zip(run.net.parameters(), run.ema.parameters()))
    assert run.prior is not None
    moments = fit_moments(made.images, made.process)
    assert moments is not None
    alpha, sigma = run.process.alpha(run.process.steps), run.process.sigma(run.process.steps)
    np.testing.assert_allclose(run.prior.mean, alpha * moments[0])
    np.testing.assert_allclose(
        run.prior.covariance.as_matrix(), alpha**2 * moments[1] + sigma**2 * np.eye(48), atol=1e-12
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


FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer, list[State]]:
    """A run with checkpoints after 2 and 4 steps: its folder, the trainer, the states."""
    run, made, states = tmp_path_factory.mktemp("runs") / "run", trainer(), []
    for _ in range(2):
        advance(made, 2)
        save_run(run, made)
        states.append(copy.deepcopy(made.state()))
    return run, made, states


def copied(saved: tuple[Path, Trainer, list[State]], to: Path) -> Path:
    shutil.copytree(saved[0], to / "run")
    return to / "run"


@pytest.mark.parametrize("how", ["cut", "empty", "foreign", "one bit", "missing"])
@pytest.mark.parametrize("name", FILES)
def test_of_a_damaged_checkpoint_the_one_before_is_used(
    tmp_path: Path, saved: tuple[Path, Trainer, list[State]], caplog: pytest.LogCaptureFixture, name: str, how: str
) -> None:
    if (name, how) == ("manifest.json", "one bit"):
        pytest.skip("the manifest is believed; a changed one no longer fits its files")
    run = copied(saved, tmp_path)
    network = saved[1].net.state_dict()
    assert equal_states(load_state(run, network), saved[2][1])
    assert caplog.text == ""
    break_file(run / "checkpoints" / "step-00000004" / name, how)
    assert equal_states(load_state(run, network), saved[2][0])
    assert "step-00000004 is refused" in caplog.text
    assert name in caplog.text
    assert "step-00000002 is used instead" in caplog.text
    if name != "optimizer.safetensors" or how != "one bit":  # of which drawing samples reads the size only
        assert load_run(run).step == 2

    break_file(run / "checkpoints" / "step-00000002" / name, how)
    with pytest.raises(ValueError, match=rf"no sound checkpoint \(step-00000004: .*{name}.*; step-00000002: .*{name}"):
        load_state(run, network)
    assert (run / "model.safetensors").exists()


def test_a_damaged_checkpoint_goes_when_its_step_was_passed_otherwise(
    tmp_path: Path, saved: tuple[Path, Trainer, list[State]]
) -> None:
    run = copied(saved, tmp_path)
    break_file(run / "checkpoints" / "step-00000004" / "model.safetensors", "cut")
    state = load_state(run, saved[1].net.state_dict())
    save_state(run, dataclasses.replace(state, step=3))
    assert [folder.name for folder in checkpoints(run)] == ["step-00000003", "step-00000002"]


def test_swapped_files_are_refused(tmp_path: Path, saved: tuple[Path, Trainer, list[State]]) -> None:
    run = copied(saved, tmp_path)
    newest, before = checkpoints(run)
    for name in ("model.safetensors", "state.json", "manifest.json"):
        shutil.copy(before / name, newest / name)
        assert load_run(run).step == 2, name
    shutil.rmtree(newest)
    before.rename(newest)
    with pytest.raises(ValueError, match=r"step-00000004: .*manifest.json is of step 2, its folder's name says 4"):
        load_run(run)


@pytest.mark.parametrize("how", ["cut", "empty", "foreign", "other network", "missing"])
@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "prior.safetensors"])
def test_broken_files_beside_no_checkpoint_are_refused_by_name(
    tmp_path: Path, saved: tuple[Path, Trainer, list[State]], name: str, how: str
) -> None:
    if (name, how) == ("prior.safetensors", "missing"):
        pytest.skip("a run without a fitted prior has no such file")
    run = copied(saved, tmp_path)
    shutil.rmtree(run / "checkpoints")
    assert load_run(run).step == 4
    break_file(run / name, how)
    with pytest.raises((ValueError, FileNotFoundError), match=name) as caught:
        load_run(run)
    assert "\n" not in str(caught.value)


def test_weights_alone_are_no_run_to_go_on_with(tmp_path: Path, saved: tuple[Path, Trainer, list[State]]) -> None:
    run = copied(saved, tmp_path)
    shutil.rmtree(run / "checkpoints")
    assert was_saved(run)
    with pytest.raises(ValueError, match=r"weights without an optimizer's state.*--out"):
        load_state(run, saved[1].net.state_dict())
    (run / "model.safetensors").unlink()
    assert not was_saved(run)
    with pytest.raises(FileNotFoundError, match="has no checkpoint"):
        load_state(run, saved[1].net.state_dict())


def test_the_top_of_the_run_shows_the_newest_checkpoint(saved: tuple[Path, Trainer, list[State]]) -> None:
    run, _, states = saved
    for name, expected in (("model", states[1].model), ("ema", states[1].averages["ema"])):
        tensors, metadata = load_tensors(run / f"{name}.safetensors")
        assert metadata["step"] == "4"
        assert all(torch.equal(tensors[key], expected[key]) for key in expected)
        assert (run / f"{name}.safetensors").samefile(run / "checkpoints" / "step-00000004" / f"{name}.safetensors")


def test_where_there_are_no_hard_links_they_are_copies(
    tmp_path: Path, saved: tuple[Path, Trainer, list[State]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError("Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    run = copied(saved, tmp_path)
    folder = save_state(run, dataclasses.replace(saved[2][0], step=5))
    assert (run / "ema.safetensors").read_bytes() == (folder / "ema.safetensors").read_bytes()
    assert not (run / "ema.safetensors").samefile(folder / "ema.safetensors")
    assert not list(run.glob(".*"))


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path: Path, saved: tuple[Path, Trainer, list[State]]) -> None:
    run, state = copied(saved, tmp_path), saved[2][1]
    for step in range(5, 9):
        save_state(run, dataclasses.replace(state, step=step, extra={"best": {"step": 4, "frechet": 0.1}}), keep=2)
    assert [folder.name for folder in checkpoints(run)] == ["step-00000008", "step-00000007", "step-00000004"]
    assert load_state(run, state.model).extra == {"best": {"step": 4, "frechet": 0.1}}
    save_state(run, dataclasses.replace(state, step=8), keep=1)  # a second one of the same step
    assert [folder.name for folder in checkpoints(run)] == ["step-00000008"]
    assert sorted(os.listdir(run / "checkpoints")) == ["step-00000008"]
    assert load_state(run, state.model).extra == {}


def test_what_cannot_be_kept_is_refused_before_anything_is_written(
    tmp_path: Path, saved: tuple[Path, Trainer, list[State]]
) -> None:
    run, state = copied(saved, tmp_path), saved[2][1]
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


def test_a_mixed_up_run_is_noticed(tmp_path: Path, saved: tuple[Path, Trainer, list[State]]) -> None:
    run, network = copied(saved, tmp_path), saved[1].net.state_dict()
    config = saved[1].config
    save_config(run, dataclasses.replace(config, train=dataclasses.replace(config.train, steps=99, log_every=7)))
    assert load_state(run, network).step == 4
    save_config(run, dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=8)))
    with pytest.raises(
        ValueError, match=r"config.json is not that of .*step-00000004 \(train.batch_size: 8 instead of 4"
    ):
        load_state(run, network)
    assert load_run(run).step == 4  # drawing samples does not depend on it
    save_config(run, dataclasses.replace(config, process=dataclasses.replace(config.process, matched=True)))
    with pytest.raises(ValueError, match=r"process.matched: True instead of False"):
        load_run(run)


def test_another_torch_is_noted(
    tmp_path: Path, saved: tuple[Path, Trainer, list[State]], caplog: pytest.LogCaptureFixture
) -> None:
    run = copied(saved, tmp_path)
    path = checkpoints(run)[0] / "manifest.json"
    values = json.loads(path.read_text())
    assert values["versions"].keys() == {"ssdcore", "torch", "python"}
    values["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(values))
    load_state(run, saved[1].net.state_dict())
    assert "was written with torch 1.0" in caplog.text
    assert "not as it would have bit for bit" in caplog.text


def test_what_may_change_when_training_goes_on() -> None:
    saved = tiny_config()
    assert resumable_changes(saved, saved) == Changes((), ())
    train = dataclasses.replace(saved.train, steps=20, keep=1, learning_rate=1.0, batch_size=8)
    data = dataclasses.replace(saved.data, workers=3, flip=True)
    changes = resumable_changes(saved, dataclasses.replace(saved, seed=7, train=train, data=data))
    assert [text.split(":")[0] for text in changes.allowed] == ["data.workers", "train.steps", "train.keep"]
    assert changes.allowed[1].startswith("train.steps: 20 instead of 8 (training goes on to it")
    refused = [text.split(":")[0] for text in changes.refused]
    assert refused == ["seed", "data.flip", "train.batch_size", "train.learning_rate"]
    assert "seed: 7 instead of 0 (it decides order, times and noise)" in changes.refused


def test_every_setting_that_may_change_exists() -> None:
    config = json.loads(tiny_config().to_json())
    for name in RESUMABLE:
        section, _, setting = name.partition(".")
        assert setting in config[section], name


def test_broken_configurations_are_refused_by_name(tmp_path: Path) -> None:
    save_run(tmp_path / "run", trainer())
    path = tmp_path / "run" / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "colour": "red"}))
    with pytest.raises(ValueError, match=r"config.json: colour: unknown setting"):
        load_run(tmp_path / "run")
    path.write_text(path.read_text()[:40])
    with pytest.raises(ValueError, match=r"config.json: not JSON"):
        load_run(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"is no run folder.*--out"):
        load_run(tmp_path / "nothing")


def test_a_state_of_other_data_is_refused(tmp_path: Path) -> None:
    save_run(tmp_path, trainer())
    other = Trainer(tiny_config(), tiny_data(11), torch.device("cpu"))
    with pytest.raises(ValueError, match="10 images, and its data now has 11"):
        other.restore(load_state(tmp_path, other.net.state_dict()))


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


def test_log_drops_what_the_checkpoint_does_not_hold(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = Log(path, 0)
    for step in (10, 20, 30):
        log.write({"step": step, "loss": 1.0})
    with open(path, "a") as file:
        file.write('{"step": 40, "lo')
    Log(path, 20).write({"step": 30, "loss": 2.0})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 10, "loss": 1.0},
        {"step": 20, "loss": 1.0},
        {"step": 30, "loss": 2.0},
    ]
