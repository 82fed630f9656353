"""What this machine has: a device, cores, memory, and clocks that other work on it does not distort."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from rcg_lightning.trainer import pick_device

_CGROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # a container's limit


@dataclass(frozen=True)
class Moment:
    """A moment on two clocks, in seconds: of the wall, and of what this process has computed in all threads."""

    wall: float
    computed: float


@dataclass(frozen=True)
class Machine:
    """The device that trains.

    Attributes:
        device: cpu, cuda or mps.
        name: of the device, for people.
        threads: that torch computes with on the CPU.
        memory: free bytes of the device.
    """

    device: str
    name: str
    threads: int
    memory: int

    @property
    def on_cpu(self) -> bool:
        return self.device == "cpu"

    def now(self) -> Moment:
        """Return the present, once the device has done all that it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return Moment(time.perf_counter(), time.process_time())

    def since(self, start: Moment) -> float:
        """Return the seconds since ``start``: on a CPU no more than this process computed, as others may run too."""
        end = self.now()
        wall, computed = end.wall - start.wall, end.computed - start.computed
        return min(wall, computed) if self.on_cpu else wall

    def __str__(self) -> str:
        return f"{self.name}, {self.memory / 1e9:.1f} GB free"


def this_machine(accelerator: str = "auto") -> Machine:
    """Describe the device of an accelerator's name."""
    device, threads = pick_device(accelerator), torch.get_num_threads()
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return Machine("cuda", torch.cuda.get_device_name(), threads, free)
    cores = f"{threads} CPU core{'s' if threads > 1 else ''}"
    return Machine(device.type, cores if device.type == "cpu" else f"{device.type} and {cores}", threads, free_memory())


def free_memory() -> int:
    """Return the bytes that this process may still take: what the system has, or a container's limit leaves."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    lines = _text("/proc/meminfo").splitlines()
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    limits = [int(text) for text in map(_text, _CGROUP) if text.strip().isdigit()]
    return min([found, *available, *limits])


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
