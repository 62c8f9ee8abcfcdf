"""SSDPipeline: a trained Flexi-UNet as a diffusers pipeline, and the parts it is made of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

import ssdcore as ssd
from ssdcore_torch.checkpoint import load_tensors
from ssdcore_torch.denoisers.unet import FlexiUNet, FlexiUNetConfig
from ssdcore_torch.interop.diffusers_scheduler import SSDScheduler
from ssdcore_torch.processes import INFORMATION, THRESHOLDS
from ssdcore_torch.runs import load_run
from ssdcore_torch.sampling._labels import Labels, check_labels
from ssdcore_torch.sampling._walk import Noise

BETA_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
"""What diffusers calls the noise of a run."""

_PIPELINE_FILE = """# For DiffusionPipeline.from_pretrained(..., custom_pipeline="pipeline"); needs ssdcore.
from ssdcore_torch.interop import SSDPipeline as SSDPipeline
"""


class FlexiUNetModel(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A `FlexiUNet`, kept in `net`, with the call, the configuration and the files of a diffusers model.

    The arguments are those of `FlexiUNetConfig`. ``FlexiUNetModel.wrap(net)`` wraps a network there is.
    """

    @register_to_config
    def __init__(
        self,
        level_sizes: tuple[tuple[int, int], ...],
        in_channels: int = 3,
        base_channels: int = 128,
        channel_multipliers: tuple[float, ...] = (1, 2, 3, 4),
        blocks_per_stage: int = 2,
        attention_sizes: tuple[int, ...] | None = None,
        heads: int = 4,
        dropout: float = 0.0,
        num_classes: int | None = None,
        flexi: bool = True,
        released_behaviour: bool = False,
        preconditioned_times: int | None = None,
    ) -> None:
        super().__init__()
        config = FlexiUNetConfig(
            level_sizes,
            in_channels,
            base_channels,
            channel_multipliers,
            blocks_per_stage,
            attention_sizes,
            heads,
            dropout,
            num_classes,
            flexi,
            released_behaviour,
            preconditioned_times,
        )
        self.net = FlexiUNet(config)

    @classmethod
    def wrap(cls, net: FlexiUNet) -> FlexiUNetModel:
        """The model around a copy of the network's weights, in evaluation mode."""
        if not isinstance(net, FlexiUNet):
            raise TypeError(f"FlexiUNetModel.wrap: expected a FlexiUNet, got {type(net).__name__}")
        model = cls(**net.config.to_dict())
        model.net.load_state_dict(net.state_dict())
        first = next(net.parameters())
        model.net.to(first.device, first.dtype)
        return model.eval()

    def forward(
        self,
        sample: Tensor,
        timestep: int | Tensor,
        class_labels: Tensor | None = None,
        out_size: tuple[int, ...] | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """The clean image predicted from a state.

        Args:
            sample: x_t, (batch, channels, height, width) of one of the levels
            timestep: t − 1, as diffusers counts: a number, or one per image
            class_labels: (batch,) integers, class-conditional networks only; None: no class
            out_size: (height, width) of the prediction, `SSDScheduler.prediction_size`; None: that of the sample
        """
        config = self.net.config
        level = None
        if out_size is not None:
            if tuple(out_size) not in config.level_sizes:
                raise ValueError(f"out_size: expected one of the network's {config.level_sizes}, got {tuple(out_size)}")
            level = config.level_sizes.index((int(out_size[0]), int(out_size[1])))
        times = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device) + 1
        clean = self.net(sample, times.expand(sample.shape[0]), level, class_labels)
        return UNet2DOutput(sample=clean) if return_dict else (clean,)


