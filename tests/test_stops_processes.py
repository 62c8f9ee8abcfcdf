"""Whole processes, stopped, killed or told to write where they cannot: slow, so not in the quick run.

Nothing here is timed: a test waits for what it tests, as long as the slowest machine takes, and then looks. What is
promised of times (an answer within a second, an end within five) stands in `tests/test_stops.py`, without other work.
"""

from __future__ import annotations

import functools
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from processes import DEADLINE, Started, ranks, run, wait

from ssdcore_torch import checkpoint, load_run
from ssdcore_torch.commands import cli

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

TINY = ["--preset", "cpu", "--size", "8", "--levels", "2", "--batch-size", "4", "--device", "cpu"]
TINY += ["--set", "network.channel_multipliers=[1, 1]", "--set", "network.base_channels=32"]
TINY += ["--set", "network.attention_sizes=[4]", "--set", "train.log_every=1"]
STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def steps(out: Path) -> int:
    try:
        rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return 0
    return max((row["step"] for row in rows), default=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("trained")
    code, _, error = run(base / "said", "train", *TINY, "--steps", 3, "--out", base / "run")
    assert code == 0, error
    return base / "run"


# ---- stops


def slow_drawing(mark: Path, after: int) -> None:
    """In the process of a command: make this file once images have been drawn by so many evaluations of the network; from
    there on each takes a minute."""
    from ssdcore_torch.denoisers import FlexiUNet

    forward, calls = FlexiUNet.forward, [0]

    def counting(self: Any, *arguments: Any, **options: Any) -> Any:
        calls[0] += not self.training
        if calls[0] == after:
            mark.touch()
        if calls[0] >= after and not self.training:
            time.sleep(60)
        return forward(self, *arguments, **options)

    FlexiUNet.forward = counting  # type: ignore[method-assign]


@pytest.mark.parametrize("number", STOPS)
def test_a_request_while_a_grid_is_drawn_is_answered_and_acted_on(number: int, tmp_path: Path) -> None:
    out, mark = tmp_path / "run", tmp_path / "mark"
    more = ["--set", "train.sample_every=4", "--set", "train.save_every=1000", "--steps", 100_000]
    started = Started(tmp_path / "said", "train", *TINY, *more, "--out", out, before=slow_drawing, arguments=(mark, 3))
    wait(mark.exists, started)
    started.signal(number)
    code, said, error = started.finish()
    assert code == cli.INTERRUPTED
    assert "stopping after step 4, which is saved; again to quit at once" in error
    assert "stopped after step 4 and saved" in said
    assert load_run(out).step == 4
    assert not (out / "samples").exists()


def slow_step(mark: Path, step: int) -> None:
    """In the process of a command: make this file in this step, which takes a minute."""
    from ssdcore_torch.training import Trainer

    honest = Trainer.train_step

    def slowly(self: Any, *arguments: Any) -> Any:
        if self.step == step:
            mark.touch()
            time.sleep(60)
        return honest(self, *arguments)

    Trainer.train_step = slowly  # type: ignore[method-assign]


def test_a_second_request_loses_what_the_first_answer_said(tmp_path: Path) -> None:
    """In a step that takes long."""
    out, mark = tmp_path / "run", tmp_path / "mark"
    options = [*TINY, "--set", "train.save_every=2", "--steps", 100_000, "--out", out]
    started = Started(tmp_path / "said", "train", *options, before=slow_step, arguments=(mark, 5))
    wait(mark.exists, started)
    started.signal(signal.SIGINT)
    answer = "stopping after this step and saving; again to quit without the last step"
    wait(lambda: answer in started.said[1].read_text(), started)
    time.sleep(1)  # the same request from a terminal and a cluster is one; a person takes a while
    started.signal(signal.SIGINT)
    code, _, error = started.finish()
    assert code == cli.INTERRUPTED
    assert "interrupted after step 5: what came after step 4 is lost; to continue from it: python -m" in error
    assert load_run(out).step == 4


@pytest.mark.parametrize("number", [*STOPS, signal.SIGKILL])
@pytest.mark.parametrize("what", ["sample", "evaluate"])
def test_drawing_and_evaluating_leave_nothing_half_made(what: str, number: int, trained: Path, tmp_path: Path) -> None:
    """And the same command, given again, succeeds."""
    (tmp_path / "out").mkdir()
    options: dict[str, list[object]] = {
        "sample": [trained, "--n", 2, "--steps", 3, "--out", tmp_path / "out" / "grid.png"],
        "evaluate": [trained, "--n", 8, "--steps", 3, "--features", "pixels"],
    }
    if what == "evaluate":
        options[what] += ["--out", tmp_path / "out" / "e.json", "--cache", tmp_path / "cache"]
    environment = {"TMPDIR": str(tmp_path / "out")}
    command = (what, *options[what], "--device", "cpu")
    mark = tmp_path / "mark"
    started = Started(tmp_path / "said", *command, env=environment, before=slow_drawing, arguments=(mark, 2))
    wait(mark.exists, started)
    started.signal(number)
    code, _, error = started.finish()
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert code == cli.INTERRUPTED
        assert error.splitlines()[-1] == "interrupted"
    assert "Traceback" not in error
    assert not [path for path in (tmp_path / "out").iterdir() if "ssdcore" in path.name or path.suffix != ""]
    code, _, error = run(tmp_path / "said", *command)
    assert code == 0, error


def slow_decoding(mark: Path) -> None:
    """In the process of a command: make this file in a process that decodes, which then takes a minute a picture."""
    from ssdcore_torch.data._reading import Reader

    parent, honest = os.getpid(), Reader.read

    def read(self: Any, *arguments: Any) -> Any:
        if os.getpid() != parent:
            mark.touch()
            time.sleep(60)
        return honest(self, *arguments)

    Reader.read = read  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than are decoded without other processes."""
    folder = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "0000.png")
    for i in range(1, 1100):
        os.link(folder / "0000.png", folder / f"{i:04d}.png")
    return folder


@pytest.mark.parametrize("number", [*STOPS, signal.SIGKILL])
@pytest.mark.parametrize("command", ["train", "prepare", "evaluate"])
def test_decoding_leaves_nothing(command: str, number: int, pictures: Path, trained: Path, tmp_path: Path) -> None:
    """No file, no process, no word more than one, whoever is told: here the whole group, as by a terminal."""
    out, scratch, mark = tmp_path / "run", tmp_path / "scratch", tmp_path / "mark"
    scratch.mkdir()
    options: dict[str, list[object]] = {
        "train": [*TINY, "--data", pictures, "--steps", 2, "--out", out],
        "prepare": ["folder", "--from", pictures, "--size", 8, "--out", out],
        "evaluate": [trained, "--data", pictures, "--features", "pixels", "--out", out, "--n", 8, "--device", "cpu"],
    }
    options["evaluate"] += ["--steps", 2, "--cache", tmp_path / "cache", "--picture", tmp_path / "run.png"]
    name = {"prepare": "slow_packing"}.get(command, "slow_decoding")
    started = Started(
        tmp_path / "said", command, *options[command], env={"TMPDIR": str(scratch)}, before=globals()[name],
        arguments=(mark,), group=True,
    )  # fmt: skip
    wait(mark.exists, started)
    started.signal(number, group=number != signal.SIGKILL)
    code, _, error = started.finish()
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else cli.INTERRUPTED), error
    wait(lambda: not started.left())
    error = started.said[1].read_text()  # by all of its processes
    assert "Traceback" not in error
    if number != signal.SIGKILL:
        assert error.splitlines()[-1].startswith("interrupted")
    assert not list(scratch.glob("*ssdcore*"))  # torch makes a cache of its own there
    assert not (tmp_path / "run.png").exists()
    assert command == "prepare" or not out.exists()
    if number in (signal.SIGINT, signal.SIGKILL):
        code, _, error = run(tmp_path / "said", command, *options[command])
        assert code == 0, error


def slow_packing(mark: Path) -> None:
    """As `slow_decoding`, of ssdcore_torch.prepare."""
    from ssdcore_torch.prepare import _Packer

    def pack(self: Any, row: int) -> Any:
        mark.touch()
        time.sleep(60)

    _Packer._pack = pack  # type: ignore[method-assign]


# ---- what cannot be printed or written


def start(module: str, *options: object, env: dict[str, str] | None = None, **more: Any) -> subprocess.Popen[str]:
    """An interpreter of its own."""
    command = [sys.executable, "-m", f"ssdcore_torch.{module}", *map(str, options)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **(env or {})}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.Popen(command, text=True, errors="replace", env=environment, **streams)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=DEADLINE)
    return process.returncode, out or "", error or ""


@pytest.mark.parametrize(("stdout", "stderr"), [("full", "gone"), ("closed", "full"), ("gone", "closed")])
def test_output_that_cannot_be_printed_changes_nothing(stdout: str, stderr: str, trained: Path, tmp_path: Path) -> None:
    """On a full disk, closed, or with a reader that has left, as in `train … | true`."""
    with open("/dev/full", "w") as full:
        reads, gone = os.pipe()
        os.close(reads)
        kinds: dict[str, Any] = {"full": full, "gone": gone, "closed": None}
        closed = 1 if stdout == "closed" else 2
        process = start(
            "train", *TINY, "--steps", 3, "--out", tmp_path / "run", stdout=kinds[stdout], stderr=kinds[stderr],
            preexec_fn=lambda: os.close(closed) if "closed" in (stdout, stderr) else None,
        )  # fmt: skip
        os.close(gone)
    assert finish(process)[0] == 0
    assert_equal_runs(tmp_path / "run", trained)


def assert_equal_runs(one: Path, other: Path) -> None:
    """Byte for byte, but for the log's speed, which the report shows, with the folder's name."""
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(other)) for path in other.rglob("*") if path.is_file())
    for name in names:
        if name not in ("log.jsonl", "report.html"):
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    rows = [[json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()] for out in (one, other)]
    for row in (*rows[0], *rows[1]):
        del row["images_per_second"]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("encoding", ["ascii", "utf-16"])
def test_an_encoding_without_arrows_changes_nothing(encoding: str, trained: Path, tmp_path: Path) -> None:
    """Nor do names that are no UTF-8: of the pictures, which are read, and of what is drawn."""
    data = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(data)
    for k in range(4):
        Image.fromarray(np.full((8, 8, 3), k, np.uint8)).save(os.fsdecode(data + b"/\xff%d.png" % k))
    out = tmp_path / "run"
    environment = {"PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code, _, error = finish(start("train", *TINY, "--steps", 3, "--out", out, env=environment))
    assert code == 0, error
    assert "Traceback" not in error
    assert_equal_runs(out, trained)
    if encoding != "ascii":
        return
    drawn = os.fsencode(tmp_path) + b"/\xe9.png"
    code, _, error = finish(start("sample", out, "--n", 1, "--steps", 3, "--out", os.fsdecode(drawn), env=environment))
    assert code == 0, error
    assert os.path.exists(drawn)
    options = [out, "--data", os.fsdecode(data), "--n", 4, "--steps", 2, "--features", "pixels", "--device", "cpu"]
    code, _, error = finish(start("evaluate", *options, "--cache", tmp_path / "cache", env=environment))
    assert code == 0, error
    assert "Traceback" not in error


def few_bytes(most: int) -> None:
    """In the process of a command: no file may grow past this size; the signal of it is ignored, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def test_a_log_that_finds_no_room_does_not_end_training(trained: Path, tmp_path: Path) -> None:
    """The checkpoints have room: a folder stands in the log's place."""
    out = tmp_path / "run"
    started = Started(tmp_path / "said", "train", *TINY, "--steps", 40, "--set", "train.save_every=10", "--out", out)
    wait((out / "log.jsonl").exists, started)
    (out / "log.jsonl").unlink()
    (out / "log.jsonl").mkdir()
    code, _, error = started.finish()
    assert code == 0, error
    assert "log.jsonl cannot be written" in error
    assert load_run(out).step == 40


def test_a_full_disk_under_the_first_checkpoint_is_one_line_and_no_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    limited = {"before": few_bytes, "arguments": (100_000,)}
    code, _, error = run(tmp_path / "said", "train", *TINY, "--steps", 3, "--out", out, **limited)
    assert code == cli.BAD_INPUT
    assert error.splitlines()[-1].startswith("error: ")
    assert "cannot be written" in error
    assert "nothing was saved" in error
    assert not out.exists()


def test_a_full_disk_under_a_picture_says_that_the_images_are_drawn(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    options = [trained, "--n", 64, "--steps", 3, "--device", "cpu", "--out", tmp_path / "out" / "grid.bmp"]
    code, _, error = run(tmp_path / "said", "sample", *options, before=few_bytes, arguments=(10_000,))
    assert code == cli.BAD_INPUT
    assert "the images are drawn and cannot be written" in error.splitlines()[-1]
    assert not list((tmp_path / "out").iterdir())


# ---- several ranks, each started by its own command, as on several machines of a cluster


def failing(where: str) -> None:
    """In the process of one rank: what would go wrong there alone, goes wrong."""
    from ssdcore_torch.training import evaluation, loop, trainer

    full = OSError(28, "No space left on device")
    names: dict[str, Any] = {
        "the second batch": (0, loop._Loop, "next_batch", 2, ValueError("bad pictures")),
        "the second step": (1, trainer.Trainer, "part_loss", 2, KeyboardInterrupt()),
        "the first save": (0, checkpoint, "save_state", 1, full),
        "an evaluation": (1, evaluation, "evaluate_network", 1, ValueError("no figures")),
    }  # fmt: skip
    rank, owner, name, at, error = names[where]
    original, calls = getattr(owner, name), [0]

    def called(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            raise error
        return original(*arguments, **options)

    if int(os.environ["RANK"]) == rank:
        setattr(owner, name, called)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("the second batch", "error: bad pictures"),
        ("the second step", "interrupted after step 1"),
        ("the first save", "cannot be written"),
        ("an evaluation", "error: no figures"),
    ],
)
def test_what_fails_on_one_rank_ends_all(where: str, said: str, tmp_path: Path) -> None:
    """No launcher ends the others: each finds out by itself, and none waits for ever."""
    options = [*TINY, "--steps", 3, "--out", tmp_path / "run", "--set", "train.evaluate_every=3"]
    options += ["--set", "train.evaluate_samples=4", "--set", "train.evaluate_features=pixels"]
    found = ranks(tmp_path / "said", "train", options, options, before=functools.partial(failing, where))
    last = [error.splitlines()[-1] for _, _, error in found]
    assert {code for code, _, _ in found} <= {cli.BAD_INPUT, cli.INTERRUPTED}
    assert any(said in line for line in last), last
    assert any(
        "lost contact with another rank: the message of the rank that stopped first says why" in line for line in last
    )


def test_ranks_of_different_settings_stop_with_the_difference(tmp_path: Path) -> None:
    out = tmp_path / "run"
    common = [*TINY, "--steps", 3, "--out", out]
    found = ranks(
        tmp_path,
        "train",
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
    found = ranks(tmp_path, "train", [*common, "--data", data[0]], [*common, "--data", data[1]])
    for code, _, error in found:
        assert code == cli.BAD_INPUT
        assert "the training images: " in error.splitlines()[-1]
    assert not out.exists()


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_ranks_of_different_options_or_runs_stop_with_the_difference(
    command: str, trained: Path, tmp_path: Path
) -> None:
    """The other run has the same settings and other weights, as an older copy on another machine may."""
    other = tmp_path / "other" / "run"
    shutil.copytree(trained, other)
    state = checkpoint.load_state(other, load_run(other).net.state_dict())
    for tensors in (state.model, *state.averages.values()):
        next(iter(tensors.values())).add_(1)
    checkpoint.save_state(other, replace(state, step=4))
    common = ["--device", "cpu", "--n", 4, "--steps", 2, "--force"]
    common += ["--features", "pixels", "--cache", tmp_path / "cache"] if command == "evaluate" else []
    outs = [["--out", tmp_path / ("e.json" if command == "evaluate" else "a.png")]] * 2
    given = [[trained, *common, *outs[0], "--seed", 1], [trained, *common, *outs[1], "--seed", 2]]
    for code, _, error in ranks(tmp_path, command, *given):
        assert code == cli.BAD_INPUT
        assert "--seed: 1 on rank 0, 2 on rank 1" in error.splitlines()[-1]
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "run").symlink_to(trained)  # the same name on two machines
    given = [["run", *common, *outs[0]]] * 2
    folders = [tmp_path / "here", tmp_path / "other"]
    for code, _, error in ranks(tmp_path, command, *given, folders=folders):
        assert code == cli.BAD_INPUT
        assert "the run: step 3 on rank 0, step 4 on rank 1; its weights: SHA-256 " in error.splitlines()[-1]
    assert not [path for path in tmp_path.iterdir() if path.suffix]


def test_ranks_of_other_code_or_pictures_do_not_evaluate(trained: Path, tmp_path: Path) -> None:
    common = [trained, "--device", "cpu", "--n", 4, "--steps", 2, "--features", "pixels", "--cache", tmp_path / "cache"]
    common += ["--data", "x.npy", "--out", tmp_path / "e.json"]
    for rank in range(2):
        (tmp_path / f"machine-{rank}").mkdir()
        images = np.random.default_rng(rank).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
        np.save(tmp_path / f"machine-{rank}" / "x.npy", images)
    folders = [tmp_path / f"machine-{rank}" for rank in range(2)]
    for code, _, error in ranks(tmp_path, "evaluate", common, common, folders=folders):
        assert code == cli.BAD_INPUT
        assert "the images: " in error.splitlines()[-1]
    for code, _, error in ranks(tmp_path, "evaluate", common, common, before=other_code):
        assert code == cli.BAD_INPUT
        assert "the code: of rank 0 on rank 0, of rank 1 on rank 1" in error.splitlines()[-1]
    assert not (tmp_path / "e.json").exists()


def other_code() -> None:
    """In the process of a command: as if each rank had a checkout of its own."""
    cli.code_version = lambda: f"of rank {os.environ['RANK']}"  # type: ignore[assignment]


# ---- a small disk


def on_a_small_disk(folder: Path, script: str, kib: int) -> subprocess.CompletedProcess[str]:
    """A shell script in `folder`, a file system of so many KiB that it alone sees. Skips where none can be made."""
    folder.mkdir(exist_ok=True)
    mount = f"mount -t tmpfs -o size={kib}k tmpfs {folder} && cd {folder}"
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode
    ):
        pytest.skip("no file system of one's own here: RLIMIT_FSIZE and /dev/full stand in for one, above")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = ["unshare", "-rm", "bash", "-c", f"{mount} && {script}"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=DEADLINE)


def test_training_on_a_disk_that_fills_up(tmp_path: Path) -> None:
    """A later checkpoint has no room. What was saved stays sound, the log and one line say so, and with room again
    training continues from there."""
    train = shlex.join([sys.executable, "-m", "ssdcore_torch.train"])
    options = shlex.join([*TINY, "--steps", "40", "--set", "train.save_every=10", "--set", "train.keep=9"])
    rest = f"""
{train} {options} --out run; echo status $?
mount -o remount,size=90m .
{train} --out run --resume --device cpu; echo status $?
ls run
"""
    done = on_a_small_disk(tmp_path / "disk", rest, kib=19_000)
    assert done.stdout.count("status 2") == 1, done.stdout + done.stderr
    assert done.stdout.count("status 0") == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert re.search(
        r"run/.* cannot be written: .*the run's last checkpoint is intact \(step \d+\), to --resume", lines[0]
    )
    assert "continuing after step" in done.stderr
    assert "Traceback" not in done.stderr
    assert "samples.png" in done.stdout
