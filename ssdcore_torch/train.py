"""python -m ssdcore_torch.train: train a Flexi-UNet, draw samples, leave a run folder."""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

import ssdcore as ssd
from ssdcore_torch import checkpoint, cli, images
from ssdcore_torch.config import PRESETS, Config, differences, preset
from ssdcore_torch.data import EMBEDDED, ImageSet, Order, load_images
from ssdcore_torch.diffusion import Objective
from ssdcore_torch.sampling import fit_moments, generate, level_sizes_of, to_float
from ssdcore_torch.unet import FlexiUNet

SAMPLES = 64
SAMPLE_STEPS = 100


class Trainer:
    """Network, moving average, optimizer and data of a run, and the step that advances them.

    A step is a function of (state, config, step number): every random number is drawn from a generator keyed by
    (seed, step), so that a run which is saved, stopped and restored goes on as if it had not been stopped.
    """

    def __init__(self, config: Config, data: ImageSet, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.config, self.device = config, device
        self.process = config.build_process()
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.net, self.ema = (FlexiUNet(config.network).to(device) for _ in range(2))
        for net in (self.net, self.ema):
            net.to(memory_format=layout)  # type: ignore[call-overload]
        self.ema.eval().requires_grad_(False)
        self.ema.load_state_dict(self.net.state_dict())
        train = config.train
        self.objective = Objective(self.process, train.snr_clamp, train.pixel_share, train.change_share)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay, fused=True
        )
        self.images = torch.from_numpy(data.images).permute(0, 3, 1, 2).contiguous().to(device)
        self.order = Order(len(data), train.batch_size, config.seed)
        self.sizes = level_sizes_of(self.net, self.process)
        self.step = 0

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then constant or a cosine to zero."""
        train = self.config.train
        rate = train.learning_rate * min(1.0, (step + 1) / max(train.warmup, 1))
        if train.cosine_decay:
            rate *= 0.5 * (1 + math.cos(math.pi * step / train.steps))
        return rate

    def train_step(self, indices: np.ndarray) -> Tensor:
        """One optimizer step on these images; the loss, left on the device."""
        config, step = self.config, self.step
        # Keys the noise and any dropout of this step.
        torch.manual_seed(int(np.random.SeedSequence((config.seed, step)).generate_state(1, np.uint64)[0] >> 1))
        batch = self.objective.draw(len(indices), config.seed, step)
        x0 = to_float(self.images[torch.from_numpy(indices).to(self.device, non_blocking=True)])
        noise = torch.randn(len(x0), x0.shape[1], *batch.path.size, device=self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.objective(self.net, x0, batch, noise, self.sizes.index(batch.path.out_size))
        loss.backward()
        self.optimizer.step()
        decay = min(config.train.ema[0], (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.net.parameters()), 1 - decay)
        self.step += 1
        return loss.detach()

    def state(self) -> checkpoint.State:
        named = dict(self.net.named_parameters())
        moments = {name: self.optimizer.state.get(p, {}) for name, p in named.items()}
        # A parameter that no path has used yet has no moments: zeros after zero updates is the same.
        return checkpoint.State(
            step=self.step,
            images=len(self.images),
            model=self.net.state_dict(),
            averages={"ema": self.ema.state_dict()},
            first_moments={n: m.get("exp_avg", torch.zeros_like(named[n])) for n, m in moments.items()},
            second_moments={n: m.get("exp_avg_sq", torch.zeros_like(named[n])) for n, m in moments.items()},
            updates={n: m.get("step", torch.tensor(0.0)) for n, m in moments.items()},
        )

    def restore(self, state: checkpoint.State) -> None:
        """Go on from a saved state. Raises ValueError if it was trained on another number of images."""
        if state.images != len(self.images):
            raise ValueError(
                f"this run was trained on {state.images} images, and its data now has {len(self.images)}: "
                "put the same images back, or start another run"
            )
        self.net.load_state_dict(state.model)
        self.ema.load_state_dict(state.averages["ema"])
        packed = self.optimizer.state_dict()
        packed["state"] = {
            i: {
                "step": state.updates[name],
                "exp_avg": state.first_moments[name],
                "exp_avg_sq": state.second_moments[name],
            }
            for i, (name, _) in enumerate(self.net.named_parameters())
        }
        self.optimizer.load_state_dict(packed)
        self.step = state.step


class Log:
    """log.jsonl: one JSON line an interval."""

    def __init__(self, path: Path, step: int) -> None:
        """Go on with a log; lines past `step` belong to work that was not saved and is done again."""
        kept: list[str] = []
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
        checkpoint.write_atomically(path, lambda file: file.write_text("".join(f"{line}\n" for line in kept)))
        self.path = path

    def write(self, values: dict[str, float | int]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut short by a crash


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that Ctrl-C and SIGTERM put their number into, once; a second one acts as usual."""
    received: list[int] = []
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for other, handler in previous.items():
            signal.signal(other, handler)

    for number in previous:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train(trainer: Trainer, out: Path) -> bool:
    """Train to the configured number of steps, logging and saving on the way; False if asked to stop before."""
    config = trainer.config
    total, log = config.train.steps, Log(out / "log.jsonl", trainer.step)
    batches = trainer.order.batches(trainer.step)
    losses = torch.zeros((), device=trainer.device)
    mark, since = trainer.step, time.perf_counter()
    interval = 0.5 if sys.stderr.isatty() else 10.0
    bar = tqdm(total=total, initial=trainer.step, unit="step", mininterval=interval, dynamic_ncols=True)
    with stop_requests() as stops, bar:
        while trainer.step < total and not stops:
            losses += trainer.train_step(next(batches))
            bar.update()
            if trainer.step % config.train.log_every == 0 or trainer.step == total:
                loss, now = _finite(losses, mark, trainer.step) / (trainer.step - mark), time.perf_counter()
                speed = (trainer.step - mark) * config.train.batch_size / (now - since)
                rate = trainer.learning_rate(trainer.step - 1)
                log.write(
                    {"step": trainer.step, "loss": loss, "learning_rate": rate, "images_per_second": round(speed, 1)}
                )
                bar.set_postfix({"loss": f"{loss:.4g}", "images/s": f"{speed:.0f}"}, refresh=False)
                losses.zero_()
                mark, since = trainer.step, now
            if trainer.step % config.train.save_every == 0 and trainer.step < total:
                _finite(losses, mark, trainer.step)
                checkpoint.save_state(out, trainer.state(), config.train.keep)
    _finite(losses, mark, trainer.step)
    checkpoint.save_state(out, trainer.state(), config.train.keep)
    return trainer.step >= total


