"""Whole processes, stopped, killed or told to write where they cannot: slow, so not in the quick run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssdcore_torch import checkpoint, load_run
from ssdcore_torch.commands import cli

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

TINY = ["--preset", "cpu", "--size", "8", "--levels", "2", "--batch-size", "4", "--device", "cpu"]
TINY += ["--set", "network.channel_multipliers=[1, 1]", "--set", "network.attention_sizes=[4]"]
TINY += ["--set", "train.log_every=1"]
STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def start(module: str, *options: object, env: dict[str, str] | None = None, **more: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", f"ssdcore_torch.{module}", *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1]), **(env or {})}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.Popen(command, text=True, errors="replace", env=environment, **streams)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=240)
    return process.returncode, out or "", error or ""


def wait(process: subprocess.Popen[str], until: Callable[[], object]) -> None:
    deadline = time.monotonic() + 180
    while not until():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def steps(run: Path) -> int:
    try:
        rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return 0
    return max((row["step"] for row in rows), default=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    code, _, error = finish(start("train", *TINY, "--steps", 3, "--out", out))
    assert code == 0, error
    return out


@pytest.mark.parametrize("number", STOPS)
def test_a_request_while_a_grid_is_drawn_is_answered_and_acted_on(number: int, tmp_path: Path) -> None:
    """64 images in 100 steps take far longer than five seconds here: with a network of 16 pixels some ten."""
    out = tmp_path / "run"
    more = ["--set", "train.sample_every=4", "--set", "train.save_every=1000", "--set", "network.base_channels=64"]
    more += ["--set", "network.attention_sizes=[16]"]
    process = start("train", *TINY, "--size", 32, *more, "--steps", 100_000, "--out", out)
    wait(process, lambda: checkpoint.checkpoints(out))  # saved before the grid, which is now drawn
    time.sleep(1.0)
    asked = time.monotonic()
    process.send_signal(number)
    code, said, error = finish(process)
    assert time.monotonic() - asked < 10  # five, and the end of the process, on a busy machine
    assert code == cli.INTERRUPTED
    assert "stopping after step 4, which is saved; again to quit at once" in error
    assert "stopped after step 4 and saved" in said
    assert load_run(out).step == 4
    assert not (out / "samples").exists()


def test_a_second_request_loses_what_the_first_answer_said(tmp_path: Path) -> None:
    """In a step that takes long."""
    out = tmp_path / "run"
    more = ["--set", "train.save_every=2", "--set", "network.base_channels=64", "--batch-size", 64]
    more += ["--set", "network.attention_sizes=[16]"]
    process = start("train", *TINY, "--size", 32, *more, "--steps", 100_000, "--out", out)
    wait(process, lambda: steps(out) >= 3)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    code, said, error = finish(process)
    assert code == cli.INTERRUPTED
    assert "stopping after this step and saving" in error
    promised = re.search(r"again to quit without the last (?:(\d+) steps|step)", error)
    assert promised
    if "interrupted after step" in error:  # else the step was over before
        lost = re.search(r"interrupted after step (\d+): what came after step (\d+) is lost", error)
        assert lost
        assert int(lost[1]) - int(lost[2]) <= int(promised[1] or 1) + 1
        assert load_run(out).step == int(lost[2])
    else:
        assert f"stopped after step {load_run(out).step} and saved" in said


@pytest.mark.parametrize("number", [*STOPS, signal.SIGKILL])
@pytest.mark.parametrize("what", ["sample", "evaluate"])
def test_drawing_and_evaluating_leave_nothing_half_made(what: str, number: int, trained: Path, tmp_path: Path) -> None:
    """And the same command, given again, succeeds."""
    report = tmp_path / "report.json"
    options: dict[str, list[object]] = {
        "sample": [trained, "--n", 20_000, "--steps", 500, "--out", tmp_path / "grid.png"],
        "evaluate": [trained, "--n", 700, "--steps", 900, "--features", "pixels", "--out", report],
    }
    process = start(what, *options[what], "--device", "cpu", env={"TMPDIR": str(tmp_path)}, cwd=tmp_path)
    time.sleep(12)
    assert process.poll() is None, process.communicate()
    asked = time.monotonic()
    process.send_signal(number)
    code, _, error = finish(process)
    assert time.monotonic() - asked < 10
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert code == cli.INTERRUPTED
        assert error.splitlines()[-1] == "interrupted"
        assert "Traceback" not in error
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".png", ".json", ".tmp")]
    small = {"sample": ["--n", 2, "--steps", 3], "evaluate": ["--n", 8, "--steps", 3]}[what]
    code, _, error = finish(start(what, *options[what], "--device", "cpu", *small, cwd=tmp_path))
    assert code == 0, error


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Some that differ and their links, so that decoding takes seconds."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(4000):
        if i < 10:
            noise = np.random.default_rng(i).integers(0, 256, (256, 256, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{i:04d}.png")
        else:
            os.link(folder / f"{i % 10:04d}.png", folder / f"{i:04d}.png")
    return folder


@pytest.mark.parametrize("number", [*STOPS, signal.SIGKILL])
def test_decoding_before_the_first_step_leaves_nothing(number: int, pictures: Path, tmp_path: Path) -> None:
    out, scratch = tmp_path / "run", tmp_path / "scratch"
    scratch.mkdir()
    options = [*TINY, "--data", pictures, "--steps", 2, "--out", out, "--set", "data.workers=1"]
    process = start("train", *options, env={"TMPDIR": str(scratch)})
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait(process, lambda: children.read_text().split())  # one that decodes
    time.sleep(0.5)
    asked = time.monotonic()
    process.send_signal(number)
    code, _, error = finish(process)
    assert time.monotonic() - asked < 10
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else cli.INTERRUPTED), error
    assert "Traceback" not in error
    assert not out.exists()
    assert not list(scratch.glob("*ssdcore*"))  # torch makes a cache of its own there
    code, _, error = finish(start("train", *options))
    assert code == 0, error


@pytest.fixture
def full() -> Iterator[Any]:
    with open("/dev/full", "w") as device:
        yield device


@pytest.mark.parametrize("which", ["stdout", "stderr"])
@pytest.mark.parametrize("how", ["full", "closed", "gone"])
def test_output_that_cannot_be_printed_changes_nothing(
    which: str, how: str, trained: Path, tmp_path: Path, full: Any
) -> None:
    out = tmp_path / "run"
    stream: Any = full
    if how == "closed":
        descriptor = {"stdout": 1, "stderr": 2}[which]
        more: dict[str, Any] = {"preexec_fn": lambda: os.close(descriptor), which: None}
    else:
        if how == "gone":  # a reader that has left, as in `train … | true`
            reads, stream = os.pipe()
            os.close(reads)
        more = {which: stream}
    code, _, error = finish(start("train", *TINY, "--steps", 3, "--out", out, **more))
    assert code == 0, error
    for name in ("model.safetensors", "ema.safetensors"):
        assert (out / name).read_bytes() == (trained / name).read_bytes()
    assert steps(out) == 3


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-16"])
def test_an_encoding_without_arrows_changes_nothing(encoding: str, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    environment = {"PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code, _, error = finish(start("train", *TINY, "--steps", 3, "--out", out, env=environment))
    assert code == 0, error
    assert "Traceback" not in error
    drawn = tmp_path / "a.png"
    code, _, error = finish(start("sample", out, "--n", 1, "--steps", 3, "--out", drawn, env=environment))
    assert code == 0, error
    assert drawn.exists()


def limited(size: int) -> Callable[[], None]:
    """For a child: no file may grow past this size, and the signal of it is ignored, as on a full disk."""

    def limit() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def test_a_log_that_finds_no_room_does_not_end_training(trained: Path, tmp_path: Path) -> None:
    """The checkpoints have room: the log alone lies on a full device, as a link to it is replaced by a file of its own."""
    out = tmp_path / "run"
    process = start("train", *TINY, "--steps", 40, "--set", "train.save_every=10", "--out", out)
    wait(process, lambda: (out / "log.jsonl").exists())
    (out / "log.jsonl").unlink()
    (out / "log.jsonl").mkdir()
    code, _, error = finish(process)
    assert code == 0, error
    assert "log.jsonl cannot be written" in error
    assert load_run(out).step == 40


def test_a_full_disk_under_the_first_checkpoint_is_one_line_and_no_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, _, error = finish(start("train", *TINY, "--steps", 3, "--out", out, preexec_fn=limited(200_000)))
    assert code == cli.BAD_INPUT
    assert error.splitlines()[-1].startswith("error: ")
    assert "cannot be written" in error
    assert "nothing was saved" in error
    assert not out.exists()


def test_a_full_disk_under_a_picture_says_that_the_images_are_drawn(trained: Path, tmp_path: Path) -> None:
    options = [trained, "--n", 64, "--steps", 3, "--device", "cpu", "--out", tmp_path / "grid.bmp"]
    code, _, error = finish(start("sample", *options, preexec_fn=limited(10_000)))
    assert code == cli.BAD_INPUT
    assert "the images are drawn and cannot be written" in error.splitlines()[-1]
    assert not list(tmp_path.iterdir())


# ---- two ranks


def ranks(tmp_path: Path, first: list[object], second: list[object]) -> list[tuple[int, str, str]]:
    """Two processes that are to work together, each started by its own command, as on two machines of a cluster."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = [
        start("train", *options, env={**place, "RANK": str(rank), "LOCAL_RANK": "0"})
        for rank, options in enumerate((first, second))
    ]
    return [finish(process) for process in processes]


