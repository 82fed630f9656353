"""IC-GAN on BigGAN: G.pth, G_ema.pth and D.pth, each a bare state dict.

The EMA weights of G_ema.pth include buffers, so all three have one layout.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from rcg_lightning.core.adversarial import Hinge
from rcg_lightning.networks import biggan
from rcg_lightning.networks.biggan import BigGANDiscriminator, BigGANGenerator, doublings_of, halvings
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.ema import EMA
from rcg_lightning.networks.spectral import SpectralMaps
from rcg_lightning.official.adversarial import (
    GENERATORS,
    AdversarialFile,
    adversarial_part,
    check_order,
    indices,
    instance_condition,
    part_kinds,
    shape_of,
)
from rcg_lightning.official.base import FilePart, NativeModel
from rcg_lightning.official.building import FileCondition, Weights
from rcg_lightning.official.key_map import inverted, renamed
from rcg_lightning.pretrained.checkpoints import State, entry, recognise
from rcg_lightning.pretrained.codecs import Pixels
from rcg_lightning.stages.adversarial import AdversarialStage
from rcg_lightning.stages.generator import TRAINED
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.types import Classes, Condition, DataSpec, Part, Vector, require

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
# layers that embed classes and vectors: in the generator, in the discriminator, here
GENERATOR = {Classes: "shared", Vector: "shared_feat"}
DISCRIMINATOR = {Classes: "embed", Vector: "linear_feat"}
OURS = {Classes: "table", Vector: "linear"}
IMAGE = "output_layer.2.weight"  # a tensor of every generator
COLOURS = 3  # channels of an image
FULL = 96  # width from which on the generator is trained at the lower rate, in four parts of a batch
TABLE_SHAPE = (1000, 128)  # of the class table that the official generator has without classes


class ICGANFile(AdversarialFile):
    """BigGAN of IC-GAN by instance, by class, by both or by neither, with the settings of its training on ImageNet.

    The shapes determine all sizes and the condition: a class table is in every generator's file, but its width adds to
    that of the blocks' condition only where classes are used.

    Args:
        condition: of the model, if the sizes do not determine it: NoCondition, ClassCondition, InstanceCondition, or a
            JointCondition of class and instance.
    """

    description = "an IC-GAN generator"
    incomplete = ("an IC-GAN discriminator",)
    files = ("G_ema", "G", "D")
    generator_key = IMAGE
    native_classes = (BigGANGenerator,)
    ignored: ClassVar[dict[str, str]] = {
        r"((G|G_ema)\.)?shared\.weight$": "the class table of a model that is not conditioned on classes"
    }

    def __init__(self, condition: Condition | None = None) -> None:
        self.condition = condition

    def parts(self, content: Mapping[str, Any], where: str) -> dict[str, FilePart]:
        states = self.networks(content, where)
        first = next(states[name] for name in GENERATORS if name in states)
        condition, hierarchical = self.file_condition(first, where)
        side, generator = _generator(first, hierarchical, where)
        discriminator, widths = _discriminator(states.get("D"), side, generator, condition, where)
        full = generator.channels >= FULL
        stage = AdversarialStage(
            codec=Pixels(),
            condition=condition.condition,
            generator=generator,
            discriminator=discriminator,
            conditioner=_conditioner(_widths(first, condition, GENERATOR, where), SpectralMaps()),
            discriminator_conditioner=_conditioner(widths, SpectralMaps(tables=True)) if widths else None,
            optimizer=_adam(4e-5 if full else 1e-4),
            discriminator_optimizer=_adam(1e-4),
            loss=Hinge(),
            accumulate=4 if full and side >= 256 else 1,
            ema=EMA(0.9999, start=20000, buffers=True),
        )
        spec = DataSpec((first[IMAGE].shape[0], side, side), condition.classes, condition.columns)
        weights = {
            name: (biggan_discriminator_weights if name == "D" else biggan_generator_weights)(state, condition.parts)
            for name, state in states.items()
        }
        return {"generator": adversarial_part(stage, spec, weights, where)}

    def file_condition(self, state: Mapping[str, Tensor], where: str) -> tuple[FileCondition, bool]:
        """Return the condition, and whether every block has its own part of the noise (hierarchical).

        A block's gain is a linear map of embedded class, embedded instance and part of the noise, as far as used.
        """
        chunk, gain = shape_of(state, "linear.weight", where)[1], "blocks.0.0.bn1.gain.weight"
        classes, by_class = state["shared.weight"].shape if "shared.weight" in state else (None, None)
        by_instance, dim = state["shared_feat.weight"].shape if "shared_feat.weight" in state else (None, None)
        width = state[gain].shape[1] if gain in state else 0
        fitting = {
            (labelled, hierarchical)
            for labelled in ((False, True) if by_class is not None else (False,))
            for hierarchical in (True, False)
            if width == (by_class or 0) * labelled + (by_instance or 0) + chunk * hierarchical
        }
        if self.condition is not None:
            given = part_kinds(self.condition)
            agrees = (Vector in given) == (dim is not None)
            fitting = {(labelled, more) for labelled, more in fitting if agrees and labelled == (Classes in given)}
        parts = f"class {by_class}, instance {by_instance}, noise {chunk}"
        wrong = f"{where}: blocks are conditioned on {width} dimensions, which are not the sum of such parts: {parts}"
        require(bool(fitting), wrong)
        labelled, hierarchical = max(fitting, key=lambda found: (found[1], found[0]))
        return instance_condition(classes if labelled else None, dim), hierarchical

    def official(self, native: NativeModel) -> dict[str, Any]:
        stage = native.generator()
        require(isinstance(stage, AdversarialStage), f"{native.path} is no adversarial stage with a BigGAN")
        assert isinstance(stage, AdversarialStage)
        _check_native(stage, str(native.path))
        states = {name: _official_generator(stage, ema_name) for name, ema_name in zip(GENERATORS, (TRAINED, None))}
        conditioner = stage.discriminator_conditioner
        embedding = {} if conditioner is None else conditioner.state_dict()
        return {**states, "D": official_biggan_discriminator(stage.discriminator.state_dict(), embedding)}


def biggan_generator_weights(official: Mapping[str, Any], parts: tuple[Part, ...]) -> Weights:
    """Translate the content of G.pth or G_ema.pth, for ``networks.biggan``.

    The ``Conditioner`` has ``SpectralMaps``, no drop, and a list of dimensions where there are two parts.

    Args:
        official: as ``read_checkpoint`` returns it.
        parts: of the condition that the model was trained with, the class before the vector. The file does not
            determine it: a table of classes is in every one.

    Raises:
        UserError: it is another kind of file, or the condition does not fit it.
    """
    state = entry(official)
    require(IMAGE in state, f"this is no BigGAN generator of IC-GAN but {recognise(official)}")
    return _weights(state, parts, GENERATOR)


def biggan_discriminator_weights(official: Mapping[str, Any], parts: tuple[Part, ...]) -> Weights:
    """Translate the content of D.pth, as ``biggan_generator_weights`` does for G.pth."""
    state = entry(official)
    found = "blocks.0.0.conv1.weight" in state and IMAGE not in state
    require(found, f"this is no BigGAN discriminator of IC-GAN but {recognise(official)}")
    return _weights(state, parts, DISCRIMINATOR)


def official_biggan_generator(network: Mapping[str, Tensor], conditioner: Mapping[str, Tensor]) -> State:
    """Invert ``biggan_generator_weights``, but for the class table of a model without classes."""
    return _official(network, conditioner, GENERATOR)


def official_biggan_discriminator(network: Mapping[str, Tensor], conditioner: Mapping[str, Tensor]) -> State:
    """Invert ``biggan_discriminator_weights``."""
    return _official(network, conditioner, DISCRIMINATOR)


def biggan_name(official: str) -> str:
    """Translate one tensor's name: ``blocks.3.0.bn1.gain.u0`` -> ``blocks.3.norm1.gain.u``."""
    layer, _, kind = renamed(official, "blocks.", BLOCK, OUTSIDE).rpartition(".")
    return f"{layer}.{KINDS.get(kind, kind)}"


