"""Does drawing times by density lower the held-out loss? At equal steps, which it costs nothing of, at 8 pixels:

    python benchmarks/quality/time_sampling.py DATA OUT.json --levels 1 2 --seeds 0 1 2     # again: goes on

DATA is make_garments.py's folder; its 16 px images are averaged over areas of 2×2. Both draws of a seed have the same
weights, batches and noise. Held-out: EDM's loss at full size of 500 test images, in 8 bins of its times.
Prints, for each number of levels, the ratio density / uniform of each bin: mean ± standard error over seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from front import HELD_OUT, tensor_of
from sides import Arm, Ours, Recipe
from torch.nn import functional as F

from ssdcore_torch.sampling import to_float

SIZE, HOW = 8, ("uniform", "density")


def halved(images: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(images.float(), 2).round().to(torch.uint8)


def losses(levels: int, how: str, seed: int, steps: int, train: torch.Tensor, test: torch.Tensor) -> list[float]:
    side = Ours(Arm(levels, {"train": {"time_sampling": how}}), seed, train, Recipe(torch.device("cpu")))
    training = side.training(train, seed, steps)
    for _ in range(steps):
        training.advance()
    return side.held_out(training.average, to_float(test[:HELD_OUT]))


def table(rows: list[dict[str, object]]) -> str:
    lines = []
    for levels in sorted({int(row["levels"]) for row in rows}):  # type: ignore[call-overload]
        found = {
            how: {r["seed"]: r["held_out"] for r in rows if (r["levels"], r["how"]) == (levels, how)} for how in HOW
        }
        seeds = sorted(set(found["uniform"]) & set(found["density"]))  # type: ignore[type-var]
        if seeds:
            ratio = np.array([np.divide(found["density"][s], found["uniform"][s]) for s in seeds])
            error = ratio.std(0, ddof=1) / np.sqrt(len(seeds)) if len(seeds) > 1 else np.zeros(ratio.shape[1])
            cells = " | ".join(f"{m:.3f} ± {e:.3f}" for m, e in zip(ratio.mean(0), error))
            lines.append(f"| {levels} | {len(seeds)} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    torch.set_num_threads(1)
    train, test = (halved(tensor_of(args.data / f"{name}.npz")) for name in ("train", "test"))
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    for seed in args.seeds:
        for levels in args.levels:
            for how in HOW:
                key = {"levels": levels, "how": how, "seed": seed, "steps": args.steps}
                if any(all(row[name] == value for name, value in key.items()) for row in rows):
                    continue
                rows.append({**key, "held_out": losses(levels, how, seed, args.steps, train, test)})
                args.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
