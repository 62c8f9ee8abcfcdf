"""The checks that a linear operator must pass."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ssdcore._arrays import Array, namespace_of
from ssdcore.operators import LinearOperator, Matrix, Separable
from ssdcore.operators.base import Composition, Scaled, Sum, Transpose
from ssdcore.testing._backend import (
    Backend,
    advanced_generators,
    available_dtypes,
    generator_states,
    norm,
    same_device,
    to_numpy,
)
from ssdcore.testing._report import Check, Measurement, Skipped

# Operators whose spaces both have at most this many elements are compared with their dense matrix.
DENSE_LIMIT = 1024

BATCHES: tuple[tuple[int, ...], ...] = ((), (1,), (2, 3), (2, 0))


def exact(holds: bool, what: str) -> Measurement:
    """A condition without tolerance: measured 0 if it holds, 1 if not."""
    return Measurement(0.0 if holds else 1.0, 0.0, what)


def deviation(got: np.ndarray, expected: np.ndarray, tolerance: float, what: str) -> Measurement:
    """Norm of the difference; infinite for another shape."""
    if got.shape != expected.shape:
        return Measurement(math.inf, tolerance, f"{what}: shape {got.shape}, expected {expected.shape}")
    return Measurement(norm(got - expected), tolerance, what)


def magnitude(op: LinearOperator) -> float:
    """What rounding errors of applying `op` scale with: its norm, for a composition the product of its parts' norms."""
    if isinstance(op, Composition):
        return math.prod(magnitude(part) for part in op.parts)
    if isinstance(op, Scaled):
        return abs(op.scale) * magnitude(op.op)
    if isinstance(op, Transpose):
        return magnitude(op.op)
    if isinstance(op, Sum):
        return sum(magnitude(part) for part in op.parts)
    return op.norm()


def roundings(op: LinearOperator) -> int:
    """Bound on the roundings that one element of M x collects: the elements that it may be summed from."""
    if isinstance(op, Composition | Sum):
        return sum(roundings(part) for part in op.parts)
    if isinstance(op, Scaled | Transpose):
        return roundings(op.op) + 1
    return math.prod(op.in_shape) + math.prod(op.out_shape)


def own_dtype(op: LinearOperator, backend: Backend) -> str:
    """The widest dtype that the operator takes: what a `Functional` names, else the widest that the library has."""
    kind = op.array_kind
    if kind.namespace is backend.xp:
        for name in available_dtypes(backend.xp):
            if getattr(backend.xp, name) == kind.dtype:
                return name
    return backend.widest.dtype_name


def within_range(op: LinearOperator, backend: Backend) -> LinearOperator:
    """`op`, or a power of two of it where its norm, squared, would leave the range of a dtype below float64."""
    if backend.dtype_name == "float64":
        return op
    try:
        size = op.norm()
    except Exception:  # the checks will say what is wrong with it
        return op
    if not 0 < size < math.inf or 2**-8 <= size <= 2**8:
        return op
    return op * 2.0 ** -round(math.log2(size))


def same(x: np.ndarray, y: np.ndarray) -> bool:
    return bool(np.array_equal(x, y, equal_nan=True))


