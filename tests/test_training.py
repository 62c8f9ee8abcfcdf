"""The trainer: its step, its laws, and what it does when something goes wrong."""

from __future__ import annotations

import importlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssdcore_torch import checkpoint
from ssdcore_torch.config import Config, preset
from ssdcore_torch.data import Feed, ImageSet
from ssdcore_torch.denoisers.unet import FlexiUNet
from ssdcore_torch.distributed import World, connect
from ssdcore_torch.training import Extras, NotFiniteError, TensorBoard, Trainer, WeightsAndBiases, plan, replay, train
from ssdcore_torch.training.parallel import used_parameters

WORLD = World(0, 1, 0, torch.device("cpu"))


def tiny_config(steps: int = 8, classes: int | None = None, **settings: Any) -> Config:
    base = preset("cpu").overlaid({}, 8, 2)
    network = replace(base.network, channel_multipliers=(1, 1), attention_sizes=(4,), num_classes=classes)
    names = tuple(map(str, range(classes or 0)))
    values = {"steps": steps, "batch_size": 4, "log_every": 4, "save_every": 4, **settings}
    data = replace(base.data, classes=() if classes else base.data.classes, class_names=names)
    return replace(base, network=network, data=data, train=replace(base.train, **values))


def tiny_data(count: int = 10, classes: int | None = None) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    labels = None if classes is None else np.arange(count) % classes
    return ImageSet(pixels, labels, tuple(map(str, range(classes or 0))), "noise")


def run(trainer: Trainer, steps: int) -> list[float]:
    batches = trainer.feed.batches(trainer.step)
    return [trainer.train_step(next(batches)).item() for _ in range(steps)]


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.net.state_dict().items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty run folder with its configuration, as `prepare` leaves it."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def trained(folder: Path, config: Config, extras: Extras = Extras(), data: ImageSet | None = None) -> Trainer:  # noqa: B008
    checkpoint.save_config(folder, config)
    trainer = Trainer(config, tiny_data() if data is None else data, WORLD)
    assert train(trainer, folder, extras)
    return trainer


def test_accumulated_parts_make_the_gradient_of_the_whole_batch() -> None:
    """The same images, times and noise, in one part or four: the same losses and weights, to rounding."""
    once, parts = (Trainer(tiny_config(accumulate=count), tiny_data(), WORLD) for count in (1, 4))
    first, second = run(once, 6), run(parts, 6)
    np.testing.assert_allclose(first, second, rtol=1e-4)
    # Adam divides by the root of the second moment: where a gradient is all rounding, so is the step, of up to its rate.
    largest = sum(once.learning_rate(step) for step in range(6))
    for name, value in weights(once).items():
        assert (value - weights(parts)[name]).abs().max() <= 2 * largest
        assert (value - weights(parts)[name]).abs().mean() <= 0.02 * largest


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="do not divide into accumulate = 3 parts"):
        tiny_config(accumulate=3)
    with pytest.raises(ValueError, match=r"do not divide evenly over 3 processes × 1 parts .* take a multiple of 3"):
        Trainer(tiny_config(), tiny_data(), World(0, 3, 0, torch.device("cpu")))


def test_clipping_bounds_what_a_step_may_do() -> None:
    """Adam is invariant to the gradient's scale, so look at the first moment: (1 − β₁) times a gradient of norm clip."""
    trainer = Trainer(tiny_config(clip=1e-3), tiny_data(), WORLD)
    run(trainer, 1)
    moments = [trainer.optimizer.state[p]["exp_avg"] for p in trainer.net.parameters() if p in trainer.optimizer.state]
    norm = math.sqrt(sum(m.square().sum().item() for m in moments))
    assert norm == pytest.approx(0.1 * 1e-3, rel=1e-4)


