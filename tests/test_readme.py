"""What the README shows must run as it stands."""

import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_every_python_example_runs_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    if importlib.util.find_spec("torch"):  # cheap pictures at the end of the run
        pictures = importlib.import_module("ssdcore_torch.training.pictures")
        monkeypatch.setattr(pictures, "SAMPLES", 4)
        monkeypatch.setattr(pictures, "SAMPLE_STEPS", 4)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for number, block in enumerate(blocks, start=1):
        if "ssdcore_torch" in block:
            pytest.importorskip("torch")
        exec(compile(block, f"README example {number}", "exec"), names)
    assert names["x_s"].shape == (8, 3, 64, 64)


def test_every_file_that_the_readme_links_exists():
    text = README.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    links += re.findall(r'<img src="([^"]+)"', text)
    assert len([link for link in links if link.endswith((".png", ".gif"))]) >= 3
    assert not [link for link in links if not (README.parent / link).exists()]


def test_every_command_of_the_package_takes_the_options_shown():
    pytest.importorskip("torch")
    text = README.read_text(encoding="utf-8").replace("\\\n", " ")  # a command over several lines
    shown = re.findall(r"-m (?:-- )?ssdcore_torch\.(\w+)((?: [^`\n#&]+)?)", text)
    assert {name for name, _ in shown} >= {"train", "sample", "evaluate", "ema", "convert", "prepare"}
    for name, options in shown:
        parser = importlib.import_module(f"ssdcore_torch.commands.{name}").parser()
        if options.strip():
            parser.parse_args(shlex.split(options))  # exits, with the reason on stderr, at one that it does not know


def test_the_readme_is_a_screen_and_a_half():
    text = re.sub(r"```.*?```", "", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(text.split()) <= 900
