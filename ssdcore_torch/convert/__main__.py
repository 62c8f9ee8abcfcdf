"""python -m ssdcore_torch.convert."""

from ssdcore_torch.commands import cli, convert

cli.run(convert.main)
