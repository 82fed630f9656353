import numpy as np
import pytest
import torch

from rcg_lightning.errors import UserError
from rcg_lightning.metrics.kid import discrepancy, kernel_distance


def cloud(count, seed, centre=0.0, dim=1):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + centre


def test_the_discrepancy_of_two_gaussians_is_that_of_their_moments():
    """In one dimension (xy + 1)³ = 1 + 3xy + 3x²y² + x³y³, so the discrepancy is one of three moments."""
    mu = 0.5
    moments = np.array([0, 1, 0]), np.array([mu, mu**2 + 1, mu**3 + 3 * mu])
    exact = np.array([3, 3, 1]) @ np.square(moments[0] - moments[1])
    assert discrepancy(cloud(4000, 0), cloud(4000, 1, mu)) == pytest.approx(exact, rel=0.1)


def test_the_estimate_is_unbiased_where_the_plain_one_is_not():
    draws = [discrepancy(cloud(20, 2 * i, dim=3), cloud(20, 2 * i + 1, dim=3)) for i in range(300)]
    error = np.std(draws) / len(draws) ** 0.5
    assert np.mean(draws) == pytest.approx(0, abs=4 * error)
    assert min(draws) < 0 < max(draws)


def test_subsets_are_decided_by_the_seed_and_small_sets_take_what_they_have():
    one, other = cloud(60, 0, dim=4), cloud(50, 1, 0.3, dim=4)
    drawn = kernel_distance(one, other, subsets=5, size=30)
    assert drawn == kernel_distance(one, other, subsets=5, size=30)
    assert drawn != kernel_distance(one, other, subsets=5, size=30, seed=1)
    assert kernel_distance(one, other, subsets=5)[1] > 0  # 50 of 60
    assert kernel_distance(one[:50], other) == (pytest.approx(discrepancy(one[:50], other), rel=1e-12), 0.0)


def test_what_cannot_work_is_said():
    with pytest.raises(UserError, match="at least 2"):
        kernel_distance(cloud(1, 0), cloud(50, 1))
    with pytest.raises(UserError, match="one extractor"):
        kernel_distance(cloud(9, 0, dim=2), cloud(50, 1))
