"""Training and sampling on each device against the plain network in float32 on the CPU. The cases on CUDA are marked
`gpu`; the same tests run on the CPU."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from test_speed_paths import TINY, distance, process, run, tolerance
from test_training import tiny_config, tiny_data
from test_unet import CONFIGS, random_net

from ssdcore_torch import FlexiUNet, checkpoint, devices, generate
from ssdcore_torch.distributed import World, connect
from ssdcore_torch.sampling._walk import Noise
from ssdcore_torch.training import Trainer

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
PATHS = [(0, 0), (1, 1), (1, 0)]


@contextmanager
def exact_float32() -> Iterator[None]:
    """CUDA rounds the factors of float32 convolutions to 11 bits unless told not to."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def on(device: str, net: FlexiUNet) -> FlexiUNet:
    """A copy there, in the layout that the trainer takes there."""
    layout = torch.channels_last if device == "cuda" else torch.contiguous_format
    return copy.deepcopy(net).to(device).to(memory_format=layout)  # type: ignore[call-overload]


def networks_and_paths() -> Iterator[Any]:
    """Every pair. On the CPU the same is computed twice, so that the quick run takes one path of each network there."""
    for number, name in enumerate(["small", "classes", "released", "factor 1.5"]):
        for place, path in enumerate(PATHS):
            once = place == number % len(PATHS)
            yield pytest.param(name, path, "cpu", marks=[] if once else pytest.mark.slow)
            yield pytest.param(name, path, "cuda", marks=pytest.mark.gpu)


@pytest.mark.parametrize(("name", "path", "device"), list(networks_and_paths()))
def test_outputs_and_gradients(name: str, path: tuple[int, int], device: str) -> None:
    plain = random_net(CONFIGS[name])
    exact = run(plain, path, "float32")
    with exact_float32():
        assert distance(run(on(device, plain), path, "float32", device), exact) < tolerance("float32")
    # bfloat16 as near as the CPU's own, which rounds once a layer
    lowered = distance(run(plain, path, "bfloat16"), exact)
    assert distance(run(on(device, plain), path, "bfloat16", device), exact) < 1.5 * lowered


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), *DEVICES[1:]])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_outputs_and_gradients(precision: str, device: str) -> None:
    torch._dynamo.reset()
    plain = random_net(TINY)
    net = on(device, plain).compile_paths()
    exact = run(plain, (1, 0), "float32")
    bound = tolerance("float32") if precision == "float32" else 1.5 * distance(run(plain, (1, 0), precision), exact)
    with exact_float32():
        assert distance(run(net, (1, 0), precision, device), exact) < bound
        # graphs are replayed from the second call on
        assert distance(run(net, (1, 0), precision, device), exact) < bound


@pytest.mark.parametrize("device", DEVICES)
def test_a_training_goes_on_from_its_checkpoint(device: str, tmp_path: Path) -> None:
    """The state that was saved is the state restored, and the next steps are taken."""
    world = World(0, 1, 0, torch.device(device))
    first, second = (Trainer(tiny_config(), tiny_data(), world) for _ in range(2))
    _advance(first, 3)
    checkpoint.save_config(tmp_path, first.config)
    checkpoint.save_state(tmp_path, first.state())
    second.restore(checkpoint.load_state(tmp_path, second.net.state_dict()))
    for (name, a), (_, b) in zip(first.net.named_parameters(), second.net.named_parameters()):
        assert torch.equal(a, b), name
        for moment in ("exp_avg", "exp_avg_sq"):
            x, y = (t.optimizer.state[p][moment] for t, p in ((first, a), (second, b)))
            assert torch.equal(x, y), name
            assert y.stride() == b.stride(), name
    expected, found = _advance(first, 3), _advance(second, 3)
    torch.testing.assert_close(found, expected, rtol=0 if device == "cpu" else 1e-2, atol=0)


def _advance(trainer: Trainer, steps: int) -> torch.Tensor:
    batches = trainer.feed.batches(trainer.step)
    return torch.stack([trainer.train_step(next(batches)).cpu() for _ in range(steps)])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sampler", ["ancestral", "multistep"])
