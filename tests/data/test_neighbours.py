"""Neighbours against brute force, k-means on known clusters, the kNN probe."""

import pytest
import torch

from rcg_lightning.data.neighbours import Chunks, kmeans, knn_accuracy, lowest, nearest
from rcg_lightning.errors import UserError


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_nearest_equals_brute_force(metric, chunk):
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(300, 12, generator=generator) + 50  # far from the origin: naive products cancel
    queries = torch.randn(70, 12, generator=generator) + 50
    distances, index = nearest(queries, bank, 5, metric, Chunks(queries=33, bank=chunk, tile=9, exact=2))
    a, b = queries.double(), bank.double()
    if metric == "cosine":
        exact = 1 - torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T
    else:
        exact = torch.cdist(a, b)
    expected, order = exact.topk(5, largest=False)
    assert torch.equal(index, order)
    torch.testing.assert_close(distances.double(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("size", [9, 64, 1000, 1024])
def test_the_lowest_are_found_group_by_group(size):
    score = torch.randn(20, size, generator=torch.Generator().manual_seed(0))
    score[:, -3:] -= 10  # those that no group holds count too
    expected = score.topk(7, largest=False).values
    for limit in (torch.full((20, 1), torch.inf), expected[:, 4:5]):
        low, place = lowest(score, 7, limit)
        assert torch.equal(score.gather(1, place), low)
        assert all(len(set(row)) == len(row) for row in place.tolist())
        wanted = expected if limit.isinf().all() else expected[:, :4]
        found = low.sort(1).values[:, : wanted.shape[1]]
        assert torch.equal(found, wanted)


def test_a_row_of_the_bank_finds_itself_and_ties_are_in_order():
    bank = torch.tensor([[0.0, 0], [1, 0], [0, 1], [0, 0]])
    distances, index = nearest(bank[:1], bank, 4)
    assert index.tolist() == [[0, 3, 1, 2]]
    assert distances.tolist() == [[0, 0, 1, 1]]


def test_small_distances_are_exact_in_a_far_away_bank():
    bank = torch.full((100, 3), 1000.0)
    bank[:, 0] += torch.arange(100) * 2.0**-10
    _, index = nearest(bank[50:51] + torch.tensor([2.0**-12, 0, 0]), bank, 2)
    assert index.tolist() == [[50, 51]]


def test_too_many_neighbours_are_rejected():
    with pytest.raises(UserError, match="bank of 3"):
        nearest(torch.zeros(1, 2), torch.zeros(3, 2), 4)
    assert nearest(torch.zeros(0, 2), torch.zeros(3, 2), 2)[1].shape == (0, 2)


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


def test_knn_accuracy():
    _, points, labels = blobs()
    assert knn_accuracy(points, labels, points + 0.01, labels) == 1.0
    wrong = (labels + 1) % 6
    assert knn_accuracy(points, wrong, points, labels) == 0.0
    # one close neighbour outweighs two far ones: weights are exp(cosine / 0.07)
    bank = torch.tensor([[1.0, 0], [0, 1], [-0.1, 1]])
    assert knn_accuracy(bank, torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.1]]), torch.tensor([0]), k=3) == 1.0
