"""The golden rows' own machinery: references that owe the library nothing, and comparisons that can fail."""

from __future__ import annotations

import ast
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mpmath")

from ssdcore.testing import golden
from ssdcore.testing._report import Check, run_check
from ssdcore.testing.golden import _exact, _model, _operators, _schedules
from ssdcore.testing.golden._exact import REAL, agree, floats, holds, reals, refuses

FOLDER = Path(golden.__file__).parent


@pytest.mark.parametrize("name", ["_exact.py", "_model.py"])
def test_references_import_nothing_of_the_library(name: str) -> None:
    """All that they may share with it is the form of a measurement."""
    imported = {
        node.module
        for node in ast.walk(ast.parse((FOLDER / name).read_text()))
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("ssdcore")
    }
    assert imported <= {"ssdcore.testing._report", "ssdcore.testing.golden._exact"}


def test_names_and_functions_are_all_different() -> None:
    assert len({check.name for check in golden.GOLDEN}) == len({check.run for check in golden.GOLDEN})
    assert len(golden.GOLDEN) == len({check.name for check in golden.GOLDEN}) >= 29


@pytest.mark.parametrize("check", golden.GOLDEN, ids=lambda check: check.name)
def test_the_library_s_numbers_are_the_exact_ones(check: Check) -> None:
    row = run_check(check, None, "float64", {})
    assert row.status == "passed", row
    assert row.count > 0


def test_agreement_can_fail() -> None:
    (right,) = agree("x", [1.0, 2.0], reals(["1", "2"]))
    assert right.ratio == 0
    for wrong in ([1.0, 2.0 + 1e-13], [2.0, 1.0], [[1.0, 2.0]], [math.nan, 2.0], [1.0]):
        (measurement,) = agree("x", wrong, reals(["1", "2"]))
        assert measurement.ratio > 1
    (small,) = agree("x", [1.0, 1.001e-6], reals([1, "1/1000000"]), relative=True)
    assert small.ratio > 1
    (loose,) = agree("x", [1e-9], reals(["0"]), scale=1e6)
    assert loose.ratio <= 1
    (true,), (false,) = holds("x", True), holds("x", False)
    assert true.ratio <= 1 < false.ratio


def test_refusal_can_fail() -> None:
    def refuse() -> None:
        raise ValueError

    (right,), (wrong,) = refuses("x", ValueError, refuse), refuses("x", ValueError, lambda: None)
    assert right.ratio <= 1 < wrong.ratio
    with pytest.raises(ValueError):  # noqa: PT011
        list(refuses("x", TypeError, refuse))


def test_exact_linear_algebra() -> None:
    rng = np.random.default_rng(0)
    a = reals(rng.integers(-4, 5, (4, 4)) + 6 * np.eye(4))
    assert np.abs(floats(_exact.inverse(a) @ a) - np.eye(4)).max() < 1e-28
    assert float(_exact.determinant(a)) == pytest.approx(np.linalg.det(floats(a)), rel=1e-12)
    b = reals(rng.standard_normal((2, 4)))
    u, s, v = _exact.svd(b)
    assert np.abs(floats((u * s) @ v.T - b)).max() < 1e-28
    root = _exact.function_of(a @ a.T, REAL.sqrt)
    assert np.abs(floats(root @ root - a @ a.T)).max() < 1e-25
    np.testing.assert_array_equal(floats(_exact.kron(a, b)), np.kron(floats(a), floats(b)))


def test_rank_deficient_singular_values_are_left_out() -> None:
    column = reals([["1/3"], ["2/7"], ["1/10"]])
    assert len(_exact.svd(column @ column.T)[1]) == 1


@pytest.mark.parametrize("kernel", ["box", "bilinear", "bicubic", "lanczos3"])
def test_kernels_are_pillow_s(kernel: str) -> None:
    """The references against a library that has nothing to do with this one."""
    image = pytest.importorskip("PIL.Image")
    filters = {"box": "BOX", "bilinear": "BILINEAR", "bicubic": "BICUBIC", "lanczos3": "LANCZOS"}
    how = getattr(image.Resampling, filters[kernel])
    for n, m in ((8, 4), (9, 5), (7, 3), (5, 9)):
        rows = floats(_operators.resize_matrix(n, m, kernel))
        for j in range(n):
            pulse = np.zeros((1, n), dtype=np.float32)
            pulse[0, j] = 1
            resized = np.asarray(image.fromarray(pulse).resize((m, 1), how))[0]
            np.testing.assert_allclose(resized, rows[:, j], atol=1e-6)


def test_sigmoid_starts_are_those_of_the_inverse() -> None:
    starts = _schedules._sigmoid_starts(1000, 4, 2)
    half = Fraction(1, 2)
    for k, start in enumerate(starts, start=1):
        edge = _schedules._smooth(Fraction(k, 4) - half, 2) / (2 * _schedules._smooth(half, 2)) + half
        assert Fraction(start - 2, 999) < edge <= Fraction(start - 1, 999)


def test_reference_posterior_is_bayes_rule() -> None:
    """Two derivations of one law: conditioning in precisions, and the family at eta = 1."""
    step = reals([["1/2", "1/4", "0"], ["1/8", "-1/4", "1/2"]])
    model = _model.Reference(3, [None, step], reals([1, "3/4", "1/2"]), reals([0, "1/2", "7/8"]))
    x, clean = _exact.integers(2), _exact.integers(3)
    for a, b in zip(model.posterior(x, clean, 1, 2, 1), model.conditioned(x, clean, 1, 2)):
        assert np.abs(floats(a - b)).max() < 1e-25
    variance = model.posterior(x, clean, 1, 2, 0)[1]
    assert np.abs(floats(step @ variance)).max() < 1e-25, "what is kept is drawn without noise"


def test_reference_error_vanishes_for_the_data_themselves() -> None:
    data = reals([[2, 1], [1, 3]])
    assert float(_model.frechet(_exact.zeros(2), data, data)) == pytest.approx(0, abs=1e-25)
    shifted = _model.frechet(reals([3, 4]), data, data)
    assert float(shifted) == pytest.approx(25, rel=1e-25)
