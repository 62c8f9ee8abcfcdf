"""python -m ssdcore_torch.prepare."""

from __future__ import annotations

import argparse
import logging
import textwrap
from collections.abc import Sequence
from pathlib import Path

from ssdcore.files import read_text
from ssdcore_torch.commands import cli
from ssdcore_torch.prepare import EVALUATION, check_shards, index_shards, prepare
from ssdcore_torch.recipes import RECIPES


def parser() -> argparse.ArgumentParser:
    options = cli.Parser(
        "ssdcore_torch.prepare", "Pack images into tar shards with a manifest, for data larger than memory or disk."
    )
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    width = 116
    options.epilog = "\n".join(
        [
            "recipes:",
            *(f"  {line}" for name, kind in RECIPES.items() for line in _wrapped(f"{name}: {kind.about}", width)),
            "  index: no pictures are read from anywhere; write the manifest of the tar shards already in --out",
            "  check: compare the shards in --out with the SHA-256 in their manifest",
            "",
            *_wrapped(EVALUATION, width),
        ]
    )
    add = options.add_argument
    add("recipe", choices=[*RECIPES, "index", "check"], metavar="RECIPE", help=", ".join([*RECIPES, "index", "check"]))
    add("--from", dest="source", metavar="FOLDER", help="the pictures, where you have them")
    add(
        "--list",
        type=Path,
        metavar="FILE",
        help="take only these files of FOLDER: one name per line, as of a split",
    )
    add("--size", type=cli.integer(1), metavar="PX", help="height and width of the images")
    add("--channels", type=int, choices=(1, 3, 4), default=3, help="1: grey, 3: RGB, 4: RGBA (default: 3)")
    add("--out", type=Path, metavar="SHARDS", required=True, help="folder to make; continued if it was begun")
    add("--per-shard", type=cli.integer(1), default=8192, metavar="N", help="pictures per shard (default: 8192)")
    add("--seed", type=cli.integer(0), default=0, metavar="N", help="of the order in the shards (default: 0)")
    add(
        "--workers",
        type=cli.integer(0),
        metavar="N",
        help="processes (default: one for each core but one, at most 8)",
    )
    add(
        "--broken-share",
        type=cli.number,
        default=0.01,
        help="share of the pictures that may be broken or too small, and are left out (default: 0.01)",
    )
    return options


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="  ")


def _names(file: Path) -> list[str]:
    """Those in a --list file. Raises ValueError, naming the option, for what is none."""
    try:
        names = [line.strip() for line in read_text(file, MOST_LIST).splitlines()]
    except (OSError, ValueError) as error:
        told = f"cannot be read: {error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
        raise ValueError(f"--list {file}: {told}") from error
    if not any(names):
        raise ValueError(f"--list {file}: it names no files")
    return [name for name in names if name]


MOST_LIST = 2**30  # bytes


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    args = parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    out: Path = args.out
    try:
        if args.recipe == "check":
            manifest = check_shards(out)
            print(f"{out}: {manifest.images} images in {len(manifest.shards)} shards, all as they were written")
            return 0
        if args.recipe == "index":
            manifest = index_shards(out)
        else:
            if args.source is None or args.size is None:
                raise ValueError(f"{args.recipe} needs --from FOLDER and --size PX")
            manifest = prepare(
                args.recipe,
                args.source,
                args.size,
                out,
                per_shard=args.per_shard,
                seed=args.seed,
                workers=args.workers,
                broken_share=args.broken_share,
                names=None if args.list is None else _names(args.list),
                channels=args.channels,
            )
    except (ValueError, ImportError, FileNotFoundError) as error:
        raise cli.UserError(str(error)) from error
    except OSError as error:
        raise cli.UserError(f"{error}; whole shards are kept, and the same command continues from there") from error
    usual = RECIPES[args.recipe].usual if args.recipe in RECIPES else 0
    of = f" of the {usual} that the whole set has" if usual and manifest.images != usual else ""
    classes = f", {len(manifest.class_names)} classes" if manifest.class_names else ""
    skipped = f"; {manifest.skipped} were broken or too small" if manifest.skipped else ""
    print(f"{manifest.images} images{of}{classes} in {len(manifest.shards)} shards: {out}{skipped}")
    print(f"next: python -m ssdcore_torch.train --data {out}" + (f" --size {args.size}" if args.size else ""))
    return 0
