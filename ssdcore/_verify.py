"""`python -m ssdcore verify`: the proofs, exact reference numbers, and the conformance checks on every backend here."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import importlib
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ssdcore import _plot
from ssdcore.files import write_atomically
from ssdcore.operators import Blur, Functional, Identity, LinearOperator, Matrix, Resize, Separable
from ssdcore.process import LinearDiffusion
from ssdcore.schedules import NoiseSchedule, ResolutionSchedule
from ssdcore.testing._backend import available_dtypes, resolve_namespace
from ssdcore.testing._operator_checks import OPERATOR_CHECKS
from ssdcore.testing._process_checks import PROCESS_CHECKS
from ssdcore.testing._report import Check, Report, Row
from ssdcore.testing._run import run_operator_checks, run_process_checks

# name -> module whose arrays are checked
BACKENDS = {
    "numpy": "numpy",
    "array-api-strict": "array_api_strict",
    "torch": "torch",
    "jax": "jax.numpy",
    "cupy": "cupy",
}
_KINDS = ("operator", "process")
# jax compiles every function anew for each shape and dtype. It gets the checks that do not depend on the dtype in
# float32 alone, and none of what differs from another subject by its numbers alone.
_MANNERS = {
    "shapes", "batch_items", "namespace", "repeatability", "results_kept", "global_rng", "inputs_untouched",
    "noncontiguous", "refusals",
}  # fmt: skip
_ALIKE = {"resize bilinear", "resize lanczos3", "heat", "resize, paper's noise"}
_THOROUGH = 1000
_INSTANCES = 4  # random instances on which a theorem's formulas are compared with the code
_EXTRA = "pip install 'ssdcore[verify]'"


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of `python -m ssdcore`."""
    parser = commands.add_parser(
        "verify",
        help="prove the theorems and check every operator and process on every backend installed",
        description="Proves the theorems symbolically, compares the library's numbers with exact ones computed without "
        "it, then puts every operator and process that is shipped through its conformance checks, with the arrays of "
        "every backend installed, in every dtype they have. "
        "Exit status: 0 if all hold, 1 if anything failed, 2 if it could not run.",
    )
    parser.add_argument("--json", metavar="PATH", help="also write the results as JSON; - for standard output alone")
    _plot.add_option(parser)
    parser.add_argument("--thorough", action="store_true", help=f"{_THOROUGH} random examples each; many minutes")
    parser.add_argument(
        "--backend", action="append", choices=sorted(BACKENDS), help="only this one; may be given several times"
    )
    parser.set_defaults(run=run)


