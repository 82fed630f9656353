"""Precision, recall, density and coverage, from the neighbourhoods of features.

The manifold of a set is the union of balls around its features; a ball's radius is the distance to the k-th neighbour.
Sources: Kynkäänniemi et al. 2019 (precision, recall; k = 3 there, in the ADM suite and in torch-fidelity), Naeem et al.
2020 (density, coverage; k = 5).
"""

import torch
from torch import Tensor

from rcg_lightning.core.precision import float32_precision
from rcg_lightning.data.neighbours import nearest
from rcg_lightning.types import require

NEIGHBOURS = 5
_CHUNK = 1024


def radii(features: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Return the distance (N,) float32 from each of ``features`` (N, d) to its ``neighbours``-th neighbour."""
    return all_radii(features, neighbours)[:, -1]


def all_radii(features: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Return the distances (N, ``neighbours``) float32 from each of ``features`` (N, d) to its nearest neighbours."""
    require(
        len(features) > neighbours,
        f"{len(features)} images do not have {neighbours} neighbours each: score more images",
    )
    return nearest(features, features, neighbours + 1)[0][:, 1:]  # the first is the feature itself


@float32_precision("highest")
def balls_around(queries: Tensor, centres: Tensor, radius: Tensor) -> Tensor:
    """Return the number (n,) int64 of balls, with ``centres`` (N, d) and ``radius`` (N,), around each query (n, d).

    A distance that exceeds the radius by rounding only is inside, so that a set lies in its own manifold.
    """
    shift = centres.double().mean(0).float()  # less cancellation in the matmul
    queries, centres = queries.float() - shift, centres.float() - shift  # (n, d), (N, d)
    counts = [
        (torch.cdist(part, centres, compute_mode="use_mm_for_euclid_dist") <= radius * (1 + 1e-5)).sum(dim=1)
        for part in queries.split(_CHUNK)
    ]
    return torch.cat(counts)


def precision_recall(
    samples: Tensor, real: Tensor, neighbours: int = NEIGHBOURS, real_radii: Tensor | None = None
) -> tuple[float, float]:
    """Return precision and recall: the fraction of samples in the real manifold, and of real features in the samples'.

    Recall falls with the number of samples: compare it at equal numbers only.

    Args:
        samples: (n, d) features.
        real: (N, d).
        neighbours: k.
        real_radii: ``radii(real, neighbours)`` where it is known.
    """
    real_radii = radii(real, neighbours) if real_radii is None else real_radii
    precision = (balls_around(samples, real, real_radii) > 0).double().mean()
    recall = (balls_around(real, samples, radii(samples, neighbours)) > 0).double().mean()
    return precision.item(), recall.item()


def density_coverage(
    samples: Tensor, real: Tensor, neighbours: int = NEIGHBOURS, real_radii: Tensor | None = None
) -> tuple[float, float]:
    """Return density and coverage; arguments as in ``precision_recall``.

    Density is the mean number of real balls around a sample, divided by ``neighbours``; coverage is the fraction of
    real balls that hold a sample.
    """
    real_radii = radii(real, neighbours) if real_radii is None else real_radii
    density = balls_around(samples, real, real_radii).double().mean() / neighbours
    covered = nearest(real, samples, 1)[0][:, 0] <= real_radii
    return density.item(), covered.double().mean().item()
