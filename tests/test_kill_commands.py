"""Commands killed at every change that they make to the disk: what has its name is whole, and the same command, given
again, makes the same bytes. (Training: test_kill.py; preparing: test_prepare.py.)"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import killed_at_every_change
from test_bad_commands import make_run

from ssdcore_torch.commands import convert, ema, evaluate, report, sample

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("killed"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def every_kill(
    tmp_path: Path, main: Callable[[list[str]], int], options: Callable[[Path], list[object]], every: int = 1
) -> int:
    """The command in folders 1, 2, …, killed at its first, second, … change, and then given again."""

    def command(folder: Path) -> None:
        assert main([str(option) for option in options(folder)]) == 0

    (tmp_path / "whole").mkdir()
    command(tmp_path / "whole")
    whole = contents(tmp_path / "whole")

    def work(call: int) -> None:
        (tmp_path / str(call)).mkdir(exist_ok=True)
        command(tmp_path / str(call))

    def then(call: int) -> None:
        folder = tmp_path / str(call)
        folder.mkdir(exist_ok=True)
        for name, content in contents(folder).items():
            assert ".tmp" in name or like(content) == like(whole[name])
        if set(contents(folder)) != set(whole):  # else it was done, and says so if asked again
            command(folder)
            assert {name: like(content) for name, content in contents(folder).items() if ".tmp" not in name} == {
                name: like(content) for name, content in whole.items()
            }

    return killed_at_every_change(work, then, every)


def like(content: bytes) -> object:
    """A file's bytes, but for what a page and an evaluation's report say of their time."""
    if not content.startswith(b"{"):
        return re.sub(rb"Report made [^<]*", b"", content) if content.startswith(b"<!DOCTYPE") else content
    values = json.loads(content)
    for key in ("date", "seconds", "images_per_second", "command"):
        values.pop(key, None)
    return values


def test_drawing(run: Path, tmp_path: Path) -> None:
    kills = every_kill(
        tmp_path,
        sample.main,
        lambda folder: [
            run, "--device", "cpu", "--n", 2, "--steps", 2, "--force", "--out", folder / "a.png", "--gif", folder / "a.gif"
        ],
    )  # fmt: skip
    assert kills >= 6


def test_evaluating(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    kills = every_kill(
        tmp_path,
        evaluate.main,
        lambda folder: [
            run, "--device", "cpu", "--n", 4, "--steps", 2, "--features", "pixels", "--force", "--out", folder / "e.json",
            "--cache", folder / "cache",
        ],
        every=3,
    )  # fmt: skip
    assert kills >= 9


def test_averaging(run: Path, tmp_path: Path) -> None:
    options: Callable[[Path], list[object]] = lambda folder: [  # noqa: E731
        run, "--width", 0.07, "--force", "--out", folder / "x.safetensors"
    ]  # fmt: skip
    assert every_kill(tmp_path, ema.main, options) >= 3


def test_reporting(run: Path, tmp_path: Path) -> None:
    options: Callable[[Path], list[object]] = lambda folder: [run, "--device", "cpu", "--out", folder / "x.html"]  # noqa: E731
    assert every_kill(tmp_path, report.main, options) >= 2


def test_converting(tmp_path: Path) -> None:
    official = Path(__file__).parent / "data" / "flexi_unet_tiny.safetensors"
    assert every_kill(tmp_path, convert.main, lambda folder: [official, "--levels", 3, "--out", folder / "run"]) >= 14
    for folder in tmp_path.iterdir():
        assert [path.name for path in folder.iterdir()] == ["run"]  # what was killed has been swept
