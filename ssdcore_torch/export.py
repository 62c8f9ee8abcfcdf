"""A network without this library: as a program of torch.export, or as an ONNX file.

A program takes states of one size to predictions at one size, any number at once: a process with several sizes has one
for each of its `paths`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssdcore.files import write_atomically
from ssdcore_torch.denoisers import FlexiUNet


class _PathNetwork(nn.Module):
    """The network from the size of its input to one size, its arguments all tensors."""

    def __init__(self, net: FlexiUNet, out_level: int) -> None:
        super().__init__()
        self.net, self.out_level = net, out_level

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        y: Tensor = self.net(x, t, out_level=self.out_level, label=label)
        return y


def export_network(net: FlexiUNet, level: int = 0, out_level: int | None = None) -> torch.export.ExportedProgram:
    """The network as a program: ``program.module()(x, t)``, with classes ``(x, t, label)``.

    ::

        program = export_network(run.ema)
        torch.export.save(program, "network.pt2")

    The numbers are those of ``net(x, t, out_level=out_level, label=label)`` in evaluation mode.

    - x: ``(batch, channels, *net.sizes[level])``, any batch
    - t: (batch,) float32 times 1 … T
    - label: (batch,) int64; only of class-conditional networks

    Args:
        level: index into `net.sizes` of the states
        out_level: of the predictions, at most `level`; None: the same

    Raises:
        TypeError: For another network than a `FlexiUNet`.
        ValueError: For levels that it has not.
    """
    if not isinstance(net, FlexiUNet):
        raise TypeError(f"export_network: expected a FlexiUNet, got {type(net).__name__}")
    if not 0 <= level < len(net.sizes):
        raise ValueError(f"level: expected 0 to {len(net.sizes) - 1}, got {level}")
    first = next(net.parameters())
    x = torch.zeros((2, net.channels, *net.sizes[level]), dtype=first.dtype, device=first.device)
    arguments: tuple[Tensor, ...] = (x, torch.ones(2, device=first.device))
    if net.num_classes is not None:
        arguments += (torch.zeros(2, dtype=torch.int64, device=first.device),)
    training = net.training
    try:
        module = _PathNetwork(net.eval(), level if out_level is None else out_level)
        batch = torch.export.Dim("batch")
        shapes: dict[str, Any] = {name: {0: batch} for name in ("x", "t", "label")[: len(arguments)]}
        with torch.no_grad():
            return torch.export.export(module, arguments, dynamic_shapes=shapes)
    finally:
        net.train(training)


def export_onnx(net: FlexiUNet, path: Path | str, level: int = 0, out_level: int | None = None) -> None:
    """Write `export_network` as an ONNX file with the inputs x, t and, of a class-conditional network, label.

    Raises:
        ImportError: Without the extra "onnx".
        ValueError: For a name that does not end in .onnx, and as `export_network` does.
        OSError: Where the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".onnx":
        raise ValueError(f"{path}: an ONNX file ends in .onnx")
    try:
        import onnxscript  # noqa: F401 - torch's exporter needs it, and says so less clearly
    except ImportError as error:
        raise ImportError('writing ONNX needs onnxscript: pip install "ssdcore[onnx]"') from error
    made = torch.onnx.export(export_network(net, level, out_level), dynamo=True, verbose=False)
    assert made is not None
    write_atomically(path, lambda file: made.save(str(file), external_data=False))
