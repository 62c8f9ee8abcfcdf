"""Train to the end, or until asked to stop: steps, log, checkpoints, samples and evaluations on the way."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from ssdcore_torch import checkpoint, ema, images
from ssdcore_torch.training.log import Board, Log
from ssdcore_torch.training.pictures import sample_grid
from ssdcore_torch.training.signals import stop_requests
from ssdcore_torch.training.trainer import Trainer

WAITING = 0.2  # share of the time spent waiting for data above which the loader is called the bottleneck
PROFILED = (10, 5)  # steps before the traced ones, traced steps

_log = logging.getLogger("ssdcore_torch")


@dataclass(frozen=True)
class Extras:
    """What a run may do besides training.

    evaluate  trainer -> figures of its averaged network, called on every rank; the least "frechet" is the best
    board     write TensorBoard's event files, too
    profile   trace a few steps once the run is warm
    """

    evaluate: Callable[[Trainer], Mapping[str, float]] | None = None
    board: bool = False
    profile: bool = False


def train(trainer: Trainer, out: Path, extras: Extras) -> bool:
    """Train to the configured number of steps; False if asked to stop before. Either way the state is saved.

    Raises NotFiniteError before an update that is not finite, OSError where `out` cannot be written.
    """
    total = trainer.config.train.steps
    with ExitStack() as stack:
        stops = stack.enter_context(stop_requests())
        loop = _Loop(trainer, out, extras, stack)
        loop.catch_up()
        batches = trainer.feed.batches(trainer.step)
        while trainer.step < total and not trainer.world.any(bool(stops)):
            trainer.train_step(next(batches))
            loop.after_step()
        loop.save()
        trainer.world.wait()  # torchrun ends the other ranks, rank 0 in its save too, as soon as one has left
    return trainer.step >= total


class _Loop:
    """What happens around the steps. Rank 0 writes; whatever the ranks do together, all of them do at the same step."""

    def __init__(self, trainer: Trainer, out: Path, extras: Extras, stack: ExitStack) -> None:
        train = trainer.config.train
        self.trainer, self.out, self.extras = trainer, out, extras
        self.leader = trainer.world.leader
        self.snapshots = _evenly(train.steps, train.snapshots) if train.ema_widths else frozenset()
        self.mark, self.since, self.warned = trainer.step, time.perf_counter(), False
        self.saved: tuple[int, object] | None = None
        interval = 0.5 if sys.stderr.isatty() else 10.0
        self.bar = stack.enter_context(
            tqdm(
                total=train.steps,
                initial=trainer.step,
                unit="step",
                mininterval=interval,
                dynamic_ncols=True,
                disable=not self.leader,
            )
        )
        self.log = Log(out / "log.jsonl", trainer.step) if self.leader else None
        self.board: Board | None = None
        if extras.board and self.leader:
            self.board = Board(out / "tensorboard", trainer.step)
            stack.callback(self.board.close)
        self.profiler: torch.profiler.profile | None = None
        if extras.profile and self.leader:
            self.profiler = stack.enter_context(_profiler(out / "profile", trainer.world.device))

    def after_step(self) -> None:
        trainer = self.trainer
        train, step = trainer.config.train, trainer.step
        last = step == train.steps
        self.bar.update()
        if self.profiler is not None:
            self.profiler.step()
        if step % train.log_every == 0 or last:
            self.report()
        if step in self.snapshots and self.leader:
            trainer.check()
            ema.save_snapshot(self.out, step, trainer.averages)
        evaluates = self.evaluates_now()
        if (step % train.save_every == 0 and not last) or evaluates:  # first, as what follows takes long and may fail
            self.save()
        if train.sample_every and step % train.sample_every == 0 and not last and self.leader:
            self.draw()
        if evaluates:
            self.evaluate()

    def evaluates_now(self) -> bool:
        """Whether the network is to be evaluated after this step."""
        train, step = self.trainer.config.train, self.trainer.step
        return train.evaluate_every is not None and (step % train.evaluate_every == 0 or step == train.steps)

    def catch_up(self) -> None:
        """The evaluation of the restored step, if the run ended in it."""
        missing = self.log is not None and self.log.evaluated < self.trainer.step
        if self.trainer.step and self.evaluates_now() and self.trainer.world.any(missing):
            self.evaluate()

    def report(self) -> None:
        """One line of the log, from the steps since the last."""
        trainer = self.trainer
        trainer.check()
        figures = trainer.take_figures()
        now, step = time.perf_counter(), trainer.step
        speed = (step - self.mark) * trainer.config.train.batch_size / (now - self.since)
        self.mark, self.since = step, now
        slow = trainer.world.any(trainer.feed.wait_share > WAITING)
        if not self.leader:
            return
        self.write({"step": step, **figures, "images_per_second": round(speed, 1)})
        self.bar.set_postfix({"loss": f"{figures['loss']:.4g}", "images/s": f"{speed:.0f}"}, refresh=False)
        if slow and not self.warned:
            self.warned = True
            _log.warning(
                "training waits for images more than %.0f %% of the time: the loader is the bottleneck; raise "
                "data.workers (--set data.workers=N), or data.memory_gib so that the decoded images fit, or pack them "
                "into shards once with python -m ssdcore_torch.prepare",
                100 * WAITING,
            )

    def write(self, figures: Mapping[str, object]) -> None:
        assert self.log is not None
        self.log.write(figures)
        if self.board is not None:
            self.board.scalars(figures)

    def draw(self) -> None:
        step, picture = self.trainer.step, sample_grid(self.trainer)
        folder = self.out / "samples"
        folder.mkdir(exist_ok=True)
        images.save(picture, folder / f"step-{step:08d}.png")
        if self.board is not None:
            self.board.picture("samples", picture, step)

    def evaluate(self) -> None:
        """Figures of the averaged network; the best so far is saved, and kept."""
        assert self.extras.evaluate is not None
        trainer = self.trainer
        trainer.check()
        started = time.perf_counter()
        figures = dict(self.extras.evaluate(trainer))
        self.since += time.perf_counter() - started  # no training went on
        if self.leader:
            self.write({"step": trainer.step, "evaluation": figures})
        if trainer.best is None or figures["frechet"] < trainer.best["frechet"]:
            trainer.best = {"step": trainer.step, "frechet": figures["frechet"]}
            self.save()

    def save(self) -> None:
        """Save the state, unless this one is saved."""
        trainer = self.trainer
        trainer.check()
        current = trainer.step, trainer.best
        if self.leader and current != self.saved:
            checkpoint.save_state(self.out, trainer.state(), trainer.config.train.keep)
            self.saved = current


def _evenly(steps: int, count: int) -> frozenset[int]:
    """`count` steps spread evenly up to the last; all of them where there are fewer."""
    return frozenset(round(steps * (i + 1) / count) for i in range(count)) - {0}


def _profiler(folder: Path, device: torch.device) -> torch.profiler.profile:
    """A profiler that leaves trace.json (for chrome://tracing or Perfetto) and table.txt."""
    waits, traced = PROFILED

    def write(profile: torch.profiler.profile) -> None:
        folder.mkdir(exist_ok=True)
        checkpoint.write_atomically(folder / "trace.json", lambda file: profile.export_chrome_trace(str(file)))
        table = profile.key_averages().table(sort_by=f"self_{device.type}_time_total", row_limit=30)
        checkpoint.write_atomically(folder / "table.txt", lambda file: file.write_text(table, encoding="utf-8"))

    schedule = torch.profiler.schedule(wait=waits - 2, warmup=2, active=traced, repeat=1)
    return torch.profiler.profile(schedule=schedule, on_trace_ready=write)
