"""What stands in the report of a run, from its folder and a few samples drawn for it."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ssdcore.files import write_atomically
from ssdcore_torch.checkpoint import OpenRun
from ssdcore_torch.config import PRESETS, flat_settings, preset
from ssdcore_torch.images import class_captions, viewed
from ssdcore_torch.metrics import report as evaluation_report
from ssdcore_torch.reports import _page
from ssdcore_torch.reports._charts import line_chart
from ssdcore_torch.reports._pictures import picture_of, strip
from ssdcore_torch.text import sides
from ssdcore_torch.training.log import log_lines
from ssdcore_torch.training.pictures import SAMPLER, draw_samples

SAMPLES = 16
CHAINS = 6
"""Samples whose chain is shown."""
MOST_FRAMES = 24
MOST_GRIDS = 20
TILE = 96
"""Width in CSS pixels of a sample."""

Step = tuple[int, Tensor, Tensor]


def write_report(run: OpenRun, path: Path, drawn: tuple[Tensor, Sequence[Step]] | None = None) -> None:
    """Write the report of a run as one HTML file, whole or not at all.

    Raises ValueError for a name that does not end in .html, OSError where the file cannot be written.

    Args:
        drawn: samples with the run's seed and classes in turn, and the steps (t, x_t, prediction) of their chain;
            None: `SAMPLES` are drawn with the run's averaged network on its device
    """
    if path.suffix.lower() != ".html":
        raise ValueError(f"{path}: a report is an HTML page; end the name in .html")
    log = list(_log_rows(run.path / "log.jsonl"))
    labels = run.config.labels_in_turn(SAMPLES)
    samples, chain = _draw(run) if drawn is None else drawn
    sections = {
        "Samples": _samples(run, samples[:SAMPLES], labels, len(chain)),
        "Samples over time": _samples_over_time(run.path),
        "From noise to image": _chain(chain),
        "Training": _training(log),
        "Quality": _quality(run.path, log),
        "Settings": _settings(run),
        "Commands": _commands(run),
    }
    text = _page.page(f"Run {run.path.resolve().name}", _head(run), sections)
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def _log_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a log that can be read; a line cut short by a crash is left out."""
    if not path.is_file():
        return
    for line in log_lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), (int, float)):
            yield row


def _draw(run: OpenRun) -> tuple[Tensor, list[Step]]:
    """(samples, steps of the chain of all of them)."""
    chain: list[Step] = []
    drawn = draw_samples(run.ema, run.process, run.config, run.prior, SAMPLES, lambda *step: chain.append(step))
    return drawn, chain


def _head(run: OpenRun) -> str:
    config = run.config
    sizes = " → ".join(sides(shape) for shape in run.process.shapes)
    parameters = sum(p.numel() for p in run.net.parameters())
    classes = config.network.num_classes
    facts = [
        f"step {run.step:,} of {config.train.steps:,}",
        f"sizes {sizes}",
        f"{parameters / 1e6:.1f} M parameters",
        f"preset {config.preset}",
        *([f"{classes} classes"] if classes else []),
        f"data {config.data.path}",
    ]
    made = datetime.now().astimezone().isoformat(sep=" ", timespec="minutes")
    return _page.paragraph("; ".join(facts)) + _page.paragraph(f"Report made {made}.", note=True)


def _samples(run: OpenRun, drawn: Tensor, labels: Sequence[int] | None, steps: int) -> str:
    classes = class_captions(labels, run.config.data.class_names)
    figures = []
    for i, image in enumerate(drawn):
        caption = f"{i}" if classes is None else classes[i]
        figures.append(_page.captioned(_page.picture(picture_of(image), TILE, f"sample {caption}"), caption))
    note = f"Drawn with the averaged weights of step {run.step:,} in {steps} {SAMPLER} steps, seed {run.config.seed}."
    return _page.tiles(figures) + _page.paragraph(note, note=True)


def _samples_over_time(folder: Path) -> str:
    """The grids that the run drew on its way, a slider over them."""
    found = {}
    for file in sorted((folder / "samples").glob("step-*.png")):
        if (match := re.fullmatch(r"step-(\d+)\.png", file.name)) and file.is_file() and not file.is_symlink():
            found[int(match[1])] = file
    if not found:
        return ""
    numbers = _spread(list(found), MOST_GRIDS)
    contents = []
    for step in numbers:
        try:
            with Image.open(found[step], formats=["PNG"]) as opened:
                contents.append(_page.captioned(_page.picture(opened.convert("RGB")), f"step {step:,}"))
        except (OSError, ValueError, Image.DecompressionBombError):
            continue  # a grid that cannot be read is not worth the report
    if not contents:
        return ""
    note = "The same noise, and the same classes, in every grid."
    return _page.frames(contents, 600, first=len(contents) - 1) + _page.paragraph(note, note=True)


