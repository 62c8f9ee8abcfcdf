"""Laws that mutants of `ssdcore_torch` broke and no other test noticed (benchmarks/mutation)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import ssdcore as ssd

torch = pytest.importorskip("torch")

from perfect import GaussianDenoiser  # noqa: E402

from ssdcore_torch import restoration  # noqa: E402
from ssdcore_torch.diffusion import Batch, Objective  # noqa: E402
from ssdcore_torch.ema import Averages, exponent, mixture  # noqa: E402
from ssdcore_torch.randomness import Purpose, philox, sample_noise  # noqa: E402
from ssdcore_torch.sampling import decode, encode, generate  # noqa: E402
from ssdcore_torch.sampling._residuals import ResidualSpectra  # noqa: E402
from ssdcore_torch.sampling._walk import Walk  # noqa: E402

NOISE = ssd.NoiseSchedule.from_log_snr([4.0, 2.0, 0.0, -2.0])


def test_the_paper_s_weight_is_cut_at_five() -> None:
    proc = ssd.LinearDiffusion.identity((2, 2), ssd.NoiseSchedule.from_log_snr(np.log([20.0, 5.2, 4.0])))
    assert Objective(proc).snr_clamp == 5.0
    weights = Objective(proc).rows(np.array([1, 2, 3]), torch.device("cpu"))[3]
    np.testing.assert_allclose(weights, [5.0, 5.0, 4.0], rtol=1e-6)


def test_a_blur_is_trained_to_predict_the_clean_image() -> None:
    """Whatever the widths, a network that returns x_0 has no loss within one size."""
    proc = ssd.LinearDiffusion.blur((6, 6), NOISE, [0.0, 1.0, 2.0, 3.0, 4.0])
    objective = Objective(proc)
    x0 = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 3, 6, 6))).float()
    (path,) = objective.paths

    def net(x: torch.Tensor, t: torch.Tensor, out_level: int) -> torch.Tensor:
        return x0

    for times in ([1, 2, 3, 4], [2, 2, 2, 2]):
        batch = Batch(path, np.array(times))
        loss = objective(net, x0, batch, torch.zeros(batch.noise_shape(3)), 0)
        assert float(loss) == pytest.approx(0.0, abs=1e-9)


def test_times_by_density_follow_edm_s_law_of_the_noise() -> None:
    """ln(σ/α) ~ N(−1.2, 1.2²), also where a time without signal has no density."""
    proc = ssd.LinearDiffusion.identity((2, 2), ssd.NoiseSchedule.rectified_flow(2000))
    objective = Objective(proc, weighting="edm", time_sampling="density")
    times = objective.draw(4000, 0, 0).times
    drawn = np.log(proc.sigma(times) / proc.alpha(times))
    assert abs(drawn.mean() + 1.2) < 0.05
    assert abs(drawn.std() - 1.2) < 0.05


def test_noise_of_sampling_is_box_and_muller_on_philox_s_words() -> None:
    size, index, draw = 7, 5 + (3 << 32), 2
    key = np.random.SeedSequence((Purpose.SAMPLING, 9)).generate_state(2, np.uint32).tolist()
    expected = []
    for block in range(2):
        counter = [torch.tensor([word]) for word in (block, draw, 5, 3)]
        a, b, c, d = (int(word) for word in philox(counter, (key[0], key[1])))
        for u, v in ((a, b), (c, d)):
            radius, angle = math.sqrt(-2 * math.log((u + 0.5) / 2**32)), 2 * math.pi * v / 2**32
            expected += [radius * math.cos(angle), radius * math.sin(angle)]
    found = sample_noise(9, [index], range(draw, draw + 1), size, torch.device("cpu"))
    np.testing.assert_allclose(found[0, 0], expected[:size], rtol=1e-6)


class Recorder:
    """A network that remembers how many images it was shown."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def __call__(self, x: torch.Tensor, t: torch.Tensor, out_level: int) -> torch.Tensor:
        self.counts.append(len(x))
        return 0.5 * x


@pytest.mark.parametrize(("fill", "shown"), [(0, 3), (2, 3), (3, 3), (5, 5)])
def test_a_network_that_is_compiled_sees_full_batches(fill: int, shown: int) -> None:
    net, proc = Recorder(), ssd.LinearDiffusion.identity((2, 2), NOISE)
    x = torch.arange(12.0).reshape(3, 1, 2, 2)
    clean = Walk(net, [(2, 2)], proc, clip=False, fill=fill).predict(x, 2)
    assert net.counts == [shown]
    torch.testing.assert_close(clean, 0.5 * x)


