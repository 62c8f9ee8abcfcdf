"""Batches: functions of (seed, step), whatever the source, the number of ranks or of workers."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ssdcore_torch.data import Feed, ImageBatch, ImageSet, ImageStream, Order, open_images
from ssdcore_torch.data._order import WINDOW
from ssdcore_torch.data._pixels import LEAST_CROP, fit_random

CPU = torch.device("cpu")
COUNT = 30


def picture(k: int, height: int = 20, width: int = 24) -> np.ndarray:
    return np.random.default_rng(k).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for k in range(COUNT):
        (root / "abc"[k % 3]).mkdir(exist_ok=True)
        Image.fromarray(picture(k)).save(root / "abc"[k % 3] / f"{k:02d}.png")
    return root


@pytest.fixture(scope="module")
def sources(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageSet | ImageStream]:
    """The same pictures, resident and streamed from each kind of source."""
    datasets = pytest.importorskip("datasets")
    wds = pytest.importorskip("webdataset")
    root = tmp_path_factory.mktemp("sources")
    files = sorted(folder.rglob("*.png"))
    np.savez(root / "x.npz", images=[np.asarray(Image.open(file)) for file in files])
    np.save(root / "x.npy", [np.asarray(Image.open(file)) for file in files])
    datasets.Dataset.from_dict(
        {"img": [str(file) for file in files], "label": [k // 10 for k in range(COUNT)]},
        features=datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["p", "q", "r"])}),
    ).save_to_disk(root / "hub")
    (root / "tar").mkdir()
    for shard in range(3):
        with wds.TarWriter(str(root / "tar" / f"{shard}.tar"), encoder=False) as tar:
            for file in files[10 * shard : 10 * (shard + 1)]:
                tar.write({"__key__": file.stem, "png": file.read_bytes(), "cls": str(shard).encode()})
    found: dict[str, ImageSet | ImageStream] = {"resident": open_images(folder, 16)}
    for name, path in [("folder", folder), *((n, root / n) for n in ("x.npz", "x.npy", "hub", "tar"))]:
        found[name] = open_images(path, 16, memory_gib=0)
    found["random crops"] = open_images(folder, 16, crop="random")
    return found


SOURCES = ("resident", "folder", "x.npz", "x.npy", "hub", "tar", "random crops")


def take(feed: Feed, first: int, count: int) -> list[ImageBatch]:
    batches = feed.batches(first)
    taken = list(islice(batches, count))
    batches.close()  # type: ignore[attr-defined]
    return taken


def assert_same(a: list[ImageBatch], b: list[ImageBatch]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert torch.equal(x.images, y.images)
        np.testing.assert_array_equal(x.indices, y.indices)
        assert (x.labels is None) == (y.labels is None)
        assert x.labels is None or torch.equal(x.labels, y.labels)


def feed_of(images: ImageSet | ImageStream, batch: int = 12, part: tuple[int, int] = (0, 1), workers: int = 0) -> Feed:
    return Feed(images, images.order(batch, 5), CPU, seed=5, flip=True, part=part, workers=workers)


@pytest.mark.parametrize("name", SOURCES)
def test_resuming_at_a_step_equals_skipping_to_it(name: str, sources: dict[str, ImageSet | ImageStream]) -> None:
    whole = take(feed_of(sources[name]), 0, 6)  # two epochs and a bit
    for first in (1, 4):
        assert_same(take(feed_of(sources[name]), first, 6 - first), whole[first:])


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("parts", [2, 3])
def test_the_parts_together_are_the_global_batch(
    name: str, parts: int, sources: dict[str, ImageSet | ImageStream]
) -> None:
    whole = take(feed_of(sources[name]), 2, 2)
    shares = [take(feed_of(sources[name], part=(k, parts)), 2, 2) for k in range(parts)]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([share[step].images for share in shares]), batch.images)
        np.testing.assert_array_equal(np.concatenate([share[step].indices for share in shares]), batch.indices)


@pytest.mark.parametrize("name", SOURCES[1:-1])
def test_a_stream_holds_what_is_resident(name: str, sources: dict[str, ImageSet | ImageStream]) -> None:
    resident, stream = sources["resident"], sources[name]
    assert isinstance(resident, ImageSet)
    assert isinstance(stream, ImageStream)
    assert len(stream) == COUNT
    for batch in take(feed_of(stream), 0, 3):
        expected = resident.images[batch.indices]
        for image, straight in zip(batch.images.permute(0, 2, 3, 1).numpy(), expected):
            assert np.array_equal(image, straight) or np.array_equal(image, straight[:, ::-1])
        if batch.labels is not None:
            np.testing.assert_array_equal(batch.labels.numpy(), batch.indices // 10)


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_does_not_change_the_batches(
    name: str, workers: int, sources: dict[str, ImageSet | ImageStream]
) -> None:
    state = torch.random.get_rng_state()
    assert_same(take(feed_of(sources[name], workers=workers), 1, 5), take(feed_of(sources[name]), 1, 5))
    assert torch.equal(torch.random.get_rng_state(), state)  # training draws from it


@pytest.mark.parametrize("name", SOURCES[1:])
def test_sources_travel_to_workers_that_are_spawned(name: str, sources: dict[str, ImageSet | ImageStream]) -> None:
    stream = sources[name]
    assert isinstance(stream, ImageStream)
    packed = pickle.dumps(stream.reader)
    assert len(packed) < 20_000  # no pixels: these pictures have 43,200 bytes
    np.testing.assert_array_equal(pickle.loads(packed).read(7), stream.reader.read(7))


@pytest.mark.multiprocess
def test_workers_go_on_when_the_whole_group_is_told_to_stop(folder: Path) -> None:
    """Ctrl-C and a cluster's SIGTERM reach every process; the trainer wants to end its step and save."""
    stream = open_images(folder, 16, memory_gib=0)
    batches = feed_of(stream, workers=2).batches(0)
    first = [next(batches), next(batches)]  # one of each worker: both have begun
    children = multiprocessing.active_children()
    assert len(children) == 2
    for child in children:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(child.pid, number)  # type: ignore[arg-type]
    assert_same(first + list(islice(batches, 20)), take(feed_of(stream), 0, 22))
    batches.close()  # type: ignore[attr-defined]


