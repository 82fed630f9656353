"""Encoders: the official files of MoCo v3, DINO, iBOT and DeiT, and encoders inside the files of generators."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rcg_lightning.networks.heads import BottleneckHead, LinearHead, Projected, ProjectionHead
from rcg_lightning.networks.vit import VisionTransformer
from rcg_lightning.official.base import FilePart, NativeModel, NetworkPart, OfficialFile
from rcg_lightning.official.key_map import prefixed
from rcg_lightning.pretrained.checkpoints import State, strip
from rcg_lightning.pretrained.encoder_layouts import EncoderState, split_head
from rcg_lightning.pretrained.encoders import DeiTEncoder, DINOEncoder, IBOTEncoder, MoCoV3Encoder, OfficialEncoder
from rcg_lightning.pretrained.preprocess import Preprocess
from rcg_lightning.pretrained.trained_encoder import encoder_settings
from rcg_lightning.types import require

INNER_ENCODER = "pretrained_encoder."  # prefix in the files of generators


class EncoderFile(OfficialFile):
    """An official encoder, which becomes a network folder that ``TrainedEncoder`` reads.

    Args:
        head: whether the representation is the head's output; both are stored where the file has both.
        heads: attention heads, for unpublished widths.
    """

    encoder: ClassVar[type[OfficialEncoder]]

    def __init__(self, head: bool = True, heads: int | None = None) -> None:
        self.head, self.heads = head, heads

    def parts(self, content: Mapping[str, Any], where: str) -> dict[str, FilePart]:
        state = self.encoder().layout(content)
        return {"encoder": encoder_part(self.encoder, state, self.head and bool(state.head), self.heads, where)}

    def official(self, native: NativeModel) -> dict[str, Any]:
        network = native.network("encoder")
        require(network is not None, f"{native.path} holds no encoder: give the folder of its network")
        return self.container(encoder_tensors(network))  # type: ignore[arg-type]

    def container(self, state: State) -> dict[str, Any]:
        """Return the content of an official file with a state dict, the head under ``head.``."""
        raise NotImplementedError


class MoCoV3File(EncoderFile):
    """MoCo v3; only the base encoder, which RCG reads, is written."""

    description = "a MoCo v3 checkpoint"
    native_classes = (ProjectionHead,)
    ignored: ClassVar[dict[str, str]] = {
        r"state_dict\.module\.momentum_encoder\.": "the momentum encoder of its training: RCG uses the base encoder",
        r"state_dict\.module\.predictor\.": "used in its training only",
    }
    encoder = MoCoV3Encoder

    def container(self, state: State) -> dict[str, Any]:
        return {"epoch": 0, "state_dict": prefixed("module.base_encoder.", state)}


class DINOFile(EncoderFile):
    """DINO; prototypes are written as zeros, since the official loader requires and drops them."""

    description = "a DINO checkpoint"
    native_classes = (BottleneckHead,)
    ignored: ClassVar[dict[str, str]] = {
        r"student\.": "the encoder is the teacher",
        r"teacher\.(module\.)?head\.last_layer": "prototypes, used in its training only",
        r"teacher\.backbone\.masked_embed": "used in its training only",
    }
    encoder = DINOEncoder
    prototypes: ClassVar[tuple[str, ...]] = ("head.last_layer.weight",)

    def container(self, state: State) -> dict[str, Any]:
        names = {name if name.startswith("head.") else f"backbone.{name}": tensor for name, tensor in state.items()}
        dim = state["head.mlp.4.weight"].shape[0] if "head.mlp.4.weight" in state else 1
        return {"teacher": names | {name: torch.zeros(1, dim) for name in self.prototypes}}


class IBOTFile(DINOFile):
    """iBOT, written as DINO is."""

    description = "an iBOT checkpoint"
    encoder = IBOTEncoder
    prototypes = tuple(f"head.{layer}.weight_{part}" for layer in ("last_layer", "last_layer2") for part in "gv")


class DeiTFile(EncoderFile):
    """DeiT with its classifier."""

    description = "the weights of a plain Vision Transformer"
    native_classes = (LinearHead,)
    encoder = DeiTEncoder

    def container(self, state: State) -> dict[str, Any]:
        return {"model": state}


def encoder_part(
    kind: type[OfficialEncoder], state: EncoderState, head: bool, heads: int | None, where: str
) -> NetworkPart:
    """Return an encoder as a network, with its head if it has one.

    Args:
        head: whether the head's output is the representation.
    """
    network, _ = kind(head=bool(state.head), heads=heads).build(state, where)
    backbone = network.backbone if isinstance(network, Projected) else network
    assert isinstance(backbone, VisionTransformer)
    settings = encoder_settings(Preprocess(size=backbone.patch_embed.img_size[0]), head)  # type: ignore[index]
    used = {**state.backbone, **prefixed("head.", state.head)}
    return NetworkPart(network, settings, used)


def inner_encoder(tensors: Mapping[str, Tensor], dim: int | None, heads: int | None, where: str) -> dict[str, FilePart]:
    """Return the encoder in the file of a generator, {} without one; the names of its head show its layout.

    Args:
        tensors: of the whole file.
        dim: size of a representation, which shows whether the head was used; None if the generator reads none.
        heads: attention heads, for unpublished widths.
        where: the file, for messages.
    """
    state = strip(tensors, INNER_ENCODER)
    if not state:
        return {}
    kind: type[OfficialEncoder] = MoCoV3Encoder
    if "head.weight" in state:
        kind = DeiTEncoder
    elif "head.mlp.0.weight" in state:
        kind = DINOEncoder
    split = split_head(state, "head.", {})
    part = encoder_part(kind, split, bool(split.head), heads, f"the encoder in {where}")
    network = part.module
    if isinstance(network, Projected) and dim not in (None, network.dim):
        backbone = int(network.backbone.dim)  # type: ignore[arg-type]
        sizes = f"{backbone} dimensions, with its head {network.dim}"
        require(backbone == dim, f"the encoder in {where} gives {sizes}, not the {dim} that the generator reads")
        part.settings["head"] = False
    return {"encoder": part}


def official_inner_encoder(native: NativeModel) -> State:
    """Invert ``inner_encoder``: return the tensors of the encoder for the file of a generator."""
    encoder = native.network("encoder")
    return {} if encoder is None else prefixed(INNER_ENCODER, encoder_tensors(encoder))


def encoder_tensors(network: nn.Module) -> State:
    """Return the tensors of an encoder in official names, its head under ``head.``."""
    if not isinstance(network, Projected):
        return network.state_dict()
    return {**network.backbone.state_dict(), **prefixed("head.", network.head.state_dict())}
