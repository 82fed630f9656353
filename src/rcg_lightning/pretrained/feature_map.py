"""Feature maps of encoders: one vector for each position of an image, before pooling."""

from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from rcg_lightning.errors import UserError
from rcg_lightning.networks.heads import Projected

MOST_PREFIX = 8  # class, distillation and register tokens


def feature_map(network: nn.Module, image: Tensor) -> Tensor:
    """Return the map (B, D, h, w) of a network for preprocessed images (B, C, H, W).

    timm's networks give it by ``forward_features``: a map, or tokens (B, prefix + h w, D) with the class token and
    others in front. Any other network gives its one vector as a map of one position.

    Raises:
        UserError: the features are neither a map nor tokens.
    """
    backbone: Any = network.backbone if isinstance(network, Projected) else network
    if not hasattr(backbone, "forward_features"):
        return backbone(image)[:, :, None, None]
    features = backbone.forward_features(image)
    shape = features.shape if isinstance(features, Tensor) else torch.Size()
    if len(shape) == 4:
        return features.permute(0, 3, 1, 2) if getattr(backbone, "output_fmt", "NCHW") == "NHWC" else features
    grid = _grid(backbone, shape[1]) if len(shape) == 3 else None
    if grid is None:
        found = f"features of shape {tuple(shape)}" if shape else f"a {type(features).__name__} of features"
        raise UserError(f"{type(network).__name__} gives {found}: neither a map nor tokens")
    patches = features[:, shape[1] - grid[0] * grid[1] :]  # (B, h w, D)
    return patches.transpose(1, 2).unflatten(2, grid)


def _grid(backbone: Any, tokens: int) -> tuple[int, int] | None:
    """Return height and width of the map that ``tokens`` form, after a few others; None where there is no such map.

    It is the grid of the patches unless the network merges these; then the map is a square, after one other at most.
    """
    side = isqrt(tokens)
    grid = getattr(getattr(backbone, "patch_embed", None), "grid_size", None) or (tokens + 1, 1)
    candidates = (((grid[0], grid[1]), MOST_PREFIX), ((side, side), 1))
    return next((grid for grid, most in candidates if 0 <= tokens - grid[0] * grid[1] <= most), None)
