"""Reading images and the order they are drawn in."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssdcore_torch.data import EMBEDDED, Order, load_images, to_rgb


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
        "small": (folder / "small", r"tiny.png is 12×8 pixels, smaller than size 16"),
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
