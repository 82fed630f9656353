"""Vector-quantising autoencoders: MaskGIT's VQGAN, which MAGE uses, LDM's VQ-f8, and those in files of MAGE and LDM."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from rcg_lightning.networks.vqgan import VQGAN, MaskGITVQGAN, VQNetwork
from rcg_lightning.official.base import FilePart, NetworkPart, OfficialFile
from rcg_lightning.pretrained.autoencoders import autoencoder_settings
from rcg_lightning.pretrained.checkpoints import State, entry, load_strictly, recognise, require_fit, strip
from rcg_lightning.pretrained.kl_checkpoints import USE, autoencoder_sizes, is_kl
from rcg_lightning.types import require

INNER_TOKENIZER, FIRST_STAGE = "vqgan.", "first_stage_model."  # prefixes in the files of MAGE and LDM
CODES = "quantize.embedding.weight"
# official part of a name to ours; in this order, and backwards from the last to the first
NAMES = (
    ("quantize.embedding.", "codebook."),
    ("post_quant_conv.", "after_codes."),
    ("quant_conv.", "before_codes."),
    (".conv_in.", ".in_conv."),
    (".norm_out.", ".out_norm."),
    (".conv_out.", ".out_conv."),
    ("encoder.down.", "encoder.levels."),
    ("decoder.up.", "decoder.levels."),
    (".block.", ".blocks."),
    (".attn.", ".attentions."),
    (".nin_shortcut.", ".skip."),
    (".downsample.conv.", ".resize."),
    (".upsample.conv.", ".resize.1."),
    (".mid.block_1.", ".middle.0."),
    (".proj_out.", ".attn.proj."),
)
MIDDLE = ((".mid.block_2.", ".middle.1."),)
MIDDLE_WITH_ATTENTION = ((".mid.attn_1.", ".middle.1."), (".mid.block_2.", ".middle.2."))
FUSED = ".attn.qkv."
CHANGED = {
    r"\.attn\S*\.([qkv]|proj_out)\.": "1 x 1 convolutions are linear maps here; query, key and value are one map"
}


class MaskGITVQGANFile(OfficialFile):
    """MaskGIT's VQGAN, MAGE's tokenizer. Its shapes determine all sizes."""

    description = "a MaskGIT VQGAN"

    def parts(self, content: Mapping[str, Any], where: str) -> dict[str, FilePart]:
        return {"autoencoder": autoencoder_part(content, where)}


class LDMVQFile(MaskGITVQGANFile):
    """LDM's VQ-f8. Its shapes determine all sizes."""

    description = "an autoencoder of LDM"
    ignored: ClassVar[dict[str, str]] = {r"(state_dict\.)?(\w+\.)?loss\.": "networks that only training used"}


def autoencoder_part(content: Mapping[str, Any], where: str) -> NetworkPart:
    """Return the autoencoder in a file of its own or of a generator."""
    network, weights = vq_network(content, where)
    load_strictly(network, weights, where)
    return NetworkPart(network, autoencoder_settings(network), weights, CHANGED)


def vq_network(official: Mapping[str, Any], where: str = "the file") -> tuple[VQNetwork, State]:
    """Translate the content of a file of an autoencoder, or of a MAGE or LDM that holds one.

    Args:
        official: as ``read_checkpoint`` returns it.
        where: the file, for messages.

    Returns:
        The network without memory, and its weights.

    Raises:
        UserError: the file holds no such autoencoder, or an incomplete one.
    """
    state = entry(official, "state_dict", "model")
    prefixes = (INNER_TOKENIZER, FIRST_STAGE)
    inner = next((strip(state, prefix) for prefix in prefixes if prefix + CODES in state), state)
    inner = {name: tensor for name, tensor in inner.items() if not name.startswith("loss.")}
    wanted = "weights of a vector-quantising autoencoder"
    needed = (CODES, "encoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight")
    require(not is_kl(inner), f"{where} is a KL autoencoder, without a codebook: {USE}")
    require(all(name in inner for name in needed), f"{where} holds no {wanted}, it is {recognise(official)}")
    network = vq_structure(inner)
    weights = _fused({vq_name(name, network): tensor for name, tensor in inner.items()})
    require_fit(network.state_dict(), weights, where, type(network).__name__)
    return network, weights


def vq_structure(official: Mapping[str, Tensor]) -> VQNetwork:
    """Return the network that has the shapes of an official state dict, without memory."""
    codes, dim = official[CODES].shape
    sizes: dict[str, Any] = {**autoencoder_sizes(official), "codes": codes, "dim": dim}
    with torch.device("meta"):
        if "quant_conv.weight" not in official:
            return MaskGITVQGAN(**sizes)
        levels = range(len(sizes["multipliers"]))
        attention = [2**i for i in levels if f"encoder.down.{i}.attn.0.norm.weight" in official]
        z_channels = official["quant_conv.weight"].shape[1]
        if z_channels != dim:  # others keep the identity that they had
            sizes["z_channels"] = z_channels
        return VQGAN(**sizes, attention=attention)


def official_vq(structure: VQNetwork, weights: Mapping[str, Tensor]) -> State:
    """Invert ``vq_network``: return the bare state dict of an official file.

    Args:
        structure: the network, of which only the class matters.
        weights: its state dict.
    """
    state: State = {}
    for name, tensor in weights.items():
        if FUSED in name:
            for letter, part in zip("qkv", tensor.chunk(3)):
                state[vq_name(name.replace(FUSED, f".{letter}."), structure, back=True)] = _as_convolution(part)
        else:
            official = vq_name(name, structure, back=True)
            state[official] = _as_convolution(tensor) if ".proj_out." in official else tensor
    return state


def vq_name(name: str, structure: VQNetwork, back: bool = False) -> str:
    """Translate one parameter's name.

    ``encoder.down.3.attn.0.norm.bias`` -> ``encoder.levels.3.attentions.0.norm.bias``.

    Args:
        name: the official one, or ours.
        structure: the network, of which only the class matters.
        back: from ours to the official one.
    """
    pairs = [*NAMES, *(MIDDLE_WITH_ATTENTION if isinstance(structure, VQGAN) else MIDDLE)]
    for official, ours in reversed(pairs) if back else pairs:
        name = name.replace(ours, official) if back else name.replace(official, ours)
    return name


def _fused(state: State) -> State:
    """Join query, key and value of every attention; turn 1 x 1 convolutions into linear maps."""
    found: State = {}
    for name, tensor in state.items():
        stem, letter, kind = name.rsplit(".", 2) if name.count(".") > 1 else ("", "", "")
        if letter == "q" and all(f"{stem}.{other}.{kind}" in state for other in "kv"):
            parts = [state[f"{stem}.{each}.{kind}"] for each in "qkv"]
            found[f"{stem}{FUSED}{kind}"] = torch.cat([part.flatten(1) if part.ndim == 4 else part for part in parts])
        elif letter not in ("q", "k", "v"):
            found[name] = tensor.flatten(1) if ".attn.proj." in name and tensor.ndim == 4 else tensor
    return found


def _as_convolution(tensor: Tensor) -> Tensor:
    return tensor[:, :, None, None] if tensor.ndim == 2 else tensor
