"""Laws that mutants of `ssdcore` broke and no other test noticed (benchmarks/mutation): each test kills one or more."""

from __future__ import annotations

import math

import numpy as np
import pytest

import ssdcore as ssd
from ssdcore.spectral import lanczos_function

EPS = float(np.finfo(np.float64).eps)
EPS32 = float(np.finfo(np.float32).eps)
NOISE = ssd.NoiseSchedule.from_log_snr([4.0, 2.0, 0.0, -2.0])


def square_chain() -> ssd.LinearDiffusion:
    """Every step mixes, the first too, so that no operator stands for another."""
    rng = np.random.default_rng(0)
    steps = [ssd.Matrix(np.linalg.qr(rng.standard_normal((3, 3)))[0] * scale) for scale in (0.9, 0.8, 0.7, 0.6)]
    return ssd.LinearDiffusion.from_operators(steps, NOISE)


def test_states_at_each_time_are_the_product_of_all_steps_from_the_first() -> None:
    proc, x0 = square_chain(), np.random.default_rng(1).standard_normal((5, 3))
    rng = np.random.default_rng(0)
    steps = [np.linalg.qr(rng.standard_normal((3, 3)))[0] * scale for scale in (0.9, 0.8, 0.7, 0.6)]
    whole = [np.eye(3)]
    for step in steps:
        whole.append(step @ whole[-1])
    noise = np.zeros_like(x0)
    expected = np.stack([proc.alpha(t) * whole[t] @ x0[t] for t in range(5)])
    np.testing.assert_allclose(proc.add_noise(x0, noise, np.arange(5)), expected, atol=16 * EPS)
    np.testing.assert_allclose(proc.degrade(x0, np.arange(5)), [whole[t] @ x0[t] for t in range(5)], atol=16 * EPS)
    for t in range(5):
        np.testing.assert_allclose(proc.add_noise(x0[t], noise[t], t), expected[t], atol=16 * EPS)
        np.testing.assert_allclose(
            proc.degradation(0, t).as_matrix() if t else np.eye(3), proc.alpha(t) * whole[t], atol=16 * EPS
        )


def test_traced_states_at_each_time() -> None:
    jax = pytest.importorskip("jax")
    proc, x0 = square_chain(), np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32)
    traced = jax.jit(proc.degrade)(x0, np.arange(5))
    np.testing.assert_allclose(traced, proc.degrade(x0, np.arange(5)), atol=32 * EPS32)


def test_what_a_prediction_leaves_open_at_arrays_of_pairs() -> None:
    """In modes that do not span everything, and outside of them."""
    proc = ssd.LinearDiffusion.identity((4,), NOISE)
    flat = ssd.Matrix(np.full((1, 4), 0.5))
    law = ssd.Covariance.of_modes(flat, [3.0], 0.25)
    x_t, clean = np.random.default_rng(2).standard_normal((2, 2, 4))
    s, t = np.array([1, 2]), np.array([2, 4])
    together = proc.posterior(x_t, clean, s, t, clean_covariance=law)
    for k in range(2):
        alone = proc.posterior(x_t[k], clean[k], int(s[k]), int(t[k]), clean_covariance=law)
        np.testing.assert_allclose(together.covariance(np.ones((2, 4)))[k], alone.covariance(np.ones(4)), atol=16 * EPS)
        x = np.array([1.0, -1.0, 2.0, 0.5])
        np.testing.assert_allclose(together.covariance(np.stack([x, x]))[k], alone.covariance(x), atol=16 * EPS)
        np.testing.assert_allclose(together.log_prob(x_t)[k], alone.log_prob(x_t[k]), rtol=64 * EPS)
        one = proc.posterior(x_t[k : k + 1], clean[k : k + 1], s[k : k + 1], t[k : k + 1], clean_covariance=law)
        np.testing.assert_allclose(one.covariance.as_matrix(), alone.covariance.as_matrix(), atol=16 * EPS)


