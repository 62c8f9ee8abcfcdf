"""Tar shards and Hugging Face datasets: what is read, what is refused, what is fetched when."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ssdcore_torch.data import Feed, ImageStream, _cache, _shards, load_images, open_images
from ssdcore_torch.data._manifest import Manifest
from ssdcore_torch.data._order import WINDOW
from ssdcore_torch.prepare import index_shards, prepare

pytest.importorskip("webdataset")


def png(k: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(k).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pixels(k: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png(k))))


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """21 prepared shards of 2 pictures."""
    (tmp_path / "in").mkdir()
    for k in range(42):
        (tmp_path / "in" / f"{k:02d}.png").write_bytes(png(k))
    prepare("folder", tmp_path / "in", 8, tmp_path / "out", per_shard=2, workers=0)
    return tmp_path / "out"


def test_shards_of_other_makers(tmp_path: Path) -> None:
    """Nested keys, long names (PAX headers), members that are no pictures, any order of label and picture."""
    deep = "folder/" + "x" * 120
    write_tar(
        tmp_path / "a.tar",
        {f"{deep}.cls": b"3", f"{deep}.png": png(0), "b.json": b"{}", "b.PNG": png(1), "b.cls": b" 0\n", "c.txt": b"c"},
    )
    write_tar(tmp_path / "b.tar", {"b.png": png(2), "b.cls": b"1"})  # keys are the shard's own
    (tmp_path / "sizes.json").write_text("{}")
    found = load_images(tmp_path, 8)
    np.testing.assert_array_equal(found.images, [pixels(k) for k in range(3)])
    assert found.labels.tolist() == [3, 0, 1]
    assert found.class_names == ("0", "1", "2", "3")
    assert len(load_images(tmp_path, 8, ("3", "1"))) == 2
    for pattern in ("{a,b}.tar", "*.tar", "?.tar"):
        np.testing.assert_array_equal(load_images(tmp_path / pattern, 8).images, found.images)
    np.testing.assert_array_equal(load_images(tmp_path / "b.tar", 8).images[0], pixels(2))


def test_an_archive_beside_pictures_is_no_shard(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.png": png(0)})
    (tmp_path / "x.png").write_bytes(png(1))
    np.testing.assert_array_equal(load_images(tmp_path, 8).images, [pixels(1)])


@pytest.mark.parametrize(
    ("members", "mode", "message"),
    [
        ({"a.png": png(0)}, "w:gz", "x.tar is not an intact, uncompressed tar"),
        ({"a.txt": b"a"}, "w", "x.tar holds no pictures"),
        ({"a.png": png(0), "a.jpg": png(0)}, "w", "a has several pictures"),
        ({"a.png": png(0), "a.cls": b"cat"}, "w", "a.cls: expected a class number, got b'cat'"),
        ({"a.png": png(0), "a.cls": b"1", "b.png": png(1)}, "w", "b has no label"),
    ],
)
def test_unsound_shards_are_named(members: dict[str, bytes], mode: str, message: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", members, mode)
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path, 8)


def test_labels_in_some_shards_only_are_an_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.png": png(0), "a.cls": b"1"})
    write_tar(tmp_path / "b.tar", {"b.png": png(1)})
    with pytest.raises(ValueError, match=r"b\.tar holds no labels \(KEY\.cls\) where other shards do"):
        load_images(tmp_path, 8)


def test_a_shard_cut_short_is_named(tmp_path: Path, many: Path) -> None:
    whole = write_tar(tmp_path / "x.tar", {"a.png": png(0), "b.png": png(1)}).read_bytes()
    (tmp_path / "x.tar").write_bytes(whole[:700])
    with pytest.raises(ValueError, match=r"x\.tar is not an intact"):
        load_images(tmp_path / "x.tar", 8)
    shard = many / "shard-000003.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(ValueError, match=r"shard-000003\.tar is \d+ bytes long, not \d+ as expected: cut short"):
        open_images(many, 8)


def test_a_shard_that_changes_while_it_is_read_stops_the_run(many: Path) -> None:
    images = open_images(many, 8, memory_gib=0)
    assert isinstance(images, ImageStream)
    for shard in many.glob("*.tar"):
        shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(ValueError, match="cut short"):
        next(Feed(images, images.order(4, 0), torch.device("cpu"), seed=0, workers=0).batches(0))


@pytest.mark.parametrize("path", ["missing/{0..3}.tar", "missing.tar", "missing/*.tar"])
def test_missing_shards_are_named(path: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such data: .*missing"):
        open_images(tmp_path / path, 8)


def test_commands_are_not_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="commands are not run"):
        open_images(f"pipe:touch {tmp_path}/ran", 8)
    assert not (tmp_path / "ran").exists()


def test_the_index_of_a_manifest_is_that_of_reading_through(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.png": png(0), "a.cls": b"1"})
    write_tar(tmp_path / "b.tar", {"b.png": png(1), "b.cls": b"0", "c.png": png(2), "c.cls": b"2"})
    plain = load_images(tmp_path, 8)
    manifest = index_shards(tmp_path)
    assert [shard.images for shard in manifest.shards] == [1, 2]
    indexed = load_images(tmp_path, 8)
    np.testing.assert_array_equal(plain.images, indexed.images)
    np.testing.assert_array_equal(plain.labels, indexed.labels)
    assert indexed.class_names == ("0", "1", "2")


def test_another_index_than_the_manifests_is_refused(many: Path) -> None:
    (many / "index.npz").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"index\.npz is not the index that its manifest speaks of"):
        open_images(many, 8)


def test_a_manifest_of_smaller_images_is_refused(many: Path) -> None:
    with pytest.raises(ValueError, match="its images are 8×8 pixels, smaller than size 16"):
        open_images(many, 16)


def good_manifest() -> dict[str, object]:
    shard = {"name": "a.tar", "images": 2, "bytes": 10, "sha256": "0"}
    return {
        "format": "ssdcore shards 1",
        "images": 2,
        "recipe": {"name": "folder"},
        "size": 8,
        "class_names": ["a"],
        "skipped": 0,
        "shards": [shard],
        "index_sha256": "0",
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_manifest_is_read_or_refused_in_a_line(data: st.DataObject) -> None:
    values = good_manifest()
    assert Manifest.from_json(json.dumps(values), "m").images == 2
    if data.draw(st.booleans()):
        text: bytes | str = data.draw(st.binary() | st.text())
    else:
        where = data.draw(st.sampled_from([values, values["shards"][0]]))  # type: ignore[index]
        where[data.draw(st.sampled_from(sorted(where)))] = data.draw(JSON)  # type: ignore[index]
        text = json.dumps(values)
    try:
        manifest = Manifest.from_json(text, "here/manifest.json")
    except ValueError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert message.startswith("here/manifest.json is not a manifest of shards")
    else:
        assert Manifest.from_json(manifest.to_json(), "again") == manifest


@pytest.mark.parametrize("name", ["../a.tar", "/etc/passwd", "pipe:ls", "s3://x/a.tar", "..", ""])
def test_a_manifest_reaches_no_other_folder(name: str) -> None:
    values = good_manifest()
    values["shards"][0]["name"] = name  # type: ignore[index]
    with pytest.raises(ValueError, match="is not a file name"):
        Manifest.from_json(json.dumps(values), "m")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SSDCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_cache, "WAITS", ())
    _shards._opened.cache_clear()
    made, honest = list[_shards.Prefetcher](), _shards.Prefetcher.__init__

    def init(self: _shards.Prefetcher, source: _shards.ShardSource) -> None:
        made.append(self)
        honest(self, source)

    monkeypatch.setattr(_shards.Prefetcher, "__init__", init)
    monkeypatch.setattr(sys.modules[__name__], "PREFETCHERS", made)
    return tmp_path / "cache" / "ssdcore-shards"


PREFETCHERS: list[_shards.Prefetcher] = []


def cached(cache: Path) -> int:
    """The number of shards in the cache, once the threads that fetch them have come to rest: nothing is wanted any more,
    no file is half there, and none has come for a while."""
    since, count = time.monotonic(), -1
    deadline = since + 240
    while time.monotonic() < since + 0.2:
        assert time.monotonic() < deadline
        found = len(list(cache.glob("*.shard")))
        busy = any(one._source is not None and not one._wanted.empty() for one in PREFETCHERS) or list(
            cache.glob("*.part")
        )
        if busy or found != count:
            since, count = time.monotonic(), found
        time.sleep(0.02)
    return count


def test_remote_shards_are_fetched_as_they_are_needed_and_few_are_kept(many: Path, cache: Path) -> None:
    """file:// stands in for a URL of another machine."""
    local, remote = (open_images(path, 8, memory_gib=0) for path in (many, f"file://{many}/manifest.json"))
    assert isinstance(local, ImageStream)
    assert isinstance(remote, ImageStream)
    assert not cache.exists()
    cpu = torch.device("cpu")
    ours, theirs = (Feed(x, x.order(2, 0), cpu, seed=0, workers=0).batches(0) for x in (remote, local))
    for step in range(42):  # two epochs
        a, b = next(ours), next(theirs)
        assert torch.equal(a.images, b.images)
        if step == 0:
            assert 2 < cached(cache) < 21  # the thread is ahead of the at most two that were needed
    ours.close()  # type: ignore[attr-defined]
    assert cached(cache) == 2 * WINDOW


