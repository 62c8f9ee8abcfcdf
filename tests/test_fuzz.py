"""Readers of run folders on anything but what was written: one error that names the file, and nothing else.

A reader may return, or raise ValueError, FileNotFoundError or TypeError with one line that names a file of the run. It
writes nothing, takes no memory beyond the files' size by much, and does not hang.
"""

from __future__ import annotations

import hashlib
import json
import math
import resource
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from test_checkpoint import save_run, state_after
from test_ema import Path1D, track
from test_kill import LATER, NEW, make_run

from ssdcore_torch import load_run
from ssdcore_torch.checkpoint import checkpoints, load_state, load_tensors, read_config, save_state
from ssdcore_torch.config import merged, preset, read_settings
from ssdcore_torch.config import setting as read_setting
from ssdcore_torch.ema import reconstruct

MEMORY, SECONDS = 1 << 30, 60


def fuzz(examples: int) -> settings:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=checks)


@contextmanager
def bounded() -> Iterator[None]:
    """Little memory and little time; beyond them a MemoryError or TimeoutError, which no reader may raise."""

    def late(*_: object) -> None:
        raise TimeoutError(f"took longer than {SECONDS} s")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    previous = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, previous)


def survives(run: Path, read: Callable[[], object], *names: str) -> str:
    """Read; the error's message, or "" if there was none."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    try:
        with bounded():
            read()
        message = ""
    except (ValueError, FileNotFoundError, TypeError) as error:
        message = str(error)
    assert not message or any(name in message for name in names), message
    assert len(message.splitlines()) <= 1, message
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    return message


# ---- what may stand in a file

numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([-1, 0, 1, 2, 10**6, 2**31, 2**63, 10**18, 10**400, math.nan, 1e308])
)
scalars = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8))
trees = st.recursive(
    scalars, lambda kind: st.lists(kind, max_size=3) | st.dictionaries(st.text(max_size=8), kind, max_size=3)
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON tree."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


@st.composite
def altered(draw: st.DrawFn, tree: Any) -> Any:
    """The tree with one value replaced, dropped or added, or two of its values exchanged."""
    tree = json.loads(json.dumps(tree))
    *parents, last = draw(st.sampled_from([path for path in places(tree) if path]))
    node = tree
    for key in parents:
        node = node[key]
    how = draw(st.sampled_from(["replace", "replace", "replace", "drop", "add", "exchange", "digits"]))
    if how == "drop":
        del node[last]
    elif how == "add" and isinstance(node, dict):
        node[draw(st.text(max_size=8))] = draw(trees)
    elif how == "exchange":
        other = draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
        node[last], node[other] = node[other], node[last]
    elif how == "digits" and isinstance(node[last], int):
        node[last] = node[last] * draw(st.sampled_from([-1, 2, 1000, 10**9, 10**30]))
    else:
        node[last] = draw(trees)
    return tree


def written(tree: Any) -> bytes:
    return json.dumps(tree).encode()


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes cut short, lengthened, with some changed, or others altogether."""
    how = draw(st.sampled_from(["cut", "change", "change", "insert", "others"]))
    if how == "others":
        return draw(st.binary(max_size=64))
    place = draw(st.integers(0, len(content) - 1) | st.integers(0, min(len(content), 600) - 1))
    if how == "cut":
        return content[:place]
    new = draw(st.binary(min_size=1, max_size=9))
    return content[:place] + new + content[place + (len(new) if how == "change" else 0) :]


NESTED = b"[" * 100_000
DIGITS = b'{"step": ' + b"9" * 5000 + b"}"


