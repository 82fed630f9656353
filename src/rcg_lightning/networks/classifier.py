"""A classifier whose features metrics compare pictures in."""

from torch import Tensor, nn

from rcg_lightning.described import Described
from rcg_lightning.networks.convnet import ResNet18, SmallConvNet


class Classifier(Described, nn.Module):
    """A convolutional backbone and one linear layer.

    Args:
        backbone: picture -> features (B, backbone.dim).
        classes: K.
    """

    def __init__(self, backbone: SmallConvNet | ResNet18, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.dim, classes)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Picture (B, C, H, W) in [0, 1] -> features (B, dim), logits (B, K)."""
        features = self.backbone(2 * image - 1)  # (B, dim)
        return features, self.head(features)
