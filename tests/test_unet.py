"""The Flexi-UNet: paths, empty skips, sizes, errors."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssdcore_torch.denoisers.unet import FlexiUNet, FlexiUNetConfig, forward_flops, level_sizes
from ssdcore_torch.denoisers.unet.blocks import DecoderBlock

SMALL = FlexiUNetConfig(
    level_sizes(16, 3, stages=3), base_channels=32, channel_multipliers=(1, 2, 2), blocks_per_stage=1
)
PAPER_64 = FlexiUNetConfig(level_sizes(64, 4, stages=4))
PAPER_256 = FlexiUNetConfig(level_sizes(256, 6, stages=6), channel_multipliers=(1, 1, 2, 2, 4, 4))

# one for each kind of network, small enough to run in a moment
CONFIGS = {
    "small": SMALL,
    "two blocks": dataclasses.replace(SMALL, blocks_per_stage=2, channel_multipliers=(1, 1, 2)),
    "released": dataclasses.replace(SMALL, released_behaviour=True),
    "full": dataclasses.replace(SMALL, flexi=False),
    "classes": dataclasses.replace(SMALL, num_classes=3),
    "not square": dataclasses.replace(SMALL, level_sizes=level_sizes((16, 24), 3, stages=3)),
    # five levels in three stages: several share a stage, and sizes do not double
    "factor 1.5": dataclasses.replace(SMALL, level_sizes=level_sizes(32, 5, stages=3, factor=1.5)),
    "factor 4": dataclasses.replace(SMALL, level_sizes=level_sizes(16, 2, stages=3, factor=4)),
    "below the last stage": dataclasses.replace(SMALL, level_sizes=level_sizes(16, 5, stages=3)),
}


def paths(config: FlexiUNetConfig) -> list[tuple[int, int]]:
    """Every (level, out_level)."""
    return [(k, out) for k in range(len(config.level_sizes)) for out in range(k + 1)]


def random_net(config: FlexiUNetConfig, dtype: torch.dtype = torch.float32) -> FlexiUNet:
    """A network with random values where training starts from zeros or ones, so that every part shows."""
    torch.manual_seed(0)
    net = FlexiUNet(config).to(dtype)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return net


def inputs(config: FlexiUNetConfig, level: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x = torch.randn(2, config.in_channels, *config.level_sizes[level], dtype=dtype)
    return x, torch.tensor([1, 700])


# ---- shape and cost


@pytest.mark.parametrize(
    ("config", "count", "gflop"),
    [
        pytest.param(PAPER_64, 92_256_131, [56.7, 34.4, 16.3, 5.0], id="64 px"),
        pytest.param(PAPER_256, 124_250_883, [436, 193, 104, 45.6, 22.5, 5.1], id="256 px", marks=pytest.mark.slow),
    ],
)
def test_paper_sizes(config: FlexiUNetConfig, count: int, gflop: list[float]) -> None:
    """92.3 million parameters at 64 px; one output a step of the paper's levels; GFLOP as measured on its code."""
    with torch.device("meta"):
        assert sum(p.numel() for p in FlexiUNet(config).parameters()) == count
    released = dataclasses.replace(config, released_behaviour=True)
    found = [forward_flops(released, k) / 1e9 for k in range(len(config.level_sizes))]
    assert found == pytest.approx(gflop, rel=0.01)  # printed with three figures: half a unit of the last


