"""Backend plumbing: find the array namespace, check inputs, keep float64 constants ready for every dtype and device."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import numbers
import os
import sys
import threading
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import array_api_compat
import numpy as np

from ssdcore._keyed import Keyed

Array = Any  # an array of any array-API namespace
Namespace = Any  # the namespace itself: a module
Shape = tuple[int, ...]
P = ParamSpec("P")
R = TypeVar("R")


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
    if _is_torch(x) and x.dtype.is_floating_point:  # isdtype asks much more
        return xp
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{what}: a masked array would lose its mask; fill it first, for example with x.filled(0.0)")
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
    if _is_torch(x) and _is_torch(y) and x.device == y.device:
        return
    first, second = namespace_of(x), namespace_of(y)
    if first is not second:
        raise TypeError(
            f"{what}: arrays of two namespaces, {first.__name__} and {second.__name__}; convert one of them"
        )
    if device_of(x) != device_of(y):
        raise ValueError(f"{what}: arrays on two devices, {device_of(x)} and {device_of(y)}; move one of them")


def computing_dtype(xp: Namespace, dtype: Any) -> Any:
    """float16 and bfloat16 are computed in float32; wider types in themselves."""
    return xp.float32 if xp.finfo(dtype).bits < 32 else dtype


def cast(xp: Namespace, x: Array, dtype: Any) -> Array:
    """`x` in `dtype`: itself where it has it."""
    return x if x.dtype == dtype else xp.astype(x, dtype)


def widest_dtype(xp: Namespace, x: Array) -> Any:
    """float64 where the library, as set up, and the device of `x` have it; else the dtype of `x`."""
    if array_api_compat.is_jax_array(x):
        return xp.float64 if sys.modules["jax"].config.jax_enable_x64 else x.dtype
    return x.dtype if getattr(device_of(x), "type", None) == "mps" else xp.float64


_AS_IT_IS = contextlib.nullcontext()


def full_precision(x: Array) -> contextlib.AbstractContextManager[Any]:
    """The arithmetic of the library, whatever the caller has set: the input's precision, and underflow to zero.

    torch.autocast would turn float32 products into half precision, and jax lowers them to TF32 or bfloat16 on
    accelerators; a posterior needs the precision its caller asked for. numpy can be told to raise where a number
    underflows, as the far end of every Gaussian does.
    """
    if _is_torch(x):
        torch = sys.modules["torch"]
        kind = x.device.type
        if kind != "meta" and torch.is_autocast_enabled(kind):  # meta tensors have no arithmetic, so no autocast
            return torch.autocast(kind, enabled=False)
        return _AS_IT_IS
    if array_api_compat.is_jax_array(x):
        return sys.modules["jax"].default_matmul_precision("highest")
    return np.errstate(under="ignore")


def flushing(compute: Callable[P, R]) -> Callable[P, R]:
    """Let numpy's numbers underflow to zero in what a function computes, whatever the caller has set."""

    @functools.wraps(compute)
    def flushed(*args: P.args, **kwargs: P.kwargs) -> R:
        with np.errstate(under="ignore"):
            return compute(*args, **kwargs)

    return flushed


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


def trace_key() -> str:
    """A string that no other object has, in any process; read where torch.compile traces, its guards compare it.

    torch.compile takes what a marked function returns as a constant of the graph and does not ask again whose it was.
    Strings are guarded by value; numbers may become symbols, and objects are compared by type and attributes only.
    """
    return os.urandom(16).hex()


class Constant(Keyed):
    """A float64 (or integer) numpy array, and its copies in the namespaces, dtypes and devices that asked for it.

    `value` is read-only. Constants are equal if their values are, and torch.compile never takes one for another.
    """

    __slots__ = ("_cache", "_digest", "_trace_key", "value")

    def __init__(self, value: np.ndarray) -> None:
        dtype = np.int64 if np.issubdtype(value.dtype, np.integer) else np.float64
        held = np.ascontiguousarray(value, dtype=dtype)
        if held.flags.writeable:
            if held is value or held.base is not None:
                held = held.copy()  # the caller may write to it
            held.flags.writeable = False
        self.value = held
        self._cache: dict[Hashable, tuple[Array]] = {}
        self._digest: bytes | None = None
        self._trace_key = trace_key()

    def __reduce__(self) -> tuple[Any, ...]:
        return Constant, (self.value,)

    def __repr__(self) -> str:
        return f"Constant(shape={self.value.shape})"

    @property
    def shape(self) -> Shape:
        return self.value.shape

    def key(self) -> bytes:
        """A fingerprint of shape and values."""
        if self._digest is None:
            self._digest = digest(self.value)
        return self._digest

    def on(self, xp: Namespace, dtype: Any, device: Any) -> Array:
        return self._held(self._trace_key, xp, dtype, device)[0]  # the key is read here, for guards to see it

    def _held(self, trace_key: str, xp: Namespace, dtype: Any, device: Any) -> tuple[Array]:
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
        return self._held(self._trace_key, xp, x.dtype, device_of(x))[0]


