"""The command line: python -m ssdcore COMMAND."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ssdcore import _design, _verify

# Each module adds a subparser, whose default `run` takes the parsed arguments and returns the exit status.
_COMMANDS = (_verify, _design)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command with its arguments (default: those of the process) and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m ssdcore", description="Diffusion with linear degradations.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(commands)
    args = parser.parse_args(argv)
    status: int = args.run(args)
    return status


if __name__ == "__main__":
    sys.exit(main())