def test_samples_are_the_same_on_every_device(sampler: str, device: str) -> None:
    """Noise is computed from counters on each; what is left are the roundings of ten steps of an untrained network."""
    net, proc = random_net(TINY).eval().double(), process()
    arguments = {"sampler": sampler, "seed": 4, "dtype": torch.float64}
    expected = generate(net, proc, 3, 10, **arguments)
    found = generate(on(device, net), proc, 3, 10, **arguments)
    # a number of the noise in some millions may be rounded to the next float32
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-8 if device == "cpu" else 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("sampler", ["ancestral", "multistep"])
def test_nothing_waits_for_the_gpu(sampler: str) -> None:
    """Neither a training step, whose figures are read at intervals, nor sampling, from its first batch on."""
    world = World(0, 1, 0, torch.device("cuda"))
    trainer = Trainer(tiny_config(), tiny_data(), world)
    net, proc = on("cuda", random_net(TINY).eval()), process()
    batches = trainer.feed.batches(0)
    images = [next(batches) for _ in range(6)]
    _ = [trainer.train_step(batch) for batch in images[:4]]
    generate(net, proc, 2, 5, sampler=sampler)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        _ = [trainer.train_step(batch) for batch in images[4:]]
        generate(net, proc, 2, 5, sampler=sampler)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_sampling_on_a_stream_of_its_own() -> None:
    net, proc = on("cuda", random_net(TINY).eval()), process()
    expected = generate(net, proc, 8, 10)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = generate(net, proc, 8, 10)
    torch.cuda.synchronize()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.gpu
def test_noise_on_a_gpu_is_that_of_the_cpu() -> None:
    """Also where the GPU draws the noise of several steps at once."""
    here, there = (Noise(3, [0, 5, 2**40], 3, torch.float32, torch.device(device)) for device in ("cpu", "cuda"))
    for size in (4, 4, 8, 4, 16, 16):
        torch.testing.assert_close(there((size, size)).cpu(), here((size, size)), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("affinity", "quota", "told", "expected"),
    [
        (8, "max 100000", None, 8),
        (8, "250000 100000", None, 2),
        (8, "50000 100000", None, 1),
        (2, "400000 100000", None, 2),
        (8, None, None, 8),  # a system without control groups
        (2, "100000 100000", "6", sys.maxsize),
    ],
)
def test_cores_that_a_process_may_use(
    affinity: int, quota: str | None, told: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Path.read_text

    def read(path: Path, **options: str) -> str:
        if path != Path("/sys/fs/cgroup/cpu.max"):
            return honest(path, **options)
        if quota is None:
            raise FileNotFoundError(path)
        return quota

    monkeypatch.delenv("OMP_NUM_THREADS")
    if told is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(affinity)), raising=False)
    monkeypatch.setattr(Path, "read_text", read)
    assert devices.available_cores() == expected


def test_torch_is_kept_within_the_cores_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for cores, expected in ((2, 2), (9, 4)):
            monkeypatch.setattr(devices, "available_cores", lambda cores=cores: cores)
            with connect("cpu"):
                assert torch.get_num_threads() == expected
            assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


ALLOCATES = """
import resource, sys, torch
from ssdcore_torch.devices import open_device

open_device("cpu")
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        kept = [torch.ones(2**20) for _ in range(8)]
        del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what glibc does")
def test_memory_of_tensors_is_used_again_unless_the_user_says_how_to_allocate() -> None:
    def faults(**more: str) -> int:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
        command = [sys.executable, "-c", ALLOCATES]
        done = subprocess.run(command, env={**kept, **more}, capture_output=True, text=True, check=True)
        return int(done.stdout)

    pages = 5 * 8 * 2**22 // os.sysconf("SC_PAGE_SIZE")
    assert faults() < pages / 10
    assert faults(MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072") > pages / 10


@pytest.mark.parametrize("told", [None, "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_the_allocator_is_told_unless_the_user_has_done_so(told: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    class Library:
        def mallopt(self, option: int, value: int) -> int:
            asked.append((option, value))
            return 1

    for name in [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    if told is not None:
        monkeypatch.setenv(told, "1")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: Library())
    devices.open_device("cpu")
    assert asked == ([(-3, 2**25), (-1, 2**30)] if told is None else [])
    monkeypatch.setattr(sys, "platform", "win32")
    asked.clear()
    devices.open_device("cpu")
    assert asked == []
