"""ResNet-50 for IC-GAN's features: the same network from each of its files."""

import pytest
import torch
import torchvision
from torch.nn import functional as F

from rcg_lightning.errors import UserError
from rcg_lightning.pretrained.normalisation import Identity
from rcg_lightning.pretrained.resnet_encoder import ResNet50Encoder, backbone_of


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = torchvision.models.resnet50().eval()
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    return network


def swav(state):
    """The weights in SwAV's layout: no classifier, a head and prototypes, everything below ``module``."""
    backbone = {f"module.{name}": tensor for name, tensor in state.items() if not name.startswith("fc.")}
    head = {f"module.projection_head.{name}": torch.randn(4) for name in ("0.weight", "1.running_mean")}
    return {**backbone, **head, "module.prototypes.weight": torch.randn(3, 4)}


def long_tailed(state):
    """The weights in the layout of ImageNet-LT's classifiers."""
    backbone = {f"module.{name}": tensor for name, tensor in state.items() if not name.startswith("fc.")}
    return {"state_dict_best": {"feat_model": backbone, "classifier": {"module.fc.weight": torch.randn(3, 4)}}}


def without_counts(state):
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


@torch.no_grad()
def test_features_are_those_of_the_official_preprocessing(network, tmp_path):
    torch.save(swav(network.state_dict()), tmp_path / "swav.pth.tar")
    image = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    prepared = F.interpolate((image - mean) / std, (224, 224), mode="bicubic", align_corners=False)
    body = torch.nn.Sequential(*list(network.children())[:-1])
    expected = body(prepared).flatten(1)
    encoder = ResNet50Encoder(tmp_path / "swav.pth.tar")
    made = encoder(image)
    torch.testing.assert_close(made, F.normalize(expected, dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.norm(dim=1), torch.ones(2))
    assert encoder.dim == 2048
    assert "the projection head" in encoder.report()
    unscaled = ResNet50Encoder(tmp_path / "swav.pth.tar", Identity())
    torch.testing.assert_close(unscaled(image), expected, rtol=1e-4, atol=1e-5)
    assert unscaled.identity != encoder.identity


def test_every_container_gives_the_same_tensors(network):
    mine = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("fc.")}
    for written in (dict, swav, long_tailed):
        found = backbone_of(written(network.state_dict()))
        assert all(torch.equal(found[name], tensor) for name, tensor in mine.items())


def test_files_without_counts_of_batches(network, tmp_path):
    torch.save(without_counts(network.state_dict()), tmp_path / "old.pth")
    loaded = ResNet50Encoder(tmp_path / "old.pth").load()
    assert loaded.loaded["backbone"] == len(without_counts(network.state_dict())) - 2  # without the classifier
    assert torch.equal(loaded.network.layer4[2].bn3.running_mean, network.layer4[2].bn3.running_mean)


def test_another_network_is_rejected_in_one_line(network, tmp_path):
    torch.save({"blocks.0.weight": torch.zeros(2)}, tmp_path / "vit.pth")
    with pytest.raises(UserError, match=r"no ResNet, its tensors are blocks\.0\.weight"):
        ResNet50Encoder(tmp_path / "vit.pth").setup()
    state = {name: tensor for name, tensor in network.state_dict().items() if "layer3.0.conv1" not in name}
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"1 missing: layer3\.0\.conv1\.weight"):
        ResNet50Encoder(tmp_path / "part.pth").setup()
