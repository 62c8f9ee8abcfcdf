"""Mutation testing of the library's own numerical source: what share of small wrong edits do the tests notice?

    python benchmarks/mutation/run.py contexts                 # which test touches which line; some minutes
    python benchmarks/mutation/run.py run --minutes 30         # a slice; run it again and it goes on
    python benchmarks/mutation/run.py report                   # the score, the survivors; --write for RESULT.md

Each mutant is one edit: arithmetic, comparison, boundary, constant, index, sign, transpose, order, call (mutants.py).
It is given to a forked process in place of its module; that process runs what touches the changed lines: golden rows
of `verify` first, for they are quick, then the tests, quickest first, until one fails. Mutants are drawn in a random
order that the seed fixes, so the first n are a fair sample of all. One that runs on for ever is killed by time.

What a survivor means is written in reasons.json: "equivalent: why", or "killed by" the test that notices it since.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STORE = ROOT / ".mutation"  # not committed; --store puts it elsewhere
sys.path.insert(0, str(HERE))

from mutants import Mutant, mutants_of  # noqa: E402

SEED = 20
_LEFT_OUT = {
    f"ssdcore/{name}.py"
    for name in ("plotting", "__main__", "_design", "_plot", "_verify", "_data", "_extras", "files", "_pytrees")
}
_TORCH = (
    "diffusion.py", "ema.py", "official.py", "recipes.py", "restoration.py", "training/plan.py", "sampling/_walk.py",
    "sampling/_generate.py", "sampling/_encoding.py", "sampling/_shared.py",
)  # fmt: skip
TESTS = {
    "ssdcore": (
        "edges", "operators", "spectral", "gaussian", "process", "schedules", "oracle", "theorems", "interop", "golden",
        "times", "times_laws", "power", "size_changes", "design_cli",
    ),
    "ssdcore_torch": ("sampling", "ema", "official", "diffusion", "preconditioning", "encoding", "restoration"),
}  # fmt: skip
_TEST_SECONDS = 12.0  # of tests for one mutant, the quickest first
_DEAR = (
    "tests/test_theorems.py",
    "tests/test_golden.py",
)  # collecting them takes seconds; the golden rows stand for them
_LEAST_LIMIT = 120.0


def targets() -> list[str]:
    """Files that are mutated: the mathematics of both packages, without figures, commands and the checks themselves."""
    core = [
        file
        for file in sorted((ROOT / "ssdcore").rglob("*.py"))
        if file.name != "__init__.py" and not {"theorems", "testing"} & set(file.relative_to(ROOT).parts)
    ]
    torch = [file for name in _TORCH if (file := ROOT / "ssdcore_torch" / name).exists()]
    names = [str(file.relative_to(ROOT)) for file in (*core, *torch)]
    return [name for name in names if name not in _LEFT_OUT]


def all_mutants(package: str | None = None) -> list[Mutant]:
    """All mutants in the random order of the seed."""
    files = [file for file in targets() if package is None or file.split("/")[0] == package]
    found = [mutant for file in files for mutant in mutants_of(ROOT, file)]
    random.Random(SEED).shuffle(found)
    return found


# ---- which test touches which line


def collect_contexts(packages: Sequence[str]) -> None:
    """Write contexts.json: file -> line -> golden rows and tests, and how long each takes."""
    STORE.mkdir(exist_ok=True)
    lines: dict[str, dict[str, list[str]]] = {}
    seconds: dict[str, float] = {}
    if (STORE / "contexts.json").exists():
        known = json.loads((STORE / "contexts.json").read_text())
        lines, seconds = known["lines"], known["seconds"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "ssdcore" in packages:
            code = _GOLDEN_CONTEXTS
            command = [sys.executable, "-c", code, str(folder / "golden"), str(ROOT / "ssdcore")]
            done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            seconds |= json.loads(done.stdout)
            _merge(lines, folder / "golden")
        for package in packages:
            environment = {
                **os.environ,
                "COVERAGE_FILE": str(folder / package),
                "MUTATION_DURATIONS": str(folder / "seconds.json"),
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]),
            }
            files = [f"tests/test_{name}.py" for name in TESTS[package]]
            command = [sys.executable, "-m", "pytest", "-q", "-p", "record", "--cov=ssdcore", "--cov=ssdcore_torch",
                       "--cov-context=test", "--cov-report=", *files]  # fmt: skip
            done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
            if done.returncode != 0:
                raise SystemExit("the tests must pass before mutants can fail them")
            seconds |= json.loads((folder / "seconds.json").read_text())
            _merge(lines, folder / package)
    (STORE / "contexts.json").write_text(json.dumps({"lines": lines, "seconds": seconds}))
    print(f"{len(seconds)} golden rows and tests, {sum(map(len, lines.values()))} lines")


_GOLDEN_CONTEXTS = """
import json, sys, time
import coverage
cov = coverage.Coverage(data_file=sys.argv[1], source=[sys.argv[2]], branch=False)
cov.start()
from ssdcore.testing.golden import GOLDEN
from ssdcore.testing._report import run_check
seconds = {}
for check in GOLDEN:
    cov.switch_context("golden::" + check.name)
    start = time.monotonic()
    assert not run_check(check, None, "float64", {}).failed
    seconds["golden::" + check.name] = time.monotonic() - start
