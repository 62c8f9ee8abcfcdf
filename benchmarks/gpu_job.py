"""What benchmarks/gpu.py measures at, what a figure is, and the table of all."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ssdcore_torch.config import Config, preset
from ssdcore_torch.devices import open_device


@dataclass(frozen=True)
class Scale:
    """What is measured: in full, or at toy sizes."""

    config: Config
    batches: tuple[int, ...]
    samples: int
    steps: int
    product: int
    copied: int
    algebra: tuple[int, ...]
    backend: str
    compiled_paths: int
    repeats: tuple[int, int]
    gpu64: tuple[str, ...]
    train_seconds: float
    drawn: int
    tests: tuple[str, ...]


def scale(tiny: bool) -> Scale:
    if tiny:
        config = preset("cpu").overlaid({"network": {"channel_multipliers": [1, 1], "attention_sizes": [4]}}, 8, 2)
        settings = ("--preset", "cpu", "--size", "8", "--levels", "2", "--batch-size", "4", "--device", "cpu")
        network = ("--set", "network.channel_multipliers=[1,1]", "--set", "network.attention_sizes=[4]")
        chosen = ("tests/test_devices.py", "-k", "goes_on_from_its_checkpoint and cpu")
        return Scale(config, (4,), 2, 4, 64, 2**16, (16,), "eager", 1, (1, 1), (*settings, *network), 2.0, 8, chosen)
    gpu64 = ("--preset", "gpu64", "--device", "cuda")
    chosen = ("tests/test_devices.py", "tests/test_data_feed.py", "tests/test_graphs.py", "tests/test_fused_norm.py")
    chosen = (*chosen, "-m", "gpu", "-k", "not compiled", "--timeout=60")
    paper = preset("celeba64", "images drawn at random")
    return Scale(paper, (128, 32), 64, 50, 8192, 2**30, (64, 256), "inductor", 99, (5, 3), gpu64, 120.0, 2000, chosen)


@dataclass(frozen=True)
class Figure:
    """One measurement, and what it is compared with; `more` of it is better, or less."""

    section: str
    what: str
    unit: str
    value: float
    peer: float | None = None
    ceiling: float | None = None
    goal: float | None = None
    more: bool = True


@dataclass(frozen=True)
class Job:
    """One section's process: its name, its scale and device, the folder it writes to, and when it has to be done."""

    name: str
    tiny: bool
    out: Path
    until: float
    scale: Scale = field(init=False)
    device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", scale(self.tiny))
        object.__setattr__(self, "device", open_device("cpu" if self.tiny else "cuda"))  # as the commands do

    def note(self, what: str, unit: str, value: float, **compared: Any) -> None:
        figure = Figure(self.name, what, unit, value, **compared)
        with (self.out / "figures.jsonl").open("a") as file:  # one write of one line: several processes may add theirs
            file.write(json.dumps(asdict(figure)) + "\n")
        print(f"{what}: {value:.5g} {unit}", flush=True)

    def known(self, what: str) -> float | None:
        """An earlier figure's value."""
        return next((figure.value for figure in read(self.out) if figure.what == what), None)

    def left(self) -> float:
        return self.until - time.time()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object], warm_up: int = 3, calls: int | None = None) -> float:
        """Of one call: the median of several rows of calls that the host does not wait between."""
        most, rows = self.scale.repeats
        calls = calls or most
        for _ in range(warm_up):
            call()
        times = []
        for _ in range(rows):
            self.wait()
            started = time.perf_counter()
            for _ in range(calls):
                call()
            self.wait()
            times.append((time.perf_counter() - started) / calls)
        return statistics.median(times)


def read(out: Path) -> list[Figure]:
    file = out / "figures.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [Figure(**json.loads(line)) for line in lines]


def to_markdown(head: Mapping[str, Any], figures: list[Figure]) -> str:
    lines = [", ".join(f"{name}: {value}" for name, value in head.items() if name != "sections") + ".", ""]
    lines += [
        "In brackets: how many times better than what it is compared with. The peer's figures are recorded ones.",
        "",
        "| what | figure | peer | ceiling | goal |",
        "|---|---|---|---|---|",
    ]
    for figure in figures:
        cells = []
        for other in (figure.peer, figure.ceiling, figure.goal):
            ratio = None if other is None else figure.value / other if figure.more else other / figure.value
            cells.append("-" if ratio is None else f"{other:.4g} ({ratio:.2f}×)")
        lines.append(f"| {figure.what} | {figure.value:.4g} {figure.unit} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {name}: {said}" for name, said in head["sections"].items())]) + "\n"