class SSDPrior(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Mean and covariance of the clean images at the smallest size, from which the law of x_T follows.

    - shape: (channels, height, width)

    Attributes:
        mean: (channels, height, width)
        covariance: (n, n), n = channels · height · width, C order
    """

    mean: Tensor
    covariance: Tensor

    @register_to_config
    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        count = int(np.prod(shape))
        self.register_buffer("mean", torch.zeros(tuple(shape), dtype=torch.float64))
        self.register_buffer("covariance", torch.zeros(count, count, dtype=torch.float64))

    def law(self, process: ssd.LinearDiffusion) -> ssd.Gaussian:
        """`process.prior` of these moments."""
        covariance = self.covariance.double().cpu().numpy()
        if self.covariance.dtype != torch.float64:  # a cast can leave eigenvalues a rounding below zero
            values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
            covariance = (vectors * values.clip(0)) @ vectors.T
        return process.prior(self.mean.double(), covariance)


class SSDPipeline(DiffusionPipeline):
    """Draws images with a trained Flexi-UNet.

    ::

        pipe = SSDPipeline.from_run("runs/first")
        image = pipe(seed=0).images[0]
        pipe.save_pretrained("folder")
        pipe = SSDPipeline.from_pretrained("folder")

    Where this library is installed, a saved folder loads without an import of it, too, by diffusers' own rule for
    pipelines that are not its own::

        DiffusionPipeline.from_pretrained("folder", custom_pipeline="pipeline", trust_remote_code=True)

    That runs the folder's ``pipeline.py``, as any such folder's; loaded with this class, nothing of the folder runs.

    Attributes:
        unet: a FlexiUNetModel
        scheduler: an SSDScheduler whose sizes are among the network's levels
        prior: an SSDPrior; None: x_T ~ N(0, σ_T² I)
    """

    unet: FlexiUNetModel
    scheduler: SSDScheduler
    prior: SSDPrior | None

    model_cpu_offload_seq: Any = "unet"
    _optional_components = ["prior"]  # noqa: RUF012 - as diffusers declares it
    _exclude_from_cpu_offload = ["prior"]  # noqa: RUF012

    def __init__(self, unet: FlexiUNetModel, scheduler: SSDScheduler, prior: SSDPrior | None = None) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, prior=prior)
        self._check_parts()

    def _check_parts(self) -> None:
        for name, kind in (("unet", FlexiUNetModel), ("scheduler", SSDScheduler)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(
                    f"SSDPipeline: {name} must be a {kind.__name__}, got {type(getattr(self, name)).__name__}; "
                    "other networks go with SSDScheduler in diffusers' own pipelines"
                )
        levels, process = self.unet.net.config.level_sizes, self.scheduler.process
        if process.shape(0) != levels[0] or not set(process.shapes) <= set(levels):
            raise ValueError(f"SSDPipeline: the scheduler's sizes are {process.shapes}, the network's levels {levels}")
        if self.prior is not None and tuple(self.prior.mean.shape[1:]) != process.shape(process.steps):
            raise ValueError(
                f"SSDPipeline: the prior is over {tuple(self.prior.mean.shape[1:])}, "
                f"the smallest state {process.shape(process.steps)}"
            )

    @classmethod
    def from_run(
        cls,
        path: str | os.PathLike[str],
        *,
        weights: Literal["ema", "model"] = "ema",
        device: str | torch.device = "cpu",
        **scheduler: Any,
    ) -> SSDPipeline:
        """The pipeline of a run folder of `ssdcore_torch.train`.

        Raises what `load_run` raises, and ValueError for other weights, and for a process that SSDScheduler has not.

        Args:
            weights: "ema": the moving average, which samples are drawn with; "model": the weights themselves
            scheduler: settings of `SSDScheduler` beside the process, such as sampler="multistep"
        """
        if weights not in ("ema", "model"):
            raise ValueError(f"weights: expected ema or model, got {weights!r}")
        run = load_run(path, device)
        process = run.config.process
        if process.noise not in BETA_SCHEDULES or process.degradation not in ("resize", "identity"):
            raise ValueError(
                f"SSDPipeline: SSDScheduler resizes, with the noise {' or '.join(BETA_SCHEDULES)}; the process of "
                f"{path} is {process.degradation} with the noise {process.noise}: sample it with ssdcore_torch.Run"
            )
        informed = process.schedule == INFORMATION  # which a scheduler takes by its times
        starts = process.levels(run.config.network.level_sizes).starts if informed else process.starts
        made = SSDScheduler(
            level_sizes=run.config.network.level_sizes,
            num_train_timesteps=process.steps,
            beta_start=0.1 / process.steps,
            beta_end=20 / process.steps,
            beta_schedule=BETA_SCHEDULES[process.noise],
            level_schedule=THRESHOLDS if informed else process.schedule,
            level_gamma=process.gamma,
            level_starts=starts,
            matched=process.matched,
            kernel=process.kernel,
            **scheduler,
        )
        prior = None
        if run.prior is not None:
            moments, _ = load_tensors(Path(path) / "prior.safetensors")
            prior = SSDPrior(tuple(moments["mean"].shape))
            prior.load_state_dict(moments)
            prior.to(device)
        return cls(FlexiUNetModel.wrap(run.ema if weights == "ema" else run.net), made, prior)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **options: Any) -> None:
        """As diffusers saves a pipeline, with a pipeline.py that imports this class for
        ``DiffusionPipeline.from_pretrained``."""
        super().save_pretrained(save_directory, *args, **options)
        Path(save_directory, "pipeline.py").write_text(_PIPELINE_FILE, encoding="utf-8")

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        seed: int | None = None,
        class_labels: Labels | None = None,
        guidance_scale: float = 1.0,
        timesteps: Sequence[int] | None = None,
        output_type: Literal["pil", "np", "pt"] = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw `batch_size` images.

        Returns an ImagePipelineOutput, or (images,). Raises ValueError for a batch_size below 1, both seed and
        generator, labels that the network cannot take, and timesteps that the process cannot take.

        Args:
            num_inference_steps: network evaluations per image; None: 100, or as many as `timesteps`
            generator: of all noise, or one for each image; or
            seed: image i is then sample i of ``ssdcore_torch.generate(…, seed=seed)``, up to rounding
            class_labels: class of each image, or one for all; None: no class
            guidance_scale: w of classifier-free guidance; 1: none
            timesteps: timesteps to visit, decreasing, instead of num_inference_steps evenly spaced ones
            output_type: "pil" (a list of images), "np" (batch, height, width, channels) or "pt" (batch, channels,
                height, width), both in [0, 1]
        """
        self._check_parts()
        if batch_size < 1 or output_type not in ("pil", "np", "pt"):
            raise ValueError(
                f"expected batch_size >= 1 and output_type pil, np or pt, got {batch_size} and {output_type!r}"
            )
        if seed is not None and generator is not None:
            raise ValueError("give either seed or generator")
        labels = check_labels(self.unet.net, class_labels, batch_size, guidance_scale)
        device, dtype, channels = self._execution_device, self.unet.dtype, self.unet.config["in_channels"]
        labels = None if labels is None else labels.to(device)
        scheduler = self.scheduler
        if timesteps is None:
            scheduler.set_timesteps(100 if num_inference_steps is None else num_inference_steps, device)
        else:
            scheduler.set_timesteps(num_inference_steps, device, timesteps)
        from_seed = None if seed is None else Noise(seed, range(batch_size), channels, dtype, device)

        def draw(size: tuple[int, ...]) -> Tensor:
            if from_seed is not None:
                return from_seed(size)
            return randn_tensor((batch_size, channels, *size), generator=generator, device=device, dtype=dtype)

        chain = scheduler.chain
        law = chain.prior() if self.prior is None else self.prior.law(chain)
        law = ssd.Gaussian(torch.as_tensor(law.mean, dtype=dtype, device=device), law.covariance)
        x = law.sample(draw(chain.shape(chain.steps)))
        for t in self.progress_bar(scheduler.timesteps.tolist()):
            size = scheduler.prediction_size(t)
            clean = self._predict(x, t, size, labels, guidance_scale)
            noise = draw(size) if scheduler.takes_noise(t) else None
            x = scheduler.step(clean, t, x, variance_noise=noise).prev_sample  # type: ignore[union-attr]
        images = (x / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).float().cpu().numpy()
            if output_type == "pil":
                images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _predict(self, x: Tensor, t: int, size: tuple[int, ...], labels: Tensor | None, guidance: float) -> Tensor:
        if guidance == 1 or labels is None:
            return self.unet(x, t, labels, size).sample
        assert self.unet.net.config.null_label is not None  # check_labels refuses guidance otherwise
        null = torch.full_like(labels, self.unet.net.config.null_label)
        labelled, unlabelled = self.unet(torch.cat([x, x]), t, torch.cat([labels, null]), size).sample.chunk(2)
        return unlabelled + guidance * (labelled - unlabelled)
