"""How near samples come to training images in pixels, and how many are copies."""

import torch
from torch import Tensor

from rcg_lightning.data.neighbours import nearest
from rcg_lightning.metrics.sum_metric import SumMetric
from rcg_lightning.types import require


class PixelDistances(SumMetric):
    """Distances in pixels to the nearest training image: their mean, and how many samples are copies.

    Args:
        bank: training images (N, C, H, W) uint8.
        threshold: distance below which a sample counts as a copy; None: copies are not counted.
    """

    distance: Tensor
    copies: Tensor
    count: Tensor

    def __init__(self, bank: Tensor | None, threshold: float | None) -> None:
        super().__init__()
        assert bank is not None
        # in a tuple, so that moving the metric does not move the bank: it is read chunk by chunk
        self.bank, self.threshold = (bank,), threshold
        self.add_sums({"distance": (), "copies": (), "count": ()})

    def update(self, images: Tensor) -> None:
        """Add images (B, C, H, W) uint8."""
        found, _ = nearest_images(images, self.bank[0])
        found = found.to(self.distance.device).double()
        self.distance += found.sum()
        self.count += len(found)
        if self.threshold is not None:
            self.copies += (found < self.threshold).sum()

    def compute(self) -> dict[str, float]:
        """Return ``nearest`` and, where copies are counted, ``copy_rate``."""
        found = {"nearest": (self.distance / self.count).item()}
        return found if self.threshold is None else found | {"copy_rate": (self.copies / self.count).item()}


def nearest_images(images: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pixel distance of each image to its nearest in ``bank``, (n,), and which one that is, (n,) int64.

    The distance is the root mean square difference of the pixels, in [0, 1].

    Args:
        images: uint8 (n, C, H, W).
        bank: uint8 (N, C, H, W).
    """
    shapes = tuple(images.shape[1:]), tuple(bank.shape[1:])
    require(shapes[0] == shapes[1], f"images of {shapes[0]} have no pixel distance to those of {shapes[1]}")
    distances, index = nearest(images.flatten(1), bank.flatten(1), 1)  # floats are made chunk by chunk
    return distances[:, 0] / (255 * images[0].numel() ** 0.5), index[:, 0]


def copy_threshold(evaluation: Tensor, train: Tensor) -> float:
    """Return the distance below which an image counts as a copy: 1 % of evaluation images are as near to training.

    Args:
        eval: uint8 (n, C, H, W).
        train: uint8 (N, C, H, W).
    """
    return torch.quantile(nearest_images(evaluation, train)[0].double(), 0.01).item()
