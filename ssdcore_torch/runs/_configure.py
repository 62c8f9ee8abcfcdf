"""The configuration of a run, from a preset or a saved run and whatever is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ssdcore as ssd
from ssdcore.files import open_regular
from ssdcore_torch.config import Config, designed, flat_settings, merged, preset
from ssdcore_torch.data import EMBEDDED, absolute
from ssdcore_torch.denoisers import FlexiUNetConfig, NetworkConfig
from ssdcore_torch.processes import GO_WITH, INFORMATION, ProcessConfig


@dataclass(frozen=True)
class Asked:
    """What is asked of a run.

    Attributes:
        preset: a name of `PRESETS`; None: the saved run's, or the device's
        data: whatever `data.path` may be, or None
        size: height and width of the images
        levels: each half the size of the last
        schedule: a file that `python -m ssdcore design --out` wrote
        given: settings by where they come from, in order: each wins over those before it
        options: settings that win over all of them
    """

    preset: str | None = None
    data: str | None = None
    size: int | None = None
    levels: int | None = None
    schedule: Path | None = None
    given: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def configure(asked: Asked, saved: Config | None, device: str) -> Config:
    """The saved run's configuration or the preset's, overridden by what is asked for.

    Args:
        device: its type: the default preset is "gpu64" for "cuda", else "cpu"

    Raises:
        ValueError: Naming where a setting comes from.
    """
    if asked.preset is not None or saved is None:
        name = asked.preset or ("gpu64" if device == "cuda" else "cpu")
        config = preset(name, asked.data or (saved.data.path if saved and saved.data.path != EMBEDDED else None))
    else:
        config = saved
    config = _overlaid(asked, config)
    # so that the run can be resumed from another folder
    return replace(config, data=replace(config.data, path=absolute(config.data.path)))


def _overlaid(asked: Asked, config: Config) -> Config:
    """Merged as one tree: some settings only fit together."""
    given = dict(asked.given)
    options = merged(asked.options, {} if asked.data is None else {"data": {"path": asked.data}})
    schedule, levels = None, asked.levels
    if asked.schedule is not None:
        with naming(f"--schedule {asked.schedule}"):
            open_regular(asked.schedule).close()
            schedule = ssd.oracle.Schedule.load(asked.schedule, (asked.size or config.size,) * 2)
        levels = levels or len(schedule.sizes)
        given[f"--schedule {asked.schedule}"] = designed(schedule)
    try:
        settings = merged(*given.values(), options)
        settings = merged(_going_with(settings, config), settings)
        if levels is None and _keeps_size(settings, config):
            levels = 1
        config = config.overlaid(settings, asked.size, levels)
        return config if schedule is None else config.scheduled(schedule)
    except ValueError as error:
        raise ValueError(_blamed(str(error), given)) from error


def _blamed(fault: str, given: Mapping[str, Mapping[str, Any]]) -> str:
    """A fault that begins with the name of a setting, after the options that say this setting; all, if none does."""
    name = fault.partition(":")[0].partition("[")[0]
    guilty = [option for option, tree in given.items() if any(_related(name, key) for key in flat_settings(tree))]
    options = ", ".join(guilty or given)
    return f"{options}: {fault}" if options else fault


def _related(name: str, key: str) -> bool:
    """Whether one setting is the other, or a section of it."""
    return f"{name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{name}.")


@contextmanager
def naming(option: str) -> Iterator[None]:
    """Raises ValueError, naming the option as it was typed, for what is wrong with it."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{option}: it cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error


def _process_settings(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    process = settings.get("process", {})
    return process if isinstance(process, Mapping) else {}


def _keeps_size(settings: Mapping[str, Any], config: Config) -> bool:
    """Whether the settings ask for a degradation without levels, and say nothing of sizes themselves."""
    network = settings.get("network", {})
    sizes = isinstance(network, Mapping) and "level_sizes" in network
    return _process_settings(settings).get("degradation") in ("blur", "identity") and not sizes


def _going_with(settings: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """What the noise asked for is trained with, a table of times as long as the process, and no nats where none are
    taken."""
    process = _process_settings(settings)
    steps = process.get("steps", config.process.steps)
    found: dict[str, Any] = {}
    for section, values in GO_WITH.get(str(process.get("noise")), {}).items():
        found[section] = {name: steps if value is ... else value for name, value in values.items()}
    if config.network.preconditioned_times is not None:
        found.setdefault("network", {})["preconditioned_times"] = steps
    if process.get("schedule", INFORMATION) != INFORMATION:
        found.setdefault("process", {})["nats"] = None
    return found


def with_process(
    config: Config, process: ssd.LinearDiffusion, digest: str, shape: NetworkConfig | None = None
) -> Config:
    """The configuration with a process of the user's own, which a file of this digest holds, and a network of this
    shape; None: the configuration's, for the sizes of the process."""
    network = config.network if shape is None else shape
    if shape is None and isinstance(network, FlexiUNetConfig):
        sizes = process.shapes
        if any(len(size) != 2 for size in sizes):
            raise ValueError(
                f"process: a Flexi-UNet is for images, states of two axes, and these have {sizes}; give a network"
            )
        times = None if network.preconditioned_times is None else process.steps
        attention = network.attention_sizes
        if attention is not None:
            attention = tuple(min(sizes[0]) >> stage for stage in network.attention_stages)
        network = replace(
            network,
            level_sizes=tuple((h, w) for h, w in sizes),
            attention_sizes=attention,
            preconditioned_times=times,
        )
    held = ProcessConfig("equal", None, False, process.steps, degradation="operators", operators=digest)
    return replace(config, process=held, network=network)
