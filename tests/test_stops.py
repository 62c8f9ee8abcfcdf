"""Requests to stop, from a person, a cluster or torchrun, lose nothing; nor does what fails between two steps."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import WORLD, tiny_config, tiny_data

import ssdcore as ssd
from ssdcore_torch import checkpoint
from ssdcore_torch.sampling import fit_moments
from ssdcore_torch.training import Extras, TensorBoard, Trainer, loop, pictures, signals, train
from ssdcore_torch.training.log import Log
from ssdcore_torch.training.signals import Stopped, stop_requests

LATE = 60.0  # seconds: what is promised within five is there by then on the busiest machine


def test_signals_during_a_save_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster signals every process, and torchrun once more; a terminal sends Ctrl-C to all of a group."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a job")
    monkeypatch.setattr(signals, "IMPATIENT_UNDER_TORCHRUN", LATE)
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    with stop_requests() as stops:
        assert not stops
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        assert stops
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before


@pytest.mark.parametrize("launched", [False, True])
def test_a_person_can_insist(monkeypatch: pytest.MonkeyPatch, launched: bool) -> None:
    """By any of Ctrl-C and SIGTERM, a while after the first; under torchrun, which repeats itself, by Ctrl-C alone."""
    monkeypatch.setattr(signals, "IMPATIENT", 0.05)
    monkeypatch.setattr(signals, "IMPATIENT_UNDER_TORCHRUN", 0.05)
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a job")
    with stop_requests() as stops:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGHUP)
        if launched:
            signal.raise_signal(signal.SIGTERM)
        else:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert stops


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_request_is_answered_while_the_main_thread_is_busy(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    """In C code that does not come back to Python for a while, as torch may not."""
    with stop_requests(lambda: "stopping soon") as stops:
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
        started = time.monotonic()
        busy = torch.rand(400, 400)
        while "stopping soon" not in capfd.readouterr().err:
            busy = busy @ busy.T / 400  # the handler runs in between, too; what it says does not depend on that
            assert time.monotonic() - started < LATE
    assert stops


def test_what_loses_nothing_is_given_up_and_a_step_is_not() -> None:
    with stop_requests() as stops:
        signal.raise_signal(signal.SIGINT)  # in a step
        with pytest.raises(Stopped), stops.abandonable():
            raise AssertionError("is not begun")
    with stop_requests() as stops, pytest.raises(Stopped), stops.abandonable():
        signal.raise_signal(signal.SIGHUP)


def test_a_process_that_ignores_hanging_up_goes_on_doing_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with stop_requests() as stops:
            signal.raise_signal(signal.SIGHUP)
            assert not stops
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_gets_no_signals_and_needs_none() -> None:
    found: list[object] = []

    def work() -> None:
        with stop_requests() as stops:
            found.append(bool(stops))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


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


def _begun(out: Path, **settings: object) -> Trainer:
    trainer = Trainer(tiny_config(8, **settings), tiny_data(), WORLD)
    out.mkdir()
    checkpoint.save_config(out, trainer.config)
    return trainer


def _interrupting(monkeypatch: pytest.MonkeyPatch, number: int, times: int) -> Callable[..., object]:
    """In the place of drawing: gets a signal and then takes its time."""
    monkeypatch.setattr(signals, "IMPATIENT", 0.0)

    def draw(*_: object) -> object:
        for _ in range(times):
            os.kill(os.getpid(), number)
            time.sleep(0.05)
        time.sleep(1000)
        raise AssertionError("was not given up")

    return draw


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_asked_to_stop_while_drawing_it_has_saved_and_says_so(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = _begun(tmp_path / "run", sample_every=3, save_every=100)
    monkeypatch.setattr(loop, "sample_grid", _interrupting(monkeypatch, number, 1))
    started = time.monotonic()
    assert not train(trainer, tmp_path / "run", Extras())
    assert time.monotonic() - started < LATE
    assert checkpoint.newest_sound(tmp_path / "run") == trainer.step == 3
    assert "stopping after step 3, which is saved" in capsys.readouterr().err


def test_asked_to_stop_while_evaluating_it_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    trainer = _begun(out, evaluate_every=8, evaluate_samples=4, save_every=100)
    started = time.monotonic()
    busy = Extras(_interrupting(monkeypatch, signal.SIGTERM, 1))  # type: ignore[arg-type]
    assert not train(trainer, out, busy)  # all steps are done, and something is left to do
    assert time.monotonic() - started < LATE
    assert checkpoint.newest_sound(out) == 8
    again = _trainer_like(trainer, out)
    assert train(again, out, Extras(lambda _: {"frechet": 1.0}))
    assert [row["step"] for row in _log(out) if "evaluation" in row] == [8]


def _trainer_like(trainer: Trainer, out: Path) -> Trainer:
    again = Trainer(trainer.config, tiny_data(), WORLD)
    again.restore(checkpoint.load_state(out, again.net.state_dict()))
    return again


def test_the_answer_counts_the_steps_that_a_second_request_loses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    trainer = _begun(out, save_every=3)
    honest = Trainer.train_step

    def step(self: Trainer, *arguments: object) -> torch.Tensor:
        if self.step == 5:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.3)
        return honest(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(signals, "IMPATIENT", 0.1)
    monkeypatch.setattr(Trainer, "train_step", step)
    with pytest.raises(KeyboardInterrupt):
        train(trainer, out, Extras())
    said = capsys.readouterr().err
    assert "stopping after this step and saving; again to quit without the last 2 steps" in said
    assert checkpoint.newest_sound(out) == 3


def test_waiting_for_images_is_given_up(tmp_path: Path) -> None:
    out = tmp_path / "run"
    trainer = _begun(out)
    honest = trainer.feed.batches

    def batches(step: int) -> object:
        for i, batch in enumerate(honest(step)):
            if i == 4:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1000)
            yield batch

    trainer.feed.batches = batches  # type: ignore[assignment, method-assign]
    started = time.monotonic()
    assert not train(trainer, out, Extras())
    assert time.monotonic() - started < LATE
    assert checkpoint.newest_sound(out) == 4


def _fails(*_: object, **__: object) -> object:
    raise OSError(errno.ENOSPC, "No space left on device")


class _Full:
    """A stream on a full disk."""

    encoding = "utf-8"
    write = flush = _fails

    def isatty(self) -> bool:
        return False


def test_what_only_informs_cannot_end_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A log, pictures, TensorBoard's files, progress and stderr that cannot be written."""
    monkeypatch.setattr(pictures, "SAMPLES", 4)
    monkeypatch.setattr(pictures, "SAMPLE_STEPS", 3)
    whole, out = tmp_path / "whole", tmp_path / "run"
    expected = _begun(whole, sample_every=3, log_every=1)
    assert train(expected, whole, Extras())
    trainer = _begun(out, sample_every=3, log_every=1)
    (out / "log.jsonl").mkdir()
    (out / "samples").write_text("a file where a folder is to be")
    monkeypatch.setattr("sys.stderr", _Full())
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", _fails)
    assert train(trainer, out, Extras(loggers=[TensorBoard()], profile=True))
    states = [checkpoint.load_state(run, trainer.net.state_dict()) for run in (whole, out)]
    assert all(torch.equal(states[0].model[key], value) for key, value in states[1].model.items())
    for what in ("log.jsonl cannot be written", "samples of step 3 cannot be drawn", "TensorBoard failed"):
        assert caplog.text.count(what) == 1


