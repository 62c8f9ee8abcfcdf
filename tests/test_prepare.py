"""python -m ssdcore_torch.prepare: recipes on stand-in folders of the same layout, whole shards or none, resumption."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import killed_at_every_change

from ssdcore_torch import prepare as preparing
from ssdcore_torch.commands import cli
from ssdcore_torch.commands import prepare as command
from ssdcore_torch.data import load_images
from ssdcore_torch.data._manifest import Manifest
from ssdcore_torch.prepare import check_shards, index_shards, prepare
from ssdcore_torch.recipes import paper_crop

pytest.importorskip("webdataset")


def noise(key: int, height: int, width: int) -> np.ndarray:
    """Smooth enough that JPEG and filters keep it."""
    small = np.random.default_rng(key).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def fill(folder: Path, count: int, height: int, width: int, suffix: str = "png") -> Path:
    folder.mkdir(parents=True)
    for k in range(count):
        Image.fromarray(noise(k, height, width)).save(folder / f"{k:06d}.{suffix}")
    return folder


def test_the_papers_crop() -> None:
    """The centred square of a linear picture is linear, of the slope of the scale, its middle at the picture's."""
    y, x = np.mgrid[:218, :178].astype(float)
    picture = Image.fromarray(np.stack([y, x, 0 * x], -1).astype(np.uint8))
    cut = paper_crop(picture, 64).astype(float)
    # As the paper's code goes: 178×218 → 89×109 → 64×78, of which rows 7 to 70.
    np.testing.assert_array_equal(cut, np.asarray(picture.reduce(2).resize((64, 78), Image.Resampling.BICUBIC))[7:71])
    scale = 178 / 64
    inner = slice(4, -4)  # a bicubic filter bends at the border
    across = (np.arange(64) + 0.5) * scale - 0.5
    down = (np.arange(64) + 7.5) * 218 / 78 - 0.5
    assert np.abs(cut[:, inner, 1] - across[inner]).max() <= 1.5  # three roundings by a half
    assert np.abs(cut[inner, :, 0] - down[inner, None]).max() <= 1.5
    same = noise(0, 64, 64)
    np.testing.assert_array_equal(paper_crop(Image.fromarray(same), 64), same)
    blocks = np.kron(noise(1, 16, 16), np.ones((4, 4, 1), np.uint8))
    np.testing.assert_array_equal(paper_crop(Image.fromarray(blocks), 16), noise(1, 16, 16))  # halved twice, exactly


@pytest.mark.parametrize("size", [64, 128])
def test_celeba(size: int, tmp_path: Path) -> None:
    pictures = fill(tmp_path / "img_align_celeba" / "first", 3, 218, 178, "jpg").parent
    fill(pictures / "second", 2, 218, 178, "png")  # folders of faces are no classes
    manifest = prepare("celeba", pictures, size, tmp_path / "out", per_shard=2)
    assert [shard.images for shard in manifest.shards] == [2, 2, 1]
    found = load_images(tmp_path / "out", size)
    assert found.labels is None
    expected = {
        paper_crop(Image.open(file).convert("RGB"), size).tobytes() for file in pictures.rglob("*.*g")
    }  # lossless, each once
    assert {image.tobytes() for image in found.images} == expected
    assert len(found) == 5


def test_celebahq(tmp_path: Path) -> None:
    pictures = fill(tmp_path / "CelebA-HQ-img", 3, 512, 512, "jpg")
    prepare("celebahq", pictures, 256, tmp_path / "out")
    found = load_images(tmp_path / "out", 256)
    assert found.images.shape == (3, 256, 256, 3)
    means = {k: np.asarray(Image.open(f).reduce(2)) for k, f in enumerate(sorted(pictures.iterdir()))}
    for image in found.images:
        assert min(np.abs(image.astype(int) - mean).max() for mean in means.values()) <= 1


def test_imagenet_from_folders(tmp_path: Path) -> None:
    for wnid in ("n01440764", "n01443537", "n02119789"):
        fill(tmp_path / "train" / wnid, 3, 80, 100, "JPEG")
    Image.fromarray(noise(7, 80, 100)).convert("CMYK").save(tmp_path / "train" / "n02119789" / "cmyk.JPEG")
    prepare("imagenet", tmp_path / "train", 64, tmp_path / "out", per_shard=4)
    found = load_images(tmp_path / "out", 64)
    assert found.class_names == ("n01440764", "n01443537", "n02119789")
    assert np.bincount(found.labels).tolist() == [3, 3, 4]
    assert len(load_images(tmp_path / "out", 64, ("n02119789",))) == 4


