"""Fashion-MNIST at 16 pixels: python benchmarks/quality/make_garments.py FOLDER [--from IDX_FOLDER]

Writes train.npz (60,000 images) and test.npz (10,000, never trained on): the photographs of 28×28 in one channel,
padded with black to 32×32 and averaged over areas of 2×2, with labels and class names. --size 32 leaves the averages
out, --size 28 the padding, too. The IDX files are those of Debian's package dataset-fashion-mnist (apt-get install
dataset-fashion-mnist), MIT licence, which is also where they are looked for.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ssdcore_torch.data import open_images

CLASS_NAMES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
PADDED = 32


def made(idx: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, size, size, 1) uint8 images and (n,) labels of an IDX file."""
    images = open_images(idx, 28, channels=1)
    assert images.labels is not None
    if size == 28:
        return images.images, images.labels
    edge = (PADDED - 28) // 2
    padded = np.pad(images.images[..., 0], ((0, 0), (edge, edge), (edge, edge)))
    area = PADDED // size
    means = padded.reshape(-1, size, area, size, area).mean((2, 4), dtype=np.float32)
    return np.rint(means).astype(np.uint8)[..., None], images.labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="FOLDER")
    parser.add_argument("--from", dest="source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--size", type=int, choices=(16, 28, 32), default=16)
    args = parser.parse_args()
    if not args.source.is_dir():
        parser.error(f"{args.source}: no such folder; install Debian's dataset-fashion-mnist, or give --from FOLDER")
    args.out.mkdir(parents=True, exist_ok=True)
    for name, idx in (("train", "train-images-idx3-ubyte.gz"), ("test", "t10k-images-idx3-ubyte.gz")):
        images, labels = made(args.source / idx, args.size)
        np.savez_compressed(args.out / f"{name}.npz", images=images, labels=labels, class_names=np.array(CLASS_NAMES))
        print(f"{args.out / name}.npz: {len(images)} images")


if __name__ == "__main__":
    main()