def test_figures_that_could_not_be_written_are_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a line of which the disk took a part is taken back."""
    log = Log(tmp_path / "log.jsonl", 0)
    log.write({"step": 1, "loss": 1.0})
    honest = os.write

    def partly(descriptor: int, content: bytes) -> int:
        if len(content) < 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return honest(descriptor, content[: len(content) - 10])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", partly)
        log.write({"step": 2, "loss": float("inf")})
        log.write({"step": 3, "loss": float("nan"), "paths": {"8": float("-inf")}})
    log.write({"step": 4, "loss": 4.0})
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert (rows[1]["loss"], rows[2]["paths"]) == (None, {"8": None})
    assert "Infinity" not in (tmp_path / "log.jsonl").read_text()


DAMAGED = {
    "no UTF-8": b'{"step": 3, "x": "\xff"}\n',
    "deep": b"[" * 100_000 + b"\n",
    "long": b'{"step": 3, "x": "' + b"y" * (3 << 20) + b'"}\n',
    "binary": bytes(range(11, 256)) + b"\n",
    "no step": b'{"loss": 1}\n',
    "a list": b"[1]\n",
    "huge step": b'{"step": ' + b"9" * 6000 + b"}\n",
    "a step of text": b'{"step": "3"}\n',
    "empty": b"\n",
}


@pytest.mark.parametrize("name", list(DAMAGED))
def test_damaged_lines_are_left_out_and_named(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1, "evaluation": {}}\n' + DAMAGED[name] + b'{"step": 5}\n{"step": 7}\n{"step": 9')
    log = Log(path, 5)
    log.write({"step": 6})
    assert [json.loads(line)["step"] for line in path.read_bytes().splitlines()] == [1, 5, 6]
    assert log.evaluated == 1
    assert "left out 2 damaged line(s): number 2, 5" in caplog.text


def test_a_log_that_is_no_file_is_not_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "log.jsonl")
    Log(tmp_path / "log.jsonl", 0).write({"step": 1})
    assert "log.jsonl is not a file" in caplog.text
    target = tmp_path / "mine.txt"
    target.write_text("mine")
    (tmp_path / "linked").symlink_to(target)
    Log(tmp_path / "linked", 0).write({"step": 1})
    assert target.read_text() == "mine"


def test_weights_that_are_not_finite_are_neither_saved_nor_read(tmp_path: Path) -> None:
    out = tmp_path / "run"
    trainer = _begun(out)
    checkpoint.save_state(out, trainer.state())
    name, weight = next(iter(trainer.net.named_parameters()))
    with torch.no_grad():
        weight.view(-1)[0] = float("nan")
    with pytest.raises(ValueError, match=rf"which is not saved, holds values that are not finite, in {name}"):
        checkpoint.save_state(out, trainer.state())
    assert checkpoint.newest_sound(out) == 0
    file = tmp_path / "nan.safetensors"
    checkpoint.save_tensors(file, trainer.net.state_dict())
    with pytest.raises(ValueError, match=rf"nan.safetensors holds values that are not finite, in {name}"):
        checkpoint.load_weights(trainer.net, file)


BAD_COUNTS: dict[str, dict[str, object]] = {
    "best is missing": {"best": ...},
    "skipped is missing": {"skipped": ...},
    "spike_means is missing": {"spike_means": ...},
    "spike_means is .1": {"spike_means": [1.0]},
    "spike_counts is": {"spike_counts": [-1.0, 0.0, 0.0]},
    "best is 3": {"best": 3},
    "best is {": {"best": {"step": -1, "frechet": 1.0}},
    "skipped is 1e999": {"skipped": "1e999"},
}


@pytest.mark.parametrize("says", list(BAD_COUNTS))
def test_counts_that_do_not_fit_are_refused_by_name(says: str) -> None:
    trainer = _trainer()
    state = trainer.state()
    for key, value in BAD_COUNTS[says].items():
        if value is ...:
            del state.extra[key]
        else:
            state.extra[key] = value
    with pytest.raises(ValueError, match=f"state.json does not fit this run of 3 paths: extra: {says}"):
        trainer.restore(state)