cov.stop()
cov.save()
print(json.dumps(seconds))
"""


def _merge(lines: dict[str, dict[str, list[str]]], data_file: Path) -> None:
    import coverage

    data = coverage.CoverageData(str(data_file))
    data.read()
    for path in data.measured_files():
        file = os.path.relpath(path, ROOT)
        for line, contexts in data.contexts_by_lineno(path).items():
            known = lines.setdefault(file, {}).setdefault(str(line), [])
            known += [
                name for c in contexts if (name := c.removesuffix("|run")) not in known and "|" not in name and name
            ]


# ---- one mutant


class _Mutated(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Finds one module, with other source."""

    def __init__(self, mutant: Mutant) -> None:
        parts = mutant.file.removesuffix(".py").split("/")
        self.module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        self.mutated = mutant.source(ROOT)
        super().__init__(self.module, str(ROOT / mutant.file))

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != self.module:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def get_code(self, fullname: str) -> Any:
        return compile(self.mutated, self.path, "exec")


def _child(mutant: Mutant, golden: Sequence[str], tests: Sequence[str], pipe: int) -> None:
    """In the forked process: tell the parent what failed, or nothing."""
    report = os.fdopen(pipe, "w")
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    sys.meta_path.insert(0, _Mutated(mutant))
    try:
        if golden:
            from ssdcore.testing._report import run_check
            from ssdcore.testing.golden import GOLDEN

            by_name = {check.name: check for check in GOLDEN}
            for name in golden:
                if run_check(by_name[name.removeprefix("golden::")], None, "float64", {}).failed:
                    report.write(name)
                    return
        if tests:
            import pytest

            first = _FirstFailure()
            quiet = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:cov", "-p", "no:randomly"]
            if pytest.main([*quiet, *tests], plugins=[first]) != 0:
                report.write(first.name or "the tests do not start")
    except BaseException as error:
        report.write(f"{type(error).__name__} on import")
    finally:
        report.flush()


class _FirstFailure:
    name = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid


