"""The paper's released Flexi-UNet weights, in and out."""

from __future__ import annotations

import pickle
import re
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ssdcore_torch.denoisers.unet import FlexiUNet, FlexiUNetConfig, level_sizes
from ssdcore_torch.text import printable

Shapes = Mapping[str, tuple[int, ...]]

RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "condition": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "shortcut": "skip_connection",
}
ATTENTION = {"norm": "norm", "qkv": "qkv", "projection": "proj_out"}


def import_official(
    path: str | Path,
    *,
    levels: int | None = None,
    factor: float = 2.0,
    heads: int = 4,
    image_size: int | None = None,
) -> FlexiUNet:
    """The network that a released checkpoint holds, in float32 and evaluation mode, with its weights in place.

    Everything else is read off names and shapes. Stages of equal width share an adapter, which the file holds
    under each stage's name. In averaged (EMA) files of such networks these disagree, since the paper's code
    averages only the first; the last is taken, as that code does when it loads the file.

    Args:
        path: .pt or .pth: a dictionary with `model` (and `step`), or the state dictionary itself, EMA or not; read
            without running any code in it. .safetensors: the tensors by the same names, optionally all under
            "weights/".
        levels: number of image sizes it was trained at; the weights do not tell; default: what the file's name says
            (`told_by_name`), else the number of its stages
        factor: between the sizes of levels; the weights do not tell
        heads: of its attention; the weights do not tell
        image_size: side of the square image; default: what the file's name says, else from the names of the adapters,
            which carry their stage's size

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: Naming the file and what is wrong with it: unreadable, keys missing or unknown, a wrong shape.
    """
    path = Path(path)
    named_size, named_levels = told_by_name(path)
    levels = named_levels if levels is None else levels
    image_size = named_size if image_size is None else image_size
    state, _ = _read(path)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    try:
        config = _infer_config(shapes, levels, factor, heads, image_size)
        with torch.device("meta"):
            net = FlexiUNet(config)
        net.load_state_dict(_rename(state, shapes, net), assign=True)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return net.eval()


def told_by_name(path: str | Path) -> tuple[int | None, int | None]:
    """(image size, levels) as the names of the paper's files say them, like ssd_64res_celeba_4levels_….pt; None for
    what a name does not say."""
    name = Path(path).name.lower()
    found = (re.search(rf"(?<!\d)(\d{{1,4}}){unit}(?![a-z])", name) for unit in ("(?:res|px)", "(?:levels?|l)"))
    size, levels = (int(match[1]) if match else None for match in found)
    return size, levels


def official_step(path: str | Path) -> int:
    """The training step that a checkpoint says its weights are of; 0 if it says none. Raises as `import_official`."""
    return _read(Path(path))[1]


def export_official(net: FlexiUNet) -> dict[str, Tensor]:
    """The state dictionary under the released names: what `import_official` reads, and the paper's code loads.

    Raises:
        ValueError: Unless `net.config.released_behaviour`: other networks compute something else than that code
            would from the same weights.
    """
    if not net.config.released_behaviour:
        raise ValueError(
            "export_official: expected a network with released_behaviour=True; the paper's code would run "
            "this one's weights differently"
        )
    state = net.state_dict()
    return {theirs: state[ours] for ours, names in released_names(net).items() for theirs in names}


def released_names(net: FlexiUNet) -> dict[str, tuple[str, ...]]:
    """The released names of each entry of `net.state_dict()`, in the order the paper's code loads them; several
    where stages share an adapter."""
    modules: dict[str, list[str]] = {}
    for ours, theirs in _module_names(net.config):
        modules.setdefault(ours, []).append(theirs)
    names = {}
    for key in net.state_dict():
        module, leaf = key.rsplit(".", 1)
        names[key] = tuple(f"{theirs}.{leaf}" for theirs in modules[module])
    return names


