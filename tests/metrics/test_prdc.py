import pytest
import torch

from rcg_lightning.errors import UserError
from rcg_lightning.metrics.copy_rate import copy_threshold, nearest_images
from rcg_lightning.metrics.prdc import balls_around, density_coverage, precision_recall, radii


def cloud(count, seed, centre=0.0, dim=6):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) + centre


def by_definition(samples, real, k):
    """The definitions by full distance matrices in float64."""
    samples, real = samples.double(), real.double()
    within, across = torch.cdist(real, real), torch.cdist(samples, real)
    real_radius = within.kthvalue(k + 1, dim=1).values
    fake_radius = torch.cdist(samples, samples).kthvalue(k + 1, dim=1).values
    inside, covered = across <= real_radius, across <= fake_radius[:, None]
    return {
        "precision": inside.any(1).double().mean().item(),
        "recall": covered.any(0).double().mean().item(),
        "density": inside.double().sum(1).mean().item() / k,
        "coverage": (across.min(0).values <= real_radius).double().mean().item(),
    }


def test_agrees_with_the_definitions():
    samples, real = cloud(300, 1, 0.4), cloud(400, 2)
    expected = by_definition(samples, real, 5)
    assert precision_recall(samples, real) == pytest.approx((expected["precision"], expected["recall"]), abs=0.004)
    assert density_coverage(samples, real) == pytest.approx((expected["density"], expected["coverage"]), abs=0.004)


def test_a_set_lies_in_its_own_manifold_and_a_distant_set_does_not():
    real = cloud(200, 1, centre=50.0)
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(cloud(200, 1), real) == (0.0, 0.0)


def test_collapse_keeps_precision_and_loses_recall():
    real = cloud(300, 1)
    precision, recall = precision_recall(real[:10].repeat(30, 1), real)
    assert precision == 1.0
    assert recall < 0.1


def test_radii_are_distances_to_the_kth_other_feature():
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert radii(line, 2).tolist() == [3.0, 2.0, 3.0, 6.0]
    assert balls_around(torch.tensor([[0.5], [100.0]]), line, torch.ones(4)).tolist() == [2, 0]


def test_pixel_distance_is_a_root_mean_square():
    bank = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    bank[1] = 255
    near = torch.full((1, 1, 4, 4), 204, dtype=torch.uint8)
    distance, index = nearest_images(torch.cat([near, bank[:1]]), bank)
    assert distance.tolist() == pytest.approx([0.2, 0.0], abs=1e-6)
    assert index.tolist() == [1, 0]


def test_one_in_a_hundred_evaluation_images_is_nearer_than_the_threshold():
    generator = torch.Generator().manual_seed(0)
    train, evaluation = (
        torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=generator) for n in (500, 1000)
    )
    threshold = copy_threshold(evaluation, train)
    assert (nearest_images(evaluation, train)[0] < threshold).sum().item() == pytest.approx(10, abs=1)


def test_too_few_images_are_rejected():
    with pytest.raises(UserError, match="score more images"):
        precision_recall(cloud(5, 1), cloud(100, 2))
