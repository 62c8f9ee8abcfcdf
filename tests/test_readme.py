"""What the README shows must run as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_every_python_example_runs_in_order():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for number, block in enumerate(blocks, start=1):
        if "import torch" in block:
            pytest.importorskip("torch")
        exec(compile(block, f"README example {number}", "exec"), names)
    assert names["x_s"].shape == (8, 3, 64, 64)


def test_every_file_that_the_readme_links_exists():
    text = README.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links
    assert not [link for link in links if not (README.parent / link).exists()]
