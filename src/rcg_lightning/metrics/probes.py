"""The quality of an encoder's representations: how they fill their space, and how well they separate classes."""

import torch
from torch import Tensor
from torch.nn import functional as F

from rcg_lightning.core.contrastive import effective_rank, uniformity
from rcg_lightning.data.neighbours import knn_accuracy
from rcg_lightning.types import require

NEIGHBOURS = 20
REGULARISATION = 1.0  # weight of ½|W|² against the sum of the cross entropies: scikit-learn's C = 1
SUBSET = 5000  # representations for uniformity and effective rank, whose costs grow faster than their number
_CHUNK = 65536


def probe(
    train: Tensor,
    labels: Tensor | None,
    evaluation: Tensor,
    evaluation_labels: Tensor | None,
    neighbours: int = NEIGHBOURS,
    regularisation: float = REGULARISATION,
    seed: int = 0,
) -> dict[str, float]:
    """Return ``uniformity``, ``effective_rank`` and, with labels, ``knn_accuracy`` and ``linear_accuracy``.

    The first two use at most 5000 training representations, a random subset. The accuracies are fractions of the
    evaluation representations; nothing is chosen on these.

    Args:
        train: (N, d) stored representations.
        labels: (N,) int64, or None.
        evaluation: (n, d).
        evaluation_labels: (n,) int64, or None.
        neighbours: k of kNN, by cosine and weighted.
        regularisation: of the linear probe.
        seed: of the subset.
    """
    require(
        len(train) > 1 and len(evaluation) > 0, f"{len(train)} and {len(evaluation)} representations: too few to probe"
    )
    for name, rows in (("training", train), ("evaluation", evaluation)):
        require(bool(rows.isfinite().all()), f"{name} representations hold NaN or infinity: extract them again")
    index = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:SUBSET].sort().values
    subset = train[index.to(train.device)].float()
    found = {"uniformity": uniformity(subset).item(), "effective_rank": effective_rank(subset).item()}
    if labels is None or evaluation_labels is None:
        return found
    found["knn_accuracy"] = knn_accuracy(train, labels, evaluation, evaluation_labels, neighbours)
    predict = LinearProbe(train, labels, regularisation)
    correct = predict(evaluation).cpu() == evaluation_labels.cpu()
    return found | {"linear_accuracy": correct.double().mean().item()}


class LinearProbe:
    """Multinomial logistic regression on standardised representations, fitted to its only minimum by L-BFGS.

    The same as scikit-learn's ``LogisticRegression`` on standardised features, on any device. Nothing is random: it
    starts from zero weights, and every step uses all examples.

    Args:
        train: (N, d).
        labels: (N,) int64.
        regularisation: weight of ½|W|² against the sum of the cross entropies; offsets are not regularised.
    """

    def __init__(self, train: Tensor, labels: Tensor, regularisation: float = REGULARISATION) -> None:
        require(len(train) == len(labels), f"{len(train)} representations have {len(labels)} labels")
        train, labels = train.float(), labels.to(train.device)
        self.mean, self.scale = train.mean(0), train.std(0, correction=0)
        self.scale[self.scale == 0] = 1  # a constant feature must not become NaN
        classes = int(labels.max()) + 1
        self.weight = train.new_zeros(classes, train.shape[1], requires_grad=True)
        self.offset = train.new_zeros(classes, requires_grad=True)
        self._fit(self._standardised(train), labels, regularisation)

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the predicted class (n,) of representations (n, d)."""
        rows = rows.to(self.weight.device).float()
        with torch.no_grad():
            return torch.cat([self._logits(self._standardised(part)).argmax(1) for part in rows.split(_CHUNK)])

    @torch.enable_grad()
    def _fit(self, rows: Tensor, labels: Tensor, regularisation: float) -> None:
        parameters = [self.weight, self.offset]
        optimizer = torch.optim.LBFGS(
            parameters, max_iter=500, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = regularisation / 2 / len(rows) * self.weight.square().sum()
            loss.backward()
            total = loss.detach()
            for part, target in zip(rows.split(_CHUNK), labels.split(_CHUNK)):  # all logits at once may not fit
                loss = F.cross_entropy(self._logits(part), target, reduction="sum") / len(rows)
                loss.backward()
                total = total + loss.detach()
            return total

        optimizer.step(closure)

    def _standardised(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) / self.scale

    def _logits(self, rows: Tensor) -> Tensor:
        return F.linear(rows, self.weight, self.offset)
