"""The checking machinery of the proofs: statements over sympy expressions, decided by exact rewriting.

A matrix identity over general symbols (any size) is decided by multiplying both sides out into words of
non-commuting atoms and reducing the words by the hypotheses, read from left to right: `X X^-1 = 1` and the
rules of a `Given`. Every rule is an equation, so a difference that reduces to zero is a proof. The hypotheses
themselves are checked on an exact rational example, so that no proof holds because nothing satisfies them,
and the same example refutes a false statement.
"""

from __future__ import annotations

import functools
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from operator import add, mul
from typing import Any

import sympy as sp
from sympy.matrices.expressions.matexpr import MatrixExpr

Word = tuple[MatrixExpr, ...]
Terms = dict[Word, sp.Expr]

# What a search for a counterexample tries for real symbols, all of them positive.
_TRIALS = tuple(sp.Rational(x) for x in ("1/2", "1/3", "2", "3/4", "1/7", "5/3", "4"))
# Twenty digits are computed: a value below this could be a rounded zero.
_MINIMUM = sp.Float("1e-12")

# A safeguard against rules that go round in circles; the longest reduction of the shipped proofs takes under 200.
_MAX_REWRITES = 5000


# How many verdicts on equations are kept: a false variant shares most of its steps with the theorem.
_CHECKS_KEPT = 4096


class SizeMismatch(ValueError):
    """A product or a sum of matrices whose sizes do not fit."""


@dataclass(frozen=True)
class Given:
    """What an identity over matrix symbols may use.

    Attributes:
        rules: pairs (left, right): left, a single product of symbols, may be replaced by right; the transposed
            rules come with them
        symmetric: symbols equal to their own transpose
        example: exact values (sizes, scalars, matrices) that satisfy all of it

    Raises:
        ValueError: If the example breaks a rule or a symmetry, or if a left side is not a single product.
    """

    rules: tuple[tuple[MatrixExpr, MatrixExpr], ...] = ()
    symmetric: tuple[MatrixExpr, ...] = ()
    example: Mapping[Any, Any] = field(default_factory=dict, hash=False)  # a dict; equal hypotheses compare it

    def __post_init__(self) -> None:
        for symbol in self.symmetric:
            if not is_zero(self.evaluate(symbol) - self.evaluate(symbol).T):
                raise ValueError(f"the example's {symbol} is not symmetric, but {symbol} is given as symmetric")
        for left, right in self.rules:
            self._word(left)
            if not is_zero(self.evaluate(left) - self.evaluate(right)):
                raise ValueError(f"the example breaks the hypothesis {left} = {right}; fix the example or the rule")

    def evaluate(self, expr: MatrixExpr) -> sp.ImmutableMatrix:
        """The expression on the example, as an explicit matrix."""
        if isinstance(expr, sp.MatrixSymbol):
            return sp.ImmutableMatrix(self.example[expr])
        if isinstance(expr, sp.Identity | sp.ZeroMatrix):
            shape = [int(sp.sympify(size).xreplace(dict(self.example))) for size in expr.shape]
            return sp.ImmutableMatrix((sp.eye if isinstance(expr, sp.Identity) else sp.zeros)(*shape))
        if isinstance(expr, sp.BlockMatrix):
            rows, columns = expr.blockshape
            blocks = [[self.evaluate(expr.blocks[i, j]) for j in range(columns)] for i in range(rows)]
            return sp.ImmutableMatrix.vstack(*(sp.ImmutableMatrix.hstack(*row) for row in blocks))
        if isinstance(expr, sp.MatAdd):
            return reduce(add, map(self.evaluate, expr.args))
        if isinstance(expr, sp.MatMul):
            coefficient, factors = expr.as_coeff_matrices()
            return coefficient.xreplace(dict(self.example)) * reduce(mul, map(self.evaluate, factors))
        if isinstance(expr, sp.Transpose):
            return self.evaluate(expr.arg).T
        if isinstance(expr, sp.MatPow):  # an inverse is the power -1
            return self.evaluate(expr.base) ** int(expr.exp)
        raise TypeError(f"cannot evaluate {expr}, a {type(expr).__name__}")

    def rewriting(self) -> dict[Word, Terms]:
        """The rules and their transposes, word by word."""
        pairs = [*self.rules, *((left.T, right.T) for left, right in self.rules)]
        return {self._word(left): _expand(right, self.symmetric) for left, right in pairs}

    def _word(self, left: MatrixExpr) -> Word:
        terms = _expand(left, self.symmetric)
        word = next(iter(terms), ())
        if len(terms) != 1 or terms[word] != 1 or not word:
            raise ValueError(f"the left side of a rule must be one product of symbols, got {left}")
        return word


def is_zero(value: Any) -> bool:
    """Whether a scalar or an explicit matrix is identically zero."""
    entries = list(value) if isinstance(value, sp.MatrixBase) else [value]
    return all(_scalar_is_zero(sp.sympify(entry)) for entry in entries)


