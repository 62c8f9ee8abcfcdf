"""Every fast path against the plain one: compiled graphs, fused norms, recomputed activations, no waiting for the device."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_unet import CONFIGS, inputs, random_net
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import ssdcore as ssd
from ssdcore_torch import FlexiUNet, FlexiUNetConfig, generate
from ssdcore_torch.denoisers.unet import blocks
from ssdcore_torch.denoisers.unet.blocks import Norm
from ssdcore_torch.diffusion import Objective
from ssdcore_torch.randomness import sample_noise
from ssdcore_torch.sampling import _walk, drawing_network, encode

# Two stages and two levels, with attention, adapters and classes: three paths that compile in a moment.
TINY = FlexiUNetConfig(
    ((8, 8), (4, 4)),
    base_channels=32,
    channel_multipliers=(1, 2),
    blocks_per_stage=1,
    attention_sizes=(4,),
    num_classes=2,
)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def process(config: FlexiUNetConfig = TINY, steps: int = 40) -> ssd.LinearDiffusion:
    sizes = config.level_sizes
    levels = ssd.ResolutionSchedule.equal(steps, len(sizes))
    return ssd.LinearDiffusion.resize(sizes[0], ssd.NoiseSchedule.linear(steps), levels, sizes=sizes)


def run(net: FlexiUNet, path: tuple[int, int], precision: str, device: str = "cpu") -> list[Tensor]:
    """Output, and the gradients of a random projection of it, on one path; back on the CPU."""
    torch.manual_seed(7)
    x, t = (value.to(device) for value in inputs(net.config, path[0]))
    label = torch.tensor([0, 1], device=device) if net.config.num_classes else None
    net.zero_grad()
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
        y = net(x, t, path[1], label)
    (y * torch.randn(y.shape, dtype=y.dtype).to(device)).sum().backward()
    return [value.cpu() for value in (y.detach(), *(p.grad for p in net.parameters() if p.grad is not None))]


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative error, of the output and of all gradients together."""
    assert [len(found), *(v.shape for v in found)] == [len(expected), *(v.shape for v in expected)]
    errors = []
    for part in (slice(0, 1), slice(1, None)):
        a, b = (torch.cat([v.double().flatten() for v in values[part]]) for values in (found, expected))
        errors.append(float((a - b).norm() / b.norm()))
    return max(errors)


def tolerance(precision: str) -> float:
    """Some twenty layers, each a few roundings, forward and backward."""
    return {"float32": 100 * torch.finfo(torch.float32).eps, "bfloat16": 20 * torch.finfo(torch.bfloat16).eps}[
        precision
    ]


# ---- compiled paths