def test_an_empty_skip_costs_less_than_a_full_one() -> None:
    """And the native network runs its last blocks too."""
    assert forward_flops(PAPER_64, 0) > forward_flops(dataclasses.replace(PAPER_64, released_behaviour=True), 0)
    assert forward_flops(PAPER_64, 1, 0) < forward_flops(PAPER_64, 0)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_path_gives_its_size(name: str) -> None:
    config = CONFIGS[name]
    net = random_net(config).eval()
    for level, out_level in paths(config):
        x, t = inputs(config, level)
        label = torch.tensor([0, 2]) if config.num_classes else None
        y = net(x, t, out_level, label)
        assert y.shape == (2, 3, *config.level_sizes[out_level])
        assert y.dtype == x.dtype
        assert y.isfinite().all()
        assert y.std() > 0.01
        if level == out_level:
            torch.testing.assert_close(net(x, t, label=label), y, rtol=0, atol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_is_trained(name: str) -> None:
    """Over all paths every parameter gets a gradient that is not zero. In the released behaviour the last decoder
    block, and the norms, convolutions and adapters that only it would use, get none."""
    config = CONFIGS[name]
    net = random_net(config)
    label = torch.tensor([1, config.null_label]) if config.num_classes else None
    for level, out_level in paths(config):
        net(*inputs(config, level), out_level, label).square().sum().backward()
    if config.num_classes:
        net(*inputs(config, 0), 0, torch.tensor([0, 2])).square().sum().backward()
    dead = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    last = [key for key, _ in net.named_parameters() if key.startswith("decoder.0.blocks.1.")]
    assert dead == (last if name == "released" else [])


def test_smallest_level_only_runs_the_inner_stages() -> None:
    net = random_net(SMALL)
    net(*inputs(SMALL, 2)).sum().backward()
    reached = {".".join(key.split(".")[:2]) for key, p in net.named_parameters() if p.grad is not None}
    assert {"encoder.2", "decoder.2", "input_adapters.64", "output_adapters.64"} <= reached
    assert not {"encoder.0", "encoder.1", "decoder.0", "decoder.1", "upsamplings.0", "upsamplings.1"} & reached


def test_adapters_only_where_levels_enter() -> None:
    """A factor of 4 leaves out the middle stage: nothing enters or leaves there, so it has no adapter."""
    multipliers = (1, 2, 3)
    config = dataclasses.replace(CONFIGS["factor 4"], channel_multipliers=multipliers)
    released = dataclasses.replace(config, released_behaviour=True)
    assert set(FlexiUNet(config).output_adapters) == {"96"}
    assert set(FlexiUNet(released).output_adapters) == {"64", "96"}


# ---- empty skips


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 3), (3, 3), (4, 7), (8, 8)])
@pytest.mark.parametrize("widths", [(64, 32), (64, 64), (32, 64)])  # 64 + 32: groups of 3 straddle the border
def test_empty_skip_equals_zeros(widths: tuple[int, int], size: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    block = DecoderBlock(*widths, SMALL, stage=1).to(dtype)  # stage 1 of 16 px has attention
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, widths[0], *size, dtype=dtype, requires_grad=True)
    embedding = torch.randn(2, 4 * SMALL.base_channels, dtype=dtype)
    zeros = torch.zeros(2, widths[1], *size, dtype=dtype)
    results = [block(x, embedding, skip) for skip in (None, zeros)]
    # a sum of n products errs by about sqrt(n) eps, and each norm passes that on some times larger
    tolerance = 8 * torch.finfo(dtype).eps * (9 * sum(widths)) ** 0.5
    scale = results[1].abs().max().item()
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=tolerance * scale)
    if dtype == torch.float64:  # norms of a few values amplify float32's rounding too much to compare gradients
        gradients = [torch.autograd.grad(y.square().sum(), [x, *block.parameters()]) for y in results]
        for ours, reference in zip(*gradients):
            bound = 1e3 * tolerance * reference.abs().max().item()
            torch.testing.assert_close(ours, reference, rtol=0, atol=bound)


