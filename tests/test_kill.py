"""A process that dies at any moment loses nothing: saves cut off at every call, whole runs killed and resumed."""

from __future__ import annotations

import dataclasses
import errno
import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpoint import equal_states, tiny_config

from ssdcore_torch import load_run
from ssdcore_torch.checkpoint import State, checkpoints, load_state, load_tensors, save_config, save_state
from ssdcore_torch.commands import cli


def state_after(step: int) -> State:
    """Of a network with one parameter, of 8 kB."""
    part = {name: {"weight": torch.full((2000,), step + 0.1 * i)} for i, name in enumerate(PARTS)}
    updates = {"weight": torch.tensor(float(step))}
    return State(step, 10, part["model"], {"ema": part["ema"]}, part["first"], part["second"], updates)


PARTS = ("model", "ema", "first", "second")
FILES = {"model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
OLD, NEW, LATER = (state_after(step) for step in (2, 4, 6))


SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kill.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """The names of benchmarks/kill.py."""
    return runpy.run_path(str(SCRIPT))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a checkpoint after 2 steps."""
    return make_run(tmp_path / "run")


def make_run(run: Path) -> Path:
    run.mkdir()
    save_config(run, tiny_config())
    save_state(run, OLD)
    return run


def in_a_child(work: Callable[[], object]) -> int:
    """The wait status of a forked process that does this."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize(
    "new",
    [
        pytest.param(NEW, id="next"),
        pytest.param(dataclasses.replace(NEW, step=OLD.step), id="same step", marks=pytest.mark.slow),
    ],
)
def test_a_save_killed_at_any_call_leaves_the_old_state_or_the_new(
    tmp_path: Path, script: dict[str, Any], new: State
) -> None:
    """Every call that changes the disk is the last one once, also where a checkpoint replaces one of its step."""
    outcomes: list[bool] = []
    status = -1
    while status != 0:
        call = len(outcomes) + 1
        run = make_run(tmp_path / str(call))
        status = in_a_child(lambda: (script["die"](call), save_state(run, new, keep=1)))  # noqa: B023
        assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
        found = load_state(run, OLD.model)
        outcomes.append(equal_states(found, new))
        assert outcomes[-1] or equal_states(found, OLD), call
        for name in ("model", "ema"):  # what others read is whole, too
            tensors, _ = load_tensors(run / f"{name}.safetensors")
            assert any(torch.equal(tensors["weight"], s.averages.get(name, s.model)["weight"]) for s in (OLD, new))
        for folder in checkpoints(run):  # none is there in part
            assert {path.name for path in folder.iterdir()} == FILES
        save_state(run, LATER, keep=1)
        assert equal_states(load_state(run, OLD.model), LATER)
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000006"]
        assert not list(run.glob(".*"))
    assert len(outcomes) > 20
    assert outcomes == sorted(outcomes)  # from some call on it is the new one
    assert not outcomes[0]


def test_everything_reaches_the_disk_before_it_gets_its_name(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a loss of power leaves: a file that was not synced before the rename could be empty after it."""
    events: list[tuple[str, str]] = []

    def synced(descriptor: int) -> None:
        events.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))

    def renamed(source: Path, target: Path) -> None:
        events.append(("rename", Path(target).name))
        original(source, target)

    original = os.rename
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    folder = save_state(run, NEW)
    renaming = events.index(("rename", folder.name))
    before = [name for kind, name in events[:renaming] if kind == "sync"]
    assert set(before[:-1]) >= {path.name for path in folder.iterdir()}
    assert before[-2] == "manifest.json"  # last of the files
    assert before[-1].startswith(f".{folder.name}.")
    assert events[renaming + 1] == ("sync", "checkpoints")


def contents(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_full_disk_leaves_everything_as_it_was(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(run)
    syncs = 0
    original = os.fsync

    def full(descriptor: int) -> None:
        nonlocal syncs
        syncs += 1
        if syncs == fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    for fails in range(1, 8):  # five files, the manifest among them, their folder, the folder of checkpoints
        syncs = 0
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left on device"):
                save_state(run, NEW)
        if fails < 7:
            assert contents(run) == before
        else:  # the new one has its name already
            assert equal_states(load_state(run, NEW.model), NEW)
        assert not list((run / "checkpoints").glob(".*"))


def test_a_write_that_the_system_refuses(run: Path) -> None:
    """No patch: a child that may write no file as large as the weights."""
    before = contents(run)
    message = run.with_name("message")

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            save_state(run, NEW)
        except OSError as error:
            message.write_text(str(error))

    assert in_a_child(work) == 0
    assert "model.safetensors cannot be written" in message.read_text()
    assert contents(run) == before


def test_a_folder_that_cannot_be_made(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("a file")
    before = contents(run)
    with pytest.raises(OSError, match="checkpoints"):
        save_state(run, NEW)
    assert contents(run) == before


# ---- whole runs


@pytest.mark.multiprocess
def test_runs_killed_at_random_moments_end_as_if_left_alone() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--kills", "5"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "after 5 kills: equal, bit for bit" in done.stdout


@pytest.mark.multiprocess
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_first(tmp_path: Path, script: dict[str, Any], number: signal.Signals) -> None:
    save_config(tmp_path, script["tiny"](2000))
    process = script["start"](tmp_path)
    while script["steps_logged"](tmp_path) < 13:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    out, _ = script["finish"](process, cli.INTERRUPTED)
    assert f"--out {tmp_path} --resume" in out
    stopped = script["steps_logged"](tmp_path)
    assert stopped >= 13
    assert load_run(tmp_path).step == stopped  # nothing that was done is lost


@pytest.mark.multiprocess
def test_a_disk_that_fills_up_ends_in_one_line(tmp_path: Path, script: dict[str, Any]) -> None:
    save_config(tmp_path, script["tiny"](10))
    script["finish"](script["start"](tmp_path))
    save_config(tmp_path, script["tiny"](30))
    before = contents(tmp_path / "checkpoints")
    process = script["start"](tmp_path, file_bytes=100_000)
    _, error = script["finish"](process, cli.BAD_INPUT)
    assert error.splitlines()[-1].startswith("error: ")
    assert "cannot be written" in error.splitlines()[-1]
    assert "Traceback" not in error
    assert contents(tmp_path / "checkpoints") == before
    script["finish"](script["start"](tmp_path))  # and with room again it continues
    assert load_run(tmp_path).step == 30
