"""Runs on a hub: what is shared, that nothing of this machine is, and that what comes back draws the same."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from ssdcore_torch import Run, sharing
from ssdcore_torch.metrics import report as evaluation_report

NAMES = ("cats", "dogs | <b>")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("secret-place")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "data.npz", images=pixels, labels=np.arange(12) % 2, class_names=np.array(NAMES))
    made = Run.create(
        folder / "run", data=str(folder / "data.npz"), preset="cpu", size=8, levels=2, conditional=True,
        settings={
            "network": {"base_channels": 32, "channel_multipliers": [1, 1], "attention_sizes": []},
            "train": {"steps": 2, "batch_size": 4},
        },
        device="cpu",
    )  # fmt: skip
    made.draw_pictures = lambda: (made.path / "samples.png").write_bytes(b"a picture")  # type: ignore[method-assign]
    assert made.train()
    figures = {"frechet": 3.25}
    evaluation = {
        "format": evaluation_report.FORMAT, "n": 64, "figures": figures, "floor": {"frechet": 1.125},
        "features": {"name": "pixels", "fingerprint": "x"}, "data": {"path": str(folder), "pixels_sha256": "x"},
    }  # fmt: skip
    (made.path / "evaluation.json").write_text(json.dumps(evaluation))
    return made


class Hub:
    """A hub that is a folder; its snapshots are links, as in the cache of the real one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, list[Any]()

    def HfApi(self, token: str | None) -> Hub:
        return self

    def create_repo(self, repo: str, **options: Any) -> str:
        self.calls.append((repo, options))
        return f"hub:{repo}"

    def upload_folder(self, *, repo_id: str, folder_path: str, allow_patterns: list[str], **_: Any) -> None:
        for path in Path(folder_path).iterdir():
            assert path.name in allow_patterns
            (self.folder / repo_id).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, self.folder / repo_id / path.name)

    def snapshot_download(self, repo: str, *, allow_patterns: list[str], **_: Any) -> str:
        if not (self.folder / repo).is_dir():
            raise RuntimeError("404 Client Error\nRepository Not Found")
        shown = self.folder / "snapshots" / repo
        shown.mkdir(parents=True)
        for path in (self.folder / repo).iterdir():
            if path.name in allow_patterns:
                (shown / path.name).symlink_to(path)
        return str(shown)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")
    fake = SimpleNamespace(HfApi=made.HfApi, snapshot_download=made.snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return made


def test_what_was_pushed_draws_the_same(run: Run, hub: Hub) -> None:
    assert run.push("me/drawings", licence="mit", private=True) == "hub:me/drawings"
    assert hub.calls == [("me/drawings", {"repo_type": "model", "private": True, "exist_ok": True})]
    (hub.folder / "me/drawings" / "evil.py").write_text("raise SystemExit")
    back = Run.from_pretrained("me/drawings")
    assert not (back.path / "evil.py").exists()
    assert back.step == run.step == 2
    assert back.config.data.class_names == run.config.data.class_names
    for options in ({}, {"second_moments": True}):
        ours, theirs = (r.sample(2, steps=3, seed=1, **options) for r in (run, back))  # type: ignore[arg-type]
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="without its images: give those that it was trained on with --data"):
        back.evaluate(n=4, features="pixels")
    with pytest.raises(ValueError, match="weights without an optimizer's state"):
        back.train()


def test_nothing_of_this_machine_is_shared(run: Run, tmp_path: Path) -> None:
    sharing.write_shared(run, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} <= set(sharing.FILES)
    for path in (tmp_path / "out").iterdir():
        assert b"secret-place" not in path.read_bytes(), path.name
    with pytest.raises(ValueError, match="is not empty"):
        sharing.write_shared(run, tmp_path / "out")


def test_the_card_says_what_it_is(run: Run, hub: Hub) -> None:
    run.push("me/drawings", licence="cc-by-4.0", data="two kinds of animals")
    card = (hub.folder / "me/drawings" / "README.md").read_text(encoding="utf-8")
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "cc-by-4.0"
    said = (
        "two kinds of animals",
        "8×8 → 4×4",
        "2 steps of 4 images",
        "3.25",
        "1.125",
        'from_pretrained("me/drawings")',
    )
    for text in (*said, "cats", r"dogs \| \<b\>", "samples.png"):
        assert text in body, text
    assert "<b>" not in body.replace(r"\<b\>", "")


def test_a_changed_file_is_refused(run: Run, tmp_path: Path) -> None:
    sharing.write_shared(run, tmp_path / "out")
    for name in ("ema.safetensors", "prior.safetensors"):
        kept = (tmp_path / "out" / name).read_bytes()
        (tmp_path / "out" / name).write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        with pytest.raises(ValueError, match=rf"{name} is not the file that was written"):
            Run.from_pretrained(tmp_path / "out")
        (tmp_path / "out" / name).write_bytes(kept)
    assert Run.from_pretrained(tmp_path / "out").prior is not None
    (tmp_path / "out" / "prior.safetensors").unlink()
    with pytest.raises(ValueError, match=r"prior\.safetensors is missing"):
        Run.from_pretrained(tmp_path / "out")


def test_what_the_hub_does_not_have_or_take(run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match=r"me/nothing cannot be fetched from the hub \(RuntimeError: 404 Client Error\)"):
        Run.from_pretrained("me/nothing")
    for name in ("nowhere", "../me/x", "a/b/c", "http://x/y", "me/"):
        with pytest.raises(ValueError, match="expected OWNER/NAME"):
            Run.from_pretrained(name)
        with pytest.raises(ValueError, match="expected OWNER/NAME"):
            run.push(name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"ssdcore\[hub\]"):
        run.push("me/x")


@pytest.mark.slow
def test_the_code_of_the_page_on_sharing_runs(
    run: Run, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("onnxscript", "tensorboard"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run.path, tmp_path / "runs" / "mine")
    page = (Path(__file__).parents[1] / "docs" / "guides" / "share.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\{code-block\} python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"share.md, example {number}", "exec"), names)
        if number == 2:
            assert names["images"].shape == (16, 3, 8, 8)
            names["run"] = Run.open("runs/mine", device="cpu")
    assert (tmp_path / "network.pt2").stat().st_size > 0
    assert (tmp_path / "network.onnx").stat().st_size > 0
