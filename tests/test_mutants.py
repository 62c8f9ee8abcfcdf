"""Each check of ssdcore.testing kills the mutants planted for it, and no check is without one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import array_api_strict
import numpy as np
import pytest

import ssdcore as ssd
from ssdcore.gaussian import Covariance, Gaussian, SpectralCovariance
from ssdcore.operators.base import LinearOperator
from ssdcore.testing import OPERATOR_CHECKS, PROCESS_CHECKS, CheckFailed, Report, check_operator, check_process
from ssdcore.testing._run import run_operator_checks, run_process_checks

MATRIX = np.random.default_rng(3).standard_normal((5, 8))


class Plain(LinearOperator):
    """A correct dense operator (8,) -> (5,), whose parts the mutants break one at a time."""

    in_shape, out_shape = (8,), (5,)
    matrix = MATRIX

    def on(self, xp: Any, x: Any) -> Any:
        return xp.asarray(self.matrix, dtype=x.dtype, device=x.device)

    def apply(self, xp: Any, x: Any) -> Any:
        return xp.matmul(x, xp.matrix_transpose(self.on(xp, x)))

    def apply_adjoint(self, xp: Any, y: Any) -> Any:
        return xp.matmul(y, self.on(xp, y))


class PlainSquare(Plain):
    """The same, (2, 3) -> (2, 3)."""

    in_shape = out_shape = (2, 3)
    matrix = np.random.default_rng(4).standard_normal((6, 6))

    def _flat(self, xp: Any, x: Any, matrix: Any) -> Any:
        y = xp.matmul(xp.reshape(x, (*x.shape[:-2], 6)), matrix)
        return xp.reshape(y, (*x.shape[:-2], 2, 3))

    def apply(self, xp: Any, x: Any) -> Any:
        return self._flat(xp, x, xp.matrix_transpose(self.on(xp, x)))

    def apply_adjoint(self, xp: Any, y: Any) -> Any:
        return self._flat(xp, y, self.on(xp, y))


# --- operators -----------------------------------------------------------------------------------------------


class AdjointOffByOne(Plain):
    def apply_adjoint(self, xp: Any, y: Any) -> Any:
        return xp.roll(super().apply_adjoint(xp, y), 1, axis=-1)


class TransposedKernel(PlainSquare):
    def apply_adjoint(self, xp: Any, y: Any) -> Any:
        return self.apply(xp, y)  # as if the kernel were symmetric


class AdjointSlightlyScaled(Plain):
    def apply_adjoint(self, xp: Any, y: Any) -> Any:
        return (1 + 1e-11) * super().apply_adjoint(xp, y)


class Affine(Plain):
    def apply(self, xp: Any, x: Any) -> Any:
        return super().apply(xp, x) + 1e-3


class Rectified(Plain):
    def apply(self, xp: Any, x: Any) -> Any:
        return xp.where(super().apply(xp, x) > 0, super().apply(xp, x), 0.9 * super().apply(xp, x))


class NormUnderEstimated(Plain):
    def norm(self) -> float:
        return float(np.linalg.norm(self.matrix @ np.ones(8)) / math.sqrt(8))  # of one vector


class NormOfFrobenius(Plain):
    def norm(self) -> float:
        return float(np.linalg.norm(self.matrix))


class Upcast(Plain):
    def __call__(self, x: Any) -> Any:
        y = super().__call__(x)
        return y.astype(np.float64)


class HiddenDowncast(Plain):
    """float64 results of float32 arithmetic."""

    def apply(self, xp: Any, x: Any) -> Any:
        return xp.astype(super().apply(xp, xp.astype(x, xp.float32)), x.dtype)


class HalfArithmetic(Plain):
    """float16 computed in float16."""

    matrix = np.random.default_rng(5).standard_normal((5, 8)) + 8.0

    def __call__(self, x: Any) -> Any:
        if x.dtype != np.float16:
            return super().__call__(x)
        total = np.zeros((*x.shape[:-1], 5), dtype=np.float16)
        for j in range(8):
            total = total + x[..., j : j + 1] * self.matrix[:, j].astype(np.float16)
        return total


class WritesInput(Plain):
    def apply(self, xp: Any, x: Any) -> Any:
        if x.ndim > 1:
            x[..., 0] *= 1.0 + 1e-9
        return super().apply(xp, x)


class WritesThenRestores(Plain):
    """Leaves no trace in the values, and would still race with another thread."""

    def apply(self, xp: Any, x: Any) -> Any:
        x *= 2.0
        y = super().apply(xp, x)
        x /= 2.0
        return 0.5 * y


class ReusesBuffer(Plain):
    """Every result of one shape is the same array."""

    def __init__(self) -> None:
        self.buffers: dict[Any, Any] = {}

    def apply(self, xp: Any, x: Any) -> Any:
        y = super().apply(xp, x)
        held = self.buffers.setdefault((y.shape, y.dtype), y)
        held[...] = y
        return held


class HiddenNoise(Plain):
    def apply(self, xp: Any, x: Any) -> Any:
        y = super().apply(xp, x)
        return y + np.random.default_rng().standard_normal(y.shape).astype(y.dtype) * 1e-14


class SeedsGlobal(Plain):
    def apply(self, xp: Any, x: Any) -> Any:
        np.random.seed(0)  # noqa: NPY002 - the fault under test
        return super().apply(xp, x)


class DrawsGlobal(Plain):
    def norm(self) -> float:
        np.random.rand()  # noqa: NPY002 - the fault under test
        return super().norm()


class MixesBatch(Plain):
    def apply(self, xp: Any, x: Any) -> Any:
        y = super().apply(xp, x)
        return y if x.ndim < 2 else xp.flip(y, axis=0)


class DropsEmptyBatch(Plain):
    def apply(self, xp: Any, x: Any) -> Any:
        y = super().apply(xp, x)
        return xp.reshape(y, (-1, 5)) if 0 in x.shape[:-1] else y


class SqueezesBatch(Plain):
    def apply(self, xp: Any, x: Any) -> Any:
        y = super().apply(xp, x)
        return y[0] if x.ndim == 2 and x.shape[0] == 1 else y


class WrongTransposeOfTranspose(Plain):
    @property
    def T(self) -> LinearOperator:
        return _BadTranspose()


class _BadTranspose(Plain):
    in_shape, out_shape = (5,), (8,)
    matrix = MATRIX.T

    @property
    def T(self) -> LinearOperator:
        return -1.0 * ssd.Matrix(MATRIX)


class ComposesBackwards(PlainSquare):
    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        if other.in_shape == other.out_shape == self.in_shape:
            return ssd.Matrix(other.as_matrix() @ self.as_matrix(), self.in_shape, self.out_shape)
        return super().__matmul__(other)


class IgnoresScaleSign(Plain):
    def __mul__(self, scale: float) -> LinearOperator:
        return super().__mul__(abs(scale))

    __rmul__ = __mul__


class MatrixInFortranOrder(PlainSquare):
    def as_matrix(self) -> np.ndarray:
        order = np.arange(6).reshape(2, 3).T.ravel()
        return super().as_matrix()[:, order]


class MatrixInSinglePrecision(Plain):
    def as_matrix(self) -> np.ndarray:
        return super().as_matrix().astype(np.float32)


class SingularValuesSquared(Plain):
    def singular_values(self) -> np.ndarray:
        return super().singular_values() ** 2


class GramOnWrongSide(PlainSquare):
    def gram_function(self, f: Any, x: Any) -> Any:
        return self.T.gram_function(f, x)

    @property
    def T(self) -> LinearOperator:
        return ssd.Matrix(self.matrix.T, (2, 3), (2, 3))


class GramForgetsNullSpace(Plain):
    """f is applied to the kept modes, and f(0) forgotten on the rest."""

    def gram_function(self, f: Any, x: Any) -> Any:
        _, s, vt = np.linalg.svd(self.matrix, full_matrices=False)
        return ((x @ vt.T) * f(s**2) @ vt).astype(x.dtype)


class GramOfSingularValues(Plain):
    def gram_function(self, f: Any, x: Any) -> Any:
        return super().gram_function(lambda e: f(e**0.5), x)


class StaleCache(Plain):
    """The constant made for the first dtype serves every later one."""

    def __init__(self) -> None:
        self.held: Any = None

    def on(self, xp: Any, x: Any) -> Any:
        if self.held is None or xp.finfo(x.dtype).bits < xp.finfo(self.held.dtype).bits:
            self.held = super().on(xp, x)
        return xp.astype(self.held, x.dtype)


class ToNumpy(Plain):
    def __call__(self, x: Any) -> Any:
        return np.asarray(x, dtype=np.float64) @ self.matrix.T


class DefaultDevice(Plain):
    """Computes on the default device and leaves the result there."""

    def __call__(self, x: Any) -> Any:
        y = super().__call__(x)
        return y.to_device(array_api_strict.Device("CPU_DEVICE"))


class AssumesContiguous(Plain):
    """Reads the buffer behind a view."""

    def apply(self, xp: Any, x: Any) -> Any:
        if x.base is not None and x.ndim == 2 and not x.flags.c_contiguous and 0 not in x.strides:
            x = np.ascontiguousarray(x.T).reshape(x.shape) if x.strides[0] < x.strides[1] else x[:, ::-1]
        return super().apply(xp, x)


class AcceptsAnything(Plain):
    def __call__(self, x: Any) -> Any:
        x = np.asarray(x)
        return super().__call__(np.resize(x, (*x.shape[:-1], 8)) if x.ndim else np.zeros(8))


# --- processes -----------------------------------------------------------------------------------------------


class Process(ssd.LinearDiffusion):
    """A subclass that the mutants break one method of; its alternative constructors give the mutant itself."""


def rebuilt(law: Gaussian, covariance: Covariance) -> Gaussian:
    return Gaussian(law.mean, covariance)


class RhoWrongPower(Process):
    def posterior(self, x_t: Any, clean_s: Any, s: int, t: int, eta: float = 1.0) -> Gaussian:
        law = super().posterior(x_t, clean_s, s, t, eta)
        if eta != 1 or s == 0:
            return law
        m, rho = self.degradation(s, t), self.sigma(s) / self.sigma(t)  # the ratio itself, not its square
        mean = self.alpha(s) * clean_s + rho * m.T(x_t - m(self.alpha(s) * clean_s))
        return Gaussian(mean, law.covariance)


class CovarianceClamped(Process):
    def posterior(self, x_t: Any, clean_s: Any, s: int, t: int, eta: float = 1.0) -> Gaussian:
        law = super().posterior(x_t, clean_s, s, t, eta)
        c = law.covariance
        assert isinstance(c, SpectralCovariance)
        floor = 0.5 * self.sigma(s) ** 2
        return rebuilt(law, SpectralCovariance(c.modes, np.maximum(c.values, floor), max(c.rest, floor)))


class TransitionClamped(Process):
    def transition(self, x_s: Any, s: int, t: int) -> Gaussian:
        law = super().transition(x_s, s, t)
        c = law.covariance
        assert isinstance(c, SpectralCovariance)
        floor = 0.5 * float(c.values.max())
        return rebuilt(law, SpectralCovariance(c.modes, np.maximum(c.values, floor), max(c.rest, floor)))


class IgnoresDegradationInCovariance(Process):
    """σ_t² − σ_s² (α_t/α_s)², right for ordinary diffusion only."""

    def transition(self, x_s: Any, s: int, t: int) -> Gaussian:
        ratio = self.alpha(t) / self.alpha(s)
        variance = self.sigma(t) ** 2 - (self.sigma(s) * ratio) ** 2
        return Gaussian(super().transition(x_s, s, t).mean, Covariance.isotropic(self.shape(t), max(variance, 0.0)))


class EtaIgnored(Process):
    def posterior(self, x_t: Any, clean_s: Any, s: int, t: int, eta: float = 1.0) -> Gaussian:
        if not 0 <= eta <= 1:
            raise ValueError("eta outside [0, 1]")
        return super().posterior(x_t, clean_s, s, t, 1.0)


class EtaScalesVariance(Process):
    def posterior(self, x_t: Any, clean_s: Any, s: int, t: int, eta: float = 1.0) -> Gaussian:
        return super().posterior(x_t, clean_s, s, t, math.sqrt(eta) if eta > 0 else eta)


class ForgetsWhatIsLeftOpen(Process):
    def posterior(
        self, x_t: Any, clean_s: Any, s: Any, t: Any, eta: float = 1.0, clean_covariance: Any = None
    ) -> Gaussian:
        return super().posterior(x_t, clean_s, s, t, eta)


class NoiseOfTheFirstTime(Process):
    """One σ for a whole batch."""

    def add_noise(self, x0: Any, noise: Any, times: Any) -> Any:
        return super().add_noise(x0, noise, times if np.ndim(times) == 0 else np.full_like(times, times[0]))


class LawsOfTheFirstTime(Process):
    def posterior(self, x_t: Any, clean_s: Any, s: Any, t: Any, eta: float = 1.0, **options: Any) -> Gaussian:
        if np.ndim(s):
            s, t = np.full_like(s, s[-1]), np.full_like(t, t[-1])
        return super().posterior(x_t, clean_s, s, t, eta, **options)


class WrongAlphaRatio(Process):
    def degradation(self, s: int, t: int) -> LinearOperator:
        return (self.alpha(t) / max(self.alpha(s), 1e-300)) * super().degradation(s, t)


class DegradationForgetsChange(Process):
    """Over more than one step, the noise of the steps between is counted once too often."""

    def transition(self, x_s: Any, s: int, t: int) -> Gaussian:
        law = super().transition(x_s, s, t)
        if t - s == 1:
            return law
        c = law.covariance
        assert isinstance(c, SpectralCovariance)
        return rebuilt(law, SpectralCovariance(c.modes, 1.01 * c.values, 1.01 * c.rest))


class MarginalOfNextTime(Process):
    def marginal(self, x0: Any, t: int) -> Gaussian:
        law = super().marginal(x0, t)
        return rebuilt(law, Covariance.isotropic(self.shape(t), self.sigma(min(t + 1, self.steps)) ** 2 * 1.0001))


class CleanAtWrongTime(Process):
    def clean(self, x0: Any, t: int) -> Any:
        return (1.0 if t == 0 else 1.001) * super().clean(x0, t)


class AdmissibilitySkipped(Process):
    def _check_admissible(self) -> None:
        pass


class AdmissibilityTooStrict(Process):
    def _check_admissible(self) -> None:
        noise, steps = self.noise, self.degradations.step_norms()
        if (
            len(steps) == noise.steps
            and ((noise.sigma[1:] - 1.01 * noise.sigma[:-1] * steps * noise.alpha[1:] / noise.alpha[:-1]) < 0).any()
        ):
            raise ssd.InadmissibleProcess("too strict")
        super()._check_admissible()


class RespaceOffByOne(Process):
    def respace(self, times: Any) -> ssd.LinearDiffusion:
        shorter = super().respace(times)
        object.__setattr__(shorter, "times", tuple(max(t - 1, 1) for t in shorter.times))
        return shorter


class PriorWithoutNoise(Process):
    def prior(self, mean: Any = None, covariance: Any = None) -> Gaussian:
        law = super().prior(mean, covariance)
        c = law.covariance
        assert isinstance(c, SpectralCovariance)
        return law if covariance is None else rebuilt(law, c.affine(1.0, -(self.sigma(self.steps) ** 2)))


class Skewed(Gaussian):
    """A root that is no symmetric one: each mode's coefficient moved to the next."""

    def sample(self, noise: Any) -> Any:
        return self.mean + self.covariance.root(np.roll(noise, 1, axis=-1))


