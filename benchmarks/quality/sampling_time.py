"""Processor time of a sample, ours and the paper's code in turns, with the networks that front.py trained:

    python benchmarks/quality/sampling_time.py --data DATA --out FOLDER --peer CHECKOUT

One thread, batches of 250, the median of some rounds after one that is not timed. Which numbers of steps are of equal
quality, front_report.py says.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from front import ARMS, MEASURED, stem_of, tensor_of
from sides import TOGETHER, Recipe, opened

from ssdcore_torch.sampling import fit_moments, measure_residuals, to_float

OURS, PAPER = "3 levels, by information", "paper's code, 3 levels"
WAYS = (
    (OURS, {"steps": 7, "sampler": "multistep"}),
    (OURS, {"steps": 12, "sampler": "multistep"}),
    (PAPER, {"steps": 12}),
    (PAPER, {"steps": 25}),
)
ROUNDS, SEED = 3, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of front.py")
    parser.add_argument("--peer", type=Path, required=True, metavar="CHECKOUT", help="the paper's released code")
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = tensor_of(args.data / "train.npz")
    sides = {}
    for arm in (OURS, PAPER):
        side = opened(ARMS[arm], SEED, images, Recipe(torch.device("cpu")), args.peer)
        kept = torch.load(stem_of(args.out, arm, SEED).with_suffix(".pt"), weights_only=True)
        side.net.load_state_dict(kept["average"])
        sides[arm] = side, side.net.eval().requires_grad_(False)
    ours, net = sides[OURS]
    moments = fit_moments(images[:10_000], ours.process)
    ours.prior = None if moments is None else ours.process.prior(*moments)
    ours.residuals = measure_residuals(net, ours.process, [(to_float(images[:MEASURED]), None)], clip=True)
    spent: list[list[float]] = [[] for _ in WAYS]
    for turn in range(1 + ROUNDS):
        for times, (arm, sampler) in zip(spent, WAYS):
            side, net = sides[arm]
            started = time.process_time()
            side.sample(net, TOGETHER, sampler)
            if turn:
                times.append(1e3 * (time.process_time() - started) / TOGETHER)
    for times, (arm, sampler) in zip(spent, WAYS):
        each = ", ".join(f"{t:.1f}" for t in times)
        print(f"{arm}, {sampler['steps']} steps: {statistics.median(times):.1f} ms a sample ({each})")


if __name__ == "__main__":
    main()
