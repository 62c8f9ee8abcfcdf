"""Random numbers of training and sampling, each a function of what it is for, the seed and a few numbers: no generator
has a state to save."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssdcore_torch.devices import to_device


class Purpose(enum.IntEnum):
    """What numbers are drawn for: they come first in the key, so that no two draws share their bits."""

    ORDER = 1
    PATH = 2
    TIMES = 3
    NOISE = 4
    DROPOUT = 5
    LABELS = 6
    FLIP = 7
    CROP = 8
    SAMPLING = 9
    RESIDUALS = 10


def keyed(purpose: Purpose, seed: int, *numbers: int) -> np.random.Generator:
    """A generator of its own for these numbers (a purpose always takes the same count of them)."""
    return np.random.default_rng((purpose, seed, *numbers))


def torch_seed(purpose: Purpose, seed: int, *numbers: int) -> int:
    """The same as a seed of 63 bits, for torch's generators."""
    return int(np.random.SeedSequence((purpose, seed, *numbers)).generate_state(1, np.uint64)[0]) >> 1


# ---- noise of sampling: a function of what it is for, computed where it is needed

_MULTIPLIERS, _WEYL, _MASK = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), 0xFFFFFFFF


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): four words for each counter.

    Integers alone, so the same on every device. Products wrap at 2⁶⁴, which leaves their bits as they should be.

    Args:
        counter: four int64 tensors of words below 2³², which broadcast
        key: two such words
    """
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        p, q = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b = ((q >> 32) ^ b ^ k) & _MASK, q & _MASK
        c, d = ((p >> 32) ^ d ^ m) & _MASK, p & _MASK
        k, m = (k + _WEYL[0]) & _MASK, (m + _WEYL[1]) & _MASK
    return a, b, c, d


def sample_noise(seed: int, indices: Sequence[int], draws: range, size: int, device: torch.device) -> Tensor:
    """(len(draws), len(indices), size) float32, standard normal: each number a function of (seed, index of the sample,
    draw, place in it) alone, on every device (up to the last bit, by the device's logarithm and cosine).

    Args:
        indices: below 2⁶⁴
        draws: below 2³²
    """
    key = np.random.SeedSequence((Purpose.SAMPLING, seed)).generate_state(2, np.uint32).tolist()
    halves = np.array([(index & _MASK, index >> 32) for index in indices], dtype=np.int64).reshape(-1, 2)
    words = [
        torch.arange(-(-size // 4), device=device),
        torch.arange(draws.start, draws.stop, device=device)[:, None, None],
        *(to_device(np.ascontiguousarray(part), device)[:, None] for part in halves.T),
    ]
    a, b, c, d = torch.broadcast_tensors(*philox(words, (key[0], key[1])))
    # Box and Muller, in float64: what devices differ by is then lost in rounding
    radius = (torch.stack([a, c], -1).double() + 0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = torch.stack([b, d], -1).double().mul_(2 * math.pi * 2.0**-32)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1).float().flatten(2)[..., :size]
