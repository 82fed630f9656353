import numpy as np
import pytest
import torch

from rcg_lightning.errors import UserError
from rcg_lightning.metrics.kid import discrepancy, kid


def cloud(count, seed, centre=0.0, dim=1):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + centre


def test_the_discrepancy_of_two_gaussians_follows_from_their_moments():
    """In one dimension (xy + 1)³ = 1 + 3xy + 3x²y² + x³y³, so the discrepancy is one of three moments."""
    mu = 0.5
    moments = np.array([0, 1, 0]), np.array([mu, mu**2 + 1, mu**3 + 3 * mu])
    exact = np.array([3, 3, 1]) @ np.square(moments[0] - moments[1])
    assert discrepancy(cloud(4000, 0), cloud(4000, 1, mu)) == pytest.approx(exact, rel=0.1)


def test_the_estimate_is_unbiased():
    estimates = [discrepancy(cloud(20, 2 * i, dim=3), cloud(20, 2 * i + 1, dim=3)) for i in range(300)]
    error = np.std(estimates) / len(estimates) ** 0.5
    assert np.mean(estimates) == pytest.approx(0, abs=4 * error)
    assert min(estimates) < 0 < max(estimates)


def test_the_seed_selects_the_subsets_and_small_sets_are_used_whole():
    one, other = cloud(60, 0, dim=4), cloud(50, 1, 0.3, dim=4)
    found = kid(one, other, subsets=5, size=30)
    assert found == kid(one, other, subsets=5, size=30)
    assert found != kid(one, other, subsets=5, size=30, seed=1)
    assert kid(one, other, subsets=5)[1] > 0  # 50 of 60
    assert kid(one[:50], other) == (pytest.approx(discrepancy(one[:50], other), rel=1e-12), 0.0)


def test_too_few_and_different_features_are_rejected():
    with pytest.raises(UserError, match="at least 2"):
        kid(cloud(1, 0), cloud(50, 1))
    assert isinstance(kid(cloud(2, 0), cloud(50, 1))[0], float)
    with pytest.raises(UserError, match="one extractor"):
        kid(cloud(9, 0, dim=2), cloud(50, 1))