def test_resuming_fetches_only_what_is_read_from_there_on(many: Path, cache: Path) -> None:
    images = open_images(f"file://{many}/manifest.json", 8, memory_gib=0)
    assert isinstance(images, ImageStream)
    order = images.order(1, 0)
    feed = Feed(images, order, torch.device("cpu"), seed=0, workers=0)
    batches = feed.batches(40)
    for _ in range(2):
        next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert 1 <= cached(cache) <= 6  # of 21


def test_remote_shards_without_a_manifest(many: Path, cache: Path) -> None:
    for path in (f"file://{many}/shard-{{000000..000003}}.tar", f"file://{many}/shard-00000[0-3].tar"):
        np.testing.assert_array_equal(load_images(path, 8).images, load_images(many, 8).images[:8])


def test_a_remote_shard_that_is_not_what_it_was_is_refused(many: Path, cache: Path) -> None:
    images = open_images(f"file://{many}/manifest.json", 8, memory_gib=0)
    assert isinstance(images, ImageStream)
    for shard in many.glob("*.tar"):
        content = bytearray(shard.read_bytes())
        content[600] ^= 1
        shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be fetched: .* is not what its manifest says it was"):
        next(Feed(images, images.order(4, 0), torch.device("cpu"), seed=0, workers=0).batches(0))
    assert cached(cache) == 0


