import torch
from torch import nn

from rcg_lightning.config import construct, describe
from rcg_lightning.networks.convnet import SmallConvNet
from rcg_lightning.networks.heads import BottleneckHead, MLPHead, Predictor, Projected, ProjectionHead


def test_the_projection_head_ends_with_batch_norm_without_affine():
    head = ProjectionHead(16, 32, 8)
    assert [type(layer).__name__ for layer in head] == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear", "BatchNorm1d"]
    assert not head[-1].affine
    out = head(torch.randn(64, 16))
    torch.testing.assert_close(out.mean(0), torch.zeros(8), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.std(0, unbiased=False), torch.ones(8), rtol=1e-3, atol=0)
    assert all(layer.bias is None for layer in head if isinstance(layer, nn.Linear))


def test_the_predictor_has_two_layers_and_heads_have_the_given_sizes():
    predictor = Predictor(8, 32, 8)
    assert sum(isinstance(layer, nn.Linear) for layer in predictor) == 2
    assert predictor(torch.randn(4, 8)).shape == (4, predictor.dim)
    assert MLPHead(8, 4, 2, layers=1, last_affine=True)[-1].affine
    assert BottleneckHead(8, 4, 3)(torch.randn(2, 8)).shape == (2, 3)


def test_projected_is_rebuilt_with_backbone_and_head():
    network = Projected(SmallConvNet(1, 8), MLPHead(64, 128, 32, 2)).eval()
    rebuilt = construct(describe(network)).eval()
    rebuilt.load_state_dict(network.state_dict())
    image = torch.rand(3, 1, 8, 8)
    assert torch.equal(rebuilt(image), network(image))
    assert rebuilt.dim == 32
