"""Products by oneDNN agree with torch's own."""

import pytest
import torch
import torch.nn.functional as F

from rcg_lightning.bench.host_syncs import HostSyncs
from rcg_lightning.core import products
from rcg_lightning.core.products import LARGE, onednn_products, possible

pytestmark = pytest.mark.skipif(not possible(), reason="this torch has no oneDNN")


@pytest.fixture
def by_onednn(monkeypatch):
    """Counts the products that are oneDNN's."""
    found, chosen = [], products._large
    monkeypatch.setattr(products, "_large", lambda a, b: (found.append(1) if chosen(a, b) else None) or chosen(a, b))
    return found


def layer_and_gradients(x, weight, bias):
    inputs = [value.detach().requires_grad_() for value in (x, weight, bias)]
    made = F.linear(*inputs)
    return [made, *torch.autograd.grad(made.square().sum(), inputs)]


@pytest.mark.parametrize("rows", [1, 300], ids=["small", "large"])
def test_a_linear_map_and_its_gradients_agree(rows, by_onednn):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, rows, 96), torch.randn(160, 96), torch.randn(160)
    usual = layer_and_gradients(x, weight, bias)
    with onednn_products(True):
        ours = layer_and_gradients(x, weight, bias)
    assert len(by_onednn) == (3 if 2 * rows * 96 * 160 >= LARGE else 0)
    for mine, other in zip(ours, usual):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


def test_any_layout_agrees():
    torch.manual_seed(0)
    for a, b in (
        (torch.randn(512, 400)[::2, ::2], torch.randn(150, 200).t()),
        (torch.randn(200, 256).t(), torch.randn(200, 150)),
        (torch.randn(256, 200).double(), torch.randn(200, 150).double()),
        (torch.randn(0, 200), torch.randn(200, 150)),
    ):
        usual = a @ b
        with onednn_products(True):
            torch.testing.assert_close(a @ b, usual, rtol=1e-5, atol=1e-4)


def test_scaled_sums_agree():
    torch.manual_seed(0)
    c, a, b = torch.randn(300, 200), torch.randn(300, 100), torch.randn(100, 200)
    with onednn_products(True):
        ours = torch.addmm(c, a, b, beta=0.5, alpha=-2)
    torch.testing.assert_close(ours, 0.5 * c - 2 * (a @ b), rtol=1e-5, atol=1e-4)


def test_afterwards_everything_is_as_before(by_onednn):
    a = torch.randn(256, 256)
    with onednn_products(True):
        with onednn_products(True):
            a @ a
        a @ a
    a @ a
    with onednn_products(False):
        a @ a
    assert len(by_onednn) == 2


def test_mistakes_are_said_as_before():
    with onednn_products(True):
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            torch.ones(2, 3) @ torch.ones(4, 5)
        with pytest.raises(RuntimeError, match="matrix"):
            torch.mm(torch.ones(2, 3), torch.ones(3))


def test_what_counts_operations_sees_a_product_once():
    a = torch.randn(256, 256)
    with onednn_products(True), HostSyncs() as counter:
        a @ a
    assert counter.calls["mm"] == 1
