"""The section `compiled` of benchmarks/gpu.py: many processes compile at once, then measure one after the other."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from gpu_job import Job
from gpu_sections import (
    common_paths,
    drawing_network,
    flops_of,
    name_of,
    new_trainer,
    note_sampling,
    note_training,
    step_seconds,
)

from ssdcore_torch import generate

HERE = Path(__file__).resolve().parent


def workers_of(job: Job) -> list[str]:
    """What to compile: train:BATCH:PATH for every common path, sample:PATH for every path of the sampler."""
    network = len(job.scale.config.network.level_sizes)
    paths = range(len(common_paths(job.scale.config)))[: job.scale.compiled_paths]
    names = [f"train:{batch}:{path}" for batch in job.scale.batches for path in paths]
    return names + [f"sample:{k}" for k in range(min(2 * network - 1, 2 * job.scale.compiled_paths))]


def compiled(job: Job) -> None:
    """Tests and compilers run together until all are done or little time is left; then each measures alone."""
    meeting = Path(tempfile.mkdtemp())
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "2", "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    tests = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-rf", "-o", "addopts=-p no:cacheprovider", *job.scale.tests],
        cwd=HERE.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**environment, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])},
    )

    def start(name: str) -> subprocess.Popen[bytes]:
        arguments = ["--section", job.name, "--worker", name, "--meeting", str(meeting), "--until", str(job.until)]
        arguments += ["--out", str(job.out), *(["--tiny"] if job.tiny else [])]
        return subprocess.Popen([sys.executable, str(HERE / "gpu.py"), *arguments], env=environment)

    running = {name: start(name) for name in workers_of(job)}
    measuring = [name for name in running if name.startswith("train")]
    limit, tested = job.until - (10 if job.tiny else 40), False
    while time.time() < limit:
        if not tested and tests.poll() is not None:
            tested = True
            note_tests(job, tests)
        warming = [p for name, p in running.items() if name.startswith("sample:") and p.poll() is None]
        if not warming and "sample" not in running:
            running["sample"] = start("sample")  # finds all its graphs in the compiler's cache
            measuring.append("sample")
        waiting = [n for n in measuring if running[n].poll() is None and not (meeting / f"{n}.ready").exists()]
        if tested and not warming and not waiting:
            break
        time.sleep(0.2)
    job.note("compiling all paths, and the tests", "s", time.perf_counter() - started, more=False)
    if not tested:
        tests.kill()
        print("tests: cut off", flush=True)
    ready = [name for name in measuring if (meeting / f"{name}.ready").exists()]
    for name, process in running.items():
        if name not in ready:
            process.kill()
    lost = [name for name in running if name not in ready and running[name].wait() != 0]
    times: dict[int, dict[str, tuple[float, float, int]]] = {batch: {} for batch in job.scale.batches}
    for name in sorted(ready, key=lambda name: name != "sample"):
        (meeting / f"{name}.go").touch()
        with contextlib.suppress(subprocess.TimeoutExpired):
            running[name].wait(max(1.0, job.left() - 2))
        done = meeting / f"{name}.done"
        if done.exists() and name.startswith("train"):
            size, share, seconds, flops = json.loads(done.read_text())
            times[int(name.split(":")[1])][size] = share, seconds, flops
        elif not done.exists():
            lost.append(name)
            running[name].kill()
    for batch, measured in times.items():
        if len(measured) == len(common_paths(job.scale.config)[: job.scale.compiled_paths]):
            note_training(job, batch, "compiled", measured)
    shutil.rmtree(meeting, ignore_errors=True)
    if lost or not tested:
        raise RuntimeError(f"not measured: {', '.join(lost + ([] if tested else ['tests']))}")


def note_tests(job: Job, tests: subprocess.Popen[str]) -> None:
    assert tests.stdout is not None
    said = tests.stdout.read()
    print(said, flush=True)
    job.note("tests: status (0: passed)", "", tests.returncode, more=False)
    for word in ("passed", "failed"):
        count = next((part.split()[0] for part in said.splitlines()[-1].split(",") if word in part), "0")
        job.note(f"tests: {word}", "tests", float(count.strip("= ") or 0), more=word == "passed")


def worker(job: Job, name: str, meeting: Path) -> None:
    """Compile, say so, and measure when told to."""

    def meet() -> None:
        if job.device.type == "cuda":
            torch.cuda.empty_cache()
        (meeting / f"{name}.ready").touch()
        while not (meeting / f"{name}.go").exists():
            if job.left() < 0:
                raise SystemExit(1)
            time.sleep(0.05)

    started = time.perf_counter()
    kind, *rest = name.split(":")
    if kind == "train":
        batch = int(rest[0])
        trainer = new_trainer(job, batch)
        trainer.net.compile_paths(job.scale.backend)
        path, share = common_paths(trainer.config)[int(rest[1])]
        batches = trainer.feed.batches(0)
        for _ in range(2):
            trainer.train_step(next(batches), path)
        job.wait()
        job.note(f"compiling the step {name_of(path)}, batch {batch}", "s", time.perf_counter() - started, more=False)
        meet()
        seconds = step_seconds(job, trainer, path)
        job.note(f"step {name_of(path)}, batch {batch}, compiled", "ms", 1e3 * seconds, more=False)
        about = [name_of(path), share, seconds, flops_of(trainer.config, path)]
        (meeting / f"{name}.done").write_text(json.dumps(about))
        return
    net = drawing_network(job).compile_paths(job.scale.backend)
    if rest:  # one path, into the compiler's cache
        sizes = job.scale.config.network.level_sizes
        pairs = [(k, k) for k in range(len(sizes))] + [(k, k - 1) for k in range(1, len(sizes))]
        level, out_level = pairs[int(rest[0])]
        x = torch.randn(job.scale.samples, job.scale.config.network.in_channels, *sizes[level], device=job.device)
        t = torch.full((len(x),), 10.0, device=job.device)
        with torch.no_grad(), job.autocast:
            net(x, t, out_level=out_level)
        job.wait()
        return
    process, count = job.scale.config.build_process(), job.scale.samples
    with job.autocast:
        generate(net, process, count, steps=2 * len(process.shapes), batch_size=count)
    job.wait()
    meet()
    note_sampling(job, net, "compiled")
    (meeting / f"{name}.done").touch()
