"""A piece of work that is timed, its variants, and the official cost that it is compared with."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jsonargparse import ArgumentParser

from rcg_lightning import class_modules  # noqa: F401
from rcg_lightning.callbacks.onednn import onednn_matmul
from rcg_lightning.config_files import find_config, read_config
from rcg_lightning.stages.base import Stage
from rcg_lightning.types import DataSpec

OFFICIAL_RATE = 68.5e9  # matmuls of the core on which the official code was timed, operations a second


@dataclass(frozen=True)
class OfficialCost:
    """What the official code (LTH14/rcg at 0c4433c, timm 0.3.2) needs on one core of ``OFFICIAL_RATE``.

    Attributes:
        seconds: CPU seconds an item.
        goal: how many times as fast this project means to be.
        work: what the official seconds hold in addition; empty for the same work.
    """

    seconds: float
    goal: float
    work: str = ""


@dataclass(frozen=True)
class Variants:
    """The same work in several variants, each a function that deals with a number of items.

    Attributes:
        fast: as the stages do it.
        items: of one call of every function here but ``baseline``.
        baseline: as the official code does it; None where it does nothing else.
        baseline_items: of one call of ``baseline``, where it differs.
        recomputing: the baseline, with the frozen networks in every step whose results a store holds.
        caching: what a store saves: these frozen networks, as fast as here.
    """

    fast: Callable[[], object]
    items: float
    baseline: Callable[[], object] | None = None
    baseline_items: float | None = None
    recomputing: Callable[[], object] | None = None
    caching: Callable[[], object] | None = None

    def several(self, baseline: bool) -> dict[str, tuple[Callable[[], object], float]]:
        """Return what is to be timed and its items, by name; ``fast`` alone unless ``baseline``."""
        found: dict[str, tuple[Callable[[], object], float]] = {"fast": (as_in_a_run(self.fast), self.items)}
        if baseline:
            caching = as_in_a_run(self.caching) if self.caching is not None else None
            others = {"baseline": self.baseline, "recomputing": self.recomputing, "caching": caching}
            found |= {name: (work, self.items) for name, work in others.items() if work is not None}
            if self.baseline is not None and self.baseline_items is not None:
                found["baseline"] = (self.baseline, self.baseline_items)
        return found


def as_in_a_run(work: Callable[[], object]) -> Callable[[], None]:
    """Return ``work`` with the library of matmuls that the trainer chooses."""

    def chosen() -> None:
        with onednn_matmul():
            work()

    return chosen


class Workload(ABC):
    """Base of what is timed; sizes are the real ones, weights and inputs random.

    Attributes:
        name: of the workload, in the table and for ``--only``.
        unit: what an item is.
        official: the official code's costs, by the name of what is compared.
        memory_goal: how many times fewer bytes than the baseline this project means to store for the backward pass.
        heavy: needs more time or memory than a small machine has; timed only where it is asked for or on a GPU.
    """

    name: str
    unit = "image"
    memory_goal: float | None = None
    heavy = False

    @property
    def official(self) -> dict[str, OfficialCost]:
        """Costs of the official code to compare this with."""
        return {}

    @abstractmethod
    def prepare(self, device: torch.device) -> Variants:
        """Return what is to be timed."""


def shipped_stage(config: str, spec: DataSpec, **changes: Any) -> Stage:
    """Return the stage of a shipped experiment, built for ``spec``.

    Args:
        changes: arguments of the stage to replace, as in a config.
    """
    content = read_config(find_config(config))["model"]
    content["init_args"] |= changes
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Stage, "model")
    stage = parser.instantiate(parser.parse_object({"model": content})).model
    return stage.build(spec)


def in_training_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which networks compute as they do in training: bf16 on GPUs, float32 elsewhere."""
    return torch.autocast("cuda", torch.bfloat16, cache_enabled=False) if device.type == "cuda" else nullcontext()
