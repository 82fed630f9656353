"""Names and sizes of official U-Nets, which ADM, improved DDPM and LDM share."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rcg_lightning.official.key_map import inverted
from rcg_lightning.types import require

STAGES = {"input_blocks": "down", "middle_block": "middle", "output_blocks": "up"}
OUTSIDE = {"time_embed.0": "time_embed.0", "time_embed.2": "time_embed.2", "out.0": "out_norm", "out.2": "out_conv"}
RESIDUAL = {
    "in_layers.0": "in_norm",
    "in_layers.2": "in_conv",
    "emb_layers.1": "time_proj",
    "out_layers.0": "out_norm",
    "out_layers.3": "out_conv",
    "skip_connection": "skip",
}
RESIZING = {"op": "", "conv": ""}  # a convolution that halves, one that doubles; the first one has no name either
BLOCK = re.compile(r"(input_blocks\.\d+\.\d+|output_blocks\.\d+\.\d+|middle_block\.\d+)(?:\.(.+))?")


def unet_name(official: str, layers: Mapping[str, str]) -> str:
    """Translate one parameter's name: ``input_blocks.1.0.in_layers.2.weight`` -> ``down.1.0.in_conv.weight``.

    Args:
        official: the name.
        layers: official layers of a block to ours, in addition to those of residual blocks and convolutions.
    """
    name, _, kind = official.rpartition(".")
    if name in OUTSIDE:
        return f"{OUTSIDE[name]}.{kind}"
    block = BLOCK.fullmatch(name)
    known = {**RESIDUAL, **RESIZING, "": "", **layers}
    layer = known.get(block[2] or "") if block else None
    require(layer is not None, f"{official} is no known layer of a U-Net")
    return ".".join(filter(None, (block_name(block[1]), layer, kind)))  # type: ignore[index]


def block_name(official: str) -> str:
    """Translate the name of a block: ``input_blocks.1.0`` -> ``down.1.0``."""
    stage, _, position = official.partition(".")
    return f"{STAGES[stage]}.{position}"


def official_unet_name(ours: str, layers: Mapping[str, str]) -> str:
    """Invert ``unet_name``."""
    name, _, kind = ours.rpartition(".")
    outside = inverted(OUTSIDE)
    if name in outside:
        return f"{outside[name]}.{kind}"
    stage, _, rest = name.partition(".")
    parts = rest.split(".")
    depth = 1 if stage == "middle" else 2
    position, layer = ".".join(parts[:depth]), ".".join(parts[depth:])
    resizing = "" if position == "0.0" else {"down": "op", "up": "conv"}.get(stage, "")
    inside = inverted({**RESIDUAL, **layers})
    return ".".join(filter(None, (inverted(STAGES)[stage], position, inside[layer] if layer else resizing, kind)))


def unet_sizes(network: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of ``networks.unet.UNet`` that the shapes of a state dict in our names determine.

    In the decoder, the last block of each resolution doubles the map, which shows the depth.
    """
    width = network["time_embed.0.weight"].shape[1]
    ups = sorted({int(name.split(".")[1]) for name in network if name.startswith("up.")})
    doubling = [block for block in ups if _doubles(network, block)]
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


def _doubles(network: Mapping[str, Tensor], block: int) -> bool:
    """Whether a decoder block ends by doubling the map, in a residual block or a bare convolution."""
    return any(
        f"up.{block}.{last}.{layer}" in network for last in (1, 2) for layer in ("in_norm.weight", "weight")
    )  # fmt: skip
