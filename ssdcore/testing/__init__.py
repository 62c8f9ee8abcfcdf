"""Conformance checks that anyone's operator or process can be put through, in two lines::

    import ssdcore as ssd
    ssd.testing.check_operator(MyOperator(...), xp=torch)      # raises CheckFailed with what was measured

or under pytest, one test a check::

    @ssd.testing.parametrize_with_checks([MyOperator(...), my_process])
    def test_mine(subject, check):
        check(subject)

`OPERATOR_CHECKS` and `PROCESS_CHECKS` list the checks with what each one shows. `operators`, `noise_schedules`,
`resolution_schedules` and `processes` are hypothesis strategies for tests of laws of your own.
Importing this module needs neither pytest nor hypothesis; using `parametrize_with_checks` or a strategy does.
"""

from __future__ import annotations

from ssdcore.testing._operator_checks import OPERATOR_CHECKS
from ssdcore.testing._process_checks import PROCESS_CHECKS
from ssdcore.testing._pytest import parametrize_with_checks
from ssdcore.testing._report import Check, CheckFailed, Report, Row
from ssdcore.testing._run import check_operator, check_process
from ssdcore.testing._strategies import noise_schedules, operators, processes, resolution_schedules

__all__ = [
    "OPERATOR_CHECKS",
    "PROCESS_CHECKS",
    "Check",
    "CheckFailed",
    "Report",
    "Row",
    "check_operator",
    "check_process",
    "noise_schedules",
    "operators",
    "parametrize_with_checks",
    "processes",
    "resolution_schedules",
]