def digest(value: np.ndarray) -> bytes:
    """A fingerprint of shape, dtype and values."""
    hashed = hashlib.blake2b(np.ascontiguousarray(value).data, digest_size=16)
    hashed.update(repr((value.shape, value.dtype.str)).encode())
    return hashed.digest()


class ArrayKind(NamedTuple):
    """Namespace, dtype and device of arrays that the library makes itself; device None is the library's default."""

    namespace: Namespace
    dtype: Any
    device: Any = None

    @staticmethod
    def numpy() -> ArrayKind:
        """float64 numpy."""
        return ArrayKind(namespace_of(np.zeros(1)), np.float64)

    def asarray(self, values: np.ndarray) -> Array:
        return self.namespace.asarray(values, dtype=self.dtype, device=self.device)


def to_numpy(x: Array) -> np.ndarray:
    """The values of an array of any namespace and device as float64 numpy, out of any gradient."""
    if _is_torch(x):
        return np.array(x.detach().to("cpu", sys.modules["torch"].float64).numpy())
    if array_api_compat.is_cupy_array(x):
        return np.array(x.get(), dtype=np.float64)
    if namespace_of(x).__name__ == "array_api_strict":
        return np.array(x.to_device(type(x.device)("CPU_DEVICE")), dtype=np.float64)
    return np.array(np.asarray(x).astype(np.float64))


def number(value: Any, what: str) -> Any:
    """The Python number in an array without axes; anything else as it is, for the caller to check.

    Raises TypeError for a traced one, and for one that requires a gradient, which would be lost.
    """
    if isinstance(value, (int, float)) or getattr(value, "ndim", None) != 0 or not hasattr(value, "item"):
        return value
    if getattr(value, "requires_grad", False):
        raise TypeError(f"{what}: a tensor that requires a gradient would lose it here; pass value.item()")
    try:
        return value.item()
    except TypeError as error:  # jax's tracers
        raise TypeError(f"{what}: expected a number that is known, got one that is traced") from error


def real_number(value: Any, what: str) -> float:
    """A real number of Python's, from one of any library. Raises TypeError for anything else."""
    if type(value) is float:  # the path that torch.compile traces
        return value
    value = number(value, what)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{what}: expected a real number, got {value!r}")
    return float(value)


def positive_int(value: Any, what: str) -> int:
    """An int of at least 1, from a whole number of any library. Raises TypeError and ValueError for anything else."""
    value = number(value, what)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{what} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{what} must be at least 1, got {value}")
    return int(value)


def known_array(values: Any, what: object) -> np.ndarray:
    """A caller's real numbers as a numpy array of their own dtype, from an array of any library and device, or a list.

    Raises TypeError for traced ones, for a tensor that requires a gradient, which would be lost, for masked arrays,
    which would lose their masks, and for anything but real numbers; ValueError for lists of unequal lengths.
    """
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"{what}: a masked array would lose its mask; fill it first, for example with x.filled(0.0)")
    try:
        if _is_torch(values):
            if values.requires_grad:
                raise TypeError(
                    f"{what}: a tensor that requires a gradient would lose it here; pass x.detach(), or keep weights "
                    "that learn in a ssd.Functional"
                )
            torch = sys.modules["torch"]
            host = values.cpu()
            array = (host.float() if host.dtype == torch.bfloat16 else host).numpy()
        elif array_api_compat.is_cupy_array(values):
            array = values.get()
        else:
            array = np.asarray(values)
    except RuntimeError as error:  # inside torch.func.vmap, sparse, or without storage
        raise TypeError(f"{what}: expected numbers that are known, got a tensor without values of its own") from error
    except TypeError as error:
        if type(error) is TypeError:
            raise
        raise TypeError(f"{what}: expected numbers that are known, got an array that is traced") from error  # jax's
    if array.dtype.name == "bfloat16":  # as jax's are in numpy
        array = array.astype(np.float32)
    if array.dtype.kind == "O":  # fractions, and other numbers of Python's
        with contextlib.suppress(TypeError, ValueError):
            array = array.astype(np.float64)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{what}: expected real numbers, got dtype {array.dtype}")
    return np.asarray(array)


class _Shelf:
    """Attributes."""


