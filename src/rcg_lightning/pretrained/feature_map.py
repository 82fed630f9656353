"""Feature maps of encoders: one vector for each position of an image, before pooling."""

from typing import Any

from torch import Tensor, nn

from rcg_lightning.errors import UserError
from rcg_lightning.networks.heads import Projected


def feature_map(network: nn.Module, image: Tensor) -> Tensor:
    """Return the map (B, D, h, w) of a network for preprocessed images (B, C, H, W).

    timm's networks give it by ``forward_features``: a map, or tokens (B, prefix + h w, D) with the class token and
    others in front. Any other network gives its one vector as a map of one position.
    """
    backbone: Any = network.backbone if isinstance(network, Projected) else network
    if not hasattr(backbone, "forward_features"):
        return backbone(image)[:, :, None, None]
    features = backbone.forward_features(image)
    if features.ndim == 3:
        height, width = backbone.patch_embed.grid_size
        patches = features[:, features.shape[1] - height * width :]  # (B, h w, D)
        return patches.transpose(1, 2).unflatten(2, (height, width))
    if features.ndim != 4:
        raise UserError(
            f"{type(network).__name__} gives features of shape {tuple(features.shape)}: neither a map nor tokens"
        )
    return features.permute(0, 3, 1, 2) if getattr(backbone, "output_fmt", "NCHW") == "NHWC" else features
