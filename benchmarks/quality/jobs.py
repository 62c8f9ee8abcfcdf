"""Processes side by side: what study.py and front.py run their runs with."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

Job = tuple[str, int]
"""An arm and a seed."""


def side_by_side(
    jobs: Sequence[Job], start: Callable[[Job], subprocess.Popen[bytes]], at_once: int, until: float
) -> Iterator[tuple[Job, int]]:
    """(job, exit status) of each as it ends; none is started after the time `until`, those that run are waited for."""
    waiting = list(jobs)
    running: dict[subprocess.Popen[bytes], Job] = {}
    while running or (waiting and time.time() < until):
        while waiting and len(running) < at_once and time.time() < until:
            job = waiting.pop(0)
            running[start(job)] = job
        time.sleep(0.1)
        for process in [process for process in running if process.poll() is not None]:
            yield running.pop(process), process.returncode
