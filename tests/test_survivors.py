"""Laws that mutants of `ssdcore` broke and no other test noticed (benchmarks/mutation): each test kills one or more."""

from __future__ import annotations

import inspect
import math
import warnings
from itertools import pairwise

import numpy as np
import pytest

import ssdcore as ssd
from ssdcore._arrays import Memo
from ssdcore.axes import AxisMatrix
from ssdcore.multistep import extrapolation_weight
from ssdcore.oracle._design import _Search
from ssdcore.placement import spread_times
from ssdcore.sampling import Sampler
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
    """R = half a shift, as a function of 2,304 elements: D = α_s − α_t b r is a number."""
    n = 2304
    half = ssd.Functional(lambda v: 0.5 * np.roll(v, 1, -1), lambda v: 0.5 * np.roll(v, -1, -1), (n,), (n,))
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


def test_modes_that_are_destroyed_are_drawn_afresh_at_arrays_of_times() -> None:
    """At eta < 1 what R destroys has b = 0 and the whole variance σ_s², several times at once as one by one."""
    destroying = ssd.Matrix(np.array([[0.5, 0.0, 0.0], [0.0, 0.25, 0.0], [0.0, 0.0, 0.0]]))
    proc = ssd.LinearDiffusion.from_operators([None, None, destroying, None], NOISE)
    x_t, clean, noise = np.random.default_rng(10).standard_normal((3, 2, 3))
    for eta in (0.0, 0.5):
        law = proc.posterior(x_t, clean, np.array([1, 2]), np.array([3, 4]), eta=eta)
        for k, (s, t) in enumerate(((1, 3), (2, 4))):
            alone = proc.posterior(x_t[k], clean[k], s, t, eta=eta)
            np.testing.assert_allclose(law.mean[k], alone.mean, atol=16 * EPS)
            np.testing.assert_allclose(law.sample(noise)[k], alone.sample(noise[k]), atol=16 * EPS)
            drawn = alone.covariance(np.array([0.0, 0.0, 1.0]))
            np.testing.assert_allclose(drawn, [0.0, 0.0, proc.sigma(s) ** 2], atol=16 * EPS)


def test_one_time_beside_several() -> None:
    x = np.random.default_rng(11).standard_normal((2, 3))
    proc = ssd.LinearDiffusion.identity((3,), NOISE)
    law = proc.transition(x, 1, np.array([2, 4]))
    for k, t in enumerate((2, 4)):
        np.testing.assert_allclose(law.mean[k], proc.transition(x[k], 1, t).mean, atol=8 * EPS)
    law = proc.posterior(x, x, np.array([1, 2]), 4)
    for k, s in enumerate((1, 2)):
        np.testing.assert_allclose(law.mean[k], proc.posterior(x[k], x[k], s, 4).mean, atol=8 * EPS)


def test_batches_of_a_posterior_broadcast() -> None:
    proc = ssd.LinearDiffusion.identity((4,), NOISE)
    rng = np.random.default_rng(12)
    x_t, clean = rng.standard_normal((2, 1, 4)), rng.standard_normal((3, 4))
    law = proc.posterior(x_t, clean, 1, 2)
    assert law.mean.shape == (2, 3, 4)
    drawn = law.sample(np.zeros((2, 3, 4)))
    for i, j in np.ndindex(2, 3):
        np.testing.assert_allclose(drawn[i, j], proc.posterior(x_t[i, 0], clean[j], 1, 2).mean, atol=8 * EPS)


def test_singular_values_of_long_axes_far_apart() -> None:
    """The quick way through the Gram matrix squares the condition number; it must not be taken where that loses digits."""
    rng = np.random.default_rng(13)
    u, v = (np.linalg.qr(rng.standard_normal((192, 192)))[0] for _ in range(2))
    values = np.logspace(0, -7, 192)
    found = ssd.Separable([(u * values) @ v.T]).singular_values()
    np.testing.assert_allclose(np.sort(np.asarray(found).reshape(-1))[::-1], values, rtol=1e-7)


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e8])
def test_admissibility_has_no_unit(size: float) -> None:
    operator = ssd.Matrix(np.array([[0.5, 0.1], [0.0, 0.5]]))
    m, at_s = operator.as_matrix(), size * np.array([[1.0, 0.3], [0.3, 2.0]])
    carried = m @ at_s @ m.T
    laws = [ssd.Covariance.dense(at_s), ssd.Covariance.dense(carried * (1 - 1e-3))]
    for call in (
        lambda: ssd.general_transition(np.zeros(2), operator, *laws),
        lambda: ssd.general_posterior(np.zeros(2), np.zeros(2), operator, *laws),
    ):
        with pytest.raises(ssd.InadmissibleProcess):
            call()
    enough = ssd.Covariance.dense(carried + 0.1 * size * np.eye(2))
    law = ssd.general_transition(np.zeros(2), operator, laws[0], enough)
    np.testing.assert_allclose(law.covariance.as_matrix(), 0.1 * size * np.eye(2), rtol=1e-12, atol=16 * EPS * size)


