"""Tables and pictures of a study: python benchmarks/quality/report.py FOLDER [--pictures DOCS_FOLDER]

Reads every row.json under FOLDER. Prints the table, mean ± standard deviation over seeds; writes rows.json (all rows)
and, into --pictures (default: FOLDER), samples.png, the arms' first samples below each other (the same noise), and
quality.png, quality against the cost of a sample.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from study import write_json

from ssdcore import plotting

Rows = Mapping[str, Sequence[dict[str, Any]]]

COLUMNS: Mapping[str, Callable[[dict[str, Any]], float | None]] = {
    "steps": lambda row: row["steps"],
    "train s": lambda row: row["train_seconds"],
    "sample GFLOP": lambda row: row["sample_gflop"],
    "sample s": lambda row: row["sample_seconds"],
    "Fréchet lite0": lambda row: row["lite0"]["frechet"],
    "kernel lite0 ×10³": lambda row: 1e3 * row["lite0"]["kernel"],
    "Fréchet pixels": lambda row: row["pixels"]["frechet"],
    "kernel pixels ×10³": lambda row: 1e3 * row["pixels"]["kernel"],
    "precision": lambda row: row["lite0"]["precision"],
    "recall": lambda row: row["lite0"]["recall"],
    "class χ²/dof": lambda row: row["class_chi2"],
    "power, upper half": lambda row: float(np.mean(row["spectrum_ratio"][len(row["spectrum_ratio"]) // 2 :])),
    "near a training image": lambda row: row["close_share"],
}


def read_rows(folder: Path) -> Rows:
    """Rows by arm, in the order of steps.json; raises SystemExit for none."""
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*/row.json"))]
    if not rows:
        raise SystemExit(f"{folder}: no row.json in its folders; run study.py first")
    order = json.loads((folder / "steps.json").read_text(encoding="utf-8"))
    return {arm: found for arm in order if (found := [row for row in rows if row["arm"] == arm])}


def table(rows: Rows) -> str:
    lines = ["| arm | seeds | " + " | ".join(COLUMNS) + " |", "|---" * (2 + len(COLUMNS)) + "|"]
    for arm, found in rows.items():
        cells = [_mean([column(row) for row in found]) for column in COLUMNS.values()]
        lines.append(f"| {arm} | {len(found)} | " + " | ".join(cells) + " |")
    for some in {found[0]["size"]: found[0] for found in rows.values()}.values():
        known = [f"{some[name]['floor']:.3g} in {name}" for name in ("lite0", "pixels") if some[name]["floor"]]
        lines.append(
            f"\n{some['size']} px: {some['samples']} samples each; as many held-out images have a Fréchet distance of "
            f"{' and '.join(known) or 'nothing known: too few'}."
        )
    return "\n".join(lines)


def _mean(values: Sequence[float | None]) -> str:
    known = np.array([value for value in values if value is not None], dtype=float)
    if not len(known):
        return "-"
    spread = f" ± {known.std(ddof=1):.2g}" if len(known) > 1 and np.ptp(known) > 1e-9 * abs(known.mean()) else ""
    return f"{known.mean():.4g}{spread}" if known.mean() >= 1000 else f"{known.mean():.3g}{spread}"


def pareto(rows: Rows, features: str) -> Any:
    points = []
    for arm, found in rows.items():
        values = np.array([row[features]["frechet"] for row in found])
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        points.append((arm, float(np.mean([row["sample_gflop"] for row in found])), float(values.mean()), spread))
    return plotting.pareto(points, "GFLOP a sample", f"Fréchet distance ({features} features)", "equal training time")


def samples(rows: Rows, folder: Path, count: int = 12) -> Any:
    from study import folder_of

    shown = {}
    for arm, found in rows.items():
        images = np.load(folder_of(folder, arm, found[0]["seed"]) / "samples.npz")["images"][:count]
        shown[textwrap.fill(arm, 14)] = list(np.moveaxis(images, 3, 1) / 127.5 - 1)
    return plotting.images(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of study.py")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER")
    args = parser.parse_args()
    rows = read_rows(args.folder)
    print(table(rows))
    write_json(args.folder / "rows.json", [row for found in rows.values() for row in found])
    pictures = args.pictures or args.folder
    pictures.mkdir(parents=True, exist_ok=True)
    plotting.save(pareto(rows, "lite0"), pictures / "quality.png", dpi=100)
    plotting.save(samples(rows, args.folder), pictures / "samples.png", dpi=100)


if __name__ == "__main__":
    main()
