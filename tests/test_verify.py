"""python -m ssdcore verify."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import ssdcore as ssd
from ssdcore import _verify
from ssdcore.__main__ import main
from ssdcore.testing import OPERATOR_CHECKS, PROCESS_CHECKS, golden
from ssdcore.testing.golden import GOLDEN

CHECK_GOLDEN = _verify.check_golden
PROOF = {
    "name": "ddpm",
    "holds": True,
    "steps": 1,
    "false_variants": 1,
    "refuted": 1,
    "comparisons": 1,
    "agreed": 1,
    "passed": True,
}


@pytest.fixture
def one_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proofs and the golden rows take seconds and are tested elsewhere."""
    monkeypatch.setattr(_verify, "prove_all", lambda: [PROOF])
    monkeypatch.setattr(_verify, "check_golden", lambda: _verify.Tally("golden"))


@pytest.fixture
def one_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that are shipped are checked in test_conformance.py."""
    monkeypatch.setattr(_verify, "shipped_operators", lambda: {"identity": ssd.Identity((6, 4))})
    for name in ("_other_shapes", "shipped_processes"):
        monkeypatch.setattr(_verify, name, dict)


@pytest.mark.slow
def test_numpy_passes_and_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    path = tmp_path / "verify.json"
    assert main(["verify", "--backend", "numpy", "--json", str(path)]) == 0
    text = capsys.readouterr().out
    result = json.loads(path.read_text())
    assert result["passed"]
    assert result["failures"] == []
    assert [proof["name"] for proof in result["proofs"]] == list(ssd.theorems.names())
    assert all(proof["refuted"] == proof["false_variants"] > 0 for proof in result["proofs"])
    assert all(proof["agreed"] == proof["comparisons"] > 0 for proof in result["proofs"])
    for kind, checks, dtypes in (
        ("operator", OPERATOR_CHECKS, {"float64", "float32", "float16"}),
        ("process", PROCESS_CHECKS, {"float64", "float32", "float16"}),
        ("golden", GOLDEN, {"float64"}),
    ):
        for check in checks:
            rows = [row for row in result["checks"] if (row["kind"], row["check"]) == (kind, check.name)]
            assert {row["dtype"] for row in rows} == dtypes
            assert all(row["count"] > 0 and row["worst"] <= row["tolerance"] for row in rows)
            line = next(line for line in text.splitlines() if line.startswith(f"{kind}: {check.name} "))
            assert line.endswith("passed")
            assert f" {sum(row['count'] for row in rows)} " in line
    assert text.rstrip().endswith("all passed")


class Broken(ssd.Matrix):
    def norm(self) -> float:
        return 0.5 * super().norm()


@pytest.mark.usefixtures("one_proof")
def test_a_failure_is_exit_1_and_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_verify, "shipped_operators", lambda: {"halved": Broken(np.eye(3))})
    monkeypatch.setattr(_verify, "_other_shapes", dict)
    monkeypatch.setattr(_verify, "shipped_processes", dict)
    assert main(["verify", "--backend", "numpy", "--json", "-"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert not result["passed"]
    assert {failure["subject"] for failure in result["failures"]} == {"halved"}
    assert any(failure["what"].startswith("norm [float64] failed") for failure in result["failures"])
    assert main(["verify", "--backend", "numpy"]) == 1
    text = capsys.readouterr().out
    assert "FAILED operator halved on numpy: norm [float64] failed" in text
    assert text.rstrip().endswith("FAILED")


@pytest.mark.usefixtures("one_proof")
def test_a_library_that_is_consistent_and_wrong_is_exit_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One schedule in place of another contradicts nothing but the exact numbers."""
    monkeypatch.setattr(ssd.NoiseSchedule, "linear", lambda steps=1000: ssd.NoiseSchedule.cosine(steps))
    monkeypatch.setattr(golden, "GOLDEN", tuple(check for check in GOLDEN if check.name == "noise levels"))
    monkeypatch.setattr(_verify, "check_golden", CHECK_GOLDEN)
    for name in ("shipped_operators", "_other_shapes", "shipped_processes"):
        monkeypatch.setattr(_verify, name, dict)
    assert main(["verify", "--backend", "numpy"]) == 1
    text = capsys.readouterr().out
    assert "FAILED golden ssdcore on numpy: noise levels [float64] failed" in text
    assert "linear, 30 steps" in text or "linear, 1000 steps" in text


@pytest.mark.usefixtures("one_proof", "one_operator")
def test_a_theorem_that_does_not_hold_is_exit_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_verify, "prove_all", lambda: [{**PROOF, "holds": False, "passed": False}])
    assert main(["verify", "--backend", "numpy"]) == 1


@pytest.mark.usefixtures("one_proof")
def test_no_measurement_is_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("shipped_operators", "_other_shapes", "shipped_processes"):
        monkeypatch.setattr(_verify, name, dict)
    assert main(["verify", "--backend", "numpy"]) == 1


@pytest.mark.usefixtures("one_proof", "one_operator")
def test_missing_backends_are_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_verify, "BACKENDS", {"numpy": "numpy", "cupy": "no_such_module"})
    assert main(["verify"]) == 0
    assert "backend cupy: skipped, not installed" in capsys.readouterr().out
    assert main(["verify", "--backend", "cupy"]) == 2
    assert "not installed: cupy" in capsys.readouterr().err


def test_missing_extra_is_named() -> None:
    code = "import sys; sys.modules['sympy'] = None\nfrom ssdcore.__main__ import main\nsys.exit(main(['verify']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == "verify needs sympy: pip install 'ssdcore[verify]'"


@pytest.mark.usefixtures("one_proof")
def test_thorough_draws_random_operators_and_processes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_verify, "_THOROUGH", 3)
    monkeypatch.setattr(_verify, "shipped_operators", dict)
    monkeypatch.setattr(_verify, "_other_shapes", dict)
    monkeypatch.setattr(_verify, "shipped_processes", dict)
    assert main(["verify", "--thorough", "--backend", "numpy", "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["thorough"]
    assert {row["kind"] for row in result["checks"]} == {"operator", "process"}


def test_help_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    assert "verify" in capsys.readouterr().out
    with pytest.raises(SystemExit) as done:
        main(["verfy"])
    assert done.value.code == 2
