"""Interfaces of adversarial networks, the generator and the discriminator, and the distributions of their noise.

Each network has its own ``Conditioner``, which alone embeds the condition. The conditioner is built with the network's
``condition_width``, and the width that it returns goes to the network's ``build``. A conditioner is called as often as
its network and on the same examples, because forward passes change spectral normalisation: if generated and real images
go through a discriminator together, so do their conditions.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from rcg_lightning.config import ConfigMixin
from rcg_lightning.core.counter_rng import SeededNoise
from rcg_lightning.types import require


class NoiseDistribution(ConfigMixin):
    """Distribution of a generator's noise."""

    @abstractmethod
    def random(self, count: int, dim: int, device: torch.device | None = None) -> Tensor:
        """Return (count, dim) float32 from torch's own generator, for training."""

    @abstractmethod
    def seeded(self, noise: SeededNoise, step: int, dim: int) -> Tensor:
        """Return (B, dim) float32 for sampling; row i depends on seed i only."""


class NormalNoise(NoiseDistribution):
    """Independent standard normal noise."""

    def random(self, count: int, dim: int, device: torch.device | None = None) -> Tensor:
        return torch.randn(count, dim, device=device)

    def seeded(self, noise: SeededNoise, step: int, dim: int) -> Tensor:
        return noise.normal(step, dim)


class UniformNoise(NoiseDistribution):
    """Independent noise, uniform in [0, 1]: the unit hypercube of the conditional GAN of 2014."""

    def random(self, count: int, dim: int, device: torch.device | None = None) -> Tensor:
        return torch.rand(count, dim, device=device)

    def seeded(self, noise: SeededNoise, step: int, dim: int) -> Tensor:
        return noise.uniform(step, dim)


class GeneratorNetwork(ConfigMixin, nn.Module):
    """Generator: noise and condition -> example. Sizes that follow from the data go to ``build``.

    Attributes:
        noise_dim: dimensions of the noise that ``forward`` takes, final after ``build``.
        noise_distribution: distribution of that noise.
    """

    noise_dim: int
    noise_distribution: NoiseDistribution

    @abstractmethod
    def condition_width(self, shape: tuple[int, ...]) -> int:
        """Return the natural width of the condition embedding for examples of ``shape``."""

    @abstractmethod
    def build(self, shape: tuple[int, ...], condition_dim: int) -> None:
        """Create the parameters for examples of ``shape``; ``condition_dim`` 0 makes the network unconditional."""

    @abstractmethod
    def forward(self, noise: Tensor, c: Tensor) -> Tensor:
        """noise (B, noise_dim), c (B, condition_dim) -> (B, *shape) in the codec's range (pixels: [-1, 1])."""


class DiscriminatorNetwork(ConfigMixin, nn.Module):
    """Discriminator: example and condition -> logit. Sizes that follow from the data go to ``build``.

    Attributes:
        together: whether generated and real images may share a pass, generated ones first. False if the network
            compares the images of a batch, so that each kind needs its own pass.
    """

    together: bool = True

    @abstractmethod
    def condition_width(self, shape: tuple[int, ...]) -> int:
        """Return the natural width of the condition embedding for examples of ``shape``."""

    @abstractmethod
    def build(self, shape: tuple[int, ...], condition_dim: int) -> None:
        """Create the parameters for examples of ``shape``; ``condition_dim`` 0 makes the network unconditional."""

    @abstractmethod
    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, *shape) in the codec's range, c (B, condition_dim) -> logits (B,); no sigmoid."""


def doublings(shape: tuple[int, ...], name: str) -> tuple[int, int]:
    """Return the side of the smallest map, at least 4, and the number of doublings from there to images of ``shape``.

    28 pixels are 7 doubled twice, 256 are 4 doubled six times.

    Raises:
        UserError: ``name`` cannot model such images: they are not square, or their side is odd.
    """
    require(len(shape) == 3 and shape[1] == shape[2], f"{name} models square images (C, H, H), not {tuple(shape)}")
    side, count = shape[1], 0
    while side % 2 == 0 and side >= 8:
        side, count = side // 2, count + 1
    message = f"{name} doubles a small map until it has the image's side, which {shape[1]} pixels do not allow"
    require(count > 0 and side < 16, f"{message}: resize to a multiple of a power of two, such as 32 or 28")
    return side, count
