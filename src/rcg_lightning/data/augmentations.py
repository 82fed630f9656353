"""Augmentations of whole batches on their device: each image has its own parameters, one tensor operation does all.

The parameters come from torch's global generator on the host. So they are the same on every device, and a run that
reseeds the generator before each batch resumes bit for bit. Only noise is sampled on the images' device.
"""

import math
from abc import abstractmethod
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from rcg_lightning.arguments import BelowOne, PositiveFloat, Range, Share, UnitInterval
from rcg_lightning.config import ConfigMixin
from rcg_lightning.types import require

GREY = (0.299, 0.587, 0.114)  # luma of ITU-R 601, which Pillow and torchvision use


# strengths of brightness, contrast, saturation and hue; half a turn reaches every hue
Jitter = tuple[UnitInterval, UnitInterval, UnitInterval, Annotated[float, Range(0, 0.5)]]


class Augmentation(ConfigMixin):
    """Base of random changes of images; ``crops`` is True where the change includes a random crop.

    Two views may start from the same image if their augmentations crop; otherwise the loader must give two crops.
    """

    crops: bool

    def __call__(self, image: Tensor) -> Tensor:
        """Change image (B, C, H, W) in [0, 1] at random, in float32: autocast would mix types that kernels reject."""
        with torch.autocast(image.device.type, enabled=False):
            return self.augment(image.to(torch.promote_types(image.dtype, torch.float32)))

    @abstractmethod
    def augment(self, image: Tensor) -> Tensor:
        """Change image (B, C, H, W) float32 in [0, 1] at random."""


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

    def augment(self, image: Tensor) -> Tensor:
        n = len(image)
        parameters = (torch.rand(n, 6) * 2 - 1) * self.spread
        scale, angle, shear, right, down, contrast = parameters.unbind(1)
        noise, blurred = torch.rand(2, n)
        cos, sin = torch.cos(angle) / (1 + scale), torch.sin(angle) / (1 + scale)
        matrix = torch.stack([cos, shear * cos - sin, right, sin, cos + shear * sin, down], dim=1)
        moved = _resample(image, matrix.view(n, 2, 3), outside="zeros")
        factors = torch.stack([1 + contrast, blurred < self.blur, self.noise * noise])  # (3, B)
        contrast, blurred, noise = _like(factors, image)[..., None, None, None]
        moved = torch.lerp(moved, _binomial_blur(moved), blurred) * contrast
        return torch.addcmul(moved, torch.randn_like(moved), noise).clamp_(0, 1)


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

    def augment(self, image: Tensor) -> Tensor:
        image = _resample(image, _random_crops(len(image), self.area, self.flip), outside="border")
        image = colour_jitter(image, self.jitter, self.jitter_probability)
        return random_grey(image, self.grey_probability)


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

    def augment(self, image: Tensor) -> Tensor:
        image = colour_jitter(image, self.jitter, self.jitter_probability)
        image = random_grey(image, self.grey_probability)
        image = _random_blur(image, self.blur, self.blur_probability)
        return _random_solarize(image, self.solarize_probability)


def colour_jitter(image: Tensor, strengths: tuple[float, ...], probability: float) -> Tensor:
    """Change brightness, contrast, saturation and hue of image (B, C, H, W) in [0, 1].

    The order is random for each image. Factors are uniform in 1 ± strength, rotations of the hue in ± strength.
    One-channel images have no saturation and no hue. Agrees with torchvision's ColorJitter up to its rounding to uint8.
    """
    n = len(image)
    order = torch.rand(n, 4).argsort(dim=1)  # (B, 4), the operation of each step
    amounts = (torch.rand(n, 4) * 2 - 1) * torch.tensor(strengths)
    active = torch.rand(n) < probability
    operations = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    if image.shape[1] == 1:
        operations = operations[:2]
    image = image.clone()
    for step in range(4):
        for number, operation in enumerate(operations):
            # examples are selected on the host, without waiting for the device, and only they are computed
            examples = (active & (order[:, step] == number)).nonzero()[:, 0]
            if len(examples) and strengths[number]:
                selected = _like(examples, image)
                image[selected] = operation(image[selected], _like(amounts[examples, number], image))
    return image


def random_grey(image: Tensor, probability: float) -> Tensor:
    """Turn images (B, C, H, W) grey with probability ``probability``: all their channels become the luma."""
    grey = _like(torch.rand(len(image)) < probability, image)
    if image.shape[1] == 1 or probability == 0:
        return image
    return torch.where(grey[:, None, None, None], _luma(image), image)


def adjust_brightness(image: Tensor, amount: Tensor) -> Tensor:
    """Blend (B, C, H, W) with black; ``amount`` (B,) is the factor's distance from 1."""
    return (image * (1 + amount[:, None, None, None])).clamp(0, 1)


