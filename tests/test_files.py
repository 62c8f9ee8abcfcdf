"""Writing files: whole or not at all, under names that nobody can have planted a link at, equal bytes for equal contents."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch

from ssdcore.files import temporary_beside, write_atomically, write_durably
from ssdcore_torch.checkpoint import load_tensors, save_tensors


def test_equal_tensors_and_metadata_give_equal_bytes(tmp_path: Path) -> None:
    tensors = {name: torch.arange(4.0) for name in "bca"}
    notes = {name: f"ünïcode {name}" for name in "zyxwvutsrqponm"}
    written = set()
    for k in range(8):
        save_tensors(tmp_path / f"{k}.safetensors", tensors, notes)
        written.add((tmp_path / f"{k}.safetensors").read_bytes())
    assert len(written) == 1
    found, metadata = load_tensors(tmp_path / "0.safetensors")
    assert metadata == notes
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_link_at_the_target_is_replaced_not_followed(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("precious")
    (tmp_path / "out").symlink_to(mine)
    write_atomically(tmp_path / "out", lambda file: file.write_text("new"))
    assert mine.read_text() == "precious"
    assert (tmp_path / "out").read_text() == "new"
    assert not (tmp_path / "out").is_symlink()


def test_a_link_planted_at_the_temporary_name_is_refused(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("precious")
    planted = tmp_path / ".out.guessed.tmp"
    planted.symlink_to(mine)
    with pytest.raises(FileExistsError):
        write_durably(planted, lambda file: file.write_text("new"))
    assert mine.read_text() == "precious"


def test_temporary_names_cannot_be_guessed_and_fit_a_file_system(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    assert len({temporary_beside(path) for _ in range(64)}) == 64
    for name in ("x" * 255, "木" * 85):  # as long as a name may be
        write_atomically(tmp_path / name, lambda file: file.write_text("whole"))
        assert (tmp_path / name).read_text() == "whole"


def test_files_are_readable_by_whom_the_mask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o640


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")

    def fail(file: Path) -> None:
        file.write_text("half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_atomically(tmp_path / "out", fail)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"out": "old"}
