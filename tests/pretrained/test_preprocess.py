import pytest
import torch
from torch.nn import functional as F

from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.normalisation import Identity, PerSample, UnitLength
from rcg_lightning.pretrained.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess


def test_images_are_normalised_then_stretched_without_antialias():
    image = torch.rand(2, 3, 40, 40)
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    expected = F.interpolate((image - mean) / std, (32, 32), mode="bicubic", align_corners=False)
    torch.testing.assert_close(Preprocess(size=32)(image), expected)


def test_grey_images_are_repeated_and_others_rejected():
    out = Preprocess([0.0] * 3, [1.0] * 3)(torch.rand(2, 1, 4, 4))
    assert torch.equal(out[:, 0], out[:, 2])
    with pytest.raises(UserError, match="3 channels"):
        Preprocess([0.0], [1.0])(torch.rand(2, 3, 4, 4))
    with pytest.raises(UserError, match="uint8"):
        Preprocess()(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))


def test_normalisations():
    feature = torch.randn(3, 10) * 4 + 2
    sample = PerSample()(feature)
    torch.testing.assert_close(sample.mean(1), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(sample.var(1, unbiased=True), torch.ones(3))
    torch.testing.assert_close(UnitLength()(feature).norm(dim=1), torch.ones(3))
    assert Identity()(feature) is feature