# ---- config.json


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a real network with one checkpoint."""
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    save_run(folder, state_after(1))
    return folder


@pytest.fixture(scope="module")
def config(run: Path) -> dict[str, Any]:
    return json.loads((run / "config.json").read_text())


@contextmanager
def replaced(path: Path, content: bytes) -> Iterator[None]:
    """The file with other content, as a file of its own, for a while."""
    kept = path.with_name("kept")
    path.rename(kept)
    try:
        path.write_bytes(content)
        yield
    finally:
        path.unlink()
        kept.rename(path)


@fuzz(100)
@given(st.data())
def test_a_config_of_the_wrong_kinds(run: Path, config: dict[str, Any], data: st.DataObject) -> None:
    with replaced(run / "config.json", written(data.draw(altered(config)))):
        if not survives(run, lambda: read_config(run), "config.json"):
            survives(run, lambda: load_run(run).process, "config.json", "state.json")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("network.blocks_per_stage", 10**9),
        ("network.base_channels", 32 * 10**9),
        ("network.in_channels", 10**12),
        ("network.num_classes", 10**12),
        ("network.heads", 10**30),
        ("network.level_sizes", [[2**40, 2**40], [2**39, 2**39]]),
        ("network.channel_multipliers", [1] * 10_000),
        ("process.steps", 10**12),
        ("process.steps", 1),
        ("process.steps", -5),
        ("process.gamma", 10**400),
        ("process.starts", [10**30]),
        ("process.kernel", "a" * 10_000),
        ("train.steps", 10**400),
        ("train.learning_rate", 10**400),
        ("train.learning_rate", math.inf),
        ("train.weight_decay", math.nan),
        ("train.ema_widths", [math.nan]),
        ("data.memory_gib", math.inf),
        ("seed", 10**400),
    ],
)
def test_a_config_of_monstrous_sizes(run: Path, config: dict[str, Any], setting: str, value: Any) -> None:
    """Also where there are no checkpoints, whose copy of the configuration would tell."""
    section, _, name = setting.rpartition(".")
    tree = json.loads(json.dumps(config))
    (tree[section] if section else tree)[name] = value
    if name == "starts":
        tree["process"].update(schedule="thresholds", gamma=None)
    (run / "checkpoints").rename(run.with_name("aside"))
    try:
        with replaced(run / "config.json", written(tree)):
            message = survives(run, lambda: load_run(run).process, "config.json")
        assert message or setting in ("seed", "data.memory_gib", "train.steps")
    finally:
        run.with_name("aside").rename(run / "checkpoints")


@fuzz(60)
@given(st.data())
@example(None).via("nested brackets")
def test_a_config_of_any_bytes(run: Path, config: dict[str, Any], data: st.DataObject | None) -> None:
    content = NESTED if data is None else data.draw(damaged(written(config)))
    with replaced(run / "config.json", content):
        survives(run, lambda: read_config(run), "config.json")


# ---- safetensors


@fuzz(100)
@given(st.data())
def test_tensors_of_any_bytes(tmp_path: Path, run: Path, data: st.DataObject) -> None:
    """Also with a header of the right length that says something else: huge shapes, offsets outside, other kinds."""
    content = (run / "prior.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    if data.draw(st.booleans()):
        content = data.draw(damaged(content))
    else:
        header = written(data.draw(altered(json.loads(content[8 : 8 + length]))))
        content = struct.pack("<Q", len(header)) + header + content[8 + length :]
    path = tmp_path / "some.safetensors"
    path.write_bytes(content)
    if not survives(tmp_path, lambda: load_tensors(path), "some.safetensors"):
        with replaced(run / "prior.safetensors", content):
            survives(run, lambda: load_run(run), "prior.safetensors")


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_tensors_whose_header_claims_any_length(tmp_path: Path, length: int) -> None:
    path = tmp_path / "some.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}1234')
    assert "cut short or of another kind" in survives(tmp_path, lambda: load_tensors(path), "some.safetensors")


# ---- checkpoints


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A run with sound checkpoints after 2 and 4 steps."""
    folder = make_run(tmp_path / "run")
    save_state(folder, NEW)
    return folder


