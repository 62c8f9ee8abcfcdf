"""Tries of mutants in forked processes, with the golden rows and tests that touch their lines.

Two ways. `warm`: one process has imported everything and collected the tests; for each mutant it forks, and the child
gives the function its changed code. Quick, but what was computed before the fork was computed by the right library.
`fresh`: the child imports the library anew, the module changed. Slower; for what is outside of functions, and for what
survived when it is tried again.
"""

from __future__ import annotations

import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from mutants import Mutant

_GOLDEN = "golden::"


@dataclass(frozen=True)
class Job:
    """A mutant, the golden rows and tests to try it with, in this order, and the seconds they take without it."""

    mutant: Mutant
    golden: tuple[str, ...]
    tests: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Fate:
    """status   "killed", "killed by time" or "survived";  by  what failed"""

    status: str
    by: str
    seconds: float


def preload() -> None:
    """What every fork would import, but for the library itself."""
    for name in ("numpy", "mpmath", "sympy", "hypothesis", "pytest", "array_api_compat", "torch", "scipy.sparse"):
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    from hypothesis import Phase, settings

    # no shrinking of what fails, and no memory of it
    settings.register_profile(
        "mutants", phases=[Phase.explicit, Phase.generate], database=None, derandomize=True, deadline=None
    )
    settings.load_profile("mutants")
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
    if any(name.split(".")[0] in ("ssdcore", "ssdcore_torch") for name in sys.modules):
        raise RuntimeError("the library must not be loaded before a fork")


def _golden_failure(names: Sequence[str]) -> str:
    """The first golden row that fails, or nothing."""
    if names:
        from ssdcore.testing._report import run_check
        from ssdcore.testing.golden import GOLDEN

        by_name = {_GOLDEN + check.name: check for check in GOLDEN}
        for name in names:
            if name in by_name and run_check(by_name[name], None, "float64", {}).failed:
                return name
    return ""


class _FirstFailure:
    """A pytest plugin that keeps the name of the first test that fails."""

    name = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid


def _in_a_fork(work: Callable[[], str], limit: float) -> tuple[str, bool]:
    """(what `work` returned in a forked process, whether it ended in time)."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        os.setsid()
        said = "a crash"
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            for stream in (1, 2):
                os.dup2(null, stream)
            said = work()
        except BaseException as error:  # whatever a mutant raises
            said = type(error).__name__
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.close(writing)
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            with os.fdopen(reading) as pipe:
                text = pipe.read()
            return text or ("a crash" if status else ""), True
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)  # the child is the leader of its own group
    os.waitpid(pid, 0)
    os.close(reading)
    return "", False


def _tried(work: Callable[[], str], limit: float) -> Fate:
    start = time.monotonic()
    by, ended = _in_a_fork(work, limit)
    status = ("killed" if by else "survived") if ended else "killed by time"
    return Fate(status, by, round(time.monotonic() - start, 2))


# ---- fresh


class _Mutated(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Finds one module, with other source."""

    def __init__(self, mutant: Mutant, root: Path) -> None:
        parts = mutant.file.removesuffix(".py").split("/")
        self.module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        self.mutated = mutant.source(root)
        super().__init__(self.module, str(root / mutant.file))

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != self.module:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def get_code(self, fullname: str) -> Any:
        return compile(self.mutated, self.path, "exec")


def fresh(job: Job, root: Path) -> Fate:
    """In a process that has not imported the library yet."""

    def work() -> str:
        import pytest

        sys.meta_path.insert(0, _Mutated(job.mutant, root))
        failed = _golden_failure(job.golden)
        if failed or not job.tests:
            return failed
        first = _FirstFailure()
        status = pytest.main([*_QUIET, "-x", *job.tests], plugins=[first])
        return first.name or ("the tests do not start" if status else "")

    return _tried(work, 60 + 10 * job.seconds)


_QUIET = ("-q", "-s", "-p", "no:cacheprovider", "-p", "no:cov", "-p", "no:xdist", "-m", "not gpu")


# ---- warm


def _codes(code: CodeType) -> Iterator[CodeType]:
    return (constant for constant in code.co_consts if isinstance(constant, CodeType))


def _outermost(module: CodeType, name: str, line: int, wrong: CodeType) -> tuple[CodeType, CodeType] | None:
    """The function of that qualified name around `line`, in the right code and in the wrong; their trees are alike."""
    found = None
    for right, other in zip(_codes(module), _codes(wrong)):
        if right.co_qualname == name and right.co_firstlineno <= line:
            found = right, other  # the last that starts before the line
        elif name.startswith(right.co_qualname + "."):
            found = _outermost(right, name, line, other) or found
    return found


