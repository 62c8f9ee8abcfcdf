"""The site: every page's code runs as it stands, every link leads somewhere, every command takes the options shown."""

from __future__ import annotations

import html
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MADE = {
    "proofs.md",
    "changelog.md",
    "figures.md",
    "quality.md",
    "machine-checked.md",
    "security.md",
}  # when the site is built
PAGES = sorted(page for page in DOCS.rglob("*.md") if page.name not in MADE)
# these train a network for a few steps
TRAINING = {"guides/train-on-your-images.md", "guides/train-your-network.md", "guides/restore.md"}


def name(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def code_pages() -> list[object]:
    marks = {page: [pytest.mark.slow] if name(page) in TRAINING else [] for page in PAGES}
    found = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]
    return [pytest.param(page, id=name(page), marks=marks[page]) for page in found]


@pytest.mark.parametrize("page", code_pages())
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert blocks
    names: dict[str, object] = {"__name__": "docs"}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"{name(page)}, example {number}", "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    missing = [link for link in links if Path(link).name not in MADE and not (page.parent / link).exists()]
    assert not missing
    for entry in re.findall(r"```\{toctree\}(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        for line in filter(None, map(str.strip, entry.splitlines())):
            if not line.startswith(":") and "*" not in line and f"{line}.md" not in MADE:
                assert (page.parent / f"{line}.md").exists(), line


def test_every_page_is_reached():
    reached = {"index.md"}
    for page in PAGES:
        for entry in re.findall(r"```\{toctree\}(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            reached |= {
                (page.parent / f"{line}.md").resolve().relative_to(DOCS).as_posix()
                for line in map(str.strip, entry.splitlines())
                if line and not line.startswith(":") and "*" not in line
            }
    assert {name(page) for page in PAGES} <= reached


def test_every_command_takes_the_options_shown():
    pytest.importorskip("torch")
    shown = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")  # a command over several lines
        shown += re.findall(r"-m (?:-- )?ssdcore_torch\.(\w+)((?: [^`\n#&]+)?)", text)
    assert {command for command, _ in shown} >= {"train", "sample", "evaluate", "report", "convert", "prepare"}
    for command, options in shown:
        parser = importlib.import_module(f"ssdcore_torch.commands.{command}").parser()
        if options.strip():
            parser.parse_args(shlex.split(options))  # exits, with the reason on stderr, at one that it does not know


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path):
    pytest.importorskip("sphinx")
    made = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(tmp_path / "site")]
    ran = subprocess.run(made, capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr[-4000:]
    pages = list((tmp_path / "site").resolve().rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:  # a reader without a network sees everything
        loaded = re.findall(
            r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?://[^\"]+)", page.read_text(encoding="utf-8")
        )
        assert not [address for address in loaded if "canonical" not in address], page
    assert not dangling(pages)
    shutil.rmtree(tmp_path / "site")


def dangling(pages: list[Path]) -> set[tuple[str, str]]:
    """(page, link) of links within the site to a file or heading that is not there."""
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    anchors = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in texts.items()}
    found = set()
    for page, text in texts.items():
        for link in map(html.unescape, re.findall(r'<(?:a|img|link|script)\b[^>]+?(?:href|src)="([^"]*)"', text)):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, heading = link.partition("#")
            target = (page.parent / unquote(path.partition("?")[0])).resolve() if path else page
            if not target.exists() or (heading and target in anchors and unquote(heading) not in anchors[target]):
                found.add((page.name, link))
    return found


def test_a_dangling_link_is_seen(tmp_path: Path):
    page = tmp_path.resolve() / "a.html"
    links = ["#here", "#there", "b.html?v=1", "http://x", ""]
    page.write_text('<p id="here">' + "".join(f'<a class="x" href="{link}">' for link in links), encoding="utf-8")
    assert dangling([page]) == {("a.html", "#there"), ("a.html", "b.html?v=1")}
