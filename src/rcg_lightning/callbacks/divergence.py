"""Ends a run that has diverged."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.divergence import require_finite, require_steady_end, steady

READ_AT = 500  # updates that are remembered before the host reads them, where logs are rarer


class Divergence(Callback):
    """Reads at logged steps and before validation which steps were skipped; raises where training has diverged."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if not isinstance(pl_module, Stage) or not pl_module.guard.updates:
            return
        every = trainer.log_every_n_steps or READ_AT  # type: ignore[attr-defined]
        if trainer.global_step % every == 0 or len(pl_module.guard.updates) >= READ_AT:
            steady(trainer, pl_module.guard)
            if pl_module.guard.total:
                pl_module.log("train/skipped_steps", float(pl_module.guard.total))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not isinstance(pl_module, Stage) or pl_module.guard.skip is None:  # not in training
            return
        ends = trainer.global_step >= trainer.max_steps > 0
        (require_steady_end if ends else steady)(trainer, pl_module.guard)
        require_finite({"state_dict": pl_module.state_dict()}, pl_module.guard, trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(pl_module, Stage):
            require_steady_end(trainer, pl_module.guard)