class HalfScale(Gaussian):
    def sample(self, noise: Any) -> Any:
        return self.mean + self.covariance(noise)  # Σ noise for Σ^½ noise


class ForgetsMultiplicity(SpectralCovariance):
    def log_determinant(self) -> float:
        return float(np.log(self.values).sum()) if (self.values > 0).all() and self.rest >= 0 else -math.inf


class Forgets2Pi(Gaussian):
    def log_prob(self, x: Any) -> Any:
        return super().log_prob(x) + 0.5 * math.log(2 * math.pi)


class ReversedKL(Gaussian):
    def kl(self, other: Gaussian) -> Any:
        return Gaussian(other.mean, other.covariance).kl(Gaussian(self.mean, self.covariance))


class RootOfVariance(SpectralCovariance):
    """Variances taken for standard deviations."""

    def root(self, x: Any) -> Any:
        return self(x)


def process_with_law(
    method: str, kind: type[Gaussian] = Gaussian, covariance: type[SpectralCovariance] | None = None
) -> type[Process]:
    """A process whose `method` returns another class of Gaussian."""

    def replaced(self: Any, *args: Any, **kwargs: Any) -> Gaussian:
        law = getattr(ssd.LinearDiffusion, method)(self, *args, **kwargs)
        c = law.covariance
        return kind(law.mean, c if covariance is None else covariance(c.modes, c.values, c.rest))

    return type("Mutant", (Process,), {method: replaced})