def poison(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, step: int, value: float) -> None:
    """Multiply the loss of one step by `value`."""
    honest = trainer.part_loss

    def part_loss(*arguments: Any) -> Tensor:
        return honest(*arguments) * (value if trainer.step == step else 1.0)

    monkeypatch.setattr(trainer, "part_loss", part_loss)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_stops_before_the_update(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    config = tiny_config()
    trainer, twin = Trainer(config, tiny_data(), WORLD), Trainer(config, tiny_data(), WORLD)
    poison(trainer, monkeypatch, 3, value)
    with pytest.raises(NotFiniteError, match=r"step 3: .* Path \d×\d→\d×\d, times \[\d+.*\], images \[\d") as caught:
        run(trainer, 8)
    assert caught.value.step == 3
    run(twin, 3)
    before, after = weights(twin), weights(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before)
    moments = [s["exp_avg"] for s in trainer.optimizer.state.values()]
    assert all(torch.isfinite(moment).all() for moment in moments)


def test_steps_run_ahead_of_the_check_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the host looks every few steps only: the steps between leave the weights alone, too."""
    trainer = Trainer(tiny_config(), tiny_data(), WORLD)
    poison(trainer, monkeypatch, 2, math.nan)
    monkeypatch.setattr(trainer, "check", lambda: None)
    run(trainer, 2)
    before = weights(trainer)
    run(trainer, 3)
    assert all(torch.equal(before[name], value) for name, value in weights(trainer).items())
    monkeypatch.undo()
    with pytest.raises(NotFiniteError, match="step 2"):
        trainer.check()


def test_a_failed_run_keeps_its_last_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(12)
    checkpoint.save_config(folder, config)
    trainer = Trainer(config, tiny_data(), WORLD)
    poison(trainer, monkeypatch, 6, math.nan)
    with pytest.raises(NotFiniteError, match="step 6"):
        train(trainer, folder, Extras())
    assert checkpoint.load_state(folder, trainer.net.state_dict()).step == 4


def test_replay_names_the_images_and_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(tiny_config(), tiny_data(), WORLD)
    expected = trainer.feed.order.indices(5)
    poison(trainer, monkeypatch, 5, math.nan)
    head, *images, last = replay(trainer, 5)
    assert head.startswith("step 5: 4 images")
    assert [int(line.split()[1].rstrip(",")) for line in images] == expected.tolist()
    assert all(line.endswith("loss nan") for line in images)
    assert "gradients not finite: stem.weight" in last or "gradients not finite: time_embedding" in last
    with pytest.raises(ValueError, match="--replay 2: the last checkpoint is of step 5"):
        list(replay(trainer, 2))


def test_spikes_are_skipped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss a thousand times the mean of its path leaves the weights alone; the steps around it do not."""
    trainer = Trainer(tiny_config(300, skip_spikes=50.0), tiny_data(), WORLD)
    while trainer._spike_counts[trainer.objective.paths.index(trainer.draw(trainer.step).batch.path)] < 20:
        run(trainer, 1)
        assert trainer.step < 100
    assert trainer.skipped == 0
    poison(trainer, monkeypatch, trainer.step, 1000.0)
    before = weights(trainer)
    run(trainer, 1)
    assert trainer.skipped == 1
    assert all(torch.equal(before[name], value) for name, value in weights(trainer).items())
    run(trainer, 1)
    assert trainer.skipped == 1
    assert not all(torch.equal(before[name], value) for name, value in weights(trainer).items())


def test_spike_means_survive_a_restart() -> None:
    config = tiny_config(60, skip_spikes=2.0)
    whole, first, second = (Trainer(config, tiny_data(), WORLD) for _ in range(3))
    expected = run(whole, 60)
    found = run(first, 30)
    second.restore(first.state())
    assert found + run(second, 30) == expected
    assert second.skipped == whole.skipped


def test_labels_are_learned_and_some_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(40, classes=3, batch_size=10, label_dropout=0.5)
    trainer = Trainer(config, tiny_data(classes=3), WORLD)
    seen: list[Tensor] = []
    honest = trainer.net.forward

    def forward(x: Tensor, t: Tensor, out_level: int | None = None, label: Tensor | None = None) -> Tensor:
        assert label is not None
        seen.append(label)
        return honest(x, t, out_level, label)

    monkeypatch.setattr(trainer.net, "forward", forward)
    batches = trainer.feed.batches(0)
    for _ in range(40):
        batch = next(batches)
        trainer.train_step(batch)
        kept = seen[-1] != 3
        assert batch.labels is not None
        assert torch.equal(seen[-1][kept], batch.labels[kept])
    dropped = (torch.cat(seen) == 3).double().mean().item()
    assert abs(dropped - 0.5) < 4 * math.sqrt(0.25 / 400)


def test_equal_cost_takes_more_times_at_low_levels() -> None:
    trainer = Trainer(tiny_config(equal_cost=True), tiny_data(), WORLD)
    repeats = dict(zip(((p.shape, p.target_shape) for p in trainer.objective.paths), trainer.objective.repeats))
    assert repeats[(8, 8), (8, 8)] == 1
    assert repeats[(4, 4), (4, 4)] > 1
    assert all(math.isfinite(loss) for loss in run(trainer, 8))


def test_times_drawn_by_density_go_on_bit_for_bit(tmp_path: Path) -> None:
    """What a step draws is a function of the seed and the step: a restored run has what it would have had."""
    config = tiny_config(weighting="edm", time_sampling="density", equal_cost=True, accumulate=2)
    whole, again = (Trainer(config, tiny_data(), WORLD) for _ in range(2))
    assert whole.objective.time_sampling == "density"
    run(whole, 3)
    checkpoint.save_config(tmp_path, config)
    checkpoint.save_state(tmp_path, whole.state())
    again.restore(checkpoint.load_state(tmp_path, again.net.state_dict()))
    assert run(again, 3) == run(whole, 3)
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(whole).items())
    with pytest.raises(ValueError, match=r'train.time_sampling: "density" needs train.weighting=edm.*got min_snr'):
        tiny_config(time_sampling="density")


