"""Make a set of drawings to train on or to compare with: python benchmarks/quality/make_drawings.py OUT.npz

    pip install dicebear-core==10.7.0 dicebear-styles==10.6.0 resvg-py==0.5.0 pillow numpy
    python benchmarks/quality/make_drawings.py train.npz                            # 20,000, the benchmark set
    python benchmarks/quality/make_drawings.py reference.npz --first-seed 100000    # others of the same distribution

Vector art of 16 classes, each style CC0 1.0. A drawing is a function of its class and seed alone, so sets of other
seeds are fresh draws that share no image. It is drawn at twice the size, laid on white and averaged over 2×2 pixels, in
whole numbers, so that the pixels are the same everywhere. The file holds images (n, size, size, 3) uint8, labels (n,)
int64 and class_names; the classes take turns, so that any beginning is balanced.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from importlib.resources import files
from multiprocessing import Pool
from pathlib import Path
from typing import Any, NoReturn

MISSING: str | None = None
try:
    import dicebear_styles
    import numpy as np
    import resvg_py
    from dicebear import Avatar, Style
    from PIL import Image
except ModuleNotFoundError as error:  # said in main, so that --help works without them
    MISSING = error.name

PACKAGES = "dicebear-core==10.7.0 dicebear-styles==10.6.0 resvg-py==0.5.0 pillow numpy"
CLASSES = ["clay", "critters", "cutouts", "landscape", "marbles", "moods", "open-peeps", "patchwork"]
CLASSES += ["pixel-art", "planets", "sprouts", "stack", "thumbs", "voxel-art", "voxel-bot", "waves"]
OVERSAMPLING = 2


@functools.cache
def style(name: str) -> Any:
    """A class' style. Raises ValueError where its licence is not what this set promises."""
    definition = json.loads(files(dicebear_styles).joinpath(f"{name}.json").read_text("utf-8"))
    licence = definition["meta"]["license"]["name"]
    if licence != "CC0 1.0":
        raise ValueError(f"the style {name} has the licence {licence}, expected CC0 1.0; pip install {PACKAGES}")
    return Style(definition)


def drawing(job: tuple[str, int, int]) -> np.ndarray:
    """(class, seed, size) -> (size, size, 3) uint8."""
    name, seed, size = job
    side = size * OVERSAMPLING
    svg = Avatar(style(name), {"seed": f"{name}-{seed}", "size": side}).to_string()
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side))
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).astype(np.uint32)
    colour, opacity = pixels[..., :3], pixels[..., 3:]
    on_white = (colour * opacity + 255 * (255 - opacity) + 127) // 255
    blocks = on_white.reshape(size, OVERSAMPLING, size, OVERSAMPLING, 3).sum(axis=(1, 3))
    return np.asarray((blocks + OVERSAMPLING**2 // 2) // OVERSAMPLING**2, dtype=np.uint8)


def make(out: Path, classes: Sequence[str], per_class: int, first_seed: int, size: int, workers: int) -> str:
    """Write the file, as a whole or not at all; the SHA-256 of its pixels."""
    jobs = [(name, seed, size) for seed in range(first_seed, first_seed + per_class) for name in classes]
    with Pool(workers) as pool:
        images = np.stack(pool.map(drawing, jobs, chunksize=100))
    labels = np.tile(np.arange(len(classes), dtype=np.int64), per_class)
    staged = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with open(staged, "wb") as file:
            np.savez_compressed(file, images=images, labels=labels, class_names=np.array(classes))
        os.replace(staged, out)
    finally:
        staged.unlink(missing_ok=True)
    return hashlib.sha256(images.tobytes()).hexdigest()


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def at_least(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number of at least `least`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text}")
        return value

    return read


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    positive, natural = at_least(1), at_least(0)
    parser.add_argument("out", type=Path, metavar="OUT.npz")
    parser.add_argument("--per-class", type=positive, default=1250, metavar="N")
    parser.add_argument("--first-seed", type=natural, default=0, metavar="N")
    parser.add_argument("--classes", nargs="+", choices=CLASSES, default=CLASSES, metavar="CLASS")
    parser.add_argument("--size", type=positive, default=64, metavar="PX")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, metavar="N")
    args = parser.parse_args()
    if not args.out.parent.is_dir():
        parser.error(f"{args.out.parent} is no folder; make it first")
    if args.out.is_dir():
        parser.error(f"{args.out} is a folder; name a file")
    if len(set(args.classes)) < len(args.classes):
        parser.error(f"argument --classes: expected each class once, got {' '.join(args.classes)}")
    if MISSING:
        parser.error(f"{MISSING} is not installed: pip install {PACKAGES} (an environment of its own will do)")
    try:
        for name in args.classes:
            style(name)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    digest = make(args.out, args.classes, args.per_class, args.first_seed, args.size, args.workers)
    print(f"{args.out}: {args.per_class * len(args.classes)} drawings, SHA-256 of their pixels {digest}")


if __name__ == "__main__":
    main()
