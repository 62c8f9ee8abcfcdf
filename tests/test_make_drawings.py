"""The maker of the benchmark's drawings: what it refuses, and the file that it writes where its packages are."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "quality" / "make_drawings.py"
PIP = "pip install dicebear-core==10.7.0 dicebear-styles==10.6.0 resvg-py==0.5.0"
OTHERS = "dicebear", "dicebear_styles", "resvg_py", "PIL"
PIXELS = "8416c0cda2653bc76807ef954884f95fcfaa0f913fb2bbfdfe6c81a630553d35"  # SHA-256 of the first six of three classes


def call(*options: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A call of the script; a folder `path` comes first on the path of its modules."""
    command = [sys.executable, "-B", str(SCRIPT), *map(str, options)]
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def refusal(*options: object, path: Path | None = None) -> str:
    """The one line on stderr of a call that must fail with status 2, having said nothing on stdout."""
    result = call(*options, path=path)
    assert (result.returncode, result.stdout) == (2, ""), result
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--per-class", "0"], "argument --per-class: expected a whole number of at least 1, got 0"),
        (["--per-class", "many"], "argument --per-class: expected a whole number of at least 1, got many"),
        (["--first-seed", "-1"], "argument --first-seed: expected a whole number of at least 0, got -1"),
        (["--size", "1.5"], "argument --size: expected a whole number of at least 1, got 1.5"),
        (["--workers", "0"], "argument --workers: expected a whole number of at least 1, got 0"),
        (["--classes", "moods", "nobody"], "argument --classes: invalid choice: 'nobody'"),
        (["--classes", "moods", "moods"], "argument --classes: expected each class once, got moods moods"),
    ],
)
def test_bad_options_are_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    assert message in refusal(tmp_path / "out.npz", *options)
    assert not list(tmp_path.iterdir())


def test_the_output_must_be_a_file_in_a_folder_that_exists(tmp_path: Path) -> None:
    assert "is no folder; make it first" in refusal(tmp_path / "none" / "out.npz")
    assert "is a folder; name a file" in refusal(tmp_path)


@pytest.mark.parametrize("name", [*OTHERS, "numpy"])
def test_a_missing_package_is_one_line_that_says_how_to_install_it(tmp_path: Path, name: str) -> None:
    """Whatever is installed: one package cannot be found, the others are empty or their own."""
    for other in OTHERS:
        (tmp_path / f"{other}.py").write_text("Avatar = Style = Image = None\n", encoding="utf-8")
    text = f"raise ModuleNotFoundError('No module named {name}', name='{name}')\n"
    (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    message = refusal(tmp_path / "out.npz", path=tmp_path)
    assert message.startswith(f"error: {name} is not installed: {PIP}")
    assert "an environment of its own will do" in message
    assert not (tmp_path / "out.npz").exists()


def test_drawings_are_functions_of_their_class_and_seed(tmp_path: Path) -> None:
    """Classes take turns, a set of later seeds is the rest of a longer one, and the pixels are the documented ones."""
    for package in OTHERS:
        pytest.importorskip(package, reason=f"drawing needs {PIP}")
    digests = {}
    for out, *options in (("all", "--per-class", 2), ("later", "--per-class", 1, "--first-seed", 1)):
        result = call(tmp_path / out, "--classes", "moods", "planets", "sprouts", "--workers", 1, *options)
        assert result.returncode == 0, result.stderr
        digests[out] = result.stdout.split()[-1]
    with np.load(tmp_path / "all") as every, np.load(tmp_path / "later") as later:
        images = every["images"]
        assert (images.shape, images.dtype) == ((6, 64, 64, 3), np.uint8)
        assert every["labels"].tolist() == [0, 1, 2, 0, 1, 2]
        assert every["class_names"].tolist() == ["moods", "planets", "sprouts"]
        assert np.array_equal(images[3:], later["images"])
    assert digests["all"] == hashlib.sha256(images.tobytes()).hexdigest() == PIXELS
    assert {file.name for file in tmp_path.iterdir()} == {"all", "later"}
