"""Whole training steps, from a store or with the frozen networks in the step, fast and as the baseline."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from rcg_lightning.bench.baselines import baseline_networks, baseline_optimizer, clip_one_by_one
from rcg_lightning.bench.execution import Execution
from rcg_lightning.bench.workload import Variants
from rcg_lightning.stages.base import Stage
from rcg_lightning.types import Batch

Columns = dict[str, Tensor]  # columns of a store


class TrainingStep:
    """One step: forward, backward, clipping, optimizer and EMA weights.

    Args:
        stage: already built.
        batch: to train on.
        execution: how the step computes; the baseline is never compiled. None for the trainer's default.
    """

    def __init__(self, stage: Stage, batch: Batch, device: torch.device, execution: Execution | None = None) -> None:
        self.stage, self.device = stage.to(device).train(), device
        self.execution = execution or Execution.usual(device)
        self.compilation, self.settings = self.execution.training(self.stage), ExitStack()
        if self.compilation is not None:
            self.settings.callback(self.compilation.on_train_end)
        self.optimizer, self.rate = stage.optimizer.make(stage.trained_modules(), 1_000_000)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.batch: Any = on_device(batch, device)

    def __call__(self) -> None:
        """Take a step as in training."""
        if self.compilation is not None:
            self.compilation.on_train_batch_start()
        self.stage.guard.begin_step()
        with self.execution.matmuls():
            self.stage.backward(self.losses()["loss"])
        self.stage.guard.check(self.optimizer, self.stage.optimizer.clip, step=1)
        self.optimizer.step()
        self.stage.guard.updates.clear()
        self._finish()

    def baseline(self, columns: Columns | None = None) -> None:
        """Take the step as the baseline does, on newly computed columns if given."""
        if self.compilation is not None:
            self.compilation.on_validation_start()  # compiled no longer
        self.stage.guard.begin_step()  # the baseline skips no step
        vars(self.optimizer).pop("found_inf", None)
        with self.execution.matmuls(), baseline_networks(self.stage), baseline_optimizer(self.optimizer):
            self.losses(columns)["loss"].backward()
            clip_one_by_one(self.parameters, self.stage.optimizer.clip)
            self.optimizer.step()
            self._finish()

    def losses(self, columns: Columns | None = None) -> dict[str, Tensor]:
        """Return the losses of the batch."""
        with self.execution.forward(self.device):
            return self.stage.losses(self.batch | (columns or {}))

    def _finish(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.rate.step()
        self.stage.finish_step()


def training_variants(
    step: TrainingStep, items: float, frozen: Callable[[], Columns] | None, networks: Callable[[], list[nn.Module]]
) -> Variants:
    """Return the variants of a step: from a store, and with the frozen networks in the step.

    Args:
        items: number of examples in the batch.
        frozen: computes the columns that a store holds; None where this is not possible.
        networks: returns the frozen networks that have a baseline.
    """
    if frozen is None:
        return Variants(step, items, step.baseline, settings=step.settings)
    make = torch.no_grad()(frozen)

    def recompute() -> None:
        with baseline_networks(*networks()):
            columns = make()
        step.baseline(columns)

    return Variants(step, items, step.baseline, recomputing=recompute, caching=make, settings=step.settings)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with every tensor on ``device``."""
    return {name: value.to(device) for name, value in batch.items()}  # type: ignore[return-value,attr-defined]