def shipped_operators() -> dict[str, LinearOperator]:
    """One of each kind. Shapes repeat, for jax compiles every function anew for each."""
    rng = np.random.default_rng(0)
    high, low = (6, 4), (3, 2)
    dense = Matrix(rng.standard_normal((6, 24)), high, low)
    resize = Resize(high, low)
    operators: dict[str, LinearOperator] = {
        "identity": Identity(high),
        **{f"resize {kernel}": Resize(high, low, kernel) for kernel in ("box", "bilinear", "bicubic", "lanczos3")},
        "resize up": Resize(low, high),
        "blur reflect": Blur(high, 1.3),
        "blur periodic": Blur(high, (0.4, 2.0), "periodic"),
        "heat": Blur.heat(high, 0.5),
        "separable": Separable([rng.standard_normal((3, 6)), rng.standard_normal((2, 4))]),
        "matrix": dense,
        "functional": Functional(dense, dense.T, high, low),
        "transpose": resize.T,
        "multiple": -0.5 * resize,
        "resize @ blur": resize @ Blur(high, 0.8),
        "matrix @ blur": dense @ Blur(high, 0.8),
    }
    try:
        import scipy.sparse
    except ImportError:
        return operators
    # Rows of four entries or two, columns of one: rows are gathered by how many they have.
    coarsening = scipy.sparse.csr_array(np.where(np.arange(24) // 4 == np.arange(6)[:, None], rng.random((6, 24)), 0.0))
    coarsening[5, 22:] = 0.0
    coarsening.eliminate_zeros()
    return {**operators, "sparse matrix": Matrix(coarsening, high, low)}


def _other_shapes() -> dict[str, LinearOperator]:
    """What would have jax compile most functions once more."""
    operators: dict[str, LinearOperator] = {
        "resize 1-D": Resize((12,), (5,), "bicubic"),
        "resize 3-D": Resize((4, 6, 4), (2, 3, 2)),
        "blur 1-D": Blur(9, 1.0),
    }
    try:
        import scipy.sparse
    except ImportError:
        return operators
    irregular = scipy.sparse.random(6, 24, 0.3, format="csr", random_state=0)
    return {**operators, "sparse matrix, irregular": Matrix(irregular, (6, 4), (3, 2))}


def shipped_processes() -> dict[str, LinearDiffusion]:
    """One of each kind."""
    noise, shape = NoiseSchedule.linear(30), (6, 4)
    levels = ResolutionSchedule.convex(30, 2)
    steps: list[LinearOperator | None] = [None, Resize(shape, (3, 2)) @ Blur(shape, 0.5), None]
    return {
        "identity": LinearDiffusion.identity(shape, noise),
        "resize, matched": LinearDiffusion.resize(shape, noise, levels),
        "resize, paper's noise": LinearDiffusion.resize(shape, NoiseSchedule.cosine(30), levels, matched=False),
        "blur": LinearDiffusion.blur(shape, noise, np.linspace(0, 3, 31)),
        "operators": LinearDiffusion.from_operators(steps, NoiseSchedule.from_log_snr([3.0, 0.0, -3.0])),
    }


@dataclass
class Tally:
    """Results added up: for each check, backend and dtype how many measurements, the worst, and every failure."""

    kind: str = ""
    entries: dict[tuple[str, str, str, str], dict[str, Any]] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)

    def add(self, backend: str, subject: str, rows: Iterable[Row]) -> None:
        for row in rows:
            if row.failed:
                self.failures.append(
                    {"kind": self.kind, "backend": backend, "dtype": row.dtype, "subject": subject, "what": str(row)}
                )
            entry = self.entries.setdefault(
                (self.kind, row.check, backend, row.dtype),
                {"count": 0, "skipped": 0, "failed": 0, "ratio": -1.0, "worst": None, "tolerance": None, "subject": ""},
            )
            entry["count"] += row.count
            entry["skipped"] += row.status == "skipped"
            entry["failed"] += row.failed
            if row.count and row.ratio > entry["ratio"]:
                entry.update(ratio=row.ratio, worst=row.measured, tolerance=row.tolerance, subject=subject)

    def merge(self, other: Tally) -> None:
        """Add the results of another backend."""
        self.entries.update(other.entries)
        self.failures.extend(other.failures)

    def rows(self) -> list[dict[str, Any]]:
        keys = ("kind", "check", "backend", "dtype")
        return [{**dict(zip(keys, key)), **entry} for key, entry in self.entries.items()]


def run(args: argparse.Namespace) -> int:
    """Run the command; its exit status."""
    start = time.monotonic()
    missing = [name for name in ("sympy", *(["hypothesis"] if args.thorough else [])) if not _importable(name)]
    if missing:
        print(f"verify needs {' and '.join(missing)}: {_EXTRA}", file=sys.stderr)
        return 2
    try:
        _plot.check(args.plot)
        if args.json not in (None, "-") and not Path(args.json).absolute().parent.is_dir():
            raise ValueError(f"--json {args.json}: there is no folder {Path(args.json).parent} to write it in")
    except ValueError as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2
    present, absent = _find_backends(args.backend or list(BACKENDS))
    if args.backend and absent:
        print(f"verify: not installed: {', '.join(absent)}", file=sys.stderr)
        return 2
    tally = Tally()
    # jax first, and all of it in one process, which compiles what the kinds share once: longer than all else together
    jobs = [(name, args.thorough) for name in sorted(present, key="jax".__ne__)]
    if len(present) > 1:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context, initializer=_one_thread_each) as pool:
            parts = [pool.submit(check_kinds, *job) for job in jobs]
            golden, proving = pool.submit(check_golden), pool.submit(prove_all)
            tallies = [*(tally for part in parts for tally in part.result()), golden.result()]
            proofs = proving.result()
    else:
        proofs = prove_all()
        tallies = [*(tally for job in jobs for tally in check_kinds(*job)), check_golden()]
    for part in sorted(tallies, key=lambda part: part.kind):
        tally.merge(part)
    result = _result(tally, proofs, present, absent, time.monotonic() - start, args.thorough)
    if args.json == "-":
        print(json.dumps(result, indent=1))
    else:
        print(_table(result))
        if args.json:
            write_atomically(args.json, lambda file: file.write_text(json.dumps(result, indent=1), encoding="utf-8"))
    if args.plot:
        from ssdcore import plotting

        plotting.save(plotting.checks(_worst_ratios(result["checks"]), "Conformance of what is shipped"), args.plot)
        if args.json != "-":
            print(f"wrote {args.plot}")
    return 0 if result["passed"] else 1