def test_fetching_is_tried_again(many: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cache, "WAITS", (0.0,))
    real, failures = _shards.open_remote, []

    def flaky(path: str) -> object:
        if path.endswith(".tar") and path not in failures:
            failures.append(path)
            raise ConnectionError("reset")
        return real(path)

    images = open_images(f"file://{many}/manifest.json", 8, memory_gib=0)
    monkeypatch.setattr(_shards, "open_remote", flaky)
    assert isinstance(images, ImageStream)
    next(Feed(images, images.order(4, 0), torch.device("cpu"), seed=0, workers=0).batches(0))
    assert failures
    assert not images.skipped


@pytest.mark.parametrize("module", ["webdataset.tariterators", "braceexpand", "datasets"])
def test_a_missing_package_names_the_extra(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "x.tar", {"a.png": png(0)})
    monkeypatch.setitem(sys.modules, module, None)
    paths = {"datasets": "hf:name", "braceexpand": str(tmp_path / "x{0..1}.tar")}
    path = paths.get(module, str(tmp_path / "x.tar"))
    with pytest.raises(ImportError, match=rf'{module.partition(".")[0]}: pip install "ssdcore\[data\]"'):
        open_images(path, 8)


def test_prepared_shards_need_no_extra(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("webdataset", "webdataset.tariterators", "braceexpand", "datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    assert len(load_images(many, 8)) == 42


def test_hugging_face_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    image = [Image.fromarray(pixels(k)) for k in range(4)]
    names = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({"n": datasets.Value("int64"), "photo": datasets.Image(), "kind": names})
    train = datasets.Dataset.from_dict({"n": [0, 1, 2], "photo": image[:3], "kind": [1, 0, 1]}, features)
    test = datasets.Dataset.from_dict({"n": [3], "photo": image[3:], "kind": [-1]}, features)
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "both")
    train.save_to_disk(tmp_path / "one")
    train.remove_columns("photo").save_to_disk(tmp_path / "none")
    for path in (tmp_path / "both", f"hf:{tmp_path / 'both'}", f"hf:{tmp_path / 'both'}:train", tmp_path / "one"):
        found = load_images(path, 8)
        np.testing.assert_array_equal(found.images, [pixels(k) for k in range(3)])
        assert found.labels.tolist() == [1, 0, 1]
        assert found.class_names == ("cat", "dog")
    assert len(load_images(tmp_path / "one", 8, ("cat",))) == 1
    unlabelled = load_images(f"hf:{tmp_path / 'both'}:test", 8)
    np.testing.assert_array_equal(unlabelled.images, [pixels(3)])
    assert unlabelled.labels is None  # −1 stands for none
    for path, message in (
        (f"hf:{tmp_path / 'both'}:validation", r"has no split 'validation'; it has \['train', 'test'\]"),
        (f"hf:{tmp_path / 'one'}:train", "has no splits; leave :train out"),
        (tmp_path / "none", "has no column of images"),
    ):
        with pytest.raises(ValueError, match=message):
            open_images(path, 8)


def test_an_unknown_dataset_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unknown(name: str) -> None:
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist\non the hub")

    monkeypatch.setattr(datasets, "load_dataset", unknown)
    with pytest.raises(ValueError, match=r"^hf:nobody/nothing cannot be read as a Hugging Face dataset: .*on the hub$"):
        open_images("hf:nobody/nothing", 8)
