"""benchmarks/gpu.py at toy sizes: what will run on a GPU for minutes runs here, and loses nothing where it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def bench(out: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Its exit status, and gpu.json."""
    command = [sys.executable, str(SCRIPT), "--tiny", "--out", str(out), *options]
    status = subprocess.run(command, capture_output=True, check=False).returncode
    return status, json.loads((out / "gpu.json").read_text())


@pytest.mark.slow
def test_every_section_measures_something(tmp_path: Path) -> None:
    status, said = bench(tmp_path, "--minutes", "30")
    assert status == 0, (tmp_path / "log.txt").read_text()
    assert all(text.startswith("done") for text in said["sections"].values())
    figures = {figure["what"]: figure for figure in said["figures"]}
    assert {figure["section"] for figure in figures.values()} == set(said["sections"])
    for how in ("plain", "graphs", "compiled"):
        assert figures[f"train, batch 4, {how}"]["value"] > 0
    for how in ("autocast", "bfloat16 copy", "as commands draw", "compiled"):
        assert figures[f"sample, 5 steps, batch 2, {how}"]["value"] > 0
    assert figures["tests: passed"]["value"] == 1
    assert figures["posterior sample 16→8, 16×3, float32 against float64"]["value"] < 1e-6
    table = (tmp_path / "gpu.md").read_text()
    assert all(f"| {what} | " in table for what in figures)
    for file in ("log.txt", "profile.txt", "samples.png", "figures.jsonl"):
        assert (tmp_path / file).stat().st_size > 0


@pytest.mark.slow
def test_a_section_that_fails_or_takes_too_long_loses_only_itself(tmp_path: Path) -> None:
    (tmp_path / "profile.txt").mkdir()  # which cannot be written then
    status, said = bench(tmp_path, "--only", "profile", "ceilings")
    assert status == 1
    assert said["sections"]["profile"].startswith("failed")
    assert said["sections"]["ceilings"].startswith("done")
    assert "IsADirectoryError" in (tmp_path / "log.txt").read_text()
    status, said = bench(tmp_path, "--only", "ceilings", "train", "--minutes", "0.04")
    assert status == 1
    assert said["sections"]["ceilings"].startswith("cut off")
    assert said["sections"]["train"] == "no time"
