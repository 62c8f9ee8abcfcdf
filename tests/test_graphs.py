"""Steps and network paths as CUDA graphs. On the CPU a stand-in replays a capture by running it again with Python's numbers
as they were at the capture: what a real graph would have baked in is then found by comparing with plain steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_devices import DEVICES, on
from test_speed_paths import TINY, process
from test_training import tiny_config, tiny_data
from test_unet import inputs, random_net
from torch import Tensor

import ssdcore as ssd
from ssdcore_torch import generate
from ssdcore_torch.config import Config
from ssdcore_torch.diffusion import Objective
from ssdcore_torch.distributed import World
from ssdcore_torch.graphs import Pool, Replayed
from ssdcore_torch.sampling import drawing_network
from ssdcore_torch.training import Trainer, plan
from ssdcore_torch.training.graphs import StepGraphs


class StandIn:
    """In place of a CUDA graph: what was captured, run again; `frozen` are (object, name, value at the capture)."""

    def __init__(self, run: Callable[[], Tensor], frozen: list[tuple[Any, str, Any]]) -> None:
        self.run, self.frozen, self.result = run, frozen, torch.zeros(())

    def replay(self) -> None:
        current = [(owner, name, getattr(owner, name)) for owner, name, _ in self.frozen]
        for owner, name, value in self.frozen:
            setattr(owner, name, value)
        try:
            self.result.copy_(self.run())
        finally:
            for owner, name, value in current:
                setattr(owner, name, value)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Captures are made of stand-ins. Gives what is to be frozen, and how many captures and replays there were."""
    said: dict[str, Any] = {"frozen": list, "captures": 0, "replays": 0}

    def capture(self: Pool, run: Callable[[], Tensor]) -> tuple[StandIn, Tensor]:
        said["captures"] += 1
        graph = StandIn(run, said["frozen"]())
        return graph, graph.result

    def replay(self: Pool, graph: StandIn) -> None:
        said["replays"] += 1
        graph.replay()

    monkeypatch.setattr(Pool, "capture", capture)
    monkeypatch.setattr(Pool, "replay", replay)
    return said


def advanced(trainer: Trainer, steps: int) -> list[float]:
    batches = trainer.feed.batches(trainer.step)
    return [trainer.train_step(next(batches)).item() for _ in range(steps)]


def apart(a: Trainer, b: Trainer) -> float:
    """Relative difference of all weights and averages."""
    x, y = (
        torch.cat([p.detach().flatten() for net in (t.net, t.averages.network) for p in net.parameters()])
        for t in (a, b)
    )
    return float((x - y).norm() / y.norm())


SETTINGS = [
    {"warmup": 20, "clip": 0.5, "skip_spikes": 1.2, "ema": (0.9, 0.99)},
    {"cosine_decay": True, "accumulate": 2, "equal_cost": True, "ema_widths": (0.1,)},
]


def a_config(classes: int | None, dropout: float, **settings: Any) -> Config:
    config = tiny_config(steps=40, classes=classes, change_share=0.3, learning_rate=1e-3, **settings)
    return replace(config, network=replace(config.network, dropout=dropout))


@pytest.mark.parametrize(
    ("classes", "settings"), [(None, SETTINGS[0]), pytest.param(2, SETTINGS[1], marks=pytest.mark.slow)]
)
def test_a_captured_step_takes_nothing_that_changes_from_python(
    classes: int | None, settings: dict[str, Any], stand_in: dict[str, Any]
) -> None:
    world = World(0, 1, 0, torch.device("cpu"))
    config = a_config(classes, 0.0, **settings)
    plain, graphs = (Trainer(config, tiny_data(classes=classes), world) for _ in range(2))
    graphs.use_graphs()
    group = graphs.optimizer.param_groups[0]
    stand_in["frozen"] = lambda: [(graphs, "step", graphs.step), (graphs, "_numbers", graphs._numbers)]
    expected, found = advanced(plain, 24), advanced(graphs, 24)
    assert stand_in["captures"] == 3
    assert stand_in["replays"] == 24 - 2 * 3
    assert isinstance(group["lr"], Tensor)
    assert found == pytest.approx(expected, rel=1e-4)
    assert apart(graphs, plain) < 1e-4
    assert graphs.skipped == plain.skipped
    assert graphs.take_figures()["loss"] == pytest.approx(plain.take_figures()["loss"], rel=1e-4)


