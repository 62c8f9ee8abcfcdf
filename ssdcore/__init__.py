"""Diffusion with linear degradations: operators, schedules, and exact transitions and posteriors.

Examples in this reference assume

::

    import numpy as np
    import ssdcore as ssd
"""

from __future__ import annotations

import importlib as _importlib
import typing as _typing

from ssdcore.conditioning import InadmissibleProcess, general_posterior, general_transition
from ssdcore.gaussian import Covariance, Gaussian
from ssdcore.operators import Blur, Functional, Identity, LinearOperator, Matrix, Resize, Separable
from ssdcore.process import LinearDiffusion, Path
from ssdcore.schedules import NoiseSchedule, ResolutionSchedule
from ssdcore.spectral import ConvergenceError, Decomposition, Modes

if _typing.TYPE_CHECKING:
    from ssdcore import interop, multistep, oracle, plotting, sampling, testing, theorems

__version__ = "0.1.0"

# Loaded on first use: they import sympy, hypothesis or matplotlib, or are not needed to use operators and processes.
_LAZY_MODULES = ("interop", "multistep", "oracle", "plotting", "sampling", "testing", "theorems")

__all__ = [
    "Blur",
    "ConvergenceError",
    "Covariance",
    "Decomposition",
    "Functional",
    "Gaussian",
    "Identity",
    "InadmissibleProcess",
    "LinearDiffusion",
    "LinearOperator",
    "Matrix",
    "Modes",
    "NoiseSchedule",
    "Path",
    "Resize",
    "ResolutionSchedule",
    "Separable",
    "general_posterior",
    "general_transition",
    "interop",
    "multistep",
    "oracle",
    "plotting",
    "sampling",
    "testing",
    "theorems",
]


def __getattr__(name: str) -> _typing.Any:
    if name in _LAZY_MODULES:
        return _importlib.import_module(f"ssdcore.{name}")
    raise AttributeError(f"module 'ssdcore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
