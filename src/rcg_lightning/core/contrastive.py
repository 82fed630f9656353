"""The contrastive loss of MoCo v3, and two metrics that detect a collapsed representation."""

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(queries: Tensor, keys: Tensor, temperature: float, offset: int = 0) -> Tensor:
    """Return 2T · cross-entropy of the cosine similarities over T, where query i belongs to key ``offset + i``.

    Args:
        queries: (B, D), of this process.
        keys: (N, D), of all processes in the order of their ranks, without gradient.
        temperature: T.
        offset: index of this process's first key: its rank times B.

    Computed in float32 even under autocast: half precision is too coarse after the division by T.
    Source: He et al. 2020 for the loss, Chen et al. 2021 (MoCo v3, algorithm 1) for the factor 2T, which makes the size
    of the gradient independent of T.
    """
    targets = torch.arange(offset, offset + len(queries), device=queries.device)  # (B,)
    with torch.autocast(queries.device.type, enabled=False):
        cosine = F.normalize(queries.float(), dim=1) @ F.normalize(keys.float(), dim=1).T  # (B, N)
        return 2 * temperature * F.cross_entropy(cosine / temperature, targets)


def symmetric_contrastive_loss(
    queries: tuple[Tensor, Tensor], keys: tuple[Tensor, Tensor], temperature: float, offset: int = 0
) -> Tensor:
    """Return the loss of each view's queries against the keys of the other view, summed as in MoCo v3.

    Shapes as in ``contrastive_loss``.
    """
    (q1, q2), (k1, k2) = queries, keys
    return contrastive_loss(q1, k2, temperature, offset) + contrastive_loss(q2, k1, temperature, offset)


def effective_rank(features: Tensor) -> Tensor:
    """Return exp of the entropy of the normalised singular values of the centred features (N, D), a scalar in [1, D].

    1: all features lie on a line. D: all directions have the same variance. Source: Roy and Vetterli 2007.
    """
    singular_values = torch.linalg.svdvals(features - features.mean(0))  # (min(N, D),)
    share = singular_values / singular_values.sum().clamp_min(torch.finfo(singular_values.dtype).tiny)
    return torch.exp(torch.special.entr(share).sum())


def uniformity(features: Tensor) -> Tensor:
    """Return log of the mean Gaussian potential exp(-2 |x - y|²) of pairs of L2-normalised features (N, D), a scalar.

    0 if all features are equal, about -4 if their directions are uniform in many dimensions.
    Source: Wang and Isola 2020.
    """
    distances = torch.pdist(F.normalize(features, dim=1))  # (N (N - 1) / 2,)
    return torch.logsumexp(-2 * distances.square(), dim=0) - torch.log(torch.tensor(float(len(distances))))
