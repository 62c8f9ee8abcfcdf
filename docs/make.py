"""The API reference as HTML, from the docstrings: python docs/make.py [FOLDER]

pdoc makes the pages. Our docstrings are plain text, with `name   meaning` in columns, formulas indented and examples
after >>>; pdoc takes Markdown, so each is turned into it here. Any warning is an error.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pdoc
import pdoc.render

import ssdcore

PACKAGES = ("ssdcore", "ssdcore_torch")
# Documented where they are re-exported, in `ssdcore`, and not a second time where they are written.
REEXPORTED = re.compile(r"ssdcore\.(operators|process|schedules|gaussian|conditioning|spectral)")
_COLUMNS = re.compile(r"(?P<name>\S(?:.{0,46}?\S)?)  +(?P<text>\S.*)")
_CODE = re.compile(r"(``.+?``|`.+?`)", flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("build/api"), help="where to (default build/api)")
    folder = parser.parse_args().folder
    build(folder)
    print(f"wrote {folder / 'index.html'}")


def build(folder: Path) -> None:
    """Write the pages under `folder`. Raises a Warning for anything that pdoc cannot import, parse or resolve."""
    folder.mkdir(parents=True, exist_ok=True)
    pdoc.render.configure(docformat="markdown", show_source=False, footer_text=f"ssdcore {ssdcore.__version__}")
    pdoc.render.env.filters["to_markdown"] = to_markdown
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # pdoc looks for the names in a NamedTuple's annotations in the wrong module, and shows them as they stand.
        warnings.filterwarnings("ignore", r"Error parsing type annotation .* for ssdcore\.oracle\.Fit\.__init__")
        pdoc.pdoc(*pages(), output_directory=folder)


def pages() -> list[str]:
    """The packages and the public modules directly inside them."""
    names = list(PACKAGES)
    for package in PACKAGES:
        holder = importlib.import_module(package)
        inside = (f"{package}.{module.name}" for module in pkgutil.iter_modules(holder.__path__))
        reached = {f"{package}.{name}" for name in holder.__all__}  # pdoc goes there from the package
        names += [
            name for name in inside if "._" not in name and name not in reached and not REEXPORTED.fullmatch(name)
        ]
    for name in names:  # pdoc sees only what a module holds, so load what it gives on first use
        module = importlib.import_module(name)
        vars(module).update({public: getattr(module, public) for public in getattr(module, "__all__", ())})
    return names


def to_markdown(docstring: str) -> str:
    """A docstring of this project as Markdown: columns become a list, indented parts and examples code."""
    return "\n\n".join(part for block in re.split(r"\n\s*\n", docstring.strip("\n")) for part in _block(block))


def _block(block: str) -> Iterator[str]:
    lines = block.split("\n")
    if lines[0].lstrip().startswith(">>>"):
        yield _fenced("pycon", lines)
        return
    if lines[0].startswith("  "):
        yield _fenced("text", lines)
        return
    prose: list[str] = []
    rows: list[str] = []
    for line in lines:
        row = _COLUMNS.fullmatch(line)
        if row:
            rows.append(line)
        elif rows and line.startswith(" "):
            rows[-1] += " " + line.strip()
        else:
            if rows:
                yield _list(rows)
                rows = []
            prose.append(line)
            continue
        if prose:
            yield _text("\n".join(prose))
            prose = []
    if prose:
        yield _text("\n".join(prose))
    if rows:
        yield _list(rows)


def _fenced(language: str, lines: list[str]) -> str:
    margin = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return "\n".join([f"```{language}", *(line[margin:] for line in lines), "```"])


def _list(rows: list[str]) -> str:
    items = []
    for row in rows:
        for part in re.split(r";  +", row):
            columns = _COLUMNS.fullmatch(part)
            name, text = (columns["name"], columns["text"]) if columns else ("", part)
            text = _text(re.sub(r"  +", " – ", text))  # a third column, such as a shape before its meaning
            items.append(f"- **{_text(name)}**: {text}" if name else f"- {text}")
    return "\n".join(items)


def _text(prose: str) -> str:
    """Prose with what Markdown would take for markup made literal, except code between backticks."""
    parts = _CODE.split(prose)
    parts[::2] = [re.sub(r"([\\*_\[\]#])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    return "".join(parts)


if __name__ == "__main__":
    main()
