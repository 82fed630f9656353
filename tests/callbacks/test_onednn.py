"""Matmuls by oneDNN agree with torch's own."""

import pytest
import torch
import torch.nn.functional as F

from rcg_lightning.bench.host_syncs import HostSyncs
from rcg_lightning.callbacks import onednn
from rcg_lightning.callbacks.onednn import LARGE, OneDNNMatmul, is_available, onednn_matmul
from rcg_lightning.trainer import Trainer

pytestmark = pytest.mark.skipif(not is_available(), reason="this torch has no oneDNN")


@pytest.fixture
def by_onednn(monkeypatch):
    """One entry for each matmul that oneDNN computes."""
    matmuls, is_large = [], onednn._large

    def recorded(a, b):
        if is_large(a, b):
            matmuls.append((a.shape, b.shape))
        return is_large(a, b)

    monkeypatch.setattr(onednn, "_large", recorded)
    return matmuls


def layer_and_gradients(x, weight, bias):
    inputs = [value.detach().requires_grad_() for value in (x, weight, bias)]
    output = F.linear(*inputs)
    return [output, *torch.autograd.grad(output.square().sum(), inputs)]


@pytest.mark.parametrize("rows", [1, 300], ids=["small", "large"])
def test_a_linear_layer_and_its_gradients_agree(rows, by_onednn):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, rows, 96), torch.randn(160, 96), torch.randn(160)
    expected = layer_and_gradients(x, weight, bias)
    with onednn_matmul(True):
        found = layer_and_gradients(x, weight, bias)
    assert len(by_onednn) == (3 if 2 * rows * 96 * 160 >= LARGE else 0)
    for ours, torchs in zip(found, expected):
        torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-5 * torchs.abs().max().item())


def test_any_memory_layout_agrees():
    torch.manual_seed(0)
    for a, b in (
        (torch.randn(512, 400)[::2, ::2], torch.randn(150, 200).t()),
        (torch.randn(200, 256).t(), torch.randn(200, 150)),
        (torch.randn(256, 200).double(), torch.randn(200, 150).double()),
        (torch.randn(0, 200), torch.randn(200, 150)),
    ):
        expected = a @ b
        with onednn_matmul(True):
            torch.testing.assert_close(a @ b, expected, rtol=1e-5, atol=1e-4)


def test_scaled_addmm_agrees():
    torch.manual_seed(0)
    c, a, b = torch.randn(300, 200), torch.randn(300, 100), torch.randn(100, 200)
    with onednn_matmul(True):
        ours = torch.addmm(c, a, b, beta=0.5, alpha=-2)
    torch.testing.assert_close(ours, 0.5 * c - 2 * (a @ b), rtol=1e-5, atol=1e-4)


def test_torchs_matmul_is_restored_afterwards(by_onednn):
    a = torch.randn(256, 256)
    with onednn_matmul(True):
        with onednn_matmul(True):
            a @ a
        a @ a
    a @ a
    with onednn_matmul(False):
        a @ a
    assert len(by_onednn) == 2


def test_errors_are_torchs():
    with onednn_matmul(True):
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            torch.ones(2, 3) @ torch.ones(4, 5)
        with pytest.raises(RuntimeError, match="matrix"):
            torch.mm(torch.ones(2, 3), torch.ones(3))


def test_a_matmul_is_counted_once():
    a = torch.randn(256, 256)
    with onednn_matmul(True), HostSyncs() as counter:
        a @ a
    assert counter.calls["mm"] == 1


def test_the_callback_acts_from_setup_to_teardown_or_exception():
    callback = OneDNNMatmul(True)
    for end in (callback.teardown, callback.on_exception):
        callback.setup()
        callback.setup()  # after a run that ended without teardown
        assert onednn._depth == 1
        end()
        assert onednn._depth == 0


def test_the_trainer_switches_it_off(tmp_path):
    trainer = Trainer(tmp_path, onednn=False, logger=False, enable_progress_bar=False)
    callback = next(callback for callback in trainer.callbacks if isinstance(callback, OneDNNMatmul))
    callback.setup(trainer, None, "fit")
    assert onednn._depth == 0
