"""Ctrl-C and SIGTERM as requests to save and stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

IMPATIENT = 2.0  # seconds after the first request from which Ctrl-C is a person who does not want to wait


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that Ctrl-C and SIGTERM put their numbers into.

    A cluster signals every process and torchrun then signals its ranks again, so more of them change nothing while the
    state is being saved (torchrun kills what is still there after 30 seconds). Only Ctrl-C once more, a while after the
    first request, raises KeyboardInterrupt.
    """
    received: list[int] = []
    first = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if received and number == signal.SIGINT and now - first > IMPATIENT:
            raise KeyboardInterrupt
        first = first if received else now
        received.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
