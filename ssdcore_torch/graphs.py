"""CUDA graphs: the kernels of a function captured once and replayed as a whole, so that the host launches one thing.

A replay reads and writes the memory that the capture saw: inputs are copied to where they were, and what a function
takes from Python (a number, a step) stays as it was at the capture.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

PLAIN = 1  # runs before the capture, in which libraries choose their kernels and make their workspaces


class Pool:
    """Memory that graphs share. They must be replayed one after the other, and their results copied in between."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._stream: torch.cuda.Stream | None = None

    def capture(self, run: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """(graph, what `run` returned): its kernels, which have not run yet."""
        if self._handle is None:
            self._handle = torch.cuda.graph_pool_handle()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream), _no_collection():
            # Other threads, which load images, may continue with what no capture may hold.
            graph.capture_begin(pool=self._handle, capture_error_mode="thread_local")
            try:
                result = run()
            finally:
                graph.capture_end()
        return graph, result

    def replay(self, graph: torch.cuda.CUDAGraph) -> None:
        """On the current stream, after the replay before this one."""
        stream = torch.cuda.current_stream()
        if self._stream is not None and self._stream != stream:
            stream.wait_stream(self._stream)
        self._stream = stream
        graph.replay()


@contextmanager
def _no_collection() -> Iterator[None]:
    """Nothing is finalised meanwhile: to destroy a graph or an event is forbidden while another is captured."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Replayed:
    """`function(*tensors, *others)` without gradients, captured at its second call and replayed from then on.

    Tensors must keep their shape, dtype and device, the others their values. The result is overwritten by the next
    replay of any graph in `pool`. Where gradients are kept the function is called as it is.
    """

    def __init__(self, function: Callable[..., Tensor], pool: Pool) -> None:
        self._function, self._pool = function, pool
        self._runs = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._held: list[Tensor] = []
        self._result: Tensor | None = None

    def __call__(self, *arguments: Any) -> Tensor:
        tensors = [value for value in arguments if isinstance(value, Tensor)]
        if torch.is_grad_enabled() or not tensors[0].is_cuda:
            return self._function(*arguments)
        if self._graph is None:
            self._runs += 1
            if self._runs <= PLAIN:
                return self._function(*arguments)
            self._held = [value.clone() for value in tensors]
            held = iter(self._held)
            given = [next(held) if isinstance(value, Tensor) else value for value in arguments]

            def run() -> Tensor:
                # weights that autocast has cast before are gone when the graph is replayed
                lowered, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
                with torch.autocast("cuda", dtype, enabled=lowered, cache_enabled=False):
                    return self._function(*given)

            self._graph, self._result = self._pool.capture(run)
        for mine, value in zip(self._held, tensors):
            mine.copy_(value)
        self._pool.replay(self._graph)
        assert self._result is not None
        return self._result
