"""In sampling all examples have the same timestep, which can be given once instead of once for each example."""

import pytest
import torch

from rcg_lightning.networks.dit import DiT
from rcg_lightning.networks.rdm_mlp import ModulatedMLP, ResidualMLP
from rcg_lightning.networks.unet import CrossAttentionUNet, UNet

UNET = {"width": 32, "multipliers": [1, 2], "depth": 1, "attention": [1, 2], "head_width": 16, "groups": 8}
NETWORKS = {
    "official": (lambda: ResidualMLP(32, 2), (6,), 8),
    "modulated": (lambda: ModulatedMLP(32, 2), (6,), 32),
    "dit": (lambda: DiT(2, 32, 2, 4), (1, 8, 8), 32),
    "unet": (lambda: UNet(**UNET), (1, 8, 8), 128),
    "cross": (lambda: CrossAttentionUNet(**UNET), (1, 8, 8), 12),
}


@pytest.mark.parametrize("conditional", [False, True], ids=["unconditional", "conditional"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_one_timestep_for_all_examples(kind, conditional):
    make, shape, width = NETWORKS[kind]
    torch.manual_seed(0)
    network = make()
    network.build(shape, width if conditional else 0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, c = torch.randn(3, *shape), torch.randn(3, width if conditional else 0)
    with torch.no_grad():
        repeated, single = (network.eval()(x, torch.full((n,), 7), c) for n in (3, 1))
    torch.testing.assert_close(single, repeated, rtol=1e-5, atol=1e-5 * float(repeated.abs().max()))
