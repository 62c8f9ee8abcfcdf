"""Speed of the core as ratios to what it replaces, measured in one run: python benchmarks/core.py

1. Drawing from the posterior at a size change: exact spectral root against 40 Lanczos steps a sample with transposes
   by automatic differentiation, which is how the paper's released code works (written afresh here).
2. Resize forward against torch.nn.functional.interpolate(antialias=True).
3. Time to import ssdcore, numpy included.

Batch 16, 3 channels, float32; --device cuda for the first two on a GPU. With OMP_NUM_THREADS=1 the first two are in
processor time: on a shared machine wall time counts what other processes take, and takes it from long calls first.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import interpolate

import ssdcore as ssd

BATCH, CHANNELS, LANCZOS_STEPS = 16, 3, 40


def seconds(function: Callable[[], object], device: str, repeats: int, warm_up: int = 2) -> float:
    """Median time of a call after calls that warm up: of the processor where one thread works, else by the wall."""
    now = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    times: list[float] = []
    held: list[object] = []
    for i in range(repeats + warm_up):
        if device == "cuda":
            torch.cuda.synchronize()
        start = now()
        held[:] = [function()]  # until the next is there, as in a sampler: else the system takes back its memory
        if device == "cuda":
            torch.cuda.synchronize()
        if i >= warm_up:
            times.append(now() - start)
    return statistics.median(times)


def alternated(ours: Callable[[], object], peer: Callable[[], object], device: str) -> tuple[float, float, list[float]]:
    """Median times of both, and the ratio in each of five rounds: what else a machine does then meets both."""
    fast, slow, ratios = [], [], []
    for _ in range(5):
        slow.append(seconds(peer, device, 1, warm_up=0))
        fast.append(seconds(ours, device, 5, warm_up=1))
        ratios.append(slow[-1] / fast[-1])
    return statistics.median(fast), statistics.median(slow), sorted(ratios)


def transpose(low: torch.Tensor, size: int) -> torch.Tensor:
    """Mᵀ low, as the vector-Jacobian product of a bilinear resize at zero."""
    with torch.enable_grad():
        origin = torch.zeros(*low.shape[:-2], size, size, dtype=low.dtype, device=low.device, requires_grad=True)
        image = interpolate(origin, size=low.shape[-2:], mode="bilinear", antialias=True)
        return torch.autograd.grad(image, origin, low)[0]


def lanczos_root(small: int, rho: float, noise: torch.Tensor) -> torch.Tensor:
    """(I − ρ MᵀM)^(1/2) noise for each sample of a batch by its own Lanczos iteration, M a bilinear resize."""

    def gram(v: torch.Tensor) -> torch.Tensor:
        low = interpolate(v[None], size=(small, small), mode="bilinear", antialias=True)
        return transpose(low, v.shape[-1])[0]

    out = []
    for sample in noise:
        norm = sample.norm()
        basis, diagonal, off = [sample / norm], [], []
        for _ in range(LANCZOS_STEPS):
            w = basis[-1] - rho * gram(basis[-1])
            diagonal.append((w * basis[-1]).sum())
            w = w - diagonal[-1] * basis[-1] - (off[-1] * basis[-2] if off else 0)
            off.append(w.norm())
            basis.append(w / off[-1])
        tridiagonal = torch.diag(torch.stack(diagonal))
        side = torch.stack(off[:-1])
        tridiagonal += torch.diag(side, 1) + torch.diag(side, -1)
        values, vectors = torch.linalg.eigh(tridiagonal)
        weights = vectors @ (values.clamp(min=0).sqrt() * vectors[0])
        out.append(norm * torch.einsum("k,kchw->chw", weights, torch.stack(basis[:-1])))
    return torch.stack(out)


def reference(proc, x_t: torch.Tensor, clean: torch.Tensor, noise: torch.Tensor, size: int) -> torch.Tensor:
    """The draw by dense linear algebra in float64, from torch's resize of the identity: none of ssdcore's operators."""
    eye = torch.eye(size, dtype=torch.float64)
    rows = interpolate(eye[:, None, :, None].expand(-1, 1, -1, 2), size=(size // 2, 2), mode="bilinear", antialias=True)
    a = rows[:, 0, :, 0].T.numpy()
    values, vectors = np.linalg.eigh(a.T @ a)
    x_t, clean, noise = (v.double().cpu().numpy() for v in (x_t, clean, noise))
    alpha_s, alpha_t, sigma_s, sigma_t = proc.alpha(499), proc.alpha(500), proc.sigma(499), proc.sigma(500)
    rho, ratio = (sigma_s / sigma_t) ** 2, alpha_t / alpha_s
    centre = alpha_s * clean
    mean = centre + rho * ratio * (a.T @ (x_t - ratio * (a @ centre @ a.T)) @ a)
    kept = 1 - rho * ratio**2 * np.maximum(values, 0)[:, None] * np.maximum(values, 0)
    root = vectors @ (np.sqrt(np.maximum(kept, 0)) * (vectors.T @ noise @ vectors)) @ vectors.T
    return torch.from_numpy(mean + sigma_s * root)


def posterior_rows(device: str) -> list[tuple[str, str, str, str]]:
    rows = []
    for size in (64, 256):
        noise_levels = ssd.NoiseSchedule.linear(1000)
        levels = ssd.ResolutionSchedule.thresholds([500])
        proc = ssd.LinearDiffusion.resize((size, size), noise_levels, levels, matched=False)
        s, t = 499, 500
        generator = torch.Generator().manual_seed(0)
        x_t = torch.randn(BATCH, CHANNELS, size // 2, size // 2, generator=generator).to(device)
        clean = torch.rand(BATCH, CHANNELS, size, size, generator=generator).to(device) * 2 - 1
        noise = torch.randn(clean.shape, generator=generator).to(device)
        sigma_s = proc.sigma(s)
        rho = (sigma_s / proc.sigma(t) * proc.alpha(t) / proc.alpha(s)) ** 2

        def ours(proc=proc, x_t=x_t, clean=clean, noise=noise):
            return proc.posterior(x_t, clean, 499, 500).sample(noise)

        def peer(proc=proc, x_t=x_t, clean=clean, noise=noise, size=size, rho=rho, sigma_s=sigma_s):
            ratio = proc.alpha(500) / proc.alpha(499)
            centre = proc.alpha(499) * clean
            low = interpolate(centre, size=(size // 2, size // 2), mode="bilinear", antialias=True)
            mean = centre + rho / ratio * transpose(x_t - ratio * low, size)
            return mean + sigma_s * lanczos_root(size // 2, rho, noise)

        exact = reference(proc, x_t, clean, noise, size).to(device)
        errors = [float((f().double() - exact).norm() / exact.norm()) for f in (ours, peer)]
        fast, slow, ratios = alternated(ours, peer, device)
        rows.append(
            (
                f"posterior sample {size}→{size // 2}",
                f"{fast * 1e3:.3f} ms, error {errors[0]:.1e}",
                f"{slow * 1e3:.0f} ms, error {errors[1]:.1e}",
                f"{ratios[2]:.0f}× faster ({ratios[0]:.0f} to {ratios[-1]:.0f})",
            )
        )
    return rows


def resize_rows(device: str) -> list[tuple[str, str, str, str]]:
    rows = []
    for size in (64, 256):
        x = torch.randn(BATCH, CHANNELS, size, size, device=device)
        small = (size // 2, size // 2)
        op = ssd.Resize((size, size), small)
        fast = seconds(lambda op=op, x=x: op(x), device, 40)
        peer = seconds(lambda x=x, small=small: interpolate(x, size=small, mode="bilinear", antialias=True), device, 40)
        rows.append(
            (
                f"Resize {size}→{size // 2}",
                f"{fast * 1e3:.3f} ms",
                f"{peer * 1e3:.3f} ms",
                f"{fast / peer:.2f}× its time",
            )
        )
    return rows


def import_row() -> tuple[str, str, str, str]:
    def fresh(module: str) -> float:
        code = f"import time; s = time.perf_counter(); import {module}; print(time.perf_counter() - s)"
        return statistics.median(
            float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
            for _ in range(7)
        )

    ours, numpy = fresh("ssdcore"), fresh("numpy")
    return ("import ssdcore", f"{ours:.3f} s", f"{numpy:.3f} s (numpy alone)", f"{ours / numpy:.1f}× its time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    device = parser.parse_args().device
    clock = ", processor time" if torch.get_num_threads() == 1 else ""
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads{clock}"
    print(f"{name}; torch {torch.__version__}; Python {platform.python_version()}\n")
    print("| what | ssdcore | replaced | ratio |\n|---|---|---|---|")
    for row in [*posterior_rows(device), *resize_rows(device), import_row()]:
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
