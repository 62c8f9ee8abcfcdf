"""Arrays of one library, dtype and device for the checks, and the rounding that their arithmetic may show."""

from __future__ import annotations

import contextlib
import math
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssdcore._arrays import Array, Namespace, computing_dtype, device_of, namespace_of, to_numpy
from ssdcore.testing._report import FALSE_ALARM

DTYPES = ("float64", "float32", "float16", "bfloat16")


def resolve_namespace(xp: Any) -> Namespace:
    """The namespace that the library finds for the arrays of `xp` (numpy, torch, jax.numpy, cupy, ... or a wrapper)."""
    if not hasattr(xp, "zeros"):
        raise TypeError(f"xp: expected an array namespace such as numpy, torch or jax.numpy, got {xp!r}")
    return namespace_of(xp.zeros(1))


def available_dtypes(xp: Namespace) -> tuple[str, ...]:
    """Real floating dtypes that arrays of `xp` can have now (jax: no float64 unless jax_enable_x64)."""
    return tuple(name for name in DTYPES if _has_dtype(xp, name))


def _has_dtype(xp: Namespace, name: str) -> bool:
    dtype = getattr(xp, name, None)
    if dtype is None:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jax warns that it truncates
        try:
            return bool(xp.zeros((1,), dtype=dtype).dtype == dtype)
        except (TypeError, ValueError):
            return False


def choose_dtypes(xp: Namespace, dtypes: Sequence[str] | str | None) -> tuple[str, ...]:
    """The dtypes asked for, None being all that there are; ValueError for one that `xp` has not."""
    have = available_dtypes(xp)
    if dtypes is None:
        return have
    chosen = (dtypes,) if isinstance(dtypes, str) else tuple(dtypes)
    for name in chosen:
        if name not in have:
            hint = "; set jax_enable_x64 for float64" if "jax" in xp.__name__ and name == "float64" else ""
            raise ValueError(f"{xp.__name__} has no dtype {name!r} now: choose among {', '.join(have)}{hint}")
    if not chosen:
        raise ValueError(f"dtypes: expected at least one of {', '.join(have)}")
    return chosen


@dataclass(frozen=True)
class Backend:
    """One library, dtype and device; None is the library's default device."""

    xp: Namespace
    dtype_name: str
    device: Any = None

    @property
    def dtype(self) -> Any:
        return getattr(self.xp, self.dtype_name)

    @property
    def name(self) -> str:
        return str(self.xp.__name__).removeprefix("array_api_compat.")

    @property
    def storage_unit(self) -> float:
        """Largest relative error of storing a number in this dtype (half its eps)."""
        return float(self.xp.finfo(self.dtype).eps) / 2

    @property
    def unit(self) -> float:
        """Unit roundoff of the arithmetic: float16 and bfloat16 are computed in float32."""
        return float(self.xp.finfo(computing_dtype(self.xp, self.dtype)).eps) / 2

    @property
    def is_half(self) -> bool:
        return self.storage_unit > self.unit

    @property
    def tiny(self) -> float:
        """Absolute error of storing a number near zero: the spacing of subnormal numbers (or their flush to zero)."""
        return float(self.xp.finfo(self.dtype).smallest_normal)

    def array(self, values: np.ndarray) -> Array:
        """`values` rounded to the dtype."""
        if "jax" in self.xp.__name__:  # rounded by numpy: jax would compile a conversion for each new shape
            values = np.array(values).astype(np.dtype(self.dtype))
            return self.xp.asarray(values, dtype=self.dtype, device=self.device)
        return self.xp.asarray(np.array(values, dtype=np.float64), dtype=self.dtype, device=self.device)

    def shape_of(self, call: Callable[[Any], Array], x: Any) -> tuple[int, ...]:
        """The shape of call(x). jax traces it, where it can: else it compiles every operation for each new shape."""
        if "jax" in self.xp.__name__:
            with contextlib.suppress(Exception):  # of what cannot be traced
                return tuple(sys.modules["jax"].eval_shape(call, x).shape)
        return tuple(call(x).shape)

    def at(self, dtype_name: str) -> Backend:
        return Backend(self.xp, dtype_name, self.device)

    @property
    def widest(self) -> Backend:
        return self.at(choose_dtypes(self.xp, None)[0])

    def devices(self) -> list[Any]:
        """Devices whose arrays can be made in this dtype and read back; the default one alone where none are listed."""
        if self.device is not None:
            return [self.device]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of device names that it will drop
                listed = self.xp.__array_namespace_info__().devices()
        except AttributeError:
            return [None]
        usable = []
        for device in listed:
            if device is None:  # jax lists "no device in particular" first
                continue
            try:
                made = Backend(self.xp, self.dtype_name, device).array(np.ones(1))
                if made.dtype == self.dtype and to_numpy(made)[0] == 1.0:
                    usable.append(device)
            except Exception:  # whatever keeps a device from being used: torch's "meta" holds no values
                continue
        return usable if len(usable) > 1 else [None]

    def rounding(self, operations: int, entries: int) -> float:
        """Relative error of results of `operations` roundings each, over `entries` results.

        Errors of independent roundings add like a random walk: after k of them the relative error exceeds λ√k u with
        probability below 2 exp(−λ²/2) (Higham and Mary, 2019); λ is taken for a false alarm of 1e-9 over all entries.
        """
        deviations = math.sqrt(2 * math.log(2 * max(entries, 1) / FALSE_ALARM))
        return deviations * math.sqrt(max(operations, 1)) * self.unit

    def storing(self, values: np.ndarray) -> float:
        """Norm of the error of storing `values` in a half-precision dtype; zero in the dtypes of the arithmetic."""
        if not self.is_half:
            return 0.0
        return self.storage_unit * norm(values) + math.sqrt(values.size) * self.tiny


def norm(values: np.ndarray) -> float:
    """Euclidean norm over all entries."""
    return float(np.linalg.norm(values.ravel()))


def same_device(x: Array, y: Array) -> bool:
    return bool(device_of(x) == device_of(y))


def generator_states() -> dict[str, Any]:
    """Snapshots of the global random states that an operator might touch."""
    states: dict[str, Any] = {"random": random.getstate()}
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global state is what is watched
    states["numpy.random"] = (kind, np.asarray(keys).tobytes(), *rest)
    torch = sys.modules.get("torch")
    if torch is not None:
        states["torch"] = torch.get_rng_state().numpy().tobytes()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            states["torch.cuda"] = torch.cuda.get_rng_state().numpy().tobytes()
    return states


@contextlib.contextmanager
def advanced_generators() -> Iterator[None]:
    """Within it the global states are not as any seed leaves them; afterwards they are what they were before."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    torch = sys.modules.get("torch")
    cpu = None if torch is None else torch.get_rng_state()
    random.random()
    np.random.random()  # noqa: NPY002
    if torch is not None:
        torch.rand(1)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        if torch is not None:
            torch.set_rng_state(cpu)