class PosteriorMixesBatch(Process):
    def posterior(self, x_t: Any, clean_s: Any, s: int, t: int, eta: float = 1.0) -> Gaussian:
        law = super().posterior(x_t, clean_s, s, t, eta)
        mean = law.mean
        return law if mean.ndim < 3 else Gaussian(mean + 1e-6 * mean.mean(axis=0), law.covariance)


class PosteriorUpcasts(Process):
    def posterior(self, x_t: Any, clean_s: Any, s: int, t: int, eta: float = 1.0) -> Gaussian:
        law = super().posterior(x_t, clean_s, s, t, eta)
        return Gaussian(law.mean.astype(np.float64), law.covariance)


class MarginalToNumpy(Process):
    def marginal(self, x0: Any, t: int) -> Gaussian:
        law = super().marginal(x0, t)
        return Gaussian(np.asarray(law.mean), law.covariance)


class PosteriorNoisy(Process):
    def posterior(self, x_t: Any, clean_s: Any, s: int, t: int, eta: float = 1.0) -> Gaussian:
        law = super().posterior(x_t, clean_s, s, t, eta)
        noise = np.random.default_rng().standard_normal(law.mean.shape)
        return Gaussian(law.mean + (1e-15 * noise).astype(law.mean.dtype), law.covariance)