def test_what_a_prediction_leaves_open_without_singular_vectors() -> None:
    """R = ½ I, as a function of 2,304 elements: D = α_s − α_t b r is a number."""
    n = 2304
    half = ssd.Functional(lambda v: 0.5 * v, lambda v: 0.5 * v, (n,), (n,))
    large = ssd.LinearDiffusion.from_operators([None, half], ssd.NoiseSchedule.from_log_snr([1.0, 0.0]))
    small = ssd.LinearDiffusion.from_operators([None, ssd.Matrix(0.5 * np.eye(1))], large.noise)
    x = np.random.default_rng(3).standard_normal(n)
    wide = large.posterior(x, x, 1, 2, clean_covariance=ssd.Covariance.isotropic(n, 0.3))
    number = small.posterior(np.zeros(1), np.zeros(1), 1, 2, clean_covariance=ssd.Covariance.isotropic(1, 0.3))
    np.testing.assert_allclose(wide.covariance(x), number.covariance.as_matrix().item() * x, atol=256 * EPS)


@pytest.mark.parametrize("kernel", ["box", "bilinear", "bicubic", "lanczos3"])
def test_norms_of_long_axes(kernel: str) -> None:
    for axis in ssd.Resize((384,), (192,), kernel).axis_matrices() or ():
        expected = np.linalg.norm(axis.constant.value, 2)
        assert axis.band is not None
        assert axis.band.norm() == pytest.approx(expected, rel=64 * EPS)


def test_singular_values_of_odd_long_axes() -> None:
    """Symmetric Gram matrices are halved where their size is even; 195 is odd and a multiple of three."""
    for n, m in ((390, 195), (388, 194)):
        op = ssd.Resize((n,), (m,), "box")
        found = np.sort(np.asarray(op.singular_values()).reshape(-1))
        np.testing.assert_allclose(found, np.sort(np.linalg.svd(op.as_matrix(), compute_uv=False)), rtol=256 * EPS)


def test_stencils_of_antialiased_resizes_rebuild_their_matrices() -> None:
    for kernel in ("box", "bilinear", "bicubic"):
        (axis,) = ssd.Resize((128,), (64,), kernel).axis_matrices() or ()
        stencil = axis.stencil
        assert stencil is not None
        rebuilt = np.zeros(axis.shape)
        for i, scale in enumerate(stencil.scale):
            for k, tap in enumerate(stencil.taps):
                column = i * stencil.stride - stencil.padding + k
                if 0 <= column < axis.shape[1]:
                    rebuilt[i, column] = scale * tap
        np.testing.assert_allclose(rebuilt, axis.constant.value, atol=32 * EPS)


def nearly_box(change: str) -> np.ndarray:
    """Means of neighbours, but for one row in the middle."""
    matrix = np.kron(np.eye(64), [[0.5, 0.5]])
    row = matrix[20]
    if change == "shifted":
        row[:] = np.roll(row, 1)
    elif change == "one more entry":
        row[50] = 0.25
    elif change == "other weights":
        row[:] = np.where(row > 0, np.where(np.arange(128) % 2, 0.75, 0.25), 0.0)
    elif change == "one entry moved":
        row[41], row[60] = 0.0, 0.5
    return matrix


@pytest.mark.parametrize("change", ["none", "shifted", "one more entry", "other weights", "one entry moved"])
def test_matrices_that_are_nearly_a_convolution_are_none(change: str) -> None:
    torch = pytest.importorskip("torch")
    matrix = nearly_box(change)
    x = np.random.default_rng(4).standard_normal((2, 128)).astype(np.float32)
    found = ssd.Separable([matrix])(torch.asarray(x)).numpy()
    np.testing.assert_allclose(found, x @ matrix.T, atol=16 * EPS32)


def test_convolutions_of_no_image_and_of_three_axes() -> None:
    torch = pytest.importorskip("torch")
    flat = ssd.Resize((64, 64), (32, 32))
    assert flat(torch.zeros(0, 64, 64)).shape == (0, 32, 32)
    solid = ssd.Resize((64, 64, 64), (32, 32, 32), "box")
    x = np.random.default_rng(5).standard_normal((64, 64, 64)).astype(np.float32)
    means = x.reshape(32, 2, 32, 2, 32, 2).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(solid(torch.asarray(x)).numpy(), means, atol=32 * EPS32)


