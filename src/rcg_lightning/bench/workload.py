"""One thing that is timed, and the figures that it is held against."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jsonargparse import ArgumentParser

from rcg_lightning.commands.parsing import find_config, read_config
from rcg_lightning.stages.base import Stage
from rcg_lightning.types import Batch, Facts

OFFICIAL_RATE = 68.5e9  # matrix products of the core on which the official code was timed, operations a second


@dataclass(frozen=True)
class Baseline:
    """What the official code (LTH14/rcg at 0c4433c, timm 0.3.2) needs on one core of ``OFFICIAL_RATE``.

    Attributes:
        seconds: CPU seconds an item.
        goal: how many times as fast this project means to be.
        work: what the official figure holds that ours does not; empty for the same work.
    """

    seconds: float
    goal: float
    work: str = ""


class Workload(ABC):
    """Subclasses say what is done; sizes are the real ones, weights and inputs random.

    Attributes:
        name: of the workload, in the table and for ``--only``.
        unit: what an item is.
        baselines: the official code's cost, by the name of what it is compared on.
        heavy: needs more time or memory than a small machine has; done only where it is asked for or on a GPU.
    """

    name: str
    unit = "picture"
    heavy = False

    @property
    def baselines(self) -> dict[str, Baseline]:
        """Costs of the official code to hold this against."""
        return {}

    @abstractmethod
    def prepare(self, device: torch.device) -> tuple[Callable[[], object], float]:
        """Return what is to be timed, and how many items one call deals with."""


def shipped_stage(config: str, facts: Facts, **changes: Any) -> Stage:
    """Return the stage of a shipped experiment, built for ``facts``.

    Args:
        changes: arguments of the stage to replace, as in a config.
    """
    content = read_config(find_config(config))["model"]
    content["init_args"] |= changes
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Stage, "model")
    stage = parser.instantiate(parser.parse_object({"model": content})).model
    return stage.build(facts)


def training_step(stage: Stage, batch: Batch, device: torch.device) -> Callable[[], object]:
    """Return one whole step: forward, backward, clipping, optimizer and averages, in the precision of training."""
    stage.to(device).train()
    optimizer, rate = stage.optimizer.make(stage.trained(), 1_000_000)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    batch = on_device(batch, device)

    def step() -> None:
        with in_training_precision(device):
            loss = stage.losses(batch)["loss"]
        loss.backward()
        if stage.optimizer.clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, stage.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rate.step()
        stage.after_step()

    return step


def on_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with every tensor on ``device``."""
    return {name: value.to(device) for name, value in batch.items()}  # type: ignore[return-value,attr-defined]


def in_training_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which networks compute as they do in training: bf16 on GPUs, float32 elsewhere."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