def official_biggan_name(ours: str) -> str:
    """Invert ``biggan_name``."""
    layer, _, kind = renamed(ours, "blocks.", inverted(BLOCK), inverted(OUTSIDE)).rpartition(".")
    return f"{layer}.{inverted(KINDS).get(kind, kind)}"


def _weights(state: State, parts: tuple[Part, ...], embeddings: dict[type, str]) -> Weights:
    _check_condition(state, parts, embeddings)
    ours = {embeddings[type(part)]: f"parts.{i}.{OURS[type(part)]}" for i, part in enumerate(parts)}
    network, conditioner = {}, {}
    for name, tensor in state.items():
        layer = name.partition(".")[0]
        if layer in ours:
            conditioner[biggan_name(name.replace(layer, ours[layer], 1))] = tensor
        elif layer not in embeddings.values():
            network[biggan_name(name)] = tensor
    return Weights(network, conditioner)


def _check_condition(state: Mapping[str, Tensor], parts: tuple[Part, ...], embeddings: dict[type, str]) -> None:
    """Raise a UserError unless the file was trained with these parts."""
    check_order(parts)
    for part in parts:
        name = f"{embeddings[type(part)]}.weight"
        require(name in state, f"this BigGAN has no {name}: it was not trained with {part}")
        found = state[name].shape[0 if isinstance(part, Classes) else 1]
        given = part.count if isinstance(part, Classes) else part.dim
        require(found == given, f"this BigGAN has {name} for {found}, not for {part}")
    vector = f"{embeddings[Vector]}.weight"
    given = vector not in state or any(isinstance(part, Vector) for part in parts)
    require(given, f"this BigGAN has {vector}: it was trained with a vector")


