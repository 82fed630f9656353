"""Counts of known work: FLOPs, synchronisations, saved bytes."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from helpers.matmuls import Matmuls
from rcg_lightning.bench.host_syncs import HostSyncs
from rcg_lightning.bench.measure import SavedBytes, measure, measure_in_turns

CPU = torch.device("cpu")


def test_flops_of_matmuls_are_counted():
    variants = Matmuls().prepare(CPU)
    cost = measure(variants.fast, variants.items, 2, CPU)
    assert cost.flops == 2 * 2 * 8**3
    assert cost.cpu > 0
    assert cost.syncs == 0
    assert cost.saved == 0


def test_host_synchronisations_are_counted():
    x = torch.arange(4.0)
    with HostSyncs() as syncs:
        x.sum().item()
        x[x > 1]
        x.nonzero()
        x[torch.tensor([0, 1])]  # an index of fixed size needs no synchronisation
    assert syncs.found.total() == 3


def test_blocking_copies_between_devices_count():
    with FakeTensorMode(), HostSyncs() as syncs:  # a mock GPU that only tracks shapes
        here = torch.ones(3)
        there = here.to("cuda", non_blocking=True)
        there.copy_(here, non_blocking=True)
        there.half()
        assert not syncs.found
        here.to("cuda")
        there.copy_(here)
        there.cpu()
    assert syncs.found == {"_to_copy": 2, "copy_": 1}


def test_saved_bytes_are_activations_without_weights():
    layer, x = torch.nn.Linear(8, 8), torch.ones(16, 8)
    saved = SavedBytes()
    with saved.hooks():
        layer(layer(x).tanh()).sum()
    assert saved.bytes == 2 * x.nbytes  # the input, and tanh's output, which tanh and the second layer share


def test_variants_are_measured_in_turns():
    order = []
    measure_in_turns([(lambda: order.append("a"), 1), (lambda: order.append("b"), 1)], 2, CPU)
    assert "".join(order[-4:]) == "abab"
