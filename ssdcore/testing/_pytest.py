"""One pytest test a subject and check."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssdcore.operators import LinearOperator
from ssdcore.process import LinearDiffusion
from ssdcore.testing._operator_checks import OPERATOR_CHECKS
from ssdcore.testing._process_checks import PROCESS_CHECKS
from ssdcore.testing._report import Check, CheckFailed, Report
from ssdcore.testing._run import describe, run_operator_checks, run_process_checks


@dataclass(frozen=True)
class BoundCheck:
    """A check and how to run it; call it with the subject. Raises CheckFailed, or skips the test."""

    check: Check
    xp: Any
    dtypes: Sequence[str] | str | None
    examples: int
    seed: int

    def __call__(self, subject: Any) -> Report:
        import pytest

        run: Callable[..., Report] = run_operator_checks if _is_operator(subject) else run_process_checks
        report = run(subject, self.xp, self.dtypes, None, self.examples, self.seed, {}, (self.check,))
        if report.failures:
            raise CheckFailed(report)
        if all(row.status == "skipped" for row in report.rows):
            pytest.skip(report.rows[0].detail)
        return report


def _is_operator(subject: Any) -> bool:
    if not isinstance(subject, LinearOperator | LinearDiffusion):
        raise TypeError(f"expected a LinearOperator or a LinearDiffusion, got {type(subject).__name__}")
    return isinstance(subject, LinearOperator)


def parametrize_with_checks(
    subjects: Sequence[LinearOperator | LinearDiffusion],
    xp: Any = None,
    *,
    dtypes: Sequence[str] | str | None = None,
    examples: int = 3,
    seed: int = 0,
    expected_failures: Callable[[Any], Mapping[str, str]] | None = None,
) -> Any:
    """Decorate a pytest function with the arguments (subject, check), to run once for each subject and check.

    ::

        @parametrize_with_checks([MyOperator(...)], xp=torch)
        def test_mine(subject, check):
            check(subject)

    Args:
        subjects: operators and processes
        xp: as in `check_operator`, and so are dtypes, examples and seed; processes: numpy if None
        expected_failures: maps a subject to {name of a check: reason}: those tests are strict xfails

    Raises:
        ValueError: For no subject at all, or for the name of a check that does not exist.
    """
    import pytest

    parameters = []
    for index, subject in enumerate(subjects):
        checks = OPERATOR_CHECKS if _is_operator(subject) else PROCESS_CHECKS
        expected = dict(expected_failures(subject)) if expected_failures is not None else {}
        name = repr(subject) if isinstance(subject, LinearOperator) else describe(subject)
        for check in checks:
            reason = expected.pop(check.name, None)
            marks = [] if reason is None else [pytest.mark.xfail(reason=reason, strict=True, raises=CheckFailed)]
            bound = BoundCheck(check, xp, dtypes, examples, seed)
            parameters.append(pytest.param(subject, bound, id=f"{index}-{name}-{check.name}", marks=marks))
        if expected:
            raise ValueError(f"expected_failures of {name}: no check is named {', '.join(expected)}")
    if not parameters:
        raise ValueError("parametrize_with_checks: expected at least one operator or process")
    return pytest.mark.parametrize(("subject", "check"), parameters)
