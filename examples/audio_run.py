"""Audio in a run: a network of one's own, trained on waveforms in a folder like any other, over two sizes.

    python examples/audio_run.py [FOLDER]    half a minute on a CPU; needs pip install "ssdcore[torch,evaluate]"

The data are plucked strings, 256 samples long, as floats in [−1, 1]. The noisy state is decimated to 128 samples where
it holds no more. The run stops half way and continues, samples, is evaluated, and fills in what a measurement leaves
out.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import ssdcore as ssd
from ssdcore_torch import Run, wrap

LENGTH, STEPS = 256, 200


def strings(count: int, seed: int = 0) -> np.ndarray:
    """(count, LENGTH) float32: four harmonics that decay, at a pitch and a phase of their own."""
    random = np.random.default_rng(seed)
    time = np.arange(LENGTH) / LENGTH
    pitch, phase = random.uniform(4, 8, (count, 1)), random.uniform(0, 1, (count, 1))
    waves = sum(np.sin(2 * np.pi * k * (pitch * time + phase)) / k for k in range(1, 5))
    return np.asarray(0.5 * waves * np.exp(-3 * time), dtype=np.float32)


class Small(nn.Module):
    """A few dilated convolutions, which run at any length and are told the time."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, width, 3, padding=1)
        self.middle = nn.ModuleList(nn.Conv1d(width, width, 3, padding=2**k, dilation=2**k) for k in range(5))
        self.times = nn.Linear(8, width)
        self.last = nn.Conv1d(width, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None].to(x) / STEPS * torch.pi * torch.arange(1, 5, device=x.device)
        told = self.times(torch.cat([angles.sin(), angles.cos()], 1))[..., None]
        h = self.first(x)
        for layer in self.middle:
            h = h + nn.functional.silu(layer(h + told))
        y: Tensor = self.last(h)
        return y


def main(out: Path, steps: int = 600, samples: int = 64) -> dict[str, float]:
    """The figures of the trained run, and how far what is restored is from the truth."""
    noise, levels = ssd.NoiseSchedule.cosine(STEPS), ssd.ResolutionSchedule.equal(STEPS, levels=2)
    process = ssd.LinearDiffusion.resize((LENGTH,), noise, levels, kernel="lanczos3")
    network = wrap(Small(), process, "velocity")
    settings = {"train": {"steps": steps // 2, "batch_size": 16, "warmup": 5, "cosine_decay": False, "ema": [0.99]}}
    run = Run.create(out, data=strings(512), process=process, network=network, settings=settings, device="cpu")
    assert run.train()
    run = Run.open(out, network=network, data=strings(512))  # the folder knows neither the class nor the array
    assert run.train(steps)

    drawn = run.sample(samples, steps=20, sampler="multistep")  # (samples, 1, 256) in [−1, 1]
    report = run.evaluate(samples, steps=20)
    figures = {"frechet": report["figures"]["frechet"], "floor": report["floor"]["frechet"]}
    print(
        f"step {run.step}: {len(drawn)} waveforms; Fréchet distance to the data {figures['frechet']:.3g}, "
        f"of other data {figures['floor']:.3g}"
    )

    truth = torch.from_numpy(strings(4, seed=1))[:, None]
    kept = ssd.Matrix(np.eye(LENGTH)[: LENGTH // 2])  # the first half is heard
    whole = run.restore(kept, kept(truth), noise_level=0.02, steps=20)
    figures["restored"] = float((whole - truth)[..., : LENGTH // 2].square().mean().sqrt())
    print(f"restored, the part that was heard: rms error {figures['restored']:.3f}")
    return figures


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()) / "run")
