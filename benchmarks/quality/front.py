"""The front of quality against cost, ours and others' code in one table; on photographs:

    python benchmarks/quality/make_garments.py DATA
    python benchmarks/quality/garment_features.py DATA/train.npz DATA/test.npz DATA/features.pt
    python benchmarks/quality/front.py --data DATA --out FOLDER --minutes 30      # again: goes on
    python benchmarks/quality/front.py --data DATA --out FOLDER --peer CHECKOUT   # the paper's released code, too
    python benchmarks/quality/front.py --data DATA --out FOLDER --sampling "25 steps"        # of the same runs
    python benchmarks/quality/front_report.py FOLDER

On drawings DATA holds train.npz and test.npz of make_drawings.py and no features.pt: Lite0's features judge.

Every arm gets the same seconds (--budget): of a processor on one thread, or of the GPU with --device cuda. They are
turned into steps once, before anything is trained: the paths' steps are timed in turns, so that other programs on the
machine slow all alike, and the quicker half counts. All of ours have one network, so a path costs the same in each. All
arms share data, batch, optimizer (AdamW, warm-up, cosine) and average of the weights, which is what few steps need;
process, network, loss and sampler are each one's own, with parameters within 10 %. Ours are trained by the trainer of
ssdcore_torch, which takes its steps as CUDA graphs on a GPU. Every finished run leaves its averaged weights and, for
each way of sampling, a row of JSON. Seeds run one after the other, so that what there is after any time is whole; a run
that is stopped starts again, those that finished are kept. With --jobs several run side by side, each in a process of
its own, with the steps that were bought when nothing else ran.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jobs import Job, side_by_side
from sides import SAMPLE_SEED, Arm, Ours, Recipe, Sampler, opened, takes_residuals
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ssdcore_torch.devices import open_device
from ssdcore_torch.metrics import frechet_distance, open_extractor
from ssdcore_torch.sampling import fit_moments, measure_residuals, to_bytes, to_float

HELD_OUT = 500  # test images that the held-out loss is taken of
MEASURED = 200  # training images that residual spectra are measured on
TIMED, ROUNDS = 4, 6  # steps of a path, in each round of timing
PICTURES = 64  # samples of each row that are kept

SAMPLINGS: Mapping[str, Sampler] = {
    **{f"{n} steps": {"steps": n} for n in (6, 12, 25)},
    **{f"{n} steps, second moments": {"steps": n, "second_moments": True} for n in (12, 25)},
    **{f"{n} steps, multistep": {"steps": n, "sampler": "multistep"} for n in (4, 5, 6, 7, 8, 9, 10, 12, 15, 18, 25)},
}
"""Others' code has its own sampler, so only numbers of steps. Multistep takes residual spectra, as runs do."""


def edm(levels: int, time_sampling: str, nats: float | None = None) -> Arm:
    return Arm(levels, {"train": {"time_sampling": time_sampling}}, nats=nats)


def min_snr(levels: int, nats: float | None = None) -> Arm:
    settings = {"train": {"weighting": "min_snr"}, "network": {"preconditioned_times": None}}
    return Arm(levels, settings, nats=nats)


ARMS: Mapping[str, Arm] = {
    "1 level, uniform": edm(1, "uniform"),
    "1 level, density": edm(1, "density"),
    "3 levels, uniform": edm(3, "uniform"),
    "3 levels, density": edm(3, "density"),
    "4 levels, density": edm(4, "density"),
    "4 levels, density, by information": edm(4, "density", nats=1.0),
    "4 levels, density, by information, 0.3 nats": edm(4, "density", nats=0.3),
    # What the preset cpu trains with: min-SNR without preconditioning, which is ahead in short training.
    "1 level, min-SNR": min_snr(1),
    "3 levels, min-SNR": min_snr(3),
    "4 levels, min-SNR": min_snr(4),
    # The same with its changes of size where they lose little (ssdcore.oracle.design_by_information).
    "3 levels, by information": min_snr(3, nats=1.0),
    "4 levels, by information": min_snr(4, nats=1.0),
    "diffusers DDPM": Arm(peer="diffusers"),
    "denoising-diffusion-pytorch": Arm(peer="lucidrains"),
    "paper's code, 3 levels": Arm(3, peer="paper"),
    "paper's code, 4 levels": Arm(4, peer="paper"),
    "paper's code, 4 levels, as many steps": Arm(4, peer="paper", steps_of="4 levels, density, by information"),
}


def made(name: str, seed: int, images: Tensor, args: argparse.Namespace) -> Any:
    return opened(ARMS[name], seed, images, recipe_of(args), args.peer)


def recipe_of(args: argparse.Namespace) -> Recipe:
    return Recipe(torch.device(args.device), args.batch, args.decay)


# ---- what the budget buys


def planned(names: Sequence[str], args: argparse.Namespace, images: Tensor) -> dict[str, int]:
    """Steps of every arm for the budget; they are kept in the folder, so that all seeds agree."""
    file = args.out / "steps.json"
    known: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
    bases = {name: ARMS[name].steps_of or name for name in names}
    if new := [name for name in dict.fromkeys(bases.values()) if name not in known]:
        known |= bought(new, args, images)
        file.write_text(json.dumps(known, indent=1) + "\n")
    return known | {name: known[base] for name, base in bases.items()}


