"""Averages of the weights: what an update does, and any width from snapshots of some."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ssdcore_torch import FlexiUNet, FlexiUNetConfig, ema
from ssdcore_torch.commands import cli
from ssdcore_torch.commands import ema as command
from ssdcore_torch.ema import Averages, exponent, mixture, reconstruct, save_snapshot

WIDTHS = (0.05, 0.1)


def network() -> FlexiUNet:
    torch.manual_seed(0)
    return FlexiUNet(
        FlexiUNetConfig(((8, 8), (4, 4)), base_channels=32, channel_multipliers=(1, 1), blocks_per_stage=1)
    )


class Path1D:
    """A network of three numbers that move as training does: a drift that settles, and noise."""

    def __init__(self, steps: int, settles: float = 0.2) -> None:
        generator = np.random.default_rng(0)
        time = np.arange(1, steps + 1)[:, None] / steps
        drift = np.exp(-time / settles) * np.array([3.0, -1.0, 0.5]) + np.array([1.0, 2.0, -3.0])
        self.values = drift + generator.normal(size=(steps, 3)) * 0.1

    def parameters_at(self, step: int) -> torch.nn.Module:
        net = torch.nn.Module()
        net.weight = torch.nn.Parameter(torch.tensor(self.values[step], dtype=torch.float64))
        return net


def track(path: Path1D, widths: tuple[float, ...], run: Path | None = None, every: int = 1) -> torch.Tensor:
    """The averages after the whole path, a row a width; snapshots of them in `run`."""
    averages = Averages(path.parameters_at(0), (), widths)  # type: ignore[arg-type]
    steps = len(path.values)
    for step in range(steps):
        averages.update(path.parameters_at(step), step)  # type: ignore[arg-type]
        if run is not None and (step + 1) % every == 0:
            save_snapshot(run, step + 1, averages)
    return torch.stack([tensors["weight"].clone() for tensors in averages.state().values()])


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.2, 0.28, 12**-0.5])
def test_the_exponent_of_a_width(width: float) -> None:
    gamma = exponent(width)
    assert gamma > -1e-9
    assert math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3)) == pytest.approx(width, rel=1e-9)
    if width < 0.28:  # the definition: standard deviation of (γ + 1) τ^γ over (0, 1)
        tau = (np.arange(200_000) + 0.5) / 200_000
        p = (gamma + 1) * tau**gamma / len(tau)
        assert np.sqrt((p * (tau - (p * tau).sum()) ** 2).sum()) == pytest.approx(width, rel=1e-5)


def test_updates_equal_the_closed_forms() -> None:
    path = Path1D(40)
    rates = (0.9, 0.0)
    averages = Averages(path.parameters_at(0), rates, WIDTHS)  # type: ignore[arg-type]
    start = path.values[0]
    for step in range(40):
        averages.update(path.parameters_at(step), step)  # type: ignore[arg-type]
    found = averages.state()
    assert list(found) == ["ema-0.9", "ema-0.0", "power-0.05", "power-0.1"]
    shares = np.array([1 - min(0.9, (1 + step) / (10 + step)) for step in range(40)])
    left = np.cumprod((1 - shares)[::-1])[::-1]  # what is left at the end of an average that step k has begun to change
    weights = shares * np.append(left[1:], 1.0)
    np.testing.assert_allclose(found["ema-0.9"]["weight"], left[0] * start + weights @ path.values, rtol=1e-13)
    np.testing.assert_array_equal(found["ema-0.0"]["weight"], path.values[-1])
    for width in WIDTHS:
        power = exponent(width) + 1
        time = np.arange(41)
        weights = np.diff(time**power) / 40**power
        assert weights.sum() == pytest.approx(1)
        np.testing.assert_allclose(found[f"power-{width}"]["weight"], weights @ path.values, rtol=1e-12)


def test_the_first_average_is_the_network_to_draw_with() -> None:
    net = network()
    averages = Averages(net, (0.5,), (0.1,))
    before = {name: parameter.clone() for name, parameter in averages.network.named_parameters()}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    averages.update(net, 1000)
    assert not averages.network.training
    assert not any(parameter.requires_grad for parameter in averages.network.parameters())
    for name, parameter in averages.network.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.5)
        assert averages.state()["ema-0.5"][name].data_ptr() == parameter.data_ptr()
    assert averages.state().keys() == {"ema-0.5", "power-0.1"}
    assert averages.state()["power-0.1"].keys() == net.state_dict().keys()


def test_averages_go_on_from_their_state() -> None:
    path = Path1D(30)
    whole = Averages(path.parameters_at(0), (0.9,), WIDTHS)  # type: ignore[arg-type]
    for step in range(30):
        if step == 17:
            kept = {name: {k: x.clone() for k, x in part.items()} for name, part in whole.state().items()}
        whole.update(path.parameters_at(step), step)  # type: ignore[arg-type]
    again = Averages(path.parameters_at(5), (0.9,), WIDTHS)  # type: ignore[arg-type]
    again.load(kept)
    for step in range(17, 30):
        again.update(path.parameters_at(step), step)  # type: ignore[arg-type]
    for name, part in whole.state().items():
        assert torch.equal(part["weight"], again.state()[name]["weight"])
    with pytest.raises(ValueError, match=r"expected the averages ema-0.9, power-0.05, power-0.1, got ema-0.9"):
        again.load({"ema-0.9": kept["ema-0.9"]})
    with pytest.raises(ValueError, match="not those of the network"):
        again.load({**kept, "power-0.1": {}})


@pytest.mark.parametrize(
    ("rates", "widths", "message"),
    [
        ((), (), "one average or more"),
        ((0.9, 0.9), (), "all different"),
        ((1.0,), (), r"rates in \[0, 1\)"),
        ((0.9,), (0.3,), "expected a relative width from 0.001 .* to 0.2887"),
        ((), (0.0,), "expected a relative width from 0.001"),
        ((), (math.nan,), "expected a relative width from 0.001"),
    ],
)
def test_what_is_no_average_is_refused(rates: tuple[float, ...], widths: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Averages(network(), rates, widths)


def norm_about_mean(path: Path1D, step: int) -> np.ndarray:
    """‖θ − c‖ in L²(0, 1) of time over `step`, at the best constant c: the second factor of the error's bound."""
    return path.values[:step].std(axis=0)


