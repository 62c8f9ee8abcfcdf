"""Quality for the compute spent: train every arm of a suite under one budget, sample it, evaluate it.

    python benchmarks/quality/study.py SUITE --data TRAIN.npz --reference HELD_OUT.npz --out FOLDER
    python benchmarks/quality/study.py SUITE … --minutes 8 --jobs 2        # a slice; the same command goes on
    python benchmarks/quality/study.py SUITE … --arms "matched, equal" --seeds 0

The data are made by make_drawings.py. Every run is one thread on a CPU (so that two of them side by side are as fast as
one alone), or the GPU. A budget in seconds is turned into steps once, before anything is trained, by timing a few steps
of every path of every arm; they are kept in FOLDER/steps.json. Each run leaves a run folder of ssdcore_torch.train,
samples.npz and row.json. report.py makes tables and pictures of these.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import SUITES, Suite
from jobs import Job, side_by_side
from torch import Tensor

import ssdcore as ssd
from ssdcore.files import write_atomically
from ssdcore_torch import FlexiUNet, checkpoint, load_run
from ssdcore_torch.config import Config
from ssdcore_torch.data import ImageSet, ImageStream, open_images
from ssdcore_torch.denoisers.unet import forward_flops
from ssdcore_torch.diffusion import Objective, equal_cost_repeats
from ssdcore_torch.distributed import World, connect
from ssdcore_torch.metrics import (
    draw,
    evaluate,
    frechet_distance,
    measure,
    memorisation,
    nearest,
    open_extractor,
    open_reference,
)
from ssdcore_torch.runs import begin
from ssdcore_torch.sampling import sampling_times
from ssdcore_torch.training import Extras, Trainer, plan, train

FEATURES = ("lite0", "pixels")
SAMPLE_SEED = 0
ROUNDS = 4
LEAST_SECONDS = 1  # of a slice: by then training hears of the request to stop
EVALUATION_SECONDS = 60  # a slice starts no evaluation with less time left than this


def folder_of(out: Path, arm: str, seed: int) -> Path:
    return out / f"{arm.replace(' ', '_').replace(',', '').replace('%', 'pc')}-{seed}"


def write_json(path: Path, values: Any) -> None:
    text = json.dumps(values, indent=1) + "\n"
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def save_npz(path: Path, images: Tensor) -> None:
    with open(path, "wb") as file:  # np.savez would append .npz to a name
        np.savez_compressed(file, images=images.permute(0, 2, 3, 1).numpy())


# ---- budgets


def _open(path: str, config: Config) -> ImageSet | ImageStream:
    return open_images(path, config.size, classes=config.data.classes)


def training_flops(config: Config) -> float:
    """Of one image, on average over the paths of the training: three forward passes."""
    return 3 * sum(share * flops for share, flops in _shares(config))


def _shares(config: Config) -> list[tuple[float, int]]:
    process, sizes = config.build_process(), config.network.level_sizes
    repeats = equal_cost_repeats(process, FlexiUNet(config.network)) if config.train.equal_cost else ()
    train = config.train
    objective = Objective(process, change_share=train.change_share, repeats=repeats, size_bias=train.size_bias)
    rows = []
    for number, (path, share) in enumerate(zip(objective.paths, objective.path_probabilities)):
        flops = forward_flops(config.network, _level(sizes, path.shape), _level(sizes, path.target_shape))
        rows.append((float(share), flops * (repeats[number] if repeats else 1)))
    return rows


def _level(sizes: Sequence[tuple[int, int]], size: tuple[int, ...]) -> int:
    return sizes.index((size[0], size[1]))


def steps_of(suite: Suite, arm: str, data: str, world: World) -> int:
    """How many steps the suite's budget buys this arm."""
    config = suite.config(arm, 0, data, steps=1000)
    batch = config.train.batch_size
    if suite.unit == "images":
        return round(suite.budget / batch)
    if suite.unit == "gflop":
        return round(suite.budget * 1e9 / (batch * training_flops(config)))
    return round(suite.budget * config.train.steps / seconds_of(config, data, world))