def test_recomputed_activations_change_nothing() -> None:
    kept, again = (Trainer(tiny_config(recompute=value), tiny_data(), WORLD) for value in (False, True))
    assert run(kept, 3) == run(again, 3)


@pytest.mark.slow
def test_a_compiled_network_trains_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiler that makes graphs and no code: what inductor makes of them is tested with the network."""
    honest = FlexiUNet.compile_paths
    monkeypatch.setattr(FlexiUNet, "compile_paths", lambda net: honest(net, backend="aot_eager"))
    plain, compiled = (Trainer(tiny_config(compile=value), tiny_data(), WORLD) for value in (False, True))
    assert compiled.net.compiled
    np.testing.assert_allclose(run(plain, 4), run(compiled, 4), rtol=1e-3)


@pytest.mark.slow
def test_a_run_leaves_its_log_samples_and_profile(folder: Path) -> None:
    config = tiny_config(20, sample_every=8, ema=(0.9, 0.99))
    trainer = trained(folder, config, Extras(loggers=[TensorBoard()], profile=True))
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12, 16, 20]
    for line in lines:
        assert line["loss"] > 0
        assert line["gradient_norm"] > 0
        assert set(line["paths"]) <= {"8×8→8×8", "4×4→8×8", "4×4→4×4"}
    assert {f.name for f in (folder / "samples").iterdir()} == {"step-00000008.png", "step-00000016.png"}
    assert list((folder / "tensorboard").iterdir())
    assert json.loads((folder / "profile" / "trace.json").read_text())["traceEvents"]
    assert "adamw" in (folder / "profile" / "table.txt").read_text().lower()
    assert list(trainer.averages.state()) == list(trainer.state().averages)
    assert len(trainer.averages.state()) == 2


def test_the_speed_leaves_out_the_time_of_grids(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def step(trainer: Trainer, images: Any) -> Tensor:
        now[0] += 0.5
        return honest(trainer, images)

    def grid(trainer: Trainer) -> Any:
        now[0] += 1000.0
        raise OSError("no room")

    honest = Trainer.train_step
    loop = importlib.import_module("ssdcore_torch.training.loop")
    monkeypatch.setattr(Trainer, "train_step", step)
    monkeypatch.setattr(loop, "sample_grid", grid)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    trained(folder, tiny_config(8, sample_every=3))
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert now[0] == 2004
    assert [line["images_per_second"] for line in lines] == [8.0, 8.0]  # 4 images in half a second


def test_the_best_evaluation_is_kept(folder: Path) -> None:
    """Rotation keeps the newest checkpoints and the best one."""
    distances = iter([5.0, 1.0, 3.0, 4.0, 2.0])
    config = tiny_config(20, evaluate_every=4, evaluate_samples=8, save_every=2, keep=1)
    trainer = trained(folder, config, Extras(evaluate=lambda _: {"frechet": next(distances)}))
    assert trainer.best == {"step": 8, "frechet": 1.0}
    assert [path.name[-8:] for path in checkpoint.checkpoints(folder)] == ["00000020", "00000008"]
    figures = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["evaluation"]["frechet"] for line in figures if "evaluation" in line] == [5.0, 1.0, 3.0, 4.0, 2.0]
    again = Trainer(config, tiny_data(), WORLD)
    again.restore(checkpoint.load_state(folder, again.net.state_dict()))
    assert again.best == trainer.best


def test_restored_moments_have_the_layout_of_their_weights(tmp_path: Path) -> None:
    """The optimizer's fused CUDA kernel takes no other, and weights are channels-last there."""
    made = []
    for _ in range(2):
        trainer = Trainer(tiny_config(), tiny_data(), WORLD)
        trainer.net.to(memory_format=torch.channels_last)
        made.append(trainer)
    run(made[0], 2)
    checkpoint.save_config(tmp_path, made[0].config)
    checkpoint.save_state(tmp_path, made[0].state(), keep=1)
    made[1].restore(checkpoint.load_state(tmp_path, made[1].net.state_dict()))
    strided = 0
    for before, after in zip(*(trainer.net.parameters() for trainer in made)):
        for name in ("exp_avg", "exp_avg_sq"):
            saved, restored = (t.optimizer.state[p][name] for t, p in zip(made, (before, after)))
            assert torch.equal(saved, restored)
            assert restored.stride() == after.stride()
        strided += after.stride() != after.contiguous().stride()
    assert strided > 5


