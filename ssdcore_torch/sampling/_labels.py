"""Class labels of samples, checked before any work."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssdcore_torch.denoisers import classes_of

Labels = int | Sequence[int] | np.ndarray | Tensor
"""One label for all samples, or one per sample."""


def check_labels(net: object, labels: Labels | None, n: int, guidance: float = 1.0) -> Tensor | None:
    """The (n,) int64 labels of n samples, on the CPU; None for none. A `guidance` other than 1 needs a null label.

    Raises:
        TypeError: For labels or a guidance of another kind.
        ValueError: For labels of another number, out of range, unwanted or missing, and for guidance that is
            impossible.
    """
    known = classes_of(net)
    num_classes, null_label = (None, None) if known is None else known
    if isinstance(guidance, bool) or not isinstance(guidance, (int, float)):
        raise TypeError(f"guidance: expected a number, got {guidance!r}")
    if not math.isfinite(guidance) or guidance < 0:
        raise ValueError(f"guidance: expected a finite number >= 0 (1: none), got {guidance}")
    if guidance != 1 and labels is None:
        raise ValueError(f"guidance: {guidance} strengthens class labels, and none are given; add labels=")
    if labels is not None and known is not None and num_classes is None:
        raise ValueError("labels: this network has no classes (num_classes is None); leave them out")
    if guidance != 1 and null_label is None:
        raise ValueError(
            'guidance: this network has no label for "no class" to compare with (one trained here with num_classes '
            "has, the paper's released weights do not); leave guidance at 1"
        )
    if labels is None:
        if num_classes is not None and null_label is None:
            raise ValueError(f"labels: this network has no null label; give each sample one of 0..{num_classes - 1}")
        return None
    checked = _as_integers(labels, n)
    highest = null_label if null_label is not None else None if num_classes is None else num_classes - 1
    bad = [v for v in checked.tolist() if v < 0 or (highest is not None and v > highest)]
    if bad:
        allowed = ">= 0" if highest is None else f"in 0..{highest}"
        null = "" if null_label is None else f" ({null_label}: no class)"
        raise ValueError(f"labels: expected labels {allowed}{null}, got {bad[:8]}")
    return checked


def _as_integers(labels: Labels, n: int) -> Tensor:
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"labels: expected whole numbers, one per sample or one for all, got {values.dtype}")
    if values.ndim == 0:
        values = np.full(n, values)
    if values.shape != (n,):
        raise ValueError(f"labels: expected one for all {n} samples or {n} of them, got the shape {values.shape}")
    return torch.from_numpy(values.astype(np.int64))
