"""Every example in a docstring runs and prints what it says, and every main public name of the mathematics has one."""

from __future__ import annotations

import doctest
import importlib
import operator
from pathlib import Path

import numpy as np
import pytest

import ssdcore as ssd

ROOT = Path(__file__).parents[1]
# fmt: off
MAIN_NAMES = [
    "Blur", "Covariance", "Functional", "Gaussian", "Identity", "InadmissibleProcess", "LinearDiffusion",
    "LinearOperator", "Matrix", "NoiseSchedule", "Resize", "ResolutionSchedule", "Separable",
    "LinearDiffusion.blur", "LinearDiffusion.from_operators", "LinearDiffusion.identity",
    "LinearDiffusion.marginal", "LinearDiffusion.posterior", "LinearDiffusion.prior", "LinearDiffusion.resize",
    "LinearDiffusion.respace", "LinearDiffusion.transition", "oracle.design_levels", "oracle.sampler_error",
    "testing.check_operator", "testing.check_process", "theorems.prove",
]
# fmt: on


def modules_with_examples() -> list[str]:
    files = (file for package in ("ssdcore", "ssdcore_torch") for file in sorted((ROOT / package).rglob("*.py")))
    found = (file.relative_to(ROOT).with_suffix("") for file in files if ">>> " in file.read_text(encoding="utf-8"))
    return [".".join(path.parts).removesuffix(".__init__") for path in found]


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests: list[doctest.DocTest] = []
    for name in modules_with_examples():
        tests += finder.find(importlib.import_module(name), name, globs={"np": np, "ssd": ssd})
    return [test for test in tests if test.examples]


@pytest.mark.parametrize("example", examples(), ids=lambda test: test.name)
def test_example(example: doctest.DocTest):
    report: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=report.append)
    assert not report, "".join(report)


@pytest.mark.parametrize("name", MAIN_NAMES)
def test_main_name_shows_an_example(name: str):
    assert ">>> " in (operator.attrgetter(name)(ssd).__doc__ or ""), f"ssdcore.{name} has no example in its docstring"


def test_no_example_is_missed():
    """What the files hold, this module runs: nothing is hidden in a nested or generated object."""
    shown = sum(
        line.lstrip().startswith(">>> ")
        for package in ("ssdcore", "ssdcore_torch")
        for file in (ROOT / package).rglob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
    )
    assert shown == sum(len(test.examples) for test in examples())