def try_mutant(mutant: Mutant, contexts: dict[str, Any]) -> dict[str, Any]:
    """The mutant's fate: killed (by what), killed by time, survived, or untouched by any test."""
    of_file, seconds = contexts["lines"].get(mutant.file, {}), contexts["seconds"]
    touching = {name for line in range(mutant.line, mutant.last_line + 1) for name in of_file.get(str(line), ())}
    at_import = str(mutant.line) in of_file and not touching
    if at_import:  # a constant or default of the module: whatever touches the file
        touching = {name for names in of_file.values() for name in names}
    ordered = sorted((name for name in touching if name in seconds), key=seconds.__getitem__)
    golden = [name for name in ordered if name.startswith("golden::")]
    tests, spent = [], 0.0
    for name in (name for name in ordered if not name.startswith(("golden::", *_DEAR))):
        spent += seconds[name]
        if spent > _TEST_SECONDS:
            break
        tests.append(name)
    fate: dict[str, Any] = {
        "name": mutant.name, "file": mutant.file, "line": mutant.line, "kind": mutant.kind, "before": mutant.before,
        "after": mutant.text, "golden": len(golden), "tests": len(tests), "all_tests": len(ordered) - len(golden),
    }  # fmt: skip
    if not golden and not tests:
        return {**fate, "status": "untouched", "by": "", "seconds": 0.0}
    start = time.monotonic()
    limit = _LEAST_LIMIT + 10 * (sum(seconds[name] for name in golden) + spent)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        os.setsid()
        try:
            _child(mutant, golden, tests, writing)
        finally:
            os._exit(0)
    os.close(writing)
    by, ended = _wait(pid, reading, limit)
    status = ("killed" if by else "survived") if ended else "killed by time"
    return {**fate, "status": status, "by": by, "seconds": round(time.monotonic() - start, 2)}


