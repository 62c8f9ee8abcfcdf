"""Sampling given a measurement, against the posterior of Gaussian data in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from perfect import GaussianDenoiser, frechet, noise_shapes, power_law, unit_noise
from torch import Tensor

import ssdcore as ssd
from ssdcore_torch import generate
from ssdcore_torch.denoisers import level_sizes_of
from ssdcore_torch.restoration import _Guide, _law, conjugate_gradients, restore
from ssdcore_torch.sampling import sampling_times
from ssdcore_torch.sampling._walk import Walk

SHAPE = (8, 4)
PIXELS = 32
NOISE_LEVEL = 0.05
RNG = np.random.default_rng(0)
MEAN = 0.3 * RNG.standard_normal(PIXELS)
COVARIANCE = ssd.Covariance.cosine(power_law(SHAPE))
DENSE = COVARIANCE.as_matrix()
DATA = ssd.Gaussian(MEAN.reshape(SHAPE), COVARIANCE)
SEEN = np.flatnonzero(RNG.random(PIXELS) < 0.4)
OPERATORS = {
    "super-resolution": ssd.Resize(SHAPE, (4, 2)),
    "deblurring": ssd.Blur(SHAPE, 1.0),
    "inpainting": ssd.Matrix(np.eye(PIXELS)[SEEN], SHAPE, len(SEEN)),
}


def process(levels: int, steps: int = 1000) -> ssd.LinearDiffusion:
    noise = ssd.NoiseSchedule.linear(steps)
    if levels == 1:
        return ssd.LinearDiffusion.identity(SHAPE, noise)
    return ssd.LinearDiffusion.resize(SHAPE, noise, ssd.ResolutionSchedule.equal(steps, levels))


def measured(operator: ssd.LinearOperator, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = MEAN + np.linalg.cholesky(DENSE) @ rng.standard_normal(PIXELS)
    y = operator.as_matrix() @ image
    return y + NOISE_LEVEL * rng.standard_normal(len(y))


def posterior(operator: ssd.LinearOperator, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a = operator.as_matrix()
    gain = DENSE @ a.T @ np.linalg.inv(a @ DENSE @ a.T + NOISE_LEVEL**2 * np.eye(len(a)))
    return MEAN + gain @ (y - a @ MEAN), DENSE - gain @ a @ DENSE


def restored_law(
    net: GaussianDenoiser,
    chain: ssd.LinearDiffusion,
    operator: ssd.LinearOperator,
    y: np.ndarray,
    sampler: str,
    eta: float,
    guided: bool = True,
    data: ssd.Gaussian | None = DATA,
) -> tuple[np.ndarray, np.ndarray]:
    """Exact mean and covariance of what `restore` draws: every unit vector of its noise through the real steps."""
    measurement = torch.from_numpy(y).reshape(1, 1, *operator.out_shape)
    guide = _Guide(chain, operator, measurement, NOISE_LEVEL, _law(net.proc, data, torch.device("cpu")))
    walk = Walk(
        net,
        level_sizes_of(net, net.proc),
        chain,
        ssd.sampling.Sampler.named(sampler, eta),
        False,
        guide if guided else None,
    )
    draw = unit_noise([SHAPE, operator.out_shape, *noise_shapes(chain, eta)])
    made = walk.down(guide.start(draw), draw).flatten(1).numpy()
    columns = made[1:] - made[0]
    return made[0], columns.T @ columns


@pytest.mark.parametrize(("task", "levels"), [("super-resolution", 1), *((task, 3) for task in OPERATORS)])
def test_twenty_steps_draw_from_the_posterior(task: str, levels: int) -> None:
    """The mean exactly (it has no discretisation error), the variance to 10 %, the distance to 0.5 % of it; if guided."""
    proc, operator = process(levels), OPERATORS[task]
    net, y = GaussianDenoiser(proc, DENSE, MEAN), measured(operator)
    chain = proc.respace(sampling_times(proc, 20, "log_snr"))
    mean, covariance = posterior(operator, y)
    made = restored_law(net, chain, operator, y, "multistep", 0.0)
    np.testing.assert_allclose(made[0], mean, atol=1e-7)
    assert abs(np.trace(made[1]) / np.trace(covariance) - 1) < 0.1
    assert frechet(*made, mean, covariance) < 5e-3 * np.trace(covariance)
    unguided = restored_law(net, chain, operator, y, "multistep", 0.0, guided=False)
    assert frechet(*unguided, mean, covariance) > 0.5 * np.trace(covariance)


def test_the_chain_starts_from_the_law_of_the_last_state_given_the_measurement() -> None:
    """Exact: N(α_T R_T E[x_0 | y], α_T² R_T Cov(x_0 | y) R_Tᵀ + σ_T² I), at a last time that keeps much of the image."""
    noise = ssd.NoiseSchedule.from_log_snr(np.linspace(4, 1, 20))
    proc = ssd.LinearDiffusion.resize(SHAPE, noise, ssd.ResolutionSchedule.equal(20, 2))
    operator = OPERATORS["inpainting"]
    y = measured(operator)
    guide = _Guide(
        proc, operator, torch.from_numpy(y).reshape(1, 1, -1), NOISE_LEVEL, _law(proc, DATA, torch.device("cpu"))
    )
    made = guide.start(unit_noise([SHAPE, operator.out_shape, proc.shape(20)])).flatten(1).numpy()
    mean, covariance = posterior(operator, y)
    down = proc.degradation(0, 20).as_matrix()
    np.testing.assert_allclose(made[0], down @ mean, atol=1e-8)
    columns = made[1:] - made[0]
    expected = down @ covariance @ down.T + proc.sigma(20) ** 2 * np.eye(len(down))
    np.testing.assert_allclose(columns.T @ columns, expected, atol=1e-8)


@pytest.mark.slow
def test_ancestral_restoration_converges_to_the_posterior() -> None:
    """First order in the steps: twice as many halve the distance, within the slope's 0.2."""
    proc, operator = process(3, 400), OPERATORS["super-resolution"]
    net, y = GaussianDenoiser(proc, DENSE, MEAN), measured(operator)
    distances = []
    for steps in (16, 32):
        chain = proc.respace(sampling_times(proc, steps, "log_snr"))
        distances.append(frechet(*restored_law(net, chain, operator, y, "ancestral", 1.0), *posterior(operator, y)))
    assert abs(math.log2(distances[0] / distances[1]) / 2 - 1) < 0.2, distances