@functools.lru_cache(_CHECKS_KEPT)
def _scalar_is_zero(value: sp.Expr) -> bool:
    expanded = sp.expand(value)
    if expanded == 0:
        return True
    if expanded.is_number and expanded.is_rational:
        return False
    if sp.expand(sp.numer(sp.together(expanded))) == 0:
        return True
    if expanded.has(sp.cos, sp.sin) and sp.expand(expanded.rewrite(sp.exp)) == 0:
        return True
    return not _counterexample(expanded, "=") and bool(sp.simplify(expanded) == 0)


def _frozen(value: Any) -> Any:
    """An explicit matrix that can be looked up."""
    return sp.ImmutableMatrix(value) if isinstance(value, sp.MatrixBase) else value


def _has_sign(value: sp.Expr, attribute: str) -> bool:
    """Whether the sign follows from the symbols' assumptions in one of the expression's usual forms."""
    return any(
        getattr(form, attribute) is True for form in (value, sp.expand(value), sp.factor(value), sp.together(value))
    )


def _atom(expr: MatrixExpr, symmetric: tuple[MatrixExpr, ...]) -> MatrixExpr:
    """A symbol, its transpose or its inverse in the one form that words are made of."""
    if isinstance(expr, sp.MatrixSymbol):
        return expr
    if isinstance(expr, sp.Transpose):
        inner = _atom(expr.arg, symmetric)
        if isinstance(inner, sp.Inverse):
            return sp.Inverse(_atom(sp.Transpose(inner.arg), symmetric))
        if isinstance(inner, sp.Transpose):
            return inner.arg
        return inner if inner in symmetric else sp.Transpose(inner)
    if isinstance(expr, sp.Inverse):
        inner = _atom(expr.arg, symmetric)
        return inner.arg if isinstance(inner, sp.Inverse) else sp.Inverse(inner)
    raise TypeError(
        f"only symbols can be transposed or inverted here, got {expr}: name the matrix and give its rule instead"
    )


def _add(terms: Terms, word: Word, coefficient: sp.Expr) -> None:
    total = sp.expand(terms.pop(word, sp.S.Zero) + coefficient)
    if total != 0:
        terms[word] = total


def _multiply(left: Terms, right: Terms) -> Terms:
    product: Terms = {}
    for word_a, a in left.items():
        for word_b, b in right.items():
            if word_a and word_b and word_a[-1].cols != word_b[0].rows:
                raise SizeMismatch(
                    f"sizes do not match: {word_a[-1]} is {word_a[-1].shape}, {word_b[0]} is {word_b[0].shape}"
                )
            _add(product, word_a + word_b, a * b)
    return product


def _expand(expr: MatrixExpr, symmetric: tuple[MatrixExpr, ...]) -> Terms:
    """Multiply out: {word: commuting coefficient}; the empty word is the identity."""
    if isinstance(expr, sp.Identity):
        return {(): sp.S.One}
    if isinstance(expr, sp.ZeroMatrix):
        return {}
    if isinstance(expr, sp.MatAdd):
        terms: Terms = {}
        for summand in expr.args:
            if summand.shape != expr.shape:
                raise SizeMismatch(f"sizes do not match: {summand} is {summand.shape}, expected {expr.shape}")
            for word, coefficient in _expand(summand, symmetric).items():
                _add(terms, word, coefficient)
        return terms
    if isinstance(expr, sp.MatMul):
        coefficient, factors = expr.as_coeff_matrices()
        return reduce(_multiply, (_expand(factor, symmetric) for factor in factors), {(): coefficient})
    if isinstance(expr, sp.Transpose) and not isinstance(expr.arg, sp.MatrixSymbol | sp.Inverse):
        inner = _expand(expr.arg, symmetric)
        return {_transpose(word, symmetric): coefficient for word, coefficient in inner.items()}
    if isinstance(expr, sp.MatPow) and not isinstance(expr, sp.Inverse):
        base, exponent = (expr.base, expr.exp) if expr.exp > 0 else (sp.Inverse(expr.base), -expr.exp)
        return reduce(_multiply, [_expand(base, symmetric)] * int(exponent))
    return {(_atom(expr, symmetric),): sp.S.One}


def _transpose(word: Word, symmetric: tuple[MatrixExpr, ...]) -> Word:
    return tuple(_atom(sp.Transpose(atom), symmetric) for atom in reversed(word))


def _rewrite_once(word: Word, rules: Mapping[Word, Terms]) -> tuple[Word, Terms, Word] | None:
    for i, (a, b) in enumerate(pairwise(word)):
        if sp.Inverse(b) == a or sp.Inverse(a) == b:
            return word[:i], {(): sp.S.One}, word[i + 2 :]
    for left, right in rules.items():
        for i in range(len(word) - len(left) + 1):
            if word[i : i + len(left)] == left:
                return word[:i], right, word[i + len(left) :]
    return None


