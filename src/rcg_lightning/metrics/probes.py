"""What an encoder's representations are worth: how they fill their space, and how well they tell classes apart."""

import torch
from torch import Tensor
from torch.nn import functional as F

from rcg_lightning.core.contrastive import effective_rank, uniformity
from rcg_lightning.data.neighbours import knn_accuracy
from rcg_lightning.types import require

NEIGHBOURS = 20
REGULARISATION = 1.0  # weight of ½|W|² against the sum of the cross entropies: scikit-learn's C = 1
DRAWN = 5000  # representations for uniformity and effective rank, whose costs grow faster than the number
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

    The first two are of at most 5000 training representations, drawn by ``seed``. Accuracies are shares in [0, 1] of
    the evaluation representations; nothing is chosen on these.

    Args:
        train: (N, d) stored representations.
        labels: (N,) int64, None without.
        eval: (n, d).
        eval_labels: (n,) int64.
        neighbours: k of kNN, by cosine and weighted.
        regularisation: of the linear probe.
        seed: of the draw.
    """
    require(
        len(train) > 1 and len(evaluation) > 0, f"{len(train)} and {len(evaluation)} representations: too few to probe"
    )
    for name, rows in (("training", train), ("held-out", evaluation)):
        require(bool(rows.isfinite().all()), f"{name} representations hold NaN or infinity: extract them again")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:DRAWN].sort().values
    drawn = train[order.to(train.device)].float()
    found = {"uniformity": uniformity(drawn).item(), "effective_rank": effective_rank(drawn).item()}
    if labels is None or evaluation_labels is None:
        return found
    found["knn_accuracy"] = knn_accuracy(train, labels, evaluation, evaluation_labels, neighbours)
    predict = LinearProbe(train, labels, regularisation)
    right = predict(evaluation).cpu() == evaluation_labels.cpu()
    return found | {"linear_accuracy": right.double().mean().item()}


class LinearProbe:
    """Multinomial logistic regression on standardised representations, fitted to its only minimum by L-BFGS.

    The same as scikit-learn's ``LogisticRegression`` on standardised features, on any device. From weights of zero and
    over all examples in every step, so that nothing is random.

    Args:
        train: (N, d).
        labels: (N,) int64.
        regularisation: weight of ½|W|² against the sum of the cross entropies; offsets are free.
    """

    def __init__(self, train: Tensor, labels: Tensor, regularisation: float = REGULARISATION) -> None:
        require(len(train) == len(labels), f"{len(train)} representations have {len(labels)} labels")
        train, labels = train.float(), labels.to(train.device)
        self.mean, self.scale = train.mean(0), train.std(0, correction=0)
        self.scale[self.scale == 0] = 1  # a dead feature says nothing; it should not become NaN
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
            for part, wanted in zip(rows.split(_CHUNK), labels.split(_CHUNK)):  # logits of all at once may not fit
                loss = F.cross_entropy(self._logits(part), wanted, reduction="sum") / len(rows)
                loss.backward()
                total = total + loss.detach()
            return total

        optimizer.step(closure)

    def _standardised(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) / self.scale

    def _logits(self, rows: Tensor) -> Tensor:
        return F.linear(rows, self.weight, self.offset)
