"""Train to the end, or until asked to stop: steps, log, checkpoints, samples and evaluations on the way."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import _ExperimentalConfig
from tqdm import tqdm

from ssdcore.files import write_atomically
from ssdcore_torch import checkpoint, ema, images
from ssdcore_torch.config import flat_settings
from ssdcore_torch.data import ImageBatch
from ssdcore_torch.streams import steady
from ssdcore_torch.training.log import Log, Logger, Loggers
from ssdcore_torch.training.pictures import sample_grid
from ssdcore_torch.training.residuals import measured_residuals
from ssdcore_torch.training.signals import Stopped, Stops, stop_requests
from ssdcore_torch.training.trainer import Trainer

WAITING = 0.2  # share of the time spent waiting for data above which the loader is called the bottleneck
PROFILED = (10, 5)  # steps before the traced ones, traced steps

_log = logging.getLogger("ssdcore_torch")


@dataclass(frozen=True)
class Extras:
    """What a run may do besides training.

    Attributes:
        evaluate: trainer -> figures of its averaged network, called on every rank; the least "frechet" is the best
        loggers: where figures and pictures go besides the run's own log
        profile: trace a few steps once the run is warm
    """

    evaluate: Callable[[Trainer], Mapping[str, float]] | None = None
    loggers: Sequence[Logger] = ()
    profile: bool = False


def train(trainer: Trainer, out: Path, extras: Extras) -> bool:
    """Train to the configured number of steps; False if asked to stop before all was done. Either way the state is
    saved, but for the steps that a second request gives up, which raises KeyboardInterrupt.

    Raises:
        NotFiniteError: Before an update that is not finite.
        OSError: Where the state cannot be written to `out`.
    """
    total = trainer.config.train.steps
    with ExitStack() as stack:
        loop = _Loop(trainer, out, extras, stack)
        stops = stack.enter_context(stop_requests(loop.answer if loop.leader else None))
        try:
            loop.catch_up(stops)
            batches = trainer.feed.batches(trainer.step)
            while trainer.step < total and not trainer.world.any(bool(stops)):
                trainer.train_step(loop.next_batch(batches, stops))
                loop.after_step(stops)
        except Stopped:  # in what loses nothing; other ranks, if there are any, may be in the midst of it
            if trainer.world.size > 1:
                return False
        if trainer.step >= total and loop.leader:
            loop.measure(stops)
        loop.save()
        trainer.world.wait()  # torchrun ends the other ranks, rank 0 in its save too, as soon as one has left
        return trainer.step >= total and not stops


class _Loop:
    """What happens around the steps. Rank 0 writes; whatever the ranks do together, all of them do at the same step."""

    def __init__(self, trainer: Trainer, out: Path, extras: Extras, stack: ExitStack) -> None:
        train = trainer.config.train
        self.trainer, self.out, self.extras = trainer, out, extras
        self.leader = trainer.world.leader
        self.snapshots = _evenly(train.steps, train.snapshots) if train.ema_widths else frozenset()
        self.mark, self.since, self.warned = trainer.step, time.perf_counter(), False
        self.saved: tuple[int, object] | None = None
        self.saved_step = trainer.step
        interval = 0.5 if steady(sys.stderr).isatty() else 10.0
        self.bar = stack.enter_context(
            tqdm(
                total=train.steps,
                initial=trainer.step,
                unit="step",
                mininterval=interval,
                dynamic_ncols=True,
                disable=not self.leader,
                file=steady(sys.stderr),
            )
        )
        self.log = Log(out / "log.jsonl", trainer.step) if self.leader else None
        settings = flat_settings(json.loads(trainer.config.to_json()))
        self.loggers = Loggers(extras.loggers if self.leader else (), out, trainer.step, settings)
        stack.callback(self.loggers.close)
        self.profiler: torch.profiler.profile | None = None
        if extras.profile and self.leader:
            self.profiler = stack.enter_context(_profiler(out / "profile", trainer.world.device))

    def answer(self) -> str:
        """What the first request to stop is told."""
        trainer = self.trainer
        steps = trainer.step - self.saved_step
        lost = f"the last {steps} steps" if steps != 1 else "the last step"
        compiling = " (not before it is compiled, if it is now)" if trainer.config.train.compile else ""
        if not steps:
            what = f"after step {trainer.step}, which is saved" if trainer.step else "before the first step"
            return f"stopping {what}{compiling}; again to quit at once"
        return f"stopping after this step and saving{compiling}; again to quit without {lost}"

    def next_batch(self, batches: Iterator[ImageBatch], stops: Stops) -> ImageBatch:
        """Waiting for images is given up at a request to stop, where no other rank would continue to the step."""
        with stops.abandonable() if self.trainer.world.size == 1 else nullcontext():
            return next(batches)

    def after_step(self, stops: Stops) -> None:
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
        draws = train.sample_every is not None and step % train.sample_every == 0 and not last
        if (step % train.save_every == 0 and not last) or draws or evaluates:  # first, as what follows takes long
            self.save()
        if draws and self.leader:
            self.draw(stops)
        if evaluates:
            self.evaluate(stops)

    def evaluates_now(self) -> bool:
        """Whether the network is to be evaluated after this step."""
        train, step = self.trainer.config.train, self.trainer.step
        return train.evaluate_every is not None and (step % train.evaluate_every == 0 or step == train.steps)

    def catch_up(self, stops: Stops) -> None:
        """The evaluation of the restored step, if the run ended in it."""
        missing = self.log is not None and self.log.evaluated < self.trainer.step
        if self.trainer.step and self.evaluates_now() and self.trainer.world.any(missing):
            self.evaluate(stops)

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
        self.loggers.figures(figures)

    def draw(self, stops: Stops) -> None:
        """A grid of samples, of the state that is saved; if it cannot be drawn or written, training continues."""
        step, started = self.trainer.step, time.perf_counter()
        try:
            with stops.abandonable():
                picture = sample_grid(self.trainer)
                folder = self.out / "samples"
                folder.mkdir(exist_ok=True)
                images.save(picture, folder / f"step-{step:08d}.png")
                self.loggers.picture(step, "samples", picture)
        except Stopped:
            pass  # the loop sees the request, as all ranks do
        except Exception as error:  # a full disk, a device without memory
            _log.warning("the samples of step %d cannot be drawn (%s): training continues", step, error)
        self.since += time.perf_counter() - started  # nothing was trained then

    def evaluate(self, stops: Stops) -> None:
        """Figures of the averaged network; the best so far is saved, and kept."""
        assert self.extras.evaluate is not None
        trainer = self.trainer
        trainer.check()
        trainer.world.wait()  # until rank 0 has saved: from here on each may leave
        started = time.perf_counter()
        with stops.abandonable():
            figures = dict(self.extras.evaluate(trainer))
        self.since += time.perf_counter() - started  # nothing was trained then
        if self.leader:
            self.write({"step": trainer.step, "evaluation": figures})
        distance = figures["frechet"]
        if math.isfinite(distance) and (trainer.best is None or distance < trainer.best["frechet"]):
            trainer.best = {"step": trainer.step, "frechet": distance}
            self.save()

    def measure(self, stops: Stops) -> None:
        """What the predictions of the trained average leave open; where it cannot be measured, the run goes without."""
        trainer = self.trainer
        if checkpoint.residuals_are_kept(self.out, trainer.step):
            return
        try:
            with stops.abandonable():
                checkpoint.save_residuals(self.out, measured_residuals(trainer), trainer.step)
                self.saved = None  # a checkpoint that was saved before does not account for them
        except Stopped:
            pass
        except Exception as error:  # a full disk, a device without memory
            _log.warning("what predictions leave open cannot be measured (%s): --resume tries again", error)

    def save(self) -> None:
        """Save the state, unless this one is saved."""
        trainer = self.trainer
        trainer.check()
        current = trainer.step, trainer.best
        if self.leader and current != self.saved:
            checkpoint.save_state(self.out, trainer.state(), trainer.config.train.keep)
            self.saved = current
        self.saved_step = trainer.step


def _evenly(steps: int, count: int) -> frozenset[int]:
    """`count` steps spread evenly up to the last; all of them where there are fewer."""
    return frozenset(round(steps * (i + 1) / count) for i in range(count)) - {0}


def _profiler(folder: Path, device: torch.device) -> torch.profiler.profile:
    """A profiler that leaves trace.json (for chrome://tracing or Perfetto) and table.txt."""
    waits, traced = PROFILED

    def write(profile: torch.profiler.profile) -> None:
        try:
            keep(profile)
        except (OSError, RuntimeError) as error:
            _log.warning("%s cannot be written (%s): training continues without", folder, error)

    def keep(profile: torch.profiler.profile) -> None:
        folder.mkdir(exist_ok=True)
        table = profile.key_averages().table(sort_by=f"self_{device.type}_time_total", row_limit=30)
        write_atomically(folder / "trace.json", lambda file: profile.export_chrome_trace(str(file)))
        write_atomically(folder / "table.txt", lambda file: file.write_text(table, encoding="utf-8"))

    schedule = torch.profiler.schedule(wait=waits - 2, warmup=2, active=traced, repeat=1)
    # on a CPU parts of a batch are computed in threads of their own
    everywhere = _ExperimentalConfig(profile_all_threads=device.type == "cpu")
    return torch.profiler.profile(schedule=schedule, on_trace_ready=write, experimental_config=everywhere)
