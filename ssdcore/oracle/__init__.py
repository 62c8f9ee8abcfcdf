"""The oracle: what a sampler does, exactly, without training.

On Gaussian data the optimal denoiser is linear, so a sampler's output law is linear algebra: `sampler_error` ranks
noise, resolution schedules, step counts and samplers, and `design_levels` picks the cheapest schedule within a
tolerance. On a finite set of images the optimal denoiser is a weighted mean: `EmpiricalDenoiser` stands in for a
perfect network.
"""

from ssdcore.oracle._design import Design, Schedule, design_levels
from ssdcore.oracle._empirical import Coverage, EmpiricalDenoiser, coverage
from ssdcore.oracle._fit import Fit, fit
from ssdcore.oracle._information import free_starts, level_information, mutual_information, pixel_share, signal_share
from ssdcore.oracle._information_design import (
    band_information,
    design_by_information,
    information_starts,
    natural_spectrum,
)
from ssdcore.oracle._law import SamplerLaw, sampler_error, sampler_law
from ssdcore.oracle._times import optimal_times
from ssdcore.placement import spread_times

__all__ = [
    "Coverage",
    "Design",
    "EmpiricalDenoiser",
    "Fit",
    "SamplerLaw",
    "Schedule",
    "band_information",
    "coverage",
    "design_by_information",
    "design_levels",
    "fit",
    "free_starts",
    "information_starts",
    "level_information",
    "mutual_information",
    "natural_spectrum",
    "optimal_times",
    "pixel_share",
    "sampler_error",
    "sampler_law",
    "signal_share",
    "spread_times",
]
