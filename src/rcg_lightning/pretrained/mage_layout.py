"""The key map of RCG's MAGE files, which hold a tokenizer and an encoder as well."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rcg_lightning.pretrained.checkpoints import State, entry, inverted, recognise, renamed, strip
from rcg_lightning.types import Classes, Part, Vector, require

BLOCK = {
    "norm1": "norm1",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "norm2": "norm2",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.3",
}
OUTSIDE = {
    "token_emb.word_embeddings": "words",
    "token_emb.position_embeddings": "positions",
    "token_emb.LayerNorm": "embed_norm",
    "norm": "norm",
    "decoder_embed": "decoder_embed",
    "decoder_norm": "decoder_norm",
    "mlm_layer": "head",
    "mlm_layer.fc": "head.linear",
    "mlm_layer.ln": "head.norm",
}
BLOCKS = ("blocks.", "decoder_blocks.")  # their names begin alike on both sides
DECODER_POSITIONS = ("decoder_pos_embed_learned", "decoder_positions")  # official, ours: no layer's, so it has no kind
TOKENIZER, ENCODER = "vqgan.", "pretrained_encoder."
LABELS, FAKE = "class_emb.weight", "fake_latent"
COUNTED = "token_emb.position_ids"
LEFT_OVER = {
    *("cls_token", "pos_embed", "decoder_pos_embed", "mask_token"),
    *(f"{layer}.{kind}" for layer in ("patch_embed.proj", "decoder_pred") for kind in ("weight", "bias")),
}


@dataclass(frozen=True)
class MAGEState:
    """An official MAGE in the names used here.

    Attributes:
        network: weights for ``networks.mage.MAGE``.
        conditioner: weights for a ``Conditioner`` of the parts that were asked for: with drop for a vector, without
            for classes; empty without any.
        tokenizer: weights of the MaskGIT VQGAN, in official names; empty where the file has none.
        encoder: weights of the frozen encoder that the representations come from, in official names; empty likewise.
        skipped: names in the file that nothing reads, by reason.
    """

    network: State
    conditioner: State
    tokenizer: State
    encoder: State
    skipped: dict[str, list[str]]


def mage_state(official: Mapping[str, Any], parts: tuple[Part, ...]) -> MAGEState:
    """Translate the content of an official MAGE file. These have no EMA weights.

    Args:
        official: what ``read_checkpoint`` returned.
        parts: the condition that the model was trained with: none, ``Classes`` or ``Vector``.

    Raises:
        UserError: no such file, or the condition does not fit it.
    """
    state = entry(official, "model")
    wanted = "token_emb.word_embeddings.weight"
    require(wanted in state, f"this holds no weights of a MAGE, it is {recognise(official)}")
    sources = _sources(parts)
    _check_condition(state, parts)
    inside = [name for name in state if _is_of_the_network(name)]
    beside = [name for name in state if name.startswith((TOKENIZER, ENCODER))]
    left = sorted(state.keys() - sources.keys() - {*inside, *beside})
    reasons = {
        "what the official network has and never uses": lambda name: name in LEFT_OVER,
        "the positions' numbers, which are counted": lambda name: name == COUNTED,
        "the null of a condition that this model was not trained with": lambda name: name == FAKE,
    }
    skipped = {reason: [name for name in left if applies(name)] for reason, applies in reasons.items()}
    unknown = set(left).difference(*skipped.values())
    require(not unknown, f"this MAGE has tensors that are not known here: {', '.join(sorted(unknown)[:3])}")
    network = {mage_name(name): state[name] for name in inside}
    conditioner = {ours: state[theirs] for theirs, ours in sources.items() if theirs in state}
    return MAGEState(network, conditioner, strip(state, TOKENIZER), strip(state, ENCODER), skipped)


def official_mage(
    network: Mapping[str, Tensor],
    conditioner: Mapping[str, Tensor],
    representation_dim: int = 256,
    patch: int = 16,
    classes: int | None = None,
) -> State:
    """Invert ``mage_state``: a state dict such as the official files hold as ``model``, without the two other networks.

    What the official network has and never uses is written as zeros: ``cls_token``, ``pos_embed``, ``mask_token``,
    ``decoder_pos_embed``, ``patch_embed``, ``decoder_pred``, and ``fake_latent`` of a model without representations.
    A full file has the tokenizer besides, under ``vqgan.``, and the encoder, under ``pretrained_encoder.``.

    Args:
        network: state dict of a ``MAGE``.
        conditioner: state dict of its ``Conditioner``, of one part at most.
        representation_dim: numbers of a representation, for a model that reads none.
        patch: side in pixels of a token of a square colour image: the size of what is never used.
        classes: how many the model tells apart, where its condition is a class; None takes every row for one.

    Raises:
        UserError: the official layout has no place for this condition.
    """
    state = {official_name(name): tensor for name, tensor in network.items()}
    positions = network[DECODER_POSITIONS[1]]
    slots, decoder_width = positions.shape[1:]
    width, pixels = network["words.weight"].shape[1], 3 * patch**2
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, slots, width),
        "mask_token": (1, 1, decoder_width),
        "decoder_pos_embed": (1, slots, decoder_width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "decoder_pred.weight": (pixels, decoder_width),
        "decoder_pred.bias": (pixels,),
        FAKE: (1, representation_dim),
    }
    state |= {name: positions.new_zeros(shape) for name, shape in shapes.items()}
    state[COUNTED] = torch.arange(slots, device=positions.device)[None]
    return state | _official_condition(conditioner, classes)


def mage_name(official: str) -> str:
    """Translate one parameter's name: ``decoder_blocks.3.mlp.fc1.weight`` -> ``decoder_blocks.3.mlp.0.weight``."""
    return _translated(official, BLOCK, OUTSIDE, *DECODER_POSITIONS)