def sign(folder: Path) -> None:
    """Let the manifest fit its files: what is wrong with them is then to be found in them."""
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    for name in values["files"]:
        content = (folder / name).read_bytes()
        values["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("name", ["state.json", "manifest.json"])
@fuzz(50)
@given(st.data())
@example("nested brackets")
@example("digits")
def test_json_of_a_checkpoint(two: Path, name: str, data: st.DataObject | str) -> None:
    """Alone it is refused by name; with a sound checkpoint before it, that is used."""
    newest, before = checkpoints(two)
    path = newest / name
    kept = {file: (newest / file).read_bytes() for file in ("state.json", "manifest.json")}
    if isinstance(data, str):
        content = NESTED if data == "nested brackets" else DIGITS
    else:
        content = data.draw(altered(json.loads(kept[name])).map(written) | damaged(kept[name]))
    aside = two / before.name
    try:
        path.write_bytes(content)
        if name == "state.json":
            sign(newest)
        if not survives(two, lambda: load_state(two, NEW.model), name, "manifest.json", "config.json"):
            assert load_state(two, NEW.model).step in (2, 4)
        before.rename(aside)
        survives(two, lambda: load_state(two, NEW.model), name, "manifest.json", "config.json")
    finally:
        if aside.exists():
            aside.rename(before)
        for file, content in kept.items():
            (newest / file).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "key", "value", "told"),
    [
        ("state.json", None, [], "expected an object, got list"),
        ("state.json", "averages", [], "averages: expected a list of names"),
        ("state.json", "averages", [3], "averages: expected a list of names"),
        ("state.json", "averages", ["../../ema"], "averages: expected a list of names"),
        ("state.json", "averages", ["model"], "averages: expected a list of names"),
        ("state.json", "averages", ["ema", "ema-0.9"], "manifest.json does not list ema-0.9.safetensors"),
        ("state.json", "step", 4.0, "step: expected int, got 4.0"),
        ("state.json", "step", 3, "is of step 3, its folder's name says 4"),
        ("state.json", "format", "ssdcore_torch state 9", "format: expected 'ssdcore_torch state 1'"),
        ("state.json", "config", {"a\rb\n": 1}, "config: a\\rb\\n: unknown setting"),
        ("manifest.json", None, 3, "expected an object, got int"),
        ("manifest.json", "files", {"../../config.json": {"bytes": 1, "sha256": ""}}, "expected names in this folder"),
        ("manifest.json", "files", {"model.safetensors": 3}, "expected names in this folder"),
        ("manifest.json", "files", {"state.json": {"bytes": True, "sha256": ""}}, "bytes: expected int, got True"),
        ("manifest.json", "files", {}, "manifest.json does not list state.json"),
        ("manifest.json", "threads", None, "threads: expected int, got None"),
    ],
)
def test_json_that_no_trainer_wrote(two: Path, name: str, key: str | None, value: Any, told: str) -> None:
    newest, before = checkpoints(two)
    shutil.rmtree(before)
    path = newest / name
    path.write_bytes(written(value if key is None else {**json.loads(path.read_text()), key: value}))
    if name == "state.json":
        sign(newest)
    assert told in survives(two, lambda: load_state(two, NEW.model), name, "manifest.json")


@pytest.mark.parametrize(
    "tensors",
    [
        {"mean": torch.zeros(3, 4, 5).double(), "covariance": torch.eye(48).double()},
        {"mean": torch.zeros(3, 4, 4).double(), "covariance": torch.eye(47).double()},
        {"mean": torch.zeros(3, 4, 4), "covariance": torch.eye(48)},
        {"mean": torch.zeros(3, 4, 4).double(), "a\nb": torch.eye(48).double()},
        {"mean": torch.zeros(3, 4, 4).double(), "covariance": torch.eye(48).double().roll(1)},
        {},
    ],
)
def test_a_prior_that_no_trainer_wrote(run: Path, tensors: dict[str, torch.Tensor]) -> None:
    with replaced(run / "prior.safetensors", save(tensors)):
        assert survives(run, lambda: load_run(run), "prior.safetensors")


