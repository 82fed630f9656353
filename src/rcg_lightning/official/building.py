"""Building of a stage around the tensors of an official file, and parts of the layout that families share."""

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
from rcg_lightning.official.key_map import prefixed
from rcg_lightning.pretrained.checkpoints import State, entry, require_fit
from rcg_lightning.stages.generator import Generator
from rcg_lightning.types import Classes, Condition, DataSpec, Part, Vector, require


@dataclass(frozen=True)
class Weights:
    """Tensors of an official file under our names: of a network, and of its ``Conditioner``, empty without any."""

    network: Mapping[str, Tensor]
    conditioner: Mapping[str, Tensor]


@dataclass(frozen=True)
class FileCondition:
    """The condition that the model in an official file was trained with.

    Attributes:
        parts: the classes, the vector, both or none, in the order of the conditioner.
        vector: class of the condition that gives the vector.
    """

    parts: tuple[Part, ...]
    vector: type[RepresentationCondition] = RepresentationCondition

    @property
    def condition(self) -> Condition:
        """The condition of the stage."""
        found: list[Condition] = [
            ClassCondition() if isinstance(part, Classes) else self.vector() for part in self.parts
        ]
        return JointCondition(found) if len(found) > 1 else (*found, NoCondition())[0]

    @property
    def classes(self) -> int | None:
        """Number of classes, None without any."""
        return next((part.count for part in self.parts if isinstance(part, Classes)), None)

    @property
    def dim(self) -> int | None:
        """Size of the vector, None without one."""
        return next((part.dim for part in self.parts if isinstance(part, Vector)), None)

    @property
    def columns(self) -> dict[str, dict[str, Any]]:
        """The stored column that the condition reads, for the data spec."""
        return {} if self.dim is None else {self.vector.key: {"shape": [self.dim]}}


def file_condition(dim: int | None, classes: int | None) -> FileCondition:
    """Return the condition on a representation of ``dim``, on ``classes``, on both or on nothing."""
    return FileCondition((*vector_part(dim), *class_part(classes)))


def read_condition(state: Mapping[str, Tensor], projection: str, table: str) -> FileCondition:
    """Return the condition whose embeddings a state dict holds.

    Args:
        state: of a file.
        projection: name of the linear map of representations.
        table: name of the class table.
    """
    dim = state[projection].shape[1] if projection in state else None
    return file_condition(dim, len(state[table]) if table in state else None)


def check_condition(model: str, found: FileCondition, given: FileCondition) -> None:
    """Raise a UserError if the condition ``found`` in a file of ``model`` is not the ``given`` one."""
    for one, other, what in (
        (found.classes, given.classes, "classes"),
        (found.dim, given.dim, "dimensions of a representation"),
    ):
        require(one == other, f"this {model} is conditional on {one or 'no'} {what}, not on {other or 'no'}")


def vector_part(dim: int | None) -> tuple[Vector, ...]:
    """Return the vector of a condition; () without one."""
    return () if dim is None else (Vector(dim),)


def class_part(count: int | None) -> tuple[Classes, ...]:
    """Return the classes of a condition; () without any."""
    return () if count is None else (Classes(count),)


def built(stage: Generator, spec: DataSpec) -> Generator:
    """Create the networks of ``stage`` without memory for them."""
    with torch.device("meta"):
        return stage.build(spec)


def stage_part(
    stage: Generator,
    network: nn.Module,
    last: Weights,
    ema: Weights | None,
    where: str,
    updates: Tensor | None = None,
    missing: Sequence[str] = (),
    changed: Mapping[str, str] | None = None,
    others: Mapping[str, Tensor] | None = None,
) -> StagePart:
    """Return a built ``stage`` with the tensors of a file.

    Args:
        stage: built; with EMA weights if its configuration has them.
        network: the module of ``stage`` that the official network corresponds to.
        last: weights of the last step.
        ema: EMA weights; None takes ``last`` in their place.
        where: the file, for messages.
        updates: number of updates of the EMA weights, an integer tensor of shape ().
        missing: tensors that the file lacks, for the report.
        changed: see ``StagePart``.
        others: further tensors of the stage, under its names.

    Raises:
        UserError: tensors are missing, left over, or of another size.
    """
    names = {id(module): f"{name}." for name, module in stage.named_modules() if name}
    inside = names[id(network)].removeprefix(names[id(stage.network)])
    state = prefixed(names[id(network)], last.network)
    state |= prefixed(names[id(stage.conditioner)], last.conditioner)
    state |= others or {}
    if stage.ema is not None:
        state |= _ema_state(stage, stage.ema, names, inside, ema or last)
        state["ema._extra_state"] = torch.zeros((), dtype=torch.int64) if updates is None else updates
        if ema is None:
            missing = [*missing, "EMA weights: those of the last step are used instead"]
    require_fit(stage.state_dict(), state, where, type(network).__name__)
    return StagePart(stage, state, tuple(missing), changed or {})


def _ema_state(stage: Generator, ema: EMA, names: Mapping[int, str], inside: str, weights: Weights) -> State:
    """Return the same weights for every decay of a stage's EMA; ``names`` maps the ids of modules to their names."""
    state: State = {}
    for copies in map(ema.averaged, ema.decays):
        state |= prefixed(names[id(copies["network"])] + inside, weights.network)
        if stage.ema_conditioner:
            state |= prefixed(names[id(copies["conditioner"])], weights.conditioner)
    return state


def heads_of(width: int, given: int | None, usual: Mapping[int, int], where: str) -> int:
    """Return the number of attention heads, which no shape shows: ``given``, or the published one for this width."""
    heads = given or usual.get(width)
    if heads is None:
        known = ", ".join(f"{count} for {size}" for size, count in usual.items())
        raise UserError(f"{where}: the number of attention heads at width {width} is in no shape (published: {known}): "
                        "give it with --kind.heads")  # fmt: skip
    return heads


def ema_or_last(official: Mapping[str, Any], ema: bool) -> State:
    """Return one of the two state dicts in a file of DiT or ADM; {} where it is missing."""
    state = entry({"state": official.get("model_ema" if ema else "model")}, "state") if "model" in official else {}
    return state or entry(official)


def has_ema(content: Mapping[str, Any]) -> bool:
    """Whether a file of DiT or ADM holds EMA weights in addition to those of the last step."""
    return isinstance(content.get("model_ema"), Mapping)


def ema_decay(decay: Tensor | None) -> float:
    """Return the EMA decay in a file, rounded as it was before float32; else 0.9999."""
    return 0.9999 if decay is None or decay.is_meta else round(float(decay), 7)
