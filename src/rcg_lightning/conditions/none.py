"""No condition: unconditional generation."""

from rcg_lightning.types import Batch, Condition, DataSpec, Part, Raw


class NoCondition(Condition):
    """The empty condition."""

    def parts(self, spec: DataSpec) -> tuple[Part, ...]:
        return ()

    def observe(self, batch: Batch) -> Raw:
        return ()

    def sample(self, batch: Batch) -> Raw:
        return ()
