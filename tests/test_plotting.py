"""Figures: what is drawn in them, read back from matplotlib's objects, and the pictures of a sampler's chain."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ssdcore as ssd
from ssdcore import _verify, oracle
from ssdcore.__main__ import main

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure

from ssdcore import plotting

NOISE = ssd.NoiseSchedule.linear(50)
LEVELS = ssd.ResolutionSchedule.equal(50, 3)
FULL = ssd.LinearDiffusion.identity((16, 16), NOISE)
PAPER = ssd.LinearDiffusion.resize((16, 16), NOISE, LEVELS, matched=False)
MATCHED = ssd.LinearDiffusion.resize((16, 16), NOISE, LEVELS)
PROCESSES = {"full": FULL, "paper": PAPER, "matched": MATCHED}
IMAGES = np.random.default_rng(0).uniform(-1, 1, (5, 3, 16, 16))
ROWS = [("a", 1.0, 9.0, 1.0), ("b", 2.0, 4.0, 0.5), ("a", 3.0, 5.0, 0.0), ("b", 4.0, 3.0, 0.5)]


def curve(axes: Any, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Data of the line with this label."""
    (line,) = [line for line in axes.get_lines() if line.get_label() == label]
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


FIGURES: dict[str, Callable[[], Figure]] = {
    "lines": lambda: plotting.lines({"a": ([1, 2], [3, 4], [0.1, 0.2]), "b": ([1, 2], [5, 6])}, "x (s)", "y (m)"),
    "schedules": lambda: plotting.schedules(PROCESSES),
    "spectra": lambda: plotting.spectra({"a": IMAGES}, {"a": 0.5}),
    "design": lambda: plotting.design(
        {"paper": PAPER}, {"full": (1.0, 1.0), "paper": (0.5, 3.0)}, np.array([[3.0, 2.0], [2.0, 1.9]]), [16, 8], 0.5
    ),
    "information": lambda: plotting.information(
        oracle.signal_share(IMAGES, NOISE), {"paper": oracle.pixel_share(PAPER)}, np.ones((2, 50)), [16, 8]
    ),
    "pareto": lambda: plotting.pareto(ROWS, "cost (s)", "distance (pixel values²)"),
    "checks": lambda: plotting.checks({"float64": {"adjoint": 0.1, "norm": 0.0}}),
    "heatmaps": lambda: plotting.heatmaps({"a": np.eye(3)}, "column", "row", "entry"),
    "images": lambda: plotting.images({"a": IMAGES}),
    "process_strip": lambda: plotting.process_strip(PROCESSES, IMAGES[0], [1, 25, 50]),
}


@pytest.mark.parametrize("name", [name for name in FIGURES if name not in ("images", "process_strip")])
def test_axes_are_labelled(name):
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    charts = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert charts
    # the rows of `checks` have names instead
    assert all(axes.get_xlabel() and (axes.get_ylabel() or name == "checks") for axes in charts)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_the_same_bytes_every_time(name, tmp_path):
    files = [tmp_path / f"{attempt}.svg" for attempt in range(2)]
    for file in files:
        plotting.save(FIGURES[name](), file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("PDF", b"%PDF"), ("svg", b"<?xml")])
def test_save_writes_the_format_of_the_suffix(suffix, magic, tmp_path):
    files = [tmp_path / f"{i}.{suffix}" for i in range(2)]
    for file in files:
        plotting.save(FIGURES["lines"](), file, dpi=50)
    assert files[0].read_bytes().startswith(magic)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_save_leaves_nothing_half_written(tmp_path, monkeypatch):
    figure, file = FIGURES["lines"](), tmp_path / "a.png"
    with pytest.raises(ValueError, match=r"names no figure format; end it in one of \.png, \.pdf, \.svg"):
        plotting.save(figure, tmp_path / "a.txt")
    with pytest.raises(ValueError, match="no such folder"):
        plotting.save(figure, tmp_path / "none" / "a.png")
    file.write_bytes(b"the figure before")
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        plotting.save(figure, file)
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("a.png", b"the figure before")]