@pytest.mark.parametrize("name", ["small", "two blocks", "not square", "factor 1.5", "released"])
def test_network_with_empty_skips_equals_zeros(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIGS[name]
    net = random_net(config).eval()
    grown = [path for path in paths(config) if path[0] != path[1]]
    cases = [(path, inputs(config, path[0])) for path in grown]
    with torch.no_grad():
        ours = [net(*case, path[1]) for path, case in cases]
        forward, made = DecoderBlock.forward, []

        def with_zeros(self: DecoderBlock, h: Tensor, embedding: Tensor, skip: Tensor | None) -> Tensor:
            if skip is None:
                width = self.residual.norm1.num_channels - h.shape[1]
                skip = h.new_zeros(h.shape[0], width, *h.shape[2:])
                made.append(skip)
            return forward(self, h, embedding, skip)

        monkeypatch.setattr(DecoderBlock, "forward", with_zeros)
        reference = [net(*case, path[1]) for path, case in cases]
    assert made
    tolerance = 100 * torch.finfo(torch.float32).eps  # some twenty layers, each a few eps
    for y, expected in zip(ours, reference):
        torch.testing.assert_close(y, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize(
    ("name", "path", "skips"),
    [
        # decoder stage and number of skips it gets, of the blocks it runs (deepest stage first)
        ("small", (2, 2), {2: (2, 2)}),
        ("small", (2, 0), {2: (2, 2), 1: (0, 2), 0: (0, 2)}),
        ("small", (1, 0), {2: (2, 2), 1: (2, 2), 0: (0, 2)}),
        ("released", (2, 2), {2: (1, 1)}),
        ("released", (2, 1), {2: (1, 2), 1: (0, 1)}),
        ("released", (2, 0), {2: (2, 2), 1: (2, 2), 0: (1, 1)}),
        ("full", (2, 1), {2: (2, 2), 1: (2, 2), 0: (2, 2)}),
        # sizes 32, 20 | 14 | 8, 6: a step inside a stage makes that stage one without skips
        ("factor 1.5", (3, 2), {2: (2, 2), 1: (0, 2)}),
        ("factor 1.5", (1, 0), {2: (2, 2), 1: (2, 2), 0: (0, 2)}),
        ("factor 1.5", (4, 3), {2: (0, 2)}),
        ("below the last stage", (4, 3), {2: (0, 2)}),
    ],
)
def test_which_skips_are_empty(name: str, path: tuple[int, int], skips: dict[int, tuple[int, int]]) -> None:
    net = random_net(CONFIGS[name]).eval()
    found = {}

    def record(k: int, given: list[Tensor | None]) -> None:
        found[k] = (sum(skip is not None for skip in given), len(given))

    for k, stage in enumerate(net.decoder):
        stage.register_forward_pre_hook(lambda module, args, k=k: record(k, args[2]))
    net(*inputs(CONFIGS[name], path[0]), path[1])
    assert found == skips


# ---- conditions


def test_times_and_labels_matter_per_image() -> None:
    net = random_net(CONFIGS["classes"]).eval()
    x, _ = inputs(SMALL, 0)
    x[1] = x[0]
    null = CONFIGS["classes"].null_label
    assert null == 3
    with torch.no_grad():
        by_time = net(x, torch.tensor([5, 6]))
        by_label = net(x, torch.tensor([5, 5]), label=torch.tensor([0, 1]))
        default = net(x, torch.tensor([5, 5]))
        explicit = net(x, torch.tensor([5.0, 5.0]), label=torch.tensor([null, null], dtype=torch.int32))
    assert (by_time[0] - by_time[1]).abs().max() > 1e-3
    assert (by_label[0] - by_label[1]).abs().max() > 1e-3
    torch.testing.assert_close(default, explicit, rtol=0, atol=0)


def test_time_is_embedded_from_one() -> None:
    """t = 1 is the released code's step 0: cosines 1, sines 0."""
    net = random_net(SMALL)
    waves = torch.tensor([[1.0] * 16 + [0.0] * 16])
    embedding = net.time_embedding
    expected = embedding.linear2(F.silu(embedding.linear1(waves)))
    torch.testing.assert_close(embedding(torch.tensor([1])), expected, rtol=0, atol=0)


def test_dropout_only_while_training() -> None:
    net = random_net(dataclasses.replace(SMALL, dropout=0.5))
    x, t = inputs(SMALL, 0)
    assert not torch.equal(net(x, t), net(x, t))
    net.eval()
    torch.testing.assert_close(net(x, t), net(x, t), rtol=0, atol=0)


def test_full_variant_resizes_its_input() -> None:
    net = random_net(CONFIGS["full"]).eval()
    assert not net.input_adapters
    assert not net.output_adapters
    x, t = inputs(SMALL, 2)
    resized = F.interpolate(x, (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(net(x, t, 1), net(resized, t), rtol=0, atol=0)
    # at its own size a small image goes through every stage: 4×4 is 1×1 at the last
    sizes: list[tuple[int, ...]] = []
    net.middle.register_forward_hook(lambda module, args, out: sizes.append(tuple(out.shape[2:])))
    net(x, t)
    assert sizes == [(1, 1)]


# ---- numerics and tools


def test_starts_at_zero() -> None:
    """The last convolution starts at zero, so an untrained network predicts nothing."""
    net = FlexiUNet(SMALL)
    assert not net(*inputs(SMALL, 1), 0).any()


@pytest.mark.parametrize("path", [(0, 0), (2, 2), (2, 1)])
def test_bfloat16_autocast_is_close(path: tuple[int, int]) -> None:
    net = random_net(SMALL).eval()
    x, t = inputs(SMALL, path[0])
    with torch.no_grad():
        expected = net(x, t, path[1])
        with torch.autocast("cpu", torch.bfloat16):
            y = net(x, t, path[1])
    assert y.dtype == torch.float32
    error = (y - expected).norm() / expected.norm()
    assert 0 < error < 10 * torch.finfo(torch.bfloat16).eps


def test_float64_network_agrees() -> None:
    """A float64 network works in float64 throughout."""
    nets = [random_net(SMALL, dtype).eval() for dtype in (torch.float32, torch.float64)]
    nets[1].load_state_dict(nets[0].state_dict())
    x, t = inputs(SMALL, 2)
    for out_level in range(3):
        y, expected = nets[0](x, t, out_level), nets[1](x.double(), t, out_level)
        assert expected.dtype == torch.float64
        error = (y - expected).norm() / expected.norm()
        assert 0 < error < 100 * torch.finfo(torch.float32).eps


@pytest.mark.slow
def test_traces_into_one_graph() -> None:
    """torch.compile finds no break on any path, labels included."""
    config = CONFIGS["classes"]
    net = random_net(config).eval()
    compiled = torch.compile(net, backend="eager", fullgraph=True, dynamic=False)
    x, t = inputs(config, 1)
    label = torch.tensor([0, 1])
    with torch.no_grad():
        for out_level in (1, 0):
            torch.testing.assert_close(compiled(x, t, out_level, label), net(x, t, out_level, label))


def test_state_dict_round_trip() -> None:
    net = random_net(CONFIGS["classes"]).eval()
    config = FlexiUNetConfig(**json.loads(json.dumps(net.config.to_dict())))
    assert config == net.config
    other = FlexiUNet(config).eval()
    other.load_state_dict(net.state_dict())
    x, t = inputs(SMALL, 1)
    torch.testing.assert_close(other(x, t, 0), net(x, t, 0), rtol=0, atol=0)
    # no tensor stands under two names, so the state fits any file format
    assert len({p.data_ptr() for p in net.state_dict().values()}) == len(net.state_dict())


# ---- sizes


@pytest.mark.parametrize(
    ("full", "levels", "factor", "stages", "expected"),
    [
        (64, 4, 2.0, 4, [64, 32, 16, 8]),
        (64, 7, 2.0, 4, [64, 32, 16, 8, 4, 2, 1]),
        (64, 5, 1.5, 4, [64, 40, 28, 20, 12]),
        (256, 8, 1.5, 6, [256, 160, 112, 80, 48, 32, 24, 14]),
        (64, 2, 4.0, 4, [64, 16]),
        (32, 9, 1.3, 3, [32, 24, 20, 14, 12, 8, 7, 5, 4]),
    ],
)
def test_level_sizes(full: int, levels: int, factor: float, stages: int, expected: list[int]) -> None:
    """The paper's rule: expected values are its released code's."""
    sizes = level_sizes(full, levels, factor=factor, stages=stages)
    assert sizes == tuple((n, n) for n in expected)
    config = FlexiUNetConfig(sizes, channel_multipliers=(1,) * stages)
    for level, n in enumerate(expected):
        stage = config.stage(level)
        assert n % 2 ** (stages - 1 - stage) == 0
        assert n <= full / 2**stage
        assert stage == stages - 1 or n > full / 2 ** (stage + 1)


def test_level_sizes_that_are_not_square_or_not_flexi() -> None:
    assert level_sizes((48, 64), 3, stages=3) == ((48, 64), (24, 32), (12, 16))
    assert level_sizes(64, 3, stages=4, factor=1.5, flexi=False) == ((64, 64), (40, 40), (32, 32))
    assert [CONFIGS["factor 1.5"].stage(k) for k in range(5)] == [0, 0, 1, 2, 2]
    # a stage holds a level if both sides fit
    assert [config_with(level_sizes=((16, 24), (8, 20), (4, 12))).stage(k) for k in range(2)] == [0, 0]


def test_attention_sizes() -> None:
    assert PAPER_64.attention_stages == (2, 3)
    assert dataclasses.replace(PAPER_64, attention_sizes=(64, 16)).attention_stages == (0, 2)
    assert dataclasses.replace(PAPER_64, attention_sizes=()).attention_stages == ()
    assert FlexiUNetConfig(level_sizes((48, 64), 2, stages=4)).attention_stages == (2,)


# ---- refusals


def config_with(**changes: object) -> FlexiUNetConfig:
    return dataclasses.replace(SMALL, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"level_sizes": ()}, ValueError, "at least the full size"),
        ({"level_sizes": (16, 8)}, TypeError, "(h, w) pairs"),
        ({"level_sizes": ((16, 16), (16, 8))}, ValueError, "must decrease"),
        ({"level_sizes": ((18, 18),)}, ValueError, "divisible by 4"),
        ({"level_sizes": ((16, 16), (7, 8))}, ValueError, "level_sizes[1]: both sides must be divisible by 2"),
        ({"level_sizes": ((16, 16), (0, 0))}, ValueError, "level_sizes: expected a whole number >= 1, got 0"),
        ({"level_sizes": ((16.5, 16),)}, TypeError, "level_sizes: expected a whole number, got 16.5"),
        ({"in_channels": 0}, ValueError, "in_channels"),
        ({"base_channels": 33}, ValueError, "even"),
        ({"base_channels": 48}, ValueError, "multiple of 32"),
        ({"channel_multipliers": ()}, ValueError, "one per stage"),
        ({"channel_multipliers": (1, 0.5, 1)}, ValueError, "0.5 × base_channels 32"),
        ({"heads": 3}, ValueError, "heads: 3 do not divide"),
        ({"heads": 2.0}, TypeError, "heads: expected a whole number, got 2.0"),
        ({"blocks_per_stage": True}, TypeError, "blocks_per_stage"),
        ({"dropout": 1.0}, ValueError, "dropout"),
        ({"num_classes": 0}, ValueError, "num_classes"),
        ({"flexi": 1}, TypeError, "flexi: expected True or False"),
        ({"attention_sizes": (16, 5)}, ValueError, "no stage's shorter side is [5]; the stages have [16, 8, 4]"),
        ({"flexi": False, "released_behaviour": True}, ValueError, "needs flexi=True"),
        ({"flexi": False, "level_sizes": ((16, 16), (6, 6))}, ValueError, "level_sizes[1]: both sides must be"),
    ],
)
def test_config_refuses(changes: dict[str, object], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=re.escape(says)):
        config_with(**changes)


def test_a_network_is_made_of_a_configuration() -> None:
    with pytest.raises(TypeError, match="expected a FlexiUNetConfig, got dict"):
        FlexiUNet(SMALL.to_dict())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"full_size": 60, "levels": 2, "stages": 4}, "the full size: both sides must be divisible by 8"),
        ({"full_size": (64, 60), "levels": 1, "stages": 4}, "got (64, 60)"),
        ({"full_size": 64, "levels": 8, "stages": 4}, "8 levels are too many"),
        ({"full_size": 16, "levels": 9, "stages": 3, "factor": 1.1}, "are too many"),
        ({"full_size": 64, "levels": 0, "stages": 4}, "levels=0"),
        ({"full_size": 64, "levels": 2, "stages": 4, "factor": 1.0}, "factor=1.0"),
        ({"full_size": 64, "levels": 2, "stages": 0}, "stages=0"),
    ],
)
def test_level_sizes_refuses(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        level_sizes(**arguments)  # type: ignore[arg-type]


GOOD_X, GOOD_T = torch.zeros(2, 3, 8, 8), torch.tensor([1, 2])


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ({"x": [GOOD_X[0], GOOD_X[1]]}, TypeError, "a batch has one size"),
        ({"x": GOOD_X.int()}, TypeError, "torch.int32"),
        ({"x": GOOD_X[:, :2]}, ValueError, "expected shape (batch, 3, h, w), got (2, 2, 8, 8)"),
        ({"x": GOOD_X[0]}, ValueError, "got (3, 8, 8)"),
        ({"x": torch.zeros(2, 3, 8, 12)}, ValueError, "no level has the size (8, 12)"),
        ({"t": 3}, TypeError, "t: expected a tensor of real numbers, got int"),
        ({"t": GOOD_T > 0}, TypeError, "torch.bool"),
        ({"t": GOOD_T[:1]}, ValueError, "t: expected shape (2,)"),
        ({"out_level": 2}, ValueError, "expected 0..1 (0 = full size), got 2"),
        ({"out_level": -1}, ValueError, "got -1"),
        ({"out_level": 1.0}, TypeError, "out_level: expected None or a whole number, got 1.0"),
        ({"label": GOOD_T}, ValueError, "has no classes"),
    ],
)
def test_network_refuses(arguments: dict[str, object], kind: type[Exception], says: str) -> None:
    net = FlexiUNet(SMALL)
    with pytest.raises(kind, match=re.escape(says)):
        net(**{"x": GOOD_X, "t": GOOD_T, **arguments})