def _chain(chain: Sequence[Step]) -> str:
    """The state at its true size and the prediction, step by step."""
    if not chain:
        return ""
    room = [viewed(prediction[:1]).shape for _, _, prediction in chain]
    tallest, widest = (max(shape[axis] for shape in room) for axis in (-2, -1))
    scale = max(1, math.ceil(TILE / widest))
    contents = []
    for t, state, prediction in _spread(chain, MOST_FRAMES):
        rows = []
        named = f"state, {sides(state.shape[2:])}"
        for name, batch in ((named, state), ("prediction of the clean image", prediction)):
            shown = strip(batch[:CHAINS], tallest, widest)
            rows.append(_page.captioned(_page.picture(shown, shown.width * scale, name), name))
        contents.append(f'<div class="rows">{"".join(rows)}</div>' + _page.paragraph(f"t = {t}", note=True))
    return _page.frames(contents, 150, first=len(contents) - 1)


def _training(log: Sequence[Mapping[str, Any]]) -> str:
    if not log:
        return _page.paragraph("This run has no log.", note=True)
    losses: dict[str, list[tuple[float, float]]] = {}
    speed: list[tuple[float, float]] = []
    norms: list[tuple[float, float]] = []
    for row in log:
        step = float(row["step"])
        paths = row.get("paths")
        for name, value in paths.items() if isinstance(paths, Mapping) else ():
            if isinstance(value, (int, float)):
                losses.setdefault(str(name), []).append((step, float(value)))
        for key, points in (("images_per_second", speed), ("gradient_norm", norms)):
            if isinstance(row.get(key), (int, float)):
                points.append((step, float(row[key])))
    parts = [
        ("Loss per path (size of the state → size of the prediction)", line_chart(losses, "step", "loss", log=True)),
        ("Gradient norm", line_chart({"gradient norm": norms}, "step", "gradient norm", log=True)),
        ("Images per second", line_chart({"images per second": speed}, "step", "images per second")),
    ]
    return "".join(_page.paragraph(name) + chart for name, chart in parts if chart)


def _quality(folder: Path, log: Sequence[Mapping[str, Any]]) -> str:
    """The evaluation in the folder, those on the way, and the samples nearest to training images."""
    parts = []
    on_the_way: dict[str, list[tuple[float, float]]] = {}
    for row in log:
        figures = row.get("evaluation")
        for name in ("frechet", "kernel"):
            if isinstance(figures, Mapping) and isinstance(figures.get(name), (int, float)):
                on_the_way.setdefault(name, []).append((float(row["step"]), float(figures[name])))
    for name, points in on_the_way.items():
        if chart := line_chart({name: points}, "step", name):
            parts.append(_page.paragraph(f"{evaluation_report.MEANINGS[name]}, while training") + chart)
    file = folder / "evaluation.json"
    if file.is_file():
        report = evaluation_report.read(file)
        floor = report["floor"] or {}
        rows = [
            (
                name,
                evaluation_report.show(value),
                evaluation_report.show(floor.get(name)),
                evaluation_report.MEANINGS.get(name, ""),
            )
            for name, value in report["figures"].items()
        ]
        title = f"Of {report['n']} samples, against as many real images ({report['features']['name']})"
        parts.append(_page.paragraph(title) + _page.table(("figure", "value", "floor", "meaning"), rows, (1, 2)))
        parts.append(
            _page.paragraph("The floor is what other real images get. All figures depend on the number.", note=True)
        )
        nearest = file.with_suffix(".png")
        if nearest.is_file():
            with Image.open(nearest, formats=["PNG"]) as opened:
                image = _page.picture(opened.convert("RGB"), alternative="samples beside the nearest training images")
            parts.append(_page.captioned(image, "pairs: a sample, and the training image nearest to it; nearest first"))
    if not parts:
        return _page.paragraph("Not evaluated yet: the command is below.", note=True)
    return "".join(parts)


OF_THE_DATA = ("data.class_names", "data.class_counts")
"""What stands in config.json and nobody sets."""


def _settings(run: OpenRun) -> str:
    config = run.config
    if config.preset not in PRESETS:
        return _page.code([config.to_json().rstrip()])
    ours, usual = (
        flat_settings(json.loads(each.to_json())) for each in (config, preset(config.preset, config.data.path))
    )
    rows = [
        (name, *(json.dumps(each[name], ensure_ascii=False) if name in each else "" for each in (ours, usual)))
        for name in {**ours, **usual}
        if name not in OF_THE_DATA and (name not in ours or name not in usual or ours[name] != usual[name])
    ]
    if not rows:
        return _page.paragraph(f"All as preset {config.preset} has them.")
    return _page.table(("setting", "this run", f"preset {config.preset}"), rows)


def _commands(run: OpenRun) -> str:
    folder = shlex.quote(str(run.path))
    lines = [
        f"python -m ssdcore_torch.train --out {folder} --resume",
        f"python -m ssdcore_torch.sample {folder} --n 64",
        f"python -m ssdcore_torch.evaluate {folder}",
        f"python -m ssdcore_torch.report {folder}",
    ]
    return _page.code(lines)


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most this many of the items, evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