@fuzz(50)
@given(st.data())
def test_tensors_of_a_checkpoint(two: Path, data: st.DataObject) -> None:
    """Whether the manifest fits them or not."""
    newest = checkpoints(two)[0]
    name = data.draw(st.sampled_from(["model.safetensors", "ema.safetensors", "optimizer.safetensors"]))
    kept = {file: (newest / file).read_bytes() for file in (name, "manifest.json")}
    (length,) = struct.unpack("<Q", kept[name][:8])
    header = data.draw(
        altered(json.loads(kept[name][8 : 8 + length])).map(written) | damaged(kept[name][8 : 8 + length])
    )
    signed = data.draw(st.booleans())
    try:
        (newest / name).write_bytes(struct.pack("<Q", len(header)) + header + kept[name][8 + length :])
        if signed:
            sign(newest)
        survives(two, lambda: load_state(two, NEW.model), name)
    finally:
        for file, content in kept.items():
            (newest / file).write_bytes(content)


def test_swapped_files(two: Path) -> None:
    """Every file of a checkpoint in the place of every other, and of the same one in another checkpoint."""
    newest, before = checkpoints(two)
    kept = {path: path.read_bytes() for path in (*newest.iterdir(), *before.iterdir())}
    for one in sorted(newest.iterdir()):
        for other in [*sorted(newest.iterdir()), before / one.name]:
            if other != one:
                one.write_bytes(kept[other])
                assert load_state(two, NEW.model).step == 2
                if one.name != "manifest.json":
                    sign(newest)
                    survives(two, lambda: load_state(two, NEW.model), one.name, "config.json")
                for path in (one, newest / "manifest.json"):
                    path.write_bytes(kept[path])
    assert load_state(two, NEW.model).step == 4


def test_other_things_among_the_checkpoints(two: Path) -> None:
    """Files, and folders of other names, are left alone and not taken for one."""
    folder = two / "checkpoints"
    (folder / "step-00000009").write_text("a file")
    (folder / "step-00000008").mkdir()
    (folder / "step-7").mkdir()
    (folder / "step-00000010.bak").mkdir()
    (folder / "notes.txt").write_text("keep")
    assert load_state(two, NEW.model).step == 4  # the empty folder is refused
    save_state(two, LATER, keep=1)
    others = {"step-00000009", "step-7", "step-00000010.bak", "notes.txt"}
    assert {path.name for path in folder.iterdir()} == {"step-00000006", *others}


# ---- snapshots


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tracked")
    track(Path1D(40), (0.05, 0.1), folder, 20)
    return folder


@fuzz(100)
@given(st.data())
def test_snapshots(tracked: Path, data: st.DataObject) -> None:
    path = tracked / "snapshots" / "power-0.1-00000020.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = written(data.draw(altered(json.loads(content[8 : 8 + length]))))
    mended = struct.pack("<Q", len(header)) + header + content[8 + length :]
    with replaced(path, data.draw(st.sampled_from([mended, data.draw(damaged(content))]))):
        survives(tracked, lambda: reconstruct(tracked, 0.07), path.name, "snapshots")


# ---- settings that a person writes

TAGS = (
    "!!bool",
    "!!int",
    "!!float",
    "!!timestamp",
    "!!binary",
    "!!omap",
    "!!pairs",
    "!!set",
    "!!null",
    "!!map",
    "!!seq",
)
SCALARS = st.text("0123456789:-+.eE_xobntTZ ~'\"[]{},\n", max_size=12)


@fuzz(200)
@given(st.one_of(st.text(max_size=60), st.builds("train: {{clip: {} {}}}".format, st.sampled_from(TAGS), SCALARS)))
@example("!!bool x")
@example("!!int ''")
@example("!!timestamp x")
@example("!!python/object/apply:os.system [ls]")
@example("[" * 500)
@example("train: 3")
@example("train: null")
@example("network: {level_sizes: []}")
@example("network: {level_sizes: [[]], channel_multipliers: 3}")
def test_settings_of_any_text(text: str) -> None:
    """Read, or refused by a ValueError; what is read is taken by a configuration, under options too, or refused alike."""
    for read in (read_settings, lambda text: read_setting(f"train.clip={text}")):
        with bounded(), suppress(ValueError):
            preset("cpu").overlaid(read(text))
        with bounded(), suppress(ValueError):
            preset("cpu").overlaid(merged(read(text), {"train": {"steps": 2}}), levels=2)
