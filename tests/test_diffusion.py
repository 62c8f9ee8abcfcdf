"""The training objective: which times share a batch, and the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import ssdcore as ssd
from ssdcore_torch.diffusion import Objective


def process(matched: bool = True) -> ssd.LinearDiffusion:
    levels = ssd.ResolutionSchedule.thresholds([13, 31], steps=40)
    return ssd.LinearDiffusion.resize((8, 8), ssd.NoiseSchedule.linear(40), levels, matched=matched)


def test_paths_partition_the_times() -> None:
    proc = process()
    paths = Objective(proc).paths
    assert sorted(t for path in paths for t in path.times) == list(range(1, 41))
    for path in paths:
        for t in path.times:
            assert (proc.shape(t), proc.shape(t - 1)) == (path.size, path.out_size)
    assert [(p.size[0], p.out_size[0], len(p.times)) for p in paths] == [
        (8, 8, 12),
        (4, 8, 1),
        (4, 4, 17),
        (2, 4, 1),
        (2, 2, 9),
    ]


def test_path_probabilities() -> None:
    np.testing.assert_allclose(Objective(process()).path_probabilities, np.array([12, 1, 17, 1, 9]) / 40)
    np.testing.assert_allclose(
        Objective(process(), change_share=0.2).path_probabilities,
        [0.8 * 12 / 38, 0.1, 0.8 * 17 / 38, 0.1, 0.8 * 9 / 38],
    )
    one_level = ssd.LinearDiffusion.identity((8, 8), ssd.NoiseSchedule.linear(40))
    np.testing.assert_array_equal(Objective(one_level, change_share=0.2).path_probabilities, [1.0])


def test_draws_follow_the_probabilities_and_the_seed() -> None:
    objective = Objective(process(), change_share=0.2)
    count = 2000
    drawn = [objective.draw(3, seed=5, step=step) for step in range(count)]
    for path, p in zip(objective.paths, objective.path_probabilities):
        share = np.mean([batch.path == path for batch in drawn])
        assert abs(share - p) < 5 * np.sqrt(p * (1 - p) / count)
    times = np.concatenate([batch.times for batch in drawn if len(batch.path.times) == 12])
    assert set(times) == set(range(1, 13))
    assert all(set(batch.times) <= set(batch.path.times) for batch in drawn)
    again = objective.draw(3, seed=5, step=7)
    np.testing.assert_array_equal(again.times, drawn[7].times)
    assert any(objective.draw(3, seed=6, step=step).path != drawn[step].path for step in range(20))


def test_ranks_take_the_same_path_and_other_times() -> None:
    objective = Objective(process())
    for step in range(50):
        batches = [objective.draw(16, seed=1, step=step, rank=rank) for rank in range(3)]
        assert len({batch.path for batch in batches}) == 1
    several = [objective.draw(16, seed=1, step=0, rank=rank).times.tolist() for rank in range(3)]
    assert len({tuple(times) for times in several}) == 3


@pytest.mark.parametrize("matched", [True, False])
@pytest.mark.parametrize("pixel_share", [True, False])
def test_loss_is_the_weighted_error_of_the_marginal_draws(matched: bool, pixel_share: bool) -> None:
    proc = process(matched)
    objective = Objective(proc, snr_clamp=5.0, pixel_share=pixel_share, change_share=0.5)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(4, 3, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1
    seen: set[tuple[int, ...]] = set()
    for step in range(30):
        batch = objective.draw(4, seed=0, step=step)
        noise = torch.randn(4, 3, *batch.path.size, generator=generator, dtype=torch.float64)
        calls: list[tuple[Tensor, Tensor, int]] = []

        def net(x: Tensor, t: Tensor, out_level: int, calls: list = calls, batch=batch) -> Tensor:
            calls.append((x, t, out_level))
            return torch.full((4, 3, *batch.path.out_size), 0.25, dtype=x.dtype)

        loss = objective(net, x0, batch, noise, out_level=17)
        expected = []
        for i, t in enumerate(map(int, batch.times)):
            x_t = proc.marginal(x0[i], t).sample(noise[i])
            torch.testing.assert_close(calls[0][0][i], x_t, rtol=0, atol=1e-6)  # float32 alpha and sigma
            target = proc.clean(x0[i], t - 1)
            weight = min((proc.alpha(t) / proc.sigma(t)) ** 2, 5.0)
            if pixel_share:
                weight *= np.prod(proc.shape(t - 1)) / 64
            expected.append(weight * float((0.25 - target).square().mean()))
        assert calls[0][1].tolist() == batch.times.tolist()
        assert calls[0][2] == 17
        assert float(loss) == pytest.approx(np.mean(expected), rel=1e-5)
        seen.add((*batch.path.size, *batch.path.out_size))
    assert len(seen) == 5
