"""Transforms agree with torchvision and Pillow; ranges of their random versions; fixed views."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from rcg_lightning.data import numpy_rng
from rcg_lightning.data.decode import to_pil, to_tensor
from rcg_lightning.data.transforms import AsIs, CenterCrop, RandomCrop, RandomResizedCrop, Squash, Views
from rcg_lightning.errors import UserError

BICUBIC = v2.InterpolationMode.BICUBIC


def noise(width, height, channels=3):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (channels, height, width), np.uint8))


@pytest.mark.parametrize("size", [(37, 50), (50, 37), (64, 64), (31, 90), (20, 17)])
@pytest.mark.parametrize(("crop", "resize"), [(32, 32), (32, 37), (31, 36)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pillow", [False, True], ids=["torch", "pillow"])
def test_center_crop_equals_torchvisions_resize_and_center_crop_of_a_pillow_image(size, crop, resize, channels, pillow):
    image = noise(*size, channels)
    by_pillow = v2.Compose([v2.Resize(resize, BICUBIC), v2.CenterCrop(crop)])(to_pil(image.numpy()))
    ours = CenterCrop(crop, resize, pillow=pillow)(image)
    difference = (ours.int() - to_tensor(by_pillow).int()).abs()
    assert difference.max() <= (0 if pillow else 2)
    assert difference.float().mean() < 0.02


def test_the_description_names_the_resizer():
    assert CenterCrop(16).describe(False) != CenterCrop(16, pillow=True).describe(False)
    assert RandomCrop(16).describe(True) != RandomCrop(16, pillow=True).describe(True)


def test_random_crops_reach_every_position_equally():
    # the two channels are the coordinates of the pixels
    image = torch.stack(torch.meshgrid(torch.arange(32), torch.arange(40), indexing="ij")).to(torch.uint8)
    transform = RandomCrop(28, 32)
    corners = torch.stack([transform(image, u)[:, 0, 0] for u in numpy_rng.uniform(2, 0, np.arange(4000))])
    tops, lefts = corners.T.tolist()
    assert set(tops) == set(range(5))
    assert set(lefts) == set(range(13))
    assert np.bincount(tops).min() > 700  # 800 expected


def test_a_random_crop_without_random_numbers_is_the_centre():
    image = noise(50, 37)
    assert torch.equal(RandomCrop(32)(image), CenterCrop(32)(image))


def test_random_resized_crop_has_the_given_areas_and_ratios():
    transform = RandomResizedCrop(16, scale=(0.2, 0.6), ratio=(0.75, 1.4))
    boxes = np.asarray([transform._box((220, 200), u) for u in numpy_rng.uniform(40, 0, np.arange(3000))])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes[:, :2].min() == 0
    assert boxes[:, 2].max() == 220
    assert boxes[:, 3].max() == 200
    area = width * height / 44000
    assert 0.19 < area.min() < 0.22
    assert 0.58 < area.max() < 0.62
    assert 0.74 < (width / height).min() < 0.78
    assert 1.35 < (width / height).max() < 1.42


def test_random_resized_crop_falls_back_to_the_centre_of_a_thin_image():
    transform = RandomResizedCrop(16, scale=(0.9, 1.0))
    box = transform._box((400, 10), np.full(40, 0.5))
    assert box == (193, 0, 206, 10)  # as torchvision's: ratio 4/3 of the height


def test_mirror_and_squash():
    image = noise(12, 9)
    assert torch.equal(AsIs()(image, mirror=True), image.flip(2))
    assert Squash(8)(image).shape == (3, 8, 8)
    assert AsIs()(image) is image


def test_impossible_settings_are_rejected():
    with pytest.raises(UserError, match="does not fit"):
        CenterCrop(32, resize=28)
    with pytest.raises(UserError, match="scale"):
        RandomResizedCrop(32, scale=(0.5, 1.5))
    with pytest.raises(UserError, match="crops"):
        Views(crops=-1)


def test_different_views_have_different_descriptions():
    transform = RandomCrop(32, 36)
    descriptions = {
        Views().describe(transform),
        Views(flips=True).describe(transform),
        Views(crops=2).describe(transform),
        Views(crops=2, seed=1).describe(transform),
        Views(crops=2).describe(RandomCrop(32)),
    }
    assert len(descriptions) == 5
    assert Views().describe(transform) == Views().describe(CenterCrop(32, 36))  # the same pixels
    assert [Views(c, f).count for c, f in [(0, False), (0, True), (3, False), (3, True)]] == [1, 2, 3, 6]


def test_random_numbers_are_uniform_and_independent():
    u = numpy_rng.uniform(4, 7, np.arange(20000))
    assert np.abs(u.mean(0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(u.T) - np.eye(4)).max() < 0.03
    assert np.abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.03
    assert np.array_equal(numpy_rng.uniform(4, 7, np.asarray([5, 3])), u[[5, 3]])  # a row depends on its counters only
    assert not np.allclose(numpy_rng.uniform(4, 8, np.arange(5)), u[:5])
    first = [numpy_rng.permutation(10, 0, epoch)[0] for epoch in range(5000)]
    assert np.bincount(first).min() > 400
    assert sorted(numpy_rng.permutation(1000, 1)) == list(range(1000))


def test_random_numbers_never_change():
    # stored views depend on these numbers
    assert numpy_rng.key(1, 2, 3).tolist() == [9812528628958509896]
