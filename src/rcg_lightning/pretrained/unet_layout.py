"""The names in official files of U-Nets, which ADM, improved DDPM and LDM share."""

import re
from collections.abc import Mapping

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
RESIZING = {"op": "", "conv": ""}  # a convolution that halves, one that doubles; the very first has no name either
PLACE = re.compile(r"(input_blocks\.\d+\.\d+|output_blocks\.\d+\.\d+|middle_block\.\d+)(?:\.(.+))?")


def unet_name(official: str, layers: Mapping[str, str]) -> str:
    """Translate one parameter's name: ``input_blocks.1.0.in_layers.2.weight`` -> ``down.1.0.in_conv.weight``.

    Args:
        official: the name.
        layers: official layers of a block to ours, next to those of residual blocks and convolutions.
    """
    name, _, kind = official.rpartition(".")
    if name in OUTSIDE:
        return f"{OUTSIDE[name]}.{kind}"
    place = PLACE.fullmatch(name)
    known = {**RESIDUAL, **RESIZING, "": "", **layers}
    layer = known.get(place[2] or "") if place else None
    require(layer is not None, f"{official} is no layer of a U-Net that is known here")
    return ".".join(filter(None, (place_name(place[1]), layer, kind)))  # type: ignore[index]


def place_name(official: str) -> str:
    """Translate the place of a block: ``input_blocks.1.0`` -> ``down.1.0``."""
    stage, _, position = official.partition(".")
    return f"{STAGES[stage]}.{position}"


def official_unet_name(ours: str, layers: Mapping[str, str]) -> str:
    """Invert ``unet_name``."""
    name, _, kind = ours.rpartition(".")
    outside = {layer: official for official, layer in OUTSIDE.items()}
    if name in outside:
        return f"{outside[name]}.{kind}"
    stage, _, rest = name.partition(".")
    parts = rest.split(".")
    depth = 1 if stage == "middle" else 2
    position, layer = ".".join(parts[:depth]), ".".join(parts[depth:])
    plain = "" if position == "0.0" else {"down": "op", "up": "conv"}.get(stage, "")
    inside = {inner: official for official, inner in {**RESIDUAL, **layers}.items()}
    stages = {inner: official for official, inner in STAGES.items()}
    return ".".join(filter(None, (stages[stage], position, inside[layer] if layer else plain, kind)))
