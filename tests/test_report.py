"""The page of a run: what stands in it, that nothing from the run's files becomes markup, and that a browser shows it."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import refusal
from PIL import Image

from ssdcore_torch import checkpoint, images, progress
from ssdcore_torch.commands import report
from ssdcore_torch.config import preset
from ssdcore_torch.denoisers.unet import FlexiUNet
from ssdcore_torch.metrics import report as evaluation_report
from ssdcore_torch.reports._charts import line_chart

EVIL = "<script>alert(1)</script>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """The texts, the tags and the addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an untrained network with two classes, one of a hostile name, that logged, drew and was evaluated."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    config = preset("cpu").overlaid({}, 8, 2)
    network = replace(config.network, base_channels=32, channel_multipliers=(1, 1), attention_sizes=(), num_classes=2)
    data = replace(config.data, classes=(), class_names=(EVIL, "cats"))
    config = replace(config, network=network, data=data, train=replace(config.train, clip=1.5))
    checkpoint.save_config(folder, config)
    torch.manual_seed(0)
    for name in ("model.safetensors", "ema.safetensors"):
        checkpoint.save_tensors(folder / name, FlexiUNet(network).state_dict(), {"step": "7"})
    rows = [
        {"step": k, "loss": 1 / k, "gradient_norm": 1.0, "images_per_second": 9.0, "paths": {"8×8→8×8": 1 / k}}
        for k in range(1, 1001)
    ]
    rows[3]["evaluation"] = {"frechet": 12.5}
    lines = [json.dumps(row) for row in rows]
    (folder / "log.jsonl").write_bytes("\n".join([*lines[:9], "[" * 100_000, *lines[9:], '{"st']).encode() + b"\xff\n")
    (folder / "samples").mkdir()
    for step in (10, 20):
        Image.new("RGB", (8, 8), "white").save(folder / "samples" / f"step-{step:08d}.png")
    (folder / "samples" / "step-00000030.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    assert report.main([str(run), "--device", "cpu"]) == 0
    return (run / "report.html").read_text(encoding="utf-8")


def test_everything_stands_in_one_file(page: str):
    parsed = Page(page)
    texts = " ".join(parsed.texts)
    for heading in (
        "Samples",
        "Samples over time",
        "From noise to image",
        "Training",
        "Quality",
        "Settings",
        "Commands",
    ):
        assert heading in parsed.texts
    assert "cats" in texts
    assert "train.clip" in texts
    assert {"[[8, 8], [4, 4]]", "[[16, 16], [8, 8], [4, 4]]"} <= set(parsed.texts)  # as config.json has them
    assert "data.class_names" not in texts  # nobody sets them
    assert "step 20" in texts
    assert "step 30" not in texts  # that file is no picture
    assert parsed.tags.count("polyline") >= 3
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in parsed.addresses)


def test_nothing_from_a_file_becomes_markup(page: str):
    parsed = Page(page)
    assert EVIL in parsed.texts
    assert parsed.tags.count("script") == 1
    assert "default-src 'none'" in page


def test_a_lossless_figure_and_its_floor(run: Path, tmp_path: Path):
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    figures = {"frechet": 3.25, "detail_ratio": 0.9}
    evaluation = {
        "format": evaluation_report.FORMAT,
        "n": 64,
        "figures": figures,
        "floor": {"frechet": 1.125},
        "features": {"name": "pixels", "fingerprint": "x"},
        "data": {"pixels_sha256": "x"},
    }
    (copied / "evaluation.json").write_text(json.dumps(evaluation))
    assert report.main([str(copied), "--out", str(tmp_path / "x.html"), "--device", "cpu"]) == 0
    texts = Page((tmp_path / "x.html").read_text()).texts
    assert {"3.25", "1.125", "0.9"} <= set(texts)


def test_a_run_without_a_log_has_a_page(run: Path, tmp_path: Path):
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    (copied / "log.jsonl").unlink()
    shutil.rmtree(copied / "samples")
    assert report.main([str(copied), "--device", "cpu"]) == 0
    texts = Page((copied / "report.html").read_text()).texts
    assert "This run has no log." in texts
    assert "Samples over time" not in texts


