"""What somebody could do who controls a file that is read, a folder that is written to, or a name that is printed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import shutil
import signal
import stat
import sys
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from commands import refusal
from PIL import EpsImagePlugin, Image

from ssdcore_torch import checkpoint, load_run, metrics, prepare
from ssdcore_torch.commands import convert as convert_command
from ssdcore_torch.commands import evaluate, train
from ssdcore_torch.commands import prepare as prepare_command
from ssdcore_torch.commands import sample as sample_command
from ssdcore_torch.data import Feed, _cache, _remote, _shards, _sharing, load_images, open_images
from ssdcore_torch.distributed import World

TINY = ["--device", "cpu", "--size", "8", "--levels", "2", "--batch-size", "4", "--steps", "1"]
TINY += ["--set", "network.base_channels=32", "--set", "network.channel_multipliers=[1,1]"]
TINY += ["--set", "process.steps=21", "--set", "network.attention_sizes=null", "--set", "data.memory_gib=0.001"]


def fill(folder: Path, count: int, side: int = 8) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        pixels = np.random.default_rng(k).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k:03d}.png")
    return folder


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run on a few pictures."""
    base = tmp_path_factory.mktemp("run")
    assert train.main([*TINY, "--data", str(fill(base / "data", 8)), "--out", str(base / "run")]) == 0
    return base / "run"


def renamed(run: Path, to: Path, data: str) -> Path:
    """A copy of a run whose config.json, and the copies of it in checkpoints, name other data."""
    shutil.copytree(run, to)
    values = json.loads((to / "config.json").read_text())
    values["data"]["path"] = data
    (to / "config.json").write_text(json.dumps(values))
    return to


# ---- a run folder