def _wait(pid: int, reading: int, limit: float) -> tuple[str, bool]:
    """(what the child wrote, whether it ended in time)."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            with os.fdopen(reading) as pipe:
                text = pipe.read()
            return text or ("a crash" if status else ""), True
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)  # the child is the leader of its own group
    os.waitpid(pid, 0)
    os.close(reading)
    return "", False


# ---- slices and the report


def read_contexts() -> dict[str, Any]:
    file = STORE / "contexts.json"
    if not file.exists():
        raise SystemExit("no contexts yet: python benchmarks/mutation/run.py contexts")
    return dict(json.loads(file.read_text()))


def preload() -> None:
    """What every fork would import, but for the library itself."""
    for name in ("numpy", "mpmath", "sympy", "hypothesis", "pytest", "array_api_compat", "torch", "scipy.sparse"):
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
    if any(name.split(".")[0] in ("ssdcore", "ssdcore_torch") for name in sys.modules):
        raise RuntimeError("the library must not be loaded before a fork")


def results() -> Iterator[dict[str, Any]]:
    file = STORE / "results.jsonl"
    if file.exists():
        yield from map(json.loads, file.read_text().splitlines())


def run(chosen: Sequence[Mutant], minutes: float, again: bool) -> list[dict[str, Any]]:
    """Try what has no result yet, until the time is over; results are kept as they come."""
    contexts = read_contexts()
    known = {} if again else {row["name"]: row for row in results()}
    preload()
    deadline, fates = time.monotonic() + 60 * minutes, []
    with open(STORE / "results.jsonl", "a", encoding="utf-8") as file:
        for mutant in chosen:
            if mutant.name in known:
                fates.append(known[mutant.name])
                continue
            if time.monotonic() > deadline:
                break
            fate = try_mutant(mutant, contexts)
            fates.append(fate)
            file.write(json.dumps(fate) + "\n")
            file.flush()
            print(f"{fate['status']:15} {fate['seconds']:6.1f} s  {mutant.file}:{mutant.line} {mutant.kind}: "
                  f"{mutant.before!r} -> {mutant.text!r}  {fate['by']}", flush=True)  # fmt: skip
    return fates


def reasons() -> dict[str, str]:
    file = HERE / "reasons.json"
    return dict(json.loads(file.read_text())) if file.exists() else {}


def summary(fates: Sequence[dict[str, Any]], total: int) -> tuple[str, float]:
    """The report as Markdown, and the share of killed among those that are not equivalent."""
    why = reasons()
    survivors = [row for row in fates if row["status"] in ("survived", "untouched")]
    equivalent = [row for row in survivors if why.get(row["name"], "").startswith("equivalent")]
    later = [row for row in survivors if why.get(row["name"], "").startswith("killed by")]
    counted = len(fates) - len(equivalent)
    killed = len(fates) - len(survivors) + len(later)
    score = killed / counted if counted else 0.0
    by_golden = sum(row["by"].startswith("golden::") for row in fates)
    lines = [
        f"{len(fates)} of {total} mutants tried, drawn at random: {len(fates) - len(survivors)} killed at once "
        f"({by_golden} by golden rows), {len(later)} by tests written since, {len(equivalent)} equivalent, "
        f"{len(survivors) - len(equivalent) - len(later)} alive. **Score {100 * score:.1f} %** "
        f"({killed} of {counted} that are not equivalent).",
        "",
        "| file | tried | killed | equivalent | alive |",
        "|---|---|---|---|---|",
    ]
    names = {row["name"] for row in (*equivalent, *later)}
    for file in sorted({row["file"] for row in fates}):
        own = [row for row in fates if row["file"] == file]
        alive = [row for row in own if row in survivors and row["name"] not in names]
        same = sum(row in equivalent for row in own)
        lines.append(f"| {file} | {len(own)} | {len(own) - len(alive) - same} | {same} | {len(alive)} |")
    lines += ["", "| kind | tried | alive or equivalent |", "|---|---|---|"]
    kinds, left = Counter(row["kind"] for row in fates), Counter(row["kind"] for row in survivors)
    lines += [f"| {kind} | {kinds[kind]} | {left[kind]} |" for kind in sorted(kinds)]
    lines += ["", "| survivor | edit | why |", "|---|---|---|"]
    for row in sorted(survivors, key=lambda row: (row["file"], row["line"])):
        edit = f"`{row['before']}` → `{row['after']}`".replace("|", "\\|").replace("\n", " ")
        reason = why.get(row["name"], "no test touches it" if row["status"] == "untouched" else "alive")
        lines.append(f"| {row['file']}:{row['line']} {row['kind']} | {edit} | {reason} |")
    return "\n".join(lines) + "\n", score


def main(arguments: Sequence[str] | None = None) -> int:
    global STORE
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=STORE, help="folder of contexts and results")
    commands = parser.add_subparsers(dest="command", required=True)
    contexts = commands.add_parser("contexts", help="find out which test touches which line")
    contexts.add_argument("--package", choices=sorted(TESTS), action="append")
    slices = commands.add_parser("run", help="try mutants that have no result yet")
    slices.add_argument("--minutes", type=float, default=10.0)
    slices.add_argument("--count", type=int, help="only the first of the order")
    slices.add_argument("--package", choices=sorted(TESTS))
    slices.add_argument("--again", action="store_true", help="also those that have a result")
    slices.add_argument("--survivors", action="store_true", help="only those that survived, again")
    slices.add_argument("--least", type=float, default=0.0, help="exit status 1 below this score")
    report = commands.add_parser("report", help="the score and the survivors")
    report.add_argument("--package", choices=sorted(TESTS))
    report.add_argument("--write", action="store_true", help="write RESULT.md")
    args = parser.parse_args(arguments)
    STORE = args.store
    if args.command == "contexts":
        collect_contexts(args.package or list(TESTS))
        return 0
    if args.command == "run":
        chosen = all_mutants(args.package)[: args.count]
        if args.survivors:
            alive = {row["name"] for row in latest() if row["status"] in ("survived", "untouched")}
            chosen = [mutant for mutant in chosen if mutant.name in alive]
        fates = run(chosen, args.minutes, args.again or args.survivors)
        text, score = summary(fates, len(all_mutants(args.package)))
        print(text)
        return 0 if score >= args.least else 1
    order, known = all_mutants(args.package), {row["name"]: row for row in latest()}
    # the first of the order, as far as all have a result: a fair sample, which results out of turn would not be
    tried = list(itertools.takewhile(lambda row: row is not None, (known.get(mutant.name) for mutant in order)))
    text, _ = summary([row for row in tried if row is not None], len(order))
    print(text)
    if args.write:
        head = (
            "# Mutation score\n\nOutput of `python benchmarks/mutation/run.py report`; see there for what is done.\n\n"
        )
        (HERE / "RESULT.md").write_text(head + text, encoding="utf-8")
    return 0


def latest() -> list[dict[str, Any]]:
    """The last result of each mutant."""
    return list({row["name"]: row for row in results()}.values())


if __name__ == "__main__":
    raise SystemExit(main())
