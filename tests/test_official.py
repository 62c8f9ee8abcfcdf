"""The paper's released weights: equal numbers, safe reading, every refusal by name."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import ssdcore as ssd
from ssdcore_torch import checkpoint, load_run
from ssdcore_torch.commands import cli, convert, evaluate, sample
from ssdcore_torch.config import ProcessConfig
from ssdcore_torch.convert import convert as write_run
from ssdcore_torch.denoisers.unet import FlexiUNet, FlexiUNetConfig, level_sizes
from ssdcore_torch.official import export_official, import_official, released_names, told_by_name

DATA = Path(__file__).parent / "data"
TINY = DATA / "flexi_unet_tiny.safetensors"  # outputs of the paper's code, with random weights of a tiny model
SHAPES = json.loads((DATA / "state_dict_shapes.json").read_text())
# float32 through some thirty layers: the released code and ours round in another order
NETWORK_TOLERANCE = 1e-5
EPS = torch.finfo(torch.float32).eps

with safe_open(TINY, framework="pt") as file:
    CASES = json.loads(file.metadata()["cases"])
    FIRST_STEPS = json.loads(file.metadata()["first_step_of_size"])


@pytest.fixture(scope="module")
def recorded() -> dict[str, Tensor]:
    return load_file(TINY)


@pytest.fixture(scope="module")
def weights(recorded: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("weights/"): v.float() for k, v in recorded.items() if k.startswith("weights/")}


@pytest.fixture(scope="module")
def tiny() -> FlexiUNet:
    return import_official(TINY)


@pytest.fixture(scope="module")
def process() -> ssd.LinearDiffusion:
    """The process the recording was made with: its steps count from 0, times from 1."""
    starts = sorted(step + 1 for step in FIRST_STEPS.values() if step)
    levels = ssd.ResolutionSchedule.thresholds(starts)
    return ssd.LinearDiffusion.resize((16, 16), ssd.NoiseSchedule.linear(1000), levels, matched=False)


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


# ---- equal to the paper's code


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['in_size']} to {case['out_size']}")
def test_network_parity(case: dict[str, int], tiny: FlexiUNet, recorded: dict[str, Tensor]) -> None:
    key, size = f"case/{case['t']}", case["out_size"]
    out_level = tiny.config.level_sizes.index((size, size))
    with torch.no_grad():
        y = tiny(recorded[f"{key}/x"], torch.tensor([case["t"] + 1] * 2), out_level)
    assert relative(y, recorded[f"{key}/y"]) < NETWORK_TOLERANCE


def test_all_paths_are_recorded() -> None:
    """Each size-keeping path, a zero-skip path and the resized step into the top level."""
    assert {(c["in_size"], c["out_size"]) for c in CASES} == {(4, 4), (8, 8), (16, 16), (4, 8), (8, 16)}


def test_native_paths_differ(tiny: FlexiUNet, recorded: dict[str, Tensor]) -> None:
    """The option changes every path: the native network runs each stage to its end."""
    native = FlexiUNet(dataclasses.replace(tiny.config, released_behaviour=False)).eval()
    native.load_state_dict(tiny.state_dict())
    for case in CASES:
        x, t = recorded[f"case/{case['t']}/x"], torch.tensor([case["t"] + 1] * 2)
        out_level = tiny.config.level_sizes.index((case["out_size"],) * 2)
        with torch.no_grad():
            assert relative(native(x, t, out_level), tiny(x, t, out_level)) > 1000 * NETWORK_TOLERANCE


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['in_size']} to {case['out_size']}")
def test_posterior_parity(case: dict[str, int], process: ssd.LinearDiffusion, recorded: dict[str, Tensor]) -> None:
    """Posterior means, of the prediction clipped to [−1, 1] as the paper's sampler does."""
    x, y, expected = (recorded[f"case/{case['t']}/{name}"] for name in ("x", "y", "posterior_mean"))
    t = case["t"] + 1
    found = process.posterior(x, y.clamp(-1, 1), t - 1, t).mean
    assert relative(found, expected) < 8 * EPS


@pytest.mark.parametrize("size", [16, 8, 4])
def test_pyramid_parity(size: int, process: ssd.LinearDiffusion, recorded: dict[str, Tensor]) -> None:
    time = next(t for t in range(1, 1001) if process.shape(t) == (size, size))
    assert time == FIRST_STEPS[str(size)] + 1
    assert relative(process.clean(recorded["clean/x0"], time), recorded[f"clean/{size}"]) < 8 * EPS


