"""How close samples are to training images in pixels, and how many of them are copies."""

import torch
from torch import Tensor

from rcg_lightning.data.neighbours import nearest
from rcg_lightning.metrics.sum_metric import SumMetric
from rcg_lightning.types import require


class CopyRate(SumMetric):
    """The mean pixel distance to the nearest training image, and the fraction of samples that are copies.

    Args:
        bank: training images (N, C, H, W) uint8.
        threshold: distance below which a sample is a copy; None does not count copies.
    """

    distance: Tensor
    copies: Tensor
    count: Tensor

    def __init__(self, bank: Tensor | None, threshold: float | None) -> None:
        super().__init__()
        assert bank is not None
        # in a tuple, so that the bank is no state of the metric; it follows the images, to be sent to a GPU only once
        self.bank, self.threshold = (bank,), threshold
        self.add_sums({"distance": (), "copies": (), "count": ()})

    def update(self, images: Tensor) -> None:
        """Add images (B, C, H, W) uint8."""
        if self.bank[0].device != images.device:
            self.bank = (self.bank[0].to(images.device),)
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
    """Return each image's pixel distance (n,) to the nearest image in ``bank``, and that image's index (n,) int64.

    The pixel distance is the root mean square difference of the pixels, in [0, 1].

    Args:
        images: uint8 (n, C, H, W).
        bank: uint8 (N, C, H, W).
    """
    shapes = tuple(images.shape[1:]), tuple(bank.shape[1:])
    require(shapes[0] == shapes[1], f"images of {shapes[0]} have no pixel distance to images of {shapes[1]}")
    distances, index = nearest(images.flatten(1), bank.flatten(1), 1)  # converted to floats in chunks
    return distances[:, 0] / (255 * images[0].numel() ** 0.5), index[:, 0]


def copy_threshold(evaluation: Tensor, train: Tensor) -> float:
    """Return the pixel distance below which an image is a copy: 1 % of evaluation images are that close to training.

    Args:
        evaluation: uint8 (n, C, H, W).
        train: uint8 (N, C, H, W).
    """
    return torch.quantile(nearest_images(evaluation, train)[0].double(), 0.01).item()
