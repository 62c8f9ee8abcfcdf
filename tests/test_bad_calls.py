"""Bad calls of public functions: the kind of error, a line that names the argument or the file, and nothing left."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_bad_commands import make_run

import ssdcore as ssd
from ssdcore_torch import FlexiUNet, FlexiUNetConfig, Run, checkpoint, config, generate, load_run, wrap
from ssdcore_torch.data import Feed, load_images, open_images
from ssdcore_torch.ema import reconstruct
from ssdcore_torch.prepare import check_shards, index_shards, prepare

pytestmark = pytest.mark.slow

IMAGES = np.zeros((8, 8, 8, 3), np.uint8)
NET = FlexiUNetConfig(level_sizes=((8, 8), (4, 4)), base_channels=32, channel_multipliers=(1, 1), attention_sizes=())
PROC = ssd.LinearDiffusion.resize(
    (8, 8), ssd.NoiseSchedule.linear(30), ssd.ResolutionSchedule.equal(30, 2), matched=True
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and what is none."""
    folder = tmp_path_factory.mktemp("calls")
    make_run(folder)
    (folder / "file").write_text("text")
    (folder / "empty").mkdir()
    os.mkfifo(folder / "pipe")
    np.savez(folder / "x.npz", images=IMAGES, labels=np.arange(8) % 2, class_names=["a", "b"])
    return folder


def denoise(x: Any, t: Any, s: Any = None) -> Any:
    return x


