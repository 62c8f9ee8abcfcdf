"""python -m ssdcore_torch.train: train a Flexi-UNet, draw samples, leave a run folder.

Under `torchrun --nproc_per_node=N -m -- ssdcore_torch.train …` the batch is shared by N processes, one a device.
"""

from ssdcore_torch.commands import cli, train

if __name__ == "__main__":
    cli.run(train.main)
