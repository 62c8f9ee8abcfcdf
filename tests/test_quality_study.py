"""The study of quality under a budget: what a budget buys, that a run continues where it stopped, what is reported."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import ssdcore as ssd
from ssdcore_torch import load_run
from ssdcore_torch.checkpoint import checkpoints
from ssdcore_torch.data import EMBEDDED, load_images
from ssdcore_torch.denoisers.unet import forward_flops
from ssdcore_torch.distributed import connect

FOLDER = Path(__file__).parents[1] / "benchmarks" / "quality"
sys.path.insert(0, str(FOLDER))

import arms  # noqa: E402
import diagnose  # noqa: E402
import guidance  # noqa: E402
import report  # noqa: E402
import study  # noqa: E402

SMALL = arms.Suite(
    16,
    "cpu",
    1280,
    "images",
    {
        "1 level": arms.Arm(1, arms.PAPER_RECIPE),
        "3 levels": arms.Arm(3, arms.merged(arms.MATCHED_EQUAL, arms.changes(0.1), arms.bias(0.5)), {"steps": 4}),
    },
    settings={"data": {"classes": []}, "train": {"batch_size": 16}},
    samples=8,
    sampling={"steps": 3},
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(training images, held-out images): 32 drawings each."""
    folder, drawings = tmp_path_factory.mktemp("data"), load_images(EMBEDDED, 16)
    paths = folder / "train.npz", folder / "reference.npz"
    for path, part in zip(paths, (slice(0, 32), slice(32, 64))):
        assert drawings.labels is not None
        names = np.array(drawings.class_names)
        np.savez(path, images=drawings.images[part], labels=drawings.labels[part], class_names=names)
    return paths


