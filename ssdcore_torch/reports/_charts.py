"""Line charts as SVG text, for a page that needs no plotting library and no network."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 12, 40
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f")
MOST_POINTS = 400
"""A line of more points is thinned to as many means: a chart is no wider than that in pixels."""

Points = Sequence[tuple[float, float]]


def line_chart(series: Mapping[str, Points], x_label: str, y_label: str, log: bool = False) -> str:
    """An SVG of one line per name, a legend below it; "" where there is nothing to show.

    Points that are not finite, or not positive where `log`, are left out.
    """
    kept = {name: _thinned([p for p in points if _shown(p, log)]) for name, points in series.items()}
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return ""
    xs = [x for points in kept.values() for x, _ in points]
    ys = [y for points in kept.values() for _, y in points]
    x_low, x_high = min(xs), max(xs)
    x_ticks = _ticks(x_low, x_high)
    y_ticks = _log_ticks(min(ys), max(ys)) if log else _ticks(0.0, max(ys))
    y_low, y_high = min(*ys, *y_ticks), max(*ys, *y_ticks)

    def across(x: float) -> float:
        return LEFT + _share(x, x_low, x_high) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        share = _share(math.log(y), math.log(y_low), math.log(y_high)) if log else _share(y, y_low, y_high)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(y_label)}">']
    for y in y_ticks:
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(y):.1f}" y2="{down(y):.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{down(y) + 4:.1f}" text-anchor="end">{y:.4g}</text>')
    for x in x_ticks:
        anchor = "end" if across(x) > WIDTH - 2 * RIGHT else "middle"
        parts.append(f'<text x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="{anchor}">{x:g}</text>')
    parts.append(f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{html.escape(x_label)}</text>')
    for colour, points in zip(_colours(len(kept)), kept.values()):
        if len(points) == 1:
            (x, y), *_ = points
            parts.append(f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="3" fill="{colour}"/>')
        else:
            line = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)
            parts.append(f'<polyline points="{line}" stroke="{colour}"/>')
    parts.append("</svg>")
    if len(kept) > 1:
        named = zip(_colours(len(kept)), kept)
        keys = (f'<li><span style="background:{colour}"></span>{html.escape(name)}</li>' for colour, name in named)
        parts.append(f'<ul class="legend">{"".join(keys)}</ul>')
    return "".join(parts)


def _shown(point: tuple[float, float], log: bool) -> bool:
    x, y = point
    return math.isfinite(x) and math.isfinite(y) and (y > 0 or not log)


def _thinned(points: Points) -> Points:
    size = math.ceil(len(points) / MOST_POINTS)
    if size <= 1:
        return points
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers from `low` to `high`."""
    if high <= low:
        return [low]
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough)
    first, last = math.ceil(low / step), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten around `low` … `high`; powers of ten alone over more than three of these."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    digits = (1.0,) if last - first > 3 else (1.0, 2.0, 5.0)
    every = [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
    below, above = [t for t in every if t <= low], [t for t in every if t >= high]
    return [t for t in every if (below or every)[-1 if below else 0] <= t <= (above or every)[0 if above else -1]]
