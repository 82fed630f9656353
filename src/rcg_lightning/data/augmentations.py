"""Augmentations of whole batches on their device: each image has its own parameters, one tensor operation does all.

The parameters come from torch's global generator on the host. So they are the same on every device, and a run that
reseeds the generator before each batch resumes bit for bit. Only noise is sampled on the images' device.
"""

import math
from abc import abstractmethod
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from rcg_lightning.arguments import BelowOne, PositiveFloat, Range, Share, UnitInterval
from rcg_lightning.config import ConfigMixin
from rcg_lightning.core.colour import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    binomial_blur,
    gaussian_blur,
    luma,
)
from rcg_lightning.core.transfers import from_pinned_memory
from rcg_lightning.types import require

_ALIGNMENT = 8  # bytes of the largest number in a copy

# strengths of brightness, contrast, saturation and hue; half a turn reaches every hue
Jitter = tuple[UnitInterval, UnitInterval, UnitInterval, Annotated[float, Range(0, 0.5)]]


class Augmentation(ConfigMixin):
    """Base of random changes of images; ``crops`` is True where the change includes a random crop.

    Two views may start from the same image if their augmentations crop; otherwise the loader must give two crops.
    """

    crops: bool

    def __call__(self, image: Tensor) -> Tensor:
        """Change image (B, C, H, W) in [0, 1] at random."""
        return augmented((self, image))[0]

    @abstractmethod
    def draw(self, image: Tensor) -> Any:
        """Return a change of image (B, C, H, W) float32, chosen at random: nested tuples of tensors.

        They are on the host, but for noise, which is on the images' device.
        """

    @abstractmethod
    def augment(self, image: Tensor, drawn: Any) -> Tensor:
        """Change image (B, C, H, W) float32 in [0, 1] as ``draw`` chose, all on one device."""


def augmented(*views: tuple[Augmentation, Tensor]) -> list[Tensor]:
    """Change each image (B, C, H, W) in [0, 1] by its augmentation; all changes reach the device in one copy.

    In float32: autocast would mix types that kernels reject.
    """
    with torch.autocast(views[0][1].device.type, enabled=False):
        full = [(change, image.to(torch.promote_types(image.dtype, torch.float32))) for change, image in views]
        drawn = moved_to(full[0][1], [change.draw(image) for change, image in full])
        return [change.augment(image, chosen) for (change, image), chosen in zip(full, drawn)]


def moved_to(image: Tensor, drawn: Any) -> Any:
    """Move the host's tensors in nested tuples to the images' device in one copy; floats get the type of ``image``."""
    drawn = apply_to_collection(drawn, Tensor, lambda one: one.to(image.dtype) if one.is_floating_point() else one)
    if image.device.type == "cpu":
        return drawn
    host: list[Tensor] = []
    apply_to_collection(drawn, Tensor, lambda one: host.append(one) if one.device.type == "cpu" else None)
    moved = iter(in_one_copy(host, image.device))
    return apply_to_collection(drawn, Tensor, lambda one: next(moved) if one.device.type == "cpu" else one)


