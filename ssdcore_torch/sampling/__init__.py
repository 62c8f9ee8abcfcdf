"""Drawing images: the chain of exact posteriors from x_T to x_0, its inverse, and the times it visits."""

from ssdcore.sampling import SAMPLERS, Sampler
from ssdcore_torch.sampling._encoding import Encoding, decode, encode, interpolate
from ssdcore_torch.sampling._generate import LARGEST_FITTED_PRIOR, fit_moments, generate, to_bytes, to_float
from ssdcore_torch.sampling._measure import measure_residuals, measured_times
from ssdcore_torch.sampling._placement import PLACEMENTS, Placement, sampling_times
from ssdcore_torch.sampling._precision import drawing_network
from ssdcore_torch.sampling._residuals import ResidualSpectra, reverse_step
from ssdcore_torch.sampling._shared import generate_shared
from ssdcore_torch.sampling._walk import StepRecorder

__all__ = [
    "LARGEST_FITTED_PRIOR",
    "PLACEMENTS",
    "SAMPLERS",
    "Encoding",
    "Placement",
    "ResidualSpectra",
    "Sampler",
    "StepRecorder",
    "decode",
    "drawing_network",
    "encode",
    "fit_moments",
    "generate",
    "generate_shared",
    "interpolate",
    "measure_residuals",
    "measured_times",
    "reverse_step",
    "sampling_times",
    "to_bytes",
    "to_float",
]