def test_without_matplotlib_the_error_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "ssdcore\[plot\]"'):
        FIGURES["lines"]()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["verify", "--plot", "a.png"]) == 2
    assert 'pip install "ssdcore[plot]"' in capsys.readouterr().err


# ---- curves


def test_lines():
    (axes,) = plotting.lines({"a": ([1, 2], [3, 4], [0.1, 0.2]), "b": ([1, 2], [5, 6])}, "x", "y", "title", "xy").axes
    assert [values.tolist() for values in curve(axes, "b")] == [[1, 2], [5, 6]]
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_title()) == ("log", "log", "title")
    ((*_, bars),) = [bar.lines for bar in axes.containers]
    np.testing.assert_allclose([segment[:, 1] for segment in bars[0].get_segments()], [[2.9, 3.1], [3.8, 4.2]])
    colours = [line.get_color() for line in axes.get_lines() if not line.get_label().startswith("_")]
    assert colours == list(plotting.COLOURS[:2])
    with pytest.raises(ValueError, match="curve 'a': expected"):
        plotting.lines({"a": ([1, 2], [3])}, "x", "y")
    with pytest.raises(ValueError, match="got 'z'"):
        plotting.lines({}, "x", "y", log="z")


def test_schedules_show_what_a_change_of_size_does_to_the_signal():
    sizes, pixel, kept = plotting.schedules(PROCESSES).axes
    assert curve(sizes, "paper")[1].tolist() == [PAPER.shape(t)[0] for t in range(51)]
    np.testing.assert_array_equal(curve(pixel, "paper")[1], curve(pixel, "full")[1])
    first, second = ssd.Resize((16, 16), (8, 8)), ssd.Resize((8, 8), (4, 4))
    lost = {LEVELS.starts[0]: first.norm(), LEVELS.starts[1]: (second @ first).norm() / first.norm()}
    regained = {LEVELS.starts[0]: first.norm(), LEVELS.starts[1]: second.norm()}
    for t in range(2, 51):
        before, paper, matched = (np.diff(curve(kept, name)[1])[t - 2] for name in PROCESSES)
        assert paper - before == pytest.approx(2 * math.log(lost.get(t, 1.0)), abs=1e-12)
        assert matched - before == pytest.approx(2 * math.log(lost.get(t, 1.0) / regained.get(t, 1.0)), abs=1e-12)


@pytest.mark.parametrize(("i", "j"), [(3, 0), (3, 4), (0, 5)])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_radial_spectrum_puts_a_wave_at_its_frequency(i, j, backend):
    n = 16
    turn = 2 * np.pi * np.arange(n) / n
    wave = 3 * np.cos(i * turn[:, None] + j * turn + 0.7)
    if backend == "torch":
        wave = pytest.importorskip("torch").from_numpy(wave)
    frequencies, power = plotting.radial_spectrum(wave)
    assert frequencies.tolist() == list(range(1, 9))
    # The window's transform is (−1/4, 1/2, −1/4) along each axis, about (i, j) and about (−i, −j).
    line = {-1: -0.25, 0: 0.5, 1: -0.25}
    modes = np.zeros((n, n))
    for sign in (1, -1):
        for a in line:
            for b in line:
                modes[(sign * i + a) % n, (sign * j + b) % n] += (3 / 2 * line[a] * line[b] * n**2) ** 2
    modes /= (3 / 8 * n) ** 2
    along = np.fft.fftfreq(n) * n
    ring = np.rint(np.hypot(along[:, None], along))
    expected = [modes[ring == k].mean() for k in frequencies]
    np.testing.assert_allclose(power, expected, rtol=1e-12, atol=1e-10)


