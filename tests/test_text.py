"""What comes from a file reaches a terminal as printable text only; what we say there is plain English."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

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


# ---- plain English in what a user reads

ROOT = Path(__file__).parents[1]
ARCHAIC = re.compile(
    r"(?<!here )\b(?:is|are) no (?!longer\b|more\b|less\b|such\b|better\b|worse\b|\w+er\b)"  # "is not a run folder"
    r"|\bmend|\blaid over\b|\blay over\b|\band its like\b|\bis sound\b|\bsound checkpoint"
    r"|\b(?:goes|go|going|gone) on\b(?! the)"
    r"|\bone an? (?:step|image|axis|level|sample|item|stage|class|time|column|rank)\b"
    r"|\b(?:images|pictures|nats|bits|pixels|cycles|seconds|GFLOP|evaluations|values?) an? "
    r"(?:step|image|axis|level|shard|channel|side|sample)\b(?! trains)"
)


def strings(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, text) of what may be read: messages, help and docstrings."""
    return [
        (node.lineno, " ".join(node.value.split()))
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
    ]


@pytest.mark.parametrize("package", ["ssdcore", "ssdcore_torch"])
def test_messages_and_docstrings_are_in_plain_english(package: str) -> None:
    found = [
        f"{file.relative_to(ROOT)}:{line}: {text[max(0, match.start() - 30) : match.end() + 20]}"
        for file in sorted((ROOT / package).rglob("*.py"))
        for line, text in strings(ast.parse(file.read_text(encoding="utf-8")))
        for match in ARCHAIC.finditer(text)
    ]
    assert not found, "\n".join(found)


PROSE = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md")),
    *(page for folder in ("guides", "api") for page in (ROOT / "docs" / folder).glob("*.md")),
    *(ROOT / "docs" / name for name in ("index.md", "install.md", "tour.md", "theory.md", "reproduce.md", "faq.md")),
    *(ROOT / "notebooks").glob("*.ipynb"),
    *(ROOT / "benchmarks").rglob("*.md"),
]


def test_pages_and_notebooks_are_in_plain_english() -> None:
    found = []
    for file in sorted(PROSE):
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".ipynb":
            text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
        text = " ".join(text.split())
        found += [f"{file.name}: {text[max(0, m.start() - 30) : m.end() + 20]}" for m in ARCHAIC.finditer(text)]
    assert not found, "\n".join(found)


def test_turns_of_another_age_are_found() -> None:
    for text in (
        "x is no run folder",
        "mend it",
        "go on with it",
        "one an image",
        "40 images a step",
        "laid over white",
    ):
        assert ARCHAIC.search(text), text
    for text in ("there is no run", "is no longer there", "one per image", "which images a step trains on"):
        assert not ARCHAIC.search(text), text
