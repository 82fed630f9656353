"""k-means on known clusters."""

import pytest
import torch

from rcg_lightning.data.kmeans import _first_centroids, kmeans
from rcg_lightning.errors import UserError


def blobs(k=6, each=50):
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(k, 8, generator=generator) * 10
    points = centres.repeat_interleave(each, 0) + torch.randn(k * each, 8, generator=generator) * 0.3
    return centres, points, torch.arange(k).repeat_interleave(each)


def test_kmeans_finds_separate_clusters():
    centres, points, labels = blobs()
    found = kmeans(points, 6, seed=0, restarts=5)
    assert found.assignment.dtype == torch.int64
    for label in range(6):
        numbers = found.assignment[labels == label].unique()
        assert len(numbers) == 1
        assert (found.centroids[numbers[0]] - centres[label]).norm() < 0.3
    again = kmeans(points, 6, seed=0, restarts=5)
    assert torch.equal(found.centroids, again.centroids)
    assert found.inertia <= kmeans(points, 6, seed=0, restarts=1).inertia


def test_kmeans_with_as_many_clusters_as_points_and_with_equal_points():
    points = torch.arange(5.0)[:, None]
    assert kmeans(points, 5).inertia == pytest.approx(0, abs=1e-5)
    assert torch.isfinite(kmeans(torch.ones(10, 2), 3).centroids).all()
    with pytest.raises(UserError, match="fewer clusters"):
        kmeans(points, 6)


def test_first_centroids_are_far_from_each_other():
    centres, points, _ = blobs(k=2)
    points = points - points.mean(0) + 100  # far from the origin, where a sum of two points means nothing
    for seed in range(20):
        one, other = _first_centroids(points, 2, seed)
        assert (one - other).norm() > 0.9 * (centres[0] - centres[1]).norm()