class Memo:
    """Results by key, the least recently used dropped first. Safe to share between threads.

    Pickles and copies are made without the results.

    Args:
        entries: at most so many results
        bytes: at most so much memory in all, as `sized` tells of a result
    """

    def __init__(self, entries: int = 4096, bytes: int = 2**26) -> None:
        self._entries, self._bytes = entries, bytes
        self._forget()

    def _forget(self) -> None:
        self._results: dict[Hashable, tuple[Any, int]] = {}
        self._held = 0
        self._shelf = _Shelf()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Memo, (self._entries, self._bytes)

    @staticmethod
    def entry(make: Callable[..., Any], *key: Hashable) -> Hashable:
        """The name under which make(*key) is kept: of numbers a string, which torch.compile guards by value."""
        if all(isinstance(part, (int, float)) for part in key):
            return f"{make.__module__}.{make.__name__}{key!r}"
        return f"{make.__module__}.{make.__name__}", key

    def shelve(self, entry: Any, made: Any) -> str:
        """Put what `get` gave where `kept` finds it, for as long as the memo lives; -> the name to ask for."""
        if not isinstance(entry, str):  # made of objects too: they are kept, so that no other has their id
            make, key = entry
            self._shelf.__dict__.setdefault("keys", []).append(key)
            entry = f"{make}{[part if isinstance(part, (int, float)) else id(part) for part in key]}"
        name = f"kept_{hashlib.blake2b(entry.encode(), digest_size=12).hexdigest()}"
        self._shelf.__dict__[name] = made
        return name

    def kept(self, name: str) -> Any:
        """What has been shelved, for torch.compile to read while tracing: with its guards, and without a lock.

        As an attribute: of a dictionary torch.compile sees only what it held when tracing began.
        """
        return getattr(self._shelf, name)

    def get(
        self,
        make: Callable[..., Any],
        *key: Hashable,
        of: tuple[Any, ...] = (),
        sized: Callable[[Any], int] = lambda result: 0,
    ) -> Any:
        """make(*of, *key), computed once while it is kept; `of` is the same at every call with this `make`."""
        entry = make, key
        with self._lock:
            found = self._results.pop(entry, None)
            if found is not None:
                self._results[entry] = found  # now the youngest
                return found[0]
        made = flushing(make)(*of, *key)  # outside of the lock: it may ask for other results, and take long
        size = sized(made)
        with self._lock:
            found = self._results.get(entry)
            if found is not None:  # another thread was faster: one result for all
                return found[0]
            self._results[entry] = (made, size)
            self._held += size
            while len(self._results) > 1 and (len(self._results) > self._entries or self._held > self._bytes):
                _, dropped = self._results.pop(next(iter(self._results)))
                self._held -= dropped
        return made


def is_tracing() -> bool:
    """Whether torch.compile is tracing the caller."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_compiling()


def once_per_trace(prepare: Callable[P, R]) -> Callable[P, R]:
    """Mark a method that only fills caches: torch.compile then runs it while tracing instead of tracing into it."""
    prepare._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return prepare


def matmul_axis(xp: Namespace, matrix: Array, x: Array, axis: int) -> Array:
    """matrix (m, n) times `x` along the negative `axis` of length n."""
    if axis == -1:
        if isinstance(x, np.ndarray) and x.ndim > 2:  # one large product, not one for each item
            return (x.reshape(-1, x.shape[-1]) @ matrix.T).reshape(*x.shape[:-1], len(matrix))
        return x @ matrix.T
    if axis == -2:
        return matrix @ x
    return xp.moveaxis(xp.moveaxis(x, axis, -1) @ matrix.T, -1, axis)


def add_matmul_axis(xp: Namespace, base: Array, scale: float, matrix: Array, x: Array, axis: int) -> Array:
    """base + scale · matrix x along the negative `axis`: a new array, in the product's own pass where that can be."""
    m, n = matrix.shape
    if _is_torch(x) and axis >= -2 and base.ndim == x.ndim and base.dtype == x.dtype:
        if axis == -1 and base.shape[:-1] == x.shape[:-1]:
            flat = base.reshape(-1, m).addmm(x.reshape(-1, n), matrix.T, alpha=scale)
            return flat.reshape(base.shape)
        if axis == -2 and base.shape[:-2] == x.shape[:-2] and base.shape[-1] == x.shape[-1]:
            stack = x.reshape(-1, n, x.shape[-1])
            matrices = matrix.expand(stack.shape[0], m, n)
            return base.reshape(-1, m, x.shape[-1]).baddbmm(matrices, stack, alpha=scale).reshape(base.shape)
    return combined(xp, base, 1.0, matmul_axis(xp, scale * matrix, x, axis))


def combined(xp: Namespace, base: Array, scale: float, y: Array) -> Array:
    """base + scale · y where `y` is an array of our own, written over if that can be: large temporaries cost most."""
    if isinstance(y, np.ndarray) and base.shape == y.shape:
        if scale != 1:
            y *= scale
        y += base
        return y
    return add_scaled(xp, base, scale, y)


def add_scaled(xp: Namespace, x: Array, scale: float, y: Array) -> Array:
    """x + scale · y: a new array, by one pass where the library has one. Never in place: `x` may be the user's."""
    if _is_torch(x):
        return sys.modules["torch"].add(x, y, alpha=scale)
    return x + scale * y


def add_to(xp: Namespace, x: Array, scale: float, y: Array) -> Array:
    """x + scale · y where `x` is an array of our own, in place if that can be: large temporaries cost most."""
    if x.shape == y.shape:
        if _is_torch(x):
            return x.add_(y, alpha=scale)
        if isinstance(x, np.ndarray):
            x += y if scale == 1 else scale * y
            return x
    return add_scaled(xp, x, scale, y)
