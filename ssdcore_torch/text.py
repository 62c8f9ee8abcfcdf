"""Text that comes from elsewhere, made fit for a terminal."""

from __future__ import annotations


def printable(told: object) -> str:
    """Any text as one printable line: control, escape and direction characters, line breaks and bytes that were no
    UTF-8 are shown by their codes, as in `\\x1b`.

    Names of files and classes, and whatever a damaged or hostile file says, go through this before they are printed.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(told))
