"""RCG's MAGE; its file also holds its tokenizer and encoder."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from rcg_lightning.core.masking import ParallelDecoding
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.mage import MAGE, MASK, SIZES
from rcg_lightning.networks.vqgan import MaskGITVQGAN, VQNetwork
from rcg_lightning.official.base import FilePart, NativeModel, NetworkPart, OfficialFile
from rcg_lightning.official.building import (
    FileCondition,
    Weights,
    built,
    check_condition,
    heads_of,
    read_condition,
    stage_part,
)
from rcg_lightning.official.encoders import INNER_ENCODER, inner_encoder, official_inner_encoder
from rcg_lightning.official.key_map import inverted, prefixed, renamed
from rcg_lightning.official.tokenizers import INNER_TOKENIZER, autoencoder_part, official_vq
from rcg_lightning.pretrained.checkpoints import State, entry, recognise
from rcg_lightning.pretrained.codecs import VQTokens
from rcg_lightning.stages.masked import MaskedStage
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.types import Classes, DataSpec, Part, require

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
DECODER_POSITIONS = ("decoder_pos_embed_learned", "decoder_positions")  # official, ours: a tensor without a layer
LABELS, PROJECTION, NULL = "class_emb.weight", "latent_prior_proj.weight", "fake_latent"
REPRESENTATION = {f"latent_prior_proj.{kind}": f"parts.0.linear.{kind}" for kind in ("weight", "bias")}
CLASSES = {LABELS: "parts.0.table.weight"}
POSITION_IDS = "token_emb.position_ids"
UNUSED = {
    *("cls_token", "pos_embed", "decoder_pos_embed", "mask_token"),
    *(f"{layer}.{kind}" for layer in ("patch_embed.proj", "decoder_pred") for kind in ("weight", "bias")),
}
HEADS = {width: heads for width, _, heads in SIZES.values()}
LARGE = 1024  # width from which tokens are chosen at the higher temperature


class MAGEFile(OfficialFile):
    """MAGE with its tokenizer and encoder. Sampled in 20 steps at temperature 6, or 11 from width 1024 on.

    Args:
        heads: attention heads, for unpublished widths.
        decoder_heads: attention heads of the decoder.
        encoder_heads: attention heads of the encoder of representations in the file, for unpublished widths.
    """

    description = "a MAGE checkpoint"
    native_classes = (MAGE,)
    ignored: ClassVar[dict[str, str]] = {
        rf"model\.({'|'.join(UNUSED)})": "the official network owns it but never uses it",
        rf"model\.{POSITION_IDS}": "indices of the positions, which are computed",
        rf"model\.{NULL}": "the null of a condition that this model lacks",
    }

    def __init__(self, heads: int | None = None, decoder_heads: int = 16, encoder_heads: int | None = None) -> None:
        self.heads, self.decoder_heads, self.encoder_heads = heads, decoder_heads, encoder_heads

    def parts(self, content: Mapping[str, Any], where: str) -> dict[str, FilePart]:
        tensors = entry(content, "model")
        condition = read_condition(tensors, PROJECTION, LABELS)
        weights = mage_weights(content, condition.parts)
        network = self.network(weights.network, where)
        codes = len(weights.network["words.weight"]) - MASK - 1
        tokens = len(weights.network["positions.weight"]) - 1
        tokenized = any(name.startswith(INNER_TOKENIZER) for name in tensors)
        autoencoder = autoencoder_part(content, where) if tokenized else None
        encoder = inner_encoder(tensors, condition.dim, self.encoder_heads, where)
        side = round(tokens**0.5) * _factor(autoencoder)
        stage = MaskedStage(
            codec=VQTokens(),
            condition=condition.condition,
            transformer=network,
            conditioner=Conditioner(drop=0.0 if condition.dim is None else 0.1),
            optimizer=AdamW(lr=2.4e-3, betas=(0.9, 0.95), weight_decay=0.05, decay_vectors=False, clip=3.0),
            sampler=ParallelDecoding(20, 6.0 if network.width < LARGE else 11.0),
        )
        columns = {"tokens": {"shape": [tokens], "count": codes}}
        tokenizer = autoencoder.module if autoencoder else None
        channels = tokenizer.channels if isinstance(tokenizer, VQNetwork) else 3
        built(stage, DataSpec((channels, side, side), condition.classes, columns | condition.columns))
        generator = stage_part(stage, network, weights, None, where)
        return {"generator": generator, **({"autoencoder": autoencoder} if autoencoder else {}), **encoder}

    def network(self, state: Mapping[str, Tensor], where: str) -> MAGE:
        """Return the network that has the shapes of ``state``, not built."""
        width, decoder_width = state["words.weight"].shape[1], state["decoder_norm.weight"].shape[0]
        depths = [
            sum(name.startswith(blocks) and name.endswith(".attn.qkv.weight") for name in state) for blocks in BLOCKS
        ]
        return MAGE(
            width=width,
            depth=depths[0],
            heads=heads_of(width, self.heads, HEADS, where),
            decoder_width=decoder_width,
            decoder_depth=depths[1],
            decoder_heads=self.decoder_heads,
            mlp_ratio=state["blocks.0.mlp.0.weight"].shape[0] / width,
        )

    def official(self, native: NativeModel) -> dict[str, Any]:
        stage = native.generator()
        assert isinstance(stage, MaskedStage)
        assert stage.spec is not None
        dim = stage.spec.columns.get("representation", {}).get("shape", [256])[0]
        network, conditioner = stage.for_sampling()
        state = official_mage(network.state_dict(), conditioner.state_dict(), dim, classes=stage.spec.classes)
        tokenizer = native.network("autoencoder")
        if tokenizer is not None:
            require(isinstance(tokenizer, MaskGITVQGAN), f"{native.path}: official files of MAGE hold MaskGIT's VQGAN")
            state |= prefixed(INNER_TOKENIZER, official_vq(tokenizer, tokenizer.state_dict()))  # type: ignore[arg-type]
        return {"model": state | official_inner_encoder(native), "model_ema": None, "epoch": 0}


def mage_weights(official: Mapping[str, Any], parts: tuple[Part, ...]) -> Weights:
    """Translate the content of an official MAGE file, which has no EMA weights, for ``networks.mage.MAGE``.

    The ``Conditioner`` has a drop for a vector, none for classes.

    Args:
        official: as ``read_checkpoint`` returns it.
        parts: of the condition that the model was trained with: none, ``Classes`` or ``Vector``.

    Raises:
        UserError: it is another kind of file, it has unknown tensors, or the condition does not fit it.
    """
    state = entry(official, "model")
    wanted = "token_emb.word_embeddings.weight"
    require(wanted in state, f"this holds no weights of a MAGE, it is {recognise(official)}")
    require(len(parts) < 2, f"an official MAGE has one condition at most, not {len(parts)}")
    check_condition("MAGE", read_condition(state, PROJECTION, LABELS), FileCondition(parts))
    sources = {}
    if parts:
        sources = CLASSES if isinstance(parts[0], Classes) else {**REPRESENTATION, NULL: "parts.0.fake"}
    network = {mage_name(name): tensor for name, tensor in state.items() if _is_in_network(name)}
    known = {*sources, *UNUSED, POSITION_IDS, NULL}
    others = (name for name in state if not _is_in_network(name) and name not in known)
    unknown = sorted(name for name in others if not name.startswith((INNER_TOKENIZER, INNER_ENCODER)))
    require(not unknown, f"this MAGE has unknown tensors: {', '.join(unknown[:3])}")
    return Weights(network, {ours: state[theirs] for theirs, ours in sources.items() if theirs in state})


def official_mage(
    network: Mapping[str, Tensor],
    conditioner: Mapping[str, Tensor],
    representation_dim: int = 256,
    patch: int = 16,
    classes: int | None = None,
) -> State:
    """Invert ``mage_weights``: return the ``model`` of an official file, without tokenizer and encoder.

    Tensors that the official network never uses are written as zeros, ``fake_latent`` of a model without
    representations too. A full file also has the tokenizer, under ``vqgan.``, and the encoder, under
    ``pretrained_encoder.``.

    Args:
        network: state dict of a ``MAGE``.
        conditioner: state dict of its ``Conditioner``, of one part at most.
        representation_dim: size of a representation, for a model that reads none.
        patch: side in pixels of a token of a square colour image: the size of unused tensors.
        classes: number of classes if the condition is a class; None counts every row of the table as one.

    Raises:
        UserError: the official layout lacks this condition.
    """
    state = {official_mage_name(name): tensor for name, tensor in network.items()}
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
        NULL: (1, representation_dim),
    }
    state |= {name: positions.new_zeros(shape) for name, shape in shapes.items()}
    state[POSITION_IDS] = torch.arange(slots, device=positions.device)[None]
    names = {**inverted(CLASSES), **inverted(REPRESENTATION), "parts.0.fake": NULL}
    foreign = sorted(conditioner.keys() - names.keys())
    require(not foreign, f"an official MAGE has one condition at most, and no equivalent of {foreign[:2]}")
    rows = len(conditioner.get(CLASSES[LABELS], ()))
    fits = rows == 0 or classes in (None, rows)
    require(fits, f"an official MAGE has no null class: {rows} rows are not {classes} classes, use conditioner.drop 0")
    return state | {names[name]: tensor for name, tensor in conditioner.items()}


def mage_name(official: str) -> str:
    """Translate one parameter's name: ``decoder_blocks.3.mlp.fc1.weight`` -> ``decoder_blocks.3.mlp.0.weight``."""
    return _translated(official, BLOCK, OUTSIDE, *DECODER_POSITIONS)


def official_mage_name(ours: str) -> str:
    """Invert ``mage_name``."""
    return _translated(ours, inverted(BLOCK), inverted(OUTSIDE), *DECODER_POSITIONS[::-1])


def _translated(name: str, inside: Mapping[str, str], outside: Mapping[str, str], table: str, into: str) -> str:
    if name == table:
        return into
    prefix = next((prefix for prefix in BLOCKS if name.startswith(prefix)), BLOCKS[0])
    return renamed(name, prefix, inside, outside, into=prefix)


def _is_in_network(name: str) -> bool:
    return name.startswith(BLOCKS) or name == DECODER_POSITIONS[0] or name.rpartition(".")[0] in OUTSIDE


def _factor(autoencoder: NetworkPart | None) -> int:
    """Return the side of a token in pixels; the official one without a tokenizer."""
    if autoencoder is None:
        return 16
    assert isinstance(autoencoder.module, VQNetwork)
    return autoencoder.module.factor
