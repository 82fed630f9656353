"""Principal components of the pixels: a baseline encoder without a neural network."""

import math

import torch
from torch import Tensor, nn

from rcg_lightning.arguments import Width
from rcg_lightning.config import ConfigMixin
from rcg_lightning.types import require

LARGEST = 4096  # dimensions of an image; beyond this the covariance takes minutes and gigabytes


class PrincipalComponents(ConfigMixin, nn.Module):
    """Projection onto fixed directions of pixel space: (B, C, H, W) -> (B, dim).

    Args:
        shape: (C, H, W) of an image.
        dim: number of components.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, shape: tuple[Width, Width, Width], dim: Width) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.dim = dim
        size = math.prod(shape)
        check_size(size)
        require(dim <= size, f"images of {size} dimensions have no {dim} principal components")
        self.register_buffer("mean", torch.zeros(size))  # (P,)
        self.register_buffer("components", torch.zeros(dim, size))  # (dim, P)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, C, H, W) -> coefficients (B, dim)."""
        require(
            tuple(image.shape[1:]) == self.shape,
            f"these principal components are of images {self.shape}, got {tuple(image.shape[1:])}",
        )
        return (image.flatten(1) - self.mean) @ self.components.T


def check_size(size: int) -> None:
    """Raise UserError for images of too many dimensions."""
    require(size <= LARGEST, f"images of {size} dimensions are too large for principal components: {LARGEST} at most")


@torch.no_grad()
def fit_principal_components(images: Tensor, dim: int, whiten: bool = False) -> PrincipalComponents:
    """Return the ``dim`` directions of largest variance of ``images`` (N, C, H, W) float.

    Directions have unit length; with ``whiten``, coefficients have unit variance instead. The largest entry of each
    direction is positive, so that the same images give the same signs on every machine.
    """
    flat = images.detach().cpu().double().flatten(1)  # (N, P)
    count, size = flat.shape
    check_size(size)
    require(dim <= min(count - 1, size), f"{count} images of {size} dimensions have no {dim} principal components")
    mean = flat.mean(0)
    centred = flat - mean
    variances, directions = torch.linalg.eigh(centred.T @ centred / (count - 1))  # ascending
    components = directions.T.flip(0)[:dim]  # (dim, P)
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    components = components * largest.sign()
    if whiten:
        components = components / variances.flip(0)[:dim, None].clamp_min(1e-12).sqrt()
    network = PrincipalComponents(tuple(images.shape[1:]), dim)  # type: ignore[arg-type]
    network.mean.copy_(mean)
    network.components.copy_(components)
    return network
