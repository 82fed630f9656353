"""Divergence of training: reports of skipped steps, the end of a run, and a check of each checkpoint."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from rcg_lightning.errors import UserError
from rcg_lightning.run_folder import DIVERGED, LAST
from rcg_lightning.stages.distributed import all_reduce_sum
from rcg_lightning.stages.step_guard import StepGuard, StepValues

log = logging.getLogger(__name__)
REMEDY = "lower the learning rate, set the optimizer's clip, or look for broken values in the data"


class Diverged(UserError):
    """Loss, gradients or weights are not finite, and skipping steps does not help."""


def steady(trainer: pl.Trainer, guard: StepGuard) -> bool:
    """Warn of the steps skipped since the last call; return whether the last step was not skipped.

    The host waits for the device. All processes have to call this at the same step.

    Raises:
        Diverged: more than ``trainer.max_skipped_steps`` steps in a row were skipped.
    """
    guard.read()
    skipped, guard.unreported = guard.unreported, []
    if skipped and trainer.is_global_zero:
        count, first, last = len(skipped), skipped[0].step, skipped[-1].step
        steps = f"step {first} was" if count == 1 else f"{count} steps from {first} to {last} were"
        log.warning(f"{steps} skipped: {_described(skipped[0])} ({guard.total} skipped in this run)")
    if len(guard.streak) > trainer.max_skipped_steps:  # type: ignore[attr-defined]
        _stop(trainer, guard)
    return not guard.streak


def require_steady_end(trainer: pl.Trainer, guard: StepGuard) -> None:
    """Raise Diverged where training ends with skipped steps: the weights may be their cause."""
    if not steady(trainer, guard):
        _stop(trainer, guard)


def require_finite(checkpoint: Mapping[str, Any], guard: StepGuard, trainer: pl.Trainer | None) -> None:
    """Raise Diverged, in all processes, where a checkpoint to write holds weights or states that are not finite.

    Weights whose norm overflows float32 count as not finite: no loss of theirs is.
    """
    weights = {k: v for k, v in checkpoint["state_dict"].items() if isinstance(v, Tensor) and v.is_floating_point()}
    states = [v for v in tree_leaves(checkpoint.get("optimizer_states", [])) if isinstance(v, Tensor)]
    sizes = [value.norm(dtype=torch.float32) for value in weights.values()] + [value.float().sum() for value in states]
    if not sizes:
        return
    # to one device: an optimizer's step counts may lie on the host
    broken = ~torch.stack([size.to(sizes[0].device) for size in sizes]).isfinite()
    count = broken.sum()
    all_reduce_sum([count])
    if int(count):
        guard.read()
        names = [name for name, bad in zip(weights, broken.tolist()) if bad] or ["the optimizer's state"]
        _raise(guard.last, f"weights that are not finite, such as {names[0]}, are not saved", trainer)


def _stop(trainer: pl.Trainer, guard: StepGuard) -> None:
    """Write the last weights to a file of their own, if they are finite, and raise Diverged."""
    last_weights = Path(trainer.default_root_dir) / DIVERGED
    try:
        trainer.save_checkpoint(last_weights)
        saved = f"{last_weights} holds the weights before it"
    except Diverged:
        saved = "the weights before it are not finite"
    _raise(guard.streak[0], f"the first of {len(guard.streak)} skipped steps in a row; {saved}", trainer)


def _raise(at: StepValues | None, reason: str, trainer: pl.Trainer | None) -> None:
    path = None if trainer is None else Path(trainer.default_root_dir) / LAST
    good = "there is no earlier checkpoint in the run's folder"
    if path is not None and path.is_file():
        step = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"]
        good = f"the last good checkpoint is {path} (step {step})"
    when = "" if at is None else f" at step {at.step} ({_described(at)})"
    raise Diverged(f"training has diverged{when}: {reason}; {good}; {REMEDY}")


def _described(values: StepValues) -> str:
    return f"loss {values.loss:.4g}, gradient norm {values.norm:.4g}, learning rate {values.rate:.4g}"
