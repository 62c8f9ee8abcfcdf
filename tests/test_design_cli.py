"""Schedule design, its file, and the commands design and info."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys

import numpy as np
import pytest

import ssdcore as ssd
from ssdcore import oracle
from ssdcore.__main__ import main

NOISE = ssd.NoiseSchedule.linear(1000)


def natural(n: int, exponent: float = 2.5) -> ssd.Covariance:
    i = np.arange(n)
    spectrum = (1 + np.hypot(i[:, None], i)) ** -exponent
    return ssd.Covariance.cosine(spectrum * 0.25 * n * n / spectrum.sum())


@pytest.mark.parametrize(("eta", "order"), [(1.0, 1), (0.0, 2)])
def test_design_is_what_it_says(eta, order):
    c = natural(8)
    found = oracle.design_levels((8, 8), NOISE, c, levels=3, steps=40, tolerance=0.05, eta=eta, order=order)
    proc = ssd.LinearDiffusion.resize((8, 8), NOISE, found.levels)
    assert found.error == oracle.sampler_error(proc, c, found.times, eta, order=order)
    identity = ssd.LinearDiffusion.identity((8, 8), NOISE)
    assert found.full_error == oracle.sampler_error(identity, c, found.times, eta, order=order)
    for spacing in ("time", "log_snr"):
        times = oracle.spread_times(NOISE, 40, spacing)
        assert found.full_error <= oracle.sampler_error(identity, c, times, eta, order=order)
    assert found.error <= 1.05 * found.full_error
    assert found.cost == sum(np.prod(proc.shape(t)) for t in found.times)
    assert found.cost < 0.9 * found.full_cost == 0.9 * 40 * 64
    assert set(found.levels.starts) <= set(found.times)
    assert len(found.times) == 40
    assert found.levels.levels == 3


def test_design_against_every_schedule():
    """On a small problem the search finds the cheapest schedule of all 153 within each tolerance."""
    c, noise, steps = natural(8), ssd.NoiseSchedule.linear(100), 19
    times = oracle.spread_times(noise, steps)
    full_error = oracle.sampler_error(ssd.LinearDiffusion.identity((8, 8), noise), c, times)
    every = []
    for first, second in itertools.combinations(times[1:], 2):
        proc = ssd.LinearDiffusion.resize((8, 8), noise, ssd.ResolutionSchedule.thresholds([first, second]))
        every.append((oracle.sampler_error(proc, c, times), sum(np.prod(proc.shape(t)) for t in times)))
    for tolerance in (0.01, 0.03, 0.1, 0.3, 1.0):
        found = oracle.design_levels((8, 8), noise, c, 3, steps, tolerance, times="time")
        assert found.error <= (1 + tolerance) * full_error
        assert found.cost == min(cost for error, cost in every if error <= (1 + tolerance) * full_error)
        assert found.evaluations < 50


def test_design_is_a_local_optimum():
    """No level starts a step earlier, alone or with another a step later, more cheaply and within the tolerance."""
    c, tolerance = natural(8), 0.02
    found = oracle.design_levels((8, 8), NOISE, c, 4, 50, tolerance, times="time")
    positions = [found.times.index(start) for start in found.levels.starts]
    assert len(set(positions)) == 3
    checked = 0
    for earlier, later in itertools.product(range(3), range(3)):
        moved = list(positions)
        moved[earlier] -= 1
        if later != earlier:
            moved[later] += 1
        if not all(a < b for a, b in itertools.pairwise([0, *moved, 50])):
            continue
        levels = ssd.ResolutionSchedule.thresholds([found.times[p] for p in moved])
        proc = ssd.LinearDiffusion.resize((8, 8), NOISE, levels)
        if sum(np.prod(proc.shape(t)) for t in found.times) < found.cost:
            assert oracle.sampler_error(proc, c, found.times) > (1 + tolerance) * found.full_error
            checked += 1
    assert checked >= 4


def test_design_follows_the_costs():
    c = natural(8)
    arguments = {"levels": 2, "steps": 10, "tolerance": 0.1, "times": [10, 60, 150, 250, 350, 450, 550, 650, 800, 1000]}
    found = oracle.design_levels((8, 8), NOISE, c, cost=(3.0, 2.0), **arguments)
    at_level = [found.levels.level(t) for t in found.times]
    assert found.cost == sum((3.0, 2.0)[level] for level in at_level)
    assert found.full_cost == 30.0


SCHEDULE = oracle.Schedule(((16, 16), (8, 8)), (40,), "linear", 100, True, "bilinear", (1, 40, 100), 0.0, 2, 0.5, 0.4)


def test_schedule_file_round_trip(tmp_path):
    file = tmp_path / "schedule.json"
    SCHEDULE.save(file)
    assert oracle.Schedule.load(file) == SCHEDULE == oracle.Schedule.load(file, (16, 16))
    proc = SCHEDULE.process()
    assert [proc.shape(t) for t in (0, 39, 40, 100)] == [(16, 16), (16, 16), (8, 8), (8, 8)]
    levels, noise = ssd.ResolutionSchedule.thresholds([40]), ssd.NoiseSchedule.linear(100)
    assert proc.sigma(100) == ssd.LinearDiffusion.resize((16, 16), noise, levels).sigma(100)
    assert [f.name for f in tmp_path.iterdir()] == ["schedule.json"]


def broken(**changes):
    content = {"format": "ssdcore.schedule", "version": 1, "sizes": [[16, 16], [8, 8]], "starts": [40], "noise": "linear",
               "steps": 100, "matched": True, "kernel": "bilinear", "times": [1, 40, 100]}  # fmt: skip
    return json.dumps({**content, **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a schedule file: "),
        ("[1]", "is not a schedule file: expected a JSON object"),
        (broken(format="other"), "is not a schedule file"),
        (broken(version=2), "version 2, this code reads version 1"),
        (broken(noise="sqrt"), "unknown noise 'sqrt'; choose one of linear, cosine"),
        (broken(starts=[140]), "starts at t = 140, after T = 100"),
        (broken(times=[1, 400]), "outside the process"),
        (broken(extra=1), "unexpected keyword argument 'extra'"),
        (broken(sizes=3), "broken schedule file"),
        (broken(sizes=[[8, 8], [16, 16]]), "smaller than the one before"),
    ],
)
def test_broken_schedule_files(tmp_path, text, message):
    file = tmp_path / "s.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        oracle.Schedule.load(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_schedule_for_another_size(tmp_path):
    SCHEDULE.save(tmp_path / "s.json")
    with pytest.raises(ValueError, match=r"schedule for the size \(16, 16\), expected \(32, 32\)"):
        oracle.Schedule.load(tmp_path / "s.json", (32, 32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": -1}, "tolerance must be finite and not negative, got -1"),
        ({"levels": 4, "steps": 3}, "4 levels change size 3 times and need at least 4 steps, got 3"),
        ({"levels": 3, "steps": 4, "tolerance": 0.0, "times": "time"}, "no 3-level schedule found within a tolerance of 0 .*best found, starts .* has 1.* times it"),
        ({"levels": 0}, "levels must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"times": [5, 10]}, "2 times were given for 8 steps"),
        ({"times": "even"}, "times must be best, time, log_snr, or a list, got 'even'"),
        ({"covariance": np.eye(4)}, r"expected \(64, 64\)"),
        ({"covariance": -np.eye(64)}, "smallest eigenvalue is -1 "),
        ({"levels": 9, "steps": 20}, "take fewer levels"),
    ],
)  # fmt: skip
def test_design_refusals(arguments, message):
    call = {"covariance": natural(8), "levels": 2, "steps": 8, **arguments}
    with pytest.raises(ValueError, match=message):
        oracle.design_levels((8, 8), NOISE, **call)


# The commands


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Forty smooth 12-pixel images as bytes in a file."""
    rng = np.random.default_rng(0)
    smooth = ssd.Blur((12, 12), 1.5)(rng.standard_normal((40, 3, 12, 12)))
    pixels = np.clip(128 + 250 * smooth, 0, 255).astype(np.uint8)
    file = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(file, images=np.moveaxis(pixels, 1, 3))
    return file


