"""Several processes: they train as one does, share samples, and stop together."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import DEADLINE, SERVER, free_port, ranks
from processes import run as processes_run

from ssdcore_torch import load_run
from ssdcore_torch.checkpoint import checkpoints

pytestmark = pytest.mark.multiprocess

TINY = ["--preset", "cpu", "--size", "8", "--levels", "2", "--batch-size", "8", "--device", "cpu"]
TINY += ["--set", "network.channel_multipliers=[1, 1]", "--set", "network.attention_sizes=[4]"]
TINY += ["--set", "network.base_channels=32"]
TINY += ["--set", "train.log_every=1", "--set", "train.save_every=5"]


def start(processes: int, module: str, *options: object) -> subprocess.Popen[str]:
    launch = [sys.executable, "-m"]
    if processes > 1:
        launch += ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m", "--"]
    command = [*launch, f"ssdcore_torch.{module}", *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=DEADLINE)
    return process.returncode, out, error


def run(folder: Path, processes: int, module: str, *options: object) -> str:
    """What rank 0 says; the others say nothing."""
    alone = processes == 1
    done = [processes_run(folder, module, *options)] if alone else ranks(folder, module, *[list(options)] * processes)
    for code, _, error in done:
        assert code == 0, error
    assert all(not said for _, said, _ in done[1:])
    return done[0][1]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    deadline = time.monotonic() + DEADLINE
    while not (folder / "log.jsonl").exists() or len(losses(folder)) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    run(out.parent / "said", 1, "train", *TINY, "--steps", 16, "--out", out)
    return out


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("together") / "run"
    said = run(out.parent / "said", 2, "train", *TINY, "--steps", 16, "--out", out, "--set", "train.accumulate=2")
    assert said.count("16 steps in") == 1  # rank 0 alone speaks
    return out


def test_two_processes_train_as_one(alone: Path, together: Path) -> None:
    """The same images, times and noise make a step, also in parts: only the order in which gradients are summed differs."""
    one, two = losses(alone), losses(together)
    assert len(one) == len(two) == 16
    np.testing.assert_allclose(one, two, rtol=2e-3)
    np.testing.assert_allclose(one[:5], two[:5], rtol=1e-5)
    ours, theirs = load_run(alone).net.state_dict(), load_run(together).net.state_dict()
    change = max((ours[name] - theirs[name]).abs().mean().item() for name in ours)
    assert change < 1e-4


def test_a_run_of_one_is_resumed_by_two(alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(tmp_path / "said", 1, "train", *TINY, "--steps", 16, "--out", out, "--set", "train.cosine_decay=false")
    run(tmp_path / "said", 2, "train", "--out", out, "--resume", "--steps", 20, "--device", "cpu")
    assert load_run(out).step == 20
    assert len(losses(out)) == 20


def test_samples_do_not_depend_on_the_number_of_processes(alone: Path, tmp_path: Path) -> None:
    drawn = []
    for processes in (1, 2):
        file = tmp_path / f"{processes}.npz"
        run(tmp_path / "said", processes, "sample", alone, "--n", 5, "--steps", 4, "--device", "cpu", "--out", file)
        drawn.append(np.load(file)["images"].astype(int))
    assert drawn[0].shape == (5, 8, 8, 3)
    assert np.abs(drawn[0] - drawn[1]).max() <= 1


def children(process: subprocess.Popen[str]) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    return sorted(map(int, found.split()))


def test_when_a_process_dies_the_others_stop_and_the_run_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(2, "train", *TINY, "--steps", 100_000, "--out", out)
    wait_for_step(process, out, 12)
    os.kill(children(process)[-1], signal.SIGKILL)
    code, _, error = finish(process)
    assert code != 0
    assert "Signal 9 (SIGKILL)" in error or "lost contact with another rank" in error
    newest = checkpoints(out)[0]
    saved = int(newest.name[-8:])
    assert saved >= 10
    run(tmp_path / "said", 1, "train", "--out", out, "--resume", "--steps", saved + 2, "--device", "cpu")
    assert load_run(out).step == saved + 2


@pytest.mark.parametrize("who", ["torchrun", "ranks, then torchrun", "rank 1"])
def test_a_request_to_stop_stops_all_at_one_step(who: str, tmp_path: Path) -> None:
    """Whoever is asked: a cluster signals every process, and torchrun, asked too, signals its ranks once more."""
    out = tmp_path / "run"
    process = start(2, "train", *TINY, "--steps", 100_000, "--out", out)
    wait_for_step(process, out, 7)
    if who != "torchrun":
        for rank in children(process) if who == "ranks, then torchrun" else children(process)[-1:]:
            os.kill(rank, signal.SIGTERM)
    if who != "rank 1":
        process.send_signal(signal.SIGTERM)
    code, said, _ = finish(process)
    assert code != 0
    stopped = int(re.search(r"stopped after step (\d+) and saved", said).group(1))  # type: ignore[union-attr]
    assert load_run(out).step == stopped
    assert len(losses(out)) == stopped


def test_bad_input_is_one_line_and_no_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    for code, _, error in ranks(tmp_path / "said", "train", *[[*TINY, "--batch-size", 7, "--out", out]] * 2):
        assert code == 2
        assert error.splitlines()[-1].startswith("error: train.batch_size")
        assert "7 images do not divide evenly over 2 processes" in error
    assert not out.exists()


def test_several_processes_need_a_folder_they_agree_on() -> None:
    code, _, error = finish(start(2, "train", *TINY))
    assert code != 0
    assert "several processes need --out RUN" in error


def _connect(rank: int, port: int, size: int):
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(size), RANK=str(rank), LOCAL_RANK=str(rank)
    )
    from ssdcore_torch.distributed import connect

    return connect


def _gather(rank: int, folder: str, port: int) -> None:
    connect = _connect(rank, port, 3)
    with connect("cpu") as world:
        rows = torch.arange(rank, dtype=torch.float32)[:, None] + 10 * rank
        everything = world.gather(rows)
        flags = [world.any(rank == 1), world.any(False)]
        mean = world.mean(torch.tensor([float(rank), 1.0]))
        torch.save({"rows": everything, "flags": flags, "mean": mean}, f"{folder}/{rank}.pt")


def test_worlds_gather_and_agree(tmp_path: Path) -> None:
    port = free_port()
    started = [SERVER.Process(target=_gather, args=(rank, str(tmp_path), port)) for rank in range(3)]
    for process in started:
        process.start()
    for process in started:
        process.join(DEADLINE)
        assert process.exitcode == 0
    for rank in range(3):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["rows"].tolist() == [[10.0], [20.0], [21.0]]
        assert found["flags"] == [True, False]
        assert found["mean"].tolist() == [1.0, 1.0]


def _meet(rank: int, port: int) -> None:
    connect = _connect(rank, port, 2)
    for meeting in range(30):
        with connect("cpu") as world:
            assert world.any(world.rank == meeting % 2)
            averaged = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(300, 300))
            averaged(torch.ones(2, 300)).sum().backward()
            assert world.gather(torch.ones(3000, 100)).shape == (6000, 100)
        del averaged  # after its group, as a trainer is


def test_processes_meet_again_and_again() -> None:
    """A run's objects connect anew for each thing they do: what the last meeting left, in the store or in a
    network's wrapper, holds nobody up."""
    port = free_port()
    started = [SERVER.Process(target=_meet, args=(rank, port)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(DEADLINE)
        process.kill()
    assert [process.exitcode for process in started] == [0, 0]