def test_what_is_not_a_run_is_refused(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]):
    assert "config.json" in refusal(capsys, report.main, tmp_path)
    assert "nowhere" in refusal(capsys, report.main, tmp_path / "nowhere")
    with pytest.raises(SystemExit):
        report.main([str(run), "--out", str(tmp_path / "x.pdf")])
    assert "end the name in .html" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("log", [False, True])
def test_a_chart_shows_what_it_can(log: bool):
    rng = np.random.default_rng(0)
    points = [(float(i), float(y)) for i, y in enumerate(rng.uniform(0.1, 1, 5000))]
    chart = line_chart(
        {"a": points, "b <": [(0.0, float("nan")), (1.0, 0.5)], "none": [(0.0, float("inf"))]}, "x", "y", log
    )
    assert "b &lt;" in chart
    assert "none" not in chart
    coordinates = [float(v) for line in re.findall(r'points="([^"]*)"', chart) for v in re.split("[ ,]", line)]
    assert 2 * 100 < len(coordinates) <= 2 * 400
    assert 0 <= min(coordinates) <= max(coordinates) <= 720
    assert line_chart({"a": [(0.0, float("nan"))]}, "x", "y", log) == ""
    assert "circle" in line_chart({"a": [(3.0, 2.0)]}, "x", "y", log)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_it(run: Path, page: str, tmp_path: Path):
    """The script ran: the page has one frame shown for each slider, at a phone's width and a desktop's."""
    file = run / "report.html"
    for width in (400, 1400):
        picture = tmp_path / f"{width}.png"
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},2000"]
        subprocess.run(
            [*command, f"--screenshot={picture}", file.as_uri()], check=True, timeout=400, capture_output=True
        )
        with Image.open(picture) as shot:
            pixels = np.asarray(shot.convert("L"))
            assert shot.width == width
            assert (pixels < 128).mean() > 0.005  # something is drawn
            assert len(np.unique(pixels)) > 50


def test_a_grid_has_a_heading_and_the_names_of_classes():
    tiles = torch.full((5, 3, 64, 64), 1.0)  # white, as the ground: all that is dark is text
    plain = np.asarray(images.grid(tiles).convert("L"))
    assert plain.min() == 255
    captions = images.class_captions([0, 1, 0, 1, 0], ("a cat", "a name that is far too long for its image"))
    shown = np.asarray(images.grid(tiles, title="step 7", captions=captions).convert("L")) < 128
    assert shown.shape == (plain.shape[0] + 3 * images.LINE, plain.shape[1])
    assert shown[: images.LINE].any()
    assert not shown[:, images.GAP + 64 : 2 * images.GAP + 64].any()  # between two columns: the long name is cut
    rows = shown[images.LINE + images.GAP + 64 :]
    for left, there in ((images.GAP, True), (2 * images.GAP + 64, True)):
        assert rows[: images.LINE, left : left + 64].any() == there
    assert images.class_captions([2], ()) == ["class 2"]
    assert images.class_captions([0, 1, 2], ("été", "猫", "cat")) in (
        ["ete", "class 1", "cat"],
        ["été", "class 1", "cat"],
    )
    assert images.class_captions(None, ("a",)) is None


@pytest.mark.parametrize("font", ["load_default", "load_default_imagefont"])  # with and without FreeType
def test_names_on_a_grid_are_printable(font: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images.ImageFont, "load_default", getattr(images.ImageFont, font))
    assert images.class_captions([0], ("a\x1b[2J",)) == ["a\\x1b[2J"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_drawing_has_a_bar_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    image = torch.zeros(1)

    def draw(stream: io.StringIO, **options: Any) -> str:
        monkeypatch.setattr(sys, "stderr", stream)
        with progress.drawing_bar(5, 2, 10, lambda t, *_: seen.append(t), **options) as record:
            for t in range(30):
                assert record is not None
                record(t, image, image)
        return stream.getvalue()

    monkeypatch.setattr(progress, "DELAY", 0.0)
    assert "/30" in draw(Terminal())
    assert draw(io.StringIO()) == ""
    assert draw(Terminal(), shown=False) == ""
    assert seen == 3 * list(range(30))