SMALL = ["--size", "8", "--levels", "2", "--process-steps", "50"]


def test_design_command(images, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out, plot = tmp_path / "schedule.json", tmp_path / "design.png"
    options = ["--steps", "12", "--tolerance", "0.1", "--out", str(out), "--plot", str(plot)]
    assert main(["design", "--data", str(images), *SMALL, *options]) == 0
    printed = capsys.readouterr().out
    schedule = oracle.Schedule.load(out, (8, 8))
    covariance = oracle.fit(np.moveaxis(ssd_resized(images), 3, 1)).covariance
    row = next(line for line in printed.splitlines() if line.startswith("designed"))
    assert [float(v) for v in row.split()[-4:]] == pytest.approx(
        [
            sum(np.prod(schedule.process().shape(t)) for t in schedule.times) / (12 * 64),
            schedule.error,
            schedule.error / schedule.full_error,
            oracle.sampler_error(schedule.process(), covariance),
        ],
        rel=2e-3,
    )
    assert schedule.error == pytest.approx(oracle.sampler_error(schedule.process(), covariance, schedule.times))
    assert len(re.findall(r"^(full size|ConvexDecay|equal|designed)", printed, flags=re.MULTILINE)) == 8
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_design_by_information_command(images, tmp_path, capsys, monkeypatch):
    measured = []
    monkeypatch.setattr(
        "ssdcore.oracle._information.mutual_information",
        lambda proc, covariance: measured.append(proc) or oracle.mutual_information(proc, covariance),
    )
    out = tmp_path / "schedule.json"
    options = ["--by", "information", "--nats", "2", "--steps", "8", "--noise-kind", "paper", "--out", str(out)]
    assert main(["design", "--data", str(images), *SMALL, *options]) == 0
    assert len(measured) == 2  # the information of each level is computed once
    schedule = oracle.Schedule.load(out, (8, 8))
    covariance = oracle.fit(np.moveaxis(ssd_resized(images), 3, 1)).covariance
    noise = ssd.NoiseSchedule.linear(50)
    found = oracle.design_by_information((8, 8), noise, covariance, 2, 8, 2.0, matched=False)
    assert (schedule.starts, schedule.times, schedule.error) == (found.levels.starts, found.times, found.error)
    assert (schedule.eta, schedule.order, schedule.matched) == (0.0, 2, False)
    ((start,), (high, low)) = schedule.starts, oracle.level_information((8, 8), noise, covariance, 2, False)
    lost = f"{high[start - 1] - low[start - 1]:.3g}"
    assert f"its changes of size lose {lost} nats per channel: {lost} at t = {start}\n" in capsys.readouterr().out


def ssd_resized(file):
    pixels = np.moveaxis(np.load(file)["images"], 3, 1).astype(float)
    return np.moveaxis(
        np.clip(np.round(ssd.Resize((12, 12), (8, 8), "bicubic")(pixels)), 0, 255).astype(np.uint8), 1, 3
    )


def test_info_command(images, tmp_path, capsys):
    plot = tmp_path / "info.svg"
    pytest.importorskip("matplotlib")
    assert main(["info", "--data", str(images), *SMALL, "--plot", str(plot)]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line.split() for line in lines if line.split()[:1] == ["50"])
    resized = ssd_resized(images)
    noise = ssd.NoiseSchedule.linear(50)
    assert float(row[1]) == pytest.approx(oracle.signal_share(resized, noise)[-1], abs=1e-4)
    assert float(row[2]) == 0.25
    assert "<svg" in plot.read_text()
    assert any(line.startswith("changing to 4 pixels") for line in lines)


def test_info_shows_a_designed_schedule_and_the_bound(images, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    schedule, plot = tmp_path / "s.json", tmp_path / "info.svg"
    assert main(["design", "--data", str(images), *SMALL, "--steps", "12", "--out", str(schedule)]) == 0
    arguments = ["info", "--data", str(images), *SMALL, "--schedule", str(schedule), "--plot", str(plot)]
    assert main([*arguments, "--nats", "50"]) == 0
    assert {"designed", "bound, a change loses"} <= set(re.findall(r"designed|bound, a change loses", plot.read_text()))
    assert main([*arguments, "--process-steps", "60"]) == 2
    assert "is for 50 steps, this process has 60" in capsys.readouterr().err


def test_folder_of_images(images, tmp_path, capsys):
    image = pytest.importorskip("PIL.Image")
    for i, pixels in enumerate(np.load(images)["images"]):
        image.fromarray(pixels).save(tmp_path / f"{i:02}.png")
    (tmp_path / "notes.txt").write_text("no image")
    assert main(["info", "--data", str(tmp_path), *SMALL]) == 0
    from_folder = capsys.readouterr().out.splitlines()
    assert "40 images" in from_folder[0]
    assert "1 unreadable files skipped" in from_folder[0]
    assert main(["info", "--data", str(images), *SMALL]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == from_folder[1:]


def test_embedded_drawings_without_importing_torch():
    code = f"import sys; from ssdcore.__main__ import main; print(main(['info', *{SMALL}]), 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "drawings64.npz" in result.stdout
    assert result.stdout.endswith("0 False\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["design", "--steps", "1"], "--steps 1: 2 levels change size 1 times and need at least 2 steps"),
        (["design", "--steps", "2", "--tolerance", "0"], "best found, starts"),
        (["design", "--tolerance", "-1"], "tolerance must be finite and not negative"),
        (["design", "--eta", "2"], "--eta: expected a number from 0 to 1"),
        (["design", "--order", "2"], "0 with --order 2; got 1"),
        (["design", "--by", "information", "--steps", "2"], "need at least 3 steps, got 2"),
        (["design", "--out", "/no/such/folder/x.json"], "--out: no such folder: /no/such/folder"),
        (["info", "--plot", "/no/such/folder/x.png"], "--plot: no such folder"),
        (["info", "--size", "16"], "smaller than size 16"),
        (["info", "--size", "0"], "positive size"),
        (["info", "--levels", "9"], "take fewer levels than 9"),
        (["info", "--nats", "0"], "--nats: expected a positive number"),
        (["info", "--process-steps", "5"], "take at least 21"),
        (["info", "--data", "/no/such/data"], "no such data: /no/such/data"),
    ],
)
def test_command_refusals(images, capsys, options, message):
    command, *rest = options
    assert main([command, "--data", str(images), *SMALL, *rest]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", np.zeros((3, 8, 8)), "expected uint8 images, got float64"),
        ("a.npy", np.zeros((8, 8), np.uint8), r"got (8, 8)"),
        ("a.npy", np.zeros((3, 8, 8, 2), np.uint8), r"got (3, 8, 8, 2)"),
        ("a.npz", {"x": np.zeros(1), "y": np.zeros(1)}, "expected an array named 'images', or only one array"),
        ("a.npz", b"broken", "is not a readable .npz or .npy file"),
    ],
)
def test_data_refusals(tmp_path, capsys, name, content, message):
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(file, **content)
    else:
        np.save(file, content)
    assert main(["info", "--data", str(file), *SMALL]) == 2
    assert message in capsys.readouterr().err


def test_folder_without_images(tmp_path, capsys):
    pytest.importorskip("PIL")
    (tmp_path / "a.txt").write_text("text")
    assert main(["info", "--data", str(tmp_path), *SMALL]) == 2
    assert "none of its 1 files is a readable image" in capsys.readouterr().err
