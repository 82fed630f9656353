"""Every stage trains under CUDA's autocast rules, which reject what CPU autocast promotes."""

import pytest
import torch

from helpers import every_stage
from helpers.cuda_autocast import CUDAAutocast
from rcg_lightning.core.diffaugment import DiffAugment
from rcg_lightning.data.augmentations import MoCoV3Colour, SmallColourAugmentation, SmallGreyAugmentation
from rcg_lightning.networks.dit import DiT
from rcg_lightning.types import DataSpec

SPEC = DataSpec((1, 8, 8), 10, {"representation": {"shape": [6]}})
STAGES = {
    "moco": every_stage.moco,
    "classifier": every_stage.classifier,
    "rdm": lambda: every_stage.generator("rdm", "none", False),
    "mlp": lambda: every_stage.generator("pixels", "representation", False),
    "dit": lambda: every_stage.generator("pixels", "class", False, DiT(2, 16, 2, 2)),
    "masked": lambda: every_stage.masked(False),
    "gan": lambda: every_stage.gan(False),
    "tokenizer": lambda: every_stage.tokenizer(False),
}


def batch(n=8):
    torch.manual_seed(0)
    return {
        "image": torch.rand(n, 1, 8, 8),
        "label": torch.arange(n) % 10,
        "index": torch.arange(n),
        "representation": torch.randn(n, 6),
    }


@pytest.mark.parametrize("name", STAGES)
def test_the_losses_of_a_stage_have_gradients(name):
    stage = STAGES[name]().build(SPEC)
    with CUDAAutocast():
        losses = stage.losses(batch())
    scalars = [value for value in losses.values() if value.requires_grad]
    assert scalars
    assert all(value.isfinite() for value in losses.values())
    sum(value.float() for value in scalars).backward()
    gradients = [parameter.grad for parameter in stage.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("augmentation", "channels"),
    [
        (SmallGreyAugmentation(blur=1.0), 1),
        (SmallColourAugmentation(), 3),
        (MoCoV3Colour(blur_probability=1.0), 3),
        (DiffAugment(), 3),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else str(value),
)
def test_augmentations_compute_in_float32(augmentation, channels, dtype):
    image = torch.rand(4, channels, 16, 16).to(dtype)
    torch.manual_seed(0)
    expected = augmentation(image.float())
    torch.manual_seed(0)
    with CUDAAutocast():
        changed = augmentation(image)
    assert changed.dtype == torch.float32
    torch.testing.assert_close(changed, expected, rtol=0, atol=0)
