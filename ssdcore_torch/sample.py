"""python -m ssdcore_torch.sample: draw images from a run.

Under `torchrun --nproc_per_node=N -m -- ssdcore_torch.sample …` N processes share the images, which stay the same.
"""

from ssdcore_torch.commands import cli, sample

if __name__ == "__main__":
    cli.run(sample.main)