def test_noise_that_just_suffices_in_dense_covariances() -> None:
    """Σ_t = M Σ_s Mᵀ but for rounding, with zeros among its entries, is admissible and leaves nothing to draw."""
    rng = np.random.default_rng(6)
    for _ in range(8):
        m, root = np.zeros((4, 4)), rng.standard_normal((4, 4))
        m[:2, :2], m[2:, 2:] = rng.standard_normal((2, 2, 2))
        root[:2, 2:] = root[2:, :2] = 0
        sigma_s, carried = root @ root.T, m @ root
        sigma_t = carried @ carried.T
        law = ssd.general_transition(
            np.zeros(4), ssd.Matrix(m), ssd.Covariance.dense(sigma_s), ssd.Covariance.dense(sigma_t)
        )
        assert np.abs(law.covariance.as_matrix()).max() <= 64 * EPS * np.abs(sigma_t).max()


def test_factors_of_noise_are_positive() -> None:
    for wrong in ([1.0, 0.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, 1.0, 1.0]):
        with pytest.raises(ValueError, match="finite positive factors"):
            NOISE.scaled(np.array(wrong))


@pytest.mark.parametrize("steps", [10, 40, 1000])
def test_the_bound_of_cosine_noise_holds_at_real_times_too(steps: int) -> None:
    """β <= 0.999: the last step keeps 1/1000 of ᾱ, and half of it √(1/1000)."""
    noise = ssd.NoiseSchedule.cosine(steps)
    alpha, _ = noise.at(np.array([steps - 1.0, steps - 0.5, float(steps)]))
    angle = (np.array([steps - 1, steps]) / steps + 0.008) / 1.008 * math.pi / 2
    assert 1 - (np.cos(angle[1]) / np.cos(angle[0])) ** 2 > 0.999  # so that the bound acts
    np.testing.assert_allclose(alpha[1:] / alpha[0], [1e-3**0.25, 1e-3**0.5], rtol=1e-9)


def test_noise_without_signal_for_several_times() -> None:
    noise = ssd.NoiseSchedule(np.array([1.0, 0.5, 0.0, 0.0]), np.array([0.0, 0.5, 1.0, 1.0]))
    proc = ssd.LinearDiffusion.identity((2,), noise)
    law = proc.transition(np.ones(2), 2, 3)
    np.testing.assert_array_equal(law.mean, [0.0, 0.0])
    np.testing.assert_array_equal(law.covariance.as_matrix(), np.eye(2))
    back = proc.posterior(np.ones(2), np.ones(2), 2, 3)
    np.testing.assert_allclose(back.covariance.as_matrix(), np.eye(2), atol=4 * EPS)


def test_lanczos_to_the_last_step_of_a_size_that_is_no_multiple_of_five() -> None:
    for n in (4, 7, 8):
        values = 10.0 ** -np.arange(n)
        op = ssd.Functional(lambda v, d=values: v * d, lambda v, d=values: v * d, (n,), (n,))
        x = np.ones((1, n))
        found = lanczos_function(np, lambda v, op=op: op.T(op(v)), np.sqrt, x, (n,), "test")
        np.testing.assert_allclose(found, values[None], atol=1e-7)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_functions_by_lanczos_are_homogeneous(scale: float) -> None:
    """The tolerance is relative to the result: f(G)(c x) = c f(G) x."""
    n = 60
    values = np.linspace(0.02, 1.0, n)
    x = np.random.default_rng(7).standard_normal((2, n))
    found = lanczos_function(np, lambda v: v * values**2, np.sqrt, scale * x, (n,), "test")
    np.testing.assert_allclose(found / scale, values * x, atol=1e-9)


def test_exact_errors_scale_with_the_data() -> None:
    """Variance-exploding noise has no unit: σ → c σ and C → c² C scale the error by c²."""
    rng = np.random.default_rng(8)
    root = rng.standard_normal((4, 4))
    sigma = np.array([0.0, 0.5, 1.0, 2.0, 4.0])
    errors = []
    for c in (1.0, 1e-10):
        noise = ssd.NoiseSchedule(np.ones(5), c * sigma)
        proc = ssd.LinearDiffusion.resize((4,), noise, ssd.ResolutionSchedule.thresholds([3]), kernel="bicubic")
        errors.append(ssd.oracle.sampler_error(proc, c**2 * root @ root.T) / c**2)
    assert errors[1] == pytest.approx(errors[0], rel=1e-6)


