"""Operators, covariances and laws as pytrees of jax and torch, which are told as soon as they are there.

Nothing here imports them: `ensure` registers with each library that the program has imported by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

Flatten = Callable[[Any], tuple[tuple[Any, ...], Any]]
Unflatten = Callable[[Any, Any], Any]  # (auxiliary data, children) -> object

_kinds: dict[type, tuple[Flatten, Unflatten]] = {}
_libraries: dict[str, Callable[[type, Flatten, Unflatten], None]] = {}


def _jax_register(kind: type, flatten: Flatten, unflatten: Unflatten) -> None:
    sys.modules["jax"].tree_util.register_pytree_node(kind, flatten, unflatten)


def _torch_register(kind: type, flatten: Flatten, unflatten: Unflatten) -> None:
    from torch.utils import _pytree  # what torch's own documentation names for this

    _pytree.register_pytree_node(kind, lambda x: (list(flatten(x)[0]), flatten(x)[1]), lambda c, aux: unflatten(aux, c))


_REGISTER = {"jax": ("tree_util", _jax_register), "torch": ("compile", _torch_register)}


def register(kind: type, flatten: Flatten, unflatten: Unflatten) -> None:
    """Make `kind` a pytree of every library that is, or will be, imported. Auxiliary data is compared with ==."""
    _kinds[kind] = flatten, unflatten
    for tell in _libraries.values():
        tell(kind, flatten, unflatten)


def register_static(kind: type) -> None:
    """Make `kind` a pytree without leaves: objects that compare equal share what has been compiled."""
    register(kind, lambda x: ((), x), lambda aux, children: aux)


def ensure() -> None:
    """Tell libraries that have been imported since the last call."""
    if len(_libraries) == len(_REGISTER):
        return
    for name, (ready, tell) in _REGISTER.items():
        if name in sys.modules and name not in _libraries and hasattr(sys.modules[name], ready):
            _libraries[name] = tell
            for kind, (flatten, unflatten) in _kinds.items():
                tell(kind, flatten, unflatten)


# torch.compile calls it while tracing instead of tracing into it.
ensure._dynamo_marked_constant = True  # type: ignore[attr-defined]
