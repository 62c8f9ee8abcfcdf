"""Ctrl-C, SIGTERM and SIGHUP as requests to save and stop."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ssdcore_torch.streams import steady

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
IMPATIENT = 0.5  # seconds after the first request from which another is a person who does not want to wait
# A cluster signals every process, and torchrun then its ranks once more: there only Ctrl-C, a while later, is one.
IMPATIENT_UNDER_TORCHRUN = 2.0


class Stopped(BaseException):
    """Work inside `Stops.abandonable` was given up, as a request to stop came."""


class Stops:
    """Requests to stop: true once one has come.

    Args:
        answer: what to say to the first one, asked for in another thread within a second, whatever the main thread
            does; None: nothing is said
    """

    def __init__(self, answer: Callable[[], str] | None) -> None:
        self._answer = answer
        self._process, self._launched = os.getpid(), "TORCHELASTIC_RUN_ID" in os.environ
        self._first: float | None = None
        self._abandonable = 0

    def __bool__(self) -> bool:
        return self._first is not None

    @contextmanager
    def abandonable(self) -> Iterator[None]:
        """For work that may take long and loses nothing: a request raises `Stopped` in it, wherever it is."""
        self._abandonable += 1
        try:
            if self:
                raise Stopped
            yield
        finally:
            self._abandonable -= 1

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signal handler. Raises KeyboardInterrupt for a person who insists."""
        if os.getpid() != self._process:  # a process that decodes, just forked
            return
        now = time.monotonic()
        if self._first is not None:
            if self._insists(number, now - self._first):
                raise KeyboardInterrupt
            return
        self._first = now
        if self._abandonable:
            raise Stopped

    def _insists(self, number: int, waited: float) -> bool:
        if self._launched:
            return number == signal.SIGINT and waited > IMPATIENT_UNDER_TORCHRUN
        return number in (signal.SIGINT, signal.SIGTERM) and waited > IMPATIENT  # a terminal hangs up more than once

    def answer_to(self, requests: socket.socket) -> None:
        """Say the answer to the first request, of the signals' numbers that come; ends with the connection."""
        while number := requests.recv(1):
            if number[0] in SIGNALS:  # and not one that a worker has ended, say
                if self._answer is not None:
                    stream = steady(sys.stderr)
                    before = "\n" if stream.isatty() else ""  # the progress bar stands in this line
                    stream.write(f"{before}{self._answer()}\n")
                    stream.flush()
                return


@contextmanager
def stop_requests(answer: Callable[[], str] | None = None) -> Iterator[Stops]:
    """What becomes true at the first Ctrl-C, SIGTERM or SIGHUP, which is answered at once.

    The same signal again, a while later, raises KeyboardInterrupt; SIGHUP never does, and is left alone where the
    process was started to ignore it (nohup). Outside the main thread, which alone gets signals, it stays false.
    """
    stops = Stops(answer)
    if threading.current_thread() is not threading.main_thread():
        yield stops
        return
    sends, receives = socket.socketpair()
    sends.setblocking(False)
    # Python's own handler waits until the main thread comes back from torch; this descriptor is written to at once.
    speaker = threading.Thread(target=stops.answer_to, args=(receives,), daemon=True)
    speaker.start()
    ignored = {number for number in SIGNALS[2:] if signal.getsignal(number) == signal.SIG_IGN}
    before = signal.set_wakeup_fd(sends.fileno(), warn_on_full_buffer=False)
    previous = {number: signal.signal(number, stops.note) for number in SIGNALS if number not in ignored}
    try:
        yield stops
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)
        signal.set_wakeup_fd(before)
        sends.shutdown(socket.SHUT_RDWR)  # ends the thread, also while a process that decodes has a copy
        sends.close()
        speaker.join()
        receives.close()