class Counting:
    """A backend that runs graphs as they are and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


LIMIT = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"


@torch._dynamo.config.patch(**{LIMIT: 1})
@pytest.mark.slow
def test_a_graph_for_each_mode_runs_out_of_no_limit() -> None:
    """Even with room for a single graph of one code; a second batch needs no other."""
    plain, backend = random_net(TINY), Counting()
    net = copy.deepcopy(plain).compile_paths(backend)
    assert net.compiled
    assert not plain.compiled
    for _ in range(2):
        assert distance(run(net, (1, 1), "float32"), run(plain, (1, 1), "float32")) == 0
    assert backend.graphs == 1
    with torch.no_grad():
        net.eval()(*inputs(TINY, 1))
    assert backend.graphs == 2


def test_unknown_sizes_are_refused_before_anything_is_compiled() -> None:
    backend = Counting()
    net = random_net(TINY).compile_paths(backend)
    with pytest.raises(ValueError, match="no level has the size"):
        net(torch.zeros(1, 3, 6, 6), torch.ones(1))
    with pytest.raises(ValueError, match=r"expected labels in 0\.\.2"):
        net(torch.zeros(1, 3, 8, 8), torch.ones(1), label=torch.tensor([3]))
    assert backend.graphs == 0


def test_copies_and_pickles_run_with_their_own_weights() -> None:
    net = random_net(TINY).compile_paths("eager").eval()
    x, t = inputs(TINY, 1)
    with torch.no_grad():
        before = net(x, t)
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert not other.compiled
            torch.testing.assert_close(other(x, t), before, rtol=0, atol=0)
            for parameter in other.parameters():
                parameter.zero_()
            assert not other(x, t).any()
            torch.testing.assert_close(net(x, t), before, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision", "chosen"),
    [
        ("classes", "float32", [(0, 0), (2, 2), (2, 1)]),
        ("classes", "bfloat16", [(1, 0)]),
        ("released", "float32", [(1, 0)]),
        ("factor 1.5", "float32", [(4, 3)]),
    ],
)
def test_graphs_with_their_gradients_agree(name: str, precision: str, chosen: list[tuple[int, int]]) -> None:
    """Forward and backward traced by AOTAutograd, not yet fused."""
    plain = random_net(CONFIGS[name])
    net = copy.deepcopy(plain).compile_paths("aot_eager")
    for path in chosen:
        assert distance(run(net, path, precision), run(plain, path, precision)) < tolerance(precision)


@pytest.mark.slow
def test_inductor_agrees() -> None:
    """The compiler that training uses, on the path with a change of size (a path costs it a minute on one core)."""
    plain = random_net(TINY)
    net = copy.deepcopy(plain).compile_paths()
    assert distance(run(net, (1, 0), "float32"), run(plain, (1, 0), "float32")) < tolerance("float32")


@pytest.mark.slow
def test_inductor_agrees_in_the_sampler() -> None:
    """Also in the mode that replays CUDA graphs, which changes nothing on the CPU but goes through the same code."""
    plain = random_net(TINY).eval()
    net = copy.deepcopy(plain).compile_paths(mode="reduce-overhead")
    proc = ssd.LinearDiffusion.identity((8, 8), ssd.NoiseSchedule.linear(40))  # one path to compile
    arguments = {"steps": 4, "labels": 1, "guidance": 1.5, "batch_size": 2}
    expected = generate(plain, proc, 3, **arguments)
    torch.testing.assert_close(generate(net, proc, 3, **arguments), expected, rtol=0, atol=1e-3)


@torch._dynamo.config.patch(**{LIMIT: 1})
@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_compiled_network_sees_one_batch_size(guidance: float) -> None:
    """Batches of 3 and 2 samples, in which the samples are those of one batch of 5."""
    proc, plain, labels = process(), random_net(TINY).double().eval(), [0, 1, 0, 1, 1]
    arguments = {"labels": labels, "guidance": guidance, "dtype": torch.float64}
    expected = generate(plain, proc, 5, 6, **arguments)
    backend = Counting()
    net = copy.deepcopy(plain).compile_paths(backend)
    found = generate(net, proc, 5, 6, batch_size=3, **arguments)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    assert backend.graphs == 3  # the paths 4→4, 4→8 and 8→8


@pytest.mark.slow
def test_encoding_with_a_compiled_network() -> None:
    proc = process(steps=200)
    plain = random_net(TINY).double().eval()
    with torch.no_grad():  # flat enough for the inverse to converge
        plain.head_conv.weight.mul_(1e-3)
    images = torch.rand(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.5
    expected = encode(plain, proc, images, steps=40)
    backend = Counting()
    code = encode(copy.deepcopy(plain).compile_paths(backend), proc, images, steps=40, batch_size=2)
    torch.testing.assert_close(code.state, expected.state, rtol=0, atol=1e-8)
    assert backend.graphs == 3


# ---- norms


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_norm_activation_and_modulation_are_one_unit(
    dtype: torch.dtype, layout: torch.memory_format, modulated: bool, offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways of it against the plain formula in float64, with its gradients, also far from zero."""
    torch.manual_seed(0)
    norm = Norm(96)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (torch.randn(3, 96, 5, 4) + offset).to(dtype).contiguous(memory_format=layout)
    film = [torch.randn(3, 96).to(dtype) for _ in range(2)] if modulated else []
    upstream = torch.randn(3, 96, 5, 4)

    def results(make: Callable[..., Tensor], wide: bool) -> list[Tensor]:
        module = copy.deepcopy(norm).double() if wide else copy.deepcopy(norm).to(dtype)
        leaves = [v.double() if wide else v for v in (x, *film)]
        leaves = [v.detach().clone(memory_format=torch.preserve_format).requires_grad_() for v in leaves]
        y = make(module, *leaves)
        return [y, *torch.autograd.grad((y * upstream.to(y.dtype)).sum(), [*leaves, *module.parameters()])]

    def plain(module: Norm, h: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        h = F.group_norm(h, 32, module.weight, module.bias, module.eps)
        if scale is not None:
            h = h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        return F.silu(h)

    if dtype == torch.bfloat16:
        norm.to(dtype).float()  # the reference then has the same weights
    expected = results(plain, wide=True)
    for by_channel in (False, True):
        monkeypatch.setattr(blocks, "by_channel", lambda x, answer=by_channel: answer)
        found = results(Norm.activated, wide=False)
        assert found[0].dtype == dtype
        assert found[0].is_contiguous(memory_format=layout)
        for value, reference in zip(found, expected):
            # Subtracting the mean leaves its rounding, offset/σ times larger, in every value; the library's kernel for
            # channels-last tensors takes the variance as a difference of squares, with the rounding of these.
            size = 1 + (offset if by_channel else offset**2)
            bound = 16 * size * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
            bound += 2 * torch.finfo(dtype).eps
            error = (value.double() - reference).norm() / reference.norm()
            assert error < bound, (by_channel, value.shape)


@pytest.mark.parametrize(
    ("name", "precision"), [("small", "float32"), ("small", "bfloat16"), ("factor 1.5", "float32")]
)
def test_norms_by_channel_in_the_network(name: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What compiled CUDA code runs, on the CPU."""
    net = random_net(CONFIGS[name])
    for path in ((1, 0), (2, 2)):
        expected = run(net, path, precision)
        with monkeypatch.context() as patch:
            used: list[bool] = []
            patch.setattr(blocks, "by_channel", lambda x, used=used: used.append(True) or True)
            found = run(net, path, precision)
        assert used
        if precision == "float32":
            assert 0 < distance(found, expected) < tolerance(precision)
        else:
            exact = run(net, path, "float32")
            assert distance(found, exact) < 1.5 * distance(expected, exact)


def test_norms_are_taken_by_channel_only_in_compiled_cuda_code(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnCuda:
        is_cuda = True

    on_cpu, on_cuda = torch.zeros(1), OnCuda()
    assert not blocks.by_channel(on_cpu)
    assert not blocks.by_channel(on_cuda)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not blocks.by_channel(on_cpu)
    assert blocks.by_channel(on_cuda)


# ---- layout


@pytest.mark.parametrize("path", [(0, 0), (1, 1), (1, 0)])
def test_channels_last_all_the_way(path: tuple[int, int]) -> None:
    """No convolution, and no block, is given or gives another layout than the weights'."""
    net = random_net(TINY).to(memory_format=torch.channels_last).eval()
    wrong: list[str] = []

    def look(name: str, values: Any) -> None:
        for value in values:
            four = isinstance(value, Tensor) and value.ndim == 4 and value.shape[2] > 1
            if four and not value.is_contiguous(memory_format=torch.channels_last):
                wrong.append(f"{name}: {tuple(value.shape)} with strides {value.stride()}")

    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, blocks.Block, blocks.Attention, blocks.ResidualBlock)) and name != "stem":
            module.register_forward_hook(lambda module, args, out, name=name: look(name, [*args, out]))
    x, t = inputs(TINY, path[0])
    with torch.no_grad():
        y = net(x, t, path[1])
    assert not wrong
    plain = random_net(TINY).eval()
    torch.testing.assert_close(y, plain(x, t, path[1]).detach(), rtol=0, atol=1e-4)