class _Functions:
    """All functions alive, by file, first line and name."""

    def __init__(self, root: Path) -> None:
        self._of: dict[tuple[str, int, str], list[FunctionType]] = {}
        for thing in gc.get_objects():
            if type(thing) is FunctionType and thing.__code__.co_filename.startswith(str(root)):
                self._of.setdefault(self._key(thing.__code__), []).append(thing)

    @staticmethod
    def _key(code: CodeType) -> tuple[str, int, str]:
        return code.co_filename, code.co_firstlineno, code.co_qualname

    def __call__(self, code: CodeType) -> list[FunctionType]:
        return self._of.get(self._key(code), [])


class _Warm:
    """A pytest plugin that tries mutants where pytest would run the tests."""

    def __init__(
        self, jobs: Sequence[Job], root: Path, deadline: float, twice: bool, tell: Callable[[str, Fate], None]
    ) -> None:
        self.jobs, self.root, self.deadline, self.twice, self.tell = jobs, root, deadline, twice, tell
        self.sound: dict[str, bool] = {}  # whether a test passes in a fork without any mutant

    def pytest_runtestloop(self, session: Any) -> bool:
        from ssdcore.testing import golden  # noqa: F401  imported before the forks

        self.items = {item.nodeid: item for item in session.items}
        functions = _Functions(self.root)
        gc.collect()
        gc.freeze()
        for job in self.jobs:
            if time.monotonic() > self.deadline:
                break
            fate = self._try(job, functions)
            if fate is not None:
                self.tell(job.mutant.name, fate)
        return True

    def _try(self, job: Job, functions: _Functions) -> Fate | None:
        """None where the other way must be taken."""
        path = str(self.root / job.mutant.file)
        right = compile((self.root / job.mutant.file).read_bytes(), path, "exec")
        wrong = compile(job.mutant.source(self.root), path, "exec")
        pair = _outermost(right, job.mutant.function, job.mutant.line, wrong)
        alive = functions(pair[0]) if pair else []
        if pair is None or not alive or pair[0].co_freevars != pair[1].co_freevars:
            return None
        changed = pair[1]

        def work() -> str:
            for function in alive:
                function.__code__ = changed
            return _golden_failure(job.golden) or self._first_failure(job.tests)

        fate = _tried(work, 20 + 10 * job.seconds)
        if fate.status == "killed":
            return fate if self._is_sound(fate.by, job) else None
        return fate if fate.status == "survived" and not self.twice else None

    def _first_failure(self, tests: Sequence[str]) -> str:
        first = _FirstFailure()
        items = [self.items[name] for name in tests if name in self.items]
        for item, following in zip(items, [*items[1:], None]):
            item.config.pluginmanager.register(first)
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            item.config.pluginmanager.unregister(first)
            if first.name:
                break
        return first.name

    def _is_sound(self, name: str, job: Job) -> bool:
        """Whether what failed passes in a fork of the right library."""
        if name not in self.sound:
            if name not in self.items:
                return name.startswith(_GOLDEN)
            said, ended = _in_a_fork(lambda: self._first_failure([name]), 60 + 10 * job.seconds)
            self.sound[name] = ended and not said
        return self.sound[name]


def warm(jobs: Sequence[Job], root: Path, deadline: float, twice: bool) -> Iterator[tuple[str, Fate]]:
    """(name, fate) of the mutants that this way can try, as they come; for the others take `fresh`.

    Args:
        twice: none that survives is among them, so that it is tried again
    """
    files = sorted({test.split("::")[0] for job in jobs for test in job.tests})
    reading, writing = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        out = os.fdopen(writing, "w")
        try:
            import pytest

            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)

            def tell(name: str, fate: Fate) -> None:
                out.write(json.dumps([name, fate.status, fate.by, fate.seconds]) + "\n")
                out.flush()

            pytest.main([*_QUIET, *files], plugins=[_Warm(jobs, root, deadline, twice, tell)])
        finally:
            out.flush()
            os._exit(0)
    os.close(writing)
    try:
        with os.fdopen(reading) as pipe:
            for line in pipe:
                name, *fate = json.loads(line)
                yield name, Fate(*fate)
    finally:
        os.waitpid(pid, 0)
