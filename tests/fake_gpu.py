"""A GPU that is not there: tensors that say they are on "cuda" and are computed on the CPU.

The CPU build of torch refuses CUDA tensors even as shapes, so tensors stay where they are and carry a mark. What is asked
to be made on, or moved to, "cuda" is marked; what is computed from marked tensors is marked. An operation on tensors with
and without the mark raises MixedDevices, and reading a marked one, or copying to the device from memory that is not
pinned, raises HostWait unless it is allowed.

It does not see: kernels and their dtypes (autocast does nothing), streams, graphs, fused operations for CUDA alone; and
what a backward pass makes from nothing counts as being on either device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
import torch._dynamo  # which looks at torch.Generator when it is imported
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ssdcore_torch import graphs
from ssdcore_torch.denoisers.unet import blocks
from ssdcore_torch.training import graphs as step_graphs

GENERATOR = torch.Generator
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
MAKERS = {
    *("tensor", "zeros", "ones", "full", "empty", "arange", "linspace", "rand", "randn", "randint", "eye", "as_tensor"),
    *("scalar_tensor", "randperm", "empty_strided", "logspace", "asarray"),
}
READERS = {
    "item",
    "tolist",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "__contains__",
    "cpu",
    "numpy",
    "__array__",
}
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "equal")
COPIES = ("copy_", "_foreach_copy_")


class MixedDevices(AssertionError):
    """An operation on tensors of both devices."""


class HostWait(AssertionError):
    """The host waits for the device."""


def storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()


class Marks:
    """Marked storages, held so that no other takes their address."""

    def __init__(self) -> None:
        self.held: dict[int, Any] = {}

    def add(self, tensor: Tensor) -> None:
        memory = storage(tensor)
        self.held[memory._cdata] = memory
        if len(self.held) % 4096 == 0:
            used = {key: m for key, m in self.held.items() if torch._C._storage_Use_Count(key) > 1}
            self.held = used

    def __contains__(self, tensor: Tensor) -> bool:
        return storage(tensor)._cdata in self.held


THERE, ANYWHERE, PINNED = Marks(), Marks(), Marks()  # of all of them: constants that were moved there stay in caches


class FakeGpu:
    """Enter to have the device "cuda"."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.there, self.anywhere, self.pinned = THERE, ANYWHERE, PINNED
        self.may_wait = True
        for module in (graphs, step_graphs):
            monkeypatch.setattr(module, "PLAIN", 10**9)  # there is nothing to capture,
        monkeypatch.setattr(blocks, "_kernels", lambda: None)  # and nothing that runs kernels for CUDA alone
        self.make: str | None = None  # where the call under way makes tensors
        group = torch.optim.Optimizer._group_tensors_by_device_and_dtype
        monkeypatch.setattr(torch, "Generator", _Generator)

        def grouped(*arguments: Any, **options: Any) -> Any:
            found = group(*arguments, **options)
            return {(self.device_of(lists[0][0]), kind): (lists, where) for (_, kind), (lists, where) in found.items()}

        monkeypatch.setattr(torch.optim.Optimizer, "_group_tensors_by_device_and_dtype", staticmethod(grouped))
        monkeypatch.setattr(torch.nn.utils.clip_grad, "_group_tensors_by_device_and_dtype", grouped)

    def device_of(self, tensor: Tensor) -> torch.device:
        with torch._C.DisableTorchFunction():
            return CUDA if tensor in self.there else CPU

    @contextmanager
    def on(self) -> Iterator[FakeGpu]:
        with ExitStack() as stack:
            stack.enter_context(_Dispatch(self))
            stack.enter_context(_Functions(self))
            yield self

    @contextmanager
    def no_waiting(self) -> Iterator[None]:
        before, self.may_wait = self.may_wait, False
        try:
            yield
        finally:
            self.may_wait = before

    def allow(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which may wait."""

        def waiting(*arguments: Any, **options: Any) -> Any:
            before, self.may_wait = self.may_wait, True
            try:
                return function(*arguments, **options)
            finally:
                self.may_wait = before

        return waiting

    def wait(self, why: str) -> None:
        if not self.may_wait:
            raise HostWait(f"{why} waits for the device")


def _is_cuda(value: Any) -> bool:
    return (isinstance(value, torch.device) and value.type == "cuda") or (
        isinstance(value, str) and value.split(":")[0] == "cuda"
    )


class _Kind(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, GENERATOR)


class _Generator(metaclass=_Kind):
    """torch's generator on the CPU, whatever the device that is asked for."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return GENERATOR("cpu")


class _Functions(TorchFunctionMode):
    """What Python asks of torch: devices, in both directions."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, kwargs, name = self.gpu, dict(kwargs or {}), getattr(func, "__name__", "")
        with torch._C.DisableTorchFunction():
            first = args[0] if args and isinstance(args[0], Tensor) else None
            there = first is not None and first in gpu.there
            if first is not None and first.is_meta:
                return func(*args, **kwargs)
            if name == "__get__":
                asked = getattr(func, "__self__", None).__name__  # type: ignore[union-attr]
                if asked == "device":
                    return CUDA if there else func(*args, **kwargs)
                return there if asked == "is_cuda" else func(*args, **kwargs)
            if name in ("_parse_to", "device"):  # they say what was asked for
                return func(*args, **kwargs)
            if name == "is_pinned":
                return first in gpu.pinned
            if name == "pin_memory":
                assert not there
                pinned = first.clone()  # type: ignore[union-attr]
                gpu.pinned.add(pinned)
                return pinned
            if there and name in READERS:
                gpu.wait(name)
                if name == "cpu":
                    return first.clone()  # type: ignore[union-attr]
            if name == "to" or (name in ("as_tensor", "asarray") and first is not None):
                return self._to(func, first, args, kwargs)
        leaves = tree_leaves((args, kwargs))
        on_gpu = any(_is_cuda(leaf) for leaf in leaves)
        if on_gpu:
            args, kwargs = (_elsewhere(value) for value in (args, kwargs))
        before = gpu.make
        if name in MAKERS:
            gpu.make = "gpu" if on_gpu else "host"
        elif on_gpu:
            gpu.make = "gpu"
        try:
            made = func(*args, **kwargs)
        finally:
            gpu.make = before
        if on_gpu and name in ("tensor", "as_tensor", "asarray"):  # made of the host's numbers
            gpu.wait(f"torch.{name} of numbers of the host")
            with torch._C.DisableTorchFunction():
                gpu.there.add(made)
        return made

    def _to(self, func: Any, tensor: Any, args: Any, kwargs: Any) -> Any:
        gpu = self.gpu
        wanted = [value for value in tree_leaves((args[1:], kwargs)) if isinstance(value, (torch.device, str, Tensor))]
        to_gpu = any(_is_cuda(v) or (isinstance(v, Tensor) and v in gpu.there) for v in wanted)
        made = func(*_elsewhere(args), **_elsewhere(kwargs))
        if not wanted or to_gpu == (tensor in gpu.there):
            return made
        if to_gpu and tensor not in gpu.pinned:
            gpu.wait("a copy from memory that is not pinned")
        elif not to_gpu:
            gpu.wait("a copy to the host")
        if made is tensor or storage(made)._cdata == storage(tensor)._cdata:
            made = made.clone()
        if to_gpu:
            gpu.there.add(made)
        else:
            gpu.there.held.pop(storage(made)._cdata, None)
        return made


def _elsewhere(value: Any) -> Any:
    value = tree_map_only(torch.device, lambda device: CPU if device.type == "cuda" else device, value)
    return tree_map_only(str, lambda text: "cpu" if _is_cuda(text) else text, value)


class _Dispatch(TorchDispatchMode):
    """What is computed, in backward passes and optimizers too."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, name = self.gpu, func.overloadpacket.__name__
        with torch._C.DisableTorchFunction():
            if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves((args, kwargs or {}))):
                return func(*args, **(kwargs or {}))
            given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
            there = [x for x in given if x in gpu.there]
            here = [x for x in given if x not in gpu.there and x not in gpu.anywhere and x.ndim > 0]
            if there and name.startswith(WAITING):
                gpu.wait(str(func))
            if there and here:
                if name not in COPIES:
                    shapes = [(tuple(x.shape), "cuda" if x in gpu.there else "cpu") for x in given]
                    raise MixedDevices(f"{func} on both devices: {shapes}")
                if any(x not in gpu.pinned for x in here):
                    gpu.wait("a copy between the devices")
                return func(*args, **(kwargs or {}))
            result = func(*args, **(kwargs or {}))
            for made in tree_leaves(result):
                if not isinstance(made, Tensor) or made.is_meta:
                    continue
                if there or (not given and gpu.make == "gpu"):
                    gpu.there.add(made)
                elif not given and gpu.make is None:
                    gpu.anywhere.add(made)
            return result
