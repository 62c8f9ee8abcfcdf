"""The conformance suite on what is shipped, on every backend, and laws over random operators and processes."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import ssdcore as ssd
from ssdcore import _verify
from ssdcore.testing import OPERATOR_CHECKS, PROCESS_CHECKS, check_operator, check_process, parametrize_with_checks

torch = pytest.importorskip("torch")
jnp = pytest.importorskip("jax.numpy")

OPERATORS = {**_verify.shipped_operators(), **_verify._other_shapes()}
PROCESSES = _verify.shipped_processes()
NAMESPACES = {"numpy": np, "array-api-strict": array_api_strict, "torch": torch}
every_namespace = pytest.mark.parametrize("xp", NAMESPACES.values(), ids=NAMESPACES)


def quick(examples: int) -> Any:
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


def amount(xp: Any) -> dict[str, Any]:
    """`python -m ssdcore verify` takes every dtype and three examples in each namespace. The numbers of
    array-api-strict are numpy's."""
    one_dtype = {"dtypes": "float32"} if xp is array_api_strict else {}
    return {"examples": 3 if xp is np else 1, **one_dtype}


@every_namespace
@pytest.mark.parametrize("name", OPERATORS)
def test_shipped_operator(name: str, xp: Any) -> None:
    report = check_operator(OPERATORS[name], xp, **amount(xp))
    assert {row.check for row in report.rows} == {check.name for check in OPERATOR_CHECKS}
    assert all(row.count > 0 for row in report.rows)


@every_namespace
@pytest.mark.parametrize("name", PROCESSES)
def test_shipped_process(name: str, xp: Any) -> None:
    report = check_process(PROCESSES[name], xp, **amount(xp))
    assert {row.check for row in report.rows} == {check.name for check in PROCESS_CHECKS}
    assert all(row.count > 0 for row in report.rows)


@pytest.mark.slow
def test_operator_on_jax_as_it_comes() -> None:
    """Without jax_enable_x64, whose other setting `python -m ssdcore verify` takes; float32 is then the widest dtype."""
    report = check_operator(OPERATORS["sparse matrix"], jnp, dtypes="float32", examples=1)
    assert report.namespace == "jax.numpy"


@pytest.mark.slow
def test_process_on_jax_as_it_comes() -> None:
    assert check_process(PROCESSES["resize, matched"], jnp, dtypes="float32", examples=1).passed


def test_jax_has_no_float64_unless_enabled() -> None:
    with pytest.raises(ValueError, match=r"no dtype 'float64' now.*jax_enable_x64"):
        check_operator(ssd.Identity(3), jnp, dtypes="float64")


# --- laws over random operators and processes ------------------------------------------------------------------


@quick(25)
@given(ssd.testing.operators())
def test_random_operators_conform(op: ssd.LinearOperator) -> None:
    check_operator(op, examples=2)


@quick(15)
@given(ssd.testing.processes())
def test_random_processes_conform(proc: ssd.LinearDiffusion) -> None:
    check_process(proc, examples=1, dtypes=("float64", "float16"))


@quick(60)
@given(st.data())
def test_composition_is_associative_and_reverses_under_transposition(data: st.DataObject) -> None:
    a = data.draw(ssd.testing.operators(compositions=False))
    b = data.draw(ssd.testing.operators(a.out_shape, compositions=False))
    c = data.draw(ssd.testing.operators(b.out_shape, compositions=False))
    size = max(m.as_matrix().size for m in (a, b, c))
    tolerance = 16 * size * np.finfo(np.float64).eps * a.norm() * b.norm() * c.norm()
    left, right = ((c @ b) @ a).as_matrix(), (c @ (b @ a)).as_matrix()
    product = c.as_matrix() @ b.as_matrix() @ a.as_matrix()
    assert np.abs(left - product).max() <= tolerance
    assert np.abs(right - product).max() <= tolerance
    assert np.abs((c @ b @ a).T.as_matrix() - product.T).max() <= tolerance
    assert (c @ b @ a).norm() <= a.norm() * b.norm() * c.norm() + tolerance