def official_name(ours: str) -> str:
    """Invert ``mage_name``."""
    return _translated(ours, inverted(BLOCK), inverted(OUTSIDE), *DECODER_POSITIONS[::-1])


def _translated(name: str, inside: Mapping[str, str], outside: Mapping[str, str], table: str, into: str) -> str:
    if name == table:
        return into
    prefix = next((prefix for prefix in BLOCKS if name.startswith(prefix)), BLOCKS[0])
    return renamed(name, prefix, inside, outside, into=prefix)


def _is_of_the_network(name: str) -> bool:
    return name.startswith(BLOCKS) or name == DECODER_POSITIONS[0] or (name.rpartition(".")[0] in OUTSIDE)


def _sources(parts: tuple[Part, ...]) -> dict[str, str]:
    """Official names of what embeds the condition, to names in a ``Conditioner``."""
    require(len(parts) < 2, f"an official MAGE has one condition at most, not {len(parts)}")
    if not parts:
        return {}
    if isinstance(parts[0], Classes):
        return {LABELS: "parts.0.table.weight"}
    rep = {f"latent_prior_proj.{kind}": f"parts.0.linear.{kind}" for kind in ("weight", "bias")}
    return {**rep, FAKE: "parts.0.fake"}


def _check_condition(state: Mapping[str, Tensor], parts: tuple[Part, ...]) -> None:
    rows = len(state[LABELS]) if LABELS in state else None
    width = state["latent_prior_proj.weight"].shape[1] if "latent_prior_proj.weight" in state else None
    classes = next((part.count for part in parts if isinstance(part, Classes)), None)
    numbers = next((part.dim for part in parts if isinstance(part, Vector)), None)
    for found, given, what in ((rows, classes, "classes"), (width, numbers, "numbers of a representation")):
        require(found == given, f"this MAGE is conditional on {found or 'no'} {what}, not on {given or 'no'}")


def _official_condition(conditioner: Mapping[str, Tensor], classes: int | None) -> State:
    names = {
        "parts.0.table.weight": LABELS,
        "parts.0.linear.weight": "latent_prior_proj.weight",
        "parts.0.linear.bias": "latent_prior_proj.bias",
        "parts.0.fake": FAKE,
    }
    foreign = sorted(conditioner.keys() - names.keys())
    require(not foreign, f"an official MAGE has one condition at most, and no place for {foreign[:2]}")
    rows = len(conditioner.get("parts.0.table.weight", ()))
    fits = rows == 0 or classes in (None, rows)
    require(fits, f"an official MAGE has no null class: {rows} rows are not {classes} classes, use conditioner.drop 0")
    return {names[name]: tensor for name, tensor in conditioner.items()}
