"""Adding a sampler or a noise schedule is one entry: everything that names them takes the new one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import ssdcore as ssd
from ssdcore import schedules
from ssdcore.__main__ import main as ssdcore_command
from ssdcore.sampling import SAMPLERS, Sampler
from ssdcore_torch import Run, generate
from ssdcore_torch.commands import sample as sample_command
from ssdcore_torch.commands import train as train_command
from ssdcore_torch.runs import Drawing

SPECTRUM = (1 + np.hypot(*np.indices((8, 8)))) ** -2.5
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
TINY = {
    "network": {"base_channels": 32, "channel_multipliers": [1, 1], "attention_sizes": []},
    "train": {"steps": 1, "batch_size": 2, "warmup": 0},
    "process": {"steps": 40},
}


def test_a_new_sampler_is_one_entry(monkeypatch, tmp_path: Path) -> None:
    toy = Sampler(eta=0.5, order=1, placement="log_snr")
    monkeypatch.setitem(SAMPLERS, "toy", toy)
    run = Run.create(tmp_path / "run", data=IMAGES, size=8, levels=2, settings=TINY, device="cpu")
    run.train()
    expected = generate(run.ema, run.process, 2, 6, 0.5, placement="log_snr", prior=run.prior)
    # the sampler, the run, the command and the oracle
    assert torch.equal(generate(run.ema, run.process, 2, 6, sampler="toy", prior=run.prior), expected)
    assert torch.equal(run.sample(2, steps=6, sampler="toy"), expected)
    assert Drawing(6, "toy").times(run.process, None) == toy.times(run.process, 6)
    out = tmp_path / "grid.png"
    assert sample_command.main([str(run.path), "--n", "1", "--steps", "6", "--sampler", "toy", "--out", str(out)]) == 0
    assert out.exists()
    data = ssd.Covariance.cosine(SPECTRUM)
    errors = [
        ssd.oracle.sampler_error(run.process, data, s.times(run.process, 6), s.eta, order=s.order)
        for s in (toy, dataclasses.replace(toy, eta=1.0))
    ]
    assert 0 < errors[0] < errors[1]
    # and diffusers
    interop = pytest.importorskip("ssdcore_torch.interop.diffusers_scheduler")
    scheduler = interop.SSDScheduler(level_sizes=[[8, 8]], num_train_timesteps=40, sampler="toy")
    scheduler.set_timesteps(6)
    assert [t + 1 for t in scheduler.timesteps.tolist()] == list(reversed(toy.times(scheduler.process, 6)))
    x, clean = torch.randn(2, 1, 3, 8, 8)
    k = 4
    drawn = scheduler.step(clean, scheduler.timesteps[2], x, variance_noise=torch.ones_like(x)).prev_sample
    law = scheduler.chain.posterior(x, clean.clamp(-1, 1), k - 1, k, eta=0.5)
    torch.testing.assert_close(drawn, law.sample(torch.ones_like(x)))


def test_a_new_noise_schedule_is_one_entry(monkeypatch, tmp_path: Path, capsys) -> None:
    def toy(steps: int) -> ssd.NoiseSchedule:
        return ssd.NoiseSchedule.from_log_snr(np.linspace(6, -6, steps))

    monkeypatch.setitem(schedules.NOISE_SCHEDULES, "toy", toy)
    assert "toy" in ssd.NoiseSchedule.names()
    # design, training from its schedule and by name, the run folder, sampling
    schedule = tmp_path / "schedule.json"
    command = ["design", "--noise", "toy", "--size", "8", "--levels", "2", "--steps", "8", "--process-steps", "40"]
    assert ssdcore_command([*command, "--tolerance", "5", "--out", str(schedule)]) == 0
    designed = ssd.oracle.Schedule.load(schedule)
    assert designed.noise == "toy"
    assert train_command.main(["--schedule", str(schedule), "--steps", "1", "--size", "8", "--levels", "2", "--out",
                               str(tmp_path / "designed"), "--device", "cpu"]) == 0  # fmt: skip
    assert Run.open(tmp_path / "designed").config.process.noise == "toy"
    settings = {**TINY, "process": {"steps": 40, "noise": "toy", "matched": False}}
    run = Run.create(tmp_path / "run", data=IMAGES, size=8, levels=2, settings=settings, device="cpu")
    run.train()
    again = Run.open(tmp_path / "run")
    np.testing.assert_allclose(again.process.noise.alpha, toy(40).alpha)
    assert again.sample(1, steps=4).shape == (1, 3, 8, 8)
    assert "toy" in train_command.parser().format_help()
