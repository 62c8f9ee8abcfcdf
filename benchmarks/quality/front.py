"""The front of quality against cost on photographs, ours and others' code in one table:

    python benchmarks/quality/make_garments.py DATA
    python benchmarks/quality/garment_features.py DATA/train.npz DATA/test.npz DATA/features.pt
    python benchmarks/quality/front.py --data DATA --out FOLDER --minutes 30      # again: goes on
    python benchmarks/quality/front.py --data DATA --out FOLDER --peer CHECKOUT   # the paper's released code, too
    python benchmarks/quality/front.py --data DATA --out FOLDER --sampling "25 steps"        # of the same runs
    python benchmarks/quality/front_report.py FOLDER

Every arm gets the same processor seconds of one thread (--budget). They are turned into steps once, before anything is
trained: the arms' steps (of ours, each path's) are timed in turns, so that other programs on the machine slow all
alike, and the quicker half counts. All arms share data, batch, optimizer (AdamW, warm-up, cosine) and average of the
weights, which is what few steps need; process, network, loss and sampler are each one's own, with parameters within
10 %. Every finished run leaves its averaged weights and, for each way of sampling, a row of JSON. Seeds run one after
the other, so that what there is after any time is whole; a run that is stopped starts again, those that finished are
kept.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import io
import json
import math
import sys
import time
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import ssdcore as ssd
from ssdcore.process import Path as TimePath
from ssdcore_torch import generate
from ssdcore_torch.config import Config, preset
from ssdcore_torch.diffusion import Objective
from ssdcore_torch.metrics import frechet_distance, open_extractor
from ssdcore_torch.randomness import Purpose, torch_seed
from ssdcore_torch.sampling import ResidualSpectra, fit_moments, measure_residuals, to_bytes, to_float

ONE_THREAD = 1
BATCH, RATE, WARMUP, DECAY = 16, 1e-3, 50, 0.995
SAMPLE_SEED = 0
HELD_OUT = 500  # test images that the held-out loss is taken of
BINS = 8
MEASURED = 200  # training images that residual spectra are measured on
FITTED, DESIGN_STEPS = 5000, 20  # training images whose spectrum schedules are designed for, and for how many steps
TIMING_ROUNDS = 6

Sampler = Mapping[str, Any]

SAMPLINGS: Mapping[str, Sampler] = {
    "12 steps": {"steps": 12},
    "25 steps": {"steps": 25},
    "12 steps, second moments": {"steps": 12, "second_moments": True},
    "25 steps, second moments": {"steps": 25, "second_moments": True},
    "6 steps": {"steps": 6},
    **{f"{n} steps, multistep": {"steps": n, "sampler": "multistep"} for n in (5, 6, 7, 8, 9, 10, 12)},
}
"""Others' code has its own sampler, so only numbers of steps. Multistep takes residual spectra, as runs do."""


def takes_residuals(sampler: Sampler) -> bool:
    return bool(sampler.get("second_moments")) or sampler.get("sampler") == "multistep"


class Side(Protocol):
    """A network, its loss and its sampler."""

    net: nn.Module

    def loss(self, images: Tensor, step: int) -> Tensor: ...
    def sample(self, net: nn.Module, n: int, sampler: Sampler) -> Tensor: ...


# ---- ours


@dataclass(frozen=True)
class Arm:
    levels: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    peer: str | None = None
    nats: float | None = None  # that changes of size may lose; None: the times of the preset's schedule


def _ours(levels: int, time_sampling: str, **train: Any) -> Arm:
    return Arm(levels, {"train": {"time_sampling": time_sampling, **train}})


def _plain(levels: int, nats: float | None = None) -> Arm:
    settings = {"train": {"weighting": "min_snr"}, "network": {"preconditioned_times": None}}
    return Arm(levels, settings, nats=nats)


ARMS: Mapping[str, Arm] = {
    "1 level, uniform": _ours(1, "uniform"),
    "1 level, density": _ours(1, "density"),
    "3 levels, uniform": _ours(3, "uniform"),
    "3 levels, density": _ours(3, "density"),
    # What the preset cpu trains with: min-SNR without preconditioning, which is ahead in short training.
    "1 level, min-SNR": _plain(1),
    "3 levels, min-SNR": _plain(3),
    # The same with its changes of size where they lose little (ssdcore.oracle.design_by_information).
    "3 levels, by information": _plain(3, nats=1.0),
    "4 levels, by information": _plain(4, nats=1.0),
    "diffusers DDPM": Arm(peer="diffusers"),
    "denoising-diffusion-pytorch": Arm(peer="lucidrains"),
    "paper's code, 3 levels": Arm(3, peer="paper"),
    "paper's code, 4 levels": Arm(4, peer="paper"),
}


