"""Counter-based noise: the generator against its published answers, the noise against the normal law, its independence of
how it is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ssdcore_torch.randomness import philox, sample_noise
from ssdcore_torch.sampling import _walk
from ssdcore_torch.sampling._walk import Noise

CPU = torch.device("cpu")
ONES = 2**32 - 1


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known answers that come with the authors' Random123
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(
    counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    assert tuple(int(word) for word in philox([torch.tensor(word) for word in counter], key)) == words


def test_noise_is_standard_normal_and_independent() -> None:
    drawn = sample_noise(0, range(16), range(8), 4096, CPU).double()
    n = drawn.numel()
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        deviation = [1.0, 2**0.5, 15**0.5, 96**0.5][power - 1] / n**0.5
        assert abs(float((drawn**power).mean()) - moment) < 4.5 * deviation
    ordered = drawn.flatten().sort().values
    expected = torch.special.ndtr(ordered)
    assert float((expected - (torch.arange(n) + 0.5) / n).abs().max()) < 1.95 / n**0.5  # Kolmogorov and Smirnov, 0.1 %
    for axis in range(3):  # samples, draws and places beside each other
        a, b = drawn.narrow(axis, 0, drawn.shape[axis] - 1), drawn.narrow(axis, 1, drawn.shape[axis] - 1)
        assert abs(float((a * b).mean())) < 4.5 / a.numel() ** 0.5
    assert drawn.flatten(0, 1).unique(dim=0).shape[0] == 128


def noises(seed: int, indices: list[int], sizes: list[int], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    noise = Noise(seed, indices, 3, dtype, CPU)
    return [noise((size, size)) for size in sizes]


def test_a_sample_has_its_noise_whatever_the_batch() -> None:
    sizes = [2, 2, 3, 2]
    together = noises(5, [0, 3, 2**40], sizes)
    assert [tuple(x.shape) for x in together] == [(3, 3, size, size) for size in sizes]
    for i, index in enumerate([0, 3, 2**40]):
        for found, wanted in zip(noises(5, [index], sizes), together):
            assert torch.equal(found[0], wanted[i])
    others = [*noises(6, [0], sizes), *noises(5, [1], sizes)]
    assert len({float(x.flatten()[0]) for x in (*(y[:1] for y in together), *others)}) == 12
    np.testing.assert_array_equal(noises(5, [0], sizes, torch.float64)[0], together[0][:1].double())


def test_noise_of_several_steps_at_once_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU draws it, also where the next step is of another size."""
    sizes, one_by_one = [2, 2, 2, 3, 2, 2], noises(5, [0, 3], [2, 2, 2, 3, 2, 2])
    asked: list[int] = []

    def counted(seed: int, indices: list[int], draws: range, size: int, device: torch.device) -> Tensor:
        asked.append(len(draws))
        return sample_noise(seed, indices, draws, size, CPU)

    monkeypatch.setattr(_walk, "sample_noise", counted)
    noise = Noise(5, [0, 3], 3, torch.float32, torch.device("cuda"))
    for size, wanted in zip(sizes, one_by_one):
        assert torch.equal(noise((size, size)), wanted)
    assert len(asked) == 3
    assert min(asked) > 1
