"""How often a classifier assigns samples to the class that they were conditioned on."""

from torch import Tensor

from rcg_lightning.metrics.sum_metric import SumMetric


class ClassAccuracy(SumMetric):
    """The fraction of samples that a classifier assigns to the class that they were conditioned on."""

    correct: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_sums({"correct": (), "count": ()})

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Add logits (B, classes) and the condition's classes (B,), -1 for an unconditional sample."""
        self.correct += (logits.argmax(1) == label).sum().to(self.correct.device)
        self.count += (label >= 0).sum().to(self.count.device)

    def compute(self) -> dict[str, float]:
        """Return ``class_accuracy``, or nothing where all samples are unconditional."""
        return {"class_accuracy": (self.correct / self.count).item()} if self.count > 0 else {}
