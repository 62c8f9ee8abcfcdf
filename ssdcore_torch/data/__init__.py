"""Training images: read from where they are, decoded once or as they are wanted, in an order that is a pure function.

`open_images` gives an `ImageSet` (all decoded, in memory) or an `ImageStream` (decoded by worker processes when asked
for); a `Feed` makes batches of either. What a step gets is a function of (seed, step) alone: the indices (`Order`), the
flips and the random crops are drawn for the whole global batch, of which each rank takes its slice. So a resumed run
replays nothing, a run on several ranks sees the batches of a run on one, and there is no loader state to save.
"""

from ssdcore_torch.data._feed import Feed, ImageBatch
from ssdcore_torch.data._folders import image_files
from ssdcore_torch.data._images import ImageSet, ImageStream, load_images, open_images
from ssdcore_torch.data._order import Order
from ssdcore_torch.data._pixels import CHANNELS, called, fit, to_channels, to_rgb
from ssdcore_torch.data._signals import open_data
from ssdcore_torch.data._sources import Choices
from ssdcore_torch.data._where import EMBEDDED, FROM_PYTHON, absolute, is_address, open_source, refuse_untyped
from ssdcore_torch.workers import WorkerKilledError

__all__ = [
    "CHANNELS",
    "EMBEDDED",
    "FROM_PYTHON",
    "Choices",
    "Feed",
    "ImageBatch",
    "ImageSet",
    "ImageStream",
    "Order",
    "WorkerKilledError",
    "absolute",
    "called",
    "fit",
    "image_files",
    "is_address",
    "load_images",
    "open_data",
    "open_images",
    "open_source",
    "refuse_untyped",
    "to_channels",
    "to_rgb",
]
