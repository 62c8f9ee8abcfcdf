"""The sampler: its times, its randomness, and its law where that is known."""

from __future__ import annotations

import copy
import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from perfect import GaussianDenoiser, frechet, output_law, power_law
from torch import Tensor

import ssdcore as ssd
from ssdcore_torch import FlexiUNet, FlexiUNetConfig, generate
from ssdcore_torch.sampling import (
    LARGEST_FITTED_PRIOR,
    PLACEMENTS,
    Placement,
    fit_moments,
    sampling_times,
    to_bytes,
    to_float,
)

SIZES = ((8, 8), (4, 4), (2, 2))


def process(steps: int = 200) -> ssd.LinearDiffusion:
    levels = ssd.ResolutionSchedule.equal(steps, 3)
    return ssd.LinearDiffusion.resize((8, 8), ssd.NoiseSchedule.linear(steps), levels, sizes=SIZES)


@pytest.fixture(scope="module")
def net() -> FlexiUNet:
    """A network with every weight random: a new one predicts zeros."""
    torch.manual_seed(0)
    config = FlexiUNetConfig(
        SIZES, base_channels=32, channel_multipliers=(1, 1, 1), blocks_per_stage=1, attention_sizes=()
    )
    made = FlexiUNet(config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.abs().max() == 0:
                parameter.normal_(std=0.1)
    return made.eval()


@pytest.fixture(scope="module")
def conditional(net: FlexiUNet) -> FlexiUNet:
    """The same for two classes, in float64, with labels that matter."""
    torch.manual_seed(1)
    made = FlexiUNet(dataclasses.replace(net.config, num_classes=2)).double()
    made.load_state_dict({**made.state_dict(), **net.state_dict()})
    with torch.no_grad():
        made.label_embedding.weight.mul_(3)
    return made.eval()


def test_times_are_even_and_pass_every_change() -> None:
    proc = process()
    changes = [t for t in range(1, 201) if proc.shape(t) != proc.shape(t - 1)]
    assert len(changes) == 2
    for steps in (3, 4, 10, 37, 199, 200):
        times = sampling_times(proc, steps)
        assert len(times) == steps
        assert list(times) == sorted(set(times))
        assert times[-1] == 200
        assert set(changes) <= set(times)
        if steps > 20:
            assert times[0] == 1
            assert max(np.diff(times)) <= 2 * 199 / (steps - 1) + 1
    one_level = ssd.LinearDiffusion.identity((8, 8), ssd.NoiseSchedule.linear(200))
    assert sampling_times(one_level, 1) == (200,)
    assert sampling_times(one_level, 5) == (1, 51, 100, 150, 200)


def test_impossible_numbers_of_steps() -> None:
    with pytest.raises(ValueError, match=r"steps = 2: .*take at least 3 steps"):
        sampling_times(process(), 2)
    for placement in ("time", "log_snr"):
        with pytest.raises(ValueError, match="steps = 201: the process has only 200 from t = 1 on"):
            sampling_times(process(), 201, placement)
        with pytest.raises(ValueError, match="steps = 197: the process has only 196 from t = 5 on"):
            sampling_times(process(), 197, placement, first=5)


@pytest.mark.parametrize(("sampler", "eta"), [("ancestral", 1.0), ("ancestral", 0.0), ("multistep", None)])
def test_samples_do_not_depend_on_the_batch(net: FlexiUNet, sampler: str, eta: float | None) -> None:
    proc, net = process(), copy.deepcopy(net).double()

    def draw(n: int, batch_size: int) -> Tensor:
        return generate(net, proc, n, 8, eta, seed=3, sampler=sampler, batch_size=batch_size, dtype=torch.float64)

    whole = draw(7, 64)
    assert whole.shape == (7, 3, 8, 8)
    assert whole.dtype == torch.float64
    assert whole.abs().max() <= 1
    # Kernels round differently for other batch sizes; an untrained network enlarges that, far from all of 1e-16 to 1e-8.
    for batch_size in (1, 3):
        torch.testing.assert_close(draw(7, batch_size), whole, rtol=0, atol=1e-8)
    torch.testing.assert_close(draw(16, 64)[:7], whole, rtol=0, atol=1e-8)
    assert (whole[0] - whole[1]).abs().mean() > 0.05


def test_the_network_is_asked_with_exact_times_in_low_precision() -> None:
    """bfloat16 has only some of the whole numbers above 256."""
    asked: list[float] = []

    def denoiser(x: Tensor, t: Tensor, out_level: int) -> Tensor:
        assert x.dtype == torch.bfloat16
        asked.extend(t.unique().tolist())
        return torch.zeros_like(x)

    proc = ssd.LinearDiffusion.identity((8, 8), ssd.NoiseSchedule.linear(1000))
    made = generate(denoiser, proc, 2, times=[3, 301, 857, 1000], channels=3, dtype=torch.bfloat16)
    assert asked == [1000, 857, 301, 3]
    assert made.dtype == torch.bfloat16


def test_as_many_channels_as_the_network_takes(net: FlexiUNet) -> None:
    grey = FlexiUNet(dataclasses.replace(net.config, in_channels=1)).eval()
    assert generate(grey, process(), 2, steps=3).shape == (2, 1, 8, 8)


def test_a_seed_gives_the_same_bits_and_another_seed_other_samples(net: FlexiUNet) -> None:
    proc = process()
    first = generate(net, proc, 4, steps=6, seed=1)
    torch.manual_seed(99)  # the global generator has no part in it
    assert torch.equal(generate(net, proc, 4, steps=6, seed=1), first)
    assert (generate(net, proc, 4, steps=6, seed=2) - first).abs().mean() > 0.05
    assert (generate(net, proc, 4, steps=6, seed=1, eta=0.0) - first).abs().mean() > 1e-3


# ---- labels and guidance


def test_samples_with_labels_and_guidance_do_not_depend_on_the_batch(conditional: FlexiUNet) -> None:
    proc, labels = process(), [0, 1, 1, 0, 2, 1, 0]

    def draw(first: int, stop: int, batch_size: int, **arguments: object) -> Tensor:
        return generate(
            conditional,
            proc,
            stop - first,
            4,
            seed=3,
            labels=labels[first:stop],
            first=first,
            batch_size=batch_size,
            dtype=torch.float64,
            **arguments,
        )

    for guidance in (1.0, 2.5):
        whole = draw(0, 7, 64, guidance=guidance)
        for batch_size in (1, 3):
            torch.testing.assert_close(draw(0, 7, batch_size, guidance=guidance), whole, rtol=0, atol=1e-8)
        shards = torch.cat([draw(0, 2, 64, guidance=guidance), draw(2, 7, 3, guidance=guidance)])
        torch.testing.assert_close(shards, whole, rtol=0, atol=1e-8)


def test_first_numbers_the_samples(net: FlexiUNet) -> None:
    proc, net = process(), copy.deepcopy(net).double()

    def draw(n: int, first: int) -> Tensor:
        return generate(net, proc, n, steps=4, seed=1, first=first, dtype=torch.float64)

    whole = draw(4, 0)
    torch.testing.assert_close(draw(2, 2), whole[2:], rtol=0, atol=1e-8)
    assert (draw(2, 0) - whole[2:]).abs().mean() > 0.05


def test_guidance_is_the_formula(conditional: FlexiUNet) -> None:
    """Every prediction of a chain, recomputed from its state with two evaluations; no second one at w = 1."""
    proc, labels, batches = process(), torch.tensor([0, 1, 1]), []
    hook = conditional.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    try:
        for w in (0.0, 1.0, 1.7):
            seen: list[tuple[int, Tensor, Tensor]] = []
            batches.clear()
            generate(
                conditional,
                proc,
                3,
                5,
                labels=labels,
                guidance=w,
                clip=False,
                dtype=torch.float64,
                on_step=lambda t, x, clean, seen=seen: seen.append((t, x, clean)),
            )
            assert batches == [3 if w == 1 else 6] * 5
            for t, x, clean in seen:
                times, level = torch.full((3,), t), SIZES.index(tuple(clean.shape[2:]))
                with torch.no_grad():
                    null, labelled = conditional(x, times, level), conditional(x, times, level, labels)
                assert (null - labelled).abs().max() > 1e-2
                torch.testing.assert_close(clean, null + w * (labelled - null), rtol=0, atol=1e-10)
    finally:
        hook.remove()


def test_one_label_for_all_and_kinds_of_labels(conditional: FlexiUNet) -> None:
    proc = process()

    def draw(labels: object) -> Tensor:
        return generate(conditional, proc, 2, 3, labels=labels, dtype=torch.float64)

    expected = draw([1, 1])
    for same in (1, np.int32(1), (1, 1), np.array([1, 1]), torch.tensor([1, 1]), torch.tensor(1, dtype=torch.int32)):
        torch.testing.assert_close(draw(same), expected, rtol=0, atol=0)
    torch.testing.assert_close(draw(None), draw(2), rtol=0, atol=0)  # 2 is the null label
    assert (draw(0) - expected).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"labels": [0, 1, 1]}, ValueError, r"one for all 2 samples or 2 of them, got the shape \(3,\)"),
        ({"labels": [0, 3]}, ValueError, r"expected labels in 0..2 \(2: no class\), got \[3\]"),
        ({"labels": -1}, ValueError, r"got \[-1, -1\]"),
        ({"labels": [0.0, 1.0]}, TypeError, "expected whole numbers, one per sample or one for all, got float64"),
        ({"labels": True}, TypeError, "got bool"),
        ({"labels": "cat"}, TypeError, "expected whole numbers"),
        ({"guidance": 2.0}, ValueError, "strengthens class labels, and none are given; add labels="),
        ({"guidance": float("nan"), "labels": 0}, ValueError, "expected a finite number >= 0"),
        ({"guidance": -0.5, "labels": 0}, ValueError, "expected a finite number >= 0"),
        ({"guidance": "2", "labels": 0}, TypeError, "guidance: expected a number, got '2'"),
        ({"first": -1}, ValueError, "first >= 0"),
    ],
)
def test_bad_labels(conditional: FlexiUNet, arguments: dict, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        generate(conditional, process(), 2, 3, **arguments)


def test_labels_and_guidance_that_a_network_cannot_take(net: FlexiUNet) -> None:
    proc = process()
    with pytest.raises(ValueError, match=r"labels: this network has no classes \(num_classes is None\)"):
        generate(net, proc, 1, 3, labels=0)
    with pytest.raises(ValueError, match="labels: this network has no classes"):
        generate(net, proc, 1, 3, labels=0, guidance=2.0)
    released = FlexiUNet(dataclasses.replace(net.config, num_classes=2, released_behaviour=True))
    with pytest.raises(ValueError, match=r'guidance: this network has no label for "no class"'):
        generate(released, proc, 1, 3, labels=0, guidance=2.0)
    with pytest.raises(ValueError, match=r"no null label; give each sample one of 0\.\.1"):
        generate(released, proc, 1, 3)
    with pytest.raises(ValueError, match=r"expected labels in 0\.\.1, got \[2\]"):
        generate(released, proc, 1, 3, labels=2)


def test_another_callable_gets_the_labels() -> None:
    proc = process()

    def net(x: Tensor, t: Tensor, out_level: int, label: Tensor) -> Tensor:
        return (label / 10).view(-1, 1, 1, 1).expand(-1, 3, *SIZES[out_level])

    images = generate(net, proc, 3, 4, labels=[5, 0, 7], channels=3, batch_size=2)
    torch.testing.assert_close(images[:, 0, 0, 0], torch.tensor([0.5, 0.0, 0.7]))
    with pytest.raises(ValueError, match='no label for "no class"'):
        generate(net, proc, 3, 4, labels=[5, 0, 7], guidance=1.5)


class ConstantImages:
    """The exact posterior mean for data c · 1, c ~ N(mean, deviation²): resizing keeps constants."""

    def __init__(self, proc: ssd.LinearDiffusion, mean: float, deviation: float) -> None:
        self.proc, self.mean, self.variance = proc, mean, deviation**2

    def __call__(self, x: Tensor, t: Tensor, out_level: int) -> Tensor:
        time = int(t[0])
        alpha, sigma = self.proc.alpha(time), self.proc.sigma(time)
        pixels = x[0, 0].numel()
        surprise = (x - alpha * self.mean).sum((2, 3), keepdim=True)
        c = self.mean + alpha * self.variance * surprise / (alpha**2 * self.variance * pixels + sigma**2)
        return c.expand(-1, -1, *SIZES[out_level])


@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_the_perfect_denoiser_gives_back_the_data(eta: float) -> None:
    proc, mean, deviation, count = process(), 0.3, 0.15, 1500
    prior = proc.prior(torch.full((1, 2, 2), mean), np.full((4, 4), deviation**2))
    images = generate(
        ConstantImages(proc, mean, deviation),
        proc,
        count,
        steps=100,
        eta=eta,
        prior=prior,
        channels=1,
        batch_size=count,
    )
    values = images[:, 0, 0, 0].double()
    torch.testing.assert_close(images, images[:, :, :1, :1].expand_as(images))
    # Four standard errors of a Gaussian sample, and 5 % for the finite number of steps.
    assert abs(float(values.mean()) - mean) < 4 * deviation / count**0.5
    assert abs(float(values.std()) / deviation - 1) < 4 / (2 * count) ** 0.5 + 0.05


def test_prior_is_where_the_chain_starts(net: FlexiUNet) -> None:
    proc = process()
    seen: list[tuple[int, Tensor, Tensor]] = []
    prior = proc.prior(torch.full((3, 2, 2), 0.5), np.zeros((12, 12)))
    for law in (None, prior):
        generate(net, proc, 5, steps=4, prior=law, on_step=lambda t, x, clean: seen.append((t, x, clean)))
    assert [t for t, _, _ in seen[:4]] == sorted(sampling_times(proc, 4), reverse=True)
    assert [x.shape[-1] for _, x, _ in seen[:4]] == [2, 2, 4, 8]
    assert [clean.shape[-1] for _, _, clean in seen[:4]] == [2, 4, 8, 8]
    shift = seen[4][1] - seen[0][1]  # the same noise about another mean
    torch.testing.assert_close(shift, torch.full_like(shift, 0.5 * proc.alpha(200)))


def test_predictions_are_clipped_and_the_module_left_as_it_was(net: FlexiUNet) -> None:
    proc = process()
    images = generate(
        lambda x, t, out_level: torch.full((len(x), 3, *SIZES[out_level]), 5.0), proc, 2, steps=5, channels=3
    )
    assert torch.equal(images, torch.ones_like(images))
    modes: list[bool] = []
    net.train()
    generate(net, proc, 1, steps=3, channels=3, on_step=lambda *_: modes.append(net.training))
    assert modes == [False] * 3
    assert net.training
    net.eval()


def test_bad_arguments(net: FlexiUNet) -> None:
    proc = process()
    for message, arguments in (
        ("n = 0", {"n": 0}),
        ("eta", {"eta": 1.5}),
        ("sampler: expected one of ancestral, multistep, got 'heun'", {"sampler": "heun"}),
        ('"multistep" is deterministic: expected 0, got 1', {"sampler": "multistep", "eta": 1.0}),
        ("placement: expected one of time, log_snr, got 'karras'", {"placement": "karras"}),
        (r"steps = 2: .*pass the 2 times where the size changes, \[68, 134\]; take at least 3 steps", {"steps": 2}),
        (r"times: .*missing \[134\]", {"times": (1, 68, 200)}),
        (r"times: .*missing \[68, 134, 200\]", {"times": (1, 60)}),
        ("increasing times", {"times": (68, 1, 134, 200)}),
    ):
        with pytest.raises(ValueError, match=message):
            generate(net, proc, **{"n": 1, **arguments})


# ---- the law of the samplers on Gaussian data


def gaussian_data(proc: ssd.LinearDiffusion) -> tuple[ssd.Covariance, np.ndarray]:
    covariance = ssd.Covariance.cosine(power_law(proc.shape(0)))
    return covariance, covariance.as_matrix()


@pytest.mark.parametrize("matched", [True, False])
@pytest.mark.parametrize(
    ("sampler", "eta", "order"),
    [("ancestral", 1.0, 1), ("ancestral", 0.5, 1), ("ancestral", 0.0, 1), ("multistep", 0.0, 2)],
)
def test_the_sampler_has_the_law_that_the_oracle_says(matched: bool, sampler: str, eta: float, order: int) -> None:
    """Two computations of one law: the real sampler's steps on tensors, and the oracle's algebra of blocks."""
    levels = ssd.ResolutionSchedule.equal(200, 3)
    proc = ssd.LinearDiffusion.resize((8, 8), ssd.NoiseSchedule.linear(200), levels, matched=matched)
    covariance, dense = gaussian_data(proc)
    for placement in PLACEMENTS:
        times = sampling_times(proc, 12, placement)
        mean, made = output_law(GaussianDenoiser(proc, dense), proc.respace(times), sampler, eta)
        law = ssd.oracle.sampler_law(proc, covariance, times, eta, order=order)
        np.testing.assert_allclose(mean, 0, atol=1e-14)
        np.testing.assert_allclose(made, law.covariance.as_matrix(), atol=1e-11)


@pytest.mark.parametrize(
    ("sampler", "eta", "order"), [("ancestral", 1.0, 1), ("ancestral", 0.0, 1), ("multistep", 0.0, 2)]
)
def test_order_of_convergence(sampler: str, eta: float, order: int) -> None:
    """Inside a level, the 2-Wasserstein distance falls as the first or second power of the step in log-SNR."""
    noise = ssd.NoiseSchedule.from_log_snr(np.linspace(14, -10, 1281))
    proc = ssd.LinearDiffusion.identity((8,), noise)
    _, dense = gaussian_data(proc)
    net = GaussianDenoiser(proc, dense)
    distances = []
    for steps in (41, 81, 161):
        chain = proc.respace(sampling_times(proc, steps, "log_snr"))
        distances.append(frechet(*output_law(net, chain, sampler, eta), np.zeros(8), dense) ** 0.5)
    slopes = [float(np.log2(coarse / fine)) for coarse, fine in pairwise(distances)]
    assert all(abs(slope - order) < 0.2 for slope in slopes), (distances, slopes)


def test_twenty_multistep_steps_are_nearer_to_the_data_than_a_hundred_ancestral() -> None:
    levels = ssd.ResolutionSchedule.equal(1000, 3)
    proc = ssd.LinearDiffusion.resize((8, 8), ssd.NoiseSchedule.linear(1000), levels)
    _, dense = gaussian_data(proc)
    net = GaussianDenoiser(proc, dense)

    def error(sampler: str, steps: int, eta: float, placement: Placement) -> float:
        chain = proc.respace(sampling_times(proc, steps, placement))
        return frechet(*output_law(net, chain, sampler, eta), np.zeros(64), dense)

    few = error("multistep", 20, 0.0, "log_snr")
    assert few < 0.2 * min(error("ancestral", 100, 1.0, placement) for placement in PLACEMENTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_empirical_denoiser_of_the_oracle_is_a_network_to_the_sampler(dtype: torch.dtype) -> None:
    """Twenty steps give back the images of a small set, each as often as the others."""
    levels = ssd.ResolutionSchedule.equal(1000, 3)
    proc = ssd.LinearDiffusion.resize((8, 8), ssd.NoiseSchedule.linear(1000), levels)
    images = np.random.default_rng(0).uniform(-1, 1, (5, 3, 8, 8)) * np.linspace(0.4, 1, 5)[:, None, None, None]
    net = ssd.oracle.EmpiricalDenoiser(proc, images)
    small = proc.clean(torch.from_numpy(images), 1000)
    centred = (small - small.mean(0)).flatten(1).numpy()
    prior = proc.prior(small.mean(0), centred.T @ centred / 5)
    count = 600
    drawn = generate(net, proc, count, 20, sampler="multistep", prior=prior, batch_size=300, dtype=dtype)
    assert drawn.dtype == dtype
    distances = torch.cdist(drawn.double().flatten(1), torch.from_numpy(images).flatten(1)).min(1)
    assert float((distances.values < 0.1).double().mean()) > 0.99
    counts = np.bincount(distances.indices.numpy(), minlength=5)
    assert ((counts - count / 5) ** 2 / (count / 5)).sum() < 18.5  # χ² of 4 degrees of freedom, 1 in 1000


def test_even_log_snr_steps() -> None:
    """Even where whole numbers allow, through the changes of size, for the mode that a resize keeps best."""
    noise = ssd.NoiseSchedule.linear(1000)
    for matched in (True, False):
        proc = ssd.LinearDiffusion.resize((32, 32), noise, ssd.ResolutionSchedule.equal(1000, 3), matched=matched)
        times = sampling_times(proc, 30, "log_snr")
        assert len(times) == 30
        assert (times[0], times[-1]) == (1, 1000)
        assert {t for t in range(1, 1001) if proc.shape(t) != proc.shape(t - 1)} <= set(times)
        kept = [2 * np.log(proc.degradation(0, t).norm() / proc.sigma(t)) for t in times]
        gaps = -np.diff(kept)
        even = (kept[0] - kept[-1]) / 29
        # Steps that one unit of time, or a move onto a change of size, makes longer or shorter are few.
        assert np.mean(np.abs(gaps / even - 1) < 0.15) > 0.6
        assert gaps.max() < 2.1 * even
    # What `time` would do instead: a step from 7 % of the noise to none.
    assert np.diff([2 * np.log(noise.sigma[t]) for t in sampling_times(proc, 30, "time")[:2]]) > 5


@pytest.mark.parametrize("matched", [True, False])
@pytest.mark.parametrize("noise", ["linear", "cosine", "rectified_flow"])
def test_few_log_snr_steps_leave_two_to_each_size_between_others(noise: str, matched: bool) -> None:
    levels = ssd.ResolutionSchedule.equal(1000, 4)
    proc = ssd.LinearDiffusion.resize((64, 64), getattr(ssd.NoiseSchedule, noise)(1000), levels, matched=matched)
    for steps in range(4, 40):
        times = sampling_times(proc, steps, "log_snr")
        assert len(times) == steps
        assert {1000, *proc.size_changes} <= set(times)
        counts = [sum(proc.shape(t) == size for t in times) for size in proc.shapes]
        if steps >= 7:  # T, three changes, a second for two sizes between others, and full size
            assert min(counts[1:3]) >= 2
            assert times[0] == 1
        changes = proc.size_changes
        if steps == 7:  # the step before it, the first after a change, is half as long as the one to the next change
            kept = {t: np.log(proc.degradation(0, t).norm() / proc.sigma(t)) for t in range(1, changes[-1] + 1)}
            for low, high in pairwise(changes):
                goal = min(range(low + 1, high), key=lambda t: abs(3 * kept[t] - kept[low] - 2 * kept[high]))
                assert abs(next(t for t in times if low < t < high) - goal) <= 1


@pytest.mark.parametrize("starts", [(700, 1300), (900, 960), (1000, 1000)])
def test_log_snr_steps_are_even_but_for_a_half_after_each_change(starts: tuple[int, int]) -> None:
    levels = ssd.ResolutionSchedule.thresholds(starts, 2000)
    proc = ssd.LinearDiffusion.resize((16, 16), ssd.NoiseSchedule.edm(2000), levels)  # whose log-SNR falls smoothly
    times = sampling_times(proc, 24, "log_snr")
    log_snr = [2 * np.log(proc.degradation(0, t).norm() / proc.sigma(t)) for t in times]
    gaps = -np.diff(log_snr) * np.where(np.isin(times[1:], proc.size_changes), 2, 1)
    for low, high in pairwise((1, *proc.size_changes, 2000)):  # each size by itself
        inside = [gap for gap, t in zip(gaps, times) if low <= t < high]
        assert np.ptp(inside) <= 0.1 * max(inside), (low, high)
    assert gaps.max() < 1.3 * np.median(gaps)  # no size is left with longer steps than the others


def test_times_can_start_later() -> None:
    proc = ssd.LinearDiffusion.resize((32, 32), ssd.NoiseSchedule.linear(1000), ssd.ResolutionSchedule.equal(1000, 3))
    for placement in PLACEMENTS:
        times = sampling_times(proc, 25, placement, first=40)
        assert len(times) == 25
        assert (times[0], times[-1]) == (40, 1000)
        assert set(proc.size_changes) <= set(times)
    assert sampling_times(proc, 961, "log_snr", first=40) == tuple(range(40, 1001))
    assert sampling_times(proc, 25, "log_snr", first=1) == sampling_times(proc, 25, "log_snr")
    with pytest.raises(ValueError, match="first: expected a time of 1 … 334, up to the first change of size, got 335"):
        sampling_times(proc, 25, first=335)
    with pytest.raises(ValueError, match="got 0"):
        sampling_times(proc, 25, first=0)


def test_given_times_are_visited() -> None:
    proc = process()
    seen: list[int] = []
    net = GaussianDenoiser(proc, 0.1 * np.eye(64))
    given = (1, 5, 68, 100, 134, 200)
    generate(net, proc, 1, channels=1, times=given, on_step=lambda t, *_: seen.append(t))
    assert tuple(reversed(seen)) == given


def test_clipping_can_be_left_out() -> None:
    proc = process()

    def far(x: Tensor, t: Tensor, out_level: int) -> Tensor:
        return torch.full((len(x), 3, *SIZES[out_level]), 5.0)

    assert generate(far, proc, 1, steps=5, channels=3).max() == 1
    assert generate(far, proc, 1, steps=5, channels=3, clip=False).max() == 5


def test_the_chain_starts_from_the_joint_law_of_all_channels(net: FlexiUNet) -> None:
    """x_T of many samples against the prior's dense covariance, whose channels are correlated."""
    proc = process()
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((12, 12))
    # Large enough for the data to show in x_T, which sees it through α_T.
    covariance = factor @ factor.T / proc.alpha(200) ** 2
    mean = torch.from_numpy(rng.standard_normal((3, 2, 2))) / proc.alpha(200)
    starts: list[Tensor] = []

    def first(t: int, x: Tensor, clean: Tensor) -> None:
        if t == proc.steps:
            starts.append(x)

    count = 4000
    generate(
        lambda x, t, out_level: torch.zeros(len(x), 3, *SIZES[out_level]),
        proc,
        count,
        steps=3,
        prior=proc.prior(mean, covariance),
        batch_size=1000,
        on_step=first,
    )
    x = torch.cat(starts).flatten(1).double().numpy()
    expected = proc.alpha(200) ** 2 * covariance + proc.sigma(200) ** 2 * np.eye(12)
    off = np.abs(expected[:4, 4:]).max()
    spread = np.sqrt(np.outer(np.diag(expected), np.diag(expected)) + expected**2) / count**0.5  # of a covariance entry
    assert off > 10 * spread.max()  # so that channels taken one by one would be seen
    assert np.abs((np.cov(x.T) - expected) / spread).max() < 4.5
    centre = proc.alpha(200) * mean.flatten().numpy()
    assert np.abs((x.mean(0) - centre) / np.sqrt(np.diag(expected) / count)).max() < 4


def test_moments_of_the_data_at_the_smallest_size() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 3, 8, 8), generator=generator, dtype=torch.uint8)
    moments = fit_moments(images, process())
    assert moments is not None
    mean, covariance = moments
    small = process().clean(to_float(images).double(), 200).flatten(1).numpy()
    np.testing.assert_allclose(mean, small.mean(0).reshape(3, 2, 2), atol=1e-6)
    np.testing.assert_allclose(covariance, np.cov(small.T, bias=True), atol=1e-6)
    large = ssd.LinearDiffusion.identity((32, 32), ssd.NoiseSchedule.linear(40))
    assert LARGEST_FITTED_PRIOR < 3 * 32 * 32
    assert fit_moments(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), large) is None


def test_bytes_round_trip() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_float(values)), values)
    assert to_bytes(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
