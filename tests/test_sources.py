"""Sources besides folders of pictures: arrays, Datasets, IDX files, zips; channels, shapes and what is said of them."""

from __future__ import annotations

import gzip
import io
import json
import logging
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from items import Items
from PIL import Image
from torch.utils.data import IterableDataset

from ssdcore_torch.commands import evaluate, sample, train
from ssdcore_torch.data import CHANNELS, Feed, ImageSet, ImageStream, load_images, open_images

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 10, 12, 3), dtype=np.uint8)
GREY = COLOURS[..., 0]


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


# ---- channels and shapes


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("gib", [4, 0])
def test_channels_of_pictures(channels: int, gib: float, tmp_path: Path) -> None:
    (tmp_path / "grey.png").write_bytes(png(GREY[0]))
    (tmp_path / "rgb.png").write_bytes(png(COLOURS[1]))
    alpha = np.full((10, 12, 1), 255, np.uint8)
    alpha[:, :6] = 0
    (tmp_path / "rgba.png").write_bytes(png(np.concatenate([COLOURS[2], alpha], -1)))
    images = open_images(tmp_path, (10, 12), channels=channels, memory_gib=gib)
    read = Feed(images, images.order(3, 0), torch.device("cpu"), seed=0, workers=0)
    batch = next(read.batches(0))
    assert batch.images.shape == (3, channels, 10, 12)
    found = {int(i): x.permute(1, 2, 0).numpy() for i, x in zip(batch.indices, batch.images)}
    np.testing.assert_array_equal(found[0][..., 0], GREY[0])
    luma = np.asarray(Image.fromarray(COLOURS[1]).convert("L"))
    np.testing.assert_array_equal(
        found[1], {1: luma[..., None]}.get(channels, np.dstack([COLOURS[1], alpha | 255])[..., :channels])
    )
    if channels == 4:
        np.testing.assert_array_equal(found[2][..., 3:], alpha)
    else:
        assert (found[2][:, :6] == 255).all()  # over white
    assert f"read as 12×10 {CHANNELS[channels]}" in images.understood[0]


@pytest.mark.parametrize("crop", ["center", "random"])
def test_shapes_that_are_no_square(crop: Any, tmp_path: Path) -> None:
    for k in range(4):
        Image.fromarray(COLOURS[k]).resize((40, 30)).save(tmp_path / f"{k}.png")
    images = open_images(tmp_path, (8, 16), crop=crop)
    batch = next(Feed(images, images.order(4, 0), torch.device("cpu"), seed=0, workers=0).batches(0))
    assert batch.images.shape == (4, 3, 8, 16)
    with pytest.raises(ValueError, match="smaller than 41×8"):
        load_images(tmp_path, (8, 41))


def test_a_turned_picture_is_as_large_as_it_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOURS[0]).save(tmp_path / "x.png", exif=exif)  # 12×10 pixels, upright 10×12
    assert load_images(tmp_path, (12, 10)).images.shape == (1, 12, 10, 3)
    with pytest.raises(ValueError, match="smaller"):
        load_images(tmp_path, (10, 12))


@pytest.mark.parametrize(("bits", "high"), [(12, 4095), (10, 1023), (16, 65535)])
def test_fewer_bits_than_the_files_have(bits: int, high: int, tmp_path: Path) -> None:
    deep = np.linspace(0, high, 120).reshape(10, 12).astype(np.uint16)
    wanted = np.round(deep * (255 / high))
    Image.fromarray(deep).save(tmp_path / "x.png")
    np.save(tmp_path / "y.npy", deep[None])
    for name in (".", "y.npy"):
        found = open_images(tmp_path / name, (10, 12), bits=bits, channels=1)
        assert isinstance(found, ImageSet)
        assert np.abs(found.images[0, ..., 0] - wanted).max() <= 0.51
    if bits < 16:
        with pytest.raises(ValueError, match=f"holds the value {high}, more than data.bits=8 has: 255"):
            open_images(tmp_path, (10, 12), bits=8)


