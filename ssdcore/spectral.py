"""Functions of MᵀM: exact through small decompositions, or by Lanczos iteration where none is at hand.

A separable operator M = A_1 ⊗ A_2 ⊗ … has the singular value decomposition ⊗U_i, ⊗s_i, ⊗V_i of its factors, so
f(MᵀM) = (⊗V_i) f(⊗s_i²) (⊗V_i)ᵀ costs a few small matrix products, is exact, batched and differentiable.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ssdcore._arrays import Array, ArrayKind, Constant, Namespace, Shape, cast, device_of, to_numpy, widest_dtype
from ssdcore.axes import AxisMatrix, AxisSVD, Basis, analyse_axis, synthesise_axis


class ConvergenceError(ArithmeticError):
    """An iterative result did not reach its tolerance; nothing approximate is returned in its place."""


def _completed(factor: Basis) -> Basis:
    """Orthonormal columns, followed by others that make them a basis."""
    n, k = factor.shape
    if k == n:
        return factor
    q, _ = np.linalg.qr(factor.value, mode="complete")
    return Constant(np.concatenate([factor.value, q[:, k:]], axis=1))


@dataclass(frozen=True)
class Modes:
    """Orthonormal modes of arrays with trailing axes `shape`: the columns of ⊗ factors, factor i being (n_i, k_i).

    `grid` is the shape that the factors act on: `shape` itself, or its one flattened axis for a dense operator.
    No factors at all mean the identity: every array is in modes already.
    """

    shape: Shape
    grid: Shape
    factors: tuple[Basis, ...]

    @property
    def counts(self) -> Shape:
        return tuple(f.shape[1] for f in self.factors) if self.factors else self.grid

    @property
    def complete(self) -> bool:
        """Whether the modes span everything."""
        return self.counts == self.grid

    def completed(self, values: np.ndarray) -> tuple[Modes, np.ndarray]:
        """Modes that span everything, of which these are the first an axis, and `values` with zeros for the others."""
        if self.complete:
            return self, values
        factors = tuple(_completed(f) for f in self.factors)
        padding = [(0, n - k) for n, k in zip(self.grid, self.counts)]
        return Modes(self.shape, self.grid, factors), np.pad(np.broadcast_to(values, self.counts), padding)

    def on_grid(self, xp: Namespace, x: Array) -> Array:
        """``(*batch, *shape)`` as ``(*batch, *grid)``."""
        return x if self.shape == self.grid else xp.reshape(x, (*x.shape[: x.ndim - len(self.shape)], *self.grid))

    def off_grid(self, xp: Namespace, z: Array) -> Array:
        """``(*batch, *grid)`` as ``(*batch, *shape)``."""
        return z if self.shape == self.grid else xp.reshape(z, (*z.shape[: z.ndim - len(self.grid)], *self.shape))

    def analyse(self, xp: Namespace, x: Array) -> Array:
        """Coefficients Vᵀ x, ``(*batch, *counts)``."""
        if not self.factors:
            return x
        z = self.on_grid(xp, x)
        for i, factor in enumerate(self.factors):
            z = analyse_axis(xp, factor, z, i - len(self.grid))
        return z

    def synthesise(self, xp: Namespace, z: Array, base: Array | None = None) -> Array:
        """V z, ``(*batch, *shape)``; base + V z, a new array, where a base of those axes is given."""
        if not self.factors:
            return z if base is None else base + z
        for i, factor in enumerate(self.factors[:-1]):
            z = synthesise_axis(xp, factor, z, i - len(self.grid))
        if base is not None:
            base = self.on_grid(xp, base)
        return self.off_grid(xp, synthesise_axis(xp, self.factors[-1], z, -1, base))

    def scale(self, xp: Namespace, x: Array, values: Array, rest: Array | float) -> Array:
        """Multiply the coefficient of each mode by `values` and whatever is orthogonal to all modes by `rest`."""
        if self.complete:
            return self.synthesise(xp, values * self.analyse(xp, x))
        return self.synthesise(xp, (values - rest) * self.analyse(xp, x), rest * x)


@dataclass(frozen=True, eq=False)
class Decomposition:
    """M = sign · U diag(s) Vᵀ with `output` modes U, `input` modes V and singular values on their common grid."""

    input: Modes
    output: Modes
    singular_values: np.ndarray
    sign: float = 1.0

    def __post_init__(self) -> None:
        values = np.asarray(self.singular_values, dtype=np.float64)
        if values.flags.writeable:
            values = values.copy()
            values.flags.writeable = False
        object.__setattr__(self, "singular_values", values)

    @property
    def is_multiple_of_identity(self) -> bool:
        """Whether M is ± s · I, by construction."""
        return not (self.input.factors or self.output.factors) and self.singular_values.size == 1

    @staticmethod
    def identity(shape: Shape) -> Decomposition:
        modes = Modes(shape, shape, ())
        return Decomposition(modes, modes, np.ones((1,) * len(shape)))

    @staticmethod
    def separable(in_shape: Shape, out_shape: Shape, axes: tuple[AxisMatrix, ...]) -> Decomposition:
        svds = [axis.svd for axis in axes]
        return Decomposition(
            Modes(in_shape, in_shape, tuple(svd.v for svd in svds)),
            Modes(out_shape, out_shape, tuple(svd.u for svd in svds)),
            functools.reduce(np.multiply.outer, [svd.s for svd in svds]),
        )

    @staticmethod
    def dense(in_shape: Shape, out_shape: Shape, matrix: np.ndarray) -> Decomposition:
        svd = AxisSVD.of(matrix)
        m, n = matrix.shape
        return Decomposition(Modes(in_shape, (n,), (svd.v,)), Modes(out_shape, (m,), (svd.u,)), svd.s)

    @property
    def T(self) -> Decomposition:
        """The decomposition of Mᵀ."""
        return Decomposition(self.output, self.input, self.singular_values, self.sign)

    def scaled(self, scale: float) -> Decomposition:
        """The decomposition of scale · M."""
        return replace(
            self,
            singular_values=abs(scale) * self.singular_values,
            sign=math.copysign(1.0, scale) * self.sign,
        )

    @functools.cached_property
    def eigenvalues(self) -> Constant:
        """Eigenvalues s² of MᵀM that belong to the input modes; on everything else they are zero."""
        return Constant(self.singular_values**2)

    def gram_function(self, xp: Namespace, f: Callable[[Array], Array], x: Array) -> Array:
        """f(MᵀM) x. `f` gets arrays of its own: it may work in place."""
        values = f(xp.asarray(self.eigenvalues.like(xp, x), copy=True))
        if self.input.complete:
            return self.input.scale(xp, x, values, 0.0)
        zero = xp.zeros((1,), dtype=x.dtype, device=device_of(x))
        return self.input.scale(xp, x, values, xp.reshape(f(zero), ()))

    def of_gram(self, f: Callable[[np.ndarray], np.ndarray]) -> Decomposition | None:
        """The decomposition of f(MᵀM), whose eigenvectors are those of MᵀM; None if f takes both signs there."""
        modes, squares = self.input.completed(self.singular_values**2)
        return _symmetric(modes, np.asarray(f(np.array(squares)), dtype=np.float64))

    def lift(self, xp: Namespace, y: Array, weights: Array) -> Array:
        """V diag(weights) Uᵀ y: from the output space back to the input space."""
        return self.input.synthesise(xp, (self.sign * weights) * self.output.analyse(xp, y))


def _symmetric(modes: Modes, values: np.ndarray) -> Decomposition | None:
    """V diag(values) Vᵀ in complete modes; None for values of both signs, which need other output than input modes."""
    if values.min(initial=0.0) < 0 < values.max(initial=0.0):
        return None
    sign = -1.0 if values.min(initial=0.0) < 0 else 1.0
    return Decomposition(modes, modes, np.abs(values), sign)


def merged_sum(parts: Sequence[Decomposition]) -> Decomposition | None:
    """The decomposition of a sum of operators that are diagonal in the same modes; None if that is not known to be so.

    A multiple of the identity is diagonal in all modes. Parts with the same input and output modes add as they are;
    the sum must have one sign.
    """
    lead = next((part for part in parts if not part.is_multiple_of_identity), parts[0])
    total = np.zeros(())
    for part in parts:
        if part.is_multiple_of_identity:
            if not (lead.input == lead.output and lead.input.complete):
                return None
        elif (part.input, part.output) != (lead.input, lead.output):
            return None
        total = total + part.sign * part.singular_values
    if total.min() < 0 < total.max():
        return None
    return Decomposition(lead.input, lead.output, np.abs(total), -1.0 if total.min() < 0 else 1.0)


def _lanczos(xp: Namespace, gram: Callable[[Array], Array], start: Array) -> Iterator[_LanczosStep]:
    """Lanczos with full re-orthogonalisation on a batch of vectors (batch, n); `gram` applies MᵀM to such a batch."""
    batch, n = start.shape
    norm = xp.sqrt(xp.sum(start * start, axis=-1, keepdims=True))
    vector = start / xp.where(norm > 0, norm, xp.ones_like(norm))
    eps = float(xp.finfo(start.dtype).eps)
    basis = vector[:, None, :]
    diagonal: list[Array] = []
    off_diagonal: list[Array] = []
    largest = xp.zeros((batch,), dtype=start.dtype, device=device_of(start))
    for _ in range(n):
        image = gram(vector)
        diagonal.append(xp.sum(vector * image, axis=-1))
        for _ in range(2):  # twice is enough for orthogonality to rounding
            overlaps = xp.matmul(basis, image[:, :, None])
            image = image - xp.matmul(xp.matrix_transpose(overlaps), basis)[:, 0, :]
        beta = xp.sqrt(xp.sum(image * image, axis=-1))
        largest = xp.maximum(largest, xp.abs(diagonal[-1]))
        # Below this the Krylov space is invariant: what is left is rounding, and the result is exact.
        beta = xp.where(beta > n * eps * largest, beta, xp.zeros_like(beta))
        yield _LanczosStep(xp, basis, diagonal, off_diagonal, beta)
        off_diagonal.append(beta)
        vector = image / xp.where(beta > 0, beta, xp.ones_like(beta))[:, None]
        vector = xp.where((beta > 0)[:, None], vector, xp.zeros_like(vector))
        basis = xp.concat([basis, vector[:, None, :]], axis=1)


@dataclass(frozen=True, eq=False)
class _LanczosStep:
    """After k steps: the basis (batch, k, n), T's diagonals as lists of (batch,), and the next off-diagonal element."""

    xp: Namespace
    basis: Array
    diagonal: list[Array]
    off_diagonal: list[Array]
    beta: Array

    def eigh(self) -> tuple[Array, Array]:
        """Eigenvalues (batch, k), rising, and eigenvectors (batch, k, k) of the tridiagonal matrix T.

        In float64 where the library has it: a function such as 1 − ρ λ loses most digits of a λ near 1/ρ.
        """
        xp, k = self.xp, len(self.diagonal)
        wide = widest_dtype(xp, self.beta)
        like = {"dtype": wide, "device": device_of(self.beta)}
        diagonal, off_diagonal = (
            [cast(xp, part, wide) for part in parts] for parts in (self.diagonal, self.off_diagonal)
        )
        tridiagonal = xp.stack(diagonal, axis=-1)[:, :, None] * xp.eye(k, **like)
        if k > 1:
            off = xp.stack([*off_diagonal[: k - 1], xp.zeros_like(diagonal[0])], axis=-1)
            upper = off[:, :, None] * xp.eye(k, k=1, **like)
            tridiagonal = tridiagonal + upper + xp.matrix_transpose(upper)
        values, vectors = xp.linalg.eigh(tridiagonal)
        return values, vectors


