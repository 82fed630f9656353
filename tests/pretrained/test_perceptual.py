import pytest
import torch
from torch import nn

from rcg_lightning.errors import UserError
from rcg_lightning.networks.convnet import SmallConvNet
from rcg_lightning.pretrained import perceptual
from rcg_lightning.pretrained.network_folder import save_network
from rcg_lightning.pretrained.perceptual import LPIPS, FeatureLoss
from rcg_lightning.pretrained.preprocess import Preprocess
from rcg_lightning.pretrained.trained_encoder import TrainedEncoder, encoder_settings


class MockLPIPS(nn.Module):
    """Mock of torchmetrics' LPIPS, which needs weights: compares the mean colours of images in [-1, 1]."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 1)

    def forward(self, one, other):
        return (self.net(one.mean((2, 3))) - self.net(other.mean((2, 3)))).square()


def test_lpips_passes_gradients_to_the_image_only(monkeypatch):
    network = MockLPIPS()
    similarity = nn.Module()
    similarity.net = network
    monkeypatch.setattr(perceptual, "perceptual_similarity", lambda backbone: similarity)
    loss = LPIPS("vgg")
    with pytest.raises(UserError, match="32 pixels, not 28"):
        loss.setup((1, 28, 28))
    loss.setup((1, 32, 32))
    made, original = torch.rand(4, 1, 32, 32, requires_grad=True), torch.rand(4, 1, 32, 32)
    value = loss(made, original)
    pair = [2 * image.mean((1, 2, 3)) - 1 for image in (made, original)]
    expected = (network.net.weight.sum() * (pair[0] - pair[1])).square().mean()
    torch.testing.assert_close(value, expected)
    value.backward()
    assert float(made.grad.abs().sum()) > 0
    assert network.net.weight.grad is None


def test_features_of_an_encoder_are_compared(tmp_path):
    torch.manual_seed(0)
    save_network(tmp_path / "encoder", SmallConvNet(1, 8, (4, 6)), encoder_settings(Preprocess([0.5], [0.5]), False))
    encoder = TrainedEncoder(tmp_path / "encoder")
    loss = FeatureLoss(encoder)
    loss.setup((1, 8, 8))
    made, original = torch.rand(4, 1, 8, 8, requires_grad=True), torch.rand(4, 1, 8, 8)
    maps = [nn.functional.normalize(encoder.feature_map(image), dim=1) for image in (made, original)]
    value = loss(made, original)
    torch.testing.assert_close(value, (maps[0] - maps[1]).square().sum(1).mean())
    assert float(loss(original, original)) == pytest.approx(0, abs=1e-6)
    value.backward()
    assert float(made.grad.abs().sum()) > 0


def test_unknown_networks_and_broken_weights_are_reported(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="LPIPS has networks"):
        perceptual.perceptual_similarity("resnet")

    def absent(*_, **__):
        raise OSError("no such layer")

    monkeypatch.setattr(perceptual, "published", lambda *_: None)
    monkeypatch.setattr(perceptual, "LearnedPerceptualImagePatchSimilarity", absent)
    with pytest.raises(UserError, match=r"vgg16.*could not be loaded.*no such layer"):
        LPIPS("vgg").setup((3, 64, 64))