Call = Callable[[Path], object]
BAD: list[tuple[Call, type[Exception], str]] = [
    # runs
    (lambda p: load_run(p / "nothing"), FileNotFoundError, "is not a run folder"),
    (lambda p: load_run(p / "file"), FileNotFoundError, "is not a run folder"),
    (lambda p: load_run(p / "empty"), FileNotFoundError, "it has no config.json"),
    (lambda p: Run.create(p / "run", data=IMAGES), ValueError, "already holds a run"),
    (lambda p: Run.create(p / "file", data=IMAGES), ValueError, "is a file"),
    (lambda p: Run.create(p / "new", data=IMAGES, preset="none"), ValueError, "unknown preset 'none'"),
    (lambda p: Run.create(p / "new", data=IMAGES, preset="cpu", size=0), ValueError, "0"),
    (lambda p: Run.create(p / "new", data=IMAGES, preset="cpu", size=16), ValueError, "smaller than size 16"),
    (lambda p: Run.create(p / "new", data=IMAGES, preset="cpu", size=8, levels=99), ValueError, "level"),
    (lambda p: Run.create(p / "new", data=IMAGES, settings={"train": {"klip": 1}}), ValueError, "unknown setting"),
    (lambda p: Run.create(p / "new", data=IMAGES, settings={"train": 3}), ValueError, "train"),
    (lambda p: Run.create(p / "new", data=IMAGES.astype(float), size=8), (TypeError, ValueError), "uint8"),
    (lambda p: Run.create(p / "new", data="nowhere", size=8), FileNotFoundError, "no such data"),
    (lambda p: Run.create(p / "new", data=3, size=8), (TypeError, ValueError), "int"),
    (lambda p: Run.open(p / "run").sample(-1), ValueError, "-1"),
    (lambda p: Run.open(p / "run").sample(2, steps=10**6), ValueError, "1000000"),
    (lambda p: Run.open(p / "run").sample(2, label="cats"), ValueError, "knows no classes"),
    (lambda p: Run.open(p / "run").sample(2, sampler="none"), ValueError, "sampler"),
    (lambda p: Run.open(p / "run").sample(2, guidance=3.0), ValueError, "guidance"),
    (lambda p: Run.open(p / "run").evaluate(n=1), ValueError, "1"),
    (lambda p: Run.open(p / "run").evaluate(n=8, features="none"), (ValueError, FileNotFoundError), "none"),
    (lambda p: Run.open(p / "run").report(p / "nowhere" / "x.html"), (ValueError, OSError), "nowhere"),
    (lambda p: Run.open(p / "run").restore(ssd.Identity((5, 5)), torch.zeros(1, 3, 5, 5), 0.1), ValueError, "5"),
    # files
    (lambda p: checkpoint.load_tensors(p / "file"), ValueError, "not a readable safetensors file"),
    (lambda p: checkpoint.load_tensors(p / "pipe"), FileNotFoundError, "is missing"),
    (lambda p: checkpoint.load_state(p / "empty", {}), FileNotFoundError, "has no checkpoint"),
    (lambda p: checkpoint.import_official(p / "pipe"), (ValueError, FileNotFoundError), "pipe"),
    (lambda p: checkpoint.import_official(p / "file"), ValueError, "cannot be read as a checkpoint"),
    (lambda p: reconstruct(p / "empty", 0.1), (ValueError, FileNotFoundError), "empty"),
    (lambda p: reconstruct(p / "run", -1.0), ValueError, "width"),
    (lambda p: config.Config.from_json("[" * 100_000), ValueError, ""),
    (lambda p: config.Config.from_json("{}"), (ValueError, TypeError), ""),
    (lambda p: config.read_settings("train: &a {clip: *a}"), ValueError, "aliases"),
    (lambda p: config.preset("none"), ValueError, "unknown preset 'none'"),
    (lambda p: ssd.oracle.Schedule.load(p / "file"), ValueError, "is not a schedule file"),
    (lambda p: ssd.oracle.Schedule.load(p / "pipe"), OSError, "not a regular file"),
    # data
    (lambda p: open_images(p / "nothing", 8), FileNotFoundError, "no such data"),
    (lambda p: open_images(p / "pipe", 8), OSError, "not a regular file"),
    (lambda p: open_images(p / "empty", 8), ValueError, "holds no files"),
    (lambda p: open_images(p / "x.npz", 0), ValueError, "0"),
    (lambda p: open_images(p / "x.npz", 8, channels=2), ValueError, "channels: expected 1"),
    (lambda p: open_images(p / "x.npz", 8, crop="none"), ValueError, "data.crop"),
    (lambda p: open_images(p / "x.npz", 8, broken_share=2), ValueError, "data.broken_share"),
    (lambda p: open_images(p / "x.npz", 8, memory_gib=float("nan")), ValueError, "data.memory_gib"),
    (lambda p: open_images(p / "x.npz", 8, workers=-1), ValueError, "workers: expected at least 0"),
    (lambda p: open_images(p / "x.npz", 8, classes=("c",)), ValueError, "c"),
    (lambda p: load_images(np.zeros((2, 8, 8, 7), np.uint8), 8), ValueError, "7"),
    (lambda p: load_images((IMAGES, np.zeros(3)), 8), (ValueError, TypeError), "label"),
    (lambda p: Feed(load_images(IMAGES, 8), load_images(IMAGES, 8).order(4, 0), "nowhere", seed=0), Exception, ""),
    (lambda p: prepare("none", p / "x.npz", 8, p / "new"), (ValueError, KeyError), "none"),
    (lambda p: prepare("folder", p / "nothing", 8, p / "new"), FileNotFoundError, "no such data"),
    (lambda p: index_shards(p / "empty"), FileNotFoundError, "holds no .tar files"),
    (lambda p: check_shards(p / "empty"), FileNotFoundError, "there is no manifest.json"),
    # networks and drawing
    (lambda p: FlexiUNet(FlexiUNetConfig(level_sizes=())), ValueError, "level_sizes"),
    (lambda p: generate(denoise, PROC, -1, channels=3), ValueError, "-1"),
    (lambda p: generate(denoise, PROC, 2, steps=0, channels=3), ValueError, "0"),
    (lambda p: generate(denoise, PROC, 2, steps=99, channels=3), ValueError, "99"),
    (
        lambda p: generate(FlexiUNet(NET), ssd.LinearDiffusion.identity((5, 5), ssd.NoiseSchedule.linear(30)), 1, 10),
        ValueError,
        "5",
    ),
    (lambda p: wrap(torch.nn.Identity(), PROC, prediction="none"), ValueError, "none"),
    (lambda p: FlexiUNet(NET)(torch.zeros(1, 3, 7, 7), torch.ones(1, dtype=torch.int64)), ValueError, "7"),
    (lambda p: FlexiUNet(NET)(torch.zeros(1, 3, 8, 8), torch.ones(2, dtype=torch.int64)), ValueError, "2"),
]


@pytest.mark.parametrize("row", range(len(BAD)))
def test_a_bad_call_is_one_line_and_leaves_nothing(row: int, place: Path) -> None:
    call, kind, says = BAD[row]
    before = sorted(place.rglob("*"))
    with pytest.raises(kind) as caught:
        call(place)
    told = str(caught.value)
    assert says in told
    assert told.strip()
    assert "\n" not in told
    assert [path for path in sorted(place.rglob("*")) if path.name != ".lock"] == before