class Ours:
    def __init__(self, arm: Arm, seed: int, images: Tensor) -> None:
        torch.manual_seed(seed)
        size, channels = images.shape[-1], images.shape[1]
        base = {
            "seed": seed,
            "data": {"classes": []},
            "network": {
                "in_channels": channels,
                "channel_multipliers": [1] * stages_of(size),
                "attention_sizes": [8],
                "preconditioned_times": 1000,
            },
            "process": {"schedule": "equal", "nats": None},
            "train": {"weighting": "edm", "change_share": 0.1, "size_bias": 0.5},
        }
        config = preset("cpu").overlaid(base, size, arm.levels).overlaid(arm.settings)
        if arm.nats is not None:
            config = config.overlaid(
                {"process": {"schedule": "thresholds", "starts": designed(config, images, arm.nats)}}
            )
        self.config, self.process = config, config.build_process()
        self.net = network_of(config)
        train = config.train
        self.objective = Objective(
            self.process,
            change_share=train.change_share,
            weighting=train.weighting,
            size_bias=train.size_bias,
            time_sampling=train.time_sampling,
        )
        self.levels = {size: k for k, size in enumerate(config.network.level_sizes)}
        self.prior: Any = None
        self.residuals: ResidualSpectra | None = None

    def loss(self, images: Tensor, step: int, path: TimePath | None = None) -> Tensor:
        batch = self.objective.draw(len(images), self.config.seed, step, path)
        generator = torch.Generator().manual_seed(torch_seed(Purpose.NOISE, self.config.seed, step))
        noise = torch.randn(batch.noise_shape(images.shape[1]), generator=generator)
        return self.objective(self.net, images, batch, noise, self.levels[batch.path.target_shape])

    @property
    def paths(self) -> list[tuple[float, TimePath]]:
        """How often each path is drawn, and the path."""
        return list(zip(self.objective.path_probabilities.tolist(), self.objective.paths))

    def sample(self, net: nn.Module, n: int, sampler: Sampler) -> Tensor:
        options = {**sampler, "residuals": self.residuals if takes_residuals(sampler) else None}
        options.pop("second_moments", None)
        return generate(net, self.process, n, seed=SAMPLE_SEED, prior=self.prior, batch_size=250, **options)

    def held_out(self, net: nn.Module, images: Tensor) -> list[float]:
        """Squared error of the clean image over 8 bins of the full-size times, weighed as EDM's loss weighs them."""
        path = self.objective.paths[0]
        times = np.array(path.times)
        errors = []
        generator = torch.Generator().manual_seed(1)
        for part in np.array_split(times, BINS):
            batch = type(self.objective.draw(1, 0, 0))(path, np.resize(part, len(images)))
            noise = torch.randn(images.shape, generator=generator)
            with torch.no_grad():
                weight = uniform_weights(self.objective)[batch.times]
                loss = self.objective.losses(
                    net, images, batch, noise, 0, rows=self.objective.rows(batch.times, images.device)
                )
            own = self.objective.rows(batch.times, images.device)[3]
            errors.append(float((loss / own * weight).mean()))
        return errors


def stages_of(size: int) -> int:
    return 3 if size < 32 else 4


def designed(config: Config, images: Tensor, nats: float) -> list[int]:
    """The starts of the levels that `design_by_information` finds for the spectrum of some training images."""
    spectrum = ssd.oracle.fit(to_float(images[:FITTED]).double().numpy()).covariance
    found = ssd.oracle.design_by_information(
        config.network.level_sizes[0],
        config.process.noise_schedule(),
        spectrum,
        len(config.network.level_sizes),
        DESIGN_STEPS,
        nats,
        kernel=config.process.kernel,
    )
    return list(found.levels.starts)


def network_of(config: Config) -> nn.Module:
    from ssdcore_torch import FlexiUNet

    return FlexiUNet(config.network)


def uniform_weights(objective: Objective) -> Tensor:
    """EDM's weight of each time, whatever an arm trains with: arms of one process have one held-out loss."""
    plain = Objective(objective.process, weighting="edm")
    return plain.rows(np.arange(objective.process.steps + 1), torch.device("cpu"))[3]


# ---- others' code