def test_data_that_looks_dark_is_doubted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    np.save(tmp_path / "x.npy", np.full((2, 8, 8), 4095, np.uint16))
    caplog.set_level(logging.WARNING, "ssdcore_torch")
    assert "values from 16 to 16 of 255" in open_images(tmp_path / "x.npy", 8).understood[0]
    assert "--set data.bits=12" in caplog.text
    caplog.clear()
    assert "values from 255 to 255" in open_images(tmp_path / "x.npy", 8, bits=12).understood[0]
    assert not caplog.text


# ---- arrays and Datasets


def test_arrays_in_memory() -> None:
    for data, channels in ((COLOURS, 3), (torch.from_numpy(COLOURS), 3), (GREY, 1), (GREY[..., None], 1)):
        found = load_images(data, (10, 12), channels=channels)
        np.testing.assert_array_equal(found.images, COLOURS[..., :channels])
        assert found.labels is None
    labelled = load_images((COLOURS, [0, 1, 2, 0, 1, 2], ["a", "b", "c"]), 8, ("c", "a"))
    assert labelled.labels.tolist() == [0, 2, 0, 2]
    assert labelled.class_counts == (2, 0, 2)
    assert load_images((COLOURS, torch.arange(6)), 8).class_names == tuple("012345")
    streamed = open_images(COLOURS, 8, memory_gib=0)
    assert isinstance(streamed, ImageStream)
    assert open_images(COLOURS, 8).fingerprint == streamed.fingerprint != open_images(COLOURS[::-1], 8).fingerprint


def test_datasets() -> None:
    pictures = [Image.fromarray(x) for x in COLOURS]
    tensors = list(torch.from_numpy(COLOURS).permute(0, 3, 1, 2))
    kinds: list[list[Any]] = [
        pictures,
        [(x, k % 2) for k, x in enumerate(pictures)],
        [(x, torch.tensor(k % 2)) for k, x in enumerate(tensors)],
        [[x, k % 2] for k, x in enumerate(COLOURS)],
    ]
    for items in kinds:
        found = load_images(Items(items), (10, 12))
        np.testing.assert_array_equal(found.images, COLOURS)
        assert (None if found.labels is None else found.labels.tolist()) in (None, [0, 1] * 3)
    assert "2 classes by its items" in found.understood[1]
    told = Items([(x, 7) for x in COLOURS])
    told.targets, told.classes = [0, 1, 1, 1, 1, 1], ["cat", "dog"]  # type: ignore[attr-defined]
    found = load_images(told, 8)
    assert (found.class_names, found.class_counts) == (("cat", "dog"), (1, 5))
    assert open_images(told, 8, labels=False).labels is None
    assert pickle.loads(pickle.dumps(open_images(told, 8, memory_gib=0).reader)).read(0).shape == (8, 8, 3)  # type: ignore[union-attr]


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        while True:
            yield COLOURS[0]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (COLOURS.astype(np.float32), ValueError, r"dtype uint8 or uint16, got float32; for values in \[0, 1\]"),
        (
            COLOURS.astype(np.float32) - 1,
            ValueError,
            r"got float32; for values in \[−1, 1\] .* a process over \(1, h, w\)",
        ),
        (COLOURS.transpose(0, 3, 1, 2), ValueError, r"put the channels last"),
        (COLOURS[0, 0], ValueError, r"expected images shaped \(n, h, w\)"),
        (COLOURS[:0], ValueError, r"got \(0, 10, 12, 3\)"),
        ((COLOURS, [0, 1]), ValueError, r"integer labels shaped \(6,\)"),
        ((COLOURS, [0.5] * 6), ValueError, "integer labels"),
        ((COLOURS, [0] * 6, ["a"] * 2), ValueError, "two classes are called a"),
        ((COLOURS, [3] * 6, ["a"]), ValueError, "from 3 to 3: number the classes"),
        ((COLOURS, [-1] * 6), ValueError, "from -1 to -1"),
        ((COLOURS, None, None, None), TypeError, r"expected images, \(images, labels\)"),
        (("a", "b"), TypeError, "images being an array"),
        ([COLOURS], TypeError, "expected a path, an array"),
        (None, TypeError, "got NoneType"),
        (3, TypeError, "map-style Dataset"),
        (Endless(), TypeError, "map-style Dataset, with __len__"),
        (Items([]), ValueError, "at least one item"),
        (Items([{"image": 1}]), TypeError, "expected a PIL image .*got dict"),
        (Items([torch.zeros(3, 8, 8)]), TypeError, "leave ToTensor and Normalize out"),
        (Items([np.zeros((8, 8, 5), np.uint8)]), TypeError, r"got uint8 \(8, 8, 5\)"),
        (Items([(COLOURS[0], 1), (COLOURS[1], None)]), TypeError, "item 1 has no class number"),
        (Items([(COLOURS[0], 10**9)]), ValueError, "number the classes"),
    ],
)
def test_other_objects_are_refused(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        open_images(data, 8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 2}, "expected 1 .grey., 3 .RGB. or 4"),
        ({"bits": 0}, "data.bits: expected 1 to 16"),
        ({"most_pixels": 0}, "data.most_pixels: expected at least 1"),
        ({"size": (8, 0)}, "size: expected at least 1"),
    ],
)
def test_choices_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_images(COLOURS, **{"size": 8, **options})


