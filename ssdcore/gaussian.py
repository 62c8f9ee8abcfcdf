"""Gaussian distributions on the trailing axes of an array, with structured covariances."""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from ssdcore import _pytrees
from ssdcore._arrays import (
    Array,
    Constant,
    Namespace,
    Shape,
    cast,
    check_same_backend,
    check_trailing,
    computing_dtype,
    device_of,
    digest,
    flushing,
    full_precision,
    known_array,
    number,
    once_per_trace,
    real_namespace,
)
from ssdcore._keyed import Static
from ssdcore.operators.base import LinearOperator
from ssdcore.operators.blur import spectral_basis
from ssdcore.operators.linear_map import finite_matrix, positive_shape
from ssdcore.spectral import Modes

# Relative size below which a negative eigenvalue is rounding and not a modelling error.
_ROUNDING = 64 * np.finfo(np.float64).eps
_DENSE_MAX = 4096


class Covariance(Static, abc.ABC):
    """A symmetric positive semi-definite operator on arrays with trailing axes `shape`; leading axes are independent.

    Made by `Covariance.isotropic`, `.dense`, `.cosine` and `.of_modes`; calling one applies it to an array.

    >>> covariance = ssd.Covariance.dense([[2.0, 1.0], [1.0, 2.0]])
    >>> covariance(np.array([1.0, 0.0])).round(12)
    array([2., 1.])
    >>> covariance.solve(np.array([3.0, 3.0])).round(12)
    array([1., 1.])
    """

    shape: Shape
    is_zero: ClassVar[bool] = False
    """Whether every variance is known to be zero, so that a draw is the mean and takes no noise."""

    @staticmethod
    def isotropic(shape: Shape | int, variance: float) -> Covariance:
        """variance · I."""
        checked = positive_shape(shape, "Covariance")
        variance = number(variance, "Covariance.isotropic")
        return SpectralCovariance(Modes(checked, checked, ()), np.full((1,) * len(checked), float(variance)), 0.0)

    @staticmethod
    def dense(matrix: Any, shape: Shape | int | None = None) -> Covariance:
        """A dense symmetric matrix (n, n) over the trailing axes `shape` flattened in C order (default: one axis)."""
        half = "bfloat16" in str(getattr(matrix, "dtype", ""))
        matrix = known_array(matrix, "Covariance.dense")
        given = matrix.dtype
        a = finite_matrix(matrix, "Covariance.dense")
        n = a.shape[0]
        checked = positive_shape(n if shape is None else shape, "Covariance.dense")
        if a.shape != (math.prod(checked),) * 2:
            raise ValueError(
                f"Covariance.dense: expected a square matrix over {math.prod(checked)} elements, got {a.shape}"
            )
        scale = np.abs(a).max()
        asymmetry = np.abs(a - a.T).max()
        # Sums in single or half precision leave rounding of that precision.
        unit = float(np.finfo(given).eps) if given.kind == "f" else float(np.finfo(np.float64).eps)
        unit = 2.0**-7 if half else unit  # numpy has no dtype for it
        if asymmetry > 64 * n * unit * scale:
            raise ValueError(f"Covariance.dense: the matrix is not symmetric, |C − Cᵀ| reaches {asymmetry:.3g}")
        values, vectors = np.linalg.eigh((a + a.T) / 2)
        # eigh leaves rounding of this size on eigenvalues that are zero; lower precision leaves more below zero.
        largest = np.abs(values).max()
        rounding = (values < 0) & (values >= -64 * n * unit * largest) if unit > np.finfo(np.float64).eps else False
        values = np.where(rounding | (np.abs(values) <= n * np.finfo(np.float64).eps * largest), 0.0, values)
        return SpectralCovariance(Modes(checked, (n,), (Constant(vectors),)), values, 0.0)

    @staticmethod
    def cosine(spectrum: Any) -> Covariance:
        """Diagonal in the orthonormal DCT-II basis, with variance spectrum[i, j, …] of mode (i, j, …)."""
        values = known_array(spectrum, "Covariance.cosine").astype(np.float64)
        shape = positive_shape(values.shape, "Covariance.cosine")
        return SpectralCovariance(
            Modes(shape, shape, tuple(spectral_basis(n, "reflect")[0] for n in shape)), values, 0.0
        )

    @staticmethod
    def of_modes(operator: LinearOperator, values: Any, rest: float) -> Covariance:
        """V diag(values) Vᵀ + rest · (I − V Vᵀ), in the input modes V of `operator` = U diag(s) Vᵀ.

        ``Covariance.of_modes(operator.T, …)`` is the same on the output side.

        Args:
            values: one variance for each singular value, in the order and shape of ``operator.singular_values()``
            rest: variance of everything that the operator sends to zero for want of singular values
        """
        decomposition = operator.decomposition()
        if decomposition is None:
            raise ValueError(f"Covariance.of_modes: {operator} is too large for a singular value decomposition")
        variances = known_array(values, "Covariance.of_modes").astype(np.float64)
        rest = number(rest, "Covariance.of_modes: rest")
        counts = decomposition.input.counts
        try:
            shape = np.broadcast_shapes(variances.shape, decomposition.singular_values.shape)
            fits = np.broadcast_shapes(shape, counts) == counts
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"Covariance.of_modes: expected one variance for each singular value, an array of shape {counts}, "
                f"got {variances.shape}"
            )
        return SpectralCovariance(decomposition.input, np.broadcast_to(variances, shape), float(rest))

    @flushing
    def through(self, operator: LinearOperator) -> Covariance:
        """R C Rᵀ, the covariance of R x for x of this one: in the modes of R where C is diagonal there, else dense.

        Raises:
            ValueError: For an operator of other arrays, and where the dense matrix would be too large.

        >>> ssd.Covariance.isotropic(4, 2.0).through(ssd.Matrix([[1.0, 1.0, 0.0, 0.0]])).as_matrix()
        array([[4.]])
        """
        if operator.in_shape != self.shape:
            raise ValueError(
                f"Covariance.through: expected an operator on {self.shape}, got one on {operator.in_shape}"
            )
        decomposition = operator.decomposition()
        if decomposition is not None and isinstance(self, SpectralCovariance):
            if decomposition.is_multiple_of_identity:
                return self.affine(float(decomposition.singular_values.reshape(-1)[0]) ** 2, 0.0)
            own = self.in_modes(decomposition.input)
            if own is not None:
                return SpectralCovariance(decomposition.output, own[0] * decomposition.singular_values**2, 0.0)
        if max(self.size, math.prod(operator.out_shape)) > _DENSE_MAX:
            raise ValueError(
                f"Covariance.through: this covariance is not diagonal in the modes of {operator}, and a dense matrix "
                f"over {self.size} elements is too large to build"
            )
        columns = operator(np.eye(self.size).reshape(self.size, *self.shape)).reshape(self.size, -1)
        matrix = columns.T @ self.as_matrix() @ columns
        return Covariance.dense((matrix + matrix.T) / 2, operator.out_shape)

    @abc.abstractmethod
    def apply_power(self, xp: Namespace, x: Array, power: float) -> Array:
        """C^power x, for power 1 or 1/2, or −1 where C is invertible: what a subclass implements."""

    def precompute(self, power: float) -> None:
        """Fill the caches that `apply_power` reads; torch.compile runs it, untraced, while tracing."""

    def held_bytes(self) -> int:
        """About how much memory it comes to hold: what caches of laws are bounded by."""
        return 0

    @abc.abstractmethod
    def log_determinant(self) -> float:
        """log det C, exact from the spectrum; −inf if C is singular."""

    def as_matrix(self) -> np.ndarray:
        """The dense matrix (n, n) in float64 over the trailing axes flattened in C order.

        Raises:
            ValueError: For one that is too large to build.
        """
        if self.size > _DENSE_MAX:
            raise ValueError(f"Covariance: a dense matrix over {self.size} elements is too large to build")
        basis = np.eye(self.size).reshape(self.size, *self.shape)
        return np.ascontiguousarray(self(basis).reshape(self.size, self.size).T)

    def __call__(self, x: Array) -> Array:
        """C x for x of ``(*batch, *shape)``, dtype and device kept."""
        return self._run(x, 1.0)

    def root(self, x: Array) -> Array:
        """C^(1/2) x, the symmetric root: turns white noise into noise of this covariance."""
        return self._run(x, 0.5)

    def solve(self, x: Array) -> Array:
        """C⁻¹ x. Raises ValueError if C is singular."""
        if self.singular:
            raise ValueError("the covariance is singular: it has no inverse and its Gaussian no density")
        return self._run(x, -1.0)

    @property
    def singular(self) -> bool:
        """Whether C has no inverse, and a Gaussian of it no density."""
        return self.log_determinant() == -math.inf

    @property
    def size(self) -> int:
        """Number of elements n that the covariance is over."""
        return math.prod(self.shape)

    @once_per_trace
    @flushing
    def _prepared(self, power: float) -> None:
        self.precompute(power)

    def _run(self, x: Array, power: float) -> Array:
        xp = real_namespace(x, "Covariance")
        check_trailing(x, self.shape, "Covariance")
        self._prepared(power)
        with full_precision(x):
            y = self.apply_power(xp, cast(xp, x, computing_dtype(xp, x.dtype)), power)
            return cast(xp, y, x.dtype)


