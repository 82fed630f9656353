"""Training steps whose gradients are not finite."""

import torch
from lightning.pytorch.callbacks import Callback


class Poison(Callback):
    """Puts NaN, or another value, into one example of the batch of some steps.

    Args:
        steps: training steps, counted from 1.
        key: column of the batch; None multiplies the loss by NaN instead, for stages that read tokens.
        rank: process whose batch is changed; None for all.
        value: what is put in.
    """

    def __init__(self, *steps, key="image", rank=None, value=torch.nan):
        self.steps, self.key, self.rank, self.value = steps, key, rank, value

    def on_train_batch_start(self, trainer, stage, batch, batch_idx):
        vars(stage).pop("losses", None)
        if trainer.global_step + 1 not in self.steps or self.rank not in (None, trainer.global_rank):
            return
        if self.key is not None:
            batch[self.key][:1] = self.value
            return
        losses = stage.losses
        stage.losses = lambda batch: {name: value * torch.nan for name, value in losses(batch).items()}
