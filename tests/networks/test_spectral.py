import copy

import pytest
import torch
from torch.nn import functional as F

from rcg_lightning.bench.host_syncs import HostSyncs
from rcg_lightning.networks.conditioner import Conditioner
from rcg_lightning.networks.spectral import SpectralConv, SpectralLinear, SpectralMaps, SpectralTable
from rcg_lightning.types import Classes, Vector

LAYERS = {
    "linear": (lambda: SpectralLinear(5, 7), torch.randn(3, 5)),
    "conv": (lambda: SpectralConv(2, 6), torch.randn(3, 2, 4, 4)),
    "table": (lambda: SpectralTable(8, 5), torch.tensor([0, 3, 7])),
}


def make(kind):
    torch.manual_seed(3)
    layer, x = LAYERS[kind]
    layer = layer()
    with torch.no_grad():
        layer.weight.copy_(torch.randn_like(layer.weight) * 3)
    return layer, x


@pytest.mark.parametrize("kind", LAYERS)
def test_training_passes_find_the_largest_singular_value(kind):
    layer, x = make(kind)
    first = layer.normalised().detach()
    for _ in range(60):
        layer(x)
    largest = torch.linalg.svdvals(layer.weight.flatten(1))[0]
    torch.testing.assert_close(layer.sigma[0], largest, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.normalised(), layer.weight / largest, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(first, layer.weight / largest, rtol=1e-3)
    assert layer.u.shape == (1, len(layer.weight))  # a table's rows count as outputs


@pytest.mark.parametrize("kind", LAYERS)
def test_evaluation_takes_one_step_and_does_not_store_it(kind):
    layer, x = make(kind)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.eval()
    once, twice = layer(x), layer(x)
    torch.testing.assert_close(once, twice, rtol=0, atol=0)
    for name, tensor in layer.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    torch.testing.assert_close(layer.train()(x), once, rtol=0, atol=0)  # the same step, which is now stored
    assert not torch.equal(layer.u, before["u"])
    assert not torch.equal(layer(x), once)


def test_the_gradient_flows_through_sigma_but_not_through_its_vectors():
    layer, x = make("linear")
    weight = layer.weight.detach().clone().requires_grad_()
    v = F.normalize(layer.u @ weight, dim=1).detach()
    u = F.normalize(v @ weight.T, dim=1).detach()
    (F.linear(x, weight / (u @ weight @ v.T), layer.bias) ** 2).sum().backward()
    (layer(x) ** 2).sum().backward()
    torch.testing.assert_close(layer.weight.grad, weight.grad)
    assert not layer.u.requires_grad


def test_several_passes_before_a_backward_pass_are_allowed():
    layer, x = make("linear")
    outputs = layer(x), layer(2 * x)
    sum(output.sum() for output in outputs).backward()
    assert layer.weight.grad.isfinite().all()


def test_the_normalised_weight_is_float32_under_autocast():
    layer, x = make("conv")
    expected = layer.eval()(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.normalised().dtype == torch.float32
        torch.testing.assert_close(layer(x).float(), expected, rtol=0.05, atol=0.05)


def test_a_weight_that_is_channels_last_is_not_copied():
    layer, x = make("conv")
    other = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    outputs = layer(x), other(x)
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, other.weight.grad)
    torch.testing.assert_close(layer.u, other.u)
    with HostSyncs() as operators, torch.no_grad():
        other.normalised()
    assert "clone" not in operators.calls


@pytest.mark.parametrize("tables", [False, True])
def test_embedding_layers_of_a_condition(tables):
    conditioner = Conditioner(dim=[4, 6], drop=0.5, maps=SpectralMaps(tables))
    assert conditioner.build((Classes(5), Vector(3)), 0) == 10
    raw = (torch.tensor([0, 4]), torch.randn(2, 3))
    assert conditioner.eval()(raw, 2).shape == (2, 10)
    assert type(conditioner.parts[0].table) is (SpectralTable if tables else torch.nn.Embedding)
    torch.testing.assert_close(conditioner.parts[0].table.weight.T @ conditioner.parts[0].table.weight, torch.eye(4))
    null = conditioner.null(2)
    table = conditioner.parts[0].table
    torch.testing.assert_close(null[:, :4], table(torch.tensor([5, 5])))
    conditioner.train()(raw, 2).sum().backward()
    assert all(p.grad is not None for p in conditioner.parameters())
