"""A classifier whose features are used by metrics."""

import torch
from torch import Tensor, nn

from rcg_lightning.arguments import Count
from rcg_lightning.config import ConfigMixin
from rcg_lightning.networks.convnet import ResNet18, SmallConvNet


class Classifier(ConfigMixin, nn.Module):
    """A convolutional backbone and one linear layer.

    A Fréchet distance grows with the square of the features' scale, and that scale differs from one training to the
    next. ``standardise`` fixes it, so that metrics from two trainings of the classifier are comparable.

    Args:
        backbone: image -> features (B, backbone.dim).
        classes: K, the number of classes.
    """

    scale: Tensor

    def __init__(self, backbone: SmallConvNet | ResNet18, classes: Count) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.dim, classes)
        self.register_buffer("scale", torch.ones(()))

    def standardise(self, features: Tensor, variance: float) -> None:
        """Scale future features so that ``features`` (N, dim), the present output, would have this mean variance."""
        self.scale *= (variance / features.var(dim=0).mean()).sqrt()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) in [0, 1] -> features (B, dim), logits (B, K)."""
        features = self.backbone(2 * image - 1)  # (B, dim)
        return self.scale * features, self.head(features)
