"""The class label as a condition."""

from torch import Tensor

from rcg_lightning.core.counter_rng import SeededNoise
from rcg_lightning.errors import UserError
from rcg_lightning.types import Batch, Classes, Condition, DataSpec, Part, Raw, require

LABEL_STREAM = 3  # noise stream of labels and clusters, independent of the generators' at the same seed


class ClassCondition(Condition):
    """The label of the image; for generation ``batch["label"]`` if given, else uniform."""

    needs = frozenset({"label"})

    def parts(self, spec: DataSpec) -> tuple[Part, ...]:
        if spec.classes is None:
            raise UserError("the class condition needs labels, these data have none: use cluster or representation")
        self.count = spec.classes
        return (Classes(spec.classes),)

    def observe(self, batch: Batch) -> Raw:
        return (batch["label"],)

    def sample(self, batch: Batch) -> Raw:
        if "label" in batch:
            return (check_labels(batch["label"], self.count),)
        return (SeededNoise(batch["seed"], LABEL_STREAM).integers(0, self.count),)


def check_labels(labels: Tensor, count: int) -> Tensor:
    """Return ``labels``, or raise UserError where one lies outside [0, count)."""
    low, high = int(labels.min()), int(labels.max())
    require(
        low >= 0 and high < count,
        f"class {low if low < 0 else high} is out of range: there are {count} classes, from 0",
    )
    return labels
