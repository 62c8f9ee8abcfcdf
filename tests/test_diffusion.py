"""The training objective: which times share a batch, and the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import ssdcore as ssd
from ssdcore_torch.denoisers.unet import FlexiUNet, FlexiUNetConfig, forward_flops
from ssdcore_torch.diffusion import Batch, Objective, equal_cost_repeats


def process(matched: bool = True) -> ssd.LinearDiffusion:
    levels = ssd.ResolutionSchedule.thresholds([13, 31], steps=40)
    return ssd.LinearDiffusion.resize((8, 8), ssd.NoiseSchedule.linear(40), levels, matched=matched)


def test_paths_partition_the_times() -> None:
    proc = process()
    paths = Objective(proc).paths
    assert sorted(t for path in paths for t in path.times) == list(range(1, 41))
    for path in paths:
        for t in path.times:
            assert (proc.shape(t), proc.shape(t - 1)) == (path.shape, path.target_shape)
    assert [(p.shape[0], p.target_shape[0], len(p.times)) for p in paths] == [
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
    # (8 → 8, 4 → 8, 4 → 4, 2 → 4, 2 → 2): in proportion to times × pixels, apart for those that keep the size
    biased = np.array([12 * 64, 0, 17 * 16, 0, 9 * 4]) / (12 * 64 + 17 * 16 + 9 * 4) * 0.8
    biased += np.array([0, 64, 0, 16, 0]) / 80 * 0.2
    np.testing.assert_allclose(Objective(process(), change_share=0.2, size_bias=1.0).path_probabilities, biased)
    half = np.array([12 * 8, 1 * 8, 17 * 4, 1 * 4, 9 * 2])
    np.testing.assert_allclose(Objective(process(), size_bias=0.5).path_probabilities, half / half.sum())
    with pytest.raises(ValueError, match="size_bias: expected at least 0, got -1"):
        Objective(process(), size_bias=-1)
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


BLUR = ssd.LinearDiffusion.blur((8, 8), ssd.NoiseSchedule.linear(40), np.linspace(0, 2, 41))
ONE_LEVEL = ssd.LinearDiffusion.identity((8, 8), ssd.NoiseSchedule.linear(40))


@pytest.mark.parametrize("proc", [process(), process(matched=False), ONE_LEVEL, BLUR])
def test_drawing_by_density_changes_the_draw_and_not_the_loss(proc: ssd.LinearDiffusion) -> None:
    """For any losses of the times, the mean weighted loss is that of uniform times, path by path."""
    uniform, density = (
        Objective(proc, weighting="edm", size_bias=0.5, change_share=0.2, time_sampling=how)
        for how in ("uniform", "density")
    )
    np.testing.assert_array_equal(density.path_probabilities, uniform.path_probabilities)
    losses = np.random.default_rng(0).exponential(size=proc.steps + 1)
    count = 50_000  # strata, each of which one time fills but for few: the mean is that of the probabilities
    for path in proc.paths:
        times = np.array(path.times)
        drawn = density.draw(count, seed=1, step=2, path=path).times
        weight = density.rows(drawn, torch.device("cpu"))[3].numpy()
        wanted = (uniform.rows(times, torch.device("cpu"))[3].numpy() * losses[times]).mean()
        rare = 2 * len(times) / count * np.abs(weight * losses[drawn]).max()
        assert (weight * losses[drawn]).mean() == pytest.approx(wanted, rel=1e-5, abs=rare)
    full = density.draw(count, seed=1, step=2, path=proc.paths[0]).times
    log_noise = np.array([np.log(proc.sigma(int(t)) / proc.alpha(int(t))) for t in full])
    assert log_noise.std() < 1.4  # EDM's 1.2, cut off at both ends; of uniform times of one level it is 1.8


@pytest.mark.parametrize("repeats", [1, 3])
def test_each_batch_is_spread_over_the_density(repeats: int) -> None:
    """Every 1/B of the probability has one of the B times, and a mean over batches no less than independent draws'."""
    objective = Objective(ONE_LEVEL, weighting="edm", repeats=(repeats,), time_sampling="density")
    table = objective.rows(np.arange(1, 41), torch.device("cpu"))
    density = Objective(ONE_LEVEL, weighting="edm").rows(np.arange(1, 41), torch.device("cpu"))[3] / table[3]
    ends = np.cumsum(density.numpy()) / density.sum().item()
    counts = np.zeros(40)
    for step in range(400):
        batch = objective.draw(8, seed=3, step=step)
        assert batch.times.shape == ((8,) if repeats == 1 else (8, repeats))
        times = np.sort(batch.times.ravel())
        strata = np.arange(8 * repeats) / (8 * repeats)
        assert (ends[times - 1] >= strata - 1e-6).all()
        assert (np.append(0.0, ends)[times - 1] <= strata + 1 / (8 * repeats) + 1e-6).all()
        if repeats > 1:
            assert (np.ptp(batch.times, axis=1) > 0).all()  # an image has times from all over the path
        counts += np.bincount(batch.times.ravel() - 1, minlength=40)
    share = density.numpy() / density.sum().item()
    assert np.abs(counts / counts.sum() - share).max() < 0.015  # three standard deviations
    np.testing.assert_array_equal(objective.draw(8, seed=3, step=9).times, objective.draw(8, seed=3, step=9).times)


def test_only_edm_has_a_density_of_times() -> None:
    with pytest.raises(ValueError, match="'density' draws by the density of the weighting 'edm', and 'min_snr' has"):
        Objective(process(), time_sampling="density")
    with pytest.raises(ValueError, match="time_sampling: expected 'uniform' or 'density', got 'even'"):
        Objective(process(), weighting="edm", time_sampling="even")  # type: ignore[arg-type]