def normal_form(expr: MatrixExpr, given: Given) -> Terms:
    """The expression multiplied out and reduced: {word: coefficient}, empty if it is zero under the hypotheses.

    Raises SizeMismatch where sizes do not fit, RuntimeError if the rules do not come to an end.
    """
    rules = given.rewriting()
    waiting = list(_expand(expr, given.symmetric).items())
    reduced: Terms = {}
    for _ in range(_MAX_REWRITES):
        if not waiting:
            # coefficients may be rational functions that vanish only over a common denominator
            return {word: c for word, c in reduced.items() if not _scalar_is_zero(c)}
        word, coefficient = waiting.pop()
        found = _rewrite_once(word, rules)
        if found is not None:
            before, middle, after = found
            waiting += [(before + inner + after, coefficient * c) for inner, c in middle.items()]
        elif expr.shape == (1, 1):
            # a number equals its transpose: keep one of the two words
            _add(reduced, min(word, _transpose(word, given.symmetric), key=str), coefficient)
        else:
            _add(reduced, word, coefficient)
    raise RuntimeError(f"the rules did not come to an end within {_MAX_REWRITES} rewrites of {expr}")


def _blocks(expr: MatrixExpr) -> list[MatrixExpr]:
    collapsed = sp.block_collapse(expr)
    return list(collapsed.blocks) if isinstance(collapsed, sp.BlockMatrix) else [collapsed]


@functools.lru_cache(_CHECKS_KEPT)
def _check_matrices(left: MatrixExpr, right: MatrixExpr, given: Given) -> str:
    """The empty string if left = right under the hypotheses, else what is left over."""
    parts = zip(_blocks(left), _blocks(right), strict=True) if left.has(sp.BlockMatrix) else [(left, right)]
    try:
        rest = [terms for a, b in parts if (terms := normal_form(sp.MatAdd(a, sp.MatMul(-1, b)), given))]
    except SizeMismatch as mismatch:
        return str(mismatch)
    difference = given.evaluate(left) - given.evaluate(right)
    if not rest:
        # The proof is the rewriting; an example that disagreed would mean the machinery is wrong.
        return "" if is_zero(difference) else f"rewriting and the exact example disagree: {difference.tolist()}"
    words = " + ".join(f"({c}) {' '.join(_shown(x, ()) for x in w) or 'I'}" for terms in rest for w, c in terms.items())
    refuted = "not derived" if is_zero(difference) else f"counterexample: the example has {difference.tolist()}"
    return f"left - right = {words}; {refuted}"


@functools.lru_cache(_CHECKS_KEPT)
def _check_scalars(left: Any, right: Any, relation: str) -> str:
    """The same for scalars and explicit matrices; a sign must follow from the symbols' assumptions."""
    difference = left - right
    if relation == "=":
        if is_zero(difference):
            return ""
    elif _has_sign(difference, "is_nonnegative" if relation == ">=" else "is_positive"):
        return ""
    rest = difference.applyfunc(sp.together) if isinstance(difference, sp.MatrixBase) else sp.together(difference)
    return f"left - right = {_shown(rest, ())}; {_counterexample(difference, relation) or 'not derived'}"


def _counterexample(difference: Any, relation: str) -> str:
    """Values of the symbols, as their assumptions allow, for which `difference relation 0` is false; empty if none."""
    symbols = sorted(difference.free_symbols, key=str)
    entries = list(difference) if isinstance(difference, sp.MatrixBase) else [difference]
    for shift in range(len(_TRIALS)):
        values = {
            symbol: shift + i + 1 if symbol.is_integer else _TRIALS[(shift + i * i + i) % len(_TRIALS)]
            for i, symbol in enumerate(symbols)
        }
        for entry in entries:
            value = entry.evalf(20, subs=values)
            if not value.is_real or abs(value) < _MINIMUM:
                continue
            if relation == "=" or value < 0:
                where = ", ".join(f"{symbol} = {x}" for symbol, x in values.items())
                return f"counterexample: {sp.N(value, 6)}" + (f" for {where}" if where else "")
    return ""