def in_one_copy(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """Return the host's ``tensors`` on ``device``; a GPU takes them from pinned memory, and nothing waits for it."""
    padded = [F.pad(one.contiguous().view(-1).view(torch.uint8), (0, -one.nbytes % _ALIGNMENT)) for one in tensors]
    parts = from_pinned_memory(torch.cat(padded), device).split([len(one) for one in padded])
    return [part[: one.nbytes].view(one.dtype).view(one.shape) for part, one in zip(parts, tensors)]


class SmallGreyAugmentation(Augmentation):
    """Small affine transforms, contrast, blur and noise for grey images on black, such as digits; no flips.

    All parameters are uniform and independent for each image.

    Args:
        scale: the size is multiplied by a factor in 1 ± scale.
        rotation: largest angle in degrees, in both directions.
        shear: largest shear, in both directions.
        shift: largest shift in all directions, as a fraction of the image's size.
        contrast: pixels are multiplied by a factor in 1 ± contrast.
        blur: probability of a 3 x 3 binomial blur.
        noise: the standard deviation of the Gaussian noise lies in [0, noise].
    """

    crops = True

    def __init__(
        self,
        scale: BelowOne = 0.15,
        rotation: Annotated[float, Range(0, 180)] = 10.0,
        shear: UnitInterval = 0.1,
        shift: UnitInterval = 0.08,
        contrast: UnitInterval = 0.3,
        blur: UnitInterval = 0.3,
        noise: UnitInterval = 0.05,
    ) -> None:
        self.spread = torch.tensor([scale, math.radians(rotation), shear, 2 * shift, 2 * shift, contrast])
        self.blur = blur
        self.noise = noise

    def draw(self, image: Tensor) -> tuple[Tensor, ...]:
        n = len(image)
        parameters = (torch.rand(n, 6) * 2 - 1) * self.spread
        scale, angle, shear, right, down, contrast = parameters.unbind(1)
        noise, blurred = torch.rand(2, n)
        cos, sin = torch.cos(angle) / (1 + scale), torch.sin(angle) / (1 + scale)
        matrix = torch.stack([cos, shear * cos - sin, right, sin, cos + shear * sin, down], dim=1)
        factors = torch.stack([1 + contrast, blurred < self.blur, self.noise * noise])  # (3, B)
        return matrix.view(n, 2, 3), factors, torch.randn(image.shape, dtype=image.dtype, device=image.device)

    def augment(self, image: Tensor, drawn: tuple[Tensor, ...]) -> Tensor:
        matrix, factors, noise = drawn
        moved = _resample(image, matrix, outside="zeros")
        contrast, blurred, deviation = factors[..., None, None, None]
        moved = torch.lerp(moved, binomial_blur(moved), blurred) * contrast
        return torch.addcmul(moved, noise, deviation).clamp_(0, 1)


class SmallColourAugmentation(Augmentation):
    """Random resized crop, flip, colour jitter and greyscale for small colour images such as CIFAR-10's.

    The crop is a bilinear resampling without antialiasing, which suits crops that are enlarged.

    Args:
        area: smallest area of a crop, as a fraction of the image; the aspect ratio lies between 3/4 and 4/3.
        flip: mirror images with probability 1/2.
        jitter: strengths of brightness, contrast, saturation and hue.
        jitter_probability: probability of the colour jitter.
        grey_probability: probability of a grey image.
    """

    crops = True

    def __init__(
        self,
        area: Share = 0.2,
        flip: bool = True,
        jitter: Jitter = (0.4, 0.4, 0.4, 0.1),
        jitter_probability: UnitInterval = 0.8,
        grey_probability: UnitInterval = 0.2,
    ) -> None:
        self.area = area
        self.flip = flip
        self.jitter = tuple(jitter)
        self.jitter_probability = jitter_probability
        self.grey_probability = grey_probability

    def draw(self, image: Tensor) -> tuple[Any, ...]:
        crops = _random_crops(len(image), self.area, self.flip)
        jitter = draw_jitter(image, self.jitter, self.jitter_probability)
        return crops, jitter, torch.rand(len(image)) < self.grey_probability

    def augment(self, image: Tensor, drawn: tuple[Any, ...]) -> Tensor:
        crops, jitter, grey = drawn
        return turn_grey(colour_jitter(_resample(image, crops, outside="border"), jitter), grey)


class MoCoV3Colour(Augmentation):
    """The colour augmentation of MoCo v3, for views that the loader has cropped and flipped.

    Colour jitter, greyscale, Gaussian blur and solarisation, in this order. The official code rounds to uint8 after
    each operation; here images stay floats. First view: ``blur_probability`` 1. Second view: ``blur_probability`` 0.1
    and ``solarize_probability`` 0.2.

    Args:
        jitter: strengths of brightness, contrast, saturation and hue.
        blur: smallest and largest standard deviation of the blur in pixels; the default is for images of 224 pixels.
    """

    crops = False

    def __init__(
        self,
        jitter: Jitter = (0.4, 0.4, 0.2, 0.1),
        jitter_probability: UnitInterval = 0.8,
        grey_probability: UnitInterval = 0.2,
        blur: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0),
        blur_probability: UnitInterval = 1.0,
        solarize_probability: UnitInterval = 0.0,
    ) -> None:
        require(blur[0] <= blur[1], f"MoCoV3Colour: blur should ascend, not {blur}")
        self.jitter = tuple(jitter)
        self.jitter_probability = jitter_probability
        self.grey_probability = grey_probability
        self.blur = tuple(blur)
        self.blur_probability = blur_probability
        self.solarize_probability = solarize_probability

    def draw(self, image: Tensor) -> tuple[Any, ...]:
        jitter = draw_jitter(image, self.jitter, self.jitter_probability)
        grey = torch.rand(len(image)) < self.grey_probability
        low, high = self.blur
        sigma = low + (high - low) * torch.rand(len(image))
        blurred = (torch.rand(len(image)) < self.blur_probability).nonzero()[:, 0]
        return jitter, grey, blurred, sigma[blurred], torch.rand(len(image)) < self.solarize_probability

    def augment(self, image: Tensor, drawn: tuple[Any, ...]) -> Tensor:
        jitter, grey, blurred, sigma, inverted = drawn
        image = turn_grey(colour_jitter(image, jitter), grey)
        if len(blurred):
            radius = math.ceil(3 * self.blur[1])
            image = image.index_copy(0, blurred, gaussian_blur(image[blurred], sigma, radius))
        return torch.where(inverted[:, None, None, None] & (image >= 0.5), 1 - image, image)


