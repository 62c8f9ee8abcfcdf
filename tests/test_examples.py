"""The examples run, and their figures are what they claim. The long ones carry `slow`."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch):
    """Imports an example as running it as a script would: with its folder on the path."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    before = set(sys.modules)
    yield load
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == EXAMPLES:
            del sys.modules[name]


def test_every_example_is_tested_here():
    source = Path(__file__).read_text(encoding="utf-8")
    scripts = {file.stem for file in EXAMPLES.glob("*.py")} - {"sampling"}
    assert not [name for name in scripts if f'("{name}")' not in source and f"import {name};" not in source]


@pytest.mark.slow
def test_audio_has_the_spectrum_of_the_data(example):
    n = 1000
    figures = example("audio_1d").main(n=n)
    # The power of a band lies mostly in a resonance, from 100 Hz wide: 3 frequencies of the transform and its window.
    # It is chi-squared then, with the relative deviation sqrt(2 / (3 n)); four of these.
    deviation = 4 * 10 / np.log(10) * np.sqrt(2 / (3 * n))
    assert figures["law_error_db"] < deviation
    assert figures["spectrum_error_db"] < deviation + 0.45  # what the sampler's noise floor adds above 3.5 kHz
    assert figures["noise_error_db"] > 20
    assert figures["error"] < 1.5 * figures["full_error"] < 0.01
    assert figures["cost"] < 0.8


def test_molecules_have_the_bonds_of_the_data_and_only_admissible_noise_passes(example, capsys):
    n = 400
    figures = example("graph").main(n=n)
    assert "is refused: step 600: the transition would need negative noise" in capsys.readouterr().out
    # Means of squares over 3 n coordinates and so many independent terms in each: the 35 bonds that close no ring are
    # exactly independent, the 72 in rings nearly, and the radius has the participation ratio of the modes, above 2.
    terms = {"backbone bond": 35, "ring bond": 60, "radius of gyration": 2}
    for name, exact in figures["exact"].items():
        deviation = 4 * np.sqrt(2 / (3 * n * terms[name]))
        assert abs(figures["law of the sampler"][name] / exact - 1) < 0.01
        assert abs(figures["samples"][name] / figures["law of the sampler"][name] - 1) < deviation
    assert figures["white noise"]["ring bond"] > 10 * figures["exact"]["ring bond"]


@pytest.mark.slow
def test_volumes_come_out_equally_often_with_matched_noise_only(example):
    figures = example("volume_3d").main()
    # chi-squared over 2 and 59 degrees of freedom: mean 1, standard deviations 1 and 0.18
    assert figures["solid χ², scale-matched noise"] < 1 + 4 * 0.18
    assert figures["class χ², scale-matched noise"] < 7
    assert figures["solid χ², the paper's noise"] > figures["solid χ², scale-matched noise"]
    assert abs(figures["variance ratio, scale-matched noise"] - 1) < 0.04


def test_a_second_order_sampler_of_ones_own_is_of_second_order(example):
    rows = example("heun").main()
    last, before = rows[-1], rows[-2]
    assert before["first"] / last["first"] < 6  # squared errors: 4 for order one, 16 for order two
    assert before["heun"] / last["heun"] > 12
    assert last["heun"] < last["first"] / 8


@pytest.mark.slow
def test_three_lines_equal_what_is_written_by_hand(example):
    rows = example("three_imports").main()
    assert [row["library"] for row in rows] == ["numpy", "torch", "jax"]
    for row in rows:
        assert row["lines"] == 3
        assert row["lines_by_hand"] >= 15
        assert row["difference"] < 32 * np.finfo(np.float64).eps * 32  # 32 rows of 32 pixels are summed over
        assert row["seconds"] < row["seconds_by_hand"]


@pytest.mark.slow
def test_jax_learns_pulses_without_torch():
    """In a process of its own, since this one may hold torch."""
    code = (
        "import json, sys; import jax_denoiser; figures = jax_denoiser.main(); "
        "assert 'torch' not in sys.modules; print(json.dumps(figures))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=EXAMPLES, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    figures = json.loads(run.stdout.splitlines()[-1])
    assert figures["last_loss"] < 0.2 * figures["first_loss"]
    assert figures["pulses"] > 0.9 > 0.5 > figures["pulses_gaussian"]
    assert figures["mean_error"] < 0.2 < figures["mean_error_noise"]
    assert figures["jit_error"] < 32 * np.finfo(np.float32).eps


def test_a_network_of_diffusers_trains_resumes_samples_and_evaluates(example, tmp_path, monkeypatch):
    for package in ("diffusers", "torchmetrics"):
        pytest.importorskip(package)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    figures = example("any_network").main(tmp_path / "run", steps=4, samples=4)
    assert np.isfinite(figures["frechet"])
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 4


@pytest.mark.slow
def test_audio_trains_in_a_run_resumes_and_is_restored(example, tmp_path, monkeypatch):
    pytest.importorskip("torchmetrics")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    figures = example("audio_run").main(tmp_path / "run", steps=8, samples=8)
    assert np.isfinite(figures["frechet"])
    # where the signal is measured the network hardly counts: noise of 0.02, and the few steps
    assert figures["restored"] < 4 * 0.02
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 8
