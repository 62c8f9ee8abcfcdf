"""What comes from a file reaches a terminal as printable text only."""

from __future__ import annotations

import pytest

from ssdcore_torch.text import printable


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("a plain name.png", "a plain name.png"),
        ("Größe 木 ×", "Größe 木 ×"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\u202egnp.exe", "\\u202egnp.exe"),  # reverses what follows
        ("\x9b31m", "\\x9b31m"),  # an escape sequence in one character
        ("caf\udce9", "caf\\udce9"),  # a name that is no UTF-8
    ],
)
def test_one_printable_line(told: str, shown: str) -> None:
    assert printable(told) == shown
    printable(told).encode("utf-8")


def test_errors_too() -> None:
    assert printable(ValueError("\x1b[2J")) == "\\x1b[2J"
