"""The command line: ssdcore COMMAND, or python -m ssdcore COMMAND."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from ssdcore import _design, _verify

# Each module adds a subparser, whose default `run` takes the parsed arguments and returns the exit status.
_COMMANDS = (_verify, _design)
# Those of ssdcore_torch, which is not imported before one of them is asked for: name -> help.
MODEL_COMMANDS = {
    "train": "train a model, draw samples, leave a run folder",
    "sample": "draw images from a run",
    "evaluate": "compare images drawn from a run with real ones",
    "report": "one HTML page that shows a run",
    "prepare": "pack images into shards",
    "ema": "make another average of a run's weights",
    "convert": "make a run folder of the paper's released weights",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command with its arguments (default: those of the process) and return its exit status."""
    given = sys.argv[1:] if argv is None else list(argv)
    if given and given[0] in MODEL_COMMANDS:
        try:
            cli = importlib.import_module("ssdcore_torch.commands.cli")
            command = importlib.import_module(f"ssdcore_torch.commands.{given[0]}")
        except ImportError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        cli.run(command.main, given[1:])
    parser = argparse.ArgumentParser(prog="ssdcore", description="Diffusion with linear degradations.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(commands)
    for name, about in MODEL_COMMANDS.items():
        commands.add_parser(name, help=about)
    args = parser.parse_args(given)
    status: int = args.run(args)
    return status


if __name__ == "__main__":
    sys.exit(main())
