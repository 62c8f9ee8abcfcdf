"""The option --plot of the commands that draw a figure."""

from __future__ import annotations

import argparse
import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add --plot FILE; `check` it before any work is done."""
    parser.add_argument("--plot", metavar="FILE", help="write a figure (png, pdf, svg); needs matplotlib")


def check(path: str | None) -> None:
    """Raises ValueError where a figure is asked for that could not be drawn or written."""
    if path is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError('--plot needs matplotlib: pip install "ssdcore[plot]"')
    from ssdcore import plotting

    try:
        plotting.check_target(path)
    except ValueError as error:
        raise ValueError(f"--plot: {error}") from error


def write(figure: Figure, path: str) -> None:
    """Write the figure and say so."""
    from ssdcore import plotting

    plotting.save(figure, path)
    print(f"wrote {path}")
