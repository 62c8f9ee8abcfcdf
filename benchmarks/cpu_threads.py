"""Training on a CPU: images a second with its cores idle, and with one other process that keeps a core busy.

    python benchmarks/cpu_threads.py                 # two minutes; --rounds and --seconds for more

Three ways, in alternation, each in a process of its own, whole training steps of the `cpu` preset's largest path::

    parts       as the trainer does it: each thread takes a part of the batch
    operators   torch's own: every operator is split over OpenMP's threads
    one thread  OMP_NUM_THREADS=1

The median of the rounds, and each of them. "Idle" is what this command leaves idle: the load at the start is printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext

import numpy as np
import torch

from ssdcore_torch.config import preset
from ssdcore_torch.data import ImageBatch, ImageSet
from ssdcore_torch.devices import available_cores
from ssdcore_torch.distributed import connect
from ssdcore_torch.parts import Threads
from ssdcore_torch.training import Trainer

WAYS = ("parts", "operators", "one thread")
WARM_UP = 2  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of all ways, idle and busy (default: 3)")
    parser.add_argument("--seconds", type=float, default=4.0, help="timed in each (default: 4)")
    parser.add_argument("--way", choices=WAYS, help="measure this one here, and print its images/s")
    args = parser.parse_args()
    if args.way is not None:
        print(f"{images_per_second(args.way, args.seconds):.1f}")
        return
    print(f"{available_cores()} cores, torch {torch.__version__}, load {os.getloadavg()[0]:.1f} at the start")
    found: dict[tuple[str, bool], list[float]] = {(way, busy): [] for busy in (False, True) for way in WAYS}
    for _ in range(args.rounds):
        for (way, busy), speeds in found.items():
            speeds.append(measured(way, busy, args.seconds))
    print("| images/s | idle | with one busy process |\n|---|---|---|")
    for way in WAYS:
        print(f"| {way} | {' | '.join(said(found[way, busy]) for busy in (False, True))} |")


def said(speeds: list[float]) -> str:
    return f"{statistics.median(speeds):.0f} ({', '.join(f'{speed:.0f}' for speed in speeds)})"


def measured(way: str, busy: bool, seconds: float) -> float:
    """In a process of its own, as torch reads some of its settings once."""
    environment = dict(os.environ)
    if way == "one thread":
        environment["OMP_NUM_THREADS"] = "1"
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        command = [sys.executable, __file__, "--way", way, "--seconds", str(seconds)]
        return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    finally:
        if other is not None:
            other.kill()
            other.wait()


def images_per_second(way: str, seconds: float) -> float:
    config = preset("cpu")
    count, size = config.train.batch_size, config.size
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    batch = ImageBatch(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), None, np.arange(count))
    with connect("cpu") as world:
        trainer = Trainer(config, ImageSet(pixels, None, (), "noise"), world)
        if way == "operators":
            trainer.threads = lambda: nullcontext(Threads())  # type: ignore[method-assign]
        path = trainer.objective.paths[0]
        for _ in range(WARM_UP):
            trainer.train_step(batch, path)
        started, steps = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            trainer.train_step(batch, path)
            steps += 1
        return steps * count / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
