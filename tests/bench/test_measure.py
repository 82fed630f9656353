"""Counts of known work: FLOPs, synchronisations, saved bytes."""

import platform
import resource
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from helpers.matmuls import Matmuls
from rcg_lightning.bench.host_syncs import HostSyncs
from rcg_lightning.bench.measure import SavedBytes, measure, measure_in_turns
from rcg_lightning.bench.timing import keep_freed_memory

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


class MockEvent:
    """A CUDA event by the host's clock."""

    def __init__(self, enable_timing):
        self.at = None

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, other):
        return 1000 * (other.at - self.at)


def test_a_gpu_is_timed_by_bursts_between_events(monkeypatch):
    waits, calls = [], []
    monkeypatch.setattr(torch.cuda, "Event", MockEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waits.append(device))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7)
    gpu = torch.device("cuda")
    cost = measure(lambda: (calls.append(len(waits)), time.sleep(0.02)), 2, 3, gpu)
    assert 0.009 < cost.wall < 0.02  # seconds an item, two in a call
    assert cost.peak == 7
    longest = max(Counter(calls).values())  # calls without a wait between them
    assert 5 <= longest <= 10
    assert len(calls) > 3 * 5


def test_compiled_work_is_counted_uncompiled():
    a = torch.ones(8, 8)
    product = torch.compile(lambda x: x @ x, backend=compiled_to_nothing)
    cost = measure(lambda: product(a), 1, 1, CPU)
    assert cost.flops == 2 * 8**3
    assert product(a).isnan().all()  # compiled again


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator has these settings")
def test_freed_memory_is_kept_by_a_process_that_is_timed():
    with ProcessPoolExecutor(1, get_context("fork"), initializer=keep_freed_memory) as process:
        assert process.submit(faults_of_a_large_temporary).result() < 100


def faults_of_a_large_temporary():
    temporary = bytearray(2**26)
    del temporary
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    _ = bytearray(2**26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def compiled_to_nothing(module, inputs):
    return lambda *args: (torch.full((8, 8), torch.nan),)
