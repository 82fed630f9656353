"""IC-GAN on StyleGAN2-ADA, from state dicts.

The official files are pickles of whole objects, which are never opened here. The official code, run once, turns them
into the state dicts of G, G_ema and D; this file translates those.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from rcg_lightning.core.adversarial import GradientPenalty, Logistic, PathLength
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.ema import EMA
from rcg_lightning.networks.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from rcg_lightning.networks.stylegan2_blocks import EqualisedMaps
from rcg_lightning.official.adversarial import (
    GENERATORS,
    AdversarialFile,
    adversarial_part,
    check_order,
    indices,
    instance_condition,
    shape_of,
)
from rcg_lightning.official.base import FilePart
from rcg_lightning.official.building import FileCondition, Weights
from rcg_lightning.pretrained.checkpoints import State, entry, recognise
from rcg_lightning.pretrained.codecs import Pixels
from rcg_lightning.stages.adversarial import AdversarialStage
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.types import Classes, DataSpec, Part, Vector, require

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
LAST_BLOCK = {"conv": "conv", "fc": "linear", "out": "out_linear"}  # of the discriminator, outside our blocks
EMBEDDINGS = {Classes: "mapping.embed", Vector: "mapping.embed_feats"}
FILTER = "resample_filter"
CHANGED = {r"mapping\.embed\.(weight|bias)$": "a linear map of a one-hot vector is a table of its rows here"}
SMALL_GAMMA, GAMMA = 0.05, 0.5  # weight of R1 on COCO-Stuff, up to 128 pixels and above
EXPORT = (
    "in the folder of the official code run python -c \"import pickle, torch; n = pickle.load(open('FILE.pkl', 'rb')); "
    "torch.save({k: n[k].state_dict() for k in ('G', 'G_ema', 'D')}, 'networks.pth')\" and convert networks.pth"
)


class ICGANStyleGAN2File(AdversarialFile):
    """StyleGAN2 of IC-GAN by instance, by class, by both or by neither: the state dicts of G, G_ema and D in one file.

    The official files are pickles of whole objects, which are not read; the official code turns each into state dicts.
    Settings are those of the training on COCO-Stuff, for 32 images a step.

    Args:
        group: images that the discriminator compares, which no shape shows.
        clamp: largest activation, which no shape shows.
    """

    description = "an IC-GAN StyleGAN2 generator"
    incomplete = ("an IC-GAN StyleGAN2 discriminator",)
    generator_key = "synthesis.b4.const"
    pickled: ClassVar[dict[bytes, str]] = {b"torch_utils.persistence": EXPORT, b"dnnlib.util": EXPORT}
    ignored: ClassVar[dict[str, str]] = {rf"(.*\.)?{FILTER}$": "the low-pass filter, which is computed"}

    def __init__(self, group: int = 4, clamp: float | None = 256.0) -> None:
        self.group, self.clamp = group, clamp

    def parts(self, content: Mapping[str, Any], where: str) -> dict[str, FilePart]:
        states = self.networks(content, where)
        first = next(states[name] for name in GENERATORS if name in states)
        embeddings = (first.get(f"{EMBEDDINGS[kind]}.weight") for kind in (Classes, Vector))
        condition = instance_condition(*(None if weight is None else weight.shape[1] for weight in embeddings))
        colours = shape_of(first, "synthesis.b4.torgb.weight", where)[0]
        side, generator = self.generator(first, condition, where)
        discriminator = self.discriminator(states.get("D"), generator)
        discriminator_dim = discriminator.condition_width((colours, side, side))
        # lazy regularisation: officially rate and moments are scaled to the smaller number of ordinary steps
        stage = AdversarialStage(
            codec=Pixels(),
            condition=condition.condition,
            generator=generator,
            discriminator=discriminator,
            conditioner=_conditioner(condition, generator.width),
            discriminator_conditioner=_conditioner(condition, discriminator_dim) if condition.parts else None,
            optimizer=_lazy_adam(4),
            discriminator_optimizer=_lazy_adam(16),
            loss=Logistic(),
            penalty=GradientPenalty(SMALL_GAMMA if side <= 128 else GAMMA, every=16),
            path_length=PathLength(),
            ema=EMA(0.5 ** (32 / 10_000)),  # half of the EMA comes from the last 10,000 images
        )
        spec = DataSpec((colours, side, side), condition.classes, condition.columns)
        weights = {
            name: (stylegan2_discriminator_weights if name == "D" else stylegan2_generator_weights)(
                state, condition.parts
            )
            for name, state in states.items()
        }
        changed = CHANGED if condition.classes is not None else {}
        return {"generator": adversarial_part(stage, spec, weights, where, changed)}

    def generator(self, state: State, condition: FileCondition, where: str) -> tuple[int, StyleGAN2Generator]:
        """Return the side of images and the generator that has the shapes of ``state``, not built."""
        width = shape_of(state, "mapping.w_avg", where)[0]
        noise = shape_of(state, "mapping.fc0.weight", where)[1] - width * len(condition.parts)
        sides = indices(state, "synthesis.b", ".conv1.weight")
        base, most = _channels({side: len(state[f"synthesis.b{side}.conv1.weight"]) for side in sides})
        layers = len(indices(state, "mapping.fc", ".weight"))
        return max(sides), StyleGAN2Generator(noise, width, layers, base, most, clamp=self.clamp)

    def discriminator(self, state: State | None, generator: StyleGAN2Generator) -> StyleGAN2Discriminator:
        """Return the discriminator that has the shapes of ``state``, or fits the generator; not built."""
        if state is None:
            return StyleGAN2Discriminator(
                channel_base=generator.channel_base,
                channel_max=generator.channel_max,
                group=self.group,
                clamp=self.clamp,
            )
        widths = {side: len(state[f"b{side}.conv0.weight"]) for side in indices(state, "b", ".conv0.weight")}
        base, most = _channels({4: len(state["b4.conv.weight"])} | widths)
        layers = len(indices(state, "mapping.fc", ".weight"))
        return StyleGAN2Discriminator(layers, base, most, self.group, clamp=self.clamp)


def stylegan2_generator_weights(official: Mapping[str, Any], parts: tuple[Part, ...]) -> Weights:
    """Translate the state dict of G or G_ema, for ``networks.stylegan2``.

    Officially a class enters by a linear map, with bias, of a one-hot vector; here every row of a table has the bias.
    The ``Conditioner`` has ``EqualisedMaps``, no drop, and a list of dimensions where there are two parts.

    Args:
        official: the state dict.
        parts: of the condition that the model was trained with, the class before the vector.

    Raises:
        UserError: it is another network, or the condition does not fit it.
    """
    state = entry(official)
    require("synthesis.b4.const" in state, f"this is no StyleGAN2 generator of IC-GAN but {recognise(official)}")
    return _weights(state, parts, _generator_name)


def stylegan2_discriminator_weights(official: Mapping[str, Any], parts: tuple[Part, ...]) -> Weights:
    """Translate the state dict of D, as ``stylegan2_generator_weights`` does for G."""
    state = entry(official)
    require("b4.conv.weight" in state, f"this is no StyleGAN2 discriminator of IC-GAN but {recognise(official)}")
    largest = max(int(name[1:].partition(".")[0]) for name in state if name.startswith("b"))
    return _weights(state, parts, lambda name: _discriminator_name(name, largest))


def _weights(state: State, parts: tuple[Part, ...], translate: Callable[[str], str]) -> Weights:
    conditioner = _condition_weights(state, parts)
    embeddings = {name for name in state if name.startswith("mapping.embed")}
    given = tuple(f"{EMBEDDINGS[type(part)]}." for part in parts)
    unread = sorted(name for name in embeddings if not name.startswith(given))
    require(not unread, f"this StyleGAN2 was trained with a condition that is not given: {unread}")
    inside = (name for name in state if name not in embeddings and not name.endswith(f".{FILTER}"))
    return Weights({translate(name): state[name] for name in inside}, conditioner)


def _condition_weights(state: Mapping[str, Tensor], parts: tuple[Part, ...]) -> State:
    check_order(parts)
    found: State = {}
    for i, part in enumerate(parts):
        name = EMBEDDINGS[type(part)]
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
    """``mapping.fc1.weight`` -> ``mapping.layers.1.weight``; the mean style belongs to the generator."""
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
        return f"{LAST_BLOCK[layer]}.{tensor}"
    return f"blocks.{int(math.log2(largest // int(side)))}.{layer}.{tensor}"


def _channels(widths: Mapping[int, int]) -> tuple[int, int]:
    """Return the ``channel_base`` and ``channel_max`` that give maps of these sides these channels."""
    require(4 in widths, f"StyleGAN2 begins with a map of 4 pixels, not of {min(widths, default=0)}")
    most, largest = max(widths.values()), max(widths)
    return widths[largest] * largest, most


def _conditioner(condition: FileCondition, width: int) -> Conditioner:
    """Return a conditioner that concatenates its parts, each of the network's ``width``."""
    parts = len(condition.parts)
    return Conditioner(dim=[width] * parts if parts > 1 else None, drop=0.0, maps=EqualisedMaps())


def _lazy_adam(every: int) -> AdamW:
    """Return Adam at StyleGAN2's rate on COCO-Stuff, for a network that is regularised at each ``every``-th step."""
    share = every / (every + 1)
    return AdamW(0.003 * share, betas=(0.0, 0.99**share), weight_decay=0.0)
