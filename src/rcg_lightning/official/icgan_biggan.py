"""IC-GAN on BigGAN."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from rcg_lightning.core.adversarial import Hinge
from rcg_lightning.networks.biggan import (
    DISCRIMINATOR,
    GENERATOR,
    BigGANDiscriminator,
    BigGANGenerator,
    doublings_of,
    halvings,
)
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.ema import EMA
from rcg_lightning.networks.spectral import SpectralMaps
from rcg_lightning.official.adversarial import (
    GENERATORS,
    AdversarialFile,
    adversarial_part,
    condition_of,
    numbered,
    parts_meant,
    shape_of,
)
from rcg_lightning.official.base import Native, Part
from rcg_lightning.official.building import Conditioning, Weights
from rcg_lightning.pretrained.checkpoints import State
from rcg_lightning.pretrained.codecs import Pixels
from rcg_lightning.pretrained.icgan_layout import (
    biggan_discriminator_state,
    biggan_generator_state,
    official_biggan_discriminator,
    official_biggan_generator,
)
from rcg_lightning.stages.adversarial import AdversarialStage
from rcg_lightning.stages.generator import TRAINED
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.types import Classes, Condition, DataSpec, Vector, require

COLOURS = 3  # channels of a image
FULL = 96  # width from which on the generator is trained at the lower rate, in four parts of a batch
TABLE = (1000, 128)  # shape of the class table that the official generator has without classes


class ICGANFile(AdversarialFile):
    """BigGAN of IC-GAN by instance, by class, by both or by neither, with the settings of its training on ImageNet.

    All sizes are told by the tensors, the condition too: a class table is in every generator's file, but its width is
    in that of the blocks' only where classes are used.

    Args:
        condition: of the model, where sizes leave it open: NoCondition, ClassCondition, InstanceCondition, or a
            JointCondition of class and instance.
    """

    called = "an IC-GAN generator"
    also = ("an IC-GAN discriminator",)
    files = ("G_ema", "G", "D")
    sign = "output_layer.2.weight"
    marks = (BigGANGenerator,)
    ignored: ClassVar[dict[str, str]] = {
        r"((G|G_ema)\.)?shared\.weight$": "the class table of a model that is not told classes"
    }

    def __init__(self, condition: Condition | None = None) -> None:
        self.condition = condition

    def parts(self, content: Mapping[str, Any], where: str) -> dict[str, Part]:
        states = self.networks(content, where)
        first = next(states[name] for name in GENERATORS if name in states)
        conditioning, hierarchical = self.conditioning(first, where)
        side, generator = self.generator(first, hierarchical, where)
        discriminator, seen = self.discriminator(states.get("D"), side, generator, conditioning, where)
        full = generator.channels >= FULL
        stage = AdversarialStage(
            codec=Pixels(),
            condition=conditioning.condition,
            generator=generator,
            discriminator=discriminator,
            conditioner=Conditioner(dim=_listed(self.widths(first, conditioning)), drop=0.0, maps=SpectralMaps()),
            discriminator_conditioner=seen,
            optimizer=adam(4e-5 if full else 1e-4),
            discriminator_optimizer=adam(1e-4),
            loss=Hinge(),
            accumulate=4 if full and side >= 256 else 1,
            ema=EMA(0.9999, start=20000, buffers=True),
        )
        spec = DataSpec((first[self.sign].shape[0], side, side), conditioning.classes, conditioning.columns)
        found = {
            name: biggan_generator_state(states[name], conditioning.parts) for name in GENERATORS if name in states
        }
        generators = {name: Weights(state.network, state.conditioner) for name, state in found.items()}
        judging = None
        if "D" in states:
            state = biggan_discriminator_state(states["D"], conditioning.parts)
            judging = Weights(state.network, state.conditioner)
        return {"generator": adversarial_part(stage, spec, generators, judging, where)}

    def conditioning(self, state: Mapping[str, Tensor], where: str) -> tuple[Conditioning, bool]:
        """Return the condition, and whether every block has a part of the noise of its own.

        A block's gain is a linear map of embedded class, embedded instance and part of the noise, those that there are.
        """
        chunk, gain = shape_of(state, "linear.weight", where)[1], "blocks.0.0.bn1.gain.weight"
        classes, by_class = state["shared.weight"].shape if "shared.weight" in state else (None, None)
        by_instance, numbers = state["shared_feat.weight"].shape if "shared_feat.weight" in state else (None, None)
        width = state[gain].shape[1] if gain in state else 0
        fitting = {
            (labelled, hierarchical)
            for labelled in ((False, True) if by_class is not None else (False,))
            for hierarchical in (True, False)
            if width == (by_class or 0) * labelled + (by_instance or 0) + chunk * hierarchical
        }
        if self.condition is not None:
            meant = parts_meant(self.condition)
            agrees = (Vector in meant) == (numbers is not None)
            fitting = {(labelled, more) for labelled, more in fitting if agrees and labelled == (Classes in meant)}
        parts = f"class {by_class}, instance {by_instance}, noise {chunk}"
        require(bool(fitting), f"{where}: blocks are told {width} numbers, which are not of these parts: {parts}")
        labelled, hierarchical = max(fitting, key=lambda found: (found[1], found[0]))
        return condition_of(classes if labelled else None, numbers), hierarchical

    def widths(self, state: Mapping[str, Tensor], conditioning: Conditioning) -> list[int]:
        """Return how wide the embeddings of the parts of a condition are, in the generator."""
        embedded = {Classes: ("shared.weight", 1), Vector: ("shared_feat.weight", 0)}
        return [state[name].shape[axis] for name, axis in (embedded[type(part)] for part in conditioning.parts)]

    def generator(self, state: Mapping[str, Tensor], hierarchical: bool, where: str) -> tuple[int, BigGANGenerator]:
        """Return the side of images and the generator that has the shapes of ``state``, not built."""
        count = len(numbered(state, "blocks.", ".0.conv1.weight"))
        require(count in GENERATOR, f"{where}: no BigGAN has {count} blocks: they are {', '.join(map(str, GENERATOR))}")
        features, chunk = shape_of(state, "linear.weight", where)
        bottom = math.isqrt(features // shape_of(state, "blocks.0.0.conv1.weight", where)[1])
        channels = shape_of(state, "output_layer.0.gain", where)[0] // GENERATOR[count][-1]
        attention = [bottom * 2 ** (i + 1) for i in numbered(state, "blocks.", ".1.theta.weight")]
        noise = chunk * (count + 1) if hierarchical else chunk
        return bottom * 2**count, BigGANGenerator(channels, noise, hierarchical, attention)

    def discriminator(
        self, state: State | None, side: int, generator: BigGANGenerator, conditioning: Conditioning, where: str
    ) -> tuple[BigGANDiscriminator, Conditioner | None]:
        """Return discriminator and conditioner with the shapes of ``state``, or as suit the generator; not built."""
        _, count = doublings_of((COLOURS, side, side))
        _, sides = halvings(side, count)
        if state is None:
            found = BigGANDiscriminator(generator.channels, [s for s in generator.attention if s in sides])
            width = found.channels * DISCRIMINATOR[count][-1]
            widths = [width // len(conditioning.parts)] * len(conditioning.parts) if conditioning.parts else []
        else:
            channels = shape_of(state, "blocks.0.0.conv1.weight", where)[0] // DISCRIMINATOR[count][0]
            attention = {sides[i] for i in numbered(state, "blocks.", ".1.theta.weight") if i < len(sides)}
            found = BigGANDiscriminator(channels, sorted(attention))
            embedded = {Classes: ("embed.weight", 1), Vector: ("linear_feat.weight", 0)}
            chosen = (embedded[type(part)] for part in conditioning.parts)
            widths = [shape_of(state, name, where)[axis] for name, axis in chosen]
        if not conditioning.parts:
            return found, None
        return found, Conditioner(dim=_listed(widths), drop=0.0, maps=SpectralMaps(tables=True))

    def official(self, native: Native) -> dict[str, Any]:
        stage = native.generator()
        require(isinstance(stage, AdversarialStage), f"{native.path} is no adversarial stage with a BigGAN")
        assert isinstance(stage, AdversarialStage)
        self.check(stage, str(native.path))
        states = {name: _generator_state(stage, ema_name) for name, ema_name in zip(GENERATORS, (TRAINED, None))}
        conditioning = stage.discriminator_conditioner
        embedding = {} if conditioning is None else conditioning.state_dict()
        return {**states, "D": official_biggan_discriminator(stage.discriminator.state_dict(), embedding)}

    def check(self, stage: AdversarialStage, where: str) -> None:
        """Raise a UserError where a stage is not what the official code can build."""
        pair = isinstance(stage.generator, BigGANGenerator) and isinstance(stage.discriminator, BigGANDiscriminator)
        require(pair, f"{where}: officially BigGAN's generator has BigGAN's discriminator")
        parts = stage.condition.parts(stage.spec)  # type: ignore[arg-type]
        kinds = [type(part) for part in parts]
        order = f"{where}: officially BigGAN is told a class, an instance, or both in this order, not {parts}"
        require(kinds in ([], [Classes], [Vector], [Classes, Vector]), order)
        conditioning = [c for c in (stage.conditioner, stage.discriminator_conditioner) if c is not None and parts]
        spectral = all(isinstance(each.maps, SpectralMaps) for each in conditioning)
        require(spectral, f"{where}: officially conditions go through SpectralMaps")
        beside = len(parts) < 2 or all(isinstance(each.dim, list) for each in conditioning)
        require(beside, f"{where}: officially class and instance stand side by side: conditioner.dim is a list")


def _generator_state(stage: AdversarialStage, ema_name: str | None) -> State:
    network, conditioner = stage.for_sampling(ema_name)
    state = official_biggan_generator(network.state_dict(), conditioner.state_dict())
    return state if "shared.weight" in state else {**state, "shared.weight": torch.zeros(TABLE)}


def adam(lr: float) -> AdamW:
    """Return IC-GAN's Adam: without weight decay AdamW is the same."""
    return AdamW(lr, betas=(0.0, 0.999), weight_decay=0.0, eps=1e-6)


def _listed(widths: list[int]) -> int | list[int] | None:
    """One width is the width of the whole; several stand side by side."""
    return widths if len(widths) > 1 else (*widths, None)[0]
