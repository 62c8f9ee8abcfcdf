"""The two kinds of things that front.py compares: our networks, processes and recipes, and others' code.

Each side is a network, how it is trained and how it is sampled.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import math
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

import ssdcore as ssd
from ssdcore.process import Path as TimePath
from ssdcore_torch import FlexiUNet, generate
from ssdcore_torch.config import Config, preset
from ssdcore_torch.data import ImageSet
from ssdcore_torch.diffusion import Objective
from ssdcore_torch.distributed import World
from ssdcore_torch.sampling import ResidualSpectra, to_float
from ssdcore_torch.training import Trainer

SAMPLE_SEED = 0
BINS = 8
FITTED, DESIGN_STEPS = 5000, 20  # training images whose spectrum schedules are designed for, and for how many steps
TOGETHER = 250  # samples that go through a network at once
LEFT_OUT = "second_moments"  # of a way of sampling: generate takes the residual spectra themselves

Sampler = Mapping[str, Any]


def takes_residuals(sampler: Sampler) -> bool:
    return bool(sampler.get("second_moments")) or sampler.get("sampler") == "multistep"


@dataclass(frozen=True)
class Arm:
    levels: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    peer: str | None = None
    nats: float | None = None  # that changes of size may lose; None: the times of the preset's schedule
    steps_of: str | None = None  # the arm whose number of steps this one has, in place of what its own budget buys


@dataclass(frozen=True)
class Recipe:
    """What all arms share in training: AdamW, warm-up and cosine, an average of the weights."""

    device: torch.device
    batch: int = 16
    decay: float = 0.995  # of the average of the weights
    rate: float = 1e-3
    warmup: int = 50


class Training(Protocol):
    """A run: its averaged network, and the step that advances it, of one path where that is to be timed."""

    average: nn.Module
    paths: list[tuple[float, Any]]  # how often each is drawn, and the path

    def advance(self, path: Any = None) -> None: ...


class Side(Protocol):
    net: nn.Module

    def training(self, images: Tensor, seed: int, steps: int) -> Training: ...
    def sample(self, net: nn.Module, n: int, sampler: Sampler) -> Tensor: ...


def opened(arm: Arm, seed: int, images: Tensor, recipe: Recipe, checkout: Path | None) -> Any:
    """The side of an arm, its network on the recipe's device."""
    if arm.peer is None:
        return Ours(arm, seed, images, recipe)
    size, channels = images.shape[-1], images.shape[1]
    if arm.peer == "paper":
        assert checkout is not None
        return Paper(recipe, arm.levels, seed, size, channels, checkout)
    return {"diffusers": Diffusers, "lucidrains": Lucidrains}[arm.peer](recipe, seed, size, channels)


# ---- ours


class Ours:
    def __init__(self, arm: Arm, seed: int, images: Tensor, recipe: Recipe) -> None:
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
            "train": {
                "weighting": "edm",
                "change_share": 0.1,
                "size_bias": 0.5,
                "batch_size": recipe.batch,
                "learning_rate": recipe.rate,
                "warmup": recipe.warmup,
                "ema": [recipe.decay],
            },
        }
        config = preset("cpu").overlaid(base, size, arm.levels).overlaid(arm.settings)
        if arm.nats is not None:
            config = config.overlaid(
                {"process": {"schedule": "thresholds", "starts": designed(config, images, arm.nats)}}
            )
        self.config, self.process, self.device = config, config.build_process(), recipe.device
        torch.manual_seed(seed)
        self.net = FlexiUNet(config.network).to(recipe.device)
        self.prior: Any = None
        self.residuals: ResidualSpectra | None = None

    def training(self, images: Tensor, seed: int, steps: int) -> OurTraining:
        return OurTraining(self.config.overlaid({"seed": seed, "train": {"steps": steps}}), images, self.device)

    def sample(self, net: nn.Module, n: int, sampler: Sampler) -> Tensor:
        options = {name: value for name, value in sampler.items() if name != LEFT_OUT}
        residuals = self.residuals if takes_residuals(sampler) else None
        law = {"prior": self.prior, "residuals": residuals}
        return generate(net, self.process, n, seed=SAMPLE_SEED, batch_size=TOGETHER, **law, **options)

    def held_out(self, net: nn.Module, images: Tensor) -> list[float]:
        """Squared error of the clean image over 8 bins of the full-size times, weighed as EDM's loss weighs them,
        whatever an arm trains with: arms of one process have one held-out loss."""
        objective = Objective(self.process, weighting="edm")
        path = objective.paths[0]
        errors = []
        generator = torch.Generator().manual_seed(1)
        for part in np.array_split(np.array(path.times), BINS):
            batch = type(objective.draw(1, 0, 0))(path, np.resize(part, len(images)))
            noise = torch.randn(images.shape, generator=generator)
            with torch.no_grad():
                rows = objective.rows(batch.times, self.device)
                losses = objective.losses(net, images.to(self.device), batch, noise.to(self.device), 0, rows=rows)
            errors.append(float(losses.mean()))
        return errors


class OurTraining:
    """The trainer of `ssdcore_torch`; on a GPU it takes its steps as CUDA graphs."""

    def __init__(self, config: Config, images: Tensor, device: torch.device) -> None:
        pictures = ImageSet(images.permute(0, 2, 3, 1).numpy(), None, (), "images in memory")
        self.trainer = Trainer(config, pictures, World(0, 1, 0, device))
        self.average = self.trainer.averages.network
        self.batches = self.trainer.feed.batches(0)
        objective = self.trainer.objective
        shares = objective.path_probabilities.tolist()
        self.paths = [(share, path) for share, path in zip(shares, objective.paths) if share > 0]

    def advance(self, path: TimePath | None = None) -> None:
        self.trainer.train_step(next(self.batches), path)


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