class PosteriorDrawsGlobal(Process):
    def posterior(self, x_t: Any, clean_s: Any, s: int, t: int, eta: float = 1.0) -> Gaussian:
        np.random.rand()  # noqa: NPY002 - the fault under test
        return super().posterior(x_t, clean_s, s, t, eta)


class ClipsInPlace(Process):
    def posterior(self, x_t: Any, clean_s: Any, s: int, t: int, eta: float = 1.0) -> Gaussian:
        np.clip(clean_s, -1, 1, out=clean_s)
        return super().posterior(x_t, clean_s, s, t, eta)


class EtaUnchecked(Process):
    def posterior(self, x_t: Any, clean_s: Any, s: int, t: int, eta: float = 1.0) -> Gaussian:
        return super().posterior(x_t, clean_s, s, t, min(max(eta, 0.0), 1.0))


def resized(kind: type[Process], **kwargs: Any) -> ssd.LinearDiffusion:
    noise = ssd.NoiseSchedule.linear(30)
    return kind.resize((6, 4), noise, ssd.ResolutionSchedule.equal(30, 2), **kwargs)


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A broken subject and the check that must kill it."""

    name: str
    check: str
    make: Callable[[], Any]
    xp: Any = np
    dtypes: str | None = "float64"


def operator(name: str, check: str, kind: type[LinearOperator], **kwargs: Any) -> Mutant:
    return Mutant(name, check, kind, **kwargs)


def process(name: str, check: str, kind: type[Process], **kwargs: Any) -> Mutant:
    return Mutant(name, check, lambda: resized(kind), **kwargs)


OPERATOR_MUTANTS = (
    operator("adjoint off by one sample", "adjoint", AdjointOffByOne),
    operator("transposed kernel taken for symmetric", "adjoint", TransposedKernel),
    operator("adjoint off by 1e-11", "adjoint", AdjointSlightlyScaled),
    operator("affine instead of linear", "linearity", Affine),
    operator("rectified instead of linear", "linearity", Rectified),
    operator("norm under-estimated", "norm", NormUnderEstimated),
    operator("Frobenius norm for the spectral one", "norm", NormOfFrobenius),
    operator("silent upcast", "dtype", Upcast, dtypes="float32"),
    operator("float64 computed in float32", "accuracy", HiddenDowncast),
    operator("float16 computed in float16", "accuracy", HalfArithmetic, dtypes="float16"),
    operator("input written to", "inputs_untouched", WritesInput),
    operator("output buffer used again", "results_kept", ReusesBuffer, xp=np, dtypes="float64"),
    operator("input written to and restored", "inputs_untouched", WritesThenRestores),
    operator("hidden randomness", "repeatability", HiddenNoise),
    operator("global generator seeded", "global_rng", SeedsGlobal),
    operator("global generator consumed by norm()", "global_rng", DrawsGlobal),
    operator("batch items swapped", "batch_items", MixesBatch),
    operator("empty batch flattened", "shapes", DropsEmptyBatch),
    operator("batch of one squeezed", "shapes", SqueezesBatch),
    operator(".T.T with the wrong sign", "transpose", WrongTransposeOfTranspose),
    operator("composition in the wrong order", "composition", ComposesBackwards),
    operator("sign of a factor lost", "scaling", IgnoresScaleSign),
    operator("as_matrix in Fortran order", "matrix", MatrixInFortranOrder),
    operator("as_matrix in float32", "matrix", MatrixInSinglePrecision),
    operator("eigenvalues for singular values", "singular_values", SingularValuesSquared),
    operator("gram_function on the wrong side", "gram_function", GramOnWrongSide),
    operator("gram_function without f(0) on the null space", "gram_function", GramForgetsNullSpace),
    operator("gram_function of singular values", "gram_function", GramOfSingularValues),
    operator("stale cache across dtypes", "precision_order", StaleCache, dtypes=None),
    operator("namespace switched to numpy", "namespace", ToNumpy, xp=array_api_strict),
    operator("device switched", "namespace", DefaultDevice, xp=array_api_strict),
    operator("strides ignored", "noncontiguous", AssumesContiguous),
    operator("anything accepted", "refusals", AcceptsAnything),
)
PROCESS_MUTANTS = (
    process("ρ with a wrong power", "posterior", RhoWrongPower),
    process("posterior covariance clamped", "posterior", CovarianceClamped),
    process("transition covariance clamped", "transition", TransitionClamped),
    process("transition covariance of ordinary diffusion", "transition", IgnoresDegradationInCovariance),
    process("noise of a long step 1 % too high", "chaining", DegradationForgetsChange),
    process("η ignored", "eta_family", EtaIgnored),
    process("η scales the variance", "eta_family", EtaScalesVariance),
    process("what the prediction leaves open forgotten", "second_moments", ForgetsWhatIsLeftOpen),
    process("noise of the first item's time", "noising", NoiseOfTheFirstTime),
    process("law of one time for all", "times", LawsOfTheFirstTime),
    process("wrong alpha ratio", "clean", WrongAlphaRatio),
    process("clean image scaled", "clean", CleanAtWrongTime),
    process("marginal variance of another time", "marginal", MarginalOfNextTime),
    process("admissibility check skipped", "admissibility", AdmissibilitySkipped),
    process("admissibility check too strict", "admissibility", AdmissibilityTooStrict),
    process("respace off by one", "respace", RespaceOffByOne),
    process("prior without σ_T²", "prior", PriorWithoutNoise),
    process("root not symmetric", "covariance", process_with_law("posterior", Skewed)),
    process("sample scaled by Σ for Σ^½", "covariance", process_with_law("posterior", HalfScale)),
    process("root of the wrong scale", "covariance", process_with_law("transition", covariance=RootOfVariance)),
    process("samples of the wrong scale", "sampling", process_with_law("posterior", HalfScale)),
    process(
        "log-determinant without multiplicities",
        "densities",
        process_with_law("marginal", covariance=ForgetsMultiplicity),
    ),
    process("log_prob off by a constant", "densities", process_with_law("marginal", Forgets2Pi)),
    process("kl the wrong way round", "densities", process_with_law("transition", ReversedKL)),
    process("batch items mixed", "batch_items", PosteriorMixesBatch),
    process("posterior upcast", "dtype", PosteriorUpcasts, dtypes="float32"),
    process("marginal in numpy", "namespace", MarginalToNumpy, xp=array_api_strict),
    process("hidden randomness in the posterior", "repeatability", PosteriorNoisy),
    process("global generator consumed", "global_rng", PosteriorDrawsGlobal),
    process("clean image clipped in place", "inputs_untouched", ClipsInPlace),
    process("eta clamped silently", "refusals", EtaUnchecked),
)
MUTANTS = (*OPERATOR_MUTANTS, *PROCESS_MUTANTS)


def run(mutant: Mutant, last: str | None = None) -> Report:
    """The report of all checks, or of those up to `last`: the ones before it draw from the same random numbers."""
    is_operator = mutant in OPERATOR_MUTANTS
    checks, check = (OPERATOR_CHECKS, run_operator_checks) if is_operator else (PROCESS_CHECKS, run_process_checks)
    count = len(checks) if last is None else [each.name for each in checks].index(last) + 1
    run_checks: Any = check
    report: Report = run_checks(mutant.make(), mutant.xp, mutant.dtypes, None, 3, 0, {}, checks[:count])
    return report


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_killed(mutant: Mutant, mutant_table: list[tuple[str, ...]]) -> None:
    report = run(mutant, mutant.check)
    killed = [row for row in report.failures if row.check == mutant.check]
    assert killed, f"{mutant.check} let {mutant.name} live; killed by {[row.check for row in run(mutant).failures]}"
    row = max(killed, key=lambda row: row.ratio)
    measured, tolerance = (f"{x:.3g}" if not math.isnan(x) else "error" for x in (row.measured, row.tolerance))
    mutant_table.append((mutant.name, mutant.check, measured, tolerance, row.detail))
    assert not report.passed


def test_every_check_kills_a_mutant() -> None:
    assert {check.name for check in OPERATOR_CHECKS} == {mutant.check for mutant in OPERATOR_MUTANTS}
    assert {check.name for check in PROCESS_CHECKS} == {mutant.check for mutant in PROCESS_MUTANTS}
    assert len(MUTANTS) >= 20


@pytest.mark.parametrize("kind", [Plain, PlainSquare])
def test_what_the_operator_mutants_break_is_whole(kind: type[LinearOperator]) -> None:
    for xp in (np, array_api_strict):
        assert check_operator(kind(), xp).passed


def test_what_the_process_mutants_break_is_whole() -> None:
    for xp in (np, array_api_strict):
        assert check_process(resized(Process), xp).passed


def test_message_lists_every_failure_with_numbers() -> None:
    with pytest.raises(CheckFailed) as caught:
        check_operator(AdjointOffByOne())
    report = caught.value.report
    message = str(caught.value)
    assert {row.check for row in report.failures} >= {"adjoint", "accuracy"}
    for row in report.failures:
        assert (
            f"{row.check} [{row.dtype}] failed: measured {row.measured:.3g}, tolerance {row.tolerance:.3g}" in message
        )


def test_expected_failures_are_strict() -> None:
    reasons = {"norm": "an upper bound is all we have"}
    report = check_operator(NormOfFrobenius(), dtypes="float64", expected_failures=reasons)
    assert [row.status for row in report.rows if row.check == "norm"] == ["expected failure"]
    assert all(row.detail.startswith(reasons["norm"]) for row in report.rows if row.check == "norm")
    with pytest.raises(CheckFailed, match="unexpected pass"):
        check_operator(Plain(), expected_failures=reasons)
    with pytest.raises(ValueError, match="no check is named 'nrom'"):
        check_operator(Plain(), expected_failures={"nrom": "typing"})
    with pytest.raises(ValueError, match="needs a reason"):
        check_operator(Plain(), expected_failures={"norm": ""})