@pytest.mark.parametrize("width", [0.03, 0.06, 0.075, 0.15])
@pytest.mark.parametrize(("steps", "every"), [(600, 25), (600, 200)])
def test_any_width_within_the_bound(tmp_path: Path, width: float, steps: int, every: int) -> None:
    """|error| <= ‖p* − Σ x p‖ ‖θ − mean‖, and float32's rounding of the snapshots, Σ|x| eps |θ|."""
    path = Path1D(steps)
    track(path, WIDTHS, tmp_path, every)
    kept = [(w, t) for t in range(every, steps + 1, every) for w in WIDTHS]
    weights, distance = mixture(kept, width, steps)
    gamma = exponent(width)
    norm = (gamma + 1) / math.sqrt(2 * gamma + 1)  # of p*, in time over `steps`
    bound = distance * norm * norm_about_mean(path, steps)
    rounding = np.finfo(np.float32).eps * (abs(weights).sum() + 1) * abs(path.values).max()
    direct = track(path, (width,))[0].numpy()
    found = reconstruct(tmp_path, width)["weight"].numpy()
    assert (abs(found - direct) <= bound + rounding).all()
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    if every == 25 and WIDTHS[0] < width < WIDTHS[1]:  # and far nearer than the tracked averages are
        nearest = min(np.linalg.norm(tracked.numpy() - direct) for tracked in track(path, WIDTHS))
        assert np.linalg.norm(found - direct) < 0.05 * nearest