def seconds_of(config: Config, data: str, world: World) -> float:
    """What the configured steps take: every path at its quickest of some rounds, since a busy machine only slows."""
    rounds = [plan(Trainer(config, _open(data, config), world)).paths for _ in range(ROUNDS)]
    return config.train.steps * sum(paths[0].share * min(p.seconds for p in paths) for paths in zip(*rounds))


def budget(suite: Suite, arms: Sequence[str], data: str, out: Path) -> dict[str, int]:
    """Steps of every arm, kept in the folder so that all slices and seeds agree."""
    file = out / "steps.json"
    known: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
    with connect(None) as world:
        for arm in arms:
            if arm not in known:
                known[arm] = steps_of(suite, arm, data, world)
                print(f"{arm}: {known[arm]} steps for {suite.budget:g} {suite.unit}", flush=True)
                write_json(file, known)
    return known


# ---- one run


def work(suite: Suite, arm: str, seed: int, args: argparse.Namespace, until: float) -> None:
    """Train, sample and evaluate one run, as far as time allows; what was done is kept."""
    out = folder_of(args.out, arm, seed)
    if not (out / "config.json").exists():
        steps = json.loads((args.out / "steps.json").read_text())[arm]
        out.mkdir(parents=True, exist_ok=True)
        checkpoint.save_config(out, suite.config(arm, seed, str(args.data.resolve()), steps))
    with connect(None) as world:
        if not train_slice(out, world, until):
            return
        if until - time.time() >= EVALUATION_SECONDS:
            write_json(out / "row.json", row_of(suite, arm, seed, out, args.reference, world))


