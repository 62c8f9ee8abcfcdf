"""The shape of a Flexi-UNet, and the image sizes that its stages can run."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from ssdcore_torch.arguments import whole_number

NORM_GROUPS = 32

Size = tuple[int, int]


def stage_of_size(size: Size, full_size: Size, stages: int) -> int:
    """Deepest stage k < stages whose size, full_size / 2^k, still holds `size`."""
    stage = 0
    while stage + 1 < stages and all(n << (stage + 1) <= full for n, full in zip(size, full_size)):
        stage += 1
    return stage


def level_sizes(
    full_size: int | Size, levels: int, *, stages: int, factor: float = 2.0, flexi: bool = True
) -> tuple[Size, ...]:
    """Sizes of `levels` levels, full size first: each the one before divided by `factor`, to whole pixels, then
    rounded to the nearest multiple of 2^(stages − 1 − stage), which the stages below its own divide (half a
    multiple rounds down).

    Args:
        full_size: (h, w), or one number for a square; both divisible by 2^(stages − 1)
        stages: of the network that will run them: `len(config.channel_multipliers)`
        flexi: False: every level runs through all stages, so every size is a multiple of 2^(stages − 1)

    Raises:
        ValueError: If the stages do not divide the full size, or if there are more levels than sizes.
    """
    full = (full_size, full_size) if isinstance(full_size, int) else (int(full_size[0]), int(full_size[1]))
    if stages < 1 or levels < 1 or not factor > 1 or min(full) < 1:
        raise ValueError(
            "level_sizes: expected stages >= 1, levels >= 1, factor > 1 and sizes >= 1, "
            f"got stages={stages}, levels={levels}, factor={factor}, full_size={full}"
        )
    _check_divides(full, stages, 0, "the full size")
    sizes = [full]
    exact = full
    while len(sizes) < levels:
        exact = (round(exact[0] / factor), round(exact[1] / factor))
        stage = stage_of_size(exact, full, stages) if flexi else 0
        multiple = 1 << (stages - 1 - stage)
        # ceil(n / multiple − 1/2): to the nearest, halves down
        size = (
            -((multiple - 2 * exact[0]) // (2 * multiple)) * multiple,
            -((multiple - 2 * exact[1]) // (2 * multiple)) * multiple,
        )
        if min(size) < 1 or any(new >= old for new, old in zip(size, sizes[-1])):
            raise ValueError(
                f"{levels} levels are too many: from {full}, a factor of {factor} and {stages} stages give only "
                f"{len(sizes)} different sizes, {sizes}; take at most {len(sizes)} levels"
            )
        sizes.append(size)
    return tuple(sizes)


def _check_divides(size: Size, stages: int, stage: int, what: str) -> None:
    multiple = 1 << (stages - 1 - stage)
    if any(n % multiple for n in size):
        raise ValueError(
            f"{what}: both sides must be divisible by {multiple}, because a network of {stages} stages halves "
            f"them {stages - 1 - stage} times, got {size}; take multiples of {multiple}, or fewer stages"
        )


@dataclasses.dataclass(frozen=True)
class FlexiUNetConfig:
    """Shape of a `FlexiUNet`. Stage k runs at full size / 2^k; a level runs from the stage its size falls in.

    Attributes:
        level_sizes: (h, w) of every level, full size first, strictly decreasing; see `level_sizes()`
        in_channels: of the image, in and out
        base_channels: width that the multipliers multiply; the time is embedded in 4 × as many numbers
        channel_multipliers: one per stage; each stage's width must be a multiple of 32 (the groups of its norms)
        blocks_per_stage: residual blocks of an encoder stage; its decoder stage has one more
        attention_sizes: shorter sides, at a full-size run, of the stages with attention; None: the stages of 8 to
            16 pixels
        heads: attention heads
        dropout: probability, inside residual blocks
        num_classes: class-conditional if given; label `num_classes` (`null_label`) then means "no class"
        preconditioned_times: T of the process if the network predicts a correction to its scaled input
            (`FlexiUNet.precondition`); None: it predicts the clean image itself
        flexi: False: every level runs through all stages and there are no adapters (the full U-Net of the paper's
            ablation); a size-increasing step resizes its input bilinearly
        released_behaviour: run as the paper's released code does: a level stops before the last decoder block of
            its output stage (so the very last block is never used); a size-increasing step into level 0 resizes its
            input bilinearly and runs at full size; every stage has adapters, whether a level needs them or not; there
            is no null label
    """

    level_sizes: tuple[Size, ...]
    in_channels: int = 3
    base_channels: int = 128
    channel_multipliers: tuple[float, ...] = (1, 2, 3, 4)
    blocks_per_stage: int = 2
    attention_sizes: tuple[int, ...] | None = None
    heads: int = 4
    dropout: float = 0.0
    num_classes: int | None = None
    flexi: bool = True
    released_behaviour: bool = False
    preconditioned_times: int | None = None

    def __post_init__(self) -> None:
        try:  # JSON gives lists
            object.__setattr__(self, "level_sizes", tuple((h, w) for h, w in self.level_sizes))
            object.__setattr__(self, "channel_multipliers", tuple(self.channel_multipliers))
            if self.attention_sizes is not None:
                object.__setattr__(self, "attention_sizes", tuple(self.attention_sizes))
        except (TypeError, ValueError) as error:
            raise TypeError(
                "FlexiUNetConfig: expected level_sizes as (h, w) pairs, and channel_multipliers and "
                f"attention_sizes as sequences, got {self.level_sizes!r}, {self.channel_multipliers!r} and "
                f"{self.attention_sizes!r}"
            ) from error
        self._check_numbers()
        self._check_sizes()

    def _check_numbers(self) -> None:
        for name in ("in_channels", "base_channels", "blocks_per_stage", "heads"):
            self._take_whole(name)
        for name in ("flexi", "released_behaviour"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: expected True or False, got {getattr(self, name)!r}")
        for name in ("num_classes", "preconditioned_times"):
            if getattr(self, name) is not None:
                self._take_whole(name)
        if self.base_channels % 2:
            raise ValueError(f"base_channels: expected an even number, got {self.base_channels}")
        if not self.channel_multipliers:
            raise ValueError("channel_multipliers: expected one per stage, got none")
        for multiplier, channels in zip(self.channel_multipliers, self.channels):
            if channels < 1 or channels % NORM_GROUPS or channels != multiplier * self.base_channels:
                raise ValueError(
                    f"channel_multipliers: {multiplier} × base_channels {self.base_channels} must be a multiple "
                    f"of {NORM_GROUPS}, the number of groups of every norm"
                )
            if channels % self.heads:
                raise ValueError(f"heads: {self.heads} do not divide a stage's {channels} channels")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a probability in [0, 1), got {self.dropout!r}")
        if self.released_behaviour and not self.flexi:
            raise ValueError("released_behaviour is a Flexi-UNet's; it needs flexi=True")
        if self.released_behaviour and self.preconditioned_times is not None:
            raise ValueError("released_behaviour predicts the clean image itself; it needs preconditioned_times=None")

    def _take_whole(self, name: str) -> None:
        object.__setattr__(self, name, whole_number(name, getattr(self, name), 1))  # JSON knows no numbers of numpy

    def _check_sizes(self) -> None:
        if not self.level_sizes:
            raise ValueError("level_sizes: expected at least the full size, got none")
        sizes = (tuple(whole_number("level_sizes", n, 1) for n in size) for size in self.level_sizes)
        object.__setattr__(self, "level_sizes", tuple(sizes))
        for larger, smaller in itertools.pairwise(self.level_sizes):
            if any(n >= old for n, old in zip(smaller, larger)):
                raise ValueError(f"level_sizes must decrease, full size first; got {smaller} after {larger}")
        for level, size in enumerate(self.level_sizes):
            _check_divides(size, self.stages, self.stage(level), f"level_sizes[{level}]")
        short = min(self.level_sizes[0])
        sides = [short >> k for k in range(self.stages)]
        wrong = [n for n in self.attention_sizes or () if n not in sides]
        if wrong:
            raise ValueError(
                f"attention_sizes: no stage's shorter side is {wrong}; the stages have {sides} "
                "(None takes those of 8 to 16)"
            )

    @property
    def stages(self) -> int:
        return len(self.channel_multipliers)

    @property
    def channels(self) -> tuple[int, ...]:
        """Width of each stage."""
        return tuple(int(m * self.base_channels) for m in self.channel_multipliers)

    @property
    def entry_channels(self) -> tuple[int, ...]:
        """Width that each encoder stage's first block takes: that of the stage before it."""
        return (self.channels[0], *self.channels[:-1])

    @property
    def attention_stages(self) -> tuple[int, ...]:
        short = min(self.level_sizes[0])
        if self.attention_sizes is None:
            return tuple(k for k in range(self.stages) if 8 <= short >> k <= 16)
        return tuple(k for k in range(self.stages) if short >> k in self.attention_sizes)

    @property
    def null_label(self) -> int | None:
        """The label that means "no class", to which classifier-free guidance drops labels; None: there is none."""
        return None if self.released_behaviour else self.num_classes

    def stage(self, level: int) -> int:
        """Stage that a level enters at and leaves from."""
        if not self.flexi:
            return 0
        return stage_of_size(self.level_sizes[level], self.level_sizes[0], self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values, which the constructor takes as they are."""
        values = dataclasses.asdict(self)
        values["level_sizes"] = [list(size) for size in self.level_sizes]
        values["channel_multipliers"] = list(self.channel_multipliers)
        values["attention_sizes"] = None if self.attention_sizes is None else list(self.attention_sizes)
        return values
