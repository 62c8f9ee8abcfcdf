"""Training and sampling speed of the whole model: ours and the paper's released code in one run on one device.

    python benchmarks/speed.py                                     # ours alone
    python benchmarks/speed.py --peer CHECKOUT                     # beside the paper's code, a git checkout of it
    python benchmarks/speed.py --peer CHECKOUT --out speed.json    # and the figures as JSON, each when measured

Without a CUDA device it measures a small model in float32 on two threads (or OMP_NUM_THREADS), in under six minutes on
an idle machine; on a busy one a thread that waits for a core costs many times its share. With a CUDA device it measures
the paper's models: ours in bfloat16 autocast and compiled, the peer as its configurations ship. Sections are taken in
order until --minutes are over and the rest is named as not measured, as is a section that fails, with its error;
`--only SECTION …` goes on with those (what was compiled is kept in TORCHINDUCTOR_CACHE_DIR). Our network runs all its
blocks, the peer's leaves out its last.

Training: whole steps (noisy input, forward, backward, AdamW, moving average) on images in memory, path by path: the
median time of each path that at least 1 % of the steps take, weighed by how often the paper's schedule takes it.
Sampling: one batch from noise to images, after one that is not timed. Both sides take the same times.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ssdcore as ssd
from ssdcore_torch import FlexiUNet, FlexiUNetConfig, generate
from ssdcore_torch.config import preset
from ssdcore_torch.data import ImageSet
from ssdcore_torch.denoisers.unet import level_sizes
from ssdcore_torch.diffusion import Batch, Objective
from ssdcore_torch.diffusion import Path as TimePath
from ssdcore_torch.distributed import World
from ssdcore_torch.training import Trainer, plan

STEPS = 50  # of sampling, and one more for each change of size
LEAST_SHARE = 0.01
EMA = 0.9999


@dataclass(frozen=True)
class Model:
    """The shape of a network and its process, for both sides: the paper's schedule, noise and loss."""

    size: int
    levels: int
    multipliers: tuple[int, ...]
    channels: int = 128
    blocks: int = 2

    @property
    def network(self) -> FlexiUNetConfig:
        sizes = level_sizes(self.size, self.levels, stages=len(self.multipliers))
        return FlexiUNetConfig(
            sizes, base_channels=self.channels, channel_multipliers=self.multipliers, blocks_per_stage=self.blocks
        )

    def process(self) -> ssd.LinearDiffusion:
        levels = ssd.ResolutionSchedule.convex(1000, self.levels, gamma=0.5)
        sizes = self.network.level_sizes
        return ssd.LinearDiffusion.resize(sizes[0], ssd.NoiseSchedule.linear(1000), levels, matched=False, sizes=sizes)

    @property
    def sampling_steps(self) -> int:
        return STEPS + self.levels - 1

    def __str__(self) -> str:
        return f"{self.size} px, {self.levels} level{'s' if self.levels > 1 else ''}"


