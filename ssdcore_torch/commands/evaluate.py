"""python -m ssdcore_torch.evaluate: how good a run's samples are.

Under `torchrun --nproc_per_node=N -m -- ssdcore_torch.evaluate RUN …` N processes share the work, on the same samples
(`--` keeps torchrun from taking `--n` for an abbreviation of its own options).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from ssdcore_torch import checkpoint, images, metrics
from ssdcore_torch.commands import cli, sample
from ssdcore_torch.config import DataConfig
from ssdcore_torch.data import ImageSet, ImageStream, absolute, open_images, refuse_untyped
from ssdcore_torch.distributed import World, connect
from ssdcore_torch.metrics import report as evaluation_report
from ssdcore_torch.sampling import to_float

USUAL = 5000  # samples, where the data has as many


def parser() -> argparse.ArgumentParser:
    options = cli.Parser(
        "ssdcore_torch.evaluate",
        "Compare images drawn from a run with as many real ones: Fréchet and kernel distance, precision and recall, "
        "copies of training images, power spectrum, classes. Writes a report (JSON), and a picture of the samples "
        "nearest to training images beside these.",
    )
    add = options.add_argument
    add("run", type=Path, metavar="RUN", nargs="?", help="run folder")
    add("--samples", type=Path, metavar="FOLDER_OR_NPZ", help="evaluate these images instead of a run's")
    add("--compare", type=Path, nargs="+", metavar="REPORT", help="print the figures of reports side by side instead")
    add(
        "--data",
        metavar="PATH",
        help="real images, those that were trained on: a folder, an .npz or .npy file, … (default: the run's data, "
        "which is always only the classes that the run was trained on)",
    )
    add("--held-out", metavar="PATH", help="real images not trained on, to judge by how near samples come to training")
    add(
        "--n",
        type=cli.whole_number(4),
        help=f"samples, and real images (default: {USUAL} or all of the data; with --samples, all of these)",
    )
    add(
        "--features",
        default="lite0",
        help="lite0, EfficientNet-Lite0 at 224 px; pixels, at 16 px, cheap; or a file: Inception as TorchScript, or "
        "its weights (with torch-fidelity installed) (default: lite0)",
    )
    add(
        "--trust-features",
        action="store_true",
        help="run a --features file that is a TorchScript program, though it is none of those published: it can write "
        "files, so do this only for a file that you would run as a program",
    )
    sample.add_sampling_options(options)
    add(
        "--out",
        type=cli.new_file,
        metavar="FILE",
        help="report (default: RUN/evaluation.json; with --samples evaluation.json)",
    )
    add("--picture", type=cli.picture, help="picture of the nearest pairs (default: the report's name, as .png)")
    cli.add_force(options)
    add(
        "--cache",
        type=Path,
        default=metrics.cache_folder(),
        metavar="FOLDER",
        help="where features of real images are kept for the next time (default: ssdcore in the user's cache folder)",
    )
    add("--device", help="cpu, cuda, cuda:1, … (default: a CUDA device if there is one)")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    args = parser().parse_args(argv)
    try:
        if args.compare is not None:
            if args.run is not None or args.samples is not None:
                raise ValueError("--compare evaluates nothing: leave the run and --samples out")
            return compare(args.compare)
        _check_options(args)
        if args.run is not None:
            checkpoint.read_config(args.run)  # before its name stands in that of the report
        args.out = args.out or (Path() if args.run is None else args.run) / "evaluation.json"
        with connect(args.device) as world:
            cli.agree(world, args)
            if world.leader:
                cli.check_outputs(args.force, out=args.out, picture=_picture(args))
            report, pairs = evaluate(args, world)
            if world.leader:
                command = ["python", "-m", "ssdcore_torch.evaluate", *(sys.argv[1:] if argv is None else argv)]
                write({**report, "command": shlex.join(command)}, pairs, args)
    except (ValueError, OSError, ImportError) as error:
        raise cli.UserError(str(error)) from error
    return 0


def compare(paths: Sequence[Path]) -> int:
    """Print reports side by side. Raises ValueError unless they are of equal n, features and real images."""
    if len(paths) < 2:
        raise ValueError("--compare: expected two reports or more")
    print(evaluation_report.compare({str(path): evaluation_report.read(path) for path in paths}))
    return 0


def _check_options(args: argparse.Namespace) -> None:
    if (args.run is None) == (args.samples is None):
        raise ValueError("expected one thing to evaluate: a run folder, or --samples FOLDER_OR_NPZ")
    if args.out is not None and _picture(args) == args.out:
        raise ValueError(f"--out {args.out}: the picture has this name; end the report's in .json")
    if args.samples is None:
        return
    if args.data is None:
        raise ValueError("--samples needs --data, the real images to compare with")
    options = parser()
    for name in ("steps", "sampler", "eta", "placement", "guidance", "weights", "seed", "precision", "compile"):
        if getattr(args, name) != options.get_default(name):
            raise ValueError(f"--{name} says how a run's images are drawn, and --samples are already: leave it out")


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    size      (height, width) of its images, which the real ones are resized to
    channels  that both have
    most      how many there are, None for any number
    data      the real images
    samples   this rank's share of n of them, to compare with a reference
    about     what a report says of it
    """

    size: tuple[int, int]
    channels: int
    most: int | None
    data: DataConfig
    samples: Callable[[int, metrics.Reference], metrics.Samples]
    about: dict[str, Any]


