"""Run folders: atomic files, refusals, and resuming bit for bit."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ssdcore_torch import FlexiUNet, FlexiUNetConfig, generate, load_run
from ssdcore_torch.checkpoint import (
    State,
    load_state,
    load_tensors,
    save_config,
    save_prior,
    save_state,
    save_tensors,
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


def equal_states(a: State, b: State) -> bool:
    return (a.step, a.images) == (b.step, b.images) and all(
        getattr(a, part).keys() == getattr(b, part).keys()
        and all(torch.equal(getattr(a, part)[name], getattr(b, part)[name]) for name in getattr(a, part))
        for part in State.PARTS
    )


def save_run(run: Path, made: Trainer) -> None:
    run.mkdir()
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
    save_state(tmp_path, first.state())
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
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "foreign":
        path.write_bytes(b"not a checkpoint" * 100)
    elif how == "other network":
        other = FlexiUNet(FlexiUNetConfig(((8, 8), (4, 4)), base_channels=64, channel_multipliers=(1, 1)))
        save_file(other.state_dict(), path)
    elif how == "missing":
        path.unlink()


@pytest.mark.parametrize("how", ["cut", "empty", "foreign", "other network", "missing"])
@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "trainer.safetensors", "prior.safetensors"])
def test_broken_files_are_refused_by_name(tmp_path: Path, name: str, how: str) -> None:
    if (name, how) == ("prior.safetensors", "missing"):
        pytest.skip("a run without a fitted prior has no such file")
    made = trainer()
    run = tmp_path / "run"
    save_run(run, made)
    break_file(run / name, how)
    read = (lambda: load_state(run, made.net.state_dict())) if name.startswith("trainer") else (lambda: load_run(run))
    with pytest.raises((ValueError, FileNotFoundError), match=name) as caught:
        read()
    assert "\n" not in str(caught.value)


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
    made = trainer()
    save_state(tmp_path, made.state())
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
