"""python -m ssdcore_torch.evaluate: how good a run's samples are.

Under `torchrun --nproc_per_node=N -m -- ssdcore_torch.evaluate RUN …` N processes share the work, on the same samples
(`--` keeps torchrun from taking `--n` for an abbreviation of its own options).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ssdcore.files import write_atomically
from ssdcore_torch import checkpoint, images, metrics
from ssdcore_torch.commands import cli, sample
from ssdcore_torch.distributed import World, connect
from ssdcore_torch.metrics import report as evaluation_report
from ssdcore_torch.runs import USUAL, Drawing, Evaluated, compare_reports, evaluate_files, evaluate_run
from ssdcore_torch.sampling import to_float

PAIRS = "pairs: a sample, and the training image nearest to it"


def parser() -> argparse.ArgumentParser:
    options = cli.Parser(
        "ssdcore_torch.evaluate",
        "Compare images drawn from a run with as many real ones: Fréchet and kernel distance, precision and recall, "
        "copies of training images, power spectrum, classes. Writes a report (JSON), and a picture of the samples "
        "nearest to training images beside these.",
    )
    add = options.add_argument
    add("run", type=Path, metavar="RUN", nargs="?", help="run folder")
    add(
        "--samples",
        type=Path,
        metavar="FOLDER_OR_NPZ",
        help="evaluate these images instead of a run's, or signals or volumes in an array, as `sample` writes it",
    )
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
        type=cli.integer(4),
        help=f"samples, and real images (default: {USUAL} or all of the data; with --samples, all of these)",
    )
    add(
        "--features",
        help="lite0, EfficientNet-Lite0 at 224 px; pixels, at 16 px, cheap; or a file: Inception as TorchScript, or "
        "its weights (with torch-fidelity installed) (default: lite0; of signals and volumes pixels, the only ones)",
    )
    add(
        "--trust-features",
        action="store_true",
        help="run a --features file that is a TorchScript program, though it is not one of those published: it can "
        "write files, so do this only for a file that you would run as a program",
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
            print(compare_reports(args.compare))
            return 0
        _check_options(args)
        if args.run is not None:
            checkpoint.read_config(args.run)  # before its name stands in that of the report
        args.out = args.out or (Path() if args.run is None else args.run) / "evaluation.json"
        with connect(args.device) as world:
            cli.agree(world, args)
            if world.leader:
                cli.check_outputs(args.force, out=args.out, picture=_picture(args))
            found = _evaluate(args, world)
            if world.leader:
                command = ["python", "-m", "ssdcore_torch.evaluate", *(sys.argv[1:] if argv is None else argv)]
                write({**found.report, "command": shlex.join(command)}, found.pairs, args)
    except (ValueError, OSError, ImportError) as error:
        raise cli.UserError(str(error)) from error
    return 0


def _evaluate(args: argparse.Namespace, world: World) -> Evaluated:
    common = {"n": args.n, "features": args.features, "held_out": args.held_out, "cache": args.cache}
    common["trust_features"] = args.trust_features
    if args.samples is not None:
        return evaluate_files(args.samples, args.data, world, batch_size=args.batch_size, **common)
    run, drawing = sample.open_run(args, world.device), sample.drawing_of(args)
    weights = None if args.weights is None else str(args.weights)
    return evaluate_run(run, world, drawing, data=args.data, weights=weights, compiled=args.compile, **common)


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
    drawing = [field.name for field in dataclasses.fields(Drawing) if field.name != "batch_size"]
    for name in (*drawing, "weights", "compile"):
        if getattr(args, name) != options.get_default(name):
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} says how a run's images are drawn, and --samples are already: leave it out")


def write(report: Mapping[str, Any], pairs: Tensor, args: argparse.Namespace) -> None:
    """The report and the picture to their files, and what they say to the terminal."""
    picture = _picture(args)
    images.save(images.grid(to_float(pairs), columns=8, title=PAIRS), picture)
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    write_atomically(args.out, lambda file: file.write_text(text, encoding="utf-8"))
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
