"""Several conditions joined into one."""

from pathlib import Path

from torch import nn

from rcg_lightning.conditions.instance import UNLABELLED
from rcg_lightning.pretrained.encoders import Encoder
from rcg_lightning.types import Batch, Condition, DataSpec, Part, Raw, require


class JointCondition(Condition):
    """Several conditions at once, such as representation and class.

    Args:
        conditions: the joined conditions, at least one, in the order of their parts.
    """

    def __init__(self, conditions: list[Condition]) -> None:
        require(len(conditions) > 0, "JointCondition: conditions should hold at least one, or take NoCondition")
        self.conditions = conditions

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset().union(*(condition.needs for condition in self.conditions))

    @property
    def encoder(self) -> Encoder | None:
        """The encoder of the first condition that has one."""
        encoders = (getattr(condition, "encoder", None) for condition in self.conditions)
        return next((encoder for encoder in encoders if encoder is not None), None)

    def parts(self, spec: DataSpec) -> tuple[Part, ...]:
        return tuple(part for condition in self.conditions for part in condition.parts(spec))

    @property
    def prior(self) -> nn.Module | None:
        """The prior of the first condition that has one."""
        return next((condition.prior for condition in self.conditions if condition.prior is not None), None)

    def use_prior(self, path: Path) -> None:
        for condition in self.conditions:
            condition.use_prior(path)

    def use_instances(self, path: Path) -> None:
        for condition in self.conditions:
            condition.use_instances(path)

    def completed(self, batch: Batch) -> Batch:
        for condition in self.conditions:
            batch = condition.completed(batch)
        labelled = "instance" not in batch or "label" in batch or "label" not in self.needs
        require(labelled, f"the {UNLABELLED}")
        return batch

    def observe(self, batch: Batch) -> Raw:
        return tuple(raw for condition in self.conditions for raw in condition.observe(batch))

    def sample(self, batch: Batch) -> Raw:
        batch = self.completed(batch)
        return tuple(raw for condition in self.conditions for raw in condition.sample(batch))


def has(condition: Condition, kind: type[Condition]) -> bool:
    """Whether a condition is of a kind, or is a joint condition with a part of that kind."""
    parts = condition.conditions if isinstance(condition, JointCondition) else [condition]
    return any(isinstance(part, kind) for part in parts)
