"""Reports of evaluations: their JSON, their tables, and which of them compare."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ssdcore.files import read_bytes
from ssdcore_torch.metrics._evaluation import Evaluation
from ssdcore_torch.metrics._reference import Reference

FORMAT = "ssdcore evaluation 1"

CLOSEST = 16
"""Samples that are shown beside their nearest training images."""

MEANINGS = {
    "frechet": "Fréchet distance: 0 is best",
    "kernel": "kernel distance, unbiased: 0 is best",
    "kernel_std": "its standard deviation over subsets",
    "precision": "share of the samples among the data's neighbourhoods: 1 is best",
    "recall": "share of the data among the samples' neighbourhoods: 1 is best",
    "nearest_ratio": "median distance to a training image, over that of real images: near 0 are copies",
    "close_share": "samples nearer to a training image than 95 % of real images are: 0.05 for new images, 1 for copies",
    "detail_ratio": "power over the data's in the upper half of the frequencies: 1 is best, below 1 is blurred",
}

AGREE = {
    "n": "numbers of images",
    "features.fingerprint": "features",
    "data.pixels_sha256": "reference images",
}
"""What reports must have in common to be compared, and what to call it."""


def plain(evaluation: Evaluation, reference: Reference, floor: Mapping[str, float] | None) -> dict[str, Any]:
    """The measured part of a report, as JSON can hold it: numbers that are not finite become null."""
    near, classes = evaluation.memorisation, evaluation.classes
    rows, images = closest(evaluation)
    return {
        "n": evaluation.n,
        "figures": _finite(evaluation.figures),
        "floor": None if floor is None else _finite(floor),
        "spectrum_ratio": [value if math.isfinite(value) else None for value in evaluation.spectrum_ratio.tolist()],
        "closest": [
            {"sample": row, "image": int(reference.indices[image]), "distance": float(near.distances[row])}
            for row, image in zip(rows.tolist(), images.tolist())
        ],
        "duplicates": near.baseline.duplicates,
        "classes": None
        if classes is None
        else {
            "names": list(reference.data.class_names),
            "counts": classes.counts.tolist(),
            "expected": classes.expected.tolist(),
            "chi2": classes.chi2,
            "degrees": classes.degrees,
            "p_value": classes.p_value,
        },
    }


def closest(evaluation: Evaluation) -> tuple[Tensor, Tensor]:
    """(samples, reference rows), the nearest pairs first."""
    order = evaluation.memorisation.distances.argsort()[:CLOSEST]
    return order, evaluation.memorisation.neighbours[order]


def table(report: Mapping[str, Any]) -> str:
    """The figures, the floor beside them, and what they mean."""
    floor = report["floor"] or {}
    rows = [("figure", "value", "floor")]
    rows += [(name, show(value), show(floor.get(name))) for name, value in report["figures"].items()]
    meanings = ["", *(MEANINGS[name] for name in report["figures"])]
    if classes := report["classes"]:
        rows.append(("class_chi2", show(classes["chi2"]), "–"))
        meanings.append(f"χ² of the classes, {classes['degrees']} degrees of freedom, p = {classes['p_value']:.2g}")
    lines = aligned(rows).splitlines()
    return "\n".join(f"{line}  {meaning}".rstrip() for line, meaning in zip(lines, meanings))


def read(path: Path) -> dict[str, Any]:
    """A report from its file. Raises ValueError for any other content, FileNotFoundError for no such file."""
    if not path.is_file():
        raise FileNotFoundError(f"no such report: {path}; make one with --out {path}")
    try:
        report = json.loads(read_bytes(path))
        fits = report["format"] == FORMAT and _is_figures(report["figures"])
        fits = fits and (report["floor"] is None or _is_figures(report["floor"]))
        for key in AGREE:
            _get(report, key)
    except (ValueError, KeyError, TypeError, RecursionError):
        fits = False
    if not fits:
        raise ValueError(f"{path} is not a report of this version of ssdcore_torch.evaluate: make it again with --out")
    return report


def _is_figures(values: Any) -> bool:
    return isinstance(values, dict) and all(v is None or isinstance(v, (int, float)) for v in values.values())


def compare(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of the figures of reports by name. Raises ValueError unless they agree in `AGREE`."""
    (first, reference), *others = reports.items()
    for name, report in others:
        for key, what in AGREE.items():
            ours, theirs = _get(reference, key), _get(report, key)
            if ours != theirs:
                raise ValueError(
                    f"{first} and {name} have different {what} ({key}: {ours} and {theirs}): their figures do not "
                    "compare; evaluate both alike"
                )
    names = list(reference["figures"])
    rows = [("figure", *reports, "floor")]
    floor: Mapping[str, float] = next((report["floor"] for report in reports.values() if report["floor"]), {})
    for figure in names:
        values = [show(report["figures"].get(figure)) for report in reports.values()]
        rows.append((figure, *values, show(floor.get(figure))))
    return aligned(rows)


def show(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:]))]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def _get(report: Mapping[str, Any], key: str) -> Any:
    value: Any = report
    for part in key.split("."):
        value = value[part]
    return value


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in values.items()}
