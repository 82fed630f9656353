import numpy as np
import pytest
import scipy.linalg
import torch

from rcg_lightning.core.frechet import frechet_distance, moments, moments_from_sums


def random_features(count, dim, seed, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -spread, dim, dtype=torch.float64)
    return torch.randn(count, dim, dtype=torch.float64, generator=generator) * scales + 0.1 * seed


def distance_by_sqrtm(mean1, cov1, mean2, cov2):
    root = scipy.linalg.sqrtm(cov1.numpy() @ cov2.numpy())
    return float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace()) - 2 * float(np.trace(root).real)


def distance_without_covariances(x, y):
    """The definition on the centred features, without forming covariances: exact for singular ones."""
    a, b = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    cross = torch.linalg.svdvals(a @ b.T).sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum() - 2 * cross)


def test_two_gaussians_with_a_common_basis_have_a_closed_form():
    basis, _ = torch.linalg.qr(random_features(6, 6, 1))
    first, second = torch.tensor([[4.0, 1, 9, 0.25, 1, 2], [1.0, 1, 4, 4, 16, 2]], dtype=torch.float64)
    means = torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    distance = frechet_distance(means[0], basis * first @ basis.T, means[1], basis * second @ basis.T)
    expected = 6 + (first.sqrt() - second.sqrt()).square().sum()
    assert distance.item() == pytest.approx(expected.item(), rel=1e-12)


def test_agrees_with_the_matrix_square_root():
    first, second = moments(random_features(500, 64, 1)), moments(random_features(400, 64, 2))
    assert frechet_distance(*first, *second).item() == pytest.approx(distance_by_sqrtm(*first, *second), rel=1e-9)


@pytest.mark.parametrize(("count", "spread"), [(50, 0.0), (50, 6.0), (1000, 8.0)])
def test_singular_and_ill_conditioned_covariances_are_exact(count, spread):
    x, y = random_features(count, 128, 1, spread), random_features(count + 7, 128, 2, spread / 2)
    expected = distance_without_covariances(x, y)
    assert frechet_distance(*moments(x), *moments(y)).item() == pytest.approx(expected, rel=1e-10)


def test_dead_features_do_not_matter():
    x, y = random_features(300, 16, 1), random_features(300, 16, 2)
    padded = [torch.cat([z, torch.zeros(300, 3, dtype=z.dtype)], dim=1) for z in (x, y)]
    alive = frechet_distance(*moments(x), *moments(y)).item()
    assert frechet_distance(*moments(padded[0]), *moments(padded[1])).item() == pytest.approx(alive, rel=1e-10)


def test_equal_sets_are_at_distance_zero_and_the_order_does_not_matter():
    first, second = moments(random_features(90, 128, 1)), moments(random_features(300, 128, 2))
    assert 0 <= frechet_distance(*first, *first).item() < 1e-9
    distance, reversed_distance = frechet_distance(*first, *second), frechet_distance(*second, *first)
    assert distance.item() == pytest.approx(reversed_distance.item(), rel=1e-10)


def test_constant_features_have_no_variance():
    mean, cov = moments(torch.full((5, 3), 2.0))
    distance = frechet_distance(mean, cov, mean + 1, cov)
    assert distance.dtype == torch.float64
    assert distance.item() == pytest.approx(3.0)


def test_sums_give_the_same_moments():
    x = random_features(200, 8, 3)
    mean, cov = moments_from_sums(200, x.sum(0), x.T @ x)
    torch.testing.assert_close(mean, moments(x)[0])
    torch.testing.assert_close(cov, moments(x)[1])
    np.testing.assert_allclose(cov.numpy(), np.cov(x.numpy().T), rtol=1e-9, atol=1e-15)
