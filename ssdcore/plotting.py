"""Figures. Each function returns a matplotlib Figure for the caller to show or save; matplotlib is imported inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ssdcore.process import LinearDiffusion

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, distinct under the common colour vision deficiencies; the line styles differ as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))


def _figure(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * columns, 3.6 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _line(axes: Axes, index: int, x: np.ndarray, y: np.ndarray, label: str, step: bool = False) -> None:
    kind = "steps-post" if step else "default"
    axes.plot(x, y, color=COLOURS[index % 7], linestyle=_STYLES[index % 7], label=label, drawstyle=kind)


def _resolution(axes: Axes, processes: Mapping[str, LinearDiffusion]) -> None:
    for i, (name, proc) in enumerate(processes.items()):
        t = np.arange(proc.steps + 1)
        _line(axes, i, t, np.array([proc.shape(int(k))[0] for k in t]), name, step=True)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel="time t (steps)", ylabel="size of x_t (pixels a side)", title="Resolution")
    axes.legend(fontsize="small")


def schedules(processes: Mapping[str, LinearDiffusion]) -> Figure:
    """Size and log signal-to-noise ratio over time of named processes."""
    figure, ((left, right),) = _figure(1, 2)
    _resolution(left, processes)
    for i, (name, proc) in enumerate(processes.items()):
        _line(right, i, np.arange(1, proc.steps + 1), proc.noise.log_snr(), name)
    right.set(xlabel="time t (steps)", ylabel="log(α²/σ²) (nats)", title="Signal-to-noise ratio of x_t")
    return figure


def design(
    processes: Mapping[str, LinearDiffusion],
    points: Mapping[str, tuple[float, float]],
    information: np.ndarray,
    sizes: Sequence[int],
    nats: float,
) -> Figure:
    """A designed schedule beside others.

    processes    named processes, for their sizes over time
    points       name -> (cost, error), both relative to the full-size chain
    information  (levels, T) in nats, from `ssdcore.oracle.level_information`;  sizes  pixels a side of each level
    nats         the loss below which a level change counts as free: the bound that is drawn
    """
    figure, ((resolution, pareto, loss),) = _figure(1, 3)
    _resolution(resolution, processes)
    for i, (name, (cost, error)) in enumerate(points.items()):
        pareto.plot([cost], [error], linestyle="none", marker="osD^vPX*"[i % 8], color=COLOURS[i % 7], label=name)
    pareto.set_yscale("log")
    pareto.set(xlabel="cost (share of full size)", ylabel="squared Fréchet error (multiple of full size)")
    pareto.set_title("Error against cost")
    pareto.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    times = np.arange(1, information.shape[1] + 1)
    for k in range(1, len(information)):
        lost = np.maximum(information[k - 1] - information[k], np.finfo(np.float64).tiny)
        _line(loss, k - 1, times, lost, f"{sizes[k - 1]} to {sizes[k]} pixels")
    loss.axhline(nats, color="0.4", linewidth=0.8)
    loss.annotate(f"free below {nats:g} nats", (times[0], nats), fontsize="small", va="bottom")
    loss.set(xlabel="time t of the change (steps)", ylabel="information lost (nats a channel)", yscale="log")
    loss.set_ylim(bottom=nats / 1e3)
    loss.set_title("What a level change loses")
    loss.legend(fontsize="small")
    return figure


def information(
    signal: np.ndarray, shares: Mapping[str, np.ndarray], mutual: np.ndarray, sizes: Sequence[int]
) -> Figure:
    """Info(t) of the data beside Info(r) of named schedules, and the mutual information of each level.

    signal   (T,) from `ssdcore.oracle.signal_share`;  shares  name -> (T,) from `pixel_share`
    mutual   (levels, T) in nats;  sizes  pixels a side of each level
    """
    figure, ((left, right),) = _figure(1, 2)
    times = np.arange(1, len(signal) + 1)
    _line(left, 0, times, signal, "Info(t): signal-dominated pixels")
    for i, (name, share) in enumerate(shares.items(), start=1):
        _line(left, i, times, share, f"Info(r): {name}", step=True)
    left.set(xlabel="time t (steps)", ylabel="share of pixels", title="Signal left and pixels kept")
    left.legend(fontsize="small")
    for k, row in enumerate(mutual):
        _line(right, k, times, row, f"{sizes[k]} pixels a side")
    right.set(xlabel="time t (steps)", ylabel="I(x_0; x_t) (nats a channel)", yscale="log")
    right.set_title("Mutual information, Gaussian model")
    right.legend(fontsize="small")
    return figure