class Diffusers:
    """UNet2DModel, DDPMScheduler's noise and loss as in diffusers' training example; DDIM's few steps."""

    def __init__(self, seed: int, size: int, channels: int) -> None:
        from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

        torch.manual_seed(seed)
        self.size, self.channels, self.noise = size, channels, DDPMScheduler(1000)
        self.net = UNet2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=1,
            block_out_channels=(32, 32, 40),
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )
        self.ddim = DDIMScheduler(1000, timestep_spacing="trailing")

    def loss(self, images: Tensor, step: int) -> Tensor:
        noise = torch.randn_like(images)
        times = torch.randint(0, 1000, (len(images),))
        return nn.functional.mse_loss(self.net(self.noise.add_noise(images, noise, times), times).sample, noise)

    def sample(self, net: nn.Module, n: int, sampler: Sampler) -> Tensor:
        self.ddim.set_timesteps(sampler["steps"])
        x = torch.randn(n, self.channels, self.size, self.size)
        with torch.no_grad():
            for t in self.ddim.timesteps:
                made = torch.cat([net(part, t).sample for part in x.split(250)])
                x = self.ddim.step(made, t, x).prev_sample
        return x


class Lucidrains:
    """denoising-diffusion-pytorch's Unet and GaussianDiffusion as its README has them; its own DDIM sampling."""

    def __init__(self, seed: int, size: int, channels: int) -> None:
        for name in ("torchvision", "torchvision.transforms", "torchvision.utils", "accelerate", "ema_pytorch"):
            stand_in(name)
        from denoising_diffusion_pytorch.denoising_diffusion_pytorch import GaussianDiffusion, Unet

        torch.manual_seed(seed)
        net = Unet(dim=26, dim_mults=(1, 1, 1), channels=channels, full_attn=(False, True, False))
        self.net = GaussianDiffusion(net, image_size=size, sampling_timesteps=25)

    def loss(self, images: Tensor, step: int) -> Tensor:
        return self.net((images + 1) / 2)

    def sample(self, net: nn.Module, n: int, sampler: Sampler) -> Tensor:
        net.sampling_timesteps, net.is_ddim_sampling = sampler["steps"], True
        with torch.no_grad():
            return torch.cat([net.sample(batch_size=len(part)) for part in torch.arange(n).split(250)]) * 2 - 1


def stand_in(name: str) -> None:
    """For packages that it takes to read files, save pictures and train on several devices alone."""
    try:
        __import__(name)
    except ImportError:
        module = types.ModuleType(name)
        for part in ("transforms", "utils", "Accelerator", "EMA"):
            setattr(module, part, types.SimpleNamespace())
        module.__spec__ = types.SimpleNamespace(name=name)  # type: ignore[assignment]
        sys.modules[name] = module


class Paper:
    """The paper's released code, as benchmarks/speed.py drives it: its network, process, batches, loss and sampler."""

    def __init__(self, levels: int, seed: int, size: int, channels: int, checkout: Path) -> None:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        import speed

        torch.manual_seed(seed)
        self.modules = dict(speed.load_peer(checkout, torch.device("cpu")).modules)
        self.modules["resample"] = importlib.import_module("guided_diffusion.resample")
        self.channels, self.size, self.changes = channels, size, levels - 1
        multipliers = ",".join(["1"] * stages_of(size))
        self.settings: dict[str, Any] = {
            "ssd_config_flag": True,
            "resolution_schedule": "ConvexDecay_0.5",
            "t_res_sampling_mode": "one_res_many_t_except_one_t_for_res_change",
            "multires_training_mode": "flexi_unet",
            "num_levels": levels,
            "ds_factor": 2.0,
            "resize_operator": "BilinearOp",
            "scale_max": size,
            "model_channel_mult": multipliers,
        }
        self.resolutions, layers = self.modules["ssd_utils"].get_resolutions_array(self.settings)
        self.settings.update(scale_min=self.resolutions[0], unet_res_layer_map=layers)
        self.net = self.modules["script_util"].create_model(
            image_size=size,
            num_channels=32,
            num_res_blocks=1,
            channel_mult=multipliers,
            attention_resolutions="8",
            num_heads=4,
            use_scale_shift_norm=True,
            ssd_config=self.settings,
            unet_res_layer_map=layers,
        )
        self.diffusion = self.chain("")
        self.times = self.modules["resample"].create_named_schedule_sampler("uniform", self.diffusion)
        self.times.prepare_sampling(self.settings, self.resolutions)

    def chain(self, respacing: str) -> Any:
        return self.modules["script_util"].create_gaussian_diffusion(
            predict_xstart=True,
            timestep_respacing=respacing,
            experiment_type="ssd",
            ssd_config=self.settings,
            resolutions_array=self.resolutions,
            mse_loss_weight_type="min_snr_5",
        )

    def loss(self, images: Tensor, step: int) -> Tensor:
        n, settings, resolutions = len(images), self.settings, self.resolutions
        with contextlib.redirect_stdout(io.StringIO()):
            times, weights, chosen = self.times.sample(n, torch.device("cpu"), settings, resolutions, step)
            images = images.expand(-1, 3, -1, -1)  # its network takes no other number of channels
            losses = self.diffusion.training_losses(self.net, images, times, chosen, model_kwargs={}, step=step)
        return (losses["loss"] * weights).mean()

    def sample(self, net: nn.Module, n: int, sampler: Sampler) -> Tensor:
        # its chain takes one step more for each change of size
        chain, shape = self.chain(str(sampler["steps"] - self.changes)), (3, self.size, self.size)
        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            counts = [len(part) for part in torch.arange(n).split(250)]
            parts = [chain.p_sample_loop(net, (count, *shape), clip_denoised=True) for count in counts]
        return torch.cat(parts)[:, :1]