def test_priors_without_channels_take_those_of_the_network() -> None:
    proc = ssd.LinearDiffusion.identity((2, 2), NOISE)
    plain = ssd.Gaussian(torch.zeros(2, 2), ssd.Covariance.isotropic((2, 2), 1.0))
    drawn = generate(Recorder(), proc, 2, steps=2, seed=0, prior=plain, channels=3)
    assert drawn.shape == (2, 3, 2, 2)
    colours = ssd.Gaussian(torch.zeros(2, 2, 2), ssd.Covariance.isotropic((2, 2), 1.0))
    assert generate(Recorder(), proc, 1, steps=2, seed=0, prior=colours).shape == (1, 2, 2, 2)


def spectra(times: list[int], power: list[float]) -> ResidualSpectra:
    proc = ssd.LinearDiffusion.identity((1, 1), NOISE)
    values = np.array(power).reshape(len(times), 1, 1, 1)
    return ResidualSpectra(proc, np.eye(1), ((np.array(times), values),))


def test_residual_power_at_and_beyond_the_measured_times() -> None:
    held = spectra([2, 3], [0.5, 0.125])
    for t, expected in ((1, 0.5), (2, 0.5), (3, 0.125), (4, 0.125)):
        assert held._power(t, *held.paths[0]).item() == expected  # type: ignore[misc]


@pytest.mark.parametrize(
    ("times", "power", "message"),
    [
        ([2, 2], [0.5, 0.5], "increasing times"),
        ([3, 2], [0.5, 0.5], "increasing times"),
        ([1, 2], [0.5, -0.5], "0 or more"),
        ([1, 2], [0.5, math.inf], "finite"),
        ([1, 9], [0.5, 0.5], "increasing times"),
    ],
)
def test_residual_spectra_that_are_none_are_refused(times: list[int], power: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spectra(times, power)


def test_the_nearest_snapshots_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssdcore_torch import ema

    class Kept:
        width, path = 0.1, tmp_path

        def __init__(self, step: int) -> None:
            self.step = step

    monkeypatch.setattr(ema, "snapshots", lambda run: [Kept(step) for step in (10, 20, 30, 40, 50, 60)])
    with pytest.raises(ValueError, match=r"the nearest that have: 40, 50, 30, 60$"):
        ema.mixed_average(tmp_path, 0.1, 43)


def test_no_two_purposes_share_a_number() -> None:
    assert [int(purpose) for purpose in Purpose] == list(range(1, len(Purpose.__members__) + 1))


def test_seeds_of_generators_are_half_a_word_of_numpy_s() -> None:
    from ssdcore_torch.randomness import torch_seed

    word = int(np.random.SeedSequence((int(Purpose.NOISE), 3, 4)).generate_state(1, np.uint64)[0])
    assert torch_seed(Purpose.NOISE, 3, 4) == word // 2


def test_time_zero_has_no_weight() -> None:
    proc = ssd.LinearDiffusion.identity((2, 2), NOISE)
    assert Objective(proc).rows(np.array([0]), torch.device("cpu")).flatten().tolist() == [0.0, 1.0, 0.0, 0.0]


def test_a_snapshot_of_the_first_step_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssdcore_torch import ema

    monkeypatch.setattr(ema, "load_tensors", lambda path: ({}, {"step": "1", "width": "0.1"}))
    assert ema._open(tmp_path).step == 1
    monkeypatch.setattr(ema, "load_tensors", lambda path: ({}, {"step": "0", "width": "0.1"}))
    with pytest.raises(ValueError, match="is not a snapshot"):
        ema._open(tmp_path)


def test_a_network_on_the_cpu_draws_as_it_is() -> None:
    from ssdcore_torch.sampling._precision import drawing_network

    net = torch.nn.Linear(1, 1)
    assert drawing_network(net, False) is net


class ThreeChannels(Recorder):
    channels = 3


def test_channels_come_from_the_network_where_the_prior_has_none() -> None:
    proc = ssd.LinearDiffusion.identity((2, 2), NOISE)
    plain = ssd.Gaussian(torch.zeros(2, 2), ssd.Covariance.isotropic((2, 2), 1.0))
    assert generate(ThreeChannels(), proc, 2, steps=2, seed=0, prior=plain).shape == (2, 3, 2, 2)
    net = ThreeChannels()
    generate(net, proc, 2, steps=2, seed=0)
    assert set(net.counts) == {2}


def test_a_share_in_a_tensor_is_that_number() -> None:
    net = torch.nn.Linear(3, 2)
    numbers, tensors = Averages(net, [0.5, 0.9]), Averages(net, [0.5, 0.9])
    with torch.no_grad():
        net.weight += 1.0
    numbers.follow(net, [0.25, 0.5])
    tensors.follow(net, [torch.tensor(0.25), torch.tensor(0.5)])
    for one, other in zip(numbers.network.parameters(), tensors.network.parameters()):
        assert torch.equal(one, other)


def test_how_far_a_mixture_s_profile_is_from_the_one_asked_for() -> None:
    """‖p* − Σ xᵢ pᵢ‖ / ‖p*‖ by quadrature, p(τ) = (γ + 1) τ^γ / t^(γ+1) up to t."""
    kept, width, step = [(0.1, 60), (0.1, 100), (0.2, 100)], 0.15, 100
    weights, distance = mixture(kept, width, step)
    nodes, quadrature = np.polynomial.legendre.leggauss(200)

    def profile(width: float, end: float, tau: np.ndarray) -> np.ndarray:
        gamma = exponent(width)
        return np.where(tau <= end, (gamma + 1) * tau**gamma / end ** (gamma + 1), 0.0)

    squares = np.zeros(2)
    for low, high in ((0.0, 0.6), (0.6, 1.0)):
        tau = low + (high - low) * (nodes + 1) / 2
        wanted = profile(width, 1.0, tau)
        rest = wanted - sum(x * profile(w, t / step, tau) for x, (w, t) in zip(weights, kept))
        squares += (high - low) / 2 * np.array([quadrature @ rest**2, quadrature @ wanted**2])
    assert distance == pytest.approx(math.sqrt(squares[0] / squares[1]), rel=1e-6)


def test_losses_are_the_same_under_autocast() -> None:
    """What the network is given and compared with is in the precision of x_0."""
    proc = ssd.LinearDiffusion.blur((6, 6), NOISE, [0.0, 1.0, 2.0, 3.0, 4.0])
    objective = Objective(proc)
    x0 = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 3, 6, 6))).float()
    (path,) = objective.paths
    batch = Batch(path, np.array([1, 2, 3, 4]))
    noise, seen = torch.ones(batch.noise_shape(3)), []

    def net(x: torch.Tensor, t: torch.Tensor, out_level: int) -> torch.Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    plain = objective.losses(net, x0, batch, noise, 0)
    with torch.autocast("cpu", torch.bfloat16):
        cast = objective.losses(net, x0, batch, noise, 0)
    assert torch.equal(*seen)
    assert torch.equal(plain, cast)


