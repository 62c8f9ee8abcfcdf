"""Training: the state of a run and its step, the loop around it, and what it costs."""

from ssdcore_torch.training.log import Logger, TensorBoard, WeightsAndBiases
from ssdcore_torch.training.loop import Extras, train
from ssdcore_torch.training.pictures import final_pictures
from ssdcore_torch.training.plan import plan, steps_within
from ssdcore_torch.training.prior import fitted_prior
from ssdcore_torch.training.replay import replay
from ssdcore_torch.training.trainer import NotFiniteError, Trainer

__all__ = [
    "Extras",
    "Logger",
    "NotFiniteError",
    "TensorBoard",
    "Trainer",
    "WeightsAndBiases",
    "final_pictures",
    "fitted_prior",
    "plan",
    "replay",
    "steps_within",
    "train",
]
