"""How a stage takes the tensors of an official file, and what several kinds read off theirs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rcg_lightning.conditions.class_label import ClassCondition
from rcg_lightning.conditions.joint import JointCondition
from rcg_lightning.conditions.none import NoCondition
from rcg_lightning.conditions.representation import RepresentationCondition
from rcg_lightning.errors import UserError
from rcg_lightning.networks.ema import EMA
from rcg_lightning.official.base import StagePart
from rcg_lightning.pretrained.checkpoints import State, require_fit
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import Classes, Condition, DataSpec, Vector


@dataclass(frozen=True)
class Weights:
    """Weights of a generator in its own names: of the backbone and of the conditioner."""

    backbone: Mapping[str, Tensor]
    conditioner: Mapping[str, Tensor]


def built(stage: Generator, spec: DataSpec) -> Generator:
    """Create the networks of ``stage`` without memory for them."""
    with torch.device("meta"):
        return stage.build(spec)


def stage_part(
    stage: Generator,
    backbone: nn.Module,
    trained: Weights,
    averaged: Weights | None,
    where: str,
    updates: Tensor | None = None,
    missing: Sequence[str] = (),
    changed: Mapping[str, str] | None = None,
    more: Mapping[str, Tensor] | None = None,
) -> StagePart:
    """Return a built ``stage`` with the tensors of a file.

    Args:
        stage: built; with EMA weights where its recipe has them.
        backbone: the module of ``stage`` that the official network corresponds to.
        trained: weights of the last step.
        averaged: EMA weights; None takes ``trained`` in their place.
        where: the file, for messages.
        updates: how often the EMA weights were updated, () integer.
        missing: what the file lacks, for the report.
        changed: see ``StagePart``.
        more: what the stage has besides backbone, conditioner and EMA weights, under its names.

    Raises:
        UserError: tensors are missing, left over, or of another size.
    """
    names = {id(module): f"{name}." for name, module in stage.named_modules() if name}
    inside = names[id(backbone)].removeprefix(names[id(stage.network)])
    state = prefixed(names[id(backbone)], trained.backbone)
    state |= prefixed(names[id(stage.conditioner)], trained.conditioner)
    state |= more or {}
    if stage.ema is not None:
        state |= _ema_weights(stage, stage.ema, names, inside, averaged or trained)
        state["ema._extra_state"] = torch.zeros((), dtype=torch.int64) if updates is None else updates
        if averaged is None:
            missing = [*missing, "EMA weights: those of the last step stand in for them"]
    require_fit(stage.state_dict(), state, where, type(backbone).__name__)
    return StagePart(stage, state, tuple(missing), changed or {})


def _ema_weights(stage: Generator, ema: EMA, names: Mapping[int, str], inside: str, source: Weights) -> State:
    """The same weights for every average of a stage, under the names of its modules, ``names`` by their ids."""
    state: State = {}
    for copies in map(ema.averaged, ema.decays):
        state |= prefixed(names[id(copies["network"])] + inside, source.backbone)
        if stage.ema_conditioner:
            state |= prefixed(names[id(copies["conditioner"])], source.conditioner)
    return state


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    """Return ``state`` under names that begin with ``prefix``."""
    return {prefix + name: tensor for name, tensor in state.items()}


def heads_of(width: int, given: int | None, usual: Mapping[int, int], where: str) -> int:
    """Return how many attention heads a network has, which no shape tells: as given, else as published."""
    heads = given or usual.get(width)
    if heads is None:
        known = ", ".join(f"{count} for {size}" for size, count in usual.items())
        raise UserError(f"{where}: the number of attention heads at width {width} cannot be seen (published: {known}): "
                        "give it with --kind.heads")  # fmt: skip
    return heads


def has_ema(content: Mapping[str, Any]) -> bool:
    """Whether a file of DiT or ADM holds EMA weights next to those of the last step."""
    return isinstance(content.get("model_ema"), Mapping)


def ema_decay(decay: Tensor | None) -> float:
    """Return the decay of an average that a file tells, as it was typed before it became float32; else 0.9999."""
    return 0.9999 if decay is None or decay.is_meta else round(float(decay), 7)


@dataclass(frozen=True)
class Conditioning:
    """A condition as the data spec of a stage have it.

    Attributes:
        condition: where it comes from.
        parts: what it consists of.
        classes: number of classes, where it has any.
        columns: what it reads of a store.
    """

    condition: Condition
    parts: tuple[Classes | Vector, ...]
    classes: int | None
    columns: dict[str, dict[str, Any]]


def conditioning(numbers: int | None, classes: int | None) -> Conditioning:
    """Return the condition on a representation of so many numbers, on so many classes, on both or on nothing."""
    found: list[tuple[Condition, Classes | Vector]] = []
    if numbers is not None:
        found.append((RepresentationCondition(), Vector(numbers)))
    if classes is not None:
        found.append((ClassCondition(), Classes(classes)))
    conditions = [condition for condition, _ in found]
    condition = JointCondition(conditions) if len(found) > 1 else (*conditions, NoCondition())[0]
    columns = {} if numbers is None else {"representation": {"shape": [numbers]}}
    return Conditioning(condition, tuple(part for _, part in found), classes, columns)
