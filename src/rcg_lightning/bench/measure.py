"""What pieces of work cost: time, counted FLOPs, memory and host synchronisations."""

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rcg_lightning.bench.host_syncs import HostSyncs
from rcg_lightning.callbacks.onednn import onednn_matmul

LONG, FEW = 10.0, 3  # seconds of a run, and how often one is run that takes longer


@dataclass(frozen=True)
class Cost:
    """Medians of several runs, for one item.

    Attributes:
        cpu: CPU seconds of the process.
        wall: seconds on the clock, with the device's work finished.
        flops: counted floating-point operations of matmuls, convolutions and attention.
        syncs: host synchronisations in one run, not for each item.
        peak: most bytes in use during the runs, weights included: of the device, or of the process on a CPU; None where
            the system does not tell.
        saved: bytes that the forward pass stores for the backward pass, without weights, but with autocast's copies of
            them on GPUs; 0 without a backward pass.
    """

    cpu: float
    wall: float
    flops: float
    syncs: int
    peak: int | None
    saved: float

    def plain(self) -> dict[str, Any]:
        """Return plain data."""
        return dict(vars(self))


def measure(work: Callable[[], object], items: float, times: int, device: torch.device) -> Cost:
    """Run ``work``, which deals with ``items`` items, once to warm up and count, then ``times`` times on the clock."""
    return measure_in_turns([(work, items)], times, device)[0]


def measure_in_turns(
    variants: Sequence[tuple[Callable[[], object], float]], times: int, device: torch.device
) -> list[Cost]:
    """Measure several pieces of work, each with its number of items, in turns: what else runs falls on all alike.

    What takes longer than ``LONG`` is run ``FEW`` times at most.
    """
    counts = [_counted(work, device) for work, _ in variants]
    runs: list[list[tuple[float, float]]] = [[] for _ in variants]
    for turn in range(times):
        for (work, _), spent in zip(variants, runs):
            if turn < FEW or spent[0][1] < LONG:
                spent.append(_clocked(work, device))
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
    """What one run of some work counted, and the most bytes in use in a second one, or in the first if it is long."""

    flops: int
    syncs: int
    saved: int
    peak: int | None


def _counted(work: Callable[[], object], device: torch.device) -> _Count:
    saved, started = SavedBytes(), time.perf_counter()
    reset_peak(device)
    with FlopCounterMode(display=False) as counter, HostSyncs() as syncs, saved.hooks():
        work()
    wait(device)
    if time.perf_counter() - started < LONG:  # by now all is there that stays, such as an optimizer's EMA weights
        reset_peak(device)
        work()
        wait(device)
    return _Count(counter.get_total_flops(), syncs.found.total(), saved.bytes, peak(device))


def _clocked(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Return the CPU seconds and the seconds on the clock of one run."""
    wait(device)
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    wait(device)
    return time.process_time() - cpu, time.perf_counter() - wall


class SavedBytes:
    """Sums the storages that autograd stores for the backward pass, each once, and no weights."""

    def __init__(self) -> None:
        self.bytes = 0
        self._seen: set[int] = set()

    def hooks(self) -> Any:
        """Return the context in which the forward pass is to run."""
        return torch.autograd.graph.saved_tensors_hooks(self._count, lambda tensor: tensor)

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        weight = isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)
        if not weight and storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


def matrix_rate(device: torch.device, size: int = 1536, times: int = 7) -> float:
    """Return the floating-point operations a second of square matmuls in the device's training precision."""
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
    """Return the matrix rate as torch has it, and that of the faster library where the trainer chooses another."""
    usual = matrix_rate(device)
    with onednn_matmul():
        return usual, max(usual, matrix_rate(device) if device.type == "cpu" else 0.0)


def wait(device: torch.device) -> None:
    """Let the device finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def reset_peak(device: torch.device) -> None:
    """Forget the most memory used so far, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int | None:
    """Return the most bytes in use since ``reset_peak``, or since the process began where that cannot be reset."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss or None