def test_loss_weight_parity(process: ssd.LinearDiffusion, recorded: dict[str, Tensor]) -> None:
    """min(SNR, 5); the recording is float32, of float64 products over up to 1,000 steps."""
    ratios = np.array([process.alpha(t) / process.sigma(t) for t in range(1, 1001)])
    np.testing.assert_allclose(np.minimum(ratios**2, 5), recorded["loss_weight"].numpy(), rtol=8 * EPS)


# ---- configurations from names and shapes

EXPECTED = {
    "64px-4L": FlexiUNetConfig(level_sizes(64, 4, stages=4), attention_sizes=(16, 8), released_behaviour=True),
    "128px-5L": FlexiUNetConfig(
        level_sizes(128, 5, stages=5),
        channel_multipliers=(1, 1, 2, 3, 4),
        attention_sizes=(16, 8),
        released_behaviour=True,
    ),
    "256px-6L": FlexiUNetConfig(
        level_sizes(256, 6, stages=6),
        channel_multipliers=(1, 1, 2, 2, 4, 4),
        attention_sizes=(16, 8),
        released_behaviour=True,
    ),
}
# the sum over the shapes, less the second copies of shared adapters (256 px only)
PARAMETERS = {"64px-4L": 92_256_131, "128px-5L": 95_228_163, "256px-6L": 124_382_467 - 131_584}


@pytest.mark.parametrize("name", EXPECTED)
def test_released_sizes(name: str, tmp_path: Path) -> None:
    """Each released model's names and shapes, every tensor filled with a random number of its own (stored once)."""
    generator = torch.Generator().manual_seed(0)
    values = {key: torch.randn((), generator=generator) for key in SHAPES[name]}
    path = tmp_path / "ema_0.9999_500000.pt"
    state = {key: values[key].expand(shape) for key, shape in SHAPES[name].items()}
    torch.save({"model": state, "step": 500_000}, path)
    net = import_official(path)
    assert net.config == EXPECTED[name]
    assert not net.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in net.parameters())
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[name]
    exported = export_official(net)
    assert {key: list(value.shape) for key, value in exported.items()} == SHAPES[name]
    last = {key: names[-1] for names in released_names(net).values() for key in names}
    for key, value in exported.items():
        assert (value == values[last[key]]).all(), key


def test_tiny_configuration(tiny: FlexiUNet, weights: dict[str, Tensor]) -> None:
    assert tiny.config == FlexiUNetConfig(
        level_sizes(16, 3, stages=3),
        base_channels=32,
        channel_multipliers=(1, 2, 2),
        blocks_per_stage=1,
        attention_sizes=(8,),
        released_behaviour=True,
    )
    assert {key for names in released_names(tiny).values() for key in names} == set(weights)


