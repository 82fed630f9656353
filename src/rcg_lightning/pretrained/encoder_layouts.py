"""Key maps of the official encoder files, and the networks that their shapes describe."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from rcg_lightning.networks.vit import VisionTransformer
from rcg_lightning.pretrained.checkpoints import State, entry, load_strictly, recognise, strip
from rcg_lightning.types import require


@dataclass(frozen=True)
class EncoderState:
    """The tensors of one encoder in the names of our networks.

    Attributes:
        backbone: of the Vision Transformer.
        head: of its head, empty where the file has none.
        skipped: names in the file that the encoder does not use, by reason.
    """

    backbone: State
    head: State
    skipped: dict[str, list[str]] = field(default_factory=dict)


def moco_v3(container: Mapping[str, Any], branch: str = "base_encoder") -> EncoderState:
    """MoCo v3: RCG uses the base encoder with its projection head, neither the momentum encoder nor the predictor."""
    state = entry(container, "state_dict")
    prefix = f"module.{branch}."
    chosen = strip(state, prefix)
    require(bool(chosen), f"no MoCo v3 encoder ({prefix}*) in this file: it is {recognise(container)}")
    skipped = {"not the encoder that RCG uses": [name for name in state if not name.startswith(prefix)]}
    return split_head(repair_names(chosen), "head.", skipped)


def moco_v3_predictor(container: Mapping[str, Any]) -> State:
    """The predictor of a MoCo v3 file, used only to continue pre-training."""
    return strip(entry(container, "state_dict"), "module.predictor.")


def repair_names(state: State) -> State:
    """Undo the damaged names of the released ViT-L: in blocks 13 and 14 a 1 or 2 became the block's number."""
    repairs = {
        "blocks.13.norm13.": "blocks.13.norm1.",
        "blocks.13.mlp.fc13.": "blocks.13.mlp.fc1.",
        "blocks.14.norm14.": "blocks.14.norm2.",
        "blocks.14.mlp.fc14.": "blocks.14.mlp.fc2.",
    }
    repaired = {}
    for name, tensor in state.items():
        prefix = next((damaged for damaged in repairs if name.startswith(damaged)), None)
        repaired[repairs[prefix] + name.removeprefix(prefix) if prefix else name] = tensor
    return repaired


def dino(container: Mapping[str, Any]) -> EncoderState:
    """DINO: the teacher's backbone and its head up to the bottleneck; the prototypes after it are dropped.

    The released backbone-only files (a bare state dict) are read too, without a head.
    """
    return self_distilled(container, "DINO", ("head.last_layer.",))


def ibot(container: Mapping[str, Any]) -> EncoderState:
    """iBOT: as DINO, with a second set of prototypes for patches and a mask token that are dropped."""
    return self_distilled(container, "iBOT", ("head.last_layer.", "head.last_layer2.", "backbone.masked_embed"))


def self_distilled(container: Mapping[str, Any], name: str, dropped: tuple[str, ...]) -> EncoderState:
    """Split the teacher of a self-distilled network; tensors with ``dropped`` prefixes are not the encoder's."""
    kind = recognise(container)
    bare = "teacher" not in container and kind.endswith("plain Vision Transformer")
    require(
        bare or ("teacher" in container and name in kind),
        f"no {name} teacher in this file: it is {kind}",
    )
    if bare:
        state = entry(container, "state_dict", "model")
        skipped = {"a classifier": [key for key in state if key.startswith("head.")]}
        return EncoderState({k: v for k, v in state.items() if not k.startswith("head.")}, {}, skipped)
    state = {key.removeprefix("module."): tensor for key, tensor in entry(container, "teacher").items()}
    skipped = {"prototypes, used in its training only": [key for key in state if key.startswith(dropped)]}
    rest = {k.removeprefix("backbone."): v for k, v in state.items() if not k.startswith(dropped)}
    return split_head(rest, "head.", skipped)


def deit(container: Mapping[str, Any]) -> EncoderState:
    """DeiT: a plain Vision Transformer whose head is its classifier."""
    kind = recognise(container)
    require(kind.endswith("plain Vision Transformer"), f"no DeiT in this file: it is {kind}")
    state = entry(container, "model", "state_dict")
    require("dist_token" not in state, "this is a distilled DeiT with a second token: use the undistilled one")
    return split_head(state, "head.", {})


def split_head(state: State, prefix: str, skipped: dict[str, list[str]]) -> EncoderState:
    """Split a state dict into backbone and head."""
    backbone = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
    return EncoderState(backbone, strip(state, prefix), skipped)


def build_backbone(state: State, heads: int | None, usual: Mapping[int, int], where: str) -> VisionTransformer:
    """Return the Vision Transformer of ``state``; all sizes but the number of heads follow from its shapes.

    Args:
        state: tensors in our names.
        heads: attention heads; None for the published number.
        usual: heads by width, in the published sizes of this family.
        where: the file, for messages.
    """
    patches, table = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    require(
        patches is not None and table is not None and "blocks.0.mlp.fc1.weight" in state,
        f"{where} holds no Vision Transformer: no patch projection, position table or blocks",
    )
    assert patches is not None
    assert table is not None
    width, channels, patch = patches.shape[0], patches.shape[1], patches.shape[2]
    hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    ratio = hidden / width if int(width * (hidden / width)) == hidden else math.nextafter(hidden / width, math.inf)
    grid = round((table.shape[1] - 1) ** 0.5)
    heads = heads or usual.get(width)
    require(
        heads is not None,
        f"{where} holds a Vision Transformer of width {width}, whose number of attention heads no shape shows: "
        "give it as heads (rcg convert: --kind.heads, or --kind.encoder_heads for the encoder in another model's file)",
    )
    with torch.device("meta"):
        network = VisionTransformer(
            image_size=grid * patch,
            patch=patch,
            channels=channels,
            width=width,
            depth=1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
            heads=heads,  # type: ignore[arg-type]
            mlp_ratio=ratio,
        )
    load_strictly(network, state, where)
    return network


def build_head(make: Callable[[list[int]], nn.Module], state: State, where: str) -> nn.Module:
    """Return the head with the tensors of ``state``; ``make`` gets the sizes between its linear layers."""
    weights = [tensor for name, tensor in state.items() if name.endswith("weight") and tensor.ndim == 2]
    require(bool(weights), f"{where} has no head: set head to false, or give the complete checkpoint")
    with torch.device("meta"):
        network = make([weights[0].shape[1], *(weight.shape[0] for weight in weights)])
    load_strictly(network, state, where)
    return network