@pytest.mark.parametrize(
    "address",
    ["https://192.0.2.1/x.tar", "s3://bucket/x-{0..3}.tar", "hf:somebody/something", "http://192.0.2.1/manifest.json"],
)
def test_a_config_opens_no_address_that_was_not_typed(
    address: str, saved_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError(f"opened {arguments}")

    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(_remote.fsspec.core, "url_to_fs", never)
    monkeypatch.setattr(datasets, "load_dataset", never)
    run = renamed(saved_run, tmp_path / "run", address)
    for main, options in (
        (train.main, [*TINY[:2], "--out", run, "--resume"]),
        (evaluate.main, [run, "--device", "cpu", "--features", "pixels", "--out", tmp_path / "e.json"]),
    ):
        said = refusal(capsys, main, *options)
        assert "config.json names data on another machine" in said
        assert f"add --data '{address}'" in said
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"data: {{path: '{address}'}}\n")
    said = refusal(capsys, train.main, *TINY, "--config", settings, "--out", tmp_path / "new")
    assert "settings.yaml names data on another machine" in said
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "address",
    [
        "reference://a.tar::data:application/json;base64,e30=",
        "filecache::https://192.0.2.1/x.tar",
        "zip://x.tar::/tmp/x.zip",
        "file:///tmp/x.tar::memory://",
        "reference://x.tar",
        "ftp://192.0.2.1/x.tar",
        "sftp://192.0.2.1/x.tar",
        "github://a:b@/x.tar",
        "memory://x.tar",
        "local:///tmp/x.tar",
        "cached://x/manifest.json",
        "{s3,reference}://x.tar",
        "REFERENCE://x.tar",
    ],
)
def test_protocols_are_an_allow_list(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError(f"opened {arguments}")

    monkeypatch.setattr(_remote.fsspec.core, "url_to_fs", never)
    with pytest.raises(ValueError, match="are not opened") as caught:
        open_images(address, 8)
    assert address.split("::")[0][:9] in str(caught.value)


def test_nothing_local_goes_through_a_plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path with :: is a file's name; fsspec would take it for addresses within addresses."""
    pytest.importorskip("webdataset")
    prepare.prepare("folder", fill(tmp_path / "in", 4), 8, tmp_path / "a::b", workers=0)

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError(f"opened {arguments}")

    monkeypatch.setattr(_remote.fsspec, "open", never)
    monkeypatch.setattr(_remote.fsspec.core, "url_to_fs", never)
    assert len(load_images(tmp_path / "a::b", 8)) == 4
    assert len(load_images(tmp_path / "a::b" / "shard-000000.tar", 8)) == 4


# ---- a Hugging Face dataset


def test_scripts_of_datasets_are_never_run(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ValueError, match="cannot be read as a Hugging Face dataset"):
        open_images(f"hf:{folder}", 8)
    assert not (tmp_path / "ran").exists()


def test_versions_that_would_run_scripts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    for version in ("2.14.7", "3.6.0", "unknown"):
        monkeypatch.setattr(datasets, "__version__", version)
        with pytest.raises(ImportError, match=r"can run scripts .*pip install 'datasets>=4'"):
            open_images("hf:somebody/something", 8)


@pytest.mark.parametrize("files", ["https://192.0.2.1/x.parquet", "zip://x.csv::http://192.0.2.1/x.zip"])
def test_the_description_of_a_dataset_opens_no_address(
    files: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError(f"opened {arguments}")

    monkeypatch.setattr(datasets, "load_dataset", never)
    (tmp_path / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files: '{files}'\n---\n# Data\n"
    )
    with pytest.raises(ValueError, match=r"README\.md names the files .*fetch them yourself"):
        open_images(f"hf:{tmp_path}", 8)


def test_a_row_names_no_file_of_somebody_elses(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    secret = fill(tmp_path / "private", 1) / "000.png"
    os.mkfifo(tmp_path / "pipe.png")
    rows = [{"bytes": None, "path": str(path)} for path in (secret, tmp_path / "pipe.png", "/dev/zero")] + [None]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    made = datasets.Dataset.from_dict({"image": rows}, features).cast_column("image", datasets.Image())

    class Local:
        __version__ = datasets.__version__
        config, Image, ClassLabel, DatasetDict = (
            datasets.config,
            datasets.Image,
            datasets.ClassLabel,
            datasets.DatasetDict,
        )
        load_dataset = staticmethod(lambda name: made)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "datasets", Local)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"none of the 4 files .* which is not part of the dataset"):
            load_images("hf:somebody/something", 8)


def test_rows_without_an_image_are_broken_pictures(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image(), "kind": datasets.Value("int64")})
    columns = {"image": [image, None, image], "mask": [image] * 3, "kind": [0, 2, 1]}
    datasets.Dataset.from_dict(columns, features).save_to_disk(tmp_path / "x")
    found = open_images(tmp_path / "x", 8, broken_share=0.5)
    assert found.skipped == ((f"row 1 of {tmp_path / 'x'}", "this row has no image"),)
    assert len(open_images(tmp_path / "x", 8, column="mask")) == 3
    labelled = open_images(tmp_path / "x", 8, label_column="kind")
    assert labelled.class_counts == (1, 1, 0)
    for options, message in (
        ({"column": "kind"}, r"no column of images 'kind'; it has \['image', 'mask'\]"),
        ({"label_column": "x"}, "no column 'x'"),
    ):
        with pytest.raises(ValueError, match=message):
            open_images(tmp_path / "x", 8, **options)


def test_a_choice_among_columns_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    datasets = pytest.importorskip("datasets")
    image = [Image.fromarray(np.zeros((8, 8, 3), np.uint8))]
    features = datasets.Features({"a": datasets.Image(), "b": datasets.Image()})
    datasets.Dataset.from_dict({"a": image, "b": image}, features).save_to_disk(tmp_path / "x")
    open_images(tmp_path / "x", 8)
    assert "of the columns a, b, a is taken for the images: --set data.column=b takes another" in caplog.text


# ---- pictures


def eps() -> bytes:
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(pwned) print\nshowpage\n%%EOF\n"


