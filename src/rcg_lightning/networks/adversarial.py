"""What a generator and a discriminator of the adversarial family are, and the laws of the noise that they start from.

Each of the two reads the condition through a ``Conditioner`` of its own, which alone embeds it: ``condition_width`` is
what the conditioner is built with, what it returns goes to ``build``. A conditioner is called as often as its network
and on the same rows, because spectral normalisation counts forward passes: where images made and real go through a
discriminator together, so do their conditions.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from rcg_lightning.config import ConfigMixin
from rcg_lightning.core.counter_rng import SeededNoise
from rcg_lightning.types import require


class NoiseDistribution(ConfigMixin):
    """How the noise of a generator is distributed."""

    @abstractmethod
    def random(self, rows: int, dim: int, device: torch.device | None = None) -> Tensor:
        """Return (rows, dim) float32 from torch's own generator, for training."""

    @abstractmethod
    def seeded(self, noise: SeededNoise, step: int, dim: int) -> Tensor:
        """Return (B, dim) float32, row i by the i-th seed, for sampling."""


class NormalNoise(NoiseDistribution):
    """Independent standard normals."""

    def random(self, rows: int, dim: int, device: torch.device | None = None) -> Tensor:
        return torch.randn(rows, dim, device=device)

    def seeded(self, noise: SeededNoise, step: int, dim: int) -> Tensor:
        return noise.normal(step, dim)


class UniformNoise(NoiseDistribution):
    """Independent and uniform in [0, 1], the unit hypercube of the conditional GAN of 2014."""

    def random(self, rows: int, dim: int, device: torch.device | None = None) -> Tensor:
        return torch.rand(rows, dim, device=device)

    def seeded(self, noise: SeededNoise, step: int, dim: int) -> Tensor:
        return noise.uniform(step, dim)


class GeneratorNetwork(ConfigMixin, nn.Module):
    """Noise and condition to an example. Sizes that follow from the data go to ``build``, not to the constructor.

    Attributes:
        noise_dim: entries of the noise that ``forward`` takes, known once the network is built.
        noise_distribution: how that noise is distributed.
    """

    noise_dim: int
    noise_distribution: NoiseDistribution

    @abstractmethod
    def condition_width(self, shape: tuple[int, ...]) -> int:
        """Return the natural width of a condition embedding for examples of ``shape``."""

    @abstractmethod
    def build(self, shape: tuple[int, ...], condition_dim: int) -> None:
        """Create the parameters for examples of ``shape``; ``condition_dim`` 0 is an unconditional network."""

    @abstractmethod
    def forward(self, noise: Tensor, c: Tensor) -> Tensor:
        """noise (B, noise_dim), c (B, condition_dim) -> (B, *shape) in the codec's range (pixels: [-1, 1])."""


class DiscriminatorNetwork(ConfigMixin, nn.Module):
    """Example and condition to a logit. Sizes that follow from the data go to ``build``, not to the constructor.

    Attributes:
        together: whether images made and real may go through in one pass, images made first; False where the
            network compares the images of a batch, so that each kind needs a pass of its own.
    """

    together: bool = True

    @abstractmethod
    def condition_width(self, shape: tuple[int, ...]) -> int:
        """Return the natural width of a condition embedding for examples of ``shape``."""

    @abstractmethod
    def build(self, shape: tuple[int, ...], condition_dim: int) -> None:
        """Create the parameters for examples of ``shape``; ``condition_dim`` 0 is an unconditional network."""

    @abstractmethod
    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, *shape) in the codec's range, c (B, condition_dim) -> logits (B,); no sigmoid."""


def doublings(shape: tuple[int, ...], name: str) -> tuple[int, int]:
    """Return the side of the smallest map, 4 at least, and how often it is doubled to give images of ``shape``.

    28 pixels are 7 doubled twice, 256 are 4 doubled six times.

    Raises:
        UserError: ``name`` has no such images: not square, or of an odd side.
    """
    require(len(shape) == 3 and shape[1] == shape[2], f"{name} makes square images (C, H, H), not {tuple(shape)}")
    side, count = shape[1], 0
    while side % 2 == 0 and side >= 8:
        side, count = side // 2, count + 1
    smallest = f"a small map is doubled to the image's side, which {shape[1]} pixels do not allow"
    require(count > 0 and side < 16, f"{name}: {smallest}: resize to a multiple of a power of two, such as 32 or 28")
    return side, count
