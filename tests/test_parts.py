"""A batch in parts, one a thread: the same training and sampling, whatever happens in a part."""

from __future__ import annotations

import copy
import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import WORLD, folder, run, tiny_config, tiny_data, trained, weights
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ssdcore_torch import FlexiUNet, Run, generate, parts, wrap
from ssdcore_torch.denoisers import Denoiser
from ssdcore_torch.parts import Threads, splits, threads_for
from ssdcore_torch.sampling import measure_residuals
from ssdcore_torch.training import Extras, Trainer, plan

__all__ = ["folder"]

EPS = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Batches of tiny networks are split, too; torch's number of threads is as before afterwards."""
    monkeypatch.setattr(parts, "LEAST_WORK", 1.0)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def two(small_parts: None) -> None:
    torch.set_num_threads(2)


def drawn(net: Any, n: int = 5, **settings: Any) -> Tensor:
    return generate(net, PROCESS, n, 4, **settings)


PROCESS = tiny_config().build_process()


def network(**settings: Any) -> FlexiUNet:
    """With random weights in its last layer too, which is made of zeros."""
    torch.manual_seed(0)
    net = FlexiUNet(replace(tiny_config().network, **settings))
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return net


def gradients(trainer: Trainer, images: Any, path: Any) -> tuple[float, list[Tensor | None]]:
    """The loss and gradients of a step on this path, without its update."""
    trainer.optimizer.step = lambda closure=None: None  # type: ignore[method-assign]
    loss = trainer.train_step(images, path)
    trainer.step = 0
    return loss.item(), [p.grad for p in trainer.net.parameters()]


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 5},
        {"batch_size": 6, "accumulate": 2, "recompute": True, "clip": 1e-3},
        {"batch_size": 3, "classes": 3, "equal_cost": True, "label_dropout": 0.5},
    ],
)
def test_gradients_of_parts_add_up_to_those_of_the_batch_on_all_paths(settings: dict[str, Any]) -> None:
    classes = settings.get("classes")
    whole, split = (Trainer(tiny_config(**settings), tiny_data(classes=classes), WORLD) for _ in range(2))
    for trainer in (whole, split):
        trainer.net.load_state_dict(network(num_classes=classes).state_dict())
    images = next(whole.feed.batches(0))
    for path in whole.objective.paths:
        torch.set_num_threads(1)
        loss, expected = gradients(whole, images, path)
        torch.set_num_threads(3)
        with split.threads() as threads:
            assert threads.count == 3
        other, found = gradients(split, images, path)
        assert torch.get_num_threads() == 3
        assert other == pytest.approx(loss, rel=50 * EPS)
        assert [g is None for g in found] == [g is None for g in expected]
        # a bias before a norm of one channel a group has a gradient of zero, up to rounding
        largest = max(a.abs().max() for a in expected if a is not None)
        for name, a, b in zip(dict(whole.net.named_parameters()), expected, found):
            if a is not None and b is not None:
                assert (a - b).abs().max() <= 100 * EPS * (a.abs().max() + 0.1 * largest), name
                assert b.stride() == split.net.get_parameter(name).stride()


def test_with_as_many_threads_training_is_the_same_to_the_bit_also_resumed(two: None) -> None:
    config = tiny_config(6, batch_size=5, skip_spikes=2.0, ema=(0.9, 0.99))
    straight, stopped, resumed = (Trainer(config, tiny_data(), WORLD) for _ in range(3))
    losses = run(straight, 6)
    first = run(stopped, 3)
    resumed.restore(stopped.state())
    assert [*first, *run(resumed, 3)] == losses
    for name, value in weights(straight).items():
        assert torch.equal(value, weights(resumed)[name]), name
    assert torch.equal(
        *(torch.cat([p.flatten() for p in t.averages.network.parameters()]) for t in (straight, resumed))
    )


def test_samples_of_parts_are_those_of_the_batch(two: None) -> None:
    net = network(num_classes=3)
    labels = [0, 1, 2, 0, 1]
    split = drawn(net, labels=labels, guidance=2.0, eta=1.0)
    assert torch.equal(split, drawn(net, labels=labels, guidance=2.0, eta=1.0))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    whole = drawn(net, labels=labels, guidance=2.0, eta=1.0)
    assert (split - whole).abs().max() < 1e-4
    assert not split.requires_grad


