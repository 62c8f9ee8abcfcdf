"""Kill training at random moments, resume it, and compare with a run that was left alone, bit for bit.

    python benchmarks/kill.py --kills 25

Every other kill (SIGKILL) comes from outside, at a random moment after a random step; the others from inside, at a
random one of the calls by which a save changes the disk, and a file that is just being synced is left half written.
Prints each kill and what is equal at the end; exit status 1 if anything is not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import resource
import runpy
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors.torch import load_file

from ssdcore_torch import load_run
from ssdcore_torch.checkpoint import checkpoints, read_config, save_config
from ssdcore_torch.config import Config, preset

CALLS = ("fsync", "rename", "replace", "link", "unlink", "rmdir", "mkdir")
CALLS_OF_A_SAVE = 28
SAVE_EVERY = 10


def tiny(steps: int) -> Config:
    """A run of seconds: 8 pixels, two levels, two kinds of averages."""
    cpu = preset("cpu").overlaid({}, 8, 2)
    network = dataclasses.replace(cpu.network, channel_multipliers=(1, 1), attention_sizes=(4,), dropout=0.1)
    process = dataclasses.replace(cpu.process, steps=25)
    train = dataclasses.replace(
        cpu.train, steps=steps, batch_size=4, ema_widths=(0.1,), snapshots=4, log_every=1, save_every=SAVE_EVERY, keep=2
    )
    return dataclasses.replace(cpu, network=network, process=process, train=train)


def command(run: Path, die_at: int = 0) -> list[str]:
    """Go on with a run, or start one whose config.json is there; `die_at` > 0: with the kill from inside."""
    options = ["--out", str(run), "--resume", "--device", "cpu"]
    if die_at:
        return [sys.executable, __file__, "--die-at", str(die_at), *options]
    return [sys.executable, "-m", "ssdcore_torch.train", *options]


def start(run: Path, die_at: int = 0, file_bytes: int | None = None) -> subprocess.Popen[str]:
    """`command`, in a process that may write no file larger than `file_bytes`, where given."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # another number of threads would round otherwise
    pipe = subprocess.PIPE
    process = subprocess.Popen(command(run, die_at), stdout=pipe, stderr=pipe, text=True, env=environment)
    if file_bytes is not None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    return process


def finish(process: subprocess.Popen[str], status: int = 0) -> tuple[str, str]:
    """(stdout, stderr) of a process that must end with this status."""
    out, error = process.communicate()
    if process.returncode != status:
        raise RuntimeError(f"{process.args}: status {process.returncode} instead of {status}: {error}")
    return out, error


def die(call: int) -> None:
    """Let this process be killed just before its `call`-th change to the disk, files half written if it is a sync."""
    count, process = 0, os.getpid()

    def counting(name: str, original: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **options: object) -> object:
            nonlocal count
            if os.getpid() == process:  # not one that decodes images
                count += 1
            if count == call:
                if name == "fsync" and stat.S_ISREG(os.fstat(args[0]).st_mode):  # type: ignore[arg-type]
                    os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)  # type: ignore[arg-type]
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **options)

        return wrapped

    for name in CALLS:
        setattr(os, name, counting(name, getattr(os, name)))


def steps_logged(run: Path) -> int:
    try:
        lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
        return int(json.loads(lines[-1])["step"])
    except (OSError, ValueError, IndexError):
        return 0


def kill_outside(run: Path, target: int, delay: float) -> str:
    """Let the run go past a step, then kill it after `delay` seconds."""
    process = start(run)
    while steps_logged(run) < target:
        if process.poll() is not None:
            finish(process, -signal.SIGKILL)
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    finish(process, -signal.SIGKILL)
    writing = " while it was writing" if list((run / "checkpoints").glob(".*")) else ""
    return f"{1000 * delay:.0f} ms after step {target}, at step {steps_logged(run)}{writing}"


def kill_inside(run: Path, call: int) -> str:
    finish(start(run, call), -signal.SIGKILL)
    return f"at call {call} that changes the disk, at step {steps_logged(run)}"


def different(ours: Path, theirs: Path) -> Iterator[str]:
    """What is not equal, bit for bit, in two finished runs."""
    newest = [checkpoints(run)[0] for run in (ours, theirs)]
    if newest[0].name != newest[1].name:
        yield f"the newest checkpoint: {newest[0].name}, {newest[1].name}"
        return
    pairs = [(newest[0] / path.name, path) for path in newest[1].glob("*.safetensors")]
    pairs += [(ours / path.relative_to(theirs), path) for path in theirs.glob("snapshots/*")]
    for mine, other in pairs:
        one, two = load_file(mine), load_file(other)
        if one.keys() != two.keys() or any(one[k].numpy().tobytes() != two[k].numpy().tobytes() for k in one):
            yield str(mine.relative_to(ours))
    for name in ("state.json", "samples.png"):
        one, two = ((root / name).read_bytes() for root in (newest if name == "state.json" else (ours, theirs)))
        if one != two:
            yield name
    for path in ours.rglob(".*.tmp"):
        yield f"{path.relative_to(ours)}, which was left"
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (ours, theirs)]
    for line in (*logs[0], *logs[1]):
        line.pop("images_per_second", None)
    if logs[0] != logs[1]:
        yield "log.jsonl"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=25)
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    draw = random.Random(args.seed)
    steps = 40 + 20 * args.kills
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        for run in (whole, broken):
            run.mkdir()
            save_config(run, tiny(steps))
        started = time.perf_counter()
        finish(start(whole))
        print(f"{steps} steps, a checkpoint every {SAVE_EVERY}: {time.perf_counter() - started:.0f} s uninterrupted")
        for kill in range(args.kills):
            if kill % 2:
                how = kill_inside(broken, draw.randint(1, 2 * CALLS_OF_A_SAVE))
            else:
                how = kill_outside(broken, 20 * kill + draw.randint(1, 20), draw.uniform(0, 0.1))
            print(f"kill {kill + 1}: {how}", flush=True)
        finish(start(broken))
        assert load_run(broken).step == read_config(broken).train.steps == steps
        wrong = list(different(broken, whole))
    print(f"after {args.kills} kills: {'differs in ' + ', '.join(wrong) if wrong else 'equal, bit for bit'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--die-at"]:
        die(int(sys.argv[2]))
        sys.argv[:] = ["ssdcore_torch.train", *sys.argv[3:]]
        runpy.run_module("ssdcore_torch.train", run_name="__main__")
    sys.exit(main())
