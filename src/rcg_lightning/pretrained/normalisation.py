"""How an encoder's output becomes the representation that the rest of the project models."""

from abc import abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F

from rcg_lightning.config import ConfigMixin


class Normalisation(ConfigMixin, nn.Module):
    """Encoder output (B, R) -> representation (B, R). Part of the encoder's identity."""

    @abstractmethod
    def forward(self, feature: Tensor) -> Tensor:
        """Normalise each example's vector."""


class PerSample(Normalisation):
    """Zero mean and unit deviation within each vector, with n - 1 in the variance and no epsilon, as in RCG."""

    def forward(self, feature: Tensor) -> Tensor:
        return (feature - feature.mean(1, keepdim=True)) / feature.std(1, keepdim=True)


class UnitLength(Normalisation):
    """Vectors of Euclidean length one, as in IC-GAN."""

    def forward(self, feature: Tensor) -> Tensor:
        return F.normalize(feature, dim=1)


class Identity(Normalisation):
    """The encoder's output, unchanged."""

    def forward(self, feature: Tensor) -> Tensor:
        return feature
