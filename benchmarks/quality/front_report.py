"""Table and pictures of front.py's results:

    python benchmarks/quality/front_report.py FOLDER --rows FILE.json       # prints the table, keeps the rows
    python benchmarks/quality/front_report.py FILE.json --pictures DOCS     # the same table, and the front as a plot
    python benchmarks/quality/front_report.py FOLDER --pictures DOCS --data DATA    # first samples, too
    python benchmarks/quality/front_report.py FILE.json --compare "3 levels, by information" "1 level, min-SNR"

Means ± standard error over seeds; --compare takes two arms at neighbouring costs of a sample, seed by seed. The
pictures are garments16-front.png (drawings16 for drawings, garments32-gpu of runs on a GPU), quality against the cost
of a sample, and garments16-samples.png, first samples below test images.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssdcore import plotting

Rows = Sequence[dict[str, Any]]
Key = tuple[str, str]

COLUMNS: Mapping[str, Callable[[dict[str, Any]], float]] = {
    "MFLOP per sample": lambda row: 1e3 * row["sample_gflop"],
    "training steps": lambda row: row["steps"],
    "train s": lambda row: row["train_seconds"],
    "k parameters": lambda row: row["parameters"] / 1e3,
}
NEAR = 0.75, 1.6  # times the cost of a sample: what is compared with it


def rulers(rows: Rows) -> list[str]:
    """What samples were judged in: the features, then pixels."""
    return sorted((key.removesuffix("_floor") for key in rows[0] if key.endswith("_floor")), key="pixels".__eq__)


def read_rows(path: Path) -> Rows:
    """Of a folder of front.py, or a file that this program wrote; raises SystemExit for none."""
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    files = [file for file in sorted(path.glob("*.json")) if file.name != "steps.json"]
    if not files:
        raise SystemExit(f"{path}: no rows of front.py; run it first")
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def grouped(rows: Rows) -> dict[Key, Rows]:
    groups: dict[Key, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["arm"], row["sampling"], row["seed"])):
        groups.setdefault((row["arm"], row["sampling"]), []).append(row)
    return groups


def table(rows: Rows) -> str:
    judged = rulers(rows)
    columns = {**{f"Fréchet {name}": lambda row, name=name: row[name] for name in judged}, **COLUMNS}
    lines = ["| arm | sampling | seeds | " + " | ".join(columns) + " |", "|---" * (3 + len(columns)) + "|"]
    for (arm, sampling), found in grouped(rows).items():
        cells = [spread([column(row) for row in found]) for column in columns.values()]
        lines.append(f"| {arm} | {sampling} | {len(found)} | " + " | ".join(cells) + " |")
    floors = " and ".join(f"{rows[0][f'{name}_floor']:.3g} in {name}" for name in judged)
    lines.append(f"\n{rows[0]['samples']} samples against all test images; as many training images have {floors}.")
    return "\n".join(lines)


def compared(rows: Rows, arm: str, other: str) -> str:
    """Differences of one arm's rows from another's at neighbouring costs, over the seeds that both have."""
    groups = grouped(rows)
    pairs: list[tuple[float, float, str]] = []
    for (first, how), found in groups.items():
        for (second, way), known in groups.items():
            costs = [1e3 * float(np.mean([row["sample_gflop"] for row in part])) for part in (found, known)]
            if first == arm and second == other and NEAR[0] < costs[1] / costs[0] < NEAR[1]:
                here, there = ({row["seed"]: row for row in part} for part in (found, known))
                seeds = sorted(here.keys() & there.keys())
                cells = [spread([here[s][name] - there[s][name] for s in seeds]) for name in rulers(rows)]
                labels = f"{how}, {costs[0]:.0f} | {way}, {costs[1]:.0f} | {len(seeds)}"
                pairs.append((*costs, f"| {labels} | {' | '.join(cells)} |"))
    head = f"| {arm}, MFLOP | {other}, MFLOP | seeds | " + " | ".join(rulers(rows)) + " |"
    return "\n".join([head, "|---" * (3 + len(rulers(rows))) + "|", *(line for *_, line in sorted(pairs))])


def held_out(rows: Rows) -> str:
    """Held-out loss at full size, time bin by time bin, of our arms."""
    own = {arm: found for (arm, _), found in grouped(rows).items() if "held_out" in found[0]}
    bins = max(len(found[0]["held_out"]) for found in own.values())
    lines = ["| arm | seeds | " + " | ".join(f"bin {k + 1}" for k in range(bins)) + " |", "|---" * (2 + bins) + "|"]
    for arm, found in own.items():
        cells = [spread([row["held_out"][k] for row in found]) for k in range(bins)]
        lines.append(f"| {arm} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    known = np.array(values, dtype=float)
    mean = f"{known.mean():.0f}" if abs(known.mean()) >= 1000 else f"{known.mean():.3g}"
    if len(known) < 2 or np.ptp(known) <= 1e-9 * abs(known.mean()):
        return mean
    return f"{mean} ± {known.std(ddof=1) / np.sqrt(len(known)):.2g}"


def front(rows: Rows) -> Any:
    """A colour an arm, a marker a kind of steps; arms with one seed alone are left to the table."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    ruler = rulers(rows)[0]
    arms = sorted({arm for (arm, _), found in grouped(rows).items() if len(found) > 1})
    curves: dict[Key, list[tuple[float, float, float]]] = {}
    for (arm, sampling), found in grouped(rows).items():
        if arm not in arms:
            continue
        values = np.array([row[ruler] for row in found])
        error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
        kind = sampling.partition(", ")[2] or ("ancestral" if "held_out" in found[0] else "its own")
        cost = 1e3 * float(np.mean([row["sample_gflop"] for row in found]))
        curves.setdefault((arm, kind), []).append((cost, float(values.mean()), error))
    for (arm, kind), points in curves.items():
        costs, means, errors = zip(*sorted(points))
        colour = plotting.COLOURS[arms.index(arm) % len(plotting.COLOURS)]
        marker = _MARKERS[kind]
        axes.errorbar(costs, means, errors, color=colour, marker=marker, capsize=3, linewidth=1, label=f"{arm}: {kind}")
    means = [mean for points in curves.values() for _, mean, _ in points]
    if max(means) > 4 * min(means):
        axes.set_yscale("log")
    data = "Fashion-MNIST" if ruler == "garments" else "Drawings"
    axes.set(xlabel="MFLOP per sample", title=f"{data}, {rows[0]['size']} px, equal training time")
    axes.set_ylabel("Fréchet distance " + ("(classifier's features)" if ruler == "garments" else "(Lite0 features)"))
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


