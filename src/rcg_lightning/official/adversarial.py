"""How an adversarial stage takes the tensors of IC-GAN's files, and the conditions that these are trained under."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.instance import InstanceCondition
from rcg_lightning.conditions.joint import JointCondition
from rcg_lightning.conditions.none import NoCondition
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.config import construct, describe
from rcg_lightning.errors import UserError
from rcg_lightning.official.base import OfficialFile, StagePart
from rcg_lightning.official.building import Conditioning, Weights, built, prefixed, stage_part
from rcg_lightning.pretrained.checkpoints import State, entry
from rcg_lightning.stages.adversarial import AdversarialStage
from rcg_lightning.types import Classes, Condition, DataSpec, Part, Vector, require

GENERATORS = ("G", "G_ema")


class AdversarialFile(OfficialFile):
    """Base of IC-GAN's kinds: G, G_ema and D, as a folder of files or as entries of one; or a generator alone.

    Where D is missing a fresh discriminator takes its place, of the generator's width; where one of G and G_ema is
    missing the other stands in for it.
    """

    sign: ClassVar[str]  # a tensor that every generator has

    def networks(self, content: Mapping[str, Any], where: str) -> dict[str, State]:
        """Return the tensors of ``G``, ``G_ema`` and ``D``, those that are there."""
        known = {name: entry({name: content.get(name)}, name) for name in (*GENERATORS, "D")}
        states = {name: state for name, state in known.items() if name in content and state}
        states = states or {"G_ema" if Path(where).stem.startswith("G_ema") else "G": entry(content)}
        made = [name for name in GENERATORS if self.sign in states.get(name, {})]
        alone = "a discriminator makes no images: give its generator too, as a folder with G.pth or G_ema.pth"
        require(bool(made), f"{where} holds no generator, and {alone}")
        missing = set(states) & set(GENERATORS) - set(made)
        require(not missing, f"{where}: {', '.join(missing)} is no generator of this kind")
        return states


def condition_of(classes: int | None, numbers: int | None) -> Conditioning:
    """Return the condition on so many classes, on an instance of so many numbers, on both, or on nothing."""
    found: list[tuple[Condition, Part]] = []
    if classes is not None:
        found.append((ClassCondition(), Classes(classes)))
    if numbers is not None:
        found.append((InstanceCondition(), Vector(numbers)))
    conditions = [condition for condition, _ in found]
    condition = JointCondition(conditions) if len(found) > 1 else (*conditions, NoCondition())[0]
    columns = {} if numbers is None else {"instance": {"shape": [numbers]}}
    return Conditioning(condition, tuple(part for _, part in found), classes, columns)


def parts_meant(condition: Condition) -> tuple[type, ...]:
    """Return which parts a condition that a user gave has, without asking any data."""
    if isinstance(condition, JointCondition):
        return tuple(part for each in condition.conditions for part in parts_meant(each))
    kinds = {ClassCondition: (Classes,), RepresentationCondition: (Vector,), NoCondition: ()}
    for kind, parts in kinds.items():
        if isinstance(condition, kind):
            return parts
    raise UserError(f"IC-GAN is conditioned on classes, instances, both or nothing, not on {type(condition).__name__}")


def adversarial_part(
    stage: AdversarialStage,
    spec: DataSpec,
    generators: Mapping[str, Weights],
    discriminator: Weights | None,
    where: str,
    changed: Mapping[str, str] | None = None,
) -> StagePart:
    """Return ``stage``, which is built here without memory, with the tensors of files.

    Args:
        stage: not yet built.
        data spec: to build it by.
        generators: weights of G, of G_ema, or both.
        discriminator: weights of D; None makes fresh ones.
        where: the file, for messages.
        changed: see ``StagePart``.
    """
    missing = [f"{name}: the other one stands in for it" for name in GENERATORS if name not in generators]
    if discriminator is None:
        missing.append("D: a fresh discriminator stands in for it, samples do not need one")
        device = next(iter(next(iter(generators.values())).backbone.values())).device
        discriminator = fresh_discriminator(stage, spec, device)
    built(stage, spec)
    more = prefixed("discriminator.", discriminator.backbone)
    if stage.discriminator_conditioner is not None:
        more |= prefixed("discriminator_conditioner.", discriminator.conditioner)
    more |= {"mean_logits": torch.zeros(2), "mean_length": torch.zeros(()), "_extra_state": torch.tensor(0)}
    first = next(iter(generators.values()))
    trained, averaged = (generators.get(name, first) for name in GENERATORS)
    assert stage.ema is not None
    updates = torch.tensor(stage.ema.start)  # so that training goes on with the EMA weights, where they begin late
    return stage_part(stage, stage.generator, trained, averaged, where, updates, missing, changed, more)


def fresh_discriminator(stage: AdversarialStage, spec: DataSpec, device: torch.device) -> Weights:
    """Return initial weights for the discriminator of ``stage`` and its conditioner, always the same."""
    network = construct(describe(stage.discriminator))
    conditioning = stage.discriminator_conditioner and construct(describe(stage.discriminator_conditioner))
    shape = spec.image
    with torch.random.fork_rng(devices=[]), device:
        torch.manual_seed(stage.seed)
        dim = (
            conditioning.build(stage.condition.parts(spec), network.condition_width(shape))
            if conditioning is not None
            else 0
        )
        network.build(shape, dim)
    return Weights(network.state_dict(), conditioning.state_dict() if conditioning is not None else {})


def shape_of(state: Mapping[str, Tensor], name: str, where: str) -> torch.Size:
    """Return the shape of a tensor of the file, without which its sizes cannot be told."""
    require(name in state, f"{where} is incomplete: {name} is missing")
    return state[name].shape


def numbered(state: Mapping[str, Tensor], before: str, after: str) -> list[int]:
    """Return the numbers n, ascending, for which ``state`` has a tensor ``before`` n ``after``."""
    middles = (n[len(before) : -len(after)] for n in state if n.startswith(before) and n.endswith(after))
    return sorted(int(middle) for middle in middles if middle.isdigit())
