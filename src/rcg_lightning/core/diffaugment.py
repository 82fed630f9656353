"""Differentiable augmentation (Zhao et al. 2020, arXiv 2006.10738): a discriminator sees all images disturbed.

Images made and real are disturbed by the same law, and the gradient flows through to the generator. Every image of
a batch (B, C, H, W) has draws of its own, from torch's generator on the images' device; shapes are static and nothing
is read back by the host. Images are in [-1, 1], so that what leaves the frame shows grey, and may leave that range.
"""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from rcg_lightning.config import ConfigMixin
from rcg_lightning.types import require


class Augmentation(ConfigMixin):
    """A random, differentiable disturbance of images."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""


class Colour(Augmentation):
    """Brightness moves by up to ±.5, saturation is scaled by 0 to 2, contrast by .5 to 1.5, in this order."""

    def __call__(self, x: Tensor) -> Tensor:
        brightness, saturation, contrast = torch.rand(3, len(x), 1, 1, 1, device=x.device, dtype=x.dtype)
        x = x + brightness - 0.5
        grey = x.mean(1, keepdim=True)  # (B, 1, H, W)
        x = grey + 2 * saturation * (x - grey)
        level = x.mean((1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
        return level + (contrast + 0.5) * (x - level)


class Translation(Augmentation):
    """Moves images by whole pixels, independently across and down.

    Args:
        ratio: largest move over the image's side, rounded to pixels.
    """

    def __init__(self, ratio: float = 0.125) -> None:
        require(0 <= ratio <= 1, f"a image moves by a share of its side, in [0, 1], not {ratio}")
        self.ratio = ratio

    def __call__(self, x: Tensor) -> Tensor:
        for dim in (2, 3):
            side = x.shape[dim]
            most = int(side * self.ratio + 0.5)
            moves = torch.randint(-most, most + 1, (len(x), 1), device=x.device)  # (B, 1)
            places = (torch.arange(side, device=x.device) + moves + 1).clamp(0, side + 1)  # (B, side), 0 is outside
            shape = [len(x), 1, 1, 1]
            shape[dim] = side
            framed = F.pad(x, (0, 0, 1, 1) if dim == 2 else (1, 1, 0, 0))
            x = framed.gather(dim, places.view(shape).expand_as(x))
        return x


class Cutout(Augmentation):
    """Empties a rectangle, whose centre may lie anywhere in the image.

    Args:
        ratio: side of the rectangle over that of the image, rounded to pixels.
    """

    def __init__(self, ratio: float = 0.5) -> None:
        require(0 <= ratio <= 1, f"what is cut out is a share of the image's side, in [0, 1], not {ratio}")
        self.ratio = ratio

    def __call__(self, x: Tensor) -> Tensor:
        inside = []
        for dim in (2, 3):
            side = x.shape[dim]
            cut = int(side * self.ratio + 0.5)
            centre = torch.randint(0, side + 1 - cut % 2, (len(x), 1), device=x.device)  # (B, 1)
            past = torch.arange(side, device=x.device) - (centre - cut // 2)  # (B, side), from the rectangle's edge
            inside.append((past >= 0) & (past < cut))
        rows, columns = inside
        return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


class DiffAugment(Augmentation):
    """Several augmentations, one after the other.

    Args:
        steps: in their order; None for colour, translation and cutout, the paper's policy for few images.
    """

    def __init__(self, steps: list[Augmentation] | None = None) -> None:
        self.steps = [Colour(), Translation(), Cutout()] if steps is None else steps

    def __call__(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x
