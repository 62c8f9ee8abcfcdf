"""The symbolic proofs: every theorem holds, every false variant is refuted, and no step passes whatever it says."""

from __future__ import annotations

import dataclasses
import functools
import re
import time

import numpy as np
import pytest

sp = pytest.importorskip("sympy")

from ssdcore import theorems  # noqa: E402
from ssdcore.theorems import _engine, _noise, _symbols  # noqa: E402
from ssdcore.theorems._engine import Given, Proof, Step, normal_form  # noqa: E402

NAMES = (
    "forward_transition",
    "posterior",
    "isotropic_posterior",
    "posterior_forms_agree",
    "ddpm",
    "blurring_diffusion",
    "scale_matched_admissible",
    "same_marginal_family",
    "deterministic_end",
    "scale_matched_continuous",
    "multistep_order",
    "second_moments",
)
VARIANTS = [(name, variant) for name in NAMES for variant in theorems.false_variants(name)]


@functools.cache
def proof_of(name: str) -> Proof:
    return theorems.prove(name)


def test_names() -> None:
    assert sorted(theorems.names()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_theorem_holds(name: str) -> None:
    proof = proof_of(name)
    assert proof.holds, str(proof)
    assert proof.name == name
    assert len(proof.steps) >= 7
    assert theorems.false_variants(name)


@pytest.mark.parametrize("name", NAMES)
def test_proof_reads_as_a_derivation(name: str) -> None:
    proof = proof_of(name)
    text = str(proof)
    flat = " ".join(text.split())
    assert text.startswith(f"{name}: holds\n")
    assert " ".join(proof.statement.split()) in flat
    for i, step in enumerate(proof.steps, start=1):
        assert f"{i}. [ok] {' '.join(step.claim.split())}" in flat
    assert text.count("[ok]") == len(proof.steps)
    # sympy's programming notation for transposes, inverses and squares does not reach the reader
    assert not re.search(r"\.T\b|\*\*\(-1\)|\*\*2\b|BlockMatrix|Matrix\(", text)
    assert max(map(len, text.splitlines())) < 400


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_false_variant_is_refuted(name: str, variant: str) -> None:
    """Not merely unproved: some failing step shows a counterexample or an ill-formed product."""
    proof = theorems.prove(name, variant)
    assert not proof.holds
    failing = [step for step in proof.steps if not step.holds]
    assert any("counterexample: " in step.residual or "sizes" in step.residual for step in failing)
    text = str(proof)
    assert text.startswith(f"{name}: DOES NOT HOLD")
    assert text.count("[FAILS]") == len(failing)
    assert all(step.residual in text for step in failing)


def test_issue_s_kinds_of_false_variant_are_there() -> None:
    kinds = {variant for _, variant in VARIANTS}
    assert {"plus_sign", "minus_sign", "ratio_of_deviations", "missing_transpose", "kappa_half"} <= kinds


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", NAMES)
def test_what_was_proved_is_what_the_code_computes(name: str, seed: int) -> None:
    compared = theorems._compare.comparisons(name, proof_of(name).formulas, seed)
    assert compared
    assert all(comparison.agrees for comparison in compared), [str(c) for c in compared if not c.agrees]


@pytest.mark.parametrize("name", NAMES)
def test_every_formula_is_compared(name: str) -> None:
    compared = theorems._compare.comparisons(name, proof_of(name).formulas, 0)
    assert {comparison.what.partition(":")[0] for comparison in compared} == set(proof_of(name).formulas)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_formula_disagrees_with_the_code(name: str) -> None:
    for key, formula in proof_of(name).formulas.items():
        wrong = {**proof_of(name).formulas, key: 1.001 * formula}
        compared = [c for seed in range(3) for c in theorems._compare.comparisons(name, wrong, seed)]
        mine = [c for c in compared if c.what.startswith(f"{key}:")]
        assert mine
        assert any(not c.agrees for c in mine)
        assert all(c.agrees for c in compared if c not in mine)


def agrees(name: str, formulas: dict[str, object], seed: int) -> bool:
    """A product whose sizes do not fit, as in a variant without its transpose, agrees with nothing."""
    try:
        return all(c.agrees for c in theorems._compare.comparisons(name, formulas, seed))
    except ValueError:
        return False


@pytest.mark.slow
def test_formulas_of_false_variants_disagree_with_the_code() -> None:
    """Where the variant changes a formula, the code refutes it as the proof does."""
    refuted = 0
    for name, variant in VARIANTS:
        own = proof_of(name).formulas
        for key, formula in theorems.prove(name, variant).formulas.items():
            if formula != own[key]:
                assert not all(agrees(name, {**own, key: formula}, seed) for seed in range(8)), (name, variant, key)
                refuted += 1
    assert refuted >= 15


def test_a_fault_of_the_code_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from ssdcore.process import steps

    assert all(c.agrees for c in theorems.compare("deterministic_end", seed=1))
    monkeypatch.setattr(steps, "posterior_share", lambda eta, rho, squared: 1 - eta * (1 - rho * squared))
    assert not all(c.agrees for seed in range(4) for c in theorems.compare("deterministic_end", seed))


def test_a_formula_that_no_step_shows_is_refused() -> None:
    step = Step("1 = 1", sp.Symbol("x"), sp.Symbol("x"))
    with pytest.raises(ValueError, match="no step shows the formula 'y'"):
        Proof("name", "statement", (step,), {"y": sp.Symbol("y")})


def test_comparisons_are_deterministic_and_differ_by_seed() -> None:
    first, again, other = (theorems.compare("ddpm", seed) for seed in (3, 3, 4))
    assert first == again != other
    assert not dataclasses.replace(first[0], deviation=float("nan")).agrees


def test_independence_is_part_of_theorem_1() -> None:
    assert "independent of x_s" in proof_of("forward_transition").statement


def corrupted(step: Step) -> Step:
    """The step with a false statement in place of its own."""
    left, right = sp.sympify(step.left), sp.sympify(step.right)
    if step.relation == "free of":
        return dataclasses.replace(step, left=step.left + step.right.T * step.right)
    if step.relation in (">=", ">"):
        return dataclasses.replace(step, left=right, right=left + 1)
    if isinstance(right, sp.MatrixBase):
        return dataclasses.replace(step, right=right + sp.ones(*right.shape))
    if not isinstance(right, sp.MatrixExpr):
        return dataclasses.replace(step, right=right + 1)
    if isinstance(right, sp.ZeroMatrix):
        stray = sp.MatrixSymbol("stray", *right.shape)
        assert step.given is not None
        shape = [int(sp.sympify(size).xreplace(dict(step.given.example))) for size in right.shape]
        given = dataclasses.replace(step.given, example={**step.given.example, stray: sp.ones(*shape)})
        return dataclasses.replace(step, right=stray, given=given)
    return dataclasses.replace(step, left=2 * step.left)


@pytest.mark.parametrize("name", NAMES)
def test_every_step_can_fail(name: str) -> None:
    proof = proof_of(name)
    for step in proof.steps:
        assert step.holds
        assert step.residual == ""
        wrong = corrupted(step)
        assert not wrong.holds, step.claim
        assert wrong.residual
        assert not dataclasses.replace(proof, steps=(*proof.steps, wrong)).holds


@pytest.mark.parametrize("name", NAMES)
def test_hypotheses_are_needed(name: str) -> None:
    """A step names no rules that it does not use: without them it is not derived."""
    for step in proof_of(name).steps:
        if step.given is not None and step.given.rules:
            assert not dataclasses.replace(step, given=dataclasses.replace(step.given, rules=())).holds, step.claim


def test_holds_is_computed_never_given() -> None:
    with pytest.raises(TypeError):
        Proof("x", "x", (), holds=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Step("x", 1, 2, holds=True)  # type: ignore[call-arg]
    with pytest.raises(dataclasses.FrozenInstanceError):
        proof_of("ddpm").holds = False  # type: ignore[misc]
    assert not Proof("empty", "nothing shown", ()).holds
    assert not Step("false", 1, 2).holds
    assert Step("true", 2, 2).holds


def test_unknown_names_list_what_there_is() -> None:
    for call in (theorems.prove, theorems.false_variants):
        with pytest.raises(ValueError, match="no theorem is named 'theorem_4'") as error:
            call("theorem_4")
        assert all(name in str(error.value) for name in NAMES)
    with pytest.raises(ValueError, match="'plus'; expected one of plus_sign, missing_transpose"):
        theorems.prove("forward_transition", "plus")


def test_all_proofs_are_quick() -> None:
    start = time.process_time()
    assert all(theorems.prove(name).holds for name in theorems.names())
    assert time.process_time() - start < 10


# The machinery.

A, B, C = (sp.MatrixSymbol(name, _symbols.n, _symbols.n) for name in "ABC")
VALUES = {
    _symbols.n: 2,
    A: _symbols.rational((1, 2), (3, 5)),
    B: _symbols.rational((0, 1), (1, 1)),
    C: _symbols.rational((2, 1), (1, 3)),
}


def test_products_do_not_commute() -> None:
    given = Given(example=VALUES)
    assert normal_form(A * B - B * A, given)
    assert not Step("AB = BA", A * B, B * A, given=given).holds
    assert not normal_form((A + B) * (A - B) - (A * A - A * B + B * A - B * B), given)


def test_symmetry_is_used_only_where_given() -> None:
    assert normal_form((A * C).T - C * A.T, Given(example=VALUES))
    assert not normal_form((A * C).T - C * A.T, Given(symmetric=(C,), example=VALUES))


def test_inverses_cancel_only_with_their_own() -> None:
    given = Given(example=VALUES)
    assert not normal_form((A * B).T * A.T.I - B.T * A.T * (A.I).T, given)
    assert normal_form(A * B * A.I - B, given)


def test_numbers_equal_their_transposes() -> None:
    x, y = (sp.MatrixSymbol(name, _symbols.n, 1) for name in "xy")
    given = Given(example={**VALUES, x: sp.ones(2, 1), y: sp.Matrix([1, 2])})
    assert not normal_form(x.T * A * y - y.T * A.T * x, given)
    assert normal_form(x.T * A * y - y.T * A * x, given)


def test_hypotheses_must_hold_on_the_example() -> None:
    with pytest.raises(ValueError, match="the example breaks the hypothesis"):
        Given(rules=((A * B, B * A),), example=VALUES)
    with pytest.raises(ValueError, match="not symmetric"):
        Given(symmetric=(A,), example=VALUES)
    with pytest.raises(ValueError, match="must be one product"):
        Given(rules=((A + B, B + A),), example=VALUES)


def test_true_on_the_example_is_not_enough() -> None:
    """B² = B + I holds for the example's B, not for every B."""
    step = Step("B² = B + I", B * B, B + sp.Identity(_symbols.n), given=Given(example=VALUES))
    assert not step.holds
    assert "not derived" in step.residual


def test_example_guards_the_rewriting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_engine, "normal_form", lambda expr, given: {})
    step = Step("ABA = BAB", A * B * A, B * A * B, given=Given(example=VALUES))  # verdicts are kept: asked here alone
    assert not step.holds
    assert "disagree" in step.residual


def test_sizes_are_checked() -> None:
    M = sp.MatrixSymbol("M", _symbols.m, _symbols.n)
    given = Given(example={**VALUES, _symbols.m: 3, M: sp.ones(3, 2)})
    assert "sizes" in Step("M M", M * M, sp.MatMul(M, A), given=given).residual
    assert "sizes" in Step("M + A", sp.MatAdd(M, A), M, given=given).residual
    assert "sizes" in Step("M = Mᵀ", M, M.T, given=given).residual


def test_misuse_is_named() -> None:
    with pytest.raises(ValueError, match="needs its `given`"):
        Step("A = A", A, A)
    with pytest.raises(ValueError, match="relation must be"):
        Step("1 < 2", 1, 2, "<")
    with pytest.raises(TypeError, match="name the matrix and give its rule"):
        normal_form((A + B).I, Given(example=VALUES))
    with pytest.raises(TypeError, match="cannot evaluate"):
        Given(example=VALUES).evaluate(sp.HadamardProduct(A, B))
    circular = Given(rules=((A * B, C), (C, A * B)), example={**VALUES, C: VALUES[A] * VALUES[B]})
    with pytest.raises(RuntimeError, match="did not come to an end"):
        normal_form(A * B, circular)


def test_signs_follow_from_assumptions_alone() -> None:
    p, q = sp.Symbol("p", positive=True), sp.Symbol("q", real=True)
    assert Step("p > 0", p, 0, ">").holds
    assert Step("p >= 0", p, 0, ">=").holds
    assert "counterexample" in Step("p - 1 >= 0", p, 1, ">=").residual
    assert not Step("q > 0", q, 0, ">").holds  # every trial value is positive, so it is merely not derived
    assert "not derived" in Step("q > 0", q, 0, ">").residual
    assert not Step("0 > 0", 0, 0, ">").holds


# What the proofs take from outside algebra.


def test_exact_bilinear_matrix_is_the_antialiased_resize() -> None:
    exact = np.array(_noise._antialiased_bilinear(8, 4), dtype=np.float64)
    i, j = np.meshgrid(np.arange(4), np.arange(8), indexing="ij")
    weights = np.clip(1 - np.abs((j + 0.5) - 2 * (i + 0.5)) / 2, 0, None)
    np.testing.assert_allclose(exact, weights / weights.sum(1, keepdims=True), rtol=4 * np.finfo(np.float64).eps)
    squared_norm = float((1245 + 13 * sp.sqrt(673)) / 3136)
    assert np.linalg.norm(exact, 2) ** 2 == pytest.approx(squared_norm, rel=16 * np.finfo(np.float64).eps)


def test_exact_bilinear_matrix_is_the_library_s() -> None:
    ssdcore = pytest.importorskip("ssdcore")
    exact = np.array(_noise._antialiased_bilinear(8, 4), dtype=np.float64)
    resize = ssdcore.Resize((8,), (4,), kernel="bilinear").as_matrix()
    np.testing.assert_allclose(resize, exact, rtol=0, atol=8 * np.finfo(np.float64).eps)


def test_base_growth_encloses_the_schedule_s() -> None:
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    squared = (1 - alpha_bar) / alpha_bar
    below, above = _noise._base_growth(751)
    assert float(below) <= squared[750] / squared[749] * (1 + 1e-12)
    assert float(above) >= squared[750] / squared[749] * (1 - 1e-12)
    assert above - below == sp.Rational(1, 10**12)
    levels = np.minimum(np.floor(4 * np.arange(1000) / 999), 3)  # at i = t - 1
    assert (levels[749], levels[750]) == (2, 3)


def test_cosine_basis_of_the_proof_is_orthogonal() -> None:
    n = 7
    k, j = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    basis = np.cos(np.pi * k / n * (j + 0.5))
    expected = np.diag([n, *[n / 2] * (n - 1)])
    np.testing.assert_allclose(basis @ basis.T, expected, atol=8 * n * np.finfo(np.float64).eps)
