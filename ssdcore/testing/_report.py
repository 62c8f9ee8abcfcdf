"""What a run of checks says: one row a check and dtype, and the error that lists the failures."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

# Probability that a statistical bound, or a bound on random rounding, is broken although nothing is wrong.
FALSE_ALARM = 1e-9


@dataclass(frozen=True)
class Measurement:
    """One number that a check measured, the most it may be, and what was measured."""

    measured: float
    tolerance: float
    what: str

    @property
    def ratio(self) -> float:
        """measured/tolerance: at most 1 if the measurement passes, infinite for NaN."""
        if math.isnan(self.measured) or math.isnan(self.tolerance):
            return math.inf
        if self.measured <= 0:
            return 0.0
        return self.measured / self.tolerance if self.tolerance > 0 else math.inf


class Skipped(Exception):
    """Raised within a check that does not apply to its subject; the message is the reason."""


@dataclass(frozen=True)
class Check:
    """A named property. `run` yields the measurements of one subject, or raises Skipped."""

    name: str
    summary: str
    run: Callable[[Any], Iterator[Measurement]]

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Row:
    """The outcome of one check in one dtype.

    Attributes:
        status: "passed", "failed", "skipped", "expected failure" or "unexpected pass"
        count: measurements taken
        measured: the worst of them, relative to its tolerance
        tolerance: of that one
        detail: what that one was, or the reason of a skip or of an expected failure, or the error raised
    """

    check: str
    dtype: str
    status: str
    count: int
    measured: float
    tolerance: float
    detail: str

    @property
    def failed(self) -> bool:
        return self.status in ("failed", "unexpected pass")

    @property
    def ratio(self) -> float:
        """Worst measured/tolerance."""
        return Measurement(self.measured, self.tolerance, "").ratio

    def __str__(self) -> str:
        numbers = "" if math.isnan(self.measured) else f"measured {self.measured:.3g}, tolerance {self.tolerance:.3g}: "
        return f"{self.check} [{self.dtype}] {self.status}: {numbers}{self.detail}"


@dataclass(frozen=True, repr=False)
class Report:
    """The rows of a run on one subject with the arrays of one library."""

    subject: str
    namespace: str
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether at least one check ran and none failed."""
        ran = any(row.count > 0 for row in self.rows)
        return ran and not any(row.failed for row in self.rows)

    @property
    def failures(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.failed)

    def __str__(self) -> str:
        """One line for the whole, one for each row that did not simply pass."""
        statuses = [row.status for row in self.rows]
        counted = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)) or "no checks"
        taken = sum(row.count for row in self.rows)
        outcome = "passed" if self.passed else "FAILED"
        lines = [f"{self.subject} on {self.namespace}: {outcome} ({counted}; {taken} measurements)"]
        lines += [f"  {row}" for row in self.rows if row.status != "passed"]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Report: {str(self).splitlines()[0]}>"

    def _repr_html_(self) -> str:
        """The table, for notebooks; rows that failed are marked."""
        head = ("check", "dtype", "status", "measurements", "worst", "may be", "of what")
        rows = []
        for row in self.rows:
            numbers = ("", "") if row.count == 0 else (f"{row.measured:.3g}", f"{row.tolerance:.3g}")
            cells = (row.check, row.dtype, row.status, str(row.count), *numbers, row.detail)
            style = ' style="color: #b00020"' if row.failed else ""
            rows.append(f"<tr{style}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
        title = html.escape(str(self).splitlines()[0])
        columns = "".join(f"<th>{name}</th>" for name in head)
        return f"<table><caption>{title}</caption><tr>{columns}</tr>{''.join(rows)}</table>"

    def to_markdown(self) -> str:
        """The rows as a Markdown table."""
        lines = [
            f"{self.subject} on {self.namespace}",
            "",
            "| check | dtype | status | count | worst error | tolerance | detail |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            measured, tolerance = ("", "") if row.count == 0 else (f"{row.measured:.3g}", f"{row.tolerance:.3g}")
            detail = row.detail.replace("|", "\\|").replace("\n", " ")
            lines.append(
                f"| {row.check} | {row.dtype} | {row.status} | {row.count} | {measured} | {tolerance} | {detail} |"
            )
        return "\n".join(lines)


class CheckFailed(AssertionError):
    """A subject broke at least one check, or no check ran; `.report` holds every row."""

    def __init__(self, report: Report) -> None:
        self.report = report
        if report.failures:
            lines = [
                f"{report.subject} on {report.namespace} fails {len(report.failures)} of {len(report.rows)} checks:"
            ]
            lines += [f"  {row}" for row in report.failures]
        else:
            lines = [
                f"{report.subject} on {report.namespace}: no check ran, which shows nothing; every one was skipped:"
            ]
            lines += [f"  {row}" for row in report.rows]
        super().__init__("\n".join(lines))


def run_check(check: Check, context: Any, dtype: str, expected_failures: Mapping[str, str]) -> Row:
    """Run one check; an exception in it is a failure, not an end to the run."""
    measurements: list[Measurement] = []
    try:
        with np.errstate(under="ignore"):  # expected values underflow, too
            measurements.extend(check.run(context))
    except Skipped as reason:
        return Row(check.name, dtype, "skipped", 0, math.nan, math.nan, str(reason))
    except Exception as error:
        row = Row(
            check.name, dtype, "failed", len(measurements), math.nan, math.nan, f"{type(error).__name__}: {error}"
        )
    else:
        if not measurements:
            row = Row(check.name, dtype, "failed", 0, math.nan, math.nan, "the check measured nothing")
        else:
            worst = max(measurements, key=lambda m: m.ratio)
            status = "passed" if worst.ratio <= 1 else "failed"
            row = Row(check.name, dtype, status, len(measurements), worst.measured, worst.tolerance, worst.what)
    reason_expected = expected_failures.get(check.name)
    if reason_expected is None:
        return row
    if row.failed:
        return replace(row, status="expected failure", detail=f"{reason_expected} ({row.detail})")
    return replace(row, status="unexpected pass", detail=f"was expected to fail: {reason_expected}; remove the mark")
