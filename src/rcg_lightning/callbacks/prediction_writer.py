"""Writing of predictions, from any number of processes, into one store."""

from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from rcg_lightning import interruption
from rcg_lightning.data.store import Store
from rcg_lightning.data.store_writer import ShardCollector, StoreWriter


class PredictionWriter(BasePredictionWriter):
    """Writes the predicted columns of each batch into its shard."""

    def __init__(self, writer: StoreWriter) -> None:
        super().__init__("batch")
        self._collector = ShardCollector(writer)

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: dict[str, Tensor],
        batch_indices: Any,
        batch: dict[str, Tensor],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        view = batch["view"].cpu().numpy() if "view" in batch else np.zeros(len(batch["index"]), np.int64)
        columns = {name: values.cpu().numpy() for name, values in prediction.items()}
        self._collector.add(batch["index"].cpu().numpy(), view, columns)


def predict_store(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    writer: StoreWriter,
    columns_meta: dict[str, dict[str, Any]] | None = None,
    ckpt_path: str | None = None,
) -> Store:
    """Predict the missing shards of a store, on every process of ``trainer``, and complete the store.

    ``data`` yields batches of ``writer.pending(rank, world)``. The weights at ``ckpt_path``, if given, are loaded into
    ``module`` first.
    """
    trainer.callbacks.append(PredictionWriter(writer))  # type: ignore[attr-defined]
    try:
        if writer.pending(trainer.global_rank, trainer.world_size) or trainer.world_size > 1:
            trainer.predict(module, datamodule=data, return_predictions=False, ckpt_path=ckpt_path)
        trainer.strategy.barrier("every shard is written")
        interruption.check()
    except BaseException as error:
        missing, count = len(writer.pending()), len(writer.shards)
        error.add_note(f"{count - missing} of {count} shards of {writer.folder} are written")
        raise
    if trainer.is_global_zero:
        writer.finish(columns_meta)
    trainer.strategy.barrier("the manifest is written")
    return Store.open(writer.folder)
