"""A page for every run: one HTML file with its losses, samples, chain, figures, settings and commands.

The file needs no network and runs nothing but the script in it: open it in any browser, or send it to somebody.
"""

from ssdcore_torch.reports._report import write_report

__all__ = ["write_report"]
