"""The notebooks can be read as they are committed: executed in order, without errors, small, and free of this machine.

That they run is checked by CI, which executes them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_they_are_numbered():
    assert [path.name[:3] for path in NOTEBOOKS] == [f"{i:02}_" for i in range(1, len(NOTEBOOKS) + 1)]
    assert len(NOTEBOOKS) == 5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_as_committed(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < 1.5e6
    notebook = json.loads(text)
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert not re.search(r'["\' (](/home|/root|/tmp|/work|/Users)/', text)
    first = "".join(notebook["cells"][0]["source"])
    assert first.startswith(f"# {int(path.name[:2])}. ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_is_explained_and_every_link_leads_somewhere(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = notebook["cells"]
    for i, cell in enumerate(cells):
        if cell["cell_type"] == "code" and any("image/png" in o.get("data", {}) for o in cell["outputs"]):
            nearby = cells[max(0, i - 2) : i]  # a figure may follow the cell that computes it
            assert any(other["cell_type"] == "markdown" for other in nearby), f"{path.name}, cell {i}"
        if cell["cell_type"] == "markdown":
            for link in re.findall(r"\]\(([^)#]+)\)", "".join(cell["source"])):
                assert "://" in link or (FOLDER / link).exists(), f"{path.name}: {link}"
