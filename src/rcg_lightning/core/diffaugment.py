"""Differentiable augmentation (Zhao et al. 2020, arXiv 2006.10738): a discriminator sees augmented images only.

Generated and real images are augmented with the same distribution, and the gradient flows through to the generator.
Each image of a batch (B, C, H, W) has its own random numbers, from torch's generator on the images' device. Shapes are
static and the host reads nothing back. Images are in [-1, 1], so that pixels from outside the image are grey. Augmented
images may leave that range.
"""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from rcg_lightning.arguments import UnitInterval
from rcg_lightning.config import ConfigMixin


class Augmentation(ConfigMixin):
    """A random, differentiable change of images."""

    def __call__(self, x: Tensor) -> Tensor:
        """Change x (B, C, H, W) at random, in float32: under autocast a generator network's output is bf16."""
        with torch.autocast(x.device.type, enabled=False):
            return self.augment(x.to(torch.promote_types(x.dtype, torch.float32)))

    @abstractmethod
    def augment(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""


class Colour(Augmentation):
    """Random colours: brightness plus -0.5 to 0.5, then saturation times 0 to 2, then contrast times 0.5 to 1.5."""

    def augment(self, x: Tensor) -> Tensor:
        brightness, saturation, contrast = torch.rand(3, len(x), 1, 1, 1, device=x.device, dtype=x.dtype)
        x = x + brightness - 0.5
        grey = x.mean(1, keepdim=True)  # (B, 1, H, W)
        x = grey + 2 * saturation * (x - grey)
        mean = x.mean((1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
        return mean + (contrast + 0.5) * (x - mean)


class Translation(Augmentation):
    """Shift images by whole pixels, vertically and horizontally, independently.

    Args:
        ratio: largest shift over the image's side, rounded to pixels.
    """

    def __init__(self, ratio: UnitInterval = 0.125) -> None:
        self.ratio = ratio

    def augment(self, x: Tensor) -> Tensor:
        for dim in (2, 3):
            side = x.shape[dim]
            largest = int(side * self.ratio + 0.5)
            shifts = torch.randint(-largest, largest + 1, (len(x), 1), device=x.device)  # (B, 1)
            sources = (torch.arange(side, device=x.device) + shifts + 1).clamp(0, side + 1)  # (B, side), 0 is outside
            shape = [len(x), 1, 1, 1]
            shape[dim] = side
            padded = F.pad(x, (0, 0, 1, 1) if dim == 2 else (1, 1, 0, 0))
            x = padded.gather(dim, sources.view(shape).expand_as(x))
        return x


class Cutout(Augmentation):
    """Set a rectangle to zero. Its centre lies anywhere in the image.

    Args:
        ratio: side of the rectangle over that of the image, rounded to pixels.
    """

    def __init__(self, ratio: UnitInterval = 0.5) -> None:
        self.ratio = ratio

    def augment(self, x: Tensor) -> Tensor:
        inside = []
        for dim in (2, 3):
            side = x.shape[dim]
            cut = int(side * self.ratio + 0.5)
            centre = torch.randint(0, side + 1 - cut % 2, (len(x), 1), device=x.device)  # (B, 1)
            offset = torch.arange(side, device=x.device) - (centre - cut // 2)  # (B, side), from the rectangle's edge
            inside.append((offset >= 0) & (offset < cut))
        rows, columns = inside
        return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


class DiffAugment(Augmentation):
    """Several augmentations, one after the other.

    Args:
        steps: the augmentations in order; None for colour, translation and cutout, the paper's policy for few images.
    """

    def __init__(self, steps: list[Augmentation] | None = None) -> None:
        self.steps = [Colour(), Translation(), Cutout()] if steps is None else steps

    def augment(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x