class Seen(nn.Module):
    """What each call of a network sees of its thread."""

    batch_independent = True

    def __init__(self, net: FlexiUNet) -> None:
        super().__init__()
        self.net = net
        self.calls: list[tuple[int, int, int, bool, bool]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(super().__getattr__("net"), name) if name in _OF_A_DENOISER else super().__getattr__(name)

    def forward(self, x: Tensor, t: Tensor, out_level: int | None = None, label: Tensor | None = None) -> Tensor:
        modes = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
        self.calls.append((threading.get_ident(), torch.get_num_threads(), len(x), *modes))
        result: Tensor = self.net(x, t, out_level, label)
        return result


_OF_A_DENOISER = ("sizes", "channels", "num_classes", "null_label")


def test_each_part_has_a_thread_and_each_operator_one(two: None) -> None:
    net = Seen(network())
    assert isinstance(net, Denoiser)
    with torch.autocast("cpu", torch.bfloat16):
        drawn(net, 5)
    assert {call[1:] for call in net.calls} == {(1, 2, False, True), (1, 3, False, True)}
    assert threading.get_ident() not in {call[0] for call in net.calls}
    net.calls.clear()
    drawn(net, 1)  # as all threads for the operators of one image
    assert {call[:3] for call in net.calls} == {(threading.get_ident(), 2, 1)}
    assert torch.get_num_threads() == 2


def test_measured_residuals_of_parts_are_those_of_the_batch(two: None) -> None:
    net, images = Seen(network()), torch.rand(5, 3, 8, 8) * 2 - 1
    split = measure_residuals(net, PROCESS, [(images, None)], times_a_path=2)
    assert {call[2] for call in net.calls} == {2, 3}
    torch.set_num_threads(1)
    whole = measure_residuals(net, PROCESS, [(images, None)], times_a_path=2)
    for a, b in zip(split.paths, whole.paths):
        assert a is not None
        assert b is not None
        assert a[1] == pytest.approx(b[1], rel=1e-4)


@pytest.mark.parametrize(
    ("images", "threads", "pixels", "expected"),
    [
        (32, 2, 256, [(16, 1)] * 2),
        (32, 2, 16, [(16, 1)] * 2),  # of the `cpu` preset's smallest size, too
        (1, 2, 16, [(1, 1)]),  # too little for two
        (33, 16, 256, [(4, 1)] * 7 + [(5, 1)]),  # Python has no time for more
        (3, 8, 65536, [(1, 2)] * 3),
        (1, 8, 65536, [(1, 8)]),
    ],
)
def test_how_a_batch_is_split(
    images: int, threads: int, pixels: int, expected: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its work and the threads there are; threads that are left over work on the operators."""
    monkeypatch.setattr(parts, "LEAST_WORK", 1.5e8)

    def work(part: slice) -> tuple[slice, int]:
        return part, torch.get_num_threads()

    found = Threads(threads, 1_196_579).map(work, slice(7, 7 + images), pixels)
    assert torch.get_num_threads() == 1
    assert sorted((part.stop - part.start, inner) for part, inner in found) == expected
    assert [i for part, _ in found for i in range(part.start, part.stop)] == list(range(7, 7 + images))


def test_what_a_part_raises_is_raised_once_and_the_threads_go_on(two: None) -> None:
    trainer = Trainer(tiny_config(batch_size=4), tiny_data(), WORLD)
    batch = next(trainer.feed.batches(0))
    honest, begun = trainer.part_loss, []

    def part_loss(images: Any, drawn: Any, part: slice) -> Tensor:
        begun.append(part.start)
        if part.start == 2:
            raise RuntimeError(f"no memory for {part}")
        return honest(images, drawn, part)

    trainer.part_loss = part_loss  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match=r"no memory for slice\(2, 4, None\)") as caught:
        trainer.train_step(batch)
    assert caught.value.__context__ is None
    assert sorted(begun) == [0, 2]
    assert torch.get_num_threads() == 2
    trainer.part_loss = honest  # type: ignore[method-assign]
    twin = Trainer(tiny_config(batch_size=4), tiny_data(), WORLD)
    assert trainer.train_step(batch) == twin.train_step(batch)


@pytest.mark.skipif(os.name != "posix", reason="signals of a thread")
@pytest.mark.parametrize("fresh", [False, True])
def test_an_interrupt_waits_for_the_parts_at_work(fresh: bool, two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread is left that reads weights while the next step changes them; also if the signal comes while threads
    are started."""
    if fresh:
        monkeypatch.setattr(parts, "_crew", parts._Crew())
    begun: list[int] = []
    done: list[int] = []

    def work(part: slice) -> None:
        begun.append(part.start)
        if part.start == 0:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(0.1)
        done.append(part.start)

    with pytest.raises(KeyboardInterrupt):
        Threads(2, 1).map(work, slice(0, 2), 16)
    assert sorted(begun) == sorted(done)


def test_a_network_that_looks_at_the_whole_batch_is_not_split(two: None) -> None:
    def layers(*more: nn.Module) -> Any:
        return wrap(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), *more), PROCESS, channels=3)

    assert splits(network())
    assert not splits(network(dropout=0.1))
    assert splits(network(dropout=0.1).eval())
    compiled = network()
    compiled.compile_paths(backend="eager")
    hooked, replaced, followed = network(), network(), network()
    hooked.middle.register_forward_hook(lambda *arguments: None)
    replaced.middle.forward = replaced.middle.forward  # type: ignore[method-assign]
    followed.stem.weight.register_hook(lambda gradient: None)
    assert not any(map(splits, (compiled, hooked, replaced, followed, lambda x, t, out_level: x)))
    assert splits(layers(nn.GroupNorm(3, 3), nn.Dropout(0), nn.InstanceNorm2d(3)))
    norm = layers(nn.BatchNorm2d(3))
    assert not splits(norm)
    assert splits(norm.eval())
    for whole in (
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)),
    ):
        assert not splits(layers(whole))
    assert not splits(layers(whole).eval())
    for whole in (nn.Dropout(0.1), nn.InstanceNorm2d(3, track_running_stats=True), nn.RReLU()):
        assert not splits(layers(whole))
        assert splits(layers(whole).eval())
    with FlopCounterMode(display=False):
        assert not splits(network())
    assert not splits(network().to("meta"))


