"""RCG's ADM: guided-diffusion's U-Net with one more layer, for representations."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rcg_lightning.core.diffusion import Noise
from rcg_lightning.core.samplers import DDIM, LeadingSpacing
from rcg_lightning.core.schedule import LinearSchedule
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.ema import EMA
from rcg_lightning.networks.unet import UNet
from rcg_lightning.official.base import FilePart, OfficialFile
from rcg_lightning.official.building import (
    FileCondition,
    Weights,
    built,
    check_condition,
    ema_or_last,
    has_ema,
    read_condition,
    stage_part,
)
from rcg_lightning.official.unet import official_unet_name, unet_name, unet_sizes
from rcg_lightning.pretrained.checkpoints import State, recognise
from rcg_lightning.pretrained.codecs import Pixels
from rcg_lightning.stages.diffusion import DiffusionStage
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.types import Classes, DataSpec, Part, require

ATTENTION = {"norm": "norm", "qkv": "attn.qkv", "proj_out": "attn.proj"}
LABELS, PROJECTION = "label_emb.weight", "rep_proj.weight"
CHANGED = {r"\.(qkv|proj_out)\.": "ordered by query, key and value here, not by head"}


class ADMFile(OfficialFile):
    """ADM on pixels, by representation, class, both or neither. Sampled by 25 steps of DDIM, x̂₀ bounded.

    Args:
        head_width: channels of an attention head.
        image: side of the images in pixels.
    """

    description = "an ADM checkpoint"

    def __init__(self, head_width: int = 64, image: int = 256) -> None:
        self.head_width, self.image = head_width, image

    def parts(self, content: Mapping[str, Any], where: str) -> dict[str, FilePart]:
        condition = read_condition(ema_or_last(content, ema=False), PROJECTION, LABELS)
        last = adm_weights(content, condition.parts, ema=False, head_width=self.head_width)
        ema = adm_weights(content, condition.parts, head_width=self.head_width) if has_ema(content) else None
        out, channels = last.network["out_conv.weight"].shape[0], last.network["down.0.0.weight"].shape[1]
        network = UNet(**unet_sizes(last.network), head_width=self.head_width)
        stage = DiffusionStage(
            codec=Pixels(),
            condition=condition.condition,
            denoiser=Denoiser(network, LinearSchedule(), Noise(), learned_variance=out == 2 * channels),
            conditioner=Conditioner(drop=0.0, zero_start=True),
            optimizer=AdamW(lr=1e-4, weight_decay=0.0),
            sampler=DDIM(25, 0.0, LeadingSpacing(), clip=1.0),
            ema=EMA(0.9999),
        )
        built(stage, DataSpec((channels, self.image, self.image), condition.classes, condition.columns))
        return {"generator": stage_part(stage, network, last, ema, where, changed=CHANGED)}


def adm_weights(
    official: Mapping[str, Any], parts: tuple[Part, ...], ema: bool = True, head_width: int = 64
) -> Weights:
    """Translate the content of an official ADM file, for ``networks.unet.UNet`` and a ``Conditioner`` without drop.

    Args:
        official: as ``read_checkpoint`` returns it.
        parts: of the condition that the model was trained with: at most one ``Classes`` and one ``Vector``.
        ema: the EMA weights or those of the last step; the official code evaluates both.
        head_width: channels of an attention head, which the file does not determine. It stores query, key and value
            of one head after the other; here all queries come first, then all keys, then all values.

    Raises:
        UserError: it is another kind of file, or the condition does not fit it.
    """
    state = ema_or_last(official, ema)
    wanted = f"{'EMA weights' if ema else 'weights'} of an ADM"
    require("input_blocks.0.0.weight" in state, f"this holds no {wanted}, it is {recognise(official)}")
    sources = _sources(parts)
    check_condition("ADM", read_condition(state, PROJECTION, LABELS), FileCondition(parts))
    network = {
        unet_name(name, ATTENTION): _to_ours(name, tensor, head_width)
        for name, tensor in state.items()
        if name not in sources and name != LABELS and not name.startswith("rep_proj.")
    }
    return Weights(network, {ours: state[theirs] for theirs, ours in sources.items()})


def official_adm(network: Mapping[str, Tensor], conditioner: Mapping[str, Tensor], head_width: int = 64) -> State:
    """Invert ``adm_weights``: return one state dict, such as the official files hold as ``model`` and ``model_ema``.

    Args:
        network: state dict of a ``UNet``.
        conditioner: state dict of its ``Conditioner``, of at most one class and one vector.
        head_width: channels of an attention head.

    Raises:
        UserError: the condition has a learned null, which the official layout lacks.
    """
    state = {}
    for ours, tensor in network.items():
        name = official_unet_name(ours, ATTENTION)
        state[name] = _to_official(name, tensor, head_width)
    names = {"table.weight": LABELS, **{f"linear.{kind}": f"rep_proj.{kind}" for kind in ("weight", "bias")}}
    for ours, tensor in conditioner.items():
        kind = ours.split(".", 2)[2]
        require(kind in names, "an official ADM has no null condition: only one trained with conditioner.drop 0 fits")
        require(names[kind] not in state, "an official ADM has one class and one representation at most")
        state[names[kind]] = tensor
    return state


def _sources(parts: tuple[Part, ...]) -> dict[str, str]:
    """Return the official names of the condition's embeddings, to names in a ``Conditioner``."""
    kinds = [type(part) for part in parts]
    require(len(set(kinds)) == len(kinds), "an official ADM has one class and one representation at most")
    names = {}
    for number, part in enumerate(parts):
        if isinstance(part, Classes):
            names[LABELS] = f"parts.{number}.table.weight"
        else:
            names |= {f"rep_proj.{kind}": f"parts.{number}.linear.{kind}" for kind in ("weight", "bias")}
    return names


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