@quick(60)
@given(ssd.testing.operators())
def test_norm_and_gram_function_agree(op: ssd.LinearOperator) -> None:
    """‖f(MᵀM)‖ over the spectrum: the trace of MᵀM is the sum of squared singular values, by three routes."""
    n = int(np.prod(op.in_shape))
    basis = np.eye(n).reshape(n, *op.in_shape)
    gram = op.gram_function(lambda e: e, basis).reshape(n, n)
    dense = op.as_matrix()
    tolerance = 32 * n * max(dense.shape) * np.finfo(np.float64).eps * max(op.norm(), 1.0) ** 2 * 4
    assert abs(np.trace(gram) - np.sum(dense**2)) <= tolerance
    assert abs(np.sum(op.singular_values() ** 2) - np.sum(dense**2)) <= tolerance


@quick(40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 5))
def test_general_transition_and_posterior_condition_the_joint_gaussian(seed: int, n: int, m: int) -> None:
    """Theorems 1 and 2 for any admissible pair of marginal covariances."""
    rng = np.random.default_rng(seed)
    operator = ssd.Matrix(rng.standard_normal((m, n)))
    a = operator.as_matrix()
    root_s, root_noise = rng.standard_normal((n, n + 1)), rng.standard_normal((m, m + 1))
    sigma_s, noise = root_s @ root_s.T, root_noise @ root_noise.T
    sigma_t = a @ sigma_s @ a.T + noise
    law_s, law_t = ssd.Covariance.dense(sigma_s), ssd.Covariance.dense(sigma_t)
    x_s, x_t, mean_s = rng.standard_normal((2, n)), rng.standard_normal((2, m)), rng.standard_normal((2, n))
    lost = np.linalg.cond(sigma_t) * max(np.linalg.norm(sigma_s), np.linalg.norm(sigma_t), 1.0)
    tolerance = 64 * (n + m) * np.finfo(np.float64).eps * lost

    forward = ssd.general_transition(x_s, operator, law_s, law_t)
    assert np.abs(forward.covariance.as_matrix() - noise).max() <= tolerance
    assert np.abs(forward.mean - x_s @ a.T).max() <= tolerance * (1 + np.linalg.norm(a))

    gain = sigma_s @ a.T @ np.linalg.inv(sigma_t)
    backward = ssd.general_posterior(x_t, mean_s, operator, law_s, law_t)
    assert np.abs(backward.covariance.as_matrix() - (sigma_s - gain @ a @ sigma_s)).max() <= tolerance * lost
    scale = 1 + np.linalg.norm(gain) * (np.linalg.norm(a) + 1)
    assert np.abs(backward.mean - (mean_s + (x_t - mean_s @ a.T) @ gain.T)).max() <= 4 * tolerance * scale


@quick(60)
@given(st.data())
def test_resolution_levels_never_fall(data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, 60))
    levels = data.draw(ssd.testing.resolution_schedules(steps))
    at = [levels.level(t) for t in range(steps + 1)]
    assert at[0] == 0
    assert at == sorted(at)
    assert at[-1] == levels.levels - 1


@quick(60)
@given(ssd.testing.noise_schedules())
def test_noise_grows_and_preserves_variance(noise: ssd.NoiseSchedule) -> None:
    assert np.allclose(
        noise.alpha**2 + noise.sigma**2, 1, rtol=0, atol=8 * np.finfo(np.float64).eps * (noise.steps + 1)
    )
    assert (np.diff(noise.sigma) >= 0).all()
    assert (np.diff(noise.alpha) <= 0).all()


# --- the interface -----------------------------------------------------------------------------------------------

mine = ssd.Functional(lambda x: x[..., ::2] + x[..., 1::2], lambda y: np.repeat(y, 2, axis=-1), (6,), (3,))
rough = ssd.Functional(lambda x: x[..., ::2], lambda y: np.repeat(y, 2, axis=-1), (6,), (3,))
_WRONG_ADJOINT = dict.fromkeys(("adjoint", "accuracy"), "its adjoint repeats samples that the operator drops")