def test_without_a_law_of_the_data_the_measurement_is_still_met() -> None:
    """The white default: the draws agree with y to the noise, though their spread is not the posterior's."""
    proc, operator = process(3), OPERATORS["super-resolution"]
    net, y = GaussianDenoiser(proc, DENSE, MEAN), measured(operator)
    chain = proc.respace(sampling_times(proc, 20, "log_snr"))
    mean, covariance = restored_law(net, chain, operator, y, "multistep", 0.0, data=None)
    a = operator.as_matrix()
    assert np.sqrt(np.mean((a @ mean - y) ** 2)) < 1.2 * NOISE_LEVEL
    assert np.sqrt(np.trace(a @ covariance @ a.T) / len(a)) < 1.2 * NOISE_LEVEL
    exact = posterior(operator, y)
    assert frechet(mean, covariance, *exact) < 0.05 * np.trace(exact[1])


def test_restore_draws_from_that_law() -> None:
    """The public function: its samples for one measurement against the exact law of its own steps."""
    proc, operator = process(2), OPERATORS["inpainting"]
    net, y = GaussianDenoiser(proc, DENSE, MEAN), measured(operator)
    count = 1000
    measurements = torch.from_numpy(y).expand(count, 1, -1)
    drawn = restore(
        net,
        proc,
        operator,
        measurements,
        NOISE_LEVEL,
        steps=12,
        data=DATA,
        sampler="multistep",
        clip=False,
        batch_size=500,
        dtype=torch.float64,
    )
    assert drawn.shape == (count, 1, *SHAPE)
    chain = proc.respace(sampling_times(proc, 12, "log_snr"))
    mean, covariance = restored_law(net, chain, operator, y, "multistep", 0.0)
    values = drawn.flatten(1).numpy()
    variances = np.diag(covariance)
    assert np.abs((values.mean(0) - mean) / np.sqrt(variances / count)).max() < 4.5
    spread = np.sqrt((np.outer(variances, variances) + covariance**2) / count)
    assert np.abs((np.cov(values.T) - covariance) / spread).max() < 5


@pytest.mark.parametrize("sampler", ["ancestral", "multistep"])
def test_draws_do_not_depend_on_the_batch(sampler: str) -> None:
    proc, operator = process(3), OPERATORS["super-resolution"]
    net = GaussianDenoiser(proc, DENSE, MEAN)
    y = torch.from_numpy(np.stack([measured(operator, seed) for seed in range(7)])).reshape(7, 1, 4, 2)

    def draw(batch_size: int) -> Tensor:
        return restore(
            net, proc, operator, y, NOISE_LEVEL, 8, seed=3, sampler=sampler, batch_size=batch_size, dtype=torch.float64
        )

    whole = draw(64)
    for batch_size in (1, 3):
        torch.testing.assert_close(draw(batch_size), whole, rtol=0, atol=1e-7)
    assert (whole[0] - generate(net, proc, 1, 8, seed=3, channels=1)[0]).abs().mean() > 0.05