# ---- recomputed activations


def saved_bytes(net: FlexiUNet, path: tuple[int, int]) -> int:
    """What the graph of a loss keeps, weights aside."""
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)  # so that no address is used twice
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = net(*inputs(net.config, path[0]), path[1]).sum()
    assert loss.requires_grad
    return sum(size for address, size in kept.items() if address not in weights)


@pytest.mark.parametrize(("name", "dropout"), [("small", 0.0), ("small", 0.3), ("full", 0.0)])
def test_recomputed_activations_have_the_same_gradients_and_a_fraction_of_the_memory(name: str, dropout: float) -> None:
    net = random_net(dataclasses.replace(CONFIGS[name], dropout=dropout))
    for path in ((0, 0), (1, 0)):
        expected, before = run(net, path, "float32"), saved_bytes(net, path)
        net.checkpoint_activations()
        found, after = run(net, path, "float32"), saved_bytes(net, path)
        net.checkpoint_activations(False)
        assert distance(found, expected) == 0
        assert after < before / 3, (before, after)
        assert saved_bytes(net, path) == before


def test_nothing_is_recomputed_without_gradients() -> None:
    net = random_net(TINY).eval().checkpoint_activations()
    calls = []
    net.middle.block1.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        net(*inputs(TINY, 1))
    assert len(calls) == 1