# one operation of the jitter, the images that it changes, and by how much: number, (n,) int64, (n,)
JitterStep = tuple[int, Tensor, Tensor]
_OPERATIONS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def draw_jitter(image: Tensor, strengths: tuple[float, ...], probability: float) -> list[JitterStep]:
    """Choose changes of brightness, contrast, saturation and hue of image (B, C, H, W), and their order for each image.

    Factors are uniform in 1 ± strength, rotations of the hue in ± strength. One-channel images have no saturation and
    no hue. The images of a step are chosen on the host, without waiting for the device, and only they are computed.
    """
    n = len(image)
    order = torch.rand(n, 4).argsort(dim=1)  # (B, 4), the operation of each step
    amounts = (torch.rand(n, 4) * 2 - 1) * torch.tensor(strengths)
    active = torch.rand(n) < probability
    steps = []
    for step in range(4):
        for number in range(2 if image.shape[1] == 1 else 4):
            examples = (active & (order[:, step] == number)).nonzero()[:, 0]
            if len(examples) and strengths[number]:
                steps.append((number, examples, amounts[examples, number]))
    return steps


def colour_jitter(image: Tensor, steps: list[JitterStep]) -> Tensor:
    """Apply ``draw_jitter``'s steps to image (B, C, H, W) in [0, 1].

    Agrees with torchvision's ColorJitter up to its rounding to uint8.
    """
    image = image.clone()
    for number, examples, amounts in steps:
        image[examples] = _OPERATIONS[number](image[examples], amounts)
    return image


def turn_grey(image: Tensor, grey: Tensor) -> Tensor:
    """Turn the images (B, C, H, W) of the mask ``grey`` (B,) grey: all their channels become the luma."""
    return torch.where(grey[:, None, None, None], luma(image), image)


def _random_crops(n: int, area: float, flip: bool) -> Tensor:
    """Return affine maps (n, 2, 3) of crops that cover ``area`` to 1 of the image; ``flip`` mirrors half of them."""
    sizes, ratios, right, down, mirror = torch.rand(5, n)
    sizes = area + (1 - area) * sizes
    ratios = torch.exp((2 * ratios - 1) * math.log(4 / 3))
    width, height = (sizes * ratios).sqrt().clamp_max(1), (sizes / ratios).sqrt().clamp_max(1)
    zeros = torch.zeros(n)
    sign = torch.where(mirror < 0.5, -1.0, 1.0) if flip else 1.0
    rows = [sign * width, zeros, (2 * right - 1) * (1 - width), zeros, height, (2 * down - 1) * (1 - height)]
    return torch.stack(rows, dim=1).view(n, 2, 3)


def _resample(image: Tensor, matrix: Tensor, outside: str) -> Tensor:
    """Sample image (B, C, H, W) under the affine maps ``matrix`` (B, 2, 3), bilinear."""
    grid = F.affine_grid(matrix, list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode=outside, align_corners=False)
