"""Arguments of public calls, checked before any work."""

from __future__ import annotations

import operator
import os
from pathlib import Path
from typing import Any


def whole_number(name: str, value: Any, least: int) -> int:
    """`value` as an int.

    Raises:
        TypeError: For what is not a whole number; a truth value is not one.
        ValueError: Below `least`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name}: expected a whole number, got {value!r:.60}")
    if number < least:
        raise ValueError(f"{name}: expected a whole number >= {least}, got {number}")
    return number


def local_path(name: str, value: Any) -> Path:
    """`value` as a path.

    Raises:
        TypeError: For what is neither a text nor a path.
        ValueError: For an empty text, and for one with a character that no file's name may have.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name}: expected a path, got {type(value).__name__}")
    text = os.fspath(value)
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"{name}: expected a path, got {text!r:.60}")
    return Path(text)
