"""What was understood of the data, in two lines that are read before training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ssdcore_torch.data._pixels import CHANNELS
from ssdcore_torch.data._reading import Failure, Reader
from ssdcore_torch.data._sources import Source, some
from ssdcore_torch.text import printable, sides

LOOKED_AT = 8  # pictures
DARK = 32  # of 255: data whose brightest value is lower was stored with fewer bits than its files have
NAMES = 12  # class names that are shown

_MODES = {
    "1": "1-bit",
    "L": "grey",
    "LA": "grey with transparency",
    "P": "palette",
    "RGB": "RGB",
    "RGBA": "RGBA",
    "CMYK": "CMYK",
    "I": "16-bit grey",
}


def understood(
    source: Source, reader: Reader, labels: np.ndarray | None, images: np.ndarray | None
) -> tuple[tuple[str, ...], str]:
    """((what the pictures are, what the labels are), a doubt about the values or "").

    Args:
        labels: of the images that are used
        images: (n, height, width, c), where they are decoded already
    """
    kinds, low, high = _look(source, reader, images)
    height, width = reader.size
    turned = f"read as {width}×{height} {CHANNELS[reader.channels]}"
    values = "" if high < 0 else f", values from {low} to {high} of 255"
    first = f"pictures: {kinds or len(reader)}, {turned}{values}"
    doubt = ""
    if 0 < high < DARK:
        doubt = (
            f"the brightest value found in {source.source} is {high} of 255: if its files hold fewer bits than they "
            "have room for, as 12 in 16, say how many with --set data.bits=12"
        )
    return (first, labels_line(labels, source.class_names, source.labelled_by)), doubt


def labels_line(labels: np.ndarray | None, class_names: Sequence[str], labelled_by: str) -> str:
    """What the labels of the data are."""
    if labels is None:
        return "labels: none"
    counts = np.bincount(labels, minlength=len(class_names))
    names = [f"{printable(name)} ({count})" for name, count in zip(class_names[:NAMES], counts)]
    more = f" and {len(counts) - NAMES} more" if len(counts) > NAMES else ""
    return f"labels: {len(counts)} classes by {labelled_by}: {', '.join(names)}{more}"


def _look(source: Source, reader: Reader, images: np.ndarray | None) -> tuple[str, int, int]:
    """Modes and sizes of some pictures, and the least and greatest value of them as they are read; −1 if none was."""
    if source.slow:  # it would have to be fetched
        return "", -1, -1
    modes, sizes, low, high = set[str](), set[tuple[int, int]](), 255, -1
    for index in some(len(reader), LOOKED_AT):
        try:
            with source.open(int(reader.rows[index])) as picture:
                modes.add(_MODES.get(picture.mode, "16-bit grey" if picture.mode[:2] == "I;" else picture.mode))
                sizes.add(picture.size)
        except Exception:  # a broken one is reported when it is read
            continue
        if images is None and not isinstance(pixels := reader.read(index), Failure):
            low, high = min(low, int(pixels.min())), max(high, int(pixels.max()))
    if images is not None:
        shown = images[some(len(images), 4 * LOOKED_AT)]
        low, high = int(shown.min()), int(shown.max())
    if not sizes:
        return "", low, high
    least, most = min(sizes), max(sizes)
    extent = sides(least) + ("" if least == most else f" to {most[0]}×{most[1]}")
    return f"{len(reader)} of {extent} {' and '.join(sorted(modes))}", low, high
