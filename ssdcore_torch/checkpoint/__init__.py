"""Run folders: safetensors and JSON, nothing that runs code when it is read, each file there as a whole or not at all.

The files of a run::

    config.json          the `Config`
    data.json            a fingerprint of the training images
    checkpoints/         what training continues from, the newest few (`State`; the files of one: `_state.py`)
    model.safetensors    the newest checkpoint's weights, for others to read
    ema.safetensors      their moving average: what samples are drawn with
    snapshots/           averages kept to make others from (`ssdcore_torch.ema`), where asked for
    prior.safetensors    mean and covariance of the clean images at the smallest size, for the law of x_T (where fitted)
    residuals.safetensors  what the average's predictions leave open, for steps exact to second moments
    log.jsonl            one line an interval: step, loss, learning rate, images per second
    samples.png  denoising.png  report.html
    .lock                held by the process that trains

A run without checkpoints/ holds weights of which no optimizer is known (`ssdcore_torch.convert`), with their checksums
in a manifest.json.
"""

from ssdcore_torch.checkpoint._files import (
    Tensors,
    digest,
    load_tensors,
    save_tensors,
)
from ssdcore_torch.checkpoint._layout import (
    check_folders,
    checkpoints,
    discard,
    is_free,
    never_saved,
    was_saved,
)
from ssdcore_torch.checkpoint._lock import LOCK, hold, release
from ssdcore_torch.checkpoint._reading import (
    check_data,
    load_state,
    newest_sound,
    prior_is_kept,
    residuals_are_kept,
)
from ssdcore_torch.checkpoint._resume import (
    RESUMABLE,
    Changes,
    read_config,
    resumable_changes,
    save_config,
    save_data,
)
from ssdcore_torch.checkpoint._run import (
    OpenRun,
    Weights,
    build_network,
    fill_network,
    load_prior,
    load_residuals,
    load_weights,
    newest_weights,
    save_account,
    save_prior,
    save_residuals,
)
from ssdcore_torch.checkpoint._state import State, save_state
from ssdcore_torch.official import import_official

__all__ = [
    "LOCK",
    "RESUMABLE",
    "Changes",
    "OpenRun",
    "State",
    "Tensors",
    "Weights",
    "build_network",
    "check_data",
    "check_folders",
    "checkpoints",
    "digest",
    "discard",
    "fill_network",
    "hold",
    "import_official",
    "is_free",
    "load_prior",
    "load_residuals",
    "load_state",
    "load_tensors",
    "load_weights",
    "never_saved",
    "newest_sound",
    "newest_weights",
    "prior_is_kept",
    "read_config",
    "release",
    "residuals_are_kept",
    "resumable_changes",
    "save_account",
    "save_config",
    "save_data",
    "save_prior",
    "save_residuals",
    "save_state",
    "save_tensors",
    "was_saved",
]
