"""Several processes, one a device, as `torchrun` starts them; one process is a world of one."""

from __future__ import annotations

import atexit
import functools
import hashlib
import itertools
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

import ssdcore as ssd
from ssdcore_torch.devices import open_device, within_available_cores
from ssdcore_torch.errors import UserError


@dataclass(frozen=True)
class World:
    """The processes that work together, and this one's place among them.

    Attributes:
        rank, size: this process is the rank-th of `size`
        local_rank: its number on this machine: of its device, too
        device: what it computes on
    """

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def leader(self) -> bool:
        """Whether this is rank 0, which alone writes files and prints."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This rank's of `count` items: contiguous, none left out, the first ranks have the one more."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank: the same answer on all."""
        if self.size == 1:
            return flag
        raised = torch.tensor(int(flag))  # on the CPU, so that no device has to be waited for
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return bool(raised)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the ranks of a tensor that every rank has in one shape."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.size

    def gather(self, rows: Tensor) -> Tensor:
        """(Σ n_rank, …): the rows (n_rank, …) of every rank, in the order of the ranks; on every rank."""
        if self.size == 1:
            return rows
        counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
        most = max(int(count) for count in counts)
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat([part[: int(count)] for part, count in zip(parts, counts)])

    def copy_from_leader(self, tensors: list[Tensor]) -> None:
        """Overwrite these tensors with rank 0's."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def agree(self, what: Mapping[str, str]) -> None:
        """Raises ValueError on every rank unless all ranks say the same, naming each that differs: what they were
        started with would else make one model of several halves."""
        if self.size == 1:
            return
        told: list[Mapping[str, str]] = [{}] * self.size
        dist.all_gather_object(told, dict(what))
        different = []
        for name in dict.fromkeys(name for each in told for name in each):
            values = [each.get(name, "nothing") for each in told]
            other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
            if other is not None:
                different.append(f"{name}: {values[0]} on rank 0, {values[other]} on rank {other}")
        if different:
            raise ValueError(f"the processes were started differently ({'; '.join(different)}): start all alike")

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            self.any(False)


@contextmanager
def connect(device: str | None = None) -> Iterator[World]:
    """The world that `torchrun` describes in the environment, or a world of this process alone.

    With a GPU a rank, tensors on it travel by NCCL; those of the CPU by Gloo. When a rank fails the others stop with
    a UserError that says so.

    Args:
        device: as `open_device` takes it; with several processes and None or "cuda", each takes the GPU of its
            number
    """
    size, rank, local = _place()
    if size == 1:
        alone = World(0, 1, 0, open_device(device))
        with within_available_cores(alone.device):
            yield alone
        return
    if device in (None, "cuda") and torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise UserError(
                f"rank {rank} is number {local} on its machine, which has {torch.cuda.device_count()} GPUs: start at "
                "most one process per GPU (torchrun --nproc_per_node), or all on the CPU with --device cpu"
            )
        device = f"cuda:{local}"
    opened = open_device(device)
    if opened.type == "cuda":
        torch.cuda.set_device(opened)
    backend = "cpu:gloo,cuda:nccl" if opened.type == "cuda" else "gloo"
    try:
        if rank == 0 and "TORCHELASTIC_RUN_ID" not in os.environ:
            print(
                f"waiting for {size - 1} other processes, as WORLD_SIZE={size} in the environment says", file=sys.stderr
            )
        place = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        store = next(_meetings(rank, size, place))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        _newest_group[:] = [dist.group.WORLD]
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(f"rank {rank} cannot meet the other {size - 1} ({error}); {_HOW}") from error
    try:
        with within_available_cores(opened):
            yield World(rank, size, local, opened)
    except RuntimeError as error:
        _explain(error, rank)
    dist.destroy_process_group()


# Kept until the next is there. DDP's reducer, freed after `destroy_process_group`, would free the group while it holds
# the GIL, and join a thread that may still need the GIL to free the last piece of its work: both would wait for ever.
# And no longer than that: once the interpreter ends, that thread cannot have the GIL, and aborts the process.
_newest_group: list[Any] = []
atexit.register(_newest_group.clear)


@functools.cache
def _meetings(rank: int, size: int, place: tuple[str, str]) -> Iterator[dist.Store]:
    """Where the processes leave each other their addresses: a store for each meeting at this place.

    All are in one, which is there for as long as this process lives. A second group under the names of the first would
    read the addresses of its sockets, and wait for ever.
    """
    store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=MEETING))
    return (dist.PrefixStore(f"meeting {meeting}", store) for meeting in itertools.count())


MEETING = timedelta(minutes=10)  # all processes are to be there by then
PATIENCE = timedelta(hours=2)  # the others wait this long while rank 0 decodes, or draws samples
_HOW = "start several processes with torchrun --nproc_per_node=N; for one, unset WORLD_SIZE, RANK and LOCAL_RANK"
MOST_RANKS = 1 << 16


def _place() -> tuple[int, int, int]:
    """(size, rank, local rank) as the environment says. Raises UserError where it says what cannot be."""
    said = {name: os.environ.get(name, default) for name, default in _VARIABLES}
    size, rank, local = (
        int(text) if text.isascii() and text.isdigit() and len(text) < 9 else -1 for text in said.values()
    )
    described = ", ".join(f"{name}={value}" for name, value in said.items())
    if not 1 <= size <= MOST_RANKS or not 0 <= rank < size or not 0 <= local <= rank:
        raise UserError(f"the environment describes no process of several ({described}): {_HOW}")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if size > 1 and not os.environ.get(name)]
    if missing:
        raise UserError(f"{described} in the environment, without {' and '.join(missing)}: {_HOW}")
    return size, rank, local


_VARIABLES = (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"))


@functools.cache
def code_version() -> str:
    """Versions, and a digest of the source of both packages: two checkouts of one version are told apart."""
    total = hashlib.sha256()
    for package in (Path(ssd.__file__).parent, Path(__file__).parent):
        for file in sorted(package.rglob("*.py")):
            total.update(f"{package.name}/{file.relative_to(package)}\0".encode() + file.read_bytes())
    return f"ssdcore {ssd.__version__} (source {total.hexdigest()[:12]}), torch {torch.__version__}"


def _explain(error: RuntimeError, rank: int) -> NoReturn:
    """Raise the error again, or, where it only says that another rank is gone, a UserError."""
    lost = isinstance(error, dist.DistError) or any(
        words in str(error) for words in ("Connection closed by peer", "Connection reset by peer", "Socket", "NCCL")
    )
    if lost:
        raise UserError(
            f"rank {rank} lost contact with another rank: the message of the rank that stopped first says why"
        ) from error
    raise error