def test_a_module_of_the_users_own_is_split_where_it_says_so(two: None) -> None:
    class Own(nn.Conv2d):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x) * t.view(-1, 1, 1, 1)

    module = Own(3, 3, 1)
    assert not splits(wrap(module, PROCESS, channels=3))
    module.batch_independent = True  # type: ignore[assignment]
    net = wrap(module, PROCESS, channels=3)
    assert splits(net)
    split = drawn(net)
    torch.set_num_threads(1)
    torch.testing.assert_close(split, drawn(net), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_trainer_splits_where_its_network_allows_it(dropout: float, two: None) -> None:
    """Dropout draws from torch's one generator: in one thread the draws of a step are those of its number."""
    config = tiny_config(batch_size=4)
    trainer = Trainer(replace(config, network=replace(config.network, dropout=dropout)), tiny_data(), WORLD)
    net = Seen(trainer.net)
    net.train()
    trainer.net = net
    trainer.networks._net = net
    run(trainer, 1)
    assert [call[2] for call in net.calls] == ([4] if dropout else [2, 2])
    assert torch.get_num_threads() == 2


def test_threads_of_the_users_own_may_draw_at_the_same_time(two: None) -> None:
    """Each gets what it would get alone, and torch's number of threads is what it was, also for those that come new."""
    net = network()
    expected = {seed: drawn(net, seed=seed) for seed in range(4)}
    found: dict[int, tuple[Tensor, int]] = {}

    def ask(seed: int) -> None:
        found[seed] = drawn(net, seed=seed), torch.get_num_threads()

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, image in expected.items():
        torch.testing.assert_close(found[seed][0], image, rtol=1e-5, atol=1e-5)
    assert {count for _, count in found.values()} == {2}
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_makes_threads_of_its_own(two: None) -> None:
    net = network()
    expected = drawn(net)
    gc.collect()
    with parts._crew._starting:  # as another thread of this process may hold it then
        child = os.fork()
    if not child:
        try:
            os._exit(0 if torch.equal(drawn(net), expected) else 3)
        finally:
            os._exit(4)
    deadline = time.monotonic() + 60
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.02)
    if not ended[0]:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)


def test_a_plan_counts_the_gradients_of_each_thread() -> None:
    config = tiny_config(10, batch_size=4)
    one = plan(Trainer(config, tiny_data(), WORLD))
    torch.set_num_threads(2)
    both = plan(Trainer(config, tiny_data(), WORLD))
    assert both.state_bytes - one.state_bytes == 2 * 4 * one.parameters
    assert both.saved_bytes == one.saved_bytes


@pytest.mark.slow
def test_a_profile_sees_what_the_threads_do(folder: Path, two: None) -> None:
    trained(folder, tiny_config(18, batch_size=4, save_every=100), Extras(profile=True))
    assert "convolution_backward" in (folder / "profile" / "table.txt").read_text()


def test_a_copy_of_the_network_is_split_too(two: None) -> None:
    net = copy.deepcopy(network()).eval()
    with threads_for(net) as threads:
        assert threads == Threads(2, sum(p.numel() for p in net.parameters()))
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_the_process_keeps_its_number_of_threads(tmp_path: Path, two: None) -> None:
    pixels, settings = tiny_data().images, {"train": {"steps": 1, "batch_size": 4}}
    made = Run.create(tmp_path / "run", pixels, "cpu", 8, 2, settings)
    made.train()
    made.sample(2, steps=4)
    assert torch.get_num_threads() == 2
