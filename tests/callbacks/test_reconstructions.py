import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rcg_lightning.callbacks.reconstruction import Reconstructions
from rcg_lightning.errors import UserError
from rcg_lightning.metrics.feature_extractors import ClassifierExtractor
from rcg_lightning.metrics.reconstruction import reconstruction_scores
from rcg_lightning.networks.classifier import Classifier
from rcg_lightning.networks.convnet import SmallConvNet
from rcg_lightning.networks.vqgan import MaskGITVQGAN
from rcg_lightning.pretrained.network_folder import save_network
from rcg_lightning.stages.optimization import AdamW
from rcg_lightning.stages.tokenizer import TokenizerStage
from rcg_lightning.types import to_uint8


@pytest.fixture
def extractor(tmp_path):
    torch.manual_seed(0)
    network = Classifier(SmallConvNet(1, 8, (4, 6)), 10)
    save_network(tmp_path / "classifier", network, {"image": [1, 8, 8], "classes": 10, "dim": 6})
    return ClassifierExtractor(tmp_path / "classifier")


def test_a_tokenizer_is_watched(digits, trainer, extractor, tmp_path):
    stage = TokenizerStage(MaskGITVQGAN(1, 8, (1, 2), 1, codes=8, dim=4, groups=4), AdamW(1e-3))
    data = digits(batch_size=64)
    fit = trainer(tmp_path / "run", 1, callbacks=[Reconstructions(extractor, columns=5)], logger=None)
    fit.fit(stage, data)
    metrics = {name: float(value) for name, value in fit.callback_metrics.items()}
    image = torch.from_numpy(data.images("eval").array).view(451, 1, 8, 8).float() / 255
    expected = reconstruction_scores([(to_uint8(image), to_uint8(stage.eval().reconstruct(image)))], extractor)
    assert metrics["rfd/classifier_451"] == pytest.approx(expected["rfd"], rel=1e-3)
    assert metrics["psnr/pixels_451"] == pytest.approx(expected["psnr"], rel=1e-4)
    assert metrics["psnr/pixels_451"] == pytest.approx(metrics["val/psnr"], abs=0.05)  # of 8-bit images here
    assert "ssim/pixels_451" in metrics
    log = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0})
    log.Reload()
    (shown,) = log.Images("reconstructions")
    assert (shown.width, shown.height) == (5 * 34 + 2, 2 * 34 + 2)


def test_it_watches_tokenizers_only(make_stage, digits, trainer, tmp_path):
    with pytest.raises(UserError, match="Reconstructions watches a tokenizer"):
        trainer(tmp_path, 1, callbacks=[Reconstructions()]).fit(make_stage(), digits())
