"""python -m ssdcore_torch.ema."""

from ssdcore_torch.commands import cli, ema

cli.run(ema.main)
