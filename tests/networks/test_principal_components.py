import pytest
import torch

from rcg_lightning.errors import UserError
from rcg_lightning.networks.principal_components import fit_principal_components


def random_images(count=200):
    generator = torch.Generator().manual_seed(0)
    scales = torch.linspace(3, 0.1, 16)
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
    return (torch.randn(count, 16, generator=generator) * scales @ rotation + 0.5).view(count, 1, 4, 4)


def test_coefficients_are_uncorrelated_with_falling_variance():
    images = random_images()
    covariance = fit_principal_components(images, 5)(images).T.cov()
    variances = covariance.diagonal()
    assert (variances.diff() < 0).all()
    torch.testing.assert_close(covariance, variances.diag(), rtol=0, atol=1e-4)


def test_all_components_reconstruct_the_images():
    images = random_images()
    network = fit_principal_components(images, 16)
    reconstructed = network(images) @ network.components + network.mean
    torch.testing.assert_close(reconstructed, images.flatten(1), rtol=1e-4, atol=1e-4)


def test_whitened_coefficients_have_unit_variance():
    images = random_images()
    network = fit_principal_components(images, 4, whiten=True)
    torch.testing.assert_close(network(images).T.cov(), torch.eye(4), rtol=0, atol=1e-3)


def test_signs_do_not_depend_on_the_order_of_images():
    images = random_images()
    shuffled = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(1))]
    first, second = fit_principal_components(images, 4), fit_principal_components(shuffled, 4)
    torch.testing.assert_close(first.components, second.components, rtol=1e-4, atol=1e-4)


def test_too_many_components_and_wrong_images_are_rejected():
    with pytest.raises(UserError, match="no 4 principal"):
        fit_principal_components(random_images(4), 4)
    with pytest.raises(UserError, match=r"\(1, 4, 4\)"):
        fit_principal_components(random_images(), 3)(torch.rand(1, 1, 8, 8))