@parametrize_with_checks(
    [mine, rough, PROCESSES["blur"]],
    dtypes="float64",
    expected_failures=lambda subject: _WRONG_ADJOINT if subject is rough else {},
)
def test_two_lines_for_a_user(subject: Any, check: Any) -> None:
    check(subject)


def test_adjoint_that_is_none_is_found_with_the_mismatch() -> None:
    with pytest.raises(ssd.testing.CheckFailed, match=r"adjoint \[float64\] failed: measured 1\.73, tolerance .*Mᵀ"):
        check_operator(rough, dtypes="float64")


def test_large_operators_and_processes_say_what_was_not_compared() -> None:
    report = check_operator(ssd.Resize((64, 64), (32, 32)), dtypes="float32", examples=1)
    skipped = {row.check for row in report.rows if row.status == "skipped"}
    assert skipped == {"matrix", "accuracy", "singular_values"}
    assert all("1024 elements" in row.detail for row in report.rows if row.status == "skipped")
    noise, levels = ssd.NoiseSchedule.linear(100), ssd.ResolutionSchedule.equal(100, 2)
    report = check_process(ssd.LinearDiffusion.resize((40, 40), noise, levels), dtypes="float32", examples=1)
    assert "eta_family" in {row.check for row in report.rows if row.status == "skipped"}
    assert "posterior" not in {row.check for row in report.rows if row.status == "failed"}


def test_a_run_without_checks_fails() -> None:
    from ssdcore.testing import CheckFailed, Report, Row

    nan = float("nan")
    assert not Report("nothing", "numpy", ()).passed
    skipped = Report("nothing", "numpy", (Row("norm", "float64", "skipped", 0, nan, nan, "too large"),))
    assert not skipped.passed
    assert "no check ran" in str(CheckFailed(skipped))
    with pytest.raises(ValueError, match="at least one operator"):
        parametrize_with_checks([])
    with pytest.raises(ValueError, match="at least one of"):
        check_operator(mine, dtypes=())
    with pytest.raises(ValueError, match="at least 1"):
        check_operator(mine, examples=0)


def test_markdown_has_a_line_for_every_row() -> None:
    report = check_operator(mine, dtypes=("float64", "float32"))
    table = [line for line in report.to_markdown().splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(report.rows) == 2 + 2 * len(OPERATOR_CHECKS)
    for row, line in zip(report.rows, table[2:]):
        assert line.split(" | ")[:3] == [f"| {row.check}", row.dtype, "passed"]


@pytest.mark.parametrize("wrong", [3, np.eye(2), "resize"])
def test_wrong_subjects(wrong: Any) -> None:
    with pytest.raises(TypeError, match="expected a LinearOperator"):
        check_operator(wrong)
    with pytest.raises(TypeError, match="expected a LinearDiffusion"):
        check_process(wrong)
    with pytest.raises(TypeError, match="expected a LinearOperator or a LinearDiffusion"):
        parametrize_with_checks([wrong])


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="no check is named nrom"):
        parametrize_with_checks([mine], expected_failures=lambda subject: {"nrom": "typing"})
    with pytest.raises(ValueError, match="no dtype 'float8'"):
        check_operator(mine, dtypes="float8")
    with pytest.raises(TypeError, match="array namespace"):
        check_operator(mine, xp="numpy")


def test_importing_needs_neither_pytest_nor_hypothesis() -> None:
    code = (
        "import sys; sys.modules['hypothesis'] = sys.modules['pytest'] = sys.modules['sympy'] = None\n"
        "import ssdcore as ssd, numpy as np\n"
        "assert ssd.testing.check_operator(ssd.Resize(6, 3), dtypes='float64').passed\n"
        "try: ssd.testing.operators()\n"
        "except ImportError as error: print(error)\n"
        "assert 'torch' not in sys.modules and 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pip install 'ssdcore[verify]'" in done.stdout
