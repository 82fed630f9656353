"""IC-GAN on StyleGAN2-ADA, from state dicts."""

from collections.abc import Mapping
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
    condition_of,
    numbered,
    shape_of,
)
from rcg_lightning.official.base import Part
from rcg_lightning.official.building import Conditioning, Weights
from rcg_lightning.pretrained.checkpoints import State
from rcg_lightning.pretrained.codecs import Pixels
from rcg_lightning.pretrained.icgan_stylegan2_layout import (
    COMPUTED,
    FILTER,
    StyleGAN2State,
    stylegan2_discriminator_state,
    stylegan2_generator_state,
)
from rcg_lightning.stages.adversarial import AdversarialStage
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.types import DataSpec, require

EXPORT = (
    "in the folder of the official code run python -c \"import pickle, torch; n = pickle.load(open('FILE.pkl', 'rb')); "
    "torch.save({k: n[k].state_dict() for k in ('G', 'G_ema', 'D')}, 'networks.pth')\" and convert networks.pth"
)
CHANGED = {r"mapping\.embed\.(weight|bias)$": "a linear map of a one-hot vector is a table of its rows here"}
SMALL_GAMMA, GAMMA = 0.05, 0.5  # weight of R1 on COCO-Stuff, up to 128 pixels and above


class ICGANStyleGAN2File(AdversarialFile):
    """StyleGAN2 of IC-GAN by instance, by class, by both or by neither: the state dicts of G, G_ema and D in one file.

    The official files are pickles of whole objects, which are not read; the official code turns one into state dicts.
    Settings are those of the training on COCO-Stuff, for 32 images a step.

    Args:
        group: images that the discriminator compares, which no shape tells.
        clamp: largest activation, which no shape tells either.
    """

    called = "an IC-GAN StyleGAN2 generator"
    also = ("an IC-GAN StyleGAN2 discriminator",)
    sign = "synthesis.b4.const"
    pickled: ClassVar[dict[bytes, str]] = {b"torch_utils.persistence": EXPORT, b"dnnlib.util": EXPORT}
    ignored: ClassVar[dict[str, str]] = {rf"(.*\.)?{FILTER}$": COMPUTED}

    def __init__(self, group: int = 4, clamp: float | None = 256.0) -> None:
        self.group, self.clamp = group, clamp

    def parts(self, content: Mapping[str, Any], where: str) -> dict[str, Part]:
        states = self.networks(content, where)
        first = next(states[name] for name in GENERATORS if name in states)
        conditioning, colours = self.conditioning(first), shape_of(first, "synthesis.b4.torgb.weight", where)[0]
        side, generator = self.generator(first, conditioning, where)
        discriminator = self.discriminator(states.get("D"), generator, where)
        seen = conditioner(conditioning, discriminator.condition_width((colours, side, side)))
        # regularised now and then: officially rate and moments are those of the smaller number of ordinary steps
        stage = AdversarialStage(
            codec=Pixels(),
            condition=conditioning.condition,
            generator=generator,
            discriminator=discriminator,
            conditioner=conditioner(conditioning, generator.width),
            discriminator_conditioner=seen if conditioning.parts else None,
            optimizer=lazy_adam(4),
            discriminator_optimizer=lazy_adam(16),
            loss=Logistic(),
            penalty=GradientPenalty(SMALL_GAMMA if side <= 128 else GAMMA, every=16),
            path_length=PathLength(),
            ema=EMA(0.5 ** (32 / 10_000)),  # half of an average is of the last 10,000 images
        )
        spec = DataSpec((colours, side, side), conditioning.classes, conditioning.columns)
        found = {name: _weights(stylegan2_generator_state(states[name], conditioning.parts)) for name in GENERATORS
                 if name in states}  # fmt: skip
        judging = _weights(stylegan2_discriminator_state(states["D"], conditioning.parts)) if "D" in states else None
        changed = CHANGED if conditioning.classes is not None else {}
        return {"generator": adversarial_part(stage, spec, found, judging, where, changed)}

    def conditioning(self, state: Mapping[str, Tensor]) -> Conditioning:
        """Return the condition, which the tensors tell."""
        embedded = (state.get("mapping.embed.weight"), state.get("mapping.embed_feats.weight"))
        return condition_of(*(None if weight is None else weight.shape[1] for weight in embedded))

    def generator(self, state: State, conditioning: Conditioning, where: str) -> tuple[int, StyleGAN2Generator]:
        """Return the side of images and the generator that has the shapes of ``state``, not built."""
        width = shape_of(state, "mapping.w_avg", where)[0]
        noise = shape_of(state, "mapping.fc0.weight", where)[1] - width * len(conditioning.parts)
        sides = numbered(state, "synthesis.b", ".conv1.weight")
        base, most = law_of({side: len(state[f"synthesis.b{side}.conv1.weight"]) for side in sides})
        layers = len(numbered(state, "mapping.fc", ".weight"))
        network = StyleGAN2Generator(noise, width, layers, base, most, clamp=self.clamp)
        return max(sides), network

    def discriminator(self, state: State | None, generator: StyleGAN2Generator, where: str) -> StyleGAN2Discriminator:
        """Return the discriminator that has the shapes of ``state``, or suits the generator; not built."""
        if state is None:
            return StyleGAN2Discriminator(base=generator.base, most=generator.most, group=self.group, clamp=self.clamp)
        widths = {side: len(state[f"b{side}.conv0.weight"]) for side in numbered(state, "b", ".conv0.weight")}
        base, most = law_of({4: len(state["b4.conv.weight"])} | widths)
        layers = len(numbered(state, "mapping.fc", ".weight"))
        return StyleGAN2Discriminator(layers, base, most, self.group, clamp=self.clamp)


def law_of(widths: Mapping[int, int]) -> tuple[int, int]:
    """Return ``base`` and ``most`` by which maps of these sides have these channels."""
    require(4 in widths, f"StyleGAN2 begins with a map of 4 pixels, not of {min(widths, default=0)}")
    most, largest = max(widths.values()), max(widths)
    return widths[largest] * largest, most


def conditioner(conditioning: Conditioning, width: int) -> Conditioner:
    """Return a conditioner whose parts stand side by side, each of the network's ``width``."""
    several = len(conditioning.parts) > 1
    return Conditioner(dim=[width] * len(conditioning.parts) if several else None, drop=0.0, maps=EqualisedMaps())


def lazy_adam(every: int) -> AdamW:
    """Return Adam at StyleGAN2's rate on COCO-Stuff, for a network that is regularised every so many steps."""
    share = every / (every + 1)
    return AdamW(0.003 * share, betas=(0.0, 0.99**share), weight_decay=0.0)


def _weights(state: StyleGAN2State) -> Weights:
    return Weights(state.network, state.conditioner)
