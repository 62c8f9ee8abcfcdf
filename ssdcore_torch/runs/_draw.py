"""How the images of a run are drawn: times, classes, precision."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import ssdcore as ssd
from ssdcore_torch.arguments import whole_number
from ssdcore_torch.checkpoint import OpenRun
from ssdcore_torch.config import OF_A_MACHINE, Config, flat_settings
from ssdcore_torch.distributed import World
from ssdcore_torch.progress import drawing_bar
from ssdcore_torch.sampling import (
    PLACEMENTS,
    ResidualSpectra,
    Sampler,
    StepRecorder,
    drawing_network,
    generate_shared,
    sampling_times,
)

PRECISIONS = ("auto", "float32", "bfloat16")
Label = str | int | Sequence[str | int]
"""A class by name or number, or several that take turns."""


@dataclass(frozen=True)
class Drawing:
    """What says how images are drawn from a run, beside their number and classes.

    Attributes:
        steps: network evaluations per image; None: 100, or as many as a designed schedule has
        sampler: a name of `SAMPLERS`
        eta: its own if None
        placement: "time", "log_snr" or "design", the times that the run's schedule was designed for; None: the
            sampler's
        guidance: weight of classifier-free guidance, 1 for none
        seed: image i depends on the seed and i alone
        precision: of the network's arithmetic: "auto", as the run was trained
        batch_size: images through the network at once
        second_moments: put back what predictions leave open, by the run's residual spectra: ancestral steps are then
            exact to second moments, and multistep draws with it the modes that a change of size adds. None: multistep
            does, where the run has the spectra

    Raises:
        ValueError: For what no run takes.
        TypeError: For numbers that are not whole.
    """

    steps: int | None = None
    sampler: str = "ancestral"
    eta: float | None = None
    placement: str | None = None
    guidance: float = 1.0
    seed: int = 0
    precision: str = "auto"
    batch_size: int = 64
    second_moments: bool | None = None

    def __post_init__(self) -> None:
        sampler = Sampler.named(self.sampler)
        for name, least in (("steps", 1), ("seed", 0), ("batch_size", 1)):
            if name != "steps" or self.steps is not None:
                object.__setattr__(self, name, whole_number(name, getattr(self, name), least))
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.placement not in (None, "design", *PLACEMENTS):
            raise ValueError(f"placement: expected one of {', '.join((*PLACEMENTS, 'design'))}, got {self.placement!r}")
        if sampler.order == 2 and self.eta:
            raise ValueError(f"--eta {self.eta:g}: --sampler {self.sampler} is deterministic; leave --eta out")

    def check(self, config: Config) -> None:
        """Raises ValueError for guidance of a run that never saw images without a class."""
        if self.guidance == 1:
            return
        if config.network.num_classes is None:
            raise ValueError(f"--guidance {self.guidance:g}: this run knows no classes; train one with --conditional")
        if config.network.null_label is None:
            raise ValueError(
                f'--guidance {self.guidance:g}: this run has no label for "no class" to compare with (the paper\'s '
                "released weights have none); leave --guidance out"
            )
        try:
            config.check_conditions(None, self.guidance)
        except ValueError as error:
            raise ValueError(f"--{error}") from error

    def times(self, process: ssd.LinearDiffusion, designed: tuple[int, ...] | None) -> tuple[int, ...]:
        """The sampling times. Raises ValueError for options that do not go together, before any work."""
        if self.placement != "design":
            placement: Any = self.placement or Sampler.named(self.sampler).placement
            return sampling_times(process, self.steps or min(100, process.steps), placement)
        if designed is None:
            raise ValueError(
                "--placement design: this run has no designed times; train one with --schedule, or choose time or "
                "log_snr"
            )
        if self.steps is not None and self.steps != len(designed):
            raise ValueError(
                f"--steps {self.steps}: the run's schedule was designed for {len(designed)}; leave --steps out"
            )
        return designed

    def residuals(self, run: OpenRun) -> ResidualSpectra | None:
        """The run's residual spectra, where steps take them. Raises ValueError where it has none that are asked for."""
        wanted = self.second_moments
        if wanted is None and Sampler.named(self.sampler).order == 2:
            return run.residuals
        if not wanted:
            return None
        if (found := run.residuals) is None:
            raise ValueError(
                f"--second-moments: {run.path} has no residual spectra, which are measured at the end of training: "
                f"python -m ssdcore_torch.train --out {run.path} --resume measures them"
            )
        return found

    def in_bfloat16(self, config: Config, device: str) -> bool:
        """What `precision` means for the network's arithmetic on this type of device."""
        return self.precision == "bfloat16" or (self.precision == "auto" and config.train.in_bfloat16(device))

    def network(self, run: OpenRun, device: str, compiled: bool = False) -> Any:
        """The run's average as it draws fastest; compiled first, if asked for."""
        net = drawing_network(run.ema, self.in_bfloat16(run.config, device))
        if not compiled:
            return net
        if not hasattr(net, "compile_paths"):
            raise ValueError(f"--compile: a {type(net).__name__} has no compile_paths; leave it out")
        net.compile_paths()
        return net