@pytest.mark.parametrize(
    ("label", "kind", "says"),
    [
        (torch.tensor([0, 4]), ValueError, "expected labels in 0..3, got [4]"),
        (torch.tensor([-1, 0]), ValueError, "got [-1]"),
        (torch.tensor([0]), ValueError, "label: expected shape (2,)"),
        (torch.tensor([0.0, 1.0]), TypeError, "got a torch.float32 tensor"),
        ([0, 1], TypeError, "got list"),
    ],
)
def test_labels_refused(label: object, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=re.escape(says)):
        FlexiUNet(CONFIGS["classes"])(GOOD_X, GOOD_T, label=label)


def test_released_behaviour_needs_labels() -> None:
    net = FlexiUNet(dataclasses.replace(CONFIGS["classes"], released_behaviour=True))
    assert net.label_embedding is not None
    assert net.label_embedding.num_embeddings == 3
    with pytest.raises(ValueError, match="has no null label"):
        net(GOOD_X, GOOD_T)
    with pytest.raises(ValueError, match=re.escape("expected labels in 0..2, got [3]")):
        net(GOOD_X, GOOD_T, label=torch.tensor([0, 3]))


def test_configs_differ() -> None:
    """The cases above are different networks, or their tests would say the same thing twice."""
    assert all(a != b for a, b in itertools.combinations(CONFIGS.values(), 2))
