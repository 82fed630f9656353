"""The samples themselves, for analyses that need all of them: the closest samples, and Parzen windows."""

from typing import Any

import torch
from torch import Tensor

from rcg_lightning.metrics.sum_metric import SumMetric

MAX_STORED_BYTES = 512 * 2**20  # by all processes together


class StoredImages(SumMetric):
    """Stores the first images of all processes, as many as fit into MAX_STORED_BYTES.

    Args:
        shape: (C, H, W) of an image.
    """

    images: Any  # list of (B, C, H, W); one tensor once it is synchronised
    names: Any  # list of (B,)

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.limit = MAX_STORED_BYTES // (shape[0] * shape[1] * shape[2])
        self.seen = 0  # by this process
        self.add_lists({"images": (shape, torch.uint8), "names": ((), torch.int64)})

    def update(self, images: Tensor, index: Tensor | None = None) -> None:
        """Add images (B, C, H, W) uint8; ``index`` (B,) are their positions, by default in order of arrival."""
        names = torch.arange(self.seen, self.seen + len(images), device=images.device) if index is None else index
        self.seen += len(images)
        first = names < self.limit
        self.images.append(images[first].to(self.device))
        self.names.append(names[first].to(self.device))

    def compute(self) -> Tensor:
        """Return the stored images (n, C, H, W), in the order of their positions."""
        return self.concatenated("images")[self.concatenated("names").argsort(stable=True)]

    def reset(self) -> None:
        super().reset()
        self.seen = 0