_POWERS = {1.0: "itself", 0.5: "root", -1.0: "inverse"}


class _Powers:
    """Powers of a spectrum as attributes: of a dictionary torch.compile sees only what it held when tracing began."""


@dataclass(frozen=True, eq=False, repr=False)
class SpectralCovariance(Covariance):
    """V diag(values) Vᵀ + rest (I − V Vᵀ)."""

    modes: Modes
    values: np.ndarray
    rest: float

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float64)
        if not (np.isfinite(values).all() and math.isfinite(self.rest)):
            raise ValueError("Covariance: every variance must be finite")
        largest = max(float(np.abs(values).max()), abs(self.rest))
        least = float(values.min()) if self.modes.complete else min(float(values.min()), self.rest)
        if least < -_ROUNDING * self.size * largest:
            where = [int(i) for i in np.unravel_index(int(values.argmin()), values.shape)]
            raise ValueError(
                f"Covariance: not positive semi-definite, its smallest eigenvalue is {least:.6g} "
                f"(mode {where} of the spectrum shaped {values.shape}); the largest is {largest:.6g}"
            )
        values = np.maximum(values, 0.0)
        values.flags.writeable = False
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "rest", max(self.rest, 0.0))
        # not a cached property, whose lock torch.compile cannot trace
        complete = math.prod(self.modes.counts) == self.size
        object.__setattr__(self, "is_zero", not values.any() and (complete or self.rest == 0))

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.modes.shape

    @functools.cached_property
    def _powers(self) -> _Powers:
        return _Powers()

    def precompute(self, power: float) -> None:
        if not hasattr(self._powers, _POWERS[power]):
            with np.errstate(all="ignore"):
                made = Constant(self.values**power), float(np.float64(self.rest) ** power)
            setattr(self._powers, _POWERS[power], made)

    def apply_power(self, xp: Namespace, x: Array, power: float) -> Array:
        values, rest = getattr(self._powers, _POWERS[power])
        return self.modes.scale(xp, x, values.like(xp, x), rest)

    def held_bytes(self) -> int:
        return 3 * self.values.nbytes  # in about as many forms: powers, and copies for other arrays

    def key(self) -> Hashable:
        return self.modes, self._digest, self.rest

    @functools.cached_property
    def _digest(self) -> bytes:
        return digest(self.values)

    @flushing
    def affine(self, scale: float, shift: float) -> Covariance:
        """scale · C + shift · I."""
        return SpectralCovariance(self.modes, scale * self.values + shift, scale * self.rest + shift)

    def in_modes(self, modes: Modes) -> tuple[np.ndarray, float] | None:
        """This covariance as (values, rest) in other modes, where it is diagonal there by construction; else None."""
        if not self.modes.factors and self.values.size == 1:
            value = float(self.values.item())
            return np.full((1,) * len(modes.counts), value), value
        if self.modes == modes:
            return self.values, self.rest
        return None

    def __repr__(self) -> str:
        if not self.modes.factors and self.values.size == 1:
            return f"Covariance({self.shape}, {self.values.item():.4g} · I)"
        elsewhere = "" if self.modes.complete else f", {self.rest:.4g} elsewhere"
        count, low, high = math.prod(self.modes.counts), self.values.min(), self.values.max()
        return f"Covariance({self.shape}, {count} variances from {low:.4g} to {high:.4g}{elsewhere})"

    @property
    def eigenvalues(self) -> tuple[np.ndarray, int, float, int]:
        """(distinct mode variances, multiplicity of each, variance of the rest, its multiplicity)."""
        modes = math.prod(self.modes.counts)
        return self.values, modes // self.values.size, self.rest, self.size - modes

    def log_determinant(self) -> float:
        self._prepare_determinant()
        return self._log_determinant

    @once_per_trace
    def _prepare_determinant(self) -> None:
        _ = self._log_determinant

    @functools.cached_property
    def _log_determinant(self) -> float:
        values, multiplicity, rest, others = self.eigenvalues
        if values.min() <= 0 or (others and rest <= 0):
            return -math.inf
        return float(multiplicity * np.log(values).sum()) + (others * math.log(rest) if others else 0.0)


