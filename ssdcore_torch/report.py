"""python -m ssdcore_torch.report: one HTML page of a run, to look at in any browser."""

from ssdcore_torch.commands import cli, report

if __name__ == "__main__":
    cli.run(report.main)