def test_flips_are_fair_coins_of_the_step() -> None:
    ramp = np.tile(np.arange(8, dtype=np.uint8)[None, None, :, None], (40, 8, 1, 3))
    images = ImageSet(ramp, None, (), "ramps")
    flipped = []
    for batch in take(feed_of(images, 40), 0, 50):
        first = batch.images[:, 0, 0, 0].numpy()
        assert set(first) <= {0, 7}
        assert np.array_equal(batch.images[:, :, :, -1], 7 - batch.images[:, :, :, 0])
        flipped.append(first == 7)
    share, deviation = np.mean(flipped), 0.5 / np.sqrt(2000)
    assert abs(share - 0.5) < 4 * deviation
    assert len({tuple(tosses) for tosses in flipped}) == 50
    plain = Feed(images, images.order(40, 5), CPU, seed=5)
    assert all(bool((batch.images[:, 0, 0, 0] == 0).all()) for batch in take(plain, 0, 3))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.integers(1, 40),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=3, max_size=3),
)
def test_random_crops_lie_inside_and_keep_most_of_the_shorter_side(
    shape: tuple[int, int], size: int, numbers: list[float]
) -> None:
    height, width = shape
    shorter = min(shape)
    if shorter < size:
        return
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([y, x, 0 * x + 1], -1).astype(np.uint8)  # the third channel would show a border of zeros
    cut = fit_random(Image.fromarray(pixels), size, np.array(numbers)).astype(int)
    assert cut.shape == (size, size, 3)
    assert (cut[..., 2] == 1).all()
    # From the first pixel's centre to the last's: as much as the resized square spans, up to rounding.
    side = max(size, int(LEAST_CROP * shorter))
    spread = cut[..., :2].reshape(-1, 2).max(0) - cut[..., :2].reshape(-1, 2).min(0)
    assert (spread >= side * (1 - 1 / size) - 2).all()
    assert (spread <= shorter - 1).all()