def test_the_stand_in_finds_a_number_that_is_baked_in(
    stand_in: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learning rate as a number of the step that was captured, not as a tensor."""
    config = a_config(None, 0.0, warmup=20)
    plain, graphs = (Trainer(config, tiny_data(), World(0, 1, 0, torch.device("cpu"))) for _ in range(2))
    graphs.use_graphs()
    stand_in["frozen"] = lambda: [(graphs, "step", graphs.step)]
    honest = Trainer._advance

    def baked(self: Trainer, images: Any, drawn: Any) -> Tensor:
        self.optimizer.param_groups[0]["lr"] = self.learning_rate(self.step)
        return honest(self, images, drawn)

    monkeypatch.setattr(graphs, "_graphs", type(graphs._graphs)(lambda *inputs: baked(graphs, *inputs)))
    advanced(plain, 24)
    advanced(graphs, 24)
    assert apart(graphs, plain) > 1e-2


def test_graphs_are_made_again_for_a_restored_state(stand_in: dict[str, Any]) -> None:
    trainer = Trainer(a_config(None, 0.0), tiny_data(), World(0, 1, 0, torch.device("cpu")))
    trainer.use_graphs()
    advanced(trainer, 12)
    before = stand_in["captures"]
    trainer.restore(trainer.state())
    advanced(trainer, 12)
    assert stand_in["captures"] == 2 * before


def test_graphs_on_a_cpu_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"train\.cuda_graphs: .*one process on a CUDA device, got the device cpu; leave"
    ):
        Trainer(tiny_config(cuda_graphs=True), tiny_data(), World(0, 1, 0, torch.device("cpu")))


def test_graphs_are_taken_where_a_gpu_can() -> None:
    """By default on one CUDA device, unless the network is compiled, recomputes, or is another's."""
    made = Trainer(a_config(None, 0.0), tiny_data(), World(0, 1, 0, torch.device("cpu")))
    assert made._graphs is None
    assert not made._captured()
    for wanted, settings, count, expected in (
        (None, {}, 1, True),
        (False, {}, 1, False),
        (None, {}, 2, False),
        (None, {"compile": True}, 1, False),
        (True, {"compile": True}, 1, True),
        (None, {"recompute": True}, 1, False),
    ):
        made.world = World(0, count, 0, torch.device("cuda"))
        made.config = replace(made.config, train=replace(a_config(None, 0.0, **settings).train, cuda_graphs=wanted))
        assert made._captured() is expected, (wanted, settings, count)
    made.config = replace(made.config, train=replace(made.config.train, cuda_graphs=True))
    with pytest.raises(ValueError, match="recomputes"):
        made._captured()
    made.world = World(0, 2, 0, torch.device("cuda"))
    with pytest.raises(ValueError, match="got 2 processes"):
        made._captured()


def test_a_process_whose_degradation_changes_with_every_time_is_not_captured() -> None:
    """The operators of a step are chosen on the host then."""
    noise = ssd.NoiseSchedule.linear(40)
    made = Trainer(a_config(None, 0.0), tiny_data(), World(0, 1, 0, torch.device("cpu")))
    assert made.objective.alike
    widths = [0.0, *(0.05 * t for t in range(1, 41))]
    blurred = Objective(ssd.LinearDiffusion.blur((8, 8), noise, widths))
    assert not blurred.alike
    made.objective, made.world = blurred, World(0, 1, 0, torch.device("cuda"))
    assert not made._captured()
    made.config = replace(made.config, train=replace(made.config.train, cuda_graphs=True))
    with pytest.raises(ValueError, match="differently at every time"):
        made._captured()


@pytest.mark.parametrize("optional", [True, False])
def test_without_memory_for_a_graph(
    optional: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Steps go on as they are where graphs were not asked for, and the log says so once a path."""

    def failing(self: Pool, run: Callable[[], Tensor]) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Pool, "capture", failing)
    trainer = Trainer(a_config(None, 0.0), tiny_data(), World(0, 1, 0, torch.device("cpu")))
    trainer.use_graphs()
    trainer._graphs = StepGraphs(trainer._advance, optional)
    if not optional:
        with pytest.raises(torch.OutOfMemoryError):
            advanced(trainer, 12)
        return
    with caplog.at_level("WARNING"):
        advanced(trainer, 12)
    assert 1 <= len([record for record in caplog.records if "too little memory" in record.message]) <= 3
    assert trainer.step == 12


def test_a_step_that_fails_to_be_captured_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Pool, run: Callable[[], Tensor]) -> Any:
        raise RuntimeError("operation not permitted")

    monkeypatch.setattr(Pool, "capture", failing)
    trainer = Trainer(a_config(None, 0.0), tiny_data(), World(0, 1, 0, torch.device("cpu")))
    trainer.use_graphs()
    with pytest.raises(RuntimeError, match=r"not permitted\): leave train\.cuda_graphs out"):
        advanced(trainer, 12)


@pytest.mark.gpu
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(("classes", "dropout"), [(None, 0.0), (2, 0.2)])
def test_graphs_on_a_gpu_train_as_plain_steps(classes: int | None, dropout: float, settings: dict[str, Any]) -> None:
    world = World(0, 1, 0, torch.device("cuda"))
    config = a_config(classes, dropout, precision="float32", **settings)
    captured = replace(config, train=replace(config.train, cuda_graphs=True))
    plain, graphs = (Trainer(c, tiny_data(classes=classes), world) for c in (config, captured))
    expected, found = advanced(plain, 24), advanced(graphs, 24)
    assert found == pytest.approx(expected, rel=2e-2)
    assert apart(graphs, plain) < 1e-2
    graphs.restore(graphs.state())
    assert all(loss < 10 for loss in advanced(graphs, 12))
    assert plan(graphs).seconds > 0


@pytest.mark.gpu
@pytest.mark.parametrize("in_bfloat16", [False, True])
@pytest.mark.parametrize("sampler", ["ancestral", "multistep"])
def test_graphs_on_a_gpu_draw_as_the_plain_network(sampler: str, in_bfloat16: bool) -> None:
    net = on("cuda", random_net(TINY)).eval()
    proc, arguments = process(), {"sampler": sampler, "labels": 1, "guidance": 2.0, "batch_size": 4}
    drawn = drawing_network(net, in_bfloat16)
    drawn._compiler = None
    expected = generate(drawn, proc, 6, 10, **arguments)
    drawn.capture_paths()
    for _ in range(2):  # with graphs from the first chain on, and captured batches of two sizes
        found = generate(drawn, proc, 6, 10, **arguments)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-2 if in_bfloat16 else 1e-4)
    with torch.no_grad():  # follows the weights
        for parameter in drawn.parameters():
            parameter.zero_()
    assert not generate(drawn, proc, 6, 10, **arguments).any()


@pytest.mark.parametrize("device", DEVICES)
def test_a_captured_function_follows_its_inputs(device: str) -> None:
    """Where gradients are kept, and on the CPU, it is called as it is."""
    net, calls = random_net(TINY).to(device), []
    x, t = (value.to(device) for value in inputs(TINY, 0))

    def function(x: Tensor, t: Tensor, level: int) -> Tensor:
        calls.append(level)
        return net(x, t)

    replayed = Replayed(function, Pool())
    assert replayed(x, t, 0).requires_grad
    with torch.no_grad():
        for k in range(5):
            torch.testing.assert_close(replayed(x + k, t, 0), net(x + k, t), rtol=1e-4, atol=1e-4)
    assert calls == [0] * (3 if device == "cuda" else 6)
