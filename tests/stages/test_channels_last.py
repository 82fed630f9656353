"""Weights stored channels last: the same training, and runs may continue with the other memory format."""

import pytest
import torch

from rcg_lightning.core.schedule import CosineSchedule
from rcg_lightning.data.seed_data_module import SeedDataModule
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.unet import UNet
from rcg_lightning.stages.sampling import GuidedSampling

pytestmark = pytest.mark.slow


@pytest.fixture
def fit(make_stage, trainer, digits, tmp_path):
    def train(name, steps, ckpt_path=None, **settings):
        stage = make_stage(denoiser=Denoiser(UNet(8, [1, 2], 1, [2], 8, groups=4), CosineSchedule(100)))
        trainer(tmp_path / name, steps, **settings).fit(stage, datamodule=digits(), ckpt_path=ckpt_path)
        return stage

    return train


def test_networks_that_sample_are_laid_out_too(fit, trainer, tmp_path):
    stage = fit("first", 1)
    trainer(tmp_path / "samples", 1, channels_last=True).predict(GuidedSampling(stage), SeedDataModule(range(2), 2))
    assert is_channels_last(stage) == {True}


def is_channels_last(stage):
    """Whether each convolution's weight is channels last, as a set."""
    weights = [p for p in stage.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    assert weights
    return {p.is_contiguous(memory_format=torch.channels_last) for p in weights}


def test_training_is_the_same_and_can_continue_in_either_format(fit, tmp_path):
    first, last = fit("first", 6), fit("last", 6, channels_last=True)
    assert (is_channels_last(first), is_channels_last(last)) == ({False}, {True})
    fit("half_first", 3)  # longer than its warm-up, which would be shortened
    first_to_last = fit("first_to_last", 6, tmp_path / "half_first" / "last.ckpt", channels_last=True)
    assert is_channels_last(first_to_last) == {True}
    fit("half_last", 3, channels_last=True)
    last_to_first = fit("last_to_first", 6, tmp_path / "half_last" / "last.ckpt")
    for stage in (last, first_to_last, last_to_first):
        for name, value in first.state_dict().items():
            torch.testing.assert_close(stage.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name)
