"""The machine-checked proofs: the table names what there is, no proof has a gap, and all of it builds."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ssdcore import testing

PROOFS = Path(__file__).parents[1] / "proofs"
SOURCES = sorted(PROOFS.glob("*.v"))
NAMED = re.compile(r"`([^`]+)`")


def table() -> list[list[str]]:
    """The rows of the README's table: what is proved, Rocq names, files, sympy proofs, checks."""
    rows = [line.strip("|").split("|") for line in (PROOFS / "README.md").read_text().splitlines() if line[:1] == "|"]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def statements(source: Path, kinds: str = "Theorem|Corollary|Lemma") -> list[str]:
    return re.findall(rf"^(?:{kinds}) (\w+)", source.read_text(), flags=re.MULTILINE)


def test_the_table_names_theorems_that_exist_where_it_says():
    rows = table()
    assert len(rows) > 20
    for what, names, files, _, _ in rows:
        there = {name for file in NAMED.findall(files) for name in statements(PROOFS / file)}
        assert NAMED.findall(names), what
        assert set(NAMED.findall(names)) <= there, what


def test_every_theorem_is_in_the_table_and_its_assumptions_are_printed():
    theorems = [name for source in SOURCES for name in statements(source, "Theorem|Corollary")]
    assert len(theorems) == len(set(theorems))
    assert set(theorems) == {name for row in table() for name in NAMED.findall(row[1])}
    printed = re.findall(r"^Print Assumptions (\w+)\.$", (PROOFS / "assumptions.v").read_text(), flags=re.MULTILINE)
    assert sorted(theorems) == sorted(printed)


def test_the_table_names_sympy_proofs_and_checks_that_exist():
    theorems = pytest.importorskip("ssdcore.theorems", exc_type=ImportError)
    proved = {name for row in table() for name in NAMED.findall(row[3])}
    assert proved == set(theorems.names()) - {"multistep_order"}  # what the README says is not covered
    checks = {check.name for check in (*testing.OPERATOR_CHECKS, *testing.PROCESS_CHECKS)}
    assert {name for row in table() for name in NAMED.findall(row[4])} <= checks


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_no_proof_has_a_gap(source):
    assert not re.search("admit|axiom|abort", source.read_text(), flags=re.IGNORECASE)


def test_the_makefile_and_the_project_file_know_every_source():
    names = {source.name for source in SOURCES}
    assert {line for line in (PROOFS / "_CoqProject").read_text().splitlines() if line.endswith(".v")} == names
    (built,) = re.findall(r"^FILES = (.*)$", (PROOFS / "Makefile").read_text(), flags=re.MULTILINE)
    assert {f"{name}.v" for name in built.split()} | {"assumptions.v"} == names


@pytest.mark.slow
def test_the_proofs_build_and_rest_on_nothing():
    if shutil.which("coqc") is None:
        pytest.skip("needs coqc, with Mathematical Components: apt-get install coq libcoq-mathcomp-algebra")
    done = subprocess.run(["bash", PROOFS / "check.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    if done.stdout.startswith("skipped"):
        pytest.skip(done.stdout.strip())
    assert re.search(r"^proofs: \d+ theorems, all closed$", done.stdout, flags=re.MULTILINE)
