import pytest
import torch

from rcg_lightning.config import construct, describe
from rcg_lightning.core.diffaugment import Colour, Cutout, DiffAugment, Translation
from rcg_lightning.errors import UserError

AUGMENTATIONS = {"colour": Colour(), "translation": Translation(), "cutout": Cutout(), "all": DiffAugment()}


def images(count=6, channels=3, side=12):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("kind", AUGMENTATIONS)
@pytest.mark.parametrize("shape", [(6, 3, 12, 12), (5, 1, 8, 8), (2, 3, 7, 9)], ids=str)
def test_shape_randomness_and_gradient(kind, shape):
    augment = AUGMENTATIONS[kind]
    x = torch.rand(*shape).requires_grad_()
    torch.manual_seed(3)
    first = augment(x)
    torch.manual_seed(3)
    torch.testing.assert_close(augment(x), first, rtol=0, atol=0)
    other = augment(x)
    assert first.shape == x.shape
    assert first.dtype == x.dtype
    assert not torch.equal(other, first)
    (gradient,) = torch.autograd.grad(first.square().sum(), x)
    assert gradient.isfinite().all()
    assert float(gradient.abs().sum()) > 0


def test_each_image_has_its_own_random_numbers():
    x = images(1).expand(32, -1, -1, -1)
    for augment in AUGMENTATIONS.values():
        assert len(torch.unique(augment(x).flatten(1), dim=0)) > 8


def test_colour_is_affine_in_each_image_and_within_bounds():
    x = images(400)
    augmented = Colour()(x)
    change = (augmented - x).mean((1, 2, 3))  # saturation and contrast preserve the mean
    assert -0.5 <= float(change.min()) < -0.4
    assert 0.4 < float(change.max()) <= 0.5
    chroma = lambda p: (p - p.mean(1, keepdim=True)).flatten(1).norm(dim=1)  # noqa: E731
    saturation = chroma(augmented) / chroma(x)
    assert 0 <= float(saturation.min()) < 0.3
    assert 2 < float(saturation.max()) <= 3
    grey = images(200, 1)
    contrast = (Colour()(grey) - grey.mean((1, 2, 3), keepdim=True)).flatten(1).std(1) / grey.flatten(1).std(1)
    assert 0.5 <= float(contrast.min()) < 0.6
    assert 1.4 < float(contrast.max()) <= 1.5


def test_translation_shifts_by_whole_pixels_and_fills_with_grey():
    x = images(300, 1, 16)
    augmented = Translation()(x)
    shifts = set()
    for before, after in zip(x[:, 0], augmented[:, 0]):
        padded = torch.nn.functional.pad(before, (2, 2, 2, 2))
        found = [(i, j) for i in range(5) for j in range(5) if torch.equal(padded[i : i + 16, j : j + 16], after)]
        assert len(found) == 1
        shifts.add(found[0])
    assert len(shifts) == 25
    torch.testing.assert_close(Translation(0.0)(x), x, rtol=0, atol=0)


def test_cutout_empties_a_rectangle_that_may_extend_beyond_the_image():
    x = images(400, 2, 12).abs() + 0.1
    augmented = Cutout()(x)
    empty = augmented == 0
    assert torch.equal(empty[:, 0], empty[:, 1])
    assert torch.equal(augmented[~empty], x[~empty])
    heights, widths = empty[:, 0].any(2).sum(1), empty[:, 0].any(1).sum(1)
    assert torch.equal(empty[:, 0].sum((1, 2)), heights * widths)
    assert (int(heights.max()), int(heights.min())) == (6, 3)  # at least half of it is inside
    assert bool(empty[:, 0].any(0).all())  # every pixel may become empty
    torch.testing.assert_close(Cutout(0.0)(x), x, rtol=0, atol=0)


def test_generated_and_real_images_have_the_same_distribution_of_augmentations():
    """In one call or in two: the index in the batch has no influence."""
    torch.manual_seed(0)
    x = images(1).expand(3000, -1, -1, -1)
    generated, real = DiffAugment()(torch.cat([x, x])).chunk(2)
    separate = DiffAugment()(x)
    for other in (real, separate):
        torch.testing.assert_close(generated.mean(0), other.mean(0), rtol=0, atol=0.08)
        torch.testing.assert_close(generated.std(0), other.std(0), rtol=0, atol=0.08)


def test_settings_are_described_and_checked():
    policy = construct(describe(DiffAugment([Translation(0.25), Cutout()])))
    assert [type(step) for step in policy.steps] == [Translation, Cutout]
    assert policy.steps[0].ratio == 0.25
    x = images(2)
    assert torch.equal(DiffAugment([])(x), x)
    with pytest.raises(UserError, match="Translation: ratio"):
        Translation(2.0)
    with pytest.raises(UserError, match="Cutout: ratio"):
        Cutout(-0.1)
