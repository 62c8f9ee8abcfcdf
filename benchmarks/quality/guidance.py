"""Guidance on photographs: three levels and one, class-conditional, at equal training time and equal cost of a sample:

    python benchmarks/quality/make_garments.py DATA --size 28
    python benchmarks/quality/garment_features.py DATA/train.npz DATA/test.npz DATA/features.pt
    python benchmarks/quality/guidance.py --data DATA --out FOLDER      # again: continues
    python benchmarks/quality/guidance.py --data DATA --out FOLDER --rows FILE.json     # keeps the rows

Both arms train with the preset "cpu" at 28 px, batch 16, on one thread, for steps that take the same processor seconds:
the paths of both are timed in turns, once, before anything is trained. Then, for each weight of guidance, the same
number of samples of each class: how many of them a classifier of the real training images takes for their class, and
the Fréchet distance to the test images in the classifier's features. Each arm draws with as many multistep steps as
make the operations of a sample about equal without guidance; guidance doubles them. A stopped run continues from its
newest checkpoint; each row is kept when it is there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ssdcore.files import write_atomically
from ssdcore_torch import FlexiUNet, Run
from ssdcore_torch.config import preset
from ssdcore_torch.diffusion import Objective
from ssdcore_torch.metrics import frechet_distance, open_extractor
from ssdcore_torch.sampling import to_bytes

SIZE, BATCH, CLASSES = 28, 16, 10
IDX = "/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz"
ARMS = {"3 levels": (3, 12), "1 level": (1, 7)}  # levels, multistep steps of a sample
SCALES = (1.0, 2.0, 1.5, 3.0)
TIMING_ROUNDS = 6


def planned(out: Path, budget: float) -> dict[str, int]:
    """Steps of each arm for the budget; each path's quicker half of some rounds, taken in turns."""
    file = out / "steps.json"
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    sides = {name: _side(levels) for name, (levels, _) in ARMS.items()}
    spent: dict[tuple[str, int], list[float]] = {}
    for _ in range(TIMING_ROUNDS):
        for name, (net, objective, levels) in sides.items():
            optimizer = torch.optim.AdamW(net.parameters(), fused=True)
            for number, path in enumerate(objective.paths):
                drawn = (objective.draw(BATCH, 0, step) for step in range(10_000))
                batch = next(each for each in drawn if each.path == path)
                images, noise = torch.randn(BATCH, 1, SIZE, SIZE), torch.randn(batch.noise_shape(1))
                labels = torch.zeros(BATCH, dtype=torch.int64)
                started = time.process_time()
                objective(net, images, batch, noise, levels[path.target_shape], labels=labels).backward()
                optimizer.step()
                optimizer.zero_grad()
                spent.setdefault((name, number), []).append(time.process_time() - started)
    steps = {}
    for name, (_, objective, _) in sides.items():
        times = [np.mean(sorted(spent[name, k])[: TIMING_ROUNDS // 2]) for k in range(len(objective.paths))]
        steps[name] = round(budget / float(np.dot(times, objective.path_probabilities)))
    write_atomically(file, lambda path: path.write_text(json.dumps(steps, indent=1) + "\n", encoding="utf-8"))
    return steps


def _side(levels: int) -> tuple[FlexiUNet, Objective, dict[tuple[int, ...], int]]:
    settings = {"network": {"in_channels": 1, "num_classes": CLASSES}}
    config = preset("cpu", IDX).overlaid(settings, SIZE, levels)
    train = config.train
    objective = Objective(
        config.build_process(), change_share=train.change_share, weighting=train.weighting, size_bias=train.size_bias
    )
    return FlexiUNet(config.network), objective, {size: k for k, size in enumerate(config.network.level_sizes)}


def trained(out: Path, name: str, steps: int, images: str) -> Run:
    folder = out / name.replace(" ", "-")
    if folder.exists():
        run = Run.open(folder)
    else:
        settings = {
            "network": {"in_channels": 1},
            "train": {"steps": steps, "batch_size": BATCH, "save_every": 200},
        }
        run = Run.create(folder, images, "cpu", SIZE, ARMS[name][0], settings, conditional=True, device="cpu")
    saved = (folder / "model.safetensors").exists()
    if not saved or run.step < run.config.train.steps:
        run.train()
    return run


class Judge:
    """The classifier's verdict on samples."""

    def __init__(self, data: Path) -> None:
        self.features = open_extractor(data / "features.pt", trusted=True)
        self.classes = torch.jit.load(data / "features.classes.pt")
        with np.load(data / "test.npz") as test, np.load(data / "train.npz") as train:
            images, self.labels = _channels_first(test["images"]), torch.from_numpy(test["labels"]).long()
            self.train = _channels_first(train["images"][:2000])
        self.known = self._features(images)
        self.accuracy = self._hits(images, self.labels)

    def _features(self, images: Tensor) -> Tensor:
        return torch.cat([self.features(part) for part in images.split(500)])

    def _hits(self, images: Tensor, labels: Tensor) -> float:
        found = torch.cat([self.classes(part.expand(-1, 3, -1, -1)).argmax(1) for part in images.split(500)])
        return float((found == labels).double().mean())

    def __call__(self, samples: Tensor, labels: Tensor) -> dict[str, float]:
        floor = frechet_distance(self._features(self.train[: len(samples)]), self.known)
        return {
            "agreement": self._hits(samples, labels),
            "agreement_of_test_images": self.accuracy,
            "frechet": frechet_distance(self._features(samples), self.known),
            "frechet_floor": floor,
        }


def _channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def measure(run: Run, name: str, scale: float, out: Path, n: int, judge: Judge) -> None:
    file = out / f"{name.replace(' ', '-')}-{scale:g}.json"
    if file.exists():
        return
    drawing = {"sampler": "multistep", "guidance": scale, "batch_size": 100, "label": list(range(CLASSES))}
    with FlopCounterMode(display=False) as counter:
        run.sample(2, ARMS[name][1], **drawing)
    started = time.process_time()
    samples = to_bytes(run.sample(n, ARMS[name][1], **drawing))
    row: dict[str, Any] = {
        "arm": name,
        "levels": ARMS[name][0],
        "guidance": scale,
        "sampling_steps": ARMS[name][1],
        "train_steps": run.step,
        "parameters": sum(p.numel() for p in run.ema.parameters()),
        "sample_gflop": counter.get_total_flops() / 2e9,
        "sample_seconds": (time.process_time() - started) / n,
        "samples": n,
        **judge(samples, torch.arange(n) % CLASSES),
    }
    write_atomically(file.with_suffix(".npz"), lambda path: _save(path, samples))
    write_atomically(file, lambda path: path.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8"))
    print(f"{name}, guidance {scale:g}: agreement {row['agreement']:.3f}, Fréchet {row['frechet']:.1f}", flush=True)


def _save(path: Path, samples: Tensor) -> None:
    with open(path, "wb") as file:
        np.savez_compressed(file, images=samples.permute(0, 2, 3, 1).numpy())


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| arm | guidance | agreement | Fréchet garments | GFLOP per sample | training steps |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (-row["levels"], row["guidance"])):
        error = (row["agreement"] * (1 - row["agreement"]) / row["samples"]) ** 0.5
        lines.append(
            f"| {row['arm']} | {row['guidance']:g} | {row['agreement']:.3f} ± {error:.3f} | {row['frechet']:.1f} | "
            f"{row['sample_gflop']:.2f} | {row['train_steps']} |"
        )
    some = rows[0]
    lines.append(
        f"\n{some['samples']} samples a row, one seed; ± is the counting error alone. Of the real test images the "
        f"classifier takes {some['agreement_of_test_images']:.3f} for their class; as many training images have a "
        f"Fréchet distance of {some['frechet_floor']:.2f}."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="train.npz, test.npz, features.pt")
    parser.add_argument("--images", default=IDX, metavar="FILE", help=f"what is trained on (default: {IDX})")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--budget", type=float, default=960.0, help="processor seconds of training (default: 960)")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--n", type=int, default=500, help="samples a row (default: 500)")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="keep the rows in this file")
    args = parser.parse_args()
    for name in ("train.npz", "test.npz", "features.pt"):
        if not (args.data / name).is_file():
            parser.error(f"{args.data / name}: no such file; the first lines of --help say what makes it")
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    steps = planned(args.out, args.budget)
    judge = Judge(args.data)
    for name in args.arms:
        run = trained(args.out, name, steps[name], args.images)
        for scale in SCALES:
            measure(run, name, scale, args.out, args.n, judge)
    files = [file for file in sorted(args.out.glob("*.json")) if file.name != "steps.json"]
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    print(table(rows))
    if args.rows:
        text = json.dumps(rows, indent=1) + "\n"
        write_atomically(args.rows, lambda path: path.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
