"""Pages of the site that are made when it is built: from the library, and from files that have a place elsewhere."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import ssdcore as ssd

HERE = Path(__file__).parent
ROOT = HERE.parent


PAGES = {
    "changelog.md": ROOT / "CHANGELOG.md",
    "figures.md": ROOT / "benchmarks" / "README.md",
    "quality.md": ROOT / "benchmarks" / "quality" / "README.md",
    "security.md": ROOT / "SECURITY.md",
    "machine-checked.md": ROOT / "proofs" / "README.md",
}
"""Pages that are files of the repository."""


def make() -> None:
    """Write them anew (git ignores them)."""
    (HERE / "proofs.md").write_text(_proofs(), encoding="utf-8")
    for page, file in PAGES.items():
        (HERE / page).write_text(_moved(file), encoding="utf-8")
    notebooks = HERE / "notebooks"
    shutil.rmtree(notebooks, ignore_errors=True)
    notebooks.mkdir()
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text = notebook.read_text(encoding="utf-8").replace("../benchmarks/quality/README.md", "../quality.md")
        (notebooks / notebook.name).write_text(text, encoding="utf-8")


def _moved(file: Path) -> str:
    """A file's text, its links to files of the repository leading there from docs/, or to the pages made of them."""
    pages = {source.resolve(): page for page, source in PAGES.items()}

    def link(match: re.Match[str]) -> str:
        target = match[1]
        if "://" in target or target.startswith("#"):
            return match[0]
        path = (file.parent / target).resolve()
        return f"]({pages.get(path) or os.path.relpath(path, HERE)})"

    return re.sub(r"\]\(([^)\s]+)\)", link, file.read_text(encoding="utf-8"))


def _proofs() -> str:
    parts = [
        "# The proofs, step by step",
        "`ssd.theorems.prove(name)` prints this. Each step is checked symbolically when the page is built. Near misses "
        "of each statement (a wrong sign, a missing transpose) are refuted by the same machinery.",
    ]
    for name in ssd.theorems.names():
        proof = ssd.theorems.prove(name)
        if not proof.holds:
            raise ValueError(f"the proof of {name} does not hold")
        parts += [f"## `{name}`", f"```text\n{proof}\n```"]
        refuted = ssd.theorems.false_variants(name)
        parts.append("Refuted variants: " + ", ".join(f"`{variant}`" for variant in refuted) + ".")
    return "\n\n".join(parts) + "\n"
