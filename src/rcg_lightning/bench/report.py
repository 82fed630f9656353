"""Measured costs as a table and as plain data, beside the official code's and those of another run."""

import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from rcg_lightning.bench.measure import Cost
from rcg_lightning.bench.workload import OFFICIAL_RATE, Workload

LIBRARIES = ("torch", "torchvision", "lightning", "timm")


@dataclass(frozen=True)
class Row:
    """A workload, what it cost, and the machine's matrix rate right before and after (operations a second)."""

    workload: Workload
    cost: Cost
    rate: float
    gpu: bool

    @property
    def seconds(self) -> float:
        """Seconds an item: of the device on a GPU, of the process on a CPU."""
        return self.cost.wall if self.gpu else self.cost.cpu

    @property
    def share(self) -> float:
        """Part of the matrix rate that is reached; above 1 where attention or convolutions beat matrix products."""
        return self.cost.flops / self.seconds / self.rate

    def ratios(self) -> dict[str, float]:
        """How many times as fast as the official code, whose times are scaled to this machine's matrix rate."""
        if self.gpu:
            return {}
        scale = OFFICIAL_RATE / self.rate
        return {name: scale * base.seconds / self.seconds for name, base in self.workload.baselines.items()}

    def plain(self) -> dict[str, Any]:
        """Return plain data."""
        bases = self.workload.baselines
        against = {
            name: {"times as fast": ratio, "goal": bases[name].goal, "official also": bases[name].work}
            for name, ratio in self.ratios().items()
        }
        speed = {"items_per_second": 1 / self.seconds, "matrix_rate": self.rate, "share_of_matrix_rate": self.share}
        return {"unit": self.workload.unit, **self.cost.plain(), **speed, "official": against}


def machine(device: torch.device) -> dict[str, Any]:
    """Say in plain data where and with what the figures were made."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    libraries = {library: version(library) for library in LIBRARIES}
    threads = torch.get_num_threads()
    return {"device": name, "threads": threads, "python": platform.python_version(), **libraries}


def table(rows: list[Row], other: dict[str, Any] | None = None) -> str:
    """Return a table in Markdown; with ``other``, the content of another run's file, how much faster each row is."""
    head = ["workload", "items/s", "CPU s", "GFLOP", "of the rate", "syncs", "peak", "saved", "official"]
    lines = [head + (["than before"] if other else [])]
    for row in rows:
        cost = row.cost
        cells = [
            row.workload.name,
            f"{1 / row.seconds:.3g}",
            f"{cost.cpu:.3g}",
            f"{cost.flops / 1e9:.3g}",
            f"{row.share:.0%}",
            str(cost.syncs),
            size(cost.peak),
            size(round(cost.saved)) if cost.saved else "",
            "; ".join(f"{ratio:.2f}x {name}" for name, ratio in row.ratios().items()),
        ]
        lines.append(cells + ([against(row, other)] if other else []))
    rule = ["---"] * len(lines[0])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [lines[0], rule, *lines[1:]])


def against(row: Row, other: dict[str, Any]) -> str:
    """Say how many times as fast a row is as in another run's file, at equal matrix rate."""
    before = other["workloads"].get(row.workload.name)
    if before is None:
        return "not measured"
    return f"{before['matrix_rate'] / row.rate / before['items_per_second'] / row.seconds:.2f}x"


def size(count: int | None) -> str:
    """Bytes in words."""
    if count is None:
        return ""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"
