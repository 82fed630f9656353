import time
from contextlib import nullcontext

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rcg_lightning.config import construct, describe
from rcg_lightning.core.colour import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    gaussian_blur,
)
from rcg_lightning.data.augmentations import (
    MoCoV3Colour,
    SmallColourAugmentation,
    SmallGreyAugmentation,
    augmented,
    colour_jitter,
    draw_jitter,
    in_one_copy,
)
from rcg_lightning.errors import UserError

NO_CHANGE = {"scale": 0, "rotation": 0, "shear": 0, "shift": 0, "contrast": 0, "blur": 0, "noise": 0}

AUGMENTATIONS = [
    (SmallGreyAugmentation(), (5, 1, 8, 8)),
    (SmallGreyAugmentation(), (5, 1, 28, 28)),
    (SmallGreyAugmentation(), (5, 3, 8, 8)),
    (SmallColourAugmentation(), (5, 3, 32, 32)),
    (SmallColourAugmentation(), (5, 1, 28, 28)),
    (MoCoV3Colour(), (5, 3, 32, 32)),
    (MoCoV3Colour(blur_probability=0.1, solarize_probability=0.2), (5, 3, 48, 32)),
    (MoCoV3Colour(), (5, 1, 5, 5)),
]


@pytest.mark.parametrize(("augmentation", "shape"), AUGMENTATIONS)
def test_every_augmentation_keeps_shape_type_and_range(augmentation, shape):
    image = torch.rand(shape)
    before = image.clone()
    changed = augmentation(image)
    assert changed.shape == image.shape
    assert changed.dtype == torch.float32
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert not torch.equal(changed, image)
    assert torch.equal(image, before)


@pytest.mark.parametrize(("augmentation", "shape"), AUGMENTATIONS)
def test_the_global_seed_decides(augmentation, shape):
    image = torch.rand(shape)
    torch.manual_seed(3)
    first = augmentation(image)
    torch.manual_seed(3)
    assert torch.equal(augmentation(image), first)
    assert not torch.equal(augmentation(image), first)


@pytest.mark.parametrize(("augmentation", "shape"), AUGMENTATIONS)
def test_a_description_rebuilds_it(augmentation, shape):
    again = construct(describe(augmentation))
    image = torch.rand(shape)
    torch.manual_seed(0)
    first = augmentation(image)
    torch.manual_seed(0)
    assert torch.equal(again(image), first)


def test_each_image_of_a_batch_has_its_own_parameters():
    same = torch.rand(1, 1, 8, 8).expand(4, 1, 8, 8)
    changed = SmallGreyAugmentation(noise=0)(same)
    assert torch.pdist(changed.flatten(1)).min() > 0.05


def test_zero_strength_changes_nothing():
    image = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(SmallGreyAugmentation(**NO_CHANGE)(image), image, atol=1e-6, rtol=0)


def test_shift_is_a_fraction_of_the_size():
    image = torch.zeros(200, 1, 32, 32)
    image[:, :, 15:17, 15:17] = 1
    moved = SmallGreyAugmentation(**{**NO_CHANGE, "shift": 0.25})(image)
    centre = (moved.sum(2) * torch.arange(32)).sum((1, 2)) / moved.sum((1, 2, 3)) - 15.5
    assert 7 < centre.max() < 8.1
    assert -8.1 < centre.min() < -7


def test_scale_is_the_factor_of_the_size():
    image = torch.zeros(200, 1, 32, 32)
    image[:, :, 12:20, 12:20] = 1
    areas = SmallGreyAugmentation(**{**NO_CHANGE, "scale": 0.15})(image).sum((1, 2, 3)) / 64
    assert 0.85**2 - 0.02 < areas.min() < 0.76
    assert 1.28 < areas.max() < 1.15**2 + 0.02


def test_crops_stay_inside_the_image():
    cropped = SmallColourAugmentation(area=0.2, jitter_probability=0, grey_probability=0)(torch.ones(200, 3, 16, 16))
    torch.testing.assert_close(cropped, torch.ones_like(cropped))


def test_crops_cover_the_given_share_of_the_image():
    ramp = torch.linspace(0, 1, 64).expand(2000, 1, 64, 64)
    settings = {"flip": False, "jitter_probability": 0, "grey_probability": 0}
    width = (lambda x: x[..., -1] - x[..., 0])(SmallColourAugmentation(area=0.25, **settings)(ramp))[:, 0, 0]
    height = (lambda x: x[..., -1, :] - x[..., 0, :])(SmallColourAugmentation(area=0.25, **settings)(ramp.mT))[:, 0, 0]
    for side in (width, height):  # least: half of the side, at the ratio 3 : 4
        assert 0.41 < side.min() < 0.5
        assert 0.7 < side.mean() < 0.82


def test_half_of_the_images_are_mirrored():
    image = torch.zeros(400, 3, 16, 16)
    image[..., :8] = 1
    straight = SmallColourAugmentation(area=1, flip=False, jitter_probability=0, grey_probability=0)(image)
    assert (straight[..., :4].mean((1, 2, 3)) > 0.9).all()
    mirrored = SmallColourAugmentation(area=1, jitter_probability=0, grey_probability=0)(image)
    assert 0.4 < (mirrored[..., -4:].mean((1, 2, 3)) > 0.9).float().mean() < 0.6


def test_an_impossible_area_is_rejected():
    with pytest.raises(UserError, match="area"):
        SmallColourAugmentation(area=0)