# ---- one run


def made(name: str, seed: int, images: Tensor, checkout: Path | None) -> Any:
    size, channels = images.shape[-1], images.shape[1]
    arm = ARMS[name]
    if arm.peer is None:
        return Ours(arm, seed, images)
    if arm.peer == "paper":
        assert checkout is not None
        return Paper(arm.levels, seed, size, channels, checkout)
    return {"diffusers": Diffusers, "lucidrains": Lucidrains}[arm.peer](seed, size, channels)


class Training:
    """The loop that all arms share."""

    def __init__(self, side: Any, images: Tensor, seed: int, steps: int) -> None:
        self.side, self.images, self.steps, self.step = side, images, steps, 0
        self.average = copy.deepcopy(side.net).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(side.net.parameters(), RATE, weight_decay=0.0, fused=True)
        self.order = np.random.default_rng(seed)
        torch.manual_seed(seed + 1)
        np.random.seed(seed + 1)  # noqa: NPY002 - the paper's code draws from it

    def advance(self, path: TimePath | None = None) -> None:
        """One step; of that path, where one is given (our side has paths)."""
        step, rate = self.step, RATE * min(1.0, (self.step + 1) / WARMUP)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        rows = torch.from_numpy(self.order.integers(0, len(self.images), BATCH))
        self.side.net.train()
        self.optimizer.zero_grad(set_to_none=True)
        chosen = () if path is None else (path,)
        self.side.loss(to_float(self.images[rows]), step, *chosen).backward()
        self.optimizer.step()
        keep = min(DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            list(self.average.parameters()), [p.detach() for p in self.side.net.parameters()], 1 - keep
        )
        self.step += 1


