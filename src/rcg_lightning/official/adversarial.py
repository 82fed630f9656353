"""Files of IC-GAN's two families: their networks, their condition, and the stage with their tensors."""

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
from rcg_lightning.official.building import FileCondition, Weights, built, class_part, stage_part, vector_part
from rcg_lightning.official.key_map import prefixed
from rcg_lightning.pretrained.checkpoints import State, entry
from rcg_lightning.random_state import seeded
from rcg_lightning.stages.adversarial import AdversarialStage
from rcg_lightning.types import Classes, Condition, DataSpec, Part, Vector, require

GENERATORS = ("G", "G_ema")


class AdversarialFile(OfficialFile):
    """Base of IC-GAN's kinds: G, G_ema and D, as a folder of files or as entries of one; or a generator alone.

    Where D is missing, a fresh discriminator of the generator's width is used; where one of G and G_ema is missing, the
    other is used for both.
    """

    generator_key: ClassVar[str]  # a tensor that every generator has

    def networks(self, content: Mapping[str, Any], where: str) -> dict[str, State]:
        """Return the tensors of ``G``, ``G_ema`` and ``D``, as far as the file has them."""
        known = {name: entry({name: content.get(name)}, name) for name in (*GENERATORS, "D")}
        states = {name: state for name, state in known.items() if name in content and state}
        states = states or {"G_ema" if Path(where).stem.startswith("G_ema") else "G": entry(content)}
        found = [name for name in GENERATORS if self.generator_key in states.get(name, {})]
        alone = "a discriminator makes no images: give its generator too, as a folder with G.pth or G_ema.pth"
        require(bool(found), f"{where} holds no generator, and {alone}")
        wrong = set(states) & set(GENERATORS) - set(found)
        require(not wrong, f"{where}: {', '.join(wrong)} is no generator of this kind")
        return states


def adversarial_part(
    stage: AdversarialStage,
    spec: DataSpec,
    weights: Mapping[str, Weights],
    where: str,
    changed: Mapping[str, str] | None = None,
) -> StagePart:
    """Return ``stage``, which is built here without memory, with the tensors of files.

    Args:
        stage: not yet built.
        spec: to build it by.
        weights: of ``G``, ``G_ema`` or both, and of ``D``; a missing one gets fresh weights.
        where: the file, for messages.
        changed: see ``StagePart``.
    """
    missing = [f"{name}: the other one is used instead" for name in GENERATORS if name not in weights]
    first = next(weights[name] for name in GENERATORS if name in weights)
    discriminator = weights.get("D")
    if discriminator is None:
        missing.append("D: a fresh discriminator is used instead, samples do not need one")
        discriminator = fresh_discriminator(stage, spec, next(iter(first.network.values())).device)
    built(stage, spec)
    others = prefixed("discriminator.", discriminator.network)
    if stage.discriminator_conditioner is not None:
        others |= prefixed("discriminator_conditioner.", discriminator.conditioner)
    others |= {"mean_logits": torch.zeros(2), "mean_length": torch.zeros(()), "_extra_state": torch.tensor(0)}
    last, ema = (weights.get(name, first) for name in GENERATORS)
    assert stage.ema is not None
    updates = torch.tensor(stage.ema.start)  # training then continues with the EMA weights even if EMA starts late
    return stage_part(stage, stage.generator, last, ema, where, updates, missing, changed, others)


def fresh_discriminator(stage: AdversarialStage, spec: DataSpec, device: torch.device) -> Weights:
    """Return initial weights for the discriminator of ``stage`` and its conditioner, always the same."""
    network = construct(describe(stage.discriminator))
    conditioner = stage.discriminator_conditioner and construct(describe(stage.discriminator_conditioner))
    dim = 0
    with seeded(stage.seed), device:
        if conditioner is not None:
            dim = conditioner.build(stage.condition.parts(spec), network.condition_width(spec.image))
        network.build(spec.image, dim)
    return Weights(network.state_dict(), {} if conditioner is None else conditioner.state_dict())


def instance_condition(classes: int | None, dim: int | None) -> FileCondition:
    """Return the condition on ``classes``, on an instance of ``dim``, on both or on nothing."""
    return FileCondition((*class_part(classes), *vector_part(dim)), InstanceCondition)


def check_order(parts: tuple[Part, ...]) -> None:
    """Raise a UserError unless IC-GAN has a condition of these parts."""
    kinds = [type(part) for part in parts]
    wrong = f"IC-GAN is conditioned on a class, an instance, or both in this order, not on {parts}"
    require(kinds in ([], [Classes], [Vector], [Classes, Vector]), wrong)


def part_kinds(condition: Condition) -> set[type]:
    """Return the kinds of parts of a condition that the user gives, without data."""
    if isinstance(condition, JointCondition):
        return set().union(*map(part_kinds, condition.conditions))
    for kind, parts in ((ClassCondition, {Classes}), (RepresentationCondition, {Vector}), (NoCondition, set())):
        if isinstance(condition, kind):
            return parts
    raise UserError(f"IC-GAN is conditioned on classes, instances, both or nothing, not on {type(condition).__name__}")


def shape_of(state: Mapping[str, Tensor], name: str, where: str) -> torch.Size:
    """Return the shape of a tensor of the file, or raise a UserError if it is missing."""
    require(name in state, f"{where} is incomplete: {name} is missing")
    return state[name].shape


def indices(state: Mapping[str, Tensor], before: str, after: str) -> list[int]:
    """Return all n, ascending, for which ``state`` has a tensor named ``before`` n ``after``."""
    middles = (n[len(before) : -len(after)] for n in state if n.startswith(before) and n.endswith(after))
    return sorted(int(middle) for middle in middles if middle.isdigit())
