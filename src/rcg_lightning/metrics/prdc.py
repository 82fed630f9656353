"""Precision, recall, density and coverage: metrics of the neighbourhoods of features.

A set's manifold is the union of balls around its features, each as large as the distance to its k-th neighbour.
Sources: Kynkäänniemi et al. 2019 (precision, recall; k = 3 there, and in the ADM suite's and torch-fidelity's metrics),
Naeem et al. 2020 (density, coverage; k = 5).
"""

import torch
from torch import Tensor

from rcg_lightning.data.neighbours import nearest
from rcg_lightning.types import require

NEIGHBOURS = 5
_CHUNK = 1024


def radii(features: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Return (N,) float32: the distance of each of ``features`` (N, d) to its ``neighbours``-th other one."""
    return all_radii(features, neighbours)[:, -1]


def all_radii(features: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Return (N, ``neighbours``) float32: distances of each of ``features`` (N, d) to its nearest other ones."""
    require(
        len(features) > neighbours,
        f"{len(features)} images have no {neighbours} neighbours each: score more images",
    )
    return nearest(features, features, neighbours + 1)[0][:, 1:]  # the first is the feature itself


def balls_around(queries: Tensor, centres: Tensor, radius: Tensor) -> Tensor:
    """Return (n,) int64: in how many balls (centres (N, d), radius (N,)) each of ``queries`` (n, d) lies.

    A distance within rounding of the radius counts as inside, so a set lies in its own manifold.
    """
    shift = centres.double().mean(0).float()  # less cancellation in the products
    queries, centres = queries.float() - shift, centres.float() - shift  # (n, d), (N, d)
    counts = [
        (torch.cdist(part, centres, compute_mode="use_mm_for_euclid_dist") <= radius * (1 + 1e-5)).sum(dim=1)
        for part in queries.split(_CHUNK)
    ]
    return torch.cat(counts)


def precision_recall(
    samples: Tensor, real: Tensor, neighbours: int = NEIGHBOURS, real_radii: Tensor | None = None
) -> tuple[float, float]:
    """Return the share of samples inside the real manifold, and of real features inside the samples'.

    Recall falls with the number of samples: compare at equal numbers only.

    Args:
        samples: (n, d) features.
        real: (N, d).
        real_radii: ``radii(real)`` where it is known.
    """
    real_radii = radii(real, neighbours) if real_radii is None else real_radii
    precision = (balls_around(samples, real, real_radii) > 0).double().mean()
    recall = (balls_around(real, samples, radii(samples, neighbours)) > 0).double().mean()
    return precision.item(), recall.item()


def density_coverage(
    samples: Tensor, real: Tensor, neighbours: int = NEIGHBOURS, real_radii: Tensor | None = None
) -> tuple[float, float]:
    """Return the mean number of real balls around a sample, over ``neighbours``, and the share of balls with one."""
    real_radii = radii(real, neighbours) if real_radii is None else real_radii
    density = balls_around(samples, real, real_radii).double().mean() / neighbours
    covered = nearest(real, samples, 1)[0][:, 0] <= real_radii
    return density.item(), covered.double().mean().item()
