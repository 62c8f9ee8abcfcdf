"""python -m ssdcore_torch.report: one HTML page of a run, to look at in any browser."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ssdcore_torch.commands import cli
from ssdcore_torch.devices import open_device
from ssdcore_torch.errors import UserError
from ssdcore_torch.reports import write_report
from ssdcore_torch.runs import load_run


def parser() -> argparse.ArgumentParser:
    options = cli.Parser(
        "ssdcore_torch.report",
        "Write one HTML file that shows a run: losses, samples, the chain from noise to image, measured quality, "
        "settings and commands. It needs no network.",
    )
    add = options.add_argument
    add("run", type=Path, metavar="RUN", help="run folder")
    add("--out", type=cli.page, help="file to write (default: RUN/report.html)")
    add("--device", help="cpu, cuda, cuda:1, … (default: a CUDA device if there is one)")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    args = parser().parse_args(argv)
    try:
        run = load_run(args.run, open_device(args.device))
        path = args.run / "report.html" if args.out is None else args.out
        write_report(run, path)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    print(f"wrote {path}")
    return 0