# ---- others' code


class Peer:
    """A network of others, and its loss: `loss(images in [−1, 1], step)`."""

    net: nn.Module

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.device = recipe, recipe.device

    def loss(self, images: Tensor, step: int) -> Tensor:
        raise NotImplementedError

    def training(self, images: Tensor, seed: int, steps: int) -> PeerTraining:
        return PeerTraining(self, images, seed, steps)


class PeerTraining:
    """The loop of the trainer of `ssdcore_torch`, with another's loss."""

    def __init__(self, side: Peer, images: Tensor, seed: int, steps: int) -> None:
        self.side, self.images, self.steps, self.step = side, images.to(side.device), steps, 0
        self.paths: list[tuple[float, Any]] = [(1.0, None)]
        self.average = copy.deepcopy(side.net).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(side.net.parameters(), side.recipe.rate, weight_decay=0.0, fused=True)
        self.order = np.random.default_rng(seed)
        torch.manual_seed(seed + 1)
        np.random.seed(seed + 1)  # noqa: NPY002 - the paper's code draws from it

    def advance(self, path: Any = None) -> None:
        step, recipe = self.step, self.side.recipe
        rate = recipe.rate * min(1.0, (step + 1) / recipe.warmup) * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        rows = torch.from_numpy(self.order.integers(0, len(self.images), recipe.batch)).to(self.side.device)
        self.side.net.train()
        self.optimizer.zero_grad(set_to_none=True)
        self.side.loss(to_float(self.images[rows]), step).backward()
        self.optimizer.step()
        keep = min(recipe.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            list(self.average.parameters()), [p.detach() for p in self.side.net.parameters()], 1 - keep
        )
        self.step += 1


class Diffusers(Peer):
    """UNet2DModel, DDPMScheduler's noise and loss as in diffusers' training example; DDIM's few steps."""

    def __init__(self, recipe: Recipe, seed: int, size: int, channels: int) -> None:
        from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

        super().__init__(recipe)
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
        ).to(self.device)
        self.ddim = DDIMScheduler(1000, timestep_spacing="trailing")

    def loss(self, images: Tensor, step: int) -> Tensor:
        noise = torch.randn_like(images)
        times = torch.randint(0, 1000, (len(images),), device=self.device)
        return nn.functional.mse_loss(self.net(self.noise.add_noise(images, noise, times), times).sample, noise)

    def sample(self, net: nn.Module, n: int, sampler: Sampler) -> Tensor:
        self.ddim.set_timesteps(sampler["steps"])
        x = torch.randn(n, self.channels, self.size, self.size, device=self.device)
        with torch.no_grad():
            for t in self.ddim.timesteps:
                made = torch.cat([net(part, t).sample for part in x.split(TOGETHER)])
                x = self.ddim.step(made, t, x).prev_sample
        return x


class Lucidrains(Peer):
    """denoising-diffusion-pytorch's Unet and GaussianDiffusion as its README has them; its own DDIM sampling."""

    def __init__(self, recipe: Recipe, seed: int, size: int, channels: int) -> None:
        for name in ("torchvision", "torchvision.transforms", "torchvision.utils", "accelerate", "ema_pytorch"):
            stand_in(name)
        from denoising_diffusion_pytorch.denoising_diffusion_pytorch import GaussianDiffusion, Unet

        super().__init__(recipe)
        torch.manual_seed(seed)
        net = Unet(dim=26, dim_mults=(1, 1, 1), channels=channels, full_attn=(False, True, False))
        self.net = GaussianDiffusion(net, image_size=size, sampling_timesteps=25).to(self.device)

    def loss(self, images: Tensor, step: int) -> Tensor:
        return self.net((images + 1) / 2)

    def sample(self, net: nn.Module, n: int, sampler: Sampler) -> Tensor:
        net.sampling_timesteps, net.is_ddim_sampling = sampler["steps"], True
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
            return torch.cat([net.sample(batch_size=count) for count in counts(n)]) * 2 - 1


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


class Paper(Peer):
    """The paper's released code, as benchmarks/speed.py drives it: its network, process, batches, loss and sampler."""

    def __init__(self, recipe: Recipe, levels: int, seed: int, size: int, channels: int, checkout: Path) -> None:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        import speed

        super().__init__(recipe)
        torch.manual_seed(seed)
        self.modules = dict(speed.load_peer(checkout, self.device).modules)
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
        self.net.to(self.device)
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
            times, weights, chosen = self.times.sample(n, self.device, settings, resolutions, step)
            images = images.expand(-1, 3, -1, -1)  # its network takes no other number of channels
            losses = self.diffusion.training_losses(self.net, images, times, chosen, model_kwargs={}, step=step)
        return (losses["loss"] * weights).mean()

    def sample(self, net: nn.Module, n: int, sampler: Sampler) -> Tensor:
        # its chain takes one step more for each change of size
        chain, shape = self.chain(str(sampler["steps"] - self.changes)), (3, self.size, self.size)
        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            parts = [chain.p_sample_loop(net, (count, *shape), clip_denoised=True) for count in counts(n)]
        return torch.cat(parts)[:, : self.channels]


def counts(n: int) -> Iterator[int]:
    """Of samples that go through a network together."""
    return (len(part) for part in torch.arange(n).split(TOGETHER))
