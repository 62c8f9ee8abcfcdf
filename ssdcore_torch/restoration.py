"""Restoring images from linear measurements: sampling x_0 given y = A x_0 + noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import ssdcore as ssd
from ssdcore.sampling import Sampler
from ssdcore_torch.denoisers import Predictor, device_of, level_sizes_of
from ssdcore_torch.sampling._labels import Labels, check_labels
from ssdcore_torch.sampling._placement import Placement, chain_of
from ssdcore_torch.sampling._residuals import first_of_size
from ssdcore_torch.sampling._walk import (
    Noise,
    NoiseSource,
    StepRecorder,
    Walk,
    evaluating,
    fill_of,
)

_TOLERANCE = 1e-10  # of the conjugate gradients, relative to the right-hand side; they run in float64
_MAX_ITERATIONS = 1000


def restore(
    net: Predictor,
    proc: ssd.LinearDiffusion,
    operator: ssd.LinearOperator,
    measurements: Tensor,
    noise_level: float,
    steps: int = 100,
    eta: float | None = None,
    seed: int = 0,
    *,
    data: ssd.Gaussian | None = None,
    labels: Labels | None = None,
    guidance: float = 1.0,
    sampler: str = "ancestral",
    placement: Placement | None = None,
    times: Sequence[int] | None = None,
    batch_size: int = 64,
    clip: bool = True,
    dtype: torch.dtype = torch.float32,
    on_step: StepRecorder | None = None,
) -> Tensor:
    """Draws from p(x_0 | y) for y = A x_0 + σ_y·noise, one for each measurement: ``(n, channels, *full size)``.

    The sampler of `generate`, with every prediction ẑ = E[R_s x_0 | x_t] replaced by E[R_s x_0 | x_t, y], estimated by
    the proximal rule of DiffPIR (Zhu et al., 2023) with a full posterior covariance, "type I guidance" of Peng et al.
    ("Improving diffusion models for inverse problems using optimal posterior covariance", 2024)::

        x̂_y = argmin_x ‖y − A x‖²/σ_y² + (x − x̂)ᵀ C_t⁻¹ (x − x̂) = x̂ + (C_t⁻¹ + AᵀA/σ_y²)⁻¹ Aᵀ(y − A x̂)/σ_y²,
        C_t = (C⁻¹ + (α_t²/σ_t²) R_tᵀ R_t)⁻¹,

    with N(m, C) the law `data` that the guidance takes the clean images to have. The measurement acts on the full-size
    image while a prediction may be smaller: x̂ = m + C R_sᵀ (R_s C R_sᵀ)⁻¹ (ẑ − R_s m) is the mean of the full-size
    image given the small one, what R_s destroys is uncertain by C, and the guided prediction is ẑ + R_s (x̂_y − x̂).
    With C = I that lift is the pseudo-inverse R_s⁺, and at full size C_t is the scalar of DiffPIR and of PiGDM (Song et
    al., 2023). x_T is drawn from the law that it has given y if the images follow N(m, C).

    For Gaussian images whose law is `data` all this is exact, and what remains is the error of the sampler's steps. For
    others the network corrects the Gaussian at every step; a fitted `data` matters where A leaves out whole regions or
    scales. No gradient of the network is taken.

    The other arguments are those of `generate`. Draw i depends on measurement i, its label, `seed` and i alone.

    Args:
        operator: A, from the trailing axes proc.shape(0) to any; channels are measured each alike
        measurements: y, ``(n, channels, *operator.out_shape)`` floating point
        noise_level: σ_y > 0, in the units of y. For exact measurements take a small one, such as 0.01.
        data: the law of one clean image: mean ``(*full size)`` or ``(channels, *full size)``, positive definite
            covariance over the full size; ``ssdcore.oracle.fit(images)`` estimates both. None: N(0, I).

    Raises:
        ValueError: For shapes that do not fit and a noise level that is not positive, ssdcore.
        ConvergenceError: If the linear equations cannot be solved in 1,000 iterations of conjugate gradients (raise
            the noise level then).
    """
    how = Sampler.named(sampler, eta)
    chain = chain_of(proc, steps, how.placement if placement is None else placement, times)
    device = device_of(net)
    law = _law(proc, data, device)
    y = _check(proc, operator, measurements, noise_level, batch_size).to(device, torch.float64)
    classes = check_labels(net, labels, len(y), guidance)
    parts = []
    with evaluating(net) as threads:
        for first in range(0, len(y), batch_size):
            part = y[first : first + batch_size]
            draw = Noise(seed, range(first, first + len(part)), y.shape[1], dtype, device)
            guide = _Guide(chain, operator, part, noise_level, law)
            some = None if classes is None else classes[first : first + batch_size].to(device)
            fill = fill_of(net, batch_size)
            walk = Walk(net, level_sizes_of(net, proc), chain, how, clip, guide, some, guidance, fill, threads=threads)
            parts.append(walk.down(guide.start(draw).to(dtype), draw, on_step))
    return torch.cat(parts)


def _law(proc: ssd.LinearDiffusion, data: ssd.Gaussian | None, device: torch.device) -> ssd.Gaussian:
    shape = proc.shape(0)
    if data is None:
        return ssd.Gaussian(
            torch.zeros(shape, dtype=torch.float64, device=device), ssd.Covariance.isotropic(shape, 1.0)
        )
    if data.covariance.shape != shape:
        raise ValueError(f"data: expected a covariance over {shape}, the full size, got {data.covariance.shape}")
    if data.covariance.log_determinant() == -torch.inf:
        raise ValueError(
            "data: the covariance is singular, so some images are impossible and the guidance could not follow a "
            "measurement of them; give every mode some variance"
        )
    return ssd.Gaussian(torch.as_tensor(data.mean, dtype=torch.float64, device=device), data.covariance)


def _check(
    proc: ssd.LinearDiffusion, operator: ssd.LinearOperator, y: Tensor, noise_level: float, batch_size: int
) -> Tensor:
    if not isinstance(operator, ssd.LinearOperator):
        raise TypeError(
            f"operator: expected an ssdcore.LinearOperator such as ssdcore.Resize, got {type(operator).__name__}"
        )
    if operator.in_shape != proc.shape(0):
        raise ValueError(f"operator: expected one that takes full-size images {proc.shape(0)}, got {operator}")
    out = operator.out_shape
    if y.ndim != 2 + len(out) or tuple(y.shape[2:]) != out or not y.is_floating_point() or len(y) == 0:
        raise ValueError(
            f"measurements: expected floating-point (n >= 1, channels, {', '.join(map(str, out))}), what {operator} "
            f"gives, got {y.dtype} of shape {tuple(y.shape)}"
        )
    if not y.isfinite().all():
        bad = int((~y.isfinite()).sum())
        raise ValueError(
            f"measurements: {bad} of {y.numel()} values are not finite; leave what is missing out of the operator, as "
            "inpainting does, instead of marking it by NaN"
        )
    if not noise_level > 0:
        raise ValueError(
            f"noise_level: expected a positive number, got {noise_level}; for exact measurements take a small one"
        )
    if batch_size < 1:
        raise ValueError(f"expected batch_size >= 1, got {batch_size}")
    return y


@dataclass(frozen=True)
class _Guide:
    """Turns predictions into predictions given y. All in float64, and in whitened images u: x = C^½ u."""

    chain: ssd.LinearDiffusion
    operator: ssd.LinearOperator
    y: Tensor
    noise_level: float
    law: ssd.Gaussian

    def __call__(self, x: Tensor, clean: Tensor, k: int) -> Tensor:
        """The prediction from x_t at step k, given y as well."""
        first = first_of_size(self.chain, k - 1)
        image = self._lift(clean.double(), first)
        return clean + self.chain.clean(self._pull(image, k), first).to(clean.dtype)

    def start(self, draw: NoiseSource) -> Tensor:
        """x_T given y for Gaussian images: a joint draw of (x_0, y), moved by the regression of x_0 on y."""
        chain = self.chain
        image = self.law.sample(draw(chain.shape(0)).double())
        missed = self.noise_level * draw(self.operator.out_shape).double()
        posterior = image + self._pull(image, None, missed)
        return chain.marginal(posterior, chain.steps).sample(draw(chain.shape(chain.steps)).double())

    def _pull(self, image: Tensor, k: int | None, missed: Tensor | float = 0.0) -> Tensor:
        """(C_t⁻¹ + AᵀA/σ_y²)⁻¹ Aᵀ (y − A image − missed)/σ_y², with t the time of step k; C for C_t if k is None."""
        root, operator, precision = self.law.covariance.root, self.operator, self.noise_level**-2
        seen = self.chain.degradation(0, k) if k is not None else None
        seen_precision = self.chain.sigma(k) ** -2 if k is not None else 0.0

        def hessian(u: Tensor) -> Tensor:
            x = root(u)
            total = precision * operator.T(operator(x))
            if seen is not None:
                total = total + seen_precision * seen.T(seen(x))
            return u + root(total)

        gradient = precision * root(operator.T(self.y - operator(image) - missed))
        return root(conjugate_gradients(hessian, gradient, len(self.operator.in_shape)))

    def _lift(self, clean: Tensor, k: int) -> Tensor:
        """m + C Rᵀ (R C Rᵀ)⁻¹ (z − R m): the mean of the full-size image given the one z = R x_0 of step k."""
        chain, mean = self.chain, self.law.mean
        if clean.shape[2:] == chain.shape(0) and chain.clean(clean, k) is clean:
            return clean  # R is the identity
        down, covariance = chain.degradation(0, k), self.law.covariance
        shift = chain.alpha(k) * clean - down(mean)
        solved = conjugate_gradients(lambda z: down(covariance(down.T(z))), shift, clean.ndim - 2)
        return mean + covariance(down.T(solved))


def conjugate_gradients(apply: Callable[[Tensor], Tensor], b: Tensor, axes: int) -> Tensor:
    """x with S x = b for a positive definite S over the last `axes` axes; the leading axes are independent.

    Iterates until every residual is below 1e-10 of its right-hand side (an element that is there stays as it is);
    raises ssdcore.ConvergenceError after 1,000 iterations.
    """
    over = tuple(range(-axes, 0))
    x, residual = torch.zeros_like(b), b
    direction = residual
    squared = (residual**2).sum(over, keepdim=True)
    goal = _TOLERANCE**2 * squared
    for _ in range(_MAX_ITERATIONS):
        open_ = ~(squared <= goal)  # what is not a number is never done
        if not open_.any():
            return x
        image = apply(direction)
        step = torch.where(open_, squared / (direction * image).sum(over, keepdim=True), 0.0)
        x, residual = x + step * direction, residual - step * image
        before, squared = squared, torch.where(open_, (residual**2).sum(over, keepdim=True), squared)
        direction = torch.where(open_, residual + squared / before * direction, direction)
    worst = float((squared / (goal / _TOLERANCE**2)).max().sqrt())
    raise ssd.ConvergenceError(
        f"restore: conjugate gradients stopped after {_MAX_ITERATIONS} iterations at a relative residual {worst:.1e}, "
        f"above {_TOLERANCE:.0e}; raise noise_level, or give `data` a covariance with less spread"
    )
