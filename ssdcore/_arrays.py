"""Backend plumbing: find the array namespace, check inputs, keep float64 constants ready for every dtype and device."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Hashable
from typing import Any, ParamSpec

import array_api_compat
import numpy as np

Array = Any  # an array of any array-API namespace
Namespace = Any  # the namespace itself: a module
Shape = tuple[int, ...]
P = ParamSpec("P")


def _is_torch(x: Array) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def namespace_of(x: Array) -> Namespace:
    """The array-API namespace of `x` (torch is asked for first: this path must stay traceable by torch.compile)."""
    if _is_torch(x):
        import array_api_compat.torch as xp

        return xp
    if not array_api_compat.is_array_api_obj(x):
        raise TypeError(
            f"expected an array (numpy, torch, jax, cupy, ...), got {type(x).__name__}; "
            "convert it first, for example with numpy.asarray"
        )
    return array_api_compat.array_namespace(x)


def device_of(x: Array) -> Any:
    """The device of `x`; None for jax, whose uncommitted constants follow the arrays they meet."""
    if _is_torch(x):
        return x.device
    if array_api_compat.is_jax_array(x):
        return None
    return array_api_compat.device(x)


def real_namespace(x: Array, what: object) -> Namespace:
    """The namespace of `x`, after refusing anything but real floating-point arrays."""
    xp = namespace_of(x)
    if not xp.isdtype(x.dtype, "real floating"):
        raise TypeError(
            f"{what}: expected a real floating-point array, got dtype {x.dtype}; "
            "convert it first (integers to float32 or float64; real and imaginary parts one by one)"
        )
    return xp


def check_trailing(x: Array, shape: Shape, what: object) -> None:
    got = tuple(x.shape)
    if len(got) < len(shape) or got[len(got) - len(shape) :] != shape:
        raise ValueError(
            f"{what}: expected trailing axes {shape}, got {got[max(0, len(got) - len(shape)) :]} "
            f"in an array shaped {got}"
        )


def check_same_backend(x: Array, y: Array, what: object) -> None:
    """Refuse two arrays of different namespaces or devices before arithmetic fails less clearly."""
    if namespace_of(x) is not namespace_of(y):
        raise TypeError(
            f"{what}: arrays of two namespaces, {namespace_of(x).__name__} and {namespace_of(y).__name__}; "
            "convert one of them"
        )
    if device_of(x) != device_of(y):
        raise ValueError(f"{what}: arrays on two devices, {device_of(x)} and {device_of(y)}; move one of them")


def computing_dtype(xp: Namespace, dtype: Any) -> Any:
    """float16 and bfloat16 are computed in float32; wider types in themselves."""
    return xp.float32 if xp.finfo(dtype).bits < 32 else dtype


def full_precision(x: Array) -> contextlib.AbstractContextManager[Any]:
    """Keep matrix products at the input's precision where the backend would lower it.

    torch.autocast would turn float32 products into half precision, and jax lowers them to TF32 or bfloat16 on
    accelerators; a posterior needs the precision its caller asked for.
    """
    if _is_torch(x):
        torch = sys.modules["torch"]
        if torch.is_autocast_enabled(x.device.type):
            return torch.autocast(x.device.type, enabled=False)
        return contextlib.nullcontext()
    if array_api_compat.is_jax_array(x):
        return sys.modules["jax"].default_matmul_precision("highest")
    return contextlib.nullcontext()


@contextlib.contextmanager
def _outside_transforms(xp: Namespace) -> Any:
    """Make a constant that outlives the jit trace or inference mode in which it happens to be asked for first."""
    if xp.__name__ == "jax.numpy":
        with sys.modules["jax"].ensure_compile_time_eval():
            yield
    elif xp.__name__ == "array_api_compat.torch":
        with sys.modules["torch"].inference_mode(False):
            yield
    else:
        yield


def _copied(xp: Namespace, value: np.ndarray, dtype: Any, device: Any) -> Array:
    """`value` in a namespace, on a device that the host does not wait for."""
    if xp.__name__ == "array_api_compat.torch" and getattr(device, "type", None) == "cuda":
        torch = sys.modules["torch"]
        made = xp.asarray(value.copy(), dtype=dtype)
        if type(made) is torch.Tensor:  # a fake tensor, of a tracer, has no memory to pin
            return made.pin_memory().to(device, non_blocking=True)
    return xp.asarray(value.copy(), dtype=dtype, device=device)


class Constant:
    """A float64 (or integer) numpy array, and its copies in the namespaces, dtypes and devices that asked for it."""

    __slots__ = ("_cache", "value")

    def __init__(self, value: np.ndarray) -> None:
        dtype = np.int64 if np.issubdtype(value.dtype, np.integer) else np.float64
        self.value = np.ascontiguousarray(value, dtype=dtype)
        self._cache: dict[Hashable, tuple[Array]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Constant, (self.value,)

    def on(self, xp: Namespace, dtype: Any, device: Any) -> Array:
        return self._held(xp, dtype, device)[0]

    def _held(self, xp: Namespace, dtype: Any, device: Any) -> tuple[Array]:
        key = (xp.__name__, dtype, device)
        held = self._cache.get(key)
        if held is None:
            with _outside_transforms(xp):
                held = (_copied(xp, self.value, dtype, device),)
            if _is_torch(held[0]):  # its sizes stay constants where torch.compile makes others symbolic
                held[0]._dynamo_static_indices = set(range(held[0].ndim))
            if not _is_torch(held[0]) or type(held[0]) is sys.modules["torch"].Tensor:  # never keep a fake tensor
                self._cache[key] = held
        return held

    # torch.compile calls this once while tracing and keeps the result as a constant of the graph. In a tuple, because
    # it gives each result that is not a tensor a name of its own, but the same name to all tensors, and then refuses
    # a graph with two of them.
    _held._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def like(self, xp: Namespace, x: Array) -> Array:
        return self.on(xp, x.dtype, device_of(x))


class Memo:
    """Results by key, at most 4096, the oldest dropped first. Pickles and copies are made without them."""

    __slots__ = ("_results",)

    def __init__(self) -> None:
        self._results: dict[Hashable, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Memo, ()

    def get(self, make: Callable[..., Any], *key: Hashable) -> Any:
        """make(*key), computed once."""
        entry = (make.__name__, *key)
        if entry not in self._results:
            if len(self._results) >= 4096:
                self._results.pop(next(iter(self._results)))
            self._results[entry] = make(*key)
        return self._results[entry]


def once_per_trace(prepare: Callable[P, None]) -> Callable[P, None]:
    """Mark a method that only fills caches: torch.compile then runs it while tracing instead of tracing into it."""
    prepare._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return prepare


def matmul_axis(xp: Namespace, matrix: Array, x: Array, axis: int) -> Array:
    """matrix (m, n) times `x` along the negative `axis` of length n."""
    if axis == -1:
        return xp.matmul(x, xp.matrix_transpose(matrix))
    if axis == -2:
        return xp.matmul(matrix, x)
    moved = xp.matmul(xp.moveaxis(x, axis, -1), xp.matrix_transpose(matrix))
    return xp.moveaxis(moved, -1, axis)
