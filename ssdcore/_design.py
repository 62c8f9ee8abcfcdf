"""The commands `python -m ssdcore design` and `python -m ssdcore info`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ssdcore import _plot, oracle
from ssdcore._data import read_images
from ssdcore.process import LinearDiffusion
from ssdcore.schedules import NoiseSchedule, ResolutionSchedule


def add_parser(subparsers: Any) -> None:
    """Add `design` and `info` to an argparse subparsers object; each sets `run`, from arguments to the exit status."""
    design = subparsers.add_parser(
        "design",
        help="find the cheapest resolution schedule that stays near full size",
        description="Find the cheapest resolution schedule for Gaussian data with the images' spectrum: whose exact "
        "sampling error stays within a tolerance of the full-size chain, or, by information, whose changes of size "
        "lose no more than some nats. No network and no training are involved.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_common(design)
    design.add_argument(
        "--by",
        choices=("error", "information"),
        default="error",
        help="error: within --tolerance, at --eta, --order and --times; information: changes of size lose at most "
        "--nats in all, for multistep sampling, which is what few steps need",
    )
    design.add_argument("--tolerance", type=float, default=0.02, help="error allowed above full size, as a share")
    design.add_argument("--steps", type=int, default=100, help="sampling steps")
    design.add_argument("--eta", type=float, default=1.0, help="1 ancestral … 0 deterministic")
    design.add_argument("--order", type=int, choices=(1, 2), default=1, help="2: second-order multistep, with --eta 0")
    design.add_argument(
        "--times", choices=("best", "time", "log_snr"), default="best", help="placing of the sampling times"
    )
    design.add_argument("--noise-kind", choices=("matched", "paper"), default="matched", help="of the design")
    design.add_argument("--out", metavar="FILE", help="write the schedule as JSON, for ssdcore_torch.train --schedule")
    design.set_defaults(run=_reporting(_run_design))

    info = subparsers.add_parser(
        "info",
        help="how much of the data each noise level and each size keeps",
        description="The share of signal-dominated pixels Info(t) and of pixels kept Info(r), and the mutual "
        "information I(x_0; x_t) of a Gaussian model of the images on every level.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_common(info)
    info.add_argument("--schedule", metavar="FILE", help="show this designed schedule beside the paper's")
    info.set_defaults(run=_reporting(_run_info))


def _reporting(command: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], int]:
    """Exit status 2 and one line on stderr for bad input, 0 otherwise."""

    def run(arguments: argparse.Namespace) -> int:
        try:
            command(arguments)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0

    return run


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="FOLDER_OR_NPZ", help="images (without it: the embedded drawings)")
    parser.add_argument("--size", type=int, default=64, help="full size in pixels per side")
    parser.add_argument("--levels", type=int, default=4, help="resolution levels, each half the one before")
    parser.add_argument("--noise", choices=NoiseSchedule.names(), default="linear", help="noise schedule")
    parser.add_argument("--process-steps", type=int, default=1000, help="T, the steps of the process")
    parser.add_argument(
        "--nats",
        type=float,
        default=1.0,
        help="a level change that loses less than this per channel is called free; for design --by information: what "
        "all changes may lose",
    )
    _plot.add_option(parser)


def _setting(arguments: argparse.Namespace) -> tuple[np.ndarray, str, NoiseSchedule]:
    if arguments.size < 1 or arguments.levels < 1:
        raise ValueError(f"expected a positive size and levels, got {arguments.size} and {arguments.levels}")
    if not arguments.nats > 0:
        raise ValueError(f"--nats: expected a positive number, got {arguments.nats}")
    _plot.check(arguments.plot)
    target = getattr(arguments, "out", None)  # of `design` alone
    if target is not None and not Path(target).absolute().parent.is_dir():
        raise ValueError(f"--out: no such folder: {Path(target).absolute().parent}")
    noise = NoiseSchedule.named(arguments.noise, arguments.process_steps)
    images, source = read_images(arguments.data, arguments.size)
    return images, source, noise


def _run_design(arguments: argparse.Namespace) -> None:
    """Print the table, write the schedule and the figure."""
    informed = arguments.by == "information"
    if not 0 <= arguments.eta <= 1 or (arguments.order == 2 and arguments.eta != 0):
        raise ValueError(f"--eta: expected a number from 0 to 1, and 0 with --order 2; got {arguments.eta}")
    if not informed and arguments.steps < arguments.levels:
        raise ValueError(
            f"--steps {arguments.steps}: {arguments.levels} levels change size {arguments.levels - 1} times "
            f"and need at least {arguments.levels} steps"
        )
    images, source, noise = _setting(arguments)
    shape = (arguments.size, arguments.size)
    covariance = oracle.fit(images).covariance
    eta, order, placement = (0.0, 2, "log_snr") if informed else (arguments.eta, arguments.order, arguments.times)
    sampler: dict[str, Any] = {"eta": eta, "order": order}
    matched = arguments.noise_kind == "matched"
    if informed:
        found = oracle.design_by_information(
            shape, noise, covariance, arguments.levels, arguments.steps, arguments.nats, matched=matched
        )
        sampler["second_moments"] = True
    else:
        found = oracle.design_levels(
            shape,
            noise,
            covariance,
            arguments.levels,
            arguments.steps,
            arguments.tolerance,
            times=arguments.times,
            matched=matched,
            **sampler,
        )
    processes: dict[str, LinearDiffusion] = {"full size": LinearDiffusion.identity(shape, noise)}
    for label, gamma in (("ConvexDecay 0.5", 0.5), ("equal", None), ("ConvexDecay 2", 2.0)):
        for kind in (False, True):
            levels = (
                ResolutionSchedule.equal(noise.steps, arguments.levels)
                if gamma is None
                else ResolutionSchedule.convex(noise.steps, arguments.levels, gamma)
            )
            name = f"{label}, {'matched' if kind else 'paper'} noise"
            processes[name] = LinearDiffusion.resize(shape, noise, levels, matched=kind)
    designed = f"designed, {arguments.noise_kind} noise"
    processes[designed] = found.process
    points: dict[str, tuple[float, float]] = {}
    print(f"data: {source}; {arguments.size}×{arguments.size}, one channel's cosine spectrum")
    print(
        f"sampler: {arguments.steps} steps at {placement} times, eta {eta:g}, order {order}; "
        f"errors are exact squared Fréchet distances summed over pixels; {found.evaluations} schedules measured\n"
    )
    print(f"{'schedule':<32}{'level starts':<20}{'cost':>8}{'error':>12}{'× full':>9}{'floor':>12}")
    for name, proc in processes.items():
        if name == "full size":
            error = found.full_error
        elif name == designed:
            error = found.error
        else:
            error = oracle.sampler_error(proc, covariance, found.times, **sampler)
        cost = sum(float(np.prod(proc.shape(t))) for t in found.times) / found.full_cost
        points[name] = (cost, error / found.full_error)
        starts = " ".join(str(t) for t in proc.size_changes) or "-"
        floor = found.floor if name == designed else oracle.sampler_error(proc, covariance, None, **sampler)
        print(f"{name:<32}{starts:<20}{cost:>8.3f}{error:>12.5g}{points[name][1]:>9.4g}{floor:>12.5g}")
    print("floor: the error at every time of the process; what a change of size adds to it no number of steps removes")
    print(f"\nsampling times: {' '.join(map(str, found.times))}")
    sizes = processes["equal, matched noise"].shapes  # those that the design skips among them
    information = found.information
    if information is None:
        information = oracle.level_information(shape, noise, covariance, arguments.levels, matched)
    changes = found.levels.starts
    lost = [high[t - 1] - low[t - 1] for high, low, t in zip(information, information[1:], changes)]
    if lost:
        each = ", ".join(f"{nats:.3g} at t = {t}" for nats, t in zip(lost, changes))
        print(f"its changes of size lose {sum(lost):.3g} nats per channel: {each}")
    if arguments.out:
        schedule = oracle.Schedule(
            sizes,
            changes,
            arguments.noise,
            noise.steps,
            matched,
            "bilinear",
            found.times,
            eta,
            order,
            found.error,
            found.full_error,
        )
        schedule.save(arguments.out)
        print(f"wrote {arguments.out}")
    if arguments.plot:
        from ssdcore import plotting

        shown = {name: processes[name] for name in ("ConvexDecay 0.5, paper noise", designed)}
        figure = plotting.design(shown, points, information, [size[0] for size in sizes], arguments.nats)
        _plot.write(figure, arguments.plot)


def _run_info(arguments: argparse.Namespace) -> None:
    """Print the information of every level over time, write the figure."""
    images, source, noise = _setting(arguments)
    shape = (arguments.size, arguments.size)
    signal = oracle.signal_share(images, noise)
    covariance = oracle.fit(images).covariance
    convex = LinearDiffusion.resize(shape, noise, ResolutionSchedule.convex(noise.steps, arguments.levels, 0.5))
    mutual = oracle.level_information(shape, noise, covariance, arguments.levels)
    sizes = [size[0] for size in convex.shapes]
    share = oracle.pixel_share(convex)
    shares = {"ConvexDecay 0.5 (paper)": share}
    if arguments.schedule:
        designed = oracle.Schedule.load(arguments.schedule, shape).process()
        if designed.steps != noise.steps:
            raise ValueError(
                f"--schedule {arguments.schedule} is for {designed.steps} steps, this process has {noise.steps}; "
                "give --process-steps that fits"
            )
        shares["designed"] = oracle.pixel_share(designed)
    free = oracle.free_starts(mutual, arguments.nats)
    starts = [start for start in free if start is not None]
    if len(starts) == len(free):
        bound = ResolutionSchedule.thresholds(np.maximum.accumulate(starts).tolist())
        name = f"bound, a change loses < {arguments.nats:g} nats"
        shares[name] = oracle.pixel_share(LinearDiffusion.resize(shape, noise, bound))
    print(f"data: {source}; {arguments.size}×{arguments.size}; mutual information of one channel, matched noise\n")
    print(f"{'t':>6}{'Info(t)':>10}{'Info(r)':>10}" + "".join(f"{f'I at {n} px':>14}" for n in sizes) + "   (nats)")
    for t in np.unique(np.round(np.linspace(1, noise.steps, 21)).astype(int)):
        row = "".join(f"{value:>14.5g}" for value in mutual[:, t - 1])
        print(f"{t:>6}{signal[t - 1]:>10.4f}{share[t - 1]:>10.4f}{row}")
    print("\nInfo(r) is that of ConvexDecay 0.5, the paper's choice.")
    for size, start in zip(sizes[1:], free):
        when = f"from t = {start}" if start is not None else "at no time"
        print(f"changing to {size} pixels loses at most {arguments.nats:g} nats per channel {when}")
    if arguments.plot:
        from ssdcore import plotting

        _plot.write(plotting.information(signal, shares, mutual, sizes), arguments.plot)