@dataclass(frozen=True)
class Step:
    """One claim of a proof: `left relation right`, checked when the step is made.

    Attributes:
        claim: what the step says, in words
        relation: "=", ">=", ">" (scalars, by the symbols' assumptions), or "free of" (left does not involve right)
        given: hypotheses, needed for general matrix symbols
        holds: whether the relation was verified; never set by hand
        residual: what stands against it, empty if it holds
    """

    claim: str
    left: Any
    right: Any
    relation: str = "="
    given: Given | None = None
    holds: bool = field(init=False)
    residual: str = field(init=False)

    def __post_init__(self) -> None:
        residual = self._check()
        object.__setattr__(self, "residual", residual)
        object.__setattr__(self, "holds", residual == "")

    def _check(self) -> str:
        left, right = sp.sympify(self.left), sp.sympify(self.right)
        symbolic = isinstance(left, MatrixExpr) and not isinstance(left, sp.MatrixBase)
        if self.relation == "free of":
            return f"it involves {right}" if left.has(right) else ""
        if self.relation == "=" and symbolic:
            if self.given is None:
                raise ValueError(f"step {self.claim!r}: an identity over matrix symbols needs its `given`")
            return _check_matrices(left, right, self.given)
        if self.relation in ("=", ">=", ">"):
            return _check_scalars(_frozen(left), _frozen(right), self.relation)
        raise ValueError(f"relation must be '=', '>=', '>' or 'free of', got {self.relation!r}")

    def shows(self, formula: Any) -> bool:
        """Whether a side of the step, or a part of one, is this expression."""
        sides = (sp.sympify(side) for side in (self.left, self.right))
        return any(formula in sp.preorder_traversal(side) for side in sides)

    def __str__(self) -> str:
        symmetric = () if self.given is None else self.given.symmetric
        claim = textwrap.fill(
            f"[{'ok' if self.holds else 'FAILS'}] {self.claim}", 100, subsequent_indent="    ", break_on_hyphens=False
        )
        indent = "      " if self.relation == "=" else "    "
        lines = [claim, f"{indent}{_shown(self.left, symmetric)}"]
        lines.append(f"    {self.relation} {_shown(self.right, symmetric)}")
        if self.given is not None and self.given.rules:
            rules = (f"{_shown(a, symmetric)} = {_shown(b, symmetric)}" for a, b in self.given.rules)
            lines.append(f"    given {', '.join(rules)}")
        if not self.holds:
            lines.append(f"    but {self.residual}")
        return "\n".join(lines)


def _shown(value: Any, symmetric: tuple[MatrixExpr, ...]) -> str:
    """The expression on one line, with ᵀ, ⁻¹ and ² for sympy's .T, **(-1) and **2."""
    if isinstance(value, MatrixExpr) and value.has(sp.BlockMatrix):
        factors = value.args if isinstance(value, sp.MatMul) else (value,)
        return " · ".join(_shown_block(factor, symmetric) for factor in factors)
    if isinstance(value, sp.MatrixBase):
        text = str(value.tolist())
    elif isinstance(value, MatrixExpr):
        text = _without_transposes(value, symmetric)
    else:
        text = str(value)
    for pattern, mark in ((r"\.T\b", "ᵀ"), (r"\*\*\(-1\)", "⁻¹"), (r"\*\*2\b", "²")):
        text = re.sub(pattern, mark, text)
    return text


@functools.lru_cache(_CHECKS_KEPT)
def _without_transposes(value: MatrixExpr, symmetric: tuple[MatrixExpr, ...]) -> str:
    """In sympy's notation, of symmetric matrices; most steps of a false variant are those of the proof."""
    return str(value.xreplace({sp.Transpose(symbol): symbol for symbol in symmetric}))


def _shown_block(value: MatrixExpr, symmetric: tuple[MatrixExpr, ...]) -> str:
    rows, columns = value.blockshape
    lines = (", ".join(_shown(value.blocks[i, j], symmetric) for j in range(columns)) for i in range(rows))
    return f"[{'; '.join(lines)}]"


@dataclass(frozen=True)
class Proof:
    """A theorem with its steps. `str(proof)` is the proof written out.

    Attributes:
        formulas: expressions that stand in the steps, by name: what `compare` evaluates against the library's own
            numbers
        holds: whether there is at least one step and every step was verified; never set by hand

    Raises:
        ValueError: For one that no step has.
    """

    name: str
    statement: str
    steps: tuple[Step, ...]
    formulas: Mapping[str, Any] = field(default_factory=dict)
    holds: bool = field(init=False)

    def __post_init__(self) -> None:
        for name, formula in self.formulas.items():
            if not any(step.shows(formula) for step in self.steps):
                raise ValueError(f"{self.name}: no step shows the formula {name!r}, {formula}")
        object.__setattr__(self, "holds", bool(self.steps) and all(step.holds for step in self.steps))

    def __str__(self) -> str:
        heading = f"{self.name}: {'holds' if self.holds else 'DOES NOT HOLD'}"
        body = [f"{i}. {step}" for i, step in enumerate(self.steps, start=1)]
        return "\n".join([heading, "", textwrap.fill(self.statement, 100, break_on_hyphens=False), "", *body])


def choose(variant: str | None, correct: Any, **wrong: Any) -> Any:
    """The formula under proof: the correct one, or the false one that the variant names."""
    return correct if variant is None else wrong.get(variant, correct)
