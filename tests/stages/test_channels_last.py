"""Weights laid out channels last: the same training, and runs that change their mind continue."""

import pytest
import torch

from rcg_lightning.core.schedule import CosineSchedule
from rcg_lightning.networks.denoiser import Denoiser
from rcg_lightning.networks.unet import UNet


@pytest.fixture
def fit(make_stage, trainer, digits, tmp_path):
    def train(name, steps, ckpt_path=None, **settings):
        stage = make_stage(denoiser=Denoiser(UNet(8, [1, 2], 1, [2], 8, groups=4), CosineSchedule(100)))
        trainer(tmp_path / name, steps, **settings).fit(stage, datamodule=digits(), ckpt_path=ckpt_path)
        return stage

    return train


def laid_out(stage):
    weights = [p for p in stage.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    assert weights
    return {p.is_contiguous(memory_format=torch.channels_last) for p in weights}


def test_training_is_the_same_and_can_continue_either_way(fit, tmp_path):
    plain, last = fit("plain", 4), fit("last", 4, channels_last=True)
    assert (laid_out(plain), laid_out(last)) == ({False}, {True})
    begun = tmp_path / "begun" / "last.ckpt"
    fit("begun", 2)
    changed = fit("changed", 4, begun, channels_last=True)
    assert laid_out(changed) == {True}
    begun = tmp_path / "begun_last" / "last.ckpt"
    fit("begun_last", 2, channels_last=True)
    back = fit("back", 4, begun)
    for stage in (last, changed, back):
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(stage.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name)