def labels_of(config: Config, wanted: Label | None, n: int) -> list[int] | None:
    """Numbers of the classes `wanted` by name or number, taking turns over n images; of all classes for None.

    Raises:
        ValueError: For an unknown class, or for any of a run without classes.
    """
    count, names = config.network.num_classes, config.data.class_names
    chosen = [wanted] if isinstance(wanted, (str, int)) else list(wanted or ())
    if count is None:
        if chosen:
            raise ValueError(f"--label {chosen[0]}: this run knows no classes; train one with --conditional")
        return None
    if not chosen:
        return config.labels_in_turn(n)
    numbers = []
    for name in chosen:
        text = str(name)
        if text in names:
            numbers.append(names.index(text))
        elif text.isdecimal() and int(text) < count:
            numbers.append(int(text))
        else:
            known = ", ".join(names) if names else f"0..{count - 1}"
            raise ValueError(f"--label {name}: this run's classes are {known}")
    try:
        config.check_conditions(numbers, 1)
    except ValueError as error:
        raise ValueError(f"--label: {error}") from error
    return [numbers[i % len(numbers)] for i in range(n)]


def agree_on(world: World, run: OpenRun) -> None:
    """Raises ValueError, on every rank, unless all have opened the same run: on another machine its folder may be an
    older copy."""
    if world.size > 1:
        settings = flat_settings(json.loads(run.config.to_json()))
        weights = digest_of(run.ema.state_dict().values())
        world.agree({name: str(value) for name, value in settings.items() if name not in OF_A_MACHINE} | {
            "the run": f"step {run.step}", "its weights": f"SHA-256 {weights[:12]}…",
        })  # fmt: skip


def digest_of(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of their values."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().cpu().contiguous().numpy().data)
    return total.hexdigest()


def draw_images(
    run: OpenRun,
    world: World,
    n: int,
    how: Drawing,
    label: Label | None = None,
    on_step: StepRecorder | None = None,
    compiled: bool = False,
) -> Tensor:
    """n images of a run, drawn by all ranks together; every rank gets all. Raises ValueError before any work."""
    n = whole_number("n", n, 0)
    agree_on(world, run)
    how.check(run.config)
    times, labels = how.times(run.process, run.config.process.times), labels_of(run.config, label, n)
    residuals = how.residuals(run)
    share = len(world.share(n))
    with drawing_bar(share, how.batch_size, len(times), on_step, shown=world.leader) as recorder:
        return generate_shared(
            world,
            how.network(run, world.device.type, compiled),
            run.process,
            n,
            labels=labels,
            guidance=how.guidance,
            eta=how.eta,
            seed=how.seed,
            sampler=how.sampler,
            times=times,
            prior=run.prior,
            residuals=residuals,
            batch_size=how.batch_size,
            on_step=recorder,
        )
