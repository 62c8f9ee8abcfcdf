"""Reading images and the order they are drawn in."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssdcore_torch.data import EMBEDDED, ImageSet, ImageStream, Order, load_images, open_images, to_rgb


def save(path: Path, array: np.ndarray, mode: str | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if mode is not None:
        image = image.convert(mode)
    image.save(path, **options)
    return path


@pytest.fixture
def gradient() -> np.ndarray:
    y, x = np.mgrid[:24, :24]
    return np.stack([10 * y, 10 * x, 0 * x + 77], -1).astype(np.uint8)


def test_embedded_set_is_complete_and_resized() -> None:
    full = load_images(EMBEDDED, 64)
    assert full.images.shape == (4096, 64, 64, 3)
    assert full.images.dtype == np.uint8
    assert len(full.class_names) == 16
    assert np.bincount(full.labels).tolist() == [256] * 16
    some = load_images(EMBEDDED, 16, ("planets", "moods"))
    assert some.images.shape == (512, 16, 16, 3)
    assert {some.class_names[k] for k in set(some.labels)} == {"planets", "moods"}
    # Antialiased: a small image keeps the mean of the large one.
    large = full.images[np.isin(full.labels, np.unique(some.labels))].astype(float)
    means = large.mean(axis=(1, 2, 3)) - some.images.astype(float).mean(axis=(1, 2, 3))
    assert np.abs(means).max() < 2.0  # of 255; every second pixel instead of a filter misses by more


def test_folder_is_nested_sorted_and_skips_what_is_no_image(tmp_path: Path, gradient: np.ndarray) -> None:
    save(tmp_path / "b" / "two.png", gradient)
    save(tmp_path / "a.png", 255 - gradient)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.txt").write_text("not even looked at")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    found = load_images(tmp_path, 24)
    np.testing.assert_array_equal(found.images, [255 - gradient, gradient])
    assert [Path(name).name for name, _ in found.skipped] == ["cut.png", "notes.txt"]
    assert {Path(n).name: r for n, r in found.skipped}["notes.txt"] == "not an image"


def test_pixel_modes(tmp_path: Path, gradient: np.ndarray) -> None:
    def only(name: str) -> np.ndarray:
        return load_images(tmp_path / name, 24).images[0]

    grey = gradient[..., 0]
    save(tmp_path / "grey" / "x.png", grey)
    np.testing.assert_array_equal(only("grey"), np.stack([grey] * 3, -1))
    save(tmp_path / "deep" / "x.png", (np.maximum(grey.astype(int) * 257 - 120, 0)).astype(np.uint16))
    np.testing.assert_array_equal(only("deep"), np.stack([grey] * 3, -1))
    save(tmp_path / "tiff" / "x.tif", grey.astype(np.int32) * 257)
    np.testing.assert_array_equal(only("tiff"), np.stack([grey] * 3, -1))

    alpha = np.zeros((24, 24, 1), np.uint8)
    alpha[:, 12:] = 255
    save(tmp_path / "rgba" / "x.png", np.concatenate([gradient, alpha], -1))
    np.testing.assert_array_equal(only("rgba")[:, :12], np.full((24, 12, 3), 255))
    np.testing.assert_array_equal(only("rgba")[:, 12:], gradient[:, 12:])

    save(tmp_path / "cmyk" / "x.tif", gradient, mode="CMYK")
    assert np.abs(only("cmyk").astype(int) - gradient).max() <= 2
    # In a JPEG, Adobe's CMYK is stored inverted; JPEG itself loses some.
    save(tmp_path / "adobe" / "x.jpg", gradient, mode="CMYK", quality=100, subsampling=0)
    assert b"Adobe" in (tmp_path / "adobe" / "x.jpg").read_bytes()
    assert np.abs(only("adobe").astype(int) - gradient).mean() <= 3

    few = (gradient // 64) * 64
    save(tmp_path / "palette" / "x.gif", few, mode="P")
    np.testing.assert_array_equal(
        only("palette"), np.asarray(Image.open(tmp_path / "palette" / "x.gif").convert("RGB"))
    )
    save(tmp_path / "bits" / "x.png", 255 * (grey > 100).astype(np.uint8), mode="1")
    np.testing.assert_array_equal(only("bits")[..., 0], 255 * (grey > 100))

    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to be upright
    save(tmp_path / "exif" / "x.png", gradient, exif=exif)
    np.testing.assert_array_equal(only("exif"), np.rot90(gradient, -1))


def test_float_images_are_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="8 or 16 bits"):
        to_rgb(Image.fromarray(np.zeros((4, 4), np.float32)))


def test_centre_crop(tmp_path: Path, gradient: np.ndarray) -> None:
    wide = np.zeros((24, 48, 3), np.uint8)
    wide[:, 12:36] = gradient
    save(tmp_path / "x.png", wide)
    np.testing.assert_array_equal(load_images(tmp_path, 24).images[0], gradient)


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "png", "ppm", "tga", "tiff", "webp", "JPEG"])
def test_formats(suffix: str, tmp_path: Path, gradient: np.ndarray) -> None:
    save(tmp_path / f"x.{suffix}", gradient)
    assert np.abs(load_images(tmp_path, 24).images[0].astype(int) - gradient).mean() < 6  # GIF's 256 colours, JPEG


def test_folders_are_classes_where_every_picture_lies_in_one_of_several(tmp_path: Path, gradient: np.ndarray) -> None:
    for name in ("dog/b/1.png", "dog/2.png", "cat/3.png", "cat/4.png"):
        save(tmp_path / name, gradient)
    (tmp_path / "readme.txt").write_text("no picture")
    (tmp_path / "LICENSE").write_text("nor this")
    for images in (open_images(tmp_path, 16), open_images(tmp_path, 16, memory_gib=0)):
        assert images.class_names == ("cat", "dog")
        assert images.labels.tolist() == [0, 0, 1, 1]
        assert [Path(name).name for name, _ in images.skipped] == ["LICENSE", "readme.txt"]
    assert len(load_images(tmp_path, 16, ("dog",))) == 2
    assert load_images(tmp_path / "dog", 16).labels is None  # pictures beside the only folder
    (tmp_path / "cat" / "3.png").write_bytes(b"broken")
    assert load_images(tmp_path, 16).labels.tolist() == [0, 1, 1]
    save(tmp_path / "loose.png", gradient)
    assert load_images(tmp_path, 16).labels is None


def test_linked_folders_are_searched_once(tmp_path: Path, gradient: np.ndarray) -> None:
    save(tmp_path / "store" / "x.png", gradient)
    data = tmp_path / "data"
    data.mkdir()
    (data / "link").symlink_to(tmp_path / "store", target_is_directory=True)
    (data / "round").symlink_to(data, target_is_directory=True)
    assert len(load_images(data, 16)) == 1


def test_files_without_any_suffix(tmp_path: Path, gradient: np.ndarray) -> None:
    save(tmp_path / "x.png", gradient).rename(tmp_path / "0001")
    np.testing.assert_array_equal(load_images(tmp_path, 24).images[0], gradient)


def test_what_fits_is_resident_and_the_rest_streams(tmp_path: Path, gradient: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", np.stack([gradient] * 8))
    room = 8 * 16 * 16 * 3 / 2**30
    resident, streamed = (open_images(tmp_path / "x.npy", 16, memory_gib=gib) for gib in (room, room * 0.99))
    assert isinstance(resident, ImageSet)
    assert "8 images" in resident.describe()
    assert "kept in memory: 0.0 MiB" in resident.describe()
    assert isinstance(streamed, ImageStream)
    assert "to keep them would take 0.0 MiB" in streamed.describe()
    cropped = open_images(tmp_path / "x.npy", 16, crop="random")
    assert isinstance(cropped, ImageStream)
    assert "each time is another crop" in cropped.describe()
    # A file larger than memory is mapped: opening it reads nothing.
    mapped = open_images(tmp_path / "x.npy", 16, memory_gib=0).reader.source.images
    assert isinstance(mapped.base, np.memmap) or isinstance(mapped, np.memmap)


def test_a_resident_set_with_too_many_broken_files_is_refused(
    tmp_path: Path, gradient: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    for k in range(100):
        save(tmp_path / f"{k:03d}.png", gradient)
    for k in (13, 17):
        (tmp_path / f"{k:03d}.png").write_bytes(b"broken")
    with pytest.raises(
        ValueError, match=r"2 of 100 pictures .* more than the broken share of 0\.01 .*013\.png: not an"
    ):
        open_images(tmp_path, 16)
    caplog.clear()
    assert len(open_images(tmp_path, 16, broken_share=0.02).skipped) == 2
    assert [Path(record.args[0]).name for record in caplog.records] == ["013.png", "017.png"]


@pytest.mark.multiprocess
def test_workers_decode_the_same_set(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k in range(1100):  # more than are decoded without workers
        save(tmp_path / f"{k:04d}.png", rng.integers(0, 256, (8, 9, 3), dtype=np.uint8))
    (tmp_path / "0700.png").write_bytes(b"broken")
    ours, alone = (open_images(tmp_path, 8, workers=workers) for workers in (2, 0))
    np.testing.assert_array_equal(ours.images, alone.images)
    assert len(ours) == 1099
    assert ours.skipped == alone.skipped


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "size: expected at least 1, got 0"),
        ({"crop": "middle"}, "data.crop: expected 'center' or 'random', got 'middle'"),
        ({"broken_share": 1.5}, "data.broken_share: expected a share from 0 to 1"),
        ({"memory_gib": -1}, "data.memory_gib: expected at least 0"),
        ({"workers": -1}, "workers: expected at least 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_images(**{"path": EMBEDDED, "size": 8, **change})


def test_arrays(tmp_path: Path, gradient: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", gradient[None])
    np.testing.assert_array_equal(load_images(tmp_path / "x.npy", 24).images, gradient[None])
    np.savez(tmp_path / "x.npz", gradient[None, ..., :1])
    np.testing.assert_array_equal(load_images(tmp_path / "x.npz", 24).images[0, ..., 2], gradient[..., 0])
    np.savez(tmp_path / "y.npz", images=gradient[None].astype(np.uint16) * 257)
    np.testing.assert_array_equal(load_images(tmp_path / "y.npz", 24).images, gradient[None])
    np.savez(tmp_path / "z.npz", images=np.stack([gradient] * 4), labels=[0, 1, 0, 1], class_names=["p", "q"])
    assert len(load_images(tmp_path / "z.npz", 12, ("q",))) == 2


def bad_inputs(folder: Path) -> dict[str, tuple[Path, str]]:
    """name -> (what is read, what the error must say), all read at size 16."""
    small = np.zeros((8, 12, 3), np.uint8)
    save(folder / "small" / "tiny.png", small)
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken" / "a.jpg").write_bytes(b"\xff\xd8\xff nonsense")
    (folder / "broken" / "b.txt").write_text("text")
    (folder / "bad.npz").write_bytes(b"PK nonsense")
    np.save(folder / "float.npy", np.zeros((2, 16, 16, 3)))
    np.save(folder / "shape.npy", np.zeros((2, 16, 16, 5), np.uint8))
    np.save(folder / "none.npy", np.zeros((0, 16, 16, 3), np.uint8))
    np.save(folder / "small.npy", np.stack([small]))
    np.save(folder / "object.npy", np.array([{}, None], dtype=object), allow_pickle=True)
    np.savez(folder / "two.npz", a=np.zeros(3), b=np.zeros(3))
    return {
        "missing": (folder / "missing", "no such data"),
        "empty": (folder / "empty", "holds no files"),
        "broken": (folder / "broken", "none of the 2 files"),
        "small": (folder / "small", r"tiny.png: is 12×8 pixels, smaller than size 16: choose a smaller size"),
        "bad.npz": (folder / "bad.npz", "not a readable"),
        "float.npy": (folder / "float.npy", "uint8"),
        "shape.npy": (folder / "shape.npy", r"\(2, 16, 16, 5\)"),
        "none.npy": (folder / "none.npy", r"\(0, 16, 16, 3\)"),
        "small.npy": (folder / "small.npy", "smaller than size 16"),
        "object.npy": (folder / "object.npy", "not a readable"),
        "two.npz": (folder / "two.npz", "named 'images'"),
    }


def test_bad_inputs_are_named(tmp_path: Path) -> None:
    for path, message in bad_inputs(tmp_path).values():
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            load_images(path, 16)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_unknown_class_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"no class \['cats'\].*planets"):
        load_images(EMBEDDED, 16, ("cats",))


def test_order_covers_every_epoch_once_and_starts_anywhere() -> None:
    order = Order(count=10, batch_size=4, seed=3)
    batches = list(islice(order.batches(0), 10))
    drawn = np.concatenate(batches)
    for epoch in range(4):
        assert sorted(drawn[10 * epoch : 10 * (epoch + 1)]) == list(range(10))
    assert not np.array_equal(drawn[:10], drawn[10:20])
    for first in range(10):
        np.testing.assert_array_equal(next(order.batches(first)), batches[first])
    assert not np.array_equal(next(Order(10, 4, 4).batches(0)), batches[0])
    # A batch larger than the set spans several epochs.
    assert sorted(next(Order(3, 6, 0).batches(1))) == [0, 0, 1, 1, 2, 2]