LANCZOS_MAX_STEPS = 300
_CHECK_EVERY = 5


def lanczos_function(
    xp: Namespace,
    gram: Callable[[Array], Array],
    f: Callable[[Array], Array],
    x: Array,
    shape: Shape,
    what: object,
) -> Array:
    """f(MᵀM) x by Lanczos iteration, `gram` applying MᵀM; x is ``(*batch, *shape)``, one iteration per batch entry.

    The error is estimated from the Lanczos residual (the component of the result along the next, unused direction)
    and from the change over the last five steps. Raises ConvergenceError when that estimate, relative to
    the result, is above eps^(3/4) of the dtype after 300 steps.
    """
    n = math.prod(shape)
    flat = xp.reshape(x, (-1, n))
    if flat.shape[0] == 0:
        return x
    eps = float(xp.finfo(x.dtype).eps)
    tolerance = eps**0.75

    def flat_gram(v: Array) -> Array:
        return xp.reshape(gram(xp.reshape(v, (-1, *shape))), (-1, n))

    norm = xp.sqrt(xp.sum(flat * flat, axis=-1))
    previous = None
    error = math.inf
    step = 0
    for step, state in enumerate(_lanczos(xp, flat_gram, flat), start=1):
        try:
            invariant = not bool(xp.any(state.beta > 0))
        except TypeError as failure:  # the values are traced
            raise TypeError(
                f"{what}: Lanczos iteration stops when its values say so, which jit and vmap cannot trace; call it "
                "outside of them, or give the operator a structure (Separable, Blur, Matrix, a class with `decompose`)"
            ) from failure
        last = invariant or step in (n, LANCZOS_MAX_STEPS)
        if step % _CHECK_EVERY and not last:
            continue
        eigenvalues, vectors = state.eigh()
        spread = xp.max(xp.abs(eigenvalues), axis=-1)
        eigenvalues = xp.where(eigenvalues > 0, eigenvalues, xp.zeros_like(eigenvalues))
        weights = vectors[:, 0, :]
        # Directions that the start does not reach must not import an infinite f.
        scaled = xp.where(xp.abs(weights) > eps, f(eigenvalues) * weights, xp.zeros_like(weights))
        coefficients = norm[:, None] * xp.sum(vectors * scaled[:, None, :], axis=-1)
        if invariant or step == n:
            error = 0.0
        elif previous is not None:
            padding = xp.zeros((flat.shape[0], step - previous.shape[1]), dtype=coefficients.dtype, device=device_of(x))
            change = coefficients - xp.concat([previous, padding], axis=1)
            size = xp.sqrt(xp.sum(coefficients * coefficients, axis=-1))
            residual = state.beta * xp.abs(coefficients[:, -1]) / xp.where(spread > 0, spread, xp.ones_like(spread))
            estimate = xp.maximum(xp.sqrt(xp.sum(change * change, axis=-1)), residual)
            error = float(to_numpy(xp.max(estimate / xp.where(size > 0, size, xp.ones_like(size)))))
        if error <= tolerance:
            coefficients = cast(xp, coefficients, x.dtype)
            return xp.reshape(xp.sum(coefficients[:, :, None] * state.basis, axis=1), x.shape)
        if last:
            break
        previous = coefficients
    raise ConvergenceError(
        f"{what}: Lanczos stopped after {step} steps with estimated relative error {error:.1e}, above the tolerance "
        f"{tolerance:.1e} for {x.dtype}; use a smoother function, compute in float64, or make the operator "
        "separable, diagonal or small enough for a dense decomposition"
    )


