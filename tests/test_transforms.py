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
# In the quick run, of which tracing takes the most time. The composition is of a sparse matrix and a blur.
COMPILED = ("resize", "composition")
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
    [
        *(pytest.param(name, None, marks=[] if name in COMPILED else pytest.mark.slow) for name in OPERATORS),
        *(pytest.param(name, True, marks=pytest.mark.slow) for name in ("separable", "banded", "sparse")),
    ],
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


PAIRS: dict[str, Callable[[float], ssd.LinearOperator]] = {
    "resize": lambda v: ssd.Resize((6, 4), (3, 2), "bilinear" if v == 1 else "bicubic"),
    "blur": lambda v: ssd.Blur((6, 4), v),
    "fast blur": lambda v: ssd.Blur((1024,), v),
    "separable": lambda v: ssd.Separable([v * a for a in FACTORS]),
    "dense": lambda v: ssd.Matrix(v * DENSE, (6, 4)),
    "sparse": lambda v: ssd.Matrix(v * COARSEN, (6, 4)),
    "banded": lambda v: ssd.Resize(256, 128, "bilinear" if v == 1 else "bicubic"),
    "scaled": lambda v: -v * ssd.Resize((6, 4), (3, 2)),
    "composition": lambda v: ssd.Matrix(COARSEN, (6, 4)) @ ssd.Blur((6, 4), v),
    "sum": lambda v: ssd.Blur((6, 4), v) + ssd.Blur((6, 4), v, "periodic"),
    "gram operator": lambda v: ssd.Resize((6, 4), (3, 2)).gram_operator(lambda e: v + e),
    "functional": lambda v: ssd.Functional(lambda x: v * x[..., 1:], None, (6,), (5,), torch),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in (*COMPILED, "functional") else pytest.mark.slow) for n in PAIRS]
)
def test_torch_compile_never_takes_one_operator_for_another(name: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda op, x: op(x), fullgraph=True, backend="eager")
    for value in (1.0, 5.0, 1.0, 3.0):  # new objects each time
        op = PAIRS[name](value)
        x = torch.tensor(example(op))
        torch.testing.assert_close(compiled(op, x), op(x), rtol=1e-5, atol=1e-5)


def test_torch_compile_never_takes_one_module_for_another() -> None:
    class Holder(torch.nn.Module):
        def __init__(self, op: ssd.LinearOperator) -> None:
            super().__init__()
            self.op = op

        def forward(self, x: Any) -> Any:
            return self.op(x)

    torch._dynamo.reset()
    for seed in range(3):
        module = Holder(ssd.Matrix(np.random.default_rng(seed).standard_normal((3, 4))))
        x = torch.ones(2, 4)
        compiled = torch.compile(module, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), module(x))


LAWS: dict[str, Callable[..., Any]] = {
    "marginal": lambda proc, x, y, z, s, t: proc.marginal(x, s).sample(z),
    "transition": lambda proc, x, y, z, s, t: proc.transition(x, s, s + 3).sample(z),
    "posterior": lambda proc, x, y, z, s, t: proc.posterior(y, x, s, t).sample(z),
    "posterior at eta 0.5": lambda proc, x, y, z, s, t: proc.posterior(y, x, s, t, 0.5).sample(z),
}


@pytest.mark.parametrize(
    "law",
    [pytest.param(LAWS[n], id=n, marks=[] if n == "posterior at eta 0.5" else pytest.mark.slow) for n in LAWS],
)
def test_torch_compile_takes_the_numbers_of_each_time_and_process(law: Any) -> None:
    torch._dynamo.reset()
    levels = ssd.ResolutionSchedule.thresholds([50])
    processes = [ssd.LinearDiffusion.resize((8, 8), ssd.NoiseSchedule.linear(100), levels, m) for m in (True, False)]
    generator = torch.Generator().manual_seed(0)
    x, y, z = (torch.randn(2, *shape, generator=generator) for shape in ((8, 8), (4, 4), (8, 8)))
    compiled = torch.compile(law, fullgraph=True, backend="eager")
    for proc, s, t in ((processes[0], 40, 60), (processes[0], 10, 99), (processes[1], 40, 60), (processes[0], 40, 60)):
        torch.testing.assert_close(compiled(proc, x, y, z, s, t), law(proc, x, y, z, s, t))


def test_operators_and_laws_cross_the_borders_of_jax() -> None:
    traces: list[int] = []

    @jax.jit
    def apply(op: ssd.LinearOperator, x: Any) -> Any:
        traces.append(1)
        return op(x)

    x = jnp.ones((6, 4))
    for sigma in (1.0, 1.0, 2.0):
        op = ssd.Blur((6, 4), sigma)
        np.testing.assert_allclose(apply(op, x), op(x), atol=1e-6)
    assert len(traces) == 2  # equal operators share what has been compiled
    proc = ssd.LinearDiffusion.resize((8, 8), ssd.NoiseSchedule.linear(100), ssd.ResolutionSchedule.thresholds([50]))
    law = jax.jit(lambda y, c: proc.posterior(y, c, 49, 50))(jnp.ones((4, 4)), jnp.ones((8, 8)))
    same = proc.posterior(jnp.ones((4, 4)), jnp.ones((8, 8)), 49, 50)
    np.testing.assert_allclose(law.mean, same.mean, atol=1e-6)
    assert law.covariance == same.covariance
    drawn = jax.jit(lambda law, z: law.sample(z))(law, jnp.ones((8, 8)))
    np.testing.assert_allclose(drawn, same.sample(jnp.ones((8, 8))), atol=1e-5)
    assert jax.vmap(lambda v: proc.marginal(v, 5))(jnp.ones((3, 8, 8))).mean.shape == (3, 8, 8)
    gradient = jax.grad(lambda law: law.log_prob(jnp.zeros((8, 8))))(proc.marginal(jnp.ones((8, 8)), 5))
    assert isinstance(gradient, ssd.Gaussian)
    carried, _ = jax.lax.scan(
        lambda law, z: (ssd.Gaussian(law.sample(z), law.covariance), None), same, jnp.zeros((2, 8, 8))
    )
    np.testing.assert_allclose(carried.mean, same.mean, atol=1e-6)


def test_operators_and_laws_cross_the_borders_of_torch() -> None:
    proc = ssd.LinearDiffusion.resize((8, 8), ssd.NoiseSchedule.linear(100), ssd.ResolutionSchedule.thresholds([50]))
    x = torch.ones(3, 8, 8)
    law = torch.func.vmap(lambda v: proc.marginal(v, 5))(x)
    torch.testing.assert_close(law.mean, proc.marginal(x, 5).mean)
    drawn = torch.func.vmap(lambda law, z: law.sample(z))(law, x)
    torch.testing.assert_close(drawn, proc.marginal(x, 5).sample(x))
    lifted = torch.func.vmap(lambda y, z: proc.posterior(y, x[0], 49, 50).sample(z), in_dims=(0, None))
    y = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(lifted(y, x[1]), proc.posterior(y, x, 49, 50).sample(x))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in COMPILED else pytest.mark.slow) for n in OPERATORS])
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


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in COMPILED else pytest.mark.slow) for n in OPERATORS])
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