def _finite(losses: Tensor, first: int, last: int) -> float:
    """The sum of the losses since the last line of the log; called before every save, so that no save holds NaNs."""
    total = losses.item()
    if not math.isfinite(total):
        raise cli.UserError(
            f"the loss became {total} between steps {first} and {last}: not saved, so the run's last checkpoint is "
            "sound; start another run with a larger --batch-size, or a preset with a lower learning rate"
        )
    return total


def draw_pictures(run: checkpoint.Run) -> None:
    """samples.png and denoising.png, from the averaged weights."""
    chain: list[tuple[int, Tensor, Tensor]] = []
    steps = min(SAMPLE_STEPS, run.process.steps)
    drawn = generate(
        run.ema,
        run.process,
        SAMPLES,
        steps=steps,
        seed=run.config.seed,
        prior=run.prior,
        batch_size=SAMPLES,
        on_step=lambda t, x_t, prediction: chain.append((t, x_t, prediction)),
    )
    images.save(images.grid(drawn), run.path / "samples.png")
    images.save(images.denoising_strip(chain), run.path / "denoising.png")


def parser() -> argparse.ArgumentParser:
    options = cli.Parser(
        "ssdcore_torch.train",
        "Train a scale space diffusion model and draw samples from it. Without options: a small model on the drawings "
        "that come with the package, in minutes on a CPU; a 64-pixel one on a GPU.",
    )
    add = options.add_argument
    add("--preset", help=f"one of {', '.join(PRESETS)} (default: gpu64 with a CUDA device, else cpu)")
    add("--data", metavar="FOLDER_OR_NPZ", help="images: a folder, an .npz or an .npy file (default: the preset's)")
    add("--size", type=cli.whole_number(1), metavar="PX", help="height and width of the images")
    add("--levels", type=cli.whole_number(1), metavar="N", help="resolution levels, each half the size of the last")
    add("--schedule", type=Path, metavar="FILE", help="resolution schedule that `python -m ssdcore design --out` wrote")
    add("--steps", type=cli.whole_number(1), metavar="N", help="optimizer steps")
    add("--batch-size", type=cli.whole_number(1), metavar="N", help="images a step")
    add("--seed", type=cli.whole_number(0), metavar="N", help="of weights, order, times and noise (default: 0)")
    add("--out", type=Path, metavar="RUN", help="run folder to make (default: the first free of runs/PRESET, …-2, …)")
    add("--resume", action="store_true", help="go on with the run in --out; of the options only --steps may change")
    add("--device", help="cpu, cuda, cuda:1, … (default: a CUDA device if there is one)")
    return options


