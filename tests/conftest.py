"""Shared fixtures, and the table of mutants at the end of the test output."""

from __future__ import annotations

import os
import signal
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

import pytest  # noqa: E402

_TABLE = pytest.StashKey[list[tuple[str, ...]]]()
MOST_PROCESSES = 8  # each imports torch and jax


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
