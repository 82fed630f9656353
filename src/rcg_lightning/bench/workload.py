"""Workloads to time, their variants, and the official cost to compare with."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from jsonargparse import ArgumentParser

from rcg_lightning import class_modules  # noqa: F401
from rcg_lightning.bench.execution import Execution
from rcg_lightning.callbacks.onednn import onednn_matmul
from rcg_lightning.config_files import find_config, read_config
from rcg_lightning.stages.base import Stage
from rcg_lightning.types import DataSpec

OFFICIAL_RATE = 68.5e9  # operations per second of matmuls on the core where the official code was timed


@dataclass(frozen=True)
class OfficialCost:
    """Cost of the official code (LTH14/rcg at 0c4433c, timm 0.3.2) on one core of ``OFFICIAL_RATE``.

    Attributes:
        seconds: CPU seconds per item.
        goal: the speedup that this project aims for.
        work: further work included in the official seconds; empty for the same work.
    """

    seconds: float
    goal: float
    work: str = ""


@dataclass(frozen=True)
class Variants:
    """Variants of the same work, each a function that processes a number of items.

    Attributes:
        fast: as in the stages.
        items: per call of every function except ``baseline``.
        baseline: as in the official code; None where that does the same.
        baseline_items: per call of ``baseline``, where it differs.
        recomputing: the baseline without a store: the frozen networks run in every step.
        caching: the work that a store saves: these frozen networks, in their fast form.
        settings: of this process, such as compiled noise; close them before other work follows in it.
    """

    fast: Callable[[], object]
    items: float
    baseline: Callable[[], object] | None = None
    baseline_items: float | None = None
    recomputing: Callable[[], object] | None = None
    caching: Callable[[], object] | None = None
    settings: ExitStack = field(default_factory=ExitStack)

    def several(self, baseline: bool) -> dict[str, tuple[Callable[[], object], float]]:
        """Return the work to time and its items, by name; only ``fast`` unless ``baseline``."""
        found: dict[str, tuple[Callable[[], object], float]] = {"fast": (as_in_a_run(self.fast), self.items)}
        if baseline:
            caching = as_in_a_run(self.caching) if self.caching is not None else None
            others = {"baseline": self.baseline, "recomputing": self.recomputing, "caching": caching}
            found |= {name: (work, self.items) for name, work in others.items() if work is not None}
            if self.baseline is not None and self.baseline_items is not None:
                found["baseline"] = (self.baseline, self.baseline_items)
        return found


def as_in_a_run(work: Callable[[], object]) -> Callable[[], None]:
    """Return ``work`` run with the matmul library that the trainer chooses."""

    def chosen() -> None:
        with onednn_matmul():
            work()

    return chosen


class Workload(ABC):
    """Base class of workloads: real sizes, random weights and inputs.

    Attributes:
        name: in the table and for ``--only``.
        unit: of an item.
        official: costs of the official code, by the name of the comparison.
        memory_goal: aimed-for ratio of bytes stored for the backward pass, baseline over this project.
        heavy: needs more time or memory than a small machine has; timed only on request or on a GPU.
    """

    name: str
    unit = "image"
    memory_goal: float | None = None
    heavy = False

    @property
    def official(self) -> dict[str, OfficialCost]:
        """Costs of the official code to compare with."""
        return {}

    @abstractmethod
    def prepare(self, device: torch.device, execution: Execution | None = None) -> Variants:
        """Return the work to time.

        Args:
            execution: how the networks compute; None for the trainer's default. Without networks it changes nothing.
        """


def shipped_stage(config: str, spec: DataSpec, **changes: Any) -> Stage:
    """Build the stage of a shipped experiment for ``spec``.

    Args:
        changes: arguments of the stage to replace, as in a config.
    """
    content = read_config(find_config(config))["model"]
    content["init_args"] |= changes
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Stage, "model")
    stage = parser.instantiate(parser.parse_object({"model": content})).model
    return stage.build(spec)