def test_radial_spectrum_of_white_noise_is_its_variance():
    count, n = 400, 8
    noise = 0.7 * np.random.default_rng(0).standard_normal((count, n, n + 4))
    _, power = plotting.radial_spectrum(noise)
    # a ring has at least 8 frequencies, about 3 of them apart under the window
    np.testing.assert_allclose(power[2:], 0.49, rtol=6 / math.sqrt(count))
    np.testing.assert_allclose(plotting.radial_spectrum(noise.reshape(count, -1), 1)[1][2:].mean(), 0.49, rtol=0.02)
    bytes_ = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    floats = (bytes_ / 127.5 - 1).astype(np.float32)
    np.testing.assert_allclose(plotting.radial_spectrum(bytes_)[1], plotting.radial_spectrum(floats)[1], rtol=1e-5)
    np.testing.assert_allclose(
        plotting.radial_spectrum(bytes_.tolist())[1] / 127.5**2, plotting.radial_spectrum(floats)[1], rtol=1e-5
    )
    for wrong, axes in ((np.zeros(5), 2), (np.zeros((0, 4, 4)), 2), (np.zeros((4, 4)), 0)):
        with pytest.raises(ValueError, match=f"expected arrays with {axes} spatial axes, got the shape"):
            plotting.radial_spectrum(wrong, axes)


def test_spectra():
    (axes,) = plotting.spectra({"clean": IMAGES, "t = 50": MATCHED.clean(IMAGES, 50)}, {"t = 50": 0.5}).axes
    np.testing.assert_array_equal(curve(axes, "clean"), plotting.radial_spectrum(IMAGES))
    thin = [line for line in axes.get_lines() if line.get_linewidth() < 1 and len(line.get_xdata())]
    assert [(line.get_ydata().tolist(), max(line.get_xdata())) for line in thin] == [([0.25] * 2, 2)]
    with pytest.raises(ValueError, match="no images named 'x'; they are clean"):
        plotting.spectra({"clean": IMAGES}, {"x": 1.0})


# ---- design, information, quality


def test_design():
    sizes, loss, error = FIGURES["design"]().axes
    assert curve(sizes, "paper")[1][-1] == 4
    np.testing.assert_allclose(curve(loss, "16 to 8 pixels")[1], [1.0, 0.1])
    assert [values.tolist() for values in curve(error, "paper")] == [[0.5], [3.0]]
    assert error.get_xlabel() == "cost (share of full size)"


def test_information():
    left, right = FIGURES["information"]().axes
    np.testing.assert_array_equal(curve(left, "Info(r): paper")[1], oracle.pixel_share(PAPER))
    assert curve(right, "8 pixels per side")[1].tolist() == [1.0] * 50


points = st.tuples(
    st.sampled_from(["a", "b", "c"]),
    st.floats(0, 100, width=32),
    st.floats(0, 100, width=32),
    st.floats(0, 5, width=32),
)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(points, min_size=1, max_size=8))
def test_the_front_is_the_best_quality_up_to_each_cost(rows):
    (axes,) = plotting.pareto(rows, "cost", "quality").axes
    costs, qualities = curve(axes, "best up to this cost")
    for _, cost, _, _ in rows:
        best = min(quality for _, price, quality, _ in rows if price <= cost)
        assert qualities[costs <= cost][-1] == best
    assert costs[-1] == max(row[1] for row in rows)


def test_pareto():
    (axes,) = plotting.pareto(ROWS, "cost (s)", "distance", "title").axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("cost (s)", "distance", "title")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["best up to this cost", "a", "b"]
    series = {bar.get_label(): bar.lines for bar in axes.containers}
    assert series["b"][0].get_xdata().tolist() == [2.0, 4.0]
    assert [segment[:, 1].tolist() for segment in series["b"][2][0].get_segments()] == [[3.5, 4.5], [2.5, 3.5]]
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear")
    (wide,) = plotting.pareto([("a", 1, 2, 0), ("a", 10, 1, 0)], "cost", "quality").axes
    assert (wide.get_xscale(), wide.get_yscale()) == ("log", "linear")
    with pytest.raises(ValueError, match="at least one row"):
        plotting.pareto([], "cost", "quality")
    with pytest.raises(ValueError, match="expected finite numbers"):
        plotting.pareto([("a", 1, math.nan, 0)], "cost", "quality")