# ---- IDX, zips, arrays of others


@pytest.mark.parametrize("packed", [False, True])
def test_the_files_of_mnist(packed: bool, tmp_path: Path) -> None:
    write = (
        (lambda p, b: (tmp_path / f"{p}.gz").write_bytes(gzip.compress(b)))
        if packed
        else (lambda p, b: (tmp_path / p).write_bytes(b))
    )
    end = ".gz" if packed else ""
    write("train-images-idx3-ubyte", idx(GREY))
    write("train-labels-idx1-ubyte", idx(np.array([3, 1, 4, 1, 5, 9], np.uint8)))
    write("t10k-images-idx3-ubyte", idx(GREY[:2]))
    for path in (tmp_path, tmp_path / f"train-images-idx3-ubyte{end}"):
        found = open_images(path, (10, 12), channels=1)
        assert isinstance(found, ImageSet)
        np.testing.assert_array_equal(found.images[..., 0], GREY)
        assert found.labels.tolist() == [3, 1, 4, 1, 5, 9]
        assert found.class_names == tuple("0123456789")
    alone = open_images(tmp_path / f"t10k-images-idx3-ubyte{end}", 8)
    assert alone.labels is None
    assert len(alone) == 2


def test_a_zip_as_edm_packs_it(tmp_path: Path) -> None:
    names = [f"0000{k // 3}/img{k:08d}.png" for k in range(6)]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        for name, pixels in zip(names, COLOURS):
            file.writestr(name, png(pixels))
        file.writestr("dataset.json", json.dumps({"labels": [[name, k % 3] for k, name in enumerate(names)]}))
    for gib in (4, 0):
        found = open_images(tmp_path / "x.zip", (10, 12), memory_gib=gib)
        assert found.labels.tolist() == [0, 1, 2, 0, 1, 2]
        assert found.class_names == ("0", "1", "2")
        assert "3 classes by dataset.json" in found.understood[1]
    np.testing.assert_array_equal(load_images(tmp_path / "x.zip", (10, 12)).images, COLOURS)
    with zipfile.ZipFile(tmp_path / "x.zip") as packed:
        packed.extractall(tmp_path / "folder")
    folder = load_images(tmp_path / "folder", (10, 12))
    assert folder.class_names == ("0", "1", "2")  # and not 00000, 00001
    (tmp_path / "folder" / "dataset.json").write_text('{"labels": null}')
    assert load_images(tmp_path / "folder", 8).labels is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"labels": [["a.png", 1]]}', "b.png has no label there"),
        ('{"labels": [["a.png", 1], ["b.png", [0.5, 1]]]}', r"expected class numbers from 0 on, got \[0.5, 1\]"),
        ('{"labels": [["a.png", 1], ["b.png", 1e30]]}', "expected class numbers"),
        ('{"labels": [["a.png", 1], ["b.png", 99999999999999999999]]}', "expected class numbers"),
        ('{"labels": [["a.png", 1], ["b.png", 2000000000]]}', "number the classes from 0"),
        ("[" * 100_000, "RecursionError"),
    ],
)
def test_lists_of_labels_that_are_wrong(text: str, message: str, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(GREY[0]))
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_images(tmp_path, 8)
    assert "dataset.json" in str(caught.value)
    assert open_images(tmp_path, 8, labels=False).labels is None


