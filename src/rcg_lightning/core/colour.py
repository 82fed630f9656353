"""Colours and blur of images (B, C, H, W) in [0, 1]; each image has its own parameters."""

import torch
import torch.nn.functional as F
from torch import Tensor

GREY = (0.299, 0.587, 0.114)  # luma of ITU-R 601, which Pillow and torchvision use


def adjust_brightness(image: Tensor, amount: Tensor) -> Tensor:
    """Blend (B, C, H, W) with black; ``amount`` (B,) is the factor's distance from 1."""
    return (image * (1 + amount[:, None, None, None])).clamp(0, 1)


def adjust_contrast(image: Tensor, amount: Tensor) -> Tensor:
    """Blend (B, C, H, W) with each image's mean luma; ``amount`` (B,) is the factor's distance from 1."""
    mean = luma(image).mean(dim=(1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
    return torch.lerp(mean, image, 1 + amount[:, None, None, None]).clamp(0, 1)


def adjust_saturation(image: Tensor, amount: Tensor) -> Tensor:
    """Blend (B, 3, H, W) with its luma; ``amount`` (B,) is the factor's distance from 1."""
    return torch.lerp(luma(image), image, 1 + amount[:, None, None, None]).clamp(0, 1)


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


def luma(image: Tensor) -> Tensor:
    """Return the luma (B, 1, H, W) of (B, 3 or 1, H, W)."""
    if image.shape[1] == 1:
        return image
    red, green, blue = image.unbind(dim=1)
    return (GREY[0] * red + GREY[1] * green + GREY[2] * blue)[:, None]


def binomial_blur(image: Tensor) -> Tensor:
    """Blur (B, C, H, W) by 1-2-1 in both directions; outside the image is black."""
    n, channels, height, width = image.shape
    side = 0.5 - 0.25 * torch.arange(-1, 2, device=image.device, dtype=image.dtype).abs()  # 1/4, 1/2, 1/4
    flat = image.reshape(n * channels, 1, height, width)
    return F.conv2d(flat, torch.outer(side, side)[None, None], padding=1).view(image.shape)
