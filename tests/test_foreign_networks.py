"""Networks of the user's own: several processes train them as one does, what they cannot do is said at once; --minutes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import DEADLINE
from torch import Tensor, nn

import ssdcore as ssd
from ssdcore_torch import Run, wrap

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
TRAIN = {"train": {"steps": 4, "batch_size": 4, "warmup": 0, "save_every": 4, "log_every": 1}}


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(x) + (t / 50).view(-1, 1, 1, 1)


def resize() -> ssd.LinearDiffusion:
    return ssd.LinearDiffusion.resize((8, 8), ssd.NoiseSchedule.cosine(40), ssd.ResolutionSchedule.equal(40, 2))


def train(out: Path) -> Run:
    run = Run.create(
        out, data=IMAGES, network=wrap(Own(), resize(), "velocity", channels=3), settings=TRAIN, device="cpu"
    )
    assert run.train()
    return run


@pytest.mark.multiprocess
def test_two_processes_train_a_foreign_network_as_one_does(tmp_path: Path) -> None:
    alone = train(tmp_path / "alone")
    script = tmp_path / "both.py"
    script.write_text(
        "import sys; from pathlib import Path\n"
        "import conftest, pytest\n"
        "conftest.small_ends(pytest.MonkeyPatch())\n"
        "from test_foreign_networks import train\n"
        "train(Path(sys.argv[1]))\n"
    )
    root = Path(__file__).parents[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root}:{root / 'tests'}"}
    done = subprocess.run(
        [*launch, str(tmp_path / "both")], env=environment, capture_output=True, text=True, timeout=DEADLINE
    )
    assert done.returncode == 0, done.stderr
    together = Run.open(tmp_path / "both", network=wrap(Own(), resize(), "velocity", channels=3), data=IMAGES)
    for name in ("net", "ema"):
        ours, theirs = getattr(alone, name).state_dict(), getattr(together, name).state_dict()
        for key in ours:
            torch.testing.assert_close(theirs[key], ours[key], rtol=1e-4, atol=1e-6)
    assert alone.residuals is not None
    assert together.residuals is not None
    for one, two in zip(alone.residuals.paths, together.residuals.paths):
        assert one is not None
        assert two is not None
        np.testing.assert_allclose(two[1], one[1], rtol=1e-2)
    drawn = together.sample(2, steps=5, seed=3)
    torch.testing.assert_close(drawn, alone.sample(2, steps=5, seed=3), rtol=0, atol=1e-2)


class Plain(nn.Module):
    """The protocol, and nothing else."""

    sizes, channels, num_classes, null_label = ((8, 8), (4, 4)), 3, None, None

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, out_level: int | None = None, label: Tensor | None = None) -> Tensor:
        size = x.shape[2:] if out_level is None else self.sizes[out_level]
        return nn.functional.interpolate(self.layer(x), tuple(size))


def test_whatever_keeps_the_protocol_trains_resumes_and_samples(tmp_path: Path) -> None:
    """In the process of the configuration, which takes the sizes of the network."""
    settings = {"process": {"steps": 40, "noise": "cosine"}, "train": {**TRAIN["train"], "cosine_decay": False}}
    whole = Run.create(tmp_path / "whole", data=IMAGES, network=Plain(), settings=settings, device="cpu")
    assert whole.process.shapes == Plain.sizes
    assert whole.train()
    parts = Run.create(tmp_path / "parts", data=IMAGES, network=Plain(), settings=settings, device="cpu")
    assert parts.train(2)
    parts = Run.open(tmp_path / "parts", network=Plain(), data=IMAGES)
    assert parts.train(4)
    assert torch.equal(parts.net.layer.weight, whole.net.layer.weight)
    assert torch.equal(parts.sample(2, steps=4), whole.sample(2, steps=4))
    with pytest.raises(ValueError, match=r"Plain, which a folder cannot make again: give it"):
        _ = Run.open(tmp_path / "parts").net


def test_a_null_label_that_training_does_not_know_is_refused(tmp_path: Path) -> None:
    network = Plain()
    network.num_classes, network.null_label = 2, 5  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"must be num_classes, 2; null_label is 5$"):
        Run.create(tmp_path / "run", data=(IMAGES, [0, 1] * 6), network=network, settings=TRAIN, device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", ["recompute", "compile"])
def test_what_a_foreign_network_cannot_do_is_refused_before_anything_is_written(setting: str, tmp_path: Path) -> None:
    network = wrap(Own(), resize(), channels=3)
    settings = {"train": {**TRAIN["train"], setting: True}}
    with pytest.raises(ValueError, match=rf"^train\.{setting}: [^\n]*$"):
        Run.create(tmp_path / "run", data=IMAGES, network=network, settings=settings, device="cpu")
    assert not (tmp_path / "run").exists()


def test_minutes_decide_the_steps_and_decays_follow(monkeypatch, tmp_path: Path) -> None:
    """Half a second a step, as measured: a tenth of a minute is twelve steps, and the rate falls to nothing in them."""
    plan = sys.modules["ssdcore_torch.training.plan"]  # whose name in the package is its function's
    monkeypatch.setattr(plan, "_seconds_a_step", lambda trainer, images, path: 0.5)
    settings = {"train": {**TRAIN["train"], "steps": 1000, "cosine_decay": True, "learning_rate": 1e-3}}
    run = Run.create(
        tmp_path / "run", data=IMAGES, network=wrap(Own(), resize(), channels=3), settings=settings, minutes=0.1,
        device="cpu",
    )  # fmt: skip
    assert run.config.train.steps == 12
    assert run.train()
    assert run.step == 12
    rates = [json.loads(line)["learning_rate"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert rates[0] == pytest.approx(1e-3, rel=0.05)
    assert rates[-1] < 1e-3 * (math.pi / 12) ** 2
    again = Run.open(tmp_path / "run", network=wrap(Own(), resize(), channels=3), data=IMAGES)
    assert again.config.train.steps == 12
