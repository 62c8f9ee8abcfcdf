"""Commands in processes of their own, and processes that die where a test says.

`Started` runs a command in a fork of a server that has imported everything, in a tenth of the time that an interpreter
takes to start. What is about an interpreter's own start and end (closed streams, encodings) wants `python -m`.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import runpy
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DEADLINE = 240.0  # seconds: of a wait for what takes a few on an idle machine
KILL = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "kill.py"))
die: Callable[[int], None] = KILL["die"]
"""Let this process be killed just before its n-th change to the disk."""

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [f"ssdcore_torch.commands.{name}" for name in ("train", "sample", "evaluate", "prepare")]
    + ["torch._dynamo", "torchmetrics.image.fid", "torchmetrics.image.kid", "webdataset"]  # imported by these when used
)


def wait(until: Callable[[], object], alive: Started | None = None) -> None:
    """Until something is so; fails after a time that no machine needs, or once the process is gone."""
    deadline = time.monotonic() + DEADLINE
    while not until():
        assert alive is None or alive.process.is_alive(), alive.finish()
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Started:
    """A command at work. `before` is called in its process first; `folder` gets what it says;
    `group`: it leads a group of its own, as under a shell; `working`: its working folder."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *options: object,
        env: dict[str, str] | None = None,
        before: Callable[..., object] | None = None,
        arguments: tuple[Any, ...] = (),
        group: bool = False,
        working: Path | None = None,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.said = [folder / "stdout", folder / "stderr"]
        given = [str(option) for option in options]
        self.process: Any = SERVER.Process(
            target=_command, args=(name, given, self.said, env or {}, before, arguments, group, working)
        )
        self.process.start()

    def signal(self, number: int, group: bool = False) -> None:
        (os.killpg if group else os.kill)(self.process.pid, number)

    def left(self) -> bool:
        """Whether processes of its group are at work, or waited for."""
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def finish(self) -> tuple[int, str, str]:
        """(status, stdout, stderr)"""
        self.process.join(DEADLINE)
        assert self.process.exitcode is not None
        out, error = (file.read_text(errors="replace") if file.exists() else "" for file in self.said)
        return self.process.exitcode, out, error


def _command(
    name: str,
    options: list[str],
    said: list[Path],
    env: dict[str, str],
    before: Callable[..., object] | None,
    arguments: tuple[Any, ...],
    group: bool,
    working: Path | None,
) -> None:
    multiprocessing.set_start_method("fork", force=True)  # as usual: not that of the server
    if group:
        os.setpgid(0, 0)
    for descriptor, file in enumerate(said, 1):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.update(env)
    if working is not None:
        os.chdir(working)
    if before is not None:
        before(*arguments)
    from ssdcore_torch.commands import cli

    cli.run(importlib.import_module(f"ssdcore_torch.commands.{name}").main, options)


def run(folder: Path, name: str, *options: object, **more: Any) -> tuple[int, str, str]:
    """(status, stdout, stderr) of a command."""
    return Started(folder, name, *options, **more).finish()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def ranks(
    tmp_path: Path,
    command: str,
    *options: list[Any],
    folders: Sequence[Path] = (),
    before: Callable[[], object] | None = None,
) -> list[tuple[int, str, str]]:
    """Several ranks, each started by its own command, as on several machines of a cluster."""
    tmp_path.mkdir(exist_ok=True)
    port = free_port()
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(len(options)), "LOCAL_RANK": "0"}
    started = [
        Started(
            tmp_path / f"rank-{rank}",
            command,
            *given,
            env={**place, "RANK": str(rank)},
            before=before,
            working=folders[rank] if folders else None,
        )
        for rank, given in enumerate(options)
    ]
    return [rank.finish() for rank in started]


def in_a_child(work: Callable[[], object]) -> int:
    """The wait status of a fork of this process that does this."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    return os.waitpid(child, 0)[1]


def killed_at_every_change(work: Callable[[int], object], then: Callable[[int], object], every: int = 1) -> int:
    """`work(k)` in a child that is killed at its k-th change to the disk, then `then(k)`: for k = 1, 1 + every, … until
    it ends by itself. Before which it was not any more."""
    call = 1 - every
    while True:
        call += every
        status = in_a_child(lambda: (die(call), work(call)))  # noqa: B023
        assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
        then(call)
        if status == 0:
            return call - 1