def _config(args: argparse.Namespace, device: torch.device, saved: Config | None) -> Config:
    """The configuration asked for: the saved run's or the preset's, with the options laid over it."""
    data = None if args.data is None else str(Path(args.data).resolve())
    if args.preset is not None or saved is None:
        name = args.preset or ("gpu64" if device.type == "cuda" else "cpu")
        config = preset(name, data or (saved.data.path if saved and saved.data.path != EMBEDDED else None))
    else:
        config = saved if data is None else replace(saved, data=replace(saved.data, path=data))
    size, levels, schedule = args.size, args.levels, None
    if args.schedule is not None:
        schedule = ssd.oracle.Schedule.load(args.schedule, (size or config.size,) * 2)
        levels = levels or len(schedule.sizes)
    if size is not None or levels is not None:
        config = config.resized(size, levels)
    if schedule is not None:
        try:
            config = config.scheduled(schedule)
        except ValueError as error:
            raise ValueError(f"--schedule {args.schedule}: {error}") from error
    if args.seed is not None:
        config = replace(config, seed=args.seed)
    changes = {"steps": args.steps, "batch_size": args.batch_size}
    return replace(config, train=replace(config.train, **{k: v for k, v in changes.items() if v is not None}))


def _run_folder(args: argparse.Namespace, config: Config, saved: Config | None) -> Path:
    """The folder to write to. Raises ValueError if it holds another run, or anything else."""
    if args.out is None:
        folder, count = Path("runs") / config.preset, 1
        while folder.exists():
            count += 1
            folder = Path("runs") / f"{config.preset}-{count}"
        return folder
    out: Path = args.out
    if saved is not None:
        same_steps = replace(config, train=replace(config.train, steps=saved.train.steps))
        if changed := differences(same_steps, saved):
            raise ValueError(f"--resume: {out} was made otherwise ({'; '.join(changed)}): leave these options out")
    elif (out / "config.json").exists():
        changed = differences(config, checkpoint.read_config(out))
        advice = f"of another configuration ({'; '.join(changed)})" if changed else "(add --resume to go on with it)"
        raise ValueError(f"--out {out} already holds a run {advice}: choose another folder")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out} {'is not empty' if out.is_dir() else 'is a file'}: choose a new folder")
    return out


def prepare(args: argparse.Namespace) -> tuple[Trainer, Path]:
    """Check everything, read the data, build or restore the trainer; only then make the run folder."""
    device = cli.open_device(args.device)
    if args.resume and args.out is None:
        raise cli.UserError("--resume needs --out RUN, the folder of the run to go on with")
    try:
        saved = checkpoint.read_config(args.out) if args.resume else None
        config = _config(args, device, saved)
        out = _run_folder(args, config, saved)
        data = load_images(config.data.path, config.size, config.data.classes)
        trainer = Trainer(config, data, device)
        if saved is not None and checkpoint.was_saved(out):  # else it was stopped before its first save
            trainer.restore(checkpoint.load_state(out, trainer.net.state_dict()))
        if trainer.step > config.train.steps:
            raise ValueError(f"--steps {config.train.steps}: this run has done {trainer.step}; take at least as many")
        moments = fit_moments(trainer.images, trainer.process)
        out.mkdir(parents=True, exist_ok=True)
        checkpoint.save_config(out, config)
        if moments is not None:
            checkpoint.save_prior(out, moments)
    except (ValueError, OSError) as error:
        raise cli.UserError(str(error)) from error
    if data.skipped:
        name, reason = data.skipped[0]
        more = f" and {len(data.skipped) - 1} more" if len(data.skipped) > 1 else ""
        count = len(data) + len(data.skipped)
        print(f"skipped {len(data.skipped)} of {count} files: {name} ({reason}){more}", file=sys.stderr)
    return trainer, out


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    args = parser().parse_args(argv)
    trainer, out = prepare(args)
    config = trainer.config
    sizes = " → ".join(str(size[0]) for size in reversed(config.network.level_sizes))
    parameters = sum(p.numel() for p in trainer.net.parameters())
    print(
        f"{config.preset}: {len(trainer.images)} images, sizes {sizes}, {parameters / 1e6:.2f} M parameters, "
        f"{config.train.steps} steps of {config.train.batch_size} on {trainer.device}; writing to {out}"
    )
    started, first = time.perf_counter(), trainer.step
    try:
        finished = train(trainer, out)
    except (OSError, SafetensorError) as error:
        raise cli.UserError(f"{out} cannot be written ({error}): its last checkpoint is intact, to --resume") from error
    if not finished:
        again = f"python -m ssdcore_torch.train --out {out} --resume"
        print(f"stopped after step {trainer.step} and saved; to go on:\n  {again}")
        return cli.INTERRUPTED
    trained = time.perf_counter()
    draw_pictures(checkpoint.load_run(out, trainer.device))
    drawn = time.perf_counter()
    print(
        f"{trainer.step - first} steps in {trained - started:.0f} s, {SAMPLES} samples in {drawn - trained:.0f} s\n"
        f"  {out / 'samples.png'}    samples\n"
        f"  {out / 'denoising.png'}  from noise to image: x_t above, prediction below\n"
        f"  {out / 'log.jsonl'}      the loss\n"
        f"next: python -m ssdcore_torch.sample {out} --n 64 --steps 100 --seed 1 --out grid.png"
    )
    return 0


if __name__ == "__main__":
    cli.run(main)