@dataclass(frozen=True, eq=False, repr=False)
class OperatorCovariance(Covariance):
    """variance(MᵀM) for an operator without a decomposition at hand: applied by Lanczos iteration."""

    operator: LinearOperator
    variance: Callable[[Array], Array]

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.operator.in_shape

    def __repr__(self) -> str:
        return f"Covariance({self.shape}, a function of {self.operator!r})"

    def precompute(self, power: float) -> None:
        self.operator.precompute()

    def apply_power(self, xp: Namespace, x: Array, power: float) -> Array:
        def function(eigenvalues: Array) -> Array:
            variance = self.variance(eigenvalues)
            return xp.where(variance > 0, variance, xp.zeros_like(variance)) ** power

        return self.operator.apply_gram_function(xp, x, function)

    def log_determinant(self) -> float:
        raise ValueError(
            f"the log-determinant needs the whole spectrum, and {self.operator} is too large for a decomposition"
        )

    def as_matrix(self) -> np.ndarray:
        raise ValueError(f"Covariance: a dense matrix over {self.size} elements is too large to build")


class Draws(Protocol):
    """A law that has a quicker way to its mean and draws than mean + Σ^(1/2) noise; `Gaussian.of_draws` takes one."""

    @property
    def shape(self) -> Shape:
        """Shape of the mean."""

    @property
    def like(self) -> Array:
        """An array of the namespace, dtype and device of the mean."""

    def mean(self) -> Array:
        """The mean, computed when it is asked for."""

    def draw(self, noise: Array) -> Array:
        """mean + Σ^(1/2) noise with the symmetric root."""


