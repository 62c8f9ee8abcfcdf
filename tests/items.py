"""A map-style Dataset of a list."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset


class Items(Dataset[Any]):
    """Of these items; `classes` and `targets`, as torchvision's data sets have them, where they are set."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]