@pytest.mark.parametrize(
    ("ours", "theirs", "amount"),
    [
        (adjust_brightness, TF.adjust_brightness, 0.4),
        (adjust_contrast, TF.adjust_contrast, -0.4),
        (adjust_saturation, TF.adjust_saturation, 0.2),
    ],
)
def test_blends_agree_with_torchvision(ours, theirs, amount):
    image = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(
        ours(image, torch.tensor([amount])), theirs(image, 1 + amount), atol=1e-3, rtol=0
    )  # torchvision rounds the luma weights


@pytest.mark.parametrize("turns", [-0.1, 0.0, 0.07, 0.5])
def test_hue_agrees_with_torchvision(turns):
    image = torch.rand(1, 3, 16, 16)
    image[..., 0] = image[:, :1, :, 0]  # grey pixels have no hue
    torch.testing.assert_close(adjust_hue(image, torch.tensor([turns])), TF.adjust_hue(image, turns), atol=1e-5, rtol=0)


def test_a_full_turn_of_the_hue_changes_nothing():
    image = torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(adjust_hue(image, torch.tensor([1.0, -1.0, 0.0])), image, atol=1e-5, rtol=0)


def test_blur_agrees_with_torchvision():
    image = torch.rand(2, 3, 16, 16)
    sigma = torch.tensor([0.7, 2.0])
    expected = torch.cat([TF.gaussian_blur(image[i : i + 1], [13, 13], [float(sigma[i])] * 2) for i in range(2)])
    torch.testing.assert_close(gaussian_blur(image, sigma, radius=6), expected, atol=1e-5, rtol=0)


def test_jitter_changes_images_with_its_probability():
    image = torch.rand(1, 3, 4, 4).expand(400, 3, 4, 4)
    changed = (colour_jitter(image, draw_jitter(image, (0.4, 0.4, 0.2, 0.1), 0.8)) - image).abs().flatten(1).amax(
        1
    ) > 1e-4
    assert 0.7 < changed.float().mean() < 0.9


def test_jitter_applies_each_operation_once_in_an_order_of_its_own_for_each_image():
    image, strengths = torch.rand(12, 3, 6, 6), (0.4, 0.4, 0.2, 0.1)
    torch.manual_seed(5)
    orders = torch.rand(12, 4).argsort(dim=1)
    amounts = (torch.rand(12, 4) * 2 - 1) * torch.tensor(strengths)
    operations = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    expected = image.clone()
    for i, order in enumerate(orders.tolist()):
        for number in order:
            expected[i : i + 1] = operations[number](expected[i : i + 1], amounts[i : i + 1, number])
    torch.manual_seed(5)
    torch.testing.assert_close(colour_jitter(image, draw_jitter(image, strengths, 1.0)), expected)


def test_grey_images_have_equal_channels():
    settings = {"jitter_probability": 0, "blur_probability": 0, "grey_probability": 0.2}
    grey = MoCoV3Colour(**settings)(torch.rand(400, 3, 2, 2))
    equal = (grey == grey[:, :1]).flatten(1).all(1).float().mean()
    assert 0.1 < equal < 0.3


def test_solarisation_inverts_the_bright_half():
    image = torch.tensor([0.2, 0.8]).view(1, 1, 1, 2)
    solarized = MoCoV3Colour(jitter_probability=0, grey_probability=0, blur_probability=0, solarize_probability=1)(
        image
    )
    torch.testing.assert_close(solarized, torch.tensor([0.2, 0.2]).view(1, 1, 1, 2))


class Copies(TorchDispatchMode):
    """Counts copies from the host to a device; nothing else may mix both."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        given = kwargs or {}
        copied = operator.overloadpacket.__name__ == "_to_copy" and given.get("device") == torch.device("meta")
        self.count += copied and args[0].device.type == "cpu"
        if not copied:
            devices = {one.device.type for one in tree_leaves((args, given)) if isinstance(one, torch.Tensor)}
            assert len(devices) < 2, operator
        return operator(*args, **given)


@pytest.mark.parametrize("augmentation", [SmallGreyAugmentation(), SmallColourAugmentation(), MoCoV3Colour()])
def test_all_changes_of_two_views_reach_the_device_in_one_copy(monkeypatch, augmentation):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # the meta device has none
    image = torch.empty(6, 3, 16, 16, device="meta")
    with Copies() as copies:
        first, second = augmented((augmentation, image), (augmentation, image))
    assert (first.shape, second.shape) == (image.shape, image.shape)
    assert copies.count == 1


def test_a_copy_keeps_values_types_and_shapes():
    tensors = [
        torch.tensor([1, 5]),
        torch.rand(3, 1),
        torch.tensor([True, False, True]),
        torch.empty(0),
        torch.rand(2, 3).T,
    ]
    moved = in_one_copy(tensors, torch.device("cpu"))
    assert all(one.dtype == other.dtype and torch.equal(one, other) for one, other in zip(moved, tensors))
    assert len({one.untyped_storage().data_ptr() for one in moved}) == 1


def test_small_images_cost_little():
    image, augmentation = torch.rand(128, 1, 8, 8), SmallGreyAugmentation()
    augmentation(image)
    start = time.process_time()
    for _ in range(50):
        augmentation(image)
    assert (time.process_time() - start) / 50 < 0.006  # 0.9 ms on an idle core
