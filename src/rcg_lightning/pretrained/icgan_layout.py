"""The key maps of IC-GAN's BigGAN files: G.pth, G_ema.pth and D.pth, each a bare state dict.

The EMA weights of G_ema.pth cover parameters and buffers, so all three have one layout.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rcg_lightning.pretrained.checkpoints import State, entry, inverted, recognise, renamed
from rcg_lightning.types import Classes, Part, Vector, require

BLOCK = {
    "0.conv1": "conv1",
    "0.conv2": "conv2",
    "0.conv_sc": "shortcut",
    "0.bn1": "norm1",
    "0.bn1.gain": "norm1.gain",
    "0.bn1.bias": "norm1.bias",
    "0.bn2": "norm2",
    "0.bn2.gain": "norm2.gain",
    "0.bn2.bias": "norm2.bias",
    "1": "attention",
    "1.theta": "attention.query",
    "1.phi": "attention.key",
    "1.g": "attention.value",
    "1.o": "attention.out",
}
OUTSIDE = {"output_layer.0": "out_norm", "output_layer.2": "out_conv"}
KINDS = {"u0": "u", "sv0": "sigma", "stored_mean": "mean", "stored_var": "var"}
# what embeds classes and vectors, in the generator and in the discriminator
GENERATOR = {Classes: "shared", Vector: "shared_feat"}
DISCRIMINATOR = {Classes: "embed", Vector: "linear_feat"}
OURS = {Classes: "table", Vector: "linear"}
UNUSED = "the embedding of a condition that this model was not trained with"


@dataclass(frozen=True)
class BigGANState:
    """One of IC-GAN's BigGAN networks in the names used here.

    Attributes:
        network: weights for ``networks.biggan``.
        conditioner: weights for the ``Conditioner`` of that network, with ``SpectralMaps``, ``drop`` 0 and ``dim`` a
            list where there are two parts; empty without any.
        skipped: what nothing reads, by reason.
    """

    network: State
    conditioner: State
    skipped: dict[str, list[str]]


def biggan_generator_state(official: Mapping[str, Any], parts: tuple[Part, ...]) -> BigGANState:
    """Translate the content of G.pth or G_ema.pth.

    Args:
        official: what ``read_checkpoint`` returned.
        parts: the condition that the model was trained with, the class before the vector. The file does not tell it:
            a table of classes is in every one.

    Raises:
        UserError: no such file, or the condition does not fit it.
    """
    return _state(official, parts, GENERATOR, "output_layer.2.weight", "generator")


def biggan_discriminator_state(official: Mapping[str, Any], parts: tuple[Part, ...]) -> BigGANState:
    """Translate the content of D.pth; as ``biggan_generator_state``."""
    return _state(official, parts, DISCRIMINATOR, "blocks.0.0.conv1.weight", "discriminator")


def official_biggan_generator(network: Mapping[str, Tensor], conditioner: Mapping[str, Tensor]) -> State:
    """Invert ``biggan_generator_state``; the official generator also has the class table of a model without classes."""
    return _official(network, conditioner, GENERATOR)


def official_biggan_discriminator(network: Mapping[str, Tensor], conditioner: Mapping[str, Tensor]) -> State:
    """Invert ``biggan_discriminator_state``."""
    return _official(network, conditioner, DISCRIMINATOR)


def biggan_name(official: str) -> str:
    """Translate one tensor's name: ``blocks.3.0.bn1.gain.u0`` -> ``blocks.3.norm1.gain.u``."""
    layer, _, kind = renamed(official, "blocks.", BLOCK, OUTSIDE).rpartition(".")
    return f"{layer}.{KINDS.get(kind, kind)}"


def official_biggan_name(ours: str) -> str:
    """Invert ``biggan_name``."""
    layer, _, kind = renamed(ours, "blocks.", inverted(BLOCK), inverted(OUTSIDE)).rpartition(".")
    return f"{layer}.{inverted(KINDS).get(kind, kind)}"


def _state(
    official: Mapping[str, Any], parts: tuple[Part, ...], embeddings: dict[type, str], sign: str, role: str
) -> BigGANState:
    state = entry(official)
    mine = sign in state and ("output_layer.2.weight" in state) == (role == "generator")
    require(mine, f"this is no BigGAN {role} of IC-GAN but {recognise(official)}")
    _check_condition(state, parts, embeddings)
    condition = {name: name.partition(".")[0] for name in state if name.partition(".")[0] in embeddings.values()}
    ours = {embeddings[type(part)]: f"parts.{i}.{OURS[type(part)]}" for i, part in enumerate(parts)}
    conditioner = {
        biggan_name(name.replace(layer, ours[layer], 1)): state[name]
        for name, layer in condition.items()
        if layer in ours
    }
    unused = sorted(name for name, layer in condition.items() if layer not in ours)
    network = {biggan_name(name): tensor for name, tensor in state.items() if name not in condition}
    return BigGANState(network, conditioner, {UNUSED: unused} if unused else {})


def _check_condition(state: Mapping[str, Tensor], parts: tuple[Part, ...], embeddings: dict[type, str]) -> None:
    """Raise UserError where the file was not trained with these parts."""
    kinds = [type(part) for part in parts]
    require(kinds in ([], [Classes], [Vector], [Classes, Vector]), f"IC-GAN has class, then vector, not {kinds}")
    for part in parts:
        name = f"{embeddings[type(part)]}.weight"
        require(name in state, f"this BigGAN has no {name}: it was not trained with {part}")
        found = state[name].shape[0 if isinstance(part, Classes) else 1]
        mine = part.count if isinstance(part, Classes) else part.dim
        require(found == mine, f"this BigGAN has {name} for {found}, not for {part}")
    vector = f"{embeddings[Vector]}.weight"
    require(vector not in state or Vector in kinds, f"this BigGAN has {vector}: it was trained with a vector")


def _official(network: Mapping[str, Tensor], conditioner: Mapping[str, Tensor], embeddings: dict[type, str]) -> State:
    state = {official_biggan_name(name): tensor for name, tensor in network.items()}
    layers = {ours: embeddings[part] for part, ours in OURS.items()}
    for name, tensor in conditioner.items():
        _, _, layer, kind = name.split(".")  # parts.0.table.weight
        state[official_biggan_name(f"{layers[layer]}.{kind}")] = tensor
    return state
