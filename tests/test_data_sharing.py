"""Several ranks on a machine: the images are decoded once, and all map the same memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssdcore_torch.data import load_images

SCRIPT = """
import json, os, sys, tempfile
import numpy as np
from ssdcore_torch.data import Feed, load_images, open_images
from ssdcore_torch.data._reading import Reader
from ssdcore_torch.distributed import connect

folder, out = sys.argv[1:]
decoded = []
read = Reader.read
Reader.read = lambda self, *rest: decoded.append(1) or read(self, *rest)
with connect("cpu") as world:
    try:
        images = open_images(folder, 16, workers=0, world=world)
    except ValueError as error:
        found = {"error": str(error)}
    else:
        batch = next(Feed(images, images.order(4, 0), world.device, seed=0, part=(world.rank, world.size)).batches(3))
        found = {
            "sum": int(images.images.astype(int).sum()),
            "shape": images.images.shape,
            "labels": images.labels.tolist(),
            "skipped": len(images.skipped),
            "batch": batch.indices.tolist(),
            "kind": type(images.images.base if images.images.base is not None else images.images).__name__,
        }
    world.wait()
    found |= {"decoded": len(decoded), "left": os.listdir(tempfile.gettempdir())}
    with open(f"{out}/{world.rank}.json", "w") as file:
        json.dump(found, file)
"""


def on_two_ranks(tmp_path: Path, folder: Path) -> list[dict[str, object]]:
    (tmp_path / "temporary").mkdir()
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    done = subprocess.run(
        [*launch, str(tmp_path / "script.py"), str(folder), str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.multiprocess
def test_two_ranks_share_one_decoding(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for k in range(20):
        (folder / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "ab"[k % 2] / f"{k:02d}.png")
    (folder / "a" / "04.png").write_bytes(b"broken")
    alone = load_images(folder, 16)
    ranks = on_two_ranks(tmp_path, folder)
    assert [rank["decoded"] for rank in ranks] == [20, 0]
    for rank in ranks:
        assert rank["shape"] == [19, 16, 16, 3]
        assert rank["sum"] == int(alone.images.astype(int).sum())
        assert rank["labels"] == alone.labels.tolist()
        assert rank["skipped"] == 1
        assert rank["kind"] in ("memmap", "mmap")
        assert not [name for name in rank["left"] if name.startswith("ssdcore-images")]  # type: ignore[union-attr]
    order = np.concatenate([rank["batch"] for rank in ranks])
    np.testing.assert_array_equal(order, alone.order(4, 0).indices(3))


@pytest.mark.multiprocess
def test_what_stops_one_rank_stops_all_with_its_reason(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "small.png")
    for rank in on_two_ranks(tmp_path, folder):
        assert "small.png: is 8×8 pixels, smaller than size 16" in str(rank["error"])
        assert not [name for name in rank["left"] if name.startswith("ssdcore-images")]  # type: ignore[union-attr]
