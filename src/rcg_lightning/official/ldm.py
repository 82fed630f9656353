"""RCG's LDM: a U-Net with cross-attention to one token; its file also holds its first stage and encoder."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.core.diffusion import Noise
from rcg_lightning.core.samplers import DDIM, OffsetSpacing
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.ema import EMA
from rcg_lightning.networks.unet import CrossAttentionUNet
from rcg_lightning.networks.vqgan import VQNetwork
from rcg_lightning.official.base import FilePart, OfficialFile
from rcg_lightning.official.building import FileCondition, Weights, built, ema_decay, file_condition, stage_part
from rcg_lightning.official.encoders import inner_encoder
from rcg_lightning.official.rdm import (
    DECAY,
    EMBEDDING,
    SHARED_IGNORED,
    TABLE,
    UPDATES,
    latent_diffusion_names,
    schedule_of,
)
from rcg_lightning.official.tokenizers import autoencoder_part
from rcg_lightning.official.unet import block_name, unet_name, unet_sizes
from rcg_lightning.pretrained.checkpoints import State, entry, recognise
from rcg_lightning.pretrained.codecs import VQLatents
from rcg_lightning.stages.diffusion import DiffusionStage
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.types import Classes, Condition, DataSpec, Part, Vector, require

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
INERT = (".attn2.to_q.", ".attn2.to_k.", ".norm2.")  # only form queries and keys for one token
QUERY = ".attn1.to_q."
BLOCK = re.compile(r"(.+)\.transformer_blocks\.(\d+)\.(.+)\.(weight|bias)")
FUSED = {r"attn1\.?to_[qkv]\.?weight$": "query, key and value are one map here"}
CONSTANT = {
    r"attn1\.?to_out\.?0\.?bias$": "the output of attention to the only class is added to it",
    r"attn2\.?to_(v|out)": "its attention to the only class is a constant here",
}
CLASS_WIDTH = 512  # of the official class embedding


class LDMFile(OfficialFile):
    """LDM-8 with its first stage and encoder. Sampled by DDIM, 200 steps, η 1.

    Args:
        head_width: channels of an attention head.
        condition: RepresentationCondition, ClassCondition or NoCondition; by default the one that the shapes suggest.
        latent: side of the latents.
        encoder_heads: attention heads of the encoder of representations in the file, for unpublished widths.
    """

    description = "an LDM checkpoint"
    ignored: ClassVar[dict[str, str]] = {
        **SHARED_IGNORED,
        r".*(attn2\.?to_[qk]|\d\.?norm2\.?(weight|bias)$)": "over one token of context the softmax is 1",
        rf"(model|state_dict)\.{EMBEDDING}": "the class embedding, which nothing reads",
    }

    def __init__(
        self,
        head_width: int = 32,
        condition: Condition | None = None,
        latent: int = 32,
        encoder_heads: int | None = None,
    ) -> None:
        self.head_width, self.condition, self.latent, self.encoder_heads = head_width, condition, latent, encoder_heads

    def parts(self, content: Mapping[str, Any], where: str) -> dict[str, FilePart]:
        tensors = entry(content, "model", "state_dict")
        condition = self.file_condition(tensors)
        last = ldm_weights(content, condition.parts, ema=False)
        ema = ldm_weights(content, condition.parts) if DECAY in tensors else None
        network = CrossAttentionUNet(**unet_sizes(last.network), head_width=self.head_width)
        channels = last.network["down.0.0.weight"].shape[1]
        autoencoder = autoencoder_part(content, where)
        assert isinstance(autoencoder.module, VQNetwork)
        stage = DiffusionStage(
            codec=VQLatents(),
            condition=condition.condition,
            denoiser=Denoiser(network, schedule_of(tensors, where), Noise()),
            conditioner=Conditioner(drop=0.0, project=False),
            optimizer=AdamW(lr=6.4e-5, weight_decay=0.01),
            sampler=DDIM(200, 1.0, OffsetSpacing()),
            ema=EMA(ema_decay(tensors.get(DECAY)), warmup=True),
            ema_conditioner=False,
        )
        side = self.latent * autoencoder.module.factor
        image = (autoencoder.module.channels, side, side)
        columns = {"latent": {"shape": [channels, self.latent, self.latent]}}
        built(stage, DataSpec(image, condition.classes, columns | condition.columns))
        changed = FUSED if condition.parts else FUSED | CONSTANT
        generator = stage_part(stage, network, last, ema, where, tensors.get(UPDATES), changed=changed)
        encoder = inner_encoder(tensors, condition.dim, self.encoder_heads, where)
        return {"generator": generator, "autoencoder": autoencoder, **encoder}

    def file_condition(self, tensors: Mapping[str, Tensor]) -> FileCondition:
        """Return the condition as given, else as the tensors suggest.

        Every file has a class table. It is read if it is as wide as the official one, 512, and has several rows;
        otherwise the context is a representation.
        """
        context = next((t.shape[1] for name, t in tensors.items() if name.endswith("attn2.to_v.weight")), None)
        rows = len(tensors[EMBEDDING]) if EMBEDDING in tensors else 1
        by_class = context == CLASS_WIDTH and rows > 1
        by_nothing = context == CLASS_WIDTH and rows == 1
        if self.condition is not None:
            by_class = isinstance(self.condition, ClassCondition)
            by_nothing = not by_class and not isinstance(self.condition, RepresentationCondition)
        return file_condition(None, rows) if by_class else file_condition(None if by_nothing else context, None)


def ldm_weights(official: Mapping[str, Any], parts: tuple[Part, ...], ema: bool = True) -> Weights:
    """Translate an official LDM for ``networks.unet.CrossAttentionUNet`` and a ``Conditioner`` without projection.

    A representation is the one token of context as it is, so the ``Conditioner`` has no weights for it. Over one token
    the softmax is 1: layers that only form queries and keys are ignored. The official unconditional model attends to
    the embedding of its single class; the result is a constant, which is added to the bias of the self-attention
    before it.

    Args:
        official: as ``read_checkpoint`` returns it.
        parts: of the condition that the model was trained with, which the file does not determine: none, ``Classes``
            or ``Vector``.
        ema: the EMA weights, which the official code samples with, or those of the last step. The class embedding
            has no EMA.

    Raises:
        UserError: it is another kind of file, or the condition does not fit it.
    """
    state = entry(official, "model", "state_dict")
    names = latent_diffusion_names(state, ema)
    require("input_blocks.0.0.weight" in names, f"this is no LDM checkpoint but {recognise(official)}")
    require(EMBEDDING in state, f"this LDM checkpoint has no {EMBEDDING}")
    unet = {name: state[key] for name, key in names.items()}
    conditioner = _conditioner(state[EMBEDDING], unet, parts)
    network = _network(unet)
    return Weights(network if parts else _unconditional(network, state[EMBEDDING][0]), conditioner)


def ldm_name(official: str) -> str:
    """Translate one parameter's name.

    ``input_blocks.1.1.transformer_blocks.0.ff.net.2.bias`` -> ``down.1.1.blocks.0.mlp.outer.bias``. Query, key and
    value of self-attention are parts of one layer here, so their names all become its name.
    """
    inside = BLOCK.fullmatch(official)
    if inside is None:
        return unet_name(official, ATTENTION)
    block, number, layer, kind = inside.groups()
    if layer in ("attn1.to_q", "attn1.to_k", "attn1.to_v"):
        layer = "attn.qkv"
    else:
        require(layer in INSIDE, f"{official} is no known layer of a transformer block")
        layer = INSIDE[layer]
    return f"{block_name(block)}.blocks.{number}.{layer}.{kind}"


def _network(unet: Mapping[str, Tensor]) -> State:
    network = {}
    for name, tensor in unet.items():
        if any(inert in name for inert in INERT) or re.search(r"\.attn1\.to_[kv]\.", name):
            continue
        if QUERY in name:
            tensor = torch.cat([unet[name.replace(QUERY, f".attn1.to_{part}.")] for part in "qkv"])
        network[ldm_name(name)] = tensor
    return network


def _unconditional(network: State, token: Tensor) -> State:
    """Add the output of the attention to ``token`` (D,) to the bias before it, and drop its layers."""
    rest = {name: tensor for name, tensor in network.items() if ".context_" not in name}
    for name in (name for name in network if name.endswith("context_value.weight")):
        block = name.removesuffix("context_value.weight")
        value = network[f"{block}context_out.weight"] @ (network[name] @ token)
        rest[f"{block}attn.proj.bias"] = rest[f"{block}attn.proj.bias"] + value + network[f"{block}context_out.bias"]
    return rest


def _conditioner(table: Tensor, unet: Mapping[str, Tensor], parts: tuple[Part, ...]) -> State:
    require(len(parts) < 2, f"an official LDM has one condition at most, not {len(parts)}")
    width = next(tensor.shape[1] for name, tensor in unet.items() if name.endswith("attn2.to_v.weight"))
    if parts and isinstance(parts[0], Vector):
        fits = width == parts[0].dim
        require(fits, f"this LDM reads representations of {width} dimensions, not {parts[0].dim}")
        return {}
    rows = parts[0].count if parts and isinstance(parts[0], Classes) else 1
    require(len(table) == rows, f"this LDM has {len(table)} rows for its classes, not {rows}")
    require(table.shape[1] == width, f"the class embedding of this LDM, {table.shape[1]} wide, is not its context")
    return {TABLE: table} if parts else {}
