import numpy as np
import pytest
import torch

from rcg_lightning.errors import UserError
from rcg_lightning.evaluation.nearest_images import closest_matches, nearest_images_grid


@pytest.fixture
def copied(samples, real):
    """40 samples, of which samples 7 and 21 are close copies of training images 123 and 4."""
    copies = samples[:40].clone()
    copies[7] = (real[123].int() + 2).clamp(max=255).to(torch.uint8)
    copies[21] = real[4]
    return copies


def test_copies_come_first_with_the_images_they_copy(copied, real):
    found = closest_matches(copied, real, 5)
    assert [(match.sample, match.training) for match in found[:2]] == [(21, 4), (7, 123)]
    assert found[0].distance == 0
    assert found[1].distance == pytest.approx(2 / 255, rel=0.01)
    assert [match.distance for match in found] == sorted(match.distance for match in found)
    for match in found:
        assert torch.equal(match.images[0], copied[match.sample])
        assert torch.equal(match.images[1], real[match.training])


def test_training_images_may_come_in_batches(copied, real):
    whole, parts = closest_matches(copied, real, 40), closest_matches(copied, iter(real.split(33)), 99)
    assert [(m.sample, m.training, m.distance) for m in parts] == [(m.sample, m.training, m.distance) for m in whole]
    assert len(parts) == 40


def test_features_find_copies_too(copied, real, extractor):
    found = closest_matches(copied, real.split(100), 2, extractor)
    assert {(match.sample, match.training) for match in found} == {(21, 4), (7, 123)}


def test_each_match_is_a_row_of_the_image(copied, real, tmp_path):
    found = closest_matches(copied, real, 3)
    image = nearest_images_grid(found)
    image.save(tmp_path / "closest.png")
    assert image.height > 3 * 50
    pixels = np.asarray(image)
    colours = {tuple(colour) for colour in pixels.reshape(-1, 3)}
    assert (30, 30, 30) in colours  # there is a label
    assert image.height < nearest_images_grid(closest_matches(copied, real, 5)).height


def test_incomparable_inputs_are_rejected(copied, real):
    with pytest.raises(UserError, match="no pixel distance"):
        closest_matches(copied, real[:, :, :4], 3)
    with pytest.raises(UserError, match="no training images"):
        closest_matches(copied, [], 3)
    with pytest.raises(UserError, match="uint8"):
        closest_matches(copied.float(), real, 3)
