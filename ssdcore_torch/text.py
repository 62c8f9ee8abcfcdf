"""Text for people: what comes from elsewhere, made fit for a terminal, and sizes."""

from __future__ import annotations

from collections.abc import Sequence


def printable(told: object) -> str:
    """Any text as one printable line: control, escape and direction characters, line breaks and bytes that were no
    UTF-8 are shown by their codes, as in `\\x1b`.

    Names of files and classes, and whatever a damaged or hostile file says, go through this before they are printed.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(told))


def sides(shape: Sequence[int]) -> str:
    """A size as it is read: 16×24."""
    return "×".join(map(str, shape))


def short_sides(shape: Sequence[int]) -> str:
    """The same, but of a square picture one side."""
    return str(shape[0]) if len(shape) == 2 and shape[0] == shape[1] else sides(shape)
