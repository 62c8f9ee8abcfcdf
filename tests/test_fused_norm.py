"""The fused group norm against torch's, values and gradients: on the CPU in Triton's interpreter, on CUDA as compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from ssdcore_torch.denoisers.unet import fused

# the interpreter takes seconds for what a card does in microseconds
DEVICES = [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
# shape, dtype, scale and shift, SiLU: of two images, of one pixel, of a group for each channel, of several parts
CASES = [
    ((2, 64, 4, 4), torch.float32, True, True),
    ((2, 64, 4, 4), torch.bfloat16, True, True),
    ((1, 96, 1, 1), torch.float32, False, True),
    ((2, 32, 3, 5), torch.bfloat16, False, False),
    ((1, 64, 24, 16), torch.float32, True, False),
]


def reference(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, activated: bool
) -> Tensor:
    h = F.group_norm(x.double(), 32, weight.double(), bias.double(), 1e-5)
    if scale is not None and shift is not None:
        h = h * (1 + scale.double())[:, :, None, None] + shift.double()[:, :, None, None]
    return F.silu(h) if activated else h


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str, modulated: bool) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(sum(shape))
    batch, channels = shape[:2]

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    x = (3 + normal(*shape)).to(dtype).to(device).contiguous(memory_format=torch.channels_last)
    made = {"x": x, "weight": 1 + normal(channels).to(device), "bias": normal(channels).to(device)}
    both = (0.5 * normal(batch, 2 * channels)).to(dtype).to(device)
    made["scale"], made["shift"] = both.chunk(2, 1) if modulated else (None, None)
    return {name: None if value is None else value.detach().requires_grad_() for name, value in made.items()}


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.detach().double() - b.detach().double()).norm() / b.detach().double().norm())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("shape", "dtype", "modulated", "activated"), CASES)
def test_values_and_gradients(
    shape: tuple[int, ...], dtype: torch.dtype, modulated: bool, activated: bool, device: str
):
    given = inputs(shape, dtype, device, modulated)
    order = ("weight", "bias", "scale", "shift")
    y = fused.group_norm(
        given["x"], 32, given["weight"], given["bias"], 1e-5, given["scale"], given["shift"], activated
    )
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    expected = reference(given["x"], *(given[name] for name in order), activated)
    rounding = torch.finfo(dtype).eps
    assert relative(y, expected) < 4 * rounding
    slope = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(device)
    wanted = [value for value in given.values() if value is not None]
    ours = torch.autograd.grad(y, wanted, slope)
    theirs = torch.autograd.grad(expected, wanted, slope.double())
    for name, a, b in zip([name for name, value in given.items() if value is not None], ours, theirs):
        size = b.double().norm().item()
        assert (a.double() - b.double()).norm().item() < 8 * rounding * max(size, slope.double().norm().item()), name


@pytest.mark.parametrize("device", DEVICES)
def test_a_large_mean_loses_no_digits(device: str):
    x = (1000 + torch.randn(1, 64, 8, 8, generator=torch.Generator().manual_seed(0))).to(device)
    x = x.contiguous(memory_format=torch.channels_last)
    one, zero = torch.ones(64, device=device), torch.zeros(64, device=device)
    y = fused.group_norm(x, 32, one, zero, 1e-5)
    assert relative(y, reference(x, one, zero, None, None, False)) < 1e-4  # x itself has 6e-5 of its deviation


@pytest.mark.parametrize("device", DEVICES)
def test_equal_inputs_give_equal_bits(device: str):
    given = inputs((1, 32, 24, 16), torch.bfloat16, device, True)
    arguments = (given["x"], 32, given["weight"], given["bias"], 1e-5, given["scale"], given["shift"], True)
    first, again = fused.group_norm(*arguments), fused.group_norm(*arguments)
    assert torch.equal(first, again)


@pytest.mark.gpu
def test_the_network_uses_it_on_cuda():
    from ssdcore_torch.denoisers.unet.blocks import Norm, fuses

    norm = Norm(64).cuda()
    x = torch.randn(2, 64, 8, 8, device="cuda").contiguous(memory_format=torch.channels_last)
    assert fuses(x)
    assert not fuses(x.contiguous())
    y, plain = norm.activated(x), norm.activated(x.contiguous())
    assert relative(y, plain) < 1e-5