def _importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _find_backends(names: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    present: dict[str, Any] = {}
    absent = []
    for name in names:
        if _importable(BACKENDS[name]):
            present[name] = sys.modules[BACKENDS[name]]
        else:
            absent.append(name)
    return present, absent


def _devices(name: str, module: Any) -> list[tuple[str, Any]]:
    """(label, device): the library's default, and the GPU where torch has one."""
    gpu = name == "torch" and module.cuda.is_available()
    return [(name, None), *([("torch on cuda", module.device("cuda"))] if gpu else [])]


@contextlib.contextmanager
def _jax_float64(name: str) -> Iterator[None]:
    """jax has float64 only on request; its float32 results are the same with it."""
    if name != "jax":
        yield
        return
    jax = importlib.import_module("jax")
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental").enable_x64
    with enable(True):
        yield


def _one_thread_each() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # read by torch when it is imported; small arrays gain nothing from threads
    # read by jax: what is compiled here runs a few times, and single operations are nothing to optimise
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


def check_backend(name: str, kind: str, thorough: bool) -> Tally:
    """All checks of one backend on "operator" or "process"."""
    module = importlib.import_module(BACKENDS[name])
    tally = Tally(kind)
    for label, device in _devices(name, module):
        with _jax_float64(name):
            _check_shipped(tally, label, module, device)
            if thorough:
                _check_thoroughly(tally, label, module, device)
    return tally


def check_kinds(name: str, thorough: bool) -> list[Tally]:
    """`check_backend` of every kind."""
    return [check_backend(name, kind, thorough) for kind in _KINDS]


def check_golden() -> Tally:
    """The golden rows: the library's numbers against exact ones that are computed without it."""
    from ssdcore.testing import golden

    tally = Tally("golden")
    tally.add("numpy", "ssdcore", golden.check_golden().rows)
    return tally


def prove_all() -> list[dict[str, Any]]:
    """Prove every theorem, refute every false variant, and compare what was proved with what the library computes."""
    from ssdcore import theorems

    proofs = []
    for name in theorems.names():
        proof = theorems.prove(name)
        refuted = [variant for variant in theorems.false_variants(name) if not theorems.prove(name, variant).holds]
        variants = len(theorems.false_variants(name))
        compared = [comparison for seed in range(_INSTANCES) for comparison in theorems.compare(name, seed)]
        agreed = sum(comparison.agrees for comparison in compared)
        proofs.append(
            {
                "name": name,
                "holds": bool(proof.holds),
                "steps": len(proof.steps),
                "false_variants": variants,
                "refuted": len(refuted),
                "comparisons": len(compared),
                "agreed": agreed,
                "passed": bool(proof.holds) and len(refuted) == variants and 0 < agreed == len(compared),
            }
        )
    return proofs


def _check_shipped(tally: Tally, label: str, module: Any, device: Any) -> None:
    dtypes = available_dtypes(resolve_namespace(module))
    if tally.kind == "process":
        for name, proc in _subjects(shipped_processes(), label).items():
            for these, checks in _shares(PROCESS_CHECKS, dtypes, label):
                tally.add(label, name, run_process_checks(proc, module, these, device, 3, 0, {}, checks).rows)
        return
    for name, op in _subjects({**shipped_operators(), **_other_shapes()}, label).items():
        for these, checks in _shares(OPERATOR_CHECKS, dtypes, label):
            tally.add(label, name, run_operator_checks(op, module, these, device, 3, 0, {}, checks).rows)


def _subjects(all_of_them: dict[str, Any], label: str) -> dict[str, Any]:
    if label != "jax":
        return all_of_them
    left_out = _ALIKE | _other_shapes().keys()
    return {name: subject for name, subject in all_of_them.items() if name not in left_out}


def _shares(
    checks: tuple[Check, ...], dtypes: Sequence[str], label: str
) -> tuple[tuple[Sequence[str] | None, tuple[Check, ...]], ...]:
    """Which checks run in which dtypes; None: all that there are."""
    if label != "jax":
        return ((None, checks),)
    numbers = tuple(check for check in checks if check.name not in _MANNERS)
    return (["float32"], checks), ([name for name in dtypes if name != "float32"], numbers)


def _check_thoroughly(tally: Tally, label: str, module: Any, device: Any) -> None:
    """Random operators and processes; for jax, which compiles each new shape, random inputs of shipped operators."""
    from ssdcore import testing

    if label == "jax":
        for name, op in shipped_operators().items() if tally.kind == "operator" else ():
            rows = run_operator_checks(op, module, None, device, _THOROUGH, 1, {}).rows
            tally.add(label, f"{name}, {_THOROUGH} inputs", rows)
    elif tally.kind == "operator":
        _draw(testing.operators(), lambda op: run_operator_checks(op, module, None, device, 2, 0, {}), tally, label)
    else:
        _draw(testing.processes(), lambda proc: run_process_checks(proc, module, None, device, 2, 0, {}), tally, label)


def _draw(strategy: Any, check: Callable[[Any], Report], tally: Tally, label: str) -> None:
    from hypothesis import HealthCheck, Phase, given, settings

    @settings(
        max_examples=_THOROUGH,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(subject: Any) -> None:
        report = check(subject)
        tally.add(label, report.subject, report.rows)

    each()


def _result(
    tally: Tally,
    proofs: list[dict[str, Any]],
    present: dict[str, Any],
    absent: list[str],
    seconds: float,
    thorough: bool,
) -> dict[str, Any]:
    rows = tally.rows()
    for row in rows:
        for key in ("ratio", "worst", "tolerance"):
            if row[key] is not None and not math.isfinite(row[key]):
                row[key] = None  # JSON has no infinity; `failed` says what it meant
        if row["count"] == 0:
            row["ratio"] = None
    backends: dict[str, Any] = {}
    for name, module in present.items():
        version = getattr(sys.modules[module.__name__.partition(".")[0]], "__version__", "unknown version")
        with _jax_float64(name):
            backends[name] = {"version": version, "dtypes": list(available_dtypes(resolve_namespace(module)))}
    return {
        "passed": bool(rows) and not tally.failures and bool(proofs) and all(proof["passed"] for proof in proofs),
        "thorough": thorough,
        "seconds": round(seconds, 2),
        "backends": backends,
        "skipped_backends": absent,
        "proofs": proofs,
        "checks": rows,
        "failures": tally.failures,
    }


def _table(result: dict[str, Any]) -> str:
    """One line a check, over all operators, backends and dtypes, each with where it came closest to its tolerance."""
    lines: list[tuple[str, ...]] = [("check", "count", "worst error", "tolerance", "ratio", "worst at", "result")]
    for proof in result["proofs"]:
        outcome = "proved" if proof["passed"] else "FAILED"
        found = (
            f"{proof['refuted']} of {proof['false_variants']} false variants refuted, "
            f"{proof['agreed']} of {proof['comparisons']} values of the code agree"
        )
        lines.append((f"proof: {proof['name']}", str(proof["steps"]), "", "", "", found, outcome))
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in result["checks"]:
        groups.setdefault((row["kind"], row["check"]), []).append(row)
    for (kind, check), rows in groups.items():
        failed = any(row["failed"] for row in rows)
        measured = [row for row in rows if row["count"]]
        count = str(sum(row["count"] for row in rows))
        outcome = "FAILED" if failed else ("passed" if measured else "skipped")
        if not measured:
            lines.append((f"{kind}: {check}", count, "", "", "", "", outcome))
            continue
        worst = max(measured, key=lambda row: math.inf if row["ratio"] is None else row["ratio"])
        numbers = [_number(worst[key]) for key in ("worst", "tolerance", "ratio")]
        where = f"{worst['subject']}, {worst['backend']} {worst['dtype']}"
        lines.append((f"{kind}: {check}", count, *numbers, where, outcome))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    text.append("")
    for failure in result["failures"]:
        text.append(f"FAILED {failure['kind']} {failure['subject']} on {failure['backend']}: {failure['what']}")
    for name, about in result["backends"].items():
        text.append(f"backend {name} {about['version']}: {', '.join(about['dtypes'])}")
    for name in result["skipped_backends"]:
        text.append(f"backend {name}: skipped, not installed")
    total = sum(row["count"] for row in result["checks"])
    verdict = "all passed" if result["passed"] else "FAILED"
    text.append(f"{len(result['proofs'])} proofs, {total} measurements in {result['seconds']:.1f} s: {verdict}")
    return "\n".join(text)


def _worst_ratios(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """backend -> check -> the worst error as a share of its tolerance over the dtypes, of the rows of a result."""
    worst: dict[str, dict[str, float]] = {}
    for row in rows:
        ratio = row["ratio"]
        if ratio is None and not row["failed"]:
            continue  # skipped
        series = worst.setdefault(row["backend"], {})
        name = f"{row['kind']}: {row['check']}"
        series[name] = max(series.get(name, 0.0), math.inf if ratio is None else ratio)
    return worst


def _number(value: float | None) -> str:
    if value is None:
        return "not finite"
    return "0" if value == 0 else f"{value:.2g}"
