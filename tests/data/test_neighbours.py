"""Nearest neighbours against brute force, and the kNN accuracy."""

import pytest
import torch

from rcg_lightning.data.neighbours import Chunks, knn_accuracy, lowest, nearest
from rcg_lightning.errors import UserError


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_nearest_equals_brute_force(metric, chunk):
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(300, 12, generator=generator) + 50  # far from the origin: a naive matmul loses digits
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
def test_the_lowest_scores_are_found_group_by_group(size):
    score = torch.randn(20, size, generator=torch.Generator().manual_seed(0))
    score[:, -3:] -= 10  # these are in no group
    expected = score.topk(7, largest=False).values
    for limit in (torch.full((20, 1), torch.inf), expected[:, 4:5]):
        values, index = lowest(score, 7, limit)
        assert torch.equal(score.gather(1, index), values)
        assert all(len(set(row)) == len(row) for row in index.tolist())
        below = expected if limit.isinf().all() else expected[:, :4]
        assert torch.equal(values.sort(1).values[:, : below.shape[1]], below)


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


def test_knn_accuracy():
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(6).repeat_interleave(50)
    points = 10 * torch.randn(6, 8, generator=generator)[labels] + 0.3 * torch.randn(300, 8, generator=generator)
    assert knn_accuracy(points, labels, points + 0.01, labels) == 1.0
    wrong = (labels + 1) % 6
    assert knn_accuracy(points, wrong, points, labels) == 0.0
    # one close neighbour outweighs two far ones: weights are exp(cosine / 0.07)
    bank = torch.tensor([[1.0, 0], [0, 1], [-0.1, 1]])
    assert knn_accuracy(bank, torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.1]]), torch.tensor([0]), k=3) == 1.0
