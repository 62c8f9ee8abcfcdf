"""Figures. Each function returns a matplotlib Figure for the caller to show or `save`; matplotlib is imported inside.

::

    plotting.save(plotting.schedules({"mine": proc}), "schedules.png")

In a notebook a Figure that ends a cell is shown after ``%matplotlib inline``. The same arguments give the same figure.
"""

from __future__ import annotations

import io
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import array_api_compat
import numpy as np

from ssdcore._arrays import device_of, namespace_of, to_numpy, widest_dtype
from ssdcore.files import write_atomically
from ssdcore.process import LinearDiffusion

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, distinct under the common colour vision deficiencies; line styles and markers differ as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
FORMATS = ("png", "pdf", "svg")
_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))
_MARKERS = "osD^vPX*"
_LINE = 0.14  # inches between small lines of text
_UNDATED = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
_LEAST_RATIO = 1e-4  # of a measurement to its tolerance; smaller ones, zero among them, are drawn there


def _figure(rows: int, columns: int, width: float = 5.2, height: float = 3.6) -> tuple[Figure, np.ndarray]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('figures need matplotlib: pip install "ssdcore[plot]"') from error
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def check_target(path: str | os.PathLike[str]) -> None:
    """Raises ValueError unless `path` names a format that `save` writes, in a folder that exists."""
    target = Path(path)
    if target.suffix.lower().removeprefix(".") not in FORMATS:
        raise ValueError(f"{target} names no figure format; end it in one of {', '.join(f'.{f}' for f in FORMATS)}")
    if not target.absolute().parent.is_dir():
        raise ValueError(f"no such folder: {target.absolute().parent}")


def save(figure: Figure, path: str | os.PathLike[str], dpi: float = 150) -> None:
    """Write a figure as png, pdf or svg, as the suffix says: whole or not at all, the same bytes for the same figure.

    Raises:
        ValueError: For another suffix or a folder that is not there.
    """
    from matplotlib import rc_context

    check_target(path)
    target = Path(path)
    kind = target.suffix.lower().removeprefix(".")
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "ssdcore"}):  # else every id in the file is random
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=_UNDATED[kind])
    write_atomically(target, lambda file: file.write_bytes(buffer.getvalue()))


# ---- curves


