"""python -m ssdcore_torch.prepare."""

from ssdcore_torch.commands import cli, prepare

cli.run(prepare.main)
