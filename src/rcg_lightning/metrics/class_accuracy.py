"""How often a classifier finds the class that was asked for."""

from torch import Tensor

from rcg_lightning.metrics.sum_metric import SumMetric


class ClassAccuracy(SumMetric):
    """How often a classifier takes a sample for the class that was asked for."""

    right: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_sums({"right": (), "count": ()})

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Add logits (B, classes) and the classes asked for (B,), -1 where none was."""
        self.right += (logits.argmax(1) == label).sum().to(self.right.device)
        self.count += (label >= 0).sum().to(self.count.device)

    def compute(self) -> dict[str, float]:
        """Return ``class_accuracy``; nothing where no class was asked for."""
        return {"class_accuracy": (self.right / self.count).item()} if self.count > 0 else {}