def test_tracked_widths_come_back(tmp_path: Path) -> None:
    path = Path1D(300)
    direct = track(path, WIDTHS, tmp_path, 20)
    for width, expected in zip(WIDTHS, direct):
        torch.testing.assert_close(reconstruct(tmp_path, width)["weight"], expected.float(), rtol=1e-6, atol=0)
        earlier = track(Path1D_prefix(path, 120), (width,))[0]
        torch.testing.assert_close(
            reconstruct(tmp_path, width, at_step=120)["weight"], earlier.float(), rtol=1e-6, atol=0
        )


def Path1D_prefix(path: Path1D, steps: int) -> Path1D:
    short = Path1D(steps)
    short.values = path.values[:steps]
    return short


def test_weights_that_stay_are_kept_however_few_the_snapshots(tmp_path: Path) -> None:
    path = Path1D(50)
    path.values[:] = 7.0
    track(path, (0.1,), tmp_path, 50)
    assert reconstruct(tmp_path, 0.05)["weight"].tolist() == pytest.approx([7.0] * 3)


def test_the_closed_inner_products() -> None:
    """Against sums over a fine grid."""
    tau = (np.arange(400_000) + 0.5) / 400_000
    for a, s in ((0.05, 1.0), (0.1, 0.3), (0.25, 0.6)):
        for b, t in ((0.05, 1.0), (0.2, 0.5)):
            one, two = (
                np.where(tau < end, (g + 1) * (tau / end) ** g / end, 0)
                for g, end in ((exponent(a), s), (exponent(b), t))
            )
            exact = ema._inner(*(np.array(x) for x in (exponent(a), s, exponent(b), t)))
            assert (one * two).mean() == pytest.approx(float(exact), rel=1e-4)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = network()
    averages = Averages(net, (0.9,), WIDTHS)
    generator = torch.Generator().manual_seed(0)
    for step in range(12):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        averages.update(net, step)
        if step % 4 == 3:
            save_snapshot(tmp_path, step + 1, averages)
    out = tmp_path / "wide.safetensors"
    assert command.main([str(tmp_path), "--width", "0.1", "--out", str(out)]) == 0
    assert "average of width 0.1 after step 12, mixed from 6 snapshots" in capsys.readouterr().out
    net.load_state_dict(load_file(out))
    for name, expected in averages.state()["power-0.1"].items():
        torch.testing.assert_close(net.get_parameter(name).detach(), expected, rtol=1e-5, atol=1e-6)

    assert command.main([str(tmp_path), "--width", "0.07", "--step", "8", "--out", str(out), "--force"]) == 0
    assert "average of width 0.07 after step 8, mixed from 4 snapshots" in capsys.readouterr().out

    def refusal(*options: str) -> str:
        with pytest.raises(cli.UserError) as caught:
            command.main(list(options))
        return str(caught.value)

    again = ["--out", str(tmp_path / "no.safetensors")]
    assert "step 5 has no snapshots; the nearest that have: 4, 8" in refusal(
        str(tmp_path), "--width", "0.1", "--step", "5", *again
    )
    assert "--width: expected a relative width from 0.001" in refusal(str(tmp_path), "--width", "2", *again)
    assert "holds no snapshots: train with" in refusal(str(tmp_path / "nothing"), "--width", "0.1", *again)
    save_file({"x": torch.ones(1)}, tmp_path / "snapshots" / "power-0.1-00000013.safetensors")
    assert "power-0.1-00000013.safetensors is not a snapshot" in refusal(str(tmp_path), "--width", "0.1", *again)
    header = {"step": "13", "width": "0.1"}
    save_file({"x": torch.ones(1)}, tmp_path / "snapshots" / "power-0.1-00000013.safetensors", header)
    assert "is of another network" in refusal(str(tmp_path), "--width", "0.1", *again)
    assert not (tmp_path / "no.safetensors").exists()
