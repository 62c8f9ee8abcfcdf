"""How good a run's samples are, or images from elsewhere: a report, and the nearest pairs."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ssdcore
from ssdcore.files import ArrayFile, only_images
from ssdcore_torch import metrics
from ssdcore_torch.arguments import whole_number
from ssdcore_torch.checkpoint import OpenRun
from ssdcore_torch.config import CONVERTED, Config, DataConfig, is_unnamed_data
from ssdcore_torch.data import FROM_PYTHON, ImageSet, ImageStream, absolute, open_data, open_images, refuse_untyped
from ssdcore_torch.distributed import World
from ssdcore_torch.metrics import report as evaluation_report
from ssdcore_torch.runs._draw import Drawing, agree_on, digest_of

log = logging.getLogger("ssdcore_torch")

USUAL = 5000  # samples, where the data has as many


@dataclass(frozen=True)
class Evaluated:
    """A report, as JSON can hold it, and the samples nearest to training images, each beside its neighbour: uint8
    (2k, channels, h, w). The same on every rank."""

    report: dict[str, Any]
    pairs: Tensor


@dataclass(frozen=True)
class _Subject:
    """What is evaluated.

    Attributes:
        size: of its images, (height, width), which the real ones are resized to; of signals and volumes, the shape
        channels: that both have
        most: how many there are, None for any number
        data: the real images
        samples: this rank's share of n of them, to compare with a reference
        about: what a report says of it
    """

    size: tuple[int, ...]
    channels: int
    most: int | None
    data: DataConfig
    samples: Callable[[int, metrics.Reference], metrics.Samples]
    about: dict[str, Any]


def evaluate_run(
    run: OpenRun,
    world: World,
    drawing: Drawing,
    *,
    n: int | None = None,
    features: str | None = None,
    data: Any = None,
    held_out: str | None = None,
    cache: Path | None = None,
    trust_features: bool = False,
    weights: str | None = None,
    compiled: bool = False,
    opened: Any = None,
) -> Evaluated:
    """Samples of the run's average against real images.

    Args:
        n: samples; None: 5,000, or all of the data where it has fewer
        features: None: "lite0", or "pixels" for signals and volumes
        data: the real images: what --data takes, an array or a Dataset; None: the run's
        held_out: real images that were not trained on
        cache: None: `metrics.cache_folder()`
        trust_features: run a file of features that is a program, though it is not one of those published
        weights: what to call other weights that the run's average was given
        opened: the run's images, where they are open already, or what a program gave for them

    Raises:
        ValueError: For what the run or the data cannot do.
    """
    if n is not None:
        n = whole_number("n", n, 1)
    agree_on(world, run)
    drawing.check(run.config)
    times, residuals = drawing.times(run.process, run.config.process.times), drawing.residuals(run)
    config = run.config
    held = None if data is None or isinstance(data, (str, os.PathLike)) else data
    named = FROM_PYTHON if held is not None else None if data is None else os.fspath(data)
    own = named is None or (held is None and config.data.path in (named, absolute(named)))
    if data is None and opened is None:
        if config.preset == CONVERTED:
            raise ValueError(
                f"{run.path} holds weights of the paper's code and knows no images: give those that they were trained "
                "on with --data"
            )
        if is_unnamed_data(config.data.path):
            raise ValueError(f"{run.path} was shared without its images: give those that it was trained on with --data")
        refuse_untyped(config.data.path, f"{run.path / 'config.json'}")
    real = config.data if own else replace(config.data, path=str(named), classes=())

    net = drawing.network(run, world.device.type, compiled)

    def samples(count: int, reference: metrics.Reference) -> metrics.Samples:
        return metrics.draw(
            net,
            run.process,
            count,
            world=world,
            prior=run.prior,
            residuals=residuals,
            seed=drawing.seed,
            batch_size=drawing.batch_size,
            labels=_labels(config, reference, count),
            sampler=drawing.sampler,
            eta=drawing.eta,
            times=times,
            guidance=drawing.guidance,
            floats=reference.data.floats,
        )

    about = {
        "run": str(run.path),
        "step": run.step,
        "weights": weights or "ema",
        "weights_sha256": digest_of(run.ema.state_dict().values()),
        "sampler": drawing.sampler,
        "eta": drawing.eta,
        "steps": len(times),
        "times": list(times),
        "guidance": drawing.guidance,
        "second_moments": residuals is not None,
        "precision": "bfloat16" if drawing.in_bfloat16(config, world.device.type) else "float32",
        "seed": drawing.seed,
    }
    subject = _Subject(config.shape, config.network.in_channels, None, real, samples, about)
    return _evaluate(
        subject, world, n, features, held_out, cache, trust_features, drawing.batch_size, opened if own else held
    )


def evaluate_files(
    path: Path,
    data: str,
    world: World,
    *,
    n: int | None = None,
    features: str | None = None,
    held_out: str | None = None,
    cache: Path | None = None,
    trust_features: bool = False,
    batch_size: int = 64,
) -> Evaluated:
    """The images at `path` against real ones, or signals or volumes in an array; as `evaluate_run`. n None: all."""
    size, channels = _shape_of(path)
    found = _open(DataConfig(str(path)), size, channels, world)
    if found.skipped and world.leader:
        name, reason = found.skipped[0]
        log.warning("left out %d files of %s: %s (%s)", len(found.skipped), path, name, reason)

    def samples(count: int, reference: metrics.Reference) -> metrics.Samples:
        share = world.share(count)
        return metrics.Samples(share, metrics.image_batches(found, np.array(share), batch_size))

    about = {"samples": str(path), "images": len(found)}
    subject = _Subject(size, channels, len(found), DataConfig(data), samples, about)
    return _evaluate(subject, world, n, features, held_out, cache, trust_features, batch_size, None)


def compare_reports(paths: Sequence[Path]) -> str:
    """Reports side by side. Raises ValueError unless they are of equal n, features and real images."""
    if len(paths) < 2:
        raise ValueError("--compare: expected two reports or more")
    return evaluation_report.compare({str(path): evaluation_report.read(path) for path in paths})


def _evaluate(
    subject: _Subject,
    world: World,
    asked: int | None,
    features: str | None,
    held_out: str | None,
    cache: Path | None,
    trust_features: bool,
    batch_size: int,
    opened: Any,
) -> Evaluated:
    started = time.perf_counter()
    shape = (subject.channels, *subject.size)
    extractor = metrics.open_extractor(features, world.device, trust_features, shape)
    data = opened
    if not isinstance(data, (ImageSet, ImageStream)):
        data = _open(subject.data, subject.size, subject.channels, world, opened)
    n = _count(asked, subject.most, len(data))
    most = max(metrics.MOST, 2 * n)
    folder = metrics.cache_folder() if cache is None else cache
    reference = metrics.open_reference(data, extractor, most=most, world=world, cache=folder, batch_size=batch_size)
    metrics.check_count(n, reference)
    judged = None
    if held_out is not None:
        images = _open(replace(subject.data, path=held_out, classes=()), subject.size, subject.channels, world)
        judged = metrics.open_reference(images, extractor, most=most, world=world, cache=folder, batch_size=batch_size)
    samples = subject.samples(n, reference)
    measured = metrics.measure(metrics.progress(samples, len(samples.share), "samples", world), extractor, world)
    found = metrics.evaluate(measured, reference, held_out=None if judged is None else judged.features)
    floor = None
    if len(reference) >= 2 * n:
        floor = metrics.figures(reference.features[n : 2 * n], reference.features[:n])
    rows, neighbours = evaluation_report.closest(found)
    shown, beside = metrics.collect(samples, rows, world), reference.images(neighbours)
    drawing = float(world.gather(torch.tensor([samples.seconds])).max())
    report = {
        "format": evaluation_report.FORMAT,
        **evaluation_report.plain(found, reference, floor),
        "features": {
            "name": extractor.name,
            "num_features": extractor.num_features,
            "fingerprint": extractor.fingerprint,
        },
        "samples": subject.about,
        "data": {"path": subject.data.path, "classes": list(subject.data.classes), **reference.about},
        "held_out": None if judged is None else {"path": held_out, **judged.about},
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else world.device.type,
        "ranks": world.size,
        "seconds": {"samples": round(drawing, 3), "all": round(time.perf_counter() - started, 3)},
        "images_per_second": round(n / drawing, 3) if "run" in subject.about else None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "ssdcore": ssdcore.__version__,
            "torch": torch.__version__,
            "torchmetrics": metadata.version("torchmetrics"),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    return Evaluated(report, torch.stack([shown, beside], 1).flatten(0, 1))


def _labels(config: Config, reference: metrics.Reference, n: int) -> Tensor | None:
    """Classes to draw: those of the real images they are compared with."""
    if config.network.num_classes is None:
        return None
    names, found = config.data.class_names, reference.data.class_names
    if reference.labels is None or (names and found != names):  # imported weights know no names
        raise ValueError(
            f"this run draws the classes {', '.join(names) or 'of its labels'}, as often as they are among the real "
            f"images; --data has {', '.join(found) or 'none'}: give images of the same classes"
        )
    labels = reference.labels[:n]
    config.check_conditions(labels.unique().tolist(), 1)
    return labels


def _shape_of(path: Path) -> tuple[tuple[int, ...], int]:
    """(size, channels) of the samples: of pictures (height, width), and 3; of signals and volumes as their array says.

    Signals and volumes are arrays as `save_array` writes them, channels last: of floats, or over three axes or more.
    """
    if path.suffix in (".npy", ".npz") and path.is_file():
        arrays = ArrayFile(path, DataConfig.memory_gib * 2**30)
        found = arrays[only_images(arrays, path)[0]]
        if found.ndim > 4 or (found.ndim == 3 and found.dtype.kind == "f"):
            return found.shape[1:-1], found.shape[-1]
    return _size_of(path), 3


def _size_of(path: Path) -> tuple[int, int]:
    """The (height, width) that all images of `path` have. Raises ValueError if they differ."""
    stream = open_images(path, 1, memory_gib=0)
    assert isinstance(stream, ImageStream)
    sizes = set()
    for index in range(len(stream)):
        with suppress(Exception), stream.reader.source.open(index) as picture:  # a broken one is reported when read
            sizes.add(picture.size)
    if len(sizes) != 1:
        some = ", ".join(f"{width}×{height}" for width, height in sorted(sizes)[:4])
        raise ValueError(f"--samples {path}: expected images of one size, got {some or 'none'}")
    width, height = sizes.pop()
    return height, width


def _open(
    data: DataConfig, size: tuple[int, ...], channels: int, world: World, held: Any = None
) -> ImageSet | ImageStream:
    """The images, always their centred parts; `held`: what a program gave for them. Raises ValueError, on every rank,
    unless all have the same."""
    found = open_data(data.path if held is None else held, size, channels=channels, world=world, **data.reading())
    world.agree({"the images": found.fingerprint})
    return found


def _count(asked: int | None, most: int | None, real: int) -> int:
    """n, from what is asked for, the samples there are and the real images there are."""
    if most is not None and (asked or 0) > most:
        raise ValueError(f"--n {asked}: there are {most} samples")
    n = asked or (min(USUAL, real) if most is None else most)
    if n > real:
        raise ValueError(
            f"{n} samples need as many real images to compare with, and --data has {real}: take --n {real}, or more "
            "data"
        )
    return n
