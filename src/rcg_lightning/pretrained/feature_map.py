"""What an encoder's network says of each place of a image, before it is pooled."""

from typing import Any

from torch import Tensor, nn

from rcg_lightning.errors import UserError
from rcg_lightning.networks.heads import Projected


def feature_map(network: nn.Module, image: Tensor) -> Tensor:
    """Return the map (B, D, h, w) of a network for preprocessed images (B, C, H, W).

    Networks that have one give it by ``forward_features``, as timm's do: tokens (B, prefix + h w, D) with the class
    token and the like in front, or a map. Any other network gives its one vector as a map of one place.
    """
    net: Any = network.backbone if isinstance(network, Projected) else network
    if not hasattr(net, "forward_features"):
        return net(image)[:, :, None, None]
    features = net.forward_features(image)
    if features.ndim == 3:
        height, width = net.patch_embed.grid_size
        patches = features[:, features.shape[1] - height * width :]  # (B, h w, D)
        return patches.transpose(1, 2).unflatten(2, (height, width))
    if features.ndim != 4:
        raise UserError(f"{type(network).__name__} gives features of shape {tuple(features.shape)}: no map, no tokens")
    return features.permute(0, 3, 1, 2) if getattr(net, "output_fmt", "NCHW") == "NHWC" else features
