"""The key maps of the official vector-quantising autoencoders: MaskGIT's VQGAN, which MAGE uses, and LDM's VQ-f8."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rcg_lightning.networks.vqgan import VQGAN, MaskGITVQGAN, VQNetwork
from rcg_lightning.pretrained.checkpoints import State, entry, recognise, require_fit, strip
from rcg_lightning.types import require

INSIDE = ("vqgan.", "first_stage_model.")  # where the files of MAGE and LDM hold theirs
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


@dataclass(frozen=True)
class VQState:
    """An official autoencoder in the names used here.

    Attributes:
        structure: the network, without memory: its class and sizes.
        network: its weights.
        skipped: names in the file that nothing reads, by reason.
    """

    structure: VQNetwork
    network: State
    skipped: dict[str, list[str]]


def vq_state(official: Mapping[str, Any], where: str = "the file") -> VQState:
    """Translate the content of a file of an autoencoder, or of a MAGE or LDM that holds one. Sizes are those of shapes.

    Args:
        official: what ``read_checkpoint`` returned.
        where: the file, for messages.

    Raises:
        UserError: there is no such autoencoder in it, or it is incomplete.
    """
    state = entry(official, "state_dict", "model")
    inner = next((strip(state, prefix) for prefix in INSIDE if prefix + CODES in state), state)
    loss = sorted(name for name in inner if name.startswith("loss."))
    inner = {name: tensor for name, tensor in inner.items() if not name.startswith("loss.")}
    wanted = "weights of a vector-quantising autoencoder"
    needed = (CODES, "encoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight")
    require(all(name in inner for name in needed), f"{where} holds no {wanted}, it is {recognise(official)}")
    structure = vq_structure(inner)
    network = _fused({vq_name(name, structure): tensor for name, tensor in inner.items()})
    require_fit(structure.state_dict(), network, where, type(structure).__name__)
    return VQState(structure, network, {"networks that only its training used": loss})


def vq_structure(official: Mapping[str, Tensor]) -> VQNetwork:
    """Return the network that has the shapes of an official state dict, without memory."""
    codes, dim = official[CODES].shape
    sizes: dict[str, Any] = {**pyramid(official), "codes": codes, "dim": dim}
    with torch.device("meta"):
        if "quant_conv.weight" not in official:
            return MaskGITVQGAN(**sizes)
        levels = range(len(sizes["multipliers"]))
        attention = [2**i for i in levels if f"encoder.down.{i}.attn.0.norm.weight" in official]
        return VQGAN(**sizes, attention=attention)


def pyramid(official: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return ``channels``, ``width``, ``multipliers`` and ``blocks`` of an autoencoder in the original layout."""
    width, channels = official["encoder.conv_in.weight"].shape[:2]
    levels, blocks = _count(official, "encoder.down.{}."), _count(official, "encoder.down.0.block.{}.")
    widths = [len(official[f"encoder.down.{i}.block.0.conv1.weight"]) for i in range(levels)]
    return {
        "channels": channels,
        "width": width,
        "multipliers": [out // width for out in widths],
        "blocks": blocks,
    }


def official_vq(structure: VQNetwork, network: Mapping[str, Tensor]) -> State:
    """Invert ``vq_state``: the bare state dict of an official file.

    Args:
        structure: the network, of which only the class is of interest.
        network: its weights.
    """
    state: State = {}
    for name, tensor in network.items():
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
        structure: the network, of which only the class is of interest.
        back: from ours to the official one.
    """
    pairs = [*NAMES, *(MIDDLE_WITH_ATTENTION if isinstance(structure, VQGAN) else MIDDLE)]
    for official, ours in reversed(pairs) if back else pairs:
        name = name.replace(ours, official) if back else name.replace(official, ours)
    return name


def _fused(state: State) -> State:
    """Put query, key and value of every attention together; 1 x 1 convolutions become linear maps."""
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


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """Return how many numbers from 0 on, put into ``pattern``, begin a name."""
    count = 0
    while any(name.startswith(pattern.format(count)) for name in state):
        count += 1
    return count