@dataclass(frozen=True)
class Row:
    """One measurement; `peer` and `ratio` (above 1: ours is better) are None without a peer."""

    what: str
    unit: str
    ours: float
    peer: float | None
    ratio: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", type=Path, metavar="CHECKOUT", help="the paper's released code")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=8.0, help="start no section after this time (default: 8)")
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="measure these sections")
    parser.add_argument("--eager", action="store_true", help="do not compile on CUDA")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(2)
    sections = cuda_sections() if device.type == "cuda" else cpu_sections()
    unknown = set(args.only or ()) - set(sections)
    if unknown:
        parser.error(f"unknown sections {sorted(unknown)}; this device has {', '.join(sections)}")
    peer = None if args.peer is None else load_peer(args.peer, device)
    bench = Bench(device, peer, compiled=device.type == "cuda" and not args.eager)
    rows: list[Row] = []
    started = time.perf_counter()
    missing = dict.fromkeys(args.only or sections, "no time")

    def save() -> dict[str, Any]:
        """What there is, in case what comes next ends the process; -> all of it but the rows."""
        head = {
            "device": device_name(device),
            "date": datetime.date.today().isoformat(),
            "command": "python " + " ".join(sys.argv),
            "torch": torch.__version__,
            "load": os.getloadavg()[0],
            "minutes": round((time.perf_counter() - started) / 60, 1),
            "not measured": missing,
        }
        if args.out is not None:
            args.out.write_text(json.dumps({**head, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")
        return head

    for name in tuple(missing):
        since = time.perf_counter() - started
        if since <= 60 * args.minutes:
            print(f"# {name}, {since:.0f} s", file=sys.stderr, flush=True)
            try:
                for measured in sections[name](bench):
                    rows.append(measured)
                    save()
                del missing[name]
            except Exception as error:  # what the other sections measure is worth keeping
                traceback.print_exc()
                missing[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            free(device)
    print(to_markdown(save(), rows))
    if any(reason != "no time" for reason in missing.values()):
        raise SystemExit(1)


def to_markdown(head: dict[str, Any], rows: list[Row]) -> str:
    lines = [
        f"`{head['command']}` on {head['device']}, {head['date']}, torch {head['torch']}, "
        f"{head['minutes']} min, load {head['load']:.1f} at the end.",
        "",
        "| what | unit | ours | peer | ratio |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        peer = "-" if row.peer is None else f"{row.peer:.4g}"
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}×"
        lines.append(f"| {row.what} | {row.unit} | {row.ours:.4g} | {peer} | {ratio} |")
    if head["not measured"]:
        lines += [
            "",
            "Not measured: " + "; ".join(f"{name} ({why})" for name, why in head["not measured"].items()) + ".",
        ]
    return "\n".join(lines)


# ---- what is measured


@dataclass(frozen=True)
class Bench:
    """Where to measure, against what, and how long."""

    device: torch.device
    peer: Peer | None
    compiled: bool
    repeats: int = 7
    warm_up: int = 3

    def seconds(self, call: Callable[[], object]) -> float:
        """Median wall time of a call, after warm-up calls."""
        times = []
        for i in range(self.warm_up + self.repeats):
            self.synchronise()
            started = time.perf_counter()
            call()
            self.synchronise()
            if i >= self.warm_up:
                times.append(time.perf_counter() - started)
        return statistics.median(times)

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak(self, call: Callable[[], object]) -> float:
        """Largest memory in use during a call, in GiB; CUDA only."""
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 2**30

    def sides(self, model: Model) -> Iterator[Ours | PeerModel]:
        """Ours, then the peer if there is one; each freed before the next."""
        torch.manual_seed(0)
        yield Ours(model, self.device, self.compiled)
        if self.peer is not None:
            yield self.peer.model(model, self.device)


def row(what: str, unit: str, figures: list[float], *, less_is_better: bool = False) -> Row:
    ours, peer = figures[0], figures[1] if len(figures) > 1 else None
    ratio = None if peer is None else peer / ours if less_is_better else ours / peer
    return Row(what, unit, ours, peer, ratio)


def training(bench: Bench, model: Model, batch_size: int) -> Iterator[Row]:
    """Images a second, and on CUDA peak memory of a full-size step."""
    process = model.process()
    paths, shares = common_paths(process)
    speeds, peaks = [], []
    for side in bench.sides(model):
        seconds = 0.0
        for path, share in zip(paths, shares):
            batch = draw(path, batch_size)
            seconds += share * bench.seconds(lambda side=side, batch=batch: side.train_step(batch))
        speeds.append(batch_size / seconds)
        if bench.device.type == "cuda":
            full = draw(paths[0], batch_size)
            peaks.append(bench.peak(lambda side=side, full=full: side.train_step(full)))
        side.__dict__.clear()
        free(bench.device)
    yield row(f"train {model}, batch {batch_size}", "images/s", speeds)
    if peaks:
        yield row(f"its peak memory at {model.size} px", "GiB", peaks, less_is_better=True)


def sampling(bench: Bench, model: Model, count: int) -> Iterator[Row]:
    """Images a second of one batch."""
    speeds = []
    for side in bench.sides(model):
        side.sample(count)
        bench.synchronise()
        started = time.perf_counter()
        side.sample(count)
        bench.synchronise()
        speeds.append(count / (time.perf_counter() - started))
        side.__dict__.clear()
        free(bench.device)
    yield row(f"sample {model}, {model.sampling_steps} steps, batch {count}", "images/s", speeds)


def recomputation(bench: Bench, model: Model, batch_size: int) -> Iterator[Row]:
    """Peak memory and speed of full-size steps that recompute activations."""
    torch.manual_seed(0)
    side = Ours(model, bench.device, compiled=False)
    side.net.checkpoint_activations()
    batch = draw(model.process().paths[0], batch_size)
    speed = batch_size / bench.seconds(lambda: side.train_step(batch))
    yield Row(f"train {model}, batch {batch_size}, {model.size} px steps recomputed", "images/s", speed, None, None)
    if bench.device.type == "cuda":
        peak = bench.peak(lambda: side.train_step(batch))
        yield Row("its peak memory", "GiB", peak, None, None)


def default_preset(bench: Bench) -> Iterator[Row]:
    """The `cpu` preset as `python -m ssdcore_torch.train` runs it without options."""
    config = preset("cpu")
    process, train = config.build_process(), config.train
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (train.batch_size, config.size, config.size, 3), dtype=np.uint8)
    trainer = Trainer(config, ImageSet(images, None, (), "noise"), World(0, 1, 0, bench.device))
    seconds = sum(path.share * path.seconds for path in plan(trainer).paths)
    yield Row(f"train preset cpu, batch {train.batch_size}", "images/s", train.batch_size / seconds, None, None)
    generate(trainer.net, process, 64, steps=10)
    started = time.perf_counter()
    generate(trainer.net, process, 64, steps=100)
    bench.synchronise()
    elapsed = time.perf_counter() - started
    yield Row("sample preset cpu, 100 steps, batch 64", "images/s", 64 / elapsed, None, None)


Section = Callable[[Bench], Iterable[Row]]


def cuda_sections() -> dict[str, Section]:
    four, six = Model(64, 4, (1, 2, 3, 4)), Model(256, 6, (1, 1, 2, 2, 4, 4))
    one = Model(64, 1, (1, 2, 3, 4))
    return {
        "train64": lambda bench: training(bench, four, 128),
        "sample64": lambda bench: [*sampling(bench, four, 64), *sampling(bench, one, 64)],
        "train64-small": lambda bench: training(bench, four, 32),
        "memory256": lambda bench: recomputation(bench, six, 32),
        "train256": lambda bench: training(bench, six, 8),
    }


def cpu_sections() -> dict[str, Section]:
    three, one = (Model(32, levels, (1, 2, 2), channels=32, blocks=1) for levels in (3, 1))
    return {
        "train": lambda bench: training(bench, three, 32),
        "preset": default_preset,
        "sample": lambda bench: [*sampling(bench, three, 16), *sampling(bench, one, 16)],
    }


def common_paths(process: ssd.LinearDiffusion) -> tuple[list[TimePath], list[float]]:
    """The paths of at least 1 % of the paper's steps, and their shares among these."""
    objective = Objective(process)
    kept = [(path, p) for path, p in zip(objective.paths, objective.path_probabilities) if p >= LEAST_SHARE]
    total = sum(float(p) for _, p in kept)
    return [path for path, _ in kept], [float(p) / total for _, p in kept]


def draw(path: TimePath, batch_size: int) -> Batch:
    return Batch(path, np.random.default_rng(0).choice(np.array(path.times), size=batch_size))


def free(device: torch.device) -> None:
    """Give back what nothing refers to any more; compiled code and its network refer to each other."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


# ---- the two sides


class Ours:
    """Network, objective and optimizer as our trainer puts them together."""

    def __init__(self, model: Model, device: torch.device, compiled: bool) -> None:
        self.device, self.process, self.steps = device, model.process(), model.sampling_steps
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.net = FlexiUNet(model.network).to(device).to(memory_format=layout)  # type: ignore[call-overload]
        self.average = [p.detach().clone() for p in self.net.parameters()]
        if compiled:
            self.net.compile_paths()
        self.objective = Objective(self.process)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
        self.images = torch.rand(512, 3, *model.network.level_sizes[0], device=device) * 2 - 1

    def train_step(self, batch: Batch) -> Tensor:
        noise = torch.randn(batch.noise_shape(3), device=self.device)
        out_level = self.net.config.level_sizes.index((batch.path.target_shape[0], batch.path.target_shape[1]))
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast:
            loss = self.objective(self.net, self.images[: len(batch)], batch, noise, out_level)
        loss.backward()
        self.optimizer.step()
        torch._foreach_lerp_(self.average, [p.detach() for p in self.net.parameters()], 1 - EMA)
        return loss.detach()

    def sample(self, count: int) -> Tensor:
        with self.autocast:
            return generate(self.net, self.process, count, steps=self.steps, batch_size=count)


class Peer:
    """The paper's released code, from a checkout."""

    def __init__(self, modules: dict[str, Any]) -> None:
        self.modules = modules

    def model(self, model: Model, device: torch.device) -> PeerModel:
        return PeerModel(self.modules, model, device)


class PeerModel:
    """Its network, training loop and sampler, built as its scripts build them from its configurations."""

    def __init__(self, modules: dict[str, Any], model: Model, device: torch.device) -> None:
        settings: dict[str, Any] = {
            "ssd_config_flag": True,
            "resolution_schedule": "ConvexDecay_0.5",
            "t_res_sampling_mode": "one_res_many_t_except_one_t_for_res_change",
            "multires_training_mode": "flexi_unet",
            "num_levels": model.levels,
            "ds_factor": 2.0,
            "resize_operator": "BilinearOp",
            "scale_max": model.size,
            "model_channel_mult": ",".join(map(str, model.multipliers)),
        }
        resolutions, layers = modules["ssd_utils"].get_resolutions_array(settings)
        settings.update(scale_min=resolutions[0], unet_res_layer_map=layers)
        self.net = modules["script_util"].create_model(
            image_size=model.size,
            num_channels=model.channels,
            num_res_blocks=model.blocks,
            channel_mult=settings["model_channel_mult"],
            attention_resolutions="16,8",
            num_heads=4,
            use_scale_shift_norm=True,
            ssd_config=settings,
            unet_res_layer_map=layers,
        )
        self.net.to(device)

        def diffusion(respacing: str) -> Any:
            return modules["script_util"].create_gaussian_diffusion(
                predict_xstart=True,
                timestep_respacing=respacing,
                experiment_type="ssd",
                ssd_config=settings,
                resolutions_array=resolutions,
                mse_loss_weight_type="min_snr_5",
            )

        self.chain, self.shape, self.device = diffusion(str(STEPS)), (3, model.size, model.size), device
        self.times = FixedTimes()
        self.loop = modules["train_util"].TrainLoop(
            model=self.net,
            diffusion=diffusion(""),
            data=None,
            batch_size=1,
            microbatch=-1,
            lr=1e-4,
            ema_rate=str(EMA),
            log_interval=10,
            save_interval=10_000,
            resume_checkpoint=None,
            schedule_sampler=self.times,
            models_dir=tempfile.gettempdir(),
            ssd_config=settings,
        )
        self.images = torch.rand(512, *self.shape) * 2 - 1  # its loop moves each batch to the device

    def train_step(self, batch: Batch) -> Tensor:
        self.times.indices = torch.from_numpy(batch.times - 1)
        self.net.train()
        return self.loop.run_step(self.images[: len(batch)], {})

    def sample(self, count: int) -> Tensor:
        self.net.eval()
        return self.chain.p_sample_loop(self.net, (count, *self.shape), clip_denoised=True)


class FixedTimes:
    """Stands in for its sampler of times, so that both sides train the same ones."""

    indices = torch.zeros(0, dtype=torch.int64)

    def prepare_sampling(self, settings: object, resolutions: object) -> None:
        pass

    def sample(self, count: int, device: torch.device, *others: object) -> tuple[Tensor, Tensor, None]:
        return self.indices[:count].to(device), torch.ones(count, device=device), None


def load_peer(checkout: Path, device: torch.device) -> Peer:
    """Its modules. Packages that it takes only to read files, to draw and to read settings may be missing."""
    if not (checkout / "guided_diffusion").is_dir():
        raise SystemExit(f"--peer {checkout}: expected a checkout of the paper's code, with a folder guided_diffusion")
    stand_ins = []
    for name in ("blobfile", "omegaconf", "torchvision"):
        try:
            importlib.import_module(name)
        except ImportError:
            empty = types.ModuleType(name)
            empty.OmegaConf = None  # type: ignore[attr-defined]
            sys.modules[name] = empty
            stand_ins.append(name)
    sys.path.insert(0, str(checkout))
    names = ("logger", "ssd_utils", "script_util", "train_util")
    modules = {name: importlib.import_module(f"guided_diffusion.{name}") for name in names}
    for name in stand_ins:  # others ask whether they are installed
        del sys.modules[name]
    logger = modules["logger"].Logger
    logger.CURRENT = logger.DEFAULT = logger(dir=tempfile.gettempdir(), output_formats=[])
    modules["train_util"].find_resume_checkpoint = lambda folder: None
    modules["train_util"].pprint.pformat = modules["train_util"].pprint.pprint = lambda *values, **options: ""
    if not torch.distributed.is_initialized():  # it synchronises its processes in every step
        store = torch.distributed.HashStore()
        backend = "nccl" if device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    return Peer(modules)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{torch.get_num_threads()} thread(s) of {next(itertools.chain(models, [platform.machine()]))}"


if __name__ == "__main__":
    main()
