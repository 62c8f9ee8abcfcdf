"""A small classifier of the real garments, whose features samples are compared in:

    python benchmarks/quality/garment_features.py TRAIN.npz TEST.npz OUT.pt

Trained once, before anything is compared, on the real training images alone, at their size (three epochs, one seed,
some minutes on one core). OUT.pt is a TorchScript program from uint8 images (n, 3, h, w) to 64 features (n, 64), which
`python -m ssdcore_torch.evaluate --features OUT.pt --trust-features` takes, too; `OUT.pt` with the suffix .classes.pt
gives the 10 logits. Prints its accuracy on the test images.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES, EPOCHS, BATCH, RATE = 64, 3, 128, 2e-3


class Trunk(nn.Module):
    """uint8 (n, 1 or 3, h, w), grey -> (n, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 96, 3, stride=2, padding=1), nn.BatchNorm2d(96), nn.ReLU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.LazyLinear(FEATURES), nn.ReLU(),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images[:, :1].float() / 127.5 - 1)


class Classes(nn.Module):
    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk, self.head = trunk, nn.Linear(FEATURES, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))


def read(path: Path) -> tuple[Tensor, Tensor]:
    with np.load(path) as data:
        return torch.from_numpy(data["images"]).permute(0, 3, 1, 2), torch.from_numpy(data["labels"]).long()


def trained(images: Tensor, labels: Tensor) -> Classes:
    torch.manual_seed(0)
    net = Classes(Trunk())
    net(images[:2])
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=1e-2)
    steps = EPOCHS * (len(images) // BATCH)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            optimizer.zero_grad()
            F.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
            plan.step()
    return net.eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    started = time.process_time()
    net = trained(*read(args.train))
    images, labels = read(args.test)
    hits = sum(int((net(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500)))
    torch.jit.save(torch.jit.trace(net.trunk, images[:2].expand(-1, 3, -1, -1)), args.out)
    torch.jit.save(torch.jit.trace(net, images[:2].expand(-1, 3, -1, -1)), args.out.with_suffix(".classes.pt"))
    print(f"accuracy on {len(labels)} test images {hits / len(labels):.4f}, {time.process_time() - started:.0f} CPU s")


if __name__ == "__main__":
    main()
