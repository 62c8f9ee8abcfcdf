"""LinearDiffusion: a diffusion whose states are linearly degraded, with its exact transitions and posteriors.

`Timeline` is what holds at each time, `LinearDiffusion` adds the laws between times: `steps` has the numbers of a known
pair, `timed` the laws for arrays of times and traced ones.
"""

from ssdcore.conditioning import InadmissibleProcess
from ssdcore.process.diffusion import LinearDiffusion
from ssdcore.process.timeline import Path, Timeline

__all__ = ["InadmissibleProcess", "LinearDiffusion", "Path", "Timeline"]
