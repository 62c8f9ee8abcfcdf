"""deepinv's physics to our operators and back. Where torchvision and torch do not fit: tests/run_deepinv.sh."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

import ssdcore as ssd
from ssdcore_torch.interop import from_deepinv, to_deepinv

try:
    import deepinv
except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision was made for another torch
    deepinv = None
    reason = f"deepinv does not import here ({type(error).__name__}: {error}); tests/run_deepinv.sh makes it a place"
else:
    reason = ""
needs_deepinv = pytest.mark.skipif(deepinv is None, reason=reason)


def operators() -> list[ssd.LinearOperator]:
    rng = np.random.default_rng(0)
    return [
        ssd.Resize((16, 12), (8, 6), kernel="bicubic"),
        2.0 * ssd.Blur((8, 8), 1.5).T,
        ssd.Separable([rng.standard_normal((3, 6)), rng.standard_normal((7, 5))]),
        ssd.Matrix(rng.standard_normal((4, 30)), (6, 5), (2, 2)),
        ssd.Functional(lambda x: torch.flip(x, (-1,)), None, (4, 5), (4, 5), torch),
    ]


def tolerance(dtype: torch.dtype, *sizes: int) -> float:
    """Of a relative error: a random walk of roundings along the longest sum of the dot product."""
    return 10 * np.sqrt(max(sizes)) * torch.finfo(dtype).eps


@needs_deepinv
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", operators(), ids=repr)
def test_their_adjointness_test_passes_at_our_tolerance(op, dtype):
    physics = to_deepinv(op)
    assert isinstance(physics, deepinv.physics.LinearPhysics)
    torch.manual_seed(0)  # adjointness_test draws from the global generator
    error = physics.adjointness_test(img_size=(3, *op.in_shape), num_samples=64, dtype=dtype)
    assert error < tolerance(dtype, 3 * np.prod(op.in_shape), 3 * np.prod(op.out_shape))
    wrong = to_deepinv(op)
    wrong.A_adj = lambda y, **_: 1.001 * op.T(y)
    assert wrong.adjointness_test(img_size=(3, *op.in_shape), num_samples=64, dtype=dtype) > 5e-4


@needs_deepinv
def test_the_physics_measures_with_their_noise_and_inverts():
    op = ssd.Resize((16, 16), (8, 8))
    physics = to_deepinv(op)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(physics(x), op(x))
    physics.set_noise_model(deepinv.physics.GaussianNoise(sigma=0.1))
    assert (physics(x) - op(x)).std() == pytest.approx(0.1, rel=5 / np.sqrt(2 * 384))
    norm = physics.compute_sqnorm(x[0], max_iter=500, tol=1e-9, verbose=False)
    assert float(norm) == pytest.approx(op.norm() ** 2, rel=1e-5)
    y = op(x)
    back = physics.A_dagger(y, solver="lsqr", max_iter=400, tol=1e-12)
    expected = op.T(op.T.gram_function(lambda values: 1 / values, y))
    # theirs is the minimum of ‖A x − y‖² + 1e-8 ‖x‖², which changes the factor 1/s of a mode by at most 1e-8/s³
    limit = 1e-8 / op.singular_values().min() ** 3 * float(y.norm())
    torch.testing.assert_close(back, expected, rtol=0, atol=limit)


@needs_deepinv
@pytest.mark.parametrize("op", operators(), ids=repr)
def test_round_trips_conform(op):
    back = from_deepinv(to_deepinv(op), op.in_shape)
    assert (back.in_shape, back.out_shape) == (op.in_shape, op.out_shape)
    assert ssd.testing.check_operator(back, xp=torch, examples=1, dtypes=["float64", "float32"]).passed
    x = torch.randn(2, 3, *op.in_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(back(x), op(x))
    assert torch.equal(back.T(op(x)), op.T(op(x)))


@needs_deepinv
@pytest.mark.parametrize("per_channel", [False, True])
def test_their_own_physics_conform(per_channel):
    kernel = torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for physics in (
        deepinv.physics.Blur(filter=kernel, padding="circular"),
        deepinv.physics.Inpainting(img_size=(1, 8, 8), mask=(torch.arange(64).reshape(1, 8, 8) % 3 > 0).double()),
    ):
        physics.to(torch.float64)
        op = from_deepinv(physics, (8, 8) if per_channel else (1, 8, 8), per_channel=per_channel)
        ssd.testing.check_operator(op, xp=torch, examples=1, dtypes="float64")
        x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        torch.testing.assert_close(op(x), physics.A(x), rtol=0, atol=0)


@needs_deepinv
def test_restoration_takes_their_physics():
    from ssdcore_torch import restore

    proc = ssd.LinearDiffusion.identity((8, 8), ssd.NoiseSchedule.linear(40))
    ours = ssd.Resize((8, 8), (4, 4))
    theirs = from_deepinv(to_deepinv(ours), (8, 8), per_channel=True)
    y = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def half(x, t, out_level):
        return 0.5 * x

    made = [restore(half, proc, op, y, 0.1, steps=5, seed=3) for op in (ours, theirs)]
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=1e-6)


MASK = None if deepinv is None else deepinv.physics.Inpainting(img_size=(1, 8, 8), mask=torch.ones(1, 8, 8))


def test_a_physics_on_another_device_is_refused(stand_in):
    physics = stand_in.LinearPhysics(torch.neg, torch.neg)
    op = from_deepinv(physics, (1, 4))
    physics.register_buffer("filter", torch.ones(3, device="meta"))
    with pytest.raises(ValueError, match="the physics is on meta, the tensor on cpu; move one of them"):
        op(torch.zeros(1, 4))


@needs_deepinv
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: to_deepinv(np.eye(3)), TypeError, r"to_deepinv: expected an ssdcore operator, got numpy\.ndarray"),
        (lambda: from_deepinv(ssd.Identity(3), (3,)), TypeError, r"expected a deepinv\.physics\.LinearPhysics, got Identity"),
        (lambda: from_deepinv(deepinv.physics.Physics(A=torch.abs), (1, 4, 4)), TypeError, r"got Physics; only a linear operator has an adjoint"),
        (lambda: from_deepinv(deepinv.physics.LinearPhysics(A=lambda x: x + 0j, A_adjoint=lambda y: y.real), (1, 4)), TypeError, r"one real tensor, got a torch\.complex64 tensor"),
        (lambda: from_deepinv(to_deepinv(ssd.Identity(4)).stack(to_deepinv(ssd.Identity(4))), (1, 4)), TypeError, r"one real tensor, got TensorList"),
        (lambda: from_deepinv(to_deepinv(ssd.Identity(4)), (1, 4), (1, 5)), ValueError, r"measures \(1, 4\) as \(1, 4\), not \(1, 5\)"),
        (lambda: from_deepinv(to_deepinv(ssd.Identity(4)), (1, 5)), ValueError, r"expected trailing axes \(4,\)"),
        (lambda: from_deepinv(to_deepinv(ssd.Identity(4)), "4"), TypeError, r"from_deepinv: expected a shape"),
        (lambda: from_deepinv(MASK, (1, 8, 8))(torch.zeros(1, 8, 8, dtype=torch.float64)), ValueError, r"holds torch\.float32, the tensor torch\.float64; call physics\.to\(torch\.float64\)"),
        (lambda: from_deepinv(to_deepinv(ssd.Identity(4)), (1, 4))(np.zeros((1, 4))), TypeError, r"takes torch tensors, got numpy\.ndarray"),
    ],
)  # fmt: skip
def test_bad_input_gets_a_clear_error(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepinv", None)
    for call in (lambda: to_deepinv(ssd.Identity(3)), lambda: from_deepinv(None, (3,))):
        with pytest.raises(ImportError, match=r'needs deepinv: pip install "ssdcore\[deepinv\]"'):
            call()


def test_a_torchvision_for_another_torch_is_named(monkeypatch, tmp_path):
    (tmp_path / "deepinv.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "deepinv", raising=False)
    with pytest.raises(ImportError, match=r"deepinv is installed but does not import \(operator torchvision::nms"):
        to_deepinv(ssd.Identity(3))


@pytest.fixture
def stand_in(monkeypatch):
    """The two classes of deepinv that the adapters use, by their documented interface, for where deepinv is not."""

    class Physics(torch.nn.Module):
        def __init__(self, A, **_):
            super().__init__()
            self.A = A

    class LinearPhysics(Physics):
        def __init__(self, A, A_adjoint):
            super().__init__(A)
            self.A_adjoint = A_adjoint

    module = ModuleType("deepinv")
    module.physics = ModuleType("deepinv.physics")
    module.physics.Physics, module.physics.LinearPhysics = Physics, LinearPhysics
    monkeypatch.setitem(sys.modules, "deepinv", module)
    return module.physics


@pytest.mark.parametrize("per_channel", [False, True])
def test_leading_axes_are_one_batch_axis_to_the_physics(stand_in, per_channel):
    seen = []

    def apply(x):
        seen.append(tuple(x.shape))
        return x[..., ::2]

    physics = stand_in.LinearPhysics(
        apply, lambda y: torch.repeat_interleave(y, 2, -1) * torch.tensor([1.0, 0.0]).repeat(2)
    )
    op = from_deepinv(physics, (3, 4) if not per_channel else (4,), per_channel=per_channel)
    assert op.out_shape == ((3, 2) if not per_channel else (2,))
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(op(x), x[..., ::2])
    assert seen[-1] == ((6, 1, 4) if per_channel else (2, 3, 4))
    assert torch.equal(op(x[None, None]), x[None, None, ..., ::2])
    with pytest.raises(TypeError, match="got Physics; only a linear operator"):
        from_deepinv(stand_in.Physics(torch.abs), (3, 4))


def test_the_physics_carries_the_operator(stand_in):
    op = ssd.Resize((8, 8), (4, 4))
    physics = to_deepinv(op)
    x = torch.ones(2, 3, 8, 8)
    assert torch.equal(physics.A(x, sigma=0.1), op(x))
    assert torch.equal(physics.A_adjoint(op(x)), op.T(op(x)))
    ssd.testing.check_operator(from_deepinv(physics, (8, 8)), xp=torch, examples=1, dtypes="float64")
