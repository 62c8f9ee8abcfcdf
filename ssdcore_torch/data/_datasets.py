"""The pictures of a torch `Dataset`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ssdcore_torch.data._sources import Choices, Source, as_labels, check_labels, some

WANTED = "a PIL image or an array of bytes (h, w) or (h, w, c), alone or first in a tuple with its class number"


class DatasetSource(Source):
    """What a map-style Dataset yields: a picture, or a tuple that begins with a picture and its class number.

    A picture is a PIL image, a uint8 array (h, w), (h, w, c), or a uint8 tensor (h, w), (c, h, w), with 1, 3 or 4
    channels. Labels are the Dataset's `targets` with its `classes` as names, as torchvision's have them; else they are
    read item by item.

    Raises:
        TypeError: For a Dataset without length or of other items.
        ValueError: For one that is empty.
    """

    def __init__(self, dataset: Any, choices: Choices) -> None:
        self.dataset, self.choices = dataset, choices
        kind = type(dataset).__name__
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise TypeError(f"data: expected a map-style Dataset, with __len__ and __getitem__, got {kind}")
        self.source = f"the {kind} of {len(dataset)} items"
        if not len(dataset):
            raise ValueError(f"{self.source}: expected at least one item")
        first = dataset[0]
        self._picture(first)
        if choices.labels:
            self._take_labels(first)

    def _take_labels(self, first: Any) -> None:
        targets = getattr(self.dataset, "targets", None)
        if targets is not None and len(targets) == len(self.dataset):
            try:
                values, self.labelled_by = [int(label) for label in targets], "its targets"
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(
                    f"{self.source}: expected one class number per item in its targets, got {targets[0]!r:.60}: "
                    "labels=False leaves them out"
                ) from error
        elif item_label(first) is not None:
            values, self.labelled_by = [self._label(index) for index in range(len(self.dataset))], "its items"
        else:
            return
        names = getattr(self.dataset, "classes", ())
        self.labels = as_labels(np.array(values), len(self.dataset), self.source)
        self.class_names = check_labels(self.labels, tuple(str(name) for name in names), self.source)

    def _label(self, index: int) -> int:
        label = item_label(self.dataset[index])
        if label is None:
            raise TypeError(
                f"{self.source}: item {index} has no class number, and the first has: give all one, or none"
            )
        return label

    def _picture(self, item: Any) -> Image.Image:
        found = item[0] if isinstance(item, (tuple, list)) and item else item
        if isinstance(found, Image.Image):
            return found
        if isinstance(found, Tensor):
            found = found.detach().cpu().numpy()
            found = np.moveaxis(found, 0, -1) if found.ndim == 3 and found.shape[0] in (1, 3, 4) else found
        if not isinstance(found, np.ndarray):
            raise TypeError(f"{self.source}: expected {WANTED}, got {type(found).__name__}")
        if found.ndim == 3 and found.shape[-1] == 1:
            found = found[..., 0]
        if found.dtype != np.uint8 or found.ndim not in (2, 3) or (found.ndim == 3 and found.shape[-1] not in (3, 4)):
            advice = "; leave ToTensor and Normalize out" if found.dtype.kind == "f" else ""
            raise TypeError(f"{self.source}: expected {WANTED}, got {found.dtype} {found.shape}{advice}")
        return Image.fromarray(np.ascontiguousarray(found))

    def __len__(self) -> int:
        return len(self.dataset)

    def open(self, index: int) -> Image.Image:
        return self._picture(self.dataset[index]).copy()  # closed by whom it is given to; the Dataset may keep its own

    def name(self, index: int) -> str:
        return f"item {index} of {self.source}"

    def traits(self) -> Iterator[bytes]:
        for index in some(len(self), 16):
            picture = self._picture(self.dataset[index])
            yield repr((picture.mode, picture.size)).encode() + picture.tobytes()


def item_label(item: Any) -> int | None:
    """The class number in (picture, class number), or None."""
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        return None
    label = item[1]
    if isinstance(label, (Tensor, np.ndarray, np.generic)) and getattr(label, "ndim", 0) == 0:
        label = label.item()
    return label if isinstance(label, int) and not isinstance(label, bool) else None
