"""Time one workload in its own process: memory used by earlier workloads would slow it and hide its peak."""

import ctypes
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from rcg_lightning.bench.measure import limit, measure_in_turns
from rcg_lightning.bench.report import Row
from rcg_lightning.bench.workload import Workload


@dataclass(frozen=True)
class Timing:
    """How workloads are timed.

    Attributes:
        device: to run on.
        times: number of runs, of which the median counts.
        threads: of a CPU.
        baseline: whether to time the baseline as well.
        traces: folder for a trace of one run of each workload; None for none.
    """

    device: torch.device
    times: int = 5
    threads: int = 1
    baseline: bool = False
    traces: Path | None = None

    def in_new_process(self, workload: Workload) -> Row:
        """Time a workload in a new process."""
        with ProcessPoolExecutor(1, get_context("spawn"), initializer=keep_freed_memory) as process:
            return process.submit(self.in_this_process, workload).result()

    def in_this_process(self, workload: Workload) -> Row:
        """Time a workload in this process."""
        torch.set_num_threads(self.threads)
        torch.manual_seed(0)
        variants = workload.prepare(self.device).several(self.baseline)
        before = limit(self.device)  # and after, since the load of other programs changes
        costs = dict(zip(variants, measure_in_turns(list(variants.values()), self.times, self.device)))
        rate, best = ((one + other) / 2 for one, other in zip(before, limit(self.device)))
        if self.traces is not None:
            name = workload.name.replace(", ", "_").replace(" ", "_").replace("/", "-")
            _trace(variants["fast"][0], self.traces / f"{name}.json", self.device)
        return Row(workload, costs.pop("fast"), rate, self.device.type != "cpu", costs, best)


def keep_freed_memory() -> None:
    """Let glibc keep the memory that this process frees, for all variants alike.

    Otherwise it returns large tensors to the system and the next step faults their pages in again, or not, whatever ran
    before: the temporaries of an optimizer that is not fused took up to three times as long for it.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(mmap_threshold, 2**30)
        mallopt(trim_threshold, 2**31 - 1)


def _trace(work: Callable[[], object], path: Path, device: torch.device) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as trace:
        work()
    trace.export_chrome_trace(str(path))
