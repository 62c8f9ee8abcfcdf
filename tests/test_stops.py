"""Requests to stop, from a person, a cluster or torchrun, lose nothing; nor does what fails between two steps."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import WORLD, tiny_config, tiny_data

import ssdcore as ssd
from ssdcore_torch import checkpoint
from ssdcore_torch.sampling import fit_moments
from ssdcore_torch.training import Extras, Trainer, signals, train
from ssdcore_torch.training.signals import stop_requests


def test_signals_during_a_save_change_nothing() -> None:
    """A cluster signals every process, and torchrun once more; a terminal sends Ctrl-C to all of a group."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_requests() as received:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        assert received
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_person_can_insist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "IMPATIENT", 0.05)
    with stop_requests() as received:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert received == [signal.SIGINT, signal.SIGTERM]


def _trainer() -> Trainer:
    return Trainer(tiny_config(8, evaluate_every=3, evaluate_samples=4, save_every=100), tiny_data(), WORLD)


def _log(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_an_evaluation_that_fails_loses_no_step_and_is_made_up_for(tmp_path: Path) -> None:
    """The state is saved before it, and the resumed run evaluates first: its log is that of an undisturbed run."""

    def figures(trainer: Trainer) -> dict[str, float]:
        return {"frechet": float(10 - trainer.step)}

    def failing(trainer: Trainer) -> dict[str, float]:
        if trainer.step == 6:
            raise torch.OutOfMemoryError("no memory to draw with")
        return figures(trainer)

    logs = []
    for name, evaluate in (("whole", figures), ("broken", failing)):
        out, trainer = tmp_path / name, _trainer()
        out.mkdir()
        checkpoint.save_config(out, trainer.config)
        if evaluate is failing:
            with pytest.raises(torch.OutOfMemoryError):
                train(trainer, out, Extras(evaluate))
            trainer = _trainer()
            trainer.restore(checkpoint.load_state(out, trainer.net.state_dict()))
            assert trainer.step == 6
        assert train(trainer, out, Extras(figures))
        logs.append([row for row in _log(out) if "evaluation" in row])
        assert trainer.best == {"step": 8, "frechet": 2.0}
    assert logs[0] == logs[1]
    assert [row["step"] for row in logs[0]] == [3, 6, 8]
    states = [checkpoint.load_state(tmp_path / name, _trainer().net.state_dict()) for name in ("whole", "broken")]
    assert all(torch.equal(states[0].model[key], value) for key, value in states[1].model.items())


def test_moments_of_batches_are_those_of_all_images() -> None:
    levels = ssd.ResolutionSchedule.equal(100, 2)
    process = ssd.LinearDiffusion.resize((8, 8), ssd.NoiseSchedule.linear(100), levels)
    images = torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole, parts = fit_moments(images, process), fit_moments(iter(images.split(7)), process)
    assert whole is not None
    assert parts is not None
    for a, b in zip(whole, parts):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
    large = ssd.LinearDiffusion.identity((64, 64), ssd.NoiseSchedule.linear(100))
    asked: list[int] = []

    def batches() -> object:
        for k in range(3):
            asked.append(k)
            yield torch.zeros(1, 3, 64, 64, dtype=torch.uint8)

    assert fit_moments(batches(), large) is None  # type: ignore[arg-type]
    assert asked == [0]