def _module_names(config: FlexiUNetConfig) -> Iterator[tuple[str, str]]:
    """(our name, released name) of every layer the configuration could have."""
    yield "time_embedding.linear1", "time_embed.0"
    yield "time_embedding.linear2", "time_embed.2"
    yield "label_embedding", "label_emb"
    yield "stem", "input_blocks.0.0"
    index = 1  # the released encoder is one list: blocks and downsamplings in order
    for stage in range(config.stages):
        for block in range(config.blocks_per_stage):
            yield from _block_names(f"encoder.{stage}.blocks.{block}", f"input_blocks.{index}")
            index += 1
        yield f"encoder.{stage}.downsample", f"input_blocks.{index}.0.op"
        index += 1
    yield from _renamed(RESIDUAL, "middle.block1", "middle_block.0")
    yield from _renamed(ATTENTION, "middle.attention", "middle_block.1")
    yield from _renamed(RESIDUAL, "middle.block2", "middle_block.2")
    index = 0  # so is the decoder, deepest stage first; a stage's last block carries the upsampling
    for stage in reversed(range(config.stages)):
        for block in range(config.blocks_per_stage + 1):
            yield from _block_names(f"decoder.{stage}.blocks.{block}", f"output_blocks.{index}")
            index += 1
        after_attention = 2 if stage in config.attention_stages else 1
        yield f"upsamplings.{stage - 1}.conv", f"output_blocks.{index - 1}.{after_attention}.conv"
    side = config.level_sizes[0][0]
    for stage in range(1, config.stages):
        yield f"input_adapters.{config.entry_channels[stage]}", f"adapters_in.{side >> stage}"
    for stage in reversed(range(1, config.stages)):
        yield f"output_adapters.{config.channels[stage]}", f"adapters_out.{side >> stage}"
    yield "head_norm", "out.0"
    yield "head_conv", "out.2"