CONFIGS = {
    "half multiplier": FlexiUNetConfig(
        level_sizes(32, 3, stages=3), base_channels=64, channel_multipliers=(0.5, 1, 1.5), attention_sizes=(32,)
    ),
    "one channel, no attention": FlexiUNetConfig(
        level_sizes(16, 2, stages=2),
        in_channels=1,
        base_channels=32,
        channel_multipliers=(1, 2),
        blocks_per_stage=3,
        attention_sizes=(),
    ),
    "classes": FlexiUNetConfig(
        level_sizes(16, 2, stages=2), base_channels=32, channel_multipliers=(1, 3), num_classes=10
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_export_import_round_trip(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    config = dataclasses.replace(
        config,
        released_behaviour=True,
        attention_sizes=tuple(config.level_sizes[0][0] >> k for k in config.attention_stages),
    )
    net = FlexiUNet(config)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    torch.save(export_official(net), tmp_path / "model.pt")
    other = import_official(tmp_path / "model.pt")
    assert other.config == config
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in net.state_dict().items())


def test_what_the_file_does_not_tell(weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "model.pt")
    net = import_official(tmp_path / "model.pt", levels=2, factor=4.0, heads=8)
    assert net.config.level_sizes == ((16, 16), (4, 4))
    assert net.config.heads == 8
    # sixteen heads and four give different numbers, so the default matters
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([10])
    assert relative(net(x, t), import_official(TINY)(x, t)) > 1000 * EPS


def test_equally_wide_stages_need_the_image_size(tmp_path: Path) -> None:
    """Without adapters nothing tells the size."""
    config = FlexiUNetConfig(
        level_sizes(16, 2, stages=2),
        base_channels=32,
        channel_multipliers=(1, 1),
        attention_sizes=(8,),
        released_behaviour=True,
    )
    torch.save(export_official(FlexiUNet(config)), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="image_size must be given"):
        import_official(tmp_path / "model.pt")
    assert import_official(tmp_path / "model.pt", image_size=16).config == config


# ---- files


@pytest.mark.parametrize("kind", ["model and step", "bare", "safetensors", "half"])
def test_kinds_of_file(kind: str, weights: dict[str, Tensor], tiny: FlexiUNet, tmp_path: Path) -> None:
    path = tmp_path / ("ema.safetensors" if kind == "safetensors" else "ema_0.9999_010000.pt")
    if kind == "model and step":
        torch.save({"model": weights, "step": 10_000}, path)
    elif kind == "safetensors":
        save_file(weights, path)
    else:  # the recording's values are halves, so nothing is lost
        torch.save({k: v.half() for k, v in weights.items()} if kind == "half" else weights, path)
    found = import_official(str(path)).state_dict()
    assert all(torch.equal(value, found[key]) for key, value in tiny.state_dict().items())


def test_checkpoint_offers_the_same_function() -> None:
    assert checkpoint.import_official is import_official


def test_shared_adapters_disagreeing(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """In the paper's averaged files only a shared adapter's first name is averaged. Loading such a file, its code ends
    with the last: so must we."""
    weights = dict(weights)
    for size in (4, 8):
        weights[f"adapters_out.{size}.weight"] = torch.full((32, 64, 1, 1), float(size))
    shared = nn.Conv2d(64, 32, 1)  # as the paper's code builds it: the deepest stage first
    theirs = nn.ModuleDict({"4": shared, "8": shared})
    prefix = "adapters_out."
    theirs.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    torch.save(weights, tmp_path / "ema.pt")
    net = import_official(tmp_path / "ema.pt")
    assert torch.equal(net.state_dict()["output_adapters.64.weight"], shared.weight)


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "model.pt", tmp_path / "was run"
    torch.save({"model": {"x": Harmful(trace)}, "step": 1}, path)
    with pytest.raises(ValueError, match="it holds code, which is not run"):
        import_official(path)
    path.write_bytes(pickle.dumps(Harmful(trace), protocol=2))
    with pytest.raises(ValueError, match=re.escape(str(path))):
        import_official(path)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated(suffix: str, share: float, weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=re.escape(f"{path}: cannot be read as a checkpoint")):
        import_official(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (torch.zeros(3), "expected a dictionary of tensors, got Tensor"),
        ([1, 2], "expected a dictionary of tensors, got list"),
        ({}, "no input_blocks among its keys ()"),
        ({"state": {}, "param_groups": []}, "expected floating-point tensors under names, got 'state': dict"),
        ({"a": torch.zeros(1, dtype=torch.int64)}, "got 'a': torch.int64"),
        ({3: torch.zeros(1)}, "got 3: torch.float32"),
        ({"conv.weight": torch.zeros(1)}, "no input_blocks among its keys (conv.weight)"),
        ({"input_blocks.1.0.op.weight": torch.zeros(1)}, "the keys time_embed.* are missing"),
        ({"input_blocks.2.0.op.weight": torch.zeros(1)}, "the keys input_blocks.1.0.* are missing"),
        ({"input_blocks.-1.0.op.weight": torch.zeros(1)}, "no input_blocks among its keys"),
    ],
)
def test_wrong_content(content: object, says: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=re.escape(f"{path}: ")) as caught:
        import_official(path)
    assert says in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
            import_official(path)


# ---- refusals by name


def light(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same names and shapes in a small file."""
    return {key: torch.zeros(()).expand(value.shape) for key, value in weights.items()}


def refusal(state: dict[str, Tensor], path: Path) -> str:
    torch.save(state, path)
    with pytest.raises(ValueError, match=re.escape(f"{path}: ")) as caught:
        import_official(path)
    return str(caught.value).removeprefix(f"{path}: ")


def test_any_missing_key_is_named(weights: dict[str, Tensor], tmp_path: Path) -> None:
    for key in list(weights)[::12]:
        state = light(weights)
        del state[key]
        assert refusal(state, tmp_path / "model.pt") == f"missing keys (1): {key}"


def test_any_wrong_shape_is_named(weights: dict[str, Tensor], tmp_path: Path) -> None:
    for key, value in list(weights.items())[1::12]:
        state = light(weights)
        wrong = (value.shape[0] + 32, *value.shape[1:])
        state[key] = torch.zeros(()).expand(wrong)
        expected = f"{key}: expected shape {tuple(value.shape)}, got {wrong}"
        assert refusal(state, tmp_path / "model.pt") == expected


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("label_embedding.weight", "unknown keys (1), of no layer of this network: label_embedding.weight"),
        ("adapters_in.16.weight", "unknown keys (1), of no layer of this network: adapters_in.16.weight"),
        ("adapters_in.weight", "unknown keys (1), of no layer of this network: adapters_in.weight"),
        ("output_blocks.6.0.in_layers.0.bias", "unknown keys (1)"),
        ("module.out.0.weight", "unknown keys (1)"),
        ("input_blocks.6.0.op.bias", "its encoder stages have [1, 1, 1, 0] blocks"),
        ("input_blocks.8.0.op.bias", "the keys input_blocks.6.0.* are missing, though input_blocks go up to 8"),
        ("input_blocks.1.1.qkv.weight", "missing keys (17): input_blocks.1.1.norm.weight"),
    ],
)
def test_unknown_key_is_named(key: str, says: str, weights: dict[str, Tensor], tmp_path: Path) -> None:
    message = refusal({**light(weights), key: torch.zeros(32)}, tmp_path / "model.pt")
    assert says in message


def test_other_networks_of_the_family_are_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    plain = {key: value for key, value in light(weights).items() if not key.startswith("adapters")}
    assert "this is a plain U-Net" in refusal(plain, path)
    both = {**light(weights), "out.2.weight": torch.zeros(6, 32, 3, 3), "out.2.bias": torch.zeros(6)}
    assert refusal(both, path) == "out.2.weight: expected shape (3, 32, 3, 3), got (6, 32, 3, 3)"
    with pytest.raises(ValueError, match="heads: 5 do not divide"):
        import_official(TINY, heads=5)
    with pytest.raises(ValueError, match="levels=0"):
        import_official(TINY, levels=0)
    with pytest.raises(ValueError, match="too many"):
        import_official(TINY, levels=6)


def test_export_refuses_native_networks(tiny: FlexiUNet) -> None:
    native = FlexiUNet(dataclasses.replace(tiny.config, released_behaviour=False))
    with pytest.raises(ValueError, match="released_behaviour=True"):
        export_official(native)


# ---- run folders


def command(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", f"ssdcore_torch.{name}", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment)


def test_guidance_of_released_weights_is_refused(tiny: FlexiUNet, weights: dict[str, Tensor], tmp_path: Path) -> None:
    """Those with classes have no label for "no class"."""
    torch.save({"model": weights, "step": 1}, tmp_path / "ema.pt")
    net = FlexiUNet(dataclasses.replace(tiny.config, num_classes=2))
    write_run(tmp_path / "ema.pt", tmp_path / "run", net, ProcessConfig("convex", 0.5, False, 1000))
    command = [str(tmp_path / "run"), "--n", "2", "--steps", "4", "--out", str(tmp_path / "grid.png")]
    with pytest.raises(cli.UserError, match='no label for "no class"'):
        sample.main([*command, "--guidance", "2"])
    assert sample.main([*command, "--label", "1"]) == 0


@pytest.mark.slow
def test_convert_then_sample(weights: dict[str, Tensor], tiny: FlexiUNet, tmp_path: Path) -> None:
    torch.save({"model": weights, "step": 1234}, tmp_path / "ema.pt")
    run, picture = tmp_path / "runs" / "tiny", tmp_path / "grid.png"
    done = command("convert", tmp_path / "ema.pt", "--levels", 3, "--out", run)
    assert done.returncode == 0, done.stderr
    assert "levels of 16, 8, 4 px" in done.stdout
    assert [path.name for path in run.parent.iterdir()] == ["tiny"]
    loaded = load_run(run)
    assert loaded.step == 1234
    assert loaded.config.network == tiny.config
    for net in (loaded.net, loaded.ema):
        assert all(torch.equal(value, net.state_dict()[key]) for key, value in tiny.state_dict().items())
    # the paper's process: its noise, linear; ConvexDecay 0.5
    levels = ssd.ResolutionSchedule.convex(steps=1000, levels=3, gamma=0.5)
    paper = ssd.LinearDiffusion.resize((16, 16), ssd.NoiseSchedule.linear(1000), levels, matched=False)
    for t in (1, 500, 600, 900, 1000):
        found = loaded.process
        assert (found.shape(t), found.alpha(t), found.sigma(t)) == (paper.shape(t), paper.alpha(t), paper.sigma(t))
    done = command("sample", run, "--n", 2, "--steps", 5, "--out", picture, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")


RELEASED = {  # name: (image size, levels)
    "ssd_64res_celeba_2levels_ema_0.9999_1000000.pt": (64, 2),
    "ssd_64res_celeba_4levels_ema_0.9999_1000000.pt": (64, 4),
    "ssd_128res_celeba_3levels_ema_0.9999_300000.pt": (128, 3),
    "ssd_128res_celeba_5levels_ema_0.9999_300000.pt": (128, 5),
    "ssd_256res_celeba_3levels_ema_0.9999_300000.pt": (256, 3),
    "ssd_256res_celeba_6levels_ema_0.9999_300000.pt": (256, 6),
    "ssd_64res_imagenet_2levels_ema_0.9999_1000000.pt": (64, 2),
}


@pytest.mark.parametrize("name", RELEASED)
def test_the_names_of_the_released_files_tell_size_and_levels(name: str) -> None:
    assert told_by_name(Path("some") / "64px_9L" / name) == RELEASED[name]
    assert f"`{name}`" in (Path(__file__).parents[1] / "docs" / "reproduce.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("ssd_celeba_64px_4L.pt", (64, 4)),
        ("model_level3_resnet.pt", (None, None)),
        ("ema_0.9999_1000000.pt", (None, None)),
        ("16res.safetensors", (16, None)),
        ("1levels_2label.pt", (None, 1)),
    ],
)
def test_other_names_tell_what_they_say(name: str, told: tuple[int | None, int | None]) -> None:
    assert told_by_name(name) == told


def test_convert_takes_levels_from_the_name_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = tmp_path / "ssd_16res_faces_2levels_ema.safetensors"
    named.write_bytes(TINY.read_bytes())
    assert convert.main([str(named), "--out", str(tmp_path / "run")]) == 0
    assert load_run(tmp_path / "run").config.network.level_sizes == ((16, 16), (8, 8))
    assert "taken from the name of the file: image size 16, levels 2" in capsys.readouterr().out
    assert convert.main([str(named), "--levels", "3", "--out", str(tmp_path / "three")]) == 0
    assert "taken from the name of the file: image size 16\n" in capsys.readouterr().out
    assert len(load_run(tmp_path / "three").config.network.level_sizes) == 3
    assert import_official(named).config.level_sizes == ((16, 16), (8, 8))
    with pytest.raises(cli.UserError, match="knows no images: give those that they were trained on with --data"):
        evaluate.main([str(tmp_path / "run"), "--n", "4", "--features", "pixels"])


def test_convert_does_not_guess_levels(tmp_path: Path) -> None:
    with pytest.raises(cli.UserError, match=r"do not say at how many sizes .* give --levels"):
        convert.main([str(TINY), "--out", str(tmp_path / "run")])
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_wrong_about_the_size_is_an_error(tmp_path: Path) -> None:
    named = tmp_path / "ssd_32res_2levels.safetensors"
    named.write_bytes(TINY.read_bytes())
    with pytest.raises(cli.UserError, match="missing keys"):
        convert.main([str(named), "--out", str(tmp_path / "run")])
    assert convert.main([str(named), "--image-size", "16", "--out", str(tmp_path / "run")]) == 0


def test_convert_options(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--levels", "2", "--factor", "4", "--steps", "50", "--schedule", "equal", "--matched", "--heads", "8"]
    assert convert.main([str(TINY), "--out", str(out), *options]) == 0
    config = load_run(out).config
    assert config.process == ProcessConfig("equal", None, matched=True, steps=50)
    assert config.network.level_sizes == ((16, 16), (4, 4))
    assert config.network.heads == 8


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "no such file"),
        ([TINY, "--levels", "3", "--heads", "5"], "heads: 5 do not divide"),
        ([TINY, "--levels", "3", "--schedule", "equal", "--gamma", "2"], "process.gamma"),
        ([TINY, "--levels", "3", "--schedule", "tanh"], "process.gamma"),
        ([TINY, "--levels", "3", "--factor", "0"], "factor=0.0"),
    ],
)
def test_convert_refuses(options: list[object], says: str, tmp_path: Path) -> None:
    arguments = [str(a) for a in options or [tmp_path / "none.pt"]]
    with pytest.raises(cli.UserError, match=re.escape(says)):
        convert.main([*arguments, "--out", str(tmp_path / "run")])
    assert not list(tmp_path.iterdir())


def test_convert_leaves_what_exists(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(cli.UserError, match="exists already"):
        convert.main([str(TINY), "--levels", "3", "--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_convert_writes_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_config", full)
    with pytest.raises(cli.UserError, match="no space left"):
        convert.main([str(TINY), "--levels", "3", "--out", str(tmp_path / "run")])
    assert not list(tmp_path.iterdir())


def test_step_that_is_no_number(weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"model": weights, "step": "many"}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="step: expected a whole number >= 0, got 'many'"):
        import_official(tmp_path / "model.pt")
