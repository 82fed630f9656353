"""Measure the cost of work: time, counted FLOPs, memory and host synchronisations."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rcg_lightning.bench.host_syncs import HostSyncs
from rcg_lightning.callbacks.onednn import onednn_matmul

LONG, FEW = 10.0, 3  # a run of more than LONG seconds is repeated FEW times
BURST, WARM_UP = 0.2, 5  # on an NVIDIA GPU: seconds of repeated work in a run, and calls before the first


@dataclass(frozen=True)
class Cost:
    """Medians of several runs, per item.

    Attributes:
        cpu: CPU seconds of the process.
        wall: seconds on the clock, until the device has finished.
        flops: counted floating-point operations of matmuls, convolutions and attention.
        syncs: host synchronisations of one run, not per item.
        peak: maximum bytes in use during the runs, weights included: of the device, or of the process on a CPU; None
            where the system does not report it.
        saved: bytes that the forward pass stores for the backward pass, without weights, but with autocast's copies of
            them on GPUs; 0 without a backward pass.
    """

    cpu: float
    wall: float
    flops: float
    syncs: int
    peak: int | None
    saved: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return dict(vars(self))


def measure(work: Callable[[], object], items: float, times: int, device: torch.device) -> Cost:
    """Run ``work`` on ``items`` items: once to warm up and count, then ``times`` times on the clock."""
    return measure_in_turns([(work, items)], times, device)[0]


def measure_in_turns(
    variants: Sequence[tuple[Callable[[], object], float]], times: int, device: torch.device
) -> list[Cost]:
    """Measure several variants, each with its number of items, in turns, so other programs affect all equally.

    A variant that takes more than ``LONG`` seconds runs at most ``FEW`` times. On NVIDIA GPUs a run is a burst of calls
    between two events: the host is ahead of the device, as in training.
    """
    counts = [_counted(work, device) for work, _ in variants]
    bursts = [_burst(work, device) for work, _ in variants]
    runs: list[list[tuple[float, float]]] = [[] for _ in variants]
    for turn in range(times):
        for (work, _), burst, spent in zip(variants, bursts, runs):
            if turn < FEW or spent[0][1] < LONG:
                spent.append(_clocked(work, device, burst))
    return [
        Cost(
            cpu=statistics.median(cpu for cpu, _ in spent) / items,
            wall=statistics.median(wall for _, wall in spent) / items,
            flops=count.flops / items,
            syncs=count.syncs,
            peak=count.peak,
            saved=count.saved / items,
        )
        for (_, items), spent, count in zip(variants, runs, counts)
    ]


@dataclass(frozen=True)
class _Count:
    """Counts of one run, and the peak memory of a second one, or of the first if it is long."""

    flops: int
    syncs: int
    saved: int
    peak: int | None


def _counted(work: Callable[[], object], device: torch.device) -> _Count:
    saved, started = SavedBytes(), time.perf_counter()
    reset_peak(device)
    with uncompiled(), FlopCounterMode(display=False) as counter, HostSyncs() as syncs, saved.hooks():
        work()
    wait(device)
    if time.perf_counter() - started < LONG:  # all persistent memory is allocated now, such as EMA weights
        for _ in range(WARM_UP if device.type == "cuda" else 0):
            work()  # compiles networks and records graphs, whose memory is not the work's
        reset_peak(device)
        work()
        wait(device)
    return _Count(counter.get_total_flops(), syncs.found.total(), saved.bytes, peak(device))


@contextmanager
def uncompiled() -> Iterator[None]:
    """Context in which compiled networks run uncompiled: inside a compiled one no operator can be counted."""
    if "torch._dynamo" not in sys.modules:  # importing it takes seconds, and nothing is compiled without it
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _burst(work: Callable[[], object], device: torch.device) -> int:
    """Return how many calls of the work a run takes: on NVIDIA GPUs those of ``BURST`` seconds, else one."""
    return max(1, round(BURST / _clocked(work, device)[1])) if device.type == "cuda" else 1


def _clocked(work: Callable[[], object], device: torch.device, calls: int = 1) -> tuple[float, float]:
    """Time ``calls`` of the work; return CPU seconds of the process and seconds until the device is done, per call."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        wait(device)
        cpu = time.process_time()
        start.record()
        for _ in range(calls):
            work()
        end.record()
        cpu = time.process_time() - cpu
        wait(device)
        return cpu / calls, start.elapsed_time(end) / 1000 / calls
    wait(device)
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    wait(device)
    return time.process_time() - cpu, time.perf_counter() - wall


class SavedBytes:
    """Sums the sizes of the storages that autograd saves for the backward pass, each once, without weights."""

    def __init__(self) -> None:
        self.bytes = 0
        self._seen: set[int] = set()

    def hooks(self) -> Any:
        """Return the context in which the forward pass must run."""
        return torch.autograd.graph.saved_tensors_hooks(self._count, lambda tensor: tensor)

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        weight = isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)
        if not weight and storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


def matrix_rate(device: torch.device, size: int = 1536, times: int = 7) -> float:
    """Measure the floating-point operations per second of square matmuls in the device's training precision."""
    fast = device.type == "cuda"
    size = 8192 if fast else size
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if fast else torch.float32)
    torch.mm(a, a)
    spent = []
    for _ in range(times):
        wait(device)
        start = clock()
        torch.mm(a, a)
        wait(device)
        spent.append(clock() - start)
    return 2 * size**3 / statistics.median(spent)


def limit(device: torch.device) -> tuple[float, float]:
    """Measure the matrix rate of torch's default library, and of the fastest library that the trainer may choose."""
    default = matrix_rate(device)
    with onednn_matmul():
        return default, max(default, matrix_rate(device) if device.type == "cpu" else 0.0)


def wait(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def reset_peak(device: torch.device) -> None:
    """Reset the peak of memory use, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int | None:
    """Return the peak bytes in use since ``reset_peak``, or since the start of the process if it cannot be reset."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss or None
