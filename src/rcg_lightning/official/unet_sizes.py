"""The structure of a U-Net, read off the names and shapes of its tensors."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def unet_sizes(network: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of ``networks.unet.UNet`` that a state dict in its names tells.

    Blocks that double the map stand after the last block of a level on the way up, which tells how deep levels are.
    """
    width = network["time_embed.0.weight"].shape[1]
    ups = sorted({int(name.split(".")[1]) for name in network if name.startswith("up.")})
    doubling = [place for place in ups if _doubles(network, place)]
    depth = doubling[0] if doubling else len(ups) - 1
    levels = len(ups) // (depth + 1)
    firsts = [1 + level * (depth + 1) for level in range(levels)]
    attended = {int(name.split(".")[1]) for name in network if name.startswith("down.") and name.split(".")[2] == "1"}
    return {
        "width": width,
        "multipliers": [network[f"down.{first}.0.in_conv.weight"].shape[0] // width for first in firsts],
        "depth": depth,
        "attention": [2**level for level, first in enumerate(firsts) if first in attended],
    }


def _doubles(network: Mapping[str, Tensor], place: int) -> bool:
    """Whether a stage on the way up ends with what doubles the map: a residual block or a bare convolution."""
    return any(
        f"up.{place}.{last}.{layer}" in network for last in (1, 2) for layer in ("in_norm.weight", "weight")
    )  # fmt: skip