def _official(network: Mapping[str, Tensor], conditioner: Mapping[str, Tensor], embeddings: dict[type, str]) -> State:
    state = {official_biggan_name(name): tensor for name, tensor in network.items()}
    layers = {ours: embeddings[part] for part, ours in OURS.items()}
    for name, tensor in conditioner.items():
        _, _, layer, kind = name.split(".")  # parts.0.table.weight
        state[official_biggan_name(f"{layers[layer]}.{kind}")] = tensor
    return state


def _official_generator(stage: AdversarialStage, ema_name: str | None) -> State:
    network, conditioner = stage.for_sampling(ema_name)
    state = official_biggan_generator(network.state_dict(), conditioner.state_dict())
    return state if "shared.weight" in state else {**state, "shared.weight": torch.zeros(TABLE_SHAPE)}


def _generator(state: Mapping[str, Tensor], hierarchical: bool, where: str) -> tuple[int, BigGANGenerator]:
    """Return the side of images and the generator that has the shapes of ``state``, not built."""
    count, known = len(indices(state, "blocks.", ".0.conv1.weight")), biggan.GENERATOR
    require(count in known, f"{where}: no BigGAN has {count} blocks: they are {', '.join(map(str, known))}")
    features, chunk = shape_of(state, "linear.weight", where)
    bottom = math.isqrt(features // shape_of(state, "blocks.0.0.conv1.weight", where)[1])
    channels = shape_of(state, "output_layer.0.gain", where)[0] // known[count][-1]
    attention = [bottom * 2 ** (i + 1) for i in indices(state, "blocks.", ".1.theta.weight")]
    noise = chunk * (count + 1) if hierarchical else chunk
    return bottom * 2**count, BigGANGenerator(channels, noise, hierarchical, attention)


def _discriminator(
    state: State | None, side: int, generator: BigGANGenerator, condition: FileCondition, where: str
) -> tuple[BigGANDiscriminator, list[int]]:
    """Return the discriminator and the widths of its condition, as in ``state`` or fit for ``generator``; not built."""
    _, count = doublings_of((COLOURS, side, side))
    _, sides = halvings(side, count)
    if state is None:
        network = BigGANDiscriminator(generator.channels, [s for s in generator.attention if s in sides])
        width, parts = network.channels * biggan.DISCRIMINATOR[count][-1], len(condition.parts)
        return network, [width // parts] * parts if parts else []
    channels = shape_of(state, "blocks.0.0.conv1.weight", where)[0] // biggan.DISCRIMINATOR[count][0]
    attention = {sides[i] for i in indices(state, "blocks.", ".1.theta.weight") if i < len(sides)}
    network = BigGANDiscriminator(channels, sorted(attention))
    return network, _widths(state, condition, DISCRIMINATOR, where)


def _widths(
    state: Mapping[str, Tensor], condition: FileCondition, embeddings: Mapping[type, str], where: str
) -> list[int]:
    """Return the width of each embedded part of a condition."""
    axes = {Classes: 1, Vector: 0}
    kinds = [type(part) for part in condition.parts]
    return [shape_of(state, f"{embeddings[kind]}.weight", where)[axes[kind]] for kind in kinds]


def _conditioner(widths: list[int], maps: SpectralMaps) -> Conditioner:
    """Return a conditioner, which concatenates the embeddings of several widths."""
    return Conditioner(dim=widths if len(widths) > 1 else (*widths, None)[0], drop=0.0, maps=maps)


def _adam(lr: float) -> AdamW:
    """Return IC-GAN's Adam: without weight decay AdamW is the same."""
    return AdamW(lr, betas=(0.0, 0.999), weight_decay=0.0, eps=1e-6)


def _check_native(stage: AdversarialStage, where: str) -> None:
    """Raise a UserError unless the official code can build the stage."""
    pair = isinstance(stage.generator, BigGANGenerator) and isinstance(stage.discriminator, BigGANDiscriminator)
    require(pair, f"{where}: officially BigGAN's generator has BigGAN's discriminator")
    parts = stage.condition.parts(stage.spec)  # type: ignore[arg-type]
    check_order(parts)
    conditioners = [c for c in (stage.conditioner, stage.discriminator_conditioner) if c is not None and parts]
    spectral = all(isinstance(each.maps, SpectralMaps) for each in conditioners)
    require(spectral, f"{where}: officially conditions go through SpectralMaps")
    listed = len(parts) < 2 or all(isinstance(each.dim, list) for each in conditioners)
    require(listed, f"{where}: officially class and instance are concatenated: conditioner.dim is a list")
