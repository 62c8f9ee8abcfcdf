"""The front of quality against cost: what a budget buys, what a run leaves, and that each side runs on a GPU."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_gpu import FakeGpu

from ssdcore_torch.data import EMBEDDED, load_images
from ssdcore_torch.sampling import measure_residuals, to_float

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "quality"))

import front
import front_report
import jobs
import sides

FEW = {"steps": 7, "sampler": "multistep"}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.from_numpy(load_images(EMBEDDED, 16).images[:48]).permute(0, 3, 1, 2).contiguous()


class Means(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)


@pytest.fixture
def data(images: torch.Tensor, tmp_path: Path) -> Path:
    for name, part in (("train", images[:32]), ("test", images[32:])):
        np.savez(tmp_path / f"{name}.npz", images=part.permute(0, 2, 3, 1).numpy())
    torch.jit.save(torch.jit.trace(Means(), images[:2]), tmp_path / "features.pt")
    return tmp_path


def asked(monkeypatch: pytest.MonkeyPatch, data: Path, *more: str) -> None:
    options = ["--data", data, "--out", data / "out", "--budget", "1", "--samples", "4", "--batch", "2", *more]
    monkeypatch.setattr(sys, "argv", ["front.py", *map(str, options)])
    monkeypatch.setattr(front, "ROUNDS", 2)
    monkeypatch.setattr(front, "TIMED", 1)


@pytest.mark.slow
def test_a_run_leaves_rows_and_is_not_repeated(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = ["3 levels, by information", "1 level, density"]
    how = ["12 steps", "7 steps, multistep"]
    asked(monkeypatch, data, "--arms", *arms, "--seeds", "0", "--sampling", *how)
    front.main()
    rows = front_report.read_rows(data / "out")
    assert {(row["arm"], row["sampling"]) for row in rows} == {(a, h) for a in arms for h in how}
    bought = json.loads((data / "out" / "steps.json").read_text())
    assert all(row["steps"] == bought[row["arm"]] and row["batch"] == 2 for row in rows)
    assert all(np.isfinite([row["garments"], row["pixels"], *row["held_out"]]).all() for row in rows)
    cost = {(row["arm"], row["sampling"]): row["sample_gflop"] for row in rows}
    assert cost[arms[0], how[0]] < cost[arms[1], how[0]]
    before = {file: file.stat().st_mtime_ns for file in (data / "out").iterdir()}
    front.main()
    assert before == {file: file.stat().st_mtime_ns for file in (data / "out").iterdir()}
    assert "3 levels" in front_report.table(rows)
    gone = min((data / "out").glob("*steps.json"), key=lambda file: file.name == "steps.json")
    known = json.loads(gone.read_text())
    gone.unlink()
    asked(monkeypatch, data, "--arms", *arms, "--seeds", "0", "--sampling", *how, "--jobs", "2")
    front.main()
    assert json.loads(gone.read_text())["garments"] == pytest.approx(known["garments"], rel=1e-3)


def test_arms_are_compared_seed_by_seed() -> None:
    """Over the seeds that both have, at neighbouring costs alone."""

    def row(arm: str, how: str, seed: int, cost: float, garments: float) -> dict[str, object]:
        judged = {"garments": garments, "pixels": 2 * garments, "garments_floor": 0.0, "pixels_floor": 0.0}
        return {"arm": arm, "sampling": how, "seed": seed, "sample_gflop": cost, **judged}

    rows = [row("a", "7 steps", seed, 1.0, value) for seed, value in enumerate((5.0, 9.0, 100.0))]
    rows += [row("b", "5 steps", seed, 1.2, value) for seed, value in enumerate((7.0, 12.0))]
    rows += [row("b", "9 steps", seed, 2.0, value) for seed, value in enumerate((1.0, 1.0))]
    found = front_report.compared(rows, "a", "b").splitlines()[2:]
    assert found == ["| 7 steps, 1000 | 5 steps, 1200 | 2 | -2.5 ± 0.5 | -5 ± 1 |"]


def test_processes_run_side_by_side() -> None:
    """At most so many at once, each with the status that it ended with, and none after the time."""
    alive: list[subprocess.Popen[bytes]] = []

    def start(job: jobs.Job) -> subprocess.Popen[bytes]:
        assert sum(process.poll() is None for process in alive) < 2
        alive.append(subprocess.Popen([sys.executable, "-S", "-c", f"raise SystemExit({job[1]})"]))
        return alive[-1]

    wanted = [("a", 0), ("b", 3), ("c", 0)]
    assert sorted(jobs.side_by_side(wanted, start, 2, time.time() + 600)) == [(job, job[1]) for job in wanted]
    assert list(jobs.side_by_side(wanted, start, 2, time.time() - 1)) == []
    assert len(alive) == len(wanted)


def test_what_cannot_be_run_is_refused(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, said in ((["--arms", "5 levels"], "unknown arms"), (["--arms", "paper's code, 3 levels"], "--peer")):
        asked(monkeypatch, data, *more)
        with pytest.raises(SystemExit):
            front.main()
        assert said in capsys.readouterr().err


def test_an_arm_with_as_many_steps_has_those_of_the_other(
    data: Path, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others' code costs nothing here, so its own budget would buy more."""
    arms = {"ours": front.min_snr(1), "theirs": sides.Arm(peer="paper", steps_of="ours")}
    monkeypatch.setattr(front, "ARMS", arms)
    args = argparse.Namespace(out=data, device="cpu", batch=2, decay=0.9, budget=1.0, peer=None)
    found = front.planned(["theirs"], args, images)
    assert found["ours"] == found["theirs"] == front.planned(["theirs", "ours"], args, images)["ours"] >= 1


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    with FakeGpu(monkeypatch).on() as fake:
        yield fake


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        "3 levels, by information",
        "1 level, density",
        "diffusers DDPM",
        pytest.param(
            "denoising-diffusion-pytorch",
            marks=pytest.mark.skipif(
                not any((Path(p) / "denoising_diffusion_pytorch").is_dir() for p in sys.path), reason="not installed"
            ),
        ),
    ],
)
def test_each_side_trains_and_samples_on_a_gpu(name: str, gpu: FakeGpu, images: torch.Tensor) -> None:
    """No tensor of the host meets one of the device."""
    recipe = sides.Recipe(torch.device("cuda"), batch=4)
    side = sides.opened(front.ARMS[name], 0, images, recipe, None)
    training = side.training(images, 0, 10)
    for _, path in training.paths:
        training.advance(path)
    assert next(training.average.parameters()).is_cuda
    side.net.load_state_dict({key: value.cpu() for key, value in training.average.state_dict().items()})
    net = side.net.eval().requires_grad_(False)
    assert next(net.parameters()).is_cuda
    if isinstance(side, sides.Ours):
        side.residuals = measure_residuals(net, side.process, [(to_float(images[:4]).to("cuda"), None)], clip=True)
        assert np.isfinite(side.held_out(net, to_float(images[:4]))).all()
        assert side.sample(net, 2, FEW).is_cuda
    assert side.sample(net, 2, {"steps": 4}).is_cuda
