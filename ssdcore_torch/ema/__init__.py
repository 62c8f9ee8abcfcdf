"""Averages of the weights over training, and, from snapshots of some, one of any width afterwards.

An average after t steps is θ̂(t) = ∫₀ᵗ p(τ) θ(τ) dτ, θ(τ) the weights after step ⌈τ⌉ and p a profile of integral one.

Exponential, of a rate r: θ̂ ← r' θ̂ + (1 − r') θ with r' = min(r, (1 + step)/(10 + step)), which forgets the first,
random weights sooner.

Power function (Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models"), of an exponent
γ: θ̂ ← β θ̂ + (1 − β) θ with β = (1 − 1/t)^(γ+1). Step τ thus weighs (τ^(γ+1) − (τ−1)^(γ+1)) / t^(γ+1), which is the
integral over (τ − 1, τ) of

::

    p_{γ,t}(τ) = (γ + 1) τ^γ / t^(γ+1)   on (0, t)

exactly; there is no error of discretisation. Its width is the standard deviation of p over t,

::

    σ_rel = √(γ + 1) / ((γ + 2) √(γ + 3)),   1/√12 at γ = 0 and falling with γ,

so that γ is the largest root of γ³ + 7γ² + (16 − σ_rel⁻²)γ + 12 − σ_rel⁻² = 0. Unlike an exponential average's, this
profile keeps its shape as training continues.

Post hoc: snapshots i, of exponents γᵢ after tᵢ steps, are mixed with weights x to resemble the profile p* that is asked
for, at a step T that has snapshots::

    minimise ‖p* − Σ xᵢ pᵢ‖² in L²(0, T)   subject to Σ xᵢ = 1,   with, for tᵢ <= tⱼ,
    ⟨pᵢ, pⱼ⟩ = ∫₀^tᵢ pᵢ pⱼ = (γᵢ + 1)(γⱼ + 1) / (γᵢ + γⱼ + 1) · (tᵢ/tⱼ)^γⱼ / tⱼ.

The constraint, which the paper has not, keeps a weight that did not change as it was, however few the snapshots: every
profile integrates to one. It also bounds the error, by the Cauchy–Schwarz inequality: for any constant c,
|error| <= ‖p* − Σ xᵢ pᵢ‖ · ‖θ − c‖. With widths 0.05 and 0.1 and 64 even snapshots the first factor is 2e-4 of ‖p*‖
for width 0.075 and 3e-3 for 0.03.

Snapshots are float32, not the paper's float16: weights xᵢ of both signs, Σ|xᵢ| up to 13 in that example, multiply
float16's rounding to 3e-3 of a weight, which is as much as the mixture's own error or far more.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ssdcore_torch.checkpoint import Tensors, load_tensors, save_tensors
from ssdcore_torch.config import NARROWEST

WIDEST = 12**-0.5
_SNAPSHOT = re.compile(r"power-.+-\d{8,18}\.safetensors")


def exponent(width: float) -> float:
    """γ of the relative width σ_rel. Raises ValueError unless 0.001 <= width <= 1/√12."""
    if not NARROWEST <= width <= WIDEST:
        raise ValueError(
            f"expected a relative width from {NARROWEST} (narrower is the last weights alone) to {WIDEST:.4f} (a plain "
            f"mean), got {width}"
        )
    inverse = width**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-6 * abs(root)))


class Averages:
    """Averages of a network's parameters, by name: "ema-RATE" for each rate, then "power-WIDTH" for each width.

    Buffers that a network saves (the statistics of a batch norm) are not averaged: each average has the newest.

    The first is the one that samples are drawn with: `network`, in evaluation mode.
    """

    def __init__(self, net: nn.Module, rates: Sequence[float], widths: Sequence[float] = ()) -> None:
        """All start as `net`. Raises ValueError for no average, the same one twice, or a value that cannot be one."""
        self._rates = {f"ema-{rate}": rate for rate in rates}
        self._exponents = {f"power-{width}": exponent(width) for width in widths}
        self.widths = tuple(widths)
        names = [*self._rates, *self._exponents]
        if not names or len(names) != len(rates) + len(widths):
            raise ValueError(f"expected one average or more, all different, got rates {rates} and widths {widths}")
        if not all(0 <= rate < 1 for rate in rates):
            raise ValueError(f"expected rates in [0, 1), got {rates}")
        self.network = copy.deepcopy(net).eval().requires_grad_(False)
        first = dict(self.network.named_parameters())
        saved = self.network.state_dict()
        self._buffers = {name: saved[name] for name in saved if name not in first}
        self._averages = {names[0]: first} | {
            name: {key: parameter.clone() for key, parameter in first.items()} for name in names[1:]
        }

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Follow `net` after optimizer step number `step`, counted from 0; each average is one call on all tensors."""
        self.follow(net, self.shares(step))

    def shares(self, step: int) -> list[float]:
        """How much of the weights after this step each average takes."""
        return [self._share(name, step) for name in self._averages]

    @torch.no_grad()
    def follow(self, net: nn.Module, shares: Sequence[float | Tensor]) -> None:
        """`update` by these shares, numbers or tensors of one on the weights' device."""
        parameters = [parameter.detach() for parameter in net.parameters()]
        for average, share in zip(self._averages.values(), shares):
            if isinstance(share, Tensor):
                torch._foreach_lerp_(list(average.values()), parameters, [share] * len(parameters))
            else:
                torch._foreach_lerp_(list(average.values()), parameters, share)
        if self._buffers:
            newest = net.state_dict()
            for name, buffer in self._buffers.items():
                buffer.copy_(newest[name])

    def _share(self, name: str, step: int) -> float:
        """How much of the new weights an average takes: 1 − r' or 1 − β."""
        if name in self._rates:
            return 1 - min(self._rates[name], (1 + step) / (10 + step))
        return 1 - (step / (step + 1)) ** (self._exponents[name] + 1)

    def state(self) -> dict[str, Tensors]:
        """Each average by parameter name, and the buffers: the tensors themselves, which the next update changes."""
        return {
            name: {key: x.detach() for key, x in average.items()} | self._buffers
            for name, average in self._averages.items()
        }

    @torch.no_grad()
    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on from `state()`. Raises ValueError for other averages, or other parameters."""
        if list(state) != list(self._averages):
            raise ValueError(f"expected the averages {', '.join(self._averages)}, got {', '.join(state)}")
        for name, average in self._averages.items():
            if state[name].keys() != average.keys() | self._buffers.keys():
                raise ValueError(f"{name}: its parameters are not those of the network")
            for key, kept in (average | self._buffers).items():
                kept.copy_(state[name][key])


# ---- afterwards


def save_snapshot(run: Path, step: int, averages: Averages) -> None:
    """Keep the averages of every width as they are after `step` steps, each an atomic file in run/snapshots/."""
    folder = run / "snapshots"
    folder.mkdir(exist_ok=True)
    state = averages.state()
    for width in averages.widths:
        name = f"power-{width}"
        path = folder / f"{name}-{step:08d}.safetensors"
        save_tensors(path, state[name], {"step": str(step), "width": str(width)})


@dataclass(frozen=True)
class Snapshot:
    path: Path
    width: float
    step: int


def snapshots(run: Path) -> list[Snapshot]:
    """Those of a run, by step and width. Raises ValueError naming a file that is none."""
    found = [path for path in sorted((run / "snapshots").glob("*")) if _SNAPSHOT.fullmatch(path.name)]
    return sorted((_open(path) for path in found), key=lambda snapshot: (snapshot.step, snapshot.width))


def _open(path: Path) -> Snapshot:
    _, metadata = load_tensors(path)
    try:
        step, width = int(metadata["step"]), float(metadata["width"])
        exponent(width)
        if step < 1:
            raise ValueError(f"expected a step of at least 1, got {step}")
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a snapshot of an average: its header says {metadata or 'nothing'}") from error
    return Snapshot(path, width, step)


def mixture(kept: Sequence[tuple[float, int]], width: float, step: int) -> tuple[np.ndarray, float]:
    """(weights of the snapshots, each of a (width, step), that make the average of `width` after `step` steps;
    ‖p* − Σ xᵢ pᵢ‖ / ‖p*‖, how far its profile is from the one asked for)."""
    gamma = np.array([exponent(w) for w, _ in [*kept, (width, step)]])
    time = np.array([t / step for _, t in [*kept, (width, step)]])
    gram = _inner(gamma[:, None], time[:, None], gamma, time)
    # The conditions of stationarity, for profiles scaled to norm 1; the last row is the constraint.
    scale = np.sqrt(np.diag(gram)[:-1])
    bordered = np.zeros((len(kept) + 1, len(kept) + 1))
    bordered[:-1, :-1] = gram[:-1, :-1] / np.outer(scale, scale)
    bordered[:-1, -1] = bordered[-1, :-1] = 1 / scale
    # Least squares, since snapshots close in time are all but linearly dependent.
    scaled = np.linalg.lstsq(bordered, np.append(gram[:-1, -1] / scale, 1.0), rcond=None)[0]
    weights = scaled[:-1] / scale
    residual = np.append(weights, -1.0)
    return weights, float(np.sqrt(max(residual @ gram @ residual, 0.0) / gram[-1, -1]))


def _inner(gamma_a: np.ndarray, time_a: np.ndarray, gamma_b: np.ndarray, time_b: np.ndarray) -> np.ndarray:
    """⟨p_a, p_b⟩ in L², of profiles of these exponents over these times."""
    ratio = np.minimum(time_a, time_b) / np.maximum(time_a, time_b)
    later = np.where(time_a <= time_b, gamma_b, gamma_a)
    rising = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return rising * ratio**later / np.maximum(time_a, time_b)


def reconstruct(run: str | Path, width: float, at_step: int | None = None) -> Tensors:
    """The average of a relative width that was not tracked, mixed from the run's snapshots, by parameter name.

    Args:
        width: σ_rel, from 0.001 to 1/√12
        at_step: after which step; one that has snapshots; default: the last

    Raises:
        FileNotFoundError: For a run without snapshots.
        ValueError: For a step without, or files that do not fit.
    """
    return mixed_average(Path(run), width, at_step)[0]


def mixed_average(run: Path, width: float, at_step: int | None) -> tuple[Tensors, int, int, float]:
    """(the average, its step, number of snapshots, distance of its profile)."""
    kept = snapshots(run)
    if not kept:
        raise FileNotFoundError(f"{run / 'snapshots'} holds no snapshots: train with --set train.ema_widths=[0.05,0.1]")
    steps = sorted({snapshot.step for snapshot in kept})
    step = steps[-1] if at_step is None else at_step
    if step not in steps:
        near = ", ".join(map(str, sorted(steps, key=lambda s: abs(s - step))[:4]))
        raise ValueError(f"step {step} has no snapshots; the nearest that have: {near}")
    kept = [snapshot for snapshot in kept if snapshot.step <= step]
    weights, distance = mixture([(snapshot.width, snapshot.step) for snapshot in kept], width, step)
    total: Tensors = {}
    kinds: dict[str, torch.dtype] = {}
    for snapshot, weight in zip(kept, weights):
        tensors, _ = load_tensors(snapshot.path)
        if total and {k: x.shape for k, x in tensors.items()} != {k: x.shape for k, x in total.items()}:
            raise ValueError(f"{snapshot.path} is of another network than {kept[0].path.name}")
        for name, tensor in tensors.items():  # in float64: the weights have both signs
            term = tensor.double() * float(weight)
            kinds[name] = tensor.dtype
            total[name] = total[name] + term if name in total else term
    return (
        {name: x.float() if kinds[name].is_floating_point else x.to(kinds[name]) for name, x in total.items()},
        step,
        len(kept),
        distance,
    )
