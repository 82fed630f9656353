"""The key map of IC-GAN's StyleGAN2 networks.

The official files are pickles of whole objects, which nothing here will open: run once with the official code, they
give the state dicts of G, G_ema and D, which is what is translated here.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rcg_lightning.pretrained.checkpoints import State, entry, recognise
from rcg_lightning.types import Classes, Part, Vector, require

FILTER = "resample_filter"
COMPUTED = "the low-pass filter, which is computed"
# layers within a block, the same for every block
SYNTHESIS = {
    "const": "start",
    "conv0": "conv0",
    "conv1": "conv1",
    "torgb": "image",
}
INNER = {  # tensors of a modulated layer
    "weight": "conv.weight",
    "affine.weight": "conv.affine.weight",
    "affine.bias": "conv.affine.bias",
    "noise_strength": "strength",
    "noise_const": "constant",
    "bias": "bias",
}
EMBEDDINGS = {Classes: "embed", Vector: "embed_feats"}


@dataclass(frozen=True)
class StyleGAN2State:
    """One of IC-GAN's StyleGAN2 networks in the names used here.

    Attributes:
        network: weights for ``networks.stylegan2``.
        conditioner: weights for the ``Conditioner`` of that network, with ``EqualisedMaps``, ``drop`` 0 and ``dim`` a
            list where there are two parts; empty without any.
        skipped: what nothing reads, by reason.
    """

    network: State
    conditioner: State
    skipped: dict[str, list[str]]


def stylegan2_generator_state(official: Mapping[str, Any], parts: tuple[Part, ...]) -> StyleGAN2State:
    """Translate the state dict of G or G_ema.

    A class enters officially as a linear map, with bias, of a one-hot vector; here the bias is in every row of a table.

    Args:
        official: the state dict.
        parts: the condition that the model was trained with, the class before the vector.

    Raises:
        UserError: no such network, or the condition does not fit it.
    """
    state = entry(official)
    require("synthesis.b4.const" in state, f"this is no StyleGAN2 generator of IC-GAN but {recognise(official)}")
    return _state(state, parts, _generator_name)


def stylegan2_discriminator_state(official: Mapping[str, Any], parts: tuple[Part, ...]) -> StyleGAN2State:
    """Translate the state dict of D; as ``stylegan2_generator_state``."""
    state = entry(official)
    require("b4.conv.weight" in state, f"this is no StyleGAN2 discriminator of IC-GAN but {recognise(official)}")
    largest = max(int(name[1:].partition(".")[0]) for name in state if name.startswith("b"))
    return _state(state, parts, lambda name: _discriminator_name(name, largest))


def _state(state: State, parts: tuple[Part, ...], translate: Any) -> StyleGAN2State:
    filters = sorted(name for name in state if name.rpartition(".")[2] == FILTER)
    embeddings = {name for name in state if name.startswith("mapping.embed")}
    conditioner = _condition(state, parts)
    unread = embeddings - {f"mapping.{EMBEDDINGS[type(part)]}.{kind}" for part in parts for kind in ("weight", "bias")}
    require(not unread, f"this StyleGAN2 was trained with a condition that is not given: {sorted(unread)}")
    network = {translate(name): state[name] for name in state if name not in embeddings and name not in filters}
    return StyleGAN2State(network, conditioner, {COMPUTED: filters} if filters else {})


def _condition(state: Mapping[str, Tensor], parts: tuple[Part, ...]) -> State:
    kinds = [type(part) for part in parts]
    require(kinds in ([], [Classes], [Vector], [Classes, Vector]), f"IC-GAN has class, then vector, not {kinds}")
    found: State = {}
    for i, part in enumerate(parts):
        name = f"mapping.{EMBEDDINGS[type(part)]}"
        require(f"{name}.weight" in state, f"this StyleGAN2 has no {name}: it was not trained with {part}")
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        size = part.count if isinstance(part, Classes) else part.dim
        require(weight.shape[1] == size, f"this StyleGAN2 has {name} for {weight.shape[1]}, not for {part}")
        if isinstance(part, Classes):
            found[f"parts.{i}.table.weight"] = weight.T + bias * math.sqrt(size)
        else:
            found |= {f"parts.{i}.linear.weight": weight, f"parts.{i}.linear.bias": bias}
    return found


def _mapping_name(name: str) -> str:
    """``mapping.fc1.weight`` -> ``mapping.layers.1.weight``; the mean style is the generator's own."""
    return "mean" if name == "mapping.w_avg" else re.sub(r"^mapping\.fc(\d+)", r"mapping.layers.\1", name)


def _generator_name(name: str) -> str:
    """``synthesis.b8.conv0.affine.weight`` -> ``blocks.1.conv0.conv.affine.weight``."""
    match = re.fullmatch(r"synthesis\.b(\d+)\.(\w+)\.?(.*)", name)
    if match is None:
        return _mapping_name(name)
    side, layer, tensor = match.groups()
    number = int(math.log2(int(side))) - 2
    ours = f"blocks.{number}.{SYNTHESIS[layer]}"
    return f"{ours}.{INNER[tensor]}" if tensor else ours


def _discriminator_name(name: str, largest: int) -> str:
    """``b16.conv0.weight`` -> ``blocks.0.conv0.weight``; the smallest map's layers are outside the blocks."""
    match = re.fullmatch(r"b(\d+)\.(\w+)\.(\w+)", name)
    if match is None:
        return _mapping_name(name)
    side, layer, tensor = match.groups()
    if layer == "fromrgb":
        return f"image.{tensor}"
    if int(side) == 4:
        return f"{ {'conv': 'conv', 'fc': 'linear', 'out': 'out_linear'}[layer] }.{tensor}"
    return f"blocks.{int(math.log2(largest // int(side)))}.{layer}.{tensor}"