class Reference:
    """An operator's dense matrix, found by applying it to every basis vector, in the widest dtype that it takes."""

    def __init__(self, op: LinearOperator, backend: Backend) -> None:
        self.op, self.backend = op, backend.at(own_dtype(op, backend))

    @property
    def small(self) -> bool:
        return max(math.prod(self.op.in_shape), math.prod(self.op.out_shape)) <= DENSE_LIMIT

    @functools.cached_property
    def matrix(self) -> np.ndarray:
        if not self.small:
            raise Skipped(f"more than {DENSE_LIMIT} elements: no dense matrix is built")
        return probe(self.op, self.backend)

    @functools.cached_property
    def svd(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.linalg.svd(self.matrix, full_matrices=False)

    @property
    def unit(self) -> float:
        return self.backend.unit

    @functools.cached_property
    def error(self) -> float:
        """Norm of the error of the dense matrix and of its decomposition."""
        operations = roundings(self.op) + max(self.matrix.shape)
        return self.backend.rounding(operations, self.matrix.size) * magnitude(self.op)


def probe(op: Callable[[Array], Array], backend: Backend, in_shape: tuple[int, ...] | None = None) -> np.ndarray:
    """The dense matrix (prod(out_shape), prod(in_shape)) of a linear function of arrays."""
    shape = op.in_shape if isinstance(op, LinearOperator) else in_shape
    assert shape is not None  # a plain function comes with its shape
    n = math.prod(shape)
    return to_numpy(op(backend.array(np.eye(n).reshape(n, *shape)))).reshape(n, -1).T


class OperatorContext:
    """One operator on one backend, with what several checks need.

    Attributes:
        given: the operator itself: what is asked of its memory and its manners
        op: the same, or a power of two of it whose numbers fit the dtype: what is measured
    """

    def __init__(self, op: LinearOperator, backend: Backend, examples: int, seed: int, reference: Reference) -> None:
        self.given, self.backend, self.examples = op, backend, examples
        self.op = within_range(op, backend)
        self.reference = reference if self.op is op else Reference(self.op, backend)
        self._rng = np.random.default_rng(seed)

    def random(self, shape: tuple[int, ...]) -> Array:
        """A standard normal array of the backend."""
        return self.backend.array(self._rng.standard_normal(shape))

    def values(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._rng.standard_normal(shape)

    def sides(self) -> tuple[tuple[str, LinearOperator], ...]:
        return ("M", self.op), ("Mᵀ", self.op.T)

    def given_sides(self) -> tuple[tuple[str, LinearOperator], ...]:
        return ("M", self.given), ("Mᵀ", self.given.T)

    def tolerance(self, op: LinearOperator, x: np.ndarray, y: np.ndarray) -> float:
        """Norm of the error that y = M x may have: λ√k u ‖M‖‖x‖, and storage where the dtype is a half."""
        backend = self.backend
        return backend.rounding(roundings(op), y.size) * magnitude(op) * norm(x) + backend.storing(y)

    def compare(self, op: LinearOperator, x: Array, y: Array, expected: np.ndarray, what: str) -> Measurement:
        """y = op(x) against float64 values."""
        return deviation(to_numpy(y), expected, self.tolerance(op, to_numpy(x), expected), what)

    def functions(self) -> tuple[tuple[str, Callable[[Array], Array]], ...]:
        """Functions of an eigenvalue, scaled to the operator, that work on arrays of every namespace."""
        largest = magnitude(self.op) ** 2 or 1.0
        return (
            ("λ", lambda e: e),
            ("1/(1 + λ/‖M‖²)", lambda e: 1 / (1 + e / largest)),
            ("√(1 + λ/‖M‖²)", lambda e: (1 + e / largest) ** 0.5),
            ("2 − (λ/‖M‖²)²", lambda e: 2 - (e / largest) ** 2),
        )


def shapes(c: OperatorContext) -> Iterator[Measurement]:
    for name, op in c.sides():
        for batch in BATCHES:
            got, expected = c.backend.shape_of(op, c.random((*batch, *op.in_shape))), (*batch, *op.out_shape)
            yield exact(got == expected, f"{name} of batch {batch}: shape {got}, expected {expected}")
        for batch in ((), (0,)):
            expected = (*batch, *op.in_shape)
            got = c.backend.shape_of(functools.partial(op.gram_function, lambda e: 1 + e), c.random(expected))
            yield exact(got == expected, f"f({name}ᵀ{name}) of batch {batch}: shape {got}, expected {expected}")


def batch_items(c: OperatorContext) -> Iterator[Measurement]:
    for name, op in c.sides():
        x = c.random((2, 3, *op.in_shape))
        y = to_numpy(op(x))
        for i, j in np.ndindex(2, 3):
            alone = to_numpy(op(x[i, j, ...]))
            tolerance = 2 * c.tolerance(op, to_numpy(x[i, j, ...]), alone)
            yield deviation(y[i, j], alone, tolerance, f"{name}: item ({i}, {j}) of a batch against the item alone")


def adjoint(c: OperatorContext) -> Iterator[Measurement]:
    """|⟨Mx, y⟩ − ⟨x, Mᵀy⟩|; the scale is ‖M‖‖x‖‖y‖, since ‖Mx‖ may vanish where its rounding errors do not."""
    op = c.op
    for _ in range(c.examples):
        x, y = c.random(op.in_shape), c.random(op.out_shape)
        mx, mty = to_numpy(op(x)).ravel(), to_numpy(op.T(y)).ravel()
        vx, vy = to_numpy(x).ravel(), to_numpy(y).ravel()
        computing = 2 * c.backend.rounding(roundings(op), 1) * magnitude(op) * norm(vx) * norm(vy)
        storing = c.backend.storing(mx) * norm(vy) + c.backend.storing(mty) * norm(vx)
        # both sums are taken in float64
        summing = Backend(np, "float64").rounding(vx.size + vy.size, 1) * (norm(mx) * norm(vy) + norm(mty) * norm(vx))
        yield Measurement(abs(float(mx @ vy - vx @ mty)), computing + storing + summing, "⟨Mx, y⟩ against ⟨x, Mᵀy⟩")
    if c.reference.small:
        a = c.reference.matrix
        eye = np.eye(a.shape[0])
        tolerance = c.tolerance(op.T, eye, a) + c.reference.error
        yield deviation(probe(op.T, c.backend), a.T, tolerance, "matrix of Mᵀ against the transposed matrix of M")


def transpose(c: OperatorContext) -> Iterator[Measurement]:
    op = c.op
    yield exact((op.T.in_shape, op.T.out_shape) == (op.out_shape, op.in_shape), "shapes of .T are those of M, swapped")
    again = op.T.T
    yield exact((again.in_shape, again.out_shape) == (op.in_shape, op.out_shape), "shapes of .T.T are those of M")
    for _ in range(c.examples):
        x = c.random(op.in_shape)
        y = to_numpy(op(x))
        yield deviation(to_numpy(again(x)), y, 2 * c.tolerance(op, to_numpy(x), y), ".T.T(x) against M x")
    wide = c.reference.backend
    yield Measurement(abs(op.T.norm() - op.norm()), 2 * norm_tolerance(op, wide), "norm of .T against the norm of M")
    if c.reference.small:
        a = c.reference.matrix
        yield deviation(op.T.as_matrix(), a.T, 2 * c.reference.error, ".T.as_matrix() against the transposed matrix")


def linearity(c: OperatorContext) -> Iterator[Measurement]:
    for name, op in c.sides():
        zero = to_numpy(op(c.backend.array(np.zeros(op.in_shape))))
        yield Measurement(float(np.abs(zero).max()), 0.0, f"{name} 0, which must be 0")
        for _ in range(c.examples):
            x, y = c.random(op.in_shape), c.random(op.in_shape)
            combined = c.backend.array(2 * to_numpy(x) - 0.5 * to_numpy(y))
            # what rounding to the dtype left out of the combination, exactly
            lost = 2 * to_numpy(x) - 0.5 * to_numpy(y) - to_numpy(combined)
            mx, my, mc = to_numpy(op(x)), to_numpy(op(y)), to_numpy(op(combined))
            tolerance = (
                2 * c.tolerance(op, to_numpy(x), mx)
                + 0.5 * c.tolerance(op, to_numpy(y), my)
                + c.tolerance(op, to_numpy(combined), mc)
                + magnitude(op) * norm(lost)
            )
            yield deviation(mc, 2 * mx - 0.5 * my, tolerance, f"{name}(2x − y/2) against 2{name}x − {name}y/2")


def matrix(c: OperatorContext) -> Iterator[Measurement]:
    a = c.reference.matrix
    dense = c.op.as_matrix()
    kind_ok = isinstance(dense, np.ndarray) and dense.dtype == np.float64
    yield exact(kind_ok, f"as_matrix() must be a float64 numpy array, got {getattr(dense, 'dtype', type(dense))}")
    yield deviation(dense, a, 2 * c.reference.error, "as_matrix() against M applied to every basis vector")


def accuracy(c: OperatorContext) -> Iterator[Measurement]:
    a = c.reference.matrix
    for name, op, dense in (("M", c.op, a), ("Mᵀ", c.op.T, a.T)):
        for _ in range(c.examples):
            x = c.random(op.in_shape)
            vx = to_numpy(x)
            expected = (dense @ vx.ravel()).reshape(op.out_shape)
            tolerance = c.tolerance(op, vx, expected) + c.reference.error * norm(vx)
            yield deviation(to_numpy(op(x)), expected, tolerance, f"{name} x against the dense matrix")


def _neighbours(c: OperatorContext) -> Iterator[tuple[LinearOperator, LinearOperator]]:
    """(b, a): operators to compose with after and before M; the second pair may merge with a separable M."""
    m, n = math.prod(c.op.out_shape), math.prod(c.op.in_shape)
    yield Matrix(c.values((3, m)), c.op.out_shape, (3,)), Matrix(c.values((n, 4)), (4,), c.op.in_shape)
    after = Separable([c.values((k % 3 + 1, k)) for k in c.op.out_shape])
    yield after, Separable([c.values((k, k % 3 + 1)) for k in c.op.in_shape])


def composition(c: OperatorContext) -> Iterator[Measurement]:
    op = c.op
    pairs = [("b @ M", b, op) for b, _ in _neighbours(c)] + [("M @ a", op, a) for _, a in _neighbours(c)]
    if op is c.given:  # else the square of its norm, which a product may hold, is out of the dtype's range
        pairs += [("Mᵀ @ M", op.T, op), ("M @ Mᵀ", op, op.T)]
    for name, outer, inner in pairs:
        both = outer @ inner
        yield exact((both.in_shape, both.out_shape) == (inner.in_shape, outer.out_shape), f"shapes of {name}")
        scale = magnitude(outer) * magnitude(inner)
        rounding = 2 * c.backend.rounding(roundings(outer) + roundings(inner), math.prod(outer.out_shape)) * scale
        x = c.random(inner.in_shape)
        middle = inner(x)
        expected, vx = to_numpy(outer(middle)), to_numpy(x)
        storing = 2 * c.backend.storing(expected) + magnitude(outer) * c.backend.storing(to_numpy(middle))
        yield deviation(to_numpy(both(x)), expected, rounding * norm(vx) + storing, f"({name})(x) against one by one")
        y = c.random(outer.out_shape)
        middle = outer.T(y)
        expected, vy = to_numpy(inner.T(middle)), to_numpy(y)
        rounding = 2 * c.backend.rounding(roundings(outer) + roundings(inner), math.prod(inner.in_shape)) * scale
        storing = 2 * c.backend.storing(expected) + magnitude(inner) * c.backend.storing(to_numpy(middle))
        yield deviation(to_numpy(both.T(y)), expected, rounding * norm(vy) + storing, f"({name}).T against one by one")


def scaling(c: OperatorContext) -> Iterator[Measurement]:
    op, wide = c.op, c.reference.backend
    x = c.random(op.in_shape)
    y = to_numpy(op(x))
    for factor, scaled in ((-0.3, -0.3 * op), (2.5, op * 2.5), (-1.0, -op), (0.75, 0.5 * (1.5 * op)), (0.0, 0.0 * op)):
        tolerance = 2 * c.tolerance(scaled, to_numpy(x), factor * y) + abs(factor) * c.backend.storing(y)
        tolerance += c.backend.rounding(roundings(op), y.size) * abs(factor) * magnitude(op) * norm(to_numpy(x))
        yield deviation(to_numpy(scaled(x)), factor * y, tolerance, f"({factor} M)(x) against {factor} (M x)")
        difference = abs(scaled.norm() - abs(factor) * op.norm())
        yield Measurement(difference, 2 * abs(factor) * norm_tolerance(op, wide), f"norm of {factor} M")
        yield exact((scaled.in_shape, scaled.out_shape) == (op.in_shape, op.out_shape), f"shapes of {factor} M")


def norm_tolerance(op: LinearOperator, wide: Backend) -> float:
    """Error that norm() may have: rounding, or eps^(3/4) where it is iterative for want of a decomposition."""
    if op.decomposition() is None:
        return (2 * wide.unit) ** 0.75 * magnitude(op)
    # singular values are backward stable in the size of the matrix
    return wide.rounding(roundings(op), 1) * magnitude(op)


def norm_value(c: OperatorContext) -> Iterator[Measurement]:
    op = c.op
    value = op.norm()
    yield exact(isinstance(value, float) and math.isfinite(value) and value >= 0, f"a finite float >= 0, got {value!r}")
    tolerance = norm_tolerance(op, c.reference.backend)
    if c.reference.small:
        largest = float(c.reference.svd[1][0])
        yield Measurement(abs(value - largest), tolerance + c.reference.error, "norm() against the dense matrix")
    wide = c.reference.backend
    for _ in range(c.examples):
        x = wide.array(c.values(op.in_shape))
        for _ in range(4):  # power iteration: a lower bound on the norm that grows
            y = op.T(op(x))
            length = norm(to_numpy(y))
            if length == 0:
                break
            x = y / length
        vx = to_numpy(x)
        stretched = norm(to_numpy(op(x))) / (norm(vx) or 1.0)
        slack = tolerance + wide.rounding(roundings(op), 1) * magnitude(op)
        yield Measurement(max(stretched - value, 0.0), slack, "‖Mx‖/‖x‖ above norm()")


def singular_values(c: OperatorContext) -> Iterator[Measurement]:
    if c.op.learns():
        raise Skipped("an operator that learns keeps no decomposition")
    _, s, _ = c.reference.svd
    values = np.sort(c.op.singular_values().ravel())[::-1]
    padded = np.zeros(max(len(s), len(values)))
    padded[: len(values)] = values
    expected = np.zeros_like(padded)
    expected[: len(s)] = s
    tolerance = math.sqrt(len(padded)) * (norm_tolerance(c.op, c.reference.backend) + c.reference.error)
    yield deviation(padded, expected, tolerance, "singular values against the dense matrix")


def gram_function(c: OperatorContext) -> Iterator[Measurement]:
    if not c.reference.small:
        yield from _gram_polynomials(c)
        return
    u, s, vt = c.reference.svd
    for side, op, basis in (("MᵀM", c.op, vt.T), ("MMᵀ", c.op.T, u)):
        values = s**2
        for name, f in c.functions():
            x = c.random(op.in_shape)
            vx = to_numpy(x).ravel()
            at = np.asarray(f(values))
            at_zero = float(f(np.zeros(1))[0])
            expected = at_zero * vx + basis @ ((at - at_zero) * (basis.T @ vx))
            tolerance = c.backend.storing(expected) + _spectral_tolerance(c, op, f, values) * norm(vx)
            got = to_numpy(op.gram_function(f, x)).ravel()
            yield deviation(got, expected, tolerance, f"f({side}) x for f(λ) = {name}, against dense eigenvectors")


def _spectral_tolerance(c: OperatorContext, op: LinearOperator, f: Callable[[Any], Any], values: np.ndarray) -> float:
    """Norm of the error of f(MᵀM): rounding of the modes, and f over eigenvalues moved by rounding of MᵀM."""
    size = math.prod(op.in_shape)
    rounding = c.backend.rounding(2 * roundings(op), size)
    moved = rounding * magnitude(op) ** 2 + 2 * magnitude(op) * c.reference.error
    values = np.append(values, 0.0)
    at = np.asarray(f(values))
    change = max(float(np.abs(f(np.maximum(values + d, 0.0)) - at).max()) for d in (-moved, moved))
    # a function of a matrix moves by at most its Lipschitz constant, times a logarithm of the size (Kato, 1973)
    tolerance = 2 * rounding * float(np.abs(at).max()) + (1 + math.log(size)) * change
    if op.decomposition() is None:
        tolerance += (4 * c.backend.unit) ** 0.75 * float(np.abs(at).max())
    return tolerance


def _gram_polynomials(c: OperatorContext) -> Iterator[Measurement]:
    """Where no dense matrix can be had: f(λ) = λ and λ², by applying the operator."""
    for side, op in (("MᵀM", c.op), ("MMᵀ", c.op.T)):
        x = c.random(op.in_shape)
        once = op.T(op(x))
        for power, expected in ((1, to_numpy(once)), (2, to_numpy(op.T(op(once))))):
            scale = magnitude(op) ** (2 * power) * norm(to_numpy(x))
            tolerance = c.backend.rounding(4 * power * roundings(op), expected.size) * scale
            tolerance += 2 * power * c.backend.storing(expected) * (1 + magnitude(op) ** 2)
            if op.decomposition() is None:
                tolerance += (2 * c.backend.unit) ** 0.75 * scale
            got = to_numpy(op.gram_function(lambda e, k=power: e**k, x))  # type: ignore[misc]
            yield deviation(got, expected, tolerance, f"f({side}) x for f(λ) = λ^{power}, against repeated application")


def dtype(c: OperatorContext) -> Iterator[Measurement]:
    expected = c.backend.dtype
    for name, op in c.sides():
        x = c.random((2, *op.in_shape))
        results = {
            name: op(x),
            f"0.5 {name}": (0.5 * op)(x),
            f"f({name}ᵀ{name})": op.gram_function(lambda e: 1 + e, x),
        }
        for what, y in results.items():
            yield exact(y.dtype == expected, f"{what}: dtype {y.dtype}, expected {expected}")


def precision_order(c: OperatorContext) -> Iterator[Measurement]:
    """Calls in one dtype must not change what a later call in another gives."""
    if own_dtype(c.op, c.backend) != c.backend.widest.dtype_name:
        raise Skipped("the operator takes arrays of its own dtype")
    for name, op in c.sides():
        values = c.values((2, *op.in_shape))
        x = c.backend.array(values)
        first = to_numpy(op(x)), to_numpy(op.gram_function(lambda e: 1 + e, x))
        for other in (c.backend.at(name) for name in available_dtypes(c.backend.xp) if name != c.backend.dtype_name):
            op(other.array(values))
            op.gram_function(lambda e: 1 + e, other.array(values))
        again = to_numpy(op(x)), to_numpy(op.gram_function(lambda e: 1 + e, x))
        for what, before, after in zip((name, f"f({name}ᵀ{name})"), first, again):
            yield exact(same(before, after), f"{what}: another result after calls in other dtypes")


def namespace(c: OperatorContext) -> Iterator[Measurement]:
    for device in c.backend.devices():
        backend = Backend(c.backend.xp, c.backend.dtype_name, device)
        for name, op in c.sides():
            x = backend.array(c.values((2, *op.in_shape)))
            for what, y in ((name, op(x)), (f"f({name}ᵀ{name})", op.gram_function(lambda e: 1 + e, x))):
                where = f"{what} on {device}"
                found = namespace_of(y)
                yield exact(found is backend.xp, f"{where}: namespace {found.__name__}, expected {backend.xp.__name__}")
                if found is backend.xp:
                    yield exact(same_device(x, y), f"{where}: the result is on another device")


def repeatability(c: OperatorContext) -> Iterator[Measurement]:
    for name, op in c.sides():
        x = c.random((2, *op.in_shape))
        for what, call in ((name, op), (f"f({name}ᵀ{name})", lambda v, op=op: op.gram_function(lambda e: 1 + e, v))):
            first, second = to_numpy(call(x)), to_numpy(call(x))
            yield Measurement(
                float(np.abs(first - second).max(initial=0.0)), 0.0, f"{what} x: two calls on the same input"
            )


def results_kept(c: OperatorContext) -> Iterator[Measurement]:
    """What a call has returned must not change when the operator is applied again."""
    for name, op in c.given_sides():
        for what, call in ((name, op), (f"f({name}ᵀ{name})", lambda v, op=op: op.gram_function(lambda e: 1 + e, v))):
            first = call(c.random((2, *op.in_shape)))
            before = to_numpy(first)
            call(c.random((2, *op.in_shape)))
            kept = same(to_numpy(first), before)
            yield exact(kept, f"{what} x changed when {what} was applied to another array: a buffer is used again")


def unchanged_generators(call: Callable[[], object], what: str) -> Iterator[Measurement]:
    with advanced_generators():  # else seeding would go unnoticed where the state is already that of the seed
        before = generator_states()
        call()
        after = generator_states()
    for name, state in before.items():
        yield exact(state == after[name], f"{what} changed the global random state of {name}")


def global_rng(c: OperatorContext) -> Iterator[Measurement]:
    for name, op in c.given_sides():
        x = c.random((2, *op.in_shape))
        yield from unchanged_generators(lambda op=op, x=x: op(x), name)  # type: ignore[misc]
        yield from unchanged_generators(
            lambda op=op, x=x: op.gram_function(lambda e: 1 + e, x),  # type: ignore[misc]
            f"f({name}ᵀ{name})",
        )
    yield from unchanged_generators(c.given.norm, "norm()")


def read_only(x: Array) -> Array:
    if isinstance(x, np.ndarray):
        x.flags.writeable = False  # writing then raises, where a comparison might miss a write of equal values
    return x


def inputs_untouched(c: OperatorContext) -> Iterator[Measurement]:
    for name, op in c.given_sides():
        for what, call in ((name, op), (f"f({name}ᵀ{name})", lambda v, op=op: op.gram_function(lambda e: 1 + e, v))):
            x = read_only(c.random((2, *op.in_shape)))
            before = to_numpy(x)
            call(x)
            yield exact(same(to_numpy(x), before), f"{what} wrote to its input")
            whole = c.random((3, *op.in_shape))
            before = to_numpy(whole)
            call(whole[1:, ...])
            yield exact(same(to_numpy(whole), before), f"{what} wrote to the array that its input views")


def noncontiguous(c: OperatorContext) -> Iterator[Measurement]:
    xp = c.backend.xp
    for name, op in c.sides():
        rank = len(op.in_shape)
        turned = c.random((*reversed(op.in_shape), 2))
        wide = c.random((2, *op.in_shape[:-1], 2 * op.in_shape[-1]))
        views = {
            "transposed": xp.permute_dims(turned, tuple(range(rank, -1, -1))),
            "strided": wide[..., ::2],
            "flipped": xp.flip(c.random((2, *op.in_shape)), axis=-1),
            "broadcast": xp.broadcast_to(c.random((1, *op.in_shape)), (2, *op.in_shape)),
        }
        for what, view in views.items():
            values = to_numpy(view)
            expected = to_numpy(op(c.backend.array(values)))
            tolerance = 2 * c.tolerance(op, values, expected)
            yield deviation(to_numpy(op(view)), expected, tolerance, f"{name} of a {what} view against its copy")


def refusals(c: OperatorContext) -> Iterator[Measurement]:
    xp, shape = c.backend.xp, c.given.in_shape
    wrong = (2, *shape[:-1], shape[-1] + 1)
    yield raises(ValueError, lambda: c.given(c.random(wrong)), f"an array shaped {wrong}")
    yield raises(ValueError, lambda: c.given(c.random(shape[1:])), f"an array shaped {shape[1:]}, too few axes")
    yield raises(TypeError, lambda: c.given(xp.zeros(shape, dtype=xp.int32)), "an integer array")
    yield raises(TypeError, lambda: c.given(xp.zeros(shape, dtype=xp.complex64)), "a complex array")
    yield raises(TypeError, lambda: c.given([1.0]), "a list")


def raises(kind: type[Exception], call: Callable[[], object], what: str) -> Measurement:
    try:
        call()
    except kind as error:
        return exact(bool(str(error)), f"{what}: {kind.__name__} without a message")
    except Exception as error:
        return exact(False, f"{what}: raised {type(error).__name__} ({error}), expected {kind.__name__}")
    return exact(False, f"{what}: accepted, expected {kind.__name__}")


OPERATOR_CHECKS: tuple[Check, ...] = (
    Check("shapes", "(*batch, *in_shape) -> (*batch, *out_shape), with no batch and an empty one too", shapes),
    Check("batch_items", "items of a batch do not mix", batch_items),
    Check("adjoint", "⟨Mx, y⟩ = ⟨x, Mᵀy⟩", adjoint),
    Check("transpose", ".T.T is M, and .T has its norm and its transposed matrix", transpose),
    Check("linearity", "M(ax + by) = aMx + bMy, M0 = 0", linearity),
    Check("matrix", "as_matrix() is M applied to every basis vector", matrix),
    Check("accuracy", "M x to the rounding of its dtype, half precision included", accuracy),
    Check("composition", "(b @ a)(x) = b(a(x)) and (b @ a).T = a.T @ b.T", composition),
    Check("scaling", "(c M)(x) = c (M x), ‖c M‖ = |c|‖M‖", scaling),
    Check("norm", "norm() is the largest singular value", norm_value),
    Check("singular_values", "singular_values() are those of the dense matrix", singular_values),
    Check("gram_function", "f(MᵀM) and f(MMᵀ) against dense eigenvectors", gram_function),
    Check("dtype", "results have the dtype of their input", dtype),
    Check("precision_order", "a call in one dtype does not change later ones in another", precision_order),
    Check("namespace", "results stay in the namespace and on the device of their input", namespace),
    Check("repeatability", "the same input twice gives the same bits: no hidden randomness", repeatability),
    Check("results_kept", "results stay as they are when the operator is applied again", results_kept),
    Check("global_rng", "global random states are left alone", global_rng),
    Check("inputs_untouched", "inputs are never written to", inputs_untouched),
    Check("noncontiguous", "strided, transposed, flipped and broadcast inputs", noncontiguous),
    Check("refusals", "wrong shapes raise ValueError, wrong kinds TypeError", refusals),
)
