"""How good samples are: distances between sets of images, in feature spaces that need no download.

::

    extractor = open_extractor("lite0")
    figures(extractor(samples), extractor(data))     # both uint8 (n, 3, h, w), as many of one as of the other

or, in whole, `open_reference` and `evaluate_network`; `python -m ssdcore_torch.evaluate` is the command.
"""

from ssdcore_torch.metrics._distances import (
    Baseline,
    ClassBalance,
    Memorisation,
    class_balance,
    figures,
    frechet_distance,
    kernel_distance,
    memorisation,
    nearest,
    nearest_others,
    precision_recall,
    require_torchmetrics,
)
from ssdcore_torch.metrics._evaluation import (
    Evaluation,
    Samples,
    check_count,
    collect,
    draw,
    evaluate,
    evaluate_network,
)
from ssdcore_torch.metrics._features import NAMED, Extractor, open_extractor
from ssdcore_torch.metrics._reference import (
    MOST,
    Measured,
    Reference,
    cache_folder,
    image_batches,
    measure,
    open_reference,
    progress,
)
from ssdcore_torch.metrics._spectrum import radial_power, radial_spectrum_ratio

__all__ = [
    "MOST",
    "NAMED",
    "Baseline",
    "ClassBalance",
    "Evaluation",
    "Extractor",
    "Measured",
    "Memorisation",
    "Reference",
    "Samples",
    "cache_folder",
    "check_count",
    "class_balance",
    "collect",
    "draw",
    "evaluate",
    "evaluate_network",
    "figures",
    "frechet_distance",
    "image_batches",
    "kernel_distance",
    "measure",
    "memorisation",
    "nearest",
    "nearest_others",
    "open_extractor",
    "open_reference",
    "precision_recall",
    "progress",
    "radial_power",
    "radial_spectrum_ratio",
    "require_torchmetrics",
]