def test_no_picture_starts_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", never)
    monkeypatch.setattr("subprocess.Popen.__init__", never)
    for name in ("x.png", "x.jpg", "x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(eps())
        with pytest.raises(ValueError, match="not an image"):
            load_images(tmp_path / name, 8)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("x.png", eps())
    with pytest.raises(ValueError, match="not an image"):
        load_images(tmp_path / "x.zip", 8)
    from ssdcore import _data

    with pytest.raises(ValueError, match="none of its 1 files"):
        _data.read_images(str(tmp_path / "x.png"), 8)


@pytest.mark.parametrize("extension", ["eps", "ps", "wmf", "psd", "icns", "fits", "pdf", "hdf"])
def test_other_formats_are_no_pictures(extension: str, tmp_path: Path) -> None:
    fill(tmp_path, 1)
    (tmp_path / f"x.{extension}").write_bytes(eps())
    assert load_images(tmp_path, 8).skipped == ((str(tmp_path / f"x.{extension}"), "not an image"),)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims so many pixels."""
    content = io.BytesIO()
    Image.fromarray(np.zeros((1, 1), np.uint8)).save(content, "PNG")
    whole = bytearray(content.getvalue())
    whole[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    whole[29:33] = zlib.crc32(whole[12:29]).to_bytes(4, "big")
    return bytes(whole)


def test_pixels_that_are_claimed_are_bounded_before_they_are_decoded(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(bomb(60_000, 60_000))
    with pytest.raises(ValueError, match=r"60000×60000 pixels, more than the 178956970 that are allowed"):
        load_images(tmp_path, 8)
    (tmp_path / "x.png").write_bytes(fill(tmp_path / "in", 1, 64).joinpath("000.png").read_bytes())
    with pytest.raises(ValueError, match=r"64×64 pixels, more than the 4095 .*data\.most_pixels"):
        open_images(tmp_path, 8, most_pixels=4095)
    before = Image.MAX_IMAGE_PIXELS
    assert len(open_images(tmp_path, 8, most_pixels=4096)) == 2
    assert before == Image.MAX_IMAGE_PIXELS


def test_reading_never_waits_for_what_is_no_file(tmp_path: Path) -> None:
    """A pipe that nobody writes to would hold the reader up for ever."""
    fill(tmp_path / "in", 2)
    os.mkfifo(tmp_path / "in" / "pipe.png")
    (tmp_path / "in" / "endless.png").symlink_to("/dev/zero")
    found = load_images(tmp_path / "in", 8)
    assert {Path(name).name: why.partition(" is ")[2] for name, why in found.skipped} == {
        "pipe.png": "not a regular file",
        "endless.png": "not a regular file",
    }
    os.mkfifo(tmp_path / "x.npz")
    for path in (tmp_path / "x.npz", "/dev/zero", "/dev/stdin"):
        with pytest.raises((ValueError, OSError), match=r"not a regular file|no such data"):
            load_images(path, 8)
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises((ValueError, OSError), match=r"no such data|not a regular file"):
        load_images(tmp_path / "x.tar", 8)
    (tmp_path / "shards").mkdir()
    os.mkfifo(tmp_path / "shards" / "manifest.json")
    with pytest.raises(OSError, match="not a regular file"):
        load_images(tmp_path / "shards", 8)


# ---- a features file


class Writes(torch.nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        written = torch.from_file(self.path, shared=True, size=1024, dtype=torch.uint8).fill_(7)
        return images.float().mean((2, 3)) + written.float().mean()


def test_a_features_file_that_is_a_program_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, target = tmp_path / "features.pt", tmp_path / "written"
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(Writes(str(target))).save(str(file))
    np.savez(tmp_path / "x.npz", np.zeros((4, 8, 8, 3), np.uint8))
    options = ["--samples", tmp_path / "x.npz", "--data", tmp_path / "x.npz", "--device", "cpu", "--features", file]
    said = refusal(capsys, evaluate.main, *options, "--out", tmp_path / "e.json")
    assert "it could write files or worse; if you trust it" in said
    assert "--trust-features" in said
    assert not target.exists()
    monkeypatch.setattr(metrics._features, "PUBLISHED", {hashlib.sha256(file.read_bytes()).hexdigest(): "this one"})
    metrics.open_extractor(file)  # known by its contents, whatever it is called
    assert target.exists()


def test_a_checkpoint_runs_nothing_and_gives_no_dangerous_advice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    said = refusal(capsys, convert_command.main, tmp_path / "evil.pt", "--out", tmp_path / "run")
    assert "it holds code, which is not run" in said
    assert "weights_only" not in said
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "run").exists()


# ---- names that are printed


def test_names_reach_the_terminal_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J"
    for k, name in enumerate((f"a{evil}", f"b{evil}")):
        fill(tmp_path / "data" / name, 2 + k)
    (tmp_path / "data" / f"a{evil}" / f"x{evil}.png").write_bytes(b"broken")
    (tmp_path / "data" / f"a{evil}" / f"{evil}.txt").write_bytes(b"notes")
    images = open_images(tmp_path / "data", 8, broken_share=1)
    said = [*images.understood, *(record.getMessage() for record in caplog.records)]
    assert any("\\x1b]0;owned" in line for line in said)
    np.savez(tmp_path / "x.npz", np.zeros((2, 8, 8, 3), np.uint8), labels=[0, 0], class_names=[evil])
    for path in (tmp_path / f"none{evil}", tmp_path / "data" / f"a{evil}" / f"x{evil}.png"):
        said.append(refusal(capsys, train.main, *TINY, "--data", path, "--out", tmp_path / "run"))
    said.append(refusal(capsys, train.main, *TINY, "--data", tmp_path / "data", "--set", f"data.classes=['x{evil}']"))
    said.append(refusal(capsys, train.main, *TINY, "--set", f"data.{evil}=1"))
    for line in said:
        assert line.rstrip("\n").isprintable(), line


# ---- another user of the machine


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SSDCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_cache, "WAITS", ())
    _shards._opened.cache_clear()
    return tmp_path / "cache" / "ssdcore-shards"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    pytest.importorskip("webdataset")
    prepare.prepare("folder", fill(tmp_path / "in", 8), 8, tmp_path / "out", per_shard=2, workers=0)
    return tmp_path / "out"


def first_batch(shards: Path) -> torch.Tensor:
    _shards._opened.cache_clear()
    images = open_images(f"file://{shards}/manifest.json", 8, memory_gib=0)
    return next(Feed(images, images.order(8, 0), torch.device("cpu"), seed=0, workers=0).batches(0)).images


def test_a_cached_shard_that_was_swapped_is_fetched_again(
    shards: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    honest = first_batch(shards)
    kept = sorted(cache.glob("*.shard"))
    assert len(kept) == 4
    for file in kept:
        content = bytearray(file.read_bytes())
        content[700:760] = bytes(60)
        file.write_bytes(content)
    assert torch.equal(first_batch(shards), honest)
    assert "has changed: fetching it again" in caplog.text
    for file in kept:  # a link, a pipe and a file of another length
        file.unlink()
    kept[0].symlink_to("/etc/passwd")
    os.mkfifo(kept[1])
    kept[2].write_bytes(b"short")
    assert torch.equal(first_batch(shards), honest)
    assert all(stat.S_ISREG(file.lstat().st_mode) for file in kept)


@pytest.mark.parametrize("fault", ["link", "file", "writable", "owner"])
def test_a_cache_of_somebody_else_is_refused(
    fault: str, shards: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.mkdir()
    if fault == "link":
        (tmp_path / "elsewhere").mkdir()
        cache.symlink_to(tmp_path / "elsewhere")
    elif fault == "file":
        cache.write_text("a file")
    else:
        cache.mkdir()
        cache.chmod(0o777 if fault == "writable" else 0o700)
        if fault == "owner":
            user = os.getuid()
            monkeypatch.setattr(_cache.os, "getuid", lambda: user + 1)
    with pytest.raises(ValueError, match="set SSDCORE_CACHE to a folder of your own"):
        first_batch(shards)
    assert not (tmp_path / "elsewhere").exists() or not list((tmp_path / "elsewhere").iterdir())


def test_the_cache_deletes_nothing_that_it_has_not_made(shards: Path, cache: Path, tmp_path: Path) -> None:
    """$SSDCORE_CACHE may be a folder with the user's own files, tars and all."""
    cache.mkdir(parents=True)
    mine = [tmp_path / "cache" / f"{k:02d}.tar" for k in range(30)]
    mine += [cache / f"{k:02d}.tar" for k in range(30)] + [cache / f"{k:032x}.tar" for k in range(30)]
    mine += [cache / f"{k:02d}.shard" for k in range(30)]
    for file in mine:
        file.write_text("precious")
    first_batch(shards)
    assert all(file.read_text() == "precious" for file in mine)


def test_files_that_are_planted_are_not_written_through(shards: Path, cache: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    cache.mkdir(parents=True)
    for shard in range(4):
        text = f"file://{shards}/shard-{shard:06d}.tar"
        sha256 = hashlib.sha256((shards / f"shard-{shard:06d}.tar").read_bytes()).hexdigest()
        name = hashlib.sha256(f"{text} {sha256}".encode()).hexdigest()[:32]
        (cache / f"{name}.{os.getpid()}.part").symlink_to(precious)
        (cache / f"{name}.shard").symlink_to(precious)
    first_batch(shards)
    assert precious.read_text() == "precious"


# ---- what processes leave


def test_what_a_killed_process_left_in_the_temporary_folder_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sharing.tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    for name in ("ssdcore-images-dead", "mine.txt"):
        (tmp_path / "tmp" / name).write_bytes(b"x")
    (tmp_path / "tmp" / "ssdcore-images-link").symlink_to(tmp_path / "tmp" / "mine.txt")
    handle, alive = _sharing._locked_file()
    try:
        load_images(fill(tmp_path / "in", 2), 8)
        left = {path.name for path in (tmp_path / "tmp").iterdir()}
        assert left == {"mine.txt", "ssdcore-images-link", Path(alive).name}
    finally:
        os.close(handle)
    load_images(tmp_path / "in", 8)
    assert not Path(alive).exists()


@pytest.mark.multiprocess
def test_a_killed_decoder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """Whatever the command: training, preparing, evaluating."""
    from ssdcore_torch.data._reading import Reader

    parent, read = os.getpid(), Reader.read

    def killed(self: Any, *arguments: Any) -> Any:
        if os.getpid() == parent:  # a look at a few
            return read(self, *arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Reader, "read", killed)
    monkeypatch.setattr(prepare._Packer, "_pack", killed)
    pictures = fill(tmp_path / "in", 1)
    for k in range(1, 1010):  # more than are worth starting processes for
        os.link(pictures / "000.png", pictures / f"{k:03d}.png")
    np.savez(tmp_path / "x.npz", np.zeros((4, 8, 8, 3), np.uint8))
    compared = ["--samples", tmp_path / "x.npz", "--data", pictures, "--features", "pixels", "--device", "cpu"]
    stored = ["--set", "data.memory_gib=1"]
    for main, options in (
        (train.main, [*TINY, *stored, "--data", pictures, "--out", tmp_path / "out"]),
        (prepare_command.main, ["folder", "--from", pictures, "--size", 8, "--workers", 1, "--out", tmp_path / "out"]),
        (evaluate.main, [*compared, "--out", tmp_path / "x.json"]),
    ):
        said = refusal(capsys, main, *options)
        assert "a process that decodes pictures was killed (exit status -9)" in said
    assert {path.name for path in tmp_path.iterdir()} == {"in", "x.npz", "out"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["preparing.json"]  # the same command continues


# ---- prepare


def test_two_preparations_of_one_folder(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    pictures, out = fill(tmp_path / "in", 12), tmp_path / "out"
    told: list[str] = []
    real = prepare._write_shard

    def slow(path: Path, **options: Any) -> None:
        try:
            prepare.prepare("folder", pictures, 8, out, per_shard=4, workers=0)
        except ValueError as error:
            told.append(str(error))
        real(path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "_write_shard", slow)
        manifest = prepare.prepare("folder", pictures, 8, out, per_shard=4, workers=0)
    assert manifest.images == 12
    assert len(told) == 3
    assert all("is being prepared by another process" in line for line in told)
    prepare.check_shards(out)


def test_a_command_that_came_to_nothing_stands_in_nobodys_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("webdataset")
    pictures, out = fill(tmp_path / "in", 3), tmp_path / "out"
    said = refusal(capsys, prepare_command.main, "folder", "--from", pictures, "--size", 16, "--out", out)
    assert "none of the 3 pictures" in said
    assert not out.exists()
    assert prepare_command.main(["folder", "--from", str(pictures), "--size", "8", "--out", str(out)]) == 0
    capsys.readouterr()
    # killed before the first picture: the plan and an empty shard are left
    begun = tmp_path / "begun"
    begun.mkdir()
    plan = {"recipe": {"name": "folder", "inputs": 3, "listing": "0"}, "size": 16, "class_names": []}
    (begun / "preparing.json").write_text(json.dumps(plan))
    (begun / "shard-000000.tar").write_bytes(bytes(10240))
    (begun / "mine.txt").write_text("precious")
    assert prepare_command.main(["folder", "--from", str(pictures), "--size", "8", "--out", str(begun)]) == 0
    assert (begun / "mine.txt").read_text() == "precious"


def test_somebody_elses_folder_is_not_cleared(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    out = tmp_path / "out"
    out.mkdir()
    (out / "shard-000000.tar").write_bytes(bytes(10240))
    for text in ("{}", '{"recipe": 1}', "[]"):
        (out / "preparing.json").write_text(text)
        with pytest.raises(ValueError, match="was begun otherwise"):
            prepare.prepare("folder", fill(tmp_path / "in", 2), 8, out, workers=0)
        assert (out / "preparing.json").read_text() == text
        assert (out / "shard-000000.tar").exists()


def test_a_conversion_that_was_killed_is_swept(tmp_path: Path) -> None:
    from ssdcore_torch.convert import _sweep
    from ssdcore_torch.locks import lock_folder, unlock_folder

    dead, alive = (tmp_path / f".run.{k * 16}.tmp" for k in "ab")
    other = tmp_path / ".run.notes.tmp"
    for folder in (dead, alive, other):
        folder.mkdir()
        (folder / "model.safetensors").write_text("x")
    lock = lock_folder(alive)
    assert lock is not None
    _sweep(tmp_path / "run")
    unlock_folder(lock)
    assert not dead.exists()
    assert alive.exists()
    assert other.exists()


def test_one_process_locks_a_folder(tmp_path: Path) -> None:
    from ssdcore_torch.locks import lock_folder, unlock_folder

    lock = lock_folder(tmp_path)
    assert lock is not None
    with pytest.raises(BlockingIOError):
        lock_folder(tmp_path)
    unlock_folder(lock)
    again = lock_folder(tmp_path)
    assert again is not None
    unlock_folder(again)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OSError, match="link"):
        lock_folder(tmp_path / "link")
    assert not [path for path in tmp_path.iterdir() if path.name != "link"]


# ---- conditions that were never trained


def test_classes_that_training_never_saw_are_not_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ssdcore_torch.commands import sample

    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    names = ["a", "b", "c", "d", "e"]
    np.savez(tmp_path / "x.npz", images=images, labels=[0, 2] * 4, class_names=names)
    options = [
        "--data",
        tmp_path / "x.npz",
        "--conditional",
        "--out",
        tmp_path / "run",
        "--set",
        "train.label_dropout=0",
    ]
    assert train.main([str(option) for option in (*TINY, *options)]) == 0
    capsys.readouterr()
    drawn = ["--device", "cpu", "--steps", "2", "--n", "4", "--out", tmp_path / "x.npz"]
    said = refusal(capsys, sample.main, tmp_path / "run", *drawn, "--label", "b")
    assert "training saw no image of the class b; it saw a, c: choose among these" in said
    assert "--guidance 3: with train.label_dropout=0" in refusal(
        capsys, sample.main, tmp_path / "run", *drawn, "--guidance", 3
    )
    out = tmp_path / "drawn.npz"
    assert sample.main([str(x) for x in (tmp_path / "run", *drawn[:-1], out)]) == 0
    with np.load(out) as arrays:
        assert arrays["labels"].tolist() == [0, 2, 0, 2]


# ---- weights


def converted(tmp_path: Path) -> Path:
    official = Path(__file__).parent / "data" / "flexi_unet_tiny.safetensors"
    assert convert_command.main([str(official), "--levels", "3", "--out", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


def test_a_converted_run_is_under_checksums(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = converted(tmp_path)
    kept = {path: path.read_bytes() for path in run.iterdir()}
    changed = json.loads(kept[run / "config.json"])
    changed["process"]["gamma"] = 0.6
    for name, content, says in (
        (
            "ema.safetensors",
            kept[run / "ema.safetensors"][:-1] + b"\x01",
            "ema.safetensors is not the file that was wr",
        ),
        ("model.safetensors", kept[run / "model.safetensors"][:99], "model.safetensors is not the file that was writ"),
        ("config.json", json.dumps(changed).encode(), "process.gamma: 0.6 instead of 0.5"),
        ("manifest.json", b"[" * 100_000, "manifest.json is not JSON"),
        ("manifest.json", b"{}", "manifest.json: expected the format"),
        ("manifest.json", kept[run / "manifest.json"].replace(b"bytes", b"byte"), "is not the file that was written"),
    ):
        (run / name).write_bytes(content)
        with pytest.raises(ValueError, match=says):
            load_run(run)
        (run / name).write_bytes(kept[run / name])
    assert load_run(run).step >= 0
    (run / "manifest.json").unlink()  # of a version that wrote none
    assert load_run(run).step >= 0


def test_weights_that_are_not_finite_are_refused_by_name_whatever_holds_them(
    saved_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With every checksum made consistent, so that nothing but the numbers is wrong."""

    def spoil(file: Path, signed: Path | None = None) -> str:
        tensors, metadata = checkpoint.load_tensors(file)
        name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
        tensors[name].view(-1)[0] = float("nan")
        file.unlink()  # model.safetensors of a run is a second name of its checkpoint's
        checkpoint.save_tensors(file, tensors, metadata)
        if signed is not None:
            values = json.loads(signed.read_text())
            found = {"bytes": file.stat().st_size, "sha256": checkpoint.digest(file)}
            (values if file.stem == "prior" else values["files"])["prior" if file.stem == "prior" else file.name] = (
                found
            )
            signed.write_text(json.dumps(values))
        return name

    (tmp_path / "a").mkdir()
    official = converted(tmp_path / "a")
    spoil(official / "ema.safetensors", official / "manifest.json")
    with pytest.raises(ValueError, match=r"ema\.safetensors holds values that are not finite, in "):
        load_run(official)
    capsys.readouterr()
    weights = [file.name for file in checkpoint.checkpoints(saved_run)[0].glob("*.safetensors")]
    assert len(weights) >= 3
    for name in ("prior.safetensors", *weights):
        run = tmp_path / name
        shutil.copytree(saved_run, run)
        folder = checkpoint.checkpoints(run)[0]
        file = run / name if name.startswith("prior") else folder / name
        tensor = spoil(file, folder / "manifest.json")
        command = train.main if name.startswith("optimizer") else sample_command.main
        options = ["--out", run, "--resume", "--device", "cpu"] if command is train.main else [run, "--device", "cpu"]
        said = refusal(capsys, command, *options)
        assert f"{file} " in said
        assert "holds values that are not finite, in" in said
        assert tensor.rpartition("/")[2] in said
    file = tmp_path / "weights.safetensors"
    shutil.copyfile(saved_run / "ema.safetensors", file)
    tensor = spoil(file)
    said = refusal(capsys, sample_command.main, saved_run, "--device", "cpu", "--weights", file)
    assert f"{file} holds values that are not finite, in {tensor}" in said


@pytest.mark.parametrize(
    ("path", "named"), [("https://192.0.2.1/it's {0..3}.tar", True), ("hf:someone/something", True), ("here", False)]
)
def test_to_go_on_names_data_on_another_machine(path: str, named: bool, saved_run: Path, tmp_path: Path) -> None:
    """As no address is opened that only a file names."""
    saved = checkpoint.read_config(saved_run)
    trainer = SimpleNamespace(config=replace(saved, data=replace(saved.data, path=path)))
    said = train._command(World(0, 1, 0, torch.device("cpu")), *train._resume(trainer, tmp_path))  # type: ignore[arg-type]
    typed = train.parser().parse_args(shlex.split(said)[3:])
    assert typed.data == (path if named else None)
    assert typed.resume


# ---- shards and their cache


@pytest.mark.parametrize("name", ["offsets", "lengths", "labels", "shards"])
def test_an_index_of_any_numbers_with_a_manifest_that_fits_it(name: str, tmp_path: Path) -> None:
    """It is read, or refused in a line that names it; no picture lies outside its shard."""
    pytest.importorskip("webdataset")
    source = fill(tmp_path / "in" / "a", 3).parent
    fill(source / "b", 3)
    folder = tmp_path / "out"
    prepare.prepare("folder", source, 8, folder, per_shard=2, workers=0)
    with np.load(folder / "index.npz") as opened:
        kept = dict(opened)
    manifest = json.loads((folder / "manifest.json").read_text())
    random = np.random.default_rng(0)
    kinds = ["i8", "i4", "u8", "f8", "?", "U3", "c16"]
    outcomes = set()
    for trial in range(40):
        arrays = {key: value.copy() for key, value in kept.items()}
        if name not in arrays:
            arrays[name] = np.arange(3)
        elif trial % 4 == 0:
            arrays[name] = arrays[name].astype(kinds[trial // 4 % len(kinds)])
        elif trial % 4 == 1:
            arrays[name] = arrays[name][: trial // 4]
        elif trial % 4 == 2:
            arrays[name] = np.stack([arrays[name]] * 2)
        else:
            arrays[name][random.integers(6)] = random.choice([-1, 0, 1, 511, 513, 10**6, 2**62, -(2**63)])
        np.savez(folder / "index.npz", **arrays)
        manifest["index_sha256"] = hashlib.sha256((folder / "index.npz").read_bytes()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))
        _shards._opened.cache_clear()
        try:
            images = load_images(folder, 8)
            outcomes.add("read")
            assert len(images) + len(images.skipped) == 6
        except ValueError as error:
            outcomes.add("refused")
            told = str(error)
            assert str(folder) in told
            assert "\n" not in told
    assert "refused" in outcomes or name == "shards"


def test_an_index_that_unpacks_to_more_than_its_manifest_says_is_not_unpacked(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    prepare.prepare("folder", fill(tmp_path / "in", 3), 8, tmp_path / "out", workers=0)
    np.savez_compressed(tmp_path / "out" / "index.npz", offsets=np.zeros(2**22, np.int64), lengths=np.ones(3, np.int64))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    manifest["index_sha256"] = hashlib.sha256((tmp_path / "out" / "index.npz").read_bytes()).hexdigest()
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        ValueError, match=r"index\.npz is not an index of shards \(it unpacks to more than 3 pictures take\)"
    ):
        open_images(tmp_path / "out", 8)


@pytest.mark.parametrize("trial", range(20))
def test_a_log_of_any_bytes_is_gone_on_with(trial: int, tmp_path: Path) -> None:
    """Sound lines are kept, the others left out; nothing else is raised, and nothing else lost."""
    from ssdcore_torch.training.log import Log

    random = np.random.default_rng(trial)
    lines = [json.dumps({"step": step, "loss": 1.0}).encode() for step in range(1, 9)]
    for _ in range(3):
        k = int(random.integers(len(lines)))
        line = bytearray(lines[k])
        place = int(random.integers(len(line)))
        line[place : place + int(random.integers(3))] = random.bytes(int(random.integers(4)))
        lines[k] = bytes(line)
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n" * int(random.integers(2)))
    Log(path, 6).write({"step": 7})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    untouched = [json.loads(line) for line in lines if line == json.dumps({"step": _step(line), "loss": 1.0}).encode()]
    assert rows[-1] == {"step": 7}
    assert [row for row in untouched if row["step"] <= 6] == [row for row in rows[:-1] if row in untouched]


def _step(line: bytes) -> object:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
