"""The mutation runner and the planted faults: the machinery quickly, samples of both as slow tests."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def load(path: str) -> ModuleType:
    file = ROOT / "benchmarks" / path
    spec = importlib.util.spec_from_file_location(f"mutation_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


mutants = load("mutation/mutants.py")
faults = load("faults.py")

SOURCE = '''"""Docstring with 1 + 1."""
LIMIT = 3


def f(a: int = 2, *, flag: bool = False) -> float:
    """Another 2 * 2."""
    if a < LIMIT and not flag:
        raise ValueError(f"{a + 1} is 1 too small")
    b = a.T @ a[0]
    return max(-b, a - b) ** 2
'''


def kinds_and_texts(source: str, tmp_path: Path) -> set[tuple[str, str, str]]:
    (tmp_path / "m.py").write_text(source)
    return {(m.kind, m.before, m.text) for m in mutants.mutants_of(tmp_path, "m.py")}


def test_mutants_of_a_small_file(tmp_path: Path) -> None:
    found = kinds_and_texts(SOURCE, tmp_path)
    assert found == {
        ("constant", "3", "4"),
        ("constant", "2", "3"),
        ("constant", "False", "True"),
        ("comparison", "a < LIMIT and not flag", "((a < LIMIT) or (not flag))"),
        ("boundary", "a < LIMIT", "((a) <= (LIMIT))"),
        ("comparison", "a < LIMIT", "((a) >= (LIMIT))"),
        ("comparison", "not flag", "(bool(flag))"),
        ("order", "a.T @ a[0]", "((a[0]) @ (a.T))"),
        ("transpose", "a.T", "(a)"),
        ("index", "0", "1"),
        ("arithmetic", "max(-b, a - b) ** 2", "((max(-b, a - b)) * (2))"),
        ("call", "max(-b, a - b)", "min(-b, a - b)"),
        ("sign", "-b", "(b)"),
        ("arithmetic", "a - b", "((a) + (b))"),
        ("order", "a - b", "((b) - (a))"),
    }


def test_mutants_change_one_place_and_keep_their_names(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(SOURCE)
    before = list(mutants.mutants_of(tmp_path, "m.py"))
    for mutant in before:
        changed = mutant.source(tmp_path).decode()
        assert changed != SOURCE
        compile(changed, "m.py", "exec")
        assert changed.replace(mutant.text, mutant.before, 1).count("\n") == SOURCE.count("\n")
    assert len({m.name for m in before}) == len(before)


def test_names_of_mutants_hold_while_their_function_does(tmp_path: Path) -> None:
    def names(source: str, file: str = "m.py") -> list[str]:
        (tmp_path / file).write_text(source)
        return [m.name for m in mutants.mutants_of(tmp_path, file)]

    before = names(SOURCE)
    moved = SOURCE.replace("LIMIT = 3", "# a comment\nLIMIT = 3").replace("Another 2 * 2", "Other words")
    assert names(moved) == before
    assert names(SOURCE, "other.py") == before
    other = names(SOURCE.replace("LIMIT = 3", "LIMIT = 4"))
    assert other[1:] == before[1:]
    assert other[0] != before[0]
    changed = names(SOURCE.replace("a - b", "a * b"))
    assert set(changed) & set(before) == {before[0]}


METHODS = """
class A:
    size = 2

    def f(self, k=1):
        def inner(x):
            return x + k
        return inner(2)

    @property
    def g(self):
        return self.size + 1
"""


def test_mutants_know_the_outermost_function_around_them(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(METHODS)
    found = {(m.before, m.line): m.function for m in mutants.mutants_of(tmp_path, "m.py")}
    assert found == {
        ("2", 3): "", ("1", 5): "", ("x + k", 7): "A.f", ("2", 8): "A.f", ("self.size + 1", 12): "A.g", ("1", 12): "A.g"
    }  # fmt: skip


@pytest.mark.slow
def test_every_fault_s_text_is_in_the_source_once() -> None:
    """A planted fault whose text has moved would otherwise be found only when the benchmark is run."""
    assert len(faults.FAULTS) >= 64
    for fault in faults.FAULTS:
        text = faults.place(fault, ROOT).read_text(encoding="utf-8")
        for old, new in fault.edits:
            assert text.count(old) == 1, f"{fault.what}: {fault.file} has {text.count(old)} times {old!r}"
            assert old != new
    assert len({(fault.file, fault.edits) for fault in faults.FAULTS}) == len(faults.FAULTS)


def test_reasons_say_why_a_mutant_is_equivalent_or_lives() -> None:
    file = ROOT / "benchmarks" / "mutation" / "reasons.json"
    for name, reason in json.loads(file.read_text()).items():
        assert reason.startswith(("equivalent: ", "alive: ")), name


@pytest.mark.slow
def test_a_sample_of_planted_faults_is_seen() -> None:
    command = [sys.executable, "benchmarks/faults.py", "--sample", "8", "--seed", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_sample_of_mutants_is_killed() -> None:
    """Sixty recorded kills, drawn by the seed, each by the golden row or test that killed it when it was recorded."""
    command = [sys.executable, "benchmarks/mutation/run.py", "sample"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
