"""A process of the user's own as a file of the run: its noise and its operators, to the last bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ssdcore as ssd
from ssdcore.degradations import BlurredResize, Chain, Degradations, GrowingBlur
from ssdcore.operators import Composition, LinearOperator, Scaled, Sum, Transpose
from ssdcore_torch.checkpoint import load_tensors, save_tensors
from ssdcore_torch.text import printable

FORMAT = "ssdcore process 1"
PROCESS = "process.safetensors"
"""Its name in a run."""


@dataclass
class ProcessFile:
    """What a file of a process holds: arrays by name, and how they make operators."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    degradations: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, process: ssd.LinearDiffusion) -> ProcessFile:
        """Raises ValueError for a process that cannot be saved, with what to do."""
        if process.times != tuple(range(1, process.degradations.steps + 1)):
            raise ValueError(
                "process: this one is respaced, and a network is trained for all times of a process: give the process "
                "that it was made from, and choose sampling times when sampling"
            )
        file = cls({"alpha": process.noise.alpha, "sigma": process.noise.sigma})
        file.degradations = file._described(process.degradations)
        return file

    def build(self) -> ssd.LinearDiffusion:
        """The process. Raises ValueError or another error of ssdcore's for what makes none."""
        noise = ssd.NoiseSchedule(self.arrays["alpha"], self.arrays["sigma"])
        degradations = self._degradations(self.degradations)
        return ssd.LinearDiffusion(noise, degradations, tuple(range(1, noise.steps + 1)))

    @property
    def digest(self) -> str:
        """SHA-256 of what it holds, wherever and by whichever version of safetensors it is written."""
        total = hashlib.sha256(self._text().encode())
        for name, array in self.arrays.items():
            total.update(f"\n{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return total.hexdigest()

    def _text(self) -> str:
        return json.dumps({"format": FORMAT, "degradations": self.degradations}, sort_keys=True)

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in self.arrays.items()}
        save_tensors(path, tensors, {"process": self._text()})

    @classmethod
    def load(cls, path: Path, expected: str) -> ProcessFile:
        """Raises ValueError for a file that is damaged, or does not hold what has the digest `expected`."""
        tensors, metadata = load_tensors(path)
        try:
            values = json.loads(metadata["process"])
            known = values["format"] == FORMAT
        except (KeyError, TypeError, ValueError, RecursionError):
            known = False
        if not known:
            raise ValueError(f"{path} is not a process of this version of ssdcore_torch")
        names = sorted(tensors, key=lambda name: (name not in ("alpha", "sigma"), len(name), name))
        file = cls({name: tensors[name].numpy() for name in names}, values["degradations"])
        if file.digest != expected:
            raise ValueError(f"{path} is not the process that this run was trained for: its digest is another")
        return file

    # ---- writing

    def _keep(self, array: Any) -> str:
        """The name under which an array is kept."""
        name = f"array-{len(self.arrays)}"
        self.arrays[name] = np.array(array)
        return name

    def _described(self, degradations: Degradations) -> dict[str, Any]:
        if isinstance(degradations, GrowingBlur):
            widths = self._keep(degradations.widths)
            return {"kind": "blur", "shape": degradations.shape(0), "widths": widths, "boundary": degradations.boundary}
        if isinstance(degradations, BlurredResize):
            return {
                "kind": "blurred",
                "of": self._described(degradations.inner),
                "widths": self._keep(degradations.widths),
            }
        steps = [degradations.between(t - 1, t) for t in range(1, degradations.steps + 1)]
        written: dict[int, int] = {}
        operators: list[dict[str, Any]] = []
        at: list[list[int]] = []
        for t, operator in enumerate(steps, start=1):
            if isinstance(operator, ssd.Identity):
                continue
            if id(operator) not in written:
                written[id(operator)] = len(operators)
                operators.append(self._operator(operator, t))
            at.append([t, written[id(operator)]])
        return {
            "kind": "chain",
            "shape": degradations.shape(0),
            "steps": degradations.steps,
            "operators": operators,
            "at": at,
        }

    def _operator(self, op: LinearOperator, t: int) -> dict[str, Any]:
        kind = type(op)
        if kind not in WRITERS:
            raise ValueError(
                f"process: the operator of step {t} cannot be saved: {printable(op)}; give its matrix in its place, "
                "ssd.Matrix(op.as_matrix(), op.in_shape, op.out_shape), or write it with Resize, Blur, Separable "
                "and Matrix"
            )
        return {"kind": kind.__name__, **WRITERS[kind](op, self, t)}

    # ---- reading

    def _degradations(self, tree: Mapping[str, Any]) -> Degradations:
        if tree["kind"] == "blur":
            return GrowingBlur(tuple(tree["shape"]), self.arrays[tree["widths"]], tree["boundary"])
        if tree["kind"] == "blurred":
            return BlurredResize(self._degradations(tree["of"]), self.arrays[tree["widths"]])
        operators = [self._read(one) for one in tree["operators"]]
        steps: list[LinearOperator | None] = [None] * tree["steps"]
        for t, number in tree["at"]:
            steps[t - 1] = operators[number]
        return Chain(tuple(tree["shape"]), steps)

    def _read(self, tree: Mapping[str, Any]) -> LinearOperator:
        return READERS[tree["kind"]](tree, self)


