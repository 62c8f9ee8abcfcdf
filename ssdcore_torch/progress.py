"""A bar while images are drawn."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from tqdm import tqdm

from ssdcore_torch.sampling import StepRecorder
from ssdcore_torch.streams import steady

DELAY = 1.0  # seconds: what takes less shows no bar


@contextmanager
def drawing_bar(
    n: int, batch_size: int, steps: int, on_step: StepRecorder | None = None, *, shown: bool = True
) -> Iterator[StepRecorder | None]:
    """What to hand to `generate` as `on_step`: it moves a bar on stderr, if that is a terminal, and calls `on_step`.

    Args:
        n: images that this process draws, `batch_size` at a time in `steps` steps each
        shown: False: no bar (on all ranks but the first)
    """
    stream = steady(sys.stderr)
    if not (shown and n and stream.isatty()):
        yield on_step
        return
    total = math.ceil(n / batch_size) * steps
    with tqdm(
        total=total, desc="drawing", unit="step", delay=DELAY, leave=False, dynamic_ncols=True, file=stream
    ) as bar:

        def record(t: int, x_t: Tensor, prediction: Tensor) -> None:
            bar.update()
            if on_step is not None:
                on_step(t, x_t, prediction)

        yield record