@pytest.mark.parametrize("c", [1e-9, 1e9])
def test_transitions_scale_with_their_noise(c: float) -> None:
    sigma = np.array([0.0, 0.5, 1.0, 2.0])
    levels = ssd.ResolutionSchedule.thresholds([2])
    laws = [
        ssd.LinearDiffusion.resize((4,), ssd.NoiseSchedule(np.ones(4), k * sigma), levels, kernel="bicubic")
        .transition(np.zeros(4), 1, 2)
        .covariance.as_matrix()
        for k in (1.0, c)
    ]
    np.testing.assert_allclose(laws[1] / c**2, laws[0], rtol=1e-12, atol=1e-13)


def test_arrays_of_entries_that_are_not_finite_or_whole_are_refused() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(ValueError, match="NaN or infinite"):
        ssd.Matrix(sparse.csr_array(np.array([[1.0, math.nan], [0.0, 2.0]])))
    for wrong in ((2, 2.5), (2.5, 2), (True, 2)):
        with pytest.raises((TypeError, ValueError)):
            ssd.Identity(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must not be zero"):
        ssd.Identity((2,)) / 0
    np.testing.assert_array_equal((ssd.Identity((2,)) / 1)(np.ones(2)), [1.0, 1.0])


def test_as_few_steps_as_levels_and_as_few_images_as_two() -> None:
    noise, law = ssd.NoiseSchedule.from_log_snr(np.linspace(6, -6, 8)), ssd.Covariance.cosine([1.0, 0.1, 0.01, 0.001])
    assert ssd.oracle.design_levels((4,), noise, law, 2, 2, 10.0).levels is not None
    with pytest.raises(ValueError, match="need at least 3 steps"):
        ssd.oracle.design_levels((4,), noise, law, 3, 2, 10.0)
    fitted = ssd.oracle.fit(np.array([[[0.0, 2.0]], [[4.0, 6.0]]]))
    np.testing.assert_allclose(fitted.mean, [[2.0, 4.0]], atol=1e-12)


OPERATORS = {
    "up": ssd.Resize((3,), (6,), "bicubic"),
    "down": ssd.Resize((6,), (3,), "bicubic"),
    "half": -0.5 * ssd.Identity((6,)),
    "blur": ssd.Blur((6,), 1.0),
    "rank one": ssd.Matrix(np.outer([1.0, 2.0], [1.0, 0.0, 1.0])),
    "negative sum": -0.5 * ssd.Blur((6,), 1.0) + -0.25 * ssd.Blur((6,), 0.5),
    "sum with the identity": -0.5 * ssd.Identity((6,)) + -0.25 * ssd.Blur((6,), 0.5),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_decompositions_rebuild_and_covariances_pass_through(name: str) -> None:
    op = OPERATORS[name]
    m = op.as_matrix()
    d = op.decomposition()
    assert d is not None
    np.testing.assert_allclose(d.lift(np, np.eye(m.shape[0]), d.singular_values), m, atol=32 * EPS)
    np.testing.assert_allclose(
        d.scaled(-2.0).lift(np, np.eye(m.shape[0]), 2 * d.singular_values), -2 * m, atol=64 * EPS
    )
    n = m.shape[1]
    root = np.random.default_rng(14).standard_normal((n, n))
    for law in (
        ssd.Covariance.isotropic(n, 3.0),
        ssd.Covariance.cosine(1.0 + np.arange(n)),
        ssd.Covariance.dense(root @ root.T),
        ssd.Covariance.of_modes(op, np.ones(np.shape(d.singular_values)), 0.5),
    ):
        c = law.as_matrix()
        np.testing.assert_allclose(
            law.through(op).as_matrix(), m @ c @ m.T, atol=256 * EPS * np.abs(c).max() * np.abs(m).max() ** 2
        )


def test_a_law_without_variance_outside_its_modes_is_that_of_a_point() -> None:
    flat = ssd.Matrix(np.full((1, 4), 0.5))
    assert ssd.Covariance.of_modes(flat, [0.0], 0.0).is_zero
    assert not ssd.Covariance.of_modes(flat, [0.0], 1.0).is_zero
    assert not ssd.Covariance.of_modes(flat, [1.0], 0.0).is_zero
    assert ssd.Covariance.isotropic(4, 0.0).is_zero


def test_no_step_draws_more_than_it_needs() -> None:
    chain = ssd.LinearDiffusion.resize((4,), NOISE, ssd.ResolutionSchedule.thresholds([3]))
    table = {(1.0, False): [0, 1, 1, 1], (0.0, False): [0, 0, 1, 0], (0.0, True): [0, 1, 1, 1]}
    for (eta, moments), expected in table.items():
        sampler = ssd.sampling.Sampler(eta=eta)
        assert [sampler.takes_noise(chain, k, moments) for k in (1, 2, 3, 4)] == [bool(e) for e in expected]


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_functions_by_lanczos_scale_with_the_operator(scale: float) -> None:
    """√(c² G) = c √G, for a batch of an eigenvector, which is exact at once, and of vectors that are not."""
    n = 60
    values = np.linspace(0.02, 1.0, n)
    x = np.concatenate([np.eye(n)[:1], np.random.default_rng(15).standard_normal((2, n)), np.eye(n)[-1:]])
    found = lanczos_function(np, lambda v: v * (scale * values) ** 2, np.sqrt, x, (n,), "test")
    np.testing.assert_allclose(found / scale, values * x, atol=1e-9)


def test_betas_act_evenly_between_whole_times() -> None:
    for noise in (ssd.NoiseSchedule.linear(30), ssd.NoiseSchedule.from_betas([0.1, 0.3, 0.5])):
        t = np.arange(noise.steps) + 0.25
        alpha, sigma = noise.at(t)
        np.testing.assert_allclose(alpha, noise.alpha[:-1] ** 0.75 * noise.alpha[1:] ** 0.25, rtol=1e-12)
        np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=1e-12)
    interpolated = ssd.NoiseSchedule.from_log_snr([4.0, 2.0, -1.0])
    alpha, sigma = interpolated.at(np.array([1.5, 2.25]))
    np.testing.assert_allclose(2 * np.log(alpha / sigma), [3.0, 1.25], atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_edm_noise_at_real_times(steps: int) -> None:
    noise = ssd.NoiseSchedule.edm(steps, sigma_min=0.01, sigma_max=50.0, rho=5.0)
    t = np.linspace(1.0, steps, 7) if steps > 1 else np.array([1.0])
    part = (t - 1) / max(steps - 1, 1)
    low, high = 0.01**0.2, 50.0**0.2
    expected = (low + part * (high - low)) ** 5 if steps > 1 else noise.sigma[1:]
    np.testing.assert_allclose(noise.at(t)[1], expected, rtol=1e-12)
    assert noise.sigma[-1] == pytest.approx(50.0 if steps > 1 else noise.sigma[1], rel=1e-12)


def test_what_the_library_holds_is_read_only() -> None:
    from ssdcore._arrays import Constant

    own = np.ones(3)
    constant = Constant(own)
    own[0] = 5.0
    assert not constant.value.flags.writeable
    np.testing.assert_array_equal(constant.value, 1.0)


def test_sums_of_our_own_arrays() -> None:
    jnp = pytest.importorskip("jax.numpy")
    from ssdcore._arrays import add_scaled, add_to

    for function in (add_scaled, add_to):
        for make in (np.array, jnp.asarray):
            found = function(np, make([1.0, 2.0]), 3.0, make([4.0, 5.0]))
            np.testing.assert_allclose(found, [13.0, 17.0])


def test_times_outside_are_refused_wherever_they_stand() -> None:
    proc = ssd.LinearDiffusion.identity((2,), NOISE)
    for times in ([3, -1], [-1, 3], [2, 5], [5, 2]):
        with pytest.raises(ValueError, match="outside the process"):
            proc.add_noise(np.ones((2, 2)), np.ones((2, 2)), np.array(times))


def test_the_matrix_of_one_item_and_of_several() -> None:
    proc = ssd.LinearDiffusion.blur((4,), NOISE, [0.0, 0.5, 1.0, 1.5, 2.0])
    x = np.ones((2, 4))
    one = proc.posterior(x[:1], x[:1], np.array([1]), np.array([3])).covariance
    alone = proc.posterior(x[0], x[0], 1, 3).covariance
    np.testing.assert_allclose(one.as_matrix(), alone.as_matrix(), atol=16 * EPS)
    with pytest.raises(ValueError, match="one matrix per item"):
        proc.posterior(x, x, np.array([1, 2]), np.array([3, 4])).covariance.as_matrix()


def test_a_resize_with_blur_in_two_axes() -> None:
    """Widths are in pixels of the full size: half as many of the half size, whatever the number of axes."""
    from ssdcore.degradations import BlurredResize, Chain

    down, widths = ssd.Resize((8, 8), (4, 4), "box"), [0.0, 1.0, 2.0, 3.0]
    chain = BlurredResize(Chain((8, 8), [None, down, None]), widths)
    first, second = ssd.Blur((8, 8), 1.0), ssd.Blur((8, 8), math.sqrt(3.0))
    last = ssd.Blur((4, 4), 0.5 * math.sqrt(5.0))
    x = np.random.default_rng(16).standard_normal((8, 8))
    np.testing.assert_allclose(chain.between(0, 1)(x), first(x), atol=64 * EPS)
    np.testing.assert_allclose(chain.between(0, 2)(x), down(second(first(x))), atol=64 * EPS)
    np.testing.assert_allclose(chain.between(0, 3)(x), last(down(second(first(x)))), atol=64 * EPS)
    np.testing.assert_allclose(chain.step_norms(), [chain.between(t - 1, t).norm() for t in (1, 2, 3)], rtol=1e-12)
    assert not chain.widths.flags.writeable
    early = BlurredResize(Chain((8, 8), [down, None]), [0.0, 0.0, 1.0])
    np.testing.assert_allclose(early.between(0, 2)(x), ssd.Blur((4, 4), 0.5)(down(x)), atol=64 * EPS)


def test_norms_of_steps_are_one_a_step() -> None:
    widths = np.linspace(0, 3, 5)
    proc = ssd.LinearDiffusion.blur((6,), NOISE, widths)
    np.testing.assert_array_equal(proc.degradations.step_norms(), np.ones(4))
    assert len(square_chain().degradations.step_norms()) == 4


def test_what_spectra_hold_is_read_only() -> None:
    assert not ssd.Covariance.cosine(np.ones(3)).values.flags.writeable  # type: ignore[attr-defined]
    decomposition = ssd.Matrix(np.eye(2)).decomposition()
    assert decomposition is not None
    assert not decomposition.singular_values.flags.writeable


def test_defaults_of_the_exact_error() -> None:
    levels = ssd.ResolutionSchedule.thresholds([3])
    proc = ssd.LinearDiffusion.resize((4,), NOISE, levels)
    law = ssd.Covariance.cosine([2.0, 0.5, 0.25, 0.125])
    first, second = (ssd.oracle.sampler_error(proc, law, (1, 2, 3, 4), 0.0, order=k) for k in (1, 2))
    assert first != second
    assert ssd.oracle.sampler_error(proc, law, (1, 2, 3, 4), 0.0) == first
    assert ssd.oracle.sampler_error(proc, law) == ssd.oracle.sampler_error(proc, law, (1, 2, 3, 4), 1.0)


def test_sums_of_both_signs_are_no_decomposition_of_one_sign() -> None:
    for op in (ssd.Blur((6,), 1.0) + -0.5 * ssd.Identity((6,)), -1.0 * ssd.Blur((6,), 1.0) + 0.5 * ssd.Identity((6,))):
        m = op.as_matrix()
        assert np.linalg.eigvalsh(m)[0] < 0 < np.linalg.eigvalsh(m)[-1]
        d = op.decomposition()
        assert d is not None
        np.testing.assert_allclose(d.lift(np, np.eye(6), d.singular_values), m, atol=64 * EPS)


def test_functions_of_operators_as_operators() -> None:
    """f(MᵀM) of one sign, of the other and of both, where M has a null space, too."""
    m = np.random.default_rng(17).standard_normal((2, 4))
    g = m.T @ m
    values, vectors = np.linalg.eigh(g)
    for f in (lambda e: 1 / (1 + e), lambda e: -1 - e, lambda e: e - 0.5):
        op = ssd.Matrix(m).gram_operator(f)
        expected = (vectors * f(np.maximum(values, 0.0))) @ vectors.T
        np.testing.assert_allclose(op.as_matrix(), expected, atol=1e-13)
        np.testing.assert_allclose(op(np.eye(4)), expected, atol=1e-13)
        assert op.norm() == pytest.approx(np.linalg.norm(expected, 2), rel=1e-12)
        found = op.decomposition()
        if found is not None:
            np.testing.assert_allclose(found.lift(np, np.eye(4), found.singular_values), expected, atol=1e-13)


def test_norms_by_lanczos_are_those_of_matrices() -> None:
    from ssdcore._arrays import ArrayKind
    from ssdcore.spectral import lanczos_norm

    for n in (2, 3, 4, 7):
        values = 1 - 1e-3 * np.arange(n)
        found = lanczos_norm(ArrayKind(np, np.dtype(np.float64)), lambda v, d=values: v * d**2, (n,), "test")
        assert found == pytest.approx(1.0, rel=1e-7)


def test_long_axes_and_their_transposes_rebuild() -> None:
    for op in (
        ssd.Resize((390,), (195,), "box"),
        ssd.Resize((195,), (390,), "box"),
        ssd.Resize((388,), (194,), "box").T,
    ):
        m, d = op.as_matrix(), op.decomposition()
        assert d is not None
        np.testing.assert_allclose(d.lift(np, np.eye(m.shape[0]), d.singular_values), m, atol=1e-12)
        x = np.random.default_rng(18).standard_normal(m.shape[1])
        np.testing.assert_allclose(op(x), m @ x, atol=1e-12)


def test_products_and_sums_of_long_bands() -> None:
    a, b = ssd.Resize((400,), (200,), "bilinear"), ssd.Resize((800,), (400,), "bilinear")
    product = a @ b
    np.testing.assert_allclose(product.as_matrix(), a.as_matrix() @ b.as_matrix(), atol=64 * EPS)
    np.testing.assert_allclose(product.T.as_matrix(), product.as_matrix().T, atol=64 * EPS)
    total = ssd.Separable([np.eye(4)]) + ssd.Separable([np.diag([1.0, 2.0, 3.0, 4.0])])
    np.testing.assert_allclose(total.as_matrix(), np.diag([2.0, 3.0, 4.0, 5.0]), atol=8 * EPS)


@pytest.mark.parametrize("boundary", ["reflect", "periodic"])
@pytest.mark.parametrize("n", [512, 513, 2048])
def test_long_blurs_have_the_response_of_a_gaussian(boundary: str, n: int) -> None:
    """exp(−σ²ω²/2) on each cosine or wave, by a fast transform or not, in float64 and float32."""
    blur, sigma, i = ssd.Blur((n,), 3.0, boundary), 3.0, np.arange(n)
    for k in (0, 1, 7, n // 3, n // 2 - 5, n // 2):
        omega = np.pi * k / n if boundary == "reflect" else 2 * np.pi * k / n
        wave = np.cos(omega * (i + 0.5)) if boundary == "reflect" else np.cos(omega * i) + 0.5 * np.sin(omega * i)
        expected = np.exp(-(sigma**2) * omega**2 / 2) * wave
        np.testing.assert_allclose(blur(wave), expected, atol=1e-11)
        np.testing.assert_allclose(
            blur(np.stack([wave, 2 * wave]).astype(np.float32)), [expected, 2 * expected], atol=1e-4
        )
        matrix = np.stack([wave, -wave], axis=1)
        np.testing.assert_allclose(ssd.Blur((n, 2), (3.0, 0.0), boundary)(matrix)[:, 0], expected, atol=1e-11)


def test_variances_between_times_without_signal_change_keep_alpha() -> None:
    exploding = ssd.NoiseSchedule(np.ones(4), np.array([0.0, 0.5, 2.0, 8.0]))
    alpha, sigma = exploding.at(np.array([1.5, 2.5]))
    np.testing.assert_array_equal(alpha, 1.0)
    np.testing.assert_allclose(sigma, [1.0, 4.0], rtol=1e-12)
    assert ssd.NoiseSchedule.linear().steps == 1000


def test_covariances_through_operators_of_other_modes() -> None:
    rng = np.random.default_rng(19)
    m, root = rng.standard_normal((3, 4)), rng.standard_normal((4, 4))
    c = root @ root.T
    found = ssd.Covariance.dense(c).through(ssd.Matrix(m)).as_matrix()
    np.testing.assert_allclose(found, m @ c @ m.T, atol=1e-12)
    plane = ssd.Covariance.cosine(1.0 + np.arange(4.0).reshape(2, 2))
    found = plane.through(ssd.Matrix(m, (2, 2), (3,))).as_matrix()
    np.testing.assert_allclose(found, m @ plane.as_matrix() @ m.T, atol=1e-12)


def test_two_changes_in_a_row_extrapolate_nothing() -> None:
    from ssdcore.multistep import extrapolated

    proc = square_chain()
    now, before = np.array([1.0, 2.0, 3.0]), np.array([0.5, -1.0, 4.0])
    np.testing.assert_array_equal(extrapolated(proc, 1, 2, 3, now, before), now)


def test_no_noise_at_all_is_admissible() -> None:
    nothing = ssd.Covariance.isotropic(2, 0.0)
    law = ssd.general_transition(np.ones(2), ssd.Matrix(0.5 * np.eye(2)), nothing, nothing)
    np.testing.assert_array_equal(law.covariance.as_matrix(), np.zeros((2, 2)))
    np.testing.assert_array_equal(law.mean, [0.5, 0.5])


def test_defaults_are_the_documented_ones() -> None:
    def default(function: object, name: str) -> object:
        return inspect.signature(function).parameters[name].default  # type: ignore[arg-type]

    assert default(ssd.oracle.design_levels, "levels") == 4
    assert default(ssd.oracle.level_information, "matched") is True
    assert default(ssd.oracle.level_information, "factor") == 2


def test_what_is_without_signal_or_variance_makes_no_warning() -> None:
    flow = ssd.LinearDiffusion.identity((2,), ssd.NoiseSchedule.rectified_flow(4))
    assert flow.log_snr(4) == -math.inf
    noise = ssd.NoiseSchedule(np.array([1.0, 0.5, 0.0, 0.0]), np.array([0.0, 0.5, 1.0, 1.0]))
    proc = ssd.LinearDiffusion.identity((2,), noise)
    flat = ssd.Matrix(np.full((1, 4), 0.5))
    with np.errstate(all="raise"):
        assert ssd.Covariance.of_modes(flat, [3.0], 0.0).log_determinant() == -math.inf
        law = proc.posterior(np.ones((2, 2)), np.ones((2, 2)), np.array([1, 2]), np.array([3, 3]))
    np.testing.assert_allclose(law.mean[1], proc.posterior(np.ones(2), np.ones(2), 2, 3).mean, atol=8 * EPS)


def test_functions_of_the_other_sign_keep_their_modes() -> None:
    op = ssd.Matrix(np.random.default_rng(20).standard_normal((4, 4))).gram_operator(lambda e: -1 - e)
    assert op.decomposition() is not None


# ---- long axes


def _reconstructed(matrix: np.ndarray) -> np.ndarray:
    svd = AxisMatrix(matrix).svd
    assert (np.diff(svd.s) <= 64 * EPS).all()
    return svd.u.value * svd.s @ svd.v.value.T


def test_a_well_conditioned_matrix_is_decomposed_whatever_its_form() -> None:
    """Square, wide, tall, and of even size unchanged by reversal: the quick ways, by the smaller Gram matrix."""
    n = 192
    values = np.linspace(1.0, 0.5, n)
    left, right = (np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0] for seed in (0, 1))
    square = left * values @ right.T
    tall = np.concatenate([square, square])
    periodic = np.eye(n) + 0.01 * np.cos(2 * np.pi * np.subtract.outer(np.arange(n), np.arange(n)) / n)
    for matrix in (square, tall, tall.T, periodic):
        np.testing.assert_allclose(_reconstructed(matrix), matrix, atol=64 * n * EPS)


@pytest.mark.parametrize("boundary", ["reflect", "periodic"])
@pytest.mark.parametrize("n", [1024, 1025])
def test_cosines_and_sines_are_the_modes_of_a_long_blur(n: int, boundary: str) -> None:
    op, j = ssd.Blur((n,), 2.0, boundary), np.arange(n)
    for k in (0, 1, n // 3 - 1, n // 3 + 1, n // 2 - 1, n // 2):
        if boundary == "reflect":
            waves, omega = [np.cos(np.pi * (j + 0.5) * k / n)], np.pi * k / n
        else:
            waves = [np.cos(2 * np.pi * j * k / n), np.sin(2 * np.pi * j * k / n)]
            omega = 2 * np.pi * k / n
        for wave in waves:
            np.testing.assert_allclose(op(wave), math.exp(-2 * omega**2) * wave, atol=64 * EPS * math.sqrt(n))


def test_long_resizes_compose_in_their_order_and_equal_themselves() -> None:
    outer, inner = ssd.Resize((1024,), (512,), "bicubic"), ssd.Resize((1536,), (1024,), "lanczos3")
    both, again = outer @ inner, ssd.Resize((1024,), (512,), "bicubic") @ inner
    x = np.random.default_rng(0).standard_normal(1536)
    np.testing.assert_allclose(both(x), outer(inner(x)), atol=64 * EPS)
    assert both == again
    assert both != outer @ ssd.Resize((1536,), (1024,), "bicubic")


# ---- what is kept, and numbers of other libraries


def test_a_memo_finds_what_it_shelved_of_numbers_and_of_objects() -> None:
    memo, thing = Memo(), object()
    for key in ((1, 2.5), (1, thing)):
        made = object()
        name = memo.shelve(memo.entry(math.hypot, *key), made)
        assert memo.kept(name) is made


def test_numbers_in_arrays_of_any_library_are_numbers() -> None:
    torch, jnp = pytest.importorskip("torch"), pytest.importorskip("jax.numpy")
    x = np.random.default_rng(0).standard_normal(8)
    for width in (np.array(1.5), np.float32(1.5), torch.tensor(1.5), jnp.asarray(1.5)):
        np.testing.assert_array_equal(ssd.Blur((8,), width)(x), ssd.Blur((8,), 1.5)(x))
    with pytest.raises(TypeError, match="requires a gradient"):
        ssd.Blur((8,), torch.tensor(1.5, requires_grad=True))


@pytest.mark.parametrize("times", [[1, 5], [0, -1], [[1, 2], [3, 9]]])
def test_any_time_of_an_array_outside_the_process_is_refused(times: list[int]) -> None:
    with pytest.raises(ValueError, match="outside the process"):
        square_chain().alpha(np.array(times))


# ---- noise


def test_two_times_without_signal_may_stand_at_the_end() -> None:
    """Without a division of zero by zero on the way."""
    noise = ssd.NoiseSchedule([1.0, 0.5, 0.0, 0.0], [0.0, 0.5, 1.0, 1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        proc = ssd.LinearDiffusion.identity((2,), noise)
    np.testing.assert_array_equal(proc.transition(np.ones(2), 2, 3).mean, np.zeros(2))


def test_a_schedule_shows_the_noise_of_its_ends() -> None:
    text = repr(ssd.NoiseSchedule.from_log_snr([2 * math.log(4.0), -2 * math.log(8.0)]))
    assert "0.25" in text and "8" in text and "infinity" not in text  # noqa: PT018
    assert "infinity" in repr(ssd.NoiseSchedule.rectified_flow(4))


def test_nothing_is_extrapolated_from_a_plateau() -> None:
    """Where u → t changes nothing, a difference of predictions tells no slope."""
    noise = ssd.NoiseSchedule([1.0, 0.9, 0.8, 0.8], [0.0, 0.3, 0.6, 0.6])
    assert extrapolation_weight(ssd.LinearDiffusion.identity((2,), noise), 1, 2, 3) == 0.0


# ---- posteriors


def test_what_is_left_open_outside_the_modes_at_arrays_of_pairs() -> None:
    """A C with a rest, in the modes of the degradation: at each pair what the pair alone gives."""
    proc = ssd.LinearDiffusion.identity((4,), NOISE)
    law = ssd.Covariance.isotropic((4,), 0.3)
    x_t, clean = np.random.default_rng(2).standard_normal((2, 2, 4))
    s, t = np.array([1, 2]), np.array([2, 4])
    together = proc.posterior(x_t, clean, s, t, clean_covariance=law).covariance
    for k in range(2):
        alone = proc.posterior(x_t[k], clean[k], int(s[k]), int(t[k]), clean_covariance=law).covariance
        np.testing.assert_allclose(together(x_t)[k], alone(x_t[k]), atol=16 * EPS)


def test_one_clean_image_serves_a_batch_of_states_at_a_change_of_size() -> None:
    proc = ssd.LinearDiffusion.resize((8, 4), NOISE, ssd.ResolutionSchedule.equal(4, 2))
    rng = np.random.default_rng(4)
    t = next(t for t in range(1, 5) if proc.shape(t) != proc.shape(t - 1))
    states, clean = rng.standard_normal((5, 4, 2)), rng.standard_normal((8, 4))
    noise = rng.standard_normal((5, 8, 4))
    law = proc.posterior(states, clean, t - 1, t)
    each = [proc.posterior(x, clean, t - 1, t) for x in states]
    drawn = law.sample(noise)
    assert drawn.shape == (5, 8, 4)
    with pytest.raises(ValueError, match="noise"):
        law.sample(noise[0])  # of one image
    for k, alone in enumerate(each):
        np.testing.assert_allclose(law.mean[k], alone.mean, atol=16 * EPS)
        np.testing.assert_allclose(drawn[k], alone.sample(noise[k]), atol=16 * EPS)
    clean = rng.standard_normal((5, 8, 4))
    law = proc.posterior(states[0], clean, t - 1, t)
    np.testing.assert_allclose(
        law.sample(noise)[3], proc.posterior(states[0], clean[3], t - 1, t).sample(noise[3]), atol=16 * EPS
    )


def test_a_change_of_size_at_traced_times() -> None:
    jax = pytest.importorskip("jax")
    proc = ssd.LinearDiffusion.resize((8, 4), NOISE, ssd.ResolutionSchedule.equal(4, 2))
    t = next(t for t in range(1, 5) if proc.shape(t) != proc.shape(t - 1))
    rng = np.random.default_rng(5)
    x_t, clean = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 4, 2), (2, 8, 4)))
    pairs = np.array([t - 1] * 2), np.array([t] * 2)
    traced = jax.jit(lambda x, c, s, t: proc.posterior(x, c, s, t).mean)(x_t, clean, *pairs)
    np.testing.assert_allclose(traced, proc.posterior(x_t, clean, t - 1, t).mean, atol=32 * EPS32)


def test_a_decomposition_of_negative_functions_has_their_sign() -> None:
    op = ssd.Resize((6,), (3,))
    x = np.random.default_rng(6).standard_normal(6)
    gram = op.as_matrix().T @ op.as_matrix()
    found = op.decomposition().of_gram(lambda values: -1.0 - values)
    assert found is not None
    applied = found.input.synthesise(np, found.sign * found.singular_values * found.input.analyse(np, x))
    np.testing.assert_allclose(applied, -x - gram @ x, atol=32 * EPS)
    assert op.decomposition().of_gram(lambda values: values - values.max() / 2) is None


# ---- sampling


def test_which_steps_draw_noise() -> None:
    proc = ssd.LinearDiffusion.resize((4,), NOISE, ssd.ResolutionSchedule.equal(4, 2))
    change = next(t for t in range(1, 5) if proc.shape(t) != proc.shape(t - 1))
    assert [k for k in range(1, 5) if Sampler(0.0).takes_noise(proc, k)] == [change]
    assert [k for k in range(1, 5) if Sampler(0.0).takes_noise(proc, k, second_moments=True)] == [2, 3, 4]
    assert [k for k in range(1, 5) if Sampler(0.5).takes_noise(proc, k)] == [2, 3, 4]


def test_a_deterministic_scan_asks_for_no_noise() -> None:
    """Within a size at eta = 0 the law has none; at a change it is drawn for that step alone."""
    jax = pytest.importorskip("jax")
    noise = ssd.NoiseSchedule.linear(30)
    proc = ssd.LinearDiffusion.resize((8,), noise, ssd.ResolutionSchedule.equal(30, 2))
    asked = []

    def normal(shape):  # type: ignore[no-untyped-def]
        asked.append(shape)
        return jax.numpy.zeros(shape)

    def denoise(x, t, s):  # type: ignore[no-untyped-def]
        return (
            0.5 * x if x.shape[-1] == 8 or not isinstance(s, int) or proc.shape(s) == (4,) else jax.numpy.ones((3, 8))
        )

    ssd.sampling.sample(denoise, proc, jax.numpy.ones((3, 4)), normal, eta=0.0)
    assert asked == [(3, 8)]


@pytest.mark.parametrize("order", [1, 2])
def test_scans_of_steps_of_uneven_length(order: int) -> None:
    """The weight of each extrapolation is that of its own three times."""
    jax = pytest.importorskip("jax")
    proc = ssd.LinearDiffusion.identity((4,), ssd.NoiseSchedule.linear(40))
    times, x = (2, 5, 6, 11, 13, 20, 27, 40), np.random.default_rng(7).standard_normal((2, 4))
    expected = ssd.sampling.sample(lambda x, t, s: 0.5 * x + 0.1, proc, x, np.zeros, times, 0.0, order)
    found = ssd.sampling.sample(
        lambda x, t, s: 0.5 * x + 0.1, proc, jax.numpy.asarray(x, dtype="float32"), jax.numpy.zeros, times, 0.0, order
    )
    np.testing.assert_allclose(found, expected, atol=64 * EPS32)


def test_scans_of_covariances_that_share_no_modes_or_are_unknown_at_some_times() -> None:
    jax = pytest.importorskip("jax")
    proc = ssd.LinearDiffusion.identity((4,), ssd.NoiseSchedule.cosine(12))
    x = np.random.default_rng(8).standard_normal((2, 4))
    full = np.random.default_rng(9).standard_normal((4, 4)) / 4
    dense = ssd.Covariance.dense(full @ full.T + 0.01 * np.eye(4), (4,))
    spectral = ssd.Covariance.cosine(0.1 / (1 + np.arange(4)))
    for law in (lambda t, s: dense, lambda t, s: spectral if t % 2 else None, lambda t, s: spectral):
        expected = ssd.sampling.sample(lambda x, t, s: 0.5 * x, proc, x, np.ones, clean_covariance=law)
        found = ssd.sampling.sample(
            lambda x, t, s: 0.5 * x, proc, jax.numpy.asarray(x, dtype="float32"), jax.numpy.ones, clean_covariance=law
        )
        np.testing.assert_allclose(found, expected, atol=256 * EPS32)


# ---- placement and designs


def test_goals_are_met_from_the_noisy_end() -> None:
    """Goals 7, 4.6, 4.2, 3.8, 3.4 and 1: each in turn takes the nearest time that is free, 2 the last of them."""
    noise = ssd.NoiseSchedule.from_log_snr([10.0, 9.9, 9.8, 0.0, -9.8, -9.9, -10.0])
    assert spread_times(noise, 6, "log_snr") == (1, 2, 3, 4, 5, 7)


def test_no_single_time_of_the_best_can_be_moved_with_gain() -> None:
    """Where the last state's noise is far from 1, so that it matters where the chain starts."""
    noise, data = ssd.NoiseSchedule.edm(12), ssd.Covariance.cosine(4.0 / (1 + np.arange(4.0)) ** 2)
    proc = ssd.LinearDiffusion.identity((4,), noise)
    best = ssd.oracle.optimal_times((4,), noise, data, 3, eta=0.0)
    least = ssd.oracle.sampler_error(proc, data, best, eta=0.0)
    for k in range(2):
        low, high = (best[k - 1] if k else 0), best[k + 1]
        for t in range(low + 1, high):
            moved = [*best[:k], t, *best[k + 1 :]]
            assert ssd.oracle.sampler_error(proc, data, moved, eta=0.0) >= (1 - 2e-4) * least


@pytest.mark.parametrize(("steps", "levels"), [(3, 3), (4, 4), (4, 2), (12, 4)])
def test_a_search_starts_from_convex_shapes_at_the_times_on_or_after_theirs(steps: int, levels: int) -> None:
    grid = spread_times(ssd.NoiseSchedule.linear(100), steps)
    for gamma in (0.1, 0.5, 1.0, 3.0):
        found = _Search(steps, levels).convex(grid, 100, gamma)
        assert all(a < b for a, b in pairwise((0, *found, steps)))
        starts = ssd.ResolutionSchedule.convex(100, levels, gamma).starts
        first = [next(k for k, t in enumerate(grid) if t >= start) for start in starts]
        if all(a < b for a, b in pairwise((0, *first, steps))):  # nothing to push apart
            assert list(found) == first


def test_a_design_is_ancestral_unless_asked() -> None:
    for callable_ in (ssd.oracle.design_levels, ssd.oracle.Schedule):
        assert inspect.signature(callable_).parameters["order"].default == 1


def test_schedule_files_are_read_back_and_others_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    schedule = ssd.oracle.Schedule(((8, 8), (4, 4)), (50,), "linear", 100, True, "bilinear", (10, 50, 100))
    schedule.save(tmp_path / "a.json")
    assert ssd.oracle.Schedule.load(tmp_path / "a.json") == schedule
    (tmp_path / "b.json").write_text("[1]")
    with pytest.raises(ValueError, match="expected a JSON object"):
        ssd.oracle.Schedule.load(tmp_path / "b.json")
    with pytest.raises(ValueError, match="expected \\(4, 4\\)"):
        ssd.oracle.Schedule.load(tmp_path / "a.json", (4, 4))
    with pytest.raises(ValueError, match="unknown noise 'none'"):
        ssd.oracle.Schedule(((8, 8),), (), "none", 100, True, "bilinear", (100,))
