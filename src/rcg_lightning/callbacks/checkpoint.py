"""Checkpoints written every n steps, each as a whole or not at all."""

import io
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from rcg_lightning.artifacts import replacing
from rcg_lightning.errors import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a draft and renames it: after a kill or on a full disk the earlier checkpoint is intact."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        # Lightning writes through the system's temporary folder, which may be small, and where a kill leaves the file
        with replacing(Path(path)) as draft:
            draft.write_bytes(content.getbuffer())


class Checkpoint(ModelCheckpoint):
    """Writes ``last.ckpt`` to the run's folder every n steps and at the end.

    Args:
        every: optimizer steps between two checkpoints.
        keep_all: also store each one under its step number.
    """

    def __init__(self, every: int = 1000, keep_all: bool = False) -> None:
        super().__init__(
            filename="{step}" if keep_all else "last",
            save_last=keep_all,
            save_top_k=-1 if keep_all else 1,
            every_n_train_steps=every,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self._saved_at = -1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.dirpath = trainer.default_root_dir
        super().setup(trainer, pl_module, stage)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        try:
            super()._save_checkpoint(trainer, filepath)
        except OSError as error:
            reason = f"{filepath} cannot be written ({error.strerror or error}); the earlier checkpoint is intact"
            raise UserError(f"{reason}: free some space and continue from it") from error
        self._saved_at = trainer.global_step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        last = Path(trainer.default_root_dir) / "last.ckpt"
        fresh = trainer.ckpt_path is None and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if trainer.is_global_zero and fresh and last.is_file():
            set_aside(last)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self._saved_at and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._save_checkpoint(trainer, str(Path(trainer.default_root_dir) / "last.ckpt"))

    def state_dict(self) -> dict[str, Any]:
        return {}  # ModelCheckpoint's state is paths of this machine, which do not belong in a checkpoint

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def set_aside(last: Path) -> Path:
    """Rename an earlier run's checkpoint, so that a new run in the same folder does not overwrite it."""
    number = 1
    while (renamed := last.with_name(f"last-{number}.ckpt")).exists():
        number += 1
    last.rename(renamed)
    return renamed