def bought(names: Sequence[str], args: argparse.Namespace, images: Tensor) -> dict[str, int]:
    """What the budget buys of these arms, by the mean time of a step; all that is timed is timed in turns.

    Each path is timed by itself and weighed by how often it is drawn: a few steps of random paths, and the quicker
    rounds of them, would be those that drew small sizes.
    """
    sides = {name: made(name, 0, images, args).training(images, 0, 1000) for name in names}
    keys = {name: [key_of(name, path) for _, path in side.paths] for name, side in sides.items()}
    timed = {key: (side, path) for name, side in sides.items() for key, (_, path) in zip(keys[name], side.paths)}
    spent: dict[tuple[str, str], list[float]] = {key: [] for key in timed}
    for turn in range(1 + ROUNDS):
        for key, (side, path) in timed.items():
            started = clock(args.device)
            for _ in range(TIMED):
                side.advance(path)
            if turn:
                spent[key].append((clock(args.device) - started) / TIMED)
    each = {key: float(np.mean(sorted(times)[: ROUNDS // 2])) for key, times in spent.items()}
    steps = {}
    for name, side in sides.items():
        seconds = sum(share * each[key] for key, (share, _) in zip(keys[name], side.paths))
        steps[name] = max(1, round(args.budget / seconds))
        parts = ", ".join(f"{key[1]} {1e3 * each[key]:.1f}" for key in keys[name])
        print(f"{name}: {seconds:.4f} s a step, {steps[name]} steps; ms by path: {parts}", flush=True)
    return steps


def key_of(name: str, path: Any) -> tuple[str, str]:
    """What a step's cost depends on: of others' code the arm, of ours the sizes."""
    return (name, "all") if path is None else ("ours", f"{path.shape[0]}→{path.target_shape[0]}")


def clock(device: str) -> float:
    """Seconds of this process' processor time, or, of a GPU, of work that is done."""
    if device != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


# ---- one run


def stem_of(out: Path, arm: str, seed: int) -> Path:
    """What the names of an arm's files begin with."""
    return out / f"{arm.replace(' ', '_').replace(',', '').replace('.', '')}-{seed}"


def rows_of(out: Path, arm: str, seed: int, samplings: Sequence[str]) -> dict[str, Path]:
    """The files of an arm's rows, of those ways of sampling that it has."""
    allowed = [how for how in samplings if ARMS[arm].peer is None or set(SAMPLINGS[how]) == {"steps"}]
    stem = stem_of(out, arm, seed)
    return {how: Path(f"{stem}-{how.replace(' ', '_').replace(',', '')}.json") for how in allowed}


def trained(side: Any, weights: Path, seed: int, steps: int, args: argparse.Namespace, images: Tensor) -> Any:
    """What is kept of a run: its averaged weights, seconds and steps. Trains it, unless that was done."""
    if not weights.exists():
        training = side.training(images, seed, steps)
        started = clock(args.device)
        for _ in range(steps):
            training.advance()
        seconds = clock(args.device) - started
        average = {name: value.cpu() for name, value in training.average.state_dict().items()}
        torch.save({"average": average, "seconds": seconds, "steps": steps}, weights)
    return torch.load(weights, weights_only=True)


def run(name: str, seed: int, steps: int, args: argparse.Namespace, images: Tensor, judge: Judge) -> None:
    files = rows_of(args.out, name, seed, args.sampling)
    wanted = [how for how, file in files.items() if not file.exists()]
    if not wanted:
        return
    side = made(name, seed, images, args)
    kept = trained(side, stem_of(args.out, name, seed).with_suffix(".pt"), seed, steps, args, images)
    side.net.load_state_dict(kept["average"])
    net = side.net.eval().requires_grad_(False)
    if isinstance(side, Ours):
        side.prior = judge.prior(side)
        if any(takes_residuals(SAMPLINGS[how]) for how in wanted):
            measured = to_float(images[:MEASURED]).to(args.device)
            side.residuals = measure_residuals(net, side.process, [(measured, None)], clip=True)
    for how in wanted:
        sampler = SAMPLINGS[how]
        with FlopCounterMode(display=False) as counter:
            side.sample(net, 2, sampler)
        torch.manual_seed(SAMPLE_SEED)
        started = clock(args.device)
        samples = to_bytes(side.sample(net, args.samples, sampler)).cpu()
        row = {
            "arm": name,
            "seed": seed,
            "size": images.shape[-1],
            "device": args.device,
            "steps": kept["steps"],
            "batch": args.batch,
            "train_seconds": kept["seconds"],
            "parameters": sum(p.numel() for p in net.parameters()),
            "sampling": how,
            "file": files[how].with_suffix(".npz").name,
            "sample_gflop": counter.get_total_flops() / 2e9,
            "sample_seconds": (clock(args.device) - started) / args.samples,
            "samples": args.samples,
            **judge(samples),
        }
        if isinstance(side, Ours):
            row["held_out"] = side.held_out(net, judge.held_out)
        np.savez_compressed(files[how].with_suffix(".npz"), images=samples[:PICTURES].permute(0, 2, 3, 1).numpy())
        files[how].write_text(json.dumps(row, indent=1) + "\n")
        said = ", ".join(f"{ruler} {row[ruler]:.2f}" for ruler in judge.known)
        print(f"{time.strftime('%H:%M:%S')} {name}, seed {seed}, {how}: {said}; {kept['seconds']:.0f} s", flush=True)


class Judge:
    """Fréchet distances of samples to all the test images: in pixels, and in the features of the data's classifier or,
    without one, of Lite0."""

    def __init__(self, data: Path, train: Tensor, test: Tensor, args: argparse.Namespace) -> None:
        self.held_out, self.train, self.device = to_float(test[:HELD_OUT]), train, args.device
        file = data / "features.pt"
        self.extractors = {
            **({"garments": open_extractor(file, self.device, trusted=True)} if file.exists() else {}),
            **({} if file.exists() else {"lite0": open_extractor("lite0", self.device)}),
            "pixels": open_extractor("pixels", self.device),
        }
        self.known = {name: self.features(name, test) for name in self.extractors}
        some = train[: args.samples]
        self.floor = {name: frechet_distance(self.features(name, some), self.known[name]) for name in self.known}

    def features(self, name: str, images: Tensor) -> Tensor:
        return torch.cat([self.extractors[name](part.to(self.device)).cpu() for part in images.split(500)])

    def __call__(self, samples: Tensor) -> dict[str, Any]:
        rows: dict[str, Any] = {}
        for name, known in self.known.items():
            rows[name] = frechet_distance(self.features(name, samples), known)
            rows[f"{name}_floor"] = self.floor[name]
        return rows

    def prior(self, side: Ours) -> Any:
        moments = fit_moments(self.train[:10_000], side.process)
        return None if moments is None else side.process.prior(*moments)


def tensor_of(file: Path) -> Tensor:
    with np.load(file) as data:
        return torch.from_numpy(data["images"]).permute(0, 3, 1, 2).contiguous()


# ---- all of them


def run_all(jobs: Sequence[Job], args: argparse.Namespace, until: float) -> None:
    """Each run by this command in a process of its own, `args.jobs` at once. Raises SystemExit if one fails."""
    options = ["--data", args.data, "--out", args.out, "--samples", args.samples, "--budget", args.budget]
    options += ["--device", args.device, "--batch", args.batch, "--decay", args.decay]
    options += [] if args.peer is None else ["--peer", args.peer]
    options += ["--sampling", *args.sampling]

    def start(job: Job) -> subprocess.Popen[bytes]:
        arm, seed = job
        return subprocess.Popen([sys.executable, __file__, *map(str, options), "--arms", arm, "--seeds", str(seed)])

    ended = side_by_side(jobs, start, args.jobs, until)
    failed = [f"{arm}, seed {seed}" for (arm, seed), status in ended if status]
    if failed:
        raise SystemExit(f"failed: {'; '.join(failed)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="train.npz, test.npz, features.pt")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--peer", type=Path, metavar="CHECKOUT", help="the paper's released code")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of training a run (default: 60)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=Recipe.batch, help=f"images a step (default: {Recipe.batch})")
    parser.add_argument("--decay", type=float, default=Recipe.decay, help="of the average of the weights")
    parser.add_argument("--sampling", nargs="+", choices=list(SAMPLINGS), default=["12 steps"], metavar="HOW")
    parser.add_argument("--samples", type=int, default=1000, help="of each arm and way of sampling (default: 1000)")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="none: only buy the steps")
    parser.add_argument("--arms", nargs="+", metavar="ARM")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (default: 1)")
    parser.add_argument("--minutes", type=float, default=8.0, help="start no run after this time (default: 8)")
    args = parser.parse_args()
    for name in ("train.npz", "test.npz"):
        if not (args.data / name).is_file():
            parser.error(
                f"{args.data / name}: no such file; see the first lines of --help for the commands that make it"
            )
    names = args.arms or [name for name, arm in ARMS.items() if arm.peer != "paper" or args.peer]
    if unknown := [name for name in names if name not in ARMS]:
        parser.error(f"unknown arms {unknown}; there are {list(ARMS)}")
    if args.peer is None and any(ARMS[name].peer == "paper" for name in names):
        parser.error("the paper's code: expected --peer CHECKOUT")
    torch.set_num_threads(1)
    open_device(args.device)
    until = time.time() + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    images = tensor_of(args.data / "train.npz")
    steps = planned(names, args, images)
    jobs = [(name, seed) for seed in args.seeds for name in names]
    if args.jobs > 1:
        run_all(jobs, args, until)
    elif jobs:
        judge = Judge(args.data, images, tensor_of(args.data / "test.npz"), args)
        for name, seed in jobs:
            if time.time() < until:
                run(name, seed, steps[name], args, images, judge)


if __name__ == "__main__":
    main()