def _matrix(op: Any, file: ProcessFile, t: int) -> dict[str, Any]:
    shapes = {"in_shape": op.in_shape, "out_shape": op.out_shape}
    if isinstance(op.matrix, np.ndarray):
        return {"matrix": file._keep(op.matrix), **shapes}
    sparse = {part: file._keep(getattr(op.matrix, part)) for part in ("data", "indices", "indptr")}
    return {"sparse": sparse, **shapes}


def _read_matrix(tree: Mapping[str, Any], file: ProcessFile) -> LinearOperator:
    ins, outs = tuple(tree["in_shape"]), tuple(tree["out_shape"])
    if "matrix" in tree:
        return ssd.Matrix(file.arrays[tree["matrix"]], ins, outs)
    from scipy.sparse import csr_array  # such a matrix came from it

    parts = tuple(file.arrays[tree["sparse"][part]] for part in ("data", "indices", "indptr"))
    return ssd.Matrix(csr_array(parts, shape=(int(np.prod(outs)), int(np.prod(ins)))), ins, outs)


WRITERS: Mapping[type, Callable[[Any, ProcessFile, int], dict[str, Any]]] = {
    ssd.Identity: lambda op, file, t: {"shape": op.in_shape},
    ssd.Resize: lambda op, file, t: {"in_shape": op.in_shape, "out_shape": op.out_shape, "kernel": op.kernel},
    ssd.Blur: lambda op, file, t: {"shape": op.in_shape, "sigma": op.sigma, "boundary": op.boundary},
    ssd.Separable: lambda op, file, t: {"matrices": [file._keep(axis.constant.value) for axis in op.axes]},
    ssd.Matrix: _matrix,
    Scaled: lambda op, file, t: {"scale": op.scale, "op": file._operator(op.op, t)},
    Transpose: lambda op, file, t: {"op": file._operator(op.op, t)},
    Composition: lambda op, file, t: {"parts": [file._operator(part, t) for part in op.parts]},
    Sum: lambda op, file, t: {"parts": [file._operator(part, t) for part in op.parts]},
}
"""How each kind of operator is written; its parameters decide it to the last bit."""

READERS: Mapping[str, Callable[[Mapping[str, Any], ProcessFile], LinearOperator]] = {
    "Identity": lambda tree, file: ssd.Identity(tuple(tree["shape"])),
    "Resize": lambda tree, file: ssd.Resize(tuple(tree["in_shape"]), tuple(tree["out_shape"]), tree["kernel"]),
    "Blur": lambda tree, file: ssd.Blur(tuple(tree["shape"]), tree["sigma"], tree["boundary"]),
    "Separable": lambda tree, file: ssd.Separable([file.arrays[name] for name in tree["matrices"]]),
    "Matrix": _read_matrix,
    "Scaled": lambda tree, file: tree["scale"] * file._read(tree["op"]),
    "Transpose": lambda tree, file: file._read(tree["op"]).T,
    "Composition": lambda tree, file: Composition(tuple(file._read(part) for part in tree["parts"])),
    "Sum": lambda tree, file: Sum(tuple(file._read(part) for part in tree["parts"])),
}