def test_paths_are_alike_where_all_their_times_are() -> None:
    assert Objective(ssd.LinearDiffusion.resize((8,), NOISE, ssd.ResolutionSchedule.equal(4, 4))).alike
    two = ssd.NoiseSchedule.from_log_snr([1.0, -1.0])
    assert not Objective(ssd.LinearDiffusion.blur((4,), two, [0.0, 1.0, 2.0])).alike
    assert Objective(ssd.LinearDiffusion.blur((4,), two, [0.0, 1.0, 1.0])).alike


def test_where_conjugate_gradients_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """After one step on diag(1, 2) from (1, 1) the residual is (1, −1)/3."""
    monkeypatch.setattr(restoration, "_MAX_ITERATIONS", 1)
    matrix = torch.diag(torch.tensor([1.0, 2.0], dtype=torch.float64))
    with pytest.raises(ssd.ConvergenceError, match=r"relative residual 3\.3e-01, above 1e-10"):
        restoration.conjugate_gradients(lambda v: v @ matrix, torch.ones(1, 2, dtype=torch.float64), 1)


def test_images_of_no_known_law_are_white_around_zero() -> None:
    law = restoration._law(ssd.LinearDiffusion.identity((3, 2), NOISE), None, torch.device("cpu"))
    assert torch.equal(law.mean, torch.zeros((3, 2), dtype=torch.float64))
    np.testing.assert_array_equal(law.covariance.as_matrix(), np.eye(6))


def test_the_size_may_change_at_the_second_time_of_an_encoding() -> None:
    noise, levels = ssd.NoiseSchedule.linear(1000), ssd.ResolutionSchedule.equal(1000, 2)
    proc = ssd.LinearDiffusion.resize((4, 4), noise, levels)
    net = GaussianDenoiser(proc, np.eye(16))
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 1, 4, 4)))
    times = (450, *levels.starts, *range(520, 1001, 20))
    code = encode(net, proc, images, times=times)
    assert [state.shape[2:] for state in (code.state, *code.details)] == [(2, 2), (4, 4)]
    again = encode(net, proc, images, seed=0, times=times, batch_size=1)
    torch.testing.assert_close(again.state, code.state)
    torch.testing.assert_close(decode(net, proc, code, batch_size=1), decode(net, proc, code))