@pytest.fixture
def batches(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """The downsampled release: (folder, images in the order of the files' numbers, labels from 1)."""
    folder, images, labels = tmp_path / "Imagenet64_train", [], []
    folder.mkdir()
    for number in (1, 2, 10):
        images.append(np.stack([noise(100 * number + k, 64, 64) for k in range(7)]))
        labels.append(np.arange(7) % 3 + 1)
        rows = images[-1].transpose(0, 3, 1, 2).reshape(7, -1)
        np.savez(folder / f"train_data_batch_{number}.npz", data=rows, labels=labels[-1].tolist(), mean=np.zeros(12288))
    return folder, np.concatenate(images), np.concatenate(labels)


def test_imagenet_from_the_downsampled_release(tmp_path: Path, batches: tuple[Path, np.ndarray, np.ndarray]) -> None:
    folder, images, labels = batches
    prepare("imagenet", folder, 64, tmp_path / "out", per_shard=5)
    found = load_images(tmp_path / "out", 64)
    assert found.class_names == ("1", "2", "3")
    there = {image.tobytes(): label for image, label in zip(found.images, found.labels)}
    assert there == {image.tobytes(): label - 1 for image, label in zip(images, labels)}
    (folder / "map_clsloc.txt").write_text("n02119789 1 kit_fox\nn02100735 2 setter\nn02110185 3 husky\nn0 4 other\n")
    prepare("imagenet", folder, 32, tmp_path / "named")
    assert load_images(tmp_path / "named", 32).class_names == ("n02119789", "n02100735", "n02110185", "n0")


def test_folder_shards_hold_what_the_folder_holds(tmp_path: Path) -> None:
    for name in "ab":
        fill(tmp_path / "in" / name, 4, 30, 24)
    (tmp_path / "in" / "a" / "000001.png").write_bytes(b"broken")
    manifest = prepare("folder", tmp_path / "in", 16, tmp_path / "out", per_shard=3)
    assert (manifest.images, manifest.skipped) == (7, 1)
    direct, packed = load_images(tmp_path / "in", 16), load_images(tmp_path / "out", 16)
    assert sorted((im.tobytes(), k) for im, k in zip(direct.images, direct.labels)) == sorted(
        (im.tobytes(), k) for im, k in zip(packed.images, packed.labels)
    )
    assert packed.class_names == ("a", "b")
    assert not np.array_equal(direct.images, packed.images)  # shuffled, so that a shard is a sample of all


def test_a_list_chooses_files(tmp_path: Path) -> None:
    pictures = fill(tmp_path / "in" / "b", 4, 16, 16).parent
    fill(pictures / "a", 3, 16, 16)
    (tmp_path / "train.txt").write_text("b/000002.png\na/000001.png\nb/000000.png\n")
    arguments = ["folder", "--from", str(pictures), "--size", "16", "--list", str(tmp_path / "train.txt"), "--out"]
    assert command.main([*arguments, str(tmp_path / "out")]) == 0
    found = load_images(tmp_path / "out", 16)
    there = {image.tobytes(): found.class_names[label] for image, label in zip(found.images, found.labels)}
    assert there == {noise(2, 16, 16).tobytes(): "b", noise(1, 16, 16).tobytes(): "a", noise(0, 16, 16).tobytes(): "b"}
    (tmp_path / "train.txt").write_text("b/000002.png\nc.png\nd.png")
    with pytest.raises(cli.UserError, match=r"2 names of the list are not pictures in .*, such as c\.png"):
        command.main([*arguments, str(tmp_path / "other")])
    with pytest.raises(ValueError, match="--list chooses files of a folder"):
        prepare("folder", "embedded:drawings64", 16, tmp_path / "other", names=["x"])
    assert not (tmp_path / "other").exists()


def test_the_manifest_tells_what_is_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = prepare("folder", fill(tmp_path / "in", 5, 16, 16), 16, out, per_shard=2, seed=3)
    assert Manifest.from_json((out / "manifest.json").read_text(), "m") == manifest
    for shard in manifest.shards:
        content = (out / shard.name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.bytes, shard.sha256)
    assert sorted(file.name for file in out.iterdir()) == [
        "index.npz", "manifest.json", "shard-000000.tar", "shard-000001.tar", "shard-000002.tar",
    ]  # fmt: skip
    assert check_shards(out) == manifest
    content = bytearray((out / "shard-000001.tar").read_bytes())
    content[700] ^= 1
    (out / "shard-000001.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-000001\.tar is not what was written"):
        check_shards(out)


def test_the_same_command_again_changes_nothing_and_another_is_refused(tmp_path: Path) -> None:
    pictures, out = fill(tmp_path / "in", 5, 40, 40), tmp_path / "out"
    first = prepare("folder", pictures, 16, out, per_shard=2)
    before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    assert prepare("folder", pictures, 16, out, per_shard=2) == first
    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == before
    for change, message in (
        ({"size": 32}, "size 16 instead of 32"),
        ({"seed": 1}, "seed 0 instead of 1"),
        ({"per_shard": 3}, "per_shard 2 instead of 3"),
    ):
        with pytest.raises(ValueError, match=f"out was begun otherwise .{message}.: choose another folder"):
            prepare("folder", pictures, **{"size": 16, "out": out, "per_shard": 2, **change})
    Image.fromarray(noise(9, 40, 40)).save(pictures / "another.png")
    with pytest.raises(ValueError, match="inputs 5 instead of 6"):
        prepare("folder", pictures, 16, out, per_shard=2)
    with pytest.raises(ValueError, match="has been prepared"):
        index_shards(out)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    pictures = fill(tmp_path / "in", 2, 16, 16)
    for text in ("[]", "{", '{"recipe": 3}'):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "preparing.json").write_text(text)
        with pytest.raises(ValueError, match="choose another"):
            prepare("folder", pictures, 16, tmp_path / "out")
        assert [file.name for file in (tmp_path / "out").iterdir()] == ["preparing.json"]
    with pytest.raises(ValueError, match="is not empty"):
        prepare("folder", pictures, 16, pictures)
    with pytest.raises(ValueError, match="is a file"):
        prepare("folder", pictures, 16, pictures / "000000.png")


