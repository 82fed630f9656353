"""The key map of RCG's ADM files, which is that of guided-diffusion with one layer more, for representations."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rcg_lightning.pretrained.checkpoints import State, ema_or_last, recognise
from rcg_lightning.pretrained.unet_layout import official_unet_name, unet_name
from rcg_lightning.types import Classes, Part, Vector, require

ATTENTION = {"norm": "norm", "qkv": "attn.qkv", "proj_out": "attn.proj"}
LABELS = "label_emb.weight"


@dataclass(frozen=True)
class ADMState:
    """An official ADM in the names used here.

    Attributes:
        network: weights for ``networks.unet.UNet``.
        conditioner: weights for a ``Conditioner`` of the parts that were asked for, without drop.
        skipped: names in the file that nothing reads, by reason; always empty.
    """

    network: State
    conditioner: State
    skipped: dict[str, list[str]]


def adm_state(official: Mapping[str, Any], parts: tuple[Part, ...], ema: bool = True, head_width: int = 64) -> ADMState:
    """Translate the content of an official ADM file.

    Args:
        official: what ``read_checkpoint`` returned.
        parts: the condition that the model was trained with: at most one ``Classes`` and one ``Vector``.
        ema: the EMA weights or those of the last step; the official code measures both.
        head_width: channels of an attention head, which the file does not tell. It holds query, key and value of one
            head after the other, here they are those of all heads.

    Raises:
        UserError: no such file, or the condition does not fit it.
    """
    state = ema_or_last(official, ema)
    wanted = f"{'averaged weights' if ema else 'weights'} of an ADM"
    require("input_blocks.0.0.weight" in state, f"this holds no {wanted}, it is {recognise(official)}")
    sources = _sources(parts)
    _check_condition(state, parts)
    network = {
        unet_name(name, ATTENTION): _to_ours(name, tensor, head_width)
        for name, tensor in state.items()
        if name not in sources and name != LABELS and not name.startswith("rep_proj.")
    }
    return ADMState(network, {ours: state[theirs] for theirs, ours in sources.items()}, {})


def official_adm(network: Mapping[str, Tensor], conditioner: Mapping[str, Tensor], head_width: int = 64) -> State:
    """Invert ``adm_state``: one state dict, such as the official files hold as ``model`` and ``model_ema``.

    Args:
        network: state dict of a ``UNet``.
        conditioner: state dict of its ``Conditioner``, of at most one class and one vector.
        head_width: channels of an attention head.

    Raises:
        UserError: the condition has a learned null, for which the official layout has no place.
    """
    state = {}
    for ours, tensor in network.items():
        name = official_unet_name(ours, ATTENTION)
        state[name] = _to_official(name, tensor, head_width)
    names = {"table.weight": LABELS, "linear.weight": "rep_proj.weight", "linear.bias": "rep_proj.bias"}
    for ours, tensor in conditioner.items():
        kind = ours.split(".", 2)[2]
        require(kind in names, "an official ADM knows no null condition: only one trained with conditioner.drop 0 fits")
        require(names[kind] not in state, "an official ADM has one class and one representation at most")
        state[names[kind]] = tensor
    return state


def _sources(parts: tuple[Part, ...]) -> dict[str, str]:
    """Official names of what embeds the condition, to names in a ``Conditioner``."""
    kinds = [type(part) for part in parts]
    require(len(set(kinds)) == len(kinds), "an official ADM has one class and one representation at most")
    names = {}
    for number, part in enumerate(parts):
        if isinstance(part, Classes):
            names[LABELS] = f"parts.{number}.table.weight"
        else:
            names |= {f"rep_proj.{kind}": f"parts.{number}.linear.{kind}" for kind in ("weight", "bias")}
    return names


def _check_condition(state: Mapping[str, Tensor], parts: tuple[Part, ...]) -> None:
    rows = len(state[LABELS]) if LABELS in state else None
    width = state["rep_proj.weight"].shape[1] if "rep_proj.weight" in state else None
    classes = next((part.count for part in parts if isinstance(part, Classes)), None)
    numbers = next((part.dim for part in parts if isinstance(part, Vector)), None)
    for found, given, what in ((rows, classes, "classes"), (width, numbers, "numbers of a representation")):
        require(found == given, f"this ADM is conditional on {found or 'no'} {what}, not on {given or 'no'}")


def _to_ours(name: str, tensor: Tensor, head_width: int) -> Tensor:
    if ".qkv." not in name:
        return tensor.flatten(1) if ".proj_out.weight" in name else tensor
    heads = _heads(tensor, head_width)
    shape = tensor.shape[:2] if name.endswith("weight") else tensor.shape
    return tensor.reshape(heads, 3, head_width, -1).transpose(0, 1).reshape(shape)


def _to_official(name: str, tensor: Tensor, head_width: int) -> Tensor:
    if ".qkv." in name:
        heads = _heads(tensor, head_width)
        tensor = tensor.reshape(3, heads, head_width, -1).transpose(0, 1).reshape(tensor.shape)
    return tensor[..., None] if name.endswith((".qkv.weight", ".proj_out.weight")) else tensor


def _heads(qkv: Tensor, head_width: int) -> int:
    fits = len(qkv) % (3 * head_width) == 0
    require(
        fits,
        f"{len(qkv) // 3} channels of this ADM cannot be split into heads of {head_width}: give head_width "
        "(rcg convert: --kind adm --kind.head_width N)",
    )
    return len(qkv) // (3 * head_width)