def _of_run(args: argparse.Namespace, world: World) -> Subject:
    run = sample.open_run(args, world.device)
    times, config = sample.times_of(run, args), run.config
    net = sample.network_of(run, args, world.device)
    own = args.data is None or config.data.path in (args.data, absolute(args.data))
    if args.data is None:
        refuse_untyped(config.data.path, f"{args.run / 'config.json'}")
    data = config.data if own else replace(config.data, path=args.data, classes=())

    def samples(n: int, reference: metrics.Reference) -> metrics.Samples:
        return metrics.draw(
            net,
            run.process,
            n,
            world=world,
            prior=run.prior,
            seed=args.seed,
            batch_size=args.batch_size,
            labels=_labels(run, reference, n),
            sampler=args.sampler,
            eta=args.eta,
            times=times,
            guidance=args.guidance,
        )

    about = {
        "run": str(args.run),
        "step": run.step,
        "weights": str(args.weights) if args.weights else "ema",
        "weights_sha256": _digest(run.ema.state_dict().values()),
        "sampler": args.sampler,
        "eta": args.eta,
        "steps": len(times),
        "times": list(times),
        "guidance": args.guidance,
        "precision": "bfloat16" if sample.in_bfloat16(run, args, world.device) else "float32",
        "seed": args.seed,
    }
    height, width = config.network.level_sizes[0]
    return Subject((height, width), config.network.in_channels, None, data, samples, about)


def _labels(run: checkpoint.Run, reference: metrics.Reference, n: int) -> Tensor | None:
    """Classes to draw: those of the real images they are compared with."""
    if run.config.network.num_classes is None:
        return None
    names, found = run.config.data.class_names, reference.data.class_names
    if reference.labels is None or (names and found != names):  # imported weights know no names
        raise ValueError(
            f"this run draws the classes {', '.join(names) or 'of its labels'}, as often as they are among the real "
            f"images; --data has {', '.join(found) or 'none'}: give images of the same classes"
        )
    labels = reference.labels[:n]
    run.config.check_conditions(labels.unique().tolist(), 1)
    return labels


def _of_files(args: argparse.Namespace, world: World) -> Subject:
    size = _size_of(args.samples)
    found = _open(DataConfig(str(args.samples)), size, 3, world)
    if found.skipped and world.leader:
        name, reason = found.skipped[0]
        print(f"left out {len(found.skipped)} files of {args.samples}: {name} ({reason})", file=sys.stderr)

    def samples(n: int, reference: metrics.Reference) -> metrics.Samples:
        share = world.share(n)
        return metrics.Samples(share, metrics.image_batches(found, np.array(share), args.batch_size))

    about = {"samples": str(args.samples), "images": len(found)}
    return Subject(size, 3, len(found), DataConfig(args.data), samples, about)


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


def _open(data: DataConfig, size: tuple[int, int], channels: int, world: World) -> ImageSet | ImageStream:
    """The images, always their centred parts."""
    return open_images(data.path, size, channels=channels, world=world, **data.reading())


def evaluate(args: argparse.Namespace, world: World) -> tuple[dict[str, Any], Tensor]:
    """(report, pairs of samples and their nearest real images) as the options ask; the same on every rank."""
    started = time.perf_counter()
    subject = _of_run(args, world) if args.samples is None else _of_files(args, world)
    extractor = metrics.open_extractor(args.features, world.device, args.trust_features)
    data = _open(subject.data, subject.size, subject.channels, world)
    n = _count(args.n, subject.most, len(data))
    most = max(metrics.MOST, 2 * n)
    common = {"world": world, "cache": args.cache, "batch_size": args.batch_size}
    reference = metrics.open_reference(data, extractor, most=most, **common)
    metrics.check_count(n, reference)
    held_out = None
    if args.held_out is not None:
        images = _open(replace(subject.data, path=args.held_out, classes=()), subject.size, subject.channels, world)
        held_out = metrics.open_reference(images, extractor, most=most, **common)
    samples = subject.samples(n, reference)
    measured = metrics.measure(metrics.progress(samples, len(samples.share), "samples", world), extractor, world)
    found = metrics.evaluate(measured, reference, held_out=None if held_out is None else held_out.features)
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
        "held_out": None if held_out is None else {"path": args.held_out, **held_out.about},
        "device": _device_name(world.device),
        "ranks": world.size,
        "seconds": {"samples": round(drawing, 3), "all": round(time.perf_counter() - started, 3)},
        "images_per_second": round(n / drawing, 3) if args.samples is None else None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "ssdcore": ssdcore.__version__,
            "torch": torch.__version__,
            "torchmetrics": metadata.version("torchmetrics"),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    return report, torch.stack([shown, beside], 1).flatten(0, 1)


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


def write(report: Mapping[str, Any], pairs: Tensor, args: argparse.Namespace) -> None:
    """The report and the picture to their files, and what they say to the terminal."""
    picture = _picture(args)
    images.save(images.grid(to_float(pairs), columns=8), picture)
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    checkpoint.write_atomically(args.out, lambda file: file.write_text(text, encoding="utf-8"))
    n, data, about = report["n"], report["data"], report["samples"]
    what = about.get("samples") or f"{about['run']}, step {about['step']}, {about['sampler']}, {about['steps']} steps"
    print(
        f"{n} samples ({what}) and {n} of {data['images']} real images ({data['path']}), {report['features']['name']}"
    )
    print(evaluation_report.table(report))
    if report["floor"] is None:
        print(f"No floor (other real images in the place of samples): that takes {2 * n} real images.")
    print(f"These figures, and the floor, depend on n: compare them at n = {n} only, as --compare does.")
    print(f"  {args.out}  the report\n  {picture}  samples beside their nearest real images, the nearest first")


def _picture(args: argparse.Namespace) -> Path:
    path: Path = args.picture or args.out.with_suffix(".png")
    return path


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _digest(tensors: Iterable[Tensor]) -> str:
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().cpu().contiguous().numpy().data)
    return total.hexdigest()