def test_ranks_of_different_settings_stop_with_the_difference(tmp_path: Path) -> None:
    out = tmp_path / "run"
    common = [*TINY, "--steps", 3, "--out", out]
    found = ranks(
        tmp_path,
        [*common, "--set", "train.learning_rate=0.001"],
        [*common, "--set", "train.learning_rate=0.5", "--seed", 3],
    )
    for code, _, error in found:
        assert code == cli.BAD_INPUT
        line = error.splitlines()[-1]
        assert "train.learning_rate: 0.001 on rank 0, 0.5 on rank 1" in line
        assert "seed: 0 on rank 0, 3 on rank 1" in line
    assert not out.exists()


def test_ranks_of_different_pictures_stop_with_the_difference(tmp_path: Path) -> None:
    out, data = tmp_path / "run", [tmp_path / "a.npy", tmp_path / "b.npy"]
    for seed, path in enumerate(data):
        np.save(path, np.random.default_rng(seed).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8))
    common = [*TINY, "--steps", 3, "--out", out, "--set", "data.memory_gib=0"]
    found = ranks(tmp_path, [*common, "--data", data[0]], [*common, "--data", data[1]])
    for code, _, error in found:
        assert code == cli.BAD_INPUT
        assert "the training images: " in error.splitlines()[-1]
    assert not out.exists()
