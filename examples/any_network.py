"""A network of diffusers, trained over three sizes in this library's trainer: stopped, resumed, sampled, evaluated.

    python examples/any_network.py [FOLDER]    a minute on a CPU; needs pip install "ssdcore[torch,interop,evaluate]"

The network knows nothing of sizes or of degradations. `wrap` tells it the process; the prediction "edm" scales what it
is given and what is made of its output. The folder alone is enough to continue, to sample and to evaluate.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from diffusers import UNet2DModel

import ssdcore as ssd
from ssdcore_torch import Run, wrap

SIZE, STEPS = 16, 1000


def network() -> torch.nn.Module:
    made: torch.nn.Module = UNet2DModel(  # type: ignore[assignment]
        sample_size=SIZE,
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    return made


def main(out: Path, steps: int = 60, samples: int = 16) -> dict[str, float]:
    """The figures of the trained run."""
    noise, levels = ssd.NoiseSchedule.rectified_flow(STEPS), ssd.ResolutionSchedule.equal(STEPS, levels=3)
    process = ssd.LinearDiffusion.resize((SIZE, SIZE), noise, levels)
    settings = {
        "data": {"classes": ["moods", "planets", "sprouts"]},
        "train": {"steps": steps // 2, "batch_size": 8, "warmup": 5, "cosine_decay": False, "weighting": "edm"},
    }
    run = Run.create(out, process=process, network=wrap(network(), process, "edm"), settings=settings, device="cpu")
    assert run.train()
    run = Run.open(out)  # in another process, say: nothing but the folder is needed
    assert run.train(steps)
    images = run.sample(samples, steps=25, seed=0)
    print(
        f"step {run.step}: {len(images)} images of {' → '.join(str(size[0]) for size in run.process.shapes[::-1])} px"
    )
    figures = run.evaluate(samples, features="pixels", steps=10)["figures"]
    print(", ".join(f"{name} {value:.3g}" for name, value in figures.items() if value is not None))
    return figures


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()) / "run")
