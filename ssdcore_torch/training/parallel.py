"""The network as each path uses it, its gradients averaged over the processes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssdcore.process import Path
from ssdcore_torch.denoisers import asked, shadow
from ssdcore_torch.distributed import World


class PathNetworks:
    """One `DistributedDataParallel` a path, over the parameters that the path uses.

    A path leaves out the stages of other sizes. Told so beforehand, DDP waits for no gradient that never comes, and
    need not search the graph for them in every step. The wrappers share the network's parameters; each has
    buckets of its own, as large as the parameters it averages. In a world of one there is nothing to average, and the
    network itself is called.
    """

    def __init__(self, net: Any, paths: tuple[Path, ...], world: World) -> None:
        self._net = net
        self._wrapped: dict[Path, DistributedDataParallel] = {}
        if world.size == 1:
            return
        world.copy_from_leader([parameter.data for parameter in net.parameters()])
        devices = [world.device] if world.device.type == "cuda" else None
        for path in paths:
            used = _PathParameters(net, used_parameters(net, path))
            self._wrapped[path] = DistributedDataParallel(used, device_ids=devices, init_sync=False)

    def of(self, path: Path) -> Callable[..., Tensor]:
        """The network for batches of this path."""
        return self._wrapped.get(path, self._net)

    def keep_local(self, path: Path) -> AbstractContextManager[None]:
        """While open, backward passes add up gradients without averaging them: for all parts of a step but the last."""
        return self._wrapped[path].no_sync() if path in self._wrapped else nullcontext()


class _PathParameters(nn.Module):
    """A network that owns up to some of its parameters only."""

    def __init__(self, net: Any, names: list[str]) -> None:
        super().__init__()
        self._call = net.forward  # a bound method is not a submodule
        for i, name in enumerate(names):
            self.register_parameter(str(i), net.get_parameter(name))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._call(*args, **kwargs)


def used_parameters(net: Any, path: Path) -> list[str]:
    """Names of the parameters that a step on this path has gradients of; found on shapes alone."""
    sizes = list(net.sizes)
    twin = shadow(net)
    out = asked(twin, sizes.index(path.shape), sizes.index(path.target_shape))
    trained = {name: parameter for name, parameter in twin.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(out.sum(), list(trained.values()), allow_unused=True)
    return [name for name, gradient in zip(trained, gradients) if gradient is not None]