def test_data_that_are_independent_pixels() -> None:
    proc = ssd.LinearDiffusion.resize((4,), NOISE, ssd.ResolutionSchedule.thresholds([3]))
    pixels = ssd.Covariance.of_modes(ssd.Identity((4,)), [4.0, 1.0, 0.25, 2.0], 0.0)
    np.testing.assert_allclose(
        ssd.oracle.sampler_error(proc, pixels), ssd.oracle.sampler_error(proc, pixels.as_matrix()), rtol=1e-10
    )


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_no_single_time_can_be_moved_to_a_better_place(eta: float) -> None:
    """The search ends where each time is best between its neighbours, by the exact error of the chain."""
    noise = ssd.NoiseSchedule.linear(40)
    law = ssd.Covariance.cosine([4.0, 1.0, 0.2, 0.05])
    proc = ssd.LinearDiffusion.identity((4,), noise)
    best = ssd.oracle.optimal_times((4,), noise, law, 4, eta)
    least = ssd.oracle.sampler_error(proc, law, best, eta)
    for k in range(3):
        low, high = (0, *best)[k], best[k + 1]
        for t in range(low + 1, high):
            moved = (*best[:k], t, *best[k + 1 :])
            assert ssd.oracle.sampler_error(proc, law, moved, eta) >= (1 - 2e-3) * least
    if eta == 1.0:
        assert ssd.oracle.optimal_times((4,), noise, law, 4) == best


def test_extrapolation_leaves_destroyed_modes_alone() -> None:
    """Of R = diag(½, 0) only the first mode has a previous prediction; the second is taken as predicted."""
    from ssdcore.multistep import extrapolated

    noise = ssd.NoiseSchedule.from_log_snr([6.0, 4.0, 2.0, 0.0])
    steps = [None, None, ssd.Matrix(np.diag([0.5, 0.0])), None]
    proc = ssd.LinearDiffusion.from_operators(steps, noise)
    now, before = np.array([1.0, 2.0]), np.array([3.0, 5.0])
    for s, t, u in ((2, 3, 4), (1, 2, 3)):
        used = extrapolated(proc, s, t, u, now, before)
        assert used[1] == pytest.approx(now[1], abs=8 * EPS)
        assert abs(used[0] - now[0]) > 0.05


def test_sums_with_the_identity_keep_their_modes() -> None:
    """So that large ones need no dense matrix."""
    blur = ssd.Blur((96, 96), 1.0)
    for total in (blur + ssd.Identity((96, 96)), 0.5 * ssd.Identity((96, 96)) + blur):
        assert total.decomposition() is not None
    assert (ssd.Identity((3,)) + ssd.Identity((3,))).decomposition() is not None


def test_functions_of_eigenvalues_may_work_in_place() -> None:
    for op in (
        ssd.Matrix(np.diag([1.0, 0.5])),
        ssd.Separable([np.diag([1.0, 0.5])]),
        ssd.Matrix(np.array([[1.0, 0.5]])),
    ):

        def twice(values: np.ndarray) -> np.ndarray:
            values *= 2
            return values

        first, second = (op.gram_function(twice, np.ones(2)) for _ in range(2))
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(first, 2 * op.T(op(np.ones(2))), atol=8 * EPS)


def test_axes_are_transposed_products() -> None:
    rng = np.random.default_rng(9)
    a, b = rng.standard_normal((2, 3, 3))
    for left, right, dense in (
        (ssd.Matrix(a).T, ssd.Separable([b]), a.T @ b),
        (ssd.Separable([a]).T, ssd.Matrix(b).T, a.T @ b.T),
        (ssd.Matrix(a), ssd.Matrix(b).T, a @ b.T),
    ):
        np.testing.assert_allclose((left @ right)(np.ones(3)), dense @ np.ones(3), atol=64 * EPS)
        np.testing.assert_allclose((left @ right).T(np.ones(3)), dense.T @ np.ones(3), atol=64 * EPS)