def test_random_crops_differ_from_step_to_step(folder: Path) -> None:
    images = open_images(folder, 12, crop="random")
    assert isinstance(images, ImageStream)
    feed = Feed(images, Order(COUNT, COUNT, 0), CPU, seed=0, workers=0)
    first, second = take(feed, 0, 2)
    same = [
        torch.equal(first.images[i], second.images[list(second.indices).index(k)]) for i, k in enumerate(first.indices)
    ]
    assert sum(same) <= 1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3 * WINDOW),
    st.integers(1, 50),
    st.integers(0, 9),
    st.integers(0, 9),
)
def test_an_order_in_blocks_covers_each_epoch_window_by_window(
    blocks: list[int], batch: int, seed: int, step: int
) -> None:
    count = sum(blocks)
    order = Order(count, batch, seed, tuple(blocks))
    permutation = order.permutation(3)
    assert sorted(permutation) == list(range(count))
    np.testing.assert_array_equal(next(islice(order.batches(0), step, None)), order.indices(step))
    drawn = np.concatenate(list(islice(order.batches(0), -(-count // batch))))
    np.testing.assert_array_equal(drawn[:count], order.permutation(0))
    # Blocks are mixed in groups of WINDOW, one group after the other.
    met = np.repeat(np.arange(len(blocks)), blocks)[permutation]
    if len(blocks) > WINDOW:
        firsts = sorted(range(len(blocks)), key=lambda block: int(np.flatnonzero(met == block)[0]))
        position = 0
        for first in range(0, len(blocks), WINDOW):
            window = firsts[first : first + WINDOW]
            length = sum(blocks[block] for block in window)
            assert set(met[position : position + length]) == set(window)
            position += length


def test_broken_pictures_of_a_stream_are_replaced_named_and_counted(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for k in range(12):
        Image.fromarray(picture(k)).save(tmp_path / f"{k:02d}.png")
    (tmp_path / "03.png").write_bytes(b"nonsense")
    Image.fromarray(picture(4, 10, 24)).save(tmp_path / "04.png")
    images = open_images(tmp_path, 16, memory_gib=0)
    assert isinstance(images, ImageStream)
    feed = Feed(images, images.order(12, 0), CPU, seed=0, workers=0)
    with caplog.at_level(logging.WARNING, "ssdcore_torch"):
        first, second = take(feed, 0, 2)
    for batch in (first, second):
        assert sorted(batch.indices) == [0, 1, 2, 5, 5, 5, *range(6, 12)]
    assert {Path(name).name: why for name, why in images.skipped} == {
        "03.png": "not an image",
        "04.png": "is 24×10 pixels, smaller than size 16",
    }
    assert len([record for record in caplog.records if "03.png" in record.message]) == 1


def test_too_many_broken_pictures_stop_the_stream_and_name_the_first(tmp_path: Path) -> None:
    """The same share as where all are decoded at once: of the different pictures, however often they are read."""
    for k in range(100):
        Image.fromarray(picture(k)).save(tmp_path / f"{k:02d}.png")
    for k in range(0, 100, 20):
        (tmp_path / f"{k:02d}.png").write_bytes(b"nonsense")
    images = open_images(tmp_path, 16, memory_gib=0, broken_share=0.04)  # 5 of 100 are more
    assert isinstance(images, ImageStream)
    feed = Feed(images, images.order(20, 0), CPU, seed=0, workers=0)
    batches = feed.batches(0)
    for _ in range(4):
        next(batches)  # 80 pictures: too few to judge
    with pytest.raises(ValueError, match=r"\d of 100 pictures .* 0\.04 allows; the first, .*0\.png: not an image"):
        next(batches)
    assert feed.skipped == 5
    with pytest.raises(ValueError, match=r"5 of 100 pictures .* 0\.04 allows"):
        open_images(tmp_path, 16, broken_share=0.04)
    allowed = open_images(tmp_path, 16, memory_gib=0, broken_share=0.05)
    assert len(take(Feed(allowed, allowed.order(20, 0), CPU, seed=0, workers=0), 0, 8)) == 8


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_the_same_images_come_from_memory_and_from_a_stream(kind: str, tmp_path: Path) -> None:
    """In the same order, with the same numbers and labels, with others in the place of broken and small ones."""
    source = tmp_path / "pictures"
    for k in range(30):
        (source / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(k)).save(source / "ab"[k % 2] / f"{k:02d}.png")
    path: Path = source
    if kind == "shards":
        pytest.importorskip("webdataset")
        from ssdcore_torch.prepare import prepare

        prepare("folder", source, 16, tmp_path / "shards", per_shard=4, workers=0)
        path = tmp_path / "shards"
    else:
        (source / "a" / "04.png").write_bytes(b"nonsense")
        Image.fromarray(picture(3)[:10]).save(source / "b" / "05.png")
        (source / "b" / "29.png").write_bytes(b"nonsense")
    resident, streamed = (open_images(path, 16, memory_gib=gib, broken_share=0.5) for gib in (4, 0))
    assert isinstance(resident, ImageSet)
    assert isinstance(streamed, ImageStream)
    assert resident.fingerprint == streamed.fingerprint != ""
    assert resident.count == streamed.count == 30
    ours = [
        take(Feed(images, images.order(7, 3), CPU, seed=1, flip=True, workers=0), 0, 9)
        for images in (resident, streamed)
    ]
    for a, b in zip(*ours):
        assert torch.equal(a.images, b.images)
        assert a.labels is not None
        assert b.labels is not None
        assert torch.equal(a.labels, b.labels)
        np.testing.assert_array_equal(a.indices, b.indices)
    assert len(resident.skipped) == len(streamed.skipped) == (3 if kind == "folder" else 0)


def test_a_fingerprint_knows_data_wherever_it_lies(tmp_path: Path) -> None:
    for name in ("here", "there", "other"):
        (tmp_path / name).mkdir()
        for k in range(4):
            Image.fromarray(picture(k)).save(tmp_path / name / f"{k}.png")
    (tmp_path / "other" / "3.png").write_bytes((tmp_path / "other" / "3.png").read_bytes() + b"more")
    pixels = np.stack([picture(k) for k in range(4)])
    np.save(tmp_path / "x.npy", pixels)
    np.save(tmp_path / "y.npy", 255 - pixels)
    here, there, other, x, y = (
        open_images(tmp_path / name, 16).fingerprint for name in ("here", "there", "other", "x.npy", "y.npy")
    )
    assert here == there
    assert len({here, other, x, y}) == 4


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([1, 2, 3, 1], "expected labels from 0 to 2, as there are 3 class names, got some from 1 to 3"),
        ([0, -1, 0, 2], "got some from -1 to 2"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels: list[int], says: str, tmp_path: Path) -> None:
    pixels = np.stack([picture(k) for k in range(4)])
    np.savez(tmp_path / "x.npz", images=pixels, labels=np.array(labels), class_names=np.array(["a", "b", "c"]))
    with pytest.raises(ValueError, match=says):
        open_images(tmp_path / "x.npz", 16)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root reads everything: the walk itself is made to fail."""
    (tmp_path / "closed").mkdir()
    Image.fromarray(picture(0)).save(tmp_path / "0.png")
    scan = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(OSError, match=r"closed cannot be read \(Permission denied\)"):
        open_images(tmp_path, 16)


def test_nothing_but_broken_pictures_is_an_error_at_once(tmp_path: Path) -> None:
    for k in range(20):
        (tmp_path / f"{k:02d}.png").write_bytes(b"nonsense")
    images = open_images(tmp_path, 16, memory_gib=0, broken_share=1)
    with pytest.raises(
        ValueError, match=r"16 pictures in a row of .* cannot be used; the first, .*\.png: not an image"
    ):
        next(Feed(images, images.order(2, 0), CPU, seed=0, workers=0).batches(0))


def test_wait_share_is_the_share_of_the_time_spent_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    images = ImageSet(np.zeros((4, 2, 2, 3), np.uint8), None, (), "zeros")
    feed = Feed(images, images.order(2, 0), CPU, seed=0)
    deliver = feed._deliver

    def slow(pixels: torch.Tensor, indices: np.ndarray, step: int) -> ImageBatch:
        now[0] += 1.0
        return deliver(pixels, indices, step)

    monkeypatch.setattr(feed, "_deliver", slow)
    batches = feed.batches(0)
    for _ in range(2):
        next(batches)
        now[0] += 3.0
    assert feed.wait_share == pytest.approx(0.25)
    now[0] += 1.0
    assert feed.wait_share == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"part": (2, 2)}, r"0 <= i < n, got \(2, 2\)"),
        ({"part": (0, 5)}, "5 processes can share equally, got 12"),
        ({"order": Order(29, 12, 0)}, "an order of 30 images, got one of 29"),
        ({"workers": -1}, "workers: expected at least 0"),
    ],
)
def test_a_feed_that_cannot_be_is_refused(change: dict[str, object], message: str, folder: Path) -> None:
    images = open_images(folder, 16)
    with pytest.raises(ValueError, match=message):
        Feed(images, **{"order": images.order(12, 0), "device": CPU, "seed": 0, **change})  # type: ignore[arg-type]


@pytest.mark.gpu
def test_batches_on_a_gpu_are_those_of_the_cpu(folder: Path) -> None:
    for gib in (4, 0):
        images = open_images(folder, 16, memory_gib=gib)
        order = images.order(12, 0)
        ours = [take(Feed(images, order, torch.device(d), seed=0, flip=True), 0, 3) for d in ("cpu", "cuda")]
        for x, y in zip(*ours):
            assert torch.equal(x.images, y.images.cpu())