def train_slice(out: Path, world: World, until: float) -> bool:
    """Train until the end or until that time; whether the end was reached."""
    config = checkpoint.read_config(out)
    trainer = begin(out, lambda saved: config, world, resume=True).trainer
    if trainer.step == trainer.config.train.steps:
        return True
    left = until - time.time()
    if left < LEAST_SECONDS:
        return False
    spent = out / "training.json"
    before = json.loads(spent.read_text())["seconds"] if spent.exists() else 0.0
    # A slice ends as a user's Ctrl-C would end it: the step is finished and the state saved.
    timer = threading.Timer(left, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    clock = time.process_time if world.device.type == "cpu" else time.perf_counter
    started = clock()
    finished = train(trainer, out, Extras())
    timer.cancel()
    write_json(spent, {"seconds": before + clock() - started})
    return finished


def row_of(suite: Suite, arm: str, seed: int, out: Path, reference: Path, world: World) -> dict[str, Any]:
    """Samples of a finished run, in samples.npz, and all that is said of them."""
    run = load_run(out, world.device)
    config = run.config
    options = {**suite.sampling, **suite.arms[arm].sampling}
    samples = draw(run.ema, run.process, suite.samples, world=world, prior=run.prior, seed=SAMPLE_SEED, **options)
    images = torch.cat(list(samples))
    write_atomically(out / "samples.npz", lambda file: save_npz(file, images))
    trained_images = config.train.steps * config.train.batch_size
    return {
        "arm": arm,
        "seed": seed,
        "size": config.size,
        "levels": len(config.network.level_sizes),
        "steps": config.train.steps,
        "images": trained_images,
        "train_seconds": json.loads((out / "training.json").read_text())["seconds"],
        "train_gflop": trained_images * training_flops(config) / 1e9,
        "samples": suite.samples,
        "sample_steps": options["steps"],
        "sample_gflop": sampling_flops(run.process, config, options) / 1e9,
        "sample_seconds": samples.seconds / suite.samples,
        "parameters": sum(p.numel() for p in run.ema.parameters()),
        **measures(images, config, reference, world),
    }


def sampling_flops(process: ssd.LinearDiffusion, config: Config, options: dict[str, Any]) -> float:
    """Of one sample."""
    times = options.get("times") or sampling_times(process, options["steps"], options.get("placement", "time"))
    chain, sizes = process.respace(times), config.network.level_sizes
    return sum(
        forward_flops(config.network, _level(sizes, chain.shape(k)), _level(sizes, chain.shape(k - 1)))
        for k in range(1, chain.steps + 1)
    )


def measures(images: Tensor, config: Config, reference: Path, world: World) -> dict[str, Any]:
    """Figures of samples (n, 3, h, w) uint8 against as many held-out images, and how near they come to training
    images (in small pixels; beside it, how near held-out images come)."""
    held_out, trained = _open(str(reference.resolve()), config), _open(config.data.path, config)
    rows: dict[str, Any] = {}
    for name in FEATURES:
        extractor = open_extractor(name, world.device)
        known = open_reference(held_out, extractor, world=world, cache=reference.parent / "measured")
        measured = measure(images.split(64), extractor, world)
        found = evaluate(measured, known)
        rows[name] = {k: found.figures[k] for k in ("frechet", "kernel", "kernel_std", "precision", "recall")}
        rows[name]["floor"] = floor_of(known.features, len(images))
        if name == "lite0" and found.classes is not None:
            rows["class_chi2"] = found.classes.chi2 / found.classes.degrees
        if name == "pixels":
            rows["spectrum_ratio"] = found.spectrum_ratio.tolist()
            training = open_reference(trained, extractor, world=world, cache=reference.parent / "measured").features
            near = memorisation(measured.features, training, nearest(known.features, training)[0])
            rows["nearest_ratio"], rows["close_share"] = near.median_ratio, near.close_share
    return rows


def floor_of(features: Tensor, n: int) -> float | None:
    """The Fréchet distance of n reference images to n others: what perfect samples would have; None for too few."""
    return frechet_distance(features[n : 2 * n], features[:n]) if len(features) >= 2 * n else None


# ---- all of them


def run_all(suite: Suite, jobs: Sequence[Job], args: argparse.Namespace, until: float) -> bool:
    """Work at all runs, `args.jobs` at once; whether all were finished."""
    waiting = [job for job in jobs if not (folder_of(args.out, *job) / "row.json").exists()]
    environment = dict(os.environ) if torch.cuda.is_available() else {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(job: Job) -> subprocess.Popen[bytes]:
        arm, seed = job
        command = [sys.executable, __file__, args.suite, "--data", args.data, "--reference", args.reference]
        command += ["--out", args.out, "--one", arm, str(seed), "--until", str(until)]
        out = folder_of(args.out, arm, seed)
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(out.parent / f"{out.name}.log", "a", encoding="utf-8") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    failed: list[str] = []
    for (arm, seed), status in side_by_side(waiting, start, args.jobs, until - EVALUATION_SECONDS):
        row = folder_of(args.out, arm, seed) / "row.json"
        if row.exists():
            found = json.loads(row.read_text())
            said = f"Fréchet {found['lite0']['frechet']:.1f} (lite0), {found['pixels']['frechet']:.2f} (pixels)"
        else:
            said = "not finished" if status == 0 else f"failed, see {row.parent}.log"
            if status:
                failed.append(arm)
        print(f"{time.strftime('%H:%M:%S')} {arm}, seed {seed}: {said}", flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")
    return all((folder_of(args.out, *job) / "row.json").exists() for job in jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=sorted(SUITES))
    parser.add_argument("--data", type=Path, required=True, metavar="NPZ", help="training images")
    parser.add_argument("--reference", type=Path, required=True, metavar="NPZ", help="images never trained on")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=8.0, help="of this slice (default: 8)")
    parser.add_argument("--jobs", type=int, default=1 if torch.cuda.is_available() else os.cpu_count() or 1)
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="these arms alone")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="these seeds instead of the suite's")
    parser.add_argument("--one", nargs=2, metavar=("ARM", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    suite = SUITES[args.suite]
    for file in (args.data, args.reference):
        if not file.is_file():
            parser.error(f"{file}: no such file; make it with benchmarks/quality/make_drawings.py")
    if args.one:
        work(suite, args.one[0], int(args.one[1]), args, args.until)
        return
    arms = args.arms or list(suite.arms)
    if unknown := [arm for arm in arms if arm not in suite.arms]:
        parser.error(f"unknown arms {unknown}; {args.suite} has {list(suite.arms)}")
    args.out.mkdir(parents=True, exist_ok=True)
    until = time.time() + 60 * args.minutes
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    budget(suite, arms, str(args.data), args.out)
    jobs = [(arm, seed) for seed in args.seeds or suite.seeds for arm in arms]
    done = run_all(suite, jobs, args, until)
    print("all done" if done else "time is up: the same command goes on")


if __name__ == "__main__":
    main()
