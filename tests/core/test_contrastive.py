import math

import torch

from rcg_lightning.core.contrastive import (
    contrastive_loss,
    effective_rank,
    symmetric_contrastive_loss,
    uniformity,
)


def test_orthogonal_keys_give_the_closed_form():
    n, temperature = 6, 0.2
    keys = torch.eye(n, 8) * 3  # the norm of a key does not matter
    expected = 2 * temperature * (math.log(math.exp(1 / temperature) + n - 1) - 1 / temperature)
    loss = contrastive_loss(torch.eye(n, 8), keys, temperature)
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_equal_keys_give_the_logarithm_of_their_count():
    loss = contrastive_loss(torch.randn(5, 4), torch.ones(7, 4), temperature=0.5)
    torch.testing.assert_close(loss, torch.tensor(math.log(7.0)))


def test_swapped_views_give_the_same_loss():
    q1, q2, k1, k2 = torch.randn(4, 8, 16)
    torch.testing.assert_close(
        symmetric_contrastive_loss((q1, q2), (k1, k2), 0.2), symmetric_contrastive_loss((q2, q1), (k2, k1), 0.2)
    )


def test_each_view_is_compared_with_the_keys_of_the_other():
    a, b = torch.randn(2, 8, 16)
    torch.testing.assert_close(
        symmetric_contrastive_loss((a, b), (b, a), 0.2),
        contrastive_loss(a, a, 0.2) + contrastive_loss(b, b, 0.2),
    )


def test_two_ranks_with_gathered_keys_equal_one_batch():
    q1, q2, k1, k2 = torch.randn(4, 8, 16)
    whole = symmetric_contrastive_loss((q1, q2), (k1, k2), 0.2)
    ranks = [symmetric_contrastive_loss((q1[i : i + 4], q2[i : i + 4]), (k1, k2), 0.2, offset=i) for i in (0, 4)]
    torch.testing.assert_close(torch.stack(ranks).mean(), whole)


def test_effective_rank_counts_the_used_directions():
    line = torch.linspace(-1, 1, 20)[:, None] * torch.randn(1, 8)
    signs = torch.cat([torch.eye(8), -torch.eye(8)])  # equal variance in all eight directions, mean zero
    torch.testing.assert_close(effective_rank(line), torch.tensor(1.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(effective_rank(signs), torch.tensor(8.0))


def test_effective_rank_of_equal_features_is_one():
    assert effective_rank(torch.ones(10, 4)).item() == 1.0


def test_uniformity_of_opposite_and_of_equal_features():
    torch.testing.assert_close(uniformity(torch.tensor([[2.0, 0.0], [-1.0, 0.0]])), torch.tensor(-8.0))
    torch.testing.assert_close(uniformity(torch.ones(5, 3)), torch.tensor(0.0), atol=1e-4, rtol=0)