def lanczos_norm(kind: ArrayKind, gram: Callable[[Array], Array], shape: Shape, what: object) -> float:
    """Largest singular value of M by Lanczos on MᵀM, to a relative error of √eps or better, or ConvergenceError.

    The bound is the residual of the largest Ritz value; its true error is nearer the residual's square. The start is
    a fixed Gaussian vector, so that repeated calls agree.
    """
    xp, n = kind.namespace, math.prod(shape)
    start = kind.asarray(np.random.default_rng(0).standard_normal((1, n)))
    eps = float(xp.finfo(start.dtype).eps)
    tolerance = eps**0.5

    def flat_gram(v: Array) -> Array:
        return xp.reshape(gram(xp.reshape(v, (1, *shape))), (1, n))

    error, step = math.inf, 0
    for step, state in enumerate(_lanczos(xp, flat_gram, start), start=1):
        last = float(to_numpy(state.beta[0])) == 0 or step in (n, LANCZOS_MAX_STEPS)
        if step % _CHECK_EVERY and not last:
            continue
        eigenvalues, vectors = state.eigh()
        top = float(to_numpy(eigenvalues[0, -1]))
        if top <= 0:
            return 0.0
        error = float(to_numpy(state.beta[0] * xp.abs(vectors[0, -1, -1]))) / top
        if error <= tolerance or step == n:
            return math.sqrt(top)
        if last:
            break
    raise ConvergenceError(
        f"{what}: the largest singular value is known only to a relative {error:.1e} after {step} Lanczos steps "
        f"(tolerance {tolerance:.1e}); give the operator a structure (Separable, Blur, Matrix) whose norm is exact"
    )