def _line(axes: Axes, index: int, x: Any, y: Any, label: str, step: bool = False) -> None:
    axes.plot(
        x,
        y,
        color=COLOURS[index % 7],
        linestyle=_STYLES[(index + index // 7) % 7],
        linewidth=max(1.4, 2.6 - 0.6 * index),  # where curves coincide, those below show at the sides
        label=label,
        drawstyle="steps-post" if step else "default",
    )


def lines(curves: Mapping[str, Sequence[Any]], x: str, y: str, title: str = "", log: str = "") -> Figure:
    """Named curves in one pair of axes.

    Args:
        curves: name -> (x values, y values), or (x values, y values, spread): bars of ± spread about y
        x, y: labels of the axes, with units
        log: which axes are logarithmic: "", "x", "y" or "xy"
    """
    if log not in ("", "x", "y", "xy"):
        raise ValueError(f'log: expected "", "x", "y" or "xy", got {log!r}')
    figure, ((axes,),) = _figure(1, 1, 6.4)
    for i, (name, curve) in enumerate(curves.items()):
        if len(curve) not in (2, 3) or any(len(values) != len(curve[0]) for values in curve):
            raise ValueError(f"curve {name!r}: expected (x, y) or (x, y, spread) of one length")
        _line(axes, i, curve[0], curve[1], name)
        if len(curve) == 3:
            axes.errorbar(*curve, fmt="none", ecolor=COLOURS[i % 7], capsize=3)
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.set(**{f"{axis}scale": "log" for axis in log})
    if len(curves) > 1:
        axes.legend(fontsize="small")
    return figure


def _resolution(axes: Axes, processes: Mapping[str, LinearDiffusion]) -> None:
    for i, (name, proc) in enumerate(processes.items()):
        t = np.arange(proc.steps + 1)
        _line(axes, i, t, np.array([proc.shape(int(k))[0] for k in t]), name, step=True)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel="time t (steps)", ylabel="size of x_t (pixels per side)", title="Resolution")
    axes.legend(fontsize="small")


def schedules(processes: Mapping[str, LinearDiffusion]) -> Figure:
    """Sizes and log signal-to-noise ratios over time of named processes.

    In the middle the ratio of a pixel, log α_t²/σ_t². To the right that of the mode that the degradation keeps best,
    log ‖M_{0→t}‖²/σ_t²: averaging pixels lowers its noise as well as its signal, so that a process which adds the noise
    of a pixel back at a change of size loses signal there.
    """
    figure, ((left, middle, right),) = _figure(1, 3)
    _resolution(left, processes)
    for i, (name, proc) in enumerate(processes.items()):
        t = np.arange(1, proc.steps + 1)
        _line(middle, i, t, proc.noise.log_snr(), name)
        with np.errstate(divide="ignore"):
            kept = np.log([proc.degradation(0, int(k)).norm() for k in t])
        _line(right, i, t, 2 * (kept - np.log(proc.noise.sigma[1:])), name)
    middle.set(xlabel="time t (steps)", ylabel="log α²/σ² (nats)", title="Signal-to-noise ratio of a pixel")
    right.set(xlabel="time t (steps)", ylabel="log ‖M‖²/σ² (nats)", title="… of the mode kept best")
    return figure


def radial_spectrum(images: Any, axes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Power over spatial frequency: (frequencies 1, 2, …, min(h, w)/2 in cycles per shortest side, power there).

    ::

        power(k) = mean of |DFT(w·(x − mean of x))|² / Σw² over the frequencies with round(|f|) = k

    Each image is less its own mean and under a Hann window w, which keeps the jump between opposite edges out. White
    noise of standard deviation σ has the power σ², except at 1 and 2, which the window mixes with the mean.

    Args:
        images: (..., h, w) of any array library, on any device, leading axes averaged over; uint8 as byte/127.5 − 1
        axes: how many trailing axes are spatial: 1 for signals, 3 for volumes
    """
    array = images if array_api_compat.is_array_api_obj(images) else np.asarray(images)
    if not 0 < axes <= array.ndim or 0 in array.shape:
        raise ValueError(f"radial_spectrum: expected arrays with {axes} spatial axes, got the shape {array.shape}")
    xp, size = namespace_of(array), tuple(array.shape[-axes:])
    wide, spatial = widest_dtype(xp, array), tuple(range(-axes, 0))
    if not xp.isdtype(array.dtype, "real floating"):
        byte = array.dtype == xp.uint8
        array = xp.astype(array, xp.float32)
        array = array / 127.5 - 1 if byte else array
    window = np.ones(())
    for n in size:
        window = window[..., None] * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n) if n > 1 else np.ones(1))
    array = array - xp.mean(array, axis=spatial, keepdims=True)
    array = array * xp.asarray(window, dtype=array.dtype, device=device_of(array))
    modes = xp.reshape(xp.abs(xp.fft.fftn(array, axes=spatial)) ** 2, (-1, *size))
    power = to_numpy(xp.sum(modes, axis=0, dtype=wide)) / modes.shape[0] / np.sum(window**2)
    # In cycles along the shortest side, so that all axes measure the same length.
    along = np.meshgrid(*(np.fft.fftfreq(n) * min(size) for n in size), indexing="ij")
    ring = np.rint(np.sqrt(sum(f**2 for f in along))).astype(int)
    frequencies = np.arange(1, min(size) // 2 + 1)
    return frequencies, np.array([power[ring == k].mean() for k in frequencies])


def spectra(images: Mapping[str, Any], noise: Mapping[str, float] | None = None) -> Figure:
    """Radial power spectra of named sets of images, and of the white noise that is added to them.

    Args:
        images: name -> (..., h, w), as `radial_spectrum` takes them
        noise: name -> standard deviation of white noise: a thin line in the colour of the images of that name, as
            far as their pixels resolve it
    """
    figure, ((axes,),) = _figure(1, 1, 6.4)
    levels = {} if noise is None else noise
    if unknown := [name for name in levels if name not in images]:
        raise ValueError(f"noise: there are no images named {unknown[0]!r}; they are {', '.join(images)}")
    for i, (name, values) in enumerate(images.items()):
        frequencies, power = radial_spectrum(values)
        _line(axes, i, frequencies, power, name)
        if name in levels:
            level = np.full(len(frequencies), levels[name] ** 2)
            axes.plot(frequencies, level, color=COLOURS[i % 7], linewidth=0.8)
    if levels:
        axes.plot([], [], color="0.4", linewidth=0.8, label="thin: the noise")
    axes.set(xscale="log", yscale="log", title="Radial power spectra")
    axes.set(xlabel="spatial frequency (cycles per side)", ylabel="power of a mode (pixel value²)")
    axes.legend(fontsize="small")
    return figure


# ---- design and information


def design(
    processes: Mapping[str, LinearDiffusion],
    points: Mapping[str, tuple[float, float]],
    information: np.ndarray,
    sizes: Sequence[int],
    nats: float,
) -> Figure:
    """A designed schedule beside others.

    Args:
        processes: named processes, for their sizes over time
        points: name -> (cost, error), both relative to the full-size chain
        information: (levels, T) in nats, from `ssdcore.oracle.level_information`
        sizes: pixels per side of each level
        nats: the loss below which a level change counts as free: the bound that is drawn
    """
    figure, ((resolution, loss, pareto),) = _figure(1, 3)
    _resolution(resolution, processes)
    times = np.arange(1, information.shape[1] + 1)
    for k in range(1, len(information)):
        lost = np.maximum(information[k - 1] - information[k], np.finfo(np.float64).tiny)
        _line(loss, k - 1, times, lost, f"{sizes[k - 1]} to {sizes[k]} pixels")
    loss.axhline(nats, color="0.4", linewidth=0.8)
    loss.annotate(f"free below {nats:g} nats", (times[0], nats), fontsize="small", va="bottom")
    loss.set(xlabel="time t of the change (steps)", ylabel="information lost (nats per channel)", yscale="log")
    loss.set_ylim(bottom=nats / 1e3)
    loss.set_title("What a level change loses")
    loss.legend(fontsize="small")
    for i, (name, (cost, error)) in enumerate(points.items()):
        pareto.plot([cost], [error], linestyle="none", marker=_MARKERS[i % 8], color=COLOURS[i % 7], label=name)
    pareto.set_yscale("log")
    pareto.set(xlabel="cost (share of full size)", ylabel="error (multiple of full size)")
    pareto.set_title("Squared Fréchet error against cost")
    pareto.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def information(
    signal: np.ndarray, shares: Mapping[str, np.ndarray], mutual: np.ndarray, sizes: Sequence[int]
) -> Figure:
    """Info(t) of the data beside Info(r) of named schedules, and the mutual information of each level.

    Args:
        signal: (T,) from `ssdcore.oracle.signal_share`
        shares: name -> (T,) from `pixel_share`
        mutual: (levels, T) in nats
        sizes: pixels per side of each level
    """
    figure, ((left, right),) = _figure(1, 2)
    times = np.arange(1, len(signal) + 1)
    _line(left, 0, times, signal, "Info(t): signal-dominated pixels")
    for i, (name, share) in enumerate(shares.items(), start=1):
        _line(left, i, times, share, f"Info(r): {name}", step=True)
    left.set(xlabel="time t (steps)", ylabel="share of pixels", title="Signal left and pixels kept")
    left.legend(fontsize="small")
    for k, row in enumerate(mutual):
        _line(right, k, times, row, f"{sizes[k]} pixels per side")
    right.set(xlabel="time t (steps)", ylabel="I(x_0; x_t) (nats per channel)", yscale="log")
    right.set_title("Mutual information, Gaussian model")
    right.legend(fontsize="small")
    return figure


def pareto(rows: Sequence[tuple[str, float, float, float]], cost: str, quality: str, title: str = "") -> Figure:
    """Quality against cost, lower being better in both, and the front of what is worth its cost.

    The grey line is the best quality to be had up to each cost. An axis is logarithmic where its values are positive
    and span at least a factor of ten. Raises ValueError for no rows or a number that is not finite.

    Args:
        rows: (label, cost, quality, spread): bars of ± spread (0: none); rows of one label are joined in order of
            cost
        cost: label of the cost axis, with units
        quality: of the quality axis
    """
    if not rows:
        raise ValueError("pareto: expected at least one row (label, cost, quality, spread)")
    for row in rows:
        if not all(math.isfinite(value) for value in row[1:]):
            raise ValueError(f"pareto: expected finite numbers, got {tuple(row)}")
    figure, ((axes,),) = _figure(1, 1, 7.0, 4.4)
    front: list[tuple[float, float]] = []
    for _, price, value, _ in sorted(rows, key=lambda row: (row[1], row[2])):
        if not front or value < front[-1][1]:
            front.append((price, value))
    last = max(row[1] for row in rows)
    axes.step(
        [p for p, _ in front] + [last],
        [v for _, v in front] + [front[-1][1]],
        where="post",
        color="0.7",
        linewidth=4,
        solid_capstyle="butt",
        zorder=0,
        label="best up to this cost",
    )
    for i, label in enumerate(dict.fromkeys(row[0] for row in rows)):
        points = sorted(row[1:] for row in rows if row[0] == label)
        prices, values, spreads = (np.array(column) for column in zip(*points))
        axes.errorbar(
            prices,
            values,
            yerr=spreads if spreads.any() else None,
            color=COLOURS[i % 7],
            marker=_MARKERS[i % 8],
            linestyle=_STYLES[i % 7],
            capsize=3,
            label=label,
        )
    for axis, numbers in (("x", [row[1] for row in rows]), ("y", [row[2] for row in rows])):
        if min(numbers) > 0 and max(numbers) >= 10 * min(numbers):
            axes.set(**{f"{axis}scale": "log"})
    axes.set(xlabel=cost, ylabel=quality, title=title)
    axes.legend(fontsize="small")
    return figure


def checks(ratios: Mapping[str, Mapping[str, float]], title: str = "") -> Figure:
    """How near each conformance check came to its tolerance: beyond the line it failed.

    Args:
        ratios: series (a backend, a dtype, a subject) -> check -> worst measured error as a share of its tolerance;
            infinite where the check broke off, NaN where it measured no number
    """
    names = list(dict.fromkeys(name for series in ratios.values() for name in series))
    if not names:
        raise ValueError("checks: expected at least one series of at least one check")
    finite = [ratio for series in ratios.values() for ratio in series.values() if math.isfinite(ratio)]
    most = 10 * max(1.0, *finite, 0.0)
    figure, ((axes,),) = _figure(1, 1, 7.0, 0.9 + 0.24 * len(names))
    for i, (label, series) in enumerate(ratios.items()):
        # where a check broke off, or measured no number, it failed by the most
        shown = [min(max(ratio, _LEAST_RATIO), most) if ratio == ratio else most for ratio in series.values()]
        shift = 0.6 * ((i + 0.5) / len(ratios) - 0.5)  # series side by side within a check's row
        where = [names.index(name) + shift for name in series]
        style: dict[str, Any] = {"linestyle": "none", "marker": _MARKERS[i % 8], "color": COLOURS[i % 7]}
        axes.plot(shown, where, label=label, markersize=5, **style)
    axes.axvline(1.0, color="0.2", linewidth=1)
    axes.set(xscale="log", xlim=(_LEAST_RATIO / 2, 2 * most), xlabel="worst error as a share of its tolerance")
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.set(ylim=(len(names) - 0.5, -0.5), title=title)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


# ---- pictures


def images(rows: Mapping[str, Sequence[Any]], titles: Sequence[str] = ()) -> Figure:
    """Rows of images, a pixel as large everywhere, so that each image shows its true size.

    Where sizes differ, each is written below its image. A name that is longer than its row is broken into lines.

    Args:
        rows: name -> images (h, w), (1, h, w) or (3, h, w) with values in [−1, 1], clipped
        titles: one above each column
    """
    pixels = {name: [_pixels(image, name) for image in row] for name, row in rows.items()}
    sizes = {image.shape[:2] for row in pixels.values() for image in row}
    if not sizes:
        raise ValueError("images: expected at least one row of at least one image")
    columns = max(len(row) for row in pixels.values())
    if titles and len(titles) != columns:
        raise ValueError(f"titles: expected {columns}, one per column, got {len(titles)}")
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    tile = 1.15
    caption = 0.22 if len(sizes) > 1 else 0.05
    labels = [_broken(name, 0.9 * tile) for name in pixels]
    margin = max(label.count("\n") for label in labels) * _LINE  # of the lines below the first
    figure, grid = _figure(len(pixels), columns, tile * width / max(height, width) + margin / columns, tile + caption)
    for cells, label, row in zip(grid, labels, pixels.values()):
        cells[0].set_ylabel(label, fontsize="small")
        for j, axes in enumerate(cells):
            axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0), aspect="equal")
            axes.spines[:].set_visible(False)
            if j >= len(row):
                continue
            image = row[j]
            top, left = (height - image.shape[0]) / 2, (width - image.shape[1]) / 2
            extent = (left, left + image.shape[1], top + image.shape[0], top)
            axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=extent)
            if len(sizes) > 1:
                axes.set_xlabel(f"{image.shape[0]}×{image.shape[1]}", fontsize="x-small")
    for axes, title in zip(grid[0], titles):
        axes.set_title(title, fontsize="small")
    return figure


def _broken(text: str, length: float) -> str:
    """`text` in lines of small print that are at most `length` inches long, as far as single letters are."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(size="small")

    def fits(line: str) -> bool:
        return not line.strip() or TextPath((0, 0), line, prop=font).get_extents().width <= 72 * length

    lines = []
    for line in text.split("\n"):
        tries = (textwrap.wrap(line, letters) for letters in range(len(line), 0, -1))
        lines += [line] if fits(line) else next((parts for parts in tries if all(map(fits, parts))), [line])
    return "\n".join(lines)


def _pixels(image: Any, name: str) -> np.ndarray:
    """(h, w) or (h, w, 3) in [0, 1]."""
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[0] == 3:
        array = np.moveaxis(array, 0, -1)
    elif array.ndim != 2:
        raise ValueError(f"row {name!r}: expected images (h, w), (1, h, w) or (3, h, w), got {np.shape(image)}")
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"row {name!r}: expected floating-point images in [−1, 1], got {array.dtype}")
    return np.clip((array.astype(np.float64) + 1) / 2, 0, 1)


def process_strip(processes: Mapping[str, LinearDiffusion], image: Any, times: Sequence[int], seed: int = 0) -> Figure:
    """x_t ~ q(x_t | x_0) at its true size over time, a row for each named process.

    Args:
        image: x_0 in [−1, 1], (h, w), (1, h, w) or (3, h, w), a numpy array
        seed: of the noise, drawn anew for each time; processes with states of one size share it
    """
    rows = {}
    for name, proc in processes.items():
        states = []
        for t in times:
            law = proc.marginal(image, t)
            states.append(law.sample(np.random.default_rng((seed, t)).standard_normal(law.mean.shape)))
        rows[name] = states
    return images(rows, [f"t = {t}" for t in times])


def heatmaps(
    maps: Mapping[str, np.ndarray], x: str, y: str, value: str, centre: float | None = None, first: int = 0
) -> Figure:
    """Named matrices side by side on one colour scale.

    Args:
        x, y: labels of the axes (columns, rows)
        value: of the colours, with units
        centre: the value that is drawn white, for values that differ in sign from it; None: from the least to the
            most
        first: number of the first row and column
    """
    figure, (cells,) = _figure(1, len(maps), 4.2, 3.4)
    values = np.concatenate([np.ravel(matrix) for matrix in maps.values()])
    if centre is None:
        scale: dict[str, Any] = {"cmap": "cividis", "vmin": values.min(), "vmax": values.max()}
    else:
        reach = np.abs(values - centre).max()
        scale = {"cmap": "PuOr", "vmin": centre - reach, "vmax": centre + reach}
    for axes, (name, matrix) in zip(cells, maps.items()):
        rows, columns = np.shape(matrix)
        extent = (first - 0.5, first + columns - 0.5, first + rows - 0.5, first - 0.5)
        drawn = axes.imshow(matrix, extent=extent, interpolation="nearest", **scale)
        axes.set(title=name, xlabel=x, ylabel=y)
        axes.locator_params(integer=True)
    figure.colorbar(drawn, ax=list(cells), label=value)
    return figure