def test_no_two_curves_look_alike():
    (axes,) = plotting.lines({str(i): ([0, 1], [i, i]) for i in range(12)}, "x", "y").axes
    looks = [(line.get_color(), line._unscaled_dash_pattern, line.get_linestyle()) for line in axes.get_lines()]
    assert len(set(map(str, looks))) == 12


def test_checks_draw_failures_beyond_the_line_whatever_their_size():
    failed = {"norm": 20.0, "dtype": math.inf, "adjoint": math.nan}
    (axes,) = plotting.checks({"good": {"adjoint": 0.5, "norm": 0.0}, "bad": failed}).axes
    low, high = axes.get_xlim()
    good, bad = curve(axes, "good"), curve(axes, "bad")
    assert good[0].tolist() == [0.5, 1e-4]
    assert bad[0].tolist() == [20.0, 200.0, 200.0]
    assert all(low < value < high for value in [*good[0], *bad[0]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["adjoint", "norm", "dtype"]
    assert np.round(bad[1]).tolist() == [1, 2, 0]
    assert not set(good[1]) & set(bad[1])
    with pytest.raises(ValueError, match="at least one check"):
        plotting.checks({"a": {}})


def test_verify_draws_its_checks(monkeypatch, tmp_path, capsys):
    class Halved(ssd.Matrix):
        def norm(self):
            return 0.5 * super().norm()

    proof = {
        "name": "ddpm",
        "holds": True,
        "steps": 1,
        "false_variants": 0,
        "refuted": 0,
        "comparisons": 0,
        "agreed": 0,
        "passed": True,
    }
    monkeypatch.setattr(_verify, "prove_all", lambda: [proof])
    monkeypatch.setattr(_verify, "check_golden", lambda: _verify.Tally("golden"))
    monkeypatch.setattr(_verify, "shipped_operators", lambda: {"halved": Halved(np.eye(3))})
    monkeypatch.setattr(_verify, "_other_shapes", dict)
    monkeypatch.setattr(_verify, "shipped_processes", dict)
    drawn: list[Any] = []
    monkeypatch.setattr(plotting, "checks", lambda ratios, title: drawn.append(ratios) or FIGURES["lines"]())
    assert main(["verify", "--backend", "numpy", "--plot", str(tmp_path / "a.png")]) == 1
    assert f"wrote {tmp_path / 'a.png'}" in capsys.readouterr().out
    assert (tmp_path / "a.png").stat().st_size > 0
    (ratios,) = drawn
    assert ratios["numpy"]["operator: norm"] > 1
    assert ratios["numpy"]["operator: adjoint"] < 1


@pytest.mark.parametrize("command", ["verify", "design", "info"])
def test_commands_refuse_a_target_that_could_not_be_written_before_any_work(command, capsys, tmp_path):
    assert main([command, "--plot", "a.foo"]) == 2
    assert "--plot: a.foo names no figure format; end it in one of .png, .pdf, .svg" in capsys.readouterr().err
    assert main([command, "--plot", str(tmp_path / "none" / "a.png")]) == 2
    assert "--plot: no such folder" in capsys.readouterr().err


# ---- pictures


def test_images_show_their_true_size():
    figure = plotting.images({"large": [np.zeros((16, 16)), IMAGES[0]], "small": [np.ones((1, 8, 4))]}, ["t = 1", "2"])
    (zeros, colour, small, empty) = figure.axes
    assert [axes.get_images()[0].get_extent() for axes in (zeros, colour)] == [[0, 16, 16, 0]] * 2
    assert small.get_images()[0].get_extent() == [6, 10, 12, 4]
    assert not empty.get_images()
    assert {(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes} == {((0, 16), (16, 0))}
    assert (zeros.get_title(), zeros.get_ylabel(), small.get_ylabel()) == ("t = 1", "large", "small")
    assert (zeros.get_xlabel(), small.get_xlabel()) == ("16×16", "8×4")
    np.testing.assert_allclose(colour.get_images()[0].get_array(), (IMAGES[0].transpose(1, 2, 0) + 1) / 2)
    assert float(small.get_images()[0].get_array().max()) == 1.0
    (clipped,) = plotting.images({"a": [np.full((2, 2), 9.0)]}).axes
    assert (clipped.get_images()[0].get_array() == 1).all()
    assert clipped.get_xlabel() == ""  # one size needs no captions


def test_names_of_rows_fit_beside_their_rows(tmp_path):
    names = [
        "short",
        "3 levels, by information\n12 steps, multistep",
        "denoising-diffusion-pytorch",
        "W" * 40,
        "",
        "a\n\nb",
    ]
    figure = plotting.images({name: [IMAGES[0]] * 3 for name in names})
    plotting.save(figure, tmp_path / "a.png", dpi=figure.dpi)
    labels = [axes.yaxis.label for axes in figure.axes[::3]]
    for name, label in zip(names, labels):
        assert label.get_text().replace("\n", "").replace(" ", "") == name.replace("\n", "").replace(" ", "")
    assert [labels[k].get_text() for k in (0, 4, 5)] == ["short", "", "a\n\nb"]
    assert labels[1].get_text() == "3 levels, by\ninformation\n12 steps,\nmultistep"
    boxes = [label.get_window_extent() for label in labels if label.get_text()]
    for above, below in itertools.pairwise(boxes):
        assert below.y1 < above.y0
    for axes, box in zip(figure.axes[::3], boxes):
        assert box.x0 >= 0
        assert box.x1 <= axes.get_window_extent().x0


@pytest.mark.parametrize(
    ("rows", "titles", "error", "message"),
    [
        ({}, [], ValueError, "at least one image"),
        ({"a": []}, [], ValueError, "at least one image"),
        ({"a": [np.zeros((2, 8, 8))]}, [], ValueError, r"row 'a': expected images .* got \(2, 8, 8\)"),
        ({"a": [np.zeros((8, 8), np.uint8)]}, [], TypeError, "row 'a': expected floating-point images"),
        ({"a": [np.zeros((8, 8))]}, ["1", "2"], ValueError, "titles: expected 1, one per column, got 2"),
    ],
)
def test_images_refuse(rows, titles, error, message):
    with pytest.raises(error, match=message):
        plotting.images(rows, titles)


def test_process_strip_draws_states_of_their_marginal():
    times = [0, 1, 25, 50]
    figure = plotting.process_strip({"full": FULL, "paper": PAPER}, IMAGES[0], times, seed=3)
    grid = np.reshape(figure.axes, (2, 4))
    assert [axes.get_title() for axes in grid[0]] == ["t = 0", "t = 1", "t = 25", "t = 50"]
    assert [axes.get_xlabel() for axes in grid[1]] == ["16×16", "16×16", "8×8", "4×4"]
    shown = [[np.asarray(axes.get_images()[0].get_array()) for axes in row] for row in grid]
    np.testing.assert_array_equal(shown[0][1], shown[1][1])  # the same noise where the states have one law
    noise = np.random.default_rng((3, 25)).standard_normal((3, 8, 8))
    state = PAPER.alpha(25) * PAPER.clean(IMAGES[0], 25) + PAPER.sigma(25) * noise
    np.testing.assert_allclose(shown[1][2], np.clip((state.transpose(1, 2, 0) + 1) / 2, 0, 1), atol=1e-12)


def test_heatmaps_share_one_scale():
    maps = {"a": np.array([[0.0, 2.0], [1.0, 1.0]]), "b": np.array([[-1.0, 0.0], [1.0, 1.0]])}
    figure = plotting.heatmaps(maps, "column", "row", "entry (mm)", centre=0.75, first=3)
    left, right, bar = figure.axes
    assert [axes.get_images()[0].get_clim() for axes in (left, right)] == [(-1.0, 2.5)] * 2
    assert left.get_images()[0].get_extent() == [2.5, 4.5, 4.5, 2.5]
    assert (left.get_title(), right.get_title(), bar.get_ylabel()) == ("a", "b", "entry (mm)")
    plain = plotting.heatmaps(maps, "column", "row", "entry").axes[0]
    assert plain.get_images()[0].get_clim() == (-1.0, 2.0)


# ---- the sampler's chain


@pytest.fixture
def chain() -> list[tuple[int, Any, Any]]:
    torch = pytest.importorskip("torch")
    draw = torch.Generator().manual_seed(0)
    sizes = [(50, 4, 4), (30, 4, 8), (20, 8, 8), (10, 8, 16), (1, 16, 16)]
    return [(t, *(torch.rand(3, 3, n, n, generator=draw) * 2 - 1 for n in (x, p))) for t, x, p in sizes]


def test_a_strip_of_fewer_images_than_it_may_show(chain):
    from ssdcore_torch import images

    few = [(t, x_t[:1], clean[:1]) for t, x_t, clean in chain]
    one, many = images.denoising_strip(few), images.denoising_strip(chain, samples=1)
    assert np.array_equal(np.asarray(one), np.asarray(many))


def test_denoising_frames_show_the_state_growing(chain):
    from ssdcore_torch import images

    frames = images.denoising_frames(chain, samples=2)
    assert len(frames) == 5
    assert len({frame.size for frame in frames}) == 1
    for frame, (_, x_t, prediction) in zip(frames, chain):
        pixels = np.asarray(frame)[14:, 62 + images.GAP - 1 :]  # right of the names, below the time
        half = images.GAP + 64
        for part, image in ((pixels[:half], x_t), (pixels[half:], prediction)):
            rows = np.flatnonzero((part != 255).any(axis=(1, 2)))
            assert rows[-1] - rows[0] + 1 == 4 * image.shape[-1]
            columns = np.flatnonzero((part != 255).any(axis=(0, 2)))
            assert len(columns) == 2 * 4 * image.shape[-1]
    picked = images.denoising_frames(chain, frames=3)
    assert [np.asarray(frame).tolist() for frame in picked[:: len(picked) - 1]] == [
        np.asarray(frame).tolist() for frame in images.denoising_frames(chain)[:: len(chain) - 1]
    ]
    with pytest.raises(ValueError, match="at least one step"):
        images.denoising_frames([])


def test_an_animation_is_an_endless_gif_that_holds_its_last_frame(chain, tmp_path):
    from PIL import Image

    from ssdcore_torch import images

    frames, path = images.denoising_frames(chain, samples=1), tmp_path / "a.gif"
    images.save_animation(frames, path, milliseconds=80, hold=900)
    with Image.open(path) as opened:
        assert (opened.n_frames, opened.info["loop"]) == (5, 0)
        durations = []
        for i, frame in enumerate(frames):
            opened.seek(i)
            durations.append(opened.info["duration"])
            reduced = frame.quantize(256, dither=Image.Dither.NONE).convert("RGB")
            np.testing.assert_array_equal(np.asarray(opened.convert("RGB")), np.asarray(reduced))
    assert durations == [80, 80, 80, 80, 900]
    images.save_animation(frames, tmp_path / "b.gif", milliseconds=80, hold=900)
    assert path.read_bytes() == (tmp_path / "b.gif").read_bytes()
    with pytest.raises(ValueError, match=r"end the name in \.gif"):
        images.save_animation(frames, tmp_path / "a.png")
    with pytest.raises(ValueError, match="at least one frame"):
        images.save_animation([], path)