def test_a_plan_says_what_a_run_costs() -> None:
    config = tiny_config(1000)
    made = plan(Trainer(config, tiny_data(), WORLD))
    trainer = Trainer(config, tiny_data(), WORLD)
    parameters = sum(p.numel() for p in trainer.net.parameters())
    assert made.parameters == parameters
    assert made.state_bytes == 4 * 5 * parameters
    assert sum(p.share for p in made.paths) == pytest.approx(1)
    costs = {(p.path.shape, p.path.target_shape): p.gflop for p in made.paths}
    assert costs[(4, 4), (4, 4)] < costs[(4, 4), (8, 8)] <= costs[(8, 8), (8, 8)]
    assert made.seconds == pytest.approx(1000 * sum(p.share * p.seconds for p in made.paths))
    for word in ("M parameters", "GFLOP", "4×4 → 8×8", "MiB"):
        assert word in made.table()


def test_a_plan_times_slow_steps_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("ssdcore_torch.training.plan")  # the name in the package is the function
    monkeypatch.setattr(module, "operations", lambda *of: 1)
    monkeypatch.setattr(module, "saved_bytes", lambda *of: 1)
    trainer = Trainer(tiny_config(1000), tiny_data(), WORLD)
    taken = []
    step = trainer.train_step
    monkeypatch.setattr(trainer, "train_step", lambda *args: taken.append(trainer.step) or step(*args))
    for slow, compiles, steps in ((0.0, False, 1), (0.0, True, 1 + module.TIMED), (1e9, False, 1 + module.TIMED)):
        monkeypatch.setattr(module, "SLOW", slow)
        trainer.config = trainer.config.overlaid({"train": {"compile": compiles}})
        taken.clear()
        made = plan(trainer)
        assert len(taken) == steps * len(made.paths)
        assert all(p.seconds > 0 for p in made.paths)


