"""Measured costs as tables and plain data, compared with the baseline, the official code and another run."""

import json
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rcg_lightning.bench.measure import Cost
from rcg_lightning.bench.workload import OFFICIAL_RATE, OfficialCost, Workload
from rcg_lightning.errors import UserError
from rcg_lightning.types import require

LIBRARIES = ("torch", "torchvision", "lightning", "timm")


@dataclass(frozen=True)
class Row:
    """A workload with its cost and the machine's matrix rate around it (operations per second).

    Attributes:
        rate: of torch's default matmuls, by which the official code's times are scaled.
        variants: costs of the other variants, by their names in ``Variants``; empty where not measured.
        best: rate of the fastest library; 0 stands for ``rate``.
    """

    workload: Workload
    cost: Cost
    rate: float
    gpu: bool
    variants: dict[str, Cost] = field(default_factory=dict)
    best: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds per item: of the device on a GPU, of the process on a CPU."""
        return self.of(self.cost)

    def of(self, cost: Cost) -> float:
        """Return the seconds per item of a cost."""
        return cost.wall if self.gpu else cost.cpu

    @property
    def share(self) -> float:
        """Fraction of the best matrix rate that is reached."""
        return self.cost.flops / self.seconds / (self.best or self.rate)

    def ratios(self) -> dict[str, float]:
        """Return the speedups over the official code, whose times are scaled to this machine's matrix rate."""
        if self.gpu:
            return {}
        scale = OFFICIAL_RATE / self.rate
        return {name: scale * base.seconds / self.seconds for name, base in self.workload.official.items()}

    def times_as_fast(self, variant: str) -> float | None:
        """Return the speedup over another variant of this run."""
        return self.of(self.variants[variant]) / self.seconds if variant in self.variants else None

    @property
    def fewer_bytes(self) -> float | None:
        """Ratio of the bytes stored for the backward pass: baseline, by the official mathematics, over this code."""
        other = self.variants.get("recomputing", self.variants.get("baseline"))
        return other.saved / self.cost.saved if other and self.cost.saved else None

    @property
    def epochs(self) -> float | None:
        """Epochs after which a store of one view has cost less than the baseline without a store; None: never."""
        if "caching" not in self.variants:
            return None
        saved = self.of(self.variants["recomputing"]) - self.seconds
        return self.of(self.variants["caching"]) / saved if saved > 0 else None

    def goals(self, variant: str) -> list[float]:
        """Return the speedups over a variant that this project aims for."""
        recomputing = variant == "recomputing"
        return [base.goal for base in self.workload.official.values() if bool(base.work) == recomputing]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON entry of this row."""
        against = {
            name: _against_official(self.workload.official[name], ratio) for name, ratio in self.ratios().items()
        }
        speed = {"items_per_second": 1 / self.seconds, "matrix_rate": self.rate, "share_of_matrix_rate": self.share}
        speed["best_matrix_rate"] = self.best or self.rate
        return {
            "unit": self.workload.unit,
            **self.cost.to_dict(),
            **speed,
            "official": against,
            **self._baseline_variants(),
        }

    def _baseline_variants(self) -> dict[str, Any]:
        ratios = {name: self.times_as_fast(name) for name in ("baseline", "recomputing") if name in self.variants}
        found = {
            "variants": {name: cost.to_dict() for name, cost in self.variants.items()},
            "times_as_fast": {name: {"times": ratio, "goals": self.goals(name)} for name, ratio in ratios.items()},
            "fewer_bytes": self.fewer_bytes,
            "epochs_until_the_cache_pays": self.epochs,
        }
        return found if self.variants else {}


def _against_official(base: OfficialCost, ratio: float) -> dict[str, Any]:
    return {"times as fast": ratio, "goal": base.goal, "official also": base.work}


def machine(device: torch.device) -> dict[str, Any]:
    """Describe device and libraries as plain data."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    libraries = {library: version(library) for library in LIBRARIES}
    threads = torch.get_num_threads()
    return {"device": name, "threads": threads, "python": platform.python_version(), **libraries}


def read_bench(path: Path) -> dict[str, Any]:
    """Read the file of an earlier run, or raise UserError."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as the result of a bench: {error}") from error
    known = isinstance(content, dict) and {"machine", "workloads"} <= content.keys()
    require(known, f"{path} is not a file that `rcg bench --out` wrote")
    return content


def table(rows: list[Row], other: dict[str, Any] | None = None) -> str:
    """Return a Markdown table; ``other``, the content of another run's file, adds each row's speedup over it."""
    head = ["workload", "items/s", "s an item", "CPU s", "GFLOP", "of the rate", "syncs", "peak", "saved"]
    lines = [head + (["than before"] if other else [])]
    for row in rows:
        cost = row.cost
        cells = [
            row.workload.name,
            f"{1 / row.seconds:.3g}",
            f"{row.seconds:.3g}",
            f"{cost.cpu:.3g}",
            f"{cost.flops / 1e9:.3g}",
            f"{row.share:.0%}",
            str(cost.syncs),
            size(cost.peak),
            size(round(cost.saved)) if cost.saved else "",
        ]
        lines.append(cells + ([against(row, other)] if other else []))
    return markdown(lines)


def comparison(rows: list[Row]) -> str:
    """Return a Markdown table of each workload's speedups over the baseline and the official code."""
    head = ["workload", "than the baseline", "than the baseline without a store", "store, s an item", "pays after"]
    lines = [[*head, "bytes saved, baseline over here", "than the official code, scaled"]]
    for row in rows:
        epochs, caching = row.epochs, row.variants.get("caching")
        cells = [
            row.workload.name,
            compared(row.times_as_fast("baseline"), row.goals("baseline")),
            compared(row.times_as_fast("recomputing"), row.goals("recomputing")),
            f"{row.of(caching):.3g}" if caching else "",
            f"{epochs:.2f} epochs" if epochs is not None else "",
            compared(row.fewer_bytes, [row.workload.memory_goal] if row.workload.memory_goal else []),
            "; ".join(f"{ratio:.2f}x {name}" for name, ratio in row.ratios().items()),
        ]
        if any(cells[1:]):
            lines.append(cells)
    return markdown(lines)


def compared(ratio: float | None, goals: list[float]) -> str:
    """Format a ratio and whether it reaches its goals."""
    if ratio is None:
        return ""
    met = [f"goal {goal:g} {'met' if ratio >= goal else 'not met'}" for goal in goals]
    return f"{ratio:.2f}x" + (f" ({', '.join(met)})" if met else "")


def markdown(lines: list[list[str]]) -> str:
    """Return a Markdown table of cells; the first line is its head."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [lines[0], ["---"] * len(lines[0]), *lines[1:]])


def against(row: Row, other: dict[str, Any]) -> str:
    """Format the speedup of a row over another run's file, at equal matrix rate."""
    before = other["workloads"].get(row.workload.name)
    if before is None:
        return "not measured"
    return f"{before['matrix_rate'] / row.rate / before['items_per_second'] / row.seconds:.2f}x"


def size(count: int | None) -> str:
    """Format a number of bytes."""
    if count is None:
        return ""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"
