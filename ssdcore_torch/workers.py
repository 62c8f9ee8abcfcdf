"""Work done ahead by other processes: results in the order of the tasks, and nothing left running, or said, at a stop.

Written for this rather than taken from torch's DataLoader, whose processes send tensors by a thread that serves open
files: stopped in the middle of a transfer, that thread ends with a traceback. Here results travel as plain bytes, and
processes are ended by the one that started them, or by themselves as soon as it is gone.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import multiprocessing
import os
import pickle
import queue
import signal
import socket
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

MOST_WORKERS = 8
AHEAD = 4  # tasks that each process has been given and not answered
LEAVING = 0.5  # seconds that processes have to end by themselves
_STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class WorkerKilledError(ChildProcessError):
    """A process that works ahead was killed, most likely as memory ran out."""


def in_workers(
    work: Callable[[Any], T], tasks: Iterable[Any], workers: int, pin: Callable[[T], T] | None = None
) -> Iterator[T]:
    """`work(task)` for each task, in their order, prepared ahead by `workers` processes (0: in this one).

    Processes ignore requests to stop, which reach all of a group: this one decides. They end when the iterator is
    closed or an exception leaves it, and when this process is gone, however it ended.

    Args:
        work: what is done; it travels to the processes
        pin: what is done to each result in a thread of this process, as moving it to memory that a GPU can read;
            None: nothing

    Raises:
        WorkerKilledError: If one of the processes dies.
        Exception: Of the kinds that `work` raises, with the process's traceback as a note.
    """
    if not workers:
        yield from map(work, tasks)
        return
    crew = _Crew(work, workers)
    results = crew.results(tasks)
    try:
        yield from results if pin is None else _in_a_thread(results, pin, crew)
    finally:
        crew.end()


def default_workers() -> int:
    """One for each core that this rank may use but one, at most `MOST_WORKERS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # torchrun's
    return min(MOST_WORKERS, max(1, cores // ranks - 1))


def check_workers(workers: int | None) -> int:
    """The number of workers asked for, None for the default. Raises ValueError for a negative one."""
    if workers is None:
        return default_workers()
    if workers < 0:
        raise ValueError(f"workers: expected at least 0 (0 decodes in this process), got {workers}")
    return workers


# ---- the process that asks


_crews: weakref.WeakSet[_Crew] = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    """A forked process with a copy of a connection's end would keep others from seeing that the one that asks is
    gone."""
    for crew in _crews:
        for _, end in crew.members:
            end.close()
        crew.members = []


def _end_all() -> None:
    """Else the end of this process would wait for others that wait for a task."""
    for crew in list(_crews):
        crew.end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)
atexit.register(_end_all)


class _Crew:
    """Processes that answer, each at its own connection."""

    def __init__(self, work: Callable[[Any], Any], count: int) -> None:
        self.members: list[tuple[BaseProcess, Connection]] = []
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None
        _crews.add(self)
        try:
            with _undisturbed():
                for _ in range(count):
                    ours, theirs = multiprocessing.Pipe()
                    process = multiprocessing.Process(target=_serve, args=(work, theirs), daemon=True)
                    self.members.append((process, ours))
                    process.start()
                    theirs.close()
        except BaseException:
            self.end()
            raise

    def results(self, tasks: Iterable[Any]) -> Iterator[Any]:
        left = iter(tasks)
        turns = itertools.cycle(range(len(self.members)))
        asked: deque[int] = deque()
        for task in itertools.islice(left, AHEAD * len(self.members)):
            asked.append(next(turns))
            self._ask(asked[-1], task)
        while asked:
            member = asked.popleft()
            sound, found = self._answer(member)
            if not sound:
                raise found
            for task in itertools.islice(left, 1):
                asked.append(next(turns))  # the member that has just answered
                self._ask(asked[-1], task)
            yield found

    def _ask(self, member: int, task: Any) -> None:
        try:
            self.members[member][1].send(task)
        except OSError as error:
            raise self._killed(member) from error

    def _answer(self, member: int) -> tuple[bool, Any]:
        try:
            answer: tuple[bool, Any] = self.members[member][1].recv()
        except (EOFError, OSError) as error:
            raise self._killed(member) from error
        return answer

    def _killed(self, member: int) -> WorkerKilledError:
        process = self.members[member][0]
        process.join(LEAVING)
        how = "" if process.exitcode is None else f" (exit status {process.exitcode})"
        return WorkerKilledError(
            f"a process that decodes pictures was killed{how}, as happens where memory runs out: take fewer with "
            "--set data.workers=1 (prepare: --workers 1), or smaller batches"
        )

    def end(self) -> None:
        """End all processes, also those at work: they hold nothing that would be missed."""
        with _undisturbed():
            self.ended.set()
            for _, end in self.members:
                _hang_up(end)
            for process, _ in self.members:
                if process.pid is not None:
                    process.join(LEAVING if process is self.members[0][0] else 0)
                    process.kill()
                    process.join()
            if self.thread is not None:
                self.thread.join()
            for _, end in self.members:
                end.close()
            self.members = []


def _hang_up(end: Connection) -> None:
    """Both sides find nothing more to read. Closing alone would let another file take the number of one that a thread
    is still reading."""
    if os.name == "posix":  # elsewhere it is not a socket, and the processes are killed
        with socket.socket(fileno=os.dup(end.fileno())) as opened, contextlib.suppress(OSError):
            opened.shutdown(socket.SHUT_RDWR)


def _in_a_thread(results: Iterator[T], change: Callable[[T], T], crew: _Crew) -> Iterator[T]:
    """`change(result)` for each, ahead of who takes them."""
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(AHEAD)

    def put(item: tuple[bool, Any]) -> None:
        while not crew.ended.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=LEAVING)
                return

    def run() -> None:
        try:
            for result in results:
                put((True, change(result)))
            put((False, StopIteration()))
        except BaseException as error:  # for whoever takes the results
            put((False, error))

    crew.thread = threading.Thread(target=run, daemon=True)
    crew.thread.start()
    while True:
        sound, found = ready.get()
        if sound:
            yield found
        elif isinstance(found, StopIteration):
            return
        else:
            raise found


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Requests to stop act after this, not in it: an exception in the midst of starting or ending processes would leave
    some of them. Processes started in it have the signals blocked, until they ignore them."""
    came: list[int] = []

    def later(number: int, frame: FrameType | None) -> None:
        came.append(number)

    previous: dict[int, Callable[[int, FrameType | None], Any]] = {}
    if threading.current_thread() is threading.main_thread():
        for number in _STOPS:
            if callable(handler := signal.getsignal(number)):
                previous[number] = handler
                signal.signal(number, later)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        if blocked is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in previous.items():
            signal.signal(number, handler)
        for number in came:
            previous[number](number, None)


# ---- the processes


def _serve(work: Callable[[Any], Any], connection: Connection) -> None:
    """Answer tasks until the other end is closed, as it is when the process that asks is gone."""
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, tasks), daemon=True).start()
    while True:
        task = tasks.get()
        try:
            answer = pickle.dumps((True, work(task)), pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            answer = _failure(error)
        try:
            connection.send_bytes(answer)
        except OSError:  # nobody reads any more
            _leave()


def _listen(connection: Connection, tasks: queue.SimpleQueue[Any]) -> None:
    """In a thread: two processes that both write, and do not read, would wait for each other for ever; and one at work
    is to leave, too, when the one that asks is gone."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            tasks.put(connection.recv())
    _leave()


def _leave() -> None:
    """At once, and without what a process does at its end, which is the parent's."""
    os._exit(0)


def _failure(error: Exception) -> bytes:
    error.add_note(traceback.format_exc())
    try:
        answer = pickle.dumps((False, error))
        pickle.loads(answer)  # some exceptions take other arguments than they keep
    except Exception:
        answer = pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
    return answer
