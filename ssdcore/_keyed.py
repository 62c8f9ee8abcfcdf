"""Values: objects that are equal if they are the same by construction, as `key` tells, and pass jit as constants."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from ssdcore import _pytrees


class Keyed:
    """Equal, with equal hashes, to what is of the same class and has an equal key."""

    __slots__ = ()

    def key(self) -> Hashable | None:
        """What objects that are the same by construction have in common; None: equal to itself only."""
        return None

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, Keyed) or type(self) is not type(other):
            return self is other
        key = self.key()
        return key is not None and key == other.key()

    def __hash__(self) -> int:
        try:
            key = self.key()
        except AttributeError:  # torch.compile hashes objects that are still being made
            key = None
        return object.__hash__(self) if key is None else hash((type(self), key))


class Static(Keyed):
    """A `Keyed` that is a pytree without leaves, in jax and torch: equal ones share what has been compiled.

    A subclass with ``static=False`` registers its own leaves.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        _pytrees.ensure()
        return super().__new__(cls)

    def __init_subclass__(cls, static: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if static:
            _pytrees.register_static(cls)