def planned(names: list[str], args: argparse.Namespace, images: Tensor) -> dict[str, int]:
    """Steps of every arm for the budget, from the mean time of a step; all that is timed is timed in turns.

    Of our arms each path is timed by itself and weighed by how often it is drawn: a few steps of random paths, and the
    quicker rounds of them, would be those that drew small sizes.
    """
    file = args.out / "steps.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    new = [name for name in names if name not in known]
    if not new:
        return known
    trainings = {name: Training(made(name, 0, images, args.peer), images, 0, 1000) for name in names}
    paths = {name: getattr(training.side, "paths", [(1.0, None)]) for name, training in trainings.items()}
    spent: dict[tuple[str, int], list[float]] = {}
    for turn in range(1 + TIMING_ROUNDS):
        for name, training in trainings.items():
            for number, (_, path) in enumerate(paths[name]):
                started, count = time.process_time(), 8 if path is None else 2
                for _ in range(count):
                    training.advance(path)
                if turn:
                    spent.setdefault((name, number), []).append((time.process_time() - started) / count)
    for name in new:
        each = [np.mean(sorted(spent[name, k])[: TIMING_ROUNDS // 2]) for k in range(len(paths[name]))]
        seconds = float(np.dot(each, [share for share, _ in paths[name]]))
        known[name] = round(args.budget / seconds)
        print(f"{name}: {seconds:.4f} CPU s a step, {known[name]} steps", flush=True)
    file.write_text(json.dumps(known, indent=1) + "\n")
    return known


def stem_of(out: Path, arm: str, seed: int) -> Path:
    """What the names of an arm's files begin with."""
    return out / f"{arm.replace(' ', '_').replace(',', '')}-{seed}"


def run(name: str, seed: int, steps: int, args: argparse.Namespace, images: Tensor, judge: Judge) -> None:
    stem = stem_of(args.out, name, seed)
    allowed = [how for how in args.sampling if ARMS[name].peer is None or set(SAMPLINGS[how]) == {"steps"}]
    files = {how: Path(f"{stem}-{how.replace(' ', '_').replace(',', '')}.json") for how in allowed}
    wanted = [how for how, file in files.items() if not file.exists()]
    if not wanted:
        return
    side = made(name, seed, images, args.peer)
    weights = Path(f"{stem}.pt")
    if weights.exists():
        kept = torch.load(weights, weights_only=True)
        side.net.load_state_dict(kept["average"])
    else:
        training = Training(side, images, seed, steps)
        started = time.process_time()
        while training.step < steps:
            training.advance()
        kept = {"average": training.average.state_dict(), "seconds": time.process_time() - started, "steps": steps}
        torch.save(kept, weights)
        side.net.load_state_dict(kept["average"])
    net = side.net.eval().requires_grad_(False)
    if isinstance(side, Ours):
        side.prior = judge.prior(side)
        if any(takes_residuals(SAMPLINGS[how]) for how in wanted):
            known = to_float(images[:MEASURED])
            side.residuals = measure_residuals(net, side.process, [(known, None)], clip=True)
    for how in wanted:
        sampler = SAMPLINGS[how]
        with FlopCounterMode(display=False) as counter:
            side.sample(net, 2, sampler)
        torch.manual_seed(SAMPLE_SEED)
        started = time.process_time()
        samples = to_bytes(side.sample(net, args.samples, sampler))
        row = {
            "arm": name,
            "seed": seed,
            "size": images.shape[-1],
            "steps": kept["steps"],
            "train_seconds": kept["seconds"],
            "parameters": sum(p.numel() for p in net.parameters()),
            "sampling": how,
            "file": files[how].with_suffix(".npz").name,
            "sample_gflop": counter.get_total_flops() / 2e9,
            "sample_seconds": (time.process_time() - started) / args.samples,
            "samples": args.samples,
            **judge(samples),
        }
        if isinstance(side, Ours):
            row["held_out"] = side.held_out(net, judge.held_out)
        np.savez_compressed(files[how].with_suffix(".npz"), images=samples[:64].permute(0, 2, 3, 1).numpy())
        files[how].write_text(json.dumps(row, indent=1) + "\n")
        said = f"{row['garments']:.2f}, pixels {row['pixels']:.2f}; {row['train_seconds']:.0f} CPU s of training"
        print(f"{time.strftime('%H:%M:%S')} {name}, seed {seed}, {how}: {said}", flush=True)


class Judge:
    """Fréchet distances of samples to all the test images, in the classifier's features and in pixels."""

    def __init__(self, data: Path, train: Tensor, test: Tensor, samples: int) -> None:
        self.held_out, self.train = to_float(test[:HELD_OUT]), train
        extractors = {
            "garments": open_extractor(data / "features.pt", trusted=True),
            "pixels": open_extractor("pixels"),
        }
        self.extractors = extractors
        self.known = {name: self.features(name, test) for name in self.extractors}
        self.floor = {
            name: frechet_distance(self.features(name, train[:samples]), self.known[name]) for name in extractors
        }

    def features(self, name: str, images: Tensor) -> Tensor:
        return torch.cat([self.extractors[name](part) for part in images.split(500)])

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="train.npz, test.npz, features.pt")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--peer", type=Path, metavar="CHECKOUT", help="the paper's released code")
    parser.add_argument("--budget", type=float, default=60.0, help="processor seconds of training a run (default: 60)")
    parser.add_argument("--sampling", nargs="+", choices=list(SAMPLINGS), default=["12 steps"], metavar="HOW")
    parser.add_argument("--samples", type=int, default=1000, help="of each arm and way of sampling (default: 1000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", metavar="ARM")
    parser.add_argument("--minutes", type=float, default=8.0, help="start no run after this time (default: 8)")
    args = parser.parse_args()
    for name in ("train.npz", "test.npz", "features.pt"):
        if not (args.data / name).is_file():
            parser.error(
                f"{args.data / name}: no such file; see the first lines of --help for the commands that make it"
            )
    names = args.arms or [name for name, arm in ARMS.items() if arm.peer != "paper" or args.peer]
    if unknown := [name for name in names if name not in ARMS]:
        parser.error(f"unknown arms {unknown}; there are {list(ARMS)}")
    torch.set_num_threads(ONE_THREAD)
    until = time.time() + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    images = tensor_of(args.data / "train.npz")
    steps = planned(names, args, images)
    judge = Judge(args.data, images, tensor_of(args.data / "test.npz"), args.samples)
    for seed in args.seeds:
        for name in names:
            if time.time() < until:
                run(name, seed, steps[name], args, images, judge)


if __name__ == "__main__":
    main()
