"""Networks as programs of their own: the same numbers as the network's, for any batch."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ssdcore_torch import FlexiUNet, FlexiUNetConfig
from ssdcore_torch.export import export_network, export_onnx


def network(classes: int | None = None) -> FlexiUNet:
    torch.manual_seed(0)
    sizes = ((8, 8), (4, 4))
    net = FlexiUNet(
        FlexiUNetConfig(
            sizes,
            base_channels=32,
            channel_multipliers=(1, 1),
            blocks_per_stage=1,
            attention_sizes=(4,),
            num_classes=classes,
        )
    )
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net


def batch(net: FlexiUNet, level: int) -> tuple[Tensor, ...]:
    x, t = torch.randn(5, 3, *net.sizes[level]), torch.tensor([1.0, 3.0, 10.0, 400.0, 1000.0])
    return (x, t) if net.num_classes is None else (x, t, torch.tensor([0, 1, 2, 1, 0]))


def expected(net: FlexiUNet, arguments: tuple[Tensor, ...], out_level: int) -> Tensor:
    x, t, *label = arguments
    with torch.no_grad():
        return net.eval()(x, t, out_level=out_level, label=label[0] if label else None)


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "level", "out_level"), [(3, 1, 0), (None, 0, None)])
def test_the_program_is_the_network(tmp_path: Path, classes: int | None, level: int, out_level: int | None) -> None:
    net = network(classes).train()
    torch.export.save(export_network(net, level, out_level), tmp_path / "net.pt2")
    assert net.training
    program = torch.export.load(tmp_path / "net.pt2").module()
    arguments = batch(net, level)
    wanted = expected(net, arguments, level if out_level is None else out_level)
    assert wanted.std() > 1e-3
    torch.testing.assert_close(program(*arguments), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_onnx_file_is_the_network(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    net = network(3)
    export_onnx(net, tmp_path / "net.onnx", 1, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    session, arguments = reference.ReferenceEvaluator(str(tmp_path / "net.onnx")), batch(net, 1)
    (found,) = session.run(None, dict(zip(session.input_names, [value.numpy() for value in arguments])))
    np.testing.assert_allclose(found, expected(net, arguments, 0).numpy(), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="expected a FlexiUNet, got Linear"):
        export_network(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="level: expected 0 to 1, got 2"):
        export_network(network(), 2)
    with pytest.raises(ValueError, match=r"ends in \.onnx"):
        export_onnx(network(), tmp_path / "net.bin")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"ssdcore\[onnx\]"):
        export_onnx(network(), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
