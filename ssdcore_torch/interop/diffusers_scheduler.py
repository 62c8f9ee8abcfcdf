"""SSDScheduler: a process of ssdcore behind the scheduler interface of diffusers."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

import ssdcore as ssd
from ssdcore_torch.sampling import PLACEMENTS, ResidualSpectra, Sampler, reverse_step, sampling_times

LEVEL_SCHEDULES = ("equal", "convex", "sigmoid", "tanh", "thresholds")
PREDICTIONS = ("sample", "epsilon", "v_prediction")
SPACINGS = (*PLACEMENTS, "leading", "trailing", "linspace")

# Schedulers of diffusers whose configurations are taken; what they mean by a setting that a file leaves out.
_THEIRS = (DDPMScheduler, DDIMScheduler)
_THEIR_DEFAULTS = {"prediction_type": "epsilon", "timestep_spacing": "leading"}
# Their settings that change the result, with the values that mean what is done here.
_ONLY = {
    "variance_type": ("fixed_small", "fixed_small_log"),
    "thresholding": (False,),
    "rescale_betas_zero_snr": (False,),
    "set_alpha_to_one": (True,),
    "steps_offset": (0,),
    "use_karras_sigmas": (False,),
}


@dataclass
class SSDSchedulerOutput(BaseOutput):
    """Attributes:
    prev_sample: x_s, the next and less noisy state, ``(batch, channels, *its size)``
    pred_original_sample: the clean image, clipped if asked for, at the size of `prev_sample`
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class SSDScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Samples with the exact posteriors of a scale-space (or ordinary) diffusion, by the conventions of diffusers.

    Timesteps are those of diffusers, 0 … T − 1: timestep i is the time t = i + 1 of `process`. Across a change of size
    the network is asked for the clean image at the next, larger size, and `step` returns a state of that size::

        x = scheduler.init_noise_sigma * torch.randn(1, 3, *scheduler.state_size(scheduler.timesteps[0]))
        for t in scheduler.timesteps:
            clean = unet(x, t, out_size=scheduler.prediction_size(t)).sample
            x = scheduler.step(clean, t, x, generator=generator).prev_sample

    With one size this is DDPM at eta = 1 and DDIM at eta = 0, and drives diffusers' own UNet2DModel and DDPMPipeline
    (not its DDIMPipeline, which puts a DDIMScheduler in the place of any other);
    ``SSDScheduler.from_config(pipe.scheduler.config, level_sizes=[[64, 64]])`` takes over the settings of theirs.

    - level_sizes: (height, width) of every level of the state, full size first; one of them: an ordinary process

    num_train_timesteps  T

    - beta_schedule: noise of the full-size process: "linear" and "scaled_linear" from beta_start to beta_end, or
      "squaredcos_cap_v2"; trained_betas gives the T numbers themselves
    - level_schedule: how long each level lasts: "equal", "convex", "sigmoid" or "tanh" with exponent `level_gamma`
      (None: its default), or "thresholds": level k starts at the time level_starts[k − 1] of 1 … T
    - matched, kernel: of `ssdcore.LinearDiffusion.resize`
    - sampler, eta: of `ssdcore_torch.generate`; eta None: the sampler's own, 1 for "ancestral", 0 for
      "multistep"
    - prediction_type: "sample": the network predicts clean images; "epsilon" and "v_prediction" for one size only, as
      noise of the smaller state does not say what the larger one holds
    - clip_sample: clip predictions to ±clip_sample_range. Noise is always derived from the clipped prediction (DDIM's
      `use_clipped_model_output`)
    - timestep_spacing: "time" or "log_snr" as in `ssdcore_torch.generate`, the only ones for several sizes, because
      they pass every change; "leading", "trailing" and "linspace" as in diffusers; None: the sampler's own

    `config` holds all of it as JSON. Raises ValueError or TypeError for settings that are wrong or do not go together.
    """

    order = 1
    _compatibles = ["DDPMScheduler", "DDIMScheduler"]  # noqa: RUF012 - whose configurations `from_config` takes

    @register_to_config
    def __init__(
        self,
        level_sizes: Sequence[Sequence[int]],
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        level_schedule: str = "equal",
        level_gamma: float | None = None,
        level_starts: Sequence[int] | None = None,
        matched: bool = True,
        kernel: str = "bilinear",
        sampler: str = "ancestral",
        eta: float | None = None,
        prediction_type: str = "sample",
        clip_sample: bool = True,
        clip_sample_range: float = 1.0,
        timestep_spacing: str | None = None,
    ) -> None:
        try:
            sizes = [[operator.index(height), operator.index(width)] for height, width in level_sizes]
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"level_sizes: expected (height, width) pairs, full size first, got {level_sizes}"
            ) from error
        betas = None if trained_betas is None else [float(beta) for beta in trained_betas]
        starts = None if level_starts is None else [operator.index(start) for start in level_starts]
        # Plain lists, which JSON gives back as they are. diffusers drops what was a default here when it makes another
        # scheduler of this configuration, and its own default prediction is another.
        defaults = [name for name in self.config.get("_use_default_values", ()) if name != "prediction_type"]
        self.register_to_config(
            level_sizes=sizes, trained_betas=betas, level_starts=starts, _use_default_values=defaults
        )
        noise = _noise(num_train_timesteps, beta_schedule, beta_start, beta_end, betas)
        levels = _levels(num_train_timesteps, len(sizes), level_schedule, level_gamma, starts)
        if len(sizes) == 1:
            self.process = ssd.LinearDiffusion.identity(tuple(sizes[0]), noise)
        else:
            self.process = ssd.LinearDiffusion.resize(
                tuple(sizes[0]), noise, levels, matched=matched, kernel=kernel, sizes=[tuple(size) for size in sizes]
            )
        self._sampler = Sampler.named(sampler, eta)
        self._spacing = self._sampler.placement if timestep_spacing is None else timestep_spacing
        self._residuals: ResidualSpectra | None = None
        _one_of("timestep_spacing", self._spacing, SPACINGS)
        _one_of("prediction_type", prediction_type, PREDICTIONS)
        self._check_combination(prediction_type)
        self.num_inference_steps: int | None = None
        self._visit(range(1, self.process.steps + 1), None)

    def _check_combination(self, prediction_type: str) -> None:
        if self.process.size_changes and prediction_type != "sample":
            raise ValueError(
                f'prediction_type: "{prediction_type}" needs a process of one size; this one has the sizes '
                f'{self.process.shapes}, where only "sample" says what a larger state holds'
            )
        if self.process.size_changes and self._spacing not in PLACEMENTS:
            raise ValueError(
                f'timestep_spacing: "{self._spacing}" may skip the times where the size changes; '
                f"take one of {', '.join(PLACEMENTS)}, or one size"
            )
        if prediction_type == "epsilon" and not self.process.noise.alpha.all():
            raise ValueError(
                'prediction_type: "epsilon" says nothing of the image where no signal is left (alpha = 0 at '
                f"t = {int(np.argmin(self.process.noise.alpha))}); take v_prediction or sample"
            )

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As in diffusers, also from the configuration of a DDPMScheduler or DDIMScheduler, with level_sizes added.

        Raises:
            ValueError: For the configuration of another scheduler, and for a setting of theirs that has no
                counterpart here, such as learned variances.
        """
        if isinstance(config, Mapping):
            # diffusers leaves out what was a default where it was made; other defaults stand here
            config = {name: value for name, value in config.items() if name != "_use_default_values"}
            maker = config.get("_class_name", cls.__name__)
            known = {name for kind in (cls, *_THEIRS) for name in inspect.signature(kind.__init__).parameters}
            foreign = sorted(name for name in config if not name.startswith("_") and name not in known)
            if maker not in (cls.__name__, *(kind.__name__ for kind in _THEIRS)) or foreign:
                raise ValueError(
                    "SSDScheduler.from_config: expected the configuration of an SSDScheduler, DDPMScheduler or "
                    f"DDIMScheduler, got one of {maker}" + (f" with {', '.join(foreign)}" if foreign else "")
                )
            if maker != cls.__name__:
                config = {**_THEIR_DEFAULTS, **config}
            for name, allowed in _ONLY.items():
                if config.get(name, allowed[0]) not in allowed:
                    raise ValueError(
                        f"SSDScheduler: no counterpart for {name} = {config[name]!r} "
                        f"(only {', '.join(map(repr, allowed))})"
                    )
            if "level_sizes" not in config and "level_sizes" not in kwargs:
                raise ValueError("SSDScheduler.from_config: give level_sizes, such as level_sizes=[[64, 64]]")
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def __len__(self) -> int:
        return self.process.steps

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise in the first state, σ at the first timestep."""
        return self._chain.sigma(self._chain.steps)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Choose `timesteps`, decreasing within 0 … T − 1: that many, or those given.

        Raises:
            ValueError: For more than T, fewer than the changes of size need, and given ones that leave out T − 1 or
                a timestep at which the size changes.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("set_timesteps: give either num_inference_steps or timesteps")
        if timesteps is not None:
            times = [int(i) + 1 for i in reversed(list(timesteps))]
            missing = {self.process.steps, *self.process.size_changes}.difference(times)
            if self.process.size_changes and missing:
                raise ValueError(
                    "timesteps: expected T − 1 and every timestep where the size changes among them, missing "
                    f"{sorted((t - 1 for t in missing), reverse=True)}"
                )
        else:
            assert num_inference_steps is not None
            times = self._spaced(num_inference_steps)
        self._visit(times, device)
        self.num_inference_steps = len(times)

    def _spaced(self, count: int) -> list[int]:
        total = self.process.steps
        if not 1 <= count <= total:
            raise ValueError(f"num_inference_steps: expected 1 … {total}, got {count}")
        if self._spacing in PLACEMENTS:
            return list(sampling_times(self.process, count, self._spacing))
        if self._spacing == "leading":
            times = np.arange(count) * float(total // count) + 1
        elif self._spacing == "trailing":
            times = np.round(total - np.arange(count)[::-1] * (total / count))
        else:
            times = np.linspace(0, total - 1, count).round() + 1
        return [int(t) for t in times]

    def _visit(self, times: Sequence[int], device: str | torch.device | None) -> None:
        self._chain = self.process.respace(times)
        self._step_of = {t: k for k, t in enumerate(self._chain.times, start=1)}
        self._earlier: tuple[int, Tensor] | None = None
        self.timesteps = torch.tensor([t - 1 for t in reversed(self._chain.times)], device=device)

    @property
    def chain(self) -> ssd.LinearDiffusion:
        """`process` at the times of `timesteps`."""
        return self._chain

    @property
    def residuals(self) -> ResidualSpectra | None:
        """What predictions leave open: set it to those of a run (`Run.residuals`), and each ancestral step is exact to
        second moments, and multistep draws with it the modes that a change of size adds. No part of `config`.

        Raises:
            ValueError: For those of another process.
        """
        return self._residuals

    @residuals.setter
    def residuals(self, spectra: ResidualSpectra | None) -> None:
        if spectra is not None and spectra.process != self.process:
            raise ValueError("residuals: they are of another process than the scheduler's")
        self._residuals = spectra

    def _step(self, timestep: int | Tensor) -> int:
        """The step of the chain that a timestep is."""
        k = self._step_of.get(int(timestep) + 1)
        if k is None:
            raise ValueError(
                f"timestep {int(timestep)} is not one of scheduler.timesteps; call set_timesteps for others"
            )
        return k

    def state_size(self, timestep: int | Tensor) -> tuple[int, ...]:
        """(height, width) of the state at one of `timesteps`."""
        return self._chain.shape(self._step(timestep))

    def prediction_size(self, timestep: int | Tensor) -> tuple[int, ...]:
        """(height, width) of the state that `step` returns from this timestep, and of the prediction it needs."""
        return self._chain.shape(self._step(timestep) - 1)

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        """The sample as it is: the process keeps its variance."""
        return sample

    def takes_noise(self, timestep: int | Tensor) -> bool:
        """Whether `step` at this timestep draws any: at eta = 0 only where the size changes, and never the last one."""
        return self._sampler.takes_noise(self._chain, self._step(timestep), self._residuals is not None)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        variance_noise: Tensor | None = None,
    ) -> SSDSchedulerOutput | tuple[Tensor, Tensor]:
        """Draw x_s from q(x_s | x_t, x̂), s the next of `timesteps` (or 0: the prediction itself).

        Args:
            model_output: ``(batch, channels, *prediction_size(timestep))``
            timestep: t − 1, one of `timesteps`
            sample: x_t, ``(batch, channels, *state_size(timestep))``
            generator: of the noise; or one for each image
            variance_noise: standard normal noise shaped like model_output, instead of a generator

        Raises:
            ValueError: For wrong shapes, a timestep that is not among `timesteps`, and noise from both sources.
        """
        k = self._step(timestep)
        self._check_shapes(model_output, sample, k)
        if variance_noise is not None and generator is not None:
            raise ValueError("step: give either generator or variance_noise")
        clean = self._clean(model_output, sample, k)
        if self.config["clip_sample"]:
            clean = clean.clamp(-self.config["clip_sample_range"], self.config["clip_sample_range"])
        if k == 1:
            drawn = clean
        else:
            before = self._earlier[1] if self._earlier is not None and self._earlier[0] == k + 1 else None
            if self._sampler.order == 2:
                self._earlier = (k, clean)

            def normal(shape: tuple[int, ...]) -> Tensor:
                if variance_noise is not None:
                    return variance_noise
                noise: Tensor = randn_tensor(shape, generator=generator, device=sample.device, dtype=sample.dtype)
                return noise

            drawn = reverse_step(self._sampler, self._chain, sample, clean, k, normal, before, self._residuals)
        return SSDSchedulerOutput(drawn, clean) if return_dict else (drawn, clean)

    def _check_shapes(self, model_output: Tensor, sample: Tensor, k: int) -> None:
        state, prediction = self._chain.shape(k), self._chain.shape(k - 1)
        if sample.ndim != 4 or tuple(sample.shape[2:]) != state:
            raise ValueError(
                f"step: at timestep {self._chain.times[k - 1] - 1} the sample is (batch, channels, {state[0]}, "
                f"{state[1]}), got {tuple(sample.shape)}"
            )
        if tuple(model_output.shape) != (*sample.shape[:2], *prediction):
            raise ValueError(
                f"step: at timestep {self._chain.times[k - 1] - 1} the network must predict "
                f"{(*sample.shape[:2], *prediction)}, the size of the next state (prediction_size), "
                f"got {tuple(model_output.shape)}; learned variances are not taken"
            )

    def _clean(self, model_output: Tensor, sample: Tensor, k: int) -> Tensor:
        output = model_output.to(sample.dtype)
        alpha, sigma = self._chain.alpha(k), self._chain.sigma(k)
        if self.config["prediction_type"] == "epsilon":
            return (sample - sigma * output) / alpha
        if self.config["prediction_type"] == "v_prediction":
            return alpha * sample - sigma * output
        return output

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = α_t R x_0 + σ_t noise, one timestep for each image, all of them of one state size.

        Args:
            original_samples: ``(batch, channels, *full size)``
            noise: ``(batch, channels, *state size)``
            timesteps: (batch,)
        """
        times = self._training_times(timesteps, original_samples, 0, "add_noise")
        alpha, sigma = self._levels(times, noise)
        clean = self.process.clean(original_samples, times[0])
        if noise.shape != clean.shape:
            raise ValueError(f"add_noise: at these timesteps noise is {tuple(clean.shape)}, got {tuple(noise.shape)}")
        return alpha * clean + sigma * noise

    def get_target(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network is to predict from `add_noise` with the same arguments, by `prediction_type`.

        "sample" is the clean image at the size of the state one timestep before, which all images must share.
        """
        times = self._training_times(timesteps, original_samples, 1, "get_target")
        if self.config["prediction_type"] == "epsilon":
            return noise
        if self.config["prediction_type"] == "v_prediction":
            alpha, sigma = self._levels(times, noise)
            return alpha * noise - sigma * original_samples
        return self.process.clean(original_samples, times[0] - 1)

    def _training_times(self, timesteps: Tensor, images: Tensor, before: int, what: str) -> list[int]:
        times = [int(i) + 1 for i in torch.as_tensor(timesteps).flatten()]
        if not all(1 <= t <= self.process.steps for t in times):
            raise ValueError(
                f"{what}: expected timesteps within 0 … {self.process.steps - 1}, got {sorted(t - 1 for t in times)}"
            )
        if len(times) not in (1, len(images)) or not times:
            raise ValueError(
                f"{what}: expected one timestep, or one for each of {len(images)} images, got {len(times)}"
            )
        sizes = {self.process.shape(t - before) for t in times}
        if len(sizes) > 1:
            raise ValueError(
                f"{what}: a batch has one size, these timesteps have {sorted(sizes)}; draw a batch's timesteps from "
                "one level (of the state, and of the state one timestep before)"
            )
        return times

    def _levels(self, times: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
        table = np.stack([self.process.noise.alpha[times], self.process.noise.sigma[times]])
        alpha, sigma = torch.as_tensor(table, dtype=like.dtype, device=like.device)[..., None, None, None]
        return alpha, sigma


def _noise(steps: int, schedule: str, start: float, end: float, betas: Sequence[float] | None) -> ssd.NoiseSchedule:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"num_train_timesteps: expected a whole number >= 1, got {steps!r}")
    if betas is not None:
        if len(betas) != steps:
            raise ValueError(f"trained_betas: expected num_train_timesteps = {steps} numbers, got {len(betas)}")
        return ssd.NoiseSchedule.from_betas(betas)
    _one_of("beta_schedule", schedule, ("linear", "scaled_linear", "squaredcos_cap_v2"))
    if schedule == "squaredcos_cap_v2":
        return ssd.NoiseSchedule.cosine(steps)
    if schedule == "scaled_linear":
        return ssd.NoiseSchedule.from_betas(np.linspace(math.sqrt(start), math.sqrt(end), steps) ** 2)
    return ssd.NoiseSchedule.from_betas(np.linspace(start, end, steps))


def _levels(
    steps: int, levels: int, schedule: str, gamma: float | None, starts: Sequence[int] | None
) -> ssd.ResolutionSchedule:
    _one_of("level_schedule", schedule, LEVEL_SCHEDULES)
    if (starts is None) != (schedule != "thresholds"):
        raise ValueError(
            f'level_starts: "thresholds" takes one time for each level after the first, the others none; '
            f'got {starts} with "{schedule}"'
        )
    if starts is not None:
        if len(starts) != levels - 1:
            raise ValueError(f"level_starts: {levels} levels have {levels - 1} starts, got {starts}")
        return ssd.ResolutionSchedule.thresholds(starts, steps)
    if schedule == "equal" and gamma is not None:
        raise ValueError(f'level_gamma: "equal" has none, got {gamma}')
    make = getattr(ssd.ResolutionSchedule, schedule)
    return make(steps=steps, levels=levels, **({} if gamma is None else {"gamma": gamma}))


def _one_of(name: str, value: Any, allowed: Sequence[str]) -> Any:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
    return value