@pytest.mark.parametrize("crash_at", [0, 1, 2, 3, 4])
def test_a_crash_leaves_whole_shards_and_the_next_run_goes_on(
    crash_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing fails at each of the five files: three shards, the index, the manifest."""
    pictures, out = fill(tmp_path / "in", 6, 16, 16), tmp_path / "out"
    whole = prepare("folder", pictures, 16, tmp_path / "whole", per_shard=2)
    real, calls = preparing.write_atomically, []

    def failing(path: Path, write: object) -> None:
        if path.name != "preparing.json":
            calls.append(path)
            if len(calls) == crash_at + 1:
                real(path, lambda file: (write(file), exec("raise OSError('No space left on device')")))  # type: ignore[operator]
        real(path, write)  # type: ignore[arg-type]

    monkeypatch.setattr(preparing, "write_atomically", failing)
    with pytest.raises(OSError, match="No space"):
        prepare("folder", pictures, 16, out, per_shard=2)
    assert not (out / "manifest.json").exists()
    shards = sorted(out.glob("shard-*.tar"))
    assert len(shards) == min(crash_at, 3)
    for shard in shards:
        assert shard.read_bytes() == (tmp_path / "whole" / shard.name).read_bytes()
    times = [shard.stat().st_mtime_ns for shard in shards]
    monkeypatch.setattr(preparing, "write_atomically", real)
    assert prepare("folder", pictures, 16, out, per_shard=2) == whole
    assert [shard.stat().st_mtime_ns for shard in shards] == times  # not made again
    assert not (out / "preparing.json").exists()


@pytest.mark.multiprocess
@pytest.mark.parametrize("workers", [0, 1])
def test_killed_at_any_change_to_the_disk_and_run_again_it_is_as_if_it_had_not_been(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "FEW", 0)  # processes for few pictures, too
    pictures = fill(tmp_path / "in", 7, 16, 16)
    prepare("folder", pictures, 16, tmp_path / "whole", per_shard=2, workers=0)
    whole = {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}

    def work(call: int) -> None:
        prepare("folder", pictures, 16, tmp_path / f"{call}", per_shard=2, workers=workers)

    def then(call: int) -> None:
        out = tmp_path / f"{call}"
        for file in out.glob("[!.]*"):  # whole, if it has its name
            assert file.name == "preparing.json" or file.read_bytes() == whole[file.name]
        prepare("folder", pictures, 16, out, per_shard=2, workers=0)
        assert {file.name: file.read_bytes() for file in out.iterdir()} == whole

    assert killed_at_every_change(work, then) >= 3 * 7  # a sync, a rename and a sync for each of seven files


@pytest.mark.multiprocess
def test_workers_write_the_same_shards(tmp_path: Path) -> None:
    pictures = fill(tmp_path / "in", 1001, 12, 12)
    (pictures / "000400.png").write_bytes(b"broken")
    ours, alone = (prepare("folder", pictures, 8, tmp_path / f"{w}", per_shard=300, workers=w) for w in (2, 0))
    assert ours == alone
    assert ours.skipped == 1


def test_too_much_that_is_broken_stops_it(tmp_path: Path) -> None:
    pictures = fill(tmp_path / "in", 120, 12, 12)
    for k in range(3):
        (pictures / f"{k:06d}.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"of 1\d\d pictures .* are broken or too small, more than"):
        prepare("folder", pictures, 8, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert prepare("folder", pictures, 8, tmp_path / "again", broken_share=0.1).skipped == 3


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = fill(tmp_path / "in", 3, 218, 178)
    arguments = ["celeba", "--from", str(pictures), "--size", "64", "--out", str(tmp_path / "out")]
    assert command.main(arguments) == 0
    assert "3 images of the 202599 that the whole set has in 1 shards" in capsys.readouterr().out
    assert command.main(["check", "--out", str(tmp_path / "out")]) == 0
    assert "3 images in 1 shards, all as they were written" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["recipe"]["name"] == "celeba"


@pytest.mark.parametrize(
    ("recipe", "size", "message"),
    [
        ("celeba", 64, "none of the 3 pictures of .* is readable and large enough"),
        ("celebahq", 256, "none of the 3 pictures"),
        ("imagenet", 64, "expected train_data_batch_1.npz, … of the downsampled release, or one folder per class"),
        ("folder", 31, "none of the 3 pictures"),
    ],
)
def test_data_of_another_kind_is_refused(recipe: str, size: int, message: str, tmp_path: Path) -> None:
    pictures = fill(tmp_path / "in", 3, 30, 40)
    with pytest.raises(cli.UserError, match=message):
        command.main([recipe, "--from", str(pictures), "--size", str(size), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_mistakes_are_one_line(tmp_path: Path, batches: tuple[Path, np.ndarray, np.ndarray]) -> None:
    folder, _, _ = batches
    out = ["--out", str(tmp_path / "out")]
    for arguments, message in (
        (["celeba", "--size", "64"], "celeba needs --from FOLDER and --size PX"),
        (["celeba", "--from", str(tmp_path / "none"), "--size", "64"], "there is no such folder"),
        (["imagenet", "--from", str(folder), "--size", "65"], "smaller than --size 65"),
        (["check"], r"there is no manifest\.json in it"),
        (["index"], "no such data"),
    ):
        with pytest.raises(cli.UserError, match=message):
            command.main([*arguments, *out])
        assert not (tmp_path / "out").exists()
    np.savez(folder / "train_data_batch_2.npz", data=np.zeros((7, 5), np.uint8), labels=np.ones(7, int))
    with pytest.raises(cli.UserError, match=r"batch_2\.npz: expected bytes shaped \(n, 3·s·s\), got uint8 \(7, 5\)"):
        command.main(["imagenet", "--from", str(folder), "--size", "64", *out])
    (folder / "train_data_batch_2.npz").write_bytes(b"PK")
    with pytest.raises(cli.UserError, match=r"batch_2\.npz is not a batch of the downsampled ImageNet release"):
        command.main(["imagenet", "--from", str(folder), "--size", "64", *out])
