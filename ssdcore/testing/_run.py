"""check_operator and check_process."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssdcore.operators import LinearOperator
from ssdcore.process import LinearDiffusion
from ssdcore.testing._backend import Backend, choose_dtypes, resolve_namespace
from ssdcore.testing._operator_checks import OPERATOR_CHECKS, OperatorContext, Reference, own_dtype
from ssdcore.testing._process_checks import PROCESS_CHECKS, ProcessContext
from ssdcore.testing._report import Check, CheckFailed, Report, Row, run_check


def check_operator(
    op: LinearOperator,
    xp: Any = None,
    *,
    dtypes: Sequence[str] | str | None = None,
    device: Any = None,
    examples: int = 3,
    seed: int = 0,
    expected_failures: Mapping[str, str] | None = None,
) -> Report:
    """Put a linear operator through every check of `OPERATOR_CHECKS`, with arrays of `xp`.

    ::

        ssdcore.testing.check_operator(MyOperator(...), xp=torch)

    Returns the Report if every check passes; raises CheckFailed, which lists what was measured against which
    tolerance, if one does not or if none ran. Tolerances follow from the dtype, the size and the norm: rounding errors
    are taken as a random walk (probabilistic error analysis of Higham and Mary, 2019) with a false alarm of 1e-9.
    Spaces of more than 1,024 elements get no comparison with a dense matrix; the report says so.

    Args:
        op: a `LinearOperator`: one of the library's, a `Functional`, or a subclass of yours
        xp: numpy, torch, jax.numpy, cupy, array_api_strict or a wrapper of array-api-compat; None: the operator's own,
            which is numpy unless a `Functional` names another
        dtypes: names among "float64", "float32", "float16", "bfloat16"; None: all that `xp` has now (jax has
            float64 only with jax_enable_x64)
        device: where the arrays live; None: the operator's own with xp=None, else the library's default
        examples: random inputs a check
        seed: of those inputs; no global random state is used
        expected_failures: {name of a check: reason}. Such a check must fail: its passing fails the run

    >>> ssd.testing.check_operator(ssd.Resize((6,), (3,))).passed
    True
    >>> wrong = ssd.Functional(lambda x: 2 * x, lambda y: 3 * y, in_shape=(4,), out_shape=(4,))
    >>> ssd.testing.check_operator(wrong)
    Traceback (most recent call last):
    ssdcore.testing._report.CheckFailed: Functional((4,) -> (4,)) on numpy fails ...
    """
    return _require_passed(run_operator_checks(op, xp, dtypes, device, examples, seed, expected_failures or {}))


def check_process(
    proc: LinearDiffusion,
    xp: Any = np,
    *,
    dtypes: Sequence[str] | str | None = None,
    device: Any = None,
    examples: int = 3,
    seed: int = 0,
    expected_failures: Mapping[str, str] | None = None,
) -> Report:
    """Put a process through every check of `PROCESS_CHECKS`, with arrays of `xp`.

    ::

        ssdcore.testing.check_process(LinearDiffusion.from_operators(my_operators, noise), xp=torch)

    The other arguments, the result and the errors are those of `check_operator`. Transitions and posteriors are
    compared with brute-force conditioning of the joint Gaussian in float64 at the times where states have at most 256
    elements.

    Args:
        proc: a `LinearDiffusion`
        examples: pairs of times s < t drawn at random, beside those at the ends and at the changes of size

    >>> noise, levels = ssd.NoiseSchedule.linear(50), ssd.ResolutionSchedule.equal(50, levels=2)
    >>> ssd.testing.check_process(ssd.LinearDiffusion.resize((6, 6), noise, levels), dtypes="float64").passed
    True
    """
    return _require_passed(run_process_checks(proc, xp, dtypes, device, examples, seed, expected_failures or {}))


def _require_passed(report: Report) -> Report:
    if not report.passed:
        raise CheckFailed(report)
    return report


def run_operator_checks(
    op: LinearOperator,
    xp: Any,
    dtypes: Sequence[str] | str | None,
    device: Any,
    examples: int,
    seed: int,
    expected_failures: Mapping[str, str],
    checks: tuple[Check, ...] = OPERATOR_CHECKS,
) -> Report:
    """The report, whether it passed or not."""
    if not isinstance(op, LinearOperator):
        raise TypeError(f"check_operator: expected a LinearOperator, got {type(op).__name__}; wrap it in a Functional")
    if xp is None:
        xp = op.array_kind.namespace
        device = op.array_kind.device if device is None else device
    backends = _backends(xp, dtypes, device, examples)
    own = own_dtype(op, backends[0])
    if dtypes is None and own != backends[0].widest.dtype_name:  # a Functional whose weights are of one dtype
        backends = [backends[0].at(own)]
    reference = Reference(op, backends[0])
    contexts = [OperatorContext(op, backend, examples, seed, reference) for backend in backends]
    return _run(repr(op), contexts, checks, expected_failures)


def run_process_checks(
    proc: LinearDiffusion,
    xp: Any,
    dtypes: Sequence[str] | str | None,
    device: Any,
    examples: int,
    seed: int,
    expected_failures: Mapping[str, str],
    checks: tuple[Check, ...] = PROCESS_CHECKS,
) -> Report:
    """The report, whether it passed or not."""
    if not isinstance(proc, LinearDiffusion):
        raise TypeError(
            f"check_process: expected a LinearDiffusion, got {type(proc).__name__}; "
            "build one with LinearDiffusion.from_operators"
        )
    contexts = [
        ProcessContext(proc, backend, examples, seed)
        for backend in _backends(np if xp is None else xp, dtypes, device, examples)
    ]
    return _run(describe(proc), contexts, checks, expected_failures)


def describe(proc: LinearDiffusion) -> str:
    """A name for a process in reports: its sizes from clean to noise."""
    return f"{type(proc).__name__}({' -> '.join(map(str, proc.shapes))}, {proc.steps} steps)"


def _backends(xp: Any, dtypes: Sequence[str] | str | None, device: Any, examples: int) -> list[Backend]:
    if examples < 1:
        raise ValueError(f"examples: expected at least 1, got {examples}")
    resolved = resolve_namespace(xp)
    return [Backend(resolved, name, device) for name in choose_dtypes(resolved, dtypes)]


def _run(
    subject: str, contexts: Sequence[Any], checks: tuple[Check, ...], expected_failures: Mapping[str, str]
) -> Report:
    names = [check.name for check in checks]
    for name, reason in expected_failures.items():
        if name not in names:
            raise ValueError(f"expected_failures: no check is named {name!r}; they are {', '.join(names)}")
        if not reason:
            raise ValueError(f"expected_failures: {name} needs a reason")
    rows: list[Row] = []
    for context in contexts:
        with warnings.catch_warnings():
            # of numbers that leave the range of a narrow dtype, or of an operator of extreme norm
            warnings.filterwarnings("ignore", category=RuntimeWarning, message=".*(underflow|overflow|invalid value)")
            rows += [run_check(check, context, context.backend.dtype_name, expected_failures) for check in checks]
    return Report(subject, contexts[0].backend.name, tuple(rows))
