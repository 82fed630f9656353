"""Augmentations compute in float32 under CUDA's autocast rules, which reject what CPU autocast promotes."""

import pytest
import torch

from helpers.pretended.backend import GPU
from rcg_lightning.core.diffaugment import DiffAugment
from rcg_lightning.data.augmentations import MoCoV3Colour, SmallColourAugmentation, SmallGreyAugmentation


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("augmentation", "channels"),
    [
        (SmallGreyAugmentation(blur=1.0), 1),
        (SmallColourAugmentation(), 3),
        (MoCoV3Colour(blur_probability=1.0), 3),
        (DiffAugment(), 3),
    ],
    ids=["grey", "colour", "moco", "diffaugment"],
)
def test_augmentations_compute_in_float32(augmentation, channels, dtype):
    image = torch.rand(4, channels, 16, 16).to(dtype).to(GPU)
    torch.manual_seed(0)
    expected = augmentation(image.float())
    torch.manual_seed(0)
    with torch.autocast(GPU.type, torch.bfloat16):
        changed = augmentation(image)
    assert changed.dtype == torch.float32
    assert torch.equal(changed.cpu(), expected.cpu())
