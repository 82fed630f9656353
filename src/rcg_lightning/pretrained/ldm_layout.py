"""The key map of RCG's LDM files: the U-Net with cross-attention, and the frozen networks next to it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rcg_lightning.pretrained.checkpoints import (
    EMBEDDING,
    State,
    entry,
    latent_diffusion_names,
    recognise,
    schedule_tables,
    strip,
)
from rcg_lightning.pretrained.unet_layout import place_name, unet_name
from rcg_lightning.types import Classes, Part, Vector, require

ATTENTION = {"norm": "norm", "proj_in": "in_conv", "proj_out": "out_conv"}
INSIDE = {
    "attn1.to_out.0": "attn.proj",
    "attn2.to_v": "context_value",
    "attn2.to_out.0": "context_out",
    "norm1": "norm1",
    "norm3": "norm3",
    "ff.net.0.proj": "mlp.inner",
    "ff.net.2": "mlp.outer",
}
SILENT = (".attn2.to_q.", ".attn2.to_k.", ".norm2.")
QUERY = ".attn1.to_q."
BLOCK = re.compile(r"(.+)\.transformer_blocks\.(\d+)\.(.+)\.(weight|bias)")


@dataclass(frozen=True)
class LDMState:
    """An official LDM in the names used here.

    Attributes:
        network: weights for ``networks.unet.CrossAttentionUNet``.
        conditioner: weights for a ``Conditioner`` without projection and drop, of the parts that were asked for.
        first_stage: weights of the frozen VQ autoencoder, in official names.
        encoder: weights of the frozen encoder that the representations come from, in official names.
        schedule: the noise schedule's tables, (1000,) float32 each.
        skipped: names in the file that nothing reads, by reason.
    """

    network: State
    conditioner: State
    first_stage: State
    encoder: State
    schedule: State
    skipped: dict[str, list[str]]


def ldm_state(official: Mapping[str, Any], parts: tuple[Part, ...], ema: bool = True) -> LDMState:
    """Translate the content of an official LDM file.

    A representation is the one token of context as it is, so a ``Conditioner`` with ``project=False`` has no weights
    for it. Over one token the softmax is 1: what only forms queries and keys is skipped. The official unconditional
    model attends to the embedding of its single class; what comes of it is a constant, which is added to the bias of
    the self-attention before it.

    Args:
        official: what ``read_checkpoint`` returned.
        parts: the condition that the model was trained with, which the file does not tell: none, ``Classes`` or
            ``Vector``.
        ema: the EMA weights, which the official code samples with, or those of the last step. The class embedding
            has no average.

    Raises:
        UserError: no such file, or the condition does not fit it.
    """
    state = entry(official, "model", "state_dict")
    names = latent_diffusion_names(state, ema)
    require("input_blocks.0.0.weight" in names, f"this is no LDM checkpoint but {recognise(official)}")
    require(EMBEDDING in state, f"this LDM checkpoint has no {EMBEDDING}")
    unet = {name: state[key] for name, key in names.items()}
    conditioner = _condition(state[EMBEDDING], unet, parts)
    network = _network(unet)
    if not parts:
        network = _unconditional(network, state[EMBEDDING][0])
    used = {key for name, key in names.items() if not any(silent in name for silent in SILENT)}
    used |= {EMBEDDING} if conditioner or not parts else set()
    return LDMState(
        network,
        conditioner,
        first_stage=strip(state, "first_stage_model."),
        encoder=strip(state, "pretrained_encoder."),
        schedule=schedule_tables(state),
        skipped=_skipped(state, used, set(names.values())),
    )


def ldm_name(official: str) -> str:
    """Translate one parameter's name.

    ``input_blocks.1.1.transformer_blocks.0.ff.net.2.bias`` -> ``down.1.1.blocks.0.mlp.outer.bias``. The names of
    query, key and value of self-attention all become that of the one layer here that they are parts of.
    """
    inside = BLOCK.fullmatch(official)
    if inside is None:
        return unet_name(official, ATTENTION)
    place, number, layer, kind = inside.groups()
    if layer in ("attn1.to_q", "attn1.to_k", "attn1.to_v"):
        layer = "attn.qkv"
    else:
        require(layer in INSIDE, f"{official} is no layer of a transformer block that is known here")
        layer = INSIDE[layer]
    return f"{place_name(place)}.blocks.{number}.{layer}.{kind}"


def _network(unet: Mapping[str, Tensor]) -> State:
    network = {}
    for name, tensor in unet.items():
        if any(silent in name for silent in SILENT) or re.search(r"\.attn1\.to_[kv]\.", name):
            continue
        if QUERY in name:
            tensor = torch.cat([unet[name.replace(QUERY, f".attn1.to_{part}.")] for part in "qkv"])
        network[ldm_name(name)] = tensor
    return network


def _unconditional(network: State, token: Tensor) -> State:
    """Add what the attention to ``token`` (D,) gives to the bias before it, and drop its layers."""
    kept = {name: tensor for name, tensor in network.items() if ".context_" not in name}
    for name in (name for name in network if name.endswith("context_value.weight")):
        block = name.removesuffix("context_value.weight")
        value = network[f"{block}context_out.weight"] @ (network[name] @ token)
        kept[f"{block}attn.proj.bias"] = kept[f"{block}attn.proj.bias"] + value + network[f"{block}context_out.bias"]
    return kept


def _condition(table: Tensor, unet: Mapping[str, Tensor], parts: tuple[Part, ...]) -> State:
    require(len(parts) < 2, f"an official LDM has one condition at most, not {len(parts)}")
    width = next(tensor.shape[1] for name, tensor in unet.items() if name.endswith("attn2.to_v.weight"))
    if parts and isinstance(parts[0], Vector):
        fits = width == parts[0].dim
        require(fits, f"this LDM reads representations of {width} numbers, not {parts[0].dim}")
        return {}
    rows = parts[0].count if parts and isinstance(parts[0], Classes) else 1
    require(len(table) == rows, f"this LDM has {len(table)} rows for its classes, not {rows}")
    require(table.shape[1] == width, f"the class embedding of this LDM, {table.shape[1]} wide, is not what it reads")
    return {"parts.0.table.weight": table} if parts else {}


def _skipped(state: Mapping[str, Tensor], used: set[str], chosen: set[str]) -> dict[str, list[str]]:
    """What of ``state`` is not used, by reason; ``chosen`` are the names of one set of the network's weights."""
    others = {key for key in state if key.startswith(("model.diffusion_model.", "model_ema."))} - chosen
    return {
        "over one token of context the softmax is 1, so queries and keys change nothing": sorted(chosen - used),
        "the weights of the last step, or their EMA weights: whichever was not asked for": sorted(others),
        "the class embedding, which nothing reads": [EMBEDDING] if EMBEDDING not in used else [],
    }
