"""Seeds for every batch, so that training does not depend on earlier random numbers."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback

from rcg_lightning.arguments import Checked
from rcg_lightning.data import numpy_rng


class Reseed(Checked, Callback):
    """Seed torch before every batch from (seed, batch, rank): a resumed run has the noise of an unbroken one.

    No generator state has to be saved. Validation has its own seed for each batch, so that its losses can be compared
    over time and training is the same with or without validation.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        batch = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        reseed(seed_of(self.seed, 0, batch, trainer.global_rank), pl_module.device)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int, *_: object
    ) -> None:
        reseed(seed_of(self.seed, 1, batch_idx, trainer.global_rank), pl_module.device)


def reseed(seed: int, device: torch.device) -> None:
    """Seed the generators of the CPU and of ``device``.

    ``torch.manual_seed`` seeds every backend: for an absent one it records a stack trace and queues a call, which costs
    more than a small training step, in a queue that grows forever. Asking for backends costs a few percent of one.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def seed_of(*counters: int) -> int:
    """Hash counters into a seed for torch."""
    return int(numpy_rng.key(*counters)[0] >> 1)
