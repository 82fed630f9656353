import math

import pytest
import timm.models.vision_transformer as timm_vit
import torch

from rcg_lightning.config import construct, describe
from rcg_lightning.errors import UserError
from rcg_lightning.networks.vit import VisionTransformer, position_table


def small(**changes):
    return VisionTransformer(**{"image_size": 32, "patch": 8, "width": 48, "depth": 3, "heads": 4, **changes})


def randomised(net):
    torch.manual_seed(1)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net


def test_the_class_token_block_equals_the_whole_last_block():
    net = randomised(small())
    image = torch.randn(2, 3, 32, 32, requires_grad=True)
    ours, timms = net(image), timm_vit.VisionTransformer.forward(net, image)
    torch.testing.assert_close(ours, timms, rtol=1e-5, atol=2e-6)
    weights = [p for p in net.parameters() if p.requires_grad] + [image]
    gradients, expected = (torch.autograd.grad(out.square().sum(), weights) for out in (ours, timms))
    for actual, exact in zip(gradients, expected):
        torch.testing.assert_close(actual, exact, rtol=1e-4, atol=1e-5 * exact.abs().max().item())


@pytest.mark.parametrize(("channels", "size", "patch"), [(1, 8, 2), (3, 28, 7), (3, 32, 4)])
def test_any_image_size_works(channels, size, patch):
    net = small(channels=channels, image_size=size, patch=patch)
    assert net(torch.rand(2, channels, size, size)).shape == (2, net.dim)


def test_the_initialisation_is_that_of_moco_v3():
    torch.manual_seed(0)
    net = small(width=96)
    block = net.blocks[0]
    fans = [(block.attn.qkv, 96 + 96), (block.mlp.fc1, 96 + 4 * 96), (net.patch_embed.proj, 3 * 64 + 96)]
    for layer, fan in fans:
        assert layer.weight.abs().max().item() == pytest.approx(math.sqrt(6 / fan), rel=0.01)
    assert not block.attn.qkv.bias.any()
    assert block.norm1.eps == 1e-6
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert frozen == {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert small(freeze_patches=False).patch_embed.proj.weight.requires_grad


def test_every_trained_parameter_gets_a_gradient():
    net = small()
    net(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_the_first_half_of_the_position_table_encodes_the_row():
    table = position_table(3, 5, 8)[0, 1:].unflatten(0, (3, 5))
    assert torch.equal(table[1, 0, :4], table[1, 4, :4])
    assert torch.equal(table[0, 2, 4:], table[2, 2, 4:])
    assert not position_table(3, 5, 8)[0, 0].any()
    assert table[2, 0, 0] == pytest.approx(math.sin(2))


def test_it_can_be_rebuilt_from_its_description():
    net = small()
    rebuilt = construct(describe(net))
    rebuilt.load_state_dict(net.state_dict())
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(rebuilt(image), net(image))


@pytest.mark.parametrize("wrong", [{"patch": 5}, {"heads": 5}, {"width": 6, "heads": 2}])
def test_impossible_sizes_are_rejected(wrong):
    with pytest.raises(UserError):
        small(**wrong)


def test_an_image_of_another_shape_is_rejected():
    with pytest.raises(UserError, match=r"\(3, 32, 32\)"):
        small()(torch.rand(1, 3, 16, 16))
