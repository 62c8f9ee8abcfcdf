"""A batch in parts, one a thread: how training and sampling use the cores of a CPU.

By itself torch splits every operator over OpenMP's threads, which then wait for each other hundreds of times in a pass
through a network, in loops that keep a core busy; where another program takes one of the cores, all of them wait for
it. Threads that each take a part of the batch through the whole network wait once.
"""

from __future__ import annotations

import atexit
import itertools
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

import torch
from torch import nn

from ssdcore_torch.devices import available_cores

Result = TypeVar("Result")

# Parameters × pixels × images that a second thread is worth: with fewer, Python, of which only one thread runs at a
# time, takes as long as is saved. Each thread adds its own part of Python, so k threads are worth k² times as much.
LEAST_WORK = 1.5e8


@dataclass(frozen=True)
class Threads:
    """What a batch is split over, made by `threads_for`; count = 1: nothing is split, torch works as it does by itself.

    Attributes:
        count: threads, torch's own number in the thread that called
        parameters: of the network
    """

    count: int = 1
    parameters: int = 0

    def map(self, work: Callable[[slice], Result], batch: slice, pixels: int) -> list[Result]:
        """work(part) of the parts of a batch, in their order; a function of the batch and of `count` alone.

        What a part raises is raised here, of the first part that does, once none is at work any more.

        Args:
            batch: places of the images, start and stop
            pixels: of an image, for what a part costs
        """
        if self.count == 1:
            return [work(batch)]
        images = batch.stop - batch.start
        worth = max(1, min(self.count, math.isqrt(int(self.parameters * pixels * images / LEAST_WORK))))
        parts = _split(batch, min(worth, images))
        inner = worth // len(parts)  # threads of each operator: several where there are fewer images than threads
        if len(parts) == 1:
            torch.set_num_threads(inner)
            try:
                return [work(batch)]
            finally:
                torch.set_num_threads(1)
        modes = _Modes.here()

        def run(part: slice) -> Result:
            torch.set_num_threads(inner)
            with modes.entered():
                return work(part)

        return _crew.map(run, parts, self.count)


@contextmanager
def threads_for(net: Any) -> Iterator[Threads]:
    """The threads to split batches over for `net`, as it is now; they are torch's number of threads in this thread.

    While they are several torch's operators take one thread each here, too. One, where `net` cannot be split:

    - it is not on the CPU, or is not a module with parameters
    - it does not say that it is `batch_independent` (see `Denoiser`)
    - its layers draw random numbers or look at the whole batch: dropout and batch norm while it is trained
    - it has hooks or a method `forward` of its own object, or is compiled, or a mode of torch is active in this
      thread, such as one that counts operations
    """
    count = min(_torch_threads_outside(), available_cores())
    if count == 1 or not splits(net):
        yield Threads()
        return
    with _torch_threads(1):
        yield Threads(count, sum(parameter.numel() for parameter in net.parameters()))


def splits(net: Any) -> bool:
    """Whether threads may take parts of a batch through `net`, as it is now."""
    if not isinstance(net, nn.Module) or not getattr(net, "batch_independent", False):
        return False
    first = next(net.parameters(), None)
    if first is None or first.device.type != "cpu" or getattr(net, "compiled", False):
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return False
    return not any(_whole_batch(module) for module in net.modules()) and not any(
        parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None)
        for parameter in net.parameters()
    )


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_ALWAYS_RANDOM = (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


def _whole_batch(module: nn.Module) -> bool:
    """Whether this layer, without those in it, must see a batch as a whole, and in one thread."""
    if "forward" in vars(module):  # replaced for this object alone, by who wants to see or change what goes through
        return True
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return True
    if isinstance(module, (*_BATCH_NORMS, *_INSTANCE_NORMS)):
        if module.training and module.track_running_stats:
            return True
        return isinstance(module, _BATCH_NORMS) and module.running_mean is None
    if isinstance(module, _DROPOUT):
        return module.training and module.p > 0
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return module.training and module.dropout > 0
    if isinstance(module, nn.RReLU):
        return module.training
    # spectral norms iterate while they are trained
    return isinstance(module, _ALWAYS_RANDOM) or nn.utils.parametrize.is_parametrized(module)


def _split(batch: slice, count: int) -> list[slice]:
    images = batch.stop - batch.start
    bounds = [batch.start + i * images // count for i in range(count + 1)]
    return [slice(*pair) for pair in itertools.pairwise(bounds)]


@dataclass(frozen=True)
class _Modes:
    """What torch keeps for each thread by itself."""

    gradients: bool
    inference: bool
    autocast: bool
    dtype: torch.dtype

    @classmethod
    def here(cls) -> _Modes:
        return cls(
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
        )

    @contextmanager
    def entered(self) -> Iterator[None]:
        # Autocast keeps the weights it has cast for all threads together, with the graph of the one that cast them.
        with (
            torch.inference_mode(self.inference),
            torch.set_grad_enabled(self.gradients),
            torch.autocast("cpu", self.dtype, enabled=self.autocast, cache_enabled=False),
        ):
            yield


_open = 0
_outside = 1
_counting = threading.Lock()


def _torch_threads_outside() -> int:
    """Torch's number of threads; while some thread splits batches, what it was before, not the one that it sets."""
    with _counting:
        return _outside if _open else torch.get_num_threads()


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Torch's operators take `count` threads in this thread; afterwards as many as before."""
    global _open, _outside
    with _counting:
        if not _open:
            _outside = torch.get_num_threads()
        _open += 1
        torch.set_num_threads(count)  # of this thread and of those that use torch for the first time
    try:
        yield
    finally:
        with _counting:
            _open -= 1
            torch.set_num_threads(_outside)


class _Crew:
    """Threads that do what is asked of them, for all who ask; they are started when needed, and kept.

    `concurrent.futures` has the same, but a signal that arrives while it starts a thread leaves a part at work that
    nobody waits for, and a thread that keeps the process from ending.
    """

    def __init__(self) -> None:
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._starting = threading.Lock()

    def map(self, work: Callable[[slice], Result], parts: Sequence[slice], count: int) -> list[Result]:
        """work(part) of each part, in order, by `count` threads or more. However it ends, no part is at work then;
        but for a second signal, which ends the waiting, too."""
        self._start(count)
        results: list[Future[Result]] = [Future() for _ in parts]
        try:
            for result, part in zip(results, parts):
                self._tasks.put((result, work, part))
            return [result.result() for result in results]
        finally:
            wait([result for result in results if not result.cancel()])

    def _start(self, count: int) -> None:
        with self._starting:
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            while len(self._threads) < count:
                thread = threading.Thread(target=_serve, args=(self._tasks,), name="ssdcore-part", daemon=True)
                thread.start()
                self._threads.append(thread)

    def end(self) -> None:
        """Let the threads finish what they do: torch must not be at work when the interpreter ends."""
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join(LONGEST_END)


LONGEST_END = 5.0  # seconds
_Task = tuple["Future[Any]", Callable[[slice], Any], slice]


def _serve(tasks: SimpleQueue[_Task | None]) -> None:
    while (task := tasks.get()) is not None:
        result, work, part = task
        if result.set_running_or_notify_cancel():
            try:
                result.set_result(work(part))
            except BaseException as error:  # raised where the results are waited for
                result.set_exception(error)
        del task, result, work  # what they hold must not stay until the next task


def _new_crew() -> None:
    global _crew
    _crew = _Crew()


_crew = _Crew()
atexit.register(lambda: _crew.end())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_crew)  # a forked process has none of its parent's threads