def test_settings_are_laid_over_each_other_section_by_section() -> None:
    found = arms.merged({"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 4}}, {"b": 5})
    assert found == {"a": {"x": 1, "y": 4}, "b": 5}


@pytest.mark.parametrize("name", sorted(arms.SUITES))
def test_every_arm_of_every_suite_is_a_configuration_and_has_a_folder_of_its_own(name: str) -> None:
    suite = arms.SUITES[name]
    for arm in suite.arms:
        config = suite.config(arm, seed=3, data="drawings.npz", steps=7)
        assert (config.size, config.seed, config.train.steps) == (suite.size, 3, 7)
        assert config.build_process().shapes == config.network.level_sizes
    assert len({study.folder_of(Path("x"), arm, 0) for arm in suite.arms}) == len(suite.arms)


def test_what_a_budget_buys() -> None:
    config = SMALL.config("3 levels", 0, "drawings.npz", 10)
    # a step at the times' share, leaning to large sizes: 334, 333 and 333 times a level of 16, 8 and 4 pixels
    keeping = np.array([333 * 16, 333 * 8, 332 * 4]) / (333 * 16 + 333 * 8 + 332 * 4) * 0.9
    changing = np.array([16, 8]) / 24 * 0.1
    flops = [forward_flops(config.network, k) for k in range(3)]
    rising = [forward_flops(config.network, k + 1, k) for k in range(2)]
    expected = 3 * (keeping @ flops + changing @ rising)
    assert study.training_flops(config) == pytest.approx(expected, rel=2e-3)  # counts of times to a whole number
    with connect("cpu") as world:
        assert study.steps_of(SMALL, "3 levels", "drawings.npz", world) == 80  # 1280 images in batches of 16
        gflop = arms.Suite(16, "cpu", expected * 16 * 20 / 1e9, "gflop", SMALL.arms, SMALL.settings)
        assert study.steps_of(gflop, "3 levels", "drawings.npz", world) == 20
    process = config.build_process()
    three = study.sampling_flops(process, config, {"steps": 3})
    assert three == flops[2] + rising[1] + rising[0]  # t = 1000 → 667 → 334 → 0


def test_lifting_inverts_the_resize_and_adds_no_fine_modes() -> None:
    small = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    process = SimpleNamespace(kernel="bilinear")
    config = SimpleNamespace(network=SimpleNamespace(level_sizes=((16, 16), (8, 8))), process=process)
    run = SimpleNamespace(config=config, ema=lambda x, t, out_level: x)
    lifted = diagnose.lifted(run)(small, torch.ones(2), 0)  # type: ignore[arg-type]
    resize = ssd.Resize((16, 16), (8, 8))
    torch.testing.assert_close(resize(lifted), small)
    null = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    null = null - torch.from_numpy(np.linalg.pinv(resize.as_matrix())).matmul(
        resize(null).reshape(2, 3, 64, 1)
    ).reshape(null.shape)
    assert (lifted * null).sum().abs() < 1e-9 * lifted.norm() * null.norm()


@pytest.mark.slow
def test_a_run_goes_on_where_its_slice_ended_and_is_reported(files: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    out = tmp_path / "study"
    args = argparse.Namespace(data=files[0], reference=files[1], out=out)
    out.mkdir()
    study.budget(SMALL, list(SMALL.arms), str(files[0]), out)
    assert json.loads((out / "steps.json").read_text()) == {"1 level": 80, "3 levels": 80}
    for arm in SMALL.arms:
        folder = study.folder_of(out, arm, 0)
        study.work(SMALL, arm, 0, args, until=time.time())  # no time at all
        assert not (folder / "training.json").exists()
        study.work(SMALL, arm, 0, args, until=time.time() + 2.5)  # not enough for 80 steps
        assert not (folder / "row.json").exists()
        assert load_run(folder).step < 80 if checkpoints(folder) else True
        study.work(SMALL, arm, 0, args, until=time.time() + 600)
        row = json.loads((folder / "row.json").read_text())
        assert (row["arm"], row["steps"], row["images"], row["samples"]) == (arm, 80, 1280, 8)
        assert np.load(folder / "samples.npz")["images"].shape == (8, 16, 16, 3)
        assert row["train_seconds"] > 0
        assert all(np.isfinite(row[features]["frechet"]) for features in study.FEATURES)
    rows = report.read_rows(out)
    assert list(rows) == list(SMALL.arms)
    table = report.table(rows)
    assert table.count("\n") == 5
    assert f"{rows['3 levels'][0]['lite0']['frechet']:.3g}" in table


def test_the_table_of_guidance_is_that_of_its_rows() -> None:
    rows = json.loads((FOLDER / "results" / "guidance28.json").read_text(encoding="utf-8"))
    lines = guidance.table(rows).splitlines()
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [line for line in lines if line.startswith("|") and line not in page] == []
    assert {row["guidance"] for row in rows} == set(guidance.SCALES)


@pytest.mark.slow
def test_what_guidance_is_measured_with_trains_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "train.npz", images=images, labels=np.arange(40) % 10)
    monkeypatch.setattr("ssdcore_torch.training.pictures.SAMPLES", 2)
    monkeypatch.setattr("ssdcore_torch.training.pictures.SAMPLE_STEPS", 2)
    monkeypatch.setattr(guidance, "ARMS", {"3 levels": (3, 3)})
    run = guidance.trained(tmp_path, "3 levels", 2, str(tmp_path / "train.npz"))
    assert run.step == 2
    assert guidance.trained(tmp_path, "3 levels", 2, "nothing").step == 2
    judge = lambda samples, labels: {"agreement": float((labels == torch.arange(4)).all()), "frechet": 1.0}  # noqa: E731
    for _ in range(2):  # the second finds the row
        guidance.measure(run, "3 levels", 2.0, tmp_path, 4, judge)  # type: ignore[arg-type]
        judge = None  # type: ignore[assignment]
    row = json.loads((tmp_path / "3-levels-2.json").read_text())
    assert row["agreement"] == 1
    assert row["sample_gflop"] > 0