class Gaussian:
    """N(mean, covariance) for each leading index of `mean`; the covariance is over the trailing axes and shared.

    Immutable, and a pytree of jax and torch with the mean as leaf.

    Attributes:
        mean: ``(*batch, *covariance.shape)``
        covariance: a Covariance; ``g.covariance(x)`` applies it

    >>> g = ssd.Gaussian(np.zeros((2, 3)), ssd.Covariance.isotropic(3, variance=4.0))
    >>> g.sample(np.ones((2, 3)))
    array([[2., 2., 2.],
           [2., 2., 2.]])
    >>> g.log_prob(np.zeros((2, 3))).round(3)
    array([-4.836, -4.836])
    >>> g.kl(ssd.Gaussian(np.ones((2, 3)), g.covariance))
    array([0.375, 0.375])
    """

    covariance: Covariance
    _mean: Array | None
    _draws: Draws | None
    _held: Constant | None  # a numpy mean, ready for arrays of other libraries

    def __init__(self, mean: Array, covariance: Covariance) -> None:
        if not isinstance(covariance, Covariance):
            raise TypeError(
                f"Gaussian: expected a Covariance, got {type(covariance).__name__}; make one with Covariance.dense, "
                ".isotropic, .cosine or .of_modes"
            )
        real_namespace(mean, "Gaussian mean")
        check_trailing(mean, covariance.shape, "Gaussian mean")
        self._set(mean, covariance, None)

    @classmethod
    def of_draws(cls, draws: Draws, covariance: Covariance) -> Gaussian:
        """The law whose mean and draws `draws` computes, and whose covariance is `covariance`."""
        made = cls.__new__(cls)
        made._set(None, covariance, draws)
        return made

    @classmethod
    def about(cls, mean: Constant, covariance: Covariance) -> Gaussian:
        """The law around a mean that is of no library or dtype: it follows the arrays that it meets."""
        made = cls.__new__(cls)
        made._set(None, covariance, None, mean)
        return made

    def _set(
        self, mean: Array | None, covariance: Covariance, draws: Draws | None, held: Constant | None = None
    ) -> None:
        _pytrees.ensure()
        object.__setattr__(self, "_mean", mean)
        object.__setattr__(self, "_draws", draws)
        object.__setattr__(self, "_held", held)
        object.__setattr__(self, "covariance", covariance)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Gaussian is immutable: make another one instead of setting {name!r}")

    @property
    def mean(self) -> Array:
        """``(*batch, *covariance.shape)``."""
        if self._mean is None:
            if self._draws is None:
                assert self._held is not None
                return self._held.value
            object.__setattr__(self, "_mean", self._draws.mean())
        return self._mean

    @property
    def shape(self) -> Shape:
        """Shape of the mean, which is not computed for it: that of one draw's noise."""
        if self._mean is None and self._draws is not None:
            return self._draws.shape
        return tuple(self.mean.shape)

    def _mean_beside(self, x: Array) -> Array:
        """The mean; in the library, dtype and device of `x` where it is held in numpy, and `x` is not."""
        if self._mean is None and self._draws is None:
            assert self._held is not None
            return self._held.like(real_namespace(x, "Gaussian"), x)
        mean = self.mean
        if isinstance(mean, np.ndarray) and not isinstance(x, np.ndarray):
            self._hold()
            assert self._held is not None
            return self._held.like(real_namespace(x, "Gaussian"), x)
        return mean

    @once_per_trace
    def _hold(self) -> None:
        if self._held is None:
            object.__setattr__(self, "_held", Constant(self.mean))

    def __repr__(self) -> str:
        return f"Gaussian(mean={self.mean!r}, covariance={self.covariance!r})"

    def sample(self, noise: Array) -> Array:
        """mean + Σ^(1/2) noise, with the symmetric root.

        The caller draws the noise: there is no hidden randomness. A numpy mean (as of a `prior`) follows noise of
        another library, and so it does in `log_prob` and `kl`. Raises ValueError for another shape or device.

        Args:
            noise: standard normal, shaped like the mean, or with more leading axes for that many independent draws
        """
        if self._draws is not None:
            check_same_backend(self._draws.like, noise, "Gaussian.sample")
            check_trailing(noise, self._draws.shape, "Gaussian.sample: the noise, shaped like the mean")
            return self._draws.draw(noise)
        mean = self._mean_beside(noise)
        check_same_backend(mean, noise, "Gaussian.sample")
        check_trailing(noise, tuple(mean.shape), "Gaussian.sample: the noise, shaped like the mean")
        return mean + self.covariance.root(noise)

    def log_prob(self, x: Array) -> Array:
        """log density at x ``(*batch, *shape)``, in nats: an array ``(*batch)``. Raises ValueError if Σ is singular.

        In the dtype of x, but float32 for half precision, whose range and digits do not hold that of an image.
        """
        mean = self._mean_beside(x)
        check_same_backend(mean, x, "Gaussian.log_prob")
        check_trailing(x, self.covariance.shape, "Gaussian.log_prob")
        if self.covariance.singular:
            raise ValueError(
                "Gaussian.log_prob: the covariance is singular, so there is no density "
                "(the law of a clean or fully determined state is a point)"
            )
        xp = real_namespace(x, "Gaussian.log_prob")
        log_determinant: Any = self.covariance.log_determinant()
        if isinstance(log_determinant, np.ndarray):  # one an item
            log_determinant = Constant(log_determinant).on(xp, computing_dtype(xp, x.dtype), device_of(x))
        constant = self.covariance.size * math.log(2 * math.pi) + log_determinant
        return -0.5 * (self._mahalanobis(xp, x, mean, self.covariance) + constant)

    def entropy(self) -> float:
        """Differential entropy in nats of one leading index; −inf if Σ is singular."""
        return 0.5 * (self.covariance.size * math.log(2 * math.pi * math.e) + self.covariance.log_determinant())

    def kl(self, other: Gaussian) -> Array:
        """KL(self ‖ other) in nats: an array ``(*batch)``, of the dtype that `log_prob` has.

        Raises:
            ValueError: If `other` is singular or of another shape.
        """
        if not isinstance(other, Gaussian):
            raise TypeError(f"Gaussian.kl: expected a Gaussian, got {type(other).__name__}")
        mine, theirs = self._mean_beside(other.mean), other._mean_beside(self.mean)
        check_same_backend(mine, theirs, "Gaussian.kl")
        p, q = self.covariance, other.covariance
        if p.shape != q.shape:
            raise ValueError(f"Gaussian.kl: the trailing axes differ, {p.shape} and {q.shape}")
        xp = real_namespace(mine, "Gaussian.kl")
        quadratic = self._mahalanobis(xp, mine, theirs, q)
        constant = _trace_ratio(p, q) - p.size + q.log_determinant() - p.log_determinant()
        return 0.5 * (quadratic + constant)

    @staticmethod
    def _mahalanobis(xp: Namespace, x: Array, y: Array, covariance: Covariance) -> Array:
        """(x − y)ᵀ C⁻¹ (x − y) in the computing dtype: half precision would lose it in the difference and the sum."""
        dtype = computing_dtype(xp, x.dtype)
        difference = cast(xp, x, dtype) - cast(xp, y, dtype)
        with full_precision(x):
            product = difference * covariance.solve(difference)
            return xp.sum(product, axis=tuple(range(-len(covariance.shape), 0)))


