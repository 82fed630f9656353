"""Activation checkpointing of all networks: the same gradients from fewer stored activations."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from rcg_lightning.networks.dit import DiT
from rcg_lightning.networks.layers import run_block
from rcg_lightning.networks.mage import MAGE
from rcg_lightning.networks.rdm_mlp import ModulatedMLP, ResidualMLP
from rcg_lightning.networks.vit import VisionTransformer
from rcg_lightning.networks.vqgan import VQGAN, MaskGITVQGAN


def denoiser(kind, shape, **settings):
    def make(checkpointing):
        network = kind(**settings, checkpointing=checkpointing)
        network.build(shape, 16)
        return network, (torch.randn(4, *shape), torch.tensor([1, 5, 9, 50]), torch.randn(4, 16))

    return make


def mage(checkpointing):
    network = MAGE(16, 3, 2, 16, 3, 2, dropout=0.3, checkpointing=checkpointing)
    network.build(16, 8, 16)
    visible = torch.arange(8).expand(4, 8)
    return network, (torch.randint(8, (4, 16)), torch.arange(16).expand(4, 16) >= 8, torch.randn(4, 16), visible)


def vit(checkpointing):
    return VisionTransformer(16, 4, 3, 16, 4, 2, checkpointing=checkpointing), (torch.randn(4, 3, 16, 16),)


def autoencoder(kind):
    def make(checkpointing):
        network = kind(3, 8, (1, 2), 2, codes=8, dim=4, groups=4, checkpointing=checkpointing)
        return network.encoder, (torch.rand(4, 3, 16, 16),)

    return make


NETWORKS = {
    "DiT": denoiser(DiT, (3, 8, 8), patch=2, width=16, depth=4, heads=2),
    "ResidualMLP": denoiser(ResidualMLP, (12,), width=16, depth=4, dropout=0.3),
    "ModulatedMLP": denoiser(ModulatedMLP, (12,), width=16, depth=4, time_dim=16, dropout=0.3),
    "MAGE": mage,
    "ViT": vit,
    "MaskGITVQGAN": autoencoder(MaskGITVQGAN),
    "VQGAN": autoencoder(VQGAN),
}


def gradients_and_activations(make, checkpointing):
    """Gradients of all parameters, and the number of values stored for the backward pass."""
    torch.manual_seed(0)
    network, inputs = make(checkpointing)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    sizes = []

    def record(tensor):
        sizes.append(tensor.numel())
        return tensor

    torch.manual_seed(1)
    with saved_tensors_hooks(record, lambda tensor: tensor):
        loss = network(*inputs).square().sum()
    weights = sum(parameter.numel() for parameter in network.parameters())
    loss.backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return gradients, max(sum(sizes) - weights, 0)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_the_same_and_fewer_activations_are_stored(name):
    expected, usual_size = gradients_and_activations(NETWORKS[name], checkpointing=False)
    gradients, size = gradients_and_activations(NETWORKS[name], checkpointing=True)
    assert gradients.keys() == expected.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(gradients[parameter], gradient, msg=parameter)
    assert size < 0.6 * usual_size


def test_nothing_is_recomputed_without_a_gradient():
    calls = []
    block = torch.nn.Linear(3, 3)
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    x = torch.randn(2, 3, requires_grad=True)
    with torch.no_grad():
        run_block(block, x, checkpointing=True)
    run_block(block, x, checkpointing=False).sum().backward()
    assert len(calls) == 2
    run_block(block, x, checkpointing=True).sum().backward()
    assert len(calls) == 4
