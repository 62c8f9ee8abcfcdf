"""Every structured operator under torch.compile, torch.func and jax transforms, and its constants outside of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ssdcore as ssd

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
sparse = pytest.importorskip("scipy.sparse")
jnp = jax.numpy

RNG = np.random.default_rng(0)
DENSE = RNG.standard_normal((5, 24))
FACTORS = [RNG.standard_normal((3, 6)), RNG.standard_normal((2, 4))]
COARSEN = sparse.random(6, 24, 0.3, format="csr", random_state=0)

# Made afresh in each test: what is under test is where the constants of an operator are created first.
OPERATORS: dict[str, Callable[[], ssd.LinearOperator]] = {
    "identity": lambda: ssd.Identity((6, 4)),
    "resize": lambda: ssd.Resize((6, 4), (3, 2)),
    "blur": lambda: ssd.Blur((6, 4), 1.3),
    "separable": lambda: ssd.Separable(FACTORS),
    "dense": lambda: ssd.Matrix(DENSE, (6, 4)),
    "sparse": lambda: ssd.Matrix(COARSEN, (6, 4)),
    "banded": lambda: ssd.Resize(256, 128),
    "scaled": lambda: -0.5 * ssd.Resize((6, 4), (3, 2)),
    "composition": lambda: ssd.Matrix(COARSEN, (6, 4)) @ ssd.Blur((6, 4), 0.7),
    "transpose": lambda: ssd.Resize((6, 4), (3, 2)).T,
    "sparse transpose": lambda: ssd.Matrix(COARSEN, (6, 4)).T,
}
CALLS: dict[str, Callable[[ssd.LinearOperator, Any], Any]] = {
    "apply": lambda op, x: op(x),
    "round trip": lambda op, x: op.T(op(x)),
    "gram_function": lambda op, x: op.gram_function(lambda e: 1 / (1 + e), x),
}
every_operator = pytest.mark.parametrize("name", OPERATORS)
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def example(op: ssd.LinearOperator, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, *op.in_shape)).astype(np.float32)


def expected(name: str, call: Any, x: np.ndarray) -> np.ndarray:
    """The result in float64 numpy, from an operator of its own."""
    return call(OPERATORS[name](), x.astype(np.float64))


def expected_gradient(name: str, call: Any, x: np.ndarray) -> np.ndarray:
    """Of half the squared norm of each result: Jᵀ J x, with J found column by column."""
    op = OPERATORS[name]()
    basis = np.eye(x[0].size).reshape(-1, *op.in_shape)
    jacobian = call(op, basis).reshape(x[0].size, -1).T
    return (x.reshape(len(x), -1).astype(np.float64) @ (jacobian.T @ jacobian)).reshape(x.shape)


def assert_close(got: Any, want: np.ndarray) -> None:
    scale = float(np.linalg.norm(want))
    tolerance = 8 * np.sqrt(want.size) * np.finfo(np.float32).eps * scale
    assert np.linalg.norm(np.asarray(got, dtype=np.float64) - want) <= tolerance


@pytest.mark.parametrize(
    ("name", "dynamic"),
    [*((name, None) for name in OPERATORS), ("separable", True), ("banded", True), ("sparse", True)],
)
def test_torch_compile(name: str, dynamic: bool | None) -> None:
    torch._dynamo.reset()
    op = OPERATORS[name]()

    def run(x: Any) -> Any:
        return tuple(call(op, x) for call in CALLS.values())

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for batch in (2, 3):  # the second makes the batch size symbolic
        x = example(op, batch)
        for got, call in zip(compiled(torch.tensor(x)), CALLS.values()):
            assert_close(got, expected(name, call, x))
    # constants made while tracing serve outside, and in another dtype
    assert_close(op(torch.tensor(x)), expected(name, CALLS["apply"], x))
    assert op(torch.tensor(x, dtype=torch.float64)).dtype == torch.float64


@every_operator
def test_torch_compile_backward(name: str) -> None:
    torch._dynamo.reset()
    op = OPERATORS[name]()
    x = example(op)
    leaf = torch.tensor(x, requires_grad=True)
    compiled = torch.compile(lambda v: 0.5 * (op(v) ** 2).sum(), fullgraph=True, backend="aot_eager")
    compiled(leaf).backward()
    assert_close(leaf.grad, expected_gradient(name, CALLS["apply"], x))


@every_operator
@every_call
def test_torch_func(name: str, call: Any) -> None:
    op = OPERATORS[name]()
    x = example(op)
    leaf = torch.tensor(x)
    half_square = lambda v: 0.5 * (call(op, v) ** 2).sum()  # noqa: E731
    assert_close(torch.func.vmap(torch.func.grad(half_square))(leaf), expected_gradient(name, call, x))
    assert_close(torch.func.vmap(lambda v: call(op, v))(leaf), expected(name, call, x))
    assert_close(call(op, leaf), expected(name, call, x))


@every_operator
@every_call
def test_torch_inference_mode_then_autograd(name: str, call: Any) -> None:
    op = OPERATORS[name]()
    x = example(op)
    with torch.inference_mode():
        assert_close(call(op, torch.tensor(x)), expected(name, call, x))
    leaf = torch.tensor(x, requires_grad=True)
    (0.5 * (call(op, leaf) ** 2).sum()).backward()  # raises if a constant were an inference tensor
    assert_close(leaf.grad, expected_gradient(name, call, x))


@every_operator
@every_call
def test_jax(name: str, call: Any) -> None:
    op = OPERATORS[name]()
    x = example(op)
    leaf = jnp.asarray(x)
    half_square = lambda v: 0.5 * (call(op, v) ** 2).sum()  # noqa: E731
    assert_close(jax.jit(jax.vmap(jax.grad(half_square)))(leaf), expected_gradient(name, call, x))
    assert_close(jax.vmap(lambda v: call(op, v))(leaf), expected(name, call, x))
    assert_close(jax.jit(lambda v: call(op, v))(leaf), expected(name, call, x))
    assert_close(call(op, leaf), expected(name, call, x))  # a leaked tracer would raise here