# A function of both, not a method: torch.compile then compares the two covariances before it uses the number again.
@once_per_trace
@flushing
def _trace_ratio(p: Covariance, q: Covariance) -> float:
    """tr(Q⁻¹ P): on the common spectrum where there is one, else from dense matrices."""
    if isinstance(p, SpectralCovariance) and isinstance(q, SpectralCovariance):
        shared = q.in_modes(p.modes)
        if shared is not None:
            values, multiplicity, rest, others = p.eigenvalues
            ratio = values / shared[0]
            multiplicity = multiplicity * values.size // ratio.size
            return float(multiplicity * ratio.sum()) + (others * rest / shared[1] if others else 0.0)
        shared = p.in_modes(q.modes)
        if shared is not None:  # p is a multiple of the identity: tr(Q⁻¹ P) = p tr(Q⁻¹)
            values, multiplicity, rest, others = q.eigenvalues
            ratio = shared[0] / values
            multiplicity = multiplicity * values.size // ratio.size
            return float(multiplicity * ratio.sum()) + (others * shared[1] / rest if others else 0.0)
    return float(np.trace(np.linalg.solve(q.as_matrix(), p.as_matrix())))


def _unflatten(aux: Any, children: Any) -> Gaussian:
    made = Gaussian.__new__(Gaussian)
    mean, covariance = children
    made._set(mean, covariance, None)  # unchecked: transforms put all kinds of things in place of arrays
    return made


_pytrees.register(Gaussian, lambda g: ((g.mean, g.covariance), None), _unflatten)
