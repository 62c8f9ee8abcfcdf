"""Work done ahead by other processes: the same results, and nobody left when the one that asks stops or dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssdcore_torch.workers import WorkerKilledError, check_workers, in_workers

DEADLINE = 120.0  # seconds: of a wait for what takes milliseconds on an idle machine


def wait(until: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(process: int) -> bool:
    """Whether a process has ended; nobody may have waited for it yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def double(task: np.ndarray) -> tuple[int, np.ndarray]:
    return os.getpid(), 2 * task


TASKS = [np.full(k * 10_000, k) for k in range(30)]  # up to 2.3 MB: more than a pipe takes at once


@pytest.mark.multiprocess
@pytest.mark.parametrize("pin", [None, lambda found: (found[0], found[1] + 1)])
def test_results_come_in_the_order_of_the_tasks(pin: Any) -> None:
    found = list(in_workers(double, TASKS, 3, pin))
    assert len(found) == len(TASKS)
    for task, (_, result) in zip(TASKS, found):
        np.testing.assert_array_equal(result, 2 * task + (pin is not None))
    processes = {process for process, _ in found}
    assert len(processes) == 3
    assert os.getpid() not in processes
    assert all(map(gone, processes))
    assert [result.sum() for _, result in in_workers(double, TASKS[:3], 0)] == [0, 20_000, 80_000]


@pytest.mark.multiprocess
@pytest.mark.parametrize("pin", [None, lambda found: found])
def test_large_tasks_and_large_results_do_not_block_each_other(pin: Any) -> None:
    tasks = [np.zeros(500_000) for _ in range(12)]
    assert len(list(in_workers(double, tasks, 1, pin))) == 12


class OfTwoArguments(ValueError):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def fails(task: int) -> int:
    if task == 3:
        raise KeyError("three")
    if task == 5:
        raise OfTwoArguments("fi", "ve")
    return task


@pytest.mark.multiprocess
@pytest.mark.parametrize("pin", [None, lambda found: found])
def test_an_error_comes_as_it_was_with_its_traceback(pin: Any) -> None:
    results = in_workers(fails, range(10), 2, pin)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="three") as caught:
        next(results)
    assert any("in fails" in note for note in caught.value.__notes__)
    with pytest.raises(RuntimeError, match="OfTwoArguments: five"):  # which cannot travel
        list(in_workers(fails, [5], 1, pin))


def dies(task: int) -> int:
    if task == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


@pytest.mark.multiprocess
@pytest.mark.parametrize("pin", [None, lambda found: found])
def test_one_that_is_killed_is_told(pin: Any) -> None:
    with pytest.raises(WorkerKilledError, match=r"was killed \(exit status -9\), as happens where memory runs out"):
        list(in_workers(dies, range(8), 2, pin))


def slow(folder: str) -> None:
    Path(folder, str(os.getpid())).touch()
    time.sleep(1000)


@pytest.mark.multiprocess
@pytest.mark.parametrize("pin", [None, lambda found: found])
def test_a_stop_ends_those_at_work(pin: Any, tmp_path: Path) -> None:
    """In the main thread, wherever it is: while it waits for a result here."""

    def interrupt() -> None:
        wait(lambda: len(list(tmp_path.iterdir())) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        next(in_workers(slow, [str(tmp_path)] * 2, 2, pin))
    assert all(gone(int(file.name)) for file in tmp_path.iterdir())


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from ssdcore_torch.workers import in_workers

def work(task):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(1000 if "at work" in sys.argv[2] else 0.01)
    return bytes(300_000)

def never():
    while True:
        yield 0

for result in in_workers(work, never(), 2):
    if sys.argv[2] == "fails" and len(os.listdir(sys.argv[1])) == 2:
        raise ZeroDivisionError
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize("how", ["killed", "killed, they are at work", "fails", "signalled"])
def test_they_go_with_the_process_that_asks_and_say_nothing(how: str, tmp_path: Path) -> None:
    """Also where it still holds their results, as an exception that is printed at the end does."""
    arguments = [sys.executable, "-c", SCRIPT, str(tmp_path), how]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    wait(lambda: len(list(tmp_path.iterdir())) == 2)
    if "killed" in how:
        process.kill()
    elif how == "signalled":
        os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=DEADLINE)
    wait(lambda: all(gone(int(file.name)) for file in tmp_path.iterdir()))
    assert said.endswith({"fails": "ZeroDivisionError\n", "signalled": "KeyboardInterrupt\n"}.get(how, ""))
    assert said.count("Traceback") == ("killed" not in how)


@pytest.mark.multiprocess
def test_a_stop_while_they_are_started_comes_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from multiprocessing.process import BaseProcess

    honest, started = BaseProcess.start, list[BaseProcess]()

    def start(process: BaseProcess) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        honest(process)
        started.append(process)

    monkeypatch.setattr(BaseProcess, "start", start)
    with pytest.raises(KeyboardInterrupt):
        next(in_workers(double, TASKS, 2))
    assert len(started) == 2
    assert all(process.exitcode is not None for process in started)


def test_the_number_of_workers() -> None:
    assert check_workers(0) == 0
    assert check_workers(None) >= 1
    with pytest.raises(ValueError, match="workers: expected at least 0"):
        check_workers(-1)
