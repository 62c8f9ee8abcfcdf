"""Mean and covariance of images, in the forms that the oracle takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from ssdcore._arrays import Constant, flushing, known_array
from ssdcore.gaussian import Covariance, SpectralCovariance
from ssdcore.operators.blur import spectral_basis
from ssdcore.oracle._blocks import Coordinates
from ssdcore.spectral import Modes

_CHUNK = 256
Form = Literal["cosine", "separable", "dense"]


class Fit(NamedTuple):
    """mean (h, w) or (channels, h, w) of the images;  covariance over (h, w), the average of the channels' own."""

    mean: np.ndarray
    covariance: Covariance


@flushing
def fit(images: Any, form: Form = "cosine") -> Fit:
    """Mean and covariance of images, each channel about its own mean.

    All images count, divided by n (maximum likelihood). Correlations between channels are not modelled. Raises
    ValueError for other shapes, fewer than two images, or a value that is not finite (naming the image).

    Args:
        images: (n, h, w) or (n, channels, h, w), n >= 2; floating point as they are, uint8 as byte/127.5 − 1
        form: "cosine", the variance of each DCT-II mode, by far the fastest in the oracle, correlations between modes
            left out; "separable", E[X Xᵀ] ⊗ E[Xᵀ X] / E‖X‖², exact where the covariance is a product of one over rows
            and one over columns, an approximation elsewhere; "dense", every entry, (h·w, h·w), singular where there
            are fewer images than pixels
    """
    array = known_array(images, "fit")
    if form not in ("cosine", "separable", "dense"):
        raise ValueError(f"fit: unknown form {form!r}; choose cosine, separable or dense")
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"fit: expected floating-point or uint8 images, got dtype {array.dtype}")
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise ValueError(f"fit: expected images shaped (n, h, w) or (n, channels, h, w), got {array.shape}")
    if len(array) < 2:
        raise ValueError("fit: a covariance needs at least two images, got one")
    shape = array.shape[-2:]
    mean = sum(part.sum(0) for part in _chunks(array)) / len(array)
    count = array.size // (shape[0] * shape[1])
    centred = ((part - mean).reshape(-1, *shape) for part in _chunks(array))
    if form == "dense":
        flat = (part.reshape(len(part), -1) for part in centred)
        return Fit(mean, Covariance.dense(sum(x.T @ x for x in flat) / count, shape))
    if form == "cosine":
        coordinates = Coordinates(shape, tuple(spectral_basis(n, "reflect")[0].value for n in shape))
        spectrum = sum((coordinates.analyse(part) ** 2).sum(0) for part in centred) / count
        return Fit(mean, Covariance.cosine(spectrum.reshape(shape)))
    rows, columns = np.zeros((shape[0],) * 2), np.zeros((shape[1],) * 2)
    for part in centred:
        rows += np.einsum("nij,nkj->ik", part, part, optimize=True)
        columns += np.einsum("nij,nik->jk", part, part, optimize=True)
    (row_values, row_vectors), (column_values, column_vectors) = np.linalg.eigh(rows), np.linalg.eigh(columns)
    total = max(float(np.trace(rows)), np.finfo(np.float64).tiny)
    values = np.multiply.outer(np.maximum(row_values, 0.0), np.maximum(column_values, 0.0)) / (total * count)
    modes = Modes(shape, shape, (Constant(row_vectors), Constant(column_vectors)))
    return Fit(mean, SpectralCovariance(modes, values, 0.0))


def _chunks(images: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(images), _CHUNK):
        part = images[first : first + _CHUNK]
        part = part / 127.5 - 1.0 if part.dtype == np.uint8 else part.astype(np.float64)
        if not np.isfinite(part).all():
            bad = first + int(np.flatnonzero(~np.isfinite(part).all(axis=tuple(range(1, part.ndim))))[0])
            raise ValueError(f"fit: image {bad} holds a value that is not finite; leave it out or fix it")
        yield part
