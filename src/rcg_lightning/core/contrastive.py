"""The contrastive loss of MoCo v3, and two metrics that tell a collapsed representation from a good one."""

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(queries: Tensor, keys: Tensor, temperature: float, offset: int = 0) -> Tensor:
    """Return 2T · cross entropy of the cosine similarities over T, where query i belongs to key ``offset + i``.

    Args:
        queries: (B, D), of this process.
        keys: (N, D), of all processes in the order of their ranks, without gradient.
        temperature: T.
        offset: number of keys that stand before this process's own, its rank times B.

    Computed in float32 whatever autocast says: half precision would be coarse once divided by T.
    Source: He et al. 2020 for the loss, Chen et al. 2021 (MoCo v3, algorithm 1) for the factor 2T, which makes the size
    of the gradient independent of T.
    """
    own = torch.arange(offset, offset + len(queries), device=queries.device)  # (B,)
    with torch.autocast(queries.device.type, enabled=False):
        cosine = F.normalize(queries.float(), dim=1) @ F.normalize(keys.float(), dim=1).T  # (B, N)
        return 2 * temperature * F.cross_entropy(cosine / temperature, own)


def symmetric_contrastive_loss(
    queries: tuple[Tensor, Tensor], keys: tuple[Tensor, Tensor], temperature: float, offset: int = 0
) -> Tensor:
    """Return the loss of the queries of either view, each against the keys of the other view.

    Shapes as in ``contrastive_loss``; the sum of both directions, as MoCo v3 has it, not their mean.
    """
    (q1, q2), (k1, k2) = queries, keys
    return contrastive_loss(q1, k2, temperature, offset) + contrastive_loss(q2, k1, temperature, offset)


def effective_rank(features: Tensor) -> Tensor:
    """Return exp of the entropy of the normalised singular values of the centred features (N, D): 1 to D, as ().

    1 means that everything lies on a line, D that all directions carry the same. Source: Roy and Vetterli 2007.
    """
    spread = torch.linalg.svdvals(features - features.mean(0))  # (min(N, D),)
    share = spread / spread.sum().clamp_min(torch.finfo(spread.dtype).tiny)
    return torch.exp(torch.special.entr(share).sum())


def uniformity(features: Tensor) -> Tensor:
    """Return log of the mean Gaussian potential exp(-2 |x - y|²) of pairs of L2-normalised features (N, D), as ().

    0 where all features are equal, about -4 where they point everywhere in many dimensions.
    Source: Wang and Isola 2020.
    """
    distances = torch.pdist(F.normalize(features, dim=1))  # (N (N - 1) / 2,)
    return torch.logsumexp(-2 * distances.square(), dim=0) - torch.log(torch.tensor(float(len(distances))))