def test_memory_kept_for_the_backward_pass_is_what_autograd_keeps() -> None:
    from ssdcore_torch.training.plan import saved_bytes

    trainer = Trainer(tiny_config(), tiny_data(), WORLD)
    path = trainer.objective.paths[0]
    own = {p.data_ptr() for p in trainer.net.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = trainer.net(torch.zeros(1, 3, 8, 8), torch.ones(1))
    measured = sum(kept.values())
    del out
    assert saved_bytes(trainer.net, path) == pytest.approx(measured, rel=0.1)
    assert saved_bytes(trainer.net, path, recompute=True) < measured / 2


def test_a_plan_of_the_rarest_path_and_of_recomputed_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that a step in a hundred million takes is timed as the others are; recomputing shows in the memory."""
    module = importlib.import_module("ssdcore_torch.training.plan")
    monkeypatch.setattr(module, "operations", lambda *of: 1)
    plans = [
        plan(Trainer(tiny_config(steps=2, batch_size=8, size_bias=12.0, recompute=on), tiny_data(), WORLD))
        for on in (False, True)
    ]
    rarest = min(plans[0].paths, key=lambda p: p.share)
    assert 0 < rarest.share < 1e-6
    assert rarest.seconds > 0
    assert plans[1].saved_bytes < plans[0].saved_bytes / 2


@pytest.mark.parametrize("number", [0, 1, 2])
def test_used_parameters_are_those_with_gradients(number: int) -> None:
    trainer = Trainer(tiny_config(), tiny_data(), WORLD)
    path = trainer.objective.paths[number]
    out = trainer.net(torch.zeros(2, 3, *path.shape), torch.ones(2), trainer.sizes.index(path.target_shape))
    out.sum().backward()
    assert used_parameters(trainer.net, path) == [
        name for name, p in trainer.net.named_parameters() if p.grad is not None
    ]


def test_some_paths_leave_parameters_out() -> None:
    trainer = Trainer(tiny_config(), tiny_data(), WORLD)
    counts = {len(used_parameters(trainer.net, path)) for path in trainer.objective.paths}
    assert min(counts) < len(list(trainer.net.parameters()))


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("alone")
def test_a_world_of_one() -> None:
    with connect("cpu") as world:
        assert (world.rank, world.size, world.leader) == (0, 1, True)
        assert list(world.share(5)) == [0, 1, 2, 3, 4]
        assert world.any(True)
        assert not world.any(False)
        rows = torch.arange(3)
        assert torch.equal(world.gather(rows), rows)
        assert torch.equal(world.mean(rows), rows)


@pytest.mark.parametrize(("count", "size"), [(0, 3), (1, 3), (7, 3), (8, 4), (5, 8)])
def test_shares_cover_everything_once(count: int, size: int) -> None:
    shares = [World(rank, size, rank, torch.device("cpu")).share(count) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


class FakeWandb:
    """Weights & Biases, as far as a run is written to it."""

    def __init__(self) -> None:
        self.begun = list[dict[str, Any]]()
        self.rows = list[dict[str, Any]]()
        self.finished = 0
        self.run = SimpleNamespace(define_metric=lambda *_, **__: None, log=self.rows.append, finish=self.finish)

    def init(self, **options: Any) -> Any:
        self.begun.append(options)
        return self.run

    def finish(self) -> None:
        self.finished += 1

    def Image(self, picture: Any) -> Any:
        return picture.size


class Broken:
    """A logger of the user's that raises at its second step."""

    def __init__(self) -> None:
        self.seen = list[int]()

    def open(self, run: Path, step: int, settings: Any) -> None:
        assert settings["train.log_every"] == 4

    def figures(self, step: int, figures: Any) -> None:
        self.seen.append(step)
        if len(self.seen) == 2:
            raise ConnectionError("gone")

    def picture(self, step: int, name: str, picture: Any) -> None: ...

    def close(self) -> None:
        raise AssertionError("it was given up")


def test_figures_and_pictures_go_to_loggers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    broken = Broken()
    config = tiny_config(12, sample_every=8)
    trained(folder, config, Extras(loggers=[broken, WeightsAndBiases("mine", mode="offline")]))
    trained(folder, replace(config, train=replace(config.train, steps=4)), Extras(loggers=[WeightsAndBiases("mine")]))
    assert broken.seen == [4, 8]
    assert caplog.text.count("Broken failed (gone): training continues without it") == 1
    first, again = fake.begun
    assert (first["project"], first["mode"], first["resume"], first["dir"]) == ("mine", "offline", "allow", str(folder))
    assert first["id"] == again["id"]
    assert first["config"]["train.steps"] == 12
    assert fake.finished == 2
    assert [row["step"] for row in fake.rows] == [4, 8, 8, 12, 4]
    assert fake.rows[0]["loss"] > 0
    assert any(name.startswith("paths/") for name in fake.rows[0])
    assert set(fake.rows[2]) == {"samples", "step"}


def test_wandb_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"pip install \"ssdcore\[wandb\]\""):
        WeightsAndBiases()


def test_tensorboard_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install \"ssdcore\[tensorboard\]\""):
        TensorBoard()


@pytest.mark.parametrize("share", [0.05, 0.6])
def test_a_slow_loader_is_named_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, share: float
) -> None:
    monkeypatch.setattr(Feed, "wait_share", property(lambda feed: share))
    trained(folder, tiny_config(12))
    warnings = [record.getMessage() for record in caplog.records if "bottleneck" in record.getMessage()]
    assert len(warnings) == (share > 0.2)
    assert all("training waits for images more than 20 % of the time" in warning for warning in warnings)
