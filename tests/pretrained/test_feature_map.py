"""Feature maps: tokens at their positions, without class tokens and heads."""

import pytest
import timm
import torch

from rcg_lightning.errors import UserError
from rcg_lightning.networks.convnet import ResNet18, SmallConvNet
from rcg_lightning.networks.heads import Projected, ProjectionHead
from rcg_lightning.networks.principal_components import PrincipalComponents
from rcg_lightning.networks.vit import VisionTransformer
from rcg_lightning.pretrained.feature_map import feature_map
from rcg_lightning.pretrained.timm_encoder import TimmEncoder


@torch.no_grad()
def test_patch_tokens_of_a_vision_transformer():
    torch.manual_seed(0)
    network = VisionTransformer(32, patch=8, width=48, depth=2, heads=4).eval()
    image = torch.randn(2, 3, 32, 32)
    found = feature_map(network, image)
    assert found.shape == (2, 48, 4, 4)
    x = network._pos_embed(network.patch_embed(image))
    for block in network.blocks:
        x = block(x)
    tokens = network.norm(x)  # (B, 1 + 16, 48)
    torch.testing.assert_close(found[:, :, 1, 2], tokens[:, 1 + 4 + 2])
    torch.testing.assert_close(tokens[:, 0], network(image))
    projected = Projected(network, ProjectionHead(48, 16, 8))
    assert torch.equal(feature_map(projected.eval(), image), found)


@torch.no_grad()
@pytest.mark.parametrize("network", [SmallConvNet(1, 8, (8, 12)), ResNet18(1)], ids=["small", "resnet"])
def test_the_mean_of_a_convolutional_map_is_the_feature(network):
    network.eval()
    image = torch.randn(3, 1, 16, 16)
    found = feature_map(network, image)
    assert found.shape[:2] == (3, network.dim)
    assert found.shape[2] > 1
    torch.testing.assert_close(found.mean((2, 3)), network(image), rtol=1e-4, atol=1e-5)


def test_a_network_without_a_map_gives_one_position():
    network = PrincipalComponents([1, 8, 8], 6)
    network.components.normal_()
    image = torch.randn(3, 1, 8, 8)
    assert torch.equal(feature_map(network, image)[:, :, 0, 0], network(image))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64}, (192, 4, 4)),
        ("deit_tiny_distilled_patch16_224", {"img_size": 64}, (192, 4, 4)),  # two tokens in front
        ("resnet10t", {}, (512, 2, 2)),
        ("levit_128s", {"img_size": 64}, (384, 1, 1)),  # tokens of merged patches
        ("swin_tiny_patch4_window7_224", {"img_size": 64}, (768, 2, 2)),  # channels last
    ],
)
def test_models_of_timm(name, options, shape):
    network = timm.create_model(name, num_classes=0, **options).eval()
    assert feature_map(network, torch.randn(1, 3, 64, 64)).shape == (1, *shape)


def test_an_encoder_preprocesses_images():
    encoder = TimmEncoder("vit_tiny_patch16_224", pretrained=False, size=64)
    image = torch.rand(2, 1, 20, 20)
    found = encoder.feature_map(image)
    assert found.shape == (2, 192, 4, 4)
    network, prepared = encoder._frozen.module[1], encoder.preprocess(image)
    torch.testing.assert_close(found, feature_map(network, prepared))
    assert not found.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.feature_map(image), found)


def test_features_that_are_no_map_are_rejected():
    class Flat(torch.nn.Module):
        def forward_features(self, image):
            return image.flatten(1)

    class Several(torch.nn.Module):
        def forward_features(self, image):
            return [image, image]

    class Line(torch.nn.Module):
        def forward_features(self, image):
            return image.flatten(2)[:, :, :3].expand(-1, 15, -1)  # 15 tokens form no square

    for network in (Flat(), Several(), Line()):
        with pytest.raises(UserError, match="neither a map nor tokens"):
            feature_map(network, torch.rand(2, 1, 4, 4))
