"""Mutation testing of the library's own numerical source: what share of small wrong edits do the tests notice?

    python benchmarks/mutation/run.py contexts                 # which test touches which line; some minutes
    python benchmarks/mutation/run.py run --minutes 30         # a slice; run it again and it goes on
    python benchmarks/mutation/run.py run --file ssdcore/placement.py --count 14    # new code, as densely as the rest
    python benchmarks/mutation/run.py run --survivors          # those alive again, after contexts, with new tests
    python benchmarks/mutation/run.py report                   # the score, the survivors; --write for RESULT.md
    python benchmarks/mutation/run.py sample                   # 60 of the killed again, each by what killed it

Each mutant is one edit: arithmetic, comparison, boundary, constant, index, sign, transpose, order, call (mutants.py).
A forked process tries it (trials.py): golden rows of `verify` first, for they are quick, then the tests that touch the
changed lines, quickest first, until one fails. Mutants are in a random order that the seed and their names fix, so the
first n are a fair sample of all, and the first of one file a fair sample of it. A name holds as long as the function's
code does, and with it the result in results.jsonl. One that runs on for ever is killed by time.

Why a survivor is equivalent, or else lives on, is written in reasons.json; the first word tells which.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CONTEXTS = ROOT / ".mutation" / "contexts.json"  # not committed
RESULTS = HERE / "results.jsonl"
sys.path.insert(0, str(HERE))

from mutants import Mutant, mutants_of  # noqa: E402
from trials import Fate, Job, fresh, preload, warm  # noqa: E402

SEED = 20
_LEFT_OUT = {
    f"ssdcore/{name}.py"
    for name in ("plotting", "__main__", "_design", "_plot", "_verify", "_data", "_extras", "files", "_pytrees")
}
_TORCH = (
    "diffusion.py", "ema/__init__.py", "official.py", "randomness.py", "restoration.py",
    "sampling/_walk.py", "sampling/_generate.py", "sampling/_encoding.py", "sampling/_shared.py",
    "sampling/_placement.py", "sampling/_residuals.py", "sampling/_precision.py",
)  # fmt: skip
TESTS = {
    "ssdcore": (
        "edges", "operators", "spectral", "gaussian", "process", "schedules", "oracle", "interop", "times",
        "times_laws", "power", "size_changes", "second_moments", "bad_inputs", "information_design", "design_cli",
        "survivors",
    ),
    "ssdcore_torch": (
        "sampling", "sampling_loops", "ema", "official", "diffusion", "preconditioning", "encoding", "restoration",
        "randomness", "processes", "survivors_torch",
    ),
}  # fmt: skip
_TEST_SECONDS = (6.0, 20.0)  # of tests for one mutant, the quickest first; when it is tried again
_SAMPLE = 60


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
    """All mutants in the random order of the seed: that of a digest of their names."""
    files = [file for file in targets() if package is None or file.split("/")[0] == package]
    found: dict[str, Mutant] = {}
    for mutant in (mutant for file in files for mutant in mutants_of(ROOT, file)):
        name, k = mutant.name, 1
        while name in found:  # a function of the same name and code elsewhere
            k += 1
            name = f"{mutant.name}-{k}"
        found[name] = replace(mutant, name=name)
    return [found[name] for name in sorted(found, key=lambda name: hashlib.sha256(f"{SEED} {name}".encode()).digest())]


# ---- which test touches which line


def collect_contexts(packages: Sequence[str]) -> None:
    """Write contexts.json: file -> line -> golden rows and tests, and how long each takes."""
    CONTEXTS.parent.mkdir(exist_ok=True)
    lines: dict[str, dict[str, list[str]]] = {}
    seconds: dict[str, float] = {}
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
    CONTEXTS.write_text(json.dumps({"lines": lines, "seconds": seconds}))
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


# ---- slices and the report


def read_contexts() -> dict[str, Any]:
    if not CONTEXTS.exists():
        raise SystemExit("no contexts yet: python benchmarks/mutation/run.py contexts")
    return dict(json.loads(CONTEXTS.read_text()))


def job_of(mutant: Mutant, contexts: dict[str, Any], again: bool) -> Job:
    """The golden rows that touch the changed lines, then the tests."""
    of_file, seconds = contexts["lines"].get(mutant.file, {}), contexts["seconds"]
    touching = {name for line in range(mutant.line, mutant.last_line + 1) for name in of_file.get(str(line), ())}
    if not touching and str(mutant.line) in of_file:  # run at import: whatever touches the file
        touching = {name for names in of_file.values() for name in names}
    ordered = sorted((name for name in touching if name in seconds), key=seconds.__getitem__)
    golden = [name for name in ordered if name.startswith("golden::")]
    tests, spent = [], 0.0
    for name in (name for name in ordered if not name.startswith("golden::")):
        spent += seconds[name]
        if spent > _TEST_SECONDS[again]:
            break
        tests.append(name)
    return Job(mutant, tuple(golden), tuple(tests), sum(seconds[name] for name in (*golden, *tests)))


def recorded() -> Iterator[dict[str, Any]]:
    """All results, the oldest first: one of a mutant that was tried again follows its earlier ones."""
    if RESULTS.exists():
        yield from map(json.loads, RESULTS.read_text().splitlines())


def latest() -> dict[str, dict[str, Any]]:
    """The last result of each mutant, with what the first was."""
    rows: dict[str, dict[str, Any]] = {}
    for row in recorded():
        rows[row["name"]] = {**row, "first": rows.get(row["name"], row).get("first", row["status"])}
    return rows


def tries(jobs: Sequence[Job], deadline: float, again: bool) -> Iterator[tuple[Job, Fate]]:
    """The fate of each job, until the time is over."""
    by_name = {job.mutant.name: job for job in jobs}
    left = dict(by_name)
    inside = [job for job in jobs if job.mutant.function and (job.golden or job.tests)]
    # a third of the time for what the quick way leaves
    for name, fate in warm(inside, ROOT, time.monotonic() + 0.67 * (deadline - time.monotonic()), again):
        left.pop(name)
        yield by_name[name], fate
    for job in left.values():
        if not (job.golden or job.tests):
            yield job, Fate("untouched", "", 0.0)
        elif time.monotonic() < deadline:
            yield job, fresh(job, ROOT)


def run(chosen: Sequence[Mutant], minutes: float, again: bool) -> None:
    """Try them until the time is over; results are kept as they come."""
    contexts = read_contexts()
    preload()
    deadline, jobs = time.monotonic() + 60 * minutes, [job_of(mutant, contexts, again) for mutant in chosen]
    with open(RESULTS, "a", encoding="utf-8") as file:
        for job, fate in tries(jobs, deadline, again):
            mutant = job.mutant
            row = {"name": mutant.name, "status": fate.status, "by": fate.by}
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{fate.status:15} {fate.seconds:6.1f} s  {mutant.file}:{mutant.line} {mutant.kind}: "
                  f"{mutant.before!r} -> {mutant.text!r}  {fate.by}", flush=True)  # fmt: skip


def sample(count: int) -> int:
    """Try the first `count` recorded kills again, each with what killed it; how many live now."""
    known, chosen = latest(), []
    for mutant in all_mutants():
        row = known.get(mutant.name, {"status": "", "by": ""})
        if row["status"] == "killed" and _exists(row["by"]):
            golden, tests = ((row["by"],), ()) if row["by"].startswith("golden::") else ((), (row["by"],))
            chosen.append(Job(mutant, golden, tests, seconds=10.0))
    chosen = chosen[:count]
    if len(chosen) < count:
        raise SystemExit(f"only {len(chosen)} recorded kills fit the source and the tests; record more with `run`")
    preload()
    alive = [job for job, fate in tries(chosen, math.inf, True) if fate.status == "survived"]
    for job in alive:
        mutant = job.mutant
        print(f"alive: {mutant.file}:{mutant.line} {mutant.kind}: {mutant.before!r} -> {mutant.text!r}, "
              f"which {(*job.golden, *job.tests)[0]} killed when it was recorded")  # fmt: skip
    print(f"{count - len(alive)} of {count} killed")
    return len(alive)


def _exists(check: str) -> bool:
    """Whether what killed a mutant is still there: a golden row, or a test."""
    file, _, name = check.partition("::")
    path = ROOT / file
    return file == "golden" or (path.is_file() and f"def {name.partition('[')[0].split('::')[-1]}(" in path.read_text())


def reasons() -> dict[str, str]:
    file = HERE / "reasons.json"
    return dict(json.loads(file.read_text())) if file.exists() else {}


def summary(rows: Sequence[tuple[Mutant, dict[str, Any]]], total: int) -> str:
    """The report as Markdown. The score is the share of killed among those that are not equivalent."""
    why = reasons()
    alive = [(mutant, row) for mutant, row in rows if row["status"] in ("survived", "untouched")]
    equivalent = {mutant.name for mutant, _ in alive if why.get(mutant.name, "").startswith("equivalent")}
    killed = len(rows) - len(alive)
    later = sum(row["first"] in ("survived", "untouched") for _, row in rows) - len(alive)
    golden = sum(row["by"].startswith("golden::") for _, row in rows)
    counted = len(rows) - len(equivalent)
    score, left = killed / counted if counted else 0.0, len(alive) - len(equivalent)
    error = math.sqrt(score * (1 - score) / max(counted, 1))
    lines = [
        f"{len(rows)} of {total} mutants tried, drawn at random: {killed - later} killed at once, {later} by tests "
        f"written since ({golden} in all by golden rows), {len(equivalent)} equivalent, {left} alive. "
        f"**Score {100 * score:.1f} %** ({killed} of {counted} that are not equivalent; standard error of the draw "
        f"{100 * error:.1f} %).",
        "Not counted: those tried whose functions have changed since.",
        "",
        "| file | tried | killed | equivalent | alive |",
        "|---|---|---|---|---|",
    ]
    dead = {mutant.name for mutant, row in rows} - {mutant.name for mutant, _ in alive}
    for file in sorted({mutant.file for mutant, _ in rows}):
        own = {mutant.name for mutant, _ in rows if mutant.file == file}
        same = len(own & equivalent)
        lines.append(f"| {file} | {len(own)} | {len(own & dead)} | {same} | {len(own - dead) - same} |")
    lines += ["", "| kind | tried | alive or equivalent |", "|---|---|---|"]
    kinds, lives = Counter(mutant.kind for mutant, _ in rows), Counter(mutant.kind for mutant, _ in alive)
    lines += [f"| {kind} | {kinds[kind]} | {lives[kind]} |" for kind in sorted(kinds)]
    lines += ["", "| survivor | edit | why |", "|---|---|---|"]
    for mutant, row in sorted(alive, key=lambda pair: (pair[0].file, pair[0].line)):
        edit = f"`{mutant.before}` → `{mutant.text}`".replace("|", "\\|").replace("\n", " ")
        reason = why.get(mutant.name, "no test touches it" if row["status"] == "untouched" else "alive")
        lines.append(f"| {mutant.file}, {mutant.function or 'at import'}: {mutant.kind} | {edit} | {reason} |")
    return "\n".join(lines) + "\n"


def tried() -> tuple[list[tuple[Mutant, dict[str, Any]]], int]:
    """(all that have a result and are in the source still, of how many): a fair sample, as long as `run` draws them."""
    order, known = all_mutants(), latest()
    return [(mutant, known[mutant.name]) for mutant in order if mutant.name in known], len(order)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    contexts = commands.add_parser("contexts", help="find out which test touches which line")
    contexts.add_argument("--package", choices=sorted(TESTS), action="append")
    slices = commands.add_parser("run", help="try mutants that have no result yet")
    slices.add_argument("--minutes", type=float, default=10.0)
    slices.add_argument("--count", type=int, default=100, help="how many")
    slices.add_argument("--package", choices=sorted(TESTS))
    slices.add_argument("--file", metavar="FILE", choices=targets(), help="mutants of this file alone")
    slices.add_argument("--survivors", action="store_true", help="those that live and are not equivalent, again")
    again = commands.add_parser("sample", help="recorded kills again, each by what killed it")
    again.add_argument("--count", type=int, default=_SAMPLE)
    report = commands.add_parser("report", help="the score and the survivors")
    report.add_argument("--write", action="store_true", help="write RESULT.md")
    args = parser.parse_args(arguments)
    if args.command == "contexts":
        collect_contexts(args.package or list(TESTS))
    elif args.command == "run":
        known, same = latest(), {name for name, reason in reasons().items() if reason.startswith("equivalent")}
        if args.survivors:
            alive = {name for name, row in known.items() if row["status"] in ("survived", "untouched")} - same
            chosen = [mutant for mutant in all_mutants(args.package) if mutant.name in alive]
        else:
            chosen = [mutant for mutant in all_mutants(args.package) if mutant.name not in known]
        if args.file is not None:
            chosen = [mutant for mutant in chosen if mutant.file == args.file]
        run(chosen[: args.count], args.minutes, args.survivors)
    elif args.command == "sample":
        return 1 if sample(args.count) else 0
    else:
        text = summary(*tried())
        print(text)
        if args.write:
            head = (
                "Output of `python benchmarks/mutation/run.py report`; see there for what is done. Equivalent: the "
                "same results but for rounding; speed and what a cache holds may differ."
            )
            (HERE / "RESULT.md").write_text(f"# Mutation score\n\n{head}\n\n{text}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
