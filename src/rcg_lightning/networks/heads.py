"""Heads on top of an encoder's backbone: projection heads, the predictor of self-supervised learning, a classifier."""

from torch import Tensor, nn

from rcg_lightning.arguments import Depth, Width
from rcg_lightning.config import ConfigMixin
from rcg_lightning.types import require


class MLPHead(ConfigMixin, nn.Sequential):
    """Linear-BatchNorm-ReLU ... Linear-BatchNorm without biases in the linear layers: (B, in_dim) -> (B, dim).

    Its state dict has the names of MoCo v3's heads and predictor (``0.weight``, ``1.running_mean``, ...).

    Args:
        in_dim: width of the input, the backbone's ``dim``.
        hidden: width between the layers.
        dim: width of the output.
        layers: number of linear layers.
        last_affine: whether the last BatchNorm has a scale and a shift; MoCo v3's has none.
    """

    def __init__(self, in_dim: Width, hidden: Width, dim: Width, layers: Depth = 3, last_affine: bool = False) -> None:
        sizes = [in_dim, *[hidden] * (layers - 1), dim]
        modules: list[nn.Module] = []
        for i in range(layers):
            last = i == layers - 1
            modules += [nn.Linear(sizes[i], sizes[i + 1], bias=False)]
            modules += [nn.BatchNorm1d(sizes[i + 1], affine=last_affine or not last)]
            modules += [] if last else [nn.ReLU(inplace=True)]
        super().__init__(*modules)
        self.dim = dim


class ProjectionHead(MLPHead):
    """MoCo v3's projection head: three layers, 4096 wide, 256 out."""

    def __init__(self, in_dim: Width, hidden: Width = 4096, dim: Width = 256, layers: Depth = 3) -> None:
        super().__init__(in_dim, hidden, dim, layers)


class Predictor(MLPHead):
    """MoCo v3's predictor: two layers, as wide at the end as at the start."""

    def __init__(self, in_dim: Width = 256, hidden: Width = 4096, dim: Width = 256, layers: Depth = 2) -> None:
        super().__init__(in_dim, hidden, dim, layers)


class BottleneckHead(ConfigMixin, nn.Module):
    """The head of DINO and iBOT up to its bottleneck, Linear-GELU-Linear-GELU-Linear: (B, in_dim) -> (B, dim).

    As in RCG, without the L2 normalisation and the prototypes that follow in training.
    """

    def __init__(self, in_dim: Width, hidden: Width = 2048, dim: Width = 256) -> None:
        super().__init__()
        self.dim = dim
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, dim)
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, feature: Tensor) -> Tensor:
        return self.mlp(feature)


class LinearHead(ConfigMixin, nn.Linear):
    """A linear classifier: (B, in_dim) -> logits (B, dim)."""

    def __init__(self, in_dim: Width, dim: Width) -> None:
        super().__init__(in_dim, dim)
        self.dim = dim


class Projected(ConfigMixin, nn.Module):
    """A backbone and its head as one network: normalised image (B, C, H, W) -> (B, head.dim).

    Pre-training exports this network. ``backbone`` and ``head`` can be used separately.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        require(hasattr(head, "dim"), f"Projected: head should have a dim, which {type(head).__name__} has not")
        self.backbone = backbone
        self.head = head
        self.dim: int = head.dim  # type: ignore[assignment]

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.backbone(image))
