"""Shapes, nearest codes and gradients of vector-quantised autoencoders; tests/agreement compares their outputs."""

import pytest
import torch

from rcg_lightning.config import construct, describe
from rcg_lightning.errors import UserError
from rcg_lightning.networks import vqgan
from rcg_lightning.networks.vqgan import VQGAN, MaskGITVQGAN

KINDS = [MaskGITVQGAN, VQGAN]


def small(kind, channels=1, multipliers=(1, 2, 2), **sizes):
    return kind(
        channels, **{"width": 8, "blocks": 1, "codes": 12, "dim": 4, "groups": 4, **sizes}, multipliers=multipliers
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("image", [(1, 8, 8), (3, 16, 8)])
def test_images_of_any_size_are_encoded_and_decoded(kind, image):
    network = small(kind, image[0])
    x = torch.rand(2, *image)
    z = network.encode(x)
    quantised, indices = network.quantise(z)
    assert z.shape[1:] == quantised.shape[1:] == network.shape(image) == (4, image[1] // 4, image[2] // 4)
    assert (indices.shape, indices.dtype) == ((2, image[1] // 4, image[2] // 4), torch.int64)
    assert network.decode(quantised).shape == network(x).shape == x.shape
    assert network.image_range == ((0, 1) if kind is MaskGITVQGAN else (-1, 1))
    rebuilt = construct(describe(network))
    rebuilt.load_state_dict(network.state_dict())
    assert torch.equal(rebuilt.encode(x), z)


def test_the_nearest_code_is_found_for_any_memory_limit(monkeypatch):
    network, z = small(MaskGITVQGAN), torch.randn(3, 4, 2, 5)
    torch.nn.init.normal_(network.codebook.weight)
    vectors = z.permute(0, 2, 3, 1).reshape(-1, 4)
    expected = torch.cdist(vectors, network.codebook.weight).argmin(1).view(3, 2, 5)
    for limit in (vqgan._MAX_DISTANCES, 7 * network.codes, 1):
        monkeypatch.setattr(vqgan, "_MAX_DISTANCES", limit)
        quantised, indices = network.quantise(z)
        assert torch.equal(indices, expected)
    assert torch.equal(quantised, network.lookup(indices))
    assert torch.equal(network.quantise(quantised)[1], indices)
    assert torch.equal(quantised[1, :, 1, 3], network.codebook.weight[indices[1, 1, 3]])


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_gets_a_gradient_with_a_straight_through_estimate(kind):
    network = small(kind, attention=[2]) if kind is VQGAN else small(kind)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    z = network.encode(torch.rand(2, 1, 8, 8))
    quantised, _ = network.quantise(z)
    assert not torch.autograd.grad(quantised.sum(), z, allow_unused=True, retain_graph=True)[0]
    straight_through = z + (quantised - z).detach()
    (network.decode(straight_through).square().sum() + (quantised - z.detach()).square().sum()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_impossible_sizes_are_rejected():
    network = small(MaskGITVQGAN, 3)
    for image, message in (((1, 8, 8), "3 channels"), ((3, 8, 10), "8x10")):
        with pytest.raises(UserError, match=message):
            network.shape(image)
    with pytest.raises(UserError, match="3 groups"):
        small(VQGAN, groups=3)


def test_maps_may_have_other_channels_than_codes():
    """LDM's ``z_channels`` and ``embed_dim``: the convolutions around the codes go from one to the other."""
    network = VQGAN(1, 8, (1, 2), 1, codes=16, dim=3, groups=4, attention=(), z_channels=5)
    image = torch.randn(2, 1, 8, 8)
    assert network.encoder(image).shape == (2, 5, 4, 4)
    assert network.encode(image).shape == (2, *network.shape((1, 8, 8))) == (2, 3, 4, 4)
    assert network(image).shape == image.shape
