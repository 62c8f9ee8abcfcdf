"""python -m ssdcore_torch.evaluate: how good a run's samples are.

Under `torchrun --nproc_per_node=N -m -- ssdcore_torch.evaluate RUN …` N processes share the work, on the same samples
(`--` keeps torchrun from taking `--n` for an abbreviation of its own options).
"""

from ssdcore_torch.commands import cli, evaluate

if __name__ == "__main__":
    cli.run(evaluate.main)