def test_a_part_of_a_batch() -> None:
    batch = Objective(process()).draw(16, seed=1, step=0)
    parts = [batch[0:4], batch[4:16]]
    assert [len(part) for part in parts] == [4, 12]
    assert {part.path for part in parts} == {batch.path}
    np.testing.assert_array_equal(np.concatenate([part.times for part in parts]), batch.times)


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
        noise = torch.randn(4, 3, *batch.path.shape, generator=generator, dtype=torch.float64)
        calls: list[tuple[Tensor, Tensor, int]] = []

        def net(x: Tensor, t: Tensor, out_level: int, calls: list = calls, batch=batch) -> Tensor:
            calls.append((x, t, out_level))
            return torch.full((4, 3, *batch.path.target_shape), 0.25, dtype=x.dtype)

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
        seen.add((*batch.path.shape, *batch.path.target_shape))
    assert len(seen) == 5


class TimesLabel:
    """Predicts 0.1 t, and 1 more for label 1: what a network is told shows in its loss."""

    def __init__(self, sizes: list[tuple[int, ...]]) -> None:
        self.sizes = sizes

    def __call__(self, x: Tensor, t: Tensor, out_level: int, label: Tensor | None = None) -> Tensor:
        value = 0.1 * t if label is None else 0.1 * t + label
        return value.view(-1, 1, 1, 1).expand(len(x), 3, *self.sizes[out_level])


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_slices_of_a_batch_have_the_losses_of_the_whole() -> None:
    """With several times an image and labels, too: what accumulation and several processes rely on."""
    proc = process()
    objective = Objective(proc, repeats=(1, 2, 3, 4, 5))
    net, x0, labels = TimesLabel([(8, 8), (4, 4), (2, 2)]), images(6), torch.tensor([0, 1, 0, 1, 1, 0])
    seen = set()
    for step in range(60):
        batch = objective.draw(6, seed=2, step=step)
        number = objective.paths.index(batch.path)
        assert batch.times.shape == ((6,) if number == 0 else (6, number + 1))
        noise = torch.randn(batch.noise_shape(3), generator=torch.Generator().manual_seed(step))
        level = net.sizes.index(batch.path.target_shape)
        whole = objective.losses(net, x0, batch, noise, level, labels)
        assert whole.shape == batch.times.shape
        parts = [
            objective.losses(net, x0[part], batch[part], noise[part], level, labels[part])
            for part in (slice(0, 1), slice(1, 4), slice(4, 6))
        ]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-5)
        mean = objective(net, x0, batch, noise, level, labels)
        assert float(mean) == pytest.approx(float(whole.mean()), rel=1e-6)
        if whole.ndim == 2:  # each repeat is what an image of its own would have
            for k in range(whole.shape[1]):
                one = Batch(batch.path, batch.times[:, k])
                alone = objective.losses(net, x0, one, noise[:, k], level, labels)
                torch.testing.assert_close(alone, whole[:, k], rtol=1e-5, atol=1e-5)
        without = objective.losses(net, x0, batch, noise, level)
        assert (without != whole).view(6, -1).any(1).tolist() == [bool(n) for n in labels]
        seen.add(number)
    assert seen == set(range(5))


def test_a_step_takes_low_levels_more_often_at_equal_cost() -> None:
    proc = process()
    config = FlexiUNetConfig(((8, 8), (4, 4), (2, 2)), base_channels=32, channel_multipliers=(1, 1, 1))
    repeats = equal_cost_repeats(proc, FlexiUNet(config))
    levels = [(config.level_sizes.index(p.shape), config.level_sizes.index(p.target_shape)) for p in proc.paths]
    full = forward_flops(config, 0)
    for repeat, (level, out_level) in zip(repeats, levels):
        cost = forward_flops(config, level, out_level)
        assert repeat == 1 or full / 2 < repeat * cost <= full
    assert repeats[0] == 1
    assert repeats[-1] > 3
    drawn = [Objective(proc, repeats=repeats).draw(4, seed=0, step=step) for step in range(20)]
    assert {batch.path for batch in drawn} == {Objective(proc).draw(4, 0, step).path for step in range(20)}


def test_the_network_is_given_full_precision_under_autocast() -> None:
    """x_t and the target are those without autocast; only the network's own arithmetic is lowered."""
    proc = process()
    objective, x0 = Objective(proc), images(4)
    batch = Objective(proc).draw(
        4, seed=0, step=next(s for s in range(99) if objective.draw(4, 0, s).path.shape == (2, 2))
    )
    noise = torch.randn(batch.noise_shape(3), generator=torch.Generator().manual_seed(1))
    inputs: list[Tensor] = []

    def net(x: Tensor, t: Tensor, out_level: int) -> Tensor:
        inputs.append(x)
        return torch.zeros_like(x)

    expected = objective(net, x0, batch, noise, 2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(net, x0, batch, noise, 2)
    assert torch.equal(inputs[0], inputs[1])
    assert torch.equal(loss, expected)


def test_wrong_shapes_are_refused() -> None:
    proc = process()
    objective, x0 = Objective(proc), images(4)
    batch = objective.draw(4, seed=0, step=0)
    noise = torch.zeros(batch.noise_shape(3))
    with pytest.raises(ValueError, match="noise: expected the shape"):
        objective(TimesLabel([]), x0, batch, noise[:3], 0)
    with pytest.raises(ValueError, match=r"labels: expected shape \(4,\), one per image, got \(3,\)"):
        objective(TimesLabel([]), x0, batch, noise, 0, torch.zeros(3, dtype=torch.int64))
    for repeats in ((1, 2), (1, 1, 0, 1, 1)):
        with pytest.raises(ValueError, match="repeats: expected a number >= 1 for each of the 5 paths"):
            Objective(proc, repeats=repeats)
