"""Resolution schedules by information: the closed form, the search, and what runs make of them."""

import inspect
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ssdcore as ssd
from ssdcore import oracle

NOISE, LONG = ssd.NoiseSchedule.cosine(12), ssd.NoiseSchedule.linear(1000)
STEPS = 9


@pytest.mark.parametrize("shape", [(16, 16), (8, 12), (9,), (4, 6, 8)])
def test_a_natural_spectrum_falls_with_the_frequency_and_has_the_pixels_deviation(shape: tuple[int, ...]) -> None:
    spectrum = oracle.natural_spectrum(shape, 2.0, 0.25)
    assert spectrum.shape == shape
    assert spectrum.mean() == pytest.approx(0.0625)  # the mean variance of a pixel: the cosine basis is orthonormal
    for axis in range(len(shape)):
        assert (np.diff(spectrum, axis=axis) < 0).all()
    # the same number of waves per pixel has the same power along every axis
    halves = [spectrum[tuple(n // 2 if k == axis else 0 for k in range(len(shape)))] for axis, n in enumerate(shape)]
    if all(n % 2 == 0 for n in shape):
        assert np.ptp(halves) <= 1e-12 * max(halves)


def test_a_white_spectrum() -> None:
    np.testing.assert_allclose(oracle.natural_spectrum((4, 6), 0.0, 0.5), 0.25, rtol=1e-15)


@pytest.mark.parametrize("matched", [True, False])
@pytest.mark.parametrize("sizes", [[(8, 12), (4, 6), (2, 3)], [(8, 12), (8, 6), (4, 6)]])
def test_band_information_is_that_of_each_size_by_itself(sizes: list[tuple[int, int]], matched: bool) -> None:
    spectrum = oracle.natural_spectrum(sizes[0]) * np.random.default_rng(0).uniform(0.5, 2, sizes[0])
    found = oracle.band_information(sizes, NOISE, spectrum, matched)
    assert found.shape == (3, 12)
    for row, (h, w) in zip(found, sizes):
        # matched noise tells as much of a mode at every size; the paper's is as large on every pixel
        share = 1 if matched else h * w / 96
        small = ssd.LinearDiffusion.identity((h, w), NOISE)
        own = oracle.mutual_information(small, ssd.Covariance.cosine(spectrum[:h, :w] * share))
        np.testing.assert_allclose(row, own, rtol=1e-10)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.floats(0.05, 20))
def test_no_schedule_that_loses_no_more_costs_less(seed: int, levels: int, nats: float) -> None:
    rng = np.random.default_rng(seed)
    lost = np.sort(rng.uniform(0, 5, (levels - 1, 12)), axis=1)[:, ::-1]  # the later a change, the less it loses
    information = np.vstack([np.zeros(12), -np.cumsum(lost, axis=0)])
    cost = np.sort(rng.uniform(0.1, 1, levels))[::-1]
    starts = oracle.information_starts(information, NOISE, nats, STEPS, cost.tolist())
    log_snr = NOISE.log_snr()
    positions = (STEPS - 1) * (log_snr[0] - log_snr) / (log_snr[0] - log_snr[-1])

    def measured(chosen: tuple[int, ...]) -> tuple[float, float]:
        """Cost, infinite for a level of one step, and nats."""
        total, begun = 0.0, 0.0
        ends = [*[positions[t - 1] for t in chosen], positions[-1] + 1]
        for level, end in enumerate(ends):
            if level and 0 < end - begun < 2 - 1e-9:
                return math.inf, 0.0
            if not level and end <= 0:
                return math.inf, 0.0
            total += cost[level] * (end - begun)
            begun = end
        return total, sum(row[t - 1] for row, t in zip(lost, chosen))

    own_cost, own_nats = measured(starts)
    every = list(itertools.combinations_with_replacement(range(1, 13), levels - 1))
    possible = [(c, n) for c, n in map(measured, every) if c < math.inf and n >= 0]
    least = min(n for _, n in possible)
    assert own_cost < math.inf
    assert own_nats <= nats + 1e-9 or own_nats == pytest.approx(least)
    assert all(c >= own_cost - 1e-9 for c, n in possible if n <= own_nats + 1e-12) or own_nats == pytest.approx(least)


def test_later_for_fewer_nats_and_for_more_pixels() -> None:
    def starts(side: int, nats: float) -> tuple[int, ...]:
        sizes = [(side >> k,) * 2 for k in range(4)]
        known = oracle.band_information(sizes, LONG, oracle.natural_spectrum(sizes[0]))
        return oracle.information_starts(known, LONG, nats, 50)

    for few, many in itertools.pairwise([3.0, 1.0, 0.3, 0.1]):
        assert all(b > a for a, b in zip(starts(32, few), starts(32, many)))
    for small, large in itertools.pairwise([16, 32, 64]):
        assert all(b > a for a, b in zip(starts(small, 1.0), starts(large, 1.0)))


@pytest.mark.parametrize("nats", [0.1, 0.3, 1.0, 3.0])
def test_a_level_costs_a_quarter_of_the_one_before(nats: float) -> None:
    sizes = [(16, 16), (8, 8), (4, 4)]
    known = oracle.band_information(sizes, LONG, oracle.natural_spectrum(sizes[0]))
    expected = oracle.information_starts(known, LONG, nats, 50, [16, 4, 1])
    assert oracle.information_starts(known, LONG, nats, 50) == expected


def test_a_schedule_may_lose_exactly_the_nats() -> None:
    even = ssd.NoiseSchedule.from_log_snr(np.linspace(8, -8, 9))
    lost = 2.0 ** np.arange(8, -1, -1)  # 256 at t = 1 … 1 at 9
    for t in range(2, 9):
        assert oracle.information_starts(np.stack([lost, 0 * lost]), even, lost[t - 1], 9) == (t,)
    # T itself is one of the last level's two steps, so nothing loses less than 2
    assert oracle.information_starts(np.stack([lost, 0 * lost]), even, 1.9, 9) == (8,)
    assert oracle.information_starts(np.stack([lost, 0 * lost]), even, 1.9, 9, cost=[1, 1]) == (8,)


def test_defaults_are_the_documented_ones() -> None:
    def defaults(function: Callable[..., object]) -> dict[str, object]:
        parameters = inspect.signature(function).parameters
        return {name: p.default for name, p in parameters.items() if p.default is not p.empty}

    process = {"matched": True, "factor": 2, "kernel": "bilinear", "sizes": None}
    assert defaults(oracle.natural_spectrum) == {"exponent": 2.5, "deviation": 0.5}
    assert defaults(oracle.band_information) == {"matched": True}
    assert defaults(oracle.level_information) == process
    assert defaults(oracle.information_starts) == {"nats": 1.0, "steps": 20, "cost": None}
    budget = {"levels": 4, "steps": 20, "nats": 1.0, "cost": None}
    assert defaults(oracle.design_by_information) == {**budget, **process}
    budget = {"levels": 4, "steps": 100, "tolerance": 0.02, "cost": None}
    sampler = {"times": "best", "eta": 1.0, "order": 1}
    assert defaults(oracle.design_levels) == {**budget, **sampler, **process}


def test_few_steps_skip_a_level_that_would_have_one() -> None:
    sizes = [(32, 32), (16, 16), (8, 8), (4, 4)]
    known = oracle.band_information(sizes, LONG, oracle.natural_spectrum(sizes[0]))
    many, few = (oracle.information_starts(known, LONG, 0.3, steps) for steps in (50, 6))
    assert len(set(many)) == 3
    assert len(set(few)) < 3
    proc = ssd.LinearDiffusion.resize((32, 32), LONG, ssd.ResolutionSchedule.thresholds(few, 1000))
    assert len(proc.shapes) == 1 + len(set(few))


def test_one_level_has_no_start() -> None:
    known = oracle.band_information([(8, 8)], NOISE, oracle.natural_spectrum((8, 8)))
    assert oracle.information_starts(known, NOISE) == ()


def test_a_design_is_the_schedule_with_its_exact_figures() -> None:
    noise, covariance = ssd.NoiseSchedule.linear(200), ssd.Covariance.cosine(oracle.natural_spectrum((16, 16)))
    design = oracle.design_by_information((16, 16), noise, covariance, levels=3, steps=12, nats=1.5, kernel="box")
    information = oracle.level_information((16, 16), noise, covariance, 3, kernel="box")
    assert design.levels.starts == oracle.information_starts(information, noise, 1.5, 12, [256, 64, 16])
    assert len(design.times) == 12
    assert set(design.process.size_changes) <= set(design.times)
    assert design.cost == sum(math.prod(design.process.shape(t)) for t in design.times)
    assert design.full_cost == 12 * 256
    assert design.error == oracle.sampler_error(
        design.process, covariance, design.times, 0.0, order=2, second_moments=True
    )
    lost = sum(
        high[t - 1] - low[t - 1]
        for high, low, t in zip(information, information[1:], design.levels.starts, strict=False)
    )
    assert 0 < lost <= 1.5
    np.testing.assert_array_equal(design.information, information)
    assert design.evaluations == 1


def test_a_design_has_room_for_fewer_steps_than_levels() -> None:
    covariance = ssd.Covariance.cosine(oracle.natural_spectrum((16,)))
    design = oracle.design_by_information((16,), NOISE, covariance, levels=4, steps=3, cost=np.array([4.0, 3, 2, 1]))
    assert len(design.times) == 3
    (start,) = set(design.levels.starts)
    assert design.times == (1, start, 12)
    assert (design.cost, design.full_cost) == (6.0, 12.0)


@pytest.mark.parametrize("cost", [[1, 2], [1], [2, 1, 1], [2, 0], [2, -1], [math.inf, 1], [2, math.nan], 3.0])
def test_one_check_of_costs(cost: object) -> None:
    covariance = ssd.Covariance.cosine(oracle.natural_spectrum((4,)))
    calls = {
        "information_starts": lambda: oracle.information_starts(np.zeros((2, 12)), NOISE, cost=cost),
        "design_by_information": lambda: oracle.design_by_information((4,), NOISE, covariance, 2, 9, cost=cost),
        "design_levels": lambda: oracle.design_levels((4,), NOISE, covariance, 2, 9, cost=cost),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"^{name}: expected 2 costs, one for each level, .* do not rise"):
            call()


def test_level_information_of_equal_rows_may_differ_by_rounding() -> None:
    table = np.ones((2, 12)) + np.array([[0.0], [1e-12]])
    assert len(oracle.information_starts(table, NOISE)) == 1


def designed(**settings: object) -> oracle.Design:
    call = {"shape": 8, "noise": NOISE, "covariance": np.eye(8), "levels": 3, "steps": 9, **settings}
    return oracle.design_by_information(**call)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda: oracle.natural_spectrum((8, 8), -1.0), "exponent of at least 0"),
        (lambda: oracle.natural_spectrum((8, 8), deviation=0.0), "positive deviation"),
        (lambda: oracle.band_information([(8, 8), (4, 4)], NOISE, np.ones((4, 4))), "spectrum of the full size"),
        (lambda: oracle.band_information([(8, 8)], NOISE, -np.ones((8, 8))), "finite and not negative"),
        (lambda: oracle.band_information([(8, 8), (16, 4)], NOISE, np.ones((8, 8))), "sizes that fall"),
        (lambda: oracle.band_information([(8, 8), (4,)], NOISE, np.ones((8, 8))), "sizes that fall"),
        (lambda: oracle.band_information([], NOISE, np.ones((8, 8))), "a size for each level, got none"),
        (lambda: oracle.information_starts(np.zeros((2, 5)), NOISE), r"shape \(levels, 12\), got \(2, 5\)"),
        (lambda: oracle.information_starts(np.zeros((0, 12)), NOISE), r"shape \(levels, 12\), got \(0, 12\)"),
        (lambda: oracle.information_starts(np.full((2, 12), math.nan), NOISE), "expected finite nats"),
        (lambda: oracle.information_starts(np.array([[math.nan] + [0] * 11] * 2), NOISE), "expected finite nats"),
        (lambda: oracle.information_starts(np.arange(24).reshape(2, 12), NOISE), "rises by 12 nats"),
        (lambda: oracle.information_starts(np.zeros((2, 12)), NOISE, 0.0), "nats must be finite and positive"),
        (lambda: oracle.information_starts(np.zeros((2, 12)), NOISE, -1.0), "nats must be finite and positive"),
        (lambda: oracle.information_starts(np.zeros((2, 12)), NOISE, math.nan), "nats must be finite and positive"),
        (lambda: oracle.information_starts(np.zeros((1, 12)), NOISE, steps=0), "steps must be at least 1"),
        (lambda: oracle.information_starts(np.zeros((2, 12)), NOISE, steps=2), "at least 3 steps"),
        (lambda: oracle.information_starts(np.zeros((2, 1)), ssd.NoiseSchedule.cosine(1)), "have no room"),
        (lambda: designed(levels=0), "levels must be at least 1"),
        (lambda: designed(levels=5), "take fewer levels than 5"),
        (lambda: designed(sizes=[(8,), (4,)]), "expected 3 sizes, one per level"),
        (lambda: designed(steps=13), "the process has only 12"),
        (lambda: designed(covariance=np.eye(4)), r"expected \(8, 8\)"),
        (lambda: oracle.level_information(8, NOISE, np.eye(8), 0), "levels must be at least 1"),
        (lambda: oracle.free_starts(np.zeros(12), 1.0), r"\(levels, T\) finite nats"),
        (lambda: oracle.free_starts(np.full((2, 12), math.inf), 1.0), r"\(levels, T\) finite nats"),
        (lambda: oracle.free_starts(np.zeros((2, 12)), -1.0), "nats of at least 0"),
        (lambda: oracle.free_starts(np.zeros((2, 12)), math.nan), "nats of at least 0"),
    ],
)
def test_what_is_wrong_is_said(call: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        call()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda: oracle.natural_spectrum((8, 8), "steep"), "exponent: expected a real number"),
        (lambda: oracle.band_information(8, NOISE, np.ones(8)), "sizes: expected a list of shapes"),
        (lambda: oracle.information_starts(np.zeros((2, 12)), NOISE, "1"), "nats: expected a real number"),
        (lambda: oracle.information_starts(np.zeros((2, 12)), NOISE, steps=2.5), "steps must be an integer"),
        (lambda: oracle.information_starts(np.zeros((2, 12)), NOISE, cost=["a", "b"]), "cost: expected real numbers"),
        (lambda: designed(levels=2.5), "levels must be an integer"),
        (lambda: designed(noise=None), "expected a NoiseSchedule"),
    ],
)
def test_what_is_of_another_kind_is_said(call: object, why: str) -> None:
    with pytest.raises(TypeError, match=why):
        call()  # type: ignore[operator]