def adjust_contrast(image: Tensor, amount: Tensor) -> Tensor:
    """Blend (B, C, H, W) with each image's mean luma; ``amount`` (B,) is the factor's distance from 1."""
    mean = _luma(image).mean(dim=(1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
    return torch.lerp(mean, image, 1 + amount[:, None, None, None]).clamp(0, 1)


def adjust_saturation(image: Tensor, amount: Tensor) -> Tensor:
    """Blend (B, 3, H, W) with its luma; ``amount`` (B,) is the factor's distance from 1."""
    return torch.lerp(_luma(image), image, 1 + amount[:, None, None, None]).clamp(0, 1)


def adjust_hue(image: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue of (B, 3, H, W) in [0, 1] by ``turns`` (B,) of the whole circle, in the HSV cylinder."""
    value, brightest = image.max(dim=1)  # (B, H, W) each
    chroma = value - image.amin(dim=1)
    scale = chroma.clamp_min(torch.finfo(image.dtype).tiny)
    red, green, blue = image.unbind(dim=1)
    sextant = torch.where(
        brightest == 0,
        (green - blue) / scale,
        torch.where(brightest == 1, 2 + (blue - red) / scale, 4 + (red - green) / scale),
    )
    hue = sextant + 6 * turns[:, None, None]  # (B, H, W), in sixths of the circle
    # each channel is a trapezium over the hue, shifted by a third of the circle
    offset = torch.arange(5, 0, -2, device=image.device, dtype=image.dtype)[:, None, None]  # 5, 3, 1
    phase = torch.remainder(hue[:, None] + offset, 6)  # (B, 3, H, W)
    return value[:, None] - chroma[:, None] * torch.minimum(phase, 4 - phase).clamp(0, 1)


def gaussian_blur(image: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur (B, C, H, W) by Gaussians of standard deviation ``sigma`` (B,) in pixels, cut off at ``radius``.

    The edges are mirrored, or repeated where the image is smaller than the radius.
    """
    n, channels, height, width = image.shape
    distance = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.softmax(-0.5 * (distance / sigma[:, None]).square(), dim=1)  # (B, 2 radius + 1)
    kernel = kernel.repeat_interleave(channels, dim=0)[:, None]  # (B C, 1, 2 radius + 1)
    edges = "reflect" if radius < min(height, width) else "replicate"
    padded = F.pad(image, (radius,) * 4, mode=edges).view(1, n * channels, height + 2 * radius, width + 2 * radius)
    across = F.conv2d(padded, kernel[:, :, None, :], groups=n * channels)
    return F.conv2d(across, kernel[..., None], groups=n * channels).view(image.shape)


def _random_blur(image: Tensor, sigmas: tuple[float, ...], probability: float) -> Tensor:
    low, high = sigmas
    sigma = low + (high - low) * torch.rand(len(image))
    examples = (torch.rand(len(image)) < probability).nonzero()[:, 0]
    if not len(examples):
        return image
    radius = math.ceil(3 * high)
    selected = _like(examples, image)
    return image.index_copy(0, selected, gaussian_blur(image[selected], _like(sigma[examples], image), radius))


def _random_solarize(image: Tensor, probability: float) -> Tensor:
    invert = _like(torch.rand(len(image)) < probability, image)[:, None, None, None]
    return torch.where(invert & (image >= 0.5), 1 - image, image)


def _like(values: Tensor, image: Tensor) -> Tensor:
    """Move values from the host to the images' device, floats in their precision, without waiting for a GPU."""
    dtype = image.dtype if values.is_floating_point() else values.dtype
    return values.to(image.device, dtype, non_blocking=image.is_cuda)


def _luma(image: Tensor) -> Tensor:
    """Return the luma (B, 1, H, W) of (B, 3 or 1, H, W)."""
    if image.shape[1] == 1:
        return image
    red, green, blue = image.unbind(dim=1)
    return (GREY[0] * red + GREY[1] * green + GREY[2] * blue)[:, None]


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
    grid = F.affine_grid(_like(matrix, image), list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode=outside, align_corners=False)


def _binomial_blur(image: Tensor) -> Tensor:
    """Blur (B, C, H, W) by 1-2-1 in both directions; outside the image is black."""
    n, channels, height, width = image.shape
    side = 0.5 - 0.25 * torch.arange(-1, 2, device=image.device, dtype=image.dtype).abs()  # 1/4, 1/2, 1/4
    flat = image.reshape(n * channels, 1, height, width)
    return F.conv2d(flat, torch.outer(side, side)[None, None], padding=1).view(image.shape)
