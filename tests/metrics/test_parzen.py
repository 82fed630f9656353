import logging
import math

import numpy as np
import pytest
import torch

from rcg_lightning.errors import UserError
from rcg_lightning.metrics.parzen import ParzenWindow, choose_bandwidth, log_likelihoods, parzen_likelihood


def normal(count, dim, seed):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_one_kernel_is_a_gaussian():
    x, sigma = normal(5, 3, 0), 0.7
    expected = torch.distributions.Normal(torch.zeros(3).double(), sigma).log_prob(x - 1).sum(1)
    torch.testing.assert_close(log_likelihoods(x, torch.ones(1, 3), [sigma])[0], expected, rtol=1e-12, atol=1e-12)


def test_many_kernels_on_a_gaussian_are_a_wider_gaussian():
    """Kernels of variance σ² on samples of N(0, I) tend to N(0, (1 + σ²) I)."""
    dim, sigma, points = 2, 0.5, normal(2000, 2, 1)
    metric = ParzenWindow(normal(20_000, dim, 0), sigma)
    for part in points.split(300):
        metric.update(part)
    wide = 1 + sigma**2
    exact = -dim / 2 * math.log(2 * math.pi * wide) - points.square().sum(1) / 2 / wide
    found = metric.compute()
    assert found["parzen"] == pytest.approx(exact.mean().item(), abs=0.01)
    assert found["parzen"] == pytest.approx(-math.log(2 * math.pi * wide) - 1 / wide, abs=4 * found["parzen_se"])
    assert found["parzen_se"] == pytest.approx(exact.std().item() / 2000**0.5, rel=0.02)


def test_few_kernels_agree_with_the_definition():
    x, centres, sigma = normal(4, 3, 0), normal(7, 3, 1), 0.3
    densities = np.exp(-((x[:, None] - centres) ** 2).sum(2) / 2 / sigma**2) / (2 * np.pi * sigma**2) ** 1.5
    expected = np.log(densities.mean(1))
    torch.testing.assert_close(log_likelihoods(x, centres, [1.0, sigma])[1], expected, rtol=1e-10, atol=1e-10)


def test_far_points_stay_finite():
    found = log_likelihoods(torch.full((1, 784), 1.0), torch.zeros(3, 784), [0.1])
    assert found.item() == pytest.approx(-784 * (50 + math.log(0.1 * math.sqrt(2 * math.pi))), rel=1e-12)


def test_the_bandwidth_is_the_best_for_validation():
    """Points of N(0, 0.4² I) around one kernel are most probable under the bandwidth 0.4."""
    centres, validation = torch.zeros(1, 50), 0.4 * normal(500, 50, 1)
    assert choose_bandwidth(centres, validation, [0.1, 0.2, 0.4, 0.8]) == 0.4


def test_a_bandwidth_at_the_end_of_the_grid_gives_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert choose_bandwidth(torch.zeros(1, 5), 3 * normal(50, 5, 1), [0.1, 0.5]) == 0.5
    assert "end of its grid" in caplog.text


def test_images_are_scored_in_pixels_from_0_to_1(samples):
    images = samples[:100], samples[100:200], samples[200:]
    found = parzen_likelihood(*images)
    centres, _, test = (part.flatten(1).double() / 255 for part in images)
    exact = log_likelihoods(test, centres, [found["bandwidth"]])[0]
    assert found["parzen"] == pytest.approx(exact.mean().item(), rel=1e-12)
    assert found["parzen_se"] == pytest.approx(exact.std().item() / 10, rel=1e-9)
    with pytest.raises(UserError, match="validation images"):
        parzen_likelihood(images[0], images[1].float(), images[2])
