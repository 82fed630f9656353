import pytest
import torch

from rcg_lightning.errors import UserError
from rcg_lightning.networks.rdm_mlp import ModulatedMLP, ResidualMLP

KINDS = [ResidualMLP, ModulatedMLP]


def build(kind, shape=(5,), condition=0, out_factor=1, **settings):
    torch.manual_seed(0)
    network = kind(**{"width": 16, "depth": 2, "time_dim": 12, **settings})
    network.build(shape, condition, out_factor)
    return network


def randomised(network):
    """Make all weights nonzero."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("condition", [0, 12])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 3)])
@pytest.mark.parametrize("out_factor", [1, 2])
def test_shapes_and_zero_output_at_the_start(kind, condition, shape, out_factor):
    network = build(kind, shape, condition, out_factor)
    out = network(torch.randn(4, *shape), torch.randint(1000, (4,)), torch.randn(4, condition))
    assert out.shape == (4, shape[0] * out_factor, *shape[1:])
    assert float(out.detach().abs().max()) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_depends_on_timestep_condition_and_input_of_each_example(kind):
    network = randomised(build(kind, condition=12)).eval()
    x, t, c = torch.randn(4, 5), torch.tensor([0, 3, 500, 999]), torch.randn(4, 12)
    with torch.no_grad():
        out = network(x, t, c)
        for changed in ((x.flip(0), t, c), (x, t.flip(0), c), (x, t, c.flip(0))):
            assert float((network(*changed) - out).abs().amax(1).min()) > 1e-3
        torch.testing.assert_close(network(x[2:3], t[2:3], c[2:3]), out[2:3])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("condition", [0, 12])
def test_every_parameter_gets_a_gradient(kind, condition):
    network = randomised(build(kind, condition=condition))
    network(torch.randn(4, 5), torch.randint(1000, (4,)), torch.randn(4, condition)).square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or float(p.grad.abs().max()) == 0]


def test_residual_mlp_has_the_official_sizes():
    network = ResidualMLP()
    assert (network.width, network.depth, network.bottleneck, network.time_dim) == (1536, 12, 1536, 1536)
    block = build(ResidualMLP, condition=7, bottleneck=10).blocks[0]
    assert block.in_linear.weight.shape == (10, 16)
    assert block.condition.weight.shape == (10, 7)
    assert block.in_norm.eps == 1e-5
    assert build(ResidualMLP).out_norm.eps == 1e-6
    assert build(ResidualMLP).blocks[0].condition is None


def test_dropout_acts_in_training_only():
    network = randomised(build(ResidualMLP, dropout=0.5))
    x, t, c = torch.randn(4, 5), torch.zeros(4, dtype=torch.long), torch.zeros(4, 0)
    assert not torch.equal(network.train()(x, t, c), network(x, t, c))
    assert torch.equal(network.eval()(x, t, c), network(x, t, c))


def test_modulated_mlp_rejects_a_condition_of_another_width():
    with pytest.raises(UserError, match="must be 12"):
        build(ModulatedMLP, condition=7)