def _block_names(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield from _renamed(RESIDUAL, f"{ours}.residual", f"{theirs}.0")
    yield from _renamed(ATTENTION, f"{ours}.attention", f"{theirs}.1")


def _renamed(table: Mapping[str, str], ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    for our_leaf, their_leaf in table.items():
        yield f"{ours}.{our_leaf}", f"{theirs}.{their_leaf}"


def _rename(state: Mapping[str, Tensor], shapes: Shapes, net: FlexiUNet) -> dict[str, Tensor]:
    names = released_names(net)
    expected = {theirs: ours for ours, group in names.items() for theirs in group}
    missing = [name for name in expected if name not in state]
    if missing:
        raise ValueError(f"missing keys ({len(missing)}): {_some(missing)}")
    unknown = [name for name in state if name not in expected]
    if unknown:
        raise ValueError(f"unknown keys ({len(unknown)}), of no layer of this network: {_some(unknown)}")
    ours_shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    for theirs, ours in expected.items():
        if shapes[theirs] != ours_shapes[ours]:
            raise ValueError(f"{theirs}: expected shape {ours_shapes[ours]}, got {shapes[theirs]}")
    # a shared adapter's last name is what the paper's code is left with when it loads the file
    return {ours: state[group[-1]].float().contiguous() for ours, group in names.items()}


def _infer_config(
    shapes: Shapes, levels: int | None, factor: float, heads: int, image_size: int | None
) -> FlexiUNetConfig:
    """The configuration that the names and shapes are of. Widths are what most of the keys concerned say, so that a
    single wrong or missing one is later named for what it is."""
    last = max((int(n.split(".")[1]) for n in shapes if _is_indexed(n, "input_blocks")), default=0)
    if last == 0:
        raise ValueError(f"not a released Flexi-UNet: no input_blocks among its keys ({_some(list(shapes))})")
    widths: list[list[int]] = [[]]  # of a stage's layers
    blocks = [0]  # of a stage
    attention = set()
    for index in range(1, last + 1):
        prefix = f"input_blocks.{index}.0."
        if any(name.startswith(f"{prefix}op.") for name in shapes):
            widths.append([])
            blocks.append(0)
            continue
        found = [
            shapes[n][0]
            for n in shapes
            if n.startswith((f"{prefix}in_layers.2.", f"{prefix}out_layers.")) and shapes[n]
        ]
        if not found:
            raise ValueError(f"the keys {prefix}* are missing, though input_blocks go up to {last}")
        widths[-1] += found
        blocks[-1] += 1
        if any(name.startswith(f"input_blocks.{index}.1.qkv.") for name in shapes):
            attention.add(len(blocks) - 1)
    if len(set(blocks)) > 1:
        raise ValueError(f"its encoder stages have {blocks} blocks; expected the same number in each")
    embedding = [shapes[n][0] for n in shapes if n.startswith("time_embed.") and shapes[n]]
    if not embedding:
        raise ValueError("the keys time_embed.* are missing")
    base = statistics.mode(embedding) // 4
    channels = [statistics.mode(found) for found in widths]
    side = _image_side(shapes, channels) if image_size is None else image_size
    stages = len(channels)
    stem = shapes.get("input_blocks.0.0.weight", ())
    label = shapes.get("label_emb.weight")
    return FlexiUNetConfig(
        level_sizes=level_sizes(side, stages if levels is None else levels, stages=stages, factor=factor),
        in_channels=stem[1] if len(stem) == 4 else 3,
        base_channels=base,
        channel_multipliers=tuple(c // base if c % base == 0 else c / base for c in channels),
        blocks_per_stage=blocks[0],
        attention_sizes=tuple(side >> k for k in sorted(attention)),
        heads=heads,
        num_classes=label[0] if label else None,
        released_behaviour=True,
    )


def _image_side(shapes: Shapes, channels: list[int]) -> int:
    """The side whose stages' sizes fit the names of the adapters best."""
    present = {
        tuple(n.split(".")[:2]) for n in shapes if _is_indexed(n, "adapters_in") or _is_indexed(n, "adapters_out")
    }

    def misfit(side: int) -> int:
        wanted = set()
        for k in range(1, len(channels)):
            wanted |= {("adapters_in", str(side >> k))} if channels[k - 1] != channels[0] else set()
            wanted |= {("adapters_out", str(side >> k))} if channels[k] != channels[0] else set()
        return len(wanted ^ present)

    if not present:
        raise ValueError(
            "it has no adapters (adapters_in.*, adapters_out.*): either this is a plain U-Net, which cannot be "
            "imported, or all its stages are equally wide, and then its image_size must be given"
        )
    return min((int(side) << k for _, side in sorted(present) for k in range(len(channels))), key=misfit)


def _is_indexed(name: str, group: str) -> bool:
    parts = name.split(".")
    return parts[0] == group and len(parts) > 2 and parts[1].isdecimal() and parts[1].isascii()


def _read(path: Path) -> tuple[dict[str, Tensor], int]:
    """The tensors, and the training step."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's advice then is to run the code
        found = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise ValueError(
            f"{path}: cannot be read as a checkpoint: it is not one, or it holds code, which is not run{what}; save "
            "the tensors alone, as torch.save(model.state_dict(), file) does"
        ) from error
    except Exception as error:  # bytes from anywhere raise anything
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path}: cannot be read as a checkpoint (truncated, or not one): {printable(reason)}"
        ) from error
    step = 0
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        step = content.get("step", 0)
        if not isinstance(step, int) or not 0 <= step < 2**63:
            raise ValueError(f"{path}: step: expected a whole number >= 0, got {step!r:.60}")
        content = content["model"]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected a dictionary of tensors, got {type(content).__name__}")
    if path.suffix == ".safetensors" and any(name.startswith("weights/") for name in content):
        content = {n.removeprefix("weights/"): v for n, v in content.items() if n.startswith("weights/")}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{path}: expected floating-point tensors under names, got {name!r}: {kind}")
    return dict(content), step


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
