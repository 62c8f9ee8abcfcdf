"""A run that was stopped and continues."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_checkpoint import equal_states, tiny_config

from ssdcore_torch.checkpoint import load_state, save_config, save_state
from ssdcore_torch.data import ImageSet
from ssdcore_torch.distributed import World
from ssdcore_torch.sampling import to_float
from ssdcore_torch.training import Trainer
from ssdcore_torch.training.log import Log

WORLD = World(0, 1, 0, torch.device("cpu"))


def tiny_data(count: int = 10) -> ImageSet:
    y, x = np.mgrid[:8, :8]
    shades = np.random.default_rng(0).integers(0, 256, (count, 1, 1, 3))
    return ImageSet(np.where((x + y < 8)[..., None], shades, 255 - shades).astype(np.uint8), None, (), "test")


def trainer() -> Trainer:
    return Trainer(tiny_config(), tiny_data(), WORLD)


def advance(made: Trainer, steps: int) -> list[float]:
    batches = made.feed.batches(made.step)
    return [made.train_step(next(batches)).item() for _ in range(steps)]


@pytest.mark.parametrize("stop", [1, 5])
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, stop: int) -> None:
    whole = trainer()
    losses = advance(whole, 8)
    first = trainer()
    head = advance(first, stop)
    save_config(tmp_path, first.config)
    save_state(tmp_path, first.state())
    torch.manual_seed(12345)  # a new process has another global generator
    second = trainer()
    second.restore(load_state(tmp_path, second.net.state_dict()))
    assert second.step == stop
    assert head + advance(second, 8 - stop) == losses
    assert equal_states(second.state(), whole.state())


def test_learning_rate_warms_up_and_decays() -> None:
    made = trainer()
    rates = [made.learning_rate(step) for step in range(9)]
    assert rates[0] == pytest.approx(0.5 * 3e-3)
    assert rates[1] == pytest.approx(3e-3 * 0.5 * (1 + np.cos(np.pi / 8)))
    assert rates[8] == pytest.approx(0)


def test_loss_falls_on_a_tiny_run() -> None:
    made = Trainer(tiny_config(steps=60), tiny_data(), WORLD)

    def held_out_loss() -> float:
        total, x0 = 0.0, to_float(torch.from_numpy(tiny_data().images).permute(0, 3, 1, 2))
        with torch.no_grad():
            for step in range(1000, 1024):
                batch = made.objective.draw(10, seed=1, step=step)
                noise = torch.randn(batch.noise_shape(3), generator=torch.Generator().manual_seed(step))
                total += made.objective(
                    made.net.eval(), x0, batch, noise, made.sizes.index(batch.path.target_shape)
                ).item()
        made.net.train()
        return total / 24

    before = held_out_loss()
    advance(made, 60)
    assert held_out_loss() < 0.5 * before


def test_a_state_of_other_data_is_refused(tmp_path: Path) -> None:
    made = trainer()
    save_config(tmp_path, made.config)
    save_state(tmp_path, made.state())
    other = Trainer(tiny_config(), tiny_data(11), WORLD)
    with pytest.raises(ValueError, match="10 images, and its data now has 11"):
        other.restore(load_state(tmp_path, other.net.state_dict()))


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