def test_the_arrays_of_guided_diffusion(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", COLOURS, np.array([0, 0, 1, 1, 2, 2]))
    found = load_images(tmp_path / "x.npz", 8)
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.class_names == ("0", "1", "2")


def test_shards_with_several_pictures_a_key(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    members = {
        f"{k}.{kind}.png": png(GREY[k]) if kind == "input" else png(COLOURS[k])
        for k in range(3)
        for kind in ("input", "target")
    }
    write_tar(tmp_path / "x.tar", members)
    with pytest.raises(ValueError, match=r"has several pictures: say which with --set data\.column=target\.png"):
        open_images(tmp_path, 8)
    found = open_images(tmp_path, (10, 12), column="target.png")
    assert isinstance(found, ImageSet)
    np.testing.assert_array_equal(found.images, COLOURS[:3])
    write_tar(tmp_path / "x.tar", {name: content for name, content in members.items() if "input" in name})
    assert len(load_images(tmp_path, 8)) == 3  # the only picture of a key, whatever stands before .png


TINY = ["--device", "cpu", "--size", "8", "--levels", "2", "--batch-size", "4", "--steps", "2"]
TINY += ["--set", "network.base_channels=32", "--set", "network.channel_multipliers=[1,1]"]
TINY += ["--set", "process.steps=21", "--set", "network.attention_sizes=null"]


@pytest.mark.parametrize("channels", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_grey_and_rgba_are_trained_resumed_sampled_and_evaluated(channels: int, tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, channels), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images)
    run = str(tmp_path / "run")
    options = ["--data", str(tmp_path / "x.npy"), "--out", run]
    assert train.main([*TINY, *options, "--channels", str(channels)]) == 0
    assert train.main(["--device", "cpu", "--out", run, "--resume", "--steps", "3"]) == 0
    drawn = str(tmp_path / "drawn.npz")
    assert sample.main([run, "--device", "cpu", "--n", "4", "--steps", "2", "--out", drawn]) == 0
    with np.load(drawn) as arrays:
        assert arrays["images"].shape == (4, 8, 8, channels)
    assert sample.main([run, "--device", "cpu", "--n", "4", "--steps", "2", "--out", str(tmp_path / "x.png")]) == 0
    report = [
        run,
        "--device",
        "cpu",
        "--n",
        "4",
        "--steps",
        "2",
        "--features",
        "pixels",
        "--cache",
        str(tmp_path / "c"),
    ]
    assert evaluate.main([*report, "--out", str(tmp_path / "e.json")]) == 0


# ---- what is said, and what is doubted


def test_two_lines_say_what_was_understood(tmp_path: Path) -> None:
    for k, name in enumerate(("cats", "dogs", "dogs")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"{k}.png").write_bytes(png(COLOURS[k]))
    first, second = open_images(tmp_path, 8).understood
    assert first.startswith("pictures: 3 of 12×10 RGB, read as 8×8 RGB, values from ")
    assert second == "labels: 2 classes by its sub-folders: cats (1), dogs (2)"
    assert open_images(COLOURS, 8).understood[1] == "labels: none"


@pytest.mark.parametrize(
    ("names", "doubt"),
    [
        (("train", "test"), "parts of a data set"),
        (("00000", "00001"), "numbered parts"),
        (("0", "1"), ""),
        (("cat", "test"), ""),
    ],
)
def test_folders_that_may_be_no_classes(
    names: tuple[str, str], doubt: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(png(GREY[0]))
    assert len(open_images(tmp_path, 8).class_names) == 2
    assert (doubt in caplog.text) if doubt else not caplog.text
    assert open_images(tmp_path, 8, labels=False).class_names == ()


def test_two_links_to_a_folder_are_two_classes(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "x.png").write_bytes(png(GREY[0]))
    (tmp_path / "data").mkdir()
    for name in ("a", "b"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "store", target_is_directory=True)
    assert load_images(tmp_path / "data", 8).class_names == ("a", "b")
    deep = tmp_path / "deep"
    deep.mkdir()
    for level in range(12):  # 2^12 ways to the last
        (deep / f"{level}").mkdir()
        for name in "ab":
            (deep / f"{level}" / name).symlink_to(deep / f"{level + 1}", target_is_directory=True)
    with pytest.raises(ValueError, match=r"links lead to .* more than 64 times"):
        load_images(deep / "0", 8)