# ---- the host


class NoWaiting(TorchDispatchMode):
    """Fails where a value is read back from the device, or where a shape depends on values."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if any(name.startswith(forbidden) for forbidden in self.FORBIDDEN):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def test_a_training_step_waits_for_nothing() -> None:
    proc, net = process(), random_net(TINY)
    objective = Objective(proc, change_share=0.5, repeats=(1, 1, 2))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    x0, seen = torch.rand(2, 3, 8, 8), set()
    for step in range(12):
        batch = objective.draw(2, seed=0, step=step)
        noise = torch.randn(batch.noise_shape(3))
        with NoWaiting():
            loss = objective(net, x0, batch, noise, TINY.level_sizes.index(batch.path.target_shape))
            loss.backward()
            optimizer.step()
        seen.add(batch.path)
    assert len(seen) == 3
    with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
        loss.item()


@pytest.mark.parametrize("sampler", ["ancestral", "multistep"])
def test_the_sampler_waits_for_nothing(sampler: str) -> None:
    proc, net = process(), random_net(TINY).eval()
    expected = generate(net, proc, 2, 5, sampler=sampler)
    with NoWaiting():
        found = generate(net, proc, 2, 5, sampler=sampler)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["small", "classes", "factor 1.5"])
def test_a_bfloat16_copy_draws_as_autocast_does(name: str) -> None:
    """As near to float32 as autocast, whose weights are rounded alike; what the norms take stays in float32."""
    net = random_net(CONFIGS[name]).eval()
    twin = drawing_network(net, in_bfloat16=True)
    kinds = {key: value.dtype for key, value in twin.state_dict().items()}
    assert kinds["stem.weight"] == kinds["middle.attention.qkv.weight"] == torch.bfloat16
    assert kinds["middle.block1.norm1.weight"] == kinds["time_embedding.linear1.weight"] == torch.float32
    assert {value.dtype for value in net.state_dict().values()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    label = torch.tensor([0, 1]) if net.config.num_classes else None
    for level, out_level in ((0, 0), (1, 0)):
        x, t = inputs(net.config, level)
        with torch.no_grad():
            exact, found = net(x, t, out_level, label), twin(x, t, out_level, label)
            with torch.autocast("cpu", torch.bfloat16):
                lowered = net(x, t, out_level, label)
        assert found.dtype == torch.float32
        assert (found - exact).norm() < 1.2 * (lowered - exact).norm()
        assert (found - lowered).norm() < 1.5 * (lowered - exact).norm()


def test_a_network_that_draws_as_it_is_is_not_copied() -> None:
    net = random_net(TINY)
    assert drawing_network(net, in_bfloat16=False) is net


@pytest.mark.parametrize(("sampler", "eta", "taken"), [("ancestral", 1, 5), ("ancestral", 0, 2), ("multistep", 0, 2)])
def test_noise_is_drawn_where_a_step_has_any(
    sampler: str, eta: float, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """x_T, and four steps or the one that changes the size; the last returns a prediction."""
    asked: list[int] = []

    def counted(seed: int, indices: Any, draws: range, size: int, device: torch.device) -> Tensor:
        asked.append(size)
        return sample_noise(seed, indices, draws, size, device)

    monkeypatch.setattr(_walk, "sample_noise", counted)
    generate(random_net(TINY), process(), 2, 5, eta, sampler=sampler)
    assert len(asked) == taken
    assert asked[0] == 3 * 16


def test_sampling_under_autocast_keeps_its_states_in_full_precision() -> None:
    """Only the network's arithmetic is lowered: given the same predictions, the states are the same to the bit."""
    proc = process()

    def denoiser(x: Tensor, t: Tensor, out_level: int) -> Tensor:
        return torch.tanh(F.interpolate(x, TINY.level_sizes[out_level], mode="nearest-exact"))

    expected = generate(denoiser, proc, 2, 6, channels=3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(generate(denoiser, proc, 2, 6, channels=3), expected)


# ---- the benchmark


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/speed.py, with a short chain."""
    file = Path(__file__).parents[1] / "benchmarks" / "speed.py"
    spec = importlib.util.spec_from_file_location("speed", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "speed", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "STEPS", 3)
    return module


@pytest.mark.slow
def test_the_benchmark_measures_both_sides(speed: Any) -> None:
    """Its functions on a tiny model, with our own network in the peer's place."""
    tiny = speed.Model(8, 2, (1, 1), channels=32, blocks=1)
    taken: list[str] = []

    class Twin:
        def model(self, model: Any, device: torch.device) -> Any:
            taken.append(str(model))
            return speed.Ours(model, device, compiled=False)

    bench = speed.Bench(torch.device("cpu"), Twin(), compiled=False, repeats=1, warm_up=0)
    rows = [*speed.training(bench, tiny, 2), *speed.sampling(bench, tiny, 2), *speed.recomputation(bench, tiny, 2)]
    assert taken == ["8 px, 2 levels"] * 2
    assert [row.unit for row in rows] == ["images/s"] * 3
    for row in rows[:2]:
        assert row.ratio == row.ours / row.peer
        assert row.ours > 0
    assert rows[2].peer is None
    head = {
        "command": "c",
        "device": "d",
        "date": "2026",
        "torch": "2",
        "minutes": 1,
        "load": 0.0,
        "not measured": {"x": "no time"},
    }
    table = speed.to_markdown(head, rows)
    assert table.count("\n|") == 5
    assert f"| train 8 px, 2 levels, batch 2 | images/s | {rows[0].ours:.4g} | {rows[0].peer:.4g} |" in table
    assert table.endswith("Not measured: x (no time).")
    alone = dataclasses.replace(bench, peer=None)
    (row,) = speed.sampling(alone, tiny, 1)
    assert (row.peer, row.ratio) == (None, None)


def test_a_benchmark_section_that_fails_loses_no_other(
    speed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(bench: Any) -> list[Any]:
        raise RuntimeError("out of memory\nand more")

    out = tmp_path / "speed.json"

    def measured(bench: Any) -> list[Any]:
        assert not out.exists()
        return [speed.row("train", "images/s", [2.0, 1.0])]

    def last(bench: Any) -> list[Any]:
        assert json.loads(out.read_text())["rows"][0]["ratio"] == 2
        return []

    monkeypatch.setattr(speed, "cpu_sections", lambda: {"a": measured, "b": failing, "c": last})
    monkeypatch.setattr(sys, "argv", ["speed.py", "--device", "cpu", "--out", str(out)])
    with pytest.raises(SystemExit):
        speed.main()
    assert "Not measured: b (RuntimeError: out of memory)." in capsys.readouterr().out
    assert json.loads(out.read_text())["not measured"] == {"b": "RuntimeError: out of memory"}


def test_the_benchmark_weighs_paths_by_the_papers_steps(speed: Any) -> None:
    """The shares of the sizes are those of the schedule; changes of size are too rare to count."""
    model = speed.Model(64, 4, (1, 2, 3, 4))
    assert model.network == FlexiUNetConfig(model.network.level_sizes)  # the paper's
    found, shares = speed.common_paths(model.process())
    assert [path.shape[0] for path in found] == [64, 32, 16, 8]
    assert all(path.shape == path.target_shape for path in found)
    counts = [len(path.times) for path in found]
    np.testing.assert_allclose(shares, np.array(counts) / sum(counts))
    assert sum(counts) == 997
    batch = speed.draw(found[1], 16)
    assert set(batch.times) <= set(found[1].times)
    assert set(speed.cuda_sections()) >= {"train64", "sample64", "train64-small", "memory256", "train256"}


def test_the_benchmark_refuses_what_is_no_checkout(speed: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="expected a checkout of the paper's code"):
        speed.load_peer(tmp_path, torch.device("cpu"))
