"""Bad inputs of the commands that read data: one line that names them, exit status 2, nothing left, within seconds."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import refusal
from PIL import Image

import ssdcore.__main__ as core
from ssdcore_torch.commands import convert, evaluate, prepare, train

LIMIT = 20.0  # seconds of the CPU; each takes well under one
TINY = ["--device", "cpu", "--size", "8", "--levels", "2", "--batch-size", "4", "--steps", "1"]
TINY += ["--set", "network.base_channels=32", "--set", "network.channel_multipliers=[1,1]"]
TINY += ["--set", "network.attention_sizes=null"]


def png(side: int = 8, seed: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def npy(shape: tuple[int, ...], dtype: str = "|u1", content: bytes = b"") -> bytes:
    """An array file whose header may say what is not there."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + content


def zipped(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of everything that can be wrong."""
    base = tmp_path_factory.mktemp("bad")
    (base / "empty").mkdir()
    (base / "good").mkdir()
    for k in range(6):
        (base / "good" / f"{k}.png").write_bytes(png(seed=k))
    (base / "notes").mkdir()
    (base / "notes" / "a.txt").write_text("notes")
    for name, content in {
        "picture.png": png(),
        "text.txt": b"some text",
        "table.parquet": b"PAR1" + bytes(64),
        "nothing.npz": b"",
        "huge.npy": npy((10**12, 8, 8, 3)),
        "minus.npy": npy((-1, 8, 8, 3)),
        "wide.npy": npy((1, 8, 8, 3), "<U1000000000"),
        "code.npy": b"\x93NUMPY\x01\x00\x76\x00" + b"__import__('os').system('true')".ljust(117) + b"\n",
        "objects.npy": npy((2,), "|O", b"cos\nsystem\n"),
        "v3.npy": b"\x93NUMPY\x03\x00" + bytes(200),
        "cut.npy": npy((4, 8, 8, 3), content=bytes(100)),
        "cut.gz": gzip.compress(bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 8, 0, 0, 0, 8]) + bytes(128))[:-9],
        "bomb.gz": gzip.compress(bytes([0, 0, 8, 3, 255, 255, 255, 255, 0, 0, 0, 8, 0, 0, 0, 8])),
        "short.idx": bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 8, 0, 0, 0, 8]) + bytes(127),
        "long.idx": bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 8, 0, 0, 0, 8]) + bytes(129),
        "labels.idx": bytes([0, 0, 8, 1, 0, 0, 0, 2, 1, 1]),
        "floats.idx": bytes([0, 0, 13, 3]) + bytes(64),
        "latin.yaml": "data: {path: caf\xe9}".encode("latin-1"),
        "bomb.yaml": "\n".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9) if k else 1}]" for k in range(9)).encode(),
        "loop.yaml": b"train: &a {clip: *a}",
        "double.yaml": b"seed: 1\nseed: 2",
        "latin.list": b"caf\xe9.png",
        "strange.list": b"missing.png\n",
        "blank.list": b"\n\n",
        "random.pt": os.urandom(512),
        "cut.tar": b"x" * 700,
    }.items():
        (base / name).write_bytes(content)
    os.mkfifo(base / "pipe")
    zipped(base / "zip.npz", {"a.txt": b"text"})
    zipped(base / "damaged.npz", {"images.npy": npy((4, 8, 8, 3), content=bytes(768))})
    damaged = bytearray((base / "damaged.npz").read_bytes())
    damaged[60:64] = b"\xff\xff\xff\xff"
    (base / "damaged.npz").write_bytes(damaged)
    zipped(base / "lies.npz", {"images.npy": npy((10**9, 8, 8, 3), content=bytes(768))})
    zipped(
        base / "labels.npz",
        {"images.npy": npy((1, 8, 8, 3), content=bytes(192)), "labels.npy": npy((1,), "<i8", b"\xff" * 7 + b"\x7f")},
    )
    np.savez(base / "names.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=[0, 1], class_names=["a", "a"])
    np.savez(base / "two.npz", a=np.zeros(2), b=np.zeros(2))
    np.savez(base / "float.npz", images=np.zeros((2, 8, 8, 3)))
    np.savez(base / "five.npz", images=np.zeros((4, 8, 8, 5), np.uint8))
    np.savez(base / "small.npz", images=np.zeros((4, 4, 4, 3), np.uint8))
    for name, label in {
        "long": b"9" * 25,
        "large": b"3000000000",
        "minus": b"-1",
        "word": b"cat",
        "unicode": "²".encode(),
    }.items():
        tar(base / f"{name}.tar", {"a.png": png(), "a.cls": label})
    tar(base / "none.tar", {"a.txt": b"a"})
    shards(base)
    torch.save({"model": {"a": torch.zeros(2)}, "step": -1}, base / "step.pt")
    torch.save({"model": {1: torch.zeros(2)}}, base / "key.pt")
    torch.save([torch.zeros(2)], base / "list.pt")
    return base


def shards(base: Path) -> None:
    """Folders of prepared shards whose manifest and index were edited together."""
    import hashlib

    from ssdcore_torch.prepare import prepare as pack

    def edited(name: str, **arrays: np.ndarray) -> None:
        folder = base / name
        pack("folder", base / "good", 8, folder, per_shard=3, workers=0)
        with np.load(folder / "index.npz") as found:
            kept = {key: found[key] for key in found.files} | arrays
        np.savez(folder / "index.npz", **{key: value for key, value in kept.items() if value is not None})
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["index_sha256"] = hashlib.sha256((folder / "index.npz").read_bytes()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))

    edited("few", offsets=np.arange(2) + 512, lengths=np.full(2, 100))
    edited("many", offsets=np.arange(60) + 512, lengths=np.full(60, 100))
    edited("outside", offsets=np.full(6, 10**12))
    edited("negative", offsets=np.full(6, -5))
    edited("floating", offsets=np.full(6, 512.0))
    edited("no-labels", labels=np.full(6, 10**11))
    edited("no-lengths", lengths=None)  # type: ignore[arg-type]
    pack("folder", base / "good", 8, base / "not-json", workers=0)
    (base / "not-json" / "manifest.json").write_bytes(b"[" * 100_000)


Row = tuple[Callable[..., int], str, str]

DATA: list[tuple[str, str]] = [
    ("picture.png", "is not a readable .npz or .npy file of images"),
    ("text.txt", "is not a readable .npz or .npy file of images"),
    ("table.parquet", "is a Parquet file: give the folder that it is in, as hf:"),
    ("nothing.npz", "is not a readable"),
    ("zip.npz", "holds neither arrays nor pictures"),
    ("damaged.npz", "damaged.npz is not a readable"),
    ("lies.npz", "is cut short: (1000000000, 8, 8, 3) uint8 would take"),
    ("labels.npz", "labels from 0 to 99999, got some from"),
    ("names.npz", "two classes are called a"),
    ("two.npz", "expected an array named 'images'"),
    ("float.npz", "expected images of dtype uint8 or uint16, got float64"),
    ("five.npz", "got (4, 8, 8, 5)"),
    ("small.npz", "4×4 pixels, smaller than size 8: choose a smaller size"),
    ("huge.npy", "is cut short"),
    ("minus.npy", "is cut short"),
    ("wide.npy", "the header of its array 'images' is damaged|is cut short"),
    ("code.npy", "the header of its array 'images' is damaged"),
    ("objects.npy", "holds Python objects, which are not read"),
    ("v3.npy", "is damaged"),
    ("cut.npy", "is cut short"),
    ("cut.gz", "cut.gz is cut short or damaged"),
    ("bomb.gz", "takes 256 GiB unpacked"),
    ("short.idx", "is cut short or damaged"),
    ("long.idx", "is cut short or damaged"),
    ("labels.idx", "expected images, an IDX file of 3 axes"),
    ("floats.idx", "is not a readable"),
    ("pipe", "pipe is not a regular file"),
    ("empty", "holds no files"),
    ("notes", "none of the 1 files"),
    ("missing", "no such data"),
    ("missing.tar", "no such data"),
    ("cut.tar", "is not an intact, uncompressed tar file"),
    ("none.tar", "holds no pictures"),
    ("long.tar", "expected a class number"),
    ("large.tar", "expected a class number"),
    ("minus.tar", "expected a class number"),
    ("word.tar", "expected a class number, got b'cat'"),
    ("unicode.tar", "expected a class number"),
    ("x{0..99999999999}.tar", "stands for more than 1000000 files"),
    ("x{0..999}{0..999}{0..999}.tar", "stands for more than 1000000 files"),
    ("{a,b}" * 40 + ".tar", "stands for more than 1000000 files"),
    ("few", "expected offsets, lengths (and labels) int64 (6,)"),
    ("many", "expected offsets, lengths (and labels) int64 (6,)"),
    ("outside", "some pictures would lie outside their shards"),
    ("negative", "some pictures would lie outside their shards"),
    ("floating", "got offsets float64 (6,)"),
    ("no-labels", "number the classes from 0"),
    ("no-lengths", "got offsets int64 (6,)"),
    ("missing/manifest.json", "missing/manifest.json"),
    ("not-json", "is not a manifest of shards"),
]

ADDRESSES = [
    ("ftp://192.0.2.1/x.tar", "ftp://192.0.2.1/x.tar: addresses of ftp:// are not opened"),
    ("a::b://x", "addresses within addresses"),
    ("hf:", "hf: names no dataset"),
    ("hf::train", "names no dataset"),
    ("hf:/", "names no dataset|has no splits|holds no|cannot be read"),
    ("hf:a//b", "names no dataset"),
    ("hf:../none", "names no dataset"),
    ("python:an array", "were given by a program"),
    ("pipe:true", "commands are not run"),
    ("", "no such data|holds no|is not a readable"),
]

SETTINGS = [
    ("data.bits=17", "data.bits"),
    ("data.most_pixels=0", "data.most_pixels"),
    ("data.labels=maybe", "data.labels: expected bool"),
    ("data.column=3", "data.column: expected str"),
    ("data.class_counts=[1]", "data.class_counts: expected one for each of 0 class names"),
    ("data.memory_gib=.nan", "data.memory_gib"),
]

FILES = [
    ("--config", "latin.yaml", "is not UTF-8 text"),
    ("--config", "bomb.yaml", "aliases (*a0) are not read"),
    ("--config", "loop.yaml", "aliases (*a) are not read"),
    ("--config", "double.yaml", "'seed' is given twice"),
    ("--config", "pipe", "is not a regular file"),
    ("--config", "good", "is a folder"),
    ("--config", "none.yaml", "--config"),
    ("--schedule", "none.json", "--schedule"),
    ("--schedule", "text.txt", "--schedule"),
]

PREPARE = [
    (["folder", "--from", "BAD/missing", "--size", "8"], "no such data"),
    (["folder", "--from", "BAD/empty", "--size", "8"], "holds no files"),
    (["folder", "--from", "BAD/notes", "--size", "8"], "holds no pictures"),
    (["folder", "--from", "BAD/good", "--size", "9"], "none of the 6 pictures"),
    (["folder", "--from", "BAD/good", "--size", "8", "--list", "BAD/none.list"], "--list"),
    (["folder", "--from", "BAD/good", "--size", "8", "--list", "BAD/latin.list"], "is not UTF-8 text"),
    (
        ["folder", "--from", "BAD/good", "--size", "8", "--list", "BAD/strange.list"],
        "1 names of the list are not pictures",
    ),
    (["folder", "--from", "BAD/good", "--size", "8", "--list", "BAD/blank.list"], "it names no files"),
    (["folder", "--from", "BAD/good", "--size", "8", "--list", "BAD/pipe"], "is not a regular file"),
    (["folder", "--from", "BAD/small.npz", "--size", "8"], "smaller than --size 8"),
    (["folder", "--from", "BAD/outside", "--size", "8"], "outside their shards"),
    (["folder", "--from", "BAD/good", "--size", "8", "--list", "BAD/text.txt", "--channels", "2"], "invalid choice"),
    (["folder", "--size", "8"], "needs --from FOLDER"),
    (["imagenet", "--from", "BAD/good", "--size", "8"], "expected train_data_batch_1.npz"),
    (["celeba", "--from", "BAD/good", "--size", "8"], "none of the 6 pictures"),
    (["index"], "holds no .tar files to index"),
    (["check"], "there is no manifest.json"),
]

CONVERT = [
    ("random.pt", "cannot be read as a checkpoint"),
    ("step.pt", "expected a whole number >= 0, got -1"),
    ("key.pt", "expected floating-point tensors under names"),
    ("list.pt", "expected a dictionary of tensors, got list"),
    ("pipe", "no such file"),
    ("none.pt", "no such file"),
    ("good", "no such file"),
    ("picture.png", "cannot be read as a checkpoint"),
]


def check(
    capsys: pytest.CaptureFixture[str], message: str, left: Path, main: Callable[..., int], *options: object
) -> None:
    began = time.process_time()
    said = refusal(capsys, main, *options)
    assert time.process_time() - began < LIMIT
    assert any(part in said for part in message.split("|")), said
    assert said.rstrip("\n").isprintable()
    assert not left.exists()


@pytest.mark.parametrize(("name", "message"), [*DATA, *ADDRESSES], ids=[name[:40] for name, _ in (*DATA, *ADDRESSES)])
def test_data(name: str, message: str, bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = name if (name, message) in ADDRESSES else bad / name
    if name == "":
        path = bad / "empty"
    check(capsys, message, tmp_path / "run", train.main, *TINY, "--data", path, "--out", tmp_path / "run")


@pytest.mark.parametrize(("setting", "message"), SETTINGS)
def test_settings(setting: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(capsys, message, tmp_path / "run", train.main, *TINY, "--set", setting, "--out", tmp_path / "run")


def test_advice_can_be_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchmetrics")
    np.save(tmp_path / "three.npy", np.zeros((3, 8, 8, 3), np.uint8))
    options = [
        "--set",
        "train.evaluate_every=1",
        "--set",
        "train.evaluate_features=pixels",
        "--data",
        tmp_path / "three.npy",
    ]
    message = "leave train.evaluate_every out, as an evaluation takes 4 at least"
    check(capsys, message, tmp_path / "run", train.main, *TINY, *options, "--out", tmp_path / "run")


@pytest.mark.parametrize(("option", "name", "message"), FILES)
def test_files_of_options(
    option: str, name: str, message: str, bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(capsys, message, tmp_path / "run", train.main, *TINY, option, bad / name, "--out", tmp_path / "run")


@pytest.mark.parametrize(("options", "message"), PREPARE)
def test_prepare(
    options: list[str], message: str, bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [option.replace("BAD", str(bad)) for option in options]
    check(capsys, message, tmp_path / "out", prepare.main, *given, "--out", tmp_path / "out")


@pytest.mark.parametrize(("name", "message"), CONVERT)
def test_convert(name: str, message: str, bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(capsys, message, tmp_path / "run", convert.main, bad / name, "--out", tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["picture.png", "lies.npz", "pipe", "cut.tar", "notes", "outside"])
def test_samples(name: str, bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = dict(DATA)[name]
    options = ["--samples", bad / name, "--data", bad / "good", "--features", "pixels", "--device", "cpu"]
    check(capsys, message, tmp_path / "e.json", evaluate.main, *options, "--out", tmp_path / "e.json")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("picture.png", "is not a readable"),
        ("lies.npz", "is cut short"),
        ("objects.npy", "holds Python objects"),
        ("pipe", "is not a regular file"),
        ("notes", "none of its 1 files"),
        ("missing", "no such data"),
        ("five.npz", "got (4, 8, 8, 5)"),
    ],
)
def test_design(name: str, message: str, bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = core.main(["design", "--data", str(bad / name), "--size", "8", "--out", str(tmp_path / "x.json")])
    said = capsys.readouterr().err
    assert status == 2
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "x.json").exists()


def test_what_unpacks_to_more_than_is_allowed_is_mapped_or_refused(tmp_path: Path) -> None:
    from ssdcore.files import ArrayFile

    images = np.zeros((4, 64, 64, 3), np.uint8)
    np.savez(tmp_path / "stored.npz", images=images)
    np.savez_compressed(tmp_path / "packed.npz", images=images)
    assert isinstance(ArrayFile(tmp_path / "stored.npz", 1000)["images"], np.memmap)
    assert (ArrayFile(tmp_path / "packed.npz", images.nbytes + 1000)["images"] == 0).all()
    with pytest.raises(ValueError, match=r"'images' takes 48\.\d+ KiB unpacked, more than the 1000 bytes"):
        ArrayFile(tmp_path / "packed.npz", 1000)["images"]
