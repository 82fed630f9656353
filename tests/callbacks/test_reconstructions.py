"""Metrics and grid of a tokenizer's reconstructions."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rcg_lightning.callbacks.reconstruction import Reconstructions
from rcg_lightning.errors import UserError
from rcg_lightning.metrics.reconstruction import reconstruction_scores
from rcg_lightning.networks.vqgan import MaskGITVQGAN
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.stages.tokenizer import TokenizerStage
from rcg_lightning.types import to_uint8


def test_metrics_and_grid_of_a_tokenizer_are_logged(digits, trainer, extractor, tmp_path):
    stage = TokenizerStage(MaskGITVQGAN(1, 8, (1, 2), 1, codes=8, dim=4, groups=4), AdamW(1e-3))
    data = digits(batch_size=64)
    fit = trainer(tmp_path / "run", 1, callbacks=[Reconstructions(extractor, columns=5)], logger=None)
    fit.fit(stage, data)
    metrics = {name: float(value) for name, value in fit.callback_metrics.items()}
    image = torch.from_numpy(data.images("eval").array).view(451, 1, 8, 8).float() / 255
    expected = reconstruction_scores([(to_uint8(image), to_uint8(stage.eval().reconstruct(image)))], extractor)
    assert metrics["rfd/classifier_451"] == pytest.approx(expected["rfd"], rel=1e-3)
    assert metrics["psnr/pixels_451"] == pytest.approx(expected["psnr"], rel=1e-4)
    assert metrics["psnr/pixels_451"] == pytest.approx(
        metrics["val/psnr"], abs=0.05
    )  # the callback compares 8-bit images
    assert "ssim/pixels_451" in metrics
    log = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0})
    log.Reload()
    (grid,) = log.Images("reconstructions")
    assert (grid.width, grid.height) == (5 * 34 + 2, 2 * 34 + 2)


def test_another_stage_is_rejected(make_stage, digits, trainer, tmp_path):
    with pytest.raises(UserError, match="tokenizer"):
        trainer(tmp_path, 1, callbacks=[Reconstructions()]).fit(make_stage(), digits())
