"""ssdcore in other people's libraries: diffusers, deepinv, scipy and PyLops.

::

    SSDScheduler, SSDPipeline, FlexiUNetModel    diffusers     pip install "ssdcore[interop]"
    to_deepinv, from_deepinv                     deepinv       pip install "ssdcore[deepinv]"
    to_scipy, from_scipy, to_pylops, from_pylops                pip install "ssdcore[interop]"

The last four are `ssdcore.interop`, which needs no torch. Nothing is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ssdcore import _extras
from ssdcore.interop import from_pylops, from_scipy, to_pylops, to_scipy
from ssdcore_torch.interop.physics import from_deepinv, to_deepinv

if TYPE_CHECKING:
    from ssdcore_torch.interop.diffusers_pipeline import FlexiUNetModel, SSDPipeline, SSDPrior
    from ssdcore_torch.interop.diffusers_scheduler import SSDScheduler, SSDSchedulerOutput

__all__ = [
    "FlexiUNetModel",
    "SSDPipeline",
    "SSDPrior",
    "SSDScheduler",
    "SSDSchedulerOutput",
    "from_deepinv",
    "from_pylops",
    "from_scipy",
    "to_deepinv",
    "to_pylops",
    "to_scipy",
]

# The names of these modules stand in the folders that pipelines are saved to.
_LAZY = {
    "FlexiUNetModel": "diffusers_pipeline",
    "SSDPipeline": "diffusers_pipeline",
    "SSDPrior": "diffusers_pipeline",
    "SSDScheduler": "diffusers_scheduler",
    "SSDSchedulerOutput": "diffusers_scheduler",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _extras.need("diffusers", name, "interop")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
