"""Shared fixtures, and the table of mutants at the end of the test output."""

from __future__ import annotations

import functools
import gc
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

# Before any library starts its threads: arrays this small only lose by waking more of them, and training is
# reproduced bit for bit only with the same number of threads. Subprocesses inherit it.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

# Without a GPU Triton's kernels are interpreted; it asks for that once, when it is first imported.
if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Under nohup the signal is ignored, by children too; tests of stops send it.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# What imports leave behind stays: the collector looks through the half million objects of torch, jax and sympy once.
gc.disable()

import numpy as np  # noqa: E402
import pytest  # noqa: E402

_TABLE = pytest.StashKey[list[tuple[str, ...]]]()
MOST_PROCESSES = 8  # each imports torch and jax
DRAWINGS = "drawings64.npz"


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Folders of tests are shared among the cores; single files, a debugger, coverage and `-n` are taken as asked."""
    if hasattr(config, "workerinput") or not config.pluginmanager.hasplugin("xdist"):
        return
    option = config.option
    alone = option.usepdb or option.collectonly or getattr(option, "cov_source", None)
    if option.numprocesses is None and not alone and all(os.path.isdir(name) for name in config.args):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        option.numprocesses, option.dist = min(cores, MOST_PROCESSES), "worksteal"


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or libraries say at the end that their objects have leaked


@pytest.fixture(scope="session", autouse=True)
def quick_runs() -> Iterator[None]:
    """What surrounds the few steps of a training in a test, and takes longer than they do, is made small: the pictures
    at its end, the times at which residual spectra are measured, reading the embedded drawings anew, and waiting for
    the disk. What is about one of these says how many it wants."""
    if "torch" not in sys.modules:  # nothing that has been collected trains
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        small_ends(patch)
        _read_drawings_once(patch)
        patch.setattr(os, "fsync", lambda file: None)
        yield


def small_ends(patch: pytest.MonkeyPatch) -> None:
    """Of trainings in this process."""
    from ssdcore_torch.training import pictures, residuals

    patch.setattr(pictures, "SAMPLES", 2)
    patch.setattr(pictures, "SAMPLE_STEPS", 3)
    patch.setattr(residuals, "measured_times", functools.partial(residuals.measured_times, most=3))
    patch.setattr(residuals, "measure_residuals", functools.partial(residuals.measure_residuals, times_a_path=3))


def _read_drawings_once(patch: pytest.MonkeyPatch) -> None:
    """Unpacked once in this process, and resized once to each size."""
    from ssdcore_torch.data import _images, _where

    source, decode = _where.ArraySource, _images._decode_all
    opened = functools.cache(source)
    resized: dict[tuple[Any, ...], Any] = {}

    def open_array(file: Path, name: str, *choices: Any) -> Any:
        return (opened if file.name == DRAWINGS else source)(file, name, *choices)

    def decode_all(reader: Any, workers: int, broken_share: float, room: Any) -> Any:
        if getattr(reader.source, "file", Path()).name != DRAWINGS:
            return decode(reader, workers, broken_share, room)
        key = (reader.source.source, reader.rows.tobytes(), reader.shape, reader.bits)
        if key not in resized:
            resized[key] = decode(reader, workers, broken_share, lambda shape: np.empty(shape, np.uint8))
        found = room(resized[key].images.shape)
        found[:] = resized[key].images
        return replace(resized[key], images=found)

    patch.setattr(_where, "ArraySource", open_array)
    patch.setattr(_images, "_decode_all", decode_all)


@pytest.fixture
def mutant_table(request: pytest.FixtureRequest) -> list[tuple[str, ...]]:
    """Rows (mutant, check that killed it, measured, tolerance, what was measured), printed at the end of the run."""
    return request.config.stash.setdefault(_TABLE, [])


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["mutants"] = session.config.stash.get(_TABLE, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    rows = getattr(node, "workeroutput", {}).get("mutants", [])
    node.config.stash.setdefault(_TABLE, []).extend(map(tuple, rows))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash.get(_TABLE, [])
    if not rows:
        return
    lines = [("mutant", "killed by", "measured", "tolerance", "what was measured"), *sorted(rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    terminalreporter.section(f"{len(rows)} mutants killed")
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths)]
        terminalreporter.write_line("  ".join([*cells, line[4][:80]]).rstrip())