_MARKERS = {"ancestral": "o", "multistep": "s", "second moments": "^", "its own": "D"}


def samples(rows: Rows, folder: Path, data: Path, count: int = 12) -> Any:
    """Of each arm with several seeds, drawn in the way that has its least distance."""
    with np.load(data / "test.npz") as test:
        shown = {"test images": pictures(test["images"][:count])}
    best: dict[str, tuple[float, str, dict[str, Any]]] = {}
    for (arm, sampling), found in grouped(rows).items():
        mean = float(np.mean([row[rulers(rows)[0]] for row in found]))
        if len(found) > 1 and (arm not in best or mean < best[arm][0]):
            best[arm] = mean, sampling, found[0]
    for arm, (_, sampling, row) in sorted(best.items(), key=lambda item: item[1][0]):
        with np.load(folder / row["file"]) as made:
            shown[f"{arm}\n{sampling}"] = pictures(made["images"][:count])
    return plotting.images(shown)


def pictures(images: np.ndarray) -> list[np.ndarray]:
    """In three channels, in [−1, 1]."""
    return list(np.repeat(np.moveaxis(images, 3, 1), 3 // images.shape[3], 1) / 127.5 - 1)


def stem_of(rows: Rows) -> str:
    """What the names of the pictures begin with."""
    data = "garments" if rulers(rows)[0] == "garments" else "drawings"
    return f"{data}{rows[0]['size']}{'-gpu' if rows[0].get('device') == 'cuda' else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, metavar="FOLDER_OR_FILE")
    parser.add_argument("--rows", type=Path, metavar="FILE")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="of front.py")
    parser.add_argument("--compare", nargs=2, metavar="ARM", help="seed by seed")
    args = parser.parse_args()
    rows = read_rows(args.results)
    print(table(rows), held_out(rows), *([compared(rows, *args.compare)] if args.compare else []), sep="\n\n")
    if args.rows is not None:
        args.rows.write_text(json.dumps(list(rows), indent=1) + "\n", encoding="utf-8")
    if args.pictures is not None:
        args.pictures.mkdir(parents=True, exist_ok=True)
        plotting.save(front(rows), args.pictures / f"{stem_of(rows)}-front.png", dpi=100)
        if args.results.is_dir() and args.data is not None:
            found = samples(rows, args.results, args.data)
            plotting.save(found, args.pictures / f"{stem_of(rows)}-samples.png", dpi=100)


if __name__ == "__main__":
    main()
