"""The table of published size changes: what of it has a closed form."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import ssdcore as ssd

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import size_changes

C = size_changes.data().as_matrix()
S = 400
ALPHA, SIGMA = size_changes.NOISE.alpha[S], size_changes.NOISE.sigma[S]
RIGHT = ALPHA**2 * C + SIGMA**2 * np.eye(len(C))


def test_the_step_that_is_exact_to_second_moments_leaves_the_right_law() -> None:
    np.testing.assert_allclose(size_changes.ours(C, S, full=True).law(), RIGHT, atol=1e-12)
    assert size_changes.distance(size_changes.ours(C, S).law(), RIGHT) > 1e-3


@pytest.mark.parametrize("matched", [True, False])
def test_our_jumps_are_the_library_s_posterior(matched: bool) -> None:
    shape, levels = (size_changes.SIZE,) * 2, ssd.ResolutionSchedule.thresholds([S + 1])
    proc = ssd.LinearDiffusion.resize(shape, size_changes.NOISE, levels, matched=matched)
    change = (size_changes.ours if matched else size_changes.the_paper)(C, S)
    x = np.random.default_rng(0).standard_normal((8, 8))
    r = proc.clean(np.eye(len(C)).reshape(-1, *shape), S + 1).reshape(len(C), -1).T
    signal = proc.alpha(S + 1) ** 2 * r @ C @ r.T + proc.sigma(S + 1) ** 2 * np.eye(64)
    clean = proc.alpha(S + 1) * C @ r.T @ np.linalg.solve(signal, x.ravel())
    law = proc.posterior(x, clean.reshape(shape), S, S + 1)
    np.testing.assert_allclose(change.gain @ x.ravel(), law.mean.ravel(), atol=1e-11)
    units = np.eye(len(C))[:4].reshape(4, *shape)
    np.testing.assert_allclose(change.noise[:, :4].T, law.covariance(units).reshape(4, -1), atol=1e-12)


def test_pyramid_flow_s_noise_is_the_deterministic_posterior_of_averages() -> None:
    """Its block covariance and its nearest upsampling follow from one operator at η = 0 (theory 11)."""
    pairs = ssd.Separable([np.kron(np.eye(8), np.full((1, 2), 0.5))] * 2)
    change = size_changes.pyramid_flow(C, S)
    alpha_t = 1 / (1 + SIGMA / ALPHA / 2)
    sigma_t = 1 - alpha_t
    noise = ssd.NoiseSchedule(np.array([1.0, ALPHA, alpha_t]), np.array([0.0, SIGMA, sigma_t]))
    law = ssd.LinearDiffusion.from_operators([None, pairs], noise).posterior
    x = np.random.default_rng(1).standard_normal((8, 8))
    found = law(x, np.zeros((16, 16)), 1, 2, eta=0.0)
    np.testing.assert_allclose(change.gain @ x.ravel(), found.mean.ravel(), atol=1e-12)
    np.testing.assert_allclose(change.noise, found.covariance.as_matrix(), atol=1e-12)


def test_subspace_diffusion_has_the_right_total_variance() -> None:
    law = size_changes.subspace(C, S).law()
    assert np.trace(law) == pytest.approx(np.trace(RIGHT), rel=1e-12)
    u = size_changes._pairs()
    np.testing.assert_allclose(u @ law @ u.T, u @ RIGHT @ u.T, atol=1e-12)


def test_udpm_s_new_modes_get_the_kept_modes_variance() -> None:
    change = size_changes.udpm(C, S)
    rest = np.eye(len(C)) - size_changes._pairs().T @ size_changes._pairs()
    per_mode = np.trace(rest @ change.noise) / np.trace(rest)
    assert per_mode < 0.1 * SIGMA**2  # theorem 2 gives σ_s² there


@pytest.mark.parametrize("more_noise", [2.0, 6.3])
def test_ralu_leaves_pyramid_flow_s_law_however_much_noise_it_puts_back(more_noise: float) -> None:
    """And at the least it can put back, 2, it is the same step."""
    found, expected = size_changes.block_noise(C, S, more_noise), size_changes.pyramid_flow(C, S)
    np.testing.assert_allclose(found.law(), expected.law(), atol=1e-12)
    assert np.linalg.eigvalsh(found.noise).min() > -1e-12
    if more_noise == 2:
        np.testing.assert_allclose(found.gain, expected.gain, atol=1e-12)


def test_relay_diffusion_is_right_in_all_that_its_blur_keeps() -> None:
    """The averages of patches exactly; of the rest its own process keeps little where it begins, and much later on."""
    u = size_changes._pairs()
    lacks = []
    for s in (100, 700):
        law, right = size_changes.relay(C, s).law(), size_changes.right_law(s, blurred=True)
        np.testing.assert_allclose(u @ law @ u.T, u @ right @ u.T, atol=1e-12)
        lacks.append(size_changes.distance(law, right))
    assert lacks[1] < 1e-6 < lacks[0]