def test_a_network_in_single_precision_with_three_channels() -> None:
    proc, operator = process(3), OPERATORS["super-resolution"]
    y = torch.full((2, 3, 4, 2), 0.25)

    def flat(x: Tensor, t: Tensor, out_level: int) -> Tensor:
        return torch.zeros(len(x), 3, 8 >> out_level, 4 >> out_level)

    # Stubborn as this network is, so exact a measurement overrules it even at the last step.
    drawn = restore(flat, proc, operator, y, 1e-4, steps=6)
    assert drawn.dtype == torch.float32
    assert drawn.shape == (2, 3, 8, 4)
    assert (operator(drawn) - y).abs().max() < 0.005


def test_conjugate_gradients() -> None:
    """Each element on its own, whatever the others need; and an error in place of a result that is not one."""
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((30, 30))
    matrix = torch.from_numpy(factor @ factor.T + 0.1 * np.eye(30))
    b = torch.from_numpy(rng.standard_normal((3, 30)))
    b[1] = 0
    x = conjugate_gradients(lambda v: v @ matrix, b, 1)
    torch.testing.assert_close(x, torch.linalg.solve(matrix, b.T).T, rtol=0, atol=1e-7)
    assert torch.equal(x[1], torch.zeros(30, dtype=torch.float64))
    assert torch.equal(conjugate_gradients(lambda v: v @ matrix, b[:2], 1)[1], x[1])
    bad = torch.diag(torch.logspace(-14, 0, 400, dtype=torch.float64))
    with pytest.raises(ssd.ConvergenceError, match=r"relative residual .* raise noise_level"):
        conjugate_gradients(lambda v: v @ bad, torch.ones(1, 400, dtype=torch.float64), 1)


def test_bad_input() -> None:
    proc, operator = process(3), OPERATORS["super-resolution"]
    net, y = GaussianDenoiser(proc, DENSE, MEAN), torch.zeros(1, 1, 4, 2)
    other = ssd.Gaussian(np.zeros((4, 4)), ssd.Covariance.isotropic((4, 4), 1.0))
    singular = ssd.Gaussian(np.zeros(SHAPE), ssd.Covariance.isotropic(SHAPE, 0.0))
    for message, operator_, arguments in (
        (
            r"measurements: .*got torch.float32 of shape \(1, 1, 3, 3\)",
            operator,
            {"measurements": torch.zeros(1, 1, 3, 3)},
        ),
        ("measurements: .*got torch.int64", operator, {"measurements": torch.zeros(1, 1, 4, 2, dtype=torch.int64)}),
        (r"full-size images \(8, 4\), got Resize\(\(16, 16\)", ssd.Resize((16, 16), (4, 4)), {}),
        (
            "measurements: 1 of 8 values are not finite; leave what is missing out of the operator",
            operator,
            {"measurements": torch.where(torch.arange(8.0).reshape(1, 1, 4, 2) == 3, torch.nan, y)},
        ),
        ("noise_level: expected a positive number, got 0", operator, {"noise_level": 0}),
        (r"data: expected a covariance over \(8, 4\)", operator, {"data": other}),
        ("data: the covariance is singular", operator, {"data": singular}),
        ("sampler: expected one of ancestral, multistep", operator, {"sampler": "euler"}),
        ("batch_size", operator, {"batch_size": 0}),
    ):
        with pytest.raises(ValueError, match=message):
            restore(net, proc, operator_, **{"measurements": y, "noise_level": 0.1, **arguments})
    with pytest.raises(TypeError, match=r"expected an ssdcore.LinearOperator such as ssdcore.Resize, got function"):
        restore(net, proc, lambda x: x, y, 0.1)  # type: ignore[arg-type]


def test_each_measurement_is_restored_as_its_class() -> None:
    proc, operator = process(3), OPERATORS["super-resolution"]
    nets = [GaussianDenoiser(proc, DENSE, mean) for mean in (MEAN, MEAN - 1)]

    def net(x: torch.Tensor, t: torch.Tensor, out_level: int, label: torch.Tensor) -> torch.Tensor:
        zero, one = (denoiser(x, t, out_level) for denoiser in nets)
        return torch.where(label.view(-1, 1, 1, 1) == 1, one, zero)

    y = torch.from_numpy(np.stack([measured(operator, seed) for seed in range(3)])).reshape(3, 1, *operator.out_shape)
    arguments = {"steps": 5, "dtype": torch.float64, "batch_size": 2}
    alone = [restore(denoiser, proc, operator, y, NOISE_LEVEL, **arguments) for denoiser in nets]
    made = restore(net, proc, operator, y, NOISE_LEVEL, labels=[1, 0, 1], **arguments)
    for i, label in enumerate((1, 0, 1)):
        torch.testing.assert_close(made[i], alone[label][i], rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="got the shape"):
        restore(net, proc, operator, y, NOISE_LEVEL, labels=[1, 0])
    with pytest.raises(ValueError, match='no label for "no class"'):
        restore(net, proc, operator, y, NOISE_LEVEL, labels=1, guidance=2.0)
