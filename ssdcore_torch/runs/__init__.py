"""Runs: a folder in which a model is trained, and what can be done with it.

`Run` is what the commands are written with; `begin` is how a run, new or to be resumed, gets everything checked before
anything is written.
"""

from ssdcore_torch.runs._begin import Session, begin, withdraw
from ssdcore_torch.runs._configure import Asked, configure, naming
from ssdcore_torch.runs._draw import Drawing, draw_images, labels_of
from ssdcore_torch.runs._evaluate import USUAL, Evaluated, compare_reports, evaluate_files, evaluate_run
from ssdcore_torch.runs._run import Run, finish, load_run

__all__ = [
    "USUAL",
    "Asked",
    "Drawing",
    "Evaluated",
    "Run",
    "Session",
    "begin",
    "compare_reports",
    "configure",
    "draw_images",
    "evaluate_files",
    "evaluate_run",
    "finish",
    "labels_of",
    "load_run",
    "naming",
    "withdraw",
]
